from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.distillation import layer_choice
from tasks.ml.models import families


def test_influence_is_one_minus_the_cosine_of_real_tokens(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    real = batch["attention_mask"].bool()
    expected = [
        1 - float(torch.cosine_similarity(a[real], b[real], dim=-1).mean()) for a, b in itertools.pairwise(states)
    ]
    one_by_one = [tokenizer([text], return_tensors="pt") for text in texts]
    assert layer_choice.influence(model, one_by_one) == pytest.approx(expected, rel=1e-4)


def test_a_layer_that_only_normalizes_has_least(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    layer = families.BERT.layer_list(model)[2]
    with torch.no_grad():
        for name in ("attention.output.dense", "output.dense"):
            layer.get_submodule(name).weight.zero_()
    scores = layer_choice.influence(model, [tokenizer(texts, return_tensors="pt", padding=True)])
    assert scores[2] == pytest.approx(0.0, abs=1e-5)
    assert layer_choice.most_influential(scores, 3) == [0, 1, 3]


def test_choosing_and_what_is_taught() -> None:
    assert layer_choice.most_influential([0.3, 0.1, 0.2, 0.3], 3) == [0, 2, 3]
    assert layer_choice.taught([0, 2, 3], 6) == [1, 2, 5]
    assert layer_choice.taught(range(6), 6) == list(range(6))
    with pytest.raises(FeatherweightError, match="layers is 5, but the teacher has 4"):
        layer_choice.most_influential([0.1] * 4, 5)
