"""Quantizes a decoder: its weights alone, in blocks. What it reads at once is little, so bytes are what a token costs.

B = rows, S = tokens, I = inputs, O = outputs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import decoders
from tasks.ml.quantization import blocks as blocking
from tasks.ml.quantization import mixed_bits, weight_only
from tasks.ml.quantization.blocks import HEAD, TABLE, Blocks, Format

logger = logging.getLogger("featherweight")

ROUNDINGS = {"nearest": "clipped", "gptq": "gptq"}
"""Names of ``weight_only.ROUNDINGS`` by a recipe's: to nearest is by the range of each block that costs least."""
CALIBRATION_TOKENS = 16_384
ROW = 512
ROWS_AT_ONCE = 4
OUTPUTS_AT_ONCE = 8_192
"""Of the head, which outputs are rounded of independently of each other."""


def packed(input_ids: Sequence[Sequence[int]], *, length: int) -> list[torch.Tensor]:
    """Rows (B, S) without padding, of texts one after the other, up to ``CALIBRATION_TOKENS``."""
    tokens = [token for row in input_ids for token in row][:CALIBRATION_TOKENS]
    size = min(length, ROW, len(tokens))
    whole = torch.tensor(tokens[: len(tokens) // size * size]).view(-1, size)
    return list(whole.split(ROWS_AT_ONCE))


def decide(
    model: nn.Module,
    input_ids: Sequence[Sequence[int]],
    *,
    bits: float,
    block_size: int,
    table_bits: int,
    rounding: str,
    length: int,
    exact_inputs: bool = False,
) -> dict[str, Blocks]:
    """Rounds linear layers, token table and head: the model, in place, gets the weights that their codes stand for.

    Args:
        input_ids: of the calibration split.
        bits: of a code in linear layers, on average, 2 to 8: between those that have a kernel, layers that lose most by
            few get more than others.
        table_bits: of a code in token table and head, 4 or 8; 32 leaves them as they are.
        rounding: one of ``weight_only.ROUNDINGS``.
        length: tokens that a row of the model may have.
        exact_inputs: whether linear layers are multiplied in floats, so that a value on the edge between two codes of
            an input does not move all layers after it. The head, after which nothing comes, is multiplied in integers.

    Returns:
        Blocks by qualified name, and as ``HEAD`` and ``TABLE``.

    Raises:
        FeatherweightError: blocks do not fit a matrix, or bits have no kernel.
    """
    family, rows = decoders.of_model(model), packed(input_ids, length=length)
    names = [one.name for one in family.projections(model)]
    found = _tables(model, rows, bits=table_bits, block_size=block_size, rounding=rounding)
    if bits in blocking.BITS:
        formats = dict.fromkeys(names, Format(int(bits), block_size, exact_inputs=exact_inputs))
    else:
        formats = _mixed(model, rows, bits=bits, block_size=block_size, exact_inputs=exact_inputs)

    def observe(done: int, total: int) -> None:
        logger.info("quantize: %d of %d layers rounded", done, total)

    return found | weight_only.apply(model, formats, rows, rounding=rounding, observe=observe)


@torch.no_grad()
def adopt(model: nn.Module, codes: Mapping[str, Blocks]) -> None:
    """Puts the weights that codes stand for into a model, in place."""
    family = decoders.of_model(model)
    named = {one.name: one.weight for one in family.projections(model)}
    named |= {TABLE: family.table(model), HEAD: family.head(model)}
    for name, blocks in codes.items():
        named[name].copy_(blocks.dense())


@torch.no_grad()
def _tables(
    model: nn.Module, rows: Sequence[torch.Tensor], *, bits: int, block_size: int, rounding: str
) -> dict[str, Blocks]:
    """Head, rounded for what it reads, and token table, whose rows are read as they are; the head's where the two are
    tied, since few bits cost logits far more than embeddings."""
    if bits == 32:
        return {}
    family = decoders.of_model(model)
    head, table = family.head(model), family.table(model)
    form = Format(bits, _dividing(table.shape[1], block_size))
    hessian = weight_only.head_hessian(model, rows)
    parts = [weight_only.ROUNDINGS[rounding](part, hessian, form) for part in head.split(OUTPUTS_AT_ONCE)]
    found = {HEAD: blocking.joined(parts)}
    head.copy_(found[HEAD].dense())
    if head.data_ptr() != table.data_ptr():
        found[TABLE] = blocking.clipped(table, form)
        table.copy_(found[TABLE].dense())
    return found


def _dividing(columns: int, block_size: int) -> int:
    """The largest block, up to a size, of which a row of the token table has a whole number: the runtime reads it by
    rows, and takes no others."""
    sizes = [size for size in blocking.BLOCK_SIZES if size <= block_size and columns % size == 0]
    if not sizes:
        raise FeatherweightError(
            f"quantization.block_size: no block of up to {block_size} divides the {columns} columns of the token "
            "table; set quantization.embeddings to none"
        )
    return sizes[-1]


def _mixed(
    model: nn.Module, rows: Sequence[torch.Tensor], *, bits: float, block_size: int, exact_inputs: bool
) -> dict[str, Format]:
    """Formats of 2, 4 and 8 bits, so that codes have so many on average and least is lost."""
    forms = [Format(codes, block_size, exact_inputs=exact_inputs) for codes in blocking.BITS]
    forms = [form for form in forms if form.bits < 8 or not exact_inputs]  # which have no fast product in floats
    if not forms[0].bits < bits < forms[-1].bits:
        raise FeatherweightError(
            f"quantization.bits: {bits:g} bits have no kernel; choose from {forms[0].bits} to {forms[-1].bits}"
        )
    family = decoders.of_model(model)
    projections = {one.name: one.weight for one in family.projections(model)}
    logger.info("quantize: measuring what few bits cost each layer")
    one_by_one = [row for several in rows for row in several.split(1)]
    gradients = mixed_bits.gradients(model, one_by_one, list(projections))
    hessians = weight_only.hessians(model, rows)
    tokens = sum(ids.numel() for ids in rows)
    products = family.linear_groups(model)
    prices: dict[str, Mapping[Format, mixed_bits.Price]] = {}
    for group in products:
        prices[group[0]] = {form: _price(group, form, projections, hessians, gradients, tokens) for form in forms}
    count = sum(weight.numel() for weight in projections.values())
    overhead = sum(prices[group[0]][forms[0]].nbytes for group in products) - count * forms[0].bits / 8
    chosen = mixed_bits.choose(prices, most=int(count * bits / 8 + overhead))
    numbers = Counter(form.bits for form in chosen.values())
    logger.info("quantize: %s", ", ".join(f"{numbers[form.bits]} products get {form.bits} bits" for form in forms))
    return {name: chosen[group[0]] for group in products for name in group}


def _price(
    group: Sequence[str],
    form: Format,
    weights: Mapping[str, torch.Tensor],
    hessians: Mapping[str, torch.Tensor],
    gradients: Mapping[str, torch.Tensor],
    tokens: int,
) -> mixed_bits.Price:
    """Of layers that are one product: what rounding them to nearest by a searched range costs, and takes."""
    loss, nbytes = 0.0, 0
    for name in group:
        hessian = hessians[group[0]]
        rounded = blocking.clipped(weights[name], form, hessian.diagonal())
        loss += mixed_bits.cost(weights[name], rounded, hessian.double(), gradients[name], tokens=tokens)
        nbytes += rounded.nbytes
    return mixed_bits.Price(loss, nbytes)


def num_bytes(model: nn.Module, weights: Mapping[str, Blocks]) -> int:
    """Bytes of a model that is stored in blocks, and in fp32 where there are none."""
    family: Any = decoders.of_model(model)
    inside = {f"{name}.weight" for name in weights}
    inside |= {f"{family.token_table(model)}.weight"} if {HEAD, TABLE} & weights.keys() else set()
    inside |= {"lm_head.weight"} if HEAD in weights else set()
    rest = sum(4 * one.numel() for name, one in model.named_parameters() if name not in inside)
    return rest + sum(blocks.nbytes for blocks in weights.values())
