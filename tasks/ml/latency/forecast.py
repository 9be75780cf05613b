"""What a student will weigh, from the teacher's shapes alone, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.ml.models import factorization, families, modeling, quantization_spec, tokenization
from tasks.ml.pruning import kept_tokens, surgery


def num_bytes(
    teacher: Path,
    problem: str,
    *,
    layers: int,
    keep_heads: float,
    keep_ffn: float,
    keep_vocabulary: float,
    embedding_rank: int,
    plan: Mapping[str, Any],
) -> int:
    """Bytes of the weights, as the quantization spec will store them; the graph around them is not counted.

    No tensor is filled: the student is put together on the meta device with the shapes that surgery would give it.

    Args:
        teacher: a torch bundle; its weights are not read.
        plan: keyword arguments of ``quantization_spec.plan``.

    Raises:
        FeatherweightError: the teacher has fewer layers, or a block size does not divide its width.
    """
    with torch.device("meta"):
        whole = modeling.skeleton(teacher, problem)
        model = surgery.keep_layers(whole, surgery.spread(len(modeling.shapes(whole)), layers))
        family = families.of_model(model)
        shapes = surgery.fraction(modeling.shapes(model), heads=keep_heads, ffn=keep_ffn)
        for layer, shape in zip(family.layer_list(model), shapes, strict=True):
            modeling.resize(family, layer, **shape)
        if embedding_rank:
            factorization.shape(model, embedding_rank)
        if keep_vocabulary < 1:
            table = family.token_embedding(model)
            rows = kept_tokens.num_tokens(tokenization.load(teacher), keep=keep_vocabulary)
            table.weight = nn.Parameter(table.weight[:rows])
            table.num_embeddings = rows
    return quantization_spec.num_bytes(model, quantization_spec.plan(model, **plan))
