from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tasks.ml.models import quantization_spec
from tasks.ml.problems import text_classification
from tasks.ml.quantization import sensitivity, simulation

HURT = "bert.encoder.layer.1.output.dense"


def rows(model: nn.Module) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, 60, (4 + n % 7,), generator=generator).tolist() for n in range(24)]


@pytest.fixture
def fragile(model: nn.Module) -> nn.Module:
    """One layer has outliers that leave 4-bit blocks no codes for what matters."""
    weight = model.get_submodule(HURT).weight
    with torch.no_grad():
        weight[:, ::16] += 6.0 * torch.randn(weight[:, ::16].shape, generator=torch.Generator().manual_seed(2))
    return model


def planned(model: nn.Module, scheme: str) -> quantization_spec.Spec:
    return quantization_spec.plan(model, linears=True, scheme=scheme, token_bits=8, block_size=16)


def test_divergence_of_a_model_from_itself_is_zero_and_by_hand() -> None:
    logits = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
    assert text_classification.divergence(logits, logits + 3) == pytest.approx(0, abs=1e-12)
    halves, thirds = np.log([[0.5, 0.5]]), np.log([[1 / 3, 2 / 3]])
    assert text_classification.divergence(halves, thirds) == pytest.approx(0.5 * np.log(1.5) + 0.5 * np.log(0.75))


def test_without_pressure_everything_stays_as_planned(model: nn.Module) -> None:
    spec = planned(model, "int8-dynamic")
    before = copy.deepcopy(model.state_dict())
    chosen, scan = sensitivity.protect(model, spec, text_classification, rows(model), pad_id=0, max_damage=10.0)
    assert chosen == spec
    assert scan.chosen == scan.all_quantized > 0
    assert len(scan.layers) == 4 * 4 + 1
    assert sum(len(layer.names) for layer in scan.layers) == len(spec.linears)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_layer_that_suffers_most_gets_more_bits_first(fragile: nn.Module) -> None:
    spec = planned(fragile, "int4")
    _, scan = sensitivity.protect(fragile, spec, text_classification, rows(fragile), pad_id=0, max_damage=10.0)
    worst = max(scan.layers, key=lambda layer: layer.damage)
    assert worst.names == (HURT,)
    chosen, after = sensitivity.protect(
        fragile, spec, text_classification, rows(fragile), pad_id=0, max_damage=0.7 * scan.all_quantized
    )
    assert chosen.linears[HURT].scheme == "int8-dynamic"
    assert any(how.scheme == "int4" for how in chosen.linears.values()), "it was enough to raise some"
    assert after.chosen <= 0.7 * scan.all_quantized
    assert next(layer.chosen for layer in after.layers if layer.names == (HURT,)) == "int8-dynamic"


def test_a_limit_that_nothing_quantized_can_keep_leaves_floats(model: nn.Module) -> None:
    chosen, scan = sensitivity.protect(
        model, planned(model, "int4"), text_classification, rows(model), pad_id=0, max_damage=1e-12
    )
    assert not chosen.linears
    assert chosen.embeddings == planned(model, "int4").embeddings
    assert scan.chosen <= 1e-12
    assert {layer.chosen for layer in scan.layers} == {"fp32"}


def test_what_was_chosen_is_what_the_spec_simulates(fragile: nn.Module) -> None:
    """The damage that the scan reports is that of a model which is quantized by the chosen spec."""
    from tasks.ml.quality import evaluation

    spec = planned(fragile, "int4")
    chosen, scan = sensitivity.protect(fragile, spec, text_classification, rows(fragile), pad_id=0, max_damage=0.02)
    reference = evaluation.logits(fragile, rows(fragile), pad_id=0)
    simulation.simulate(fragile, replace(chosen, embeddings={}))
    measured = text_classification.divergence(reference, evaluation.logits(fragile, rows(fragile), pad_id=0))
    assert measured == pytest.approx(scan.chosen, abs=1e-9)
    assert measured <= 0.02
