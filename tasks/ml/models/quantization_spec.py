"""What of a model is quantized and how: plain JSON beside its weights, ``quantization.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from pydantic import TypeAdapter
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import families

SPEC_FILE = "quantization.json"
SPEC_FORMAT = 3
INT8_DYNAMIC, INT8_STATIC, INT4 = "int8-dynamic", "int8-static", "int4"
FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""What a graph computes in where it does not compute in integers."""


@dataclass(frozen=True)
class LinearScheme:
    """How one linear layer is quantized.

    Attributes:
        scheme: ``int8-dynamic``: int8 weights per output channel, the input scaled per tensor as it comes;
            ``int8-static``: the same, with the input's scale and zero point in the spec; ``int4``: 4-bit weights in
            blocks, the input int8 in the same blocks.
        scale: of the input, ``int8-static`` only.
        zero_point: the code of zero in the input, 0…255, ``int8-static`` only.
        smoothing: divisor of each input channel (I,), which the weight's columns are multiplied by; see ``smoothing``.
    """

    scheme: str = INT8_DYNAMIC
    scale: float = 0.0
    zero_point: int = 0
    smoothing: tuple[float, ...] = ()


@dataclass(frozen=True)
class Spec:
    """What to quantize and how. Scales of weights are not in it: they follow from the weights by ``weight_scale``.

    Attributes:
        linears: qualified name of each linear layer that becomes integer → how. Those that are not named stay floats.
        embeddings: qualified name of each embedding table → bits (8: one scale per row; 4: one per block of a row).
        block_size: columns that share a scale where codes have 4 bits.
        floats: ``fp32``, ``fp16`` or ``bf16``: what is stored and computed of everything else.
    """

    linears: Mapping[str, LinearScheme] = field(default_factory=dict)
    embeddings: Mapping[str, int] = field(default_factory=dict)
    block_size: int = 32
    floats: str = "fp32"

    def to_json(self) -> str:
        return json.dumps({"format": SPEC_FORMAT, **asdict(self)}, indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Spec:
        values = json.loads(text)
        if values.pop("format") != SPEC_FORMAT:
            raise ValueError(f"{SPEC_FILE}: format must be {SPEC_FORMAT}")
        return TypeAdapter(Spec).validate_python(values)

    def of(self, names: Sequence[str]) -> Spec:
        """The same with these linear layers only."""
        return replace(self, linears={name: how for name, how in self.linears.items() if name in names})


def plan(
    model: nn.Module,
    *,
    linears: bool,
    token_bits: int,
    block_size: int,
    scheme: str = INT8_DYNAMIC,
    floats: str = "fp32",
) -> Spec:
    """Writes the spec of a model: all linear layers of its backbone, its token and its position table.

    Args:
        linears: whether linear layers become integer, by ``scheme``.
        token_bits: 8 or 4 for the token table, 32 to leave the tables alone. Positions are few, so they take 8 bits.

    Raises:
        FeatherweightError: the table's width is not a multiple of ``block_size``, or the runtime has no such blocks.
    """
    family = families.of_model(model)
    prefix = model.base_model_prefix
    width = family.token_embedding(model).embedding_dim
    if token_bits == 4 and width % block_size:
        raise FeatherweightError(
            f"quantization: block_size {block_size} does not divide the {width} columns of the token table"
        )
    if linears and scheme == INT4 and (block_size < 16 or block_size & (block_size - 1)):
        raise FeatherweightError(f"quantization: block_size {block_size} is not a power of two from 16 on")
    tables = {family.token_table(model): token_bits, f"{prefix}.{family.position_embeddings}": 8}
    return Spec(
        linears={name: LinearScheme(scheme) for name in family.linears(model)} if linears else {},
        embeddings=tables if token_bits < 32 else {},
        block_size=block_size,
        floats=floats,
    )


def num_bytes(model: nn.Module, spec: Spec) -> int:
    """Bytes of the weights as the spec stores them: integer codes, their scales, and floats for the rest."""
    width = FLOATS[spec.floats].itemsize
    total = 0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        for parameter in module.parameters(recurse=False):
            rows, count = len(parameter), parameter.numel()
            how = spec.linears.get(name) if parameter is weight else None
            bits = spec.embeddings.get(name) if parameter is weight else None
            if how is not None:
                total += 4 * len(how.smoothing)
                bits = 4 if how.scheme == INT4 else 8
            if bits == 8:
                total += count + width * rows
            elif bits == 4:
                blocks = rows * -(-parameter.shape[1] // spec.block_size)
                total += blocks * (spec.block_size // 2 + width)
            else:
                total += width * count
    return total
