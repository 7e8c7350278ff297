"""From the name of a model to files of it that are safe to read.

A model may come from a stranger. Nothing of it is run unless `trust_remote_code` says so, and
weights are read from safetensors and GGUF files alone: a pickle is a program.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import torch
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.models.auto.tokenization_auto import (
    get_tokenizer_config,
    tokenizer_class_from_name,
)
from transformers.utils import logging as transformers_logging

from forvalue_index.exceptions import ForValueError, ModelError, UsageError, missing_extra
from forvalue_index.settings import Settings

HUB_TIMEOUT_S = 10
PROCESSOR_FILES = {"processor_config.json", "preprocessor_config.json"}
# What transformers knows itself, so that code for it is not needed.
KNOWN_KINDS = {
    "AutoConfig": CONFIG_MAPPING,
    "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForImageTextToText": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
}
CONVERT_MODEL = (
    'if you trust it, convert it once: python -c "from transformers import AutoModelForCausalLM '
    "as M, AutoTokenizer as T; [c.from_pretrained('{name}').save_pretrained('NEW_DIRECTORY') "
    'for c in (M, T)]"'
)


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies: what `from_pretrained` needs to find it, and the names of its files."""

    name: str
    location: Mapping[str, Any]
    file_names: frozenset[str]

    @property
    def revision(self) -> str | None:
        """The commit of a model on the hub."""
        revision: str | None = self.location.get("revision")
        return revision


def locate_model(settings: Settings) -> ModelFiles:
    """Find a model, without asking a hub for a local path.

    Raises:
        ModelError: there is no such model, it is an adapter, or its weights are a pickle.
    """
    files = _locate(settings)
    if "adapter_config.json" in files.file_names:
        raise ModelError(
            f"{files.name} holds a PEFT adapter (adapter_config.json); name the model without it, "
            "and the adapter with --adapter"
        )
    pickled = sorted(f for f in files.file_names if f.startswith("pytorch_model") and "/" not in f)
    safe = any(f.endswith(".safetensors") and "/" not in f for f in files.file_names)
    if pickled and not safe and "gguf_file" not in files.location:
        raise ModelError(
            f"{files.name} has its weights in {pickled[0]}, a format that can run code when it is "
            f"read, and none in safetensors; {CONVERT_MODEL.format(name=files.name)}"
        )
    return files


def image_model_type(files: ModelFiles) -> str | None:
    """The kind of a model that reads images, if these files hold one with its processor."""
    if "gguf_file" in files.location or not PROCESSOR_FILES & files.file_names:
        return None
    config, _ = PreTrainedConfig.get_config_dict(**files.location)
    kind = config.get("model_type")
    return kind if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES else None


def refuse_text_alone(files: ModelFiles) -> None:
    """Raise ModelError where a model that reads images has no part that reads text alone."""
    kind = image_model_type(files)
    if kind is not None and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"{files.name}: a {kind} model is not loaded for text alone; make the index without "
            "--media none, which takes samples without images, too"
        )


def refuse_own_code(files: ModelFiles) -> None:
    """Raise ModelError where a model cannot be loaded without running code that comes with it.

    Code that is there beside what transformers knows itself is passed over.
    """
    config: dict[str, Any] = {}
    if "gguf_file" not in files.location:  # its header names an architecture and no code
        config, _ = PreTrainedConfig.get_config_dict(**files.location)
    code = _code_of_model(config)
    if code is None:
        code = _code_of_tokenizer(get_tokenizer_config(**files.location))
    if code is not None:
        raise ModelError(
            f"{files.name} runs code of its own ({code}); give --trust-remote-code if you trust "
            "it, or use another model"
        )


def _code_of_model(config: Mapping[str, Any]) -> str | None:
    """The code that the configuration of a model names and that has to run, if there is any."""
    if (kernel := _hub_kernel(config)) is not None:
        return f"a kernel of the hub, {kernel}"
    kind = config.get("model_type")
    references = config.get("auto_map") or {}
    for auto_class, known in KNOWN_KINDS.items():
        if auto_class in references and kind not in known:
            return str(references[auto_class])
    return None


def _code_of_tokenizer(config: Mapping[str, Any]) -> str | None:
    name = config.get("tokenizer_class")
    if "auto_map" in config and (name is None or tokenizer_class_from_name(name) is None):
        return f"its tokenizer, {name or config['auto_map']}"
    return None


def _hub_kernel(config: Any) -> str | None:
    """The repository of compiled code that a configuration asks for, as in `owner/kernel`."""
    if not isinstance(config, Mapping):
        return None
    for key, value in config.items():
        if str(key).endswith("_implementation"):
            values = value.values() if isinstance(value, Mapping) else [value]
            for one in values:
                if isinstance(one, str) and "/" in one:
                    return one
        elif (kernel := _hub_kernel(value)) is not None:
            return kernel
    return None


@contextlib.contextmanager
def without_pickle(name: str) -> Iterator[None]:
    """Refuse every pickle while a model is loaded.

    An index of shards, a configuration or an adapter can each name a file that the libraries would
    hand to `torch.load`; here all these ways end.
    """

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ModelError(
            f"{name} has tensors in a format that can run code when it is read; use a copy of it "
            "in safetensors"
        )

    load = torch.load
    torch.load = refuse
    try:
        yield
    finally:
        torch.load = load


@contextlib.contextmanager
def model_errors(
    name: str,
    kind: str = "a language model",
    wanted: str = (
        "a hub id as OWNER/NAME, a directory with config.json, weights and tokenizer, or a GGUF "
        "file"
    ),
) -> Iterator[None]:
    """Turn what transformers or PEFT raises for what it cannot load into one line."""
    try:
        yield
    except ForValueError:
        raise
    except ImportError as error:
        raise missing_extra(f"{name}: {first_line(error)};", "models") from error
    except Exception as error:  # Every file format has errors of its own for a damaged file.
        raise ModelError(
            f"{name} cannot be loaded as {kind}: {first_line(error)} Give {wanted}"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's text that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and advice of transformers; the caller draws its own.

    Nor with what one of these libraries announces to another one, and no user can act on.
    """
    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def looks_local(name: str) -> bool:
    """Whether a name can only be a path."""
    return Path(name).is_absolute() or name.startswith((".", "~"))


def _locate(settings: Settings) -> ModelFiles:
    name, path = settings.model, Path(settings.model)
    if settings.revision is not None and path.exists():
        raise UsageError(
            f"--revision {settings.revision}: {path} is local and has no revisions; leave it out"
        )
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"{path}: there is no such GGUF file; check the path")
        location = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        return ModelFiles(name, location, _names_in(path.parent))
    if looks_local(name) and not path.is_dir():
        raise ModelError(
            f"{name}: there is no such model directory; check the path, or name a model "
            "on the hub as OWNER/NAME"
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} has no config.json, so it is no model; check the path")
        return ModelFiles(name, {"pretrained_model_name_or_path": name}, _names_in(path))
    return _locate_on_hub(name, settings.revision)


def _locate_on_hub(name: str, revision: str | None) -> ModelFiles:
    """The commit of a model on the hub as it is now; the cached one where no hub answers.

    Asking once, without the retries of a download, tells a wrong name from a missing network.
    """
    location: dict[str, Any] = {"pretrained_model_name_or_path": name}
    try:
        model = huggingface_hub.model_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
    except (RepositoryNotFoundError, RevisionNotFoundError, ValueError) as error:
        raise ModelError(
            f"{name} (revision {revision or 'main'}) is neither a directory here nor a model on "
            f"the hub that can be read: {first_line(error)}"
        ) from error
    except Exception as error:  # Which error a missing network is depends on the hub's client.
        cached = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(cached, str):
            raise ModelError(
                f"{name} is neither a directory here nor in the hub's cache, and the hub cannot "
                f"be reached ({first_line(error)}); check the name and the network"
            ) from error
        location |= {"revision": revision, "local_files_only": True}
        return ModelFiles(name, location, _names_in(Path(cached).parent))
    names = frozenset(file.rfilename for file in model.siblings or ())
    return ModelFiles(name, location | {"revision": revision or model.sha}, names)


def _names_in(directory: Path) -> frozenset[str]:
    return frozenset(path.name for path in directory.iterdir())
