"""quantize: chooses what becomes integer and measures what it costs, simulated in PyTorch."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from tasks import fitting, tutoring
from tasks.contracts.base import FeatherweightError, StageConfig
from tasks.contracts.hyperparameters import ComputeConfig, Embeddings, Parallelism
from tasks.contracts.values import Bundle, Scorecard, Splits, StageOutput
from tasks.engine import publish, store
from tasks.engine.stage import checkpoint_directory, stage

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.ml.quantization.blocks import Blocks
    from tasks.ml.quantization.quantized import Quantized


class Scheme(StrEnum):
    NONE = "none"
    INT8_DYNAMIC = "int8-dynamic"
    INT8_STATIC = "int8-static"
    INT4 = "int4"
    INT4_FLOATS = "int4-floats"
    FP16 = "fp16"
    BF16 = "bf16"


INTEGER = (Scheme.INT8_DYNAMIC, Scheme.INT8_STATIC, Scheme.INT4)
ROUNDED = (*INTEGER, Scheme.INT4_FLOATS)
"""Those that store linear layers in codes, whatever they are multiplied as."""
FLOATING = (Scheme.FP16, Scheme.BF16)
CODES = "codes"
"""Folder of a stage's checkpoints with the codes that its training started with."""


class EmbeddingScheme(StrEnum):
    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"


def block_sizes() -> list[int]:
    """Columns that ONNX Runtime's operators with 4-bit weights can store with one scale."""
    return [16, 32, 64, 128, 256]


class Calibration(StrEnum):
    MIN_MAX = "min-max"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"


class Rounding(StrEnum):
    NEAREST = "nearest"
    GPTQ = "gptq"


class AwareTrainingConfig(tutoring.StudentConfig, title="Trained"):
    """The teacher corrects the model while it computes as if it were quantized."""

    steps: int = Field(500, ge=1, le=10**9, title="Steps")
    """Optimizer steps."""
    learning_rate: float = Field(2e-5, gt=0, le=1, title="Learning rate")
    """Peak learning rate."""
    embeddings: Embeddings = Field(Embeddings.FROZEN, title="Token embeddings")
    """frozen keeps the table as it was rounded; sparse and dense train it, and it is rounded again."""


class QuantizationConfig(StageConfig):
    """What becomes integer, and how its scales and codes are chosen."""

    scheme: Scheme = Field(Scheme.INT8_DYNAMIC, title="Scheme")
    """int8-dynamic: int8 weights per channel, uint8 activations scaled at run time; int8-static: scales from the
    calibration split, so that rows do not depend on their batch; int4: 4-bit weights in blocks, smallest, of encoders
    not faster than fp32; int4-floats: those of a decoder multiplied in floats, alike on every machine and slower; fp16
    and bf16: for GPUs."""
    embeddings: EmbeddingScheme = Field(EmbeddingScheme.INT8, title="Embeddings")
    """Precision of the token embeddings: int8 per row, or int4 in blocks."""
    block_size: int = Field(32, ge=16, le=256, title="Block size")
    """Columns that share a scale where codes have 4 bits."""
    calibration: Calibration = Field(Calibration.MIN_MAX, title="Calibration")
    """Ranges of activations for int8-static: all values, 99.99 % of them, or what loses least information (KL
    divergence)."""
    smoothing: float = Field(0.0, ge=0, le=1, title="SmoothQuant")
    """How far outliers of activations move into the weights (alpha, 0.5 is usual); 0: not at all."""
    rounding: Rounding = Field(Rounding.NEAREST, title="Rounding")
    """Of the weights of linear layers: to nearest, or by GPTQ, which lets later columns make up for earlier ones on the
    calibration split."""
    max_damage: float = Field(0.0, ge=0, title="Damage allowed")
    """Divergence (nats per row, or squared error of scores; calibration split) that quantized linear layers may cause;
    the layers that cause most get more bits until it is kept. 0: no limit, and no scan."""
    bits: float = Field(4, ge=2, le=8, title="Bits")
    """Of a code in a decoder's linear layers, on average, where the scheme is int4: 2, 4, 8, or between them, where
    those that lose most by it get more bits than others."""
    training: AwareTrainingConfig | None = Field(None, title="Quantization-aware training")
    """Training with quantization simulated; none: as it was rounded."""

    @model_validator(mode="after")
    def _integers_where_needed(self) -> Self:
        asked = {
            "smoothing": self.smoothing > 0,
            "rounding": self.rounding is not Rounding.NEAREST,
            "max_damage": self.max_damage > 0,
            "training": self.training is not None,
        }
        for name in (name for name, given in asked.items() if given and self.scheme not in ROUNDED):
            raise ValueError(f"{name}: needs an integer scheme ({', '.join(ROUNDED)}), and scheme is {self.scheme}")
        return self

    @model_validator(mode="after")
    def _blocks_of_the_runtime(self) -> Self:
        four_bits = self.scheme in (Scheme.INT4, Scheme.INT4_FLOATS) or self.embeddings is EmbeddingScheme.INT4
        if four_bits and self.block_size not in block_sizes():
            sizes = ", ".join(map(str, block_sizes()))
            raise ValueError(f"block_size: the runtime has no blocks of {self.block_size}; choose one of {sizes}")
        return self

    def for_plan(self) -> dict[str, Any]:
        """Returns the keyword arguments of ``quantization_spec.plan``."""
        return {
            "linears": self.scheme in ROUNDED,
            "scheme": self.scheme.value,
            "floats": self.scheme.value if self.scheme in FLOATING else "fp32",
            **self.for_tables(),
        }

    def for_rounding(self) -> dict[str, Any]:
        """Returns the keyword arguments of ``quantized.decide``."""
        return {
            "plan": self.for_plan(),
            "bits": self.bits,
            "exact_inputs": self.scheme is Scheme.INT4_FLOATS,
            "rounding": self.rounding.value,
            "smoothing": self.smoothing,
            "ranges": self.calibration.value,
            "max_damage": self.max_damage,
        }

    def for_tables(self) -> dict[str, int]:
        """Returns those of them that say how embeddings are rounded."""
        return {"token_bits": {"none": 32, "int8": 8, "int4": 4}[self.embeddings], "block_size": self.block_size}


@stage
def quantize(
    source: Bundle,
    splits: Splits,
    config: QuantizationConfig,
    *,
    teacher: Bundle,
    teaching: tutoring.TeachingConfig | None = None,
    compute: ComputeConfig | None = None,
    seed: int,
) -> StageOutput:
    """Writes the quantization spec beside the weights and reports the quality of its simulation.

    Args:
        teaching, compute: for quantization-aware training.
    """
    from tasks.ml.data import datasets
    from tasks.ml.models import first_token, modeling, quantization_spec, tokenization
    from tasks.ml.problem import problem_of
    from tasks.ml.pruning import sparsity
    from tasks.ml.quality import evaluation, learning
    from tasks.ml.quantization import quantized, sensitivity, simulation

    model = simulation.load(store.path(source.digest), source.problem)
    tokenizer = tokenization.load(store.path(source.digest))
    problem, pad_id = problem_of(source.problem), tokenizer.pad_token_id
    calibration, selection = (
        datasets.read(store.path(splits.digest), name, tokenizer) for name in ("calibration", "selection")
    )
    before = evaluation.logits(model, selection.input_ids, pad_id=pad_id, problem=problem)
    zeros = sparsity.zeros(model)  # before rounding makes more of them
    made = _decided_before(model) if config.training else None
    if made is None:
        made = quantized.decide(model, problem, calibration, pad_id=pad_id, **config.for_rounding())
        if config.training and made.codes:
            _keep(made)
    spec, codes = made.spec, made.codes
    files = {sensitivity.FILE: made.scan.to_json()} if made.scan else {}
    if config.training:
        assert teaching is not None
        assert compute is not None
        files["history.json"], codes = _train(
            model, tokenizer, made, source, teacher,
            splits=splits, zeros=zeros, config=config.training, teaching=teaching, compute=compute, seed=seed,
        )  # fmt: skip
    bundle, _ = publish.torch_bundle(model, tokenizer, source.problem, spec=spec, codes=codes)
    size_mb = made.num_bytes(model) / 1e6
    num_parameters = modeling.num_parameters(model)
    simulation.simulate(model, spec, codes)
    if problem.FIRST_TOKEN_ONLY:
        first_token.narrow(model)  # as it is served
    answer = evaluation.reference(store.path(teacher.digest), store.path(splits.digest), teacher.problem, tokenizer)
    after = evaluation.logits(model, selection.input_ids, pad_id=pad_id, problem=problem)
    quality = learning.measure(problem, after, selection.targets, reference=answer, others={"unquantized": before})
    return StageOutput(
        bundle=bundle,
        evidence=publish.evidence({quantization_spec.SPEC_FILE: spec.to_json(), **files}),
        scorecard=Scorecard(
            split="selection",
            num_examples=len(selection),
            metric=problem.METRIC,
            quality=quality["quality"],
            loss=quality["loss"],
            agreement_with_teacher=quality.get("agreement"),
            agreement_rows=learning.agreement(problem, after, answer).rows,
            drop_error=quality["drop_error"],
            agreement_with_unquantized=quality.get("agreement_with_unquantized"),
            num_parameters=num_parameters,
            size_mb=size_mb,
        ),
    )


def _keep(made: Quantized) -> None:
    """Keeps the codes that a training starts with, which may be found otherwise after it was interrupted."""
    from tasks.ml.quantization import block_files

    part = checkpoint_directory() / f"{CODES}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    block_files.save(part, made.codes)
    part.rename(checkpoint_directory() / CODES)


def _decided_before(model: nn.Module) -> Quantized | None:
    """What ``_keep`` kept, which the model's weights then stand for, if there is any."""
    from tasks.ml.quantization import block_files, quantized, weights_alone

    codes = block_files.load(checkpoint_directory() / CODES)
    if not codes:
        return None
    weights_alone.adopt(model, codes)
    return quantized.Quantized(quantized.Spec(), codes)


def _num_tokens(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.vocab_size)


def _train(
    model: nn.Module,
    tokenizer: Any,
    made: Quantized,
    source: Bundle,
    teacher: Bundle,
    *,
    splits: Splits,
    zeros: Mapping[str, torch.Tensor],
    config: AwareTrainingConfig,
    teaching: tutoring.TeachingConfig,
    compute: ComputeConfig,
    seed: int,
) -> tuple[str, Mapping[str, Blocks]]:
    """Has the teacher correct the model, in place, while it computes as if quantized; returns the history as JSON, and
    the codes that products in blocks come to.

    Args:
        source: the model before it was quantized.

    Raises:
        FeatherweightError: the model has zeros to keep, and processes would each hold a part of a layer.
    """
    from tasks.ml.models import tokenization
    from tasks.ml.pruning import kept_tokens
    from tasks.ml.quantization import fake_quantization, simulation

    if zeros and compute.num_processes > 1 and compute.parallelism is not Parallelism.REPLICATED:
        raise FeatherweightError(
            "quantization: training: the model is sparse, and zeros are held in whole layers; choose parallelism "
            "replicated"
        )
    master = simulation.load(store.path(teacher.digest), teacher.problem)
    vocabulary = tokenization.load(store.path(teacher.digest))
    tokens: list[int] | None = None
    if _num_tokens(model) < _num_tokens(master):
        tokens = tokenization.ids_in(tokenizer, vocabulary).tolist()
        master, _ = kept_tokens.keep_tokens(master, vocabulary, tokens)
    if made.codes:
        fake_quantization.unsettle(model, made.codes, simulation.load(store.path(source.digest), source.problem))
    lesson, _ = tutoring.prepare_lesson(
        model,
        master,
        tokenizer,
        splits=splits,
        teaching=teaching,
        seed=seed,
        bundle=teacher,
        vocabulary=tokens,
        zeros=zeros,
        spec=made.spec,
        codes=made.codes,
    )
    history = fitting.learn("quantize", model, lesson, config=config, compute=compute, seed=seed)
    codes = fake_quantization.settle(model.cpu(), made.spec, made.codes)
    return history.to_json(), codes
