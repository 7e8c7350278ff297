"""PEFT adapters, merged into the weights of a model. The one home of PEFT.

An adapter may come from a stranger: only kinds whose loading reads nothing but the adapter itself
are taken, and only from safetensors.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from forvalue_index.exceptions import ModelError, missing_extra
from forvalue_index.model.huggingface.files import (
    first_line,
    looks_local,
    model_errors,
    quiet,
    without_pickle,
)
from forvalue_index.model.huggingface.merging import merged_as_trained, refuse_unread_weights

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
# Kinds that can be merged. Of the others, some fetch further models (X-LoRA, Shadow) or tokenizers
# (prompt tuning), and read pickles (multitask prompt tuning).
KINDS = (
    *("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "HRA", "VERA", "VBLORA", "RANDLORA"),
    *("FOURIERFT", "WAVEFT", "LN_TUNING", "SHIRA", "C3A", "MISS", "ROAD", "DELORA", "GRALORA"),
    *("ADAMSS", "BEFT", "DEFT", "GLORA", "HIRA", "OSF", "PEANUT", "PSOFT", "PVERA"),
    *("SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA"),
)
ADAPTER = (
    "an adapter of this model",
    f"a hub id or a directory with {CONFIG} and {WEIGHTS}, trained on this model",
)
CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    f"s.save_file(torch.load('{PICKLED_WEIGHTS}', weights_only=True), '{WEIGHTS}')\""
)


def merge_adapter(model: Any, adapter: str) -> Any:
    """The model with a PEFT adapter, a directory or an id on the hub, merged into its weights.

    Raises:
        ModelError: there is no such adapter, or it is one of another model or of a kind that
            cannot be merged safely, or the model would say something else with it merged.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise missing_extra(f"--adapter {adapter} needs PEFT;", "models") from error
    with quiet(), model_errors(adapter, *ADAPTER), without_pickle(adapter):
        directory = _locate(adapter)
        _refuse_dangerous(adapter, (directory / CONFIG).read_text(encoding="utf-8"))
        # What PEFT and torch remark on the way is checked here, or is for whoever trains.
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, str(directory)).eval()
            _refuse_missing_weights(adapter, [str(remark.message) for remark in remarks])
            refuse_unread_weights(adapted, adapter, directory)
            return merged_as_trained(adapted, adapter)


@contextmanager
def attached_lora(model: Any, *, rank: int, seed: int = 0) -> Iterator[list[torch.Tensor]]:
    """The parameters of a new LoRA, on every linear layer of the model but its head.

    It has no effect at first, and is taken off again afterwards.

    Raises:
        MissingDependencyError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise missing_extra(f"a LoRA of rank {rank} needs PEFT;", "models") from error
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with quiet(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # GPT-2's layers are transposed; PEFT sees it, does what is right, and says so.
        warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    try:
        yield [p for p in adapted.parameters() if p.requires_grad]
    finally:
        adapted.unload()


def _refuse_missing_weights(adapter: str, remarks: list[str]) -> None:
    for remark in remarks:
        if "missing adapter keys" in remark:
            raise ModelError(
                f"{adapter} lacks weights that its {CONFIG} asks for ({remark[:200]}); save it "
                "anew with the PEFT that it was trained with"
            )


def _locate(adapter: str) -> Path:
    """The directory of an adapter with weights in safetensors, from the hub where it is no path."""
    path = Path(adapter)
    if not path.is_dir():
        if looks_local(adapter):
            raise ModelError(f"{adapter}: there is no such adapter directory; check the path")
        return _downloaded(adapter)
    if not (path / CONFIG).is_file():
        raise ModelError(f"{adapter} has no {CONFIG}, so it is no adapter; check the path")
    if not (path / WEIGHTS).is_file():
        raise _no_safe_weights(adapter)
    return path


def adapter_file(adapter: str, name: str) -> Path | None:
    """A file of an adapter beside its weights, or None where it has none such.

    Raises ModelError where there is no such adapter.
    """
    directory = _locate(adapter)
    if not Path(adapter).is_dir():
        with suppress(EntryNotFoundError, LocalEntryNotFoundError):
            return Path(huggingface_hub.hf_hub_download(adapter, name))
    return directory / name if (directory / name).is_file() else None


def _downloaded(adapter: str) -> Path:
    try:
        path = huggingface_hub.hf_hub_download(adapter, CONFIG)
    except Exception as error:  # Which error a missing network is depends on the hub's client.
        raise ModelError(
            f"{adapter} is neither a directory here nor an adapter on the hub that can be read: "
            f"{first_line(error)}"
        ) from error
    try:
        huggingface_hub.hf_hub_download(adapter, WEIGHTS)
    except EntryNotFoundError as error:
        raise _no_safe_weights(adapter) from error
    return Path(path).parent


def _no_safe_weights(adapter: str) -> ModelError:
    return ModelError(
        f"{adapter} has no {WEIGHTS}, and {PICKLED_WEIGHTS} can run code when it is read; if you "
        f"trust it, convert it once, in its directory: {CONVERT}"
    )


def _refuse_dangerous(adapter: str, text: str) -> None:
    config = json.loads(text)
    kind = config.get("peft_type")
    if kind not in KINDS:
        raise ModelError(
            f"{adapter} is an adapter of kind {kind!r}, which cannot be merged into a model; use "
            f"one of {', '.join(KINDS)}"
        )
    if config.get("megatron_config"):
        raise ModelError(
            f"{adapter} asks for the module {config.get('megatron_core')!r} to be run "
            "(megatron_config); use an adapter without it"
        )
