"""Tiny decoders on disk: a torch bundle, the folder with the graph of the same model, and texts for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from tasks.ml.data import datasets
from tasks.ml.data.splitting import Division, Row, key
from tasks.ml.data.tables import Table
from tasks.ml.graph import decoding, export
from tasks.ml.models import decoders, modeling
from tasks.ml.problem import problem_of
from tasks.ml.quantization import block_files, blocks
from tasks.ml.quantization.blocks import Blocks, Format
from tests.ml.tiny_decoders import VOCABULARY, model_of

PROBLEM = "causal-lm"
EXACT = Format(4, 32, exact_inputs=True)


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
    **how: Any,
) -> tuple[Path, Path]:
    """Writes a tiny decoder of ``MODELS``, as a torch bundle and as a graph.

    Args:
        form: blocks of the linear layers; ``None`` leaves them in fp32.
        how: of ``decoding.Builder``.
    """
    torch_folder, onnx_folder = folder / "torch", folder / "onnx"
    model = model_of(name)
    weights = rounded(model, form) if form else {}
    for directory in (torch_folder, onnx_folder):
        directory.mkdir(parents=True)
    modeling.save(model, tokenizer(), torch_folder)
    if weights:
        block_files.save(torch_folder, weights)
    graph = decoding.Builder(model, weights=weights, **how).build()
    ir.save(graph, onnx_folder / export.MODEL)
    export.copy_companions(torch_folder, onnx_folder, spec=export.read_spec(torch_folder), operators={})
    return torch_folder, onnx_folder


def write_data(directory: Path, texts: Mapping[str, Sequence[str]], encoder: Any, *, max_length: int) -> None:
    """Writes a dataset of the texts of each split into a new directory."""
    directory.mkdir(parents=True, exist_ok=True)
    tables = {name: Table(name, "row", range(len(rows)), list(rows), [], "") for name, rows in texts.items()}
    splits = {name: [Row(text, str(len(text.encode())), key(text)) for text in rows] for name, rows in texts.items()}
    division = Division(problem_of(PROBLEM).targets(tables), splits=splits | {"unlabeled": []}, dropped={})
    datasets.write(directory, division, encoder, max_length=max_length)


def scale(graph: Path, name: str, factor: float, part: slice = slice(None)) -> None:
    """Multiplies a part of a constant of a graph, in place."""
    model = onnx.load(graph / export.MODEL)
    kept = next(one for one in model.graph.initializer if one.name == name)
    values = onnx.numpy_helper.to_array(kept).copy()
    values[part] *= np.float32(factor)
    kept.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, graph / export.MODEL)
