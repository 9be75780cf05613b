"""torch.compile where it pays: tried on a run's own first batches, kept only if that is faster, and remembered.

Layers are compiled, and not the model: equal ones share their code, hooks on them stay outside it, and so does the
token table, whose sparse gradients compiled code cannot return (Ansel et al. 2024, doi:10.1145/3620665.3640366).
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tasks.ml import machine
from tasks.ml.data import batching
from tasks.ml.models import architectures
from tasks.ml.parallel import world
from tasks.ml.training.precision import Choice, autocast
from tasks.ml.training.updates import StepLoss
from tasks.ml.xray.roofline import synchronize

WORTHWHILE = 1.05
"""Compiled code must be this many times as fast: less is within what such a measurement wavers by."""
SHORTEST = 60.0
"""Seconds of training below which nothing is tried: compiling takes tens of seconds and saves a fraction of them."""
PATIENCE = 120.0
"""Seconds after which compiling is given up, looked at after each batch."""
BATCHES, ROUNDS = 4, 3
"""How many batches are timed, and how often each in both ways."""
COMPILER: dict[str, Any] = {"dynamic": True, "recompile_limit": 32, "options": {"fallback_random": True}}
"""Of ``torch.compile``: one code for all lengths; pruned layers differ, and a batch of one row is another variant;
numbers from torch's generators, because on a CPU the compiler's own is slow."""


@dataclass(frozen=True)
class Decision:
    """Whether layers are compiled, and what that rests on: seconds of forward and backward of a batch, medians."""

    compiled: bool
    reason: str
    eager_s: float | None = None
    compiled_s: float | None = None
    compile_s: float | None = None
    """Seconds until each batch had been through compiled code once."""
    recalled: bool = False
    """Whether an earlier run measured it."""


def _is_listened_to(layer: nn.Module) -> bool:
    """Whether hooks inside a layer keep its tensors: code is compiled for what they kept before, and so ever anew."""
    return any(module._forward_hooks for name, module in layer.named_modules() if name)


class Layers:
    """The layers of a model, computed by compiled code while they train and ``compiled`` is set.

    In evaluation they stay as they are, because it would be compiled once more, for few batches; so does a layer
    whose inside a tutor listens to.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = architectures.of_model(model).layer_list(model) if hasattr(model, "config") else [model]
        self.layers = [layer for layer in layers if not _is_listened_to(layer)]
        self.compiled = False

    def _switch(self, layer: nn.Module) -> Callable[..., Any]:
        eager = layer.forward
        compiled = torch.compile(eager, **COMPILER)

        def forward(*args: Any, **kwargs: Any) -> Any:
            return (compiled if self.compiled and layer.training else eager)(*args, **kwargs)

        return forward

    @contextmanager
    def switched(self) -> Iterator[None]:
        """Puts the switches in place while it is open."""
        for layer in self.layers:
            layer.forward = self._switch(layer)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward


@dataclass(frozen=True)
class Passes:
    """Forward and backward passes of a run's batches, as its steps compute them, without the steps."""

    model: nn.Module
    step_loss: StepLoss
    batches: Sequence[list[int]]
    """Row indices of each."""
    micro_batch: int
    precision: Choice

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def seconds(self, batch: list[int]) -> float:
        """Time of this process's share of a batch; the gradients are forgotten."""
        micros = batching.split(world.share(batch) or batch[:1], self.micro_batch)
        synchronize(self.device)
        started = time.perf_counter()
        with autocast(self.precision, self.device):
            whole = self.step_loss.amounts(micros)  # as if its share were all: others may not try the same batches
        for micro in micros:
            with autocast(self.precision, self.device):
                loss, _ = self.step_loss(micro, whole)
            loss.backward()
        synchronize(self.device)
        passed = time.perf_counter() - started
        self.model.zero_grad()
        return passed

    def key(self, lengths: Sequence[int]) -> str:
        """Digest of all that their speed depends on: runs with the same need not try again."""
        config: Any = getattr(self.model, "config", None)
        about = {
            "model": repr(self.model),
            "attention": getattr(config, "_attn_implementation", None),
            "checkpointing": getattr(self.model, "is_activation_checkpointing", False),
            "loss": f"{type(self.step_loss).__module__}.{type(self.step_loss).__qualname__}",
            "rows": [len(self.batches[0]), self.micro_batch],
            "tokens": (sum(lengths) // len(lengths)).bit_length(),
            "precision": [str(self.precision.matmul_dtype), self.precision.tf32],
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processes": world.size(),
            "machine": machine.identity(),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
        }
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def measure(layers: Layers, passes: Passes) -> Decision:
    """Times the passes both ways in turn, so that a machine that slows down slows both."""
    started = time.perf_counter()
    layers.compiled = True
    for batch in passes.batches:
        passes.seconds(batch)
        if (compile_s := time.perf_counter() - started) > PATIENCE:
            return Decision(False, f"eager: compiling took more than {PATIENCE:g} s", compile_s=compile_s)
    times: dict[bool, list[list[float]]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for compiled, rounds in times.items():
            layers.compiled = compiled
            rounds.append([passes.seconds(batch) for batch in passes.batches])
    eager_s, compiled_s = (
        statistics.mean(statistics.median(one) for one in zip(*rounds, strict=True)) for rounds in times.values()
    )
    faster = eager_s > WORTHWHILE * compiled_s
    return Decision(
        faster,
        f"{'compiled' if faster else 'eager'}: compiled code is {eager_s / compiled_s:.2f} times as fast "
        f"({compiled_s:.3f} s a batch against {eager_s:.3f} s); compiling took {compile_s:.0f} s",
        eager_s,
        compiled_s,
        compile_s,
    )


def _file(key: str) -> Path:
    """Where a decision is kept: beside the compiled code, so that it is taken anew once that is gone."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "featherweight" / f"{key}.json"


def _recall(path: Path) -> Decision | None:
    try:
        return Decision(**json.loads(path.read_text(encoding="utf-8")), recalled=True)
    except (OSError, ValueError, TypeError):
        return None


def _remember(path: Path, decision: Decision) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({k: v for k, v in asdict(decision).items() if k != "recalled"}), encoding="utf-8")
    temporary.replace(path)


def _try(layers: Layers, passes: Passes, path: Path, *, steps: int) -> Decision:
    for batch in passes.batches:  # to warm up
        passes.seconds(batch)
    eager_s = statistics.mean(passes.seconds(batch) for batch in passes.batches)
    if eager_s * steps < SHORTEST:
        return Decision(False, f"eager: {eager_s * steps:.0f} s of training are too few to compile for", eager_s)
    return _recall(path) or measure(layers, passes)


def decide(layers: Layers, passes: Passes, *, lengths: Sequence[int], steps: int) -> Decision:
    """Tries whether compiled code is faster; where it cannot be had, says why. Draws no random number of the run's.

    Processes that train together decide alike: compiled only if all of them found that faster.

    Args:
        lengths: tokens per row (N,).
        steps: that are yet to be taken.
    """
    if any(isinstance(p, DTensor) for p in passes.model.parameters()):
        return Decision(False, "eager: layers of which each process holds a part are not tried")
    device, path = passes.device, _file(passes.key(lengths))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            mine = _try(layers, passes, path, steps=steps)
        except Exception as error:  # compilers fail in many ways; what is wrong without one as well will recur
            mine = Decision(False, f"eager: the trial failed: {type(error).__name__}: {str(error).strip()[:300]}")
            passes.model.zero_grad()
    found = world.everybody([mine])
    decision = next((one for one in found if not one.compiled), found[0])
    if world.rank() == 0 and decision.compile_s is not None and not decision.recalled:
        _remember(path, decision)
    return decision


@contextmanager
def where_it_pays(
    passes: Passes, notes: dict[str, Any], *, lengths: Sequence[int], steps: int, mode: str
) -> Iterator[None]:
    """Computes a model's layers in the faster way while it is open.

    Args:
        notes: get the decision as ``compile``; one that is there, of a run that is resumed, holds.
        mode: ``auto``, or ``off`` to change nothing.
    """
    if mode == "off" or not steps:
        yield
        return
    layers = Layers(passes.model)
    # Else code that was compiled for a layer without hooks would serve one that has some.
    with layers.switched(), torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        known: Mapping[str, Any] | None = notes.get("compile")
        decision = Decision(**known) if known else decide(layers, passes, lengths=lengths, steps=steps)
        notes["compile"] = asdict(decision)
        layers.compiled = decision.compiled
        # A shape that turns up later and cannot be compiled is computed as it is.
        with torch._dynamo.config.patch(suppress_errors=True):
            yield
