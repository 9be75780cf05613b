from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import quantization_spec
from tasks.ml.quantization import calibration, simulation
from tests.ml.quantization.rows import rows_of


def seen(x: torch.Tensor) -> calibration.Values:
    values = calibration.Values()
    values.widen(x)
    values.count(x)
    return values


def normal(count: int = 100_000) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


def test_min_max_takes_all() -> None:
    x = torch.tensor([-1.5, 0.2, 4.0])
    assert calibration.RANGES["min-max"](seen(x)) == (-1.5, 4.0)


def test_percentile_leaves_out_the_outermost() -> None:
    x = torch.cat([torch.linspace(-1, 1, 20_001), torch.tensor([50.0])])
    low, high = calibration.percentile(seen(x), 99.0)
    assert (low, high) == (pytest.approx(-0.99, abs=0.05), pytest.approx(0.99, abs=0.05))
    assert calibration.percentile(seen(x), 100.0) == (-1.0, 50.0)


def test_entropy_keeps_a_uniform_range_and_clips_a_rare_outlier() -> None:
    low, high = calibration.entropy(seen(torch.linspace(-1, 1, 200_001)))
    assert (low, high) == (-1.0, 1.0)
    low, high = calibration.entropy(seen(torch.cat([normal(), torch.tensor([60.0])])))
    assert 3 < high < 20
    assert low == max(-high, normal().min().item())


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)])
def test_zero_is_exact_and_the_range_is_covered(low: float, high: float) -> None:
    scale, zero_point = calibration.affine(low, high)
    assert 0 <= zero_point <= 255
    ends = torch.tensor([low, 0.0, high])
    back = simulation.static_uint8(ends, scale, zero_point)
    assert back[1] == 0
    assert ((back - ends).abs() <= scale).all()


def test_static_with_the_range_of_a_tensor_is_dynamic() -> None:
    x = normal(1000)
    scale, zero_point = calibration.affine(x.min().item(), x.max().item())
    torch.testing.assert_close(simulation.static_uint8(x, scale, zero_point), simulation.dynamic_uint8(x))


@pytest.mark.parametrize("method", calibration.RANGES)
def test_every_static_layer_gets_a_range_of_its_own(model: nn.Module, method: str) -> None:
    spec = quantization_spec.plan(model, linears=True, scheme="int8-static", token_bits=8, block_size=32)
    calibrated = calibration.calibrate(model, spec, rows_of(model), method=method)
    assert calibrated.linears.keys() == spec.linears.keys()
    assert len({how.scale for how in calibrated.linears.values()}) > len(spec.linears) // 2
    assert quantization_spec.Spec.from_json(calibrated.to_json()) == calibrated
    batch = next(rows_of(model)())
    plain = model(**batch).logits
    simulation.simulate(model, calibrated)
    assert 0 < (model(**batch).logits - plain).abs().max().item() < 1.0


def test_query_key_and_value_share_a_range(model: nn.Module) -> None:
    spec = quantization_spec.plan(model, linears=True, scheme="int8-static", token_bits=8, block_size=32)
    linears = calibration.calibrate(model, spec, rows_of(model), method="entropy").linears
    names = [f"bert.encoder.layer.2.attention.self.{name}" for name in ("query", "key", "value")]
    assert linears[names[0]] == linears[names[1]] == linears[names[2]]


def test_without_rows_there_is_no_range(model: nn.Module) -> None:
    spec = quantization_spec.plan(model, linears=True, scheme="int8-static", token_bits=8, block_size=32)
    with pytest.raises(FeatherweightError, match=r"raise data\.calibration_fraction"):
        calibration.calibrate(model, spec, lambda: iter(()), method="min-max")
