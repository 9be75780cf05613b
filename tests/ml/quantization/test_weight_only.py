from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tasks.ml.models import decoders
from tasks.ml.quantization import blocks, weight_only
from tasks.ml.quantization.blocks import Blocks, Format
from tests.ml.tiny_decoders import model_of, tokens


def names_of(model: nn.Module) -> list[str]:
    return [one.name for one in decoders.of_model(model).projections(model)]


@pytest.mark.parametrize(
    ("name", "attention"),
    [("llama", "sdpa"), ("mistral", "sdpa"), ("qwen2, windows", "sdpa"), ("gpt2", "sdpa"), ("gpt2", "eager")],
)
def test_hessians_are_of_what_layers_read_in_the_model(
    name: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 8 bits what layers read hardly changes, so that it is what they read in the model as it is."""
    model = model_of(name, attention=attention)
    wanted: dict[str, torch.Tensor] = {}

    def listening(name: str) -> Any:
        def add(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].flatten(0, -2)
            wanted[name] = x.T @ x

        return add

    handles = [model.get_submodule(name).register_forward_pre_hook(listening(name)) for name in names_of(model)]
    with torch.no_grad():
        model(input_ids=tokens(), use_cache=False)
    for handle in handles:
        handle.remove()
    found: list[torch.Tensor] = []

    def note(weight: torch.Tensor, hessian: torch.Tensor, form: Format) -> Blocks:
        found.append(hessian)
        return blocks.nearest(weight, form)

    monkeypatch.setattr(weight_only, "ROUNDINGS", {"nearest": note})
    form = Format(8, 16)
    weight_only.apply(model, dict.fromkeys(names_of(model), form), [tokens()], rounding="nearest")
    for name, hessian in zip(names_of(model), found, strict=True):
        assert (hessian - wanted[name]).norm() < 0.03 * wanted[name].norm(), name


def test_the_model_has_the_weights_that_the_codes_stand_for() -> None:
    model = model_of("gpt2")
    found = weight_only.apply(model, dict.fromkeys(names_of(model), Format(4, 32)), [tokens()])
    for one in decoders.of_model(model).projections(model):
        assert torch.equal(one.weight, found[one.name].dense())


def test_gptq_is_nearer_to_the_model_than_what_rounds_alone() -> None:
    rows = [tokens(8, 48)]
    with torch.no_grad():
        wanted = model_of("llama")(input_ids=rows[0]).logits.log_softmax(dim=-1)

    def divergence(rounding: str) -> float:
        model = model_of("llama")
        weight_only.apply(model, dict.fromkeys(names_of(model), Format(2, 16)), rows, rounding=rounding)
        with torch.no_grad():
            found = model(input_ids=rows[0]).logits.log_softmax(dim=-1)
        return F.kl_div(found, wanted, log_target=True, reduction="batchmean").item()

    assert divergence("gptq") < 0.85 * divergence("clipped") < 0.85 * divergence("nearest")


def test_a_name_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no linear layers: lm_head"):
        weight_only.apply(model_of("llama"), {"lm_head": Format()}, [tokens()])
