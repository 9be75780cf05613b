"""Featherweight beside Olive, optimum-onnx and ONNX Runtime's own tools, in one run: on an otherwise idle machine.

    infra/run python tests/benchmarks/peers.py [--seeds 0 1] [--home DIRECTORY | --run RUN …] [--json FILE]

The teacher of each run goes through every configuration of ``peers_worker.py``, which has an environment of its own,
made on first use in a cache folder (1.4 GB; PyPI is needed for that once). Then ``side_by_side.py`` measures the fp32
teacher, what Featherweight ships, and all of theirs with the project's runtime. Calibration rows are those of the run.

A configuration that fails is listed with what it said last. Compared with is whichever of theirs is best in the matter
at hand and within a point of the teacher's accuracy on test: a choice in their favour, since it is made after the fact.

Prints Markdown on standard output and progress on standard error. Runs of the recipe are taken from ``--home`` where
they are cached there, and else made first (the demo: twenty minutes a seed on two cores); ``--run`` takes finished ones
by their id, whatever code made them. The rest takes about twenty minutes a seed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import peers_worker
import side_by_side
from environments import python_of
from side_by_side import Run, say

from tasks.ml.data import datasets

PINS = (
    "olive-ai==0.13.0",
    "optimum-onnx==0.1.0",
    "optimum==2.1.0",
    "transformers==4.57.6",
    "torch==2.13.0",
    "onnx==1.23.2",
    "onnxscript==0.7.2",
    "onnx-ir==1.1.0",
    "onnxruntime==1.31.1",
    "numpy==2.4.6",
    "datasets==5.0.1",
)
"""All that shapes a graph; optimum-onnx wants a transformers before 5, whose attention ONNX Runtime knows."""
INSTALLED = ("olive-ai", "optimum-onnx", "onnxruntime", "datasets")
LIMIT_S = 900
"""Seconds that a configuration may take."""


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was said"


def make(python: Path, run: Run, folder: Path, chosen: re.Pattern[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Takes the teacher through the configurations whose name matches; what is in ``folder`` already is kept.

    Returns:
        The directory of each configuration's model, and what the others said last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    calibration = folder / "calibration.json"
    calibration.write_text(json.dumps(datasets.read(run.data, "calibration").input_ids), encoding="utf-8")
    quiet = {"HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "PYTHONPATH": ""}
    made: dict[str, Path] = {}
    failures: dict[str, str] = {}
    for name in filter(chosen.search, peers_worker.CONFIGURATIONS):
        output = folder / re.sub(r"\W+", "-", name.lower())
        output.mkdir(exist_ok=True)
        log = output / "log"
        if not (output / "model.onnx").is_file():
            started = time.monotonic()
            command = [str(python), peers_worker.__file__, name, str(run.teacher), str(calibration), str(output)]
            with log.open("w", encoding="utf-8") as said:
                try:
                    done = subprocess.run(
                        command, env=os.environ | quiet, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                        cwd=output, check=False, timeout=LIMIT_S,
                    )  # fmt: skip
                    reason = "" if done.returncode == 0 else last_line(log)
                except subprocess.TimeoutExpired:
                    reason = f"not done after {LIMIT_S} s"
            say(f"{name}: {reason or 'made'} ({time.monotonic() - started:.0f} s)")
            if reason:
                failures[name] = reason
                continue
        for companion in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(run.teacher / companion, output)
        made[name] = output
    return made, failures


def finished(options: argparse.Namespace, home: Path) -> list[Run]:
    """The runs to compare, made first where there are none."""
    if options.run:
        return [Run.of(side_by_side.featherweight(home, "show", one), home, f"run {one}") for one in options.run]
    return side_by_side.runs(home, options.recipe, options.seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, help="a FEATHERWEIGHT_HOME with runs, or for them")
    parser.add_argument("--run", nargs="+", help="ids of finished runs in that home, or their beginnings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the recipe's runs")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--only", default="", help="a regular expression: the configurations to take; all by default")
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    parser.add_argument("--sentences", type=int, default=160, help="of the test split, timed in each round")
    parser.add_argument("--environment", type=Path, help="where the peers are; in the user's cache by default")
    parser.add_argument("--keep", type=Path, help="a directory for what the peers make, to be measured again")
    parser.add_argument("--json", type=Path, help="a file for everything that was measured")
    options = parser.parse_args()
    if options.run and not options.home:
        parser.error("--run needs the --home that the runs are in")
    folder = options.keep or Path(tempfile.mkdtemp(prefix="featherweight-peers-"))
    home = options.home or folder / "home"
    python = python_of("peers", PINS, INSTALLED, options.environment)
    seeds = {}
    for run in finished(options, home):
        say(f"— {run.name}")
        made, failures = make(python, run, folder / run.teacher.name[:16], re.compile(options.only))
        models, unrunnable = side_by_side.measure(run, made, rounds=options.rounds, sentences=options.sentences)
        seeds[run.name] = models, failures | unrunnable
        if options.json:  # after each seed, because the next one takes long
            found = side_by_side.document(seeds) | {"pins": PINS}
            options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    side_by_side.show(seeds, with_peers=True)


if __name__ == "__main__":
    main()
