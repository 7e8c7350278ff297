"""What goes wrong with exact scores and calibrations on the command line: a clear line each."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import document, misused, refused, run
from exact_data import TRAINING, VALIDATION, N, values_of
from grids import rarely
from models import tiny_model, tiny_tokenizer
from rows import rows, write_jsonl
from safetensors.numpy import load_file, save_file

from forvalue_index import ValuationIndex
from forvalue_index.valuation.results import SATURATED

pytest_plugins = ("tiny",)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, model_dir):
    """An index with rows of fisher, and two data files beside it."""
    directory = tmp_path_factory.mktemp("plain")
    settings = {"dim": 256, "geometry": "fisher"}
    with ValuationIndex.create(directory / "index", str(model_dir), **settings) as index:
        index.add(TRAINING)
    write_jsonl(directory / "v.jsonl", VALIDATION)
    return directory


@pytest.fixture
def place(plain, tmp_path):
    """A copy to break."""
    return shutil.copytree(plain, tmp_path / "plain")


def asking(place, **names):
    """Every command that needs exact or sketched scores."""
    index, validation = names.get("index", "index"), names.get("validation", "v.jsonl")
    both = (place / index, place / validation)
    return {
        "query": ("query", *both),
        "query --rerank": ("query", *both, "--rerank", 12),
        "query --per-sample": ("query", *both, "--rerank", 12, "--per-sample"),
        "values": ("values", *both, "-o", place / "x.csv"),
        "values --exact": ("values", *both, "-o", place / "x.csv", "--exact"),
        "explain": ("explain", place / index, "r1", place / validation, "-o", place / "x.html"),
    }


@pytest.mark.parametrize("rerank", [9, 0, -5])
def test_fewer_candidates_than_answers(plain, rerank):
    message = refused("query", plain / "index", plain / "v.jsonl", "--rerank", rerank, code=2)
    assert message == (
        f"--rerank {rerank} is less than the 10 samples asked for; use at least 10, better ten "
        "times as many"
    )
    command = ("query", plain / "index", plain / "v.jsonl", "--rerank", 3, "--bottom", 5)
    assert "less than the 5 samples" in refused(*command, "--top", 2, code=2)
    assert "'x' is not a valid integer" in misused(*command[:-3], "x")


def test_whitening_has_no_exact_scores(plain, tmp_path):
    both = (plain / "index", plain / "v.jsonl", "--whiten")
    output = tmp_path / "v.csv"
    for command in (
        ("query", *both, "--rerank", 20),
        ("values", *both, "--exact", "-o", output),
    ):
        assert refused(*command, code=2) == (
            "--whiten changes a query in the space of rows, which exact scores do not have; leave "
            "one of them out"
        )
    assert not output.exists()
    assert "No such option" in misused("explain", plain / "index", "r1", *both[1:])


def test_a_text_that_has_changed(tmp_path, model_dir):
    train = write_jsonl(tmp_path / "train.jsonl", TRAINING)
    write_jsonl(tmp_path / "v.jsonl", VALIDATION)
    index = tmp_path / "index"
    document("init", index, "--model", model_dir, "--dim", 256, "--payload", "reference")
    document("add", index, train)
    before = document("query", index, tmp_path / "v.jsonl", "--top", N)
    # As long as it was, so that the others stand where they stood.
    train.write_text(train.read_text("utf-8").replace('"response": "1 ', '"response": "9 ', 1))
    said = (
        "the text of sample r1 cannot be read, and exact scores need it: train.jsonl:2 has "
        "changed since it was added; restore the file or add it again"
    )
    commands = asking(tmp_path)
    found = document(*commands["query --rerank"], "--top", N, "--rerank", N)
    assert found["reranked"] == N - 1
    assert f"{said}; its score is sketched" in found["warnings"]
    was = next(hit for hit in before["helpful"] if hit["id"] == 1)
    now = next(hit for hit in found["helpful"] if hit["id"] == 1)
    assert (now["score"], now["stderr"], now["exact"]) == (was["score"], was["stderr"], False)
    assert sum(hit["exact"] for hit in found["helpful"]) == N - 1
    scores = [hit["score"] for hit in found["helpful"]]
    assert scores == sorted(scores, reverse=True)
    for name in ("values --exact", "explain"):
        assert refused(*commands[name]) == said
    assert not (tmp_path / "x.csv").exists()
    assert not (tmp_path / "x.html").exists()
    assert document("values", index, tmp_path / "v.jsonl", "-o", tmp_path / "y.csv")


@pytest.fixture(scope="module")
def certain_dir(tmp_path_factory):
    """A model that says the letter a and nothing else, to the last bit."""
    return save_certain(tmp_path_factory.mktemp("certain"), 1e4)


def save_certain(directory, bias):
    model, tokenizer = tiny_model("phi"), tiny_tokenizer()
    (letter,) = tokenizer("a", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.get_output_embeddings().bias[letter] = bias
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("geometry", ["raw", "kfac", *rarely("fisher", "centered")])
def test_a_validation_set_without_gradient(tmp_path, certain_dir, geometry):
    settings = {"dim": 256, "geometry": geometry}
    with ValuationIndex.create(tmp_path / "index", str(certain_dir), **settings) as index:
        index.add([*TRAINING, {"id": "same", "text": "aaaa"}])
    write_jsonl(tmp_path / "v.jsonl", [{"text": "aaaaaa"}, {"text": "aaa"}])
    for command in asking(tmp_path).values():
        for options in ((), ("--normalize",)):
            assert refused(*command, *options) == (
                "the gradient of the validation set is zero: the model predicts each of its "
                "labels with certainty, so no sample can help or hurt; use other validation "
                "samples, or an earlier checkpoint of the model"
            )
    # One sample with a gradient is enough; a training sample without one has no value.
    write_jsonl(tmp_path / "v.jsonl", [{"text": "aaaaaa"}, *VALIDATION])
    for command in asking(tmp_path).values():
        for options in ((), ("--normalize",)):
            document(*command, *options)
    assert values_of(tmp_path / "x.csv")[-1] == 0
    found = document("explain", tmp_path / "index", "same", tmp_path / "v.jsonl", "--normalize")
    assert found["score"] == 0


@pytest.mark.parametrize("name", ["query", "query --rerank", "values --exact", "explain"])
def test_a_sample_that_is_not_there(plain, name):
    if name == "explain":
        command = ("explain", plain / "index", "r99", plain / "v.jsonl")
        assert "r99" in refused(*command)
    missing = asking(plain, validation="none.jsonl")[name]
    assert "none.jsonl" in refused(*missing)


def test_pages_that_cannot_be_written(plain, tmp_path):
    command = ("explain", plain / "index", "r1", plain / "v.jsonl", "-o")
    assert refused(*command, tmp_path / "x.pdf", code=2).endswith("x.pdf ends in .pdf; use .html")
    assert "is not a directory; create it" in refused(*command, tmp_path / "no/x.html", code=2)
    (tmp_path / "d.html").mkdir()
    assert "is a directory" in misused(*command, tmp_path / "d.html")


# Calibrations.


def calibrated(tmp_path, name, model_dir, **settings):
    with ValuationIndex.create(
        tmp_path / name, str(model_dir), **({"dim": 256, "geometry": "fisher"} | settings)
    ) as index:
        if not settings.pop("empty", False):
            index.add(rows(5, seed=9))
    return tmp_path / name


def test_a_calibration_of_another_model(place, tmp_path, other_model_dir):
    """Copied over its own, or taken for a new index."""
    other = calibrated(tmp_path, "other", other_model_dir)
    shutil.copy(other / "calibration.safetensors", place / "index")
    for command in (*asking(place).values(), ("calibrate", place / "index")):
        message = refused(*command)
        assert "calibration.safetensors is the calibration of another model" in message
        assert message.endswith("use one that was made with this model")
    add = refused(
        "add", place / "index", write_jsonl(place / "n.jsonl", rows(2, seed=5, prefix="n"))
    )
    assert "the calibration of another model" in add
    done = run("check", place / "index")
    assert done.exit_code == 1
    assert "calibration" in done.stdout

    model = json.loads((place / "index" / "index.json").read_text())["settings"]["model"]
    init = ("init", tmp_path / "new", "--model", model, "--dim", 256, "--geometry", "fisher")
    message = refused(*init, "--calibration", other)
    assert str(other) in message
    assert not (tmp_path / "new" / "calibration.safetensors").exists()
    assert document("calibrate", tmp_path / "new")["digest"] is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dim": 512}, "another sketch (--dim, --seed): "),
        ({"seed": 5}, "another sketch (--dim, --seed): "),
        ({"geometry": "fisher,raw"}, "another "),
        ({"geometry": "kfac"}, "another "),
        ({"damping": 5.0}, "another --damping: 5.0"),
    ],
    ids=["dim", "seed", "geometries", "geometry", "damping"],
)
def test_a_calibration_of_other_settings(tmp_path, model_dir, settings, said):
    other = calibrated(tmp_path, "other", model_dir, **settings)
    init = ("init", tmp_path / "new", "--model", model_dir, "--dim", 256, "--geometry", "fisher")
    message = refused(*init, "--calibration", other)
    assert message.startswith(f"{other} has {said}")
    assert message.endswith("make both with the same options, or calibrate on data")
    assert refused("calibrate", tmp_path / "new", other) == message


def test_a_calibration_that_fits_makes_rows_comparable(place, tmp_path, model_dir):
    new = tmp_path / "new"
    init = ("init", new, "--model", model_dir, "--dim", 256, "--geometry", "fisher")
    document(*init, "--calibration", place / "index")
    theirs, mine = document("calibrate", place / "index"), document("calibrate", new)
    assert mine == theirs
    assert mine["samples"] == N
    document("add", new, write_jsonl(place / "n.jsonl", TRAINING[:3]))
    assert document("calibrate", new) == mine
    found = [
        document("query", index, place / "v.jsonl", "--top", top)["helpful"]
        for index, top in ((place / "index", N), (new, 3))
    ]
    theirs, mine = ({hit["key"]: hit["score"] for hit in hits} for hits in found)
    assert mine == {key: pytest.approx(theirs[key], rel=1e-2) for key in mine}
    assert "Calibrated on 20 samples" in run("calibrate", new).stdout


def test_calibrating_on_data(tmp_path, model_dir, plain):
    new = tmp_path / "new"
    init = ("init", new, "--model", model_dir, "--dim", 256, "--geometry", "fisher")
    document(*init, "--calibration", write_jsonl(tmp_path / "c.jsonl", TRAINING))
    assert document("calibrate", new)["digest"] == document("calibrate", plain / "index")["digest"]
    again = document("calibrate", new, tmp_path / "c.jsonl", "--columns", "prompt=response,"
                     "response=prompt")  # fmt: skip
    assert again["digest"] != document("calibrate", plain / "index")["digest"]


def test_calibrating_on_no_data_or_bad_data(tmp_path, model_dir):
    document("init", tmp_path / "new", "--model", model_dir, "--geometry", "fisher")
    none = write_jsonl(tmp_path / "none.jsonl", [])
    assert refused("calibrate", tmp_path / "new", none) == f"{none} has no row to calibrate on"
    bad = write_jsonl(tmp_path / "bad.jsonl", [*TRAINING[:2], {"prompt": "p"}])
    message = refused("calibrate", tmp_path / "new", bad)
    assert message.startswith(f"{bad}:3: ")
    assert message.endswith(". Mend the row")
    assert document("calibrate", tmp_path / "new")["digest"] is None


def test_an_index_that_is_not_calibrated_yet(tmp_path, model_dir):
    document("init", tmp_path / "empty", "--model", model_dir, "--geometry", "fisher")
    assert set(document("calibrate", tmp_path / "empty").values()) == {None}
    assert (
        "not calibrated yet; the first add does it" in run("calibrate", tmp_path / "empty").stdout
    )
    init = ("init", tmp_path / "new", "--model", model_dir, "--geometry", "fisher")
    message = refused(*init, "--calibration", tmp_path / "empty", code=2)
    assert message == f"{tmp_path / 'empty'} is not calibrated yet; add samples to it first"


def test_an_index_with_samples_keeps_its_calibration(place, model_dir):
    before = (place / "index" / "calibration.safetensors").read_bytes()
    message = refused("calibrate", place / "index", place / "v.jsonl", code=2)
    assert message == (
        f"{place / 'index'} holds samples, and their rows depend on its calibration; calibrate an "
        "index before anything is added to it"
    )
    again = ("init", place / "index", "--model", model_dir, "--dim", 256, "--geometry", "fisher")
    repeated = run(*again, "--calibration", place / "v.jsonl")
    assert repeated.exit_code == 0, "as init may be repeated"
    assert f"{place / 'index'} is calibrated already: --calibration is not used" in repeated.stderr
    assert (place / "index" / "calibration.safetensors").read_bytes() == before


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path):
    path.write_bytes(b"")


def garbled(path):
    path.write_bytes(b"\xff" * 5000)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 64
    path.write_bytes(content)


def without_a_moment(path):
    named = load_file(path)
    named.pop("hidden_mean")
    save_file(named, path)


def of_nothing(path):
    save_file({"a": np.zeros(3)}, path)


def with_scalars(path):
    save_file(load_file(path) | {"samples": np.array(3)}, path)


def of_another_shape(path):
    save_file(load_file(path) | {"samples": np.zeros((2, 2))}, path)


def a_directory(path):
    path.unlink()
    path.mkdir()


DAMAGES = [
    *(cut, emptied, garbled, flipped, without_a_moment, of_nothing, with_scalars),
    *(of_another_shape, a_directory),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_calibration(place, damage):
    damage(place / "index" / "calibration.safetensors")
    for command in (*asking(place).values(), ("calibrate", place / "index")):
        message = refused(*command)
        assert "calibration.safetensors" in message
        assert message.endswith("restore it from a backup, or build the index anew")
    assert run("check", place / "index").exit_code == 1


@pytest.mark.parametrize("geometry", ["raw", "fisher"])
def test_a_lost_calibration(tmp_path, model_dir, geometry):
    """Rows of raw do not depend on it, and yet its loss is told: errors are stated by it."""
    index = calibrated(tmp_path, "index", model_dir, geometry=geometry)
    (index / "calibration.safetensors").unlink()
    write_jsonl(tmp_path / "v.jsonl", VALIDATION)
    commands = asking(tmp_path)
    for name in ("query", "query --rerank", "values"):
        message = refused(*commands[name])
        assert "calibration.safetensors" in message
        assert "backup" in message
    exact = {name: run(*commands[name]) for name in ("values --exact", "explain")}
    for done in exact.values():
        if geometry == "raw":
            assert done.exit_code == 0
        else:
            assert done.exit_code in (1, 2)
            assert done.stderr.startswith("Error: ")
            assert "calibration" in done.stderr
    assert run("check", index).exit_code == 1


@pytest.mark.parametrize("how", ["lost", "swapped"])
@pytest.mark.parametrize("geometry", ["raw", "fisher"])
def test_nothing_is_added_beside_rows_of_another_calibration(tmp_path, model_dir, geometry, how):
    """Stored rows would be refused by whoever reads them, once they are there."""
    index = calibrated(tmp_path, "index", model_dir, geometry=geometry)
    held = document("info", index)
    file = index / "calibration.safetensors"
    kept = file.read_bytes()
    file.unlink()
    if how == "swapped":
        other = tmp_path / "other"
        document("init", other, "--model", model_dir, "--dim", 256, "--geometry", geometry)
        document("add", other, write_jsonl(tmp_path / "o.jsonl", TRAINING[:2]))
        file.write_bytes((other / "calibration.safetensors").read_bytes())
    new = write_jsonl(tmp_path / "new.jsonl", [{"id": "new", "text": "a new one"}])
    assert "calibration" in refused("add", index, new)
    assert document("info", index)["samples"] == held["samples"]
    file.write_bytes(kept)
    assert document("add", index, new)["added"] == 1


# Numbers that are none.


@pytest.fixture(scope="module", params=[float("nan"), float("inf")], ids=["nan", "inf"])
def overflowing_dir(request, tmp_path_factory):
    """A model that gives no usable numbers once it has read a z."""
    directory = tmp_path_factory.mktemp("overflowing")
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    (letter,) = tokenizer("z", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[letter] = request.param
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


BAD = {"id": "bad", "prompt": "a z", "response": "red"}


@pytest.mark.parametrize("geometry", ["raw", "fisher,kfac"])
def test_a_sample_that_makes_the_model_overflow(tmp_path, overflowing_dir, geometry):
    index = tmp_path / "index"
    options = ("--model", overflowing_dir, "--dim", 256, "--geometry", geometry)
    document("init", index, *options)
    train = write_jsonl(tmp_path / "train.jsonl", [*TRAINING[:5], BAD, *TRAINING[5:]])
    said = "the model gives infinite or undefined numbers for sample bad; use --dtype float32, or "
    assert refused("add", index, train) == (
        f"{train}:6: {said}leave the sample out. Mend the row, or use --on-bad skip"
    )
    document("init", tmp_path / "second", *options)
    added = document("add", tmp_path / "second", train, "--on-bad", "skip")
    assert (added["added"], added["rejected"]) == (N, 1)
    (line,) = Path(added["rejected_file"]).read_text("utf-8").splitlines()
    rejected = json.loads(line)
    assert (rejected["source"], rejected["position"]) == (str(train), 6)
    assert rejected["reason"] == f"{said}leave the sample out"
    assert rejected["row"]["id"] == "bad"

    validation = write_jsonl(tmp_path / "v.jsonl", [*VALIDATION, BAD])
    for command in asking(tmp_path, index="second").values():
        assert refused(*command) == f"{validation}:4: {said}leave the sample out"
    write_jsonl(tmp_path / "v.jsonl", VALIDATION)
    for command in asking(tmp_path, index="second").values():
        document(*command)
    # What was stored before the bad row is there; without it, the same command goes on.
    write_jsonl(train, TRAINING)
    document("add", index, train)
    assert document("info", index)["samples"] == N


# Settings that cannot work.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--geometry", "flat"), "--geometry cannot be 'flat'; use one of raw, centered, fisher"),
        (("--geometry", "raw,flat"), "--geometry cannot be 'flat'; use one of raw, centered"),
        (("--geometry", ""), "--geometry cannot be ''; use one of raw, centered, fisher, kfac"),
        (("--geometry", "raw,"), "--geometry cannot be ''; use one of raw, centered"),
        (("--geometry", "RAW"), "--geometry cannot be 'RAW'; use one of raw, centered"),
        (("--geometry", "raw,kfac,raw"), "--geometry cannot be 'raw,kfac,raw'; name each geometry"),
        (("--damping", "0"), "--damping cannot be 0.0; use more than 0"),
        (("--damping", "-1"), "--damping cannot be -1.0; use more than 0"),
        (("--damping", "nan"), "--damping cannot be nan; use more than 0"),
        (("--damping", "inf"), "--damping cannot be inf; use more than 0"),
        (("--hardest", "0"), "--hardest cannot be 0.0; use more than 0 and at most 1"),
        (("--hardest", "1.5"), "--hardest cannot be 1.5; use more than 0 and at most 1"),
        (("--hardest", "-0.5"), "--hardest cannot be -0.5; use more than 0 and at most 1"),
        (("--hardest", "nan"), "--hardest cannot be nan; use more than 0 and at most 1"),
        (("--max-label-tokens", "0"), "--max-label-tokens cannot be 0; use at least 1 token"),
        (("--max-label-tokens", "-2"), "--max-label-tokens cannot be -2; use at least 1 token"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_settings_that_cannot_work(tmp_path, model_dir, options, said):
    message = refused("init", tmp_path / "index", "--model", model_dir, *options, code=2)
    assert message.startswith(said)
    assert not (tmp_path / "index").exists()


def test_geometries_are_named_with_spaces_or_without(tmp_path, model_dir):
    settings = ("--model", model_dir, "--dim", 64)
    found = document("init", tmp_path / "index", *settings, "--geometry", "raw, kfac")
    assert found["geometry"] == "raw,kfac"
    again = document("init", tmp_path / "index", *settings, "--geometry", "raw,kfac")
    assert again["fingerprint"] == found["fingerprint"]


def test_what_is_no_number_or_no_geometry(plain, tmp_path):
    query = ("query", plain / "index", plain / "v.jsonl")
    assert "'flat' is not one of 'raw', 'centered'" in misused(*query, "--geometry", "flat")
    init = ("init", tmp_path / "index", "--model", "m")
    assert "is not a valid float" in misused(*init, "--hardest", "half")
    assert "is not a valid integer" in misused(*init, "--max-label-tokens", "1.5")


# Models that have learnt their data by heart.


def test_a_saturated_model_is_told(tmp_path):
    model_dir = save_certain(tmp_path / "model", 14.0)
    index = tmp_path / "index"
    train = write_jsonl(
        tmp_path / "t.jsonl", [{"id": str(i), "text": "a" * i} for i in range(3, 9)]
    )
    validation = write_jsonl(tmp_path / "v.jsonl", [{"text": "aaa"}, {"text": "aaaa"}])
    other = write_jsonl(tmp_path / "w.jsonl", VALIDATION)
    document("init", index, "--model", model_dir, "--dim", 256)
    assert document("info", index)["warnings"] == []
    document("add", index, train)
    info = document("info", index)
    assert 0 < info["label_error_mass"] < SATURATED
    start = "the model is nearly certain of the labels of the "
    (warning,) = info["warnings"]
    assert warning.startswith(f"{start}indexed samples: in half of them the mean of ")
    assert warning.endswith("so values say less than they should; use an earlier checkpoint")
    assert "nearly certain" in run("info", index).stdout
    found = document("query", index, validation)
    assert found["label_error_mass"]["index"] == info["label_error_mass"]
    assert 0 < found["label_error_mass"]["validation"] < SATURATED
    warned = [said for said in found["warnings"] if "nearly certain" in said]
    assert [said.removeprefix(start).split(":")[0] for said in warned] == [
        "validation samples",
        "indexed samples",
    ]
    assert run("query", index, validation).stdout.count("nearly certain") == 2
    found = document("query", index, other)
    assert found["label_error_mass"]["validation"] > 0.9
    assert sum("nearly certain" in said for said in found["warnings"]) == 1


def test_a_model_that_has_much_to_learn_is_no_warning(plain):
    assert document("info", plain / "index")["warnings"] == []
    found = document("query", plain / "index", plain / "v.jsonl")
    assert not any("certain" in said for said in found["warnings"])
    assert min(found["label_error_mass"].values()) > SATURATED
