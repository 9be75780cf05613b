"""Environments of their own for what is compared with: made on first use in the user's cache folder, with pip."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

NOTHING: Mapping[str, str] = {}


def python_of(
    name: str,
    pins: Sequence[str],
    installed: Sequence[str],
    folder: Path | None = None,
    *,
    unwanted: Sequence[str] = (),
    options: Sequence[str] = (),
    variables: Mapping[str, str] = NOTHING,
) -> Path:
    """The python of an environment, which is made if it is not there or was not finished.

    Args:
        pins: versions of all that counts, as pip's constraints.
        installed: what is asked for.
        folder: where it is; in the user's cache by default.
        unwanted: what is taken away again.
        options: more of pip's.
        variables: more of pip's environment.
    """
    key = hashlib.sha256("\n".join([sys.version, *pins]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = folder or cache / "featherweight" / f"{name}-{key}"
    python, stamp = folder / "bin" / "python", folder / "ready"
    if stamp.is_file() and stamp.read_text(encoding="ascii") == key:
        return python
    started = time.monotonic()
    print(f"installing {', '.join(installed)} into {folder} …", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    # Constraints, and not requirements: pip then takes torch's build for the CPU where both are offered.
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pins), encoding="ascii")
    install = [str(python), "-m", "pip", "install", "--no-input", "--quiet", "--constraint", str(constraints)]
    environment = {**os.environ, **variables}
    subprocess.run([*install, *options, *installed], check=True, stdout=sys.stderr, env=environment)
    if unwanted:
        remove = [str(python), "-m", "pip", "uninstall", "--quiet", "--yes"]
        subprocess.run([*remove, *unwanted], check=True, stdout=sys.stderr)
    stamp.write_text(key, encoding="ascii")
    print(f"installed in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return python
