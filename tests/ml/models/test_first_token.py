"""Leaving out what nobody reads changes no logit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tasks.ml.models import families, first_token


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


@pytest.mark.parametrize("form", ["none", "ones and zeros", "booleans", "additive"])
def test_one_query_without_keys_and_values_is_attention(form: str) -> None:
    torch.manual_seed(0)
    query, key, value = (nn.Linear(24, 12) for _ in range(3))
    x = torch.randn(2, 7, 24)
    mask = torch.ones(2, 7, dtype=torch.int32)
    if form != "none":
        mask[1, 4:] = 0
    kept = mask.bool()[:, None, None]
    q, k, v = (part(x).unflatten(-1, (3, 4)).transpose(1, 2) for part in (query, key, value))
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=kept).transpose(1, 2).flatten(2)[:, :1]
    given = {
        "none": None,
        "ones and zeros": mask,
        "booleans": kept.expand(2, 1, 7, 7),
        "additive": torch.zeros(2, 1, 7, 7).masked_fill(~kept, torch.finfo(torch.float32).min),
    }
    actual, _ = first_token.FirstQuery(query, key, value, heads=3)(x, attention_mask=given[form])
    torch.testing.assert_close(actual, expected)


def test_a_row_of_padding_spreads_its_weight_evenly() -> None:
    query, key, value = (nn.Linear(8, 4) for _ in range(3))
    x, mask = torch.randn(2, 3, 8), torch.tensor([[1, 1, 0], [0, 0, 0]])
    for given in (mask, mask.bool()[:, None, None].expand(2, 1, 3, 3)):
        actual, _ = first_token.FirstQuery(query, key, value, heads=2)(x, attention_mask=given)
        torch.testing.assert_close(actual[1, 0], value(x[1]).mean(dim=0))
