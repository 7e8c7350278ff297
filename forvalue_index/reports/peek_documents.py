"""`peek --json`: how rows are read, as a document that scripts depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from forvalue_index.ingest.peek import PeekedRow, PeekedSource
from forvalue_index.store.catalog.sample_rows import clean_metadata


def peek_document(peeked: Sequence[PeekedSource]) -> dict[str, Any]:
    """`peek --json`. `problem` is null where a source could be read."""
    return {
        "sources": [
            {
                "source": one.source,
                "looked_at": len(one.rows),
                "usable": one.usable,
                "problem": one.problem,
                "rows": [_row(row) for row in one.rows],
            }
            for one in peeked
        ]
    }


def _row(row: PeekedRow) -> dict[str, Any]:
    """One row. `reason` is null where it is usable, `key` where it makes no sample."""
    sample = row.sample
    return {
        "source": row.source,
        "position": row.position,
        "key": sample.key if sample else None,
        "usable": row.usable,
        "reason": row.reason,
        "n_tokens": row.n_tokens,
        "n_label_tokens": row.n_label_tokens,
        "truncated": row.truncated,
        "roles": [message.role for message in sample.messages] if sample else [],
        "runs": [dataclasses.asdict(run) for run in row.runs],
        "n_tools": len(sample.tools) if sample else 0,
        "metadata": clean_metadata(sample.metadata) if sample else {},
        "unread": list(sample.unread) if sample else [],
        "unrendered": list(row.unrendered),
        "cut_turns": sample.cut_turns if sample else 0,
    }
