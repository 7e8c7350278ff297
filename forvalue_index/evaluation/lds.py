"""The linear datamodelling score: do values predict what training on other data would do?

Park et al., "TRAK" (arXiv 2303.14186), section 3: fine-tune the same model on many random halves of
the training set. If values are right, the sum of the values of a half's samples orders the halves
as the loss of a validation sample after training on them does, the largest sum with the smallest
loss. The score is the mean over validation samples of Spearman's correlation between the two. It
is 1 for values that foresee everything, and 0 for values that foresee nothing.

Fine-tuning is what it costs. So the losses of each half are written as soon as they are there, a
run that was killed goes on with the next half, and any number of scores share the same losses.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from forvalue_index.evaluation.metrics import mean_interval, spearman
from forvalue_index.evaluation.training import Recipe, fine_tune, mean_losses, trainable
from forvalue_index.exceptions import BrokenIndexError, SettingsMismatchError, UsageError
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.progress import OnProgress, Progress, ignore_progress
from forvalue_index.store.durable import write_durably
from forvalue_index.store.permissions import read_document, refuse_strange_file

RUN_FILE = "run.json"
SUBSET_FILES = "subset-*.npz"

# Losses [query] after training on the samples at these places, in an order drawn from the seed.
Retrain = Callable[[NDArray[np.int64], int], NDArray[np.float64]]


class LdsScore(NamedTuple):
    """The score, its bootstrap interval, and what it is the mean of: a correlation a query.

    The interval is that of other queries, from `metrics.mean_interval`; other halves are not in it.
    """

    score: float
    low: float | None
    high: float | None
    correlations: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LdsStudy:
    """What is trained on, what is measured, and how: all that losses depend on but the model."""

    training: Sequence[Encoded]
    queries: Sequence[Encoded]
    recipe: Recipe
    n_subsets: int = 32
    seed: int = 0

    @cached_property
    def members(self) -> NDArray[np.bool_]:
        """Which samples are in each half, [subset, sample]."""
        return random_halves(len(self.training), self.n_subsets, seed=self.seed)


def random_halves(n_samples: int, n_subsets: int, *, seed: int) -> NDArray[np.bool_]:
    """Which samples are in each subset, [subset, sample]: independent halves, rounded down.

    The first subsets stay the same when more are asked for.

    Raises:
        UsageError: there are fewer than 2 samples or 2 subsets.
    """
    if n_samples < 2 or n_subsets < 2:
        raise UsageError(
            f"{n_subsets} halves of {n_samples} samples cannot be compared; use at least 2 of 2"
        )
    members = np.zeros((n_subsets, n_samples), dtype=np.bool_)
    random = np.random.default_rng(seed)
    for subset in members:
        subset[random.permutation(n_samples)[: n_samples // 2]] = True
    return members


def linear_datamodelling_score(
    scores: Float[NDArray[Any], "query sample"],
    members: Bool[NDArray[Any], "subset sample"],
    losses: Float[NDArray[Any], "subset query"],
    *,
    seed: int = 0,
) -> LdsScore:
    """The score of values against measured losses; `seed` is that of the interval.

    Equal sums share a rank. A query whose sums or losses are all equal orders nothing: it counts 0.

    Raises:
        UsageError: a score or loss is not a finite number.
    """
    for name, numbers in (("score", scores), ("loss", losses)):
        if undefined := int((~np.isfinite(numbers)).sum()):
            raise UsageError(f"{undefined} {name}(s) are infinite or undefined; leave them out")
    sums = scores.astype(np.float64) @ members.T  # [query, subset]
    by_query = [spearman(a, -b) for a, b in zip(sums, losses.T.astype(np.float64), strict=True)]
    correlations = np.nan_to_num(np.array(by_query))
    mean = mean_interval(correlations, seed=seed)
    return LdsScore(mean.value, mean.low, mean.high, correlations)


def measured_losses(
    backbone: Backbone,
    study: LdsStudy,
    directory: Path,
    *,
    on_progress: OnProgress = ignore_progress,
) -> NDArray[np.float64]:
    """Losses [subset, query] of the model fine-tuned on each half, kept in `directory`.

    The model is afterwards what it was. Raises as `subset_losses` and `fine_tune` do, and as
    `mean_losses`.
    """

    def retrain(positions: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
        samples = [study.training[position] for position in positions]
        with trainable(backbone, lora_rank=study.recipe.lora_rank) as parameters:
            fine_tune(backbone, parameters, samples, study.recipe, seed=seed)
            return mean_losses(backbone, study.queries)

    run = {
        "weights": backbone.identity().weights_digest,
        "training samples": _digest(study.training),
        "queries": _digest(study.queries),
        "seed": study.seed,
        **asdict(study.recipe),
    }
    return subset_losses(directory, study.members, retrain, run=run, on_progress=on_progress)


def subset_losses(
    directory: Path,
    members: Bool[NDArray[Any], "subset sample"],
    retrain: Retrain,
    *,
    run: Mapping[str, Any],
    on_progress: OnProgress = ignore_progress,
) -> NDArray[np.float64]:
    """Losses [subset, query] after training on each subset; those in `directory` are read.

    `run` says, in what JSON can hold, all that losses depend on besides the members. Subset i is
    trained in the order of seed i, so more subsets may be asked for later.

    Raises:
        SettingsMismatchError: the directory holds the losses of another run.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _claim(directory, run)
    for left in directory.glob(f"{SUBSET_FILES}.*partial"):
        left.unlink(missing_ok=True)
    losses = []
    for number, subset in enumerate(members):
        path = directory / f"subset-{number:05}.npz"
        if not path.exists():
            write_durably(path, _packed(subset, retrain(np.flatnonzero(subset), number)))
        losses.append(_stored_losses(path, subset))
        on_progress(Progress("retraining", number + 1, len(members)))
    return np.stack(losses)


def _claim(directory: Path, run: Mapping[str, Any]) -> None:
    """Write what a run is, or compare it with the one whose losses are here."""
    path = directory / RUN_FILE
    wanted = json.loads(json.dumps(run))
    if not any(directory.glob(SUBSET_FILES)):
        write_durably(path, json.dumps(wanted, indent=2).encode())
        return
    try:
        stored = dict(read_document(path))
    except (OSError, ValueError, TypeError) as error:
        raise BrokenIndexError(
            f"{path} is missing or damaged, so nothing says what its losses are; use another "
            "directory, or delete this one and train again"
        ) from error
    for name in {**stored, **wanted}:
        if stored.get(name) != wanted.get(name):
            raise SettingsMismatchError(
                f"{directory} holds losses of a run with {name} {stored.get(name)!r}, and this one "
                f"has {wanted.get(name)!r}; repeat the run as it was, or use another directory"
            )


def _packed(subset: NDArray[np.bool_], losses: NDArray[np.float64]) -> bytes:
    file = io.BytesIO()
    np.savez(file, members=subset, losses=losses)
    return file.getvalue()


def _stored_losses(path: Path, subset: NDArray[np.bool_]) -> NDArray[np.float64]:
    try:
        refuse_strange_file(path)
        with np.load(path, allow_pickle=False) as stored:
            members = stored["members"]
            losses: NDArray[np.float64] = stored["losses"].astype(np.float64, casting="safe")
    except Exception as error:  # NumPy lets through whatever archives and their codecs raise
        raise BrokenIndexError(
            f"{path} is damaged; delete it, and its half is trained again"
        ) from error
    if not np.array_equal(members, subset):
        raise SettingsMismatchError(
            f"{path} holds losses after training on other samples; repeat the run as it was, "
            "or use another directory"
        )
    return losses


def _digest(samples: Sequence[Encoded]) -> str:
    """Of the tokens and labels of samples, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for sample in samples:
        digest.update(f"{len(sample)};".encode())
        digest.update(sample.token_ids.astype("<i8").tobytes())
        digest.update(sample.label_mask.tobytes())
    return digest.hexdigest()
