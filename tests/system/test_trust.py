"""Code that comes with a model runs where its user says so, each time, and nowhere else."""

import json
import subprocess
import sys

import pytest
import transformers.dynamic_module_utils
from commands import run
from rows import rows, write_jsonl
from strangers import edit, save_strange_model, save_strange_tokenizer

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import ModelError, SettingsMismatchError, UsageError

pytest_plugins = ("tiny",)

SAVE = {"model": save_strange_model, "tokenizer": save_strange_tokenizer}
TRUST = "--trust-remote-code"


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """A place of its own for the code that transformers copies, and a module path to restore."""
    place = tmp_path / "modules"
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(place))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.fixture
def mark(tmp_path):
    """A file that is there once a stranger's code has run."""
    return tmp_path / "it-has-run"


@pytest.fixture(params=SAVE)
def strange(request, tmp_path, mark):
    return SAVE[request.param](tmp_path / "strange", mark)


@pytest.fixture
def data(tmp_path):
    return write_jsonl(tmp_path / "data.jsonl", rows(3))


def refused(*arguments, code):
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


def using(index, data):
    """All commands that load the model."""
    return [
        ("add", index, data),
        ("query", index, data),
        ("values", index, data, "-o", index.with_name("values.csv")),
    ]


def test_code_is_not_run_unless_it_is_trusted(strange, mark, tmp_path):
    said = refused("init", tmp_path / "index", "--model", strange, code=1)
    assert said.startswith(f"Error: {strange} runs code of its own (")
    assert said.endswith(f"); give {TRUST} if you trust it, or use another model\n")
    assert not mark.exists()
    assert not (tmp_path / "index").exists()


def test_code_that_is_trusted_runs_and_is_recorded(strange, mark, tmp_path, data):
    index = tmp_path / "index"
    done = run("init", index, "--model", strange, TRUST, "--dim", 256, "--json")
    assert done.exit_code == 0, done.stderr
    assert mark.exists()
    assert json.loads(done.stdout)["trust_remote_code"] is True
    assert json.loads((index / "index.json").read_text())["settings"]["trust_remote_code"] is True
    for command in using(index, data):
        done = run(*command, TRUST)
        assert done.exit_code == 0, done.stderr


def test_what_an_index_records_is_no_trust(strange, mark, tmp_path, data):
    """It may come from a stranger, as its model may."""
    index = tmp_path / "index"
    assert run("init", index, "--model", strange, TRUST, "--dim", 256).exit_code == 0
    mark.unlink()
    for command in using(index, data):
        said = refused(*command, code=2)
        assert said == (
            f"Error: {index}: the model {strange} runs code of its own; give {TRUST} if you trust "
            "it and the index\n"
        )
    with ValuationIndex.open(index) as opened:
        assert opened.manifest.settings.trust_remote_code
        assert len(opened) == 0
        with pytest.raises(UsageError, match=r"runs code of its own"):
            opened.add(rows(3))
    said = refused("init", index, "--model", strange, "--dim", 256, code=1)
    assert "was built with trust_remote_code True" in said
    assert not mark.exists()


def test_a_trusted_index_is_used_from_python(tmp_path, mark):
    strange = str(save_strange_model(tmp_path / "strange", mark))
    options = {"dim": 256, "trust_remote_code": True}
    with ValuationIndex.create(tmp_path / "index", strange, **options) as index:
        assert index.add(rows(3)).added == 3
    with ValuationIndex.create(tmp_path / "index", strange, **options) as index:
        assert index.add(rows(4)).added == 1
    with ValuationIndex.open(tmp_path / "index", trust_remote_code=True) as index:
        assert index.query(rows(1), top=1).searched == 4


def test_trust_that_an_index_does_not_ask_for(built_index, data, model_dir):
    for command in using(built_index, data):
        said = refused(*command, TRUST, code=1)
        assert said.endswith(f"runs no code of its own; leave out {TRUST}\n")
    with (
        ValuationIndex.open(built_index, trust_remote_code=True) as index,
        pytest.raises(SettingsMismatchError),
    ):
        index.query(rows(1))
    said = refused("init", built_index, "--model", model_dir, "--dim", 256, TRUST, code=1)
    assert "trust_remote_code False, and this asks for True" in said


def test_an_index_that_was_made_to_name_another_model(filled, strange, mark, data):
    """Where the model lies is no part of the fingerprint."""
    index = filled.storage.path
    edit(index / "index.json", settings=vars(filled.manifest.settings) | {"model": str(strange)})
    for command in using(index, data):
        assert "runs code of its own" in refused(*command, code=1)
    for command in using(index, data):
        assert "leave out" in refused(*command, TRUST, code=1)
    assert not mark.exists()


def test_trust_is_asked_for_before_anything_is_imported(tmp_path, mark, data):
    strange = save_strange_model(tmp_path / "strange", mark)
    index = tmp_path / "index"
    assert run("init", index, "--model", strange, TRUST, "--dim", 256).exit_code == 0
    code = (
        "import sys; from forvalue_index.cli import main\n"
        "try:\n"
        f"    main({['query', str(index), str(data)]!r})\n"
        "except SystemExit as end:\n"
        "    assert end.code == 2\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_model_that_transformers_knows_needs_no_trust(tmp_path, mark, model_dir):
    """Many models of the hub have code from before transformers knew them: it is passed over."""
    known = save_strange_model(tmp_path / "known", mark, kind="llama")
    edit(
        known / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "modeling_strange.StrangeTokenizer"]},
    )
    with (
        ValuationIndex.create(tmp_path / "a", str(known)) as a,
        ValuationIndex.create(tmp_path / "b", str(model_dir)) as b,
    ):
        assert a.manifest.model == b.manifest.model
    assert not mark.exists()


def test_code_of_a_generation_is_not_run(tmp_path, mark, model_dir):
    directory = save_strange_model(tmp_path / "known", mark, kind="llama")
    (directory / "custom_generate").mkdir()
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\ndef generate(**_): pass\n"
    (directory / "custom_generate" / "generate.py").write_text(code)
    ValuationIndex.create(tmp_path / "index", str(directory)).close()
    assert not mark.exists()


@pytest.mark.parametrize(
    "asked",
    [
        {"attn_implementation": "someone/kernel"},
        {"experts_implementation": {"": "someone/kernel@main:run"}},
        {"text_config": {"_attn_implementation": "someone/kernel"}},
    ],
)
def test_a_kernel_of_the_hub_is_code(tmp_path, mark, asked):
    directory = save_strange_model(tmp_path / "known", mark, kind="llama")
    edit(directory / "config.json", **asked)
    with pytest.raises(ModelError, match=r"runs code of its own \(a kernel of the hub, someone/k"):
        ValuationIndex.create(tmp_path / "index", str(directory))


TEMPLATES = {
    "class": "{{ messages.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__['__builtins__'] }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "filter": "{{ (messages | attr('__class__')).mro() }}",
    "cycler": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "change": "{{ messages.append(1) }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_chat_template_reaches_nothing_but_the_messages(tmp_path, mark, data, template):
    """Templates are programs that come with a model, and are run: in a sandbox."""
    directory = save_strange_model(tmp_path / "known", mark, kind="llama")
    (directory / "chat_template.jinja").write_text(template)
    index = tmp_path / "index"
    assert run("init", index, "--model", directory, "--dim", 256).exit_code == 0
    said = refused("add", index, data, code=1)
    assert "the chat template refuses the roles user, assistant: " in said
    with ValuationIndex.open(index) as opened:
        assert len(opened) == 0
