"""GPTQ inside blocks: rounds a weight column by column, and lets the columns still to come make up for each rounding.

Frantar et al. 2022 (arXiv:2210.17323), algorithm 1, with the ranges of ``blocks.searched``. Two orders are computed for
all outputs, and of each output the better is taken: columns as they come, each block's range found when its turn comes
(the paper's), and those that weigh most first, ranges found before (``act_order`` with ``static_groups`` in the
authors' code). O = outputs, I = inputs, B = columns of a block.
"""

from __future__ import annotations

import torch

from tasks.ml.quantization import blocks as blocking
from tasks.ml.quantization import gptq
from tasks.ml.quantization.blocks import Blocks, Format

LAZY = 128
"""Columns whose corrections of the others are made together (section 3.3, step 2)."""


def round_weight(weight: torch.Tensor, hessian: torch.Tensor, form: Format) -> Blocks:
    """Rounds a weight (O, I) with least error on the calibration tokens.

    No output's ``gptq.layer_error`` is larger than that of rounding by the ranges of ``blocks.clipped``.

    Args:
        hessian: XᵀX over tokens (I, I), of the input that the weight is multiplied by.
    """
    weight, hessian = weight.float(), hessian.double()
    importance = hessian.diagonal()
    clipped = found = blocking.clipped(weight, form, importance)
    least = gptq.layer_error(weight, found.dense(), hessian)
    for by_weight in (False, True):
        rounded = _in_order(weight, hessian, clipped, by_weight=by_weight)
        error = gptq.layer_error(weight, rounded.dense(), hessian)
        better = error < least
        least = torch.where(better, error, least)
        found = Blocks(
            form,
            found.inputs,
            torch.where(better[:, None, None], rounded.codes, found.codes),
            torch.where(better[:, None], rounded.scales, found.scales),
            torch.where(better[:, None], rounded.zeros, found.zeros),
        )
    return found


def _in_order(weight: torch.Tensor, hessian: torch.Tensor, clipped: Blocks, *, by_weight: bool) -> Blocks:
    form = clipped.format
    columns, size = weight.shape[1], form.block_size
    importance = hessian.diagonal().float()
    counts = blocking.counted(importance, form)
    scales, zeros = clipped.scales.clone(), clipped.zeros.float()
    codes = torch.zeros(clipped.codes.shape).flatten(1)
    order = importance.argsort(descending=True, stable=True) if by_weight else torch.arange(columns)
    factor = gptq.inverse_factor(hessian[order][:, order]).float()
    work = weight[:, order].clone()
    for start in range(0, columns, LAZY):
        end = min(start + LAZY, columns)
        errors = torch.empty(len(weight), end - start)
        for at in range(start, end):
            column = int(order[at])
            block = column // size
            if not by_weight and column % size == 0:
                # The corrections so far are in; those of this batch's columns were made as they came.
                here = blocking.split(work[:, at : at + size], size)
                scales[:, block : block + 1], zeros[:, block : block + 1] = blocking.searched(
                    here, counts[:, block : block + 1], form
                )
            scale, zero = scales[:, block], zeros[:, block]
            code = blocking.encode(work[:, at : at + 1], scale, zero, form).squeeze(-1)
            codes[:, column] = code
            error = (work[:, at] - (code - zero) * scale) / factor[at, at]
            # A block may reach beyond the batch, and its range is found of all of its columns.
            reach = end if by_weight else min(columns, max(end, (block + 1) * size))
            work[:, at + 1 : reach] -= torch.outer(error, factor[at, at + 1 : reach])
            errors[:, at - start] = error
        if by_weight or size <= LAZY:
            work[:, end:] -= errors @ factor[start:end, end:]
        else:
            beyond = min(columns, (int(order[end - 1]) // size + 1) * size)
            work[:, beyond:] -= errors @ factor[start:end, beyond:]
    return Blocks(form, columns, codes.unflatten(1, (-1, size)).to(torch.uint8), scales, zeros.to(torch.uint8))
