"""What counts: no padding, and nothing that a module puts out and nobody reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.ml.data.datasets import Split
from tasks.ml.distillation import layer_choice
from tasks.ml.models import families, first_token, listening, quantization_spec
from tasks.ml.problem import problem_of
from tasks.ml.pruning import importance, sparsity, width
from tasks.ml.quantization import calibration, post_training

LAST = "bert.encoder.layer.3"
READ_AT_ALL_TOKENS = (f"{LAST}.attention.self.key", f"{LAST}.attention.self.value")


@pytest.fixture
def batch(tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    found = tokenizer(texts, return_tensors="pt", padding="max_length", max_length=20)
    return {name: found[name] for name in ("input_ids", "attention_mask")}


@pytest.fixture
def read(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of each linear layer and norm what is read, by hand: at its input a linear layer, at its output a norm."""
    found: dict[str, torch.Tensor] = {}

    def catch(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x = output if isinstance(module, nn.LayerNorm) else given[0]
            narrow = name.startswith(LAST) and name not in READ_AT_ALL_TOKENS
            found[name] = x if x.dim() == 2 else x[:, 0] if narrow else x[batch["attention_mask"].bool()]

        return module.register_forward_hook(hook)

    chosen = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear | nn.LayerNorm)}
    handles = [catch(name, module) for name, module in chosen.items()]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return found


def test_all_that_listens_hears_what_is_read(
    model: nn.Module, batch: dict[str, torch.Tensor], read: dict[str, torch.Tensor]
) -> None:
    linears = sparsity.linears(model)
    heard: dict[str, torch.Tensor] = {}
    listening.listen(model, [batch], linears, lambda name, x, _: heard.update({name: x}), first_token_only=True)
    maxima = calibration.channel_maxima(model, linears, [batch], first_token_only=True)
    grams = sparsity.grams(model, linears, [batch], first_token_only=True)
    for name in linears:
        torch.testing.assert_close(heard[name], read[name], msg=name)
        torch.testing.assert_close(maxima[name], read[name].abs().amax(dim=0))
        torch.testing.assert_close(grams[name], (read[name].T @ read[name]).double(), rtol=1e-4, atol=1e-4)

    units = importance.activation(model, [batch], first_token_only=True)[3]
    closing = model.get_submodule(f"{LAST}.output.dense")
    expected = (read[f"{LAST}.output.dense"] * closing.weight[:, 5:6].norm()).square().mean(dim=0)  # type: ignore[index]
    torch.testing.assert_close(units.ffn[5], expected[5])
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    expected = torch.stack([read[name].abs().mean(dim=0) for name in norms]).sum(dim=0)
    torch.testing.assert_close(width.importance(model, [batch], first_token_only=True), expected)

    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    expected_influence = 1 - torch.cosine_similarity(states[3][:, 0], states[4][:, 0], dim=-1).mean().item()
    influence = layer_choice.influence(model, [batch], first_token_only=True)
    assert influence[3] == pytest.approx(expected_influence, rel=1e-4)
    assert influence[:3] == pytest.approx(layer_choice.influence(model, [batch])[:3])


def test_a_model_says_and_is_what_it_was(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        expected = model(**batch).logits
        with first_token.as_read(model):
            torch.testing.assert_close(model(**batch).logits, expected)
    listening.listen(model, [batch], {LAST: model.get_submodule(LAST)}, lambda *_: None, first_token_only=True)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_the_last_query_gets_the_range_that_it_needs(
    model: nn.Module, tokenizer: Any, texts: list[str], read: dict[str, torch.Tensor]
) -> None:
    spec = quantization_spec.plan(model, linears=True, scheme="int8-static", token_bits=32, block_size=32)
    rows = Split(texts, tokenizer(texts)["input_ids"], np.zeros(4, dtype=np.int64))
    decided, _ = post_training.decide(model, spec, problem_of("text-classification"), rows, pad_id=0)
    for name, how in decided.linears.items():
        scale, zero_point = calibration.affine(read[name].min().item(), read[name].max().item())
        assert (how.scale, how.zero_point) == (pytest.approx(scale, rel=1e-4), zero_point), name


def test_a_model_without_heads_left_is_heard(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    from tasks.ml.models import modeling

    modeling.resize(families.BERT, families.BERT.layer_list(model)[3], heads=0, ffn=64)
    assert len(importance.activation(model, [batch], first_token_only=True)[3].ffn) == 64
