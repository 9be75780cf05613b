"""Secrets of a home: made by chance when they are first wanted, and readable by their owner alone."""

from __future__ import annotations

import secrets
from pathlib import Path

from tasks.engine import disk


def path(name: str) -> Path:
    """Where a secret is kept, whether it was made or not."""
    return disk.home() / "secrets" / name


def known(name: str) -> str:
    """Returns a secret; empty where none of that name was made, or it is not ours to read."""
    try:
        return path(name).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def of_home(name: str, prefix: str = "") -> str:
    """Returns a secret: ``prefix`` and 256 random bits in letters that a URL may hold, made the first time."""
    with disk.lock(f"secret-{name}"):
        if not known(name):
            keep(name, prefix + secrets.token_urlsafe(32))
        return known(name)


def keep(name: str, text: str) -> Path:
    """Writes a file that only its owner can read, whole or not at all, and returns its path."""
    target = path(name)
    disk.made()
    target.parent.mkdir(mode=0o700, exist_ok=True)
    disk.write_atomically(target, text, mode=0o600)
    return target
