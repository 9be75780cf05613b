"""serve and deploy: a registered model, tried on its golden rows, answers over HTTP or is written out for Triton."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from flows.supervisor import end_tree, guarded, interruptible
from tasks import registry
from tasks.contracts import FeatherweightError, Release
from tasks.ml import machine
from tasks.serving import triton

KINDS = ("triton",)


def chosen(model: str) -> Release:
    """Finds the version that ``NAME``, ``NAME@ALIAS`` or ``NAME@VERSION`` means; the champion by default.

    Raises:
        FeatherweightError: there is none.
    """
    name, _, which = model.partition("@")
    return registry.release(registry.find(name, which or registry.CHAMPION))


def serve(model: str, *, host: str, port: int) -> int:
    """Runs MLflow's scoring server on a model until interrupted, and returns its exit status.

    The code that answers is that of this installation, whatever was registered. The version is settled at the start: to
    swap the model, move the alias and start the server again.
    """
    with guarded(), interruptible(), ExitStack() as stack:
        release = chosen(model)
        bundle = stack.enter_context(registry.downloaded(release))
        directory = stack.enter_context(registry.servable(bundle))
        registry.self_test(bundle, release)
        print(
            f"featherweight: {release.name} version {release.version} answers at http://{host}:{port}/invocations",
            file=sys.stderr,
        )
        command = ["tasks.serving.server", "--model-uri", str(directory), "--host", host, "--port", str(port)]
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            text=True,
            start_new_session=True,
            preexec_fn=machine.end_with_parent,
        )
        try:
            return process.wait()
        finally:
            end_tree(process)


def write(model: str, kind: str, directory: str) -> Path:
    """Writes a model out for another server and returns its folder.

    Raises:
        FeatherweightError: the kind of server is unknown, or the folder already holds something else.
    """
    if kind not in KINDS:
        raise FeatherweightError(f"--to {kind}: no such server; known are {', '.join(KINDS)}")
    release = chosen(model)
    with registry.downloaded(release) as bundle:
        registry.self_test(bundle, release)
        return triton.write(bundle, Path(directory), release.name, release.version)
