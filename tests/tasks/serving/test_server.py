"""The scoring server: MLflow's answers without a data frame, limits, and work that ends when nobody waits for it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.serving import bodies, model, server
from tests.tasks.shippable import TEXTS, build

JSON = "application/json"


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> server.Server:
    folder = tmp_path_factory.mktemp("served")
    bundle = build(folder)
    (folder / "model").mkdir()
    names = [path.name for path in bundle.iterdir()]
    return server.application(str(model.installed(bundle, names, folder / "model")))


def post(app: Any, body: bytes, content_type: str | None = JSON) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            headers = {} if content_type is None else {"Content-Type": content_type}
            return await client.post("/invocations", content=body, headers=headers)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (json.dumps({"dataframe_records": [{"text": text} for text in TEXTS]}), JSON),
        (json.dumps({"dataframe_split": {"columns": ["text"], "data": [["a great film"], ["dull"]]}}), JSON),
        (json.dumps({"inputs": {"text": ["a great film", "dull"]}}), JSON),
        (json.dumps({"instances": [{"text": "a great film"}]}), JSON),
        ('text\na great film\n"flat, dull"\n', "text/csv"),
    ],
)
def test_answers_are_those_that_mlflow_gives(application: server.Server, body: str, content_type: str) -> None:
    ours, theirs = (post(app, body.encode(), content_type) for app in (application, application.inner))
    assert ours.status_code == theirs.status_code == 200
    assert ours.json() == theirs.json()


def test_the_rest_is_mlflow(application: server.Server) -> None:
    async def get(path: str) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://test") as client:
            return (await client.get(path)).status_code

    assert [asyncio.run(get(path)) for path in ("/ping", "/version", "/nothing")] == [200, 200, 404]


@pytest.mark.parametrize(
    ("body", "content_type", "status", "message"),
    [
        (b"{}", None, 415, "Content-Type: there is none"),
        (b'{"inputs": ["a", 1]}', JSON, 400, "row 1: text must be a string, not a number"),
        (b"[" * 2000, JSON, 400, "nested too deeply"),
        (b" " * (bodies.MAX_BYTES + 1), JSON, 413, f"more than {bodies.MAX_BYTES} bytes"),
    ],
)
def test_what_is_refused_is_one_sentence(
    application: server.Server, body: bytes, content_type: str | None, status: int, message: str
) -> None:
    answer = post(application, body, content_type)
    assert answer.status_code == status
    assert answer.json().keys() == {"error_code", "message"}
    assert message in answer.json()["message"]


def test_a_model_that_fails_shows_nothing_of_the_machine() -> None:
    def fail(texts: Sequence[str]) -> list[dict[str, Any]]:
        raise OSError(f"{Path.home()}/secret")

    async def nothing(*_: Any) -> None: ...

    answer = post(server.Server(nothing, fail), b'{"inputs": ["a"]}')
    assert answer.status_code == 500
    assert str(Path.home()) not in answer.text


def test_work_ends_when_the_client_has_gone() -> None:
    computed: list[int] = []
    started, gone = threading.Event(), threading.Event()

    def slow(texts: Sequence[str]) -> list[dict[str, Any]]:
        computed.append(len(texts))
        started.set()
        gone.wait(10)
        return [{} for _ in texts]

    async def nothing(*_: Any) -> None: ...

    async def run() -> list[Any]:
        body = json.dumps({"inputs": ["a"] * 10 * server.ROWS}).encode()
        sent: list[Any] = []
        messages = iter([{"type": "http.request", "body": body}])

        async def receive() -> Any:
            try:
                return next(messages)
            except StopIteration:
                await asyncio.to_thread(started.wait, 10)
                asyncio.get_running_loop().call_soon(gone.set)
                return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/invocations",
            "headers": [(b"content-type", b"application/json")],
        }
        await server.Server(nothing, slow)(scope, receive, send)
        return sent

    assert asyncio.run(run()) == []
    assert computed == [server.ROWS]
