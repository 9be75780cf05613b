"""What running on servers costs: run it on an otherwise idle machine, after installation.

    infra/run python tests/benchmarks/servers.py

It times ``featherweight up`` in an empty home until both UIs answer, again in the same home, and then runs of the smoke
recipe that find every stage cached, from the request over the API to the final state. Prints a Markdown table on
standard output; takes about four minutes on two cores.
"""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import servers

RUNS = 5


def seconds_to_uis(said: str) -> int:
    """The later of the two times that ``up`` prints."""
    return max(int(found) for found in re.findall(r"^(?:prefect|mlflow): http\S+ \((\d+) s\)$", said, re.MULTILINE))


def triggered(client: SyncPrefectClient) -> tuple[float, float]:
    """Seconds from the request to the final state, and of the run itself."""
    deployment = client.read_deployment_by_name("compress/compress-smoke")
    started = time.monotonic()
    run = client.create_flow_run_from_deployment(deployment.id)
    while not ((found := client.read_flow_run(run.id)).state and found.state.is_final()):
        time.sleep(0.2)
    assert found.state.is_completed(), found.state
    return time.monotonic() - started, found.total_run_time.total_seconds()


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="featherweight-benchmark-"))
    with servers.up(folder / "home", folder / "first.log") as running:
        first = seconds_to_uis(running.said())
    with (
        servers.up(folder / "home", folder / "second.log") as running,
        SyncPrefectClient(running.api, auth_string=running.password) as client,
    ):
        second = seconds_to_uis(running.said())
        computed, _ = triggered(client)
        cached = [triggered(client) for _ in range(RUNS)]
    walls, runs = zip(*cached, strict=True)
    print("| measure | seconds |\n|---|---|")
    print(f"| up, empty home, until both UIs answer | {first} |")
    print(f"| up again | {second} |")
    print(f"| smoke, everything computed, from request to final state | {computed:.0f} |")
    for name, values in (("from request to final state", walls), ("of which the run itself", runs)):
        print(f"| the same, cached, {name} | {statistics.median(values):.1f} ({min(values):.1f} … {max(values):.1f}) |")


if __name__ == "__main__":
    main()
