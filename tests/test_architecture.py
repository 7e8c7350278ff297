"""The shape of the package, read from its source: nothing of it is imported here."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "forvalue_index"
# Index = height: a module imports only what stands in a set above its own.
LAYERS = [
    {"threads"},
    {"exceptions", "records"},  # words
    {"cells"},
    {"images"},
    {"settings", "contracts", "results", "evaluation_results", "extras"},  # promises
    {
        "prediction_error",
        "hash_tables",
        "geometry",
        "whitening",
        "exact",
        "memory",
        "devices",
        "batching",
        "durable",
        "chat_templates",
        "vision",
        "model_digests",
    }
    | {"reports", "model_files", "metrics", "evaluation_reports"},  # kernels
    {"prompts", "processors", "turns", "pages", "heads"},
    {"sketch", "label_tokens", "calibration", "explanation_page", "sample_page"},
    {"stored_rows", "columns", "demo_data", "tables", "catalog_rows", "filter_syntax", "adapters"}
    | {"sqlite_connections"},
    {"repeats", "rejects", "windows", "interrupts", "catalog_runs", "writer_lock", "formats"},
    {"backbone", "sources", "segments", "exports", "database", "filters", "catalog_summary"},
    {"search", "search.library", "search.rotation", "snapshot", "references", "plots"},
    {"search.ranking", "search.quantizer"},
    {
        "search.flat",
        "search.coded",
        "search.gpu",
        "catalog",
        "removal",
        "features",
        "model_profile",
        "image_check",
    },  # joins
    {"manifest", "baselines", "view", "rescoring", "calibrating", "training"},
    {"code_files", "gpu_rows", "media"},
    {"search_indexes", "storage", "index_samples", "validation", "exact_matrices"},
    {"window_plans", "parallel"},
    {"ingest", "valuation", "tuning", "compaction", "checkup", "loading"},  # use-cases
    {"scoring", "valuers"},
    {"explaining"},
    {"index_model"},
    {"index_queries"},
    {"index"},
    {"evaluation", "evaluation.scores", "evaluation.fields", "evaluation.lds"},
    {"evaluation.evidence"},
    {"evaluation.retrieval", "evaluation.mislabeled", "evaluation.fidelity"}
    | {"evaluation.tail_patch", "evaluation.retraining"},
    {"forvalue_index"},
    {"cli.options", "cli.progress", "cli.display", "cli.demo"},  # edges
    {"cli.session", "cli.inspect", "cli.evaluation_display", "cli.explanation"},
    {"cli.build", "cli.value", "cli.maintain", "cli.evaluate"},
    {"cli.app"},
    {"cli"},
]
SQL = {
    *("tables", "database", "sqlite_connections", "catalog", "catalog_rows", "catalog_summary"),
    *("snapshot", "filters", "filter_syntax", "catalog_runs"),
}
# A name that ends in a dot stands for all that begins with it.
HOMES = {
    "faiss": {"search."},
    "transformers": {"backbone", "model_files", "processors"},
    "PIL": {"images"},
    "peft": {"adapters"},
    "huggingface_hub": {"model_files", "adapters"},
    "sqlalchemy": SQL,
    "alembic": SQL,
    "sqlglot": SQL,
    "click": {"cli", "cli."},
    "rich": {"cli", "cli."},
    "sqlite3": {"repeats", "sqlite_connections"},
    "filelock": {"writer_lock"},
    "pyarrow": {"formats", "sources", "exports"},
    "datasets": {"formats"},
    "safetensors": {"segments", "storage", "calibration", "code_files"},
    "bm25s": {"baselines"},
    "sklearn": {"metrics"},
    "scipy": {"metrics"},
    "matplotlib": {"plots"},
}
WITHOUT_TORCH = {
    *("exceptions", "records", "settings", "contracts", "manifest", "reports"),
    *("evaluation_results", "evaluation_reports", "extras", "metrics", "plots"),
    *("hash_tables", "pages", "explanation_page", "sample_page"),
    *("cells", "turns", "images", "media", "durable", "chat_templates", "prompts"),
    *("sources", "columns", "demo_data", "exports", "forvalue_index", "cli", "cli."),
    *(
        "formats",
        "references",
        "results",
        "removal",
        "index_samples",
        "writer_lock",
        "repeats",
        "rejects",
    ),
    *SQL,
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
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}


def imported(node):
    """The full names that an import statement may load."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide where they point"
        return {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


def imports(tree):
    return {name for node in ast.walk(tree) for name in imported(node)}


def own_imports(module):
    """Modules of the package that a module imports, wherever in its text."""
    found = imports(TREES[module])
    inner = {name.removeprefix("forvalue_index.") for name in found if name != "forvalue_index"}
    return (inner & FILES.keys()) | (_package_itself(TREES[module]) - {module})


def _package_itself(tree):
    """`import forvalue_index`, or one of its own names and not a module of it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and "forvalue_index" in imported(node):
            return {"forvalue_index"}
        if isinstance(node, ast.ImportFrom) and node.module == "forvalue_index":
            names = {alias.name for alias in node.names}
            if not names <= FILES.keys():
                return {"forvalue_index"}
    return set()


def frameworks(tree):
    return {name.partition(".")[0] for name in imports(tree)}


def lives_in(module, homes):
    return any(module.startswith(h) if h.endswith(".") else module == h for h in homes)


def without_type_checking(tree):
    class Stripper(ast.NodeTransformer):
        def visit_If(self, node):
            tests_it = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if tests_it else self.generic_visit(node)

    return Stripper().visit(ast.parse(ast.unparse(tree)))


def test_the_table_names_every_module_once():
    assert sum(map(len, LAYERS)) == len(HEIGHT)
    assert HEIGHT.keys() == FILES.keys()


@pytest.mark.parametrize("module", FILES)
def test_imports_point_strictly_down(module):
    for other in own_imports(module):
        assert HEIGHT[other] < HEIGHT[module], f"{module} may not import {other}: it is not below"


@pytest.mark.parametrize("framework", HOMES)
def test_each_framework_has_its_home(framework):
    users = {module for module in TREES if framework in frameworks(TREES[module])}
    assert users, f"nothing imports {framework}: the table is out of date"
    strangers = {module for module in users if not lives_in(module, HOMES[framework])}
    assert not strangers, f"{framework} is imported outside of its home, by {strangers}"


@pytest.mark.parametrize("module", [m for m in FILES if lives_in(m, WITHOUT_TORCH)])
def test_torch_stays_out_of_what_must_start_at_once(module):
    assert "torch" not in frameworks(without_type_checking(TREES[module]))


def test_torch_is_a_type_to_contracts():
    assert "torch" in frameworks(TREES["contracts"])


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
