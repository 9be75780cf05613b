"""The choices that a study compares, as changes to a training config, and the sizes it can be had in. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from tasks.contracts.base import StageConfig
from tasks.contracts.hyperparameters import ComputeConfig
from tasks.train import TrainingConfig

AnyConfig = TypeVar("AnyConfig", bound=StageConfig)

BASELINE: dict[str, Any] = {
    "optimizer": "sgd", "precision": "fp32", "batching": "shuffled", "embeddings": "dense", "micro_batch": 0,
    "activation_checkpointing": False, "compile": "off", "num_processes": 1, "parallelism": "replicated",
    "layer_decay": 1.0, "lora_rank": 0,
}  # fmt: skip
"""What a plain loop does; all else is the recipe's."""


@dataclass(frozen=True)
class Choice:
    """One thing to change."""

    name: str
    changes: Mapping[str, Any]
    """Fields of training and compute. An optimizer brings its own scale of learning rates."""
    note: str
    """What it is, in a clause."""
    under_optimizers: bool = True
    """Whether optimizers are compared on top of it: not what trades time for memory, nor what splits the work."""


CHOICES = (
    Choice("AdamW", {"optimizer": "adamw"}, "fused, decoupled weight decay"),
    Choice("sparse embeddings", {"embeddings": "sparse"}, "only rows of the table that a batch touched are updated"),
    Choice("mixed precision", {"precision": "auto"}, "the smaller type that this machine multiplies faster, if any"),
    Choice("bucketing", {"batching": "bucketed"}, "rows of similar length together: little padding is computed on"),
    Choice("accumulation", {"micro_batch": 8}, "gradients of 8 rows at a time add up: for memory", False),
    Choice("checkpointing", {"activation_checkpointing": True}, "activations are computed again: for memory", False),
    Choice("compile", {"compile": "auto"}, "torch.compile if a trial finds it faster; compiling is not counted", False),
    Choice("2 processes", {"num_processes": 2}, "each computes half of every batch", False),
)
"""In the order in which they are put on top of each other."""


@dataclass(frozen=True)
class Preset:
    """How large a study is."""

    note: str
    seeds: int
    target_accuracy: float
    """On the selection split: what time is measured to."""
    training: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    alone: Sequence[str] | None = None
    """Names of choices that are tried on the baseline alone; ``None``: all."""
    together: Sequence[str] | None = None
    """Names of choices that are put on top of each other; ``None``: all."""
    optimizers: Sequence[str] | None = None
    """Names of optimizers that are compared; ``None``: all."""


PRESETS = {
    "smoke": Preset(
        "a minute on two cores: shows that a study runs, and nothing else",
        seeds=1,
        target_accuracy=0.5,
        training={"epochs": 1, "evaluations_per_epoch": 2},
        data={"max_rows": 120, "unlabeled": "", "selection_fraction": 0.3, "test_fraction": 0.1},
        alone=(),
        together=("AdamW", "sparse embeddings"),
        optimizers=("adafactor",),
    ),
    "small": Preset(
        "half an hour on two cores",
        seeds=2,
        target_accuracy=0.75,
        training={"epochs": 2, "evaluations_per_epoch": 4},
        data={"max_rows": 1250, "unlabeled": "", "selection_fraction": 0.15, "test_fraction": 0.02},
        alone=("AdamW", "mixed precision", "bucketing", "2 processes"),
        optimizers=("sgd", "adamw", "lion", "muon", "schedule-free-adamw"),
    ),
    "full": Preset(
        "all rows, three seeds, every optimizer: a night on two cores",
        seeds=3,
        target_accuracy=0.83,
        training={"epochs": 2, "evaluations_per_epoch": 6},
    ),
}


@dataclass(frozen=True)
class Machine:
    """What decides which choices mean something."""

    processes: int
    """That can each have a core, or a GPU where there are any."""
    on_gpu: bool
    precision: str
    """What ``auto`` chooses, and why."""
    learning_rates: Mapping[str, float]
    """Every optimizer's peak learning rate as a multiple of AdamW's."""
    missing: Mapping[str, str]
    """Optimizers that are not installed, with the package they are in."""


def machine() -> Machine:
    """Looks at this machine."""
    from tasks.ml.jobs import elastic
    from tasks.ml.training import optimizers, precision, trainer

    device = trainer.default_device()
    return Machine(
        processes=elastic.most_processes(),
        on_gpu=device.type == "cuda",
        precision=precision.choose("auto", device).reason,
        learning_rates={name: one.learning_rate_factor for name, one in optimizers.OPTIMIZERS.items()},
        missing={name: one.package for name, one in optimizers.OPTIMIZERS.items() if not one.is_installed},
    )


class Way(NamedTuple):
    """A way to train: what is learned with, and how it is computed."""

    training: TrainingConfig
    compute: ComputeConfig

    def changed(self, changes: Mapping[str, Any]) -> Way:
        """With fields of either changed."""

        def of(config: AnyConfig) -> AnyConfig:
            mine = {name: value for name, value in changes.items() if name in type(config).model_fields}
            return type(config).model_validate({**config.model_dump(), **mine})

        return Way(of(self.training), of(self.compute))


@dataclass(frozen=True)
class Entry:
    """A row of a table: a way to train by the name that it has there."""

    name: str
    note: str
    way: Way


@dataclass(frozen=True)
class Plan:
    """What to try. Entries of several tables may share a way, which is then tried once."""

    baseline: Entry
    alone: tuple[Entry, ...]
    together: tuple[Entry, ...]
    optimizers: tuple[Entry, ...]
    left_out: Mapping[str, str]
    """Choices that mean nothing here, with the reason."""

    def ways(self) -> dict[Way, str]:
        """The different ways in the order of the tables, by the name that each has first."""
        found: dict[Way, str] = {}
        for entry in (self.baseline, *self.alone, *self.together, *self.optimizers):
            found.setdefault(entry.way, entry.name)
        return found

    def trials(self, seeds: Sequence[int]) -> list[tuple[Way, int]]:
        """Every way with every seed; for each seed the order starts elsewhere, so that a machine that slows down
        does not always slow the same ones."""
        ways = list(self.ways())
        starts = [number * len(ways) // len(seeds) for number in range(len(seeds))]
        return [(way, seed) for seed, start in zip(seeds, starts, strict=True) for way in ways[start:] + ways[:start]]


def plan(way: Way, preset: Preset, here: Machine) -> Plan:
    """Derives every way from a recipe's."""
    adamw_rate = way.training.learning_rate / here.learning_rates[way.training.optimizer]
    left_out: dict[str, str] = {}

    def changed(on: Way, changes: Mapping[str, Any]) -> Way:
        if "optimizer" in changes:
            changes = {**changes, "learning_rate": adamw_rate * here.learning_rates[changes["optimizer"]]}
        return on.changed(changes)

    def entries(name: str, note: str, on: Way, changes: Mapping[str, Any], where: str) -> list[Entry]:
        """The entry, or none with the reason why."""
        changed_way = changed(on, changes)
        if reason := _senseless(changed_way, changes, here):
            left_out[f"{name.removeprefix('+ ')}, {where}"] = reason
            return []
        return [Entry(name, note, changed_way)]

    def wanted(name: str, names: Sequence[str] | None) -> bool:
        return names is None or name in names

    baseline = changed(way, {**BASELINE, **preset.training})
    alone: list[Entry] = []
    together: list[Entry] = []
    under_optimizers = baseline
    for choice in CHOICES:
        if wanted(choice.name, preset.alone):
            alone += entries(choice.name, choice.note, baseline, choice.changes, "alone")
        if wanted(choice.name, preset.together):
            before = together[-1].way if together else baseline
            together += entries(f"+ {choice.name}", choice.note, before, choice.changes, "on top")
            if choice.under_optimizers and together:
                under_optimizers = together[-1].way
    optimizers: list[Entry] = []
    for name, factor in here.learning_rates.items():
        if wanted(name, preset.optimizers):
            note = f"learning rate {adamw_rate * factor:g}"
            optimizers += entries(name, note, under_optimizers, {"optimizer": name}, "as optimizer")
    return Plan(
        Entry("baseline", "SGD with momentum, fp32, shuffled rows, dense embeddings", baseline),
        tuple(alone), tuple(together), tuple(optimizers), left_out,
    )  # fmt: skip


def _senseless(way: Way, changes: Mapping[str, Any], here: Machine) -> str:
    """Why a way with these changes would differ in nothing, or not run here; empty if it makes sense."""
    training, compute = way
    if training.optimizer in here.missing:
        return f"needs the package {here.missing[training.optimizer]}: pip install 'featherweight[training]'"
    if "embeddings" in changes and here.on_gpu:
        return "has an effect on CPUs only"
    if "embeddings" in changes and here.learning_rates[training.optimizer] != 1:
        return f"has an effect with optimizers of Adam's scale only, and not with {training.optimizer}"
    if changes.get("precision") == "auto" and here.precision.startswith("fp32"):
        return f"auto chooses {here.precision}"
    if compute.num_processes > here.processes:
        return f"needs {compute.num_processes} cores, or as many GPUs where there are any; there are {here.processes}"
    batch = training.for_trainer()["batch_size"]
    if "micro_batch" in changes and batch and compute.micro_batch >= batch:
        return f"a batch of {batch} is no more than {compute.micro_batch} rows"
    return ""
