"""Tiny decoders on disk: a torch bundle, and the folder with the graph of the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from tasks.ml.graph import decoding, export
from tasks.ml.models import decoders, modeling
from tasks.ml.quantization import blocks
from tasks.ml.quantization.blocks import Blocks, Format
from tests.ml.tiny_decoders import VOCABULARY, model_of

PROBLEM = "causal-lm"


def tokenizer() -> Any:
    """A word for every token."""
    words = ["<pad>", "<s>", "</s>", *(f"w{index}" for index in range(3, VOCABULARY))]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@torch.no_grad()
def rounded(model: nn.Module, form: Format) -> dict[str, Blocks]:
    """Blocks of all linear layers; in place, the model gets the weights that they stand for."""
    found = {}
    for name, weight, _ in decoders.of_model(model).projections(model):
        found[name] = blocks.clipped(weight, form)
        weight.copy_(found[name].dense())
    return found


def write(
    folder: Path,
    name: str = "llama",
    *,
    form: Format | None = None,
    level: int = decoding.EXACT,
    altered: Callable[[nn.Module], None] = lambda model: None,
    **how: Any,
) -> tuple[Path, Path]:
    """Writes a tiny decoder of ``MODELS``, as a torch bundle and as a graph.

    Args:
        form: blocks of the linear layers; ``None`` leaves them in fp32.
        level: accuracy level of all products in blocks.
        altered: changes the model before the graph is made of it, and not the bundle.
        how: of ``decoding.Builder``.
    """
    torch_folder, onnx_folder = folder / "torch", folder / "onnx"
    model = model_of(name)
    weights = rounded(model, form) if form else {}
    for directory in (torch_folder, onnx_folder):
        directory.mkdir(parents=True)
    modeling.save(model, tokenizer(), torch_folder)
    altered(model)
    graph = decoding.Builder(model, weights=weights, levels=dict.fromkeys(weights, level), **how).build()
    ir.save(graph, onnx_folder / export.MODEL)
    export.copy_companions(torch_folder, onnx_folder, spec=export.read_spec(torch_folder), operators={})
    return torch_folder, onnx_folder
