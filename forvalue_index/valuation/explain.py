"""Which tokens carry a value: the terms of the streaming form, one for each label token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from forvalue_index.gradients.exact_values import (
    ValidationGradient,
    exact_terms,
    gradient_norms,
    mean_gradient,
    tokens_in,
    validation_gradient,
)
from forvalue_index.gradients.geometry import Geometry
from forvalue_index.model.label_tokens import ModelReader, Prepared
from forvalue_index.model.token_texts import pieces
from forvalue_index.sources.data import Data
from forvalue_index.store.model import IndexModel
from forvalue_index.store.records import StoredSample
from forvalue_index.valuation.rerank import prepare_stored
from forvalue_index.valuation.results import ExplainedSample, Explanation, TokenTerm
from forvalue_index.valuation.scoring import Scoring
from forvalue_index.valuation.validation import ValidationSet, read_validation


class _Term(NamedTuple):
    """A label token that counts: its position, what it adds, and its loss in nats."""

    position: int
    value: float
    loss: float


def explain(
    model: IndexModel,
    name: str,
    data: Data,
    *,
    scoring: Scoring,
    validation_tokens: bool = False,
) -> Explanation:
    """Split the exact score of a stored sample over its tokens, and over those of a validation set.

    Raises:
        CatalogError: there is no sample of this name.
        BadSampleError: the sample's text is lost, the model gives no usable numbers for a sample,
            or the validation set has no gradient.
        SourceError, SettingsMismatchError: as `query`.
    """
    with model.storage.catalog.snapshot() as snapshot:
        stored = snapshot.sample(name)
    validation, _ = read_validation(model, data)
    geometry = model.geometry(scoring.geometry)
    return explanation_of(
        model.reader,
        geometry,
        stored,
        validation,
        normalize=scoring.normalize,
        validation_tokens=validation_tokens,
    )


def explanation_of(
    reader: ModelReader,
    geometry: Geometry,
    stored: StoredSample,
    validation: ValidationSet,
    *,
    normalize: bool = False,
    validation_tokens: bool = False,
) -> Explanation:
    """As `explain`, of a sample and a validation set that were read already."""
    training = prepare_stored(reader, stored)
    target = validation_gradient(reader, geometry, validation.prepared, normalize=normalize)
    norm = float(gradient_norms(reader, geometry, [training])[0]) if normalize else 1.0
    terms = _terms(reader, target, training, factor=1 / norm if norm else 0.0)
    others = _other_side(reader, target, training, validation) if validation_tokens else ()
    return Explanation(
        id=stored.id,
        scoring=Scoring(geometry.name, normalize),
        training=_explained(reader, training, terms),
        validation_samples=len(validation.prepared),
        validation_label_tokens=validation.label_tokens,
        validation=tuple(others),
        warnings=validation.warnings,
    )


def _other_side(
    reader: ModelReader,
    target: ValidationGradient,
    training: Prepared,
    validation: ValidationSet,
) -> Iterator[ExplainedSample]:
    """The same score, by what each token of each validation sample adds to it."""
    other = mean_gradient(reader, target.geometry, [training], normalize=target.normalize)
    for prepared, weight in zip(validation.prepared, target.weights.tolist(), strict=True):
        yield _explained(reader, prepared, _terms(reader, other, prepared, factor=weight))


def _terms(
    reader: ModelReader, target: ValidationGradient, prepared: Prepared, *, factor: float
) -> list[_Term]:
    (batch,) = reader.batches([prepared])
    terms: list[_Term] = []
    for tokens in tokens_in(reader, target.geometry, batch, [prepared]):
        values = exact_terms(target, tokens) * factor
        columns = (tokens.position.tolist(), values.tolist(), tokens.loss.tolist())
        terms += map(_Term, *columns)
    return terms


def _explained(reader: ModelReader, prepared: Prepared, terms: Sequence[_Term]) -> ExplainedSample:
    by_position = {term.position: term for term in terms}
    token_ids = prepared.encoded.token_ids.tolist()
    spans = enumerate(prepared.encoded.image_tokens)
    images = {position: n for n, (start, end) in spans for position in range(start, end)}
    tokens: list[TokenTerm] = []
    for position, (token, text) in enumerate(
        zip(token_ids, pieces(reader.decode, token_ids), strict=True)
    ):
        term = by_position.get(position)
        value, loss = (term.value, term.loss) if term else (0.0, None)
        image = images.get(position)
        if image is None:
            tokens.append(TokenTerm(position, token, text, value, loss))
        elif images.get(position - 1) != image:
            shown = f"[{prepared.sample.images[image]}]"
            tokens.append(TokenTerm(position, token, shown, image=image))
    return ExplainedSample(prepared.sample, math.fsum(t.value for t in terms), tuple(tokens))
