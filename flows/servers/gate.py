"""Prefect's server behind a gate: it answers to its own names only, and to no other page that a browser shows.

::

    python -m flows.servers.gate --host 127.0.0.1 --port 4200

A page of anybody may send requests to loopback, and a name that its owner lets point there makes it the page's origin.
Prefect by itself answers all of them, and who may talk to it can have the worker execute anything. So requests need
the password (``PREFECT_SERVER_API_AUTH_STRING``), a ``Host`` that is this server's, and an ``Origin``, if any, that is
its UI's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, MutableMapping
from typing import Any

DEPLOYMENTS = "/deployments"
"""The page of Prefect's UI that a person wants first, and gets to by signing in."""
SIGN_IN = "/sign-in"
"""The page that puts what is behind ``#``, which is sent to no one, where Prefect's UI looks for its password."""

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Featherweight</title>
<p id="said">Signing in …</p>
<script>
const given = decodeURIComponent(location.hash.slice(1))
history.replaceState(null, "", location.pathname)
fetch("/api/admin/version", {headers: {Authorization: "Basic " + btoa(given)}}).then(answer => {
  if (answer.ok) { localStorage.setItem("prefect-password", btoa(given)); location.replace("/deployments") }
  else { document.getElementById("said").textContent = "This link is not of this server; take the newest one." }
})
</script>
"""
PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; connect-src 'self'",
    "Referrer-Policy": "no-referrer",
}

Message = MutableMapping[str, Any]


class Gate:
    """An ASGI application that lets through what is meant for it.

    Attributes:
        hosts: what ``Host`` may be, as HOST:PORT.
        origins: what ``Origin`` may be, where there is one.
    """

    def __init__(self, app: Any, *, hosts: Collection[str]) -> None:
        self.app, self.hosts, self.origins = app, frozenset(hosts), frozenset(origins(hosts))

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or self._is_meant(scope):
            await self.app(scope, receive, self._confined(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            text = {"type": "http.response.body", "body": b"Host or Origin is not one of this server's.\n"}
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send(text)

    def _is_meant(self, scope: Message) -> bool:
        given = {name: [v.decode("latin-1") for n, v in scope["headers"] if n == name] for name in (b"host", b"origin")}
        return (
            len(given[b"host"]) == 1
            and given[b"host"][0].lower() in self.hosts
            and all(origin.lower() in self.origins for origin in given[b"origin"])
        )

    def _confined(self, send: Any) -> Any:
        """Tells browsers what these pages may do.

        No other page may show them in a frame, where a person could be led to click, and they talk to these hosts only:
        Prefect's UI greets a service that counts visitors, also where the server has analytics switched off.
        """
        sockets = (origin.replace("http", "ws", 1) for origin in self.origins)
        policy = f"connect-src 'self' {' '.join(sorted({*self.origins, *sockets}))}"

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = [(b"x-frame-options", b"DENY"), (b"content-security-policy", policy.encode("latin-1"))]
                message["headers"] = [*message.get("headers", ()), *told]
            await send(message)

        return sending


def origins(hosts: Collection[str]) -> list[str]:
    """The origins of pages that these hosts serve."""
    return [f"{scheme}://{host}" for host in sorted(hosts) for scheme in ("http", "https")]


def of_loopback(port: int) -> list[str]:
    """The names of a server on this machine."""
    return [f"127.0.0.1:{port}", f"localhost:{port}"]


def sign_in_link(url: str, password: str) -> str:
    """The address that signs a browser in."""
    from urllib.parse import quote

    return f"{url}{SIGN_IN}#{quote(password, safe=':')}"


def configure(hosts: Collection[str]) -> None:
    """Sets what Prefect reads from the environment when it is imported."""
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(origins(hosts))


def application(hosts: Collection[str]) -> Gate:
    """Prefect's API and UI behind the gate. Call ``configure`` before Prefect is imported."""
    from prefect.server.api.server import create_app
    from starlette.responses import HTMLResponse
    from starlette.routing import Route

    app = create_app(final=True)

    async def sign_in(_: Any) -> HTMLResponse:
        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    app.router.routes.insert(0, Route(SIGN_IN, sign_in))
    return Gate(app, hosts=hosts)


def main() -> None:
    """Runs the server until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.servers.gate", description="Run Prefect's server behind a gate."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=int(os.environ.get("PREFECT_SERVER_API_PORT", "4200")))
    parser.add_argument(
        "--allowed-hosts", default="", metavar="HOST:PORT,…", help="names that clients know it by, besides loopback"
    )
    options = parser.parse_args()
    if not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        parser.error(
            "set PREFECT_SERVER_API_AUTH_STRING to USER:PASSWORD: who may talk to Prefect can execute anything"
        )
    named = [host.strip().lower() for host in options.allowed_hosts.split(",") if host.strip()]
    import uvicorn

    hosts = [*of_loopback(options.port), *named]
    configure(hosts)
    uvicorn.run(application(hosts), host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
