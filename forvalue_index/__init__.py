"""Tells which training samples helped and which hurt a language model.

Embed every training sample once, then ask, for any validation set, which samples helped and
which hurt (For-Value, arXiv 2508.10180).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forvalue_index.evaluation.evidence import EvaluationData as EvaluationData
    from forvalue_index.evaluation.fidelity import evaluate_fidelity as evaluate_fidelity
    from forvalue_index.evaluation.mislabeled import evaluate_mislabeled as evaluate_mislabeled
    from forvalue_index.evaluation.retraining import evaluate_lds as evaluate_lds
    from forvalue_index.evaluation.retrieval import evaluate_retrieval as evaluate_retrieval
    from forvalue_index.evaluation.tail_patch import evaluate_tail_patch as evaluate_tail_patch
    from forvalue_index.evaluation.training import Recipe as Recipe
    from forvalue_index.exceptions import BadSampleError as BadSampleError
    from forvalue_index.exceptions import BrokenIndexError as BrokenIndexError
    from forvalue_index.exceptions import BusyIndexError as BusyIndexError
    from forvalue_index.exceptions import FilterError as FilterError
    from forvalue_index.exceptions import ForValueError as ForValueError
    from forvalue_index.exceptions import MissingDependencyError as MissingDependencyError
    from forvalue_index.exceptions import ModelError as ModelError
    from forvalue_index.exceptions import ReadOnlyIndexError as ReadOnlyIndexError
    from forvalue_index.exceptions import SettingsMismatchError as SettingsMismatchError
    from forvalue_index.exceptions import SourceError as SourceError
    from forvalue_index.exceptions import UsageError as UsageError
    from forvalue_index.index import ValuationIndex as ValuationIndex
    from forvalue_index.ingest.peek import PeekedRow as PeekedRow
    from forvalue_index.ingest.peek import PeekedSource as PeekedSource
    from forvalue_index.ingest.peek import TextRun as TextRun
    from forvalue_index.ingest.peek import peek as peek
    from forvalue_index.ingest.tally import AddReport as AddReport
    from forvalue_index.search.contract import SearchIndex as SearchIndex
    from forvalue_index.sources.data import Data as Data
    from forvalue_index.sources.sample import Image as Image
    from forvalue_index.sources.sample import Message as Message
    from forvalue_index.sources.sample import Sample as Sample
    from forvalue_index.sources.sample import Source as Source
    from forvalue_index.valuation.results import Explanation as Explanation
    from forvalue_index.valuation.results import QueryResult as QueryResult
    from forvalue_index.valuation.results import ScoredSample as ScoredSample
    from forvalue_index.valuation.results import Values as Values
    from forvalue_index.valuation.scoring import Scoring as Scoring

__version__ = "0.1.0"
# Where each public name lies. They are imported when they are first asked for, so that the command
# line can show its help without importing torch.
_HOMES = {
    "index": ("ValuationIndex",),
    "sources.data": ("Data",),
    "sources.sample": ("Image", "Message", "Sample", "Source"),
    "ingest.peek": ("PeekedRow", "PeekedSource", "TextRun", "peek"),
    "ingest.tally": ("AddReport",),
    "search.contract": ("SearchIndex",),
    "valuation.scoring": ("Scoring",),
    "valuation.results": ("Explanation", "QueryResult", "ScoredSample", "Values"),
    "evaluation.evidence": ("EvaluationData",),
    "evaluation.fidelity": ("evaluate_fidelity",),
    "evaluation.mislabeled": ("evaluate_mislabeled",),
    "evaluation.retraining": ("evaluate_lds",),
    "evaluation.retrieval": ("evaluate_retrieval",),
    "evaluation.tail_patch": ("evaluate_tail_patch",),
    "evaluation.training": ("Recipe",),
    "exceptions": (
        *("BadSampleError", "BrokenIndexError", "BusyIndexError", "FilterError", "ForValueError"),
        *("MissingDependencyError", "ModelError", "ReadOnlyIndexError", "SettingsMismatchError"),
        *("SourceError", "UsageError"),
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
