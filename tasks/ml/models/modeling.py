"""Models on disk: the ``torch`` bundle format.

A torch bundle is a directory with ``config.json``, ``model.safetensors``, the tokenizer's files and, once quantized,
``quantization.json``. ``config.json`` has a ``featherweight`` entry with each layer's shape and the token table's, and
which layers of its teacher a student learns from.
Pickles are never read and remote code is never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig

from tasks.ml.models import architectures, factorization, families, locators, removal, tokenization
from tasks.ml.models.quantization_spec import SPEC_FILE, Spec
from tasks.ml.problem import problem_of

WEIGHTS = "model.safetensors"
SHAPES = "featherweight"
LAYER_MAP = "layer_map"

DRAWING = {"normal_", "uniform_", "kaiming_uniform_"}
"""Functions, of tensors, ``nn.init`` and what transformers puts in its place, that fill their first argument with
random numbers; others of ``nn.init`` call these."""


class Undrawn(TorchFunctionMode):
    """A context in which a new model's weights are not drawn, for one that gets them from elsewhere.

    Of this thread alone: transformers' ``no_init_weights`` takes PyTorch's functions away from all of them, and for
    good where two threads leave it in the order in which they entered.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in DRAWING:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def shapes(model: nn.Module) -> list[dict[str, int]]:
    """Heads and FFN width of each layer."""
    family = architectures.of_model(model)
    return [{"heads": family.num_heads(x), "ffn": family.ffn_width(x)} for x in family.layer_list(model)]


def description(model: nn.Module) -> dict[str, Any]:
    """What the configuration says under ``SHAPES``: each layer's shape, the columns of a factorized token table, and a
    student's layer map."""
    found = {"layers": shapes(model), "embedding_rank": factorization.rank(model)}
    return found | ({LAYER_MAP: learned} if (learned := layer_map(model)) else {})


def layer_map(student: nn.Module) -> list[int]:
    """Teacher layer whose output each layer of a student learns, as it was cut; empty where that was never said."""
    config: Any = student.config
    return list((getattr(config, SHAPES, None) or {}).get(LAYER_MAP, ()))


def set_layer_map(student: nn.Module, taught: Sequence[int]) -> None:
    """Has a student say, wherever it goes, which teacher layer each of its layers learns."""
    config: Any = student.config
    setattr(config, SHAPES, {**(getattr(config, SHAPES, None) or {}), LAYER_MAP: list(taught)})


def reshape(model: nn.Module, described: Mapping[str, Any]) -> None:
    """Gives a new model, in place, the shapes of a ``description``; its weights are then to be loaded."""
    family = architectures.of_model(model)
    for layer, shape in zip(family.layer_list(model), described["layers"], strict=True):
        resize(family, layer, heads=shape["heads"], ffn=shape["ffn"])
    if rank := described.get("embedding_rank", 0):
        factorization.shape(model, rank)


def save(model: nn.Module, tokenizer: Any, directory: Path, *, spec: Spec | None = None) -> None:
    """Writes a torch bundle into an existing directory."""
    save_model(model, directory)
    tokenization.save(tokenizer, directory)
    if spec is not None:
        (directory / SPEC_FILE).write_text(spec.to_json(), encoding="utf-8")


def save_model(model: nn.Module, directory: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes a model's configuration and weights into an existing directory, for ``load``.

    Args:
        weights: its state dict, where it does not hold that itself.
    """
    architectures.of_model(model).describe_shapes(model)
    config = model.config.to_dict()  # type: ignore[union-attr, operator]
    config.pop("_name_or_path", None)
    config[SHAPES] = description(model)
    (directory / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True, default=str), encoding="utf-8")
    twice = tied(model)
    state = {
        name: tensor.detach().contiguous().clone()
        for name, tensor in (model.state_dict() if weights is None else weights).items()
        if name not in twice
    }
    save_file(state, directory / WEIGHTS)


def tied(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are another one, and of that: they are stored once."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: other for name, one in named if (other := first.setdefault(id(one), name)) != name}


def skeleton(directory: Path, problem: str) -> nn.Module:
    """Builds the model of a torch bundle with its shapes; its weights are yet to be loaded."""
    config = _config(directory)
    with Undrawn():  # they come from the file, and random numbers take longer than reading it
        model = problem_of(problem).build(config)
    if described := getattr(config, SHAPES, None):
        reshape(model, described)
    return model


def _config(directory: Path) -> Any:
    """The configuration of a torch bundle, whose heads need not divide its hidden size where their own size is said.

    ``LlamaConfig`` refuses such heads as it is made, and no longer once it is.
    """
    about = locators.read_config(directory)
    heads = about.get("num_attention_heads")
    if not about.get("head_dim") or about["hidden_size"] % heads == 0:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)
    config = AutoConfig.for_model(**about | {"num_attention_heads": 1})
    config.num_attention_heads = heads
    return config


def load(directory: Path, problem: str) -> nn.Module:
    """Loads the weights of a torch bundle, in evaluation mode, whatever its quantization spec makes of them."""
    model = skeleton(directory, problem)
    load_weights(model, directory)
    return model.eval()


def load_weights(model: nn.Module, directory: Path) -> None:
    """Puts the weights of a torch bundle, which has tied ones once, into a model."""
    stored = load_file(directory / WEIGHTS)
    model.load_state_dict(stored | {name: stored[other] for name, other in tied(model).items()})


def resize(family: architectures.Architecture, layer: nn.Module, *, heads: int, ffn: int) -> None:
    """Gives one layer the shapes of a pruned one; its weights are then to be loaded."""
    had, part = family.num_heads(layer), layer.get_submodule
    if isinstance(family, families.Family) and heads == 0:
        removal.remove_heads(family, layer)
    elif heads != had:
        size = family.head_size(layer)
        for linear in (part(name) for name in family.head_parts):
            families.resize_linear(linear, out_features=linear.out_features // had * heads)  # type: ignore[arg-type, operator]
        closing: Any = part(family.attention_output)
        families.resize_linear(closing, in_features=closing.in_features // had * heads)
        family.set_num_heads(layer, heads, size)
    if isinstance(family, families.Family) and ffn == 0:
        removal.remove_channels(family, layer)
    elif ffn != family.ffn_width(layer):
        for name in family.channel_parts:
            families.resize_linear(part(name), out_features=ffn)  # type: ignore[arg-type]
        families.resize_linear(part(family.ffn_down), in_features=ffn)  # type: ignore[arg-type]


def num_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
