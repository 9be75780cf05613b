"""Decoders on disk, accounted for tensor by tensor, and with fewer layers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import decoders, inspection, locators, modeling
from tasks.ml.problems import causal_lm
from tasks.ml.pruning import surgery
from tests.ml.tiny_decoders import MODELS, VOCABULARY, model_of, tokens

TIED = [name for name in MODELS if name.startswith(("gpt2", "gemma")) or "tied" in name]


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{index}": index for index in range(3, VOCABULARY)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@torch.no_grad()
def says(model: nn.Module, **options: Any) -> torch.Tensor:
    return model(input_ids=tokens(), **options).logits  # type: ignore[no-any-return]


@torch.no_grad()
def says_token_by_token(model: nn.Module) -> torch.Tensor:
    """Logits of the same tokens, each asked for with the cache of those before it."""
    found, cache = [], None
    for token in tokens().unbind(1):
        output = model(input_ids=token[:, None], past_key_values=cache, use_cache=True)
        found.append(output.logits)
        cache = output.past_key_values
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("name", MODELS)
def test_a_decoder_survives_the_disk(name: str, words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = model_of(name)
    modeling.save(model, words, tmp_path)
    again = modeling.load(tmp_path, "causal-lm")
    assert torch.equal(says(again), says(model))
    assert not again.training
    assert modeling.num_parameters(again) == modeling.num_parameters(model)


@pytest.mark.parametrize("name", TIED)
def test_a_tied_table_is_stored_once_and_loaded_as_one(
    name: str, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = model_of(name)
    assert list(modeling.tied(model)) == ["lm_head.weight"]
    modeling.save(model, words, tmp_path)
    stored = load_file(tmp_path / modeling.WEIGHTS)
    assert "lm_head.weight" not in stored
    assert sum(tensor.numel() for tensor in stored.values()) == modeling.num_parameters(model)
    again: Any = modeling.load(tmp_path, "causal-lm")
    assert again.lm_head.weight is again.get_input_embeddings().weight


@pytest.mark.parametrize("name", MODELS)
def test_tensors_are_those_of_the_backbone(name: str) -> None:
    model: Any = model_of(name)
    family = decoders.of_model(model)
    expected = {key: tuple(value.shape) for key, value in model.base_model.state_dict().items()}
    assert family.tensors(family.settings(model.config.to_dict())) == expected


@pytest.fixture
def saved(request: Any, words: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A model as transformers saves it."""
    model_of(request.param).save_pretrained(tmp_path / "base")  # type: ignore[operator]
    words.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def rewrite(base: Path, **changes: torch.Tensor | None) -> None:
    stored = load_file(base / inspection.WEIGHTS) | changes
    kept = {name: tensor for name, tensor in stored.items() if tensor is not None}
    save_file(kept, base / inspection.WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("saved", MODELS, indirect=True)
def test_a_model_as_transformers_saves_it_is_whole_and_loads(saved: Path, request: Any) -> None:
    found = inspection.inspect(locators.locate(str(saved)))
    inspection.require_finite(found)
    model: Any = model_of(request.node.callspec.params["saved"])
    assert found.head_size == decoders.attention(model).head_size
    assert found.head == ([] if modeling.tied(model) else ["lm_head.weight"])
    assert locators.positions(saved) == 64
    assert torch.equal(says(causal_lm.load_base(saved, []).eval()), says(model))


@pytest.mark.parametrize("saved", ["llama", "gpt2"], indirect=True)
def test_what_is_not_the_model_of_its_configuration_is_refused(saved: Path) -> None:
    stored = load_file(saved / inspection.WEIGHTS)
    second = {name: None for name in stored if ".1." in name}
    rewrite(saved, **second)
    with pytest.raises(FeatherweightError, match=r"num_hidden_layers is 3, and 2 layers are stored"):
        inspection.inspect(saved)
    name = next(name for name in stored if "mlp" in name and name.endswith("weight"))
    rewrite(saved, **{one: stored[one] for one in second} | {name: torch.zeros(5, 7)})
    with pytest.raises(FeatherweightError, match=r"is \(5, 7\) in the weights and \(\d+, \d+\) by config.json"):
        inspection.inspect(saved)
    rewrite(saved, **{name: torch.full_like(stored[name], torch.nan)})
    with pytest.raises(FeatherweightError, match=r"is not finite at \(0, 0\)"):
        inspection.require_finite(inspection.inspect(saved))


@pytest.mark.parametrize("saved", ["llama"], indirect=True)
def test_a_head_that_is_not_the_table_is_accounted_for(saved: Path) -> None:
    whole = load_file(saved / inspection.WEIGHTS)["lm_head.weight"]
    rewrite(saved, **{"lm_head.weight": whole[:-1].clone()})
    with pytest.raises(FeatherweightError, match=r"lm_head.weight is \(127, 64\) in the weights and \(128, 64\)"):
        inspection.inspect(saved)
    rewrite(saved, **{"lm_head.weight": None})
    with pytest.raises(FeatherweightError, match=r"lacks 1 tensors, such as lm_head.weight"):
        causal_lm.load_base(saved, [])


@pytest.mark.parametrize("saved", ["gpt2"], indirect=True)
def test_settings_have_the_usual_names(saved: Path) -> None:
    settings = inspection.settings(saved)
    usual = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64,
             "intermediate_size": 256}  # fmt: skip
    assert usual.items() <= settings.items()
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_inner": 80}))
    assert inspection.settings(saved)["intermediate_size"] == 80
    with pytest.raises(FeatherweightError, match=r"by config.json"):
        inspection.inspect(saved)


def skipping_the_second(model: Any) -> nn.Module:
    """The same model, whose second layer passes on what it is given."""
    model = copy.deepcopy(model)
    layer = decoders.of_model(model).layer_list(model)[1]
    layer.forward = lambda hidden_states, *_, **__: hidden_states
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_kept_layers_are_those_of_the_whole_model(name: str, words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model: Any = model_of(name)
    expected = says(skipping_the_second(model), use_cache=False)
    smaller: Any = surgery.keep_layers(model, [0, 2])
    torch.testing.assert_close(says(smaller), expected)
    torch.testing.assert_close(says_token_by_token(smaller), expected, atol=1e-4, rtol=1e-4)
    modeling.save(smaller, words, tmp_path)
    again = modeling.load(tmp_path, "causal-lm")
    torch.testing.assert_close(says(again), expected)
    torch.testing.assert_close(says_token_by_token(again), expected, atol=1e-4, rtol=1e-4)
    assert len(modeling.shapes(again)) == 2
    assert model.config.num_hidden_layers == 3
    torch.testing.assert_close(says_token_by_token(model), says(model), atol=1e-4, rtol=1e-4)


def test_a_kept_layer_keeps_its_window() -> None:
    model: Any = model_of("qwen2, windows")
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    assert model.config.layer_types == kinds
    smaller: Any = surgery.keep_layers(model, [0, 2])
    assert smaller.config.layer_types == ["full_attention", "sliding_attention"]
    assert [decoders.window(smaller, index) for index in range(2)] == [-1, 4]
    turned: Any = surgery.keep_layers(model, [2, 0])
    assert [decoders.window(turned, index) for index in range(2)] == [4, -1]
    assert model.config.layer_types == kinds
