"""The techniques that an ablation measures, as changes to a recipe. Plain data: a new technique is one more line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.recipe import Recipe
from flows.trials.branch import value_of, variation
from tasks.contracts.base import FeatherweightError
from tasks.quantize import ROUNDED

Changes = Mapping[str, Any]
"""Values by the field's path, such as ``pruning.width.keep_ffn``; see ``branch.variation``."""


@dataclass(frozen=True)
class Technique:
    """One thing to do or to leave."""

    name: str
    note: str
    on: Changes
    """Fields that use it; empty if only a recipe that has it can lend it."""
    off: Changes
    """The same fields where it is not used."""
    needs: Changes = field(default_factory=dict)
    """What it has no effect without: a tuple of values, of which a recipe that has none gets the first, or a number
    that may be any but zero."""
    falls: Changes = field(default_factory=dict)
    """What cannot stay where it is taken out."""


BY_FRACTIONS: Changes = {"pruning.width.keep_ffn": 0.5}
INTEGERS: Changes = {"quantization.scheme": tuple(scheme.value for scheme in ROUNDED)}
STATIC: Changes = {"quantization.scheme": ("int8-static",)}
SPARSE: Changes = {"pruning.sparsity.method": ("wanda", "sparsegpt", "magnitude")}
TEXTS: Changes = {"teaching.augmentation.per_text": 1.0}
WORDS: Changes = {**TEXTS, "teaching.augmentation.kind": ("replacements", "both")}
INTEGERS_ONLY: Changes = {
    "quantization.smoothing": 0.0, "quantization.rounding": "nearest", "quantization.max_damage": 0.0,
    "quantization.training.steps": None,
}  # fmt: skip

TECHNIQUES = (
    Technique("hidden states", "distillation: the student's hidden states follow the teacher's",
              {"distillation.hidden_weight": 1.0}, {"distillation.hidden_weight": 0.0}),
    Technique("attention relations", "distillation: how the last layer's tokens relate follows the teacher",
              {"distillation.attention_weight": 0.5}, {"distillation.attention_weight": 0.0}),
    Technique("attention maps", "distillation: which tokens the last layer attends to follows the teacher",
              {"distillation.map_weight": 1.0}, {"distillation.map_weight": 0.0}),
    Technique("labels", "distillation and recovery: the supervised loss beside the teacher's answers",
              {"teaching.label_weight": 0.5}, {"teaching.label_weight": 0.0}),
    Technique("layers by influence", "distillation: the layers that turn the hidden state most, instead of spread ones",
              {"distillation.layer_choice": "influence"}, {"distillation.layer_choice": "spread"}),
    Technique("narrower hidden state", "distillation: three quarters of the teacher's hidden size",
              {"distillation.keep_hidden": 0.75}, {"distillation.keep_hidden": 1.0}),
    Technique("factorized embeddings", "distillation: a token table of 128 columns, projected to the hidden size",
              {"distillation.embedding_rank": 128}, {"distillation.embedding_rank": 0}),
    Technique("augmentation", "distillation and recovery: texts made of the training texts as more texts", TEXTS,
              {"teaching.augmentation.per_text": None}),
    Technique("replacements", "distillation and recovery: words replaced by similar ones, instead of parts of texts",
              {"teaching.augmentation.kind": "replacements"}, {"teaching.augmentation.kind": "spans"}, TEXTS),
    Technique("replacements by a model", "distillation: a masked language model proposes words, instead of neighbours",
              {}, {"teaching.augmentation.model": ""}, WORDS),
    Technique("unlabeled text", "distillation and recovery: texts of other domains, answered by the teacher",
              {}, {"data.unlabeled": ""}),
    Technique("FFN pruning", "pruning: half the FFN channels of every layer",
              {"pruning.width.keep_ffn": 0.5}, {"pruning.width.keep_ffn": 1.0}, BY_FRACTIONS),
    Technique("head pruning", "pruning: a quarter of the heads of every layer",
              {"pruning.width.keep_heads": 0.75}, {"pruning.width.keep_heads": 1.0}, BY_FRACTIONS),
    Technique("pruning by measured times", "pruning: what makes it 1.5 times as fast here goes, instead of fractions",
              {"pruning.width.target_speedup": 1.5}, {"pruning.width.target_speedup": None}),
    Technique("importance by activation", "pruning: what adds least to a block's output goes, instead of by Taylor",
              {"pruning.importance": "activation"}, {"pruning.importance": "taylor"}),
    Technique("pruning in rounds", "pruning: three cuts with recovery in between, instead of one",
              {"pruning.rounds": 3}, {"pruning.rounds": 1}),
    Technique("vocabulary pruning", "pruning: the rarer half of the tokens",
              {"pruning.keep_vocabulary": 0.5}, {"pruning.keep_vocabulary": 1.0}),
    Technique("healed rounding", "pruning: token embeddings are rounded before recovery, instead of after it",
              {"pruning.heal_rounding": True}, {"pruning.heal_rounding": False},
              {"pruning.embeddings": ("frozen",), "quantization.embeddings": ("int4", "int8")}),
    Technique("magnitude sparsity", "pruning: the smallest weights become zero",
              {"pruning.sparsity.method": "magnitude"}, {"pruning.sparsity.method": None}),
    Technique("Wanda sparsity", "pruning: weights that are small beside what they multiply become zero",
              {"pruning.sparsity.method": "wanda"}, {"pruning.sparsity.method": None}),
    Technique("SparseGPT sparsity", "pruning: weights become zero, and others make up for them",
              {"pruning.sparsity.method": "sparsegpt"}, {"pruning.sparsity.method": None}),
    Technique("2:4 sparsity", "pruning: two zeros among every four weights, instead of zeros anywhere",
              {"pruning.sparsity.pattern": "2:4"}, {"pruning.sparsity.pattern": "0.5"}, SPARSE),
    Technique("dynamic int8", "quantization: int8 weights, activations scaled at run time",
              {"quantization.scheme": "int8-dynamic"}, {"quantization.scheme": "none"}, falls=INTEGERS_ONLY),
    Technique("static int8", "quantization: activations scaled by the calibration split, instead of at run time",
              {"quantization.scheme": "int8-static"}, {"quantization.scheme": "int8-dynamic"}),
    Technique("percentile calibration", "quantization: static ranges without the outermost values",
              {"quantization.calibration": "percentile"}, {"quantization.calibration": "min-max"}, STATIC),
    Technique("entropy calibration", "quantization: static ranges that lose least information",
              {"quantization.calibration": "entropy"}, {"quantization.calibration": "min-max"}, STATIC),
    Technique("int4 linear layers", "quantization: 4-bit weights in blocks, instead of dynamic int8",
              {"quantization.scheme": "int4"}, {"quantization.scheme": "int8-dynamic"}),
    Technique("int4 in floats", "quantization: a decoder's 4-bit weights multiplied in floats, instead of integers",
              {"quantization.scheme": "int4-floats"}, {"quantization.scheme": "int4"}),
    Technique("fp16", "quantization: 16-bit floating point instead of 32-bit, for GPUs",
              {"quantization.scheme": "fp16"}, {"quantization.scheme": "none"}),
    Technique("bf16", "quantization: 16-bit floating point with the range of 32-bit, for GPUs",
              {"quantization.scheme": "bf16"}, {"quantization.scheme": "none"}),
    Technique("int8 embeddings", "quantization: token embeddings in int8, a scale per row",
              {"quantization.embeddings": "int8"}, {"quantization.embeddings": "none"}),
    Technique("int4 embeddings", "quantization: token embeddings in 4-bit blocks, instead of int8",
              {"quantization.embeddings": "int4"}, {"quantization.embeddings": "int8"}),
    Technique("SmoothQuant", "quantization: outliers of activations move into the weights",
              {"quantization.smoothing": 0.5}, {"quantization.smoothing": 0.0}, INTEGERS),
    Technique("GPTQ", "quantization: later columns make up for the rounding of earlier ones",
              {"quantization.rounding": "gptq"}, {"quantization.rounding": "nearest"}, INTEGERS),
    Technique("mixed precision", "quantization: layers that quantization damages most get more bits",
              {"quantization.max_damage": 0.001}, {"quantization.max_damage": 0.0}, INTEGERS),
    Technique("aware training", "quantization: the teacher corrects the model as it will be rounded",
              {"quantization.training.steps": 500}, {"quantization.training.steps": None}, INTEGERS),
)  # fmt: skip
"""In the order of the line. A number counts as used at any value but ``off``'s; a name or a switch at ``on``'s only."""


@dataclass(frozen=True)
class Arm:
    """A technique in a recipe: what is compared with what."""

    technique: Technique
    is_used: bool
    """Whether the recipe uses it: then it is taken out, else put in."""
    used: Recipe
    spared: Recipe


def lacks(technique: Technique, recipe: Recipe) -> dict[str, Any]:
    """The values that a recipe must get for a technique to have an effect; empty if it has what is needed."""
    missing = {}
    for path, needed in technique.needs.items():
        value = value_of(recipe, path)
        if isinstance(needed, tuple):
            if value not in needed:
                missing[path] = needed[0]
        elif not value:
            missing[path] = needed
    return missing


def is_used(technique: Technique, recipe: Recipe) -> bool:
    """Whether a recipe uses a technique: whether all its fields say so, and nothing is missing for it to matter."""
    return not lacks(technique, recipe) and all(
        value_of(recipe, path) == technique.on[path]
        if isinstance(technique.on.get(path), str | bool)
        else value_of(recipe, path) != off
        for path, off in technique.off.items()
    )


def find(name: str) -> Technique:
    """The technique of this name.

    Raises:
        ValueError: there is none.
    """
    known = {one.name: one for one in TECHNIQUES}
    if name not in known:
        raise ValueError(f"{name!r} is not known; choose among {', '.join(known)}")
    return known[name]


def plan(recipe: Recipe, chosen: Sequence[Technique]) -> tuple[list[Arm], dict[str, str]]:
    """What to compare, and the techniques that this recipe leaves nothing to compare of, with the reason."""
    arms, left_out = [], {}
    for one in chosen:
        uses = is_used(one, recipe)
        if not uses and not one.on:
            left_out[one.name] = "the recipe does not use it, and names nothing to use"
            continue
        try:
            used = recipe if uses else variation(recipe, {**lacks(one, recipe), **one.on})
            arms.append(Arm(one, uses, used, variation(used, {**one.off, **one.falls})))
        except FeatherweightError as error:
            left_out[one.name] = "; ".join(error.args)
    return arms, left_out
