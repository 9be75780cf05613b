"""Causal language modelling: each token of a text from those before it. N, B = rows, S = tokens, V = vocabulary.

What is kept of a row is, for each token but the first, what it lost in nats and which token would have been said:
(N, S − 1, 2). A row's target is the number of its bytes, so that quality, minus bits per byte, holds across
vocabularies.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Check, CheckStatus, ClassRecall
from tasks.ml import tokens
from tasks.ml.data import conversations
from tasks.ml.data.tables import Table
from tasks.ml.data.targets import Targets
from tasks.ml.models import decoders
from tasks.ml.problem import Answer
from tasks.ml.proof import drop
from tasks.ml.proof.decision import above_nothing, as_check, decide
from tasks.ml.statistics import bootstrap

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.ml.data.datasets import Split

LEARNS = None
METRIC = "minus_bits_per_byte"
WORST = "that lost most nats"
ONNX_INPUTS, ONNX_OUTPUTS, FIRST_TOKEN_ONLY = ("input_ids", "attention_mask"), ("logits",), False
NO_TARGET = 0
PER_TOKEN, TOKENS_AT_ONCE = True, 2048
SAID = 32
"""Tokens of which a teacher's probability is kept: the likeliest. DistillKit keeps 128; of a fine-tuned SmolLM2-135M
the 32 likeliest have nearly all of it."""
STRATA = 5
"""Ranges of lengths of which every split gets its share."""
NEW_TOKENS = 64
"""That a served model adds to a text where it is not told how many."""


def objections(training: Mapping[str, Any]) -> Iterator[str]:
    """Label smoothing would teach rare tokens as much as frequent ones."""
    if training["label_smoothing"]:
        yield f"training.label_smoothing: {training['label_smoothing']:g} means nothing for next tokens; set it to 0"


def targets(tables: Mapping[str, Table]) -> Targets:
    """Bytes of a source's texts; of conversations, of what the assistant says."""
    known = {name: replace(table, labels=list(map(_num_bytes, table.texts))) for name, table in tables.items()}
    lengths = [int(label) for label in known["train"].labels]
    edges = sorted({float(edge) for edge in np.quantile(lengths, np.linspace(0, 1, STRATA + 1)[1:-1])})
    strata = [f"up to {edge:.0f} bytes" for edge in edges] + ["longer"]
    return Targets(
        tables=known,
        names=[],
        strata=strata,
        stratum=lambda label: strata[bisect.bisect_left(edges, float(label))],
        required=(),
        settle=lambda labels: "",
        measure=lambda labels: {},
        encode=lambda label, units: float(label),
        missing=NO_TARGET,
        dtype=np.int64,
        of_text=_num_bytes,
    )


def _num_bytes(text: str) -> str:
    return str(conversations.num_bytes(text))


def load_base(directory: str | Path, labels: Sequence[str], *, dropout: float = 0.1) -> nn.Module:
    """Loads a pretrained decoder in fp32, from safetensors only.

    Raises:
        FeatherweightError: a parameter was not in the files, or the model is no decoder that is supported.
    """
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    model, about = loaded
    decoders.of_model(model)
    if lost := sorted(about["missing_keys"]):
        raise FeatherweightError(f"base_model: {directory} lacks {len(lost)} tensors, such as {lost[0]}")
    return _uncached(model)


def build(config: Any) -> nn.Module:
    """Builds the model of a config, with random weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    decoders.of_model(model)
    return _uncached(model)


def _uncached(model: nn.Module) -> nn.Module:
    """Nobody reads a cache of keys and values where whole texts are read, and it takes memory."""
    config: Any = model.config
    config.use_cache = False
    return model


def amount(rows: Sequence[Sequence[int]], targets: np.ndarray | torch.Tensor) -> int:
    """Tokens that are told from those before them, of those that count."""
    return sum(sum(tokens.counted(row)[1:]) for row in rows)


def loss(logits: torch.Tensor, batch: Mapping[str, torch.Tensor], *, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy in nats of each next token that counts, of logits (B, S, V)."""
    import torch.nn.functional as F

    counted = batch.get("counted", batch["attention_mask"])
    wanted = batch["input_ids"][:, 1:].masked_fill(counted[:, 1:] == 0, -100)
    if bool((wanted == -100).all()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=-100)


def said(logits: torch.Tensor) -> torch.Tensor:
    """Of each token the likeliest next ones: their log probabilities, then their ids, (B, S, 2 · ``SAID``)."""
    import torch

    known = logits.float().log_softmax(dim=-1).topk(min(SAID, logits.shape[-1]), dim=-1)
    return torch.cat([known.values, known.indices.float()], dim=-1)


def said_width(config: Any) -> int:
    """Numbers of each token."""
    return 2 * min(SAID, int(config.vocab_size))


def soft_loss(
    student: torch.Tensor, teacher: torch.Tensor, counted: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """Mean over next tokens that count of KL(teacher ‖ student) in nats, tokens that the teacher did not say taken for
    one.

    Args:
        student: logits (B, S, V).
        teacher: what it ``said``.
        counted: 1 on tokens that do, (B, S).
        temperature: 1; of what was not said the share at another is not known.
    """
    import torch

    told, ids = teacher[:, :-1].chunk(2, dim=-1)
    own = student[:, :-1].float().log_softmax(dim=-1).gather(-1, ids.long())
    # A rest of exactly nothing has no logarithm; at 1e-6 it adds nothing that counts.
    rest, own_rest = ((1 - part.exp().sum(dim=-1)).clamp_min(1e-6) for part in (told, own))
    divergence = (told.exp() * (told - own)).sum(dim=-1) + rest * (rest.log() - own_rest.log())
    share = counted[:, 1:].to(torch.float32)
    return (divergence * share).sum() / share.sum().clamp_min(1)


def kept(logits: np.ndarray, input_ids: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """What each token but the first lost, and which would have been said, of logits (B, S, V): (B, S − 1, 2); NaN of
    tokens that do not count."""
    found = np.full((*input_ids[:, 1:].shape, 2), np.nan, dtype=np.float32)
    for row, (said_here, ids, mask) in enumerate(zip(logits, input_ids, counted, strict=True)):
        places = np.flatnonzero(mask[1:])
        if not len(places):
            continue
        start, end = places[0], places[-1] + 1
        scores, here = said_here[start:end], places - start
        highest = scores.max(axis=-1, keepdims=True)
        total = highest[:, 0] + np.log(np.exp(scores - highest).sum(axis=-1))
        lost_here = total - scores[np.arange(end - start), ids[start + 1 : end + 1]]
        found[row, places, 0] = lost_here[here]
        found[row, places, 1] = scores.argmax(axis=-1)[here]
    return found


def retold(
    kept: np.ndarray, rows: Sequence[Sequence[int]], others: Sequence[Sequence[int]], ids: np.ndarray
) -> np.ndarray:
    """What would have been said, by other ids of the same tokens: −1 for a token that the other vocabulary lacks, NaN
    throughout a row that it reads as other tokens. What was lost stays: it is of the text, whatever it is read as."""
    found, known = kept.copy(), np.append(ids, -1)  # also for rows of the table beyond the tokenizer's tokens
    for row, (ours, theirs) in enumerate(zip(rows, others, strict=True)):
        said_here = found[row, : max(0, len(ours) - 1), 1]
        is_alike = ids[ours].tolist() == list(theirs)
        counted = ~np.isnan(said_here)
        said_here[counted] = known[np.minimum(said_here[counted].astype(np.int64), len(ids))] if is_alike else np.nan
    return found


def _nats(kept: np.ndarray) -> np.ndarray:
    """What each row lost, (N,)."""
    return np.asarray(np.nansum(kept[..., 0], axis=-1, dtype=np.float64))


def lost(logits: np.ndarray, targets: np.ndarray) -> float:
    """Nats a token, whose exponential is perplexity."""
    return float(np.nanmean(logits[..., 0], dtype=np.float64))


def predictions(logits: np.ndarray) -> np.ndarray:
    """Nats of each row, (N,)."""
    return _nats(logits)


def divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Half the mean squared difference of what tokens lose, which is their divergence to the second order."""
    return float(np.nanmean(np.square(logits[..., 0] - reference[..., 0]), dtype=np.float64) / 2)


def same(logits: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Share of a row's tokens after which both would say the same, (N,); NaN where no token is told of both: a row of
    one token, and one that the two read as different tokens (``retold``)."""
    width = min(logits.shape[1], reference.shape[1])
    ours, theirs = logits[:, :width, 1], reference[:, :width, 1]
    count = (~np.isnan(ours) & ~np.isnan(theirs)).sum(axis=-1)
    return np.where(count > 0, (ours == theirs).sum(axis=-1) / count.clip(1), np.nan)


def scores(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Minus the bits of each row over the mean bytes of these rows, (N,): their mean is minus bits per byte of all."""
    return -_nats(logits) / math.log(2) / max(float(targets.mean()), 1.0)


def regret(teacher: np.ndarray, shipped: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Nats that a row lost beside its teacher's."""
    more: np.ndarray = (_nats(shipped) - _nats(teacher)).clip(0)
    return more


def shown(logits: np.ndarray, labels: Sequence[str], units: Mapping[str, float]) -> dict[str, Any]:
    """Bits that a text needs, beside its bytes: they hold across vocabularies, as perplexity does not."""
    return {"label": f"{float(np.nansum(logits[..., 0], dtype=np.float64)) / math.log(2):.1f} bits"}


def shown_target(target: Any, labels: Sequence[str], units: Mapping[str, float]) -> str:
    """Its bytes."""
    return f"{int(target)} bytes"


def answer(labels: Sequence[str], units: Mapping[str, float]) -> Answer:
    """What comes next."""
    return Answer("completion", [], "Continues each text", {"new_tokens": NEW_TOKENS})


def describe(labels: Sequence[str], train_targets: np.ndarray) -> dict[str, Any]:
    """Nothing beside the answers themselves."""
    return {"labels": []}


def summary(config: Any, train: Split, logits: np.ndarray, split: Split) -> dict[str, Any]:
    """Nats of each row of a split, beside those by the frequencies of single tokens in the training rows: of tokens
    that count."""
    counts = np.ones(int(config.vocab_size))
    for row in train.input_ids:
        np.add.at(counts, np.asarray(row, dtype=np.int64), tokens.counted(row))
    cost = np.log(counts.sum()) - np.log(counts)
    blind = [float(cost[_told(row)].sum()) for row in split.input_ids]
    return {"labels": [], "nats": _nats(logits).tolist(), "blind": blind, "bytes": split.targets.tolist()}


def _told(row: Sequence[int]) -> np.ndarray:
    """Tokens of a row that are told from those before them, of those that count."""
    told: np.ndarray = np.asarray(row, dtype=np.int64)[1:][np.asarray(tokens.counted(row)[1:], dtype=bool)]
    return told


def floor(about: Mapping[str, Any], *, who: str, split: str, confidence: float) -> tuple[Check, bool]:
    """Whether a model beats the frequencies of single tokens, by bits per byte; any rows can show it."""
    found, blind = (-np.array(about[name]) / math.log(2) / np.mean(about["bytes"]) for name in ("nats", "blind"))
    gain = bootstrap.quality_difference(found, blind, confidence=confidence)
    status = above_nothing(gain)
    explanation = (
        f"{who} needs {-found.mean():.3f} bits a byte on {len(found):,} {split} rows, {gain.measured:.3f} less than "
        f"the frequencies of single tokens in the training rows ({100 * confidence:g} % interval {gain.low:.3f} to "
        f"{gain.high:.3f})"
    )
    return as_check("floor", gain, 0.0, "at_least", len(found), status, explanation), True


def weigh(
    rows: Mapping[str, np.ndarray], about: Mapping[str, Any], *, max_drop: float, has_floor: bool, confidence: float
) -> tuple[list[Check], tuple[ClassRecall, ...]]:
    """By which share bits per byte rose: the ratio of what all rows lost, paired, rows of a document together."""
    teacher, shipped = rows["prediction_train"], rows["prediction_validate"]
    interval = bootstrap.ratio_of_sums(shipped, teacher, groups=rows.get("document"), confidence=confidence)
    more = bootstrap.Interval(interval.measured - 1, interval.low - 1, interval.high - 1)
    status = decide(more, max_drop, "at_most", band=(max_drop - abs(max_drop), max_drop + abs(max_drop)))
    level = 100 * confidence
    explanation = (
        f"bits per byte rose by {100 * more.measured:.2f} % on {len(teacher):,} paired test rows ({level:g} % interval "
        f"{100 * more.low:.2f} to {100 * more.high:.2f}); at most {100 * max_drop:g} % are allowed"
    )
    if status is CheckStatus.UNDECIDABLE:
        rows_wanted = drop.rows_needed(more, len(teacher), rule_out=2 * max_drop if more.measured <= max_drop else 0.0)
        explanation += f"; undecidable at this n: {drop.enough(rows_wanted)}"
    check = as_check("quality_drop", more, max_drop, "at_most", len(teacher), status, explanation)
    return [check.model_copy(update={"metric": "bits_per_byte"})], ()
