"""The report page as a browser shows it: nothing overflows, everything is legible, and the marks answer the pointer."""

from __future__ import annotations

import html
import json
import re
import struct
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tasks.contracts import CheckStatus
from tasks.report import gather
from tasks.reporting import page
from tests import report_samples as samples

PROBE = Path(__file__).with_name("probe.js")


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A report page on disk."""
    outcome = samples.outcome("c0ffee" * 5 + "00", status=CheckStatus.UNDECIDABLE, labels=20)
    surroundings = page.Surroundings(datetime(2026, 1, 2, tzinfo=UTC), {"python": "3.11", "featherweight": "0.1.0"})
    path = tmp_path / "report.html"
    path.write_text(page.render(outcome, samples.RECIPE, gather(outcome), surroundings)["report.html"], "utf-8")
    return path


def browse(chromium: str, url: str, profile: Path, *options: str, dark: bool = False) -> str:
    """Opens a page headless, with a fresh profile and no traffic of the browser's own; returns what it printed."""
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--user-data-dir={profile}", f"--blink-settings=preferredColorScheme={0 if dark else 1}", *options, url,
    ]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def look(chromium: str, report: Path, *, width: int, dark: bool) -> dict[str, Any]:
    """Returns what the probe found on the page at a width."""
    outer = report.with_name("outer.html")
    content = html.escape(report.read_text(encoding="utf-8"))
    outer.write_text(
        f'<meta charset="utf-8"><iframe width={width} height=900></iframe><textarea id="page">{content}</textarea>'
        f'<pre id="found"></pre><script>{PROBE.read_text(encoding="utf-8")}</script>',
        encoding="utf-8",
    )
    dom = browse(
        chromium, outer.as_uri(), report.parent / "profile", "--dump-dom", "--window-size=1400,1000", dark=dark
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', dom, re.DOTALL)
    assert found, "the probe reported nothing"
    return dict(json.loads(html.unescape(found[1])))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [420, 800, 1280])
def test_page_fits_reads_and_answers(chromium: str, report: Path, width: int, dark: bool) -> None:
    found = look(chromium, report, width=width, dark=dark)
    assert found["dark"] is dark
    assert found["width"] == [width, width], "the page scrolls sideways"
    assert found["written"] > 200
    assert found["faint"] == [], "text with a contrast below 4.5"
    assert found["overlaps"] == [], "labels of a chart that run into each other"
    assert found["smallest"] >= 9, "text of a chart too small to read, in pixels"
    assert found["marks"] > 100
    assert found["answers"] == found["marks"]
    assert found["hidden"]


def test_screenshots(chromium: str, report: Path) -> None:
    pictures = []
    for dark in (False, True):
        picture = report.with_name(f"report-{'dark' if dark else 'light'}.png")
        options = (f"--screenshot={picture}", "--window-size=1280,4300")
        browse(chromium, report.as_uri(), report.parent / "profile", *options, dark=dark)
        pictures.append(picture.read_bytes())
        assert struct.unpack(">II", pictures[-1][16:24]) == (1280, 4300)
    assert min(map(len, pictures)) > 100_000
    assert pictures[0] != pictures[1]
