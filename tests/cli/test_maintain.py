import json

import pytest
import sqlalchemy as sa
from alembic import command
from commands import document, run
from migrating import configuration
from rows import rows, write_jsonl

from forvalue_index import ValuationIndex
from forvalue_index.store.catalog.database import connect

pytest_plugins = ("tiny",)


@pytest.fixture
def path(filled):
    return filled.path


def test_a_dry_run_counts_and_changes_nothing(path, filled):
    done = run("remove", path, "--where", "metadata.topic = 'law'", "--dry-run")
    assert done.output == "11 samples would be removed.\n"
    assert len(filled) == 30


def test_removing_by_name_condition_and_source(path, filled):
    assert document("remove", path, "r1", 2, "--yes") == {
        "matching": 2,
        "removed": 2,
        "dry_run": False,
    }
    again = run("remove", path, "r1", "--yes")
    assert again.stdout == "0 samples removed.\n"
    assert again.stderr == "r1: the sample of this name is removed already.\n"
    assert document("remove", path, "@2", "r3", "--yes")["removed"] == 1
    assert document("remove", path, "--where", "metadata.topic = 'war'", "--yes")["removed"] == 8
    assert document("remove", path, "--source", "<iterable>", "--yes")["removed"] == 19
    assert len(filled) == 0


def test_removing_asks_first(path, filled, monkeypatch):
    done = run("remove", path, "r1", input="y\n")
    assert done.exit_code == 2
    assert done.stderr == "Error: nobody is there to be asked; give --yes, or see with --dry-run\n"
    monkeypatch.setattr("forvalue_index.cli.maintain._somebody_is_there", lambda: True)
    assert run("remove", path, "r1", input="n\n").exit_code == 1
    assert len(filled) == 30
    done = run("remove", path, "r1", input="y\n")
    assert "Remove 1 of 30 samples from" in done.stderr
    assert done.stdout == "1 sample removed.\n"
    assert len(filled) == 29


def test_what_was_confirmed_is_what_is_removed(path, filled, monkeypatch):
    """Others may add or remove between the question and the answer."""
    monkeypatch.setattr("forvalue_index.cli.maintain._somebody_is_there", lambda: True)
    monkeypatch.setattr("click.confirm", lambda *_, **__: filled.remove(["r1"]))
    done = run("remove", path, "--where", "id < 5")
    assert done.exit_code == 2
    assert "4 samples match now, and 5 did when you were asked" in done.stderr
    assert len(filled) == 29


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ((), 2, "say which samples to remove"),
        (("r1", "--where", "loss > 1"), 2, "either by key or number, or with"),
        (("nobody",), 1, "There is no sample with the key or id 'nobody'"),
        (("r1", "nobody"), 1, "There is no sample with the key or id 'nobody'"),
        (("--source", "nowhere"), 1, "There is no source 'nowhere'"),
        (("--where", "loss >"), 2, "loss >"),
        (("--where", "nothing = 1"), 2, "there is no column 'nothing'"),
    ],
)
def test_bad_wishes_remove_nothing(path, filled, arguments, code, reason):
    done = run("remove", path, *arguments, "--yes")
    assert (done.exit_code, done.stdout) == (code, "")
    assert reason in done.stderr
    assert len(filled) == 30


def test_compacting_forgets_what_was_removed(path, filled):
    filled.remove(["r1"])
    found = document("compact", path)
    assert found.pop("bytes_before") > found.pop("bytes_after") > 0
    assert found == {"segments_before": 2, "segments_after": 1, "dropped": 1}
    done = run("compact", path)
    assert done.output.startswith("1 segment became 1; 0 removed samples were forgotten")
    assert filled.info().removed == 0


def test_a_sound_index(path):
    assert run("check", path).stdout == f"2 segments and 30 samples of {path}: sound.\n"
    assert document("check", path) == {
        "sound": True,
        "segments": 2,
        "samples": 30,
        "findings": [],
    }


def test_a_damaged_index_is_named_and_repaired(path):
    segment = sorted((path / "segments").iterdir())[0]
    segment.write_bytes(segment.read_bytes()[:-5])
    orphan = segment.with_name("0" * 32 + ".safetensors")
    orphan.write_bytes(b"half")
    found = document("check", path, code=1)
    assert [f["kind"] for f in found["findings"]] == ["damaged segment", "orphan file"]
    assert [f["repaired"] for f in found["findings"]] == [False, False]
    done = run("check", path)
    assert done.exit_code == 1
    assert "cure: restore it from a backup, or run: forvalue check INDEX --repair" in done.stdout
    done = run("check", path, "--repair")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("repaired") == 2
    assert not orphan.exists()
    assert document("check", path)["sound"]


@pytest.mark.parametrize("name", ["remove", "compact", "check", "migrate"])
def test_without_an_index(tmp_path, name):
    done = run(name, tmp_path / "none", *(["x", "--yes"] if name == "remove" else []))
    assert done.exit_code == 1
    assert done.stderr.endswith(
        f"does not exist; create one with: forvalue init {tmp_path / 'none'} --model MODEL\n"
    )


def test_an_index_of_an_older_version(tmp_path, model_dir, filled):
    """An index without removed samples, taken back to the schema of the first version."""
    path = filled.path
    filled.close()
    engine = connect(path / "catalog.sqlite")
    with engine.connect() as connection:
        connection.connection.driver_connection.execute("PRAGMA foreign_keys = OFF")
        with connection.begin():
            command.downgrade(configuration(connection), "0001")
        names = {column["name"] for column in sa.inspect(connection).get_columns("samples")}
    engine.dispose()
    assert "checksum" not in names
    manifest = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps(manifest | {"format_version": 2}))
    done = run("info", path)
    assert done.exit_code == 1
    assert "has schema 0001" in done.stderr
    assert done.stderr.endswith("Run: forvalue migrate INDEX\n")
    assert document("migrate", path) == {"before": "0001", "after": "0002"}
    assert run("migrate", path).output == f"{path} has schema 0002 already.\n"
    assert document("check", path)["sound"]
    more = write_jsonl(tmp_path / "more.jsonl", rows(22))
    assert document("add", path, more)["known"] == 20
    with ValuationIndex.open(path) as opened:
        assert len(opened) == 32
        assert opened.remove(["r0"]) == 1
