"""Plans by theory; what a process really held is asked of the kernel."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks import fitting
from tasks.contracts.base import FeatherweightError
from tasks.ml.data.datasets import Split
from tasks.ml.jobs.lessons import Lesson
from tasks.ml.quality import evaluation
from tasks.ml.training import activations, memory, optimizers, precision
from tasks.ml.training.activations import Demand
from tasks.ml.xray import profiling
from tests.ml import processes
from tests.ml.processes import Recorder, assert_same_weights, train

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
FP32 = precision.choose("fp32", CPU)
MB = 1e6


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> float:
    """Lets every process hold 100 MB when training begins."""
    monkeypatch.setattr(memory, "_held", lambda device: 100 * MB)
    return 100 * MB


def lesson(rows: int = 32, *, length: int = 60, vocabulary: int = 40) -> Lesson:
    rng = np.random.default_rng(0)
    ids = [[2, *rng.integers(5, vocabulary, length - 2 - row % 3).tolist(), 3] for row in range(rows)]
    targets = np.array([row[1] % 2 for row in ids])
    return Lesson("text-classification", 0, ids, targets, Split([""] * 8, ids[:8], targets[:8]))


def plan(model: nn.Module, room: float, *, batch: int = 32, micro_batch: int = 0) -> memory.Plan:
    """A plan where rows take 10 MB, or 1 MB if computed again, and all of them together ``room``."""
    algorithm = optimizers.build(model, "adamw", learning_rate=1e-3, weight_decay=0.0)
    options: Any = {"batch": batch, "micro_batch": micro_batch, "length": 8, "state_elsewhere": False}
    demand = Demand(row=10 * MB, row_again=MB)
    fixed = 100 * MB + memory.SLACK * stays(model) + memory.LIBRARIES
    limit = (fixed + memory.SLACK * room) / memory.GB
    return memory.choose(model, algorithm, demand, max_memory=limit, **options)


def stays(model: nn.Module) -> float:
    """Bytes of gradients, AdamW's two moments, and the copy of the best weights."""
    weights = sum(p.nbytes for p in model.parameters())
    return 3 * weights + sum(tensor.nbytes for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("room", "rows_at_once", "checkpointing"),
    [(321, 0, False), (319, 16, False), (161, 16, False), (111, 11, False), (81, 8, False), (79, 0, True),
     (31, 16, True), (7.5, 7, True), (1.1, 1, True)],
)  # fmt: skip
def test_first_the_batch_is_cut_then_activations_are_computed_again_then_fewer_rows(
    model: nn.Module, held: float, room: float, rows_at_once: int, checkpointing: bool
) -> None:
    found = plan(model, room * MB)
    assert (found.rows_at_once, found.checkpointing) == (rows_at_once, checkpointing)
    assert found.predicted_mb <= found.limit_mb


def test_what_a_recipe_says_itself_is_kept(model: nn.Module, held: float) -> None:
    assert plan(model, 400 * MB, micro_batch=5).rows_at_once == 5
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = plan(model, 16.5 * MB)
    assert (found.rows_at_once, found.checkpointing) == (16, True)


def test_what_cannot_fit_is_refused_with_what_it_takes_and_what_helps(model: nn.Module, held: float) -> None:
    with pytest.raises(FeatherweightError, match=r"max_memory: 0\.\d+ GB is too little") as refused:
        plan(model, 0.5 * MB)
    least = (held + memory.SLACK * (stays(model) + MB) + memory.LIBRARIES) / memory.GB
    message = str(refused.value)
    assert f"at least {least:.3f}, in each process 0.000 for gradients, 0.000 for optimizer state" in message
    assert "embeddings frozen, lora_rank, or an optimizer with less state" in message


def test_nothing_is_trained_where_not_even_one_row_fits(model: nn.Module) -> None:
    recorder = Recorder()
    with pytest.raises(FeatherweightError, match=r"max_memory: 0\.05 GB is too little: a row at a time takes at least"):
        train(model, lesson(), 1, max_memory=0.05, observer=recorder)
    assert recorder.first_step == -1


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon", "adafactor", "lion"])
@pytest.mark.parametrize("embeddings", ["sparse", "dense"])
def test_state_that_will_come_is_the_state_that_came(model: nn.Module, name: str, embeddings: str) -> None:
    model.bert.embeddings.word_embeddings.sparse = embeddings == "sparse" and optimizers.describe(name).adam_scaled
    algorithm = optimizers.build(model, name, learning_rate=1e-3, weight_decay=0.0)
    expected = algorithm.state_bytes_to_come()
    algorithm.prime()
    counters = 4 * 2 * len(algorithm.parameters)
    small = 4 * sum(p.shape[0] + p.shape[-1] for p in algorithm.parameters) if name == "adafactor" else 0
    assert expected <= algorithm.state_bytes() + 0.01 * 4 * sum(p.numel() for p in algorithm.parameters)
    assert algorithm.state_bytes() <= expected + counters + small


def test_frozen_and_sparse_tables_count_as_they_are(model: nn.Module) -> None:
    table = model.bert.embeddings.word_embeddings

    def gradients() -> float:
        algorithm = optimizers.build(model, "adamw", learning_rate=1e-3, weight_decay=0.0)
        return memory._to_come(model, algorithm, 2, state_elsewhere=False)["gradients"]

    dense = gradients()
    assert dense == sum(p.nbytes for p in model.parameters())
    table.sparse = True
    assert gradients() == dense - table.weight.nbytes + 3 * 2 * table.embedding_dim * 4
    table.weight.requires_grad_(False)
    assert gradients() == dense - table.weight.nbytes


@pytest.mark.parametrize("dropped", [0.0, 0.1])
def test_what_a_row_keeps_is_what_autograd_keeps(model: nn.Module, dropped: float) -> None:
    from tasks.ml.models import attention, dropout

    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropped
    model.config.attention_probs_dropout_prob = dropped
    ids = torch.randint(3, 40, (4, 60))
    for name, closeness in (("fp32", 0.02), ("bf16", 0.15)):
        chosen = precision.choose(name, CPU)
        demand = activations.of_model(model, chosen, lengths=[60], first_token_only=False)
        layer = activations.of_model(model, chosen, lengths=[60], first_token_only=True)
        assert layer.row < demand.row
        with attention.afforded(model, chosen.autocast), dropout.cheaper(model), precision.autocast(chosen, CPU):
            kept = profiling.saved_bytes(model, ids)
        copies = 0 if name == "fp32" else 2 * sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
        shapes = activations._architecture(model)
        how = activations._per_row(model, chosen)
        one = activations.cost_model.activation_bytes(activations._widest_layer(shapes), length=60, **how)
        assert 4 * (demand.row - one) / (kept - copies) == pytest.approx(1, abs=closeness)
        assert demand.once >= copies


def test_of_bf16_on_a_cpu_what_is_compiled_for_each_length_counts(model: nn.Module) -> None:
    bf16 = precision.choose("bf16", CPU)
    few, many = (
        activations.of_model(model, bf16, lengths=lengths, first_token_only=False).once
        for lengths in ([57, 58, 60], range(1, 61))
    )
    assert many - few == pytest.approx(14 * activations.PRODUCTS * activations.PRODUCT_BYTES)
    assert activations.of_model(model, FP32, lengths=range(1, 61), first_token_only=False).once == 0


def test_a_tutor_and_rounding_take_more(model: nn.Module) -> None:
    plain = processes.lesson(model).demand(model, precision=FP32)
    what = processes.lesson(model, tutored=True)
    taught = what.demand(model, precision=FP32)
    assert taught.answers == sum(map(len, what.input_ids)) * 32 * 2 * (4 + 3)
    assert taught.row > 1.5 * plain.row
    linear = nn.Linear(32, 64)
    assert activations.of_rounding([linear], length=10) == Demand(2 * 4 * 320, 2 * 4 * 320, 4 * 2048)


def test_less_memory_means_the_same_training(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    what = lesson()
    monkeypatch.setattr(memory, "_held", lambda device: 0.0)
    whole, _, without = train(model, what, 1, batch_size=32)
    assert "memory" not in without.notes
    demand = what.demand(model, precision=FP32)
    fixed = memory.LIBRARIES + memory.SLACK * (stays(model) + 3 * 32 * 60 * 32 * 4)
    found = []
    for rows, again in ((16.5, False), (4.5, True)):
        row = demand.row_again if again else demand.row
        limit = (fixed + memory.SLACK * rows * row) / memory.GB
        trained, _, history = train(model, what, 1, batch_size=32, max_memory=limit)
        found.append((history.notes["memory"]["checkpointing"], history.notes["micro_batch"]))
        assert history.notes["total_steps"] == without.notes["total_steps"]
        assert history.notes["memory"]["measured_mb"] > 0
        assert not trained.is_activation_checkpointing
        assert_same_weights(trained, whole, model)
    assert found[0] == (False, 16)
    assert found[1][0] is True
    assert 4 <= found[1][1] < 8


def test_evaluations_take_no_more_rows_than_learning(model: nn.Module) -> None:
    seen = []
    model.register_forward_pre_hook(lambda _, __, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True)
    made = memory.Plan(rows_at_once=3, checkpointing=True, predicted_mb=1.0, limit_mb=2.0)
    notes: dict[str, Any] = {}
    with memory.kept_to(made, model, notes):
        assert model.is_activation_checkpointing
        evaluation.logits(model, [[2, 5, 3]] * 8, pad_id=0)
    assert seen == [3, 3, 2]
    assert not model.is_activation_checkpointing
    assert memory.remembered(json.loads(json.dumps(notes))) == replace(made, measured_mb=notes["memory"]["measured_mb"])
    evaluation.logits(model, [[2, 5, 3]] * 8, pad_id=0)
    assert seen[3:] == [8]


def test_a_resumed_run_keeps_its_plan_whatever_is_allowed_by_then(model: nn.Module, tmp_path: Path) -> None:
    what = processes.lesson(model)
    processes.interrupt(model, what, 1, tmp_path, max_memory=2.0, micro_batch=3)
    _, recorder, resumed = train(model, what, 1, tmp_path, max_memory=0.001)
    assert recorder.first_step == 6
    assert resumed.notes["memory"]["limit_mb"] == 2000
    assert resumed.notes["memory"]["rows_at_once"] == resumed.notes["micro_batch"] == 3


@pytest.mark.slow
def test_processes_share_a_limit(model: nn.Module) -> None:
    history = train(model, processes.lesson(model), 2, max_memory=3.0)[2]
    held = history.notes["memory"]
    assert held["limit_mb"] == 1500
    assert held["rows_at_once"] == 0
    assert 0 < held["measured_mb"] <= held["predicted_mb"] < 1500


def test_who_held_more_than_allowed_is_warned(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = memory.Plan(0, False, predicted_mb=10.0, limit_mb=12.0, measured_mb=11.0)
    for measured, level in ((11.0, logging.INFO), (13.0, logging.WARNING)):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="featherweight"):
            fitting.tell("train", asdict(replace(made, measured_mb=measured)))
        assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
            (
                level,
                f"train: a process held up to {measured:.0f} MB; 10 were predicted, and 12 are allowed (max_memory)",
            )
        ]


REAL = """
import json, sys
import torch
from tests.ml.processes import FOR_MODEL, FOR_TRAINER, Recorder
from tests.ml.training.test_memory import large, lesson
torch.set_num_threads(1)
model, what = large(), lesson(64, length=96, vocabulary=2000)
options = FOR_TRAINER | {"batch_size": 32, "epochs": 1, "max_memory": float(sys.argv[1])}
print(json.dumps(what.learn(model, for_model=FOR_MODEL, observer=Recorder(), checkpoint=None, **options).notes))
"""


def large() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 768}
    return BertForSequenceClassification(BertConfig(vocab_size=2000, **shape))


def real(limit: float) -> dict[str, Any]:
    """What a process of its own notes of its training."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REAL, str(limit)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])["memory"]  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_process_stays_below_three_limits() -> None:
    free = real(50.0)
    assert (free["rows_at_once"], free["checkpointing"]) == (0, False)
    needed = free["predicted_mb"]
    refused = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REAL, "0.1"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    least = re.search(r"at least ([\d.]+), in", refused.stderr)
    assert least is not None, refused.stderr[-2000:]
    tight = 1e3 * float(least.group(1)) + 15
    for limit in (needed + 5, (needed + tight) / 2, tight):
        held = real(limit / 1e3)
        assert held["measured_mb"] <= held["predicted_mb"] <= held["limit_mb"] == pytest.approx(limit)
    assert held["checkpointing"]
    assert 0 < held["rows_at_once"] < 8
