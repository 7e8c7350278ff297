import subprocess
import sys

import pytest

from forvalue_index.exceptions import MissingDependencyError, evaluation_extra


def test_a_missing_library_is_named_with_its_extra():
    with (
        pytest.raises(
            MissingDependencyError,
            match=r"needs not_there, which .*; pip install 'forvalue-index\[evaluate\]'",
        ),
        evaluation_extra(),
    ):
        import not_there  # noqa: F401


@pytest.mark.parametrize(
    ("library", "module"),
    [
        ("bm25s", "valuation.scorers.bm25"),
        ("sklearn", "evaluation.metrics"),
        ("scipy", "evaluation.metrics"),
    ],
)
def test_modules_say_what_they_lack(library, module):
    """In an interpreter that does not find the library."""
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from forvalue_index.exceptions import MissingDependencyError\n"
        f"try:\n    import forvalue_index.{module}\n"
        "except MissingDependencyError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'forvalue-index[evaluate]'" in done.stdout, done.stderr
    assert library in done.stdout
