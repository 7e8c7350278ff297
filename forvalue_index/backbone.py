"""Language models of Hugging Face transformers: the trunk, the head and the tokenizer.

A model is loaded from a hub id, a local directory or a GGUF file, with an adapter merged into it,
and taken apart into trunk and head. Whether the parts make
the whole is checked against the model's own logits, so a head of an unknown kind is refused and
never valued wrongly.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicLayer

from forvalue_index.adapters import merge_adapter
from forvalue_index.batching import halves, shared_tokens
from forvalue_index.devices import computes_in_bfloat16
from forvalue_index.exceptions import ModelError
from forvalue_index.memory import unless_memory_runs_out
from forvalue_index.model_files import (
    locate_model,
    model_errors,
    quiet,
    refuse_own_code,
    without_pickle,
)
from forvalue_index.prediction_error import Head
from forvalue_index.records import Batch
from forvalue_index.settings import ModelIdentity, Settings

LOG = logging.getLogger(__name__)
# Relative to the largest logit; half precision rounds the two ways of computing it differently.
HEAD_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
HALF_PRECISION_TOLERANCE = 5e-2
# Rotary embeddings that turn a position alike however long the text is; others look at its length.
STEADY_ROPE = {"default", "linear", "llama3", "yarn"}
# Tokens that need not be read again, of those of a batch, for which a second pass pays.
LEAST_SAVED = 0.05


def resolve_dtype(dtype: str, device: torch.device) -> str:
    """`auto` is bfloat16 on a GPU that computes in it, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if computes_in_bfloat16(device) else "float32"


class Backbone:
    """A causal language model, ready to give hidden states."""

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str = "the model", revision: str | None = None
    ) -> None:
        self.name = name
        self.revision = revision
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{name}: its tokenizer does not say which characters a token stands for, so "
                "responses cannot be told from prompts; use a model with a tokenizer.json"
            )
        self.tokenizer = tokenizer
        self._model = model.eval().requires_grad_(False)
        self._trunk = model.base_model
        self._takes_positions = "position_ids" in inspect.signature(self._trunk.forward).parameters
        self.head = _find_head(model, name)
        self.device = self.head.weight.device
        self._too_large = sys.maxsize  # tokens of a batch
        self._check_head()
        self._shares_beginnings = self._can_share_beginnings()

    @classmethod
    def load(cls, settings: Settings, *, device: torch.device) -> Backbone:
        """Load the model and tokenizer that settings name, onto a device, in a resolved dtype.

        Raises:
            ModelError: there is no such model, it is not a causal language model that this package
                can take apart, or it runs code of its own and is not trusted to.
        """
        name, trusted = settings.model, settings.trust_remote_code
        dtype = getattr(torch, resolve_dtype(settings.dtype, device))
        found = locate_model(settings)
        with quiet(), model_errors(name), without_pickle(name):
            if not trusted:
                refuse_own_code(found)
            # Said in so many words: where nothing is said, transformers asks on the terminal.
            tokenizer = AutoTokenizer.from_pretrained(**found.place, trust_remote_code=trusted)
            model = AutoModelForCausalLM.from_pretrained(
                **found.place, dtype=dtype, use_safetensors=True, trust_remote_code=trusted
            )
        if settings.adapter is not None:
            model = merge_adapter(model, settings.adapter)
        return cls(model.to(device), tokenizer, name=name, revision=found.revision)

    @property
    def model(self) -> Any:
        """The transformers model itself. Whoever changes its weights changes this backbone."""
        return self._model

    @property
    def context(self) -> int | None:
        """The most tokens that the model reads, or None where it does not say."""
        for field in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if size := getattr(self._model.config.get_text_config(), field, None):
                return int(size)
        return None

    def identity(self) -> ModelIdentity:
        """Digests of the weights in memory and of the tokenizer, wherever they came from."""
        vocab_size, hidden_size = self.head.weight.shape
        return ModelIdentity(
            weights_digest=_weights_digest(self._model),
            tokenizer_digest=_tokenizer_digest(self.tokenizer),
            vocab_size=vocab_size,
            hidden_size=hidden_size,
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
            states = unless_memory_runs_out(lambda: self._label_states(batch))
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
        shared = shared_tokens(batch) if self._shares_beginnings else 0
        saved = shared * (len(batch.indices) - 1)
        if saved < LEAST_SAVED * batch.token_ids.size:
            return self.differentiable_states(batch)
        states = self._states_after(
            shared, torch.from_numpy(batch.token_ids), torch.from_numpy(batch.attention_mask)
        )
        rows, columns = (torch.from_numpy(at) for at in (batch.label_rows, batch.label_columns))
        return states[rows.to(self.device), columns.to(self.device) - shared]

    def differentiable_states(self, batch: Batch) -> Float[Tensor, "label hidden"]:
        """The same of every sample read whole, with a graph back to weights that are trainable."""
        states = self._states(
            torch.from_numpy(batch.token_ids).to(self.device),
            torch.from_numpy(batch.attention_mask).to(self.device),
        )
        rows = torch.from_numpy(batch.label_rows).to(self.device)
        columns = torch.from_numpy(batch.label_columns).to(self.device)
        return states[rows, columns]

    def _states(self, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states after the final norm, [batch, token, hidden], as the head reads them.

        Mamba in half precision keeps them in float32, and rounds them for its head.
        """
        options: dict[str, Any] = {"use_cache": False}
        if self._takes_positions:
            options["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        output = self._trunk(input_ids=token_ids, attention_mask=attention_mask, **options)
        states: Tensor = output[0].to(self.head.weight.dtype)
        return states

    def _states_after(self, shared: int, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """As `_states`, but for the first tokens, which are the same in all samples."""
        ids, mask = token_ids.to(self.device), attention_mask.to(self.device)
        cache = self._trunk(input_ids=ids[:1, :shared], use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(ids))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        output = self._trunk(
            input_ids=ids[:, shared:],
            attention_mask=mask,
            position_ids=positions[:, shared:],
            past_key_values=cache,
            use_cache=True,
        )
        states: Tensor = output[0].to(self.head.weight.dtype)
        return states

    @torch.inference_mode()
    def _can_share_beginnings(self) -> bool:
        """Whether the model keeps keys and values of every token, and reads on from them alike."""
        rope_types = set(_rope_types(self._model.config.to_dict()))
        if not self._takes_positions or not rope_types <= STEADY_ROPE:
            return False
        try:
            return self._reads_on_alike()
        except Exception:  # a cache of another kind may raise anything, and is not needed
            return False

    def _reads_on_alike(self) -> bool:
        token_ids = torch.arange(1, 13).view(2, 6) % self.head.weight.shape[0]
        token_ids[:, :3] = token_ids[0, :3]
        mask = torch.ones_like(token_ids)
        output = self._trunk(input_ids=token_ids.to(self.device), use_cache=True)
        layers = getattr(getattr(output, "past_key_values", None), "layers", ())
        if not layers or any(type(layer) is not DynamicLayer for layer in layers):
            return False
        found = self._states_after(3, token_ids, mask)
        expected = output[0][:, 3:].to(found.dtype)
        gap = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-9))
        return gap <= HEAD_TOLERANCE.get(found.dtype, HALF_PRECISION_TOLERANCE)

    @torch.inference_mode()
    def _check_head(self) -> None:
        """Refuse a model whose logits are not what trunk and head give."""
        vocab_size = self.head.weight.shape[0]
        token_ids = torch.arange(1, 9, device=self.device)[None] * 7 % vocab_size
        mask = torch.ones_like(token_ids)
        theirs = self._model(input_ids=token_ids, attention_mask=mask, use_cache=False).logits[0]
        ours = self.head.logits(self._states(token_ids, mask)[0])
        if ours.shape != theirs.shape:
            gap = float("inf")
        else:
            gap = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-9))
        if not gap <= HEAD_TOLERANCE.get(self.head.weight.dtype, HALF_PRECISION_TOLERANCE):
            kind = type(self._model).__name__
            raise ModelError(
                f"{self.name}: {kind} has a head that is more than scale, bias and soft-capping "
                f"(its logits differ from ours by {gap:.1e} of the largest), so its samples "
                "cannot be valued; use another model"
            )


def _find_head(model: Any, name: str) -> Head:
    """The output layer, and what the configuration says is done to its logits."""
    layer = model.get_output_embeddings()
    if layer is None or getattr(layer, "weight", None) is None:
        raise ModelError(f"{name}: {type(model).__name__} has no language-model head; use another")
    config = model.config.get_text_config()
    divisor = getattr(config, "logits_scaling", None)  # Granite
    factor = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None)
    return Head(
        weight=layer.weight.detach(),
        bias=None if getattr(layer, "bias", None) is None else layer.bias.detach(),
        scale=float(factor or 1.0) / float(divisor or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _rope_types(config: dict[Any, Any]) -> Iterator[str]:
    """The kinds of rotary embeddings that a configuration names, wherever it does."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _rope_types(value)
        elif name in ("rope_type", "type"):
            yield str(value)


def _weights_digest(model: Any) -> str:
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


def _tokenizer_digest(tokenizer: Any) -> str:
    """Digest of the tokenizer's rules, its special tokens and its chat template.

    Among its rules a tokenizer keeps how it padded and truncated last, which is no rule of it.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules = json.dumps(rules | {"padding": None, "truncation": None}, sort_keys=True)
    template = str(tokenizer.chat_template)
    special = repr(sorted(tokenizer.special_tokens_map.items()))
    return hashlib.blake2b(f"{rules}\n{template}\n{special}".encode(), digest_size=16).hexdigest()
