"""Runs commands in this process, and reads what they say."""

import json

from click.testing import CliRunner

from forvalue_index.cli import main


def run(*arguments, **options):
    """A command. An exception that the command line has no message for fails the test."""
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False, **options)


def document(*arguments, code=0, **options):
    """What a command says with `--json`."""
    done = run(*arguments, "--json", **options)
    assert done.exit_code == code, done.stderr
    return json.loads(done.stdout)


def refused(*arguments, code=1, **options):
    """The one line that a command says, without its `Error: `."""
    done = run(*arguments, **options)
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("\n")
    return done.stderr.removeprefix("Error: ").rstrip("\n")


def misused(*arguments):
    """What click says of arguments that it does not understand."""
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Usage: ")
    return done.stderr.splitlines()[-1].removeprefix("Error: ")
