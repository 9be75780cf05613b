"""Making a model really smaller: layers, attention heads, FFN channels and vocabulary are cut out of the tensors.

Every function returns a new model and leaves its argument as it was.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import architectures, families, modeling, removal, tokenization
from tasks.ml.pruning import cuts
from tasks.ml.pruning.importance import LayerImportance


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
    family = architectures.of_model(student)
    kept = nn.ModuleList(family.layer_list(student)[index] for index in layers)
    family.backbone(student).set_submodule(family.layers, kept)
    family.count_layers(student, layers)
    return student


def keep_outputs(linear: nn.Linear, index: torch.Tensor) -> None:
    """Keeps these rows of a matrix and of its bias, in place."""
    linear.weight = nn.Parameter(linear.weight.detach()[index].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[index].clone())
    linear.out_features = len(index)


def keep_inputs(linear: nn.Linear, index: torch.Tensor) -> None:
    """Keeps these columns of a matrix, in place."""
    linear.weight = nn.Parameter(linear.weight.detach()[:, index].clone())
    linear.in_features = len(index)


def _keep_heads(family: architectures.Architecture, layer: nn.Module, heads: torch.Tensor) -> None:
    part, size, had = layer.get_submodule, family.head_size(layer), family.num_heads(layer)
    if had == 0:
        return
    if isinstance(family, families.Family) and len(heads) == 0:
        removal.remove_heads(family, layer)
        return

    def units(width: int) -> torch.Tensor:
        """Places of the heads among so many: with a head of keys and values go the heads of queries that read it."""
        each = width // had
        return (heads[:, None] * each + torch.arange(each, device=heads.device)).flatten()

    for linear in (part(name) for name in family.head_parts):
        keep_outputs(linear, units(linear.out_features))  # type: ignore[arg-type]
    closing: Any = part(family.attention_output)
    keep_inputs(closing, units(closing.in_features))
    family.set_num_heads(layer, len(heads), size)


def _keep_channels(family: architectures.Architecture, layer: nn.Module, channels: torch.Tensor) -> None:
    if family.ffn_width(layer) == 0:
        return
    if isinstance(family, families.Family) and len(channels) == 0:
        removal.remove_channels(family, layer)
        return
    for name in family.channel_parts:
        keep_outputs(layer.get_submodule(name), channels)  # type: ignore[arg-type]
    keep_inputs(layer.get_submodule(family.ffn_down), channels)  # type: ignore[arg-type]


def _top(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the highest scores, in their original order."""
    return scores.topk(count).indices.sort().values


def keep_counts(
    model: nn.Module, importance: Sequence[LayerImportance], counts: Sequence[Mapping[str, int]]
) -> nn.Module:
    """Keeps, in each layer, so many of its most important heads and FFN channels; none takes the block away.

    The output equals that of the full model with the removed units gated to zero.

    Args:
        counts: ``heads`` and ``ffn`` of each layer, as ``modeling.shapes`` gives them.

    Raises:
        FeatherweightError: a decoder cannot have these.
    """
    smaller = copy.deepcopy(model)
    family = architectures.of_model(smaller)
    if list(counts) == modeling.shapes(smaller):
        return smaller
    architectures.require_cuttable(family)
    if not isinstance(family, families.Family):
        _require_even(family, counts)
    for layer, scores, count in zip(family.layer_list(smaller), importance, counts, strict=True):
        _keep_heads(family, layer, _top(scores.heads, count["heads"]))
        _keep_channels(family, layer, _top(scores.ffn, count["ffn"]))
    family.describe_shapes(smaller)
    return smaller


def _require_even(family: architectures.Architecture, counts: Sequence[Mapping[str, int]]) -> None:
    """Raises unless each count is the same in all layers, as a decoder's configuration and its cache have it."""
    for part, name in (("heads", "heads of keys and values"), ("ffn", "FFN channels")):
        kept = [count[part] for count in counts]
        if len(set(kept)) > 1 or 0 in kept:
            raise FeatherweightError(
                f"pruning: {kept} {name} cannot be kept: there must be at least one, and as many in each layer, the "
                f"same in all layers of a {family.model_types[0]}; cut by fractions"
            )


def fraction(shapes: Sequence[Mapping[str, int]], **keep: float) -> list[dict[str, int]]:
    """The same fraction of every layer's ``heads`` and ``ffn``; at least one where there are any."""
    return [{name: cuts.units(shape[name], keep=part) for name, part in keep.items()} for shape in shapes]


def choose_tokens(tokenizer: Any, rows: Sequence[Sequence[int]], *, keep: float) -> list[int]:
    """Token ids to keep: special tokens, single characters, then the most frequent in ``rows``, ascending.

    Ties, and tokens that never occur, go by id: pretrained WordPiece vocabularies list frequent words first. Special
    tokens and single characters are kept whatever the fraction, so that no text becomes unknown that was known.

    Args:
        rows: token ids of the training texts.
        keep: fraction of the vocabulary.
    """
    vocabulary = tokenizer.get_vocab()
    counts = Counter(token for row in rows for token in row)
    always = _indispensable(tokenizer)
    ranked = sorted(vocabulary.values(), key=lambda index: (index not in always, -counts[index], index))
    return sorted(ranked[: num_tokens(tokenizer, keep=keep)])


def _indispensable(tokenizer: Any) -> set[int]:
    """Ids of single characters, and of all that a tokenizer names beside its vocabulary: special and added tokens."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    named = {*tokenizer.all_special_ids, *(added["id"] for added in description["added_tokens"])}

    def note(index: int) -> int:
        named.add(index)
        return index

    _with_ids(description["post_processor"] or {}, note)
    unknown, vocabulary = description["model"].get("unk_token"), tokenizer.get_vocab().items()
    return {
        index for token, index in vocabulary if index in named or token == unknown or len(token.removeprefix("##")) == 1
    }


def num_tokens(tokenizer: Any, *, keep: float) -> int:
    """How many tokens ``choose_tokens`` keeps."""
    return max(len(_indispensable(tokenizer)), round(keep * len(tokenizer.get_vocab())))


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
    family = families.of_model(smaller)
    table = family.token_embedding(smaller)
    index = torch.as_tensor(list(tokens), device=table.weight.device)
    table.weight = nn.Parameter(table.weight.detach()[index].clone())
    table.num_embeddings = len(tokens)
    renumbered = {old: new for new, old in enumerate(tokens)}
    smaller.config.vocab_size = len(tokens)  # type: ignore[union-attr]
    _renumber_padding(smaller, old=tokenizer.pad_token_id, new=renumbered[tokenizer.pad_token_id])
    return smaller, _renumber(tokenizer, renumbered)


def _renumber_padding(model: nn.Module, *, old: int, new: int) -> None:
    """Gives the padding token another id; where positions count from it, so many rows of their table go."""
    config: Any = model.config
    family = families.of_model(model)
    config.pad_token_id = new
    table = family.token_embedding(model)
    if table.padding_idx is not None:
        table.padding_idx = new
    if family.positions_follow_padding:
        positions: Any = family.backbone(model).get_submodule(family.position_embeddings)
        positions.weight = nn.Parameter(positions.weight.detach()[old - new :].clone())
        positions.num_embeddings = config.max_position_embeddings = len(positions.weight)
        holder: Any = family.backbone(model).get_submodule(family.position_embeddings.rpartition(".")[0])
        positions.padding_idx = holder.padding_idx = new


def tokens_of(tokenizer: Any, smaller: Any) -> list[int]:
    """Ids, in a tokenizer, of the tokens that one with a smaller vocabulary has, in the order of their ids there."""
    ids = tokenizer.get_vocab()
    return [ids[token] for token, _ in sorted(smaller.get_vocab().items(), key=lambda item: item[1])]


def _with_ids(processor: dict[str, Any], change: Callable[[int], int]) -> dict[str, Any]:
    """A post-processor, as ``tokenizer.json`` describes it, with other ids of the tokens that it puts around texts."""
    found = dict(processor)
    if "processors" in found:
        found["processors"] = [_with_ids(one, change) for one in found["processors"]]
    if isinstance(found.get("special_tokens"), dict):
        found["special_tokens"] = {
            name: entry | {"ids": [change(index) for index in entry["ids"]]}
            for name, entry in found["special_tokens"].items()
        }
    for side in ("sep", "cls"):
        if side in found:
            found[side] = [found[side][0], change(found[side][1])]
    return found


def _renumber(tokenizer: Any, renumbered: dict[int, int]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        tokenization.save(tokenizer, Path(folder))
        for stale in ("vocab.txt", "added_tokens.json"):
            (Path(folder) / stale).unlink(missing_ok=True)
        path = Path(folder) / tokenization.FILE
        description = json.loads(path.read_text(encoding="utf-8"))
        model = description["model"]
        model["vocab"] = {token: renumbered[old] for token, old in model["vocab"].items() if old in renumbered}
        for added in description["added_tokens"]:
            added["id"] = renumbered[added["id"]]
        if description["post_processor"]:
            description["post_processor"] = _with_ids(description["post_processor"], renumbered.__getitem__)
        description["padding"]["pad_id"] = renumbered[description["padding"]["pad_id"]]
        path.write_text(json.dumps(description), encoding="utf-8")
        return tokenization.load(Path(folder))
