"""The stage: a whole proof of a tiny line, and what makes it fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Bundle, Splits, StageResult
from tasks.engine import store, tracking
from tasks.export import ExportConfig, export
from tasks.ml import machine
from tasks.validate import ValidationConfig, validate
from tests.tasks import tiny_models

QUICK = ValidationConfig(device="cpu", threads=1, repeats=3, sentences=10)


@pytest.fixture
def run_id() -> Iterator[str]:
    with tracking.pipeline_run("validate", {}, run_name="validate") as run_id:
        yield run_id


@pytest.fixture
def splits() -> Splits:
    return tiny_models.publish_data()


@pytest.fixture
def lineage() -> dict[str, Bundle]:
    return tiny_models.publish_line()


@pytest.fixture
def shipped(run_id: str, lineage: dict[str, Bundle]) -> Bundle:
    bundle = export(lineage["quantize"], ExportConfig(), run_id=run_id).bundle
    assert bundle is not None
    return bundle


def corrupted(bundle: Bundle, change: Callable[[onnx.ModelProto], None]) -> Bundle:
    """The bundle with its graph changed."""
    with store.workspace() as directory:
        for path in store.path(bundle.digest).iterdir():
            if path.name != store.FILES:
                (directory / path.name).write_bytes(path.read_bytes())
        model = onnx.load(directory / "model.onnx")
        change(model)
        onnx.save(model, directory / "model.onnx")
        return Bundle(digest=store.publish(directory), format="onnx", problem=bundle.problem)


def evidence(result: StageResult) -> Path:
    return store.path(result.evidence)


def test_a_whole_proof(run_id: str, splits: Splits, lineage: dict[str, Bundle], shipped: Bundle) -> None:
    result = validate(shipped, splits, QUICK, lineage=lineage, run_id=run_id)
    assert result.bundle == shipped
    proof = tiny_models.read_json(evidence(result), "validation.json")

    models = {model["stage"]: model for model in proof["models"]}
    assert [model["title"] for model in proof["models"]] == [
        "Teacher",
        "Student",
        "Pruned",
        "Quantized (simulated)",
        "Shipped",
    ]
    assert models["quantize"]["latency_p50_ms"] is None
    for stage in ("train", "distill", "prune", "validate"):
        assert 0 < models[stage]["latency_p50_ms"] <= models[stage]["latency_p99_ms"]
        assert len(models[stage]["latency_p50_rounds_ms"]) == QUICK.repeats
        assert models[stage]["throughput_per_s"] > 0
    assert models["validate"]["runtime"] == "ONNX Runtime (CPUExecutionProvider)"
    assert models["validate"]["peak_memory_mb"] < models["train"]["peak_memory_mb"]
    assert models["validate"]["size_mb"] == (store.path(shipped.digest) / "model.onnx").stat().st_size / 1e6
    sizes = [models[stage]["size_mb"] for stage in ("train", "distill", "prune", "quantize")]
    assert sizes == sorted(sizes, reverse=True)

    assert 0 <= proof["device"].pop("others_share") <= 1
    assert proof["device"] | {"cpu_model": ""} == {
        "provider": "CPUExecutionProvider",
        "cpu_model": "",
        "kernels": machine.kernels(),
        "threads": 1,
        "torch_threads": 1,
    }
    assert {(cell["stage"], cell["length"]) for cell in proof["grid"]} == {("train", 16), ("validate", 16)}
    assert proof["parity"]["n"] == 60
    assert proof["parity"]["median_abs_error"] < 1e-4
    assert len({tuple(shape) for shape in proof["parity"]["shapes"]}) == 5
    assert proof["parity"]["max_abs_error"] < proof["parity"]["allowed_abs_error"]
    assert proof["nodes"]["CPUExecutionProvider"]["DynamicQuantizeMatMul"] == 5

    rows = pa.ipc.open_file(evidence(result) / "rows.arrow").read_all()
    assert rows.num_rows == proof["n"] == 60
    for stage in ("train", "prune", "validate"):
        alike = np.mean(rows[f"prediction_{stage}"].to_numpy() == rows["prediction_train"].to_numpy())
        assert models[stage]["agreement_with_teacher"] == alike
    assert result.scorecard.agreement_with_teacher == models["validate"]["agreement_with_teacher"]
    for stage, model in models.items():
        correct = rows[f"score_{stage}"].to_numpy()
        assert np.array_equal(correct, rows[f"prediction_{stage}"].to_numpy() == rows["target"].to_numpy())
        assert model["quality"] == pytest.approx(correct.mean())
    lost = tiny_models.read_json(evidence(result), "regressions.json")
    right, wrong = (rows[f"score_{stage}"].to_numpy() for stage in ("train", "validate"))
    assert (lost["n"], lost["lost"], lost["gained"]) == (60, int((right > wrong).sum()), int((right < wrong).sum()))
    assert len(lost["rows"]) == min(10, lost["lost"])
    card = result.scorecard
    assert (card.split, card.num_examples, card.quality) == ("test", 60, models["validate"]["quality"])
    assert card.latency_p50_ms == models["validate"]["latency_p50_ms"]
    assert card.max_abs_error == proof["parity"]["max_abs_error"]
    assert card.label_flips == proof["parity"]["label_flips"]

    assert validate(shipped, splits, QUICK, lineage=lineage, run_id=run_id).cached


def scaled(model: onnx.ModelProto, name: str, factor: float, part: Any = slice(None)) -> None:
    """Multiplies a part of a tensor, in place."""
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(name))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[part] *= np.float32(factor)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda model: scaled(model, "classifier.weight", -1.0), r"of 78 answers .* differ"),
        (lambda model: scaled(model, "classifier.weight", float("nan")), "NaN or infinity as logits of"),
        (lambda model: scaled(model, "classifier.weight", 1.5), "a logit differs by .*, more than quantization"),
        (
            lambda model: scaled(model, "unsqueeze", -5.0, (0, slice(14, 16))),
            "a logit differs by .*, more than quantiz",
        ),
    ],
    ids=["labels", "not a number", "logits", "positions that no row of the split reaches"],
)
def test_a_runtime_that_says_something_else_fails(
    run_id: str,
    splits: Splits,
    lineage: dict[str, Bundle],
    shipped: Bundle,
    change: Callable[[onnx.ModelProto], None],
    complaint: str,
) -> None:
    with pytest.raises(FeatherweightError, match=complaint):
        validate(corrupted(shipped, change), splits, QUICK, lineage=lineage, run_id=run_id)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_a_gpu_that_was_asked_for_and_is_missing_fails(
    run_id: str, splits: Splits, lineage: dict[str, Bundle], shipped: Bundle
) -> None:
    demanding = ValidationConfig(device="cuda")
    with pytest.raises(FeatherweightError, match="cannot start a CUDA session"):
        validate(shipped, splits, demanding, lineage=lineage, run_id=run_id)
