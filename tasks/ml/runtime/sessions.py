"""ONNX Runtime: sessions that are where they claim to be, and the proof of it. Never imports torch.

B = rows, S = tokens, N = rows of a split, C = classes.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from tasks.contracts.base import FeatherweightError
from tasks.ml import machine, tokens

if TYPE_CHECKING:
    from tasks.ml.problem import Problem

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

MATMULS = {"MatMul", "Gemm", "FusedMatMul", "FusedGemm"}
INTEGER_MATMULS = {"MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "DynamicQuantizeMatMul", "QGemm"}
ATTENTIONS = {"Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention", "PackedMultiHeadAttention"}
HEAVY = MATMULS | INTEGER_MATMULS | ATTENTIONS
"""Operators that hold nearly all the work of a transformer: a model runs where these run."""

CACHE, NEW_CACHE = "past_key_values.", "present."
"""How inputs begin that are what a model read before, and the outputs that are the same with what it read now."""
TYPES = {
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32, "tensor(float16)": np.float16,
    "tensor(int8)": np.int8, "tensor(uint8)": np.uint8,
}  # fmt: skip
"""Of inputs, by ONNX Runtime's names."""

FATAL, WARNING = 4, 2
"""Severities of onnxruntime's log."""

Feed = dict[str, np.ndarray]


def _session(model: Path, *, provider: str, threads: int, profile: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or machine.num_cores()
    options.log_severity_level = FATAL
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(str(model), options, providers=[CPU] if provider == CPU else [provider, CPU])


def _cuda_starts(model: Path) -> bool:
    """Whether a session gets CUDA. ``get_available_providers`` names it even on machines that have none."""
    if CUDA not in ort.get_available_providers():
        return False
    ort.set_default_logger_severity(FATAL)  # that CUDA is not there is an answer here, and not an error
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
            return CUDA in _session(model, provider=CUDA, threads=1).get_providers()
    finally:
        ort.set_default_logger_severity(WARNING)


def placement(model: Path, feed: Feed, *, provider: str, threads: int = 0) -> dict[str, dict[str, int]]:
    """Runs a model once under the profiler; returns which provider ran how many nodes of each operator."""
    with tempfile.TemporaryDirectory() as folder:
        session = _session(model, provider=provider, threads=threads, profile=Path(folder) / "profile")
        session.run(None, wanted(session, feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    counts: dict[str, Counter[str]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            counts.setdefault(event["args"]["provider"], Counter())[event["args"]["op_name"]] += 1
    return {name: dict(sorted(count.items())) for name, count in sorted(counts.items())}


def stray_nodes(nodes: Mapping[str, Mapping[str, int]], provider: str) -> dict[str, int]:
    """Heavy operators that ran elsewhere than on a provider."""
    elsewhere = Counter({op: n for name, ops in nodes.items() if name != provider for op, n in ops.items()})
    return {op: n for op, n in sorted(elsewhere.items()) if op in HEAVY}


def choose_provider(model: Path, feed: Feed, *, device: str) -> str:
    """Decides where a model runs: ``auto`` takes CUDA only if every heavy node really runs there, ``cuda`` demands it.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        FeatherweightError: a GPU was asked for and there is none, or heavy nodes fall back from it.
    """
    if device == "cpu":
        return CPU
    demanded = device == "cuda"
    if not _cuda_starts(model):
        if demanded:
            raise FeatherweightError(
                "validation: a GPU was asked for, but onnxruntime cannot start a CUDA session on this machine; "
                "install featherweight[gpu] and a driver for CUDA 13, or set validation.device to cpu"
            )
        return CPU
    stray = stray_nodes(placement(model, feed, provider=CUDA), CUDA)
    if stray and demanded:
        listed = ", ".join(f"{n} {op}" for op, n in stray.items())
        raise FeatherweightError(
            f"validation: a GPU was asked for, but these nodes fell back to the CPU: {listed}; "
            "integer schemes are for CPUs, so set quantization.scheme to fp16 or none, or validation.device to cpu"
        )
    return CPU if stray else CUDA


def open_session(model: Path, *, provider: str, threads: int = 0) -> ort.InferenceSession:
    """Opens a session and makes sure that it got its provider.

    Args:
        threads: CPU threads; 0 takes all cores this process may use.

    Raises:
        FeatherweightError: the runtime fell back to another provider.
    """
    session = _session(model, provider=provider, threads=threads)
    if provider not in session.get_providers():
        raise FeatherweightError(f"validation: onnxruntime fell back from {provider} to {session.get_providers()[0]}")
    return session


def has_cache(session: ort.InferenceSession) -> bool:
    """Whether a graph is a decoder's, which reads what it read before."""
    return any(one.name.startswith(CACHE) for one in session.get_inputs())


def feed(rows: Sequence[Sequence[int]], *, pad_id: int, length: int | None = None) -> Feed:
    """Pads token ids on the right to the longest row (or to ``length``): int64 (B, S) ids and mask."""
    width = length or max(1, *(len(row) for row in rows))
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    attention_mask = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = row
        attention_mask[index, : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def wanted(session: ort.InferenceSession, feed: Feed) -> Feed:
    """What a graph asks for of a feed (B, S), in its own types; token types, where it has them, are all 0, and a cache
    that the feed does not bring is empty."""
    whole = {"token_type_ids": np.zeros_like(feed["input_ids"]), **feed}
    found = {}
    for one in session.get_inputs():
        if one.name not in whole and one.name.startswith(CACHE):
            _, heads, _, size = one.shape
            whole[one.name] = np.zeros((len(feed["input_ids"]), heads, 0, size))
        found[one.name] = whole[one.name].astype(TYPES[one.type], copy=False)
    return found


def logits(
    session: ort.InferenceSession,
    rows: Sequence[Sequence[int]],
    *,
    pad_id: int,
    problem: Problem | None = None,
    batch_size: int = 1,
) -> np.ndarray:
    """Returns what a problem keeps of logits, (N, …), in row order.

    Args:
        problem: ``None`` keeps logits (N, C) as they are.
    """
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    parts = []
    for start in range(0, len(order), batch_size):
        texts = [rows[row] for row in order[start : start + batch_size]]
        asked = feed(texts, pad_id=pad_id)
        (answer,) = session.run(["logits"], wanted(session, asked))
        counted = feed([tokens.counted(row) for row in texts], pad_id=0)["input_ids"]
        parts.append(problem.kept(answer, asked["input_ids"], counted) if problem else answer)
    return _together(parts)[np.argsort(order)]


def _together(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Parts (B, …), one after the other; of those that are something of each token, NaN is where one has fewer."""
    longest = max(part.shape[1] for part in parts)
    return np.concatenate([
        np.pad(part, [(0, 0), (0, longest - part.shape[1]), *[(0, 0)] * (part.ndim - 2)], constant_values=np.nan)
        if part.shape[1] < longest else part
        for part in parts
    ])  # fmt: skip
