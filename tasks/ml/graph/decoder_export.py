"""From a decoder and its weights in blocks to the folder that onnxruntime-genai runs.

The operators are counted against what the architecture and the blocks should give, as an encoder's are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.graph import decoding, genai
from tasks.ml.models import decoders
from tasks.ml.quantization.blocks import HEAD, TABLE, Blocks

ATTENTION = "GroupQueryAttention"


def build(model: nn.Module, weights: Mapping[str, Blocks]) -> ir.Model:
    """The graph of a decoder; what is not among the blocks stays in fp32."""
    named = dict(weights)
    head, table = named.pop(HEAD, None), named.pop(TABLE, None)
    return decoding.Builder(model, weights=named, head=head, table=table).build()


def expected_operators(model: nn.Module, weights: Mapping[str, Blocks]) -> dict[str, int]:
    """Counts the fused and quantized operators that an architecture gives, from its description."""
    family = decoders.of_model(model)
    layers, groups = len(family.layer_list(model)), family.groups()
    expected = {ATTENTION: layers}
    products = layers * len(groups) + 1
    packed = layers * len(groups) * any(name not in (HEAD, TABLE) for name in weights) + (HEAD in weights)
    expected |= {"MatMulNBits": packed, "FusedMatMul": products - packed}
    expected["GatherBlockQuantized"] = int(bool({HEAD, TABLE} & weights.keys()))
    kind = "Skip{}LayerNormalization".format("" if family.is_transposed else "Simplified")
    expected[kind] = 2 * layers
    return {operator: count for operator, count in expected.items() if count}


def describe(model: nn.Module, tokenizer: Any, directory: Path, *, graph: str) -> None:
    """Writes what onnxruntime-genai has to know of the graph in a folder."""
    config: Any = model.config
    genai.write(
        directory,
        genai.describe(
            model,
            graph=graph,
            ends=ends(config, tokenizer),
            begins=tokenizer.bos_token_id,
            pads=tokenizer.pad_token_id,
            length=config.max_position_embeddings,
        ),
    )


def ends(config: Any, tokenizer: Any) -> list[int]:
    """Tokens after which nothing is said: the model's and the tokenizer's.

    Raises:
        FeatherweightError: neither names one.
    """
    own = config.eos_token_id
    found = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
    if not found:
        raise FeatherweightError("export: neither config.json nor the tokenizer names an eos_token, which ends a text")
    return sorted(found)
