"""quantize: chooses what becomes integer and measures what it costs, simulated in PyTorch."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from tasks import publish, store
from tasks.contracts import Bundle, Scorecard, Splits, StageConfig, StageOutput
from tasks.stage import stage


class Scheme(StrEnum):
    NONE = "none"
    INT8_DYNAMIC = "int8-dynamic"


class EmbeddingScheme(StrEnum):
    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"


class QuantizationConfig(StageConfig):
    """What becomes integer."""

    scheme: Scheme = Field(
        Scheme.INT8_DYNAMIC,
        title="Scheme",
        description="int8-dynamic: int8 weights per channel, uint8 activations scaled at run time.",
    )
    embeddings: EmbeddingScheme = Field(
        EmbeddingScheme.INT8,
        title="Embeddings",
        description="Precision of the token embeddings: int8 per row, or int4 in blocks.",
    )
    block_size: int = Field(
        32, ge=16, le=256, title="Block size", description="Columns that share a scale in int4 tables."
    )


@stage
def quantize(source: Bundle, splits: Splits, config: QuantizationConfig) -> StageOutput:
    """Writes the quantization spec beside the weights and reports the quality of its simulation."""
    from tasks.ml import datasets, evaluation, learning, modeling, problems, quantization

    model = modeling.load(store.path(source.digest), source.problem)
    tokenizer = modeling.load_tokenizer(store.path(source.digest))
    selection = datasets.read(store.path(splits.digest), "selection", tokenizer)
    spec = quantization.plan(
        model,
        linears=config.scheme is Scheme.INT8_DYNAMIC,
        token_bits={"none": 32, "int8": 8, "int4": 4}[config.embeddings],
        block_size=config.block_size,
    )
    bundle, _ = publish.torch_bundle(model, tokenizer, source.problem, spec=spec)
    size_mb = quantization.num_bytes(model, spec) / 1e6
    num_parameters = modeling.num_parameters(model)
    pad_id = tokenizer.pad_token_id
    before = evaluation.logits(model, selection.input_ids, pad_id=pad_id)
    quantization.simulate(model, spec)
    quality = learning.quality(model, problems.get(source.problem), selection, pad_id=pad_id, reference=before)
    return StageOutput(
        bundle=bundle,
        evidence=publish.evidence({quantization.SPEC_FILE: spec.to_json()}),
        scorecard=Scorecard(
            split="selection",
            num_examples=len(selection),
            accuracy=quality["accuracy"],
            loss=quality["loss"],
            agreement_with_unquantized=quality["agreement"],
            num_parameters=num_parameters,
            size_mb=size_mb,
        ),
    )
