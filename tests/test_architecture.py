"""The shape of the package, read from its source: nothing of it is imported here."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "forvalue_index"
# Each imports only from itself and from what stands before it. Typing-only imports count.
ORDER = (
    *("exceptions", "progress", "settings", "threads", "devices"),
    *("sources", "model", "gradients", "store", "ingest", "search", "valuation"),
    *("index", "evaluation", "reports", "forvalue_index", "cli"),
)
# The one home of each framework. A name stands for a module, or for a package and all in it.
HOMES = {
    "PIL": {"sources.images"},
    "datasets": {"sources.files"},
    "fsspec": {"sources.files"},
    "pyarrow": {"sources.files", "valuation.exports"},
    "transformers": {"model.huggingface"},
    "peft": {"model.huggingface"},
    "huggingface_hub": {"model.huggingface"},
    "safetensors": {"store.frozen", "store.segments", "search.code_files"},
    "filelock": {"store.writer_lock"},
    "sqlalchemy": {"store.catalog"},
    "alembic": {"store.catalog"},
    "sqlglot": {"store.catalog"},
    "sqlite3": {"store.catalog", "ingest.seen_keys"},
    "faiss": {"search"},
    "bm25s": {"valuation.scorers.bm25"},
    "sklearn": {"evaluation"},
    "scipy": {"evaluation"},
    "matplotlib": {"evaluation.plots"},
    "click": {"cli"},
    "rich": {"cli"},
}
# What must start at once.
WITHOUT_TORCH = {
    *(
        "exceptions",
        "progress",
        "settings",
        "threads",
        "sources",
        "store.catalog",
        "reports",
        "cli",
    ),
    *(
        "store.agreement",
        "store.records",
        "store.results",
        "store.manifest",
        "store.samples",
        "store.media",
    ),
    *("store.texts", "store.durable", "store.permissions", "store.writer_lock", "forvalue_index"),
    *("valuation.results", "valuation.scoring"),
}
# What --help must not wait for.
SLOW = {"torch", "faiss", "transformers", "sqlalchemy", "numpy", "pyarrow", "sqlglot"}
SLOW |= {"scipy", "sklearn", "bm25s", "matplotlib"}


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1] or ("forvalue_index",)
    return ".".join(parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}


def imported(tree):
    """Full names of what an import statement, wherever in a module, may load."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module):
    """Modules of the package that a module imports."""
    found = set()
    for name in imported(TREES[module]):
        if name.partition(".")[0] == "forvalue_index":
            inner = name.removeprefix("forvalue_index").removeprefix(".")
            known = inner if inner in FILES else inner.rpartition(".")[0]
            found.add(known or "forvalue_index")
    return found - {module}


def frameworks(tree):
    return {name.partition(".")[0] for name in imported(tree)}


def lives_in(module, homes):
    return any(module == home or module.startswith(f"{home}.") for home in homes)


def without_type_checking(tree):
    class Stripper(ast.NodeTransformer):
        def visit_If(self, node):
            tests_it = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if tests_it else self.generic_visit(node)

    return Stripper().visit(ast.parse(ast.unparse(tree)))


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module):
    height = ORDER.index(module.partition(".")[0])
    for other in own_imports(module):
        below = ORDER.index(other.partition(".")[0]) <= height
        assert below, f"{module} may not import {other}, which stands after it"


def test_no_imports_run_in_a_circle():
    tuple(TopologicalSorter({module: own_imports(module) for module in FILES}).static_order())


def test_the_package_can_be_taken_in_at_a_glance():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 20


@pytest.mark.parametrize("package", [name for name in FILES if FILES[name].stem == "__init__"])
def test_each_package_makes_a_promise(package):
    assert ast.get_docstring(TREES[package])


@pytest.mark.parametrize("framework", HOMES)
def test_each_framework_has_its_home(framework):
    users = {module for module in TREES if framework in frameworks(TREES[module])}
    assert users, f"nothing imports {framework}: the table is out of date"
    strangers = {module for module in users if not lives_in(module, HOMES[framework])}
    assert not strangers, f"{framework} is imported outside of its home, by {strangers}"


@pytest.mark.parametrize("module", [m for m in FILES if lives_in(m, WITHOUT_TORCH)])
def test_torch_stays_out_of_what_must_start_at_once(module):
    assert "torch" not in frameworks(without_type_checking(TREES[module]))


@pytest.mark.parametrize("module", FILES)
def test_nothing_prints(module):
    calls = (node.func for node in ast.walk(TREES[module]) if isinstance(node, ast.Call))
    assert "print" not in {call.id for call in calls if isinstance(call, ast.Name)}


def test_no_module_is_a_drawer_for_anything():
    words = {word for name in FILES for word in name.split(".")}
    assert not words & {"utils", "util", "common", "helpers", "misc", "core", "manager"}


@pytest.mark.parametrize("module", FILES)
def test_files_stay_short(module):
    assert len(FILES[module].read_text("utf-8").splitlines()) <= 320


def test_help_imports_nothing_slow():
    assert not loaded_by(["--help"]) & SLOW
    assert not loaded_by(["query", "--help"]) & SLOW
    assert not loaded_by(["peek", "--help"]) & SLOW
    assert not loaded_by(["evaluate", "retrieval", "--help"]) & SLOW


def test_a_missing_index_is_reported_before_torch_is_imported(tmp_path):
    assert "torch" not in loaded_by(["query", str(tmp_path / "none"), "validation.jsonl"])


def loaded_by(arguments):
    """Top-level names in sys.modules after a command, run in an interpreter of its own."""
    code = (
        "import json, sys\n"
        "from forvalue_index.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))
