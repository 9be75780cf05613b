"""Fields of older recipes, and how each is written now: they are refused with the line that would be right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from tasks.contracts.hyperparameters import ComputeConfig

Rewrite = Callable[[Any], dict[str, Any] | str]
"""From a field's value to the fields that say it now, or to why it is to be left out."""

STUDENTS = ("distillation", "pruning", "quantization.training")
STAGES = ("training", *STUDENTS)


def _at(path: str, change: Callable[[Any], Any] = lambda value: value) -> Rewrite:
    """Says a value elsewhere."""

    def rewrite(value: Any) -> dict[str, Any]:
        *groups, name = path.split(".")
        fields: dict[str, Any] = {name: change(value)}
        for group in reversed(groups):
            fields = {group: fields}
        return fields

    return rewrite


def _unless(off: Any, rewrite: Rewrite) -> Rewrite:
    """A value that meant nothing is left out."""
    return lambda value: f"leave it out, {value} is what happens anyway" if value == off else rewrite(value)


def _out(reason: str) -> Rewrite:
    return lambda value: f"leave it out: {reason}"


def _proposed_by(model: Any) -> dict[str, Any]:
    return {"teaching": {"augmentation": {"kind": "replacements", "model": model}}}


def _steps(stage: str) -> Rewrite:
    return lambda value: f"say steps in {stage}: optimizer steps, which are passes × texts / batch_size"


RENAMED: dict[str, Rewrite] = {
    **{f"{stage}.{name}": _at(f"compute.{name}") for stage in STAGES for name in ComputeConfig.model_fields},
    **{
        f"{stage}.batch_tokens": _unless(0, _at(f"{stage}.batch_size", lambda value: f"{value} tokens"))
        for stage in STAGES
    },
    **{f"{stage}.epochs": _steps(stage) for stage in STUDENTS},
    "quantization.training.epochs": lambda value: (
        "leave quantization.training out" if value == 0 else _steps("quantization.training")(value)
    ),
    **{f"{stage}.{name}": _at(f"teaching.{name}") for stage in STUDENTS for name in ("temperature", "label_weight")},
    **{
        f"{stage}.augmentation{old}": _unless(off, _at(f"teaching.augmentation.{new}"))
        for stage in STUDENTS
        for old, new, off in (("", "per_text", 0), ("_kind", "kind", "spans"))
    },
    **{f"{stage}.augmentation_model": _unless("", _proposed_by) for stage in STUDENTS},
    **{
        f"{stage}.logit_weight": _out("it is 1, and the other weights are beside it") for stage in STUDENTS
    },
    **{f"{stage}.dropout": _out("a student has the dropout of its teacher") for stage in STUDENTS},
    **{
        f"{stage}.{name}": _out("only training has it")
        for stage in STUDENTS
        for name in ("clip_norm", "weight_decay", "layer_decay")
    },
    "distillation.lora_rank": _out("only training and pruning have it"),
    "quantization.training.lora_rank": _out("only training and pruning have it"),
    **{
        f"{stage}.{name}": _out("what has been cut or rounded learns answers alone; distillation has it")
        for stage in ("pruning", "quantization.training")
        for name in ("hidden_weight", "attention_weight", "map_weight")
    },
    "pruning.keep_ffn": _at("pruning.width.keep_ffn"),
    "pruning.keep_heads": _at("pruning.width.keep_heads"),
    "pruning.target_speedup": _unless(0, _at("pruning.width.target_speedup")),
    "pruning.request_rows": _at("pruning.width.request_rows"),
    "pruning.served_as": _out("it follows quantization.scheme"),
    "pruning.sparsity": _unless("none", _at("pruning.sparsity.method")),
    "pruning.sparsity_pattern": _unless("unstructured", _at("pruning.sparsity.pattern")),
    "pruning.sparsity_fraction": _at("pruning.sparsity.pattern", str),
    "validation.require_gpu": lambda value: (
        _at("validation.device", lambda _: "cuda")(value) if value else "leave it out, device cuda demands a GPU"
    ),
}  # fmt: skip
"""By the field's path."""


def advice(path: str, value: Any) -> str:
    """What would be right instead of an old field; empty if it never was one."""
    if path not in RENAMED:
        return ""
    said = RENAMED[path](value)
    return said if isinstance(said, str) else f"write {line(said)}"


def line(fields: dict[str, Any]) -> str:
    """Nested fields as a line of YAML, such as ``compute: {precision: bf16}``."""
    ((name, value),) = fields.items()
    flow = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return f"{name}: {flow.splitlines()[0]}"
