"""Whether a decoder's graph says what the simulated model says: of every next token, in parts, and when it generates.

N = rows, B = rows of a batch, S = tokens, V = vocabulary, L = a text's next tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from tasks.ml import tokens
from tasks.ml.graph import decoding
from tasks.ml.problem import Problem, problem_of
from tasks.ml.quality import evaluation
from tasks.ml.runtime import generation, parity, sessions

PROMPTS, PROMPT, NEW_TOKENS = 20, 64, 64
"""Texts that are continued, the most tokens of each that are read before, and tokens that are generated after it."""
MOST_BY_CHANCE = 1e-2
"""Of perplexity: what rounded inputs themselves cost a model is less."""
IN_PARTS, LONGEST = 5, 256
"""Texts that are read in two parts, and the most tokens of each: all their logits are held."""


@dataclass(frozen=True)
class Limits:
    """How far a graph may be from its simulation.

    Attributes:
        perplexity: largest relative change of perplexity.
        logits: largest difference of two readings' logits, as a share of the largest logit.
        tie: margin in nats of the simulation's likeliest token over another that may take its place.
        every_token: whether ``logits`` holds for what each token loses, too, as a share of the largest loss.
    """

    perplexity: float
    logits: float
    tie: float
    every_token: bool = False


IN_FLOATS = Limits(perplexity=1e-3, logits=parity.ROUNDING["fp32"], tie=1e-2, every_token=True)
"""Of a graph that computes what the simulation computes: only rounding of floats tells them apart."""
INPUTS_IN_INT8 = Limits(perplexity=1e-3, logits=0.05, tie=0.2)
"""Of one whose products round their inputs to int8: a value on the edge between two codes may tip over."""
CACHE_IN_INT8 = Limits(perplexity=5e-2, logits=0.1, tie=0.5)
"""Of one that rounds keys and values, which the simulation does not: that costs small models about 4 %."""


def limits(file: Path) -> Limits:
    """What a graph's own rounding allows, by its operators and its cache."""
    graph = onnx.load(file, load_external_data=False).graph
    cache = {one.type.tensor_type.elem_type for one in graph.input if one.name.startswith(sessions.CACHE)}
    if cache != {onnx.TensorProto.FLOAT}:
        return CACHE_IN_INT8
    levels = {
        attribute.i
        for node in graph.node if node.op_type == "MatMulNBits"
        for attribute in node.attribute if attribute.name == "accuracy_level"
    }  # fmt: skip
    return INPUTS_IN_INT8 if decoding.IN_INT8 in levels else IN_FLOATS


class _WithMargin(NamedTuple):
    """Keeps of a model's logits what a problem keeps, (B, S − 1, 2), and by how many nats the likeliest next token is
    ahead of the next best, (B, S − 1, 3)."""

    problem: Problem
    TOKENS_AT_ONCE: int

    def kept(self, logits: np.ndarray, input_ids: np.ndarray, counted: np.ndarray) -> np.ndarray:
        margins = np.full((*input_ids[:, 1:].shape, 1), np.nan, dtype=np.float32)
        for row, (scores, mask) in enumerate(zip(logits, counted, strict=True)):
            places = np.flatnonzero(mask[1:])
            best = np.partition(scores[places], -2, axis=-1)[:, -2:]
            margins[row, places, 0] = best[:, 1] - best[:, 0]
        return np.concatenate([self.problem.kept(logits, input_ids, counted), margins], axis=-1)


class _Tokens(NamedTuple):
    """Next tokens of some rows that count, (L,) each: what simulation and graph lost in nats, what each would have
    said, and the simulation's margin."""

    lost: np.ndarray
    found: np.ndarray
    differs: np.ndarray
    margin: np.ndarray


def _tokens(rows: Sequence[Sequence[int]], expected: np.ndarray, actual: np.ndarray) -> _Tokens:
    """Of what is kept of rows, (N, S − 1, 3) and (N, S − 1, 2), that of next tokens that count."""
    there = np.zeros(expected.shape[:2], dtype=bool)
    for index, row in enumerate(rows):
        there[index, : max(0, len(row) - 1)] = tokens.counted(row)[1:]
    ours, theirs = expected[there], actual[there]
    return _Tokens(ours[:, 0], theirs[:, 0], ours[:, 1] != theirs[:, 1], ours[:, 2])


def _chance(tokens: _Tokens) -> float:
    """How far the mean loss of so many tokens is off by chance alone, where each is off by itself: three standard
    errors, which only few texts make more than little; and no more than ``MOST_BY_CHANCE``."""
    return min(MOST_BY_CHANCE, 3 * float(np.std(tokens.found - tokens.lost)) / math.sqrt(len(tokens.lost)))


def compare(
    source: Path,
    file: Path,
    session: ort.InferenceSession,
    problem_name: str,
    rows: Sequence[Sequence[int]],
    *,
    pad_id: int,
    max_length: int,
) -> dict[str, Any]:
    """Compares what every token of a split loses, at batch 1 and in padded batches; reads in parts; and generates.

    Where the graph rounds what the simulation does not (``limits``), they cannot say the same of every token: then
    perplexity over all of them tells whether it is the same model, and tokens that are nearly as likely may change
    places.

    Args:
        source: the torch bundle that the graph was exported from, whose simulation is the reference.
        file: the graph that the session runs.
        rows: token ids of the split.

    Returns:
        ``n`` next tokens of ``rows`` rows, after ``label_flips`` of which the graph would say another, ``tied_flips``
        of these in ties; the same of batches of other ``shapes``: ``shape_rows`` next tokens, ``shape_flips``,
        ``shape_tied_flips``; ``agreement``, the share of all that are said alike; ``perplexity``,
        ``simulated_perplexity``, the relative ``perplexity_change`` and ``allowed_perplexity_change``; of the nats of
        tokens ``max_abs_error``, ``mean_abs_error``, ``median_abs_error``, and ``allowed_abs_error``, ``None`` where
        any is; ``non_finite`` tokens; ``chunk_error`` and ``allowed_chunk_error``, largest difference of a logit
        between texts read at once and in two parts; and what ``_generation`` says.
    """
    allowed, problem = limits(file), problem_of(problem_name)
    reference = parity.simulated(source, problem_name)
    measuring = cast(Problem, _WithMargin(problem, problem.TOKENS_AT_ONCE))

    def both(some: Sequence[Sequence[int]], batch_size: int) -> _Tokens:
        expected = evaluation.logits(reference, some, pad_id=pad_id, problem=measuring)
        actual = sessions.logits(session, some, pad_id=pad_id, problem=problem, batch_size=batch_size)
        return _tokens(some, expected, actual)

    split = both(rows, 1)
    shapes = other_shapes(max_length, tokens_at_once=problem.TOKENS_AT_ONCE)
    batched = [both(parity.stretched(rows, *shape), shape[0]) for shape in shapes]
    others = _Tokens(*(np.concatenate(parts) for parts in zip(*batched, strict=True)))
    everyone = _Tokens(*(np.concatenate(parts) for parts in zip(split, others, strict=True)))
    errors = np.abs(everyone.lost - everyone.found)
    simulated, actual = (math.exp(float(lost.mean(dtype=np.float64))) for lost in (split.lost, split.found))
    flips, ties = everyone.differs, everyone.differs & (everyone.margin <= allowed.tie)
    count = len(split.differs)
    return {
        "n": count,
        "rows": len(rows),
        "label_flips": int(flips[:count].sum()),
        "tied_flips": int(ties[:count].sum()),
        "shape_rows": len(flips) - count,
        "shape_flips": int(flips[count:].sum()),
        "shape_tied_flips": int(ties[count:].sum()),
        "shapes": [list(shape) for shape in shapes],
        "agreement": 1 - float(flips.mean()),
        "perplexity": actual,
        "simulated_perplexity": simulated,
        "perplexity_change": actual / simulated - 1,
        "allowed_perplexity_change": allowed.perplexity + (0.0 if allowed.every_token else _chance(split)),
        "max_abs_error": float(errors.max()),
        "mean_abs_error": float(errors.mean()),
        "median_abs_error": float(np.median(errors)),
        "allowed_abs_error": allowed.logits * float(everyone.lost.max()) if allowed.every_token else None,
        "non_finite": int((~np.isfinite(errors)).sum()),
        **_in_parts(session, rows, share=allowed.logits),
        **_generation(reference, session, rows, positions=_positions(reference), tie=allowed.tie),
    }


def other_shapes(max_length: int, *, tokens_at_once: int) -> list[tuple[int, int]]:
    """Batches × length as for any model, but with no more tokens than logits may be computed of at once, and two."""
    shapes = parity.other_shapes(max_length)
    fit = [(min(batch, max(1, tokens_at_once // length)), length) for batch, length in shapes if length > 1]
    return list(dict.fromkeys(fit)) or [(1, 2)]


def _positions(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.max_position_embeddings)


def _in_parts(session: ort.InferenceSession, rows: Sequence[Sequence[int]], *, share: float) -> dict[str, float]:
    """Largest difference of a logit between the longest texts read at once and in two parts, by way of the cache; and
    which share of the largest logit that may be."""
    begin = generation.of_session(session, at_once=0)
    worst = largest = 0.0
    for row in sorted(rows, key=len)[-IN_PARTS:]:
        text = row[:LONGEST]
        if len(text) < 2:
            continue
        whole, read, half = begin()(text), begin(), (len(text) + 1) // 2
        parts = np.concatenate([read(text[:half]), read(text[half:])])
        worst = max(worst, float(np.abs(whole - parts).max()))
        largest = max(largest, float(np.abs(whole).max()))
    return {"chunk_error": worst, "allowed_chunk_error": share * largest}


def _generation(
    reference: nn.Module, session: ort.InferenceSession, rows: Sequence[Sequence[int]], *, positions: int, tie: float
) -> dict[str, Any]:
    """Greedy generation token by token, beside what the simulation would have said.

    The simulation reads a prompt with all that the graph generated: up to the first token that it would not have said
    itself, that is what it would have generated.

    Returns:
        ``prompts`` and ``generated`` tokens after each; ``common_prefixes``, of each prompt how many of them are those
        of the simulation; of the prompts ``whole_prompts`` with all of them, and ``tied_prompts`` that part where the
        simulation's token is ahead of the graph's by ``tie`` nats at most; ``generated_choices``, the tokens up to
        where prompts part.
    """
    count = max(1, min(NEW_TOKENS, positions // 2))
    begin = generation.of_session(session)
    prefixes, tied = [], 0
    for row in list(filter(None, rows))[:PROMPTS]:
        prompt = list(row[: min(PROMPT, positions - count)])
        said = generation.greedy(begin(), prompt, count)
        scores = _scores(reference, prompt, said)
        wanted = scores.argmax(axis=-1)
        same = int(np.cumprod(wanted == said).sum())
        prefixes.append(same)
        if same < count:
            tied += bool(scores[same, wanted[same]] - scores[same, said[same]] <= tie)
    return {
        "prompts": len(prefixes),
        "generated": count,
        "common_prefixes": prefixes,
        "whole_prompts": sum(same == count for same in prefixes),
        "tied_prompts": tied,
        "generated_choices": sum(min(same + 1, count) for same in prefixes),
    }


@torch.inference_mode()
def _scores(model: nn.Module, prompt: Sequence[int], said: Sequence[int]) -> np.ndarray:
    """Logits (L, V) that a model would have chosen each of the tokens by that were said after a prompt."""
    ids = torch.tensor([[*prompt, *said[:-1]]], device=next(model.parameters()).device)
    found: np.ndarray = model(input_ids=ids).logits[0, len(prompt) - 1 :].float().cpu().numpy()
    return found


def require(found: Mapping[str, Any], *, max_flips: float) -> None:
    """Raises ``ParityError``, with the first of the ``_objections``."""
    for objection in _objections(found, max_flips):
        raise parity.ParityError(f"validation: {objection}")


def _objections(found: Mapping[str, Any], max_flips: float) -> Iterator[str]:
    if found["non_finite"]:
        yield f"runtime or simulated model gave NaN or infinity after {found['non_finite']} tokens"
    change, allowed = found["perplexity_change"], found["allowed_perplexity_change"]
    if not abs(change) <= allowed:
        yield (
            f"perplexity is {found['perplexity']:.4g} on the runtime and {found['simulated_perplexity']:.4g} in the "
            f"simulated model, a change of {change:+.2%} where {allowed:.1%} is allowed; the graph is not the model"
        )
    n = found["n"] + found["shape_rows"]
    flips = found["label_flips"] + found["shape_flips"]
    ties = found["tied_flips"] + found["shape_tied_flips"]
    if (flips - ties) / n > max_flips:
        yield (
            f"{flips - ties} of {n} next tokens ({(flips - ties) / n:.2%}) differ between the runtime and the "
            f"simulated model and were no ties, and max_flips allows {max_flips:.2%}"
        )
    most = found["allowed_abs_error"]
    if most is not None and found["max_abs_error"] > most:
        yield (
            f"a token loses {found['max_abs_error']:.3g} nats more or less on the runtime than in the simulated model, "
            f"and rounding of floats explains {most:.3g}; the graph is not the model"
        )
    if found["chunk_error"] > found["allowed_chunk_error"]:
        yield (
            f"a text that the runtime reads in two parts has logits that are off by {found['chunk_error']:.3g} from "
            f"those of the whole, and {found['allowed_chunk_error']:.3g} is allowed; the cache is not used rightly"
        )
    apart = found["prompts"] - found["whole_prompts"] - found["tied_prompts"]
    if apart > max_flips * found["generated_choices"]:
        yield (
            f"{apart} of {found['prompts']} texts are continued otherwise on the runtime than by the simulated model, "
            f"after {min(found['common_prefixes'])} tokens at the earliest, which was no tie, and max_flips allows "
            f"{max_flips:.2%} of {found['generated_choices']} tokens"
        )
