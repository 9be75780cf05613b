"""Opens a page on disk in headless Chromium, and looks at it from inside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

PROBE = Path(__file__).with_name("probe.js")


@contextlib.contextmanager
def opened(chromium: Browser, page: Path, *, width: int, height: int = 900, dark: bool) -> Iterator[Page]:
    """Yields the page, with a profile of its own."""
    scheme = "dark" if dark else "light"
    with chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme) as context:
        tab = context.new_page()
        tab.goto(page.as_uri())
        yield tab


def look(chromium: Browser, page: Path, *, width: int, dark: bool) -> dict[str, Any]:
    """Returns what the probe found on the page at a width."""
    with opened(chromium, page, width=width, dark=dark) as tab:
        return dict(tab.evaluate(PROBE.read_text(encoding="utf-8")))
