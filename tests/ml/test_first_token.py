"""Leaving out what nobody reads changes no logit."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tasks.ml import families, first_token


def test_logits_stay_and_the_last_layer_works_on_one_token(model: nn.Module) -> None:
    narrow = copy.deepcopy(model)
    first_token.narrow(narrow)
    widths = []
    last = families.of("bert").layer_list(narrow)[-1]
    last.get_submodule("output.dense").register_forward_hook(lambda _, inputs, output: widths.append(output.shape[1]))
    ids = torch.randint(5, 60, (3, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits
        assert torch.allclose(narrow(input_ids=ids, attention_mask=mask).logits, expected, atol=1e-6)
    assert widths == [1]
