"""The stages that learn from a teacher, on a tiny line: what they ask it, learn from, and report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from torch import nn

from tasks import fitting
from tasks.contracts.hyperparameters import ComputeConfig
from tasks.contracts.values import Bundle, Splits, StageResult
from tasks.distill import DistillationConfig, distill
from tasks.engine import disk, store, tracking
from tasks.ml.data import augmentation, datasets
from tasks.ml.distillation import layer_choice, teaching
from tasks.ml.models import modeling, tokenization
from tasks.ml.pruning import sparsity
from tasks.ml.quality import evaluation
from tasks.ml.runtime import parity
from tasks.prune import PruningConfig, SparsityConfig, prune
from tasks.quantize import QuantizationConfig, quantize
from tasks.tutoring import AugmentationConfig, TeachingConfig
from tests.tasks import tiny_models

QUICK: dict[str, Any] = {"steps": 8, "batch_size": 16, "learning_rate": 1e-3}
COMPUTE = ComputeConfig(precision="fp32")
SPANS = TeachingConfig(augmentation={"per_text": 1.0})
HOW: dict[str, Any] = {"teaching": SPANS, "compute": COMPUTE, "seed": 0}


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


def student(
    teacher: Bundle, splits: Splits, run_id: str, *, teaching: TeachingConfig = SPANS, **changes: Any
) -> StageResult:
    config = DistillationConfig(**QUICK | {"layers": 1} | changes)
    return distill(teacher, splits, config, teaching=teaching, compute=COMPUTE, seed=0, run_id=run_id)


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
    first = student(teacher, splits, run_id, steps=16)
    config = PruningConfig(**QUICK)
    spans = augmentation.sub_spans(datasets.read(store.path(splits.digest), "train").texts, 1.0, seed=0)
    new = augmentation.unseen(spans, datasets.read(store.path(splits.digest), "train").texts)
    assert len(new) > 40, "fewer texts would say little"
    assert 60 + len(new) <= 8 * 16, "each text comes up twice"
    assert sum(asked) == 60 + len(new)
    asked.clear()
    prune(first.bundle, splits, config, teacher=teacher, **HOW, run_id=run_id)
    student(teacher, splits, run_id, learning_rate=2e-3)
    assert asked == []
    assert list((disk.home() / "store" / "answers").iterdir())
    replaced = TeachingConfig(augmentation={"per_text": 1.0, "kind": "replacements"})
    student(teacher, splits, run_id, teaching=replaced)
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
    for more in (None, AugmentationConfig(per_text=5)):
        result = student(teacher, splits, run_id, steps=7, teaching=TeachingConfig(augmentation=more))
        history = tiny_models.read_json(store.path(result.evidence), "history.json")
        assert history["notes"]["total_steps"] == 7


def test_every_stage_says_how_often_it_agrees_with_the_teacher_and_drops_what_the_teacher_did(
    splits: Splits, run_id: str
) -> None:
    model: Any = tiny_models.model()
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.2
    teacher = tiny_models.publish_model(model)
    first = student(teacher, splits, run_id)
    pruned = prune(first.bundle, splits, PruningConfig(**QUICK), teacher=teacher, **HOW, run_id=run_id)
    aware = QuantizationConfig(training=QUICK | {"steps": 2})
    quantized = quantize(pruned.bundle, splits, aware, teacher=teacher, **HOW, run_id=run_id)
    for result in (first, pruned, quantized):
        assert result.bundle is not None
        config = tiny_models.read_json(store.path(result.bundle.digest), "config.json")
        assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.2
        alike = (labels(result.bundle, splits) == labels(teacher, splits)).mean()
        assert result.scorecard.agreement_with_teacher == pytest.approx(alike)


def test_with_a_smaller_vocabulary_it_is_held_against_the_teacher_as_it_was(splits: Splits, run_id: str) -> None:
    encoder = tiny_models.tokenizer(pieces=True)
    teacher = tiny_models.publish_model(tiny_models.model(vocabulary=len(encoder)), encoder=encoder)
    config = PruningConfig(**QUICK | {"steps": 1}, keep_vocabulary=0.8)
    how = HOW | {"teaching": TeachingConfig()}
    pruned = prune(teacher, splits, config, teacher=teacher, **how, run_id=run_id)
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
    brief, how = QUICK | {"steps": 2}, HOW | {"teaching": TeachingConfig()}
    first = student(teacher, splits, run_id, teaching=how["teaching"], **brief, layers=2, layer_choice="influence")
    pruned = prune(first.bundle, splits, PruningConfig(**brief, rounds=2), teacher=teacher, **how, run_id=run_id)
    quantize(pruned.bundle, splits, QuantizationConfig(training=brief), teacher=teacher, **how, run_id=run_id)
    assert seen == {title: [0, 2] for title in ("distill", "prune-1", "prune", "quantize")}


@pytest.mark.parametrize(
    ("method", "quantization"),
    [
        ("magnitude", {}),
        ("wanda", {"rounding": "gptq", "scheme": "int4", "block_size": 16, "smoothing": 0.5}),
        ("sparsegpt", {"rounding": "gptq", "training": QUICK | {"steps": 4}}),
    ],
)
def test_zeros_are_still_there_after_healing_and_in_the_integers(
    method: str, quantization: dict[str, Any], teacher: Bundle, splits: Splits, run_id: str
) -> None:
    source = student(teacher, splits, run_id).bundle
    config = PruningConfig(**QUICK, sparsity={"method": method, "pattern": "2:4"})
    pruned = prune(source, splits, config, teacher=teacher, **HOW, run_id=run_id)
    assert pruned.scorecard.sparsity == pytest.approx(0.5)
    assert pruned.bundle is not None
    model = modeling.load(store.path(pruned.bundle.digest), pruned.bundle.problem)
    assert pattern_of(model) <= 2
    said = tiny_models.read_json(store.path(pruned.evidence), "sparsity.json")
    assert said["damage"].keys() == sparsity.linears(model).keys()
    assert said["int8_bytes"]["sparse"]["zstd"] < said["int8_bytes"]["dense"]["zstd"]
    config = QuantizationConfig(**quantization)
    quantized = quantize(pruned.bundle, splits, config, teacher=teacher, **HOW, run_id=run_id)
    assert quantized.bundle is not None
    assert pattern_of(modeling.load(store.path(quantized.bundle.digest), tiny_models.PROBLEM)) <= 2


@pytest.mark.parametrize(
    ("sparsity", "changes", "message"),
    [
        ({"pattern": "4:2"}, {}, "4 of 2 weights cannot be kept; write n:m"),
        ({"pattern": "2:0"}, {}, "should match pattern"),
        ({"pattern": 1.5}, {}, "should match pattern"),
        ({"pattern": 2}, {}, "should be a valid string"),
        ({}, {"lora_rank": 4}, "lora_rank: low-rank updates fill the zeros"),
    ],
)
def test_zeros_that_could_not_stay_are_refused(sparsity: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PruningConfig(sparsity=sparsity, **changes)


def test_a_fraction_of_zeros_is_a_number_or_its_text() -> None:
    assert SparsityConfig(pattern=0.25) == SparsityConfig(pattern="0.25")


def test_a_model_that_proposes_words_is_asked_for_something() -> None:
    with pytest.raises(ValidationError, match="model: proposes words for replacements; set kind to replacements"):
        AugmentationConfig(model="package:words")
