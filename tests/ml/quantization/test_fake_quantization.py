from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.ml.data.datasets import Split
from tasks.ml.distillation import teaching
from tasks.ml.jobs import lessons
from tasks.ml.models import quantization_spec
from tasks.ml.models.quantization_spec import LinearScheme
from tasks.ml.problems import text_classification
from tasks.ml.quantization import calibration, fake_quantization, simulation
from tasks.ml.training import precision
from tests.ml.processes import Recorder
from tests.ml.quantization.rows import rows_of

SCHEMES = ("int8-dynamic", "int8-static", "int4")


def planned(model: nn.Module, scheme: str) -> quantization_spec.Spec:
    spec = quantization_spec.plan(model, linears=True, scheme=scheme, token_bits=8, block_size=16)
    return calibration.calibrate(model, spec, rows_of(model), method="min-max") if scheme == "int8-static" else spec


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_forward_pass_is_the_simulation(model: nn.Module, scheme: str) -> None:
    spec = planned(model, scheme)
    batch = next(rows_of(model)())
    names = list(model.state_dict())
    before = copy.deepcopy(model)
    with fake_quantization.products(model, spec):
        faked = model(**batch).logits
        assert list(model.state_dict()) == names
    simulated = copy.deepcopy(before)
    simulation.simulate(simulated, spec)
    assert torch.equal(faked, simulated(**batch).logits)
    after = model(**batch).logits
    assert (after - before(**batch).logits).abs().max() < (faked - before(**batch).logits).abs().max()


def test_rounding_has_the_gradient_of_the_identity() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(16, 4), torch.randn(3, 16, requires_grad=True)
    spec = quantization_spec.Spec(linears={"0": LinearScheme()})
    with fake_quantization.products(nn.ModuleList([linear]), spec):
        linear(x).sum().backward()
    rounded = simulation.weight_on_grid(linear.weight.detach(), LinearScheme(), 16)
    torch.testing.assert_close(x.grad, rounded.sum(dim=0).expand(3, 16))
    expected = simulation.dynamic_uint8(x.detach()).sum(dim=0).expand(4, 16)
    torch.testing.assert_close(linear.weight.grad, expected)


def test_what_a_static_range_cuts_off_has_no_gradient() -> None:
    scale, zero_point = calibration.affine(-1.0, 1.0)
    linear, x = nn.Linear(4, 2), torch.tensor([[0.3, 5.0, -7.0, -0.2]], requires_grad=True)
    spec = quantization_spec.Spec(linears={"0": LinearScheme("int8-static", scale, zero_point)})
    with fake_quantization.products(nn.ModuleList([linear]), spec):
        linear(x).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).tolist() == [[True, False, False, True]]


def test_without_a_spec_nothing_is_simulated(model: nn.Module) -> None:
    batch = next(rows_of(model)())
    before = model(**batch).logits
    with fake_quantization.products(model, None):
        assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_settled_weights_are_on_the_grid(model: nn.Module, scheme: str) -> None:
    spec = planned(model, scheme)
    fake_quantization.settle(model, spec)
    for name, how in spec.linears.items():
        weight = model.get_submodule(name).weight
        torch.testing.assert_close(simulation.weight_on_grid(weight, how, 16), weight, rtol=1e-5, atol=1e-8)


def a_lesson(student: nn.Module, teacher: nn.Module, spec: quantization_spec.Spec | None) -> lessons.Lesson:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 60, (4 + n % 5,), generator=generator).tolist() for n in range(48)]
    with torch.no_grad():
        reference = np.concatenate([teacher(input_ids=torch.tensor([row])).logits.numpy() for row in rows])
    return lessons.Lesson(
        problem="text-classification",
        pad_id=0,
        input_ids=rows,
        targets=np.full(len(rows), -100),
        selection=Split([""] * len(rows), rows, reference.argmax(axis=-1)),
        tutor=lessons.Tutor(teacher, [0, 1, 2, 3], teaching.Weights(), 1.0),
        reference=reference,
        spec=spec,
    )


@pytest.mark.parametrize("asked", ["auto", "bf16"])
def test_training_brings_a_quantized_model_nearer_to_its_teacher(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """In fp32, as the simulation is, whatever else is faster or asked for: bf16 rounds about as much as quantization
    itself."""
    rates = {torch.float32: 1.0, torch.bfloat16: 9.0}
    monkeypatch.setattr(precision, "matmul_rate", lambda _, dtype: rates[dtype])
    spec = replace(planned(model, "int4"), embeddings={})
    teacher = copy.deepcopy(model)
    lesson = a_lesson(model, teacher, spec)

    def distance(model: nn.Module) -> float:
        simulated = copy.deepcopy(model)
        simulation.simulate(simulated, spec)
        with torch.no_grad():
            logits = np.concatenate([simulated(input_ids=torch.tensor([row])).logits for row in lesson.input_ids])
        assert lesson.reference is not None
        return text_classification.divergence(lesson.reference, logits)

    before = distance(model)
    for_model = {"embeddings": "frozen", "activation_checkpointing": False, "lora_rank": 0, "parallelism": "replicated"}
    settings: dict[str, Any] = {
        "epochs": 8, "batch_size": 8, "learning_rate": 1e-3, "schedule": "linear", "warmup": 0.1, "weight_decay": 0.0,
        "clip_norm": 1.0, "precision": asked, "seed": 0, "optimizer": "adamw",
    }  # fmt: skip
    seen: list[torch.dtype] = []
    model.base_model.register_forward_hook(lambda *given: seen.append(given[-1].last_hidden_state.dtype))
    layer = model.base_model.encoder.layer[0]
    layer.attention.self.register_forward_hook(lambda *given: seen.append(given[-1][0].dtype))
    history = lesson.learn(model, for_model=for_model, observer=Recorder(), **settings)
    assert history.notes["precision"].startswith("fp32 (")
    assert set(seen) == {torch.float32}
    fake_quantization.settle(model, spec)
    assert distance(model) < 0.2 * before


def test_a_lesson_that_is_written_down_keeps_its_spec_and_zeros(tmp_path: Path, model: nn.Module) -> None:
    spec, zeros = planned(model, "int8-static"), {"bert.pooler.dense": torch.eye(32).bool()}
    replace(a_lesson(model, copy.deepcopy(model), spec), zeros=zeros).write(tmp_path)
    found = lessons.Lesson.read(tmp_path, torch.device("cpu"))
    assert found.spec == spec
    assert found.zeros.keys() == zeros.keys()
    assert torch.equal(found.zeros["bert.pooler.dense"], zeros["bert.pooler.dense"])
    (tmp_path / "plain").mkdir()
    a_lesson(model, copy.deepcopy(model), None).write(tmp_path / "plain")
    assert lessons.Lesson.read(tmp_path / "plain", torch.device("cpu")).spec is None
