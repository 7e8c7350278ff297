"""From a sample to token ids and a label mask. The only place that decides what a label is.

* `--labels response`: the tokens that the model is trained to say. In a prompt/response pair the
  response and the end token; in a conversation every assistant turn and its end token; in a plain
  text every token but the first.
* `--labels all`: every token but the first, as in the authors' text script.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.contracts import Tokenizer
from forvalue_index.exceptions import BadSampleError
from forvalue_index.records import Encoded, Message, Sample

Span = tuple[int, int]

# Some chat templates print the date of today; a row must not depend on it.
TEMPLATE_DATE = datetime(2024, 7, 26, tzinfo=UTC)
DATE_DIRECTIVES = ("-d", "-m", "-H", "-I", "-M", *"aAbBcdFHIjmMpSTUwWxXyYZ")
SENTINEL = "\N{OBJECT REPLACEMENT CHARACTER}content"
GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class PromptEncoder:
    """Tokenises samples the same way for training and validation data."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        template: str,
        labels: str,
        max_length: int,
        max_label_tokens: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._chat = template == "chat"
        self._all_labels = labels == "all"
        self._max_length = max_length
        self._max_label_tokens = max_label_tokens
        self._fixed_date = _fixed_date(tokenizer.chat_template)
        self._marks_turns = self._chat and bool(
            GENERATION_BLOCK.search(str(tokenizer.chat_template))
        )

    def encode(self, sample: Sample) -> Encoded:
        """Token ids and label mask, cut to `max_length` tokens from the left end.

        Of the labels the first `max_label_tokens` are kept.

        Raises BadSampleError where no label is left, or where the chat template refuses.
        """
        token_ids, label_mask = self._tokens(sample)
        if self._all_labels:
            label_mask[:] = True
        label_mask[:1] = False
        if self._max_label_tokens is not None:
            label_mask &= label_mask.cumsum() <= self._max_label_tokens
        cut = slice(self._max_length)
        encoded = Encoded(token_ids[cut], label_mask[cut], len(token_ids) > self._max_length)
        if encoded.n_label_tokens == 0:
            raise BadSampleError(_no_label(label_mask, self._max_length))
        return encoded

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones as they are written."""
        text: str = self._tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
        return text

    def _tokens(self, sample: Sample) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        if sample.is_text:
            ids, _ = self._tokenize(sample.response, add_special_tokens=True)
            return ids, np.ones(len(ids), dtype=bool)
        if self._chat:
            return self._conversation(sample.messages)
        return self._plain_pair(sample)

    def _plain_pair(self, sample: Sample) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Prompt, response and end token. A token that straddles the border is response."""
        if [m.role for m in sample.messages] != ["user", "assistant"]:
            raise BadSampleError(
                f"a conversation of {len(sample.messages)} turns needs a chat template, and this "
                "index encodes plain text; use a model whose tokenizer has a chat template and "
                "--template chat, or prompt/response columns"
            )
        prompt, response = (m.content for m in sample.messages)
        ids, offsets = self._tokenize(prompt + response, add_special_tokens=True)
        end_token = self._tokenizer.eos_token_id
        mask = offsets[:, 1] > len(prompt)
        if end_token is not None and (len(ids) == 0 or ids[-1] != end_token):
            return np.append(ids, end_token), np.append(mask, True)
        mask[-1:] = True
        return ids, mask

    def _conversation(
        self, messages: Sequence[Message]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        conversation = [m.as_dict() for m in messages]
        if self._marks_turns:
            marked = self._template(
                conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            mask = np.array(marked["assistant_masks"], dtype=bool)
            return np.array(marked["input_ids"], dtype=np.int64), mask
        text = self._template(conversation)
        ids, offsets = self._tokenize(text, add_special_tokens=False)
        mask = np.zeros(len(ids), dtype=bool)
        if self._all_labels:
            return ids, mask
        for start, end in self._assistant_spans(conversation, text):
            mask |= (offsets[:, 1] > start) & (offsets[:, 0] < end)
        return ids, mask

    def _assistant_spans(self, conversation: list[dict[str, Any]], text: str) -> list[Span]:
        """Where the rendered text holds what the assistant says, end token included.

        A turn starts where the conversation before it, with the generation prompt, ends. It ends
        where the conversation up to it ends.
        """
        spans = []
        for turn, message in enumerate(conversation):
            if message["role"] != "assistant":
                continue
            before = self._before(conversation, turn)
            if not text.startswith(before):
                raise BadSampleError(
                    f"the chat template renders what precedes turn {turn + 1} otherwise once the "
                    "turn is there, so the assistant's tokens cannot be told apart; use "
                    "--template plain with prompt/response columns, or --labels all"
                )
            said = self._rendered_turn(conversation[: turn + 1], text, len(before))
            spans.append((len(before), len(before) + len(self._without_trailing_space(said))))
        return spans

    def _before(self, conversation: list[dict[str, Any]], turn: int) -> str:
        """What is rendered before the assistant says `turn`, its header included."""
        if turn:
            before: str = self._template(conversation[:turn], add_generation_prompt=True)
            return before
        # Templates cannot render no turn at all, so the header is what precedes a known content.
        marked: str = self._template([{**conversation[0], "content": SENTINEL}])
        return marked.partition(SENTINEL)[0]

    def _rendered_turn(self, upto: list[dict[str, Any]], text: str, start: int) -> str:
        """The rendered last turn of `upto`, which stands in `text` at `start`.

        Templates that render the last turn of a conversation in a way of their own (Qwen3 adds
        an empty thought to it) are met by the content and what follows it.
        """
        rendered: str = self._template(upto)
        if text.startswith(rendered):
            return rendered[start:]
        content = upto[-1]["content"].strip()
        tail = rendered[rendered.rfind(content) + len(content) :]
        end = text.find(content + tail, start)
        if not content or end < 0:
            raise BadSampleError(
                f"the assistant's turn {len(upto)} is not found in what the chat template renders; "
                "use --template plain with prompt/response columns, or --labels all"
            )
        return text[start : end + len(content + tail)]

    def _without_trailing_space(self, said: str) -> str:
        """Templates put a line break after the end token that the model never has to say."""
        stripped: str = said.rstrip()
        ends = tuple(t for t in self._tokenizer.all_special_tokens if t)
        return stripped if stripped.endswith(ends) else said

    def _template(self, conversation: list[dict[str, Any]], **options: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                conversation,
                **({"tokenize": False} | self._fixed_date | options),
            )
        except Exception as error:  # A template is a program, and fails as programs do.
            roles = ", ".join(m["role"] for m in conversation)
            raise BadSampleError(f"the chat template refuses the roles {roles}: {error}") from error

    def _tokenize(
        self, text: str, *, add_special_tokens: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids [token] and the characters they stand for [token, (start, end)]."""
        tokens = self._tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False
        )
        offsets = np.array(tokens["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return np.array(tokens["input_ids"], dtype=np.int64), offsets


def _fixed_date(chat_template: Any) -> dict[str, str]:
    """The template, where it asks for the date, with a `strftime_now` that says TEMPLATE_DATE.

    The function is written in Jinja, as transformers hands no function of ours to a template.
    The empty expression after it keeps a line break with which the template may start.
    """
    if not isinstance(chat_template, str) or "strftime_now" not in chat_template:
        return {}
    replaced = "".join(
        f"|replace('%{d}', '{TEMPLATE_DATE.strftime(f'%{d}')}')" for d in DATE_DIRECTIVES
    )
    macro = (
        f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}{{{{ '' }}}}"
    )
    return {"chat_template": macro + chat_template}


def _no_label(label_mask: NDArray[np.bool_], max_length: int) -> str:
    if not label_mask.any():
        return f"has {len(label_mask)} token(s) and none to predict, as the first one never is"
    prompt_tokens = int(np.flatnonzero(label_mask)[0])
    return (
        f"its prompt alone has {prompt_tokens:,} tokens, so no response token is within the "
        f"{max_length:,} of --max-length; shorten the prompt or build an index with a larger one"
    )
