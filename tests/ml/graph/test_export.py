"""The exported graph computes what PyTorch computes, at any shape, with the operators it was meant to have."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from tasks.contracts.base import FeatherweightError
from tasks.ml.graph import export as onnx_export
from tasks.ml.models import families, modeling, quantization_spec
from tasks.ml.problems import text_classification
from tests.ml.exporting import (
    SIZES,
    Exported,
    errors,
    export,
    planned,
    pruned,
    require_finite_without_tokens,
    simulated_as,
)


def test_fp32_parity_and_operators(tmp_path: Path) -> None:
    operators = export(pruned(), tmp_path, quantization_spec.Spec())
    require_finite_without_tokens(tmp_path)
    assert operators["expected"] == {"MultiHeadAttention": 1, "Softmax": 1, "LayerNormalization": 5}
    assert operators["expected"].items() <= operators["counts"].items()
    assert errors(pruned(), tmp_path).max() < 1e-5


def test_embeddings_of_4_bits_with_fp32_layers(tmp_path: Path) -> None:
    spec = quantization_spec.plan(pruned(), linears=False, token_bits=4, block_size=16)
    operators = export(pruned(), tmp_path, spec)
    assert operators["expected"] == {
        "MultiHeadAttention": 1,
        "Softmax": 1,
        "LayerNormalization": 5,
        "GatherBlockQuantized": 1,
    }
    assert errors(simulated_as(spec), tmp_path).max() < 1e-5


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("shapes", [[(0, 40), (3, 0)], [(2, 0), (0, 24)], [(0, 0), (0, 0)]])
def test_blocks_that_are_gone(tmp_path: Path, shapes: list[tuple[int, int]], integer: bool) -> None:
    model = copy.deepcopy(pruned())
    family = families.of("bert")
    for layer, (heads, ffn) in zip(family.layer_list(model), shapes, strict=True):
        modeling.resize(family, layer, heads=heads, ffn=ffn)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
            nn.init.normal_(module.bias, std=0.2)
    spec = quantization_spec.plan(model, linears=integer, token_bits=8 if integer else 32, block_size=32)
    operators = export(model, tmp_path, spec)
    # The last layer attends with one query, if it does.
    assert operators["expected"].get("QAttention" if integer else "MultiHeadAttention", 0) == (shapes[0][0] > 0)
    assert operators["expected"].get("Softmax", 0) == (shapes[1][0] > 0)
    assert operators["expected"].items() <= operators["counts"].items()
    assert np.median(errors(simulated_as(spec, model), tmp_path)) < 1e-5


def test_roberta_counts_positions_from_its_padding_index(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = RobertaConfig(**SIZES, max_position_embeddings=66, type_vocab_size=1, pad_token_id=4)
    model = RobertaForSequenceClassification(config).eval()
    export(model, tmp_path, quantization_spec.Spec())
    assert errors(model, tmp_path).max() < 1e-5


def test_padding_has_the_same_part_in_the_scales_of_a_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = text_classification.build(RobertaConfig(**SIZES, max_position_embeddings=40, pad_token_id=1)).eval()
    with torch.no_grad():  # what nobody reads would have the largest of all activations
        model.get_parameter("roberta.embeddings.position_embeddings.weight")[1, 0] = 50.0
    spec = quantization_spec.plan(model, linears=True, token_bits=8, block_size=32)
    export(model, tmp_path, spec)
    assert np.median(errors(simulated_as(spec, model), tmp_path)) < 1e-5


def test_the_file_holds_the_codes_and_little_else(exported: Callable[[str], Exported]) -> None:
    int8 = exported("int8-dynamic")
    graph = onnx.load(int8.folder / onnx_export.MODEL).graph
    stored = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)
    assert stored == pytest.approx(quantization_spec.num_bytes(pruned(), int8.spec), rel=0.05)
    assert {tensor.name for tensor in graph.initializer} <= {name for node in graph.node for name in node.input}


def test_the_same_model_gives_the_same_bytes_and_no_paths(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    export(pruned(), tmp_path, planned("int8-dynamic"))
    content = (tmp_path / onnx_export.MODEL).read_bytes()
    assert content == (exported("int8-dynamic").folder / onnx_export.MODEL).read_bytes()
    assert str(Path.cwd()).encode() not in content
    assert b".py" not in content


def test_exporting_leaves_the_model_as_it_was(exported: Callable[[str], Exported]) -> None:
    exported("int8-dynamic")
    assert all(type(module).__module__.startswith(("torch.", "transformers.")) for module in pruned().modules())
    assert pruned().config._attn_implementation == "sdpa"


def test_latest_opset(tmp_path: Path) -> None:
    spec = planned("int8-dynamic")
    export(pruned(), tmp_path, spec, opset=23)
    opsets = {entry.domain: entry.version for entry in onnx.load(tmp_path / onnx_export.MODEL).opset_import}
    assert opsets[""] == 23
    assert np.median(errors(simulated_as(spec), tmp_path)) < 1e-5


def test_a_shortfall_of_operators_is_an_error_that_names_them() -> None:
    expected = onnx_export.expected_operators(pruned(), quantization_spec.Spec(), first_token_only=False)
    onnx_export.require_operators(Counter(expected), expected)
    with pytest.raises(FeatherweightError, match="MultiHeadAttention: 1 instead of 2"):
        onnx_export.require_operators(Counter(expected | {"MultiHeadAttention": 1}), expected)


def test_block_sizes_the_runtime_cannot_read_are_refused(tmp_path: Path) -> None:
    spec = quantization_spec.Spec(embeddings={"bert.embeddings.word_embeddings": 4}, block_size=8)
    with pytest.raises(FeatherweightError, match="power of two"):
        export(pruned(), tmp_path, spec)


@pytest.mark.parametrize(("floats", "kind"), [("fp16", onnx.TensorProto.FLOAT16), ("bf16", onnx.TensorProto.BFLOAT16)])
def test_halves_are_stored_and_computed(tmp_path: Path, floats: str, kind: int) -> None:
    spec = quantization_spec.plan(pruned(), linears=False, token_bits=8, block_size=16, floats=floats)
    operators = export(pruned(), tmp_path, spec)
    assert operators["expected"] == {"MultiHeadAttention": 1, "Softmax": 1, "LayerNormalization": 5}
    graph = onnx.load(tmp_path / onnx_export.MODEL).graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert onnx.TensorProto.FLOAT not in stored.values()
    assert kind in stored.values()
    assert [output.type.tensor_type.elem_type for output in graph.output] == [onnx.TensorProto.FLOAT]
    if floats == "fp16":  # bf16 is exported for GPUs, and only checked here
        require_finite_without_tokens(tmp_path)
        assert errors(simulated_as(spec), tmp_path).max() < 0.02
