"""What tests need of Debian, which a developer's machine may lack and the continuous integration may not."""

from __future__ import annotations

import os
from typing import TypeVar

import pytest

Found = TypeVar("Found")


def debian(package: str, found: Found | None) -> Found:
    """Returns what was found of a package; skips the test where nothing was, and fails it in continuous integration."""
    if found is None and os.environ.get("CI") == "true":
        pytest.fail(f"no {package} on this machine; install Debian's package of that name")
    if found is None:
        pytest.skip(f"no {package} on this machine; apt-get install {package}")
    return found
