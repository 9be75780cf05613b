"""Which layers of a teacher a student keeps, and what each of them learns. B = rows, S = tokens, H = hidden size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from tasks.contracts import FeatherweightError
from tasks.ml import families


@torch.no_grad()
def influence(model: nn.Module, batches: Iterable[dict[str, torch.Tensor]]) -> list[float]:
    """Block influence of each layer: one minus the mean cosine between its input and its output.

    ShortGPT, Men et al. 2024 (arXiv:2403.03853, eq. 1): a layer that hardly turns the hidden state is hardly missed.

    Args:
        batches: ``input_ids`` and ``attention_mask`` (B, S).
    """
    layers = families.of(model.config.model_type).layer_list(model)  # type: ignore[union-attr, arg-type]
    totals = [0.0] * len(layers)
    mask = torch.zeros(0)
    tokens = 0

    def add(number: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            after = output[0] if isinstance(output, tuple) else output
            cosine = F.cosine_similarity(args[0][mask].float(), after[mask].float(), dim=-1)
            totals[number] += float((1 - cosine).sum())

        return hook

    handles = [layer.register_forward_hook(add(number)) for number, layer in enumerate(layers)]
    model.eval()
    try:
        for batch in batches:
            mask = batch["attention_mask"].bool()
            tokens += int(mask.sum())
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    finally:
        for handle in handles:
            handle.remove()
    return [total / tokens for total in totals]


def most_influential(scores: Sequence[float], keep: int) -> list[int]:
    """Indices of the ``keep`` layers of most influence, ascending.

    Raises:
        FeatherweightError: more layers are asked for than there are.
    """
    if keep > len(scores):
        raise FeatherweightError(
            f"distillation: layers is {keep}, but the teacher has {len(scores)}; use {len(scores)} or fewer"
        )
    return sorted(sorted(range(len(scores)), key=lambda index: -scores[index])[:keep])


def taught(kept: Sequence[int], total: int) -> list[int]:
    """Teacher layer whose output each kept one learns: the last before the next kept one, the last of all for the last.

    A kept layer thus learns to do the work of those after it that are gone.
    """
    return [*(index - 1 for index in kept[1:]), total - 1]
