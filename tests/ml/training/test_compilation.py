"""Real compilers on tiny models; where speed would decide, seconds that are given take the place of the clock."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tasks.ml.jobs import elastic
from tasks.ml.models import dropout
from tasks.ml.training import compilation, precision, trainer
from tasks.ml.training.compilation import Decision, Layers, Passes
from tests.ml.processes import FOR_MODEL, FOR_TRAINER, Recorder, lesson

FP32 = precision.Choice(None, "fp32")
REAL = compilation.COMPILER
TRACING: dict[str, Any] = {"backend": "aot_eager", "dynamic": True}
"""All of torch.compile but the writing of code, which takes most of its time."""
WRITING = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Code that the compiler wrote for another test, and would write again."""
    return tmp_path_factory.mktemp("inductor")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, written: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(written))
    monkeypatch.setattr(compilation, "SHORTEST", 0.0)
    monkeypatch.setattr(compilation, "PATIENCE", 600.0)  # compiling may take as long as other tests let it
    monkeypatch.setattr(compilation, "COMPILER", TRACING)
    torch._dynamo.reset()


def dropping(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    model.config.attention_probs_dropout_prob = 0.1
    return model


def timed(monkeypatch: pytest.MonkeyPatch, *, eager: float, compiled: float) -> list[int]:
    """Lets passes take so many seconds in each way, without computing anything; returns the batches that were asked."""
    asked: list[int] = []
    switch: list[Layers] = []
    make = Layers.__init__

    def remember(self: Layers, model: nn.Module) -> None:
        make(self, model)
        switch.append(self)

    def seconds(self: Passes, batch: list[int]) -> float:
        asked.append(len(batch))
        return compiled if switch[-1].compiled else eager

    monkeypatch.setattr(Layers, "__init__", remember)
    monkeypatch.setattr(Passes, "seconds", seconds)
    return asked


def learn(
    model: nn.Module, compile: str, *, tutored: bool = False, observer: Recorder | None = None,
    checkpoint: Path | None = None, precision: str = "fp32", **for_model: Any,
) -> tuple[nn.Module, trainer.History]:  # fmt: skip
    """Trains a copy on 41 rows, 8 a batch: the last one has a single row."""
    student = copy.deepcopy(model)
    torch.manual_seed(0)
    return student, lesson(model, tutored=tutored).learn(
        student, for_model=FOR_MODEL | for_model, observer=observer or Recorder(), checkpoint=checkpoint,
        compile=compile, **FOR_TRAINER | {"precision": precision},
    )  # fmt: skip


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("compiled_s", "kept"), [(0.5, True), (0.94, True), (0.97, False), (2.0, False)])
def test_compiled_code_is_kept_if_it_is_faster_by_a_margin(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, compiled_s: float, kept: bool
) -> None:
    timed(monkeypatch, eager=1.0, compiled=compiled_s)
    decision = compilation.measure(Layers(model), Passes(model, lambda rows: None, [[0], [1]], 0, FP32))
    assert (decision.compiled, decision.eager_s, decision.compiled_s) == (kept, 1.0, compiled_s)
    assert decision.reason.startswith("compiled: " if kept else "eager: ")
    assert f"{1 / compiled_s:.2f} times as fast" in decision.reason


def test_compiling_is_given_up_after_its_time(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, eager=1.0, compiled=0.1)
    monkeypatch.setattr(compilation, "PATIENCE", -1.0)
    decision = compilation.measure(Layers(model), Passes(model, lambda rows: None, [[0], [1]], 0, FP32))
    assert not decision.compiled
    assert decision.reason == "eager: compiling took more than -1 s"
    assert len(asked) == 1


def test_a_decision_is_remembered_for_the_same_model_and_batches_only(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = timed(monkeypatch, eager=1.0, compiled=0.5)

    def decide(**changes: Any) -> Decision:
        given = {"step_loss": same, "batches": [[0], [1]], "micro_batch": 0, "precision": FP32, **changes}
        passes = Passes(model=model, **given)
        return compilation.decide(Layers(model), passes, lengths=[7, 9], steps=10)

    first, trial = decide(), len(asked)
    assert first.compiled
    assert not first.recalled
    assert decide() == Decision(**{**asdict(first), "recalled": True})
    assert len(asked) < 2 * trial
    assert not decide(micro_batch=4).recalled
    assert decide(micro_batch=4).recalled
    for kept in compilation._file("").parent.iterdir():
        kept.write_text("{")
    assert not decide().recalled


def test_short_runs_try_nothing(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, eager=1.0, compiled=0.1)
    monkeypatch.setattr(compilation, "SHORTEST", 60.0)
    _, history = learn(model, "auto")
    assert history.notes["compile"]["reason"] == "eager: 12 s of training are too few to compile for"


def test_a_run_that_ends_up_eager_is_the_run_without_a_trial_to_the_bit(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "WORTHWHILE", float("inf"))
    off, without = learn(dropping(model), "off")
    auto, history = learn(model, "auto")
    assert same(off, auto)
    assert "compile" not in without.notes
    assert history.notes["compile"]["compile_s"] > 0
    assert all("forward" not in layer.__dict__ for layer in auto.bert.encoder.layer)


@pytest.mark.slow
def test_without_a_compiler_training_goes_on_and_says_so(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compilation, "COMPILER", REAL)
    off, _ = learn(model, "off")
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        auto, history = learn(model, "auto")
    assert same(off, auto)
    assert history.notes["compile"]["reason"].startswith("eager: the trial failed: ")
    assert "no-such-compiler" in history.notes["compile"]["reason"]


def test_a_resumed_run_goes_on_as_it_was_decided(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Ends(Recorder):
        def step(self, step: int, point: Any) -> None:
            if step == 8:
                raise KeyboardInterrupt

    real = Passes.seconds
    timed(monkeypatch, eager=1.0, compiled=0.5)
    with pytest.raises(KeyboardInterrupt):
        learn(model, "auto", checkpoint=tmp_path, observer=Ends())
    monkeypatch.setattr(Passes, "seconds", real)
    monkeypatch.setattr(compilation, "decide", None)
    _, history = learn(model, "auto", checkpoint=tmp_path)
    assert history.notes["resumed_at_step"] == 6
    assert history.notes["compile"]["compiled"]


@pytest.mark.parametrize(
    ("compiler", "changes"),
    [
        (TRACING, {}),
        (TRACING, {"tutored": True}),
        (TRACING, {"activation_checkpointing": True}),
        pytest.param(TRACING, {"tutored": True, "precision": "bf16"}, marks=pytest.mark.slow),
        pytest.param(TRACING, {"lora_rank": 2}, marks=pytest.mark.slow),
        pytest.param(REAL, {"tutored": True}, marks=WRITING),
        pytest.param(REAL, {"activation_checkpointing": True, "lora_rank": 2}, marks=WRITING),
    ],
)
def test_compiled_layers_learn_what_eager_ones_learn(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, compiler: dict[str, Any], changes: dict[str, Any]
) -> None:
    """Sparse gradients, hooks of a tutor and a narrowed last layer included; batches of 8 rows and of one."""
    monkeypatch.setattr(compilation, "WORTHWHILE", 0.0)
    monkeypatch.setattr(compilation, "COMPILER", compiler)
    eager, _ = learn(model, "off", **changes)
    counters.clear()
    compiled, history = learn(model, "auto", **changes)
    assert history.notes["compile"]["compiled"], history.notes["compile"]["reason"]
    assert not counters["graph_break"]
    # Of the last layer, which is narrowed or stays as it is because a tutor listens to its inside, and of the others:
    # for one row, and for several with and without padding; not for each length.
    kinds = 1 if changes.get("tutored") else 2
    assert 2 * kinds <= counters["stats"]["unique_graphs"] <= 3 * kinds
    closeness = 0.05 if changes.get("precision") == "bf16" else 1e-3
    for (name, a), b, start in zip(eager.named_parameters(), compiled.parameters(), model.parameters(), strict=True):
        if not name.endswith("key.bias"):  # softmax takes no notice of them, their gradient is rounding
            assert (a - b).norm() <= closeness * (a - start).norm() + 1e-6, name


@pytest.mark.parametrize("compiler", [TRACING, pytest.param(REAL, marks=pytest.mark.slow)])
def test_two_masks_in_compiled_code_are_two(compiler: dict[str, Any]) -> None:
    """Common subexpressions are computed once; what is drawn must not count as common."""
    drop = dropout.Dropout(0.5)
    two = torch.compile(lambda x: (drop(x), drop(x)), **compiler)
    torch.manual_seed(0)
    one, other = two(torch.ones(100, 40))
    assert (one > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (one == other).float().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_processes_decide_alike(model: nn.Module) -> None:
    history = elastic.learn(
        copy.deepcopy(model), lesson(model), num_processes=2, observer=Recorder(), checkpoint=None, compile="auto",
        for_model=FOR_MODEL, **FOR_TRAINER,
    )  # fmt: skip
    assert "s of training are too few to compile for" in history.notes["compile"]["reason"]
