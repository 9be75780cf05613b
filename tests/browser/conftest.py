"""The browser: Debian's Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests import needs


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The browser, for one module: others on the same thread could run no event loop."""
    path = needs.debian("chromium", shutil.which("chromium") or shutil.which("google-chrome"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
