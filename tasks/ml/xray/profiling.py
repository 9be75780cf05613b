"""Where the time of a pass goes, from torch's profiler, and what autograd keeps of it: by component of the model.

B = rows, S = tokens per row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import record_function

from tasks.ml.xray import cost_model

MODULES = (
    (r"\b(query|key|value|[qkv]_proj|c_attn)$", "qkv"),
    (r"\b(attention\.output\.dense|o_proj|attn\.c_proj)$", "attention_output"),
    (r"\b(intermediate\.dense|output\.dense|(gate|up|down)_proj|c_fc|mlp\.c_proj)$", "ffn"),
    (r"\b(pooler|classifier|lm_head)$", "head"),
    (r"\b(embeddings|embed_tokens|wte|wpe)$", "embeddings"),
    (r"(LayerNorm|layernorm|\bnorm|\bln_\w+)$", "norms"),
)
"""Which component a module is, by the end of its qualified name; the first that fits, and the innermost module."""

ATTENTION = "aten::scaled_dot_product_attention"
LABEL = "xray:"


def loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """A scalar to differentiate, of token ids (B, S): cross-entropy of a decoder, else the sum of all outputs."""
    output = model(input_ids=ids, use_cache=False)  # filling a cache would copy keys and values
    if hasattr(output, "logits") and output.logits.ndim == 3:
        return F.cross_entropy(output.logits.flatten(0, 1).float(), ids.flatten())
    return sum((part.float().sum() for part in output.to_tuple()), torch.zeros((), device=ids.device))


@contextmanager
def labelled(model: nn.Module) -> Iterator[None]:
    """While it lasts, every module that is a component records a range of its name for the profiler."""
    ranges = []

    def enter(component: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            ranges.append(record_function(LABEL + component).__enter__())

        return hook

    def leave(*_: Any) -> None:
        ranges.pop().__exit__(None, None, None)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            component = next((component for pattern, component in MODULES if re.search(pattern, name)), None)
            if component:
                hooks.enter_context(module.register_forward_pre_hook(enter(component)))
                hooks.enter_context(module.register_forward_hook(leave))
        yield


def cpu_seconds(event: Any) -> float:
    """Time inside an operator on the CPU, without the operators that it calls."""
    return float(event.self_cpu_time_total) / 1e6


def cuda_seconds(event: Any) -> float:
    """Time of the kernels that an operator launched itself."""
    return float(event.self_device_time_total) / 1e6


def attribute(events: Sequence[Any], amount: Callable[[Any], float]) -> dict[str, float]:
    """Sums an amount of every operator by component, from the events of a profile taken under ``labelled``.

    An operator belongs to the innermost labelled module around it; fused attention is known by name, and what lies in
    no module (residual sums, activations, rotary positions) is elementwise. Backward operators have no module around
    them: they carry the sequence number of the forward operator that they differentiate.
    """
    by_sequence: dict[int, str] = {}
    amounts = dict.fromkeys(cost_model.COMPONENTS, 0.0)
    found: dict[int, str] = {}

    def component(event: Any) -> str:
        if id(event) not in found:
            parent = event.cpu_parent
            if event.name.startswith(LABEL):
                found[id(event)] = event.name.removeprefix(LABEL)
            elif event.name == ATTENTION:
                found[id(event)] = "attention"
            elif parent is not None:
                found[id(event)] = component(parent)
            else:
                found[id(event)] = by_sequence.get(event.sequence_nr, "norms")
        return found[id(event)]

    for event in sorted(events, key=lambda event: event.time_range.start):
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # kernels of a GPU, which the operators that launched them already count
        name = component(event)
        if event.name.startswith((LABEL, "autograd::engine")):
            continue
        backward = event.scope == 1 or (event.cpu_parent is not None and event.cpu_parent.scope == 1)
        if event.sequence_nr >= 0 and not backward:
            by_sequence[event.sequence_nr] = name
        amounts[name] += amount(event)
    return amounts


def saved_bytes(model: nn.Module, ids: torch.Tensor) -> int:
    """Bytes of the distinct tensors that autograd keeps from forward to backward, besides parameters."""
    mine = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model, ids)
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in mine)
