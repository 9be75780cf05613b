"""The report: everything the run left, on one page, in MLflow and in Prefect."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from prefect.client.orchestration import get_client

from tasks.contracts.values import CheckStatus, Outcome
from tasks.engine import disk, store, tracking
from tasks.report import gather, report, seeds, versions
from tasks.reporting import charts, numbers, page, sections, summary, verdict
from tasks.reporting.evidence import Evidence, models
from tests import report_samples as samples

RUN_ID = "c0ffee" * 5 + "00"
SURROUNDINGS = page.Surroundings(datetime(2026, 1, 2, 3, 4, tzinfo=UTC), {"python": "3.11", "featherweight": "0.1.0"})


def render(outcome: Outcome, evidence: Evidence | None = None, recipe: dict[str, Any] = samples.RECIPE) -> str:
    return page.render(outcome, recipe, evidence or gather(outcome), SURROUNDINGS)["report.html"]


@pytest.mark.parametrize("status", list(CheckStatus))
@pytest.mark.parametrize("labels", [2, 20])
def test_page_says_the_verdict_and_shows_every_section(status: CheckStatus, labels: int) -> None:
    html = render(samples.outcome(RUN_ID, status=status, labels=labels))
    assert f'<span class="badge {status}" id="verdict">' in html
    assert re.findall(r'<div class="check (\w+)">', html) == [status, *["passed"] * 4]
    assert re.findall(r'<section id="(\w+)">', html) == [
        "checks", "waterfall", "quality", "curves", "speed", "proof", "data", "stages",
    ]  # fmt: skip
    assert html.count('<td class="clip">') == 2 * labels, "the balance of the data, and what became of each class"
    assert html.count("balanced accuracy, the mean over classes") == 1
    assert html.count('of the test split">') == 10
    for fact in ("10.4×", "15.3×", "Example CPU @ 2.6 GHz", "CPUExecutionProvider", "MatMulInteger", "7,349"):
        assert fact in html
    assert ("Registered as movie-sentiment, version 4." in html) == (status is CheckStatus.PASSED)


def test_page_of_a_decoder_shows_its_generation_and_its_parity_by_token() -> None:
    outcome = samples.outcome(RUN_ID)
    evidence = gather(outcome)
    pace = {"prefill_per_s": 812.4, "decode_per_s": 14.96, "first_token_ms": 157.0, "memory_mb": 1207.0}
    cells = [{"stage": stage, "context": 1024, **pace} for stage in ("train", "validate")]
    parity = {
        "n": 9000, "rows": 300, "label_flips": 90, "tied_flips": 88, "shape_rows": 400, "shape_flips": 4,
        "shape_tied_flips": 4, "shapes": [[3, 7]], "agreement": 0.99, "perplexity": 21.4, "simulated_perplexity": 21.5,
        "perplexity_change": -0.00465, "allowed_perplexity_change": 0.01, "max_abs_error": 0.31, "mean_abs_error": 0.01,
        "median_abs_error": 0.005, "allowed_abs_error": None, "non_finite": 0, "chunk_error": 0.002,
        "allowed_chunk_error": 0.9, "prompts": 3, "generated": 64, "common_prefixes": [64, 17, 64], "whole_prompts": 2,
        "tied_prompts": 1, "generated_choices": 146,
    }  # fmt: skip
    validation = {**evidence.validation, "generation": cells, "parity": parity}
    html = render(outcome, Evidence(**{**vars(evidence), "validation": validation}))
    table = html.partition('<table id="generation">')[2].partition("</table>")[0]
    assert re.findall(r'<td class="number">([^<]*)</td>', table)[:5] == ["1,024", "812", "15.0", "157", "1,207"]
    assert re.findall(r"<td>(\w+)</td>", table) == ["Teacher", "Shipped"]
    facts = dict(re.findall(r'<td class="wrap">([^<]*)</td><td class="number wrap">([^<]*)</td>', html))
    assert facts["texts continued alike for 64 tokens"] == "2 of 3"
    assert facts["next tokens that changed, ties among them"] == "94, 92"
    assert facts[f"change of perplexity (allowed: {numbers.percent(0.01, 3)})"] == numbers.percent(-0.00465, 3)
    assert "rows compared" not in facts
    assert '<table id="generation">' not in render(outcome), "an encoder generates nothing"


def test_page_asks_nobody_for_anything() -> None:
    pages = page.render(samples.outcome(RUN_ID), samples.RECIPE, gather(samples.outcome(RUN_ID)), SURROUNDINGS)
    assert sorted(pages) == ["figures/curves.html", "figures/speed.html", "figures/waterfall.html", "report.html"]
    for html in pages.values():
        assert "default-src 'none'" in html  # the browser refuses what would slip past the next line
        assert not re.search(r"https?://|//cdn|@import|url\(|\bsrc=|fetch\(|XMLHttpRequest", html)


def test_charts_are_well_formed_and_every_mark_that_answers_says_a_number() -> None:
    html = render(samples.outcome(RUN_ID))
    images = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(images) == 5 + 3 + 12 + 1  # checks, waterfall, four per stage that trains, token lengths
    for image in images:
        root = ElementTree.fromstring(image)
        assert root.get("aria-label")
        tips = [element.get("data-tip") for element in root.iter() if element.get("data-tip")]
        assert tips
        assert all(re.search(r"\d", tip or "") for tip in tips)
        assert "nan" not in image


def test_page_stays_light_after_a_long_training() -> None:
    outcome = samples.outcome(RUN_ID, labels=20)
    long = samples.history(epochs=100, best=0.9, composed=False, seed=0, steps=50_000)
    evidence = Evidence(**{**vars(gather(outcome)), "histories": dict.fromkeys(("train", "distill", "prune"), long)})
    assert len(long["points"]) == 5000
    assert len(render(outcome, evidence).encode()) < 310_000


def test_page_without_evidence_shows_what_the_stages_measured() -> None:
    outcome = samples.outcome(RUN_ID)
    bare = outcome.model_copy(
        update={"stages": tuple(stage.model_copy(update={"evidence": "", "splits": None}) for stage in outcome.stages)}
    )
    html = render(bare)
    assert gather(bare) == Evidence()
    assert re.findall(r'<section id="(\w+)">', html) == ["checks", "waterfall", "quality", "speed", "stages"]
    assert [row["title"] for row in models(bare, Evidence())] == [
        "Teacher", "Student", "Pruned", "Quantized", "Shipped",
    ]  # fmt: skip


def test_page_of_a_run_without_models_or_known_checks() -> None:
    outcome = samples.outcome(RUN_ID)
    check = outcome.verdict.checks[1].model_copy(update={"name": "peak_memory", "explanation": "96 MB at the peak"})
    judged = outcome.verdict.model_copy(update={"checks": (check,), "recalls": ()})
    html = render(outcome.model_copy(update={"stages": (), "verdict": judged}), recipe={**samples.RECIPE, "name": "x"})
    assert "Peak memory" in html
    assert "96 MB at the peak." in html
    assert re.findall(r'<section id="(\w+)">', html) == ["checks", "stages"]


def test_page_shows_markup_in_data_as_text() -> None:
    outcome = samples.outcome(RUN_ID)
    evidence = gather(outcome)
    renamed = json.loads(json.dumps(dict(evidence.profile)).replace("positive", "<script>alert(1)</script>"))
    html = render(outcome, Evidence(**{**vars(evidence), "profile": renamed}))
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_regressions_show_their_text_as_text_and_the_surest_first() -> None:
    html = render(samples.outcome(RUN_ID))
    assert "<b>compelling" not in html
    assert "utterly &lt;b&gt;compelling&lt;/b&gt;" in html
    section = html.partition("Worst regressions")[2].partition("</section>")[0]
    shares = [float(share) for share in re.findall(r"--part: ([\d.]+)", section)]
    assert shares[::2] == sorted(shares[::2], reverse=True)
    assert len(shares) == 20


def test_what_could_not_be_compared_of_all_rows_is_said() -> None:
    """Models with different vocabularies read some rows as different tokens."""
    found = samples.outcome(RUN_ID)
    changed = [
        one.model_copy(
            update={
                "scorecard": one.scorecard.model_copy(
                    update={"agreement_with_teacher": 0.5, "num_examples": 1200, "agreement_rows": told}
                )
            }
        )
        for one, told in zip(found.stages, (1200, 37, None, *[None] * len(found.stages)), strict=False)
    ]
    said = [one["gave"] for one in sections.stages(found.model_copy(update={"stages": tuple(changed)}))]
    assert ["as the teacher on" in one for one in said[:3]] == [False, True, False]
    assert "as the teacher on 37 of 1,200 rows" in said[1]
    lost = samples.regressions()
    of_all = render(found, Evidence(regressions=lost))
    assert f"The two part on {lost['apart']} of {lost['n']:,} rows." in of_all
    few = render(found, Evidence(regressions=lost | {"compared": 300, "apart": 21}))
    assert f"Of {lost['n']:,} rows both read 300 as the same tokens, and part on 21 of these." in few


def test_dots_of_the_waterfall_carry_the_interval_against_the_teacher() -> None:
    outcome = samples.outcome(RUN_ID)
    evidence = gather(outcome)
    assert list(evidence.comparisons) == ["distill", "prune", "quantize", "validate"]
    shipped = evidence.comparisons["validate"]
    assert (shipped.counts.lost, shipped.counts.gained) == (92, 82)
    assert shipped.drop.measured == pytest.approx(10 / 2114)
    panel = sections.waterfall(models(outcome, evidence), outcome.verdict.checks, evidence.comparisons)[0]
    assert "paired 95" in panel["note"]
    assert panel["chart"].count('class="whisker') == 4, "the teacher is what the others are held against"
    alone = sections.waterfall(models(outcome, evidence), outcome.verdict.checks)[0]
    assert "interval" not in alone["note"]
    assert "whisker" not in alone["chart"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "1.50 points or more are lost is not ruled out, p = 0.051; with 95 % confidence at most 1.5"),
        ({"noninferiority_p": 0.0004}, "1.50 points or more are lost is ruled out, p < 0.001"),
        ({"largest_drop": -0.002}, "at least 0.20 points are gained."),
        ({"mcnemar_p": 0.01}, "82 gained, p = 0.010: the teacher is better."),
        ({"mcnemar_p": 0.01, "gained": 120}, "120 gained, p = 0.010: the shipped model is better."),
        ({"mcnemar_p": 0.4}, "p = 0.40: neither is shown to be better."),
    ],
)
def test_what_the_tests_say(change: dict[str, Any], expected: str) -> None:
    check = samples.verdict().checks[0]
    assert check.parting is not None
    told = " ".join(verdict.tests(check.model_copy(update={"parting": check.parting.model_copy(update=change)})))
    assert expected in told.replace(numbers.SPACE, " ")


def test_an_undecidable_check_says_how_many_rows_would_do() -> None:
    check = samples.verdict(CheckStatus.UNDECIDABLE).checks[0]
    assert verdict.tests(check)[-1] == "Undecidable at n = 2,114: at least 4,310 rows are needed."
    assert check.parting is not None
    hopeless = check.model_copy(update={"parting": check.parting.model_copy(update={"rows_needed": None})})
    assert verdict.tests(hopeless)[-1] == "Undecidable at n = 2,114: no number of rows would do."


def test_runs_of_other_seeds_are_found_and_combined_and_other_recipes_are_not() -> None:
    def ran(**changes: Any) -> Outcome:
        recipe = {**samples.RECIPE, **changes}
        with tracking.pipeline_run("movie-sentiment", recipe, run_name="compress") as run_id:
            outcome = samples.outcome(run_id)
            report(outcome, recipe, run_id=run_id)
        return outcome

    alone = ran(seed=0)
    assert seeds(alone, samples.RECIPE) == ()
    ran(seed=1, base_model="package:another/model")
    ran(seed=7)
    second, third = ran(seed=7), ran(seed=2)
    found = seeds(third, {**samples.RECIPE, "seed": 2})
    assert [(one.seed, one.run_id) for one in found] == [
        (0, alone.run_id), (2, third.run_id), (7, second.run_id),
    ]  # fmt: skip
    html = tracking.read_text(third.run_id, "report.html") or ""
    assert "as far as 3 can tell" in html
    assert "not for another seed" not in html
    metrics = tracking.client().get_run(third.run_id).data.metrics
    assert metrics["seeds"] == 3
    assert metrics["quality_drop_over_seeds"] == pytest.approx(10 / 2114)
    assert "seeds" not in tracking.client().get_run(alone.run_id).data.metrics
    assert "One run, seed 0" in (tracking.read_text(alone.run_id, "report.html") or "")


def test_cached_stages_say_so() -> None:
    html = render(samples.outcome(RUN_ID, cached=True))
    assert html.count('<span class="chip">Cached</span>') == 7
    assert "computed</span>" not in html


def test_report_reaches_the_disk_mlflow_and_prefect(home: Path) -> None:
    with tracking.pipeline_run("movie-sentiment", samples.RECIPE, run_name="compress") as run_id:
        outcome = samples.outcome(run_id)
        path = report(outcome, samples.RECIPE, run_id=run_id)
    assert path == home / "reports" / f"{run_id}.html"
    assert run_id in path.read_text(encoding="utf-8")

    client = tracking.client()
    logged = {item.path for folder in (None, "figures") for item in client.list_artifacts(run_id, folder)}
    assert logged >= {
        "report.html", "outcome.json", "figures/waterfall.html", "figures/curves.html", "figures/speed.html",
    }  # fmt: skip
    stored = Path(client.download_artifacts(run_id, "outcome.json", str(home))).read_bytes()
    assert Outcome.model_validate_json(stored) == outcome
    metrics = client.get_run(run_id).data.metrics
    assert metrics["teacher_accuracy"] == 0.8597
    assert metrics["shipped_latency_p50_ms"] == 0.694
    assert metrics["parity_label_flips"] == 1
    assert metrics["computed_seconds"] == pytest.approx(689.9)
    sizes = client.get_metric_history(run_id, "waterfall/size_mb")
    assert [(metric.step, metric.value) for metric in sizes] == list(enumerate([90.87, 69.57, 35.21, 8.9, 8.71]))
    timed = client.get_metric_history(run_id, "waterfall/latency_p50_ms")
    assert [metric.step for metric in timed] == [0, 1, 2, 4]

    with get_client(sync_client=True) as prefect:
        artifacts = {artifact.key: artifact for artifact in prefect.read_artifacts()}
    assert "10.43 times smaller" in str(artifacts["movie-sentiment-verdict"].data)
    assert len(json.loads(str(artifacts["movie-sentiment-stages"].data))) == 7


def test_report_of_a_recipe_named_freely_has_a_key_that_prefect_takes() -> None:
    with tracking.pipeline_run("News_v1.2", samples.RECIPE, run_name="compress") as run_id:
        outcome = samples.outcome(run_id).model_copy(update={"recipe": "News_v1.2"})
        report(outcome, samples.RECIPE, run_id=run_id)
    with get_client(sync_client=True) as prefect:
        assert "news-v1-2-verdict" in {artifact.key for artifact in prefect.read_artifacts()}


def test_report_refuses_corrupt_evidence() -> None:
    outcome = samples.outcome(RUN_ID)
    digest = outcome.stages[1].evidence
    (disk.home() / "store" / "objects" / digest / "history.json").write_text("{}")
    store._verified.cache_clear()
    with pytest.raises(store.CorruptObjectError, match=r"history\.json was changed"):
        gather(outcome)


def test_run_url_never_carries_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.Run("any").url() == ""

    class Client:
        """Stands in for a tracking server with basic authentication."""

        def get_run(self, run_id: str) -> Any:
            info = type("Info", (), {"experiment_id": "7"})
            return type("Run", (), {"info": info})

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:secret@mlflow.example/base/")
    monkeypatch.setattr(tracking, "client", Client)
    assert tracking.Run("abc").url() == "https://mlflow.example/base/#/experiments/7/runs/abc"


def test_markdown_has_one_row_per_check_and_model_and_links_only_to_a_server() -> None:
    outcome = samples.outcome(RUN_ID, status=CheckStatus.FAILED)
    text = summary.markdown(outcome, gather(outcome), url="")
    assert text.startswith("# Failed: movie-sentiment\n")
    assert text.count("\n| ") == 5 + 5 + 4
    assert "Exact McNemar test: 92 rows lost, 82 gained, p = 0.50" in text
    assert "MLflow" not in text
    assert "(https://m/#/x/artifacts/report.html)" in summary.markdown(outcome, gather(outcome), url="https://m/#/x")


def test_headline_tells_loss_gain_and_tie_apart() -> None:
    def told(drop: float) -> str:
        first, *others = samples.verdict().checks
        return verdict.headline([first.model_copy(update={"measured": drop}), *others])

    assert told(0.005).endswith("at a cost of 0.50 points of accuracy.".replace(" points", f"{numbers.SPACE}points"))
    assert told(-0.005).endswith(f"with 0.50{numbers.SPACE}points more accuracy.")
    assert told(0.0).endswith("with the same accuracy.")


def test_versions_name_the_numerics_and_the_recorders() -> None:
    assert {"python", "featherweight", "mlflow", "prefect", "torch", "onnx"} <= set(versions())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (numbers.number(1234.5), "1,234"), (numbers.number(0.6912), "0.691"), (numbers.number(15), "15"),
        (" ".join(numbers.aligned([0.7, -0.71, 1])), "0.70 −0.71 1.00"),
        (numbers.number(-0.5), "−0.500"), (numbers.number(0.0), "0"), (numbers.number(9.996), "10.0"),
        (numbers.plain(6.0), "6"), (numbers.plain(-0.25), "−0.25"), (numbers.plain(0.1 + 0.2), "0.3"),
        (numbers.percent(0.8531), "85.3 %"), (numbers.points(-0.0042, signed=True), "−0.42 points"),
        (numbers.points(-0.00001), "0.00 points"), (numbers.times(10.43), "10.4×"), (numbers.change(5, 10), "−50 %"),
        (numbers.change(10, 10), "±0 %"), (numbers.duration(0.42), "0.42 s"), (numbers.duration(59), "59 s"),
        (numbers.duration(214), "3 min 34 s"), (numbers.duration(119.6), "2 min 0 s"),
        (numbers.between(1.2, 1.4, numbers.times), "1.20 to 1.40×"),
        (numbers.between(8, 9, numbers.duration), "8 to 9 s"),
        (numbers.between(42, 214, numbers.duration), "42 s to 3 min 34 s"),
        (numbers.between(200, 214, numbers.duration), "3 min 20 s to 3 min 34 s"),
    ],
)  # fmt: skip
def test_numbers_read_as_people_write_them(text: str, expected: str) -> None:
    assert text.replace(numbers.SPACE, " ") == expected


def test_thinning_keeps_the_mean_and_the_order() -> None:
    values = [(float(x), float(x % 7)) for x in range(960)]
    thinned = charts.thin(values)
    assert len(thinned) == charts.MAX_POINTS
    assert sum(y for _, y in thinned) / len(thinned) == pytest.approx(sum(y for _, y in values) / len(values))
    assert thinned == sorted(thinned)
    assert charts.thin(values[:5]) == values[:5]


def test_curves_show_the_gap_at_the_weights_that_were_kept() -> None:
    train = samples.outcome(RUN_ID).stages[1]
    evaluations = [{"epoch": epoch, "quality": 0.8 - 0.1 * abs(epoch - 2), "loss": 0.5} for epoch in (1.0, 2.0, 3.0)]
    curve = sections.curves(train, {"points": [], "evaluations": evaluations, "notes": {}})
    (panel,) = curve["panels"]
    assert panel["lines"] == ["training", "selection"]
    assert f"epoch 2.00: training 97.6{numbers.SPACE}%, selection 80.0{numbers.SPACE}%" in panel["chart"]
    best, gap, _ = curve["facts"]
    assert best == f"best 80.0{numbers.SPACE}% at epoch 2"
    assert gap == f"train−selection gap 11.20{numbers.SPACE}points"


def test_curves_never_share_an_axis_between_different_losses() -> None:
    train, distill = samples.outcome(RUN_ID).stages[1:3]
    plain = samples.history(epochs=2, best=0.9, composed=False, seed=0)
    composed = samples.history(epochs=2, best=0.9, composed=True, seed=0)
    assert sections.curves(train, plain)["panels"][0]["lines"] == ["training", "selection"]
    assert sections.curves(distill, composed)["panels"][0]["lines"] == ["training"]


def test_scale_ticks_are_round_and_inside() -> None:
    assert charts.Scale(0, 91, 0, 1).ticks() == [0, 50]
    assert charts.Scale(0.837, 0.871, 0, 1).ticks() == [0.84, 0.85, 0.86, 0.87]


def test_bars_are_as_long_as_what_they_say() -> None:
    rows = [("a", 80.0, None), ("b", None, None), ("c", 20.0, (10.0, 40.0))]
    root = ElementTree.fromstring(charts.waterfall(rows, label="Size", unit="MB"))
    bars = [(bar.get("class"), float(bar.get("width", ""))) for bar in root.iter("rect")]
    assert bars == [("bar", 340.0), ("bar final", 85.0), ("gone", 255.0)]
    (error,) = root.iter("line")
    assert (float(error.get("x1", "")), float(error.get("x2", ""))) == (42.5, 170.0)
