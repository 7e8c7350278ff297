"""An index's storage filled with random rows, for tests that need no model."""

import torch

from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.settings import ModelIdentity, Settings
from forvalue_index.sources.sample import Message, Sample
from forvalue_index.store.store import Storage

IDENTITY = ModelIdentity("w" * 32, "t" * 32, vocab_size=50, hidden_size=8)
DIM = 16


def create(path, catalog="sqlite", **settings):
    chosen = {"dim": DIM, "row_dtype": "float32", "template": "chat", "max_length": 64}
    chosen["geometry"] = "raw"
    resolved = Settings(model="m", dtype="float32", **(chosen | settings))
    return Storage.create(path, resolved, model=IDENTITY, catalog=catalog)


def samples(count, prefix="r"):
    return [
        Sample((Message("user", "q"), Message("assistant", f"{prefix}{i}")), "a", i + 1, None)
        for i in range(count)
    ]


def statistics(count):
    return [SampleStatistics(10, 5, False, 1.0, 0.5, 1.0)] * count


def random_rows(count, seed=0):
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))


def fill(storage, count=5, prefix="r", seed=0):
    rows = random_rows(count, seed)
    storage.append(storage.quantized({"raw": rows}), samples(count, prefix), statistics(count))
    return rows
