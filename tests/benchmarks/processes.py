"""Training in several processes beside training in one, on a CPU: run it on an otherwise idle machine.

    infra/run python tests/benchmarks/processes.py [--processes 2] [--steps 40] [--epochs 10] [--rounds 3]
        [--embeddings sparse]

The same model, rows, batches and dropout as in ``training.py``, through ``elastic.agent`` as a recipe's
``num_processes`` does it, with one thread in each process. One process and several take turns; who comes first changes
with each round. Samples per second are those of the steps of a run but for its first five, in which memory is allocated
and processes find each other. Curves are read at every other step, where the demo's three epochs read them at every
third; a run of fewer than 400 steps would do so at each, which processes do together. The figure is the median over
rounds of the ratio, with its quartiles.

Prints Markdown on standard output and progress on standard error; takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import training

from tasks.ml.data import datasets
from tasks.ml.jobs import elastic, lessons
from tasks.ml.models import locators, tokenization
from tasks.ml.problem import problem_of
from tasks.ml.training import trainer

SKIPPED = 5
"""Steps at the start of a run."""


def samples_per_s(model: Any, lesson: lessons.Lesson, spec: dict[str, Any], processes: int) -> tuple[float, str]:
    """Trains a copy, and returns how fast and how gradients were exchanged."""
    with tempfile.TemporaryDirectory() as folder:
        job = elastic.write_job(
            Path(folder),
            model,
            lesson,
            for_model=spec["for_model"],
            for_trainer={**spec["settings"], "seed": 0},
            checkpoint=None,
        )
        with elastic.agent(job, ["--standalone", "--nproc-per-node", str(processes)], 1) as agent:
            agent.wait()
        history = elastic.read_result(job, copy.deepcopy(model))
    speeds = [point["samples_per_s"] for point in history.points]
    return statistics.harmonic_mean(speeds[SKIPPED:]), history.notes["gradients"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of an epoch")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--embeddings", default="sparse", help="sparse, dense or frozen")
    parser.add_argument("--keep", type=Path, help="an empty directory for the data")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="featherweight-benchmark-"))
    folder.mkdir(parents=True, exist_ok=True)
    spec = training.prepare(folder)
    spec["for_model"] = {**spec["for_model"], "embeddings": options.embeddings}
    spec["settings"] = {**spec["settings"], "epochs": options.epochs}
    data, base = Path(spec["data"]), locators.locate(spec["base_model"])
    rows, selection = datasets.read(data, "train"), datasets.read(data, "selection")
    count = options.steps * spec["settings"]["batch_size"]
    chosen = random.Random(0).sample(range(len(rows)), count)
    trainer.seed_everything(0)
    model = problem_of(spec["problem"]).load_base(base, datasets.info(data).labels, dropout=spec["dropout"])
    lesson = lessons.Lesson(
        problem=spec["problem"],
        pad_id=tokenization.load(base).pad_token_id,
        input_ids=[rows.input_ids[row] for row in chosen],
        targets=rows.targets[chosen],
        selection=selection.head(64),
    )
    speeds: dict[int, list[float]] = {1: [], options.processes: []}
    how = ""
    for number in range(options.rounds):
        for processes in sorted(speeds, reverse=number % 2 == 1):
            speed, said = samples_per_s(model, lesson, spec, processes)
            speeds[processes].append(speed)
            how = said if processes > 1 else how
        training.say(
            f"round {number + 1} of {options.rounds}: {speeds[1][-1]:.1f}, {speeds[options.processes][-1]:.1f}"
        )
    alone, together = (np.array(each) for each in speeds.values())
    low, median, high = np.quantile(together / alone, [0.25, 0.5, 0.75])
    print("| processes of one thread | samples/s (median) | times as fast as one (quartiles) | gradients |")
    print("|---|---|---|---|")
    print(f"| 1 | {np.median(alone):.1f} | 1 | – |")
    print(f"| {options.processes} | {np.median(together):.1f} | {median:.2f} ({low:.2f} … {high:.2f}) | {how} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
