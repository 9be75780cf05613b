"""What a search costs, and that a kill costs it nothing: run it on an otherwise idle machine, after installation.

    infra/run python tests/benchmarks/search.py

It searches the smoke problem in an empty home, data and teacher included. Then it does the same in another home, kills
the process in the middle (``kill -9``) and starts it again: no stage may be computed to its end twice, and no trial
repeated. Prints a Markdown table on standard output; takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def command(options: argparse.Namespace) -> list[str]:
    return [
        sys.executable, "-m", "flows.command.cli", "search", options.recipe, "--trials", str(options.trials),
        "--minimize", options.minimize, "--parallel", str(options.parallel), "--runner", options.runner, "--json",
    ]  # fmt: skip


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "FEATHERWEIGHT_HOME": str(home), "PYTHONPATH": str(ROOT)}


def searched(options: argparse.Namespace, home: Path) -> tuple[float, dict[str, Any]]:
    """Wall time of a whole search, and its document."""
    started = time.monotonic()
    done = subprocess.run(command(options), env=environment(home), capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return time.monotonic() - started, json.loads(done.stdout)


def finished(home: Path) -> Counter[str]:
    """How often each stage was computed to its end in a home, over all processes."""
    log = home / "logs" / "featherweight.log"
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    return Counter(re.findall(r"featherweight: (\w+): done in", text))


def records(home: Path) -> int:
    return len(list((home / "store" / "records").glob("*.json")))


def killed(options: argparse.Namespace, home: Path, after: int) -> float:
    """Seconds until a search that was begun had recorded so many stages, whereupon it was killed."""
    started = time.monotonic()
    with subprocess.Popen(
        command(options), env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while records(home) < after and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="smoke")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--minimize", default="latency")
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--runner", default="threads")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="featherweight-benchmark-"))
    whole, document = searched(options, folder / "whole")
    total = records(folder / "whole")
    until = killed(options, folder / "killed", total // 2)
    held = records(folder / "killed")
    rest, resumed = searched(options, folder / "killed")
    states = Counter(trial["state"] for trial in document["trials"])
    computed, recorded = sum(finished(folder / "killed").values()), records(folder / "killed")
    print("| measure | |\n|---|---|")
    print(f"| {options.trials} trials, empty home, data and teacher included | {whole:.0f} s |")
    for state, count in states.items():
        print(f"| of which {state} | {count} |")
    by_stage = ", ".join(f"{stage} {count}" for stage, count in finished(folder / "whole").items())
    print(f"| stages computed | {by_stage} |")
    print(f"| killed after | {until:.0f} s, with {held} stages recorded |")
    print(f"| resumed, took | {rest:.0f} s |")
    print(f"| stages computed to their end in both, and recorded | {computed} and {recorded} |")
    same = [trial["changes"] for trial in resumed["trials"]] == [trial["changes"] for trial in document["trials"]]
    print(f"| trials after the kill | {len(resumed['trials'])}, {'the same' if same else 'others than without it'} |")
    points = {json.dumps(trial["changes"], sort_keys=True) for trial in resumed["trials"]}
    # A kill may come between what a stage recorded and its line in the log.
    assert recorded - 1 <= computed <= recorded, "a stage was computed twice"
    assert len(points) == len(resumed["trials"]) == options.trials, "a trial was repeated"


if __name__ == "__main__":
    main()
