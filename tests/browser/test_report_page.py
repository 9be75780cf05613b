"""The report page as a browser shows it: nothing overflows, everything is legible, and the marks answer the pointer."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tasks.contracts.values import CheckStatus
from tasks.report import gather
from tasks.reporting import page
from tests import report_samples as samples
from tests.browser.looking import look, opened


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A report page on disk."""
    outcome = samples.outcome("c0ffee" * 5 + "00", status=CheckStatus.UNDECIDABLE, labels=20)
    surroundings = page.Surroundings(datetime(2026, 1, 2, tzinfo=UTC), {"python": "3.11", "featherweight": "0.1.0"})
    path = tmp_path / "report.html"
    path.write_text(page.render(outcome, samples.RECIPE, gather(outcome), surroundings)["report.html"], "utf-8")
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [420, 800, 1280])
def test_page_fits_reads_and_answers(chromium: Browser, report: Path, width: int, dark: bool) -> None:
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


def test_screenshots(chromium: Browser, report: Path) -> None:
    pictures = []
    for dark in (False, True):
        with opened(chromium, report, width=1280, height=4300, dark=dark) as tab:
            pictures.append(tab.screenshot())
        assert struct.unpack(">II", pictures[-1][16:24]) == (1280, 4300)
    assert min(map(len, pictures)) > 100_000
    assert pictures[0] != pictures[1]
