"""Commands over an index of a tiny vision-language model, for several test files."""

import json

from click.testing import CliRunner

from forvalue_index.cli import main

COUNT = 24


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def document(*arguments):
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def refused(*arguments, code=1):
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("Error: ").rstrip("\n")


def made(home, model, *options):
    index = home / "index"
    document("init", index, "--model", model, "--dim", 256, *options)
    return index


def filled(home, model, *options):
    index = made(home, model, *options)
    assert document("add", index, home / "data" / "train.jsonl")["added"] == COUNT
    return index
