"""Real processes under torchrun, joined by gloo, against one process on the same lesson."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.data.datasets import Split
from tasks.ml.distillation.teaching import Weights
from tasks.ml.jobs import elastic
from tasks.ml.jobs.lessons import Lesson
from tasks.ml.quality import evaluation
from tasks.ml.training import trainer
from tests import servers
from tests.ml.processes import (
    EVERYTHING,
    FOR_MODEL,
    FOR_TRAINER,
    Recorder,
    assert_same_weights,
    interrupt,
    lesson,
    train,
)
from tests.ml.tiny_decoders import model_of

HIDDEN = Weights(hidden=1.0)
"""Nobody reads the last layer's other tokens."""


@pytest.mark.parametrize(
    ("processes", "weights"), [(2, EVERYTHING), (2, HIDDEN), pytest.param(4, EVERYTHING, marks=pytest.mark.slow)]
)
def test_processes_learn_what_one_learns(model: nn.Module, processes: int, weights: Weights) -> None:
    """Same batches, same gradients but for the order of sums: losses agree to 1e-4, weights to 1e-3 of their change."""
    what = lesson(model, tutored=True, weights=weights)
    alone, one, one_history = train(model, what, 1)
    notes = one_history.notes
    together, several, history = train(model, what, processes, micro_batch=3)
    assert history.notes["num_processes"] == processes
    assert history.notes["gradients"] == "shared memory"
    # Each process updates, and has the optimizer's state of, its part of the weights; the table's is in the first.
    assert history.notes["optimizer_state_mb"] < 0.8 * notes["optimizer_state_mb"]
    assert several.losses.keys() == one.losses.keys() == set(range(1, 13))
    assert several.evaluations == one.evaluations == [6, 12]
    assert several.losses == pytest.approx(one.losses, rel=1e-4)
    norms = [[point["gradient_norm"] for point in each.points] for each in (history, one_history)]
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-5)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert_same_weights(together, alone, model)


@pytest.mark.slow
def test_the_gradient_of_processes_is_that_of_one(model: nn.Module) -> None:
    """One step of SGD, so long that the weights are as good as the gradient."""
    what = lesson(model, tutored=True)
    changes = {"optimizer": "sgd", "learning_rate": 1e4, "batch_size": 41, "epochs": 1, "clip_norm": 1e9}
    changes |= {"schedule": "constant", "warmup": 0.0, "weight_decay": 0.0}
    models = [train(model, what, *how, **changes)[0] for how in ((1,), (4,))]
    alone, together = (nn.utils.parameters_to_vector(m.parameters()) for m in models)
    start = nn.utils.parameters_to_vector(model.parameters())
    assert (alone - start).norm() > 100
    assert (together - alone).norm() <= 1e-5 * (alone - start).norm()


@pytest.mark.parametrize(("asked", "gpus"), [(1, 0), (2, 1)])
def test_one_process_apart_computes_the_same(
    model: nn.Module, asked: int, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    what = lesson(model)
    here, one, _ = train(model, what, 1)
    there, recorder = copy.deepcopy(model), Recorder()
    options = {"for_model": FOR_MODEL, "observer": recorder, "checkpoint": None, **FOR_TRAINER}
    history = elastic.learn(there, what, num_processes=asked, **options)
    assert history.notes["num_processes"] == 1
    assert recorder.losses == one.losses
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        assert torch.equal(a, b)
    assert 50 < history.points[-1]["peak_memory_mb"] < trainer.peak_memory_mb(torch.device("cpu")) + 500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "optimizer"),
    [
        (1, 2, "adamw"),
        (2, 1, "adamw"),
        (2, 1, "adamw-8bit"),
        (2, 1, "adafactor"),
        (2, 2, "muon"),
        (1, 2, "schedule-free-adamw"),
    ],
)
def test_a_run_resumes_in_another_number_of_processes(
    model: nn.Module, tmp_path: Path, before: int, after: int, optimizer: str
) -> None:
    """Every process updates its part, whatever the optimizer: also where a process has no parameter of a kind, and
    where weights are an average while they are looked at."""
    what = lesson(model)
    whole, one, alone = train(model, what, 1, optimizer=optimizer)
    interrupt(model, what, before, tmp_path, optimizer=optimizer)
    resumed, recorder, history = train(model, what, after, tmp_path, optimizer=optimizer)
    assert recorder.first_step == history.notes["resumed_at_step"] == 6
    assert recorder.losses == pytest.approx({step: one.losses[step] for step in range(7, 13)}, rel=1e-3)
    assert [e["quality"] for e in history.evaluations] == [e["quality"] for e in alone.evaluations]
    if optimizer == "adamw":
        assert_same_weights(resumed, whole, model)


@pytest.mark.slow
def test_processes_that_share_rounded_weights_resume_to_the_same(model: nn.Module, tmp_path: Path) -> None:
    what = lesson(model)
    whole, uninterrupted, history = train(model, what, 2, precision="bf16")
    assert history.notes["gradients"] == "shared memory"
    interrupt(model, what, 2, tmp_path, precision="bf16")
    resumed, recorder, _ = train(model, what, 2, tmp_path, precision="bf16")
    assert recorder.losses == {step: uninterrupted.losses[step] for step in range(7, 13)}
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_processes_measure_texts_of_different_lengths_as_one_does() -> None:
    """Of what is kept of each token, where the longest text is with one of them."""
    rows = [[1, 5, 9, 7, 3]] * evaluation.ROWS + [[1, 3, 4, 5, 6, 7, 8, 9, 10]]
    targets = np.array([3 * len(row) for row in rows])
    what = Lesson("causal-lm", 0, rows, targets, Split([""] * len(rows), rows, targets.copy()))
    found = [train(model_of("llama, tied"), what, processes, epochs=1)[2].evaluations for processes in (1, 2)]
    for one, two in zip(*found, strict=True):
        assert [two[name] for name in ("quality", "loss")] == pytest.approx(
            [one[name] for name in ("quality", "loss")], rel=1e-4
        )


@pytest.mark.slow
def test_what_a_worker_finds_wrong_its_parent_says(model: nn.Module) -> None:
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="loss is nan at step 0; lower the learning rate"):
        train(model, lesson(model), 2)


@pytest.mark.slow
def test_a_worker_that_dies_is_reported_with_the_end_of_its_log(model: nn.Module) -> None:
    with pytest.raises(FeatherweightError, match=r"(?s)a worker died without a result:.*no_such_argument"):
        train(model, lesson(model), 2, no_such_argument=1)


def _job(model: nn.Module, folder: Path, **changes: Any) -> Path:
    return elastic.write_job(
        folder, model, lesson(model), for_model=FOR_MODEL, for_trainer=FOR_TRAINER | changes, checkpoint=None
    )


@pytest.mark.slow
def test_two_hosts_meet_and_train_one_model(model: nn.Module, tmp_path: Path) -> None:
    """Two agents with a c10d rendezvous on loopback, as on two machines that share a disk."""
    job = _job(model, tmp_path)
    options = [
        "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "night", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", f"127.0.0.1:{servers.free_ports(1)[0]}", "--local-addr", "127.0.0.1",
    ]  # fmt: skip
    hosts = [subprocess.Popen(elastic.command(job, options), cwd=elastic.ROOT) for _ in range(2)]
    assert [host.wait(120) for host in hosts] == [0, 0]
    alone, _, _ = train(model, lesson(model), 1)
    together = copy.deepcopy(model)
    elastic.read_result(job, together)
    torch.testing.assert_close(together.classifier.weight, alone.classifier.weight, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_when_the_parent_is_killed_nothing_of_the_tree_is_left(
    model: nn.Module, tmp_path: Path, signal_number: int
) -> None:
    script = (
        "import sys, signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
        "from pathlib import Path; from tasks.ml.jobs import elastic\n"
        "with elastic.agent(Path(sys.argv[1]), ['--standalone', '--nproc-per-node', '2'], 1) as a: a.wait()\n"
    )
    job = _job(model, tmp_path, epochs=100_000)
    parent = subprocess.Popen([sys.executable, "-c", script, str(job)], cwd=elastic.ROOT)
    deadline = time.monotonic() + 120
    while not (job / elastic.EVENTS).is_file():
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.2)
    tree = psutil.Process(parent.pid).children(recursive=True)
    assert len(tree) >= 3
    os.kill(parent.pid, signal_number)
    parent.wait(60)
    _, alive = psutil.wait_procs(tree, timeout=60)
    assert alive == []
