from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.ml.models import attention


def test_in_16_bits_attention_itself_is_computed_in_fp32(model: nn.Module) -> None:
    """All three of its inputs are fp32, in every layer, and the answers are the model's own."""
    seen = []
    fused = attention.sdpa_attention_forward

    def spy(module: nn.Module, *states: torch.Tensor | None, **how: object) -> object:
        seen.append([state.dtype for state in states[:3] if state is not None])
        return fused(module, *states, **how)

    ids = torch.tensor([[2, 5, 6, 7, 3, 0], [2, 8, 9, 3, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    expected = model(**inputs).logits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "sdpa_attention_forward", spy)
        with attention.afforded(model, torch.bfloat16), torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(**inputs).logits
    layers = model.config.num_hidden_layers  # type: ignore[union-attr]
    assert seen == [[torch.float32] * 3] * layers
    torch.testing.assert_close(logits.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("drops", "autocast", "own", "expected"),
    [
        (0.0, None, "sdpa", "sdpa"),
        (0.0, torch.bfloat16, "sdpa", attention.IN_FP32),
        (0.0, torch.bfloat16, "eager", "eager"),
        (0.1, None, "sdpa", attention.DROPPING),
        (0.1, torch.bfloat16, "sdpa", attention.DROPPING),
    ],
)
def test_what_a_cpu_trains_with(
    model: nn.Module, drops: float, autocast: torch.dtype | None, own: str, expected: str
) -> None:
    model.set_attn_implementation(own)  # type: ignore[operator]
    model.config.attention_probs_dropout_prob = drops  # type: ignore[union-attr]
    with attention.afforded(model, autocast):
        assert model.config._attn_implementation == expected  # type: ignore[union-attr]
    assert model.config._attn_implementation == own  # type: ignore[union-attr]
