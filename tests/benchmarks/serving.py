"""What the scoring server answers: requests per second, latency and hostile requests, on an otherwise idle machine.

    infra/run python tests/benchmarks/serving.py --home DIRECTORY [--run ID] [--mlflow]

The shipped model of a run answers on one core, clients ask from another, one text a request, 1 to 32 of them at once;
then its teacher does, in PyTorch eager fp32, behind the same server. ``--mlflow`` adds MLflow's own way to the same
predictor, with a data frame for every request. Last, 300 hostile requests come from 32 clients. Prints Markdown tables;
takes about three minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

CLIENTS = (1, 2, 4, 8, 16, 32)
SECONDS = 5.0
LIMIT_MS = 50.0
JSON = {"Content-Type": "application/json"}


def serve(kind: str, path: str, problem: str, max_length: int, port: int) -> None:
    """Serves a bundle until terminated, on one core; the body of the process that is measured."""
    import uvicorn

    from tasks.serving import server

    os.sched_setaffinity(0, {0})
    if kind == "teacher":
        import torch

        from tasks.ml.models import modeling, tokenization
        from tasks.ml.quality import evaluation

        torch.set_num_threads(1)
        model, tokenizer = modeling.load(Path(path), problem), tokenization.load(Path(path))
        names = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))["id2label"]
        labels = [names[key] for key in sorted(names, key=int)]

        def predict(texts: Sequence[str]) -> list[dict[str, Any]]:
            rows = tokenization.encode(list(texts), tokenizer, max_length=max_length)
            logits = evaluation.logits(model, rows, pad_id=tokenizer.pad_token_id)
            exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
            shares = exponents / exponents.sum(axis=-1, keepdims=True)
            return [{"label": labels[int(row.argmax())], "score": float(row.max())} for row in shares]

        async def nothing(*_: Any) -> None: ...

        application: Any = server.Server(nothing, predict)
    else:
        application = server.application(path)
        if kind == "mlflow":
            application = application.inner
    uvicorn.run(application, host="127.0.0.1", port=port, log_level="warning")


@contextlib.contextmanager
def running(kind: str, path: Path, problem: str, max_length: int) -> Iterator[tuple[str, psutil.Process]]:
    """A server of its own process that answers, its address, and the process."""
    from tests import servers

    (port,) = servers.free_ports(1)
    command = [sys.executable, __file__, "--serve", kind, str(path), problem, str(max_length), str(port)]
    environment = os.environ | {"FEATHERWEIGHT_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    url = f"http://127.0.0.1:{port}/invocations"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.post(url, content=b'{"dataframe_records": [{"text": "a"}]}', headers=JSON).raise_for_status()
                break
            except httpx.TransportError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


async def ask(url: str, bodies: Sequence[bytes], clients: int) -> tuple[float, float]:
    """Requests per second, and the 99th percentile of their milliseconds."""
    took: list[float] = []
    end = time.perf_counter() + SECONDS

    async def client(number: int) -> None:
        async with httpx.AsyncClient(timeout=60) as connection:
            turn = number
            while (started := time.perf_counter()) < end:
                answer = await connection.post(url, content=bodies[turn % len(bodies)], headers=JSON)
                answer.raise_for_status()
                took.append((time.perf_counter() - started) * 1e3)
                turn += clients

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    return len(took) / (time.perf_counter() - started), statistics.quantiles(took, n=100)[98]


def hostile() -> list[tuple[bytes, dict[str, str]]]:
    """Requests that no client should send."""
    from tasks.serving import bodies

    texts = ["", "\0", "é" * 9000, "a" * bodies.MAX_CHARACTERS, "a " * 50_000, "\u202e", "🙂" * 500, "[PAD]" * 300]
    good = [json.dumps({"inputs": [text]}).encode() for text in texts]
    bad = [
        b"", b"{", b"[]", b"null", b"[" * 990, b'{"a":' * 990, b'{"inputs": ' + b"9" * 5000 + b"}", b"\xff\xfe",
        b'{"inputs": [1]}', b'{"inputs": [null]}', b'{"inputs": ["\\ud800"]}', b'{"inputs": {"text": [[]]}}',
        json.dumps({"inputs": ["a"] * 100_000}).encode(), json.dumps({"inputs": ["a " * 5_000_000]}).encode(),
        json.dumps({"inputs": ["a good film"] * bodies.MAX_ROWS}).encode(), b'{"dataframe_records": [{}]}',
        b'{"dataframe_split": {}}',
    ]  # fmt: skip
    requests = [(body, JSON) for body in (*good, *bad)]
    requests += [(good[0], {}), (good[0], {"Content-Type": "application/json; charset=latin-1"})]
    requests += [
        (good[0], {"Content-Type": "application/vnd.apache.parquet"}),
        (b"text\n" + b'"', {"Content-Type": "text/csv"}),
    ]
    return [requests[number % len(requests)] for number in range(300)]


async def attack(url: str) -> Counter[int]:
    """Statuses of 300 hostile requests from 32 clients; a connection that breaks counts as 599."""
    statuses: Counter[int] = Counter()
    waiting = iter(hostile())

    async def client() -> None:
        async with httpx.AsyncClient(timeout=300) as connection:
            for body, headers in waiting:
                try:
                    statuses[(await connection.post(url, content=body, headers=headers)).status_code] += 1
                except httpx.TransportError:
                    statuses[599] += 1

    await asyncio.gather(*(client() for _ in range(32)))
    return statuses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, help="of the run")
    parser.add_argument("--run", default="", help="id of the run, or its beginning; the newest by default")
    parser.add_argument("--mlflow", action="store_true", help="also MLflow's own way to the same predictor")
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        kind, path, problem, max_length, port = options.serve
        serve(kind, path, problem, int(max_length), int(port))
        return
    os.environ["FEATHERWEIGHT_HOME"] = str(options.home)
    from flows.command import history
    from flows.servers import embedded

    embedded.configure()
    from tasks.engine import registry, store

    outcome = history.outcome(options.run)
    assert outcome.release is not None, "the run shipped nothing"
    teacher = next(stage.bundle for stage in outcome.stages if stage.stage == "train")
    assert teacher is not None
    bundle = store.path(outcome.release.digest)
    about = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    golden = json.loads((bundle / "golden.json").read_text(encoding="utf-8"))
    texts = [row["text"] for row in golden if 10 < len(row["text"]) < 400]
    requests = [json.dumps({"dataframe_records": [{"text": text}]}).encode() for text in texts]
    os.sched_setaffinity(0, {1})
    print(
        "| served on one core | "
        + " | ".join(f"{n} clients" for n in CLIENTS)
        + f" | most at p99 ≤ {LIMIT_MS:.0f} ms |"
    )
    print("|---" * (len(CLIENTS) + 2) + "|")
    with registry.servable(bundle) as directory:
        kinds = {"shipped": directory, **({"mlflow": directory} if options.mlflow else {})}
        kinds["teacher"] = store.path(teacher.digest)
        for kind, path in kinds.items():
            with running(kind, path, about["problem"], about["max_length"]) as (url, _):
                asyncio.run(ask(url, requests, 2))
                found = [asyncio.run(ask(url, requests, clients)) for clients in CLIENTS]
            best = max((rate for rate, p99 in found if p99 <= LIMIT_MS), default=0.0)
            cells = " | ".join(f"{rate:.0f}/s, p99 {p99:.1f} ms" for rate, p99 in found)
            print(f"| {kind} | {cells} | {best:.0f}/s |", flush=True)
        with running("shipped", directory, about["problem"], about["max_length"]) as (url, process):
            before = process.memory_info().rss
            statuses = asyncio.run(attack(url))
            asyncio.run(ask(url, requests, 32))
            rss = process.memory_info().rss
    memory = f"RSS {before / 1e6:.0f} → {rss / 1e6:.0f} MB"
    print(f"\n300 hostile requests, 32 clients: {dict(sorted(statuses.items()))}; {memory}")


if __name__ == "__main__":
    main()
