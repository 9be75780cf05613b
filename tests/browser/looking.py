"""Opens a page on disk in headless Chromium, and looks at it from inside."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

PROBE = Path(__file__).with_name("probe.js")


def browse(chromium: str, url: str, profile: Path, *options: str, dark: bool = False) -> str:
    """Opens a page headless, with a fresh profile and no traffic of the browser's own; returns what it printed."""
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--user-data-dir={profile}", f"--blink-settings=preferredColorScheme={0 if dark else 1}", *options, url,
    ]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def look(chromium: str, page: Path, *, width: int, dark: bool) -> dict[str, Any]:
    """Returns what the probe found on the page at a width."""
    outer = page.with_name("outer.html")
    content = html.escape(page.read_text(encoding="utf-8"))
    outer.write_text(
        f'<meta charset="utf-8"><iframe width={width} height=900></iframe><textarea id="page">{content}</textarea>'
        f'<pre id="found"></pre><script>{PROBE.read_text(encoding="utf-8")}</script>',
        encoding="utf-8",
    )
    dom = browse(chromium, outer.as_uri(), page.parent / "profile", "--dump-dom", "--window-size=1400,1000", dark=dark)
    found = re.search(r'<pre id="found">(.+?)</pre>', dom, re.DOTALL)
    assert found, "the probe reported nothing"
    return dict(json.loads(html.unescape(found[1])))
