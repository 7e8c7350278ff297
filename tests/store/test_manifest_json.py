"""What `index.json` says of an index, and the fingerprint of its rows."""

import dataclasses
import json

import pytest

from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.settings import ModelIdentity, Settings
from forvalue_index.store.manifest import FORMAT_VERSION, Manifest

SETTINGS = Settings(
    model="owner/name",
    revision="abc",
    template="chat",
    max_length=512,
    dtype="float32",
    geometry="raw",
)
IDENTITY = ModelIdentity("w" * 32, "t" * 32, vocab_size=288, hidden_size=32)
MANIFEST = Manifest("u" * 32, "sqlite", SETTINGS, IDENTITY, "s" * 32)


def document(**changes):
    return json.loads(MANIFEST.to_json()) | changes


def with_settings(**changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return dataclasses.replace(MANIFEST, settings=settings)


def with_model(**changes):
    return dataclasses.replace(MANIFEST, model=dataclasses.replace(IDENTITY, **changes))


def test_the_fingerprint_of_an_index_never_changes():
    """A change here makes every index that exists unreadable."""
    assert MANIFEST.fingerprint == "21e85d9f2ab599ce0c7eb5bb6b8b9596"
    assert with_settings(geometry="fisher").fingerprint == "36fbb75a2a1b099b848ab5ddf7a12e8a"


@pytest.mark.parametrize(
    "other",
    [
        with_settings(dim=256),
        with_settings(seed=1),
        with_settings(labels="all"),
        with_settings(template="plain"),
        with_settings(max_length=511),
        with_settings(row_dtype="float32"),
        with_settings(dtype="bfloat16"),
        with_settings(geometry="kfac"),
        with_settings(geometry="raw,kfac"),
        with_settings(damping=0.5),
        with_settings(max_label_tokens=64),
        with_settings(hardest=0.5),
        with_model(weights_digest="x"),
        with_model(tokenizer_digest="x"),
        with_model(vocab_size=289),
        with_model(hidden_size=33),
        with_model(processor_digest="x"),
        dataclasses.replace(MANIFEST, sketch_digest="x"),
    ],
    ids=[
        *("dim", "seed", "labels", "template", "max_length", "row_dtype", "dtype"),
        *("geometry", "geometries", "damping", "max_label_tokens", "hardest"),
        *("weights", "tokenizer", "vocab", "hidden", "processor", "sketch"),
    ],
)
def test_whatever_rows_depend_on_changes_the_fingerprint(other):
    assert other.fingerprint != MANIFEST.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        with_settings(model="elsewhere"),
        with_settings(revision=None),
        with_settings(adapter="an/adapter"),
        with_settings(trust_remote_code=True),
        with_settings(payload="reference"),
        with_settings(media="copy"),
        with_settings(chat_template="{{ messages }}"),
        dataclasses.replace(MANIFEST, uid="other"),
        dataclasses.replace(MANIFEST, catalog="postgresql://h/d"),
    ],
    ids=[
        *("model", "revision", "adapter", "trust", "payload", "media", "template", "uid"),
        "catalog",
    ],
)
def test_where_things_lie_does_not_change_the_fingerprint(other):
    """The digest of the weights, adapter merged, says what the model is, and that of the tokenizer
    covers its chat template, wherever it came from.
    """
    assert other.fingerprint == MANIFEST.fingerprint


def test_every_setting_is_either_a_row_fact_or_a_place():
    """A new field must be put on one side, and into one of the two tests above."""
    assert {f.name for f in dataclasses.fields(Settings)} == {
        *("model", "adapter", "revision", "trust_remote_code", "payload", "media"),
        *("chat_template", "dim", "seed", "labels", "template", "max_length", "row_dtype", "dtype"),
        *("geometry", "damping", "max_label_tokens", "hardest"),
    }


def test_rows_are_exact_where_the_gradient_fits():
    assert with_settings(dim=288 * 32).exact_rows
    assert with_settings(dim=2**20).row_width == 288 * 32
    assert not with_settings(dim=288 * 32 - 1).exact_rows
    assert with_settings(dim=256).row_width == 256


def test_json_gives_back_what_it_was_made_of():
    assert Manifest.from_json(MANIFEST.to_json(), where="ix") == MANIFEST
    assert document()["fingerprint"] == MANIFEST.fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        json.dumps({"format_version": FORMAT_VERSION}),
        json.dumps(document(settings={"model": "m", "colour": "red"})),
        json.dumps(document(settings={"model": "m", "dim": 3})),
        json.dumps(document(settings=None)),
        json.dumps(document(model={"weights_digest": "x"})),
        json.dumps(document(format_version="one")),
        json.dumps(document(format_version=None)),
    ],
)
def test_a_damaged_file_is_refused(text):
    with pytest.raises(BrokenIndexError, match=r"^ix: index\.json is damaged .* restore it from"):
        Manifest.from_json(text, where="ix")


def test_a_file_of_a_version_before_code_could_be_trusted_is_read():
    old = document()
    del old["settings"]["trust_remote_code"]
    assert Manifest.from_json(json.dumps(old), where="ix") == MANIFEST


def test_a_file_of_a_version_before_there_were_geometries_is_read():
    """Its fingerprint stays what it is, too."""
    old = document()
    for name in ("geometry", "damping", "max_label_tokens", "hardest"):
        del old["settings"][name]
    assert old["fingerprint"] == "21e85d9f2ab599ce0c7eb5bb6b8b9596"
    assert Manifest.from_json(json.dumps(old), where="ix") == MANIFEST


@pytest.mark.parametrize(
    ("name", "value"),
    [("geometry", None), ("geometry", 3), ("damping", "1"), ("hardest", "x"), ("damping", None)],
)
def test_a_geometry_of_another_type_is_damage(name, value):
    changed = document()
    changed["settings"][name] = value
    with pytest.raises(BrokenIndexError, match="damaged"):
        Manifest.from_json(json.dumps(changed), where="ix")


def test_the_rows_of_a_sample_have_the_floats_of_all_geometries():
    assert with_settings(dim=256).sample_bytes == 512
    assert with_settings(dim=256, geometry="raw, kfac", row_dtype="int8").sample_bytes == 512
    assert Settings(model="m", geometry="kfac, raw").geometries == ("kfac", "raw")


@pytest.mark.parametrize("trusted", ["yes", None, [True]])
def test_trust_of_another_type_is_damage(trusted):
    changed = document()
    changed["settings"]["trust_remote_code"] = trusted
    with pytest.raises(BrokenIndexError, match="damaged"):
        Manifest.from_json(json.dumps(changed), where="ix")


@pytest.mark.parametrize("dim", ["256", None, [256]])
def test_a_setting_of_another_type_is_damage(dim):
    changed = document()
    changed["settings"]["dim"] = dim
    with pytest.raises(BrokenIndexError, match="damaged"):
        Manifest.from_json(json.dumps(changed), where="ix")


def test_an_index_of_a_newer_version_is_refused():
    """A newer file may hold anything else: its version is looked at first."""
    newer = json.dumps({"format_version": FORMAT_VERSION + 1, "all": "different"})
    said = rf"^ix: .* version {FORMAT_VERSION + 1}, .* install a newer"
    with pytest.raises(BrokenIndexError, match=said):
        Manifest.from_json(newer, where="ix")


def test_an_edited_file_is_refused():
    changed = document()
    changed["settings"]["seed"] = 1
    with pytest.raises(BrokenIndexError, match=r"^ix: index\.json was edited: its fingerprint is"):
        Manifest.from_json(json.dumps(changed), where="ix")


def test_the_place_of_the_model_may_be_edited():
    changed = document()
    changed["settings"]["model"] = "elsewhere"
    assert Manifest.from_json(json.dumps(changed), where="ix").settings.model == "elsewhere"


@pytest.mark.parametrize(
    ("catalog", "shown"),
    [
        ("postgresql+psycopg://me:secret@host/db", "postgresql+psycopg://me:***@host/db"),
        ("postgresql+psycopg://me@host/db", "postgresql+psycopg://me@host/db"),
        ("sqlite:////data/c.sqlite", "sqlite:////data/c.sqlite"),
        ("sqlite", "sqlite"),
    ],
)
def test_a_password_is_not_shown(catalog, shown):
    assert dataclasses.replace(MANIFEST, catalog=catalog).shown_catalog == shown
