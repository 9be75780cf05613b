"""The stage: what it publishes, counts and reuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks.engine import store, tracking
from tasks.export import ExportConfig, export
from tests.tasks import tiny_models


@pytest.fixture
def run_id() -> Iterator[str]:
    with tracking.pipeline_run("export", {}, run_name="export") as run_id:
        yield run_id


def test_it_publishes_a_bundle_and_counts_its_operators(run_id: str) -> None:
    source = tiny_models.publish_quantized(tiny_models.model())
    result = export(source, ExportConfig(), run_id=run_id)
    assert result.bundle is not None
    assert (result.bundle.format, result.bundle.problem) == ("onnx", tiny_models.PROBLEM)
    directory = store.path(result.bundle.digest)
    names = {path.name for path in directory.iterdir()} - {store.FILES}
    assert names == {
        "model.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
        "config.json",
        "quantization.json",
        "operators.json",
    }
    assert tiny_models.read_json(directory, "config.json")["id2label"] == {"0": "negative", "1": "positive"}
    operators = tiny_models.read_json(store.path(result.evidence), "operators.json")
    assert operators == tiny_models.read_json(directory, "operators.json")
    assert operators["expected"] == {
        "QAttention": 1,
        "Softmax": 1,
        "DynamicQuantizeMatMul": 8,
        "LayerNormalization": 5,
    }
    card = result.scorecard
    assert (card.fused_attention_nodes, card.quantized_matmul_nodes) == (1, 9)
    assert card.size_mb == (directory / "model.onnx").stat().st_size / 1e6
    assert tracking.client().get_run(result.run_id).data.metrics["fused_attention_nodes"] == 1
    assert export(source, ExportConfig(), run_id=run_id).cached


def test_a_model_without_a_spec_is_exported_in_fp32(run_id: str) -> None:
    result = export(tiny_models.publish_model(tiny_models.model()), ExportConfig(), run_id=run_id)
    assert (result.scorecard.fused_attention_nodes, result.scorecard.quantized_matmul_nodes) == (1, 0)
