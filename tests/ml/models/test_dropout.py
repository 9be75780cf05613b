from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.ml.models import attention, dropout, modeling
from tasks.ml.problems import text_classification


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.001])
def test_the_mask_drops_with_the_probability_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    mask = dropout.mask(torch.Size([1001, 999]), probability)
    deviation = (probability * (1 - probability) / mask.numel()) ** 0.5
    assert (mask == 0).float().mean().item() == pytest.approx(probability, abs=5 * deviation)
    assert mask.unique().numel() == 2
    assert mask.max().item() == pytest.approx(1 / (1 - probability), rel=1e-4)


def test_neighbours_are_independent() -> None:
    torch.manual_seed(0)
    kept = (dropout.mask(torch.Size([400_000]), 0.5) > 0).float()
    for shift in (1, 2, 3, 4, 8):
        together = (kept[:-shift] * kept[shift:]).mean().item()
        assert together == pytest.approx(0.25, abs=5 * (0.1875 / kept.numel()) ** 0.5)


def test_a_seed_draws_the_same_mask_again() -> None:
    masks = []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append(dropout.mask(torch.Size([7, 5]), 0.3))
    assert torch.equal(*masks)


def test_a_model_drops_only_while_it_trains_and_is_as_before_afterwards(model: nn.Module) -> None:
    ids = torch.tensor([[2, 5, 6, 7, 3, 0], [2, 8, 9, 3, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    expected = model(**inputs).logits
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    model.config.attention_probs_dropout_prob = 0.1
    names, implementation = [n for n, _ in model.named_modules()], model.config._attn_implementation
    with attention.afforded(model, None), dropout.cheaper(model):
        assert model.config._attn_implementation == attention.DROPPING
        torch.testing.assert_close(model(**inputs).logits, expected)
        model.train()
        assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
        model.eval()
    assert [n for n, _ in model.named_modules()] == names
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(**inputs).logits, expected)


def test_none_of_a_models_own_dropout_is_left_beside_what_was_asked_for(model: nn.Module, tmp_path: Path) -> None:
    model.config.classifier_dropout = 0.3
    modeling.save_model(model, tmp_path)

    def probabilities(model: nn.Module) -> set[float]:
        return {module.p for module in model.modules() if isinstance(module, nn.Dropout)}

    base = text_classification.load_base(tmp_path, ["bad", "good"], dropout=0.0)
    assert probabilities(base) == {0.0}
    assert base.config.classifier_dropout == 0.0
    modeling.save_model(text_classification.load_base(tmp_path, ["bad", "good"], dropout=0.25), tmp_path)
    assert probabilities(modeling.load(tmp_path, "text-classification")) == {0.25}


def test_on_average_a_model_answers_as_with_torch_dropout(model: nn.Module) -> None:
    """Means over many passes agree within their standard errors: what is dropped, where, and its scale are the same."""
    ids = torch.tensor([[2, 5, 6, 7, 3]]).expand(512, 5)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.2
    model.config.attention_probs_dropout_prob = 0.2
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        theirs = torch.cat([model(input_ids=ids).logits for _ in range(20)])
        with attention.afforded(model, None), dropout.cheaper(model):
            ours = torch.cat([model(input_ids=ids).logits for _ in range(20)])
    error = (theirs.var(0) / len(theirs) + ours.var(0) / len(ours)).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * error).all()
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.05, atol=0)
