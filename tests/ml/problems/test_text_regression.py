"""Regression on a score: what is learned of labels, how answers are scored, and what becomes a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import CheckStatus
from tasks.ml.data import splitting
from tasks.ml.data.datasets import Split
from tasks.ml.data.splitting import Division
from tasks.ml.data.tables import Table
from tasks.ml.problems import text_regression as problem


def table(labels: list[str], origin: str = "rows.csv") -> Table:
    texts = [f"text {index}" for index in range(len(labels))]
    return Table(origin, "line", range(2, len(labels) + 2), texts, labels, "stars")


def test_scores_are_learned_in_standard_deviations_of_the_training_rows_and_said_in_their_unit() -> None:
    made = problem.targets({"train": table(["1", "2.5", "4e0", "4.5", "1000"]), "test": table(["-3"])})
    learned = ["1.0", "2.5", "4.0", "4.5"]
    units = made.measure(learned)
    known = made.array(learned, units)
    assert (known.mean(), known.std()) == (pytest.approx(0, abs=1e-7), pytest.approx(1)), "of rows that are learned"
    assert made.measure(learned[::-1]) == units
    assert made.array([""], units)[0] == problem.NO_TARGET
    assert made.names == ["stars"]
    (far,) = made.array(["-3"], units)
    assert problem.shown_target(far, made.names, units) == "-3"
    assert problem.shown(np.array([far]), made.names, units) == {"label": "-3"}


@pytest.mark.parametrize(("score", "spread"), [(1_600_000_123.0, 40.0), (123_756.0, 1e3), (2.5e-9, 1e-9)])
def test_scores_of_any_size_are_told_apart(score: float, spread: float) -> None:
    units = {"mean": score, "spread": spread}
    near, far = (problem.shown_target(target, ["stars"], units) for target in (0.0, 0.02))
    assert float(near) == pytest.approx(score, abs=spread / 100)
    assert near != far


def test_every_split_gets_its_share_of_high_and_of_low_scores() -> None:
    made = problem.targets({"train": table([str(number) for number in range(100)])})
    kinds = [made.stratum(str(number)) for number in range(100)]
    assert made.strata == ["up to 19", "up to 39", "up to 59", "up to 79", "above 79"]
    assert [kinds.count(kind) for kind in made.strata] == [20] * 5


@pytest.mark.parametrize(
    "counts", [(60, 40), (40, 20, 40), (1, 99), (99, 1), (3, 10, 40, 46, 1), (19, 2, 19, 2, 58), (50, 1, 49)], ids=str
)
def test_no_kind_of_rows_is_rare(counts: tuple[int, ...]) -> None:
    labels = [str(score) for score, count in enumerate(counts) for _ in range(count)]
    made = problem.targets({"train": table(labels)})
    kinds = [made.stratum(label) for label in labels]
    assert set(kinds) == set(made.strata)
    assert min(kinds.count(kind) for kind in made.strata) >= sum(counts) / 10


def test_a_text_that_was_scored_twice_has_the_mean_and_a_number_is_one_however_it_is_written() -> None:
    made = problem.targets({"train": table(["4", "4.0", "40e-1", "5"])})
    assert list(made.tables["train"].labels) == ["4.0", "4.0", "4.0", "5.0"]
    assert made.settle(["4.0", "5.0", "4.5"]) == "4.5"
    assert float(made.settle(["1e308", "1.7e308"])) == pytest.approx(1.35e308)


def divided(rows: list[tuple[str, str]], read: Callable[[Sequence[str]], Sequence[bytes]] = splitting.keys) -> Division:
    source = Table(
        "rows.csv", "line", range(2, len(rows) + 2), [text for text, _ in rows], [y for _, y in rows], "stars"
    )
    made = problem.targets({"train": source})
    return splitting.divide(made, test=0.2, selection=0.2, calibration=0.1, read=read)


def test_texts_that_many_scored_are_divided_though_no_mean_is_as_low_as_the_lowest_score() -> None:
    random = np.random.default_rng(0)
    rows = [(f"text {number}", str(random.integers(1, 6))) for number in range(400) for _ in range(5)]
    division = divided(rows)
    assert sum(map(len, division.splits.values())) == 400
    assert division.dropped["conflicting_labels"] == 0
    assert any("texts are there with several labels; each has their mean" in said for said in division.warnings)


def test_a_text_of_another_split_has_no_mean_to_be_told_of() -> None:
    rows = [(f"text {number}", str(number % 5)) for number in range(60)]
    twice = [("text of both", "1"), ("text of both", "2")]
    tables = {
        name: Table(f"{name}.csv", "line", range(len(some)), [text for text, _ in some], [y for _, y in some], "stars")
        for name, some in (("train", rows + twice), ("test", [*twice, ("other", "3"), ("another", "4")]))
    }
    division = splitting.divide(problem.targets(tables), test=0.2, selection=0.2, calibration=0.1)
    assert any(said.startswith("1 texts are there with several labels") for said in division.warnings)
    assert division.dropped["in_another_split"] == 2


def test_other_texts_that_are_read_as_the_same_are_no_further_scores_of_one() -> None:
    rows = [(f"{number} {end}", str(number % 5 + (end == "b"))) for number in range(50) for end in "ab"]
    with pytest.raises(FeatherweightError, match=r"50 of 50 texts have more than one label.* raise data\.max_length"):
        divided(rows, read=lambda texts: [text.split()[0].encode() for text in texts])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            ["1", "good"],
            "rows.csv, line 3, column 'stars': 'good' is not a number, .*; give the row",
        ),
        (["1", "4,5"], "line 3, .*write 4.5, or name a column of numbers"),
        (["1", "45%"], "line 3, .*write 45, or"),
        (["1", "nan"], "line 3, .*'nan' is not a number"),
        (["1", "1e999"], "line 3, .*'1e999' is not a number, .*; give the row a score"),
        (["1", "1.0"], "every row has the score 1"),
    ],
)
def test_what_is_no_score_is_refused(labels: list[str], said: str) -> None:
    with pytest.raises(FeatherweightError, match=said):
        problem.targets({"train": table(labels)})


def test_scores_that_cannot_be_scaled_are_refused() -> None:
    made = problem.targets({"train": table(["1", "2"])})
    for labels in (["1e300", "-1e300"], ["1e-320", "2e-320"], ["1", "1"]):
        with pytest.raises(FeatherweightError, match=r"standard deviation of .*, which cannot be learned"):
            made.measure(labels)
    with pytest.raises(FeatherweightError, match=r"the score -1e60 is -2e\+60 standard deviations"):
        made.array(["-1e60"], made.measure(["1", "2"]))


def test_the_loss_is_the_mean_squared_error_of_rows_that_have_a_score() -> None:
    logits = torch.tensor([[0.0], [1.0], [5.0]], requires_grad=True)
    loss = problem.loss(logits, {"targets": torch.tensor([1.0, 1.0, problem.NO_TARGET])})
    loss.backward()
    assert loss.item() == 0.5
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == [-1.0, 0.0, 0.0]
    nothing = problem.loss(logits, {"targets": torch.full((3,), problem.NO_TARGET)})
    assert nothing.item() == 0.0


def test_the_mean_score_is_the_coefficient_of_determination() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(size=500)
    truth = (truth - truth.mean()) / truth.std()
    logits = truth[:, None] + random.normal(scale=0.5, size=(500, 1))
    residual, total = np.square(logits[:, 0] - truth).sum(), np.square(truth - truth.mean()).sum()
    assert problem.scores(logits, truth).mean() == pytest.approx(1 - residual / total)
    assert problem.scores(truth[:, None], truth).tolist() == [1.0] * 500


def test_a_row_is_lost_where_the_error_grew_and_the_answer_is_another() -> None:
    targets = np.array([1.0, -1.0, 1.0, -1.0])
    teacher, shipped = (
        targets[:, None] + [[0.0], [0.0], [1.0], [0.0]],
        targets[:, None] + [[2.0], [0.05], [0.0], [-1.0]],
    )
    assert problem.regret(teacher, shipped, targets).tolist() == [4.0, 0.0, 0.0, 1.0]
    assert problem.same(shipped, teacher).tolist() == [False, True, False, False]


def rows(error: float, *, n: int = 400) -> dict[str, np.ndarray]:
    """Test rows of a good teacher, and of a model that is off by so much more."""
    random = np.random.default_rng(1)
    truth = random.normal(size=n)
    teacher = truth + random.normal(scale=0.4, size=n)
    shipped = teacher + random.normal(scale=error, size=n)
    return {
        "target": truth,
        **{f"prediction_{name}": values for name, values in (("train", teacher), ("validate", shipped))},
        **{
            f"score_{name}": problem.scores(values[:, None], truth)
            for name, values in (("train", teacher), ("validate", shipped))
        },
    }


@pytest.mark.parametrize(
    ("error", "statuses"),
    [
        (0.01, (CheckStatus.PASSED, CheckStatus.PASSED)),
        (0.6, (CheckStatus.FAILED, CheckStatus.PASSED)),
        (2.0, (CheckStatus.FAILED, CheckStatus.FAILED)),
    ],
)
def test_quality_lost_and_the_mean_that_is_to_be_beaten(error: float, statuses: tuple[CheckStatus, ...]) -> None:
    checks, recalls = problem.weigh(rows(error), {}, max_drop=0.05, has_floor=True, confidence=0.95)
    assert [check.name for check in checks] == ["quality_drop", "floor"]
    assert tuple(check.status for check in checks) == statuses
    assert recalls == ()
    assert all(check.low <= check.measured <= check.high for check in checks)
    assert checks[0].explanation.startswith("r2 fell by ") == (error > 0.1)


def test_quality_is_that_of_these_rows_however_the_training_rows_were_spread() -> None:
    truth = np.random.default_rng(3).normal(scale=0.3, size=300)
    logits = truth[:, None] + np.random.default_rng(4).normal(scale=0.3, size=(300, 1))
    expected = 1 - np.square(logits[:, 0] - truth).sum() / np.square(truth).sum()
    assert problem.scores(logits, truth).mean() == pytest.approx(expected)
    assert abs(expected) < 0.2, "errors as large as the scores are spread"


def summary(answers: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """What a model that gives these answers to rows with these targets is weighed by."""
    split = Split([""] * len(truth), [[1]] * len(truth), truth)
    config = SimpleNamespace(num_labels=1, id2label={0: "stars"})
    return problem.summary(config, split, answers[:, None], split)


def test_what_is_no_number_decides_nothing() -> None:
    about = summary(np.full(9, np.nan), np.arange(9.0))
    check, _ = problem.floor(about, who="the teacher", split="selection", confidence=0.95)
    assert check.status is CheckStatus.UNDECIDABLE
    assert "no number of rows is enough" in check.explanation


def test_few_rows_do_not_decide_and_how_many_would_is_said() -> None:
    (check,) = problem.weigh(rows(0.2, n=12), {}, max_drop=0.15, has_floor=False, confidence=0.95)[0]
    assert check.status is CheckStatus.UNDECIDABLE
    assert check.explanation.endswith("rows are needed to show that more than 0 points are lost")


def test_a_teacher_that_learned_nothing_is_told_from_one_that_did() -> None:
    truth = np.random.default_rng(2).normal(size=200)
    for answers, status in ((truth * 0.8, CheckStatus.PASSED), (truth * 0, CheckStatus.FAILED)):
        about = summary(answers, truth)
        check, is_decidable = problem.floor(about, who="the teacher", split="selection", confidence=0.95)
        assert (check.status, is_decidable) == (status, True)
        assert "always answering the mean of the training rows" in check.explanation
    few = summary(truth[:3], truth[:3])
    assert problem.floor(few, who="the teacher", split="selection", confidence=0.95)[1] is False


def test_label_smoothing_is_refused() -> None:
    assert list(problem.objections({"label_smoothing": 0.0})) == []
    (said,) = problem.objections({"label_smoothing": 0.1})
    assert said == "training.label_smoothing: 0.1 means nothing for scores; set it to 0"
