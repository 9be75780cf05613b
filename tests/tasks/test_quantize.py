"""The stage: every scheme is planned, published, measured, exported, and on the runtime what its simulation is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.contracts.base import FeatherweightError
from tasks.contracts.hyperparameters import ComputeConfig
from tasks.contracts.values import Bundle, Splits, StageResult
from tasks.engine import store, tracking
from tasks.export import ExportConfig, export
from tasks.ml.data import datasets
from tasks.ml.graph import export as onnx_export
from tasks.ml.models import tokenization
from tasks.ml.pruning import sparsity
from tasks.ml.runtime import parity, sessions
from tasks.quantize import QuantizationConfig, quantize
from tasks.tutoring import TeachingConfig
from tests.tasks import tiny_models


@pytest.fixture
def run_id() -> Iterator[str]:
    with tracking.pipeline_run("quantize", {}, run_name="quantize") as run_id:
        yield run_id


def result_of(run_id: str, splits: Splits, **config: Any) -> StageResult:
    source = tiny_models.publish_model(tiny_models.model())
    return quantize(source, splits, QuantizationConfig(block_size=16, **config), teacher=source, seed=0, run_id=run_id)


def compared(bundle: Bundle, splits: Splits, run_id: str) -> dict[str, Any]:
    """Parity of the exported bundle with its simulation, on the whole selection split and at other shapes."""
    exported = export(bundle, ExportConfig(), run_id=run_id)
    assert exported.bundle is not None
    directory = store.path(exported.bundle.digest)
    tokenizer = tokenization.load(directory)
    return parity.compare(
        store.path(bundle.digest),
        sessions.open_session(directory / onnx_export.MODEL, provider=sessions.CPU, threads=1),
        tiny_models.PROBLEM,
        datasets.read(store.path(splits.digest), "selection", tokenizer).input_ids,
        pad_id=tokenizer.pad_token_id,
        max_length=tiny_models.MAX_LENGTH,
    )


@pytest.mark.parametrize(
    ("config", "tolerance"),
    [
        ({"scheme": "int8-dynamic", "rounding": "gptq"}, 0.05),
        ({"scheme": "int8-static", "calibration": "entropy", "smoothing": 0.5}, 0.05),
        ({"scheme": "int4", "rounding": "gptq", "embeddings": "int4"}, 0.05),
        ({"scheme": "fp16"}, 0.02),
    ],
    ids=lambda value: value["scheme"] if isinstance(value, dict) else "",
)
def test_the_runtime_says_what_the_stage_measured(run_id: str, config: dict[str, Any], tolerance: float) -> None:
    splits = tiny_models.publish_data()
    result = result_of(run_id, splits, **config)
    assert result.bundle is not None
    assert result.scorecard.agreement_with_unquantized is not None
    assert result.scorecard.agreement_with_unquantized > 0.8
    assert result.scorecard.size_mb is not None
    measured = compared(result.bundle, splits, run_id)
    assert measured["non_finite"] == 0
    assert measured["median_abs_error"] < tolerance / 10
    assert measured["max_abs_error"] < tolerance
    assert measured["label_flips"] <= 1


def test_the_fewer_bits_the_smaller(run_id: str) -> None:
    splits = tiny_models.publish_data()
    schemes = ("none", "fp16", "int8-dynamic", "int4")
    sizes = [result_of(run_id, splits, scheme=scheme).scorecard.metrics()["size_mb"] for scheme in schemes]
    assert sizes == sorted(set(sizes), reverse=True)


def test_the_scan_is_evidence(run_id: str) -> None:
    splits = tiny_models.publish_data()
    result = result_of(run_id, splits, scheme="int4", max_damage=1e-9)
    scan = tiny_models.read_json(store.path(result.evidence), "sensitivity.json")
    assert {layer["chosen"] for layer in scan["layers"]} == {"fp32"}
    assert scan["all_quantized"] > scan["chosen"]
    assert scan["n"] == 60
    assert result_of(run_id, splits, scheme="int4", max_damage=1e-9).cached


AWARE: dict[str, Any] = {"steps": 4, "learning_rate": 1e-3, "batch_size": 16}


def trained(source: Bundle, splits: Splits, run_id: str, compute: ComputeConfig) -> StageResult:
    config = QuantizationConfig(block_size=16, scheme="int4", training=AWARE)
    return quantize(
        source, splits, config, teacher=source, teaching=TeachingConfig(), compute=compute, seed=0, run_id=run_id
    )


def test_the_teacher_corrects_while_quantization_is_simulated(run_id: str) -> None:
    splits = tiny_models.publish_data()
    source = tiny_models.publish_model(tiny_models.model())
    result = trained(source, splits, run_id, ComputeConfig(precision="bf16"))
    history = tiny_models.read_json(store.path(result.evidence), "history.json")
    assert history["points"][-1]["step"] == history["notes"]["total_steps"] == 4
    assert history["notes"]["precision"] == "fp32 (what quantized numbers are simulated in)"
    assert result.bundle is not None
    assert compared(result.bundle, splits, run_id)["label_flips"] <= 1


@pytest.mark.parametrize("parallelism", ["sharded", "tensor"])
def test_zeros_are_not_trained_in_layers_that_are_cut(run_id: str, parallelism: str) -> None:
    model = tiny_models.model()
    for linear in sparsity.linears(model).values():
        linear.weight.data[:, ::2] = 0
    source, splits = tiny_models.publish_model(model), tiny_models.publish_data()
    compute = ComputeConfig(num_processes=2, parallelism=parallelism)
    with pytest.raises(FeatherweightError, match=r"training: the model is sparse, .* choose parallelism replicated"):
        trained(source, splits, run_id, compute)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scheme": "none", "rounding": "gptq"}, "rounding: needs an integer scheme"),
        ({"scheme": "fp16", "smoothing": 0.5}, "smoothing: needs an integer scheme"),
        ({"scheme": "fp16", "training": {}}, "training: needs an integer scheme"),
        ({"scheme": "int4", "block_size": 48}, "block_size: the runtime has no blocks of 48"),
        ({"training": {"steps": 0}}, r"training\.steps\n.* greater than or equal to 1"),
    ],
)
def test_what_does_not_go_together_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QuantizationConfig(**config)
