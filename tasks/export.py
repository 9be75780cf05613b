"""export: lowers the model to ONNX with exactly the quantization spec it carries."""

from __future__ import annotations

from pydantic import Field

from tasks.contracts.base import StageConfig
from tasks.contracts.values import Bundle, Scorecard, StageOutput
from tasks.engine import publish, store
from tasks.engine.stage import stage


class ExportConfig(StageConfig):
    """What the graph is written in."""

    opset: int = Field(20, ge=20, le=23, title="Opset", description="ONNX operator set of the exported graph.")


@stage
def export(source: Bundle, config: ExportConfig) -> StageOutput:
    """Writes ONNX whose fused and integer operators are there by construction, and counts them."""
    import json

    from tasks.ml.graph import bundles
    from tasks.ml.graph import export as onnx_export

    with store.workspace() as bundle:
        operators = bundles.write(store.path(source.digest), bundle, problem_name=source.problem, opset=config.opset)
        size_mb = onnx_export.num_bytes(bundle) / 1e6
        digest = store.publish(bundle)
    counts = operators["counts"]
    return StageOutput(
        bundle=Bundle(digest=digest, format="onnx", problem=source.problem),
        evidence=publish.evidence({onnx_export.OPERATORS: json.dumps(operators, indent=1)}),
        scorecard=Scorecard(
            size_mb=size_mb,
            fused_attention_nodes=sum(counts.get(name, 0) for name in onnx_export.ATTENTION),
            quantized_matmul_nodes=sum(counts.get(name, 0) for name in onnx_export.INTEGER_MATMUL),
        ),
    )
