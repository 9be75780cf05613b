"""doctor: whether everything that a run needs is here and works."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from flows.servers import embedded
from tasks.engine import disk, redaction
from tasks.ml import machine
from tasks.ml.distillation import limits

PACKAGES = ("torch", "transformers", "tokenizers", "onnx", "onnxscript", "datasets", "mlflow", "prefect", "fastapi")
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
LIBRARIES = """
import json, onnxruntime, torch
print(json.dumps({
    "providers": onnxruntime.get_available_providers(),
    "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    "threads": torch.get_num_threads(),
}))
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ``status`` is ok, warning or broken."""

    name: str
    status: str
    detail: str


def examine() -> list[Finding]:
    """Looks at everything; never raises for what it finds."""
    return [
        finding
        for look in (_python, _packages, _runtime, _libraries, _cpu, _disk, _prefect, _mlflow)
        for finding in look()
    ]


def _attempt(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", look())
    except Exception as error:
        return Finding(name, "broken", " ".join(str(error).split())[:500] or type(error).__name__)


def _python() -> list[Finding]:
    return [Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]


def _packages() -> list[Finding]:
    return [_attempt(name, lambda name=name: importlib.metadata.version(name)) for name in PACKAGES]  # type: ignore[misc]


def _runtime() -> list[Finding]:
    found = {}
    for name in RUNTIMES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    if len(found) == 1:
        return [Finding("onnxruntime", "ok", text)]
    if not found:
        return [Finding("onnxruntime", "broken", "not installed; run infra/run again")]
    mend = f"pip uninstall -y {' '.join(found)}, then install one"
    return [Finding("onnxruntime", "broken", f"{text} overwrite each other's files; {mend}")]


def _libraries() -> list[Finding]:
    """Imports the native libraries in a process of their own, so that one that crashes is a finding."""
    done = subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, text=True, timeout=300)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return [Finding("providers", "broken", f"torch and onnxruntime cannot be imported: {last}")]
    facts = json.loads(done.stdout.splitlines()[-1])
    return [
        Finding("providers", "ok", ", ".join(facts["providers"]) + " (as built; a run proves what it used)"),
        Finding("gpu", "ok", (facts["cuda"] and ", ".join([facts["cuda"], *machine.gpus()[-1:]])) or "none"),
    ]


def _cpu() -> list[Finding]:
    text = f"{machine.description()}; a run uses {machine.num_cores()} threads"
    if machine.multiplies_integers():
        return [Finding("cpu", "ok", text)]
    return [Finding("cpu", "warning", f"{text}; no instructions for 8-bit products were found: int8 gains less speed")]


def _disk() -> list[Finding]:
    def look() -> str:
        disk.require_free_space()
        return f"{disk.home()}, {shutil.disk_usage(disk.home()).free / 1e9:.1f} GB free"

    def used() -> str:
        parts = disk.usage()
        shown = ", ".join(f"{part} {num_bytes / 1e6:.0f}" for part, num_bytes in parts.items())
        return (
            f"{sum(parts.values()) / 1e6:.0f} MB used: {shown}; teachers' answers take at most "
            f"{limits.answers_on_disk() / 1e6:.0f} ({limits.VARIABLE}), 'featherweight gc' says what can go of the rest"
        )

    return [_attempt("home", look), _attempt("space", used)]


def _prefect() -> list[Finding]:
    def look() -> str:
        with embedded.api() as server:
            if server is not None:
                server.wait()
                return f"embedded, answers and is migrated, {disk.home() / 'prefect'}"
            return f"{redaction.hide(os.environ['PREFECT_API_URL'])} answers, version {embedded.require_server()}"

    return [_attempt("prefect api", look)]


def _mlflow() -> list[Finding]:
    def look() -> str:
        from tasks.engine import tracking

        tracking.client().search_experiments(max_results=1)
        return f"{redaction.hide(tracking.tracking_uri())} answers and is migrated"

    return [_attempt("mlflow", look)]
