"""X-ray of a model: where its time goes on this machine, measured beside the theory of ``cost_model``.

B = rows, S = tokens per row. What is measured depends on shapes alone: a model gets random weights, none are read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.initialization import no_init_weights

from tasks.contracts import FeatherweightError
from tasks.ml import cost_model, families, modeling, roofline
from tasks.ml.cost_model import Architecture, Roofline

OUTSIDE = "outside"
"""Time of a pass that no operator ran in: Python, dispatch, and giving memory back."""

MODULES = (
    (r"\b(query|key|value|[qkv]_proj)$", "qkv"),
    (r"\b(attention\.output\.dense|o_proj)$", "attention_output"),
    (r"\b(intermediate\.dense|output\.dense|gate_proj|up_proj|down_proj)$", "ffn"),
    (r"\b(pooler|classifier|lm_head)$", "head"),
    (r"\b(embeddings|embed_tokens)$", "embeddings"),
    (r"(LayerNorm|layernorm|\bnorm)$", "norms"),
)
"""Which component a module is, by the end of its qualified name; the first that fits, and the innermost module."""

ATTENTION = "aten::scaled_dot_product_attention"
LABEL = "xray:"

CELL_SECONDS = 1.0
"""Time spent on passes of one cell, if three do not take longer."""
MIN_PASSES = 3
MAX_PROFILED = 5


@dataclass(frozen=True)
class Measurement:
    """One cell of the grid."""

    seconds: float
    """Median pass without the profiler."""
    passes: int
    component_seconds: dict[str, float]
    """Time inside operators by component, and what is left of ``seconds`` as ``outside``."""
    saved_bytes: int | None = None
    """What autograd kept from forward to backward; training only."""


@dataclass(frozen=True)
class XRay:
    """A model's architecture, the machine, and what was measured at each (B, S)."""

    model: str
    architecture: Architecture
    machine: roofline.Machine
    precision: str
    training: bool
    fused_attention: bool
    dropout_bytes: float
    measured: dict[tuple[int, int], Measurement] = field(default_factory=dict)
    skipped: dict[tuple[int, int], str] = field(default_factory=dict)
    """Why a cell was not measured."""

    @property
    def element(self) -> int:
        """Bytes per element."""
        return roofline.DTYPES[self.precision].itemsize

    @property
    def factor(self) -> int:
        """Work of one pass over that of a forward pass."""
        return cost_model.TRAINING_FACTOR if self.training else 1

    @property
    def roof(self) -> Roofline:
        return self.machine.roof(self.precision)

    def flops(self, batch: int, length: int) -> float:
        """FLOPs of one pass."""
        return self.factor * cost_model.forward_flops(self.architecture, batch=batch, length=length)

    def components(self, batch: int, length: int) -> list[dict[str, Any]]:
        """A row per component: theory for one pass, and the time measured (``None`` where it was not)."""
        shape = {"batch": batch, "length": length}
        flops = cost_model.component_flops(self.architecture, **shape)
        moved = cost_model.component_bytes(
            self.architecture, **shape, bytes_per_element=self.element, fused_attention=self.fused_attention,
            training=self.training,
        )  # fmt: skip
        count = cost_model.parameters(self.architecture)
        measurement = self.measured.get((batch, length))
        rows = []
        for name in cost_model.COMPONENTS:
            work, traffic = self.factor * flops[name], moved[name]
            seconds = measurement.component_seconds[name] if measurement else None
            least = self.roof.seconds(work, traffic)
            rows.append({
                "component": name,
                "parameters": count[name],
                "flops": work,
                "bytes": traffic,
                "flops_per_byte": work / traffic if traffic else 0.0,
                "roofline_seconds": least,
                "seconds": seconds,
                "flops_per_s": work / seconds if seconds else None,
                "share_of_roofline": least / seconds if seconds else None,
            })  # fmt: skip
        return rows

    def memory(self, batch: int, length: int, **options: Any) -> dict[str, float]:
        """Bytes that training holds, in theory; options as of ``cost_model.memory_bytes``."""
        setup = {
            "bytes_per_element": self.element,
            "fused_attention": self.fused_attention,
            "dropout_bytes": self.dropout_bytes,
        }
        return cost_model.memory_bytes(self.architecture, batch=batch, length=length, **(setup | options))


def read(directory: Path) -> tuple[Any, Architecture]:
    """Returns the transformers config and the architecture of a model directory.

    Raises:
        FeatherweightError: the architecture is not supported.
    """
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    return config, Architecture.from_config(config.to_dict())


def build(config: Any, architecture: Architecture, *, precision: str, device: torch.device) -> nn.Module:
    """Builds the model of a config, pruned shapes included, with random weights that no other generator feels."""
    auto: Any = AutoModel
    if architecture.causal:
        auto = AutoModelForCausalLM
    elif architecture.classes:
        auto = AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]), no_init_weights():
        model = auto.from_config(
            config, dtype=roofline.DTYPES[precision], attn_implementation="sdpa", trust_remote_code=False
        )
    described = getattr(config, modeling.SHAPES, None)
    if described and not architecture.causal:
        family = families.of(config.model_type)
        for layer, shape in zip(family.layer_list(model), described["layers"], strict=True):
            modeling.resize(family, layer, heads=shape["heads"], ffn=shape["ffn"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02, generator=generator)
    return model.to(device).eval()


def _loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    output = model(input_ids=ids)
    if hasattr(output, "logits") and output.logits.ndim == 3:
        return F.cross_entropy(output.logits.flatten(0, 1).float(), ids.flatten())
    return sum((part.float().sum() for part in output.to_tuple()), torch.zeros((), device=ids.device))


def _pass(model: nn.Module, ids: torch.Tensor, training: bool) -> Callable[[], None]:
    """One pass over token ids (B, S): forward, and backward in training."""

    def forward() -> None:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        _loss(model, ids).backward()

    return step if training else forward


@contextmanager
def labelled(model: nn.Module) -> Iterator[None]:
    """While it lasts, every module that is a component records a range of its name for the profiler."""
    handles, ranges = [], []

    def enter(component: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            ranges.append(record_function(LABEL + component).__enter__())

        return hook

    def leave(*_: Any) -> None:
        ranges.pop().__exit__(None, None, None)

    for name, module in model.named_modules():
        component = next((component for pattern, component in MODULES if re.search(pattern, name)), None)
        if component:
            handles.append(module.register_forward_pre_hook(enter(component)))
            handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attribute(events: Sequence[Any], *, cuda: bool = False) -> dict[str, float]:
    """Seconds inside operators by component, from the events of a profile taken under ``labelled``.

    An operator belongs to the innermost labelled module around it; fused attention is known by name, and what lies in
    no module (residual sums, activations, rotary positions) is elementwise. Backward operators have no module around
    them: they carry the sequence number of the forward operator that they differentiate.
    """
    by_sequence: dict[int, str] = {}
    seconds = dict.fromkeys(cost_model.COMPONENTS, 0.0)
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
        seconds[name] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
    return seconds


def saved_bytes(model: nn.Module, ids: torch.Tensor) -> int:
    """Bytes of the distinct tensors that autograd keeps from forward to backward, besides parameters."""
    mine = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = _loss(model, ids)
    found = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in mine)
    del loss
    return found


def measure(model: nn.Module, architecture: Architecture, *, batch: int, length: int, training: bool) -> Measurement:
    """Times passes over random tokens (B, S), then profiles some of them by component."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(architecture.vocabulary, (batch, length), generator=generator).to(device)
    model.train(training)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout draws
        run = _pass(model, ids, training)
        run()
        times: list[float] = []
        while len(times) < MIN_PASSES or sum(times) < CELL_SECONDS:
            roofline.synchronize(device)
            started = time.perf_counter()
            run()
            roofline.synchronize(device)
            times.append(time.perf_counter() - started)
        seconds = sorted(times)[len(times) // 2]
        repeats = max(1, min(MAX_PROFILED, round(CELL_SECONDS / seconds)))
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with labelled(model), profile(activities=activities) as profiler:
            for _ in range(repeats):
                run()
            roofline.synchronize(device)
        kept = saved_bytes(model, ids) if training else None
    model.zero_grad(set_to_none=True)
    inside = {n: s / repeats for n, s in attribute(profiler.events(), cuda=device.type == "cuda").items()}
    # The profiler makes operators slower; together they cannot have taken longer than the pass did without it.
    shrink = min(1.0, seconds / sum(inside.values()))
    inside = {name: value * shrink for name, value in inside.items()}
    return Measurement(seconds, len(times), {**inside, OUTSIDE: seconds - sum(inside.values())}, kept)


def examine(
    directory: Path,
    *,
    name: str,
    batches: Sequence[int],
    lengths: Sequence[int],
    training: bool = False,
    precision: str = "fp32",
    max_seconds: float = 10.0,
    announce: Callable[[str], None] = lambda _: None,
) -> XRay:
    """Measures a model at every batch × length on the first CUDA device, or the CPU.

    Args:
        lengths: tokens per row; empty for 32, 128 and 512 as far as the model has positions for them.
        max_seconds: a cell is skipped if a pass is expected to take longer; so is one that memory would not hold.
        announce: told what is about to be measured.

    Raises:
        FeatherweightError: the architecture is not supported, or a length is more than it has positions for.
    """
    config, architecture = read(directory)
    longest = architecture.max_length
    lengths = lengths or [length for length in (32, 128, 512) if length <= longest] or [longest]
    if max(lengths) > longest:
        raise FeatherweightError(
            f"xray: {max(lengths)} tokens are more than the model has positions for; at most {longest}"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    announce("measuring the machine: matrix products and memory copies")
    roofs = roofline.measure(device)
    announce(f"building {name} with random weights, {cost_model.num_parameters(architecture) / 1e6:.1f} M parameters")
    model = build(config, architecture, precision=precision, device=device)
    dropout = not architecture.causal and config.attention_probs_dropout_prob > 0
    found = XRay(
        model=name,
        architecture=architecture,
        machine=roofs,
        precision=precision,
        training=training,
        # PyTorch has no fused attention with dropout for the CPU.
        fused_attention=device.type == "cuda" or not (training and dropout),
        dropout_bytes=(1 if device.type == "cuda" else roofline.DTYPES[precision].itemsize) if dropout else 0,
    )
    cells = [(batch, length) for batch in batches for length in lengths]
    for index, (batch, length) in enumerate(cells, 1):
        reason = _too_much(found, batch, length, max_seconds, roofline.free_bytes(device))
        if reason:
            found.skipped[batch, length] = reason
            announce(f"{batch} × {length} tokens ({index} of {len(cells)}): left out, {reason}")
            continue
        announce(f"{batch} × {length} tokens ({index} of {len(cells)})")
        found.measured[batch, length] = measure(model, architecture, batch=batch, length=length, training=training)
    announce("measuring the machine again")
    return replace(found, machine=roofs.better(roofline.measure(device)))


def _too_much(found: XRay, batch: int, length: int, max_seconds: float, free: int) -> str:
    """Why a cell should not be measured; empty if it may."""
    expected = sum(row["roofline_seconds"] for row in found.components(batch, length))
    if expected > max_seconds:
        return f"a pass would take {expected:.0f} s or more"
    held = found.memory(batch, length, checkpointing=not found.training)
    needed = sum(held[part] for part in (("gradients", "activations") if found.training else ("activations",)))
    if needed > 0.8 * free:
        return f"it needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    return ""
