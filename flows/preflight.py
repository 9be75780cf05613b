"""What of a recipe cannot come about with its base model, said before the first row is read.

A recipe checks its own fields; here they meet the shapes and the tokenizer that they are to be used with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import NamedTuple

from flows import decoder_preflight
from flows.recipe import Recipe
from tasks.contracts.base import FeatherweightError
from tasks.contracts.hyperparameters import ComputeConfig, Optimizer, OptimizerConfig, Parallelism, Precision
from tasks.ml import machine
from tasks.ml.models import inspection, locators
from tasks.ml.models.decoders import Decoder
from tasks.ml.models.inspection import Inspection
from tasks.ml.problem import problem_of
from tasks.ml.pruning import cuts, pieces
from tasks.prune import SpeedConfig
from tasks.quantize import EmbeddingScheme, Scheme, block_sizes
from tasks.validate import Device


class Shape(NamedTuple):
    """What every layer of a model has, as far as it is known before it is made."""

    hidden: int
    heads: int
    ffn: int


def inspected(base_model: str) -> Inspection:
    """Looks at a base model.

    Raises:
        FeatherweightError: it is not there, not whole or not supported.
    """
    found = inspection.inspect(locators.locate(base_model))
    inspection.require_finite(found)
    return found


def require(reasons: Iterable[str]) -> None:
    """Raises ``FeatherweightError`` with a line for each reason, if there is any."""
    if lines := list(reasons):
        raise FeatherweightError(*lines)


def of_training(recipe: Recipe, base: Inspection) -> Iterator[str]:
    """Says what of the teacher's training cannot be done."""
    yield from decoder_preflight.of_architecture(recipe, base)
    yield from _teacher(recipe)
    yield from _divided(recipe.compute, _whole(base))


def objections(recipe: Recipe, base: Inspection) -> Iterator[str]:
    """Says what of a recipe cannot be done, and which values could."""
    yield from decoder_preflight.of_architecture(recipe, base)
    yield from _teacher(recipe)
    yield from _student(recipe, base)
    whole = _whole(base)
    hidden = cuts.dimensions(whole.hidden, keep=recipe.distillation.keep_hidden, head_size=base.head_size)
    student = whole._replace(hidden=hidden)
    rounds = [_pruned(recipe, student, number / recipe.pruning.rounds) for number in range(recipe.pruning.rounds + 1)]
    yield from _table(recipe, base, hidden)
    yield from _sparse(recipe, student, rounds[-1], base.head_size)
    yield from _measured(recipe)
    yield from _divided(recipe.compute, whole, *rounds)
    for name, config in recipe.learning().items():
        if name != "training":
            yield from _equipped(name, config)
    yield from _taught(recipe, is_narrower=hidden < whole.hidden)


def _teacher(recipe: Recipe) -> Iterator[str]:
    yield from problem_of(recipe.problem).objections(recipe.training.model_dump())
    yield from _computed(recipe.compute)
    yield from _equipped("training", recipe.training)


def _whole(base: Inspection) -> Shape:
    config = base.config
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    return Shape(config["hidden_size"], heads, config["intermediate_size"])


def _pruned(recipe: Recipe, student: Shape, way: float) -> Shape:
    """A layer after a share of the way; with a speed to reach it is not known, and may be the student's."""
    width = recipe.pruning.width
    if isinstance(width, SpeedConfig):
        return student
    return student._replace(
        heads=cuts.units(student.heads, keep=1 - (1 - width.keep_heads) * way),
        ffn=cuts.units(student.ffn, keep=1 - (1 - width.keep_ffn) * way),
    )


def _student(recipe: Recipe, base: Inspection) -> Iterator[str]:
    """Whether the base model has what a student is to be cut out of."""
    layers, wanted = base.config["num_hidden_layers"], recipe.distillation.layers
    if wanted > layers:
        yield f"distillation.layers: {wanted} are more than the base model's {layers}; use {layers} or fewer"
    cut = recipe.pruning.keep_vocabulary < 1
    if cut and (reason := pieces.objection(inspection.tokenizer_model(base.directory))):
        yield f"pruning.keep_vocabulary: {reason}; use 1"


def _table(recipe: Recipe, base: Inspection, hidden: int) -> Iterator[str]:
    """Whether the token table has as many columns as are asked of it, and blocks of them can be stored."""
    rank, block_size = recipe.distillation.embedding_rank, recipe.quantization.block_size
    if rank >= hidden:
        yield (
            f"distillation.embedding_rank: {rank} is not below the student's hidden size of {hidden}; use "
            f"{hidden // 2} or so, or 0 for a whole table"
        )
        return
    columns, decodes = rank or hidden, isinstance(base.family, Decoder)
    in_blocks = {EmbeddingScheme.INT4}
    if decodes:  # whose table is a head, too
        in_blocks = set() if recipe.quantization.scheme is Scheme.NONE else {EmbeddingScheme.INT4, EmbeddingScheme.INT8}
        block_size = min(block_sizes())  # its blocks may be smaller than those of other layers
    if recipe.quantization.embeddings in in_blocks and columns % block_size:
        fitting = [str(size) for size in block_sizes() if columns % size == 0]
        otherwise = f"set quantization.embeddings to {'none' if decodes else 'int8'}"
        instead = f"use {' or '.join(fitting)}" if fitting else otherwise
        yield f"quantization.block_size: {block_size} does not divide the token table's {columns} columns; {instead}"


def _sparse(recipe: Recipe, student: Shape, pruned: Shape, head_size: int) -> Iterator[str]:
    """Whether groups of neighbouring weights divide what comes into every layer."""
    sparsity = recipe.pruning.sparsity
    group = sparsity.pattern.partition(":")[2] if sparsity else ""
    if not group:
        return
    inputs = {student.hidden, pruned.heads * head_size, pruned.ffn}
    if isinstance(recipe.pruning.width, SpeedConfig):  # any number of heads, and any of the widths that are timed
        inputs |= {head_size, *cuts.evenly(pruned.ffn, cuts.WIDTHS), *cuts.evenly(pruned.ffn, cuts.SPARSE_WIDTHS)}
    if recipe.distillation.embedding_rank:
        inputs.add(recipe.distillation.embedding_rank)
    if odd := sorted(width for width in inputs if width % int(group)):
        yield (
            f"pruning.sparsity.pattern: {group} does not divide {odd[0]}, which is as many inputs as a layer then has; "
            f"use n:m with an m that divides {math.gcd(*inputs)}, or a fraction such as 0.5"
        )


def _divided(config: ComputeConfig, *shapes: Shape) -> Iterator[str]:
    """Whether processes that share layers get the same number of heads and FFN channels each."""
    if config.num_processes == 1 or config.parallelism is not Parallelism.TENSOR:
        return
    for shape in shapes:
        for what, count in (("heads", shape.heads), ("FFN channels", shape.ffn)):
            if count % config.num_processes:
                common = math.gcd(*(number for one in shapes for number in (one.heads, one.ffn)))
                yield (
                    f"compute.num_processes: {config.num_processes} processes cannot have the same number of a layer's "
                    f"{count} {what}; use a number that divides {common}, or parallelism sharded"
                )
                return


def _equipped(name: str, config: OptimizerConfig) -> Iterator[str]:
    """Whether the packages are here that a training asks for by name."""
    wanted = []
    if config.optimizer is not Optimizer.ADAMW:
        from tasks.ml.training import optimizers

        description = optimizers.OPTIMIZERS[config.optimizer]
        wanted.append((f"optimizer: {config.optimizer}", description.package, description.is_installed))
    if config.rank():
        wanted.append(("lora_rank:", "peft", bool(find_spec("peft"))))
    for what, package, is_installed in wanted:
        if not is_installed:
            yield f"{name}.{what} needs the package {package}: pip install 'featherweight[training]'"


def _computed(config: ComputeConfig) -> Iterator[str]:
    """Whether the packages and the hardware are here that a precision needs."""
    if config.precision is Precision.FP8 and not find_spec("torchao"):
        yield "compute.precision: fp8 needs the package torchao: pip install 'featherweight[training]'"
    if config.precision in (Precision.FP8, Precision.TF32):
        from tasks.ml.training import precision, trainer

        try:
            precision.choose(config.precision, trainer.default_device())
        except FeatherweightError as error:
            yield f"compute.{error}"


def _measured(recipe: Recipe) -> Iterator[str]:
    """Whether the GPU is here on which the shipped model is to be measured."""
    config = recipe.validation
    if config.device is Device.CUDA and not machine.gpus():
        yield "validation.device: a GPU was asked for, and there is none; use auto or cpu"


def _taught(recipe: Recipe, *, is_narrower: bool) -> Iterator[str]:
    """Whether a model can be taught as it is asked for."""
    compute = recipe.compute
    shared = compute.num_processes > 1 and compute.parallelism is not Parallelism.REPLICATED
    if shared and is_narrower and recipe.distillation.hidden_weight:
        yield (
            f"compute.parallelism: {compute.parallelism} does not train a student narrower than its teacher "
            "(distillation.keep_hidden); use replicated, or distillation.hidden_weight 0"
        )
    augmentation = recipe.teaching.augmentation
    if augmentation and augmentation.model:
        from tasks.ml.data import substitutes

        field = "teaching.augmentation.model"
        try:
            directory = locators.find(augmentation.model, field=field)
            inspection.require_no_pointers(directory, field=field)
            substitutes.require_head(directory, inspection.stored_tensors(directory, field=field), field=field)
        except FeatherweightError as error:
            yield str(error)
