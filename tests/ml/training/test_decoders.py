"""Tiny decoders learn, whatever of them is trained, and by themselves or from a teacher."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.data import batching
from tasks.ml.data.datasets import Split
from tasks.ml.distillation import answers, teaching
from tasks.ml.jobs.lessons import Lesson, Tutor
from tasks.ml.models import decoders, factorization
from tasks.ml.problems import causal_lm
from tasks.ml.pruning import sparsity, surgery
from tasks.ml.quality import learning
from tasks.ml.training import optimizers, trainable, trainer
from tests.ml.processes import FOR_MODEL, FOR_TRAINER, Recorder
from tests.ml.tiny_decoders import model_of, tokens

PATTERN = [7, 19, 44, 3, 90, 61]
ROWS = [[1, *(PATTERN * 3)[start : start + 9 + start % 4]] for start in range(24)]
TARGETS = np.array([len(row) * 3 for row in ROWS])
SELECTION = Split([""] * 6, ROWS[:6], TARGETS[:6])
PLAIN: dict[str, Any] = {
    "optimizer": "adamw", "precision": "fp32", "embeddings": "dense", "activation_checkpointing": False, "lora_rank": 0
}  # fmt: skip
NAMES = ("llama", "llama, tied", "gemma", "gpt2")


def perplexity(history: trainer.History, at: int) -> float:
    return math.exp(history.evaluations[at]["loss"])


def learned(model: nn.Module, what: Lesson | None = None, **changes: Any) -> trainer.History:
    what = what or Lesson("causal-lm", 0, ROWS, TARGETS, SELECTION)
    for_model = {name: changes.pop(name, value) for name, value in FOR_MODEL.items()}
    trainer.seed_everything(0)
    options = FOR_TRAINER | {"epochs": 8, "learning_rate": 3e-3} | changes
    return what.learn(model, for_model=for_model, observer=Recorder(), **options)


@pytest.mark.parametrize("embeddings", ["sparse", "dense", "frozen"])
@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_is_learned(name: str, embeddings: str) -> None:
    model = model_of(name)
    table = decoders.of_model(model).table(model).clone()
    history = learned(model, embeddings=embeddings)
    assert perplexity(history, 0) > 1.5 * perplexity(history, -1)
    assert math.exp(history.evaluations[-1]["loss"]) < 20
    assert torch.equal(decoders.of_model(model).table(model), table) == (embeddings == "frozen")


@pytest.mark.parametrize("name", ["llama", "llama, tied"])
def test_sparse_gradients_are_those_of_a_table_that_is_no_head(name: str) -> None:
    """A head has gradients at every token."""
    model: Any = model_of(name).train()
    ids = tokens()
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    causal_lm.loss(model(**batch).logits, batch).backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    with trainable.prepared(model, **PLAIN | {"embeddings": "sparse"}):
        causal_lm.loss(model(**batch).logits, batch).backward()
        assert model.get_input_embeddings().weight.grad.is_sparse == (name == "llama")
        algorithm = optimizers.build(model, "adamw", learning_rate=1e-3, weight_decay=0.0)
        assert any(isinstance(one, torch.optim.SparseAdam) for one in algorithm.members) == (name == "llama")
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad.to_dense(), expected[key])


@pytest.mark.parametrize("name", NAMES)
def test_lora_trains_few_parameters_and_merges_into_a_plain_decoder(name: str) -> None:
    model = model_of(name)
    names, before = list(model.state_dict()), {key: p.clone() for key, p in model.named_parameters()}
    with torch.no_grad(), trainable.prepared(model, **PLAIN | {"lora_rank": 2}):
        adapted = model(input_ids=tokens()).logits
    with torch.no_grad():
        torch.testing.assert_close(adapted, model(input_ids=tokens()).logits)  # B starts at zero
    history = learned(model, lora_rank=4, learning_rate=1e-2)
    assert perplexity(history, 0) > perplexity(history, -1)
    assert list(model.state_dict()) == names
    changed = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    linears = {f"{key}.weight" for key in decoders.of_model(model).linears(model)}
    assert linears <= changed <= linears | {"lm_head.weight"}
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("change", [{"activation_checkpointing": True}, {"precision": "bf16"}, {"micro_batch": 3}])
def test_how_it_is_computed_changes_little(change: dict[str, Any]) -> None:
    expected, found = (learned(model_of("llama"), epochs=2, **options) for options in ({}, change))
    assert found.evaluations[-1]["loss"] == pytest.approx(expected.evaluations[-1]["loss"], rel=0.02)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_layers_have_their_heights(name: str) -> None:
    """By which learning rates decay, and which matrices Muon takes."""
    model = model_of(name)
    family = decoders.of_model(model)
    heights = {key: optimizers.depth(key, 3) for key, _ in model.named_parameters()}
    for key, height in heights.items():
        layer = next((index for index in range(3) if f".{family.layers}.{index}." in key), None)
        is_table = key.endswith(tuple(f"{one}.weight" for one in (family.embeddings, family.positions) if one))
        assert height == (0 if is_table else 4 if layer is None else layer + 1), key


def test_products_of_gpt2_are_counted_as_those_of_others() -> None:
    for name in ("llama, tied", "gpt2"):
        model = model_of(name)
        weights = decoders.of_model(model).projections(model)
        head = decoders.of_model(model).head(model).numel()
        assert trainer.flops_per_token(model) == 6 * (head + sum(one.weight.numel() for one in weights))


def test_a_decoder_keeps_its_table_whole() -> None:
    for name in ("llama", "gpt2"):
        with pytest.raises(FeatherweightError, match=r"embedding_rank is for encoders.*set it to 0"):
            factorization.factorize(model_of(name), 16, rows=ROWS)


def test_weights_of_linear_layers_can_be_sparse_and_stay_so() -> None:
    batches = list(learning.batches(SELECTION, 6, pad_id=0))
    sparse, damages = sparsity.sparsify(
        model_of("llama, tied"), batches, method="wanda", pattern=sparsity.Pattern.parse("2:4")
    )
    assert len(damages) == 7 * 3
    assert sparsity.fraction(sparse) == pytest.approx(0.5)
    zeros = sparsity.zeros(sparse)
    before = {name: sparse.get_submodule(name).weight.clone() for name in zeros}
    learned(sparse, Lesson("causal-lm", 0, ROWS, TARGETS, SELECTION, zeros=zeros), epochs=2)
    for name, mask in zeros.items():
        weight = sparse.get_submodule(name).weight
        assert (weight[mask] == 0).all()
        assert not torch.equal(weight, before[name])
    with pytest.raises(FeatherweightError, match=r"pruning: the matrices of a gpt2 .* cannot be sparse"):
        sparsity.sparsify(model_of("gpt2"), batches, method="wanda", pattern=sparsity.Pattern.parse("2:4"))


class Taught:
    """A student of two layers, and its teacher."""

    def __init__(self, name: str) -> None:
        self.teacher = model_of(name)
        learned(self.teacher, epochs=4)
        self.student = surgery.keep_layers(self.teacher, [0, 2])

    def loss(self, memory: answers.Memory | None = None, **changes: Any) -> teaching.Tutored:
        options: dict[str, Any] = {
            "layer_map": [1, 2], "weights": teaching.Weights(logits=1.0, hidden=1.0, labels=0.5), "temperature": 1.0,
            "pad_id": 0, "problem": causal_lm, "memory": memory,
        }  # fmt: skip
        return teaching.Tutored(self.student, self.teacher, ROWS, torch.as_tensor(TARGETS), **options | changes)


def of(loss: teaching.Tutored, rows: list[int], parts: list[list[int]] | None = None) -> Mapping[str, float]:
    """The loss of a batch, in one or in parts."""
    parts = parts or [rows]
    whole, found = loss.amounts(parts), {}
    for part in parts:
        for name, value in loss(part, whole)[1].items():
            found[name] = found.get(name, 0.0) + value.item()
    return found


@pytest.fixture(scope="module")
def taught() -> Taught:
    return Taught("llama, tied")


def test_a_loss_in_parts_is_the_loss_of_the_whole(taught: Taught) -> None:
    """Also where rows have more tokens in one part than in another."""
    loss = taught.loss()
    rows = sorted(range(10), key=lambda row: len(ROWS[row]))
    assert len(ROWS[rows[0]]) < len(ROWS[rows[-1]])
    assert of(loss, rows, [rows[:3], rows[3:]]) == pytest.approx(of(loss, rows), rel=1e-4)


def test_padding_further_changes_no_loss(taught: Taught) -> None:
    expected, further = (
        of(taught.loss(padding=batching.Padding(multiple, limit=100)), [0, 1, 2, 3]) for multiple in (1, 37)
    )
    assert further == pytest.approx(expected, rel=1e-4)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(taught: Taught) -> None:
    student = copy.deepcopy(taught.teacher)
    loss = teaching.Tutored(
        student, taught.teacher, ROWS, torch.as_tensor(TARGETS), layer_map=range(3),
        weights=teaching.Weights(logits=1.0, hidden=1.0), temperature=1.0, pad_id=0, problem=causal_lm,
    )  # fmt: skip
    assert sum(of(loss, [0, 1, 2, 3]).values()) == pytest.approx(0.0, abs=2e-4)


def test_what_is_on_disk_is_not_asked_again_and_gives_the_same_loss(taught: Taught, tmp_path: Path) -> None:
    memory = answers.Memory(tmp_path / "teacher")
    first = of(taught.loss(memory), [0, 2, 3])
    memory.publish()
    asked: list[int] = []
    hook = taught.teacher.register_forward_pre_hook(
        lambda _, __, given: asked.append(len(given["input_ids"])), with_kwargs=True
    )
    assert of(taught.loss(answers.Memory(tmp_path / "teacher")), [3, 0, 2]) == pytest.approx(first, rel=1e-5)
    assert asked == []
    of(taught.loss(answers.Memory(tmp_path / "teacher")), [0, 1])
    hook.remove()
    assert asked == [1]


@pytest.mark.parametrize("weights", [teaching.Weights(logits=1.0), teaching.Weights(logits=1.0, hidden=1.0)])
@pytest.mark.parametrize("name", ["llama, tied", "gpt2"])
def test_a_student_learns_from_its_teacher(name: str, weights: teaching.Weights) -> None:
    both = Taught(name)
    before = of(both.loss(weights=weights), list(range(len(ROWS))))
    what = Lesson("causal-lm", 0, ROWS, TARGETS, SELECTION, tutor=Tutor(both.teacher, [1, 2], weights, 1.0))
    history = learned(both.student, what)
    after = of(both.loss(weights=weights), list(range(len(ROWS))))
    assert before.keys() == after.keys()
    assert all(after[part] < 0.7 * value for part, value in before.items())
    assert perplexity(history, -1) < perplexity(history, 0)


def test_a_lesson_with_a_tutor_can_be_written_down(taught: Taught, tmp_path: Path) -> None:
    tutor = Tutor(taught.teacher, [1, 2], teaching.Weights(logits=1.0), 1.0)
    reference = np.zeros((6, 8, 2), dtype=np.float32)
    what = Lesson("causal-lm", 0, ROWS, TARGETS, SELECTION, tutor=tutor, reference=reference)
    what.write(tmp_path)
    again = Lesson.read(tmp_path, torch.device("cpu"))
    assert again.input_ids == ROWS
    assert again.tutor is not None
    with torch.no_grad():
        said, expected = (one(input_ids=tokens()).logits for one in (again.tutor.teacher, taught.teacher))
    assert torch.equal(said, expected)
