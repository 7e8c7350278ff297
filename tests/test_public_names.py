"""What can be imported from `forvalue_index` itself, lazily and with its type."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import forvalue_index
from forvalue_index import exceptions


@pytest.mark.parametrize("name", forvalue_index.__all__)
def test_public_names_are_there(name):
    assert getattr(forvalue_index, name).__name__ == name
    assert name in dir(forvalue_index)


def test_type_checkers_see_the_same_names_at_the_same_places():
    tree = ast.parse(Path(forvalue_index.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {(node.module, alias.name) for node in block.body for alias in node.names}
    public = {(getattr(forvalue_index, n).__module__, n) for n in forvalue_index.__all__}
    assert typed == public


def test_all_errors_are_public():
    errors = {
        name
        for name, kind in vars(exceptions).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert errors <= set(forvalue_index.__all__)


def test_another_name_is_none():
    with pytest.raises(AttributeError, match="has no attribute 'Valuer'"):
        forvalue_index.Valuer  # noqa: B018


def test_names_are_loaded_when_they_are_first_asked_for():
    code = (
        "import sys, forvalue_index\n"
        "assert 'torch' not in sys.modules\n"
        "forvalue_index.UsageError\n"
        "assert 'torch' not in sys.modules\n"
        "forvalue_index.ValuationIndex\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
