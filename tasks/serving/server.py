"""MLflow's scoring server behind limits: ``python -m tasks.serving.server --model-uri DIR --host H --port P``.

MLflow answers ``/ping``, ``/health`` and ``/version``. Requests to ``/invocations`` are read by ``bodies`` and go to
the predictor without a data frame in between, with the answers that MLflow's own way gives. Work is done in pieces, so
that small requests pass large ones, and what nobody waits for any more ends. A model that continues texts does one text
at a time, and what it cannot continue is refused before it begins.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping, Sequence
from typing import Any

from tasks.serving import bodies

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
Predict = Callable[..., list[dict[str, Any]]]

ROWS = 64
"""Computed at once, before it is another request's turn."""
CODES = {400: "BAD_REQUEST", 413: "REQUEST_TOO_LARGE", 415: "UNSUPPORTED_MEDIA_TYPE", 500: "INTERNAL_ERROR"}

logger = logging.getLogger("featherweight")


class Server:
    """An ASGI application in front of another one."""

    def __init__(
        self,
        inner: Application,
        predict: Predict,
        *,
        require: Callable[[Sequence[str]], None] | None = None,
        options: Collection[str] = (),
        rows: int = ROWS,
        column: str = "text",
    ) -> None:
        """Takes MLflow's application, and what answers texts in their order.

        Args:
            require: raises the ``ValueError`` of a text that ``predict`` would refuse.
            options: arguments of ``predict`` that a request may set in its ``params``; none of them leaves ``params``
                unread.
            rows: computed at once, before it is another request's turn.
            column: what is read of a request.
        """
        self.inner, self.predict = inner, predict
        self.require, self.options, self.rows, self.column = require, options, rows, column
        self.turn = asyncio.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", "/invocations"):
            await self.inner(scope, receive, send)
            return
        try:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            body, content_type = await _body(receive, headers), headers.get("content-type", "")
            texts = bodies.texts(body, content_type, self.column)
            options = bodies.options(body, content_type, self.options) if self.options else {}
            if self.require:
                await self._check(texts)
            answers = await self._answers(texts, options, receive)
        except bodies.RefusalError as refused:
            await _answer(send, refused.status, {"error_code": CODES[refused.status], "message": str(refused)})
        except Exception:
            logger.exception("a request failed")
            await _answer(
                send, 500, {"error_code": CODES[500], "message": "the model failed; the server's log says how"}
            )
        else:
            if answers is not None:
                await _answer(send, 200, {"predictions": answers})

    async def _check(self, texts: list[str]) -> None:
        assert self.require is not None
        try:
            await asyncio.to_thread(self.require, texts)
        except ValueError as error:
            raise bodies.RefusalError(400, str(error)) from None

    async def _answers(
        self, texts: list[str], options: Mapping[str, int], receive: Receive
    ) -> list[dict[str, Any]] | None:
        """Answers in pieces; ``None`` if the client went away."""
        gone = asyncio.ensure_future(_departure(receive))
        answers: list[dict[str, Any]] = []
        try:
            for start in range(0, len(texts), self.rows):
                async with self.turn:
                    if gone.done():
                        return None
                    answers += await asyncio.to_thread(self.predict, texts[start : start + self.rows], **options)
            return answers
        finally:
            gone.cancel()


async def _body(receive: Receive, headers: dict[str, str]) -> bytes:
    """Reads a body that is not too large.

    Raises:
        RefusalError: it is.
    """
    announced = headers.get("content-length", "0")
    size = int(announced) if announced.isdecimal() and len(announced) < 20 else 0
    parts: list[bytes] = []
    more = True
    while more:
        if size > bodies.MAX_BYTES:
            raise bodies.RefusalError(413, f"more than {bodies.MAX_BYTES} bytes; send several requests")
        message = await receive()
        if message["type"] == "http.disconnect":
            raise bodies.RefusalError(400, "the request ended before its body did")
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
        size = max(size, sum(map(len, parts)))
    return b"".join(parts)


async def _departure(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Send, status: int, value: dict[str, Any]) -> None:
    body = json.dumps(value, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def application(model_uri: str) -> Server:
    """Loads an MLflow model of ours and puts it behind the limits."""
    from mlflow import pyfunc
    from mlflow.pyfunc import scoring_server

    model = pyfunc.load_model(model_uri)
    predictor = model.unwrap_python_model().predictor
    inner = scoring_server.init(model)
    if not predictor.answers.GENERATES:
        return Server(inner, predictor.predict)
    answers = predictor.answers
    return Server(
        inner, predictor.predict, require=predictor.require, options=answers.options, rows=1, column=answers.INPUT
    )


def main(arguments: Sequence[str] | None = None) -> None:
    import uvicorn

    parser = argparse.ArgumentParser(prog="python -m tasks.serving.server")
    parser.add_argument("--model-uri", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args(arguments)
    uvicorn.run(application(options.model_uri), host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
