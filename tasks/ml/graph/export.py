"""From a PyTorch model and its quantization spec to an ONNX file. B = rows, S = tokens, C = classes."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import logging
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.graph import fused_attention, fusion, lowering
from tasks.ml.models import families, first_token
from tasks.ml.models.quantization_spec import FLOATS, INT4, INT8_DYNAMIC, INT8_STATIC, SPEC_FILE, Spec

MODEL = "model.onnx"
EXTERNAL_DATA_BYTES = 1_000_000_000
"""Weights beyond this go to ``model.onnx.data``: a protobuf message ends at 2 GB."""
ATTENTION = ("MultiHeadAttention", "QAttention", "GroupQueryAttention")
INTEGER_MATMUL = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "QAttention")
OPERATORS = "operators.json"
COMPANIONS = ("config.json", "tokenizer.json", "tokenizer_config.json")
TEMPLATE = "chat_template.jinja"
"""Of conversations, where the tokenizer has one."""

Operators = dict[str, dict[str, int]]
"""``counts``: operators of the graph by name; ``expected``: those that the architecture and the spec should give."""


class _Positional(nn.Module):
    """Gives a transformers model the tensor signature of its ONNX file."""

    def __init__(self, model: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, tuple(inputs), tuple(outputs)

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.model(**dict(zip(self.inputs, values, strict=True)))
        return tuple(getattr(result, name).float() for name in self.outputs)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Mutes the exporter's notes to its own developers; its errors still come as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keeps the garbage collector from looking again and again through the objects of a trace, which all stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def trace(
    module: nn.Module,
    model: nn.Module,
    example: tuple[torch.Tensor, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
) -> ir.Model:
    """The graph of a module, called with ``*values``, for any batch and length; attention is fused in the ``model``.

    Args:
        example: of the inputs, each (B, S, …).
    """
    with uncollected(), quietly(), fused_attention.emitted(model), torch.no_grad():
        program: Any = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=(tuple({0: "batch", 1: "sequence"} for _ in inputs),),
            verbose=False,
        )
    return program.model


def export_onnx(
    model: nn.Module,
    directory: Path,
    *,
    spec: Spec,
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
    first_token_only: bool,
) -> Operators:
    """Writes ``model.onnx`` with inputs int64 (B, S) and fp32 outputs, lowered with the spec.

    Args:
        first_token_only: whether the outputs are made of the last layer's first token, so that the rest can go.

    Raises:
        FeatherweightError: the graph lacks operators that the architecture and the spec should give.
    """
    expected = expected_operators(model, spec, first_token_only=first_token_only)
    lowered = copy.deepcopy(model).eval()
    lowering.lower(lowered, spec)
    lowered.to(FLOATS[spec.floats])  # integer codes stay as they are
    if first_token_only:
        first_token.narrow(lowered)
    example = tuple(torch.ones((2, 8), dtype=torch.int64) for _ in inputs)
    module = _Positional(lowered, inputs, outputs)
    graph = trace(module, lowered, example, inputs=inputs, outputs=outputs, opset=opset)
    fusion.fuse(graph, for_cpu=bool(spec.linears))
    operators = write(graph, directory, expected=expected)
    onnx.checker.check_model(str(directory / MODEL))
    return operators


def write(graph: ir.Model, directory: Path, *, expected: dict[str, int]) -> Operators:
    """Writes ``model.onnx``.

    Raises:
        FeatherweightError: the graph lacks operators that are expected.
    """
    counts = Counter(node.op_type for node in graph.graph)
    require_operators(counts, expected)
    graph.producer_name, graph.producer_version = "featherweight", None
    path = directory / MODEL
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    ir.save(graph, path, external_data=f"{MODEL}.data" if size > EXTERNAL_DATA_BYTES else None)
    return {"counts": dict(sorted(counts.items())), "expected": expected}


def read_spec(directory: Path) -> Spec:
    """Reads the quantization spec of a torch bundle; an empty one if it has none."""
    path = directory / SPEC_FILE
    return Spec.from_json(path.read_text(encoding="utf-8")) if path.is_file() else Spec()


def copy_companions(source: Path, directory: Path, *, spec: Spec, operators: Operators) -> None:
    """Puts beside ``model.onnx`` what serving, registering and a reader need of the torch bundle."""
    for name in (*COMPANIONS, *([TEMPLATE] if (source / TEMPLATE).is_file() else [])):
        shutil.copyfile(source / name, directory / name)
    (directory / SPEC_FILE).write_text(spec.to_json(), encoding="utf-8")
    (directory / OPERATORS).write_text(json.dumps(operators, indent=1), encoding="utf-8")


def num_bytes(directory: Path) -> int:
    """Size of ``model.onnx`` and its external data."""
    return sum(path.stat().st_size for path in directory.glob(f"{MODEL}*"))


def expected_operators(model: nn.Module, spec: Spec, *, first_token_only: bool) -> dict[str, int]:
    """Counts the fused and quantized operators that an architecture gives under a spec, from its modules.

    Where only the first token is computed, the last layer's attention is ``first_token.FirstQuery``: its query is a
    linear layer like others, and its key and value are none.
    """
    family = families.of_model(model)
    attentive = [index for index, layer in enumerate(family.layer_list(model)) if family.num_heads(layer)]
    prefix = f"{model.base_model_prefix}.{family.layers}"
    schemes = Counter(how.scheme for how in spec.linears.values())

    def scheme(index: int, part: str) -> str:
        name = f"{prefix}.{index}.{part}"
        return spec.linears[name].scheme if name in spec.linears else ""

    last, absorbed = len(family.layer_list(model)) - 1, Counter[str]()
    inner = [scheme(last, part) for part in (family.key, family.value)]
    if first_token_only and last in attentive and INT4 not in inner:
        attentive.remove(last)
        absorbed.update(inner)
    packed: Counter[str] = Counter()
    for index in attentive:
        among = {scheme(index, part) for part in (family.query, family.key, family.value)}
        if len(among) == 1 and among <= {INT8_DYNAMIC, INT8_STATIC}:
            packed[among.pop()] += 1
    norms = sum(isinstance(module, nn.LayerNorm) for module in model.modules())
    four_bits = sum(bits == 4 for bits in spec.embeddings.values())
    alone = {how: schemes[how] - absorbed[how] - 3 * packed[how] for how in schemes}
    expected = {
        "QAttention": packed.total(),
        "MultiHeadAttention": len(attentive) - packed.total(),
        "Softmax": absorbed.total() // 2,
        "DynamicQuantizeMatMul": alone.get(INT8_DYNAMIC, 0),
        "MatMulIntegerToFloat": alone.get(INT8_STATIC, 0),
        "MatMulNBits": schemes[INT4],
        "LayerNormalization": norms,
        "GatherBlockQuantized": four_bits,
    }
    return {operator: count for operator, count in expected.items() if count}


def require_operators(counts: Counter[str], expected: dict[str, int]) -> None:
    """Raises ``FeatherweightError`` if an expected operator is missing: a slow graph must not pass for a fast one."""
    short = [f"{name}: {counts[name]} instead of {n}" for name, n in expected.items() if counts[name] != n]
    if short:
        raise FeatherweightError(
            f"export: the graph lacks fused or quantized operators ({'; '.join(short)}); "
            "the architecture or the transformers version is not one that this export knows"
        )
