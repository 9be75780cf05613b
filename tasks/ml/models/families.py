"""What surgery, layer maps and export need to know of an architecture: one description per family.

A description holds dotted paths, relative to the backbone (``model.base_model``) or to one of its layers.
torch is imported where modules are handled only: ``locators`` asks whether an architecture is supported without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tasks.contracts.base import FeatherweightError

if TYPE_CHECKING:
    import torch
    from torch import nn

DEFAULT_PADDING = 1
"""RoBERTa's ``pad_token_id`` where a configuration names none."""


SIZES = (
    "vocab_size", "max_position_embeddings", "type_vocab_size", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "intermediate_size",
)  # fmt: skip
"""What the configuration of each family says of its shapes."""


@dataclass(frozen=True)
class Family:
    """Where an encoder family keeps its parts. All linear layers are ``nn.Linear`` with weight (out, in)."""

    model_types: tuple[str, ...]
    prefix: str
    """Name of the backbone in a model that has a head on it (``base_model_prefix``)."""
    embeddings: str
    """Token embeddings: ``nn.Embedding`` (vocabulary, hidden), or ``factorization.Factorized``."""
    position_embeddings: str
    """Position embedding table, ``nn.Embedding`` (positions, hidden)."""
    token_types: str
    """Token type table, ``nn.Embedding`` (types, hidden)."""
    embedding_norm: str
    layers: str
    layer_norms: tuple[str, ...]
    attention: str
    """Module that is given to the attention interface; holds ``head_counts`` attributes."""
    query: str
    key: str
    value: str
    attention_output: str
    """Projection from concatenated heads (heads × head size) to hidden."""
    ffn_up: str
    ffn_down: str
    head_count: str
    """Attribute of ``attention`` with the number of heads."""
    all_head_size: str
    """Attribute of ``attention`` with heads × head size."""
    one_head_size: str
    """Attribute of ``attention`` with the size of a head."""
    summary: str
    """Layer (hidden → hidden) between the backbone's first token and ``classifier``; both relative to the model."""
    classifier: str
    positions_follow_padding: bool = False
    """Whether the first token has the position after that of the padding token's id, as in RoBERTa, and not 0."""

    def first_position(self, config: Mapping[str, Any]) -> int:
        """Position of the first token, under the ``config.json`` of a model, or its ``to_dict()``.

        Raises:
            FeatherweightError: it depends on ``pad_token_id``, which is none.
        """
        if not self.positions_follow_padding:
            return 0
        padding = config.get("pad_token_id", DEFAULT_PADDING)
        if not isinstance(padding, int) or isinstance(padding, bool) or padding < 0:
            raise FeatherweightError(
                f"base_model: config.json has pad_token_id {json.dumps(padding)}, but {config['model_type']} counts "
                f"positions from it; the id of the padding token in the vocabulary would be right, such as 1"
            )
        return padding + 1

    def require_padding(self, config: Mapping[str, Any], pad_id: int) -> None:
        """Raises ``FeatherweightError`` if rows are padded with another token than positions are counted from."""
        first = self.first_position(config)
        if first and first != pad_id + 1:
            raise FeatherweightError(
                f"base_model: config.json has pad_token_id {first - 1}, from which {config['model_type']} counts "
                f"positions, but the tokenizer pads with {pad_id}; make the pad_token of tokenizer_config.json the "
                f"token {first - 1}"
            )

    def tensors(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Shapes of the backbone's parameters by name, without what the head reads it through (``summary``).

        Args:
            config: of a model as it was pretrained, whose layers all have the same shape; with all of ``SIZES``.
        """
        hidden, ffn = config["hidden_size"], config["intermediate_size"]
        found: dict[str, tuple[int, ...]] = {
            f"{self.embeddings}.weight": (config["vocab_size"], hidden),
            f"{self.position_embeddings}.weight": (config["max_position_embeddings"], hidden),
            f"{self.token_types}.weight": (config["type_vocab_size"], hidden),
        }
        square = dict.fromkeys((self.query, self.key, self.value, self.attention_output), (hidden, hidden))
        linears = {**square, self.ffn_up: (ffn, hidden), self.ffn_down: (hidden, ffn)}
        layers = [f"{self.layers}.{index}" for index in range(config["num_hidden_layers"])]
        norms = (self.embedding_norm, *(f"{layer}.{name}" for layer in layers for name in self.layer_norms))
        for norm in norms:
            found |= {f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)}
        for layer in layers:
            for name, shape in linears.items():
                found |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        return found

    sizes: ClassVar[tuple[str, ...]] = SIZES

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A ``config.json``, with the names that all families have for its settings."""
        return dict(config)

    def count_layers(self, model: nn.Module, kept: Sequence[int]) -> None:
        """Has a model that kept these of its layers say how many there are."""
        config: Any = model.config
        config.num_hidden_layers = len(kept)

    def describe_shapes(self, model: nn.Module) -> None:
        """Has a model's configuration say how many layers there are; what shapes they have it says elsewhere."""
        self.count_layers(model, range(len(self.layer_list(model))))

    @property
    def head_parts(self) -> tuple[str, ...]:
        """Linear layers whose outputs are heads."""
        return self.query, self.key, self.value

    @property
    def channel_parts(self) -> tuple[str, ...]:
        """Linear layers whose outputs are FFN channels."""
        return (self.ffn_up,)

    @property
    def cut_by_output(self) -> tuple[str, ...]:
        """Linear layers that tensor parallelism gives some rows of to each process: whole heads and FFN channels."""
        return self.query, self.key, self.value, self.ffn_up

    @property
    def cut_by_input(self) -> tuple[str, ...]:
        """Linear layers that take what those put out, and of which each process gets the columns for it."""
        return self.attention_output, self.ffn_down

    def backbone(self, model: nn.Module) -> nn.Module:
        return model.base_model  # type: ignore[return-value]

    def layer_list(self, model: nn.Module) -> nn.ModuleList:
        return self.backbone(model).get_submodule(self.layers)  # type: ignore[return-value]

    def embedding(self, model: nn.Module) -> nn.Module:
        """What makes vectors of the hidden size of token ids."""
        return self.backbone(model).get_submodule(self.embeddings)

    def count_positions(self, model: nn.Module) -> None:
        """Has a model, in place, count positions from the left whatever its tokens are, as its graph does.

        Nobody reads padding, but where a batch shares the scale of its activations, padding has a part in it.
        """
        if self.positions_follow_padding:
            holder: Any = self.backbone(model).get_submodule(self.position_embeddings.rpartition(".")[0])
            holder.create_position_ids_from_input_ids = _from_left

    def token_embedding(self, model: nn.Module) -> nn.Embedding:
        """The token table, which may have fewer columns than the hidden size."""
        found = self.embedding(model)
        return found.table if hasattr(found, "table") else found  # type: ignore[return-value]

    def token_table(self, model: nn.Module) -> str:
        """Qualified name of the token table."""
        name = f"{model.base_model_prefix}.{self.embeddings}"
        return f"{name}.table" if hasattr(self.embedding(model), "table") else name

    def num_heads(self, layer: nn.Module) -> int:
        return int(getattr(layer.get_submodule(self.attention), self.head_count))

    def head_size(self, layer: nn.Module) -> int:
        return int(getattr(layer.get_submodule(self.attention), self.one_head_size))

    def ffn_width(self, layer: nn.Module) -> int:
        return int(layer.get_submodule(self.ffn_up).out_features)  # type: ignore[arg-type]

    def set_num_heads(self, layer: nn.Module, num_heads: int, head_size: int) -> None:
        attention = layer.get_submodule(self.attention)
        setattr(attention, self.head_count, num_heads)
        setattr(attention, self.all_head_size, num_heads * head_size)
        setattr(attention, self.one_head_size, head_size)

    def linears(self, model: nn.Module) -> dict[str, nn.Linear]:
        """Linear layers of the backbone, pooler included, by qualified name: what quantization lowers to integers.

        The head that sits on the backbone is small and decides, so it stays as it is.
        """
        from torch import nn

        backbone = f"{model.base_model_prefix}."
        return {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name.startswith(backbone)
        }

    def linear_groups(self, model: nn.Module) -> list[tuple[str, ...]]:
        """The same names by what they read, in the order of computation: query, key and value of a layer share it."""
        prefix = f"{model.base_model_prefix}.{self.layers}"
        groups = [
            tuple(f"{prefix}.{index}.{name}" for name in names)
            for index in range(len(self.layer_list(model)))
            for names in (
                (self.query, self.key, self.value), (self.attention_output,), (self.ffn_up,), (self.ffn_down,)
            )
        ]  # fmt: skip
        grouped = {name for group in groups for name in group}
        others = [(name,) for name in self.linears(model) if name not in grouped]
        below = [group for group in others if group[0].startswith(f"{model.base_model_prefix}.{self.embeddings}.")]
        return below + groups + [group for group in others if group not in below]


def _from_left(input_ids: torch.Tensor, padding_idx: int, *_: Any) -> torch.Tensor:
    """Positions (B, S) of token ids (B, S), from the one after the padding token's id on."""
    import torch

    first = padding_idx + 1
    return torch.arange(first, first + input_ids.shape[1], device=input_ids.device).expand_as(input_ids)


BERT = Family(
    model_types=("bert",),
    prefix="bert",
    embeddings="embeddings.word_embeddings",
    position_embeddings="embeddings.position_embeddings",
    token_types="embeddings.token_type_embeddings",
    embedding_norm="embeddings.LayerNorm",
    layers="encoder.layer",
    layer_norms=("attention.output.LayerNorm", "output.LayerNorm"),
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    ffn_up="intermediate.dense",
    ffn_down="output.dense",
    head_count="num_attention_heads",
    all_head_size="all_head_size",
    one_head_size="attention_head_size",
    summary="bert.pooler.dense",
    classifier="classifier",
)

ROBERTA = replace(
    BERT,
    model_types=("roberta", "xlm-roberta"),
    prefix="roberta",
    summary="classifier.dense",
    classifier="classifier.out_proj",
    positions_follow_padding=True,
)

FAMILIES = (BERT, ROBERTA)


def of(model_type: str) -> Family:
    """Returns the description of a ``config.model_type``.

    Raises:
        FeatherweightError: the architecture has no description.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise FeatherweightError(f"base_model: architecture {model_type!r} is no encoder that is supported: {known}")


def of_model(model: nn.Module) -> Family:
    """Returns the description of a model's architecture, as ``of`` does of its name."""
    config: Any = model.config
    return of(config.model_type)


def resize_linear(linear: nn.Linear, *, out_features: int | None = None, in_features: int | None = None) -> None:
    """Gives a linear layer new, uninitialised shapes in place; a state dict is expected to fill them."""
    import torch
    from torch import nn

    out_features = out_features or linear.out_features
    in_features = in_features or linear.in_features
    linear.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=linear.weight.dtype))
    if linear.bias is not None and linear.bias.numel() != out_features:
        linear.bias = nn.Parameter(torch.empty(out_features, dtype=linear.bias.dtype))
    linear.out_features, linear.in_features = out_features, in_features
