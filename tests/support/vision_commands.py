"""Commands over an index of a tiny vision-language model, for several test files."""

from commands import document

COUNT = 24


def made(home, model, *options):
    index = home / "index"
    document("init", index, "--model", model, "--dim", 256, *options)
    return index


def filled(home, model, *options):
    index = made(home, model, *options)
    assert document("add", index, home / "data" / "train.jsonl")["added"] == COUNT
    return index
