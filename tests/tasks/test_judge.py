"""The verdict rule at its edges, and the judge on evidence as validate leaves it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tasks.contracts.values import CheckStatus, Verdict
from tasks.engine import store, tracking
from tasks.judge import BudgetConfig, Floor, decide, floor, judge, weigh
from tasks.ml.statistics.bootstrap import Interval
from tests.tasks.shippable import write_arrow, write_evidence

PASSED, FAILED, UNDECIDABLE = CheckStatus.PASSED, CheckStatus.FAILED, CheckStatus.UNDECIDABLE
BUDGET = BudgetConfig(max_quality_drop=0.015, min_shrink=6, min_speedup=9)


def status_of(verdict: Verdict, name: str) -> CheckStatus:
    return next(check.status for check in verdict.checks if check.name == name)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (Interval(0.005, -0.007, 0.017), PASSED),  # straddles the limit, and rules out twice it
        (Interval(0.014, 0.002, 0.026), PASSED),
        (Interval(0.015, 0.003, 0.027), PASSED),  # the limit itself is allowed
        (Interval(-0.004, -0.016, 0.008), PASSED),
        (Interval(0.016, 0.004, 0.028), FAILED),
        (Interval(0.08, 0.05, 0.11), FAILED),
        (Interval(0.005, -0.04, 0.05), UNDECIDABLE),
        (Interval(0.010, 0.001, 0.031), UNDECIDABLE),  # twice the limit is not ruled out
        (Interval(0.025, -0.01, 0.06), UNDECIDABLE),  # no loss is not ruled out
        (Interval(float("nan"), float("nan"), float("nan")), UNDECIDABLE),
    ],
)
def test_rule_for_at_most(interval: Interval, expected: CheckStatus) -> None:
    assert decide(interval, 0.015, "at_most", band=(0.0, 0.03)) is expected


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (Interval(9.0, 9.0, 9.0), PASSED),
        (Interval(9.4, 8.1, 10.6), PASSED),
        (Interval(8.9, 8.1, 10.6), FAILED),
        (Interval(2.0, 1.9, 2.1), FAILED),
        (Interval(10.0, 4.0, 15.0), UNDECIDABLE),
        (Interval(8.0, 3.0, 20.0), UNDECIDABLE),
    ],
)
def test_rule_for_at_least(interval: Interval, expected: CheckStatus) -> None:
    assert decide(interval, 9.0, "at_least", band=(4.5, 18.0)) is expected


@pytest.mark.parametrize(("lost", "gained"), [(60, 50), (75, 55), (97, 68), (130, 101)])
def test_a_drop_of_half_to_one_and_a_half_points_passes_on_the_demo(tmp_path: Path, lost: int, gained: int) -> None:
    verdict = weigh(write_evidence(tmp_path, lost=lost, gained=gained), BUDGET)
    drop = verdict.checks[0]
    assert 0.004 < drop.measured < 0.0145
    assert drop.low < drop.measured < drop.high
    assert drop.n == 2098
    assert verdict.passed, verdict.reason


def test_a_drop_beyond_the_limit_fails(tmp_path: Path) -> None:
    verdict = weigh(write_evidence(tmp_path, lost=100, gained=60), BUDGET)
    assert verdict.checks[0].measured == pytest.approx(40 / 2098)
    assert verdict.status is FAILED
    assert "fell by 1.91 points" in verdict.reason


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 1), (0, 2), (2, 0)])
def test_forty_rows_decide_nothing(tmp_path: Path, lost: int, gained: int) -> None:
    """Also where no row differs, and a bootstrap alone would be certain."""
    verdict = weigh(write_evidence(tmp_path, n=40, lost=lost, gained=gained), BUDGET)
    assert status_of(verdict, "quality_drop") is UNDECIDABLE
    assert not verdict.passed
    assert "undecidable at this n: at least " in verdict.reason
    assert (verdict.checks[0].parting.rows_needed or 0) > 40  # type: ignore[union-attr]


def test_forty_rows_are_enough_to_see_a_ruin(tmp_path: Path) -> None:
    assert status_of(weigh(write_evidence(tmp_path, n=40, lost=15, gained=0), BUDGET), "quality_drop") is FAILED


def test_a_limit_of_zero_wants_a_proven_gain(tmp_path: Path) -> None:
    budget = BUDGET.model_copy(update={"max_quality_drop": 0.0})
    undecided = weigh(write_evidence(tmp_path, lost=0, gained=0), budget)
    assert undecided.status is UNDECIDABLE
    assert "no number of rows is enough to show that less than 0 points are lost" in undecided.reason
    assert weigh(write_evidence(tmp_path, lost=20, gained=90), budget).status is PASSED


def test_the_tests_behind_the_check_travel_with_it(tmp_path: Path) -> None:
    drop, *others = weigh(write_evidence(tmp_path, lost=60, gained=45), BUDGET).checks
    assert drop.parting is not None
    assert (drop.parting.lost, drop.parting.gained, drop.parting.margin) == (60, 45, 0.015)
    assert drop.parting.mcnemar_p == pytest.approx(0.1716, abs=1e-3)
    assert 0.03 < drop.parting.noninferiority_p < 0.06
    assert drop.measured < drop.parting.largest_drop < drop.high
    assert drop.parting.rows_needed is None, "a check that is decided asks for nothing"
    assert not any(check.parting for check in others)


def test_as_many_rows_as_it_asks_for_decide(tmp_path: Path) -> None:
    few = weigh(write_evidence(tmp_path, n=100, lost=4, gained=3), BUDGET)
    assert few.checks[0].parting is not None
    needed = few.checks[0].parting.rows_needed
    assert needed is not None
    assert f"at least {needed:,} rows are needed" in few.reason
    more = write_evidence(tmp_path, n=needed, lost=round(0.04 * needed), gained=round(0.03 * needed))
    assert status_of(weigh(more, BUDGET), "quality_drop") is PASSED


def test_size_and_speed_each_fail_the_verdict(tmp_path: Path) -> None:
    heavy = weigh(write_evidence(tmp_path, size_mb=20.0), BUDGET)
    assert (heavy.status, status_of(heavy, "shrink"), status_of(heavy, "speedup")) == (FAILED, FAILED, PASSED)
    assert "4.54 times smaller" in heavy.reason
    slow = weigh(write_evidence(tmp_path, rounds=(2.0, 2.1, 2.0, 2.0, 2.1)), BUDGET)
    assert (slow.status, status_of(slow, "shrink"), status_of(slow, "speedup")) == (FAILED, PASSED, FAILED)


def test_wild_timings_are_undecidable(tmp_path: Path) -> None:
    verdict = weigh(write_evidence(tmp_path, rounds=(1.0, 9.0, 0.9, 8.0, 1.0)), BUDGET)
    assert status_of(verdict, "speedup") is UNDECIDABLE
    assert "quieter machine" in verdict.reason


def test_a_busy_machine_is_said_beside_the_speed(tmp_path: Path) -> None:
    file = write_evidence(tmp_path) / "validation.json"
    document = json.loads(file.read_text())
    for share, is_said in ((0.04, False), (0.46, True)):
        document["device"]["others_share"] = share
        file.write_text(json.dumps(document))
        (check,) = (check for check in weigh(tmp_path, BUDGET).checks if check.name == "speedup")
        assert check.explanation.endswith("other processes had 46 % of the machine meanwhile") == is_said


def test_judge_records_every_check_on_the_parent_run(tmp_path: Path) -> None:
    with store.workspace() as folder:
        evidence = store.publish(write_evidence(folder))
    with tracking.pipeline_run("judged", {}, run_name="run") as run_id:
        verdict = judge.fn(evidence, BUDGET, run_id=run_id)
    data = tracking.client().get_run(run_id).data
    for check in verdict.checks:
        assert data.metrics[check.name] == check.measured
        assert data.metrics[f"{check.name}_low"] == check.low
        assert data.metrics[f"{check.name}_high"] == check.high
    parting = verdict.checks[0].parting
    assert parting is not None
    assert data.metrics["quality_drop_mcnemar_p"] == parting.mcnemar_p
    assert data.metrics["quality_drop_noninferiority_p"] == parting.noninferiority_p
    assert data.metrics["quality_drop_lost"] == 60
    assert "quality_drop_rows_needed" not in data.metrics
    assert data.tags["featherweight.verdict"] == "passed"
    assert data.tags["featherweight.verdict_reason"] == verdict.reason


def test_judging_imports_neither_torch_nor_onnx(tmp_path: Path) -> None:
    write_evidence(tmp_path)
    program = (
        "import sys, pathlib; from tasks.judge import *; "
        f"assert weigh(pathlib.Path({str(tmp_path)!r}), BudgetConfig()).checks; "
        "print(sorted({'torch', 'transformers', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def write_classes(folder: Path, *, classes: dict[str, tuple[int, int, int]]) -> Path:
    """Evidence of classes by label: rows, and how many of them teacher and shipped model find; else they say the first.

    The first class is the most frequent one.
    """
    labels = list(classes)
    columns: dict[str, list[int]] = {"target": [], "prediction_train": [], "prediction_validate": []}
    for index, (rows, teacher, shipped) in enumerate(classes.values()):
        wrong = 0 if index else 1
        columns["target"] += [index] * rows
        columns["prediction_train"] += [index] * teacher + [wrong] * (rows - teacher)
        columns["prediction_validate"] += [index] * shipped + [wrong] * (rows - shipped)
    found = {name: np.array(values) for name, values in columns.items()}
    for stage in ("train", "validate"):
        found[f"score_{stage}"] = (found[f"prediction_{stage}"] == found["target"]).astype(float)
    write_evidence(folder)
    write_arrow(folder / "rows.arrow", found)
    document = json.loads((folder / "validation.json").read_text())
    document["rows"] = {"labels": labels, "majority": 0, "majority_share": 0.5}
    (folder / "validation.json").write_text(json.dumps(document))
    return folder


LENIENT = BUDGET.model_copy(update={"max_quality_drop": 0.02})


def test_a_rare_class_that_is_lost_fails_though_accuracy_hardly_fell(tmp_path: Path) -> None:
    """Of 2,000 rows 33 are spam: without one of them 1.65 points are lost, and 2 are allowed."""
    verdict = weigh(write_classes(tmp_path, classes={"ham": (1967, 1967, 1967), "spam": (33, 33, 0)}), LENIENT)
    assert status_of(verdict, "quality_drop") is PASSED
    assert status_of(verdict, "lost_classes") is FAILED
    assert status_of(verdict, "floor") is FAILED
    assert not verdict.passed
    assert "1 class is lost: 'spam', of whose 33 test rows the teacher finds 33 and the shipped " in verdict.reason
    assert "accuracy cannot see the loss of 'spam', 1.7 % of the rows" in verdict.reason
    assert "balanced accuracy can, and went from 100.0 % to 50.0 %" in verdict.reason
    spam = verdict.recalls[1]
    assert (spam.label, spam.n, spam.teacher, spam.shipped) == ("spam", 33, 33, 0)
    assert spam.change_low == spam.change == -1
    assert spam.change_high < -0.8


def test_a_lost_class_of_three_rows_is_undecidable_and_says_how_many_would_do(tmp_path: Path) -> None:
    classes = {"ham": (1000, 990, 990), "news": (500, 480, 478), "spam": (3, 3, 0)}
    verdict = weigh(write_classes(tmp_path, classes=classes), LENIENT)
    lost = next(check for check in verdict.checks if check.name == "lost_classes")
    assert (lost.status, lost.low, lost.measured, lost.high) == (UNDECIDABLE, 0, 1, 1)
    assert "at least 6 rows of the class are needed" in lost.explanation
    assert not verdict.passed


def test_fewer_rows_of_a_class_than_before_are_a_drop_and_no_loss(tmp_path: Path) -> None:
    classes = {"ham": (1000, 990, 990), "spam": (40, 36, 30)}
    verdict = weigh(write_classes(tmp_path, classes=classes), LENIENT)
    assert verdict.passed, verdict.reason
    lost = next(check for check in verdict.checks if check.name == "lost_classes")
    assert "none of 2 classes is lost; the largest fall is that of 'spam'" in lost.explanation


def test_a_model_at_majority_level_does_not_pass_however_much_may_be_lost(tmp_path: Path) -> None:
    """Teacher and shipped model alike: nothing was lost, because nothing was there."""
    classes = {"long": (60, 60, 60), "good": (50, 0, 0), "odd": (40, 0, 0)}
    folder = write_classes(tmp_path, classes=classes)
    budget = BUDGET.model_copy(update={"max_quality_drop": 0.5})
    verdict = weigh(folder, budget)
    assert verdict.status is FAILED
    assert "the shipped model is right on 60 of 150 test rows, and always answering 'long' on 60" in verdict.reason
    knows_better = weigh(folder, budget.model_copy(update={"floor": Floor.NONE}))
    assert knows_better.passed
    assert [check.name for check in knows_better.checks] == ["quality_drop", "shrink", "speedup"]
    assert len(knows_better.recalls) == 3


def held(rows: tuple[int, ...], right: tuple[int, ...], named: tuple[int, ...]) -> Verdict | None:
    """What the floor says of a teacher with these answers on the selection split."""
    answers = {"rows": rows, "right": right, "named": named}
    labels = ["ham", "spam", "eggs"][: len(rows)]
    about = {"problem": "text-classification", "labels": labels, "majority": 0, "majority_share": 0.5}
    with store.workspace() as folder:
        (folder / "answers.json").write_text(json.dumps({**about, "answers": answers}))
        evidence = store.publish(folder)
    with tracking.pipeline_run("held", {}, run_name="run") as run_id:
        verdict = floor.fn(evidence, BUDGET, run_id=run_id)
        assert floor.fn(evidence, BudgetConfig(floor=Floor.NONE), run_id=run_id) is None
    tags = tracking.client().get_run(run_id).data.tags
    assert tags.get("featherweight.verdict") == (verdict.status.value if verdict else None)
    return verdict


def test_a_teacher_must_beat_the_majority_answer() -> None:
    assert held((50, 50), (45, 42), (53, 47)) is None
    assert held((197, 3), (197, 3), (197, 3)) is None, "three rare rows, found exactly"
    always = held((50, 50), (50, 0), (100, 0))
    assert always is not None
    assert always.status is FAILED
    assert "the teacher is right on 50 of 100 selection rows, and always answering 'ham' on 50" in always.reason
    assert "budget.floor: none" in always.reason
    shifted = held((30, 70), (0, 70), (0, 100))
    assert shifted is not None, "always the label that is rarer among the training rows"
    assert shifted.status is FAILED
    assert "always answering 'spam' on 70" in shifted.reason
    guess = held((18, 16), (11, 10), (17, 17))
    assert guess is not None
    assert guess.status is UNDECIDABLE
    assert "undecidable at this n: at least " in guess.reason
    assert "selection rows are needed" in guess.reason


@pytest.mark.parametrize(
    ("rows", "right", "said"),
    [
        ((156, 0), (156, 0), "because no row has another label, too few even for a model without errors"),
        ((3, 2), (3, 2), "because only 2 have another label, too few even for a model without errors"),
        ((3, 2), (3, 0), "because only 2 have another label, too few even for a model without errors"),
    ],
)
def test_rows_on_which_nothing_can_be_shown_do_not_end_a_run(
    caplog: pytest.LogCaptureFixture, rows: tuple[int, ...], right: tuple[int, ...], said: str
) -> None:
    """And what is said of them asks nothing of the teacher."""
    caplog.set_level("WARNING", logger="featherweight")
    assert held(rows, right, (sum(rows) - right[1], right[1])) is None
    assert said in caplog.text
    assert "raise data.selection_fraction, or add rows; the run goes on, and the test split decides" in caplog.text
    assert "must be better" not in caplog.text
