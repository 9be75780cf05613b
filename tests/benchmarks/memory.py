"""What each stage of a run holds in memory at most.

    infra/run python tests/benchmarks/memory.py RECIPE [--set KEY.PATH=VALUE …] [--home FOLDER]

The recipe is run by ``featherweight compress``, in an empty home unless one is named; the resident sets of its process
and of all below it are added up twenty times a second. Pages that processes share count in each of them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass

import psutil

EVERY_S = 0.05
STAGE = re.compile(r"(\w+): computing")


@dataclass
class Stage:
    """One of the run."""

    name: str
    began: float
    before: float
    """MB held as it began."""
    peak: float = 0.0


def held_mb(root: psutil.Process) -> float:
    """Resident sets of a process and of all below it, in 10^6 bytes."""
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_info().rss / 1e6
        except psutil.NoSuchProcess:
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", dest="changes")
    parser.add_argument("--home", help="where the run and what it makes stay")
    options = parser.parse_args()
    changes = [part for change in options.changes for part in ("--set", change)]
    stages: list[Stage] = []
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-m", "flows.command.cli", "compress", options.recipe, *changes, "--json"]
        environment = {**os.environ, "FEATHERWEIGHT_HOME": options.home or empty}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as run:
            root = psutil.Process(run.pid)

            def listen() -> None:
                assert run.stderr is not None
                for line in run.stderr:
                    print(line, end="", file=sys.stderr)
                    if found := STAGE.search(line):
                        stages.append(Stage(found.group(1), time.monotonic(), held_mb(root)))

            listener = threading.Thread(target=listen)
            listener.start()
            while run.poll() is None:
                held = held_mb(root)
                if stages:
                    stages[-1].peak = max(stages[-1].peak, held)
                time.sleep(EVERY_S)
            listener.join()
    ends = [*(stage.began for stage in stages[1:]), time.monotonic()]
    print("| stage | seconds | MB before | MB at most |\n|---|---|---|---|")
    for stage, end in zip(stages, ends, strict=True):
        print(f"| {stage.name} | {end - stage.began:.0f} | {stage.before:,.0f} | {stage.peak:,.0f} |")
    sys.exit(run.returncode)


if __name__ == "__main__":
    main()
