"""The plan of a study: which configs it tries, how they follow from each other, and what it leaves out and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flows.trials import choices
from flows.trials.choices import CHOICES, PRESETS, Machine, Preset, Way
from tasks.contracts.hyperparameters import ComputeConfig, Optimizer
from tasks.train import TrainingConfig

RATES = {"adamw": 1.0, "lion": 0.2, "sgd": 300.0}
CPU = Machine(processes=4, on_gpu=False, precision="bf16 autocast (measured)", learning_rates=RATES, missing={})
ALL = Preset("all", seeds=2, target_accuracy=0.8, training={"epochs": 1.0})
TRAINING = TrainingConfig(learning_rate=2e-4, batch_size=32, dropout=0.0)
WAY = Way(TRAINING, ComputeConfig())


def fields(way: Way) -> dict[str, Any]:
    return {**way.training.model_dump(), **way.compute.model_dump()}


def difference(one: Way, other: Way) -> set[str]:
    return {name for name, value in fields(one).items() if value != fields(other)[name]}


def test_the_baseline_is_plain_and_keeps_what_a_study_does_not_vary() -> None:
    way = choices.plan(WAY, ALL, CPU).baseline.way
    assert {name: fields(way)[name] for name in choices.BASELINE} == choices.BASELINE
    config = way.training
    assert config.learning_rate == pytest.approx(2e-4 * 300)
    assert (config.batch_size, config.dropout, config.epochs) == ("32", 0.0, 1.0)


def test_alone_differs_from_the_baseline_in_that_one_thing() -> None:
    plan = choices.plan(WAY, ALL, CPU)
    named = {choice.name: set(choice.changes) for choice in CHOICES}
    assert [entry.name for entry in plan.alone] == [name for name in named if name != "sparse embeddings"]
    for entry in plan.alone:
        rate = {"learning_rate"} if entry.name == "AdamW" else set()
        assert difference(entry.way, plan.baseline.way) == named[entry.name] | rate
    assert "Adam's scale" in plan.left_out["sparse embeddings, alone"]


def test_together_each_adds_one_thing_to_the_one_before() -> None:
    plan = choices.plan(WAY, ALL, CPU)
    assert [entry.name for entry in plan.together] == [f"+ {choice.name}" for choice in CHOICES]
    ways = [plan.baseline.way, *(entry.way for entry in plan.together)]
    for choice, before, after in zip(CHOICES, ways, ways[1:], strict=False):
        assert difference(after, before) - {"learning_rate"} == set(choice.changes)
    for choice in CHOICES:
        assert {name: fields(ways[-1])[name] for name in choice.changes} == choice.changes


def test_optimizers_have_their_learning_rates_and_nothing_that_trades_time_for_memory() -> None:
    plan = choices.plan(replace_optimizer("lion", 1e-4), ALL, CPU)
    found = {entry.name: entry.way for entry in plan.optimizers}
    assert {name: way.training.learning_rate for name, way in found.items()} == pytest.approx(
        {"adamw": 5e-4, "lion": 1e-4, "sgd": 0.15}
    )
    for way in found.values():
        compute = way.compute
        assert (way.training.embeddings, compute.precision) == ("sparse", "auto")
        assert (compute.micro_batch, compute.activation_checkpointing, compute.num_processes) == (0, False, 1)
        assert difference(way, found["adamw"]) <= {"optimizer", "learning_rate"}


def replace_optimizer(name: str, learning_rate: float) -> Way:
    return WAY.changed({"optimizer": Optimizer(name), "learning_rate": learning_rate})


def test_every_config_is_tried_once_per_seed_in_an_order_that_turns() -> None:
    plan = choices.plan(WAY, ALL, CPU)
    ways = list(plan.ways())
    entries = [plan.baseline, *plan.alone, *plan.together, *plan.optimizers]
    assert len(ways) == len({entry.way for entry in entries}) < len(entries), "tables share what they can"
    assert plan.ways()[plan.together[0].way] == "AdamW", "alone and on top of the baseline are the same"
    trials = plan.trials([5, 6])
    assert len(trials) == len(set(trials)) == 2 * len(ways)
    first, second = [c for c, seed in trials if seed == 5], [c for c, seed in trials if seed == 6]
    assert first == ways
    assert second == ways[len(ways) // 2 :] + ways[: len(ways) // 2]


@pytest.mark.parametrize(
    ("here", "name", "reason"),
    [
        (replace(CPU, processes=1), "2 processes, alone", "needs 2 cores"),
        (replace(CPU, precision="fp32 (measured)"), "mixed precision, on top", "auto chooses fp32 (measured)"),
        (replace(CPU, missing={"lion": "a-package"}), "lion, as optimizer", "needs the package a-package"),
        (replace(CPU, on_gpu=True), "sparse embeddings, on top", "CPUs only"),
    ],
)
def test_what_means_nothing_here_is_left_out_and_said(here: Machine, name: str, reason: str) -> None:
    plan, whole = choices.plan(WAY, ALL, here), choices.plan(WAY, ALL, CPU)
    assert reason in plan.left_out[name]
    assert name not in whole.left_out
    assert len(plan.ways()) < len(whole.ways())


def test_a_small_batch_is_not_accumulated() -> None:
    plan = choices.plan(WAY.changed({"batch_size": 8}), ALL, CPU)
    assert "a batch of 8" in plan.left_out["accumulation, alone"]
    of_tokens = WAY.changed({"batch_size": "1024 tokens"})
    assert "accumulation, alone" not in choices.plan(of_tokens, ALL, CPU).left_out


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_what_exists_and_can_be_planned(name: str) -> None:
    preset = PRESETS[name]
    known = {choice.name for choice in CHOICES}
    assert {*(preset.alone or ()), *(preset.together or ())} <= known
    assert set(preset.optimizers or ()) <= {optimizer.value for optimizer in Optimizer}
    plan = choices.plan(WAY, preset, choices.machine())
    assert plan.together
    assert plan.optimizers
    assert plan.baseline.way.training.epochs == preset.training["epochs"]
