"""X-ray of a model: where its time goes on this machine, measured beside the theory of ``cost_model``.

B = rows, S = tokens per row. What is measured depends on shapes alone: a model gets random weights, none are read.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from tasks.contracts.base import FeatherweightError
from tasks.ml.machine import Company
from tasks.ml.models import modeling
from tasks.ml.xray import cost_model, profiling, roofline, writing
from tasks.ml.xray.architecture import Architecture
from tasks.ml.xray.cost_model import Roofline

OUTSIDE = "outside"
"""Time of a pass that no operator ran in: Python, dispatch, and giving memory back."""

DROPOUT = ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout")
"""What configs call the probability of dropout in attention; that on hidden states goes with it, but in Llama's kin."""

MIN_PASSES = 3
MAX_PROFILED = 5
ROOF = 0.4
"""Time for each roof, over that for a cell."""


@dataclass(frozen=True)
class Measurement:
    """One cell of the grid."""

    seconds: float
    """Median pass without the profiler."""
    fastest: float
    slowest: float
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
    dropout: bool
    """Whether training drops attention weights and hidden states at random."""
    measured: dict[tuple[int, int], Measurement] = field(default_factory=dict)
    skipped: dict[tuple[int, int], str] = field(default_factory=dict)
    """Why a cell was not measured."""
    written: dict[int, writing.Written] = field(default_factory=dict)
    """Of a decoder, by tokens in the cache: what one more takes."""
    others_share: float = 0.0
    """Fraction of the cores' time that other processes took meanwhile: what made the times longer than they are."""

    @property
    def element(self) -> int:
        """Bytes per element."""
        return roofline.DTYPES[self.precision].itemsize

    @property
    def factor(self) -> int:
        """Work of one pass over that of a forward pass."""
        return cost_model.TRAINING_FACTOR if self.training else 1

    @property
    def fused_attention(self) -> bool:
        """Whether the scores of the passes measured stay inside the kernel."""
        return self._fused(self.training)

    def _fused(self, training: bool) -> bool:
        return self.machine.device == "cuda" or not (training and self.dropout)  # the CPU's kernel knows no dropout

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

    def writing(self) -> list[dict[str, Any]]:
        """Of a decoder, a row per format of weights and tokens in the cache: bytes of a token, how many a second they
        allow, and how many were measured (``None`` but for the model as it was built)."""
        if not self.architecture.causal:
            return []
        rows = []
        for stored in writing.FORMATS:
            for past in self.written or [past for past in writing.CONTEXTS if past < self.architecture.max_length]:
                moved = writing.bytes_a_token(self.architecture, stored, past=past)
                took = self.written.get(past) if stored.name == self.precision else None
                limit = self.machine.bytes_per_s / moved
                rows.append({
                    "format": stored.name,
                    "past": past,
                    "bytes": moved,
                    "most_tokens_per_s": limit,
                    "tokens_per_s": 1 / took.seconds if took else None,
                    "share_of_roofline": 1 / took.seconds / limit if took else None,
                })  # fmt: skip
        return rows

    def memory(self, batch: int, length: int, **options: Any) -> dict[str, float]:
        """Bytes that training holds, in theory; options as of ``cost_model.memory_bytes``."""
        setup = {
            "bytes_per_element": self.element,
            "fused_attention": self._fused(training=True),
            "dropout_bytes": (1 if self.machine.device == "cuda" else self.element) if self.dropout else 0,
        }
        return cost_model.memory_bytes(self.architecture, batch=batch, length=length, **(setup | options))

    def pass_bytes(self, batch: int, length: int) -> float:
        """Bytes that a pass needs besides the weights, in theory; of a forward pass rather more than less."""
        if self.training:
            held = self.memory(batch, length)
            return held["gradients"] + held["activations"]
        return self.memory(batch, length, checkpointing=True, fused_attention=True, dropout_bytes=0)["activations"]


def read(directory: Path) -> tuple[Any, Architecture]:
    """Returns the transformers config and the architecture of a model directory.

    Raises:
        FeatherweightError: the config cannot be read, or the architecture is not supported.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (StrictDataclassError, ValueError, TypeError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())
        raise FeatherweightError(f"xray: {directory / 'config.json'} cannot be read: {reason}") from None
    return config, Architecture.from_config(config.to_dict())


def build(config: Any, architecture: Architecture, *, precision: str, device: torch.device) -> nn.Module:
    """Builds the model of a config, pruned shapes included, with random weights that no other generator feels."""
    auto: Any = AutoModel
    if architecture.causal:
        auto = AutoModelForCausalLM
    elif architecture.classes:
        auto = AutoModelForSequenceClassification
    with modeling.Undrawn():
        model = auto.from_config(
            config, dtype=roofline.DTYPES[precision], attn_implementation="sdpa", trust_remote_code=False
        )
    if (described := getattr(config, modeling.SHAPES, None)) and not architecture.causal:
        modeling.reshape(model, described)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02, generator=generator)
    return model.to(device).eval()


def _one_pass(model: nn.Module, ids: torch.Tensor, training: bool) -> Callable[[], None]:
    """One pass over token ids (B, S): forward, and backward in training."""

    def forward() -> None:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        profiling.loss(model, ids).backward()

    return step if training else forward


def _times(run: Callable[[], None], device: torch.device, total: float) -> list[float]:
    """Seconds of each of at least three passes, which take ``total`` or longer, after one to warm up."""
    run()
    times: list[float] = []
    while len(times) < MIN_PASSES or sum(times) < total:
        roofline.synchronize(device)
        started = time.perf_counter()
        run()
        roofline.synchronize(device)
        times.append(time.perf_counter() - started)
    return times


def _component_seconds(
    model: nn.Module, run: Callable[[], None], device: torch.device, *, seconds: float, total: float
) -> dict[str, float]:
    """Seconds of a pass by component, ``OUTSIDE`` included, which add up to the ``seconds`` it takes unobserved."""
    cuda = device.type == "cuda"
    repeats = max(1, min(MAX_PROFILED, round(total / seconds)))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profiling.labelled(model), profile(activities=activities) as profiler:
        for _ in range(repeats):
            run()
        roofline.synchronize(device)
    spent = profiling.attribute(profiler.events(), profiling.cuda_seconds if cuda else profiling.cpu_seconds)
    inside = {name: value / repeats for name, value in spent.items()}
    # The profiler makes operators slower; together they cannot have taken longer than the pass did without it.
    shrink = min(1.0, seconds / sum(inside.values()))
    inside = {name: value * shrink for name, value in inside.items()}
    return {**inside, OUTSIDE: max(0.0, seconds - sum(inside.values()))}


def measure(
    model: nn.Module, architecture: Architecture, *, batch: int, length: int, training: bool, seconds: float
) -> Measurement:
    """Times passes over random tokens (B, S) for so many seconds, then profiles some of them by component."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(architecture.vocabulary, (batch, length), generator=generator).to(device)
    model.train(training)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout draws
        run = _one_pass(model, ids, training)
        times = _times(run, device, seconds)
        median = statistics.median(times)
        parts = _component_seconds(model, run, device, seconds=median, total=seconds)
        kept = profiling.saved_bytes(model, ids) if training else None
    model.zero_grad(set_to_none=True)
    return Measurement(median, min(times), max(times), len(times), parts, kept)


def examine(
    directory: Path,
    *,
    name: str,
    batches: Sequence[int],
    lengths: Sequence[int] = (),
    training: bool = False,
    precision: str = "fp32",
    seconds: float = 1.0,
    max_seconds: float = 10.0,
    announce: Callable[[str], None] = lambda _: None,
) -> XRay:
    """Measures a model at every batch × length on the first CUDA device, or the CPU.

    Args:
        lengths: tokens per row; empty for 32, 128 and 512 as far as the model has positions for them.
        seconds: time for the passes of a cell, if three do not take longer; part of it for each of the roofs.
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
    company = Company()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    announce("measuring the machine: matrix products and memory copies")
    found = XRay(
        model=name,
        architecture=architecture,
        machine=roofline.measure(device, seconds=ROOF * seconds),
        precision=precision,
        training=training,
        dropout=any(getattr(config, probability, 0) > 0 for probability in DROPOUT),
    )
    cells = [(batch, length) for batch in batches for length in lengths]
    count = cost_model.num_parameters(architecture)
    reason = _too_large(count * found.element, roofline.free_bytes(device))
    if reason:
        announce(f"nothing is measured: {reason}")
        return replace(found, skipped=dict.fromkeys(cells, reason), others_share=company.share())
    announce(f"building {name} with random weights, {count / 1e6:.1f} M parameters")
    model = build(config, architecture, precision=precision, device=device)
    for index, (batch, length) in enumerate(cells, 1):
        reason = _too_long(found, batch, length, max_seconds)
        reason = reason or _too_large(found.pass_bytes(batch, length), roofline.free_bytes(device))
        announce(f"{batch} × {length} tokens ({index} of {len(cells)}){': left out, ' if reason else ''}{reason}")
        if reason:
            found.skipped[batch, length] = reason
        else:
            found.measured[batch, length] = measure(
                model, architecture, batch=batch, length=length, training=training, seconds=seconds
            )
    if not found.measured:
        return replace(found, others_share=company.share())
    if architecture.causal and not training:
        for past in (past for past in writing.CONTEXTS if past + writing.PASSES < longest):
            if not _too_long(found, 1, past, max_seconds):
                announce(f"single tokens after {past:,}")
                found.written[past] = writing.measure(model, architecture, past=past)
    announce("measuring the machine again")
    again = roofline.measure(device, seconds=ROOF * seconds)
    return replace(found, machine=found.machine.better(again), others_share=company.share())


def _too_long(found: XRay, batch: int, length: int, max_seconds: float) -> str:
    """Why a pass is not worth waiting for; empty if it may be."""
    expected = sum(row["roofline_seconds"] for row in found.components(batch, length))
    return f"a pass would take {expected:.0f} s or more" if expected > max_seconds else ""


def _too_large(needed: float, free: int) -> str:
    """Why memory would not hold so many bytes; empty if it would."""
    return f"it needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free" if needed > 0.8 * free else ""
