"""The devices that tests of rows on GPUs run on."""

import pytest

from forvalue_index.devices import gpus

DEVICES = [
    pytest.param("cpu", id="cpu"),
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")],
        id="cuda",
    ),
]
