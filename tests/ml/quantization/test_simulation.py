from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import modeling
from tasks.ml.models.quantization_spec import Spec, num_bytes, plan
from tasks.ml.quantization import simulation


def test_rows_round_trip_within_half_a_step() -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 6)[:, None]
    codes, scale = simulation.quantize_rows(weight)
    assert codes.dtype == torch.int8
    assert codes.abs().amax(dim=1).eq(127).all()
    assert ((codes * scale - weight).abs() <= 0.5 * scale + 1e-9).all()


@pytest.mark.parametrize("columns", [1, 2, 47, 384])
def test_codes_of_neighbours_do_not_saturate_where_products_are_added_in_16_bits(columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(300, columns, generator=generator) * torch.logspace(-3, 2, 300)[:, None]
    weight[:9], weight[9] = weight[:9].abs(), 0
    codes, scale = simulation.quantize_weight(weight)
    assert codes.shape == weight.shape
    assert codes.dtype == torch.int8
    wide = codes.long()
    for sign in (1, -1):
        sums = simulation.in_pairs((sign * wide).clamp_min(0)).sum(dim=-1)
        assert (255 * sums <= 2**15 - 1).all()
    assert ((codes * scale - weight).abs() <= scale * (1 + 1e-6)).all()
    assert ((codes * scale - weight).abs() <= 0.5 * scale * (1 + 1e-6)).float().mean() > 0.995
    again, _ = simulation.quantize_weight(codes * scale)
    assert torch.equal(again, codes), "whoever quantizes what was rounded finds the same codes"


def test_codes_that_fit_in_pairs_cost_little() -> None:
    weight = torch.randn(400, 384, generator=torch.Generator().manual_seed(0))
    ratio = simulation.weight_scale(weight) / simulation.row_scale(weight)
    assert ratio.min() >= 1
    assert 1.02 < ratio.mean() < 1.4, "2 would be as many codes as ±63 has"


def test_quantizing_twice_changes_nothing() -> None:
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    for bits in (8, 4):
        once = simulation.simulate_table(weight, bits, 32)
        torch.testing.assert_close(simulation.simulate_table(once, bits, 32), once, rtol=1e-5, atol=1e-7)


def test_blocks_use_all_sixteen_levels_and_keep_the_largest_exactly() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(2))
    codes, scale = simulation.quantize_blocks(weight, 16)
    assert codes.min() == -8
    assert codes.max() <= 7
    assert scale.shape == (4, 4)
    restored = simulation.dequantize_blocks(codes, scale)
    peak = weight.reshape(4, 4, 16).abs().argmax(dim=-1, keepdim=True)
    torch.testing.assert_close(restored.reshape(4, 4, 16).gather(-1, peak), weight.reshape(4, 4, 16).gather(-1, peak))


def test_zero_rows_stay_zero() -> None:
    assert simulation.simulate_table(torch.zeros(2, 32), 8, 32).abs().sum() == 0
    assert simulation.simulate_table(torch.zeros(2, 32), 4, 32).abs().sum() == 0


def test_dynamic_uint8_matches_onnx_reference() -> None:
    import numpy as np
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(3)) * 2 + 0.5
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"])
    graph = helper.make_graph(
        [node],
        "reference",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("q", "scale", "zero")],
    )
    q, scale, zero = ReferenceEvaluator(helper.make_model(graph)).run(None, {"x": x.numpy()})
    expected = (q.astype(np.float32) - np.float32(zero)) * scale
    torch.testing.assert_close(simulation.dynamic_uint8(x), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def test_simulated_linear_is_close_and_not_equal() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 16)
    x = torch.randn(10, 48)
    simulated = simulation.SimulatedLinear(linear)(x)
    error = (simulated - linear(x)).abs().max().item()
    assert 0 < error < 0.05


def test_spec_survives_json(model: nn.Module) -> None:
    spec = plan(model, linears=True, token_bits=4, block_size=16)
    assert len(spec.linears) == 4 * 6 + 1  # and the pooler
    assert spec.embeddings == {"bert.embeddings.word_embeddings": 4, "bert.embeddings.position_embeddings": 8}
    assert Spec.from_json(spec.to_json()) == spec


def test_plan_refuses_a_block_that_does_not_divide(model: nn.Module) -> None:
    with pytest.raises(FeatherweightError, match="block_size 48 does not divide the 32 columns of the token table"):
        plan(model, linears=True, token_bits=4, block_size=48)


def test_bytes_by_hand(model: nn.Module) -> None:
    plain = num_bytes(model, plan(model, linears=False, token_bits=32, block_size=32))
    assert plain == 4 * modeling.num_parameters(model)
    linears = num_bytes(model, plan(model, linears=True, token_bits=32, block_size=32))
    weights = 4 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 32
    scales = 4 * (4 * 32 + 64 + 32) + 32
    assert plain - linears == 3 * weights - 4 * scales


def test_a_bundle_with_a_spec_loads_simulated_or_plain(
    tmp_path: Path, model: nn.Module, tokenizer: Any, texts: list[str]
) -> None:
    spec = plan(model, linears=True, token_bits=8, block_size=32)
    modeling.save(model, tokenizer, tmp_path, spec=spec)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    plain = modeling.load(tmp_path, "text-classification")
    simulated = simulation.load(tmp_path, "text-classification")
    assert torch.equal(plain(**batch).logits, model(**batch).logits)
    difference = (simulated(**batch).logits - plain(**batch).logits).abs().max().item()
    assert 0 < difference < 0.5
