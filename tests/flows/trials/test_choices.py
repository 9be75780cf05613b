"""The plan of a study: which configs it tries, how they follow from each other, and what it leaves out and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flows.trials import choices
from flows.trials.choices import CHOICES, PRESETS, Machine, Preset
from tasks.contracts.hyperparameters import Optimizer
from tasks.train import TrainingConfig

RATES = {"adamw": 1.0, "lion": 0.2, "sgd": 300.0}
CPU = Machine(processes=4, on_gpu=False, precision="bf16 autocast (measured)", learning_rates=RATES, missing={})
ALL = Preset("all", seeds=2, target_accuracy=0.8, training={"epochs": 1.0})
TRAINING = TrainingConfig(learning_rate=2e-4, batch_size=32, dropout=0.0)


def difference(one: TrainingConfig, other: TrainingConfig) -> set[str]:
    return {name for name, value in one.model_dump().items() if value != getattr(other, name)}


def test_the_baseline_is_plain_and_keeps_what_a_study_does_not_vary() -> None:
    config = choices.plan(TRAINING, ALL, CPU).baseline.config
    assert {name: getattr(config, name) for name in choices.BASELINE} == choices.BASELINE
    assert config.learning_rate == pytest.approx(2e-4 * 300)
    assert (config.batch_size, config.dropout, config.epochs) == (32, 0.0, 1.0)


def test_alone_differs_from_the_baseline_in_that_one_thing() -> None:
    plan = choices.plan(TRAINING, ALL, CPU)
    named = {choice.name: set(choice.changes) for choice in CHOICES}
    assert [entry.name for entry in plan.alone] == [name for name in named if name != "sparse embeddings"]
    for entry in plan.alone:
        rate = {"learning_rate"} if entry.name == "AdamW" else set()
        assert difference(entry.config, plan.baseline.config) == named[entry.name] | rate
    assert "Adam's scale" in plan.left_out["sparse embeddings, alone"]


def test_together_each_adds_one_thing_to_the_one_before() -> None:
    plan = choices.plan(TRAINING, ALL, CPU)
    assert [entry.name for entry in plan.together] == [f"+ {choice.name}" for choice in CHOICES]
    configs = [plan.baseline.config, *(entry.config for entry in plan.together)]
    for choice, before, after in zip(CHOICES, configs, configs[1:], strict=False):
        assert difference(after, before) - {"learning_rate"} == set(choice.changes)
    for choice in CHOICES:
        assert {name: getattr(configs[-1], name) for name in choice.changes} == choice.changes


def test_optimizers_have_their_learning_rates_and_nothing_that_trades_time_for_memory() -> None:
    plan = choices.plan(replace_optimizer("lion", 1e-4), ALL, CPU)
    found = {entry.name: entry.config for entry in plan.optimizers}
    assert {name: config.learning_rate for name, config in found.items()} == pytest.approx(
        {"adamw": 5e-4, "lion": 1e-4, "sgd": 0.15}
    )
    for config in found.values():
        assert (config.embeddings, config.precision) == ("sparse", "auto")
        assert (config.micro_batch, config.activation_checkpointing, config.num_processes) == (0, False, 1)
        assert difference(config, found["adamw"]) <= {"optimizer", "learning_rate"}


def replace_optimizer(name: str, learning_rate: float) -> TrainingConfig:
    return TRAINING.model_copy(update={"optimizer": Optimizer(name), "learning_rate": learning_rate})


def test_every_config_is_tried_once_per_seed_in_an_order_that_turns() -> None:
    plan = choices.plan(TRAINING, ALL, CPU)
    configs = list(plan.configs())
    entries = [plan.baseline, *plan.alone, *plan.together, *plan.optimizers]
    assert len(configs) == len({entry.config for entry in entries}) < len(entries), "tables share what they can"
    assert plan.configs()[plan.together[0].config] == "AdamW", "alone and on top of the baseline are the same"
    trials = plan.trials([5, 6])
    assert len(trials) == len(set(trials)) == 2 * len(configs)
    first, second = [c for c, seed in trials if seed == 5], [c for c, seed in trials if seed == 6]
    assert first == configs
    assert second == configs[len(configs) // 2 :] + configs[: len(configs) // 2]


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
    plan, whole = choices.plan(TRAINING, ALL, here), choices.plan(TRAINING, ALL, CPU)
    assert reason in plan.left_out[name]
    assert name not in whole.left_out
    assert len(plan.configs()) < len(whole.configs())


def test_a_small_batch_is_not_accumulated() -> None:
    plan = choices.plan(TRAINING.model_copy(update={"batch_size": 8}), ALL, CPU)
    assert "a batch of 8" in plan.left_out["accumulation, alone"]
    of_tokens = TRAINING.model_copy(update={"batch_size": 8, "batch_tokens": 1024})
    assert "accumulation, alone" not in choices.plan(of_tokens, ALL, CPU).left_out


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_what_exists_and_can_be_planned(name: str) -> None:
    preset = PRESETS[name]
    known = {choice.name for choice in CHOICES}
    assert {*(preset.alone or ()), *(preset.together or ())} <= known
    assert set(preset.optimizers or ()) <= {optimizer.value for optimizer in Optimizer}
    plan = choices.plan(TRAINING, preset, choices.machine())
    assert plan.together
    assert plan.optimizers
    assert plan.baseline.config.epochs == preset.training["epochs"]
