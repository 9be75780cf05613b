"""Rounds the linear layers of a decoder into blocks, in the order in which they are computed.

Each layer's Hessians are of what it reads once all layers before it are rounded (GPTQ, Frantar et al. 2022,
arXiv:2210.17323, section 3.1, and the authors' code for the order). Layers are run one at a time on the hidden states
of the calibration rows, so that what it takes beside the model is those and one layer's Hessians. B = rows, S = tokens,
H = hidden, I = inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tasks.ml.models import decoders
from tasks.ml.quantization import block_gptq
from tasks.ml.quantization import blocks as blocking
from tasks.ml.quantization.blocks import Blocks, Format

Rounding = Callable[[torch.Tensor, torch.Tensor, Format], Blocks]
"""Makes blocks of a weight (O, I), its inputs' XᵀX (I, I) and a format."""


def nearest(weight: torch.Tensor, hessian: torch.Tensor, form: Format) -> Blocks:
    """To nearest, whatever the inputs are."""
    return blocking.nearest(weight, form)


def clipped(weight: torch.Tensor, hessian: torch.Tensor, form: Format) -> Blocks:
    """To nearest, by the range of each block that costs least where inputs are large."""
    return blocking.clipped(weight, form, hessian.diagonal())


ROUNDINGS: Mapping[str, Rounding] = {"nearest": nearest, "clipped": clipped, "gptq": block_gptq.round_weight}


Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Everything that a layer is given beside hidden states."""


def _calls(model: nn.Module, layers: nn.ModuleList, ids: torch.Tensor) -> tuple[torch.Tensor, list[Call]]:
    """Hidden states (B, S, H) that the first layer is given for rows of tokens, and the rest of each layer's arguments:
    masks differ between layers that read all tokens and those that read a window."""
    first: list[torch.Tensor] = []
    calls: list[Call] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        first.append(args[0] if args else kwargs["hidden_states"])
        calls.append((args[1:], named))

    handles = [layer.register_forward_pre_hook(catch, with_kwargs=True) for layer in layers]
    try:
        backbone: Any = model.base_model  # nobody asks for logits
        backbone(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return first[0], calls


def _walked(
    model: nn.Module, rows: Sequence[torch.Tensor]
) -> Iterator[tuple[int, nn.Module, Sequence[torch.Tensor], Sequence[Call]]]:
    """Each layer with its number, and of rows of tokens what it is given: hidden states, from layers before it as who
    asks left them, and the rest."""
    layers = decoders.of_model(model).layer_list(model)
    given = [_calls(model, layers, ids) for ids in rows]
    states = [hidden for hidden, _ in given]
    for index, layer in enumerate(layers):
        calls = [of_layers[index] for _, of_layers in given]
        yield index, layer, states, calls
        states = [_output(layer(hidden, *rest, **named)) for hidden, (rest, named) in zip(states, calls, strict=True)]


@torch.no_grad()
def apply(
    model: nn.Module,
    formats: Mapping[str, Format],
    rows: Sequence[torch.Tensor],
    *,
    rounding: str = "gptq",
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Blocks]:
    """Rounds the weights that ``formats`` names; the model, in place, gets those that the codes stand for.

    Args:
        formats: of linear layers, by qualified name.
        rows: token ids of the calibration split, (B, S) each, without padding.
        rounding: one of ``ROUNDINGS``.
        observe: is told how many layers are done, of how many.

    Returns:
        Blocks by qualified name.

    Raises:
        ValueError: there is no linear layer of a name.
    """
    family, found = decoders.of_model(model), dict[str, Blocks]()
    if unknown := sorted(formats.keys() - family.linears(model).keys()):
        raise ValueError(f"no linear layers: {', '.join(unknown)}")
    model.eval()
    first = {part: group[0] for group in family.groups() for part in group}
    total = len(family.layer_list(model))
    for index, layer, states, calls in _walked(model, rows):
        named = {part: family.projection(model, index, part) for part in first}
        wanted = {part: one for part, one in named.items() if one.name in formats}
        hessians = _hessians(layer, {first[part] for part in wanted}, states, calls)
        for part, one in wanted.items():
            found[one.name] = ROUNDINGS[rounding](one.weight, hessians[first[part]], formats[one.name])
            one.weight.copy_(found[one.name].dense())
        observe(index + 1, total)
    return found


@torch.no_grad()
def hessians(model: nn.Module, rows: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """XᵀX (I, I) of the inputs of every product by the qualified name of its first layer, of a model as it is."""
    family = decoders.of_model(model)
    first = {group[0] for group in family.groups()}
    return {
        family.qualified(model, index, part): hessian
        for index, layer, states, calls in _walked(model, rows)
        for part, hessian in _hessians(layer, first, states, calls).items()
    }


@torch.no_grad()
def head_hessian(model: nn.Module, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """XᵀX (H, H) of what the head reads of rows of tokens, (B, S) each."""
    backbone: Any = model.base_model
    hessian = torch.zeros(())
    for ids in rows:
        x = backbone(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, -2).float()
        hessian = hessian + x.T @ x
    return hessian


def _hessians(
    layer: nn.Module, parts: set[str], states: Sequence[torch.Tensor], calls: Sequence[Call]
) -> dict[str, torch.Tensor]:
    """XᵀX (I, I) of the inputs of parts of a layer, over all rows."""
    sums: dict[str, torch.Tensor] = {}

    def listening(part: str) -> Any:
        def add(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].flatten(0, -2).float()
            sums[part] = sums[part] + x.T @ x if part in sums else x.T @ x

        return add

    handles = [layer.get_submodule(part).register_forward_pre_hook(listening(part)) for part in parts]
    try:
        for hidden, (rest, named) in zip(states, calls, strict=True):
            layer(hidden, *rest, **named)
    finally:
        for handle in handles:
            handle.remove()
    return sums


def _output(found: Any) -> torch.Tensor:
    return found[0] if isinstance(found, tuple) else found
