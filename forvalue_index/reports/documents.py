"""Results as JSON documents: the stable contract that scripts depend on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from forvalue_index.ingest.tally import AddReport
from forvalue_index.search.contract import TuneReport
from forvalue_index.search.kinds import search_kind
from forvalue_index.store.manifest import Manifest
from forvalue_index.store.records import StoredSample
from forvalue_index.store.results import (
    CalibrationSummary,
    CatalogSummary,
    CheckReport,
    CompactReport,
)
from forvalue_index.valuation.results import (
    ExplainedSample,
    Explanation,
    QueryResult,
    ScoredSample,
    TokenTerm,
    saturation_warnings,
)

# Settings that `info` shows before the others, which follow as they are declared.
FIRST_SHOWN = (
    *("dim", "row_dtype", "model", "adapter", "revision", "trust_remote_code", "dtype"),
    *("labels", "template", "max_length", "seed"),
)


def query_document(result: QueryResult) -> dict[str, Any]:
    """`query --json`. `per_sample` is there only where it was asked for."""
    document: dict[str, Any] = {
        "index": result.index,
        "fingerprint": result.fingerprint,
        "index_version": result.index_version,
        "geometry": result.scoring.geometry,
        "normalized": result.scoring.normalize,
        "whitened": result.scoring.whiten,
        "validation": {
            "samples": result.validation_samples,
            "label_tokens": result.validation_label_tokens,
        },
        "search": result.search,
        "where": result.where,
        "searched": result.searched,
        "reranked": result.reranked,
        "label_error_mass": {
            "validation": result.label_error_mass,
            "index": result.index_error_mass,
        },
        "seconds": _rounded(result.seconds),
        "warnings": list(result.warnings),
        "helpful": _hits(result.helpful),
        "harmful": _hits(result.harmful),
    }
    if result.per_sample:
        document["per_sample"] = [
            {
                "validation": one.validation,
                "helpful": _hits(one.helpful),
                "harmful": _hits(one.harmful),
            }
            for one in result.per_sample
        ]
    return document


def tune_document(report: TuneReport) -> dict[str, Any]:
    """`tune --json`; `chosen` is null where no trial reached the recall."""
    return dataclasses.asdict(report)


def add_document(report: AddReport) -> dict[str, Any]:
    """`add --json`. `rejected_file` is null where no row was rejected."""
    forward_s = report.seconds["forward"]
    return {
        "read": report.read,
        "added": report.added,
        "relabelled": report.relabelled,
        "restored": report.restored,
        "known": report.known,
        "updated": report.updated,
        "duplicates": report.duplicates,
        "differing": report.differing,
        "examples": [dataclasses.asdict(repeat) for repeat in report.examples],
        "rejected": report.rejected,
        "reasons": dict(Counter(report.reasons).most_common()),
        "truncated": report.truncated,
        "unread": dict(report.unread),
        "unrendered": dict(report.unrendered),
        "cut": report.cut,
        "label_tokens": report.label_tokens,
        "segments": report.segments,
        "seconds": _rounded(report.seconds),
        "tokens_per_s": round(report.tokens / forward_s, 1) if report.tokens else 0.0,
        "rejected_file": report.rejected_file,
    }


def info_document(manifest: Manifest, summary: CatalogSummary, *, version: int) -> dict[str, Any]:
    """`info --json`. `bytes` are those of the segment files; `loss` is in nats a token."""
    return {
        "samples": summary.samples,
        "removed": summary.removed,
        "segments": summary.segments,
        "bytes": summary.bytes,
        **_shown_settings(manifest),
        "fingerprint": manifest.fingerprint,
        "index_version": version,
        "catalog": manifest.shown_catalog,
        "search": search_kind(summary.samples),
        "sources": [{"source": s.source, "samples": s.samples} for s in summary.sources],
        "loss": summary.loss,
        "label_error_mass": summary.label_error_mass,
        "warnings": saturation_warnings({"indexed samples": summary.label_error_mass}),
        "stopped": [list(sources) for sources in summary.stopped],
    }


def _shown_settings(manifest: Manifest) -> dict[str, Any]:
    """All settings; `media` is None where the model reads no images."""
    settings = manifest.settings
    return {
        **dict.fromkeys(FIRST_SHOWN),
        **vars(settings),
        "dim": manifest.row_width,
        "media": settings.media if manifest.model.reads_images else None,
    }


def explanation_document(explanation: Explanation) -> dict[str, Any]:
    """`explain --json`. `validation` is there only where it was asked for."""
    document: dict[str, Any] = {
        "id": explanation.id,
        "geometry": explanation.scoring.geometry,
        "normalized": explanation.scoring.normalize,
        "validation_set": {
            "samples": explanation.validation_samples,
            "label_tokens": explanation.validation_label_tokens,
        },
        "warnings": list(explanation.warnings),
        **_explained(explanation.training),
    }
    if explanation.validation:
        document["validation"] = [_explained(one) for one in explanation.validation]
    return document


def calibration_document(calibration: CalibrationSummary | None) -> dict[str, Any]:
    """`calibrate --json`. All of it is null where the index is not calibrated yet."""
    names = [field.name for field in dataclasses.fields(CalibrationSummary)]
    return dict.fromkeys(names) if calibration is None else dataclasses.asdict(calibration)


def compact_document(report: CompactReport) -> dict[str, Any]:
    """`compact --json`. `dropped` are the removed samples that are forgotten now."""
    return dataclasses.asdict(report)


def check_document(report: CheckReport) -> dict[str, Any]:
    """`check --json`."""
    return {"sound": report.sound, **dataclasses.asdict(report)}


def sample_document(stored: StoredSample) -> dict[str, Any]:
    """`show --json`, and one entry of `list --json`."""
    sample, statistics = stored.sample, stored.statistics
    return {
        "id": stored.id,
        "key": sample.key,
        "source": sample.source,
        "position": sample.position,
        "content_hash": None if stored.text_error else sample.content_hash,
        "n_tokens": statistics.n_tokens,
        "n_label_tokens": statistics.n_label_tokens,
        "truncated": statistics.truncated,
        "removed": stored.removed,
        "loss": statistics.loss,
        "label_error_mass": statistics.label_error_mass,
        "norm": statistics.norm,
        "metadata": dict(sample.metadata),
        "messages": [message.as_dict() for message in sample.messages],
        "tools": list(sample.tools),
        "text_error": stored.text_error,
    }


def _hits(hits: Sequence[ScoredSample]) -> list[dict[str, Any]]:
    return [
        {
            "rank": hit.rank,
            "id": hit.id,
            "key": hit.sample.key,
            "score": hit.score,
            "stderr": hit.stderr,
            "exact": hit.exact,
            "source": hit.sample.source,
            "metadata": dict(hit.sample.metadata),
            "preview": hit.sample.preview,
        }
        for hit in hits
    ]


def _explained(explained: ExplainedSample) -> dict[str, Any]:
    return {
        "key": explained.sample.key,
        "score": explained.score,
        "tokens": [_token(token) for token in explained.tokens],
    }


def _token(token: TokenTerm) -> dict[str, Any]:
    fields = dataclasses.asdict(token)
    if token.image is None:
        del fields["image"]
    return fields


def _rounded(seconds: Any) -> dict[str, float]:
    return {name: round(value, 4) for name, value in seconds.items()}
