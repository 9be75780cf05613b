from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.ml.data import batching
from tasks.ml.data.datasets import Split
from tasks.ml.distillation import answers, teaching
from tasks.ml.problems import text_classification
from tasks.ml.pruning import kept_tokens, surgery
from tasks.ml.quality import learning

EVERYTHING = teaching.Weights(logits=1.0, hidden=1.0, attention=1.0, labels=0.0, maps=1.0)


def make_loss(student: nn.Module, teacher: nn.Module, rows: list[list[int]], **changes: Any) -> Any:
    options: dict[str, Any] = {
        "layer_map": range(4),
        "weights": EVERYTHING,
        "temperature": 2.0,
        "pad_id": 0,
        "problem": text_classification,
    }
    targets = torch.full((len(rows),), text_classification.NO_TARGET)
    return whole_batches(teaching.Tutored(student, teacher, rows, targets, **options | changes))


def whole_batches(loss: teaching.Tutored) -> Any:
    """The loss of rows that are a batch by themselves."""
    return lambda rows: loss(rows, loss.amounts([rows]))


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(
    model: nn.Module, tokenizer: Any, texts: list[str]
) -> None:
    rows = tokenizer(texts)["input_ids"]
    loss, parts = make_loss(copy.deepcopy(model), model, rows)([0, 1, 2, 3])
    assert parts.keys() == {"logit_loss", "hidden_loss", "attention_loss", "map_loss"}
    # The teacher's answers are kept in bf16: 8 bits of mantissa.
    assert loss.item() == pytest.approx(0.0, abs=2e-4)


def test_each_part_sees_its_difference(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    rows = tokenizer(texts)["input_ids"]
    student = surgery.keep_layers(model, [1, 3])
    loss, parts = make_loss(student, model, rows, layer_map=[1, 3])([0, 1, 2, 3])
    assert all(value > 1e-3 for value in parts.values())
    assert loss.item() == pytest.approx(sum(parts.values()).item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None for name, p in student.named_parameters() if "layer" in name)
    assert all(p.grad is None for p in model.parameters())


def test_of_a_last_layer_that_only_a_head_reads_the_first_token_is_compared(
    model: nn.Module, tokenizer: Any, texts: list[str]
) -> None:
    """The teacher's is not even computed for others, and is whole again when the loss is closed."""
    rows, asked_for = tokenizer(texts)["input_ids"], [0, 1, 2, 3]
    student, weights = surgery.keep_layers(model, [1, 3]), teaching.Weights(logits=0.0, hidden=1.0)
    widths = []
    model.bert.encoder.layer[3].output.register_forward_hook(lambda _, __, out: widths.append(out.shape[1]))  # type: ignore
    targets = torch.full((len(rows),), text_classification.NO_TARGET)
    loss = teaching.Tutored(
        student, model, rows, targets, layer_map=[1, 3], weights=weights, temperature=1.0, pad_id=0,
        problem=text_classification,
    )  # fmt: skip
    found = loss(asked_for, loss.amounts([asked_for]))[0].item()
    loss.close()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        own, its = (m.base_model(**batch, output_hidden_states=True).hidden_states for m in (student, model))
    tokens = batch["attention_mask"].bool()
    kept = [(own[1][tokens], its[2][tokens]), (own[2][:, 0], its[4][:, 0])]
    expected = [((ours - theirs) ** 2).mean() / theirs.var() for ours, theirs in kept]
    assert found == pytest.approx(torch.stack(expected).mean().item(), rel=0.01)
    assert widths == [1, tokens.shape[1]]


def test_padding_further_changes_no_loss(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    rows = tokenizer(texts)["input_ids"]
    student = surgery.keep_layers(model, [1, 3])
    expected, further = (
        make_loss(student, model, rows, layer_map=[1, 3], padding=batching.Padding(multiple, limit=100))([0, 1, 2])[0]
        for multiple in (1, 37)
    )
    assert further.item() == pytest.approx(expected.item(), rel=1e-5)


def test_memory_gives_the_same_answers(monkeypatch: Any, model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    rows = tokenizer(texts)["input_ids"]
    student = surgery.keep_layers(model, [1, 3])
    remembered = make_loss(student, model, rows, layer_map=[1, 3])
    first, second = remembered([0, 1]), remembered([1, 0, 3])
    monkeypatch.setattr(answers, "LARGEST_IN_MEMORY", 0)
    asked_anew = make_loss(student, model, rows, layer_map=[1, 3])
    assert first[0].item() == pytest.approx(asked_anew([0, 1])[0].item(), rel=1e-2)
    assert second[0].item() == pytest.approx(asked_anew([1, 0, 3])[0].item(), rel=1e-2)


def asked(model: nn.Module) -> list[int]:
    """Rows that a model computes from now on, batch by batch."""
    batches: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: batches.append(len(given["input_ids"])), with_kwargs=True)
    return batches


def test_what_is_on_disk_is_not_asked_again_and_gives_the_same_loss(
    tmp_path: Path, model: nn.Module, tokenizer: Any, texts: list[str]
) -> None:
    rows = tokenizer(texts)["input_ids"]
    student = surgery.keep_layers(model, [1, 3])
    memory = answers.Memory(tmp_path / "teacher")
    first = make_loss(copy.deepcopy(student), model, rows, layer_map=[1, 3], memory=memory)([0, 2, 3])[0]
    memory.publish()
    batches = asked(model)
    # Fewer kinds are wanted, as a later stage may; one text is new.
    fewer = {"layer_map": [1, 3], "weights": teaching.Weights(attention=1.0)}
    loss = make_loss(copy.deepcopy(student), model, rows, memory=answers.Memory(tmp_path / "teacher"), **fewer)
    loss([3, 0]), loss([0, 1])
    assert batches == [1]
    again = make_loss(student, model, rows, layer_map=[1, 3], memory=answers.Memory(tmp_path / "teacher"))
    assert torch.equal(again([0, 2, 3])[0], first)


def test_a_teacher_whose_vocabulary_was_cut_is_known_by_its_own_tokens(
    tmp_path: Path, model: nn.Module, tokenizer: Any, texts: list[str]
) -> None:
    rows = tokenizer(texts)["input_ids"]
    memory = answers.Memory(tmp_path / "teacher")
    first = make_loss(surgery.keep_layers(model, [1, 3]), model, rows, layer_map=[1, 3], memory=memory)([0, 1, 2])[0]
    memory.publish()
    tokens = kept_tokens.choose_tokens(tokenizer, rows, keep=0.95)
    cut, smaller = kept_tokens.keep_tokens(model, tokenizer, tokens)
    renumbered = smaller(texts)["input_ids"]
    assert renumbered != rows
    student, batches = surgery.keep_layers(cut, [1, 3]), asked(cut)
    memory = answers.Memory(tmp_path / "teacher", tokens)
    loss = make_loss(student, cut, renumbered, layer_map=[1, 3], memory=memory)
    torch.testing.assert_close(loss([0, 1, 2])[0], first)
    assert len(batches) == 0


def test_labels_count_only_where_there_are_any(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    rows = tokenizer(texts)["input_ids"]
    targets = torch.tensor([1, text_classification.NO_TARGET, 0, text_classification.NO_TARGET])
    weights = teaching.Weights(logits=0.0, labels=1.0)
    loss = whole_batches(
        teaching.Tutored(
            model, model, rows, targets, layer_map=range(4), weights=weights, temperature=1.0, pad_id=0,
            problem=text_classification,
        )
    )  # fmt: skip
    assert loss([1, 3])[1]["label_loss"] == 0.0
    assert loss([0, 1])[1]["label_loss"] == pytest.approx(loss([0])[1]["label_loss"].item(), rel=1e-4)


def test_quality_counts_rows_in_order(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    rows = tokenizer(texts)["input_ids"]
    with torch.no_grad():
        logits = np.stack([model(torch.tensor([row])).logits[0].numpy() for row in rows])
    targets = logits.argmax(axis=1)
    targets[2] = 1 - targets[2]
    measured = learning.quality(
        model,
        text_classification,
        Split(texts, rows, targets),
        pad_id=0,
        reference=logits,  # type: ignore[arg-type]
    )
    assert measured["quality"] == 0.75
    assert measured["agreement"] == 1.0
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets)).item()
    assert measured["loss"] == pytest.approx(expected, rel=1e-4)
