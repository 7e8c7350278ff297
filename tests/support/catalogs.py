"""Samples with known statistics for tests of the catalog, and reads of it as it is now."""

import uuid
from collections.abc import Iterator

from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.sources.sample import Message, Sample
from forvalue_index.store.records import SegmentRecord

UID = uuid.UUID(int=7).hex


def sample(number, *, source="a.jsonl", own_id=None, **metadata):
    messages = (Message("user", f"question {number} ü"), Message("assistant", f"answer {number}"))
    return Sample(messages, source, number + 1, own_id, metadata)


def statistics(number):
    return SampleStatistics(10 + number, 5 + number, number % 2 == 0, number / 8, 0.5, 1.0)


def segment(n_rows):
    return SegmentRecord(uuid.uuid4().hex, n_rows, n_rows * 100, "ab" * 32)


def commit(catalog, samples):
    measured = [statistics(sample.position - 1) for sample in samples]
    return catalog.commit_segment(segment(len(samples)), samples, measured)


class Now:
    """Each call reads the catalog through a snapshot of its own; streams come whole."""

    def __init__(self, catalog):
        self.catalog = catalog

    def __getattr__(self, name):
        def read(*arguments, **options):
            with self.catalog.snapshot() as snapshot:
                found = getattr(snapshot, name)(*arguments, **options)
                return list(found) if isinstance(found, Iterator) else found

        return read
