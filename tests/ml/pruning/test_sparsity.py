from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.data import batching
from tasks.ml.data.datasets import Split
from tasks.ml.jobs import lessons
from tasks.ml.pruning import sparse_gain, sparsity
from tasks.ml.pruning.sparsity import Pattern
from tasks.ml.quantization import gptq

HALF = Pattern(0.5)
TWO_OF_FOUR = Pattern.parse("2:4")


def layer(seed: int = 0, rows: int = 24, columns: int = 160) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and G of inputs that are correlated and of different size, as real ones are."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    sizes = torch.linspace(0.1, 2.0, columns)[torch.randperm(columns, generator=generator)]
    mixing = torch.randn(columns, columns, generator=generator) * sizes
    x = torch.randn(500, columns, generator=generator) @ mixing
    return weight, x.T @ x


def batches(tokenizer: Any, texts: list[str]) -> list[dict[str, torch.Tensor]]:
    rows = tokenizer(texts)["input_ids"]
    pairs = [batching.collate(part, pad_id=0) for part in (rows[:2], rows[2:])]
    return [{"input_ids": ids, "attention_mask": mask} for ids, mask in pairs]


@pytest.mark.parametrize("method", sparsity.METHODS)
def test_a_fraction_of_zero_changes_nothing(method: str, model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    given = batches(tokenizer, texts)
    same, damages = sparsity.sparsify(model, given, method=method, pattern=Pattern.parse("0.0"))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], tensor, rtol=0, atol=0)
    assert damages.keys() == sparsity.linears(model).keys()
    assert set(damages.values()) == {0.0}


@pytest.mark.parametrize("method", sparsity.METHODS)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "5:10"])
def test_exactly_n_of_m_are_kept(method: str, pattern: str) -> None:
    weight, gram = layer()
    kept, group = map(int, pattern.split(":"))
    sparse = sparsity.METHODS[method](weight, gram, Pattern.parse(pattern))
    assert ((sparse != 0).view(24, -1, group).sum(dim=-1) == kept).all()


@pytest.mark.parametrize("method", sparsity.METHODS)
@pytest.mark.parametrize("fraction", ["0.25", "0.5", "0.9"])
def test_the_fraction_asked_for_is_zero(method: str, fraction: str) -> None:
    weight, gram = layer()
    sparse = sparsity.METHODS[method](weight, gram, Pattern.parse(fraction))
    assert (sparse == 0).float().mean().item() == pytest.approx(float(fraction), abs=1e-3)


def test_magnitude_keeps_the_largest_of_the_matrix() -> None:
    weight, _ = layer()
    sparse = sparsity.magnitude(weight, None, HALF)
    assert weight[sparse == 0].abs().max() < weight[sparse != 0].abs().min()
    assert torch.equal(sparse[sparse != 0], weight[sparse != 0])


def test_wanda_with_unit_activations_is_magnitude_per_row() -> None:
    weight, _ = layer()
    by_rows = torch.cat([sparsity.magnitude(row[None], None, HALF) for row in weight])
    assert torch.equal(sparsity.wanda(weight, torch.eye(160), HALF), by_rows)
    assert torch.equal(
        sparsity.wanda(weight, torch.eye(160), TWO_OF_FOUR), sparsity.magnitude(weight, None, TWO_OF_FOUR)
    )


def test_wanda_keeps_small_weights_of_large_inputs() -> None:
    weight, size = torch.tensor([[0.1, 0.3]]), torch.diag(torch.tensor([100.0, 1.0]))
    assert sparsity.wanda(weight, size, HALF).tolist() == [[pytest.approx(0.1), 0.0]]


@pytest.mark.parametrize("pattern", [HALF, TWO_OF_FOUR])
def test_sparsegpt_does_less_damage_than_wanda_and_wanda_less_than_magnitude(pattern: Pattern) -> None:
    weight, gram = layer()
    damages = [
        sparsity.damage(weight, sparsity.METHODS[name](weight, gram, pattern), gram)
        for name in ("sparsegpt", "wanda", "magnitude")
    ]
    assert damages[0] < damages[1] < damages[2]


def test_sparsegpt_equals_least_squares_where_only_one_weight_is_left() -> None:
    """Of two columns the first goes, and the second takes over what of it lies in its direction."""
    x = torch.tensor([[1.0, 1.0], [2.0, 1.8], [-1.0, -1.1]])
    gram = x.T @ x
    sparse = sparsity.sparsegpt(torch.tensor([[0.1, 1.0]]), gram, HALF)
    expected = 1.0 + 0.1 * gram[0, 1] / (gram[1, 1] + gptq.DAMPING * gram.diagonal().mean())
    assert sparse[0, 0] == 0
    assert sparse[0, 1].item() == pytest.approx(expected.item(), rel=1e-4)


def test_grams_are_of_real_tokens(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    layers = sparsity.linears(model)
    together = sparsity.grams(model, layers, batches(tokenizer, texts))
    alone = sparsity.grams(
        model,
        layers,
        [
            {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.int64)}
            for row in tokenizer(texts)["input_ids"]
        ],
    )
    assert together.keys() == alone.keys() == layers.keys()
    for name, gram in together.items():
        torch.testing.assert_close(gram, alone[name], rtol=1e-4, atol=1e-4)


def test_a_model_becomes_sparse_and_its_source_does_not(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    sparse, damages = sparsity.sparsify(model, batches(tokenizer, texts), method="sparsegpt", pattern=TWO_OF_FOUR)
    assert sparsity.fraction(sparse) == 0.5
    assert sparsity.fraction(model) == 0.0
    assert all(0 < value < 1 for value in damages.values())


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_zeros_stay_while_the_others_learn(optimizer: str, model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    sparse, _ = sparsity.sparsify(model, batches(tokenizer, texts), method="magnitude", pattern=TWO_OF_FOUR)
    rows = tokenizer(texts)["input_ids"]
    split = Split(texts, rows, np.array([0, 1, 0, 1]))
    lesson = lessons.Lesson("text-classification", 0, rows, split.targets, split, zeros=sparsity.zeros(sparse))

    class Silent:
        def start(self, **_: Any) -> None: ...
        def step(self, *_: Any) -> None: ...
        def evaluation(self, *_: Any) -> None: ...

    before = copy.deepcopy(sparse.state_dict())
    lesson.learn(
        sparse,
        for_model={"embeddings": "dense", "activation_checkpointing": True, "lora_rank": 0},
        observer=Silent(),
        epochs=3, batch_size=2, learning_rate=0.05, schedule="linear", warmup=0.0, weight_decay=0.1, clip_norm=1.0,
        precision="fp32", seed=0, optimizer=optimizer,
    )  # fmt: skip
    for name, linear in sparsity.linears(sparse).items():
        kept = before[f"{name}.weight"] != 0
        assert (linear.weight[~kept] == 0).all()
        assert (linear.weight != before[f"{name}.weight"])[kept].float().mean() > 0.9
        assert not linear._forward_pre_hooks


def test_patterns_that_cannot_be_are_named() -> None:
    for text in ("2-4", "4:2", "0:4", "2:", "half", "50", "1.5", "-0.5", ""):
        with pytest.raises(FeatherweightError, match=r"^sparsity: pattern: .* is not understood"):
            Pattern.parse(text)
    with pytest.raises(FeatherweightError, match="160 input channels, which 7 does not divide"):
        sparsity.magnitude(layer()[0], None, Pattern.parse("3:7"))


def test_zeros_make_files_smaller(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    sparse, _ = sparsity.sparsify(model, batches(tokenizer, texts), method="wanda", pattern=Pattern(0.8))
    gain = sparse_gain.gain(sparsity.linears(model), sparsity.linears(sparse))
    dense_bytes, sparse_bytes = gain["int8_bytes"]["dense"], gain["int8_bytes"]["sparse"]
    assert (
        dense_bytes["plain"] == sparse_bytes["plain"] == sum(w.weight.numel() for w in sparsity.linears(model).values())
    )
    assert all(sparse_bytes[name] < 0.6 * dense_bytes[name] for name in ("gzip", "zstd"))
