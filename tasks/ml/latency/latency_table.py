"""What the parts of a model cost on this machine: milliseconds of ONNX Runtime by heads and FFN width of a layer.

The table of ZipLM (Kurtic, Frantar & Alistarh 2023, arXiv:2302.04089, section 3.2): the time of a model is that of its
blocks added up. Each block is lowered and fused by the code that exports models, so that what is timed is what will be
served. B = rows, S = tokens, H = hidden.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.utils import Extractor
from pydantic import TypeAdapter
from torch import nn

from tasks.ml import digests, machine
from tasks.ml.graph import export, fusion, lowering
from tasks.ml.models import factorization, families, first_token, modeling, quantization_spec
from tasks.ml.problem import problem_of
from tasks.ml.pruning import cuts
from tasks.ml.runtime import timing

TOKENS = 1000
"""Rows of the token table in timed graphs."""
OPSET = 20


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one layer: what is always there, and what so many heads and FFN channels add to it."""

    base: float
    """Norms and residuals: what a layer costs that lost both blocks."""
    heads: Mapping[int, float]
    """Zero heads add nothing."""
    ffn: Mapping[int, float]

    def predict(self, shape: Mapping[str, int]) -> float:
        """Milliseconds of a layer of this shape; between two measured widths the time is interpolated."""
        return self.base + sum(
            float(np.interp(shape[kind], list(times), list(times.values())))
            for kind, times in (("heads", self.heads), ("ffn", self.ffn))
        )


@dataclass(frozen=True)
class LatencyTable:
    """Times of the parts of a model that has these layers."""

    rest: float
    """Embeddings, pooler and head."""
    inner: LayerTimes
    last: LayerTimes
    """Of the last layer, which may compute one token only."""

    def layer(self, index: int, count: int) -> LayerTimes:
        return self.last if index == count - 1 else self.inner

    def predict(self, shapes: Sequence[Mapping[str, int]]) -> float:
        """Milliseconds of a model whose layers have these shapes (``modeling.shapes``)."""
        layers = (self.layer(index, len(shapes)).predict(shape) for index, shape in enumerate(shapes))
        return self.rest + sum(layers)

    def to_json(self) -> str:
        return json.dumps({"format": 1, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        return TypeAdapter(cls).validate_json(text)


@dataclass(frozen=True)
class _Variant:
    """A layer that is timed: all but one of its blocks are gone."""

    last: bool
    heads: int
    ffn: int


def _variants(*, heads: int, ffn: int) -> list[_Variant]:
    found = []
    for last, counts, widths in ((False, 16, cuts.WIDTHS), (True, cuts.SPARSE_WIDTHS, cuts.SPARSE_WIDTHS)):
        found.append(_Variant(last, 0, 0))
        found += [_Variant(last, count, 0) for count in cuts.evenly(heads, counts)]
        found += [_Variant(last, 0, width) for width in cuts.evenly(ffn, widths)]
    return found


class _Branches(nn.Module):
    """Side by side: the model without layers, next to nothing, and every variant of a layer."""

    def __init__(self, model: nn.Module, layers: nn.ModuleList) -> None:
        super().__init__()
        self.model, self.layers = model, layers

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ids, mask, hidden = values
        outputs = [layer(hidden, mask) for layer in self.layers]
        return self.model(input_ids=ids, attention_mask=mask).logits, hidden * 2.0, *outputs


def _stripped(like: nn.Module, problem: str, variants: Sequence[_Variant]) -> nn.Module:
    """A model of the same sizes as ``like``, its token table's rank included, with one layer per variant and random
    weights."""
    config: Any = copy.deepcopy(like.config)
    config.num_hidden_layers, config.vocab_size, config.intermediate_size = len(variants), TOKENS, 1
    config.pad_token_id = 0
    family = families.of(config.model_type)
    with modeling.Undrawn():
        model = problem_of(problem).build(config).eval()
    if rank := factorization.rank(like):
        factorization.shape(model, rank)
    for layer, variant in zip(family.layer_list(model), variants, strict=True):
        modeling.resize(family, layer, heads=variant.heads, ffn=variant.ffn)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05, generator=generator)
    return model


def _export(model: nn.Module, variants: Sequence[_Variant], *, integer: bool, path: Path) -> None:
    """Writes one graph with an output per branch, lowered and fused as exported models are."""
    family = families.of_model(model)
    spec = quantization_spec.plan(model, linears=integer, token_bits=8 if integer else 32, block_size=32)
    lowering.lower(model, spec)
    layers = family.layer_list(model)
    for layer, variant in zip(layers, variants, strict=True):
        if variant.last:
            first_token.narrow_layer(family, layer)
    family.backbone(model).set_submodule(family.layers, nn.ModuleList())
    hidden = family.backbone(model).config.hidden_size  # type: ignore[union-attr]
    example = (torch.ones((2, 8), dtype=torch.int64), torch.ones((2, 8), dtype=torch.int32), torch.ones((2, 8, hidden)))  # type: ignore[arg-type]
    names = [f"branch{index}" for index in range(len(variants) + 2)]
    graph = export.trace(_Branches(model, layers), model, example, inputs=INPUTS, outputs=names, opset=OPSET)
    fusion.fuse(graph, for_cpu=integer)
    ir.save(graph, path)


INPUTS = ("ids", "mask", "hidden")


def measure(
    like: nn.Module,
    problem: str,
    *,
    batch: int,
    length: int,
    integer: bool,
    heads: int,
    ffn: int,
    threads: int = 0,
) -> LatencyTable:
    """Times the parts of models like this one on the CPU; takes some seconds.

    Args:
        batch, length: rows and tokens per row of a typical request (B, S).
        integer: whether the linear layers will be served as dynamic int8, or else in fp32.
        heads, ffn: the largest numbers of heads and FFN channels of a layer.
        threads: 0 takes all cores this process may use.
    """
    first_only = problem_of(problem).FIRST_TOKEN_ONLY
    variants = [one for one in _variants(heads=heads, ffn=ffn) if first_only or not one.last]
    model = _stripped(like, problem, variants)
    hidden = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
    with tempfile.TemporaryDirectory(prefix="featherweight-latency-") as folder:
        whole = Path(folder) / export.MODEL
        _export(model, variants, integer=integer, path=whole)
        extractor = Extractor(onnx.load(whole))
        files = []
        for index in range(len(variants) + 2):
            part = extractor.extract_model(list(INPUTS), [f"branch{index}"])
            files.append(Path(folder) / f"{index}.onnx")
            onnx.save(part, files[-1])
        feeds = {
            "ids": {"shape": [batch, length], "dtype": "int64", "high": TOKENS},
            "mask": {"shape": [batch, length], "dtype": "int32", "high": 1, "low": 1},
            "hidden": {"shape": [batch, length, hidden], "dtype": "float32", "high": 3, "low": -1},
        }
        rest, nothing, *times = timing.graphs(files, feeds, threads=threads or machine.num_cores())

    def layer_times(last: bool) -> LayerTimes:
        mine = {(one.heads, one.ffn): ms for one, ms in zip(variants, times, strict=True) if one.last is last}
        base = mine.pop((0, 0))

        def added(kind: int) -> dict[int, float]:
            found = {units[kind]: max(0.0, ms - base) for units, ms in mine.items() if units[kind]}
            return {0: 0.0, **dict(sorted(found.items()))}

        return LayerTimes(max(0.0, base - nothing), added(0), added(1))

    inner = layer_times(last=False)
    return LatencyTable(rest, inner, layer_times(last=True) if first_only else inner)


def identity(like: nn.Module, problem: str, **arguments: Any) -> str:
    """Digest of what is timed and where: machine, shapes and request; not of code and libraries.

    Args:
        arguments: of ``measure``.
    """
    config: Any = like.config
    shape = {name: getattr(config, name) for name in ("model_type", "hidden_size", "num_attention_heads", "hidden_act")}
    shape["embedding_rank"] = factorization.rank(like)
    about = {"machine": machine.identity(), "problem": problem, "shape": shape, "arguments": arguments}
    return digests.of_value(about)
