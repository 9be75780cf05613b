"""The browser: Debian's Chromium."""

from __future__ import annotations

import shutil

import pytest

from tests import needs


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser."""
    return needs.debian("chromium", shutil.which("chromium") or shutil.which("google-chrome"))
