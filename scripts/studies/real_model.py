"""What evaluations say on a real model, for scripts/studies/reproduce.py.

Indexes of the demo's data in every geometry; each evaluation is that of `forvalue evaluate`. What
was made before is read: indexes go on where they stopped, documents are kept as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forvalue_index import ValuationIndex
from forvalue_index.evaluation.demo_data import write_demo_data
from forvalue_index.evaluation.evidence import EvaluationData
from forvalue_index.evaluation.fidelity import evaluate_fidelity
from forvalue_index.evaluation.mislabeled import evaluate_mislabeled
from forvalue_index.evaluation.retrieval import evaluate_retrieval
from forvalue_index.evaluation.tail_patch import evaluate_tail_patch
from forvalue_index.progress import OnProgress
from forvalue_index.reports.evaluation_documents import (
    fidelity_document,
    mislabeled_document,
    retrieval_document,
    tail_patch_document,
)
from forvalue_index.store.durable import write_durably

Document = dict[str, Any]
GEOMETRY = "raw,centered,fisher,kfac"
PUBLISHED = {
    "remark": "arXiv 2508.10180, with Qwen2.5-1.5B and Qwen2.5-VL-3B: larger models and other data "
    "of the same kind, so they cannot be compared number by number",
    "retrieval, sentence transformations (AUC, recall)": {
        "For-Value": (1.000, 0.989),
        "DataInf": (0.981, 0.826),
        "hidden state": (0.546, 0.148),
        "TF-IDF on the full text": (0.982, 0.835),
    },
    "mislabelled, images, half flipped (AUC)": {"For-Value": 0.885, "HyperINF": 0.770},
}
DEMO = ("start.jsonl", "more.jsonl")


def real_model_part(
    model: Path, work: Path, *, dims: tuple[int, ...], on_progress: OnProgress
) -> Document:
    """All tables of a real model. Exact scores are the same for all `dims`: the first has them."""
    work = work / model.name
    if not (work / "data").is_dir():
        write_demo_data(work / "data")
    found: Document = {"model": model.name, "published": PUBLISHED, "tables": []}
    for dim in dims:
        bench = RealModel(model, work, dim, dim == dims[0], on_progress)
        names = ["tail_patch", "retrieval_all"] if dim == dims[0] else []
        names += ["fidelity", "mislabelled", "retrieval"]
        for name in names:
            table = bench.kept(name, getattr(bench, name))
            found["tables"].append({"table": name, "dim": dim, **table})
    return found


@dataclass(frozen=True)
class RealModel:
    """One model at one number of floats."""

    model: Path
    work: Path
    dim: int
    exact: bool
    on_progress: OnProgress

    def kept(self, name: str, make: Callable[[], Document]) -> Document:
        """What `make` gives, from a file if it was made before."""
        path = self.work / f"{name}-{self.dim}.json"
        if not path.exists():
            write_durably(path, json.dumps(make()).encode())
        document: Document = json.loads(path.read_text("utf-8"))
        return document

    def retrieval(self) -> Document:
        """Classes of sentence transformations, by the tokens of responses."""
        return self._retrieval("response", exact=self.exact)

    def retrieval_all(self) -> Document:
        """The same by all tokens, as in the authors' text script; too many for exact scores."""
        return self._retrieval("all", exact=False)

    def _retrieval(self, labels: str, *, exact: bool) -> Document:
        with self._index(f"sentences-{labels}", "sentences_train.jsonl", labels=labels) as index:
            wanted = self._against("sentences_validation.jsonl", exact=exact)
            return retrieval_document(evaluate_retrieval(index, wanted, label="class"))

    def mislabelled(self) -> Document:
        """Swapped responses among sentence transformations."""
        with self._index("mislabelled", "sentences_mislabeled.jsonl") as index:
            wanted = self._against("sentences_validation.jsonl", exact=self.exact)
            found = evaluate_mislabeled(index, wanted, flag="flipped", label="class")
        document = mislabeled_document(found)
        for method in document["methods"]:
            del method["curve"]
        return document

    def fidelity(self) -> Document:
        """Sketched scores against exact ones."""
        with self._index("demo", *DEMO) as index:
            wanted = self._against("sentences_validation.jsonl", "math_validation.jsonl")
            return fidelity_document(evaluate_fidelity(index, wanted))

    def tail_patch(self) -> Document:
        """Single steps on samples, and what they do to one class of the demo's data."""
        with self._index("demo", *DEMO) as index:
            wanted = self._against("validation.jsonl")
            return tail_patch_document(evaluate_tail_patch(index, wanted))

    def _index(self, name: str, *files: str, **settings: Any) -> ValuationIndex:
        index = ValuationIndex.create(
            self.work / f"{name}-{self.dim}",
            str(self.model),
            dim=self.dim,
            geometry=GEOMETRY,
            on_progress=self.on_progress,
            **settings,
        )
        index.add([self.work / "data" / file for file in files])
        return index

    def _against(self, *files: str, exact: bool = False) -> EvaluationData:
        return EvaluationData([self.work / "data" / file for file in files], exact=exact)
