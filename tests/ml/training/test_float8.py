"""fp8 products, by torch's kernels for the CPU, or emulated in fp32 where a test says so."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import families
from tasks.ml.training import float8, precision, trainable

IDS = torch.tensor([[2, 5, 6, 7, 3, 0, 0], [2, 8, 9, 3, 0, 0, 0], [2, 6, 3, 0, 0, 0, 0]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}
TARGETS = torch.tensor([0, 1, 1])
PLAIN: dict[str, Any] = {
    "optimizer": "adamw", "precision": "fp32", "embeddings": "dense", "activation_checkpointing": False
}  # fmt: skip
FP8 = {"precision": "fp8"}


def loss(model: nn.Module) -> torch.Tensor:
    return nn.functional.cross_entropy(model(**INPUTS).logits, TARGETS)


def converted(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if type(module).__name__ == "Float8Linear"}


def train(model: nn.Module, steps: int) -> float:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(steps):
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss(model).item()


def test_the_backbone_is_converted_where_it_fits_and_is_afterwards_what_it_was_but_trained(model: nn.Module) -> None:
    layer = model.bert.encoder.layer[0]
    families.resize_linear(layer.intermediate.dense, out_features=40)
    families.resize_linear(layer.output.dense, in_features=40)
    for parameter in (*layer.intermediate.dense.parameters(), layer.output.dense.weight):
        nn.init.normal_(parameter, std=0.1)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    worst = loss(model).item()
    model.train()
    with float8.linears(model, emulate=True):
        backbone = {name for name, m in modules.items() if isinstance(m, nn.Linear) and name.startswith("bert.")}
        odd = {"bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense"}
        assert converted(model) == backbone - odd
        assert model.state_dict().keys() == before.keys()
        assert train(model, 30) < 0.2 * worst
        model.eval()
    assert {name: (id(m), m.training) for name, m in model.named_modules()} == {
        name: (id(m), False) for name, m in modules.items()
    }
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    changed = {name for name, p in model.named_parameters() if p.ndim == 2 and not torch.equal(p, before[name])}
    assert {f"{name}.weight" for name in backbone} < changed
    assert loss(model).item() < 0.2 * worst


def test_it_is_what_it_was_after_an_error_too(model: nn.Module) -> None:
    with pytest.raises(FloatingPointError), float8.linears(model, emulate=True):
        raise FloatingPointError
    assert not converted(model)


def test_numbers_that_fp8_holds_are_multiplied_exactly_and_others_rounded_to_three_bits(model: nn.Module) -> None:
    linear = model.bert.pooler.dense
    generator = torch.Generator().manual_seed(0)
    # 448 is the largest number of E4M3: with it among them, the scale is one.
    held = torch.randint(-8, 8, (5, 32), generator=generator).float()
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-8, 8, (32, 32), generator=generator).float())
        linear.weight[0, 0] = held[0, 0] = 448
        linear.bias.zero_()
    between = torch.where(held == 448, held, held + 0.01 * held.sign())
    exact, rounded = linear(held), linear(between)
    with float8.linears(model, emulate=True):
        stand_in = model.bert.pooler.dense
        torch.testing.assert_close(stand_in(held), exact, rtol=0, atol=0)
        torch.testing.assert_close(stand_in(between), exact, rtol=0, atol=0)
    assert not torch.equal(exact, rounded)


def test_kernels_agree_with_the_emulation_for_any_number_of_tokens(model: nn.Module) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for emulate in (False, True):
        model.zero_grad()
        with float8.linears(model, emulate=emulate):
            loss(model).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert IDS.numel() % float8.MULTIPLE
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-2, atol=1e-4)


def test_low_rank_updates_of_fp8_layers_are_merged_into_plain_ones(model: nn.Module) -> None:
    names, worst = list(model.state_dict()), loss(model).item()
    with trainable.prepared(model, lora_rank=16, **PLAIN), float8.linears(model, emulate=True):
        assert "bert.encoder.layer.0.attention.self.query.base_layer" in converted(model)
        train(model, 30)
    assert list(model.state_dict()) == names
    assert not converted(model)
    assert loss(model).item() < 0.5 * worst


def test_it_is_refused_where_the_device_has_none_and_leaves_nothing_behind(model: nn.Module) -> None:
    refusal = r"precision: fp8 needs .* capability 8\.9 .*, and this is a CPU"
    with pytest.raises(FeatherweightError, match=refusal):
        precision.choose("fp8", torch.device("cpu"))
    names = list(model.state_dict())
    with pytest.raises(FeatherweightError, match=refusal), trainable.prepared(model, lora_rank=2, **PLAIN | FP8):
        pass
    assert list(model.state_dict()) == names


def test_without_torchao_it_says_what_to_install(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(FeatherweightError, match="fp8 needs the package torchao: pip install"), float8.linears(model):
        pass


class Products(TorchDispatchMode):
    """Remembers each matrix product that torch computes while it is open, and the types of the matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "_scaled_mm"):
            self.seen.append((name, [a.dtype for a in args if isinstance(a, torch.Tensor) and a.ndim > 1]))
        return func(*args, **(kwargs or {}))


def test_its_peak_is_that_of_fp8_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(precision.SIDE, "cpu", 64)
    choice = precision.Choice(torch.bfloat16, "", float8=True)
    with Products() as products:
        rate = precision.matmul_rate.__wrapped__("cpu", choice.matmul_dtype, 0.01)
    assert products.seen
    assert all(seen == ("_scaled_mm", [torch.float8_e4m3fn] * 2) for seen in products.seen)
    assert rate > 0
