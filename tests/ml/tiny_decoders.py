"""Tiny random decoders of every family, each of whose parameters matters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

LAYERS, VOCABULARY = 3, 128
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
STRETCHED = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "llama, tied": ("llama", SIZES | {"tie_word_embeddings": True}),
    "llama, biases": ("llama", SIZES | {"attention_bias": True, "mlp_bias": True}),
    "llama, stretched": ("llama", SIZES | {"rope_parameters": STRETCHED}),
    "mistral": ("mistral", SIZES | {"sliding_window": 4}),
    "qwen2": ("qwen2", SIZES),
    "qwen2, windows": (
        "qwen2",
        SIZES | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", SIZES | {"head_dim": 32}),
    "gemma": ("gemma", SIZES | {"head_dim": 32, "hidden_act": "gelu_pytorch_tanh"}),
    "gpt2": ("gpt2", GPT2),
    "gpt2, scaled by layer": ("gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2, not scaled": ("gpt2", GPT2 | {"scale_attn_weights": False}),
}


def model_of(name: str, *, attention: str = "sdpa") -> nn.Module:
    """A random model; ``attention`` is how transformers computes it."""
    kind, sizes = MODELS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.15)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens(rows: int = 2, length: int = 12) -> torch.Tensor:
    """Random token ids (rows, length)."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))
