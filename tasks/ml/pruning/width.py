"""A narrower residual stream: which hidden dimensions matter, and a model that has no others.

B = rows, S = tokens, H = hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tasks.ml.models import families, listening, removal
from tasks.ml.pruning import cuts, surgery


def importance(
    model: nn.Module, batches: Iterable[dict[str, torch.Tensor]], *, first_token_only: bool = False
) -> torch.Tensor:
    """Importance (H,) of the hidden dimensions: mean magnitude after each norm of the backbone, added up over norms.

    Minitron, Muralidharan et al. 2024 (arXiv:2407.14679, section 2.2, F_emb), with the mean over all tokens.

    Args:
        batches, first_token_only: see ``listening.listen``.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    means = listening.means(
        model, batches, norms, lambda _, after: after.abs().sum(dim=0), first_token_only=first_token_only
    )
    return torch.stack(means).sum(dim=0)


def top(scores: torch.Tensor, *, keep: float, head_size: int) -> torch.Tensor:
    """Indices, ascending, of the most important dimensions: a whole number of ``head_size``, at least one."""
    return scores.topk(cuts.dimensions(len(scores), keep=keep, head_size=head_size)).indices.sort().values


def keep_hidden(model: nn.Module, index: torch.Tensor) -> nn.Module:
    """Returns a new model with only these hidden dimensions, in this order; heads and FFN stay as wide as they were.

    Norms then take their moments over what is left, so cutting changes what is computed, unlike for heads and
    channels. The units of the layer between backbone and classifier, of another basis, are kept by the norm of their
    column in the classifier.

    Args:
        index: a whole number of head sizes, so that the configuration can say it.
    """
    smaller = copy.deepcopy(model)
    config: Any = smaller.config
    family = families.of_model(smaller)
    for module in smaller.modules():
        if isinstance(module, nn.Embedding):
            module.weight = nn.Parameter(module.weight.detach()[:, index].clone())
            module.embedding_dim = len(index)
        elif isinstance(module, nn.LayerNorm):
            module.weight = nn.Parameter(module.weight.detach()[index].clone())
            module.bias = nn.Parameter(module.bias.detach()[index].clone())
            module.normalized_shape = (len(index),)
    for layer in family.layer_list(smaller):
        there = dict(layer.named_modules())  # pruning may have taken blocks away
        for name in (family.query, family.key, family.value, family.ffn_up):
            if isinstance(part := there.get(name), nn.Linear):
                surgery.keep_inputs(part, index)
            elif isinstance(part, removal.NoChannels):
                part.in_features = len(index)
        for name in (family.attention_output, family.ffn_down):
            if isinstance(part := there[name], nn.Linear):
                surgery.keep_outputs(part, index)
            elif isinstance(part, removal.OnlyBias):
                part.bias, part.out_features = nn.Parameter(part.bias.detach()[index].clone()), len(index)
    summary, classifier = (smaller.get_submodule(name) for name in (family.summary, family.classifier))
    units = classifier.weight.norm(dim=0).topk(len(index)).indices.sort().values  # type: ignore[operator]
    surgery.keep_inputs(summary, index)  # type: ignore[arg-type]
    surgery.keep_outputs(summary, units)  # type: ignore[arg-type]
    surgery.keep_inputs(classifier, units)  # type: ignore[arg-type]
    head_size = config.hidden_size // config.num_attention_heads
    assert len(index) % head_size == 0, "the configuration gives the size of a head as hidden size over heads"
    config.hidden_size, config.num_attention_heads = len(index), len(index) // head_size
    return smaller
