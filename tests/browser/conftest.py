"""The browser: Debian's Chromium."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser, which a developer's machine may lack and the continuous integration may not."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("no chromium on this machine; install Debian's chromium package")
    if found is None:
        pytest.skip("no chromium on this machine; apt-get install chromium")
    return found
