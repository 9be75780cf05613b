"""The stages that learn from a teacher, on a tiny line: what they ask it, learn from, and report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from torch import nn

from tasks import fitting
from tasks.contracts.values import Bundle, Splits, StageResult
from tasks.distill import DistillationConfig, distill
from tasks.engine import disk, store, tracking
from tasks.ml.data import augmentation, datasets
from tasks.ml.distillation import layer_choice, teaching
from tasks.ml.models import modeling, tokenization
from tasks.ml.pruning import sparsity
from tasks.ml.quality import evaluation
from tasks.ml.runtime import parity
from tasks.prune import PruningConfig, prune
from tasks.quantize import QuantizationConfig, quantize
from tests.tasks import tiny_models

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 16, "precision": "fp32", "learning_rate": 1e-3}


@pytest.fixture
def run_id() -> Iterator[str]:
    with tracking.pipeline_run("tutoring", {}, run_name="tutoring") as run_id:
        yield run_id


@pytest.fixture
def splits() -> Splits:
    return tiny_models.publish_data()


@pytest.fixture
def teacher() -> Bundle:
    return tiny_models.publish_model(tiny_models.model())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Texts that teachers compute, question by question."""
    questions: list[int] = []
    ask = teaching.Teacher._ask

    def counted(self: teaching.Teacher, indices: Any) -> Any:
        questions.append(len(indices))
        return ask(self, indices)

    monkeypatch.setattr(teaching.Teacher, "_ask", counted)
    return questions


def student(teacher: Bundle, splits: Splits, run_id: str, **changes: Any) -> StageResult:
    config = DistillationConfig(**QUICK | {"layers": 1} | changes)
    return distill(teacher, splits, config, seed=0, run_id=run_id)


def labels(bundle: Bundle, splits: Splits) -> np.ndarray:
    """What a bundle says of the selection split as it is served, of texts as its own tokenizer encodes them."""
    path = store.path(bundle.digest)
    tokenizer = tokenization.load(path)
    rows = datasets.read(store.path(splits.digest), "selection", tokenizer).input_ids
    served = parity.simulated(path, bundle.problem)
    return evaluation.logits(served, rows, pad_id=tokenizer.pad_token_id).argmax(axis=1)


def pattern_of(model: nn.Module) -> int:
    """The most weights that are not zero among any four neighbours of a linear layer."""
    parts = [linear.weight.unflatten(1, (-1, 4)) for linear in sparsity.linears(model).values()]
    return max(int((part != 0).sum(dim=-1).max()) for part in parts)


def test_a_teacher_is_asked_about_a_text_once(teacher: Bundle, splits: Splits, run_id: str, asked: list[int]) -> None:
    first = student(teacher, splits, run_id, epochs=2)
    config = PruningConfig(**QUICK)
    spans = augmentation.sub_spans(datasets.read(store.path(splits.digest), "train").texts, 1.0, seed=0)
    new = augmentation.unseen(spans, datasets.read(store.path(splits.digest), "train").texts)
    assert sum(asked) == 60 + len(new)
    asked.clear()
    prune(first.bundle, splits, config, teacher=teacher, seed=0, run_id=run_id)
    student(teacher, splits, run_id, learning_rate=2e-3)
    assert asked == []
    assert list((disk.home() / "store" / "answers").iterdir())
    student(teacher, splits, run_id, augmentation_kind="replacements")
    assert 0 < sum(asked) <= 60


def test_answers_from_disk_give_the_same_student(
    teacher: Bundle, splits: Splits, run_id: str, asked: list[int]
) -> None:
    first = student(teacher, splits, run_id)
    for record in (disk.home() / "store" / "records").iterdir():
        record.unlink()
    asked.clear()
    second = student(teacher, splits, run_id)
    assert not second.cached
    assert asked == []
    assert second.bundle == first.bundle


def test_a_step_budget_does_not_grow_with_the_texts(teacher: Bundle, splits: Splits, run_id: str) -> None:
    for texts in (0, 5):
        result = student(teacher, splits, run_id, steps=7, augmentation=texts)
        history = tiny_models.read_json(store.path(result.evidence), "history.json")
        assert history["notes"]["total_steps"] == 7


def test_every_stage_says_how_often_it_agrees_with_the_teacher_and_drops_what_it_was_told_to(
    teacher: Bundle, splits: Splits, run_id: str
) -> None:
    first = student(teacher, splits, run_id)
    pruned = prune(first.bundle, splits, PruningConfig(**QUICK, dropout=0.2), teacher=teacher, seed=0, run_id=run_id)
    aware = QuantizationConfig(training=QUICK | {"steps": 2, "dropout": 0.0})
    quantized = quantize(pruned.bundle, splits, aware, teacher=teacher, seed=0, run_id=run_id)
    for result, dropped in ((first, 0.1), (pruned, 0.2), (quantized, 0.0)):
        assert result.bundle is not None
        config = tiny_models.read_json(store.path(result.bundle.digest), "config.json")
        assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == dropped
        alike = (labels(result.bundle, splits) == labels(teacher, splits)).mean()
        assert result.scorecard.agreement_with_teacher == pytest.approx(alike)


def test_with_a_smaller_vocabulary_it_is_held_against_the_teacher_as_it_was(splits: Splits, run_id: str) -> None:
    encoder = tiny_models.tokenizer(pieces=True)
    teacher = tiny_models.publish_model(tiny_models.model(vocabulary=len(encoder)), encoder=encoder)
    config = PruningConfig(**QUICK | {"steps": 1, "augmentation": 0}, keep_vocabulary=0.8)
    pruned = prune(teacher, splits, config, teacher=teacher, seed=0, run_id=run_id)
    assert pruned.bundle is not None
    alike = (labels(pruned.bundle, splits) == labels(teacher, splits)).mean()
    assert pruned.scorecard.agreement_with_teacher == pytest.approx(alike)
    evaluation = tiny_models.read_json(store.path(pruned.evidence), "history.json")["evaluations"][-1]
    assert evaluation["agreement"] == pytest.approx(alike)


def test_what_a_student_was_cut_to_learn_it_learns_in_every_stage(
    splits: Splits, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_models.publish_model(tiny_models.model(layers=3))
    learn, seen = fitting.learn, {}

    def watched(title: str, model: Any, lesson: Any, **options: Any) -> Any:
        seen[title] = lesson.tutor.layer_map
        return learn(title, model, lesson, **options)

    monkeypatch.setattr(fitting, "learn", watched)
    monkeypatch.setattr(layer_choice, "influence", lambda *_, **__: [3.0, 2.0, 1.0])
    brief = QUICK | {"steps": 2, "augmentation": 0}
    first = student(teacher, splits, run_id, **brief, layers=2, layer_choice="influence")
    pruned = prune(first.bundle, splits, PruningConfig(**brief, rounds=2), teacher=teacher, seed=0, run_id=run_id)
    quantize(pruned.bundle, splits, QuantizationConfig(training=brief), teacher=teacher, seed=0, run_id=run_id)
    assert seen == {title: [0, 2] for title in ("distill", "prune-1", "prune", "quantize")}


@pytest.mark.parametrize(
    ("method", "quantization"),
    [
        ("magnitude", {}),
        ("wanda", {"rounding": "gptq", "scheme": "int4", "block_size": 16, "smoothing": 0.5}),
        ("sparsegpt", {"rounding": "gptq", "training": QUICK | {"steps": 4, "augmentation": 0}}),
    ],
)
def test_zeros_are_still_there_after_healing_and_in_the_integers(
    method: str, quantization: dict[str, Any], teacher: Bundle, splits: Splits, run_id: str
) -> None:
    source = student(teacher, splits, run_id).bundle
    config = PruningConfig(**QUICK, sparsity=method, sparsity_pattern="2:4")
    pruned = prune(source, splits, config, teacher=teacher, seed=0, run_id=run_id)
    assert pruned.scorecard.sparsity == pytest.approx(0.5)
    assert pruned.bundle is not None
    model = modeling.load(store.path(pruned.bundle.digest), pruned.bundle.problem)
    assert pattern_of(model) <= 2
    said = tiny_models.read_json(store.path(pruned.evidence), "sparsity.json")
    assert said["damage"].keys() == sparsity.linears(model).keys()
    assert said["int8_bytes"]["sparse"]["zstd"] < said["int8_bytes"]["dense"]["zstd"]
    config = QuantizationConfig(**quantization)
    quantized = quantize(pruned.bundle, splits, config, teacher=teacher, seed=0, run_id=run_id)
    assert quantized.bundle is not None
    assert pattern_of(modeling.load(store.path(quantized.bundle.digest), tiny_models.PROBLEM)) <= 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity_pattern": "4:2"}, "sparsity_pattern: 4 of 2"),
        ({"lora_rank": 4}, "lora_rank: low-rank updates fill the zeros"),
        ({"num_processes": 2, "parallelism": "sharded"}, "choose parallelism replicated"),
    ],
)
def test_zeros_that_could_not_stay_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PruningConfig(sparsity="wanda", **changes)
