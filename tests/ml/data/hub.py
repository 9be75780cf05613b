"""A hub with one dataset, ``someone/snippets``: what the ``datasets`` library asks of a hub, over real HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq

REPOSITORY = "someone/snippets"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train.parquet}
  - {split: validation, path: data/validation.parquet}
---
"""


def _parquet(name: str, count: int) -> bytes:
    buffer = io.BytesIO()
    columns = {"text": [f"{name} {row}" for row in range(count)], "label": [row % 2 for row in range(count)]}
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


FILES = {
    "README.md": CARD.encode(),
    "data/train.parquet": _parquet("train", 40),
    "data/validation.parquet": _parquet("validation", 10),
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        api, resolve = f"/api/datasets/{REPOSITORY}/", f"/datasets/{REPOSITORY}/resolve/"
        if path.startswith(f"{api}revision/"):
            self._answer({"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]})
        elif path.startswith(f"{api}tree/"):
            folder = path.removeprefix(f"{api}tree/").partition("/")[2]
            self._answer([self._entry(name) for name in FILES if name.startswith(folder)])
        elif path.startswith(resolve):
            name = path.removeprefix(resolve).partition("/")[2]
            if name in FILES:
                self._answer(FILES[name], **{"ETag": f'"{self._entry(name)["oid"]}"'})
            else:
                self._answer({}, status=404, **{"X-Error-Code": "EntryNotFound"})
        else:
            self._answer({}, status=404, **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def _entry(self, name: str) -> dict[str, object]:
        oid = hashlib.sha1(FILES[name]).hexdigest()
        return {"type": "file", "path": name, "size": len(FILES[name]), "oid": oid}

    def _answer(self, body: object, *, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for header, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """Yields the URL of a running hub."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
