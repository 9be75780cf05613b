from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tasks.ml.models import families, listening, quantization_spec
from tasks.ml.models.quantization_spec import LinearScheme
from tasks.ml.pruning import sparsity
from tasks.ml.quantization import gptq, simulation
from tasks.ml.quantization.simulation import weight_on_grid
from tests.ml.quantization.rows import rows_of

SCHEMES = ("int8-dynamic", "int4")


def weight(rows: int = 12, columns: int = 64) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def hessian(columns: int = 64) -> torch.Tensor:
    """Of inputs whose channels go together, as those of real layers do."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 8, generator=generator) @ torch.randn(8, columns, generator=generator)
    x = x + 0.3 * torch.randn(200, columns, generator=generator)
    return x.T @ x


@pytest.mark.parametrize("scheme", SCHEMES)
def test_with_the_identity_for_a_hessian_it_is_rounding_to_nearest(scheme: str) -> None:
    nearest = weight_on_grid(weight(), LinearScheme(scheme), 16)
    rounded = gptq.round_weight(weight(), torch.eye(64), scheme=scheme, block_size=16)
    torch.testing.assert_close(rounded, nearest, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_output_is_worse_than_with_rounding_to_nearest(scheme: str) -> None:
    nearest = weight_on_grid(weight(), LinearScheme(scheme), 16)
    rounded = gptq.round_weight(weight(), hessian(), scheme=scheme, block_size=16)
    ours, theirs = (gptq.layer_error(weight(), one, hessian()) for one in (rounded, nearest))
    assert (ours <= theirs).all()
    assert ours.sum() < 0.7 * theirs.sum()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("columns", [64, 40])
def test_what_comes_back_is_on_its_grid(scheme: str, columns: int) -> None:
    rounded = gptq.round_weight(weight(12, columns), hessian(columns), scheme=scheme, block_size=16)
    again = weight_on_grid(rounded, LinearScheme(scheme), 16)
    torch.testing.assert_close(again, rounded, rtol=1e-6, atol=1e-8)


def test_channels_that_are_never_used_do_no_harm() -> None:
    silent = hessian()
    silent[5], silent[:, 5] = 0, 0
    assert gptq.round_weight(weight(), silent).isfinite().all()
    assert torch.equal(gptq.round_weight(weight(), torch.zeros(64, 64)), weight_on_grid(weight(), LinearScheme(), 32))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_zeros_stay_zero_and_the_others_still_make_up_for_each_other(scheme: str) -> None:
    sparse = sparsity.magnitude(weight(), None, sparsity.Pattern.parse("2:4"))
    sparse[:, :16] = 0  # a whole block of four bits
    rounded = gptq.round_weight(sparse, hessian(), scheme=scheme, block_size=16)
    assert (rounded[sparse == 0] == 0).all()
    nearest = weight_on_grid(sparse, LinearScheme(scheme), 16)
    ours, theirs = (gptq.layer_error(sparse, one, hessian()).sum() for one in (rounded, nearest))
    assert ours < 0.9 * theirs
    torch.testing.assert_close(weight_on_grid(rounded, LinearScheme(scheme), 16), rounded, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_model_is_rounded_layer_by_layer_and_stays_on_the_grid(model: nn.Module, scheme: str) -> None:
    spec = quantization_spec.plan(model, linears=True, scheme=scheme, token_bits=32, block_size=16)
    before = copy.deepcopy(model)
    ratios = gptq.apply(model, spec, rows_of(model))
    assert ratios.keys() == spec.linears.keys()
    assert max(ratios.values()) <= 1
    assert min(ratios.values()) < 0.9
    for name in families.of("bert").linears(model):
        rounded = model.get_submodule(name).weight
        assert not torch.equal(rounded, before.get_submodule(name).weight)
        torch.testing.assert_close(weight_on_grid(rounded, LinearScheme(scheme), 16), rounded, rtol=1e-5, atol=1e-8)
    assert torch.equal(model.classifier.weight, before.classifier.weight)


def test_smoothed_layers_are_rounded_as_the_runtime_multiplies_them(model: nn.Module) -> None:
    name = "bert.encoder.layer.0.intermediate.dense"
    how = LinearScheme("int4", smoothing=tuple(torch.linspace(0.2, 5, 32).tolist()))
    spec = quantization_spec.Spec(linears={name: how}, block_size=16)
    gptq.apply(model, spec, rows_of(model))
    product = simulation.smoothed(model.get_submodule(name).weight.detach(), how)
    torch.testing.assert_close(weight_on_grid(product, how, 16), product, rtol=1e-5, atol=1e-8)


def test_the_calibration_is_read_with_padding_left_out(model: nn.Module) -> None:
    name = "bert.encoder.layer.1.output.dense"
    counted: list[int] = []
    chosen = {name: model.get_submodule(name)}
    listening.listen(model, rows_of(model)(), chosen, lambda _, x, __: counted.append(len(x)))
    assert counted == [int(batch["attention_mask"].sum()) for batch in rows_of(model)()]
