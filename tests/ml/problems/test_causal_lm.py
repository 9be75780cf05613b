"""Next tokens as a problem: what is kept, learned and weighed, each against a plain reference."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tasks.contracts.values import CheckStatus
from tasks.ml.data import splitting
from tasks.ml.data.datasets import Split
from tasks.ml.data.tables import Table
from tasks.ml.problems import causal_lm as problem
from tasks.ml.quality import evaluation, learning
from tasks.ml.tokens import Partly
from tests.ml.tiny_decoders import VOCABULARY, model_of, tokens

LENGTHS = (12, 7, 1, 3, 12)
ROWS = [row[:length].tolist() for row, length in zip(tokens(len(LENGTHS)), LENGTHS, strict=True)]
BYTES = np.array([50, 20, 4, 9, 41])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return model_of("llama")


def kept_of(model: nn.Module, **options: Any) -> np.ndarray:
    return evaluation.logits(model, ROWS, pad_id=0, problem=problem, **options)  # type: ignore[arg-type]


@torch.no_grad()
def lost_by_token(model: nn.Module, row: list[int]) -> torch.Tensor:
    """Nats of each token of a text but the first, alone and without padding."""
    logits = model(input_ids=torch.tensor([row])).logits[0]
    return F.cross_entropy(logits[:-1], torch.tensor(row[1:], dtype=torch.int64), reduction="none")


def batch(rows: list[list[int]], length: int = 0, pad: int = 0) -> dict[str, torch.Tensor]:
    length = length or max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
    }


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_what_is_kept_is_what_each_text_loses_alone(model: nn.Module, batch_size: int) -> None:
    found = kept_of(model, batch_size=batch_size)
    assert found.shape == (5, 11, 2)
    for row, kept in zip(ROWS, found, strict=True):
        count = len(row) - 1
        np.testing.assert_allclose(kept[:count, 0], lost_by_token(model, row), atol=1e-5)
        with torch.no_grad():
            said = model(input_ids=torch.tensor([row])).logits[0, :-1].argmax(-1)
        assert kept[:count, 1].tolist() == said.tolist()
        assert np.isnan(kept[count:]).all()


def test_logits_are_computed_of_few_tokens_at_once(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = kept_of(model)
    monkeypatch.setattr(problem, "TOKENS_AT_ONCE", 24)
    widest: list[int] = []
    hook = model.register_forward_hook(lambda _, __, output: widest.append(output.logits[..., 0].numel()))
    found = kept_of(model)
    hook.remove()
    assert max(widest) <= 24
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_quality_is_minus_the_bits_per_byte_of_all_rows(model: nn.Module) -> None:
    kept = kept_of(model)
    nats = sum(float(lost_by_token(model, row).sum()) for row in ROWS)
    count = sum(len(row) - 1 for row in ROWS)
    assert problem.scores(kept, BYTES).mean() == pytest.approx(-nats / math.log(2) / BYTES.sum(), rel=1e-5)
    assert problem.predictions(kept).sum() == pytest.approx(nats, rel=1e-5)
    assert problem.lost(kept, BYTES) == pytest.approx(nats / count, rel=1e-5)
    measured = learning.measure(problem, kept, BYTES, reference=kept)  # type: ignore[arg-type]
    assert measured["quality"] == pytest.approx(-nats / math.log(2) / BYTES.sum(), rel=1e-5)
    assert measured["drop_error"] == 0


@pytest.mark.parametrize("pad", [0, 5])
def test_loss_is_that_of_transformers_and_padding_changes_nothing(model: nn.Module, pad: int) -> None:
    rows = [row for row in ROWS if len(row) > 1]
    whole = batch(rows, length=17, pad=pad)
    with torch.no_grad():
        labels = whole["input_ids"].masked_fill(whole["attention_mask"] == 0, -100)
        theirs = model(**whole, labels=labels)
        short = model(**batch(rows)).logits
    found = problem.loss(theirs.logits, whole)
    assert found.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert problem.loss(short, batch(rows)).item() == pytest.approx(found.item(), rel=1e-5)
    one = batch(rows[:1])
    with torch.no_grad():
        theirs = model(**one, labels=one["input_ids"])
    assert problem.loss(theirs.logits, one).item() == pytest.approx(theirs.loss.item(), rel=1e-5)


def test_texts_of_one_token_lose_nothing() -> None:
    logits = torch.randn(2, 1, 8, requires_grad=True)
    found = problem.loss(logits, batch([[3], [4]]))
    found.backward()
    assert found.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))  # type: ignore[arg-type]
    assert problem.soft_loss(logits, problem.said(logits), torch.ones(2, 1), temperature=1).item() == 0


def kl(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> float:
    """Mean divergence of next tokens, over the whole vocabulary."""
    own, its = (x[:, :-1].double().log_softmax(-1) for x in (student, teacher))
    each = (its.exp() * (its - own)).sum(-1)
    return float(each[mask[:, 1:].bool()].mean())


@pytest.mark.parametrize("vocabulary", [problem.SAID, problem.SAID - 7, VOCABULARY])
def test_soft_loss_is_the_divergence_from_what_the_teacher_said(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(2)
    teacher, student = (3 * torch.randn(3, 9, vocabulary, generator=generator) for _ in range(2))
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] + [0] * 8])
    said = problem.said(teacher)
    assert said.shape[-1] == problem.said_width(SimpleNamespace(vocab_size=vocabulary))
    assert problem.soft_loss(teacher, said, mask, temperature=1).item() == pytest.approx(0, abs=1e-6)
    student.requires_grad_(True)
    found = problem.soft_loss(student, said, mask, temperature=1)
    exact = kl(student, teacher, mask)
    if vocabulary <= problem.SAID:
        assert found.item() == pytest.approx(exact, rel=1e-4)
    else:
        assert 0.5 * exact < found.item() < exact, "what is taken for one tells less"
    found.backward()
    assert student.grad is not None
    told = student.grad.abs().sum(-1) > 0
    assert torch.equal(told[:, :-1], mask[:, 1:].bool())
    assert not told[:, -1].any()


def test_padding_changes_no_soft_loss() -> None:
    teacher, student = torch.randn(2, 6, 40), torch.randn(2, 6, 40)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    expected = problem.soft_loss(student, problem.said(teacher), mask, temperature=1)
    said = F.pad(problem.said(teacher), (0, 0, 0, 3))  # as memory pads it
    found = problem.soft_loss(F.pad(student, (0, 0, 0, 3)), said, F.pad(mask, (0, 3)), temperature=1)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_amount_is_of_tokens_that_are_told() -> None:
    assert problem.amount(ROWS, np.zeros(5)) == 11 + 6 + 0 + 2 + 11
    assert problem.amount([[]], np.zeros(1)) == 0


PARTLY = [Partly(row, [index % 3 == 2 or index == 0 for index in range(len(row))]) for row in ROWS]
"""The same rows, of which every third token counts, and the first, which nothing tells."""


def test_only_what_counts_is_lost_and_kept(model: nn.Module) -> None:
    whole = kept_of(model)
    found = evaluation.logits(model, PARTLY, pad_id=0, problem=problem)  # type: ignore[arg-type]
    counted = np.zeros(whole.shape[:2], dtype=bool)
    for index, row in enumerate(PARTLY):
        counted[index, : len(row) - 1] = row.counted[1:]
    np.testing.assert_allclose(found[counted], whole[counted], atol=1e-6)
    assert np.isnan(found[~counted]).all()
    assert problem.amount(PARTLY, np.zeros(5)) == counted.sum() == 4 + 2 + 0 + 1 + 4
    expected = [float(lost_by_token(model, list(row))[np.array(row.counted[1:], dtype=bool)].sum()) for row in PARTLY]
    np.testing.assert_allclose(problem.predictions(found), expected, atol=1e-5)
    assert problem.lost(found, BYTES) == pytest.approx(sum(expected) / counted.sum(), abs=1e-5)


def test_what_does_not_count_has_the_label_minus_100(model: nn.Module) -> None:
    split = Split([""] * 5, PARTLY, BYTES)
    (whole,) = learning.batches(split, 5, pad_id=0)
    loss = problem.loss(model(input_ids=whole["input_ids"], attention_mask=whole["attention_mask"]).logits, whole)
    labels = whole["input_ids"].clone()
    order = sorted(range(5), key=lambda index: len(PARTLY[index]))
    for place, index in enumerate(order):
        for token in range(labels.shape[1]):
            if token >= len(PARTLY[index]) or not PARTLY[index].counted[token]:
                labels[place, token] = -100
    reference: Any = model
    expected = reference(
        input_ids=whole["input_ids"], attention_mask=whole["attention_mask"], labels=labels, use_cache=False
    ).loss
    torch.testing.assert_close(loss, expected)
    by_rows = learning.Supervised(model, problem, split, pad_id=0)  # type: ignore[arg-type]
    parts = [[0, 1], [2, 3], [4]]
    amounts = by_rows.amounts(parts)
    torch.testing.assert_close(sum(by_rows(rows, amounts)[0] for rows in parts), expected)


def test_a_student_learns_answers_that_count_and_no_others() -> None:
    teacher, student = torch.randn(2, 3, 6, VOCABULARY, generator=torch.Generator().manual_seed(3))
    counted = torch.tensor([[1, 0, 1, 1, 0, 0]] * 3)
    expected = problem.soft_loss(student, problem.said(teacher), counted, temperature=1)
    other = student.clone()
    other[:, [0, 3, 4, 5]] += torch.randn(3, 4, VOCABULARY)
    assert problem.soft_loss(other, problem.said(teacher), counted, temperature=1) == expected
    assert problem.soft_loss(student, problem.said(teacher), torch.ones(3, 6), temperature=1) != expected


def test_the_floor_is_of_tokens_that_count() -> None:
    rows = [Partly([5, 5, 5, 3, 4], [0, 0, 0, 1, 1])] * 10
    split = Split([""] * 10, rows, np.full(10, 2))
    kept = np.full((10, 4, 2), 0.5, dtype=np.float32)
    about = problem.summary(SimpleNamespace(vocab_size=8), split, kept, split)
    assert about["blind"] == pytest.approx([2 * math.log(28 / 11)] * 10)


def test_what_two_models_have_in_common(model: nn.Module) -> None:
    kept = kept_of(model)
    np.testing.assert_equal(problem.same(kept, kept), [1, 1, np.nan, 1, 1])
    assert problem.divergence(kept, kept) == 0
    assert problem.regret(kept, kept, BYTES).tolist() == [0] * 5
    other = kept.copy()
    other[1, :3, 1] += 1
    other[1, :6, 0] += 0.5
    np.testing.assert_equal(problem.same(other, kept), [1, 0.5, np.nan, 1, 1])
    assert learning.agreement(problem, other, kept) == (0.875, 4)  # type: ignore[arg-type]
    assert problem.divergence(kept, other) == pytest.approx(6 * 0.25 / 30 / 2)
    np.testing.assert_allclose(problem.regret(kept, other, BYTES), [0, 3, 0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(problem.regret(other, kept, BYTES), 0, atol=1e-5)


def test_models_with_other_vocabularies_are_compared_where_both_read_the_same(model: nn.Module) -> None:
    kept = kept_of(model)
    # The other vocabulary has every second token, and three by other names; the second text is of more tokens there.
    ids = np.arange(VOCABULARY) // 2
    others = [ids[row].tolist() for row in ROWS]
    others[1] = [*others[1], 5]
    theirs = np.full((5, 13, 2), np.nan, dtype=np.float32)
    theirs[:, :11] = kept
    theirs[..., 1] //= 2
    told = problem.retold(kept, ROWS, others, ids)
    np.testing.assert_equal(told[..., 0], kept[..., 0])
    np.testing.assert_equal(problem.predictions(told), problem.predictions(kept))
    np.testing.assert_equal(problem.same(theirs, told), [1, np.nan, np.nan, 1, 1])
    np.testing.assert_equal(problem.same(told, theirs), problem.same(theirs, told))
    assert learning.agreement(problem, theirs, told) == (1.0, 3)  # type: ignore[arg-type]
    # A token that the other one lacks is said by none of its models, nor is a row beyond a tokenizer's tokens.
    said = int(kept[0, 0, 1])
    lacking = np.where(np.arange(VOCABULARY) == said, -1, ids)
    rows = [[token for token in row if token != said] for row in ROWS]
    told = problem.retold(kept, rows, [lacking[row].tolist() for row in rows], lacking)
    assert told[0, 0, 1] == -1
    assert problem.retold(kept[:1], [[0, 0]], [[0, 0]], ids[:1])[0, 0, 1] == (-1 if said else 0)
    nothing = problem.retold(kept, ROWS, [[0]] * 5, ids)
    measured = learning.measure(problem, kept, BYTES, reference=nothing)  # type: ignore[arg-type]
    assert "agreement" not in measured
    assert measured["drop_error"] == 0, "what texts cost can always be compared"
    assert learning.agreement(problem, kept, nothing) == (None, 0)  # type: ignore[arg-type]


def test_tokens_that_do_not_count_say_nothing_by_any_vocabulary(model: nn.Module) -> None:
    kept = kept_of(model)
    kept[:, ::2] = np.nan
    rows = [Partly(row, [index % 2 == 0 for index in range(len(row))]) for row in ROWS]
    told = problem.retold(kept, rows, rows, np.arange(VOCABULARY))
    np.testing.assert_equal(told, kept)


def summary_of(nats: float, *, rows: int = 40) -> dict[str, Any]:
    """Of a model that loses so much at each token of texts in which two tokens alternate."""
    ids = [[3, 4] * 5] * rows
    split = Split([""] * rows, ids, np.full(rows, 30))
    kept = np.full((rows, 9, 2), nats, dtype=np.float32)
    return problem.summary(SimpleNamespace(vocab_size=8), split, kept, split)


def test_a_model_that_learned_is_told_from_one_that_did_not() -> None:
    about = summary_of(0.1)
    counts = np.array([1, 1, 1, 201, 201, 1, 1, 1])
    assert about["blind"] == pytest.approx([9 * math.log(counts.sum() / 201)] * 40)
    assert about["nats"] == pytest.approx([0.9] * 40)
    assert about["bytes"] == [30] * 40
    for nats, status in ((0.1, CheckStatus.PASSED), (math.log(8), CheckStatus.FAILED)):
        check, is_decidable = problem.floor(summary_of(nats), who="the teacher", split="selection", confidence=0.95)
        assert (check.status, is_decidable) == (status, True)
    assert "needs 0.433 bits a byte on 40 selection rows" in problem.floor(
        summary_of(1.0), who="the teacher", split="selection", confidence=0.95
    )[0].explanation  # fmt: skip


def weighed(teacher: np.ndarray, shipped: np.ndarray, *, max_drop: float = 0.05, **more: Any) -> Any:
    rows = {"prediction_train": teacher, "prediction_validate": shipped, **more}
    checks, recalls = problem.weigh(rows, {}, max_drop=max_drop, has_floor=False, confidence=0.95)
    assert recalls == ()
    (check,) = checks
    return check


def test_what_is_lost_is_a_share_of_what_the_teacher_needs() -> None:
    random = np.random.default_rng(0)
    teacher = random.gamma(4.0, 20.0, 400)
    even = weighed(teacher, 1.03 * teacher)
    assert (even.metric, even.measured) == ("bits_per_byte", pytest.approx(0.03))
    assert (even.low, even.high) == (pytest.approx(0.03), pytest.approx(0.03)), "pairs leave nothing to chance"
    assert even.status is CheckStatus.PASSED
    assert weighed(teacher, 1.2 * teacher).status is CheckStatus.FAILED
    assert weighed(teacher, teacher).measured == 0
    noisy = weighed(teacher, teacher * random.normal(1.03, 0.2, 400))
    assert noisy.low < noisy.measured < noisy.high
    few = weighed(teacher[:4], teacher[:4] * np.array([0.5, 1.6, 0.7, 1.4]))
    assert few.status is CheckStatus.UNDECIDABLE
    assert "undecidable at this n" in few.explanation


def test_rows_of_a_document_are_no_news_to_each_other() -> None:
    random = np.random.default_rng(1)
    factor = np.repeat(random.normal(1.03, 0.1, 40), 10)
    teacher = random.gamma(4.0, 20.0, 400)
    alone = weighed(teacher, teacher * factor)
    together = weighed(teacher, teacher * factor, document=np.repeat(np.arange(40), 10))
    assert together.measured == alone.measured
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_targets_are_bytes() -> None:
    texts = ["a" * size for size in range(1, 51)] + ["ä€"]
    tables = {name: Table("here", "row", [], texts, [], "") for name in ("train", "test")}
    found = problem.targets(tables)
    assert found.tables["train"].labels[-1] == "5"
    assert found.strata == ["up to 10 bytes", "up to 20 bytes", "up to 30 bytes", "up to 40 bytes", "longer"]
    assert [found.stratum(label) for label in ("1", "10", "11", "41", "5000")] == [
        "up to 10 bytes", "up to 10 bytes", "up to 20 bytes", "longer", "longer",
    ]  # fmt: skip
    assert found.array(["7", ""], {}).tolist() == [7, problem.NO_TARGET]
    assert found.of_text is not None
    assert found.of_text("ä€") == "5"
    assert {found.stratum(label) for label in found.tables["train"].labels} == set(found.strata)


def test_a_text_of_several_spellings_has_the_bytes_of_the_one_that_is_kept() -> None:
    spaces = [" " * (1 + number % 12) for number in range(40)]
    texts = [f"text{space}{number}" for number, space in enumerate(spaces)] + [f"text {number}" for number in range(40)]
    source = Table("texts.jsonl", "line", range(1, 81), texts, [], "")
    made = problem.targets({"train": source})
    division = splitting.divide(made, test=0.2, selection=0.2, calibration=0.1)
    rows = [row for rows in division.splits.values() for row in rows]
    assert len(rows) == 40
    assert any("  " in row.text for row in rows), "some are kept with many spaces"
    assert all(row.label == str(len(row.text.encode())) for row in rows)
    assert not any("several labels" in said for said in division.warnings)


def test_label_smoothing_is_refused() -> None:
    assert list(problem.objections({"label_smoothing": 0.0})) == []
    (said,) = problem.objections({"label_smoothing": 0.1})
    assert said == "training.label_smoothing: 0.1 means nothing for next tokens; set it to 0"


def test_an_answer_for_people(model: nn.Module) -> None:
    kept = kept_of(model)[0]
    nats = lost_by_token(model, ROWS[0]).sum().item()
    assert problem.shown(kept, [], {}) == {"label": f"{nats / math.log(2):.1f} bits"}
