"""From a sample to token ids and a label mask. The only place that decides what a label is.

* `--labels response`: the tokens that the model is trained to say. In a prompt/response pair the
  response and the end token; in a conversation every assistant turn and its end token, unless the
  data say that a turn is not trained (turn_spans has the rule); in a plain text every token but
  the first.
* `--labels last`: the same, of a conversation its last assistant turn alone.
* `--labels all`: every token but the first, as in the authors' text script.

A row that is tokenised already says which tokens are labels. With `last` they are the last run of
them, with `all` every token but the first.

Tokens that stand for images are context, whatever stands around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.chat_templates import USER, ChatTemplate
from forvalue_index.model.contracts import Expanded, Tokenizer, Vision
from forvalue_index.model.encoded import Encoded, Inputs
from forvalue_index.model.labelled_chat import labelled_chat
from forvalue_index.model.long_texts import shortened
from forvalue_index.model.tokenization import Mask, Span, covered, refuse_straddling, tokenize
from forvalue_index.sources.sample import ASSISTANT, IMAGE_MARK, Image, Sample
from forvalue_index.sources.shapes.tokens import tokens_of


class _Rendered(NamedTuple):
    """A sample as text, and the characters that are labels; None where all tokens are."""

    text: str
    labels: Sequence[Span] | None
    add_special_tokens: bool
    ends: bool = False
    unrendered: tuple[str, ...] = ()


class _Tokens(NamedTuple):
    """Token ids [token], which of them are labels, and which stand for each image."""

    ids: NDArray[np.int64]
    labels: Mask
    images: Sequence[Span]
    is_cut: bool = False


class PromptEncoder:
    """Tokenises samples the same way for training and validation data.

    Samples may have images where `vision` reads them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        template: str,
        labels: str,
        max_length: int,
        max_label_tokens: int | None = None,
        vision: Vision | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._vision = vision
        end = tokenizer.special_tokens_map.get("eos_token")
        self._end_token = None if end is None else int(tokenizer.convert_tokens_to_ids(str(end)))
        image_token = None if vision is None else vision.image_token
        chat = ChatTemplate(tokenizer, image_token=image_token) if tokenizer.chat_template else None
        self._chat = chat if template == "chat" else None
        # In texts without a template, an image stands as it does in those with one.
        self._image_mark = chat.image_mark() if chat else image_token or ""
        # Why samples with images of some form cannot be read, by the form, once that was tried.
        self._unreadable: dict[tuple[bool, bool], str | None] = {}
        self._all_labels, self._last_turn = labels == "all", labels == "last"
        self._max_length = max_length
        self._max_label_tokens = max_label_tokens

    def encode(self, sample: Sample) -> Encoded:
        """Token ids and label mask, cut to `max_length` tokens from the left end.

        Of the labels the first `max_label_tokens` are kept.

        Raises BadSampleError where no label is left, an image is cut or cannot be read, or the
        chat template refuses.
        """
        if sample.is_tokens:
            ids, labels = tokens_of(sample.messages[0], last=self._last_turn)
            return self._encoded(_Tokens(ids, labels, ()))
        rendered = self._rendered(sample)
        expanded = self._expanded(rendered.text, sample.images)
        tokens = self._tokens(rendered, expanded)
        self._refuse_cut(tokens)
        read_inputs = self._inputs_of(sample, rendered, tokens.ids)
        if read_inputs is not None:
            self._refuse_misread(sample, read_inputs)
        return self._encoded(tokens, read_inputs, expanded.n_patches, rendered.unrendered)

    def _encoded(
        self,
        tokens: _Tokens,
        read_inputs: Callable[[], Inputs] | None = None,
        n_patches: int = 0,
        unrendered: tuple[str, ...] = (),
    ) -> Encoded:
        """What the model reads of some tokens, once they are cut and their labels chosen."""
        mask = tokens.labels
        if self._all_labels:
            mask[:] = True
        for start, end in tokens.images:
            mask[start:end] = False
        if self._vision is not None:
            mask &= ~np.isin(tokens.ids, self._vision.context_tokens)
        mask[:1] = False
        if self._max_label_tokens is not None:
            mask &= mask.cumsum() <= self._max_label_tokens
        cut = slice(self._max_length)
        encoded = Encoded(
            tokens.ids[cut],
            mask[cut],
            len(tokens.ids) > self._max_length,
            tuple(tokens.images),
            read_inputs,
            n_patches,
            unrendered,
        )
        if encoded.n_label_tokens == 0:
            raise BadSampleError(_no_label(mask, self._max_length, is_cut=tokens.is_cut))
        return encoded

    def open_images(self, sample: Sample) -> None:
        """Raise BadSampleError where an image of a sample cannot be opened."""
        if self._vision is not None:
            for image in sample.images:
                self._vision.open(image)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones as they are written."""
        text: str = self._tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
        return text

    def _rendered(self, sample: Sample) -> _Rendered:
        if sample.is_text:
            text = sample.messages[0].text(lambda _: self._image_mark)
            return _Rendered(text, None, add_special_tokens=True)
        if self._chat is None:
            return self._plain_pair(sample)
        if self._last_turn and not sample.messages[-1].is_trained:
            raise BadSampleError(
                "its last turn is not to be trained, and --labels last scores that alone; leave "
                "the sample out"
            )
        sample = shortened(sample, self._tokenizer, self._max_length)
        chat = labelled_chat(self._chat, sample, labels=not self._all_labels)
        spans = chat.turns[-1:] if self._last_turn else chat.turns
        return _Rendered(chat.text, spans, add_special_tokens=False, unrendered=chat.unrendered)

    def _plain_pair(self, sample: Sample) -> _Rendered:
        """Prompt, response and end token. A token that straddles the border is response."""
        if [m.role for m in sample.messages] != [USER, ASSISTANT]:
            raise BadSampleError(
                f"a conversation of {len(sample.messages)} turns needs a chat template, and this "
                "index encodes plain text; use a model whose tokenizer has a chat template and "
                "--template chat, or prompt/response columns"
            )
        unread = [name for m in sample.messages for name in sorted(m.extra)]
        if sample.tools or "tool_calls" in unread or not sample.messages[1].is_trained:
            raise BadSampleError(
                f"it has tools, tool_calls or train ({', '.join(unread) or 'tools'}), which plain "
                "text has no place for; use a model whose tokenizer has a chat template and "
                "--template chat, or leave them out on purpose with --ignore"
            )
        prompt, response = (m.text(lambda _: self._image_mark) for m in sample.messages)
        spans = [(len(prompt), len(prompt) + len(response))]
        return _Rendered(
            prompt + response, spans, add_special_tokens=True, ends=True, unrendered=tuple(unread)
        )

    def _expanded(self, text: str, images: Sequence[Image]) -> Expanded:
        if self._vision is None:
            if images:
                raise BadSampleError(
                    f"it has {len(images)} image(s), and the model of this index reads text alone; "
                    "use an index of a vision-language model, or give the column another name "
                    "where it is no image"
                )
            return Expanded(text, (), 0)
        if not images and IMAGE_MARK in text:
            raise BadSampleError(
                f"its text holds {IMAGE_MARK}, and no image came with it; name the column that has "
                "it with --columns images=COLUMN, or take the mark out"
            )
        return self._vision.expand(text, [(image.width, image.height) for image in images])

    def _tokens(self, rendered: _Rendered, expanded: Expanded) -> _Tokens:
        """The tokens of an expanded text, with the end token where it ends with one."""
        ids, offsets, is_cut = tokenize(
            self._tokenizer,
            expanded.text,
            add_special_tokens=rendered.add_special_tokens,
            most=None if expanded.spans else self._max_length,
        )
        images = [_first_to_last(covered(offsets, [after])) for _, after in expanded.spans]
        if rendered.labels is None:
            return _Tokens(ids, np.ones(len(ids), dtype=bool), images, is_cut)
        spans = [_moved(span, expanded) for span in rendered.labels]
        if not rendered.ends:
            refuse_straddling(expanded.text, offsets, spans)
        labels = covered(offsets, spans)
        if rendered.ends and not is_cut:
            end_token = self._end_token
            if end_token is not None and (len(ids) == 0 or ids[-1] != end_token):
                ids, labels = np.append(ids, end_token), np.append(labels, True)
            labels[-1:] = True
        return _Tokens(ids, labels, images, is_cut)

    def _inputs_of(
        self, sample: Sample, rendered: _Rendered, expected: NDArray[np.int64]
    ) -> Callable[[], Inputs] | None:
        """What reads the images of a sample, if it has any, and finds the tokens expected."""
        vision = self._vision
        if vision is None or not sample.images:
            return None

        def read() -> Inputs:
            special = rendered.add_special_tokens
            ids, inputs = vision.inputs(rendered.text, sample.images, add_special_tokens=special)
            # An end token is added here where it belongs.
            if ids != expected[: len(ids)].tolist() or len(ids) < len(expected) - rendered.ends:
                raise BadSampleError(
                    f"the processor of the model makes other tokens of this sample ({len(ids):,}) "
                    f"than its tokenizer and its image sizes say ({len(expected):,}), so nobody "
                    "knows its labels; use messages, or prompt and response, and a chat template"
                )
            return inputs

        return read

    def _refuse_misread(self, sample: Sample, read_inputs: Callable[[], Inputs]) -> None:
        """Raise BadSampleError where the processor makes other tokens of samples of this form.

        The first one of each form tells: texts, and conversations with or without a template.
        """
        form = (sample.is_text, self._chat is not None)
        if form not in self._unreadable:
            self._unreadable[form] = None
            try:
                read_inputs()
            except BadSampleError as error:
                if "makes other tokens" not in str(error):
                    del self._unreadable[form]  # of this image alone
                    raise
                self._unreadable[form] = str(error)
        if (reason := self._unreadable[form]) is not None:
            raise BadSampleError(reason)

    def _refuse_cut(self, tokens: _Tokens) -> None:
        """Raise BadSampleError where an image does not lie within the maximum length."""
        last = max((end for _, end in tokens.images), default=0)
        if last > self._max_length:
            raise BadSampleError(
                f"its images end at token {last:,} of {len(tokens.ids):,}, and --max-length is "
                f"{self._max_length:,}; make them smaller, or build an index with a larger one"
            )


def _first_to_last(mask: Mask) -> Span:
    """The positions from the first to the last one that is set."""
    positions = np.flatnonzero(mask)
    return int(positions[0]), int(positions[-1]) + 1


def _moved(span: Span, expanded: Expanded) -> Span:
    """Where a span of a text lies once the text is expanded."""
    shifts = [(before, after - before) for (_, before), (_, after) in expanded.spans]
    start, end = (at + ([0] + [by for ended, by in shifts if ended <= at])[-1] for at in span)
    return start, end


def _no_label(label_mask: Mask, max_length: int, *, is_cut: bool) -> str:
    if not label_mask.any() and not is_cut:
        return f"has {len(label_mask)} token(s) and none to predict, as the first one never is"
    found = np.flatnonzero(label_mask)
    prompt_tokens = f"{found[0]:,}" if len(found) else f"more than {max_length:,}"
    return (
        f"its prompt alone has {prompt_tokens} tokens, so no response token is within the "
        f"{max_length:,} of --max-length; shorten the prompt or build an index with a larger one"
    )
