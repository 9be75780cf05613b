"""What training, surgery, quantization and export need to know of a decoder: one description per family.

torch is imported where modules are handled only, as in ``families``. A description holds dotted paths, relative to the
backbone (``model.base_model``) or to one of its layers. A linear layer is ``nn.Linear`` with a weight (O, I), or
GPT-2's ``Conv1D`` with (I, O). O = outputs, I = inputs, V = vocabulary, H = hidden, D = head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tasks.contracts.base import FeatherweightError

if TYPE_CHECKING:
    import torch
    from torch import nn

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
    prefix: str
    """Name of the backbone in a model that has a head on it (``base_model_prefix``)."""
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
    ffn_down: str
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
    biases: tuple[tuple[tuple[str, ...], str], ...] = ()
    """Linear layers, and the setting of the configuration that says whether they have biases; empty: they have."""
    names: tuple[tuple[str, str], ...] = ()
    """Settings of the configuration that this family calls otherwise, and what others call them."""

    sizes: ClassVar[tuple[str, ...]] = (
        "vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size",
    )  # fmt: skip
    """What the configuration says of its shapes, as ``settings`` gives them."""

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A ``config.json`` with the names that other families have for its settings."""
        found = {**config, **{usual: config[own] for own, usual in self.names if config.get(own) is not None}}
        if self.names and "hidden_size" in found:
            found.setdefault("intermediate_size", 4 * found["hidden_size"])  # GPT-2's where it says none
        return found

    def first_position(self, config: Mapping[str, Any]) -> int:
        """Position of the first token."""
        return 0

    def require_padding(self, config: Mapping[str, Any], pad_id: int) -> None:
        """Any token may pad: nobody reads what comes after a row."""

    def count_positions(self, model: nn.Module) -> None:
        """Positions count from the left already."""

    def tensors(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Shapes of the backbone's parameters by name.

        Args:
            config: as ``settings`` gives it.
        """
        hidden, ffn, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
        size = config.get("head_dim") or hidden // heads
        kv_heads = config.get("num_key_value_heads") or heads
        found: dict[str, tuple[int, ...]] = {f"{self.embeddings}.weight": (config["vocab_size"], hidden)}
        if self.positions:
            found[f"{self.positions}.weight"] = (config["max_position_embeddings"], hidden)
        outputs = dict(zip(self.qkv, (heads * size, kv_heads * size, kv_heads * size), strict=False))
        if len(self.qkv) == 1:
            outputs = {self.qkv[0]: (heads + 2 * kv_heads) * size}
        linears = {name: (outputs[name], hidden) for name in self.qkv}
        linears |= {self.attention_output: (hidden, heads * size)}
        linears |= dict.fromkeys(self.ffn_in, (ffn, hidden)) | {self.ffn_down: (hidden, ffn)}
        biased = {name for parts, key in self.biases if not key or config.get(key) for name in parts}
        norms = [(self.attention_norm, hidden), (self.ffn_norm, hidden)]
        norms += [(name, size) for name in (self.query_norm, self.key_norm) if name]
        for layer in (f"{self.layers}.{index}" for index in range(config["num_hidden_layers"])):
            for name, shape in linears.items():
                found[f"{layer}.{name}.weight"] = shape[::-1] if self.is_transposed else shape
                if name in biased:
                    found[f"{layer}.{name}.bias"] = shape[:1]
            for name, width in norms:
                found |= self._norm_tensors(f"{layer}.{name}", width)
        return found | self._norm_tensors(self.final_norm, hidden)

    def _norm_tensors(self, name: str, width: int) -> dict[str, tuple[int, ...]]:
        parts = ("weight", "bias") if self.is_transposed else ("weight",)
        return {f"{name}.{part}": (width,) for part in parts}

    @property
    def is_transposed(self) -> bool:
        """Whether weights are stored (I, O), and norms have biases: GPT-2's ``Conv1D`` and ``LayerNorm``."""
        return len(self.qkv) == 1

    @property
    def head_parts(self) -> tuple[str, ...]:
        """Linear layers whose outputs are heads: what goes with a head of keys and values."""
        return self.qkv

    @property
    def channel_parts(self) -> tuple[str, ...]:
        """Linear layers whose outputs are FFN channels."""
        return self.ffn_in

    def backbone(self, model: nn.Module) -> nn.Module:
        return model.base_model  # type: ignore[return-value]

    def layer_list(self, model: nn.Module) -> nn.ModuleList:
        return self.backbone(model).get_submodule(self.layers)  # type: ignore[return-value]

    def embedding(self, model: nn.Module) -> nn.Module:
        """What makes vectors of the hidden size of token ids."""
        return self.backbone(model).get_submodule(self.embeddings)

    def token_embedding(self, model: nn.Module) -> nn.Embedding:
        return self.embedding(model)  # type: ignore[return-value]

    def token_table(self, model: nn.Module) -> str:
        """Qualified name of the token table."""
        return f"{model.base_model_prefix}.{self.embeddings}"

    def head_size(self, layer: nn.Module) -> int:
        return int(layer.get_submodule(self.attention_output.rpartition(".")[0]).head_dim)  # type: ignore[arg-type]

    def num_heads(self, layer: nn.Module) -> int:
        """Heads of keys and values: with each go the heads of queries that read it."""
        keys: Any = layer.get_submodule(self.qkv[-1])
        outputs = keys.nf // 3 if self.is_transposed else keys.out_features
        return int(outputs // self.head_size(layer))

    def set_num_heads(self, layer: nn.Module, num_heads: int, head_size: int) -> None:
        """Attention counts heads by the width of what it is given."""

    def ffn_width(self, layer: nn.Module) -> int:
        down: Any = layer.get_submodule(self.ffn_down)
        return int(down.nx if self.is_transposed else down.in_features)

    def count_layers(self, model: nn.Module, kept: Sequence[int]) -> None:
        """Has a model that kept these of its layers say how many there are, and each of them which it is."""
        config: Any = model.config
        config.num_hidden_layers = len(kept)
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[index] for index in kept]
        for index, layer in enumerate(self.layer_list(model)):
            holder: Any = layer.get_submodule(self.attention_output.rpartition(".")[0])
            holder.layer_idx = index
            if getattr(config, "scale_attn_by_inverse_layer_idx", False):
                # GPT-2 divides by the number of the layer, here or when it is loaded: queries make up for it.
                ratio = (index + 1) / (kept[index] + 1)
                holder.scaling /= ratio
                for parameter in (holder.c_attn.weight, holder.c_attn.bias):
                    parameter.data[..., : holder.embed_dim] *= ratio

    def describe_shapes(self, model: nn.Module) -> None:
        """Has a model's configuration say what its layers are, which all have the same shape."""
        config: Any = model.config
        sizes = attention(model)
        layers = self.layer_list(model)
        kv_heads, ffn = {self.num_heads(layer) for layer in layers}, {self.ffn_width(layer) for layer in layers}
        assert len(kv_heads) == len(ffn) == 1, "layers of a decoder have the same shape"
        config.num_hidden_layers = len(layers)
        if not self.is_transposed:
            (kept,), per_head = kv_heads, sizes.heads // sizes.kv_heads
            config.num_attention_heads, config.num_key_value_heads = kept * per_head, kept
            config.head_dim, config.intermediate_size = sizes.head_size, ffn.pop()

    def linears(self, model: nn.Module) -> dict[str, nn.Module]:
        """Linear layers of all layers by qualified name, in the order of computation."""
        return {name: model.get_submodule(name) for group in self.linear_groups(model) for name in group}

    def linear_groups(self, model: nn.Module) -> list[tuple[str, ...]]:
        """The same names by what they read, in the order of computation."""
        return [
            tuple(self.qualified(model, index, part) for part in group)
            for index in range(len(self.layer_list(model)))
            for group in self.groups()
        ]

    def qualified(self, model: nn.Module, index: int, part: str) -> str:
        """Name, in the model, of a part of a layer."""
        return f"{model.base_model_prefix}.{self.layers}.{index}.{part}"

    def table(self, model: nn.Module) -> torch.Tensor:
        """Token embeddings (V, H)."""
        return self.token_embedding(model).weight.detach()

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
        return self._projection(model, self.qualified(model, index, part))

    def _projection(self, model: nn.Module, name: str) -> Projection:
        found: Any = model.get_submodule(name)
        weight, bias = found.weight.detach(), getattr(found, "bias", None)
        return Projection(name, weight.T if self.is_transposed else weight, None if bias is None else bias.detach())

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Linear layers of a layer by what they read, in the order of computation."""
        return self.qkv, (self.attention_output,), self.ffn_in, (self.ffn_down,)

    def projections(self, model: nn.Module) -> list[Projection]:
        """All linear layers of all layers, in the order of computation."""
        return [self._projection(model, name) for name in self.linears(model)]


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
    import torch

    rotary: Any = of_model(model).backbone(model).get_submodule("rotary_emb")
    if rotary.rope_type not in SCALED_ROTATIONS:
        raise FeatherweightError(
            f"base_model: rotary embedding of kind {rotary.rope_type!r} is not supported; supported: "
            f"{', '.join(SCALED_ROTATIONS)}"
        )
    angles = torch.outer(torch.arange(length, dtype=torch.float32), rotary.inv_freq.float())
    return angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling


_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

LLAMA = Decoder(
    model_types=("llama",),
    prefix="model",
    embeddings="embed_tokens",
    layers="layers",
    final_norm="norm",
    attention_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_output="self_attn.o_proj",
    ffn_norm="post_attention_layernorm",
    ffn_in=("mlp.gate_proj", "mlp.up_proj"),
    ffn_down="mlp.down_proj",
    biases=((_ATTENTION, "attention_bias"), (_FFN, "mlp_bias")),
)

MISTRAL = replace(LLAMA, model_types=("mistral",), windows=ALL_LAYERS, biases=())

QWEN2 = replace(LLAMA, model_types=("qwen2",), windows=BY_LAYER, biases=((_ATTENTION[:3], ""),))

QWEN3 = replace(
    LLAMA,
    model_types=("qwen3",),
    windows=BY_LAYER,
    biases=((_ATTENTION, "attention_bias"),),
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
)

GEMMA = replace(
    LLAMA,
    model_types=("gemma",),
    biases=((_ATTENTION, "attention_bias"),),
    norm_offset=1.0,
    scales_embeddings=True,
)

GPT2 = Decoder(
    model_types=("gpt2",),
    prefix="transformer",
    embeddings="wte",
    positions="wpe",
    layers="h",
    final_norm="ln_f",
    attention_norm="ln_1",
    qkv=("attn.c_attn",),
    attention_output="attn.c_proj",
    ffn_norm="ln_2",
    ffn_in=("mlp.c_fc",),
    ffn_down="mlp.c_proj",
    biases=((("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"), ""),),
    names=(
        ("n_embd", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("n_positions", "max_position_embeddings"),
        ("n_inner", "intermediate_size"),
    ),
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
