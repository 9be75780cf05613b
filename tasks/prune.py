"""prune: takes out the heads, FFN channels and tokens that are missed least, then lets the teacher heal the rest."""

from __future__ import annotations

import functools
import json
import logging
import math
import statistics
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tasks import tutoring
from tasks.contracts.base import PlainText, StageConfig
from tasks.contracts.hyperparameters import ComputeConfig, Embeddings
from tasks.contracts.values import Bundle, Splits, StageOutput
from tasks.engine import latency, store, tracking
from tasks.engine.stage import stage
from tasks.ml import machine

if TYPE_CHECKING:
    from torch import nn

    from tasks.ml.data.datasets import Split
    from tasks.ml.pruning.importance import LayerImportance

logger = logging.getLogger("featherweight")

CALIBRATION_BATCH = 16


class Sparsity(StrEnum):
    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    SPARSEGPT = "sparsegpt"


class Importance(StrEnum):
    TAYLOR = "taylor"
    ACTIVATION = "activation"


class WidthConfig(StageConfig, title="By fractions"):
    """Fractions of every layer that stay."""

    keep_ffn: float = Field(0.5, gt=0, le=1, title="FFN width kept")
    """Fraction of FFN channels kept per layer."""
    keep_heads: float = Field(0.75, gt=0, le=1, title="Heads kept")
    """Fraction of attention heads kept per layer."""


class SpeedConfig(StageConfig, title="By measured speed"):
    """As much stays as a wanted speed leaves time for, by a table of times measured on this machine."""

    target_speedup: float = Field(1.5, ge=1, le=100, title="Target speed-up")
    """How many times faster than the unpruned student; each layer keeps what is missed most for its time, and may lose
    attention or FFN whole."""
    max_damage: float = Field(0.0, ge=0, title="Largest damage")
    """What that may do to the answers to the calibration split, before recovery, in nats a row where labels are told;
    the target is lowered until it does not do more. 0: any damage."""
    request_rows: int = Field(1, ge=1, le=4096, title="Rows per request")
    """Rows of a typical request, of the median length of the calibration split."""


def _kind_of_width(value: Any) -> str:
    fields = value if isinstance(value, dict) else dict(value) if isinstance(value, StageConfig) else {}
    return "speed" if SpeedConfig.model_fields.keys() & fields.keys() else "fractions"


class SparsityConfig(StageConfig, title="Zeros"):
    """Single weights of the linear layers become zero, and stay it. Their files compress better; ONNX Runtime computes
    with zeros as with other numbers, so nothing gets faster or smaller by itself."""

    method: Sparsity = Field(Sparsity.WANDA, title="Method")
    """Which become zero: the smallest (magnitude), those that are small beside what they multiply (wanda), or such that
    others can make up for (sparsegpt)."""
    pattern: PlainText = Field("0.5", pattern=r"^(0\.[0-9]+|[1-9][0-9]*:[1-9][0-9]*)$", title="Pattern")
    """The fraction that becomes zero, anywhere, such as 0.5; or n:m, such as 2:4: n of every m neighbouring weights are
    kept."""

    @field_validator("pattern", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, float) else value

    @field_validator("pattern")
    @classmethod
    def _can_be_kept(cls, pattern: str) -> str:
        kept, _, group = pattern.partition(":")
        if group and int(kept) > int(group):
            raise ValueError(f"{kept} of {group} weights cannot be kept; write n:m with n ≤ m")
        return pattern


class PruningConfig(tutoring.StudentConfig):
    """How much width to keep, and how long to recover."""

    width: Annotated[
        Annotated[WidthConfig, Tag("fractions")] | Annotated[SpeedConfig, Tag("speed")], Discriminator(_kind_of_width)
    ] = Field(WidthConfig(), title="Width")
    """How much of every layer stays: by fractions, or by measured times."""
    importance: Importance = Field(Importance.TAYLOR, title="Importance")
    """taylor: by how much the loss would change, to first order; activation: by how much a unit adds to the output of
    its block."""
    rounds: int = Field(1, ge=1, le=100, title="Rounds")
    """Cuts on the way to the last one, each with its own measure of importance and its share of the steps."""
    keep_vocabulary: float = Field(1.0, gt=0, le=1, title="Vocabulary kept")
    """Fraction of tokens kept, the most frequent, each with what it is made of; rarer words fall back to sub-words."""
    heal_rounding: bool = Field(False, title="Heal rounding")
    """Token embeddings are rounded as quantization will do it before recovery, which then heals that, too, instead of
    afterwards; for embeddings: frozen."""
    sparsity: SparsityConfig | None = Field(None, title="Sparsity")
    """Zeros among the weights; none: all stay."""
    learning_rate: float = Field(2e-4, gt=0, le=1, title="Learning rate")
    """Peak learning rate of recovery."""
    lora_rank: int = Field(0, ge=0, le=4096, title="LoRA rank")
    """Trains low-rank updates of the linear layers, merged at the end; needs the extra 'training'. 0: trains the layers
    themselves."""

    @model_validator(mode="after")
    def _rounding_can_stay(self) -> Self:
        if self.heal_rounding and self.embeddings is not Embeddings.FROZEN:
            raise ValueError(
                "heal_rounding: embeddings that are trained leave the values that they were rounded to; "
                "set embeddings to frozen"
            )
        return self

    @model_validator(mode="after")
    def _zeros_can_stay(self) -> Self:
        if self.sparsity and self.lora_rank:
            raise ValueError("lora_rank: low-rank updates fill the zeros of sparsity; choose rank 0, or no sparsity")
        return self


def with_zeros(
    model: nn.Module, calibration: Split, config: SparsityConfig, *, pad_id: int, first_token_only: bool
) -> tuple[nn.Module, str]:
    """Returns a model with zeros among its weights, and as JSON what they damage and gain."""
    from tasks.ml.pruning import sparse_gain, sparsity
    from tasks.ml.quality import learning

    sparse, damage = sparsity.sparsify(
        model,
        list(learning.batches(calibration, CALIBRATION_BATCH, pad_id=pad_id)),
        method=config.method,
        pattern=sparsity.Pattern.parse(config.pattern),
        first_token_only=first_token_only,
    )
    gain = sparse_gain.gain(sparsity.linears(model), sparsity.linears(sparse))
    return sparse, json.dumps({"damage": damage, **gain}, indent=1)


Plan = Callable[["nn.Module", "list[LayerImportance]", float], list[dict[str, int]]]
"""From a model, its importance and the share of the way, 0 to 1, to what each layer keeps."""


def _plan(
    student: nn.Module,
    rows: list[list[int]],
    width: WidthConfig | SpeedConfig,
    problem: str,
    *,
    integer: bool,
    pad_id: int,
    seed: int,
) -> Plan:
    """How far to cut: by fractions of every layer, or by measured times."""
    from tasks.ml.latency import allocation
    from tasks.ml.models import first_token, modeling
    from tasks.ml.problem import problem_of
    from tasks.ml.pruning import surgery
    from tasks.ml.quality import evaluation

    full, kind = modeling.shapes(student), problem_of(problem)
    if isinstance(width, WidthConfig):
        return lambda model, scores, way: surgery.fraction(
            full, heads=1 - (1 - width.keep_heads) * way, ffn=1 - (1 - width.keep_ffn) * way
        )
    length = int(statistics.median(len(row) for row in rows))
    table = latency.table(student, problem, batch=width.request_rows, length=length, integer=integer)
    before = table.predict(full)

    def plan(model: nn.Module, scores: list[LayerImportance], way: float) -> list[dict[str, int]]:
        whole = evaluation.logits(model, rows, pad_id=pad_id, problem=kind)

        def damage(shapes: list[dict[str, int]]) -> float:
            smaller = surgery.keep_counts(model, scores, shapes)
            if kind.FIRST_TOKEN_ONLY:
                first_token.narrow(smaller)
            return kind.divergence(whole, evaluation.logits(smaller, rows, pad_id=pad_id, problem=kind))

        target = before / width.target_speedup**way
        logger.info("prune: trying what widths of each layer do to the answers")
        shapes, lost = allocation.allocate(
            modeling.shapes(model),
            table,
            milliseconds=target,
            damage=damage,
            most=width.max_damage * way if width.max_damage else math.inf,
            seed=seed,
        )
        after = table.predict(shapes)
        logger.info(
            "prune: %.3f ms predicted, of %.3f, and %.3f nats a row lost; layers keep %s", after, before, lost,
            ", ".join(f"{shape['heads']} heads and {shape['ffn']} channels" for shape in shapes),
        )  # fmt: skip
        found = {"length": length, "before_ms": before, "after_ms": after, "damage": lost, "layers": shapes}
        tracking.current().text(json.dumps(found, indent=1), f"allocation-{way:.2f}.json")
        return shapes

    return plan


def _place(*, config: PruningConfig, **_: Any) -> str:
    """A measured time belongs to the machine that it was taken on."""
    return machine.identity() if isinstance(config.width, SpeedConfig) else ""


def _report_safety(before: Any, after: Any) -> None:
    """Notes what the smaller vocabulary does to text of another domain than any that it was chosen by."""
    from tasks.ml.pruning import vocabulary

    found = vocabulary.safety(before, after, vocabulary.foreign_texts())
    logger.info(
        "prune: on text of another domain %.2f times as many tokens, and %.3f %% unknown (%.3f %% before)",
        found["token_growth"], 100 * found["unknown_rate"], 100 * found["unknown_rate_before"],
    )  # fmt: skip
    tracking.current().metrics({f"vocabulary_{name}": value for name, value in found.items()})


@stage(salt=_place)
def prune(
    source: Bundle,
    splits: Splits,
    config: PruningConfig,
    *,
    teacher: Bundle,
    teaching: tutoring.TeachingConfig,
    compute: ComputeConfig,
    seed: int,
    rounding: Mapping[str, int] | None = None,
    integer: bool = False,
) -> StageOutput:
    """Removes what the calibration split misses least, then lets the teacher heal it.

    The teacher answers with its own vocabulary for texts that both encode alike, which all training texts are.

    Args:
        rounding: ``token_bits`` and ``block_size`` of the embeddings, where recovery is to heal that, too.
        integer: whether linear layers are timed in int8, where times decide what is cut.
    """
    from tasks.ml.data import datasets
    from tasks.ml.models import locators, quantization_spec, tokenization
    from tasks.ml.problem import problem_of
    from tasks.ml.pruning import importance, kept_tokens, sparsity, surgery
    from tasks.ml.quality import learning
    from tasks.ml.quantization import simulation

    problem, data = problem_of(source.problem), store.path(splits.digest)
    student = simulation.load(store.path(source.digest), source.problem)
    tokenizer = tokenization.load(store.path(source.digest))
    master = simulation.load(store.path(teacher.digest), teacher.problem)
    tokens: list[int] | None = None
    if config.keep_vocabulary < 1:
        rows = datasets.read(data, "train", tokenizer).input_ids + datasets.read(data, "unlabeled", tokenizer).input_ids
        tokens = kept_tokens.choose_tokens(tokenizer, rows, keep=config.keep_vocabulary)
        # The teacher must hear the same tokens for its hidden states to be comparable.
        master, _ = kept_tokens.keep_tokens(master, tokenization.load(store.path(teacher.digest)), tokens)
        student, smaller_tokenizer = kept_tokens.keep_tokens(student, tokenizer, tokens)
        _report_safety(tokenizer, smaller_tokenizer)
        tokenizer = smaller_tokenizer
        for name in ("train", "unlabeled", "calibration", "selection"):
            locators.require_room(store.path(source.digest), datasets.read(data, name, tokenizer).input_ids)
    calibration = datasets.read(data, "calibration", tokenizer)
    plan = _plan(
        student,
        calibration.input_ids,
        config.width,
        source.problem,
        integer=integer,
        pad_id=tokenizer.pad_token_id,
        seed=seed,
    )

    def cut(model: nn.Module, way: float) -> nn.Module:
        if config.width == WidthConfig(keep_ffn=1, keep_heads=1):
            return model
        batches = learning.batches(calibration, CALIBRATION_BATCH, pad_id=tokenizer.pad_token_id)
        if config.importance is Importance.TAYLOR:
            scores = importance.taylor(model, batches, problem.loss)
        else:
            scores = importance.activation(model, batches, first_token_only=problem.FIRST_TOKEN_ONLY)
        return surgery.keep_counts(model, scores, plan(model, scores, way))

    lesson: dict[str, Any] = {
        "splits": splits,
        "config": config.model_copy(update={"steps": -(-config.steps // config.rounds)}),
        "teaching": teaching,
        "compute": compute,
        "seed": seed,
        "bundle": teacher,
        "vocabulary": tokens,
        "spec": quantization_spec.plan(student, linears=False, **dict[str, Any](rounding)) if rounding else None,
    }
    for number in range(1, config.rounds):
        smaller = functools.partial(cut, student, number / config.rounds)
        student = tutoring.teach_between(f"prune-{number}", smaller, master, tokenizer, **lesson)
    student = cut(student, 1.0)
    evidence: dict[str, str] = {}
    if config.sparsity:
        student, evidence["sparsity.json"] = with_zeros(
            student,
            calibration,
            config.sparsity,
            pad_id=tokenizer.pad_token_id,
            first_token_only=problem.FIRST_TOKEN_ONLY,
        )
        lesson["zeros"] = sparsity.zeros(student)
    return tutoring.teach("prune", student, master, tokenizer, evidence=evidence, **lesson)
