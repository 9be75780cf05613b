"""What of a recipe cannot come about with a decoder: whether problem and base model fit, and what is for encoders."""

from __future__ import annotations

from collections.abc import Iterator

from flows.recipe import Recipe
from tasks.contracts.hyperparameters import Embeddings, Parallelism
from tasks.ml.models.decoders import Decoder
from tasks.ml.models.inspection import Inspection
from tasks.ml.problem import problem_of
from tasks.prune import SpeedConfig
from tasks.quantize import EmbeddingScheme, Scheme


def of_architecture(recipe: Recipe, base: Inspection) -> Iterator[str]:
    """Whether a base model can learn the problem, and what of the recipe a decoder cannot have."""
    kind, family, writes = base.config["model_type"], base.family, problem_of(recipe.problem).PER_TOKEN
    if not isinstance(family, Decoder):
        if recipe.quantization.scheme is Scheme.INT4_FLOATS:
            yield "quantization.scheme: int4-floats is for decoders; use int4"
        if writes:
            yield f"problem: {recipe.problem} needs a decoder, and the base model is an encoder ({kind})"
    elif not writes:
        yield f"problem: {recipe.problem} needs an encoder, and the base model is a decoder ({kind}); use causal-lm"
    else:
        yield from _quantized(recipe)
        yield from _pruned(recipe, family, kind)
        yield from _taught(recipe)


def _quantized(recipe: Recipe) -> Iterator[str]:
    config = recipe.quantization
    if config.scheme not in (Scheme.INT4, Scheme.INT4_FLOATS, Scheme.NONE):
        yield f"quantization.scheme: {config.scheme} is for encoders; a decoder takes int4, int4-floats or none"
    if config.scheme is Scheme.INT4_FLOATS and config.bits > 4:
        yield "quantization.scheme: int4-floats has no fast product for 8 bits; use int4, or bits of at most 4"
    if config.smoothing:
        yield "quantization.smoothing: a decoder's activations stay as they are; use 0"
    if config.max_damage:
        yield "quantization.max_damage: for encoders; use 0, and bits such as 4.5 for a mix by what is lost"
    kept = config.embeddings is not EmbeddingScheme.NONE
    if config.training and config.training.embeddings is not Embeddings.FROZEN and kept:
        yield "quantization.training.embeddings: token table and head stay as they were rounded; use frozen"


def _pruned(recipe: Recipe, family: Decoder, kind: str) -> Iterator[str]:
    config = recipe.pruning
    if config.sparsity:
        yield "pruning.sparsity: zeros gain nothing in blocks of codes; leave it out"
    if config.heal_rounding:
        yield "pruning.heal_rounding: a head that is the token table is rounded at the end; use false"
    if isinstance(config.width, SpeedConfig):
        yield "pruning.width: times of a decoder's layers are not measured; use keep_ffn and keep_heads"
    elif family.is_transposed and min(config.width.keep_ffn, config.width.keep_heads) < 1:
        yield f"pruning.width: {kind} has query, key and value in one matrix, which is not cut; use 1 for both"


def _taught(recipe: Recipe) -> Iterator[str]:
    distillation, teaching, compute = recipe.distillation, recipe.teaching, recipe.compute
    for name in ("attention_weight", "map_weight"):
        if getattr(distillation, name):
            yield f"distillation.{name}: a decoder learns logits and hidden states; use 0"
    if distillation.embedding_rank:
        yield "distillation.embedding_rank: a head that is the token table needs it whole; use 0"
    if distillation.keep_hidden < 1:
        yield "distillation.keep_hidden: a decoder keeps its hidden width; use 1, and fewer layers"
    if teaching.augmentation:
        yield "teaching.augmentation: it makes texts for encoders; leave it out"
    if teaching.temperature != 1:
        yield (
            f"teaching.temperature: {teaching.temperature:g}, and of tokens that a teacher hardly says only the sum is "
            "kept, which no temperature fits; use 1"
        )
    if compute.max_memory:
        yield "compute.max_memory: what a decoder holds is not planned yet; use 0, and micro_batch"
    if compute.parallelism is Parallelism.TENSOR and compute.num_processes > 1:
        yield "compute.parallelism: tensor is for encoders; use replicated or sharded"
