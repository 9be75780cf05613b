"""What the demo must show, measured: run it on an otherwise idle machine, after installation.

    infra/run python tests/benchmarks/demo.py [--home DIRECTORY]

It runs the demo in an empty home, the same again, once more with another quantization scheme, and the smoke recipe in
another empty home; each as a process of its own, timed from outside. Latency is what ``validate`` measured: the
shipped model and the eager fp32 teacher with the same threads, one at a time, interleaved. Prints a Markdown table on
standard output and what the commands say on standard error; takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def run(home: Path, *arguments: str) -> tuple[float, dict[str, Any]]:
    """Runs ``featherweight … --json`` and returns its wall time in seconds and its document."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments, "--json"],
        env={**os.environ, "FEATHERWEIGHT_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return time.monotonic() - started, json.loads(done.stdout)


def cached(document: dict[str, Any]) -> list[str]:
    return [stage["stage"] for stage in document["stages"] if stage["cached"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, help="an empty directory; a temporary one by default")
    home = parser.parse_args().home or Path(tempfile.mkdtemp(prefix="featherweight-benchmark-"))
    seconds, demo = run(home / "demo", "demo")
    again_seconds, again = run(home / "demo", "demo")
    _, changed = run(home / "demo", "compress", "demo", "--set", "quantization.embeddings=int4")
    smoke_seconds, _ = run(home / "smoke", "compress", "smoke")
    models = {stage["stage"]: stage["scorecard"] for stage in demo["stages"]}
    checks = {check["name"]: check for check in demo["verdict"]["checks"]}
    evidence = next(stage["evidence"] for stage in demo["stages"] if stage["stage"] == "validate")
    validation = json.loads((home / "demo" / "store" / "objects" / evidence / "validation.json").read_text())
    teacher, shipped = validation["models"][0], validation["models"][-1]

    def interval(name: str, scale: float = 1.0) -> str:
        check = checks[name]
        return f"{check['measured'] * scale:.2f} ({check['low'] * scale:.2f} … {check['high'] * scale:.2f})"

    rows = {
        "verdict": demo["verdict"]["status"],
        f"teacher accuracy, test, n = {validation['n']}": f"{teacher['accuracy']:.4f}",
        "shipped accuracy": f"{shipped['accuracy']:.4f}",
        "accuracy lost, points, paired": interval("quality_drop", 100),
        "times smaller": f"{interval('shrink')}: {teacher['size_mb']:.1f} → {shipped['size_mb']:.2f} MB",
        "times faster, p50, one sentence": f"{interval('speedup')}: "
        f"{teacher['latency_p50_ms']:.2f} → {shipped['latency_p50_ms']:.3f} ms",
        "demo, wall": f"{seconds:.0f} s",
        "the same again, wall": f"{again_seconds:.1f} s; Cached: {', '.join(cached(again))}",
        "another quantization scheme": f"Cached: {', '.join(cached(changed))}",
        "smoke, wall": f"{smoke_seconds:.1f} s",
        "parameters": f"{teacher['num_parameters']:,} → {models['prune']['num_parameters']:,}",
    }
    print("| measure | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
