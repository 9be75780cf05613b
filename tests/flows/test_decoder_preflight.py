"""What a recipe asks of a decoder and cannot get is said before any work, each in a sentence with what would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows import preflight
from flows.command import recipe_files
from flows.recipe import Recipe
from tasks.ml.models.inspection import Inspection

LLAMA = {
    "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 384,
}  # fmt: skip
FINE: dict[str, Any] = {
    "problem": "causal-lm",
    "teaching": {"temperature": 1.0},
    "distillation": {"layers": 2},
    "quantization": {"scheme": "int4"},
}


def said(config: dict[str, Any] = LLAMA, **fields: Any) -> list[str]:
    merged = {**FINE, **{name: {**FINE.get(name, {}), **value} if isinstance(value, dict) else value for name, value in fields.items()}}  # fmt: skip  # noqa: E501
    return list(preflight.objections(Recipe.model_validate(merged), Inspection(Path(), config, {})))


def test_nothing_is_said_of_what_a_decoder_can_have() -> None:
    assert said() == []
    assert said(quantization={"bits": 3.3, "rounding": "gptq", "embeddings": "int4", "block_size": 64}) == []
    assert said(quantization={"bits": 2, "training": {"steps": 3}}) == []
    assert said(quantization={"bits": 5, "block_size": 128}) == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"problem": "text-classification"}, "the base model is a decoder (llama); use causal-lm"),
        ({"quantization": {"scheme": "int8-dynamic"}}, "quantization.scheme: int8-dynamic is for encoders"),
        (
            {"quantization": {"scheme": "int4-floats", "bits": 5}},
            "quantization.scheme: int4-floats has no fast product",
        ),
        ({"quantization": {"smoothing": 0.5}}, "quantization.smoothing"),
        ({"quantization": {"max_damage": 0.1}}, "quantization.max_damage"),
        ({"quantization": {"training": {"embeddings": "dense"}}}, "quantization.training.embeddings"),
        ({"pruning": {"sparsity": {"method": "wanda"}}}, "pruning.sparsity"),
        ({"pruning": {"heal_rounding": True, "embeddings": "frozen"}}, "pruning.heal_rounding"),
        ({"pruning": {"width": {"target_speedup": 2}}}, "pruning.width: times of a decoder's layers are not measured"),
        ({"distillation": {"attention_weight": 1}}, "distillation.attention_weight"),
        ({"distillation": {"embedding_rank": 64}}, "distillation.embedding_rank"),
        ({"distillation": {"keep_hidden": 0.5}}, "distillation.keep_hidden"),
        ({"teaching": {"temperature": 2}}, "teaching.temperature: 2, and of tokens that a teacher hardly says"),
        ({"teaching": {"augmentation": {"per_text": 1}}}, "teaching.augmentation"),
        ({"compute": {"max_memory": 4}}, "compute.max_memory"),
        ({"compute": {"num_processes": 2, "parallelism": "tensor"}}, "compute.parallelism: tensor is for encoders"),
        ({"training": {"label_smoothing": 0.1}}, "training.label_smoothing: 0.1 means nothing for next tokens"),
        ({"distillation": {"layers": 9}}, "distillation.layers: 9 are more than the base model's 4"),
    ],
)
def test_what_a_decoder_cannot_have_is_said(fields: dict[str, Any], sentence: str) -> None:
    assert sum(sentence in one for one in said(**fields)) == 1


def test_an_encoder_does_not_continue_texts() -> None:
    base = preflight.inspected(recipe_files.load("smoke").base_model)
    (one,) = preflight.objections(Recipe.model_validate(FINE), base)
    assert one == "problem: causal-lm needs a decoder, and the base model is an encoder (bert)"


def test_gpt2_is_not_cut() -> None:
    gpt2 = {**LLAMA, "model_type": "gpt2"}
    (one,) = said(gpt2)
    assert "gpt2 has query, key and value in one matrix, which is not cut; use 1 for both" in one
    assert said(gpt2, pruning={"width": {"keep_ffn": 1, "keep_heads": 1}}) == []


@pytest.mark.parametrize("embeddings", ["int4", "int8"])
def test_a_token_table_that_no_block_divides_is_refused(embeddings: str) -> None:
    """Where smaller blocks than those of other layers divide it, it gets them."""
    narrow, odd = LLAMA | {"hidden_size": 96}, LLAMA | {"hidden_size": 100}
    assert said(narrow, quantization={"embeddings": embeddings, "block_size": 64}) == []
    assert said(odd, quantization={"embeddings": embeddings}) == [
        "quantization.block_size: 16 does not divide the token table's 100 columns; set quantization.embeddings to none"
    ]
    assert said(odd, quantization={"embeddings": "none"}) == []
    assert said(odd, quantization={"scheme": "none", "embeddings": embeddings}) == []


def test_floats_for_blocks_are_for_decoders() -> None:
    bert = {"model_type": "bert", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4,
            "intermediate_size": 128}  # fmt: skip
    fields = {"problem": "text-classification", "quantization": {"scheme": "int4-floats"}}
    assert any(
        sentence.startswith("quantization.scheme: int4-floats is for decoders") for sentence in said(bert, **fields)
    )
    assert not [sentence for sentence in said(quantization={"scheme": "int4-floats"}) if "scheme" in sentence]
