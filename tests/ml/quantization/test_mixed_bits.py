from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import decoders
from tasks.ml.quantization import blocks, mixed_bits
from tasks.ml.quantization.blocks import Format
from tasks.ml.quantization.mixed_bits import Price
from tests.ml.tiny_decoders import model_of, tokens

FORMATS = (Format(2, 32), Format(4, 32), Format(8, 32))


def test_gradients_are_of_the_sum_over_tokens_and_the_mean_of_their_squares() -> None:
    model, ids = model_of("llama"), tokens(3, 10)
    name = decoders.of_model(model).projection(model, 1, "mlp.down_proj").name
    found = mixed_bits.gradients(model, ids.split(1), [name])[name]
    outputs: list[torch.Tensor] = []

    def keep(_: object, __: object, out: torch.Tensor) -> None:
        out.retain_grad()
        outputs.append(out)

    handle = model.get_submodule(name).register_forward_hook(keep)
    logits = model(input_ids=ids, use_cache=False).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    handle.remove()
    gradient = outputs[0].grad
    assert gradient is not None
    torch.testing.assert_close(found, gradient.flatten(0, 1).square().mean(dim=0))
    assert all(parameter.grad is None for name, parameter in model_of("llama").named_parameters())


def test_what_an_output_costs_is_what_the_loss_gains_where_outputs_are_alone() -> None:
    """One output, whose gradient is the same for each token: then the estimate is ½ Σ (g e)² / T exactly."""
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
    rounded = blocks.nearest(weight, Format(2, 32))
    off = x @ (weight - rounded.dense()).T
    found = mixed_bits.cost(weight, rounded, x.T @ x, torch.tensor([9.0]), tokens=50)
    assert found == pytest.approx(0.5 * (3.0 * off).square().mean().item(), rel=1e-4)


def test_no_choice_of_that_size_loses_less() -> None:
    generator = random.Random(0)
    prices = {
        f"layer {index}": {form: Price(generator.random() * 4.0**-form.bits, 100 * form.bits) for form in FORMATS}
        for index in range(6)
    }

    def weigh(choice: dict[str, Format]) -> tuple[float, int]:
        taken = [prices[name][form] for name, form in choice.items()]
        return sum(one.loss for one in taken), sum(one.nbytes for one in taken)

    every = [dict(zip(prices, forms, strict=True)) for forms in itertools.product(FORMATS, repeat=len(prices))]
    for most in (1_200, 1_800, 2_500, 4_800):
        loss, nbytes = weigh(mixed_bits.choose(prices, most=most))
        assert nbytes <= most
        assert loss == min(weigh(choice)[0] for choice in every if weigh(choice)[1] <= nbytes)
    assert set(mixed_bits.choose(prices, most=4_800).values()) == {Format(8, 32)}


def test_a_size_that_no_format_has_is_refused() -> None:
    with pytest.raises(FeatherweightError, match=r"100 bytes are fewer than the 200 that the smallest"):
        mixed_bits.choose({"one": {FORMATS[0]: Price(0.1, 200)}}, most=100)
