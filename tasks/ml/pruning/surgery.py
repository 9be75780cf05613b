"""Making a model really smaller: layers, attention heads and FFN channels are cut out of the tensors.

Every function returns a new model and leaves its argument as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import architectures, families, modeling, removal
from tasks.ml.pruning import cuts
from tasks.ml.pruning.importance import LayerImportance


def spread(total: int, keep: int) -> list[int]:
    """Indices of ``keep`` layers spread evenly over ``total``, the last one included.

    TinyBERT's uniform map g(m) = m · total / keep (Jiao et al. 2020, arXiv:1909.10351, section 3.1), zero-based.

    Raises:
        FeatherweightError: more layers are asked for than there are.
    """
    if keep > total:
        raise FeatherweightError(f"distillation: layers is {keep}, but the teacher has {total}; use {total} or fewer")
    return [round((index + 1) * total / keep) - 1 for index in range(keep)]


def keep_layers(model: nn.Module, layers: Sequence[int]) -> nn.Module:
    """Keeps only these transformer layers, in this order."""
    student = copy.deepcopy(model)
    family = architectures.of_model(student)
    kept = nn.ModuleList(family.layer_list(student)[index] for index in layers)
    family.backbone(student).set_submodule(family.layers, kept)
    family.count_layers(student, layers)
    return student


def keep_outputs(linear: nn.Linear, index: torch.Tensor) -> None:
    """Keeps these rows of a matrix and of its bias, in place."""
    linear.weight = nn.Parameter(linear.weight.detach()[index].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[index].clone())
    linear.out_features = len(index)


def keep_inputs(linear: nn.Linear, index: torch.Tensor) -> None:
    """Keeps these columns of a matrix, in place."""
    linear.weight = nn.Parameter(linear.weight.detach()[:, index].clone())
    linear.in_features = len(index)


def _keep_heads(family: architectures.Architecture, layer: nn.Module, heads: torch.Tensor) -> None:
    part, size, had = layer.get_submodule, family.head_size(layer), family.num_heads(layer)
    if had == 0:
        return
    if isinstance(family, families.Family) and len(heads) == 0:
        removal.remove_heads(family, layer)
        return

    def units(width: int) -> torch.Tensor:
        """Places of the heads among so many: with a head of keys and values go the heads of queries that read it."""
        each = width // had
        return (heads[:, None] * each + torch.arange(each, device=heads.device)).flatten()

    for linear in (part(name) for name in family.head_parts):
        keep_outputs(linear, units(linear.out_features))  # type: ignore[arg-type]
    closing: Any = part(family.attention_output)
    keep_inputs(closing, units(closing.in_features))
    family.set_num_heads(layer, len(heads), size)


def _keep_channels(family: architectures.Architecture, layer: nn.Module, channels: torch.Tensor) -> None:
    if family.ffn_width(layer) == 0:
        return
    if isinstance(family, families.Family) and len(channels) == 0:
        removal.remove_channels(family, layer)
        return
    for name in family.channel_parts:
        keep_outputs(layer.get_submodule(name), channels)  # type: ignore[arg-type]
    keep_inputs(layer.get_submodule(family.ffn_down), channels)  # type: ignore[arg-type]


def _top(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the highest scores, in their original order."""
    return scores.topk(count).indices.sort().values


def keep_counts(
    model: nn.Module, importance: Sequence[LayerImportance], counts: Sequence[Mapping[str, int]]
) -> nn.Module:
    """Keeps, in each layer, so many of its most important heads and FFN channels; none takes the block away.

    The output equals that of the full model with the removed units gated to zero.

    Args:
        counts: ``heads`` and ``ffn`` of each layer, as ``modeling.shapes`` gives them.

    Raises:
        FeatherweightError: a decoder cannot have these.
    """
    smaller = copy.deepcopy(model)
    family = architectures.of_model(smaller)
    if list(counts) == modeling.shapes(smaller):
        return smaller
    architectures.require_cuttable(family)
    if not isinstance(family, families.Family):
        _require_even(family, counts)
    for layer, scores, count in zip(family.layer_list(smaller), importance, counts, strict=True):
        _keep_heads(family, layer, _top(scores.heads, count["heads"]))
        _keep_channels(family, layer, _top(scores.ffn, count["ffn"]))
    family.describe_shapes(smaller)
    return smaller


def _require_even(family: architectures.Architecture, counts: Sequence[Mapping[str, int]]) -> None:
    """Raises unless each count is the same in all layers, as a decoder's configuration and its cache have it."""
    for part, name in (("heads", "heads of keys and values"), ("ffn", "FFN channels")):
        kept = [count[part] for count in counts]
        if len(set(kept)) > 1 or 0 in kept:
            raise FeatherweightError(
                f"pruning: {kept} {name} cannot be kept: there must be at least one, and as many in each layer, the "
                f"same in all layers of a {family.model_types[0]}; cut by fractions"
            )


def fraction(shapes: Sequence[Mapping[str, int]], **keep: float) -> list[dict[str, int]]:
    """The same fraction of every layer's ``heads`` and ``ffn``; at least one where there are any."""
    return [{name: cuts.units(shape[name], keep=part) for name, part in keep.items()} for shape in shapes]
