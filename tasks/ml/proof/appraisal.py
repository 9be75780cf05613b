"""What ``appraise`` measures of one model on the selection split: quality beside the teacher's, size, and time.

N = rows, C = classes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.ml import machine
from tasks.ml.data import datasets
from tasks.ml.models import modeling
from tasks.ml.problem import problem_of
from tasks.ml.proof import proof
from tasks.ml.quality import evaluation, learning
from tasks.ml.runtime import timing

SPLIT = "selection"
NAME = "candidate"


@dataclass(frozen=True)
class Appraisal:
    """What was measured, with units in the names, and the logits (N, C) of ``teacher`` and ``candidate``."""

    measured: dict[str, Any]
    logits: dict[str, np.ndarray]
    data: Path
    problem: str

    def write_rows(self, path: Path) -> None:
        """Writes target, predictions and scores of every row, for paired comparisons."""
        proof.write_rows(path, self.data, self.problem, self.logits, teacher="teacher", split=SPLIT)


def measure(
    directory: Path,
    *,
    teacher: Path,
    simulated: Path | None,
    data: Path,
    problem_name: str,
    device: str,
    threads: int,
    repeats: int,
    sentences: int,
    max_flips: float,
    batch_size: int,
    alone: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Appraisal:
    """Measures one model: ONNX on the runtime, or PyTorch, eagerly, in fp32.

    Args:
        simulated: the bundle in PyTorch that an ONNX model was exported from, to be held against it.
        alone: a context in which nothing else runs on this machine: the timing is taken in it.

    Raises:
        ParityError: the runtime says something else than the simulation.
    """
    problem, targets = problem_of(problem_name), datasets.read(data, SPLIT).targets
    threads = threads or machine.num_cores()
    candidate = proof.subject(NAME, "Candidate", directory, data, split=SPLIT)
    provider, held = proof.provider_of(candidate, device=device), {}
    if candidate.kind == "onnx" and simulated is not None:
        held = proof.held(
            candidate,
            simulated,
            candidate.rows,
            problem_name=problem_name,
            provider=provider,
            threads=threads,
            max_length=datasets.info(data).max_length,
            max_flips=max_flips,
        )
    logits = {
        NAME: proof.logits_of(candidate, problem=problem_name, provider=provider, threads=threads),
        "teacher": evaluation.reference(teacher, data, problem_name, candidate.tokenizer),
    }
    agreement = learning.agreement(problem, logits[NAME], logits["teacher"])
    with (
        alone(),
        proof.probes(
            [candidate], problem=problem_name, provider=provider, threads=threads, sentences=sentences
        ) as running,
    ):
        times = timing.summary(timing.interleaved(running, rounds=repeats)[NAME])
        times["throughput_per_s"] = running[NAME].throughput(NAME, (batch_size,), tokens_at_once=problem.TOKENS_AT_ONCE)
        times |= running[NAME].loaded[NAME]
        generated = proof.generations([candidate], running, rounds=repeats) if problem.PER_TOKEN else []
    measured = {
        **held,
        "metric": problem.METRIC,
        "quality": float(problem.scores(logits[NAME], targets).mean()),
        "teacher_quality": float(problem.scores(logits["teacher"], targets).mean()),
        "agreement_with_teacher": agreement.share,
        "agreement_rows": agreement.rows,
        "num_examples": len(targets),
        "num_parameters": _num_parameters(directory if simulated is None else simulated, problem_name),
        **proof.weight(candidate, problem=problem_name),
        **times,
        **({"generation": generated} if generated else {}),
        "runtime": candidate.runtime(provider),
        "provider": provider,
        "cpu_model": machine.cpu_model(),
        "kernels": machine.kernels(),
        "threads": threads,
    }
    return Appraisal(measured, logits, data, problem_name)


def _num_parameters(directory: Path, problem: str) -> int | None:
    if not (directory / modeling.WEIGHTS).is_file():
        return None
    return modeling.num_parameters(modeling.skeleton(directory, problem))
