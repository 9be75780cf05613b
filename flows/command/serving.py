"""serve and deploy: a registered model, tried on its golden rows, answers over HTTP or is written out for Triton."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flows.servers.supervisor import end_tree, guarded, interruptible
from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Release
from tasks.engine import registry
from tasks.ml import machine, paths
from tasks.serving import triton

KINDS = ("triton",)


def chosen(model: str) -> Release:
    """Finds the version that ``NAME``, ``NAME@ALIAS`` or ``NAME@VERSION`` means; the champion by default.

    Raises:
        FeatherweightError: there is none.
    """
    name, _, which = model.partition("@")
    return registry.release(registry.find(name, which or registry.CHAMPION))


def serve(model: str, *, host: str, port: int, announce: Callable[[Mapping[str, Any]], None] | None = None) -> int:
    """Runs MLflow's scoring server on a model until interrupted, and returns its exit status.

    The code that answers is that of this installation, whatever was registered. The version is settled at the start: to
    swap the model, move the alias and start the server again.

    Args:
        announce: told what will answer where, before it does.
    """
    with guarded(), interruptible(), ExitStack() as stack:
        release = chosen(model)
        bundle = stack.enter_context(registry.downloaded(release))
        directory = stack.enter_context(registry.servable(bundle))
        registry.self_test(bundle, release)
        url = f"http://{host}:{port}/invocations"
        print(f"featherweight: {release.name} version {release.version} answers at {url}", file=sys.stderr)
        if announce:
            announce({"name": release.name, "version": release.version, "url": url})
        command = ["tasks.serving.server", "--model-uri", str(directory), "--host", host, "--port", str(port)]
        process = subprocess.Popen(
            [sys.executable, "-m", *command], text=True, start_new_session=True, preexec_fn=machine.end_with_parent
        )
        try:
            return process.wait()
        finally:
            end_tree(process)


def write(model: str, kind: str, directory: str) -> Path:
    """Writes a model out for another server and returns its folder.

    Raises:
        FeatherweightError: the kind of server is unknown, or nothing can be written into the folder, or it already
            holds something else.
    """
    if kind not in KINDS:
        raise FeatherweightError(f"--to {kind}: no such server; known are {', '.join(KINDS)}")
    path = paths.written(directory, field="--to")
    release = chosen(model)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise FeatherweightError(f"--to {kind} {directory}: no directory can be made there: {error.strerror}") from None
    with registry.downloaded(release) as bundle:
        registry.self_test(bundle, release)
        return triton.write(bundle, path, release.name, release.version)
