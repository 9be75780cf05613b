"""What quantization and export need to know of a decoder: one description per family.

A description holds dotted paths, relative to the backbone (``model.base_model``) or to one of its layers. A linear
layer is ``nn.Linear`` with a weight (O, I), or GPT-2's ``Conv1D`` with (I, O). O = outputs, I = inputs,
V = vocabulary, H = hidden, D = head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from tasks.contracts.base import FeatherweightError

NO_WINDOW, ALL_LAYERS, BY_LAYER = "none", "all", "by layer"
SCALED_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose frequencies do not depend on the text's length."""


class Projection(NamedTuple):
    """A linear layer, whatever module holds it."""

    name: str
    """Qualified, in the model."""
    weight: torch.Tensor
    """(O, I)."""
    bias: torch.Tensor | None
    """(O,)."""


class Norm(NamedTuple):
    """Division by the root of the mean square, or, with a bias, by the standard deviation about the mean."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    epsilon: float


@dataclass(frozen=True)
class Decoder:
    """Where a family of causal language models keeps its parts."""

    model_types: tuple[str, ...]
    embeddings: str
    """Token embeddings, ``nn.Embedding`` (V, H)."""
    layers: str
    final_norm: str
    attention_norm: str
    qkv: tuple[str, ...]
    """Linear layers whose outputs, one after the other, are query, key and value."""
    attention_output: str
    ffn_norm: str
    ffn_in: tuple[str, ...]
    """The gate and what it multiplies, or, where there is no gate, what the activation is of."""
    ffn_out: str
    positions: str = ""
    """Table of learned positions; empty where query and key are rotated."""
    query_norm: str = ""
    """Norm of each head's query; empty where there is none."""
    key_norm: str = ""
    norm_offset: float = 0.0
    """What is added to the weight of a norm."""
    scales_embeddings: bool = False
    """Whether token embeddings are multiplied by √H."""
    windows: str = NO_WINDOW
    """Which layers read a window of tokens only: ``NO_WINDOW``, ``ALL_LAYERS`` or ``BY_LAYER``."""

    def layer_list(self, model: nn.Module) -> nn.ModuleList:
        return _backbone(model).get_submodule(self.layers)  # type: ignore[return-value]

    def table(self, model: nn.Module) -> torch.Tensor:
        """Token embeddings (V, H)."""
        return _backbone(model).get_submodule(self.embeddings).weight.detach()  # type: ignore[operator]

    def head(self, model: nn.Module) -> torch.Tensor:
        """What logits are products with, (V, H); the token table itself where the two are tied."""
        tied: Any = model.get_output_embeddings()  # type: ignore[operator]
        return tied.weight.detach()

    def norm(self, module: nn.Module, name: str) -> Norm:
        """The norm of that name below a layer or the backbone."""
        found: Any = module.get_submodule(name)
        epsilon = next(getattr(found, said) for said in ("variance_epsilon", "eps") if hasattr(found, said))
        bias = getattr(found, "bias", None)
        return Norm(found.weight.detach() + self.norm_offset, None if bias is None else bias.detach(), float(epsilon))

    def projection(self, model: nn.Module, index: int, part: str) -> Projection:
        """A linear layer of a layer."""
        found: Any = self.layer_list(model)[index].get_submodule(part)
        weight = found.weight.detach()
        name = f"{model.base_model_prefix}.{self.layers}.{index}.{part}"
        bias = getattr(found, "bias", None)
        return Projection(
            name, weight if isinstance(found, nn.Linear) else weight.T, None if bias is None else bias.detach()
        )

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Linear layers of a layer by what they read, in the order of computation."""
        return self.qkv, (self.attention_output,), self.ffn_in, (self.ffn_out,)

    def projections(self, model: nn.Module) -> list[Projection]:
        """All linear layers of all layers, in the order of computation."""
        return [
            self.projection(model, index, part)
            for index in range(len(self.layer_list(model)))
            for group in self.groups()
            for part in group
        ]


class Attention(NamedTuple):
    """Sizes of a decoder's attention."""

    heads: int
    kv_heads: int
    head_size: int


def attention(model: nn.Module) -> Attention:
    """Sizes that a model's configuration gives."""
    config: Any = model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Attention(heads, getattr(config, "num_key_value_heads", None) or heads, size)


def window(model: nn.Module, index: int) -> int:
    """Tokens, itself among them, that a token of a layer reads; −1: all before it."""
    config: Any = model.config
    windows = of_model(model).windows
    local = windows == ALL_LAYERS or (windows == BY_LAYER and config.layer_types[index] == "sliding_attention")
    return (config.sliding_window or -1) if local else -1


def scale(model: nn.Module, index: int) -> float:
    """What a layer multiplies the products of query and key by."""
    family = of_model(model)
    holder = family.attention_output.rpartition(".")[0]
    return float(family.layer_list(model)[index].get_submodule(holder).scaling)  # type: ignore[arg-type]


def activation(model: nn.Module) -> str:
    """Name of the FFN's activation, as transformers has it."""
    config: Any = model.config
    names = ("hidden_act", "activation_function")
    return str(next(value for name in names if (value := getattr(config, name, None))))


def rotations(model: nn.Module, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the angles that positions are rotated by, (length, D / 2) each (RoFormer, arXiv:2104.09864).

    Raises:
        FeatherweightError: the frequencies depend on the text's length.
    """
    rotary: Any = _backbone(model).get_submodule("rotary_emb")
    if rotary.rope_type not in SCALED_ROTATIONS:
        raise FeatherweightError(
            f"base_model: rotary embedding of kind {rotary.rope_type!r} is not supported; supported: "
            f"{', '.join(SCALED_ROTATIONS)}"
        )
    angles = torch.outer(torch.arange(length, dtype=torch.float32), rotary.inv_freq.float())
    return angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling


LLAMA = Decoder(
    model_types=("llama",),
    embeddings="embed_tokens",
    layers="layers",
    final_norm="norm",
    attention_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_output="self_attn.o_proj",
    ffn_norm="post_attention_layernorm",
    ffn_in=("mlp.gate_proj", "mlp.up_proj"),
    ffn_out="mlp.down_proj",
)

MISTRAL = replace(LLAMA, model_types=("mistral",), windows=ALL_LAYERS)

QWEN2 = replace(LLAMA, model_types=("qwen2",), windows=BY_LAYER)

QWEN3 = replace(QWEN2, model_types=("qwen3",), query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")

GEMMA = replace(LLAMA, model_types=("gemma",), norm_offset=1.0, scales_embeddings=True)

GPT2 = Decoder(
    model_types=("gpt2",),
    embeddings="wte",
    positions="wpe",
    layers="h",
    final_norm="ln_f",
    attention_norm="ln_1",
    qkv=("attn.c_attn",),
    attention_output="attn.c_proj",
    ffn_norm="ln_2",
    ffn_in=("mlp.c_fc",),
    ffn_out="mlp.c_proj",
)

DECODERS = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GPT2)


def of_model(model: nn.Module) -> Decoder:
    """Returns the description of a model's architecture.

    Raises:
        FeatherweightError: the architecture has no description, or the model reads what comes after a token.
    """
    config: Any = model.config
    if getattr(config, "use_bidirectional_attention", None):
        raise FeatherweightError("base_model: use_bidirectional_attention is not supported: a decoder reads backwards")
    for decoder in DECODERS:
        if config.model_type in decoder.model_types:
            return decoder
    known = ", ".join(name for decoder in DECODERS for name in decoder.model_types)
    raise FeatherweightError(f"base_model: architecture {config.model_type!r} is no decoder that is supported: {known}")


def _backbone(model: nn.Module) -> nn.Module:
    return model.base_model  # type: ignore[return-value]
