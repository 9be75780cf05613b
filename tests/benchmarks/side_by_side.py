"""The teacher of a run, the model it ships and others' of the same teacher, measured in one way.

Same rows, same threads, one model asked at a time: processes and clocks are those of ``validate``. In each round every
model answers the same sentences alone, and then in batches of 16; who comes first changes with the round. Accuracy is
that of the whole test split, asked one row at a time.

Several seeds are pooled row by row: a row counts as right by the fraction of seeds in which it was, and rows are what
the bootstrap draws, so the interval is about texts. How much seeds differ is to be seen in their own tables.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import scipy.stats

from tasks.ml import machine
from tasks.ml.data import datasets, held_out
from tasks.ml.problem import problem_of
from tasks.ml.proof import proof
from tasks.ml.runtime import sessions, timing
from tasks.ml.statistics import bootstrap

PROBLEM = "text-classification"
BATCH = 16
TEACHER, SHIPPED = "teacher", "Featherweight"
TOLERATED = 0.01
"""Accuracy that a peer may lose against the teacher and still be compared with."""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def featherweight(home: Path, *arguments: str) -> dict[str, Any]:
    """Runs ``featherweight … --json`` and returns its document; a verdict that was not passed is no error.

    Raises:
        RuntimeError: the command gave no document.
    """
    done = subprocess.run(
        [sys.executable, "-m", "flows.command.cli", *arguments, "--json"],
        env={**os.environ, "FEATHERWEIGHT_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if not done.stdout.strip():
        raise RuntimeError(f"featherweight {' '.join(arguments)} ended with {done.returncode} and without a document")
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Run:
    """A finished run: the directories of its dataset and of two of its models."""

    name: str
    data: Path
    teacher: Path
    shipped: Path

    @classmethod
    def of(cls, outcome: Mapping[str, Any], home: Path, name: str) -> Run:
        """Finds them in a home, by what ``--json`` said."""
        objects = home / "store" / "objects"
        digests = {stage["stage"]: stage["digest"] for stage in outcome["stages"]}
        return cls(
            name=name,
            data=objects / digests["prepare"],
            teacher=objects / digests["train"],
            shipped=objects / digests["validate"],
        )


@dataclass(frozen=True)
class Measured:
    """One model, or the same model of several seeds.

    Attributes:
        correct: (N,) of the test split, 0 or 1, or the fraction of seeds that were right.
        p50_ms: median over sentences of each round.
        rows_per_s: of each round, in batches of ``BATCH``.
        operators: heavy nodes of the graph by operator; empty in PyTorch.
    """

    name: str
    size_mb: float
    correct: np.ndarray
    p50_ms: list[float]
    rows_per_s: list[float]
    operators: dict[str, int]

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "correct": self.correct.tolist(), "accuracy": self.accuracy}


def runs(home: Path, recipe: str, seeds: Sequence[int]) -> list[Run]:
    """Runs a recipe with each seed; in a home that has done so before, every stage is ``Cached``."""
    made = []
    for seed in seeds:
        outcome = featherweight(home, "compress", recipe, "--set", f"seed={seed}")
        made.append(Run.of(outcome, home, f"{recipe}, seed {seed}"))
    return made


def heavy_operators(file: Path) -> dict[str, int]:
    graph = onnx.load(file, load_external_data=False).graph
    counts = Counter(node.op_type for node in graph.node)
    return {name: count for name, count in sorted(counts.items()) if name in sessions.HEAVY}


@held_out.asking("judge")
def measure(
    run: Run, others: Mapping[str, Path], *, rounds: int, sentences: int
) -> tuple[list[Measured], dict[str, str]]:
    """Measures teacher, shipped model and others.

    Args:
        others: directories with ``model.onnx`` and the tokenizer it wants, by name.
        sentences: of the test split, timed in each round.

    Returns:
        The models in this order, and why those that are missing could not be run.
    """
    threads, problem = machine.num_cores(), problem_of(PROBLEM)
    targets = datasets.read(run.data, "test").targets
    directories = {TEACHER: run.teacher, SHIPPED: run.shipped, **others}
    subjects: list[proof.Subject] = []
    correct: dict[str, np.ndarray] = {}
    failures: dict[str, str] = {}
    for name, directory in directories.items():
        one = proof.subject(name, name, directory, run.data)
        try:
            logits = proof.logits_of(one, problem=PROBLEM, provider=sessions.CPU, threads=threads)
        except Exception as error:  # whatever a graph that is not ours brings onnxruntime to
            if name in (TEACHER, SHIPPED):
                raise
            failures[name] = str(error).strip().splitlines()[-1]
            say(f"{name} cannot be run: {failures[name]}")
            continue
        subjects.append(one)
        correct[name] = problem.scores(logits, targets).astype(np.float64)
        say(f"{name}: accuracy {correct[name].mean():.4f}")
    p50: dict[str, list[float]] = {one.stage: [] for one in subjects}
    rates: dict[str, list[float]] = {one.stage: [] for one in subjects}
    with proof.probes(
        subjects, problem=PROBLEM, provider=sessions.CPU, threads=threads, sentences=sentences
    ) as running:
        names = list(running)
        for number in range(rounds):
            turn = number * len(names) // rounds
            for name in names[turn:] + names[:turn]:
                p50[name].append(timing.summary([running[name].latencies(name)])["latency_p50_ms"])
                rates[name].append(running[name].throughput(name, [BATCH]))
            say(f"round {number + 1} of {rounds}")
    measured = [
        Measured(
            name=one.stage,
            size_mb=proof.weight(one, problem=PROBLEM)["size_mb"],
            correct=correct[one.stage],
            p50_ms=p50[one.stage],
            rows_per_s=rates[one.stage],
            operators=heavy_operators(one.directory / "model.onnx") if one.kind == "onnx" else {},
        )
        for one in subjects
    ]
    return measured, failures


def pooled(seeds: Sequence[Sequence[Measured]]) -> list[Measured]:
    """Puts the models together that were measured with every seed.

    Raises:
        ValueError: the seeds were tested on different rows.
    """
    by_name = [{one.name: one for one in models} for models in seeds]
    result = []
    for name in by_name[0]:
        if not all(name in found for found in by_name):
            continue
        same = [found[name] for found in by_name]
        if len({one.correct.shape for one in same}) > 1:
            raise ValueError("runs to be pooled need the same test rows")
        result.append(
            Measured(
                name=name,
                size_mb=float(np.mean([one.size_mb for one in same])),
                correct=np.mean([one.correct for one in same], axis=0),
                p50_ms=[value for one in same for value in one.p50_ms],
                rows_per_s=[value for one in same for value in one.rows_per_s],
                operators=same[0].operators,
            )
        )
    return result


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided exact p value of McNemar 1947 for paired correctness (N,), 0 or 1."""
    won, lost = int((first > second).sum()), int((first < second).sum())
    return float(scipy.stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def times(interval: bootstrap.Interval) -> str:
    return f"{interval.measured:.1f}× ({interval.low:.1f} … {interval.high:.1f})"


def faster(slow: Measured, fast: Measured) -> bootstrap.Interval:
    return bootstrap.ratio_of_medians(slow.p50_ms, fast.p50_ms)


def more_rows(slow: Measured, fast: Measured) -> bootstrap.Interval:
    return bootstrap.ratio_of_medians(fast.rows_per_s, slow.rows_per_s)


def points_lost(teacher: Measured, other: Measured) -> str:
    measured, low, high = bootstrap.quality_difference(teacher.correct, other.correct)
    return f"{100 * measured:+.2f} ({100 * low:+.2f} … {100 * high:+.2f})"


def table(models: Sequence[Measured], failures: Mapping[str, str], *, one_seed: bool) -> str:
    """Every model in a row, the teacher first; spreads are those of the rounds."""

    def spread(values: Sequence[float], digits: int) -> str:
        low, middle, high = np.quantile(values, [0.0, 0.5, 1.0])
        return f"{middle:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"

    teacher = models[0]
    lines = [
        f"| model | size, MB | p50, ms, one sentence | rows/s, batch {BATCH} | accuracy, n = {len(teacher.correct)} | "
        "points lost (95 %) | McNemar p | heavy operators |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in models:
        lost, p = ("–", "–") if one is teacher else (points_lost(teacher, one), "–")
        if one is not teacher and one_seed:
            p = f"{mcnemar(teacher.correct, one.correct):.3f}"
        operators = ", ".join(f"{count} {name}" for name, count in one.operators.items()) or "PyTorch eager fp32"
        lines.append(
            f"| {one.name} | {one.size_mb:.2f} | {spread(one.p50_ms, 2)} | {spread(one.rows_per_s, 0)} | "
            f"{one.accuracy:.4f} | {lost} | {p} | {operators} |"
        )
    lines += [f"| {name} | failed: {why.replace('|', '/')} | | | | | | |" for name, why in failures.items()]
    return "\n".join(lines)


def rivals(models: Sequence[Measured]) -> list[Measured]:
    """Peers that lose no more than ``TOLERATED``."""
    teacher, _, *others = models
    return [one for one in others if one.accuracy >= teacher.accuracy - TOLERATED]


def goals(models: Sequence[Measured], *, with_peers: bool) -> str:
    """What the shipped model must reach against its teacher, and against the best peers at no worse accuracy."""
    teacher, shipped, *_ = models
    lines = [
        "| against the teacher | must | aim | measured |",
        "|---|---|---|---|",
        f"| size | ≥ 10× | 20× | {teacher.size_mb / shipped.size_mb:.1f}×: "
        f"{teacher.size_mb:.1f} → {shipped.size_mb:.2f} MB |",
        f"| p50, one sentence | ≥ 15× | 25× | {times(faster(teacher, shipped))}: "
        f"{np.median(teacher.p50_ms):.2f} → {np.median(shipped.p50_ms):.3f} ms |",
        f"| rows/s, batch {BATCH} | ≥ 8× | 15× | {times(more_rows(teacher, shipped))}: "
        f"{np.median(teacher.rows_per_s):.0f} → {np.median(shipped.rows_per_s):.0f} |",
        f"| points of accuracy lost | ≤ 1.0 | ≤ 0.3 | {points_lost(teacher, shipped)}: "
        f"{teacher.accuracy:.4f} → {shipped.accuracy:.4f}, n = {len(teacher.correct)} |",
    ]
    if not with_peers:
        return "\n".join(lines)
    lines += ["", f"| against the best peer within {100 * TOLERATED:g} point of the teacher | must | aim | measured |"]
    lines.append("|---|---|---|---|")
    eligible = rivals(models)
    if not eligible:
        return "\n".join([*lines, "| none is within it | | | |"])

    def best(key: Callable[[Measured], float]) -> Measured:
        return min(eligible, key=key)

    smallest = best(lambda one: one.size_mb)
    quickest = best(lambda one: float(np.median(one.p50_ms)))
    busiest = best(lambda one: -float(np.median(one.rows_per_s)))
    lines += [
        f"| smaller than the smallest, {smallest.name} | ≥ 2.5× | 4× | {smallest.size_mb / shipped.size_mb:.1f}× |",
        f"| faster than the fastest, {quickest.name} | ≥ 2.5× | 4× | {times(faster(quickest, shipped))} |",
        f"| rows/s, against {busiest.name} | | | {times(more_rows(busiest, shipped))} |",
        f"| points of accuracy lost against the fastest | | | {points_lost(quickest, shipped)} |",
    ]
    return "\n".join(lines)


def show(seeds: Mapping[str, tuple[list[Measured], dict[str, str]]], *, with_peers: bool) -> None:
    """Prints the tables of each seed, and the pooled one where there are several."""
    for name, (models, failures) in seeds.items():
        print(f"\n## {name}\n\n{table(models, failures, one_seed=True)}\n\n{goals(models, with_peers=with_peers)}")
    if len(seeds) > 1:
        together = pooled([models for models, _ in seeds.values()])
        print(f"\n## {len(seeds)} seeds pooled\n\n{table(together, {}, one_seed=False)}")
        print(f"\n{goals(together, with_peers=with_peers)}")
    print(f"\n{machine.cpu_model()}, {machine.num_cores()} threads")
    sys.stdout.flush()


def document(seeds: Mapping[str, tuple[list[Measured], dict[str, str]]]) -> dict[str, Any]:
    """All that was measured, for ``--json``."""
    return {
        "cpu_model": machine.cpu_model(),
        "threads": machine.num_cores(),
        "seeds": {
            name: {"models": [one.document() for one in models], "failures": failures}
            for name, (models, failures) in seeds.items()
        },
    }
