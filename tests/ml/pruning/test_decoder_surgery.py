"""A decoder with fewer heads and FFN channels equals the whole one with those gated to zero, on disk and as a graph."""

from __future__ import annotations

import copy
import json
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
from tasks.ml.data.datasets import Split
from tasks.ml.graph import decoding
from tasks.ml.models import decoders, modeling
from tasks.ml.problems import causal_lm
from tasks.ml.pruning import importance, surgery
from tasks.ml.pruning.importance import LayerImportance
from tasks.ml.quality import learning
from tasks.ml.runtime import sessions
from tests.ml.tiny_decoders import LAYERS, MODELS, model_of, tokens

CUT = [name for name in MODELS if not name.startswith("gpt2")]
KEPT = {"heads": 1, "ffn": 40}
ROWS = [row[:length].tolist() for row, length in zip(tokens(5), (12, 9, 12, 4, 7), strict=True)]
SPLIT = Split([""] * len(ROWS), ROWS, np.array([len(row) for row in ROWS]))


def scores(model: nn.Module, how: str) -> list[LayerImportance]:
    batches = learning.batches(SPLIT, 2, pad_id=0)
    if how == "taylor":
        return importance.taylor(model, batches, causal_lm.loss)
    return importance.activation(model, batches)


@torch.no_grad()
def says(model: nn.Module) -> torch.Tensor:
    return model(input_ids=tokens()).logits  # type: ignore[no-any-return]


def gated(model: nn.Module, found: list[LayerImportance], counts: dict[str, int]) -> nn.Module:
    """The whole model, in which what is missed least puts out nothing."""
    model = copy.deepcopy(model)
    family, heads = decoders.of_model(model), decoders.attention(model)
    for layer, score in zip(family.layer_list(model), found, strict=True):
        per_group = heads.heads // heads.kv_heads * heads.head_size
        for name, values, count, width in (
            (family.attention_output, score.heads, counts["heads"], per_group),
            (family.ffn_down, score.ffn, counts["ffn"], 1),
        ):
            gate = torch.zeros_like(values)
            gate[values.topk(count).indices] = 1.0
            gate = gate.repeat_interleave(width)
            layer.get_submodule(name).register_forward_pre_hook(lambda _, args, gate=gate: (args[0] * gate,))
    return model


def graph_says(model: nn.Module, folder: Path) -> np.ndarray:
    ir.save(decoding.Builder(model, weights={}).build(), folder / "model.onnx")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=[sessions.CPU])
    sizes = decoders.attention(model)
    empty = np.zeros((2, sizes.kv_heads, 0, sizes.head_size), dtype=np.float32)
    feed = {name: empty for index in range(LAYERS) for name in decoding.past(index)}
    ids = tokens().numpy()
    return np.asarray(session.run(["logits"], feed | {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0])


@pytest.mark.parametrize("how", ["taylor", "activation"])
@pytest.mark.parametrize("name", CUT)
def test_a_cut_decoder_equals_the_gated_one(name: str, how: str, tmp_path: Path) -> None:
    model = model_of(name)
    found = scores(model, how)
    assert [(len(one.heads), len(one.ffn)) for one in found] == [(2, 96)] * LAYERS
    assert all((one.heads > 0).all() and (one.ffn > 0).all() for one in found)
    smaller: Any = surgery.keep_counts(model, found, [KEPT] * LAYERS)
    assert modeling.shapes(smaller) == [KEPT] * LAYERS
    assert modeling.shapes(model) == [{"heads": 2, "ffn": 96}] * LAYERS
    expected = says(gated(model, found, KEPT))
    torch.testing.assert_close(says(smaller), expected, atol=1e-4, rtol=1e-4)
    # As it stands in memory already, its configuration is its own.
    np.testing.assert_allclose(graph_says(smaller, tmp_path), expected.numpy(), atol=1e-3)
    modeling.save_model(smaller, tmp_path)
    size = decoders.attention(model).head_size
    said = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": size, "intermediate_size": 40}
    assert said.items() <= json.loads((tmp_path / "config.json").read_text()).items()
    again: Any = modeling.load(tmp_path, "causal-lm")
    torch.testing.assert_close(says(again), expected, atol=1e-4, rtol=1e-4)
    assert again.config.num_key_value_heads == 1
    assert model.config.num_key_value_heads == 2  # type: ignore[union-attr]
    np.testing.assert_allclose(graph_says(again, tmp_path), expected.numpy(), atol=1e-3)


def test_keeping_everything_changes_nothing() -> None:
    model = model_of("qwen3")
    same = surgery.keep_counts(model, scores(model, "activation"), modeling.shapes(model))
    assert torch.equal(says(same), says(model))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_heads_need_not_divide_the_hidden_size(kind: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
             "num_key_value_heads": 4, "intermediate_size": 32}  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    found = scores(model, "activation")
    smaller = surgery.keep_counts(model, found, [{"heads": 3, "ffn": 32}] * 2)
    expected = says(smaller)
    modeling.save_model(smaller, tmp_path)
    assert torch.equal(says(modeling.load(tmp_path, "causal-lm")), expected)


def test_a_cut_decoder_can_be_cut_again(tmp_path: Path) -> None:
    model = model_of("llama, tied")
    once = surgery.keep_counts(model, scores(model, "activation"), [{"heads": 2, "ffn": 60}] * LAYERS)
    twice = surgery.keep_counts(surgery.keep_layers(once, [0, 2]), scores(once, "activation")[::2], [KEPT] * 2)
    modeling.save_model(twice, tmp_path)
    assert torch.equal(says(modeling.load(tmp_path, "causal-lm")), says(twice))


def test_of_the_importance_of_a_row_its_company_is_no_part() -> None:
    model = model_of("llama")
    found, alone = (importance.activation(model, learning.batches(SPLIT, size, pad_id=0)) for size in (len(ROWS), 1))
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one.heads, other.heads)
        torch.testing.assert_close(one.ffn, other.ffn)


def test_layers_of_one_shape_are_asked_for() -> None:
    model = model_of("llama")
    found = scores(model, "activation")
    for odd in ({"heads": 2, "ffn": 40}, {"heads": 1, "ffn": 41}):
        with pytest.raises(FeatherweightError, match=r"pruning: .* the same in all layers of a llama"):
            surgery.keep_counts(model, found, [KEPT, odd, KEPT])
    for none in ({"heads": 0, "ffn": 40}, {"heads": 1, "ffn": 0}):
        with pytest.raises(FeatherweightError, match=r"pruning: .* at least one"):
            surgery.keep_counts(model, found, [none] * LAYERS)


def test_heads_and_channels_of_gpt2_are_not_cut() -> None:
    model = model_of("gpt2")
    whole = modeling.shapes(model)
    found = [LayerImportance(torch.ones(4), torch.ones(256))] * LAYERS
    assert torch.equal(says(surgery.keep_counts(model, found, whole)), says(model))
    for part in ({"heads": 2}, {"ffn": 64}):
        with pytest.raises(FeatherweightError, match=r"pruning: heads and channels of a gpt2 cannot be cut"):
            surgery.keep_counts(model, found, [one | part for one in whole])
    for how in ("taylor", "activation"):
        with pytest.raises(FeatherweightError, match=r"pruning: heads and channels of a gpt2 cannot be cut"):
            scores(model, how)
