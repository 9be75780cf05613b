"""What a transformer costs, in theory: parameters, FLOPs, bytes and memory of each component, from its shapes alone.

B = rows, S = new tokens per row, P = tokens per row already in the KV cache, T = B × S.

A multiply–add is 2 FLOPs, and only matrix products are counted: the convention of Kaplan et al. 2020
(arXiv:2001.08361), of model-FLOPs utilisation in Chowdhery et al. 2022 (arXiv:2204.02311, appendix B), and of
``torch.utils.flop_counter``. Attention is counted as the full S × (P + S) rectangle, though a causal kernel may skip
half of it. The backward pass costs twice the forward pass; what is computed again, in checkpointing or inside a fused
attention kernel, is work of the implementation and not of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks.ml.xray.architecture import Architecture, Layer

COMPONENTS = {
    "embeddings": "embeddings",
    "qkv": "QKV projections",
    "attention": "attention scores and mix",
    "attention_output": "attention output",
    "ffn": "feed-forward",
    "norms": "norms and elementwise",
    "head": "head",
}
"""Every component by its name in results, and as people read it."""

OPTIMIZER_BYTES = {"adamw": 8.0, "adamw-8bit": 2.0, "lion": 4.0, "sgd": 4.0}
"""Bytes of state per trained parameter. AdamW keeps two fp32 moments (Loshchilov & Hutter 2019, arXiv:1711.05101), or
two of 8 bits (Dettmers et al. 2022, arXiv:2110.02861, whose scales per block are left out); Lion (Chen et al.
2023, arXiv:2302.06675) and SGD with momentum keep one. Step counters, one number per tensor, are left out."""

TRAINING_FACTOR = 3
"""FLOPs of a training step over those of its forward pass: backward differentiates by inputs and by weights."""


def _by_component(**values: float) -> dict[str, float]:
    return {name: values.get(name, 0) for name in COMPONENTS}


def parameters(architecture: Architecture) -> dict[str, int]:
    """Number of parameters of each component; a tied head has none of its own."""
    a, hidden = architecture, architecture.hidden
    found = dict.fromkeys(COMPONENTS, 0)
    found["embeddings"] = (a.learned_positions + a.token_types) * hidden
    found["embeddings"] += a.vocabulary * (a.embedding_rank or hidden) + a.embedding_rank * hidden
    found["norms"] = (1 if a.rms_norm else 2) * hidden * (2 * len(a.layers) + 1)
    for layer in a.layers:
        queries, keys = layer.heads * a.head_size, layer.kv_heads * a.head_size
        found["qkv"] += (queries + 2 * keys) * (hidden + a.qkv_bias)
        found["attention_output"] += (queries + a.output_bias) * hidden
        found["norms"] += 2 * a.qk_norms * a.head_size
        found["ffn"] += a.activation.matrices * layer.ffn * hidden
        found["ffn"] += a.ffn_bias * ((a.activation.matrices - 1) * layer.ffn + hidden)
    if a.causal:
        found["head"] = 0 if a.tied_embeddings else a.vocabulary * hidden
    else:
        found["head"] = a.pooler * hidden * (hidden + 1) + a.classes * (hidden + 1)
    return found


def num_parameters(architecture: Architecture) -> int:
    """Number of parameters of the whole model."""
    return sum(parameters(architecture).values())


def component_flops(architecture: Architecture, *, batch: int, length: int, past: int = 0) -> dict[str, float]:
    """FLOPs of a forward pass by component, for B × S new tokens after ``past`` (P) tokens in the KV cache."""
    a, tokens = architecture, batch * length
    embeddings = 2 * tokens * a.embedding_rank * a.hidden
    qkv = attention = output = ffn = 0
    for layer in a.layers:
        queries, keys = layer.heads * a.head_size, layer.kv_heads * a.head_size
        qkv += 2 * tokens * a.hidden * (queries + 2 * keys)
        attention += 2 * 2 * tokens * (past + length) * queries
        output += 2 * tokens * queries * a.hidden
        ffn += 2 * tokens * a.activation.matrices * a.hidden * layer.ffn
    if a.causal:
        head = 2 * tokens * a.hidden * a.vocabulary
    else:
        head = 2 * batch * a.hidden * (a.pooler * a.hidden + a.classes)
    return _by_component(
        embeddings=embeddings, qkv=qkv, attention=attention, attention_output=output, ffn=ffn, head=head
    )


def forward_flops(architecture: Architecture, *, batch: int, length: int, past: int = 0) -> float:
    """FLOPs of a forward pass."""
    return sum(component_flops(architecture, batch=batch, length=length, past=past).values())


def component_bytes(
    architecture: Architecture,
    *,
    batch: int,
    length: int,
    past: int = 0,
    bytes_per_element: float = 4,
    fused_attention: bool = True,
    training: bool = False,
) -> dict[str, float]:
    """Bytes that a forward pass of PyTorch's eager operators moves, by component.

    Every operator reads its operands from memory and writes its result there, once. Caches may spare much of it, so
    this is what to set against memory bandwidth where the tensors are large.

    Args:
        fused_attention: whether the scores stay inside the kernel (Dao et al. 2022, arXiv:2205.14135).
        training: adds the backward pass: as much again by inputs and by weights, and the dense gradient of the tables.
    """
    a, hidden, tokens = architecture, architecture.hidden, batch * length
    norm = (7 if a.rms_norm else 2) * tokens * hidden
    residual = 3 * tokens * hidden
    moved = _by_component(embeddings=2 * tokens * hidden, norms=norm)
    if a.learned_positions:  # looked up once for all rows, and summed
        moved["embeddings"] += (2 * tokens + 3 * length) * hidden
    if a.token_types:
        moved["embeddings"] += 5 * tokens * hidden
    weights = parameters(a)
    for name in ("qkv", "attention_output", "ffn"):
        moved[name] += weights[name]
    for layer in a.layers:
        queries, keys = layer.heads * a.head_size, layer.kv_heads * a.head_size
        if queries:
            moved["qkv"] += tokens * ((1 if a.fused_qkv else 3) * hidden + queries + 2 * keys)
        moved["attention"] += 2 * tokens * queries + 2 * batch * (past + length) * keys
        if not fused_attention:  # scores written, softmax, scores read
            moved["attention"] += 4 * tokens * (past + length) * layer.heads
        moved["attention_output"] += tokens * (queries + hidden)
        moved["ffn"] += a.activation.matrices * tokens * (hidden + layer.ffn)
        moved["norms"] += 2 * (norm + residual)
        moved["norms"] += tokens * (a.activation.moved * layer.ffn + 10 * a.rotary * (queries + keys))
        moved["norms"] += tokens * 7 * a.qk_norms * (queries + keys)
    if a.causal:
        moved["head"] = a.vocabulary * hidden + tokens * (hidden + a.vocabulary)
    else:
        moved["head"] = weights["head"] + batch * (2 * hidden * a.pooler + (hidden + a.classes) * bool(a.classes))
    if training:
        moved = {name: TRAINING_FACTOR * elements for name, elements in moved.items()}
        moved["embeddings"] += weights["embeddings"]
    return {name: elements * bytes_per_element for name, elements in moved.items()}


def kv_cache_bytes_per_token(architecture: Architecture, *, bytes_per_element: float = 4) -> float:
    """Bytes of keys and values that each token of each row leaves in the cache; 0 for encoders."""
    if not architecture.causal:
        return 0
    return 2 * bytes_per_element * architecture.head_size * sum(layer.kv_heads for layer in architecture.layers)


def activation_bytes(
    architecture: Architecture,
    *,
    batch: int,
    length: int,
    bytes_per_element: float = 4,
    fused_attention: bool = True,
    dropout_bytes: float = 0,
    checkpointing: bool = False,
) -> float:
    """Bytes of tensors that a training step keeps from forward to backward.

    For a layer of an encoder with FFN 4 × hidden, dropout and 16-bit elements this is the s·b·h·(34 + 5·a·s/h) of
    Korthikanti et al. 2022 (arXiv:2205.05198, equation 1), besides the statistics of the norms.

    Args:
        fused_attention: whether the scores are computed again in the backward pass instead of kept.
        dropout_bytes: what dropout keeps per element: 0 without it, 1 for a boolean mask (CUDA),
            ``bytes_per_element`` for scaled noise (CPU).
        checkpointing: whether only the input of each layer is kept, and one layer at a time is computed again
            (Chen et al. 2016, arXiv:1604.06174).
    """
    a, hidden, tokens, element = architecture, architecture.hidden, batch * length, bytes_per_element
    per_norm = (3 if a.rms_norm else 2) * hidden  # input and output; an RMS norm in small operators also its quotient
    statistics = 4 * (1 if a.rms_norm else 2)

    def kept(layer: Layer) -> float:
        queries, keys = layer.heads * a.head_size, layer.kv_heads * a.head_size
        elements = 2 * per_norm + 2 * queries + 2 * keys + a.activation.kept * layer.ffn
        total = elements * element + 2 * statistics + 2 * hidden * dropout_bytes
        if a.qk_norms:
            total += 2 * (queries + keys) * element + statistics * (layer.heads + layer.kv_heads)  # input and quotient
        if fused_attention:
            return total + 4 * layer.heads  # log-sum-exp of each row of scores
        repeated = 2 * (queries - keys) * element  # grouped keys and values are written out for every head
        scores = (element + (element + dropout_bytes if dropout_bytes else 0)) * layer.heads * length
        return total + repeated + scores

    layers = [kept(layer) for layer in a.layers]
    inside = len(layers) * hidden * element + max(layers, default=0) if checkpointing else sum(layers)
    # The norm that belongs to no layer, dropout on the embeddings, and the fp32 log-probabilities of the loss.
    dropped = 0 if a.rotary else hidden * dropout_bytes
    outside = per_norm * element + statistics + dropped + (4 * a.vocabulary if a.causal else 0)
    return tokens * (inside + outside)


def memory_bytes(
    architecture: Architecture,
    *,
    batch: int,
    length: int,
    optimizer: str = "adamw",
    bytes_per_element: float = 4,
    **activations: Any,
) -> dict[str, float]:
    """Bytes that training holds at its peak: fp32 weights and gradients, optimizer state, activations.

    Args:
        optimizer: one of ``OPTIMIZER_BYTES``.
        bytes_per_element: of activations; 2 under autocast.
        activations: further arguments of ``activation_bytes``.
    """
    count = num_parameters(architecture)
    return {
        "weights": 4 * count,
        "gradients": 4 * count,
        "optimizer": OPTIMIZER_BYTES[optimizer] * count,
        "activations": activation_bytes(
            architecture, batch=batch, length=length, bytes_per_element=bytes_per_element, **activations
        ),
    }


def crossover_length(architecture: Architecture) -> float | None:
    """Sequence length S at which attention's quadratic part, scores and mix, costs as much as all other products.

    ``None`` where no layer has heads.
    """
    short, long = (component_flops(architecture, batch=1, length=length) for length in (1, 2))
    attention = short["attention"]  # a S² = b S + c
    if attention == 0:
        return None
    others = [sum(flops.values()) - flops["attention"] for flops in (short, long)]
    slope = others[1] - others[0]
    constant = others[0] - slope
    return (slope + (slope * slope + 4 * attention * constant) ** 0.5) / (2 * attention)


@dataclass(frozen=True)
class Roofline:
    """What a machine can do at most (Williams, Waterman & Patterson 2009, doi:10.1145/1498765.1498785)."""

    flops_per_s: float
    bytes_per_s: float

    @property
    def ridge(self) -> float:
        """Arithmetic intensity, in FLOPs per byte, from which on the peak and not the memory is the limit."""
        return self.flops_per_s / self.bytes_per_s

    def attainable(self, intensity: float) -> float:
        """Highest FLOP/s at an arithmetic intensity."""
        return min(self.flops_per_s, intensity * self.bytes_per_s)

    def seconds(self, flops: float, moved: float) -> float:
        """Least time for so many FLOPs and bytes, if they overlap perfectly."""
        return max(flops / self.flops_per_s, moved / self.bytes_per_s)
