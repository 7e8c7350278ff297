"""How each library is asked to keep what it keeps, for scripts/bench/peers.py.

One function a peer, with the library's public API and what its documentation advises for language
models. Libraries are imported in the functions, as none of them need be there.

The loss is the sum of cross-entropy over label tokens. Where the user writes it, the head is
applied to label positions alone, as in the bare forward pass; bergson applies it to all positions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

# On one core, with samples of 70 tokens: dattri was tried with 4, 8 and 16 samples a batch, LogIX
# with 2, 4 and 8, bergson with 512, 1,024 and 2,048 tokens (512 and 1,024 were alike).
BATCH_SAMPLES = 8
LOGIX_SAMPLES = 4
BATCH_TOKENS = 1024
IGNORED = -100
QUERIES = 4


class Sample(NamedTuple):
    """Tokens and their labels, as `transformers` has them: the token, or -100 where it is none."""

    input_ids: list[int]
    labels: list[int]


class Prepared(NamedTuple):
    """A peer before it is timed: `store` does the work, `files` is a glob of what it kept."""

    store: Callable[[], object]
    files: str
    settings: str
    note: str = ""


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """A batch as `transformers` models take it, padded on the right."""
    length = max(len(sample.input_ids) for sample in samples)
    gaps = [length - len(sample.input_ids) for sample in samples]
    rows = list(zip(samples, gaps, strict=True))
    return {
        "input_ids": torch.tensor([s.input_ids + [0] * gap for s, gap in rows]),
        "attention_mask": torch.tensor([[1] * len(s.input_ids) + [0] * gap for s, gap in rows]),
        "labels": torch.tensor([s.labels + [IGNORED] * gap for s, gap in rows]),
    }


def label_loss(model: Any, batch: dict[str, Any]) -> Any:
    """Summed cross-entropy of label tokens, with the head at the positions that predict them.

    These are gathered to [sample, label, hidden], so that a library still sees whose each is.
    """
    from torch.nn.functional import cross_entropy

    hidden = model.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    targets = batch["labels"][:, 1:]
    is_label = targets != IGNORED
    # Label positions first, in order; what is behind them in shorter samples is ignored.
    columns = torch.argsort(~is_label, dim=1, stable=True)[:, : int(is_label.sum(1).max())]
    rows = torch.arange(len(columns)).unsqueeze(1)
    logits = model.lm_head(hidden[rows, columns])
    return cross_entropy(logits.flatten(0, 1), targets[rows, columns].flatten(), reduction="sum")


def trunk_layers(model: Any) -> list[str]:
    """The names of the linear layers below the head."""
    linear = torch.nn.Linear
    return [f"model.{name}" for name, m in model.model.named_modules() if isinstance(m, linear)]


def bergson(model: Any, samples: Sequence[Sample], out: Path) -> Prepared:
    """`bergson build`, less reading text; projected to 16 x 16 a layer, as its README does."""
    from bergson import GradientProcessor, IndexConfig, collect_gradients
    from bergson.data import allocate_batches
    from datasets import Dataset

    # As bergson's own set-up has it: weights get no gradient, and the embedding starts the graph.
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    token_budget = max(BATCH_TOKENS, len(samples[0].input_ids))
    processor = GradientProcessor(projection_dim=16)

    def collect(samples: Sequence[Sample], name: str) -> None:
        lengths = [len(sample.input_ids) for sample in samples]
        columns = {name: [getattr(s, name) for s in samples] for name in Sample._fields}
        data = Dataset.from_dict(columns | {"length": lengths})
        config = IndexConfig(str(out / name), precision="fp32", projection_dim=16)
        config.partial_run_path.mkdir()
        batches = allocate_batches(lengths, token_budget)
        collect_gradients(model, data, processor, config, batches=batches)

    # Makes the projections, which are then kept.
    collect(samples[-1:], "warm")
    return Prepared(
        lambda: collect(samples, "index"),
        "index.part/gradients.bin",
        f"build: all linear layers of the trunk, 16 x 16 floats each, {token_budget} tokens a "
        f"batch",
        "applies the head to all positions",
    )


def dattri(model: Any, samples: Sequence[Sample], out: Path) -> Prepared:
    """LoGra on the trunk, 32 x 32 floats a layer as in dattri's GPT-2 example."""
    return _logra(model, samples, out, trunk_layers(model))


def dattri_head(model: Any, samples: Sequence[Sample], out: Path) -> Prepared:
    """LoGra on the head alone, 64 x 64 floats, LoGra's default."""
    return _logra(model, samples, out, ["lm_head"], proj_dim=4096)


def _logra(
    model: Any, samples: Sequence[Sample], out: Path, layers: list[str], proj_dim: int = 1024
) -> Prepared:
    """LoGra of dattri without a Hessian, which would be 4 MB to 64 MB a layer."""
    from dattri.algorithm.logra import LoGraAttributor
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader

    # Without this, weights that are not attributed would cost a gradient each; and a head that
    # shares those of the embedding, a pass back through the trunk.
    model.requires_grad_(False)
    for layer in layers:
        module = model.get_submodule(layer)
        module.weight = torch.nn.Parameter(module.weight.detach().clone())

    def mean_over_samples(model: Any, batch: dict[str, Any], device: str) -> Any:
        # LoGra multiplies gradients by the number of samples in the batch.
        return label_loss(model, batch) / len(batch["input_ids"])

    task = AttributionTask(mean_over_samples, model, model.state_dict())
    attributor = LoGraAttributor(
        task, layers, hessian="Identity", proj_dim=proj_dim, cache_dir=str(out)
    )

    def loader(samples: Sequence[Sample]) -> DataLoader:
        return DataLoader(samples, batch_size=BATCH_SAMPLES, collate_fn=collate)

    def store() -> None:
        batches = loader(samples)
        attributor.cache(batches)
        for i in range(len(batches)):
            torch.save(attributor.offload_manager.retrieve_gradients(i), out / f"{i}.pt")

    # Makes the projections, which are then kept.
    attributor.cache(loader(samples[:BATCH_SAMPLES]))
    side = round(proj_dim**0.5)
    which = "the head" if layers == ["lm_head"] else "all linear layers of the trunk"
    return Prepared(
        store,
        "*.pt",
        f"LoGra, Identity: {which}, {side} x {side} floats each, {BATCH_SAMPLES} samples a batch",
        "kept in memory and saved at the end, as its disk offload needs a GPU",
    )


def logix(model: Any, samples: Sequence[Sample], out: Path) -> Prepared:
    """LogIX with LoGra's random projection, rank 64, the default; no Hessian."""
    import logix as library

    config = out / "logix.yaml"
    config.write_text(json.dumps({"root_dir": str(out)}))
    run = library.LogIX("log", config=str(config))
    run.watch(model, name_filter=["self_attn", "mlp"])
    run.add_lora()
    run.setup({"grad": ["log"]})
    run.save(True)
    order = range(0, len(samples), LOGIX_SAMPLES)

    def store() -> None:
        for start in order:
            batch = collate(samples[start : start + LOGIX_SAMPLES])
            names = [str(start + i) for i in range(len(batch["input_ids"]))]
            with run(data_id=names, mask=batch["attention_mask"]):
                model.zero_grad()
                label_loss(model, batch).backward()
        run.finalize()

    return Prepared(
        store,
        "log/*.mmap",
        f"LoRA random, rank 64: all linear layers of the trunk, 64 x 64 floats each, "
        f"{LOGIX_SAMPLES} samples a batch",
    )


def kronfluence(model: Any, samples: Sequence[Sample], out: Path) -> Prepared:
    """Scores against the sum of a few queries, no Hessian; nothing else is kept of a sample."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from kronfluence.utils.dataset import DataLoaderKwargs

    layers = trunk_layers(model)

    class Labels(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Any:
            return label_loss(model, batch)

        def compute_measurement(self, batch: Any, model: Any) -> Any:
            return label_loss(model, batch)

        def get_influence_tracked_modules(self) -> list[str]:
            return layers

        def get_attention_mask(self, batch: Any) -> Any:
            return batch["attention_mask"]

    task = Labels()
    analyzer = Analyzer(
        "scores", prepare_model(model, task), task, cpu=True, output_dir=str(out), disable_tqdm=True
    )
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=collate))
    analyzer.fit_all_factors(
        "none", list(samples), factor_args=FactorArguments(strategy="identity")
    )
    queries = min(QUERIES, len(samples))

    def store() -> None:
        analyzer.compute_pairwise_scores(
            scores_name="pairwise",
            factors_name="none",
            query_dataset=list(samples[-queries:]),
            train_dataset=list(samples),
            per_device_query_batch_size=queries,
            per_device_train_batch_size=BATCH_SAMPLES,
            score_args=ScoreArguments(aggregate_query_gradients=True),
        )

    return Prepared(
        store,
        "scores/scores_pairwise/*.safetensors",
        f"pairwise scores, identity: all linear layers of the trunk, {BATCH_SAMPLES} samples a "
        f"batch",
        f"keeps no index: scores against the sum of {queries} queries, and others take it all "
        f"again",
    )


def captum(model: Any, samples: Sequence[Sample], out: Path) -> Prepared:
    """TracInCPFastRandProj, which sees the head alone, at one position a sample: the last label."""
    from captum.influence import TracInCPFastRandProj
    from captum.influence._utils.nearest_neighbors import NearestNeighbors
    from torch.utils.data import DataLoader

    class LastLabel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head = model.model, model.lm_head

        def forward(self, input_ids: Any, attention_mask: Any, column: Any) -> Any:
            with torch.no_grad():
                hidden = self.trunk(input_ids, attention_mask).last_hidden_state
            return self.head(hidden[torch.arange(len(column)), column])

    class Rows(NearestNeighbors):
        """Where captum would build an index of Annoy's, the rows themselves."""

        def setup(self, data: Any) -> None:
            torch.save(data.clone(), out / "rows.pt")

        def get_nearest_neighbors(self, query: Any, k: int) -> Any:
            raise NotImplementedError

    def last_label(samples: Sequence[Sample]) -> tuple[Any, ...]:
        batch = collate(samples)
        at = [max(i for i, label in enumerate(s.labels) if label != IGNORED) for s in samples]
        rows, columns = torch.arange(len(at)), torch.tensor(at)
        targets = batch["input_ids"][rows, columns]
        return batch["input_ids"], batch["attention_mask"], columns - 1, targets

    reader = LastLabel()

    def store() -> None:
        TracInCPFastRandProj(
            reader,
            reader.head,
            DataLoader(samples, batch_size=BATCH_SAMPLES, collate_fn=last_label),
            checkpoints=["as it is"],
            checkpoints_load_func=lambda *_: 1.0,
            loss_fn=torch.nn.CrossEntropyLoss(reduction="sum"),
            nearest_neighbors=Rows(),
            projection_dim=4096,
        )

    return Prepared(
        store,
        "rows.pt",
        f"TracInCPFastRandProj: the head, 4,096 floats, {BATCH_SAMPLES} samples a batch",
        "the last label token of each sample alone; no backward pass through the trunk",
    )


PEERS = {
    "bergson": ("bergson", bergson),
    "dattri": ("dattri", dattri),
    "dattri-head": ("dattri", dattri_head),
    "logix": ("logix-ai", logix),
    "kronfluence": ("kronfluence", kronfluence),
    "captum": ("captum", captum),
}
