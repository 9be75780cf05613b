"""What a decoder's tokens cost when they are written one by one: each reads all weights, and what the cache holds.

So bytes and not FLOPs are the limit for one text (Pope et al. 2022, arXiv:2211.05102, section 3.1): a machine writes no
more tokens a second than its bandwidth over the bytes of a token. P = tokens in the cache.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn

from tasks.ml.xray import cost_model, roofline
from tasks.ml.xray.architecture import Architecture

CONTEXTS = (128, 1024)
PASSES = 16


@dataclass(frozen=True)
class Format:
    """How weights and cache are stored."""

    name: str
    bits: float
    """Of a weight of a linear layer, with its share of scales and zero points."""
    head_bits: float
    cache_bytes: float = 4
    """Of a number in the cache."""


def in_blocks(bits: int, block_size: int) -> float:
    """Bits a weight takes in blocks that have a scale in fp32 and a zero point of as many bits each."""
    return bits + (32 + bits) / block_size


FORMATS = (
    Format("fp32", 32, 32),
    Format("bf16", 16, 16, cache_bytes=2),
    Format("8 bits in blocks of 64", in_blocks(8, 64), in_blocks(8, 64)),
    Format("4 bits in blocks of 32, head in 8", in_blocks(4, 32), in_blocks(8, 32)),
    Format("4 bits in blocks of 64, head in 8", in_blocks(4, 64), in_blocks(8, 64)),
    Format("4 bits in blocks of 64", in_blocks(4, 64), in_blocks(4, 64)),
)


def bytes_a_token(architecture: Architecture, stored: Format, *, past: int) -> float:
    """Bytes that are read to write one token after P others: linear layers, head and cache.

    Norms, biases and one row of the token table are left out: less than a thousandth.
    """
    a = architecture
    counts = cost_model.component_flops(a, batch=1, length=1)  # 2 FLOPs a weight and token
    head = counts["head"] / 2
    layers = sum(counts[name] for name in ("qkv", "attention_output", "ffn")) / 2
    cache = past * cost_model.kv_cache_bytes_per_token(a, bytes_per_element=stored.cache_bytes)
    return (layers * stored.bits + head * stored.head_bits) / 8 + cache


@dataclass(frozen=True)
class Written:
    """What PyTorch needs for a token after P others: seconds."""

    seconds: float
    fastest: float
    slowest: float


@torch.inference_mode()
def measure(model: nn.Module, architecture: Architecture, *, past: int) -> Written:
    """Times single tokens after P random ones, with transformers' cache."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(architecture.vocabulary, (1, past + PASSES + 1), generator=generator).to(device)
    cache = model(input_ids=ids[:, :past], use_cache=True).past_key_values
    times = []
    for token in ids[:, past:].split(1, dim=1):
        roofline.synchronize(device)
        started = time.perf_counter()
        model(input_ids=token, past_key_values=cache, use_cache=True)
        roofline.synchronize(device)
        times.append(time.perf_counter() - started)
    times = times[1:]  # the first brings memory
    return Written(statistics.median(times), min(times), max(times))
