"""Language models of Hugging Face transformers: the trunk, the head and the tokenizer.

A model is loaded from a hub id, a local directory or a GGUF file, with an adapter merged into it,
and taken apart into trunk and head. Whether the parts make
the whole is checked against the model's own logits, so a head of an unknown kind is refused and
never valued wrongly.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from forvalue_index.devices import computes_in_bfloat16, none_if_out_of_memory
from forvalue_index.exceptions import ModelError
from forvalue_index.model.batching import halves, shared_tokens
from forvalue_index.model.encoded import Batch
from forvalue_index.model.huggingface.adapters import merge_adapter
from forvalue_index.model.huggingface.digests import tokenizer_digest, weights_digest
from forvalue_index.model.huggingface.files import model_errors, quiet, without_pickle
from forvalue_index.model.huggingface.heads import heads_of, relative_gap, tolerance, trunk_of
from forvalue_index.model.huggingface.probes import plain_tokens, probe_errors
from forvalue_index.model.huggingface.shared_prefix import can_share_prefix, states_after
from forvalue_index.model.huggingface.tokenizers import (
    ModelTokenizer,
    context_of,
    image_tokens,
    refuse_slow,
    replaced_tokens,
)
from forvalue_index.model.huggingface.vision import processor_digest, stacked
from forvalue_index.model.prediction_error import Head
from forvalue_index.settings import ModelIdentity, Settings

LOG = logging.getLogger(__name__)
# Tokens that need not be read again, of those of a batch, for which a second pass pays.
LEAST_SAVED = 0.05


def resolve_dtype(dtype: str, device: torch.device) -> str:
    """`auto` is bfloat16 on a GPU that computes in it, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if computes_in_bfloat16(device) else "float32"


class Backbone:
    """A causal or vision-language model, ready to give hidden states."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        processor: Any = None,
        name: str = "the model",
        revision: str | None = None,
    ) -> None:
        self.name = name
        self.revision = revision
        self.processor = processor
        refuse_slow(tokenizer, name)
        self.tokenizer = tokenizer
        self._model = model.eval().requires_grad_(False)
        self._trunk = trunk_of(model)
        # Models of images count positions by the images.
        names = inspect.signature(self._trunk.forward).parameters
        self._takes_positions = processor is None and "position_ids" in names
        self.head, *others = heads_of(model, name)
        self.device = self.head.weight.device
        self._too_large = sys.maxsize  # tokens of a batch
        self._choose_head(others)
        self._shares_prefix = self._takes_positions and can_share_prefix(
            self._trunk, model.config, self.head.weight
        )

    @classmethod
    def load(cls, settings: Settings, *, device: torch.device, images: bool = True) -> Backbone:
        """Load the model and tokenizer that settings name, onto a device, in a resolved dtype.

        With `images`, a model that reads them comes with its processor.

        Raises:
            ModelError: there is no such model, it is no language model that this package can take
                apart, or it runs code of its own and is not trusted to.
        """
        name, trusted = settings.model, settings.trust_remote_code
        dtype = getattr(torch, resolve_dtype(settings.dtype, device))
        read = ModelTokenizer.load(settings, images=images)
        kind = AutoModelForCausalLM if read.image_type is None else AutoModelForImageTextToText
        with quiet(), model_errors(name), without_pickle(name):
            model = kind.from_pretrained(
                **read.files.location, dtype=dtype, use_safetensors=True, trust_remote_code=trusted
            )
        if settings.adapter is not None:
            model = merge_adapter(model, settings.adapter)
        model.to(device)
        revision = read.files.revision
        return cls(model, read.tokenizer, processor=read.processor, name=name, revision=revision)

    @property
    def model(self) -> Any:
        """The transformers model itself. Whoever changes its weights changes this backbone."""
        return self._model

    @property
    def placeholders(self) -> set[int]:
        """The ids of tokens that stand for something else, such as a part of an image."""
        return image_tokens(self.processor, self._model.config)

    @property
    def replaced_tokens(self) -> set[int]:
        """Those of them in whose place something else is read."""
        return replaced_tokens(self.processor, self._model.config)

    @property
    def context(self) -> int | None:
        """The most tokens that the model reads, or None where it does not say."""
        return context_of(self._model.config)

    def identity(self) -> ModelIdentity:
        """Digests of the weights in memory, of tokenizer and processor, wherever they came from."""
        vocab_size, hidden_size = self.head.weight.shape
        return ModelIdentity(
            weights_digest=weights_digest(self._model),
            tokenizer_digest=tokenizer_digest(self.tokenizer),
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            processor_digest=None if self.processor is None else processor_digest(self.processor),
        )

    @torch.inference_mode()
    def hidden_states(self, batch: Batch) -> Float[Tensor, "label hidden"]:
        """Inputs of the head at the batch's label positions, in the model's precision.

        What all samples of a batch begin with is read once: in a causal model it is the same for
        each of them, to rounding. A batch that memory does not suffice for is read in halves, and
        so are others of its size from then on. Raises ModelError where it does not suffice for a
        single sample.
        """
        states = None
        if len(batch.indices) == 1 or batch.token_ids.size < self._too_large:
            states = none_if_out_of_memory(lambda: self._label_states(batch))
        if states is not None:
            return states
        self._refuse_too_large(batch)
        return torch.cat([self.hidden_states(half) for half in halves(batch)])

    def _refuse_too_large(self, batch: Batch) -> None:
        """Remember a size that is too large, and say so; raise ModelError for a single sample."""
        size = batch.token_ids.size
        if len(batch.indices) == 1:
            raise ModelError(
                f"{self.name}: there is not the memory on {self.device} to read a sample of "
                f"{size:,} tokens; close other programs, or make the index with a --max-length "
                "below that"
            )
        if size < self._too_large:
            self._too_large = size
            LOG.warning("No memory for a batch of %s tokens; going on with halves", f"{size:,}")

    def _label_states(self, batch: Batch) -> Tensor:
        shared = shared_tokens(batch) if self._shares_prefix else 0
        saved = shared * (len(batch.indices) - 1)
        if saved < LEAST_SAVED * batch.token_ids.size:
            return self.differentiable_states(batch)
        ids, mask = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.attention_mask)
        states = states_after(self._trunk, self.head.weight, shared, ids, mask)
        rows, columns = (torch.from_numpy(at) for at in (batch.label_rows, batch.label_columns))
        return states[rows.to(self.device), columns.to(self.device) - shared]

    def differentiable_states(self, batch: Batch) -> Float[Tensor, "label hidden"]:
        """The same of every sample read whole, with a graph back to weights that are trainable."""
        states = self._states(
            torch.from_numpy(batch.token_ids).to(self.device),
            torch.from_numpy(batch.attention_mask).to(self.device),
            **self.inputs(batch),
        )
        rows = torch.from_numpy(batch.label_rows).to(self.device)
        columns = torch.from_numpy(batch.label_columns).to(self.device)
        return states[rows, columns]

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What the model reads of the images of a batch."""
        if not batch.readers:
            return {}
        inputs = stacked(batch.inputs, batch.token_ids.shape[1])
        dtype = self.head.weight.dtype
        return {
            name: tensor.to(self.device, dtype if tensor.is_floating_point() else None)
            for name, tensor in inputs.items()
        }

    def _states(self, token_ids: Tensor, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        """Last hidden states after the final norm, [batch, token, hidden], as the head reads them.

        Mamba in half precision keeps them in float32, and rounds them for its head.
        """
        options: dict[str, Any] = {"use_cache": False, **inputs}
        if self._takes_positions:
            options["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        # Of images, convolutions on a GPU would else round float32 to the 10 bits of TF32.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            output = self._trunk(input_ids=token_ids, attention_mask=attention_mask, **options)
        states: Tensor = output[0].to(self.head.weight.dtype)
        return states

    @torch.inference_mode()
    def _choose_head(self, others: Sequence[Head]) -> None:
        """Take the head that gives the model's own logits, or refuse a model that has none such."""
        vocab_size, width = self.head.weight.shape
        plain = list(islice(plain_tokens(vocab_size, self.placeholders), min(8, self.context or 8)))
        token_ids = torch.tensor([plain], device=self.device)
        mask = torch.ones_like(token_ids)
        kind = type(self._model).__name__
        with probe_errors(self.name, self._model):
            options = {"attention_mask": mask, "use_cache": False}
            theirs = self._model(input_ids=token_ids, **options).logits[0]
            states = self._states(token_ids, mask)[0]
        if states.shape[-1] != width:
            raise ModelError(
                f"{self.name}: {kind} has a layer between its hidden states, of {states.shape[-1]} "
                f"numbers, and its head, which reads {width}, so its samples cannot be valued; use "
                "another model"
            )
        heads = (self.head, *others)
        gap, at = min((relative_gap(h.logits(states), theirs), i) for i, h in enumerate(heads))
        self.head = heads[at]
        if not gap <= tolerance(self.head.weight.dtype):
            raise ModelError(
                f"{self.name}: {kind} has a head that is more than scale, bias and soft-capping "
                f"(its logits differ from ours by {gap:.1e} of the largest), so its samples "
                "cannot be valued; use another model"
            )
