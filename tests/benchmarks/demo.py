"""What the demo must show, measured: run it on an otherwise idle machine, after installation.

    infra/run python tests/benchmarks/demo.py [--home DIRECTORY] [--seeds 0 1] [--json FILE]

It runs the demo in an empty home, the same again, once more with another quantization scheme, and the smoke recipe in
another empty home; each as a process of its own, timed from outside. Then the demo with further seeds, and
``side_by_side.py`` measures the teacher and the shipped model of each seed. Prints Markdown tables on standard output
and what the commands say on standard error; takes about twenty minutes on two cores, and twelve for each further seed.
Others' tools on the same teacher: ``peers.py``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import side_by_side
from side_by_side import say


def timed(home: Path, *arguments: str) -> tuple[float, dict[str, Any]]:
    """Wall time in seconds of a command, and its document."""
    started = time.monotonic()
    outcome = side_by_side.featherweight(home, *arguments)
    return time.monotonic() - started, outcome


def cached(document: dict[str, Any]) -> list[str]:
    return [stage["stage"] for stage in document["stages"] if stage["cached"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, help="an empty directory; a temporary one by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="the first one's wall time counts")
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    parser.add_argument("--sentences", type=int, default=160, help="of the test split, timed in each round")
    parser.add_argument("--json", type=Path, help="a file for everything that was measured")
    options = parser.parse_args()
    home = options.home or Path(tempfile.mkdtemp(prefix="featherweight-benchmark-"))
    demo = ("compress", "demo", "--set", f"seed={options.seeds[0]}")
    seconds, first = timed(home / "demo", *demo)
    again_seconds, again = timed(home / "demo", *demo)
    _, changed = timed(home / "demo", *demo, "--set", "quantization.scheme=int8-static")
    smoke_seconds, _ = timed(home / "smoke", "compress", "smoke")
    models = {stage["stage"]: stage["scorecard"] for stage in first["stages"]}
    rows = {
        "verdict": first["verdict"]["status"],
        "demo, wall": f"{seconds:.0f} s",
        "the same again, wall": f"{again_seconds:.1f} s; Cached: {', '.join(cached(again))}",
        "another quantization scheme": f"Cached: {', '.join(cached(changed))}",
        "smoke, wall": f"{smoke_seconds:.1f} s",
        "parameters": f"{models['train']['num_parameters']:,} → {models['prune']['num_parameters']:,}",
    }
    seeds = {}
    for run in side_by_side.runs(home / "demo", "demo", options.seeds):
        say(f"— {run.name}")
        seeds[run.name] = side_by_side.measure(run, {}, rounds=options.rounds, sentences=options.sentences)
    print("| measure | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    side_by_side.show(seeds, with_peers=False)
    if options.json:
        options.json.write_text(json.dumps({"walls": rows, **side_by_side.document(seeds)}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
