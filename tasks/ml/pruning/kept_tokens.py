"""A vocabulary cut down to some of its tokens: which stay, and what becomes of the token table and the tokenizer."""

from __future__ import annotations

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import families, tokenization


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
