"""Where a model and rows can lie, and what to do where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

# Of each GPU, what scores, chunks of rows and other programs may want.
RESERVED_BYTES = 2**31
# How torch says it where it has no exception of its own for it: on CPUs, and within cuBLAS.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "STATUS_ALLOC_FAILED",
)

Result = TypeVar("Result")


def default_device() -> torch.device:
    """The first NVIDIA GPU where there is one, else the CPU."""
    return next(iter(gpus()), torch.device("cpu"))


def gpus() -> list[torch.device]:
    """The NVIDIA GPUs that this process may use."""
    if not torch.cuda.is_available():  # they are counted where the driver is too old, too
        return []
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]


def gpu_room() -> dict[torch.device, int]:
    """The bytes that each GPU has free for rows."""
    return {gpu: max(0, _free_bytes(gpu) - RESERVED_BYTES) for gpu in gpus()}


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a GPU multiplies bfloat16 itself: those from Ampere on do."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def shared_out(
    n_rows: int, row_bytes: int, room: Mapping[torch.device, int]
) -> dict[torch.device, int] | None:
    """How many rows each device takes; None where they do not fit.

    All go to the device with the most room if they fit there, else each takes its part.
    """
    fitting = {device: free // row_bytes for device, free in room.items() if free >= row_bytes}
    total = sum(fitting.values())
    if n_rows > total:
        return None
    roomiest = max(fitting, key=lambda device: fitting[device])
    if n_rows <= fitting[roomiest]:
        return {roomiest: n_rows}
    shares, left = {}, n_rows
    for device, count in fitting.items():
        shares[device] = min(left, -(-n_rows * count // total))
        left -= shares[device]
    return {device: count for device, count in shares.items() if count}


def none_if_out_of_memory(work: Callable[[], Result]) -> Result | None:
    """What `work` gives, or None where there is not the memory for it."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
    # Only here, where the error has let go of what the work held.
    release_memory()
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or not."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(words in str(error) for words in OUT_OF_MEMORY)


def release_memory() -> None:
    """Give the memory of GPUs back that torch keeps without a use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _free_bytes(gpu: torch.device) -> int:
    """What the driver has, and what torch holds of it without a use."""
    try:
        free, _ = torch.cuda.mem_get_info(gpu)
    except RuntimeError:  # another program has all of it, or wants the GPU for itself
        return 0
    return int(free) + torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
