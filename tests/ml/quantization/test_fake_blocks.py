"""A decoder learns while its products are computed in blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tasks.ml.data.datasets import Split
from tasks.ml.distillation import teaching
from tasks.ml.jobs import lessons
from tasks.ml.models import decoders
from tasks.ml.models.quantization_spec import Spec
from tasks.ml.problems import causal_lm
from tasks.ml.quantization import fake_quantization, simulation, weights_alone
from tasks.ml.quantization.blocks import HEAD, Blocks
from tests.ml import tiny_decoders
from tests.ml.processes import Recorder

ROWS = tiny_decoders.tokens(rows=24, length=24).tolist()


def quantized(name: str, *, bits: float = 4) -> tuple[nn.Module, dict[str, Blocks]]:
    model = tiny_decoders.model_of(name)
    how: dict[str, Any] = {"block_size": 32, "table_bits": 4, "rounding": "clipped", "length": 24}
    return model, weights_alone.decide(model, ROWS, bits=bits, **how)


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(torch.tensor(ROWS)).logits
    return found


@pytest.mark.parametrize("name", ["llama, tied", "llama", "gpt2", "qwen3"])
def test_the_forward_pass_is_the_simulation(name: str) -> None:
    model, codes = quantized(name)
    fake_quantization.unsettle(model, codes, tiny_decoders.model_of(name))
    plain, names = logits(model), list(model.state_dict())
    with fake_quantization.products(model, codes=codes):
        faked = logits(model)
        assert list(model.state_dict()) == names
    assert torch.equal(logits(model), plain)
    assert fake_quantization.settle(model, Spec(), codes).keys() == codes.keys()
    simulation.simulate(model, Spec(), codes)
    torch.testing.assert_close(faked, logits(model), rtol=1e-5, atol=1e-5)
    assert (faked - plain).abs().max() > 1e-3


@pytest.mark.parametrize("bits", [2.5, 4, 8])
def test_weights_start_where_they_were_and_keep_their_codes(bits: float) -> None:
    exact = decoders.of_model(tiny_decoders.model_of("llama")).projections(tiny_decoders.model_of("llama"))
    model, codes = quantized("llama", bits=bits)
    fake_quantization.unsettle(model, codes, tiny_decoders.model_of("llama"))
    for one, before in zip(decoders.of_model(model).projections(model), exact, strict=True):
        blocks = codes[one.name]
        assert torch.equal(blocks.recoded(one.weight).codes, blocks.codes)
        assert (one.weight - before.weight).norm() < 0.3 * (blocks.dense() - before.weight).norm()


def test_rounding_has_the_gradient_of_the_identity() -> None:
    model, codes = quantized("gpt2")
    name, blocks = next(iter((name, one) for name, one in codes.items() if name != HEAD))
    product = simulation.product(model, name)
    x = torch.randn(3, blocks.inputs, requires_grad=True)
    with fake_quantization.products(model, codes=codes):
        product(x).sum().backward()
    torch.testing.assert_close(x.grad, blocks.dense().sum(dim=0).expand(3, -1))
    read = simulation.int8_blocks(x.detach(), 32).sum(dim=0)
    torch.testing.assert_close(product.weight.grad, read.unsqueeze(-1).expand(-1, len(blocks.codes)))


@pytest.mark.parametrize("name", ["llama, tied", "llama"])
def test_training_brings_a_decoder_in_blocks_nearer_to_its_teacher(name: str, tmp_path: Path) -> None:
    teacher = tiny_decoders.model_of(name)
    model, codes = quantized(name, bits=2.5)
    targets = causal_lm.NO_TARGET
    lesson = lessons.Lesson(
        problem="causal-lm",
        pad_id=0,
        input_ids=ROWS,
        targets=torch.full((len(ROWS),), targets).numpy(),
        selection=Split([""] * len(ROWS), ROWS, torch.full((len(ROWS),), 24.0).numpy()),
        tutor=lessons.Tutor(teacher, [0, 1, 2], teaching.Weights(), 1.0),
        codes=codes,
    )
    lesson.write(tmp_path)
    lesson = lessons.Lesson.read(tmp_path, torch.device("cpu"))
    head = decoders.of_model(model).head(model).clone()

    def distance(codes: dict[str, Blocks]) -> float:
        model_of_codes = tiny_decoders.model_of(name)
        model_of_codes.load_state_dict(model.state_dict())
        simulation.simulate(model_of_codes, Spec(), codes)
        ours, wanted = (F.log_softmax(logits(one), dim=-1) for one in (model_of_codes, teacher))
        return float(F.kl_div(ours, wanted, log_target=True, reduction="batchmean"))

    before = distance(codes)
    fake_quantization.unsettle(model, codes, teacher)
    lesson.learn(
        model,
        for_model={
            "embeddings": "frozen", "activation_checkpointing": False, "lora_rank": 0, "parallelism": "replicated",
        },
        observer=Recorder(), epochs=12, batch_size=8, learning_rate=1e-3, schedule="linear", warmup=0.1,
        weight_decay=0.0, clip_norm=1.0, precision="fp32", seed=0, optimizer="adamw",
    )  # fmt: skip
    settled = fake_quantization.settle(model, Spec(), codes)
    assert distance(settled) < 0.5 * before
    assert torch.equal(decoders.of_model(model).head(model), head)
    assert all(parameter.requires_grad for parameter in model.parameters())
    for one in decoders.of_model(model).projections(model):
        assert torch.equal(settled[one.name].dense(), one.weight)
