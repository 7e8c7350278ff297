"""What goes wrong on the command line: one line that says what, with which values, and what to do.

The exit code is 1 where it failed and 2 where it can never work; the index stays as it was.
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing

import pytest
import sqlalchemy as sa
from commands import misused, refused, run
from rows import rows, write_jsonl

from forvalue_index import ValuationIndex
from forvalue_index.reports.documents import info_document
from forvalue_index.store.manifest import FORMAT_VERSION, open_catalog

pytest_plugins = ("tiny",)


def state(path):
    """Files with sizes, and what `info` says."""
    files = {
        str(p.relative_to(path)): p.stat().st_size
        for p in path.rglob("*")
        # SQLite's own, which come and go with connections.
        if p.is_file() and not p.name.startswith("catalog.sqlite-")
    }
    manifest, catalog = open_catalog(path)
    with closing(catalog):
        with catalog.snapshot() as snapshot:
            summary, version = snapshot.summary(), snapshot.version()
        return files, info_document(manifest, summary, version=version)


@pytest.fixture
def index(built_index, tmp_path):
    """A built index that must come out as it went in."""
    path = shutil.copytree(built_index, tmp_path / "index")
    before = state(path)
    yield path
    assert state(path) == before


@pytest.fixture
def broken(built_index, tmp_path):
    """A built index to break."""
    return shutil.copytree(built_index, tmp_path / "index")


@pytest.fixture
def train(tmp_path):
    return write_jsonl(tmp_path / "train.jsonl", rows(3, seed=5, prefix="t"))


def reading(path, data):
    """All commands that read an index, with arguments that are right."""
    return [
        ("add", path, data),
        ("query", path, data),
        ("values", path, data, "-o", path.with_name("values.csv")),
        ("show", path, "r1"),
        ("list", path),
        ("info", path),
    ]


def test_what_is_no_index(tmp_path, train):
    (tmp_path / "folder").mkdir()
    for name, said in (
        ("none", "none does not exist; create one with: forvalue init"),
        ("folder", "folder is not an index; create one with: forvalue init"),
        ("train.jsonl", "train.jsonl is not an index"),
    ):
        for command in reading(tmp_path / name, train):
            assert said in refused(*command)
    assert list((tmp_path / "folder").iterdir()) == []


def edit(path, **changes):
    document = json.loads((path / "index.json").read_text("utf-8"))
    (path / "index.json").write_text(json.dumps(document | changes), "utf-8")


def test_an_index_of_a_newer_version(broken, train, model_dir):
    newer = FORMAT_VERSION + 1
    edit(broken, format_version=newer)
    for command in (*reading(broken, train), ("init", broken, "--model", model_dir)):
        said = refused(*command)
        assert f"format version {newer}, and this forvalue-index reads up to" in said
        assert f"{FORMAT_VERSION}; install a newer forvalue-index" in said


def test_an_index_that_was_edited(broken, train):
    edit(broken, settings=json.loads((broken / "index.json").read_text())["settings"] | {"dim": 64})
    for command in reading(broken, train):
        assert "index.json was edited: its fingerprint is" in refused(*command)


def test_a_damaged_index(broken, train):
    (broken / "index.json").write_text("{")
    for command in reading(broken, train):
        assert "index.json is damaged" in refused(*command)


def test_a_catalog_of_a_newer_version(broken, train, model_dir):
    engine = sa.create_engine(f"sqlite:///{broken / 'catalog.sqlite'}")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    for command in (*reading(broken, train), ("init", broken, "--model", model_dir)):
        said = refused(*command)
        assert "has schema 9999, which is newer than" in said
        assert "pip install --upgrade forvalue-index" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "catalog.sqlite is missing"), (b"not SQL " * 99, "is not a catalog or is damaged")],
)
def test_a_damaged_catalog(broken, train, content, said):
    for file in broken.glob("catalog.sqlite*"):
        file.unlink()
    if content is not None:
        (broken / "catalog.sqlite").write_bytes(content)
    for command in reading(broken, train):
        assert said in refused(*command)


def test_rows_that_are_missing(broken, train):
    next((broken / "segments").iterdir()).unlink()
    for command in (("query", broken, train), ("values", broken, train, "-o", broken / "v.csv")):
        said = refused(*command)
        assert "is missing, and it holds rows" in said
        assert said.endswith("run: forvalue check INDEX --repair")
    assert not (broken / "v.csv").exists()


def test_hash_tables_that_are_missing(broken, train):
    (broken / "sketch.safetensors").unlink()
    for command in reading(broken, train)[:3]:
        assert "sketch.safetensors cannot be read" in refused(*command)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "dim 256, and this asks for 4096"),
        (("--dim", 256, "--seed", 1), "seed 0, and this asks for 1"),
        (("--dim", 256, "--labels", "all"), "labels 'response', and this asks for 'all'"),
        (("--dim", 256, "--max-length", 9), "max_length 512, and this asks for 9"),
    ],
)
def test_an_index_is_not_made_anew_with_other_settings(index, model_dir, given, said):
    told = refused("init", index, "--model", model_dir, *given)
    assert said in told
    assert "Settings are frozen: use the stored ones, or build a new index" in told


def test_another_model(index, train, other_model_dir):
    for command in reading(index, train)[:3]:
        said = refused(*command, "--model", other_model_dir)
        assert "was built with another model: its weights digest is" in said
    assert not index.with_name("values.csv").exists()


def test_an_index_is_not_made_among_other_files(tmp_path, model_dir, train):
    said = refused("init", tmp_path, "--model", model_dir)
    assert "holds other files" in said
    assert "train.jsonl is a file" in refused("init", train, "--model", model_dir)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("train.jsonl/index", "Not a directory"), ("/proc/no", "No such file or directory")],
)
def test_an_index_that_cannot_be_made(tmp_path, model_dir, train, name, reason):
    """The system's error came with a traceback."""
    said = refused("init", tmp_path / name, "--model", model_dir)
    assert said.startswith(str(tmp_path / name))
    assert f": {reason}; check the path, the rights to it and the room on the disk" in said


def test_a_model_that_is_not_there(tmp_path, index, train):
    missing = tmp_path / "no-model"
    said = refused("init", tmp_path / "new", "--model", missing)
    assert f"{missing}: there is no such model directory; check the path" in said
    assert not (tmp_path / "new").exists()
    for command in reading(index, train)[:3]:
        assert "there is no such model directory" in refused(*command, "--model", missing)


def test_a_model_on_a_hub_that_cannot_be_reached(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    code = "from forvalue_index.cli import main; main()"
    command = [sys.executable, "-c", code, "init", str(tmp_path / "new"), "--model", "owner/name"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: owner/name is neither a directory here nor in the hub's")
    assert done.stderr.count("\n") == 1
    assert "check the name and the network" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "garbage", "empty object", "cut"])
def test_a_damaged_model(tmp_path, model_dir, file, damage):
    model = shutil.copytree(model_dir, tmp_path / "model")
    content = (model / file).read_bytes()
    (model / file).unlink()
    damaged = {"garbage": b"garbage" * 9, "empty object": b"{}", "cut": content[:-99]}
    if damage != "missing":
        (model / file).write_bytes(damaged[damage])
    said = refused("init", tmp_path / "new", "--model", model)
    assert str(model) in said
    assert not (tmp_path / "new").exists()


def test_an_adapter_that_is_not_there(tmp_path, model_dir):
    missing = tmp_path / "adapter"
    said = refused("init", tmp_path / "new", "--model", model_dir, "--adapter", missing)
    assert str(missing) in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--dim", 3), "--dim cannot be 3; use 16 to 1,048,576"),
        (("--seed", -1), "--seed cannot be -1; use 0 or more"),
        (("--max-length", 1), "--max-length cannot be 1; use at least 2 tokens"),
        (("--max-length", 513), "--max-length 513:"),
        (("--catalog", "nonsense"), "--catalog: the scheme nonsense is not allowed; use sqlite"),
        (("--catalog", "sqlite:////tmp/c.sqlite"), "--catalog: the scheme sqlite is not allowed"),
        (("--catalog", "postgresql+psycopg://127.0.0.1:1/none"), "See that the database can be"),
    ],
)
def test_settings_that_cannot_work(tmp_path, model_dir, given, said):
    code = 1 if "postgresql" in str(given) else 2
    assert said in refused("init", tmp_path / "new", "--model", model_dir, *given, code=code)
    assert not (tmp_path / "new" / "index.json").exists()
    assert run("init", tmp_path / "new", "--model", model_dir).exit_code == 0


def test_a_chat_template_that_is_not_there(tmp_path, plain_model_dir):
    command = ("init", tmp_path / "new", "--model", plain_model_dir, "--template", "chat")
    assert "has no chat template; use auto or plain" in refused(*command, code=2)


@pytest.mark.parametrize(("option", "count"), [("--top", 0), ("--bottom", 0), ("--top", -3)])
def test_fewer_than_one_sample(index, train, option, count):
    said = refused("query", index, train, option, count, code=2)
    assert said == f"{option} is {count}; ask for at least 1 sample"


@pytest.mark.parametrize(
    "where",
    [
        "colour = 'red'",
        "1=1; DROP TABLE samples",
        "id IN (SELECT id FROM samples)",
        "id = 1 -- and more",
        "id = 1 /* and more */",
        "key = 'x' UNION SELECT 1",
        "load_extension('x')",
        "id = (",
        "",
        "samples.removed = 1",
        "payload IS NULL",
        "id = 'text'",
        "id = 1 OR",
        "'",
    ],
)
def test_a_condition_that_is_not_allowed(index, where):
    said = refused("list", index, "--where", where, code=2)
    assert len(said) > 20
    assert run("list", index).exit_code == 0


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_no_data(index, tmp_path, content):
    path = tmp_path / "none.jsonl"
    path.write_text(content)
    said = refused("add", index, path)
    assert said == f"{path}: there is no row in it, so nothing was added; check the file"
    assert "none.jsonl has no usable row to validate with" in refused("query", index, path)
    values = ("values", index, path, "-o", tmp_path / "v.csv")
    assert "none.jsonl has no usable row to validate with" in refused(*values)
    assert "<stdin>: there is no row in it" in refused("add", index, "-", input=content)


def test_nothing_but_bad_rows(index, tmp_path):
    path = write_jsonl(tmp_path / "bad.jsonl", [{"text": ""}, {"text": 3}])
    said = refused("query", index, path, "--on-bad", "skip")
    assert "no usable row to validate with (2 bad, first" in said
    assert "bad.jsonl:1: 'text' is empty" in said


def test_a_bad_row(index, tmp_path, train):
    with train.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "p", "response": 3}\n')
    for command in reading(index, train)[:3]:
        said = refused(*command)
        assert "train.jsonl:4: 'response' is int, wanted text" in said
        assert said.endswith("Mend the row, or use --on-bad skip")


def test_data_that_cannot_be_read(index, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.docx").touch()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1garbage")
    for name, said in (
        ("none.jsonl", "none.jsonl does not exist: check the path"),
        ("*.csv", "*.csv matches no file"),
        ("folder", "folder is a directory without a data file; name one with some"),
        ("notes.docx", "notes.docx has the unknown format '.docx': use .jsonl"),
        ("bad.parquet", "bad.parquet cannot be read"),
    ):
        for command in reading(index, tmp_path / name)[:3]:
            assert said in refused(*command)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("prompt", "'prompt' in columns 'prompt' is malformed"),
        ("", "'' in columns '' is malformed"),
        ("prompt=a,prompt=b", "'prompt=b' in columns"),
        ("question=Q", "columns names unknown fields: question; use prompt, response"),
    ],
)
def test_a_mapping_that_is_none(index, train, columns, said):
    for command in reading(index, train)[:3]:
        assert said in refused(*command, "--columns", columns, code=2)


def test_a_column_that_is_not_there(index, train):
    said = refused("add", index, train, "--columns", "prompt=Q,response=A")
    assert "train.jsonl:1: no column 'Q' for prompt; the row has: id, prompt, response" in said


def test_messages_without_a_chat_template(tmp_path, plain_model_dir):
    turns = [{"role": r, "content": "abc"} for r in ("system", "user", "assistant")]
    path = write_jsonl(tmp_path / "chat.jsonl", [{"messages": turns}])
    ValuationIndex.create(tmp_path / "index", str(plain_model_dir), dim=64).close()
    for command in reading(tmp_path / "index", path)[:3]:
        said = refused(*command)
        assert "chat.jsonl:1: a conversation of 3 turns needs a chat template" in said
        assert "use a model whose tokenizer has a chat template" in said


def test_samples_longer_than_the_context(broken, tmp_path):
    long = "red green " * 200
    cut = write_jsonl(tmp_path / "cut.jsonl", [{"prompt": "p", "response": long}, {"text": long}])
    hopeless = write_jsonl(tmp_path / "hopeless.jsonl", [{"prompt": long, "response": "r"}])
    added = json.loads(run("add", broken, cut, "--json").stdout)
    assert (added["added"], added["truncated"]) == (2, 2)
    found = json.loads(run("query", broken, cut, "--json").stdout)
    assert found["warnings"] == ["2 validation sample(s) are longer than the context and were cut"]
    assert "2 samples cut, at the tokens of --max-length" in again(broken, tmp_path, long)
    for command in reading(broken, hopeless)[:3]:
        said = refused(*command)
        assert "hopeless.jsonl:1: its prompt alone has" in said
        assert "no response token is within the 512 of --max-length; shorten the prompt" in said
    skipped = json.loads(run("add", broken, hopeless, "--on-bad", "skip", "--json").stdout)
    assert (skipped["added"], skipped["rejected"], skipped["truncated"]) == (0, 1, 0)


def again(index, tmp_path, long):
    """What a person reads of truncated samples."""
    data = [{"text": f"{n} {long}"} for n in range(2)]
    return run("add", index, write_jsonl(tmp_path / "more.jsonl", data)).stdout


def test_output_that_cannot_be_written(index, train, tmp_path):
    values = ("values", index, train, "-o")
    said = refused(*values, tmp_path / "none" / "values.csv", code=2)
    assert "none is not a directory; create it, or write elsewhere" in said
    said = refused(*values, tmp_path / "values.xlsx", code=2)
    assert "values.xlsx ends in .xlsx; use one of .parquet, .csv, .jsonl" in said
    assert "is a directory" in misused(*values, tmp_path)


def test_demo_data_that_cannot_be_written(tmp_path, train):
    assert "train.jsonl" in refused("make-demo-data", train / "demo")
    assert "is a file" in misused("make-demo-data", train)


@pytest.mark.parametrize("name", ["nobody", "", "-5", "99", "9" * 30, "1.0", "r%", "ü\nx"])
def test_a_sample_that_is_not_there(index, name):
    said = refused("show", "--", index, name)
    assert "There is no sample with the key or id" in said
    assert "forvalue list" in said


def test_a_number_beyond_what_a_database_counts(index):
    """It was an OverflowError of the driver."""
    assert "30 of 30 samples" in run("list", index, "--limit", 10**30).stdout
    assert "0 of 30 samples" in run("list", index, "--offset", 10**30).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("init", "ix"), "Missing option '--model'."),
        (("init", "ix", "--model", "m", "--dim", "big"), "'big' is not a valid integer."),
        (("init", "ix", "--model", "m", "--labels", "some"), "'some' is not one of 'response', 'l"),
        (("add", "ix"), "Missing argument 'DATA...'."),
        (("add", "ix", "d", "--on-bad", "ignore"), "'ignore' is not one of 'fail', 'skip'."),
        (("query",), "Missing argument 'INDEX'."),
        (("values", "ix", "d"), "Missing option '-o' / '--output'."),
        (("list", "ix", "--limit", "0"), "0 is not in the range x>=1"),
        (("forget", "ix"), "No such command 'forget'."),
        (("info", "ix", "--yaml"), "No such option '--yaml'."),
    ],
)
def test_arguments_that_click_refuses(arguments, said):
    told = misused(*arguments)
    assert said in told or said.rstrip(".") in told
