"""Listening to modules of a model while it reads: what goes in and what comes out, at every token that counts.

Padding does not count, nor does what a module puts out and nobody reads: where the head reads the first token only, the
last layer's other queries, and what its output projection, FFN and norms make of other tokens.

B = rows, S = tokens, T = tokens that count for a module, K and M = widths of its input and output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import nn

from tasks.ml.models import first_token

Name = TypeVar("Name")


@torch.no_grad()
def listen(
    model: nn.Module,
    batches: Iterable[Mapping[str, torch.Tensor]],
    modules: Mapping[Name, nn.Module],
    each: Callable[[Name, torch.Tensor, torch.Tensor], None],
    *,
    first_token_only: bool = False,
) -> None:
    """Has a model read, in evaluation mode.

    Args:
        batches: ``input_ids`` and ``attention_mask`` (B, S).
        each: called with the name of a module, its input (T, K) and its output (T, M), both fp32.
        first_token_only: whether the head reads the first token and no other.
    """
    mask = torch.zeros(0)

    def hear(name: Name) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            after = output[0] if isinstance(output, tuple) else output
            # A layer between backbone and head is given the first token only: (B, K).
            both = [x if x.dim() == 3 else x.unsqueeze(1) for x in (args[0], after)]
            shared = min(x.shape[1] for x in both)
            real = mask[:, :shared]
            each(name, *(x[:, :shared][real].float() for x in both))

        return hook

    model.eval()
    with ExitStack() as hooks:
        if first_token_only:
            hooks.enter_context(first_token.as_read(model))
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(hear(name)))
        for batch in batches:
            mask = batch["attention_mask"].bool()
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def means(
    model: nn.Module,
    batches: Iterable[Mapping[str, torch.Tensor]],
    modules: Sequence[nn.Module],
    amount: Callable[[torch.Tensor, torch.Tensor], Any],
    *,
    first_token_only: bool = False,
) -> list[Any]:
    """Has a model read as ``listen`` does; returns, of each module, the mean over the tokens that count of an amount.

    Args:
        amount: of an input (T, K) and an output (T, M) the sum over their tokens: a number or a tensor.
    """
    totals: list[Any] = [0.0] * len(modules)
    tokens = [0] * len(modules)

    def add(number: int, before: torch.Tensor, after: torch.Tensor) -> None:
        totals[number] = totals[number] + amount(before, after)
        tokens[number] += len(after)

    listen(model, batches, dict(enumerate(modules)), add, first_token_only=first_token_only)
    return [total / count for total, count in zip(totals, tokens, strict=True)]
