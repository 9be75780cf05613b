from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.contracts.base import FeatherweightError
from tasks.ml.graph import decoding
from tasks.ml.models import decoders
from tasks.ml.models.quantization_spec import Spec
from tasks.ml.quantization import blocks, cache_scales, simulation
from tasks.ml.quantization.blocks import Format
from tasks.ml.runtime import sessions
from tests.ml.decoder_bundles import EXACT, rounded
from tests.ml.tiny_decoders import LAYERS, MODELS, VOCABULARY, model_of, tokens


class Decoding:
    """A graph that is asked token by token."""

    def __init__(self, graph: ir.Model, model: nn.Module, folder: Path) -> None:
        ir.save(graph, folder / "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=[sessions.CPU])
        self.attention = decoders.attention(model)
        stored = {one.name: one.type for one in self.session.get_inputs()}["past_key_values.0.key"]
        self.cache_type = np.int8 if stored == "tensor(int8)" else np.float32

    def __call__(
        self, ids: torch.Tensor, cached: dict[str, np.ndarray] | None = None, *, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, Any]:
        """Logits of new tokens (B, S), and the cache with them."""
        empty = np.zeros((len(ids), self.attention.kv_heads, 0, self.attention.head_size), dtype=self.cache_type)
        names = [name for index in range(LAYERS) for name in decoding.past(index)]
        cached = cached or dict.fromkeys(names, empty)
        total = ids.shape[1] + cached[names[0]].shape[2]
        feed = {"input_ids": ids.numpy()}
        feed["attention_mask"] = np.ones((len(ids), total), dtype=np.int64) if mask is None else mask
        logits, *found = self.session.run(None, feed | cached)
        return logits, dict(zip(names, found, strict=True))


@torch.no_grad()
def agrees(decoding: Decoding, model: nn.Module, tolerance: float = 1e-4) -> None:
    """A text, half of it at once and then token by token, against the model on the whole of it."""
    ids = tokens()
    wanted = model(input_ids=ids).logits.numpy()
    found, cache = decoding(ids[:, :6])
    np.testing.assert_allclose(found, wanted[:, :6], atol=tolerance)
    for place in range(6, 12):
        found, cache = decoding(ids[:, place : place + 1], cache)
        np.testing.assert_allclose(found, wanted[:, place : place + 1], atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_says_token_by_token_what_the_model_says_of_the_whole(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    agrees(Decoding(decoding.Builder(model, weights={}).build(), model, tmp_path), model)


@pytest.mark.parametrize("name", MODELS)
def test_in_blocks_it_says_what_the_rounded_model_says(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    weights = rounded(model, EXACT)
    graph = decoding.Builder(model, weights=weights).build()
    agrees(Decoding(graph, model, tmp_path), model)
    counts = Counter(node.op_type for node in graph.graph)
    assert counts["GroupQueryAttention"] == LAYERS
    assert counts["MatMulNBits"] == 4 * LAYERS


def test_a_prompt_in_parts_gives_the_cache_of_the_whole(tmp_path: Path) -> None:
    model = model_of("llama")
    asked = Decoding(decoding.Builder(model, weights={}).build(), model, tmp_path)
    _, whole = asked(tokens(1))
    cache = None
    for start in range(0, 12, 5):  # the operator reads several new tokens after others of one text only
        _, cache = asked(tokens(1)[:, start : start + 5], cache)
    for name, values in whole.items():
        np.testing.assert_allclose(cache[name], values, atol=1e-5)


def test_a_tied_head_and_the_table_are_the_same_codes(tmp_path: Path) -> None:
    model = model_of("llama, tied")
    weights = rounded(model, EXACT)
    head = blocks.clipped(decoders.of_model(model).head(model), EXACT)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(head.dense())  # type: ignore[operator]
    graph = decoding.Builder(model, weights=weights, head=head).build()
    agrees(Decoding(graph, model, tmp_path), model)
    stored = graph.graph.initializers
    assert {name for name in stored if name.startswith(("head", "table"))} == {
        "head.codes", "head.row", "head.scales", "head.zeros",
    }  # fmt: skip
    assert stored["head.codes"].const_value.nbytes == VOCABULARY * 64 // 2  # type: ignore[union-attr]


@pytest.mark.parametrize("name", MODELS)
def test_inputs_in_int8_are_as_they_are_simulated(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    weights = rounded(model, Format(4, 32))
    asked = Decoding(decoding.Builder(model, weights=weights).build(), model, tmp_path)
    found, _ = asked(tokens())
    errors = []
    for codes in ({}, weights):
        simulation.simulate(model, Spec(), codes)
        with torch.no_grad():
            errors.append(np.median(np.abs(model(input_ids=tokens()).logits.numpy() - found)))
    assert errors[1] < errors[0] / 10


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_a_cache_in_int8_is_near(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    scales = cache_scales.of_rows(model, [tokens()])
    asked = Decoding(decoding.Builder(model, weights={}, cache_scales=scales).build(), model, tmp_path)
    with torch.no_grad():
        wanted = model(input_ids=tokens(1)).logits.numpy()
    _, cache = asked(tokens(1)[:, :6])
    found, cache = asked(tokens(1)[:, 6:], cache)
    assert all(one.dtype == np.int8 for one in cache.values())
    assert 1e-5 < np.abs(found - wanted[:, 6:]).max() < 0.03 * np.abs(wanted).max()


def test_a_batch_is_padded_on_the_right(tmp_path: Path) -> None:
    model = model_of("qwen2, windows")
    asked = Decoding(decoding.Builder(model, weights={}).build(), model, tmp_path)
    mask = np.ones((2, 12), dtype=np.int64)
    mask[1, 7:] = 0
    found, _ = asked(tokens(), mask=mask)
    with torch.no_grad():
        alone = model(input_ids=tokens()[1:, :7]).logits.numpy()
    np.testing.assert_allclose(found[1:, :7], alone, atol=1e-4)


def test_a_product_is_in_blocks_as_a_whole() -> None:
    model = model_of("llama")
    weights = rounded(model, Format(4, 32))
    with pytest.raises(FeatherweightError, match=r"only some are in blocks"):
        decoding.Builder(model, weights={name: one for name, one in weights.items() if "v_proj" not in name}).build()
    mixed = {name: blocks.nearest(one.dense(), Format(2, 32)) if "up" in name else one for name, one in weights.items()}
    with pytest.raises(FeatherweightError, match=r"gate_proj.*different formats"):
        decoding.Builder(model, weights=mixed).build()


def test_other_architectures_are_refused() -> None:
    config = AutoConfig.for_model("opt", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16)
    with pytest.raises(FeatherweightError, match=r"'opt' is no decoder that is supported: llama, mistral"):
        decoders.of_model(AutoModelForCausalLM.from_config(config))
