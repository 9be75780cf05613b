"""What is loaded of a base model: the backbone whole, and a head where it knows the labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import modeling
from tasks.ml.problems import heads, text_classification

LABELS = ["positive", "Negative", "mixed"]


@pytest.fixture
def teacher(model: nn.Module) -> nn.Module:
    """A classifier of three labels, in an order of its own."""
    torch.manual_seed(1)
    model.classifier = nn.Linear(32, 3)
    model.config.num_labels = 3  # type: ignore[union-attr]
    model.config.id2label = dict(enumerate(LABELS))  # type: ignore[union-attr]
    model.config.label2id = {label: index for index, label in enumerate(LABELS)}  # type: ignore[union-attr]
    return model


@pytest.fixture
def base(tmp_path: Path, teacher: nn.Module) -> Path:
    modeling.save_model(teacher, tmp_path)
    return tmp_path


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("featherweight")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger="featherweight"):
        yield caplog
    logger.removeHandler(caplog.handler)


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(torch.tensor([[2, 7, 9, 3]])).logits


@pytest.mark.parametrize("labels", [["mixed", "negative", "positive"], ["negative", "positive"]])
def test_a_classifier_keeps_its_head_by_the_names_of_the_labels(
    base: Path, teacher: nn.Module, labels: list[str], said: pytest.LogCaptureFixture
) -> None:
    model = text_classification.load_base(base, labels)
    rows = [["positive", "negative", "mixed"].index(label) for label in labels]
    torch.testing.assert_close(logits(model), logits(teacher)[:, rows])
    assert model.config.id2label == dict(enumerate(labels))  # type: ignore[union-attr]
    assert model.config.num_labels == len(labels)  # type: ignore[union-attr]
    assert "the head is kept" in said.text


@pytest.mark.parametrize("labels", [["a", "b", "c"], ["0", "1", "2"], ["negative", "unknown"]])
def test_a_head_for_other_labels_is_new(
    base: Path, teacher: nn.Module, labels: list[str], said: pytest.LogCaptureFixture
) -> None:
    model = text_classification.load_base(base, labels)
    assert model.classifier.weight.shape == (len(labels), 32)  # type: ignore[union-attr]
    stored = {tuple(row.tolist()) for row in teacher.classifier.weight}  # type: ignore[union-attr, operator]
    assert not stored & {tuple(row.tolist()) for row in model.classifier.weight}  # type: ignore[union-attr, operator]
    assert torch.equal(model.bert.pooler.dense.weight, teacher.bert.pooler.dense.weight)  # type: ignore[union-attr, arg-type]
    assert "the head is new, for the stored one is not for these labels" in said.text


def test_a_head_of_another_shape_is_not_called_kept(
    base: Path, teacher: nn.Module, said: pytest.LogCaptureFixture
) -> None:
    stored = load_file(base / modeling.WEIGHTS)
    stored["classifier.weight"] = torch.zeros(3, 16)
    save_file(stored, base / modeling.WEIGHTS, metadata={"format": "pt"})
    text_classification.load_base(base, LABELS)
    assert "the head is new, for the stored one is not for these labels" in said.text
    assert "kept" not in said.text


@pytest.mark.parametrize(
    ("names", "labels", "rows"),
    [
        ({0: "LABEL_0", 1: "LABEL_1"}, ["0", "1"], [0, 1]),
        ({0: "LABEL_0", 1: "LABEL_1"}, ["1", "0"], [1, 0]),
        ({0: "LABEL_0", 1: "LABEL_1"}, ["LABEL_1", "LABEL_0"], [1, 0]),
        ({0: "LABEL_0", 1: "LABEL_1"}, ["negative", "positive"], None),
        ({0: "Yes", 1: "YES"}, ["yes", "no"], None),
        ({0: "yes", 1: "no"}, ["Yes", "yes"], None),
        ({0: 0, 1: 1}, ["1", "0"], [1, 0]),
        ({1: "no", 2: "yes"}, ["no", "yes"], None),
    ],
)
def test_names_decide_only_where_they_are_clear(
    names: dict[int, Any], labels: list[str], rows: list[int] | None
) -> None:
    assert heads.head_rows(names, labels) == rows


def test_a_backbone_that_was_not_loaded_whole_is_refused(base: Path, said: pytest.LogCaptureFixture) -> None:
    stored = load_file(base / modeling.WEIGHTS)
    gone = stored.pop("bert.encoder.layer.1.output.dense.weight")
    save_file(stored, base / modeling.WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(FeatherweightError, match=r"lacks 1 tensors, such as bert\.encoder\.layer\.1\.output\.dense"):
        text_classification.load_base(base, LABELS)
    stored |= {"bert.encoder.layer.1.output.dense.weight": gone, "cls.predictions.bias": torch.zeros(2)}
    save_file(stored, base / modeling.WEIGHTS, metadata={"format": "pt"})
    text_classification.load_base(base, LABELS)
    assert "stored and not used are cls.predictions.bias" in said.text
