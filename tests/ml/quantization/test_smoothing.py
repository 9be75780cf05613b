from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tasks.ml.models import quantization_spec
from tasks.ml.quantization import simulation, smoothing
from tests.ml.quantization.rows import rows_of


def test_alpha_decides_who_gets_the_outliers() -> None:
    inputs, weights = torch.tensor([1.0, 100.0, 4.0]), torch.tensor([0.1, 0.2, 0.4])
    assert torch.allclose(smoothing.divisors(inputs, torch.ones(3), alpha=0.0), torch.ones(3))
    moved = inputs / smoothing.divisors(inputs, weights, alpha=1.0)
    assert torch.allclose(moved, moved[:1].expand(3)), "all of it moved: the channels are equally large"
    half = smoothing.divisors(inputs, weights, alpha=0.5)
    assert torch.allclose(inputs / half / (weights * half), (inputs / half / (weights * half))[:1].expand(3))
    assert half.log().mean().item() == pytest.approx(0, abs=1e-6)


def test_before_quantization_nothing_changes(model: nn.Module) -> None:
    for layer in model.bert.encoder.layer:
        nn.init.normal_(layer.attention.self.value.bias)
    spec = quantization_spec.plan(model, linears=True, token_bits=32, block_size=16)
    batch = next(rows_of(model)())
    before, weight = model(**batch).logits, model.bert.encoder.layer[0].attention.output.dense.weight.clone()
    smooth = smoothing.smooth(model, spec, rows_of(model), alpha=0.5)
    torch.testing.assert_close(model(**batch).logits, before, rtol=1e-4, atol=1e-5)
    assert not torch.equal(model.bert.encoder.layer[0].attention.output.dense.weight, weight)
    # What did not fold is a divisor in the spec, and exact as well: (x / s)·(s ∘ w) = x·w.
    for name, how in smooth.linears.items():
        assert bool(how.smoothing) != name.endswith("attention.output.dense")
        if how.smoothing:
            linear = model.get_submodule(name)
            x = torch.randn(3, linear.in_features)
            product = (x / x.new_tensor(how.smoothing)) @ simulation.smoothed(linear.weight, how).T
            torch.testing.assert_close(product, x @ linear.weight.T, rtol=1e-4, atol=1e-5)
    assert quantization_spec.Spec.from_json(smooth.to_json()) == smooth


def test_an_outlier_costs_less_once_it_is_smoothed(model: nn.Module) -> None:
    """A channel that is a hundred times as large as the others leaves them no codes, as in large models."""
    norm = model.bert.encoder.layer[0].attention.output.LayerNorm
    with torch.no_grad():
        norm.bias[3] += 60
    batch = next(rows_of(model)())
    expected = model(**batch).logits
    spec = quantization_spec.plan(model, linears=True, token_bits=32, block_size=16)

    def damage(spec: quantization_spec.Spec, model: nn.Module) -> float:
        simulated = copy.deepcopy(model)
        simulation.simulate(simulated, spec.of(["bert.encoder.layer.0.intermediate.dense"]))
        return (simulated(**batch).logits - expected).abs().mean().item()

    plain = damage(spec, model)
    assert damage(smoothing.smooth(model, spec, rows_of(model), alpha=0.5), model) < 0.5 * plain


def test_layers_that_stay_floats_are_left_alone(model: nn.Module) -> None:
    name = "bert.encoder.layer.1.intermediate.dense"
    before = copy.deepcopy(model.state_dict())
    smooth = smoothing.smooth(
        model, quantization_spec.Spec(linears={name: quantization_spec.LinearScheme()}), rows_of(model), alpha=0.5
    )
    assert smooth.linears[name].smoothing
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
