"""Listening to modules of a model while it reads: what goes in and what comes out, at every token that is no padding.

B = rows, S = tokens, T = tokens of a batch that are no padding, K and M = widths of a module's input and output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn


def listen(
    model: nn.Module,
    batches: Iterable[dict[str, torch.Tensor]],
    modules: Sequence[nn.Module],
    each: Callable[[int, torch.Tensor, torch.Tensor], None],
) -> int:
    """Has a model read, in evaluation mode, and returns the number of tokens.

    Args:
        batches: ``input_ids`` and ``attention_mask`` (B, S).
        each: called with the number of a module, its input (T, K) and its output (T, M), both fp32.
    """
    mask = torch.zeros(0)
    tokens = 0

    def hear(number: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            after = output[0] if isinstance(output, tuple) else output
            each(number, args[0][mask].float(), after[mask].float())

        return hook

    handles = [module.register_forward_hook(hear(number)) for number, module in enumerate(modules)]
    model.eval()
    try:
        for batch in batches:
            mask = batch["attention_mask"].bool()
            tokens += int(mask.sum())
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    finally:
        for handle in handles:
            handle.remove()
    return tokens
