"""Shapes of a transformer that its costs depend on, read from its ``config.json``; torch is not needed for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import families

ENCODERS = ("bert", "roberta", "xlm-roberta")
DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma")


@dataclass(frozen=True)
class Activation:
    """What stands between the matrices of a feed-forward network, as PyTorch's eager operators compute it."""

    matrices: int
    """Matrices of the network: up and down, and the gate if it has one."""
    moved: int
    """Elements read and written by operators, per channel."""
    kept: int
    """Elements that autograd keeps for the backward pass, per channel: inputs and outputs of its operators."""


GELU = Activation(matrices=2, moved=2, kept=2)
GELU_TANH = Activation(matrices=2, moved=18, kept=5)
"""GPT-2's: eight small operators in transformers."""
GATED = Activation(matrices=3, moved=5, kept=4)
"""SwiGLU and GeGLU (Shazeer 2020, arXiv:2002.05202)."""


@dataclass(frozen=True)
class Layer:
    """The shape of one transformer layer; pruned layers differ."""

    heads: int
    kv_heads: int
    """Heads of keys and values: fewer in grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245)."""
    ffn: int
    """Width of the feed-forward network."""


@dataclass(frozen=True)
class Architecture:
    """The shapes that costs depend on. A sliding window of attention is not among them."""

    model_type: str
    hidden: int
    head_size: int
    layers: tuple[Layer, ...]
    vocabulary: int
    max_length: int
    """Longest sequence that it has positions for."""
    causal: bool
    """A decoder with a language-model head, norms before each block and one after the last; else an encoder, with
    norms after the embeddings and each block."""
    activation: Activation = GELU
    rms_norm: bool = False
    """RMS norms (Zhang & Sennrich 2019, arXiv:1910.07467), which have no bias and are five small operators here."""
    rotary: bool = False
    """Rotary positions (Su et al. 2021, arXiv:2104.09864)."""
    qk_norms: bool = False
    """A norm of each head of queries and of keys (Qwen3)."""
    fused_qkv: bool = False
    """One matrix for queries, keys and values, which reads its input once."""
    learned_positions: int = 0
    """Rows of the table of position embeddings."""
    token_types: int = 0
    """Rows of the table of token type embeddings."""
    qkv_bias: bool = True
    output_bias: bool = True
    ffn_bias: bool = True
    tied_embeddings: bool = False
    pooler: bool = False
    """A hidden × hidden layer on the first token. RoBERTa's classification head has one of the same shape."""
    classes: int = 0
    """Outputs of the classifier on the first token; 0 without one."""
    embedding_rank: int = 0
    """Columns of a factorized token table; 0: it has one for each of ``hidden``."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """Reads the ``config.json`` of a model, or a transformers config's ``to_dict()``.

        A ``featherweight`` entry, which ``modeling.save`` writes, gives each layer's shape and means a classifier.

        Raises:
            FeatherweightError: the architecture is not known here, or a size is missing or makes no sense.
        """
        model_type = check_supported(config)
        if model_type == "gpt2":
            return _gpt2(config)
        return _llama(config) if model_type in DECODERS else _bert(config)


def check_supported(config: Mapping[str, Any]) -> str:
    """Returns the ``model_type`` of a config.

    Raises:
        FeatherweightError: the architecture is not known here.
    """
    model_type = str(config.get("model_type"))
    if model_type not in (*ENCODERS, *DECODERS):
        known = ", ".join((*ENCODERS, *DECODERS))
        raise FeatherweightError(f"xray: architecture {model_type!r} is not supported; supported: {known}")
    return model_type


def _size(config: Mapping[str, Any], name: str) -> int:
    """A positive whole number of a config."""
    value = config.get(name)
    if value is None:
        raise FeatherweightError(f"xray: the config of this {config['model_type']} model has no {name}")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise FeatherweightError(
            f"xray: the config of this {config['model_type']} model has {name} {value!r}, which must be a whole "
            "number above 0"
        )
    return value


def _head_size(hidden: int, heads: int) -> int:
    if hidden % heads:
        raise FeatherweightError(f"xray: a hidden size of {hidden} cannot be divided among {heads} heads")
    return hidden // heads


def _bert(config: Mapping[str, Any]) -> Architecture:
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    positions, names = _size(config, "max_position_embeddings"), config.get("architectures") or ()
    described = (config.get("featherweight") or {}).get("layers")
    classifier = bool(described) or any("SequenceClassification" in name for name in names)
    if described:
        layers = tuple(Layer(heads=one["heads"], kv_heads=one["heads"], ffn=one["ffn"]) for one in described)
    else:
        layers = (Layer(heads, heads, _size(config, "intermediate_size")),) * _size(config, "num_hidden_layers")
    return Architecture(
        model_type=config["model_type"],
        hidden=hidden,
        head_size=_head_size(hidden, heads),
        layers=layers,
        vocabulary=_size(config, "vocab_size"),
        max_length=positions - families.of(config["model_type"]).first_position(config),
        causal=False,
        learned_positions=positions,
        token_types=_size(config, "type_vocab_size"),
        pooler=True,
        classes=len(config.get("id2label") or (0, 1)) if classifier else 0,
        embedding_rank=(config.get("featherweight") or {}).get("embedding_rank", 0),
    )


def _llama(config: Mapping[str, Any]) -> Architecture:
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    kv_heads = _size(config, "num_key_value_heads") if config.get("num_key_value_heads") else heads
    bias = bool(config.get("attention_bias", False))
    return Architecture(
        model_type=config["model_type"],
        hidden=hidden,
        head_size=_size(config, "head_dim") if config.get("head_dim") else _head_size(hidden, heads),
        layers=(Layer(heads, kv_heads, _size(config, "intermediate_size")),) * _size(config, "num_hidden_layers"),
        vocabulary=_size(config, "vocab_size"),
        max_length=_size(config, "max_position_embeddings"),
        causal=True,
        activation=GATED,
        rms_norm=True,
        rotary=True,
        qk_norms=config["model_type"] == "qwen3",
        qkv_bias=bias or config["model_type"] == "qwen2",
        output_bias=bias,
        ffn_bias=bool(config.get("mlp_bias", False)),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def _gpt2(config: Mapping[str, Any]) -> Architecture:
    hidden, heads = _size(config, "n_embd"), _size(config, "n_head")
    ffn = _size(config, "n_inner") if config.get("n_inner") else 4 * hidden
    return Architecture(
        model_type=config["model_type"],
        hidden=hidden,
        head_size=_head_size(hidden, heads),
        layers=(Layer(heads, heads, ffn),) * _size(config, "n_layer"),
        vocabulary=_size(config, "vocab_size"),
        max_length=_size(config, "n_positions"),
        causal=True,
        activation=GELU_TANH,
        fused_qkv=True,
        learned_positions=_size(config, "n_positions"),
        tied_embeddings=bool(config.get("tie_word_embeddings", True)),
    )
