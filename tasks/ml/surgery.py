"""Making a model really smaller: layers, attention heads, FFN channels and vocabulary are cut out of the tensors.

Every function returns a new model and leaves its argument as it was.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.contracts import FeatherweightError
from tasks.ml import families, modeling
from tasks.ml.importance import LayerImportance


def spread(total: int, keep: int) -> list[int]:
    """Indices of ``keep`` layers spread evenly over ``total``, the last one included.

    TinyBERT's uniform map g(m) = m · total / keep (Jiao et al. 2020, arXiv:1909.10351, section 3.1), zero-based.

    Raises:
        FeatherweightError: more layers are asked for than there are.
    """
    if keep > total:
        raise FeatherweightError(f"distillation: layers is {keep}, but the teacher has {total}; use {total} or fewer")
    return [round((index + 1) * total / keep) - 1 for index in range(keep)]


def keep_layers(model: nn.Module, layers: Sequence[int]) -> nn.Module:
    """Keeps only these transformer layers, in this order."""
    student = copy.deepcopy(model)
    family = families.of(student.config.model_type)  # type: ignore[union-attr, arg-type]
    backbone = family.backbone(student)
    kept = nn.ModuleList(family.layer_list(student)[index] for index in layers)
    parent, _, name = family.layers.rpartition(".")
    setattr(backbone.get_submodule(parent), name, kept)
    student.config.num_hidden_layers = len(kept)  # type: ignore[union-attr]
    return student


def _keep_outputs(linear: nn.Linear, index: torch.Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight.detach()[index].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[index].clone())
    linear.out_features = len(index)


def _keep_inputs(linear: nn.Linear, index: torch.Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight.detach()[:, index].clone())
    linear.in_features = len(index)


def _top(scores: torch.Tensor, fraction: float) -> torch.Tensor:
    """Indices of the highest scores, in their original order; at least one."""
    count = max(1, round(fraction * len(scores)))
    return scores.topk(count).indices.sort().values


def keep_top(
    model: nn.Module, importance: Sequence[LayerImportance], *, keep_heads: float, keep_ffn: float
) -> nn.Module:
    """Keeps, in every layer, the most important fraction of heads and FFN channels.

    The output equals that of the full model with the removed units gated to zero.
    """
    smaller = copy.deepcopy(model)
    family = families.of(smaller.config.model_type)  # type: ignore[union-attr, arg-type]
    for layer, scores in zip(family.layer_list(smaller), importance, strict=True):
        part = layer.get_submodule
        size = family.head_size(layer)
        heads = _top(scores.heads, keep_heads)
        columns = (heads[:, None] * size + torch.arange(size, device=heads.device)).flatten()
        for name in (family.query, family.key, family.value):
            _keep_outputs(part(name), columns)  # type: ignore[arg-type]
        _keep_inputs(part(family.attention_output), columns)  # type: ignore[arg-type]
        family.set_num_heads(layer, len(heads), size)
        channels = _top(scores.ffn, keep_ffn)
        _keep_outputs(part(family.ffn_up), channels)  # type: ignore[arg-type]
        _keep_inputs(part(family.ffn_down), channels)  # type: ignore[arg-type]
    return smaller


def choose_tokens(tokenizer: Any, rows: Sequence[Sequence[int]], *, keep: float) -> list[int]:
    """Token ids to keep: special tokens, single characters, then the most frequent in ``rows``, ascending.

    Ties, and tokens that never occur, go by id: pretrained WordPiece vocabularies list frequent words first. Special
    tokens and single characters are kept whatever the fraction, so that no text becomes unknown that was known.

    Args:
        rows: token ids of the training texts.
        keep: fraction of the vocabulary.
    """
    vocabulary = tokenizer.get_vocab()
    counts = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.int64)
    for row in rows:
        counts.index_add_(0, torch.as_tensor(row), torch.ones(len(row), dtype=torch.int64))
    special = set(tokenizer.all_special_ids)
    always = {index for token, index in vocabulary.items() if index in special or len(token.removeprefix("##")) == 1}
    ranked = sorted(vocabulary.values(), key=lambda index: (index not in always, -int(counts[index]), index))
    return sorted(ranked[: max(len(always), round(keep * len(vocabulary)))])


def keep_tokens(model: nn.Module, tokenizer: Any, tokens: Sequence[int]) -> tuple[nn.Module, Any]:
    """Keeps only these rows of the token embedding, and a tokenizer that knows only these tokens.

    WordPiece takes the longest piece it knows, so a text whose pieces were all kept is encoded as before, and a
    removed word falls back to smaller pieces.

    Raises:
        FeatherweightError: the tokenizer is not WordPiece (merges of other kinds cannot be cut like this).
    """
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    if description["model"]["type"] != "WordPiece":
        raise FeatherweightError(
            f"pruning: keep_vocabulary below 1 needs a WordPiece tokenizer; this one is "
            f"{description['model']['type']}; set pruning.keep_vocabulary to 1"
        )
    smaller = copy.deepcopy(model)
    family = families.of(smaller.config.model_type)  # type: ignore[union-attr, arg-type]
    table = family.token_embedding(smaller)
    index = torch.as_tensor(list(tokens), device=table.weight.device)
    table.weight = nn.Parameter(table.weight.detach()[index].clone())
    table.num_embeddings = len(tokens)
    renumbered = {old: new for new, old in enumerate(tokens)}
    if table.padding_idx is not None:
        table.padding_idx = renumbered[table.padding_idx]
    smaller.config.vocab_size = len(tokens)  # type: ignore[union-attr]
    smaller.config.pad_token_id = renumbered[tokenizer.pad_token_id]  # type: ignore[union-attr]
    return smaller, _renumber(tokenizer, description, renumbered)


def _renumber(tokenizer: Any, description: dict[str, Any], renumbered: dict[int, int]) -> Any:
    model = description["model"]
    model["vocab"] = {token: renumbered[old] for token, old in model["vocab"].items() if old in renumbered}
    for added in description["added_tokens"]:
        added["id"] = renumbered[added["id"]]
    processor = description.get("post_processor") or {}
    for entry in processor.get("special_tokens", {}).values():
        entry["ids"] = [renumbered[old] for old in entry["ids"]]
    for side in ("sep", "cls"):
        if isinstance(processor.get(side), list):
            processor[side][1] = renumbered[processor[side][1]]
    if description.get("padding"):
        description["padding"]["pad_id"] = renumbered[description["padding"]["pad_id"]]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for stale in ("vocab.txt", "added_tokens.json"):
            (Path(folder) / stale).unlink(missing_ok=True)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
        return modeling.load_tokenizer(Path(folder))
