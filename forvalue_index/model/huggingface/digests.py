"""Digests that a model is known by, wherever it came from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor


def weights_digest(model: Any) -> str:
    """Digest of every tensor's name, shape, type, and sums of bit patterns along both sides.

    The sums run at the speed of memory, on the device. Any single changed weight changes them, and
    so does any other order of rows or columns.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        bits = tensor.detach().contiguous().view(_integers_as_wide_as(tensor))
        matrix = bits.reshape(len(bits), -1) if bits.dim() else bits.reshape(1, 1)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        for side in (0, 1):
            digest.update(matrix.sum(dim=side, dtype=torch.int64).cpu().numpy().tobytes())
    return digest.hexdigest()


def _integers_as_wide_as(tensor: Tensor) -> torch.dtype:
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return widths[tensor.element_size()]


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of the tokenizer's rules, its special tokens and its chat template.

    Among its rules a tokenizer keeps how it padded and truncated last, which is no rule of it.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules = json.dumps(rules | {"padding": None, "truncation": None}, sort_keys=True)
    template = str(tokenizer.chat_template)
    special = repr(sorted(tokenizer.special_tokens_map.items()))
    return hashlib.blake2b(f"{rules}\n{template}\n{special}".encode(), digest_size=16).hexdigest()
