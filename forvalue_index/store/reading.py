"""What reads rows as an index does, without the weights of its model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from forvalue_index.model.huggingface.digests import tokenizer_digest
from forvalue_index.model.huggingface.tokenizers import ModelTokenizer
from forvalue_index.model.huggingface.vision import processor_digest
from forvalue_index.model.label_tokens import Prepared, prepare
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.settings import NO_IMAGES, Settings
from forvalue_index.sources.sample import BadRow, Sample, bad_row
from forvalue_index.store.agreement import refuse_other_model, refuse_trust
from forvalue_index.store.catalog.sample_rows import unstorable
from forvalue_index.store.create import resolve_reading, with_adapter_template
from forvalue_index.store.manifest import read_manifest
from forvalue_index.store.media import Media
from forvalue_index.store.model import make_encoder


@dataclass(frozen=True, eq=False)
class RowReading:
    """Reads samples for an index that is there, or for one that could be made.

    Its model knows `vocab_size` tokens, and reads parts of images in place of `replaced_tokens`;
    `reads_images` says whether samples may have some.
    """

    encoder: PromptEncoder
    media: Media
    vocab_size: int
    replaced_tokens: set[int]
    reads_images: bool

    @classmethod
    def for_settings(cls, wanted: Settings) -> RowReading:
        """As an index with these settings in the working directory would read.

        Raises UsageError and ModelError as making one does, but for what weights tell.
        """
        wanted = with_adapter_template(wanted)
        model = ModelTokenizer.load(wanted, images=wanted.media != NO_IMAGES)
        settings = resolve_reading(wanted, model)
        return cls._of(model, settings, Path("index"), model.vocab_size)

    @classmethod
    def of_index(cls, path: Path, *, trust_remote_code: bool) -> RowReading:
        """As the index at `path` reads.

        Raises:
            BrokenIndexError: there is none.
            UsageError: its model runs code of its own, and is not trusted to.
            SettingsMismatchError: its model has another tokenizer or processor by now.
        """
        manifest = read_manifest(path)
        refuse_trust(path, manifest.settings, trust_remote_code=trust_remote_code)
        model = ModelTokenizer.load(manifest.settings, images=manifest.model.reads_images)
        processor = None if model.processor is None else processor_digest(model.processor)
        given = replace(
            manifest.model,
            tokenizer_digest=tokenizer_digest(model.tokenizer),
            processor_digest=processor,
        )
        refuse_other_model(path, manifest.model, given)
        return cls._of(model, manifest.settings, path, manifest.model.vocab_size)

    @classmethod
    def _of(
        cls, model: ModelTokenizer, settings: Settings, path: Path, vocab_size: int
    ) -> RowReading:
        media = Media(path, settings)
        return cls(
            make_encoder(model, settings, media.open),
            media,
            vocab_size,
            model.replaced_tokens,
            reads_images=model.processor is not None,
        )

    def prepare(self, sample: Sample) -> Prepared | BadRow:
        """Tokenise a sample, or say why it cannot be added. Its key is not looked up."""
        if reason := unstorable(sample) or self.media.refusal(sample):
            return bad_row(sample, reason)
        return prepare(
            self.encoder,
            sample,
            vocab_size=self.vocab_size,
            replaced_tokens=self.replaced_tokens,
        )
