"""Small language models and data made here, for experiments that need many fine-tunings.

The text is that of docstrings of installed packages, read without importing them. With the versions
of constraints.txt it is the same everywhere. Per vocabulary size a directory holds a tokenizer, a
pretrained model, and chunks of text as JSONL rows `{"id", "package", "text"}`, which the tokenizer
turns back into the tokens that they were cut from.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from forvalue_index.evaluation.training import Recipe, fine_tune, trainable
from forvalue_index.exceptions import SettingsMismatchError
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.progress import OnProgress
from forvalue_index.sources.sample import Sample
from forvalue_index.sources.source import open_sources
from forvalue_index.store.durable import write_durably

# Distributions and the packages in them: fine-tuned on, and pretrained on.
FINE_TUNED = {
    "torch": "torch",
    "transformers": "transformers",
    "numpy": "numpy",
    "pandas": "pandas",
    "SQLAlchemy": "sqlalchemy",
    "sympy": "sympy",
    "networkx": "networkx",
    "datasets": "datasets",
    "huggingface_hub": "huggingface_hub",
    "pydantic": "pydantic",
    "peft": "peft",
    "hypothesis": "hypothesis",
}
PRETRAINED = {
    "accelerate": "accelerate",
    "mpmath": "mpmath",
    "fsspec": "fsspec",
    "Pygments": "pygments",
    "rich": "rich",
    "click": "click",
    "anyio": "anyio",
    "Jinja2": "jinja2",
    "alembic": "alembic",
    "sqlglot": "sqlglot",
    "pyarrow": "pyarrow",
    "typer": "typer",
    "urllib3": "urllib3",
    "requests": "requests",
    "httpx2": "httpx2",
    "dill": "dill",
    "psutil": "psutil",
    "pytest": "_pytest",
    "coverage": "coverage",
    "filelock": "filelock",
    "mypy": "mypy",
    "packaging": "packaging",
    "beartype": "beartype",
    "sortedcontainers": "sortedcontainers",
    "psycopg": "psycopg",
}
SHORTEST_TEXT = 100  # characters
TOKENIZER_TEXT = 2_000_000  # characters of one package that the tokenizer learns from
CHUNK = 64  # tokens
PRETRAINING_CHUNKS, FINE_TUNING_CHUNKS, HELD_OUT = 160, 70, 5  # of each package
BODY = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ABOUT_FILE = "about.json"


def build(
    directory: Path, *, vocab_size: int, recipe: Recipe, seed: int, on_progress: OnProgress
) -> Path:
    """Make what is not there yet of `directory`, and give it back.

    Raises:
        SettingsMismatchError: it was begun with other settings or versions of packages.
    """
    directory.mkdir(parents=True, exist_ok=True)
    packages = FINE_TUNED | PRETRAINED
    about = {
        "vocabulary": vocab_size,
        "pretraining": repr(recipe),
        "seed": seed,
        "packages": {name: metadata.version(name) for name in sorted(packages)},
    }
    _claim(directory / ABOUT_FILE, about)
    if not (directory / "validation.jsonl").exists():
        texts = {package: docstrings(name, package) for name, package in packages.items()}
        _train_tokenizer(directory / "tokenizer", texts, vocab_size)
        _write_chunks(directory, texts, seed)
    if not (directory / "model" / "config.json").exists():
        _pretrain(directory, recipe, seed, on_progress)
    return directory


def load(directory: Path) -> Backbone:
    """The pretrained model and its tokenizer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory / "model")
    return Backbone(model, _tokenizer(directory), name=str(directory / "model"))


def read(directory: Path, name: str) -> list[Sample]:
    """The samples of a file of `directory`."""
    (source,) = open_sources(directory / f"{name}.jsonl")
    return [row for row in source.samples() if isinstance(row, Sample)]


def encoder_of(backbone: Backbone) -> PromptEncoder:
    """Every token of a chunk but the first is a label."""
    return PromptEncoder(backbone.tokenizer, template="plain", labels="response", max_length=CHUNK)


def docstrings(distribution: str, package: str) -> list[str]:
    """The docstrings of an installed package, each once, in order of path and line."""
    root = Path(str(metadata.distribution(distribution).locate_file(package)))
    found: dict[str, None] = {}
    for path in sorted(root.rglob("*.py")):
        if "tests" not in path.relative_to(root).parts:
            found |= dict.fromkeys(_docstrings_of(path))
    return list(found)


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return  # templates and code for other interpreters
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= SHORTEST_TEXT:
                yield text


def _claim(path: Path, about: dict[str, Any]) -> None:
    if not path.exists():
        write_durably(path, json.dumps(about, indent=2).encode())
    stored = json.loads(path.read_text(encoding="utf-8"))
    for name, value in about.items():
        if stored.get(name) != value:
            raise SettingsMismatchError(
                f"{path} says that {name} is {stored.get(name)}, and now it is {value}; install "
                "the same versions, or use another --work"
            )


def _train_tokenizer(directory: Path, texts: dict[str, list[str]], vocab_size: int) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(
        (text for name in sorted(texts) for text in _first_characters(texts[name])), trainer
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(directory)


def _first_characters(texts: Sequence[str]) -> Iterator[str]:
    used = 0
    for text in texts:
        if used > TOKENIZER_TEXT:
            return
        used += len(text)
        yield text


def _write_chunks(directory: Path, texts: dict[str, list[str]], seed: int) -> None:
    tokenizer, random = _tokenizer(directory), np.random.default_rng(seed)
    rows: dict[str, list[dict[str, str]]] = {"pretraining": [], "training": [], "validation": []}
    for name in PRETRAINED.values():
        chunks = _chunks(tokenizer, texts[name], PRETRAINING_CHUNKS, random)
        rows["pretraining"] += _rows(name, chunks)
    for name in FINE_TUNED.values():
        chunks = _rows(name, _chunks(tokenizer, texts[name], FINE_TUNING_CHUNKS, random))
        held_out = set(random.permutation(len(chunks))[:HELD_OUT].tolist())
        for place, row in enumerate(chunks):
            rows["validation" if place in held_out else "training"].append(row)
    for name, some in rows.items():  # validation.jsonl last: where it is, all is there
        lines = "".join(json.dumps(row) + "\n" for row in some)
        write_durably(directory / f"{name}.jsonl", lines.encode())


def _rows(package: str, chunks: Sequence[str]) -> list[dict[str, str]]:
    return [
        {"id": f"{package}-{place}", "package": package, "text": text}
        for place, text in enumerate(chunks)
    ]


def _chunks(
    tokenizer: Any, texts: Sequence[str], count: int, random: np.random.Generator
) -> list[str]:
    """Neighbouring chunks of a package's docstrings, from a random one on, each text once.

    Those that the tokenizer would read otherwise than they were cut are left out.
    """
    start = int(random.integers(len(texts)))
    found: dict[str, None] = {}
    pending: list[int] = []
    for text in [*texts[start:], *texts[:start]]:
        pending += tokenizer(f"{text}\n\n", add_special_tokens=False)["input_ids"]
        while len(pending) >= CHUNK and len(found) < count:
            ids, pending = pending[:CHUNK], pending[CHUNK:]
            chunk = tokenizer.decode(ids)
            if tokenizer(chunk)["input_ids"] == ids:
                found[chunk] = None
        if len(found) == count:
            break
    return list(found)


def _pretrain(directory: Path, recipe: Recipe, seed: int, on_progress: OnProgress) -> None:
    tokenizer = _tokenizer(directory)
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), **BODY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
    backbone = Backbone(model, tokenizer)
    encoder = encoder_of(backbone)
    samples = [encoder.encode(sample) for sample in read(directory, "pretraining")]
    with trainable(backbone) as parameters:
        fine_tune(backbone, parameters, samples, recipe, seed=seed, on_progress=on_progress)
        partial = directory / "model.partial"
        model.save_pretrained(partial)
    partial.rename(directory / "model")


def _tokenizer(directory: Path) -> Any:
    return transformers.PreTrainedTokenizerFast.from_pretrained(directory / "tokenizer")
