"""Two models timed in turns: what a machine that changes its pace does to one, it does to the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

from tasks.ml import machine
from tasks.ml.problem import problem_of
from tasks.ml.proof import proof
from tasks.ml.runtime import timing

SPLIT = "selection"


def run(
    first: Path,
    second: Path,
    *,
    data: Path,
    problem: str,
    device: str,
    threads: int,
    repeats: int,
    sentences: int,
    batch_size: int,
    alone: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[timing.Pace, timing.Pace]:
    """Times two models, ONNX or PyTorch, on the same texts of the selection split, each on the best device it can use.

    Args:
        alone: a context in which nothing else runs on this machine: the timing is taken in it.
    """
    threads = threads or machine.num_cores()
    subjects = [
        proof.subject(name, name, path, data, split=SPLIT) for name, path in (("first", first), ("second", second))
    ]
    providers = [proof.provider_of(subject, device=device) for subject in subjects]
    running: dict[str, timing.Probe] = {}
    with alone(), ExitStack() as stack:
        for subject, provider in zip(subjects, providers, strict=True):
            running |= stack.enter_context(
                proof.probes([subject], problem=problem, provider=provider, threads=threads, sentences=sentences)
            )
        paces = timing.paces(
            running, rounds=repeats, batch_size=batch_size, tokens_at_once=problem_of(problem).TOKENS_AT_ONCE
        )
    return paces["first"], paces["second"]
