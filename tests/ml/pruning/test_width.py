"""Hidden dimensions in another order change nothing; fewer of them survive disk, export and training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from tasks.ml.distillation import projection, teaching
from tasks.ml.models import modeling, quantization_spec
from tasks.ml.problems import text_classification
from tasks.ml.pruning import surgery, width
from tasks.ml.xray import cost_model  # fmt: skip
from tasks.ml.xray.architecture import Architecture
from tests.ml.exporting import median_difference


def encode(tokenizer: Any, texts: list[str]) -> Any:
    return tokenizer(texts, return_tensors="pt", padding=True)


def test_all_dimensions_in_another_order_change_nothing(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    batch = encode(tokenizer, texts)
    torch.testing.assert_close(width.keep_hidden(model, order)(**batch).logits, model(**batch).logits)


def test_the_order_of_a_roberta_does_not_matter_either() -> None:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=34, type_vocab_size=1, initializer_range=0.2,
    )  # fmt: skip
    model = RobertaForSequenceClassification(config).eval()
    ids = torch.randint(4, 40, (2, 9))
    order = torch.randperm(32)
    torch.testing.assert_close(width.keep_hidden(model, order)(ids).logits, model(ids).logits)


def test_the_argument_is_left_alone(model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    width.keep_hidden(model, torch.arange(16))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.config.hidden_size == 32


def narrow(model: nn.Module) -> nn.Module:
    """Half as wide, with layers of different shapes and blocks that are gone."""
    full = {"heads": 4, "ffn": 64}
    counts = [full, {"heads": 0, "ffn": 40}, {"heads": 3, "ffn": 0}, full]
    scores = [surgery.LayerImportance(heads=torch.rand(4), ffn=torch.rand(64)) for _ in counts]
    return width.keep_hidden(surgery.keep_counts(model, scores, counts), torch.arange(0, 32, 2))


def test_a_narrow_model_survives_disk_and_export(
    tmp_path: Path, model: nn.Module, tokenizer: Any, texts: list[str]
) -> None:
    smaller = narrow(model)
    modeling.save(smaller, tokenizer, tmp_path)
    loaded = modeling.load(tmp_path, "text-classification")
    batch = encode(tokenizer, texts)
    assert torch.equal(loaded(**batch).logits, smaller(**batch).logits)
    described = Architecture.from_config(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
    assert (described.hidden, described.head_size) == (16, 8)
    assert cost_model.num_parameters(described) == modeling.num_parameters(smaller)
    spec = quantization_spec.plan(loaded, linears=True, token_bits=8, block_size=16)
    assert median_difference(loaded, tokenizer, texts, tmp_path, spec) < 1e-4


def test_importance_is_the_magnitude_after_the_norms(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    outputs = []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda *args: outputs.append(args[2]))
    batch = tokenizer(texts, return_tensors="pt", padding="max_length", max_length=20)
    model(**batch)
    real = batch["attention_mask"].bool()
    expected = torch.stack([output[real].abs().mean(dim=0) for output in outputs]).sum(dim=0)
    found = width.importance(model, [encode(tokenizer, [text]) for text in texts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_top_is_a_whole_number_of_head_sizes() -> None:
    assert width.top(torch.arange(32.0), keep=0.6, head_size=8).tolist() == list(range(16, 32))
    assert len(width.top(torch.arange(32.0), keep=0.01, head_size=8)) == 8


def loss(student: nn.Module, teacher: nn.Module, rows: list[list[int]]) -> torch.Tensor:
    step = teaching.Tutored(
        student, teacher, rows, torch.full((len(rows),), text_classification.NO_TARGET), layer_map=range(4),
        weights=teaching.Weights(logits=0.0, hidden=1.0), temperature=1.0, pad_id=0,
        problem=text_classification,
    )  # fmt: skip
    everything = list(range(len(rows)))
    return step(everything, step.amounts([everything]))[0]


def test_a_narrow_student_learns_through_a_projection_that_goes_afterwards(
    model: nn.Module, tokenizer: Any, texts: list[str]
) -> None:
    rows = tokenizer(texts)["input_ids"]
    student = width.keep_hidden(model, torch.arange(0, 32, 2))
    names = set(student.state_dict())
    with projection.attached(student, model):
        before = loss(student, model, rows)
        optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
        matrix = student.get_submodule(projection.NAME).weight.detach().clone()
        for _ in range(15):
            optimizer.zero_grad()
            loss(student, model, rows).backward()
            optimizer.step()
        assert loss(student, model, rows) < 0.8 * before
        assert not torch.equal(student.get_submodule(projection.NAME).weight, matrix)
    assert set(student.state_dict()) == names


def test_the_projection_begins_with_the_dimensions_in_their_places(model: nn.Module) -> None:
    index = torch.arange(0, 32, 2)
    student = width.keep_hidden(model, index)
    with projection.attached(student, model):
        matrix = student.get_submodule(projection.NAME).weight.detach()
    torch.testing.assert_close(matrix[index], torch.eye(16), rtol=0, atol=5e-3)


def test_a_student_as_wide_as_its_teacher_has_none(model: nn.Module) -> None:
    with projection.attached(model, model):
        assert isinstance(projection.of(model), nn.Identity)
