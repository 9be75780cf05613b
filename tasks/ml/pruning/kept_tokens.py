"""A vocabulary cut down to some of its tokens: which stay, and what becomes of table, head and tokenizer.

Why texts whose tokens all stay are read as before is said in ``pieces``.
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
from tasks.ml.models import architectures, tokenization
from tasks.ml.models.decoders import Decoder
from tasks.ml.pruning import pieces, surgery

STALE = ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "*.model")
"""Files of a tokenizer beside ``tokenizer.json`` that would give tokens the ids that they had."""


def choose_tokens(tokenizer: Any, rows: Sequence[Sequence[int]], *, keep: float) -> list[int]:
    """Token ids to keep, ascending: what any text needs, then the most frequent in ``rows``, each with the pieces that
    it is made of.

    Ties, and tokens that never occur, go by id: pretrained vocabularies list frequent ones first. Special tokens,
    single characters and bytes are kept whatever the fraction, so that no text becomes unknown that was known.

    Args:
        rows: token ids of the training texts.
        keep: fraction of the vocabulary.

    Raises:
        FeatherweightError: the vocabulary of such a tokenizer cannot be cut.
    """
    vocabulary, kept = tokenizer.get_vocab(), _indispensable(tokenizer)
    counts = Counter(token for row in rows for token in row)
    names = {index: token for token, index in vocabulary.items() if index not in kept}
    room, needs = num_tokens(tokenizer, keep=keep) - len(kept), pieces.on_the_way(_described(tokenizer)["model"])
    for index in sorted(names, key=lambda index: (-counts[index], index)):
        if room == 0:
            break
        more = {index, *map(vocabulary.__getitem__, needs(names[index]))} - kept
        # Where all of them do not fit, others do, and fill it up: of pieces that are left one needs no other.
        if len(more) <= room:
            kept |= more
            room -= len(more)
    return sorted(kept)


def _described(tokenizer: Any) -> dict[str, Any]:
    """``tokenizer.json`` of a tokenizer whose vocabulary can be cut."""
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    if reason := pieces.objection(found["model"]):
        raise FeatherweightError(f"pruning.keep_vocabulary: {reason}; use 1")
    return found


def _indispensable(tokenizer: Any) -> set[int]:
    """Ids of the smallest pieces, and of all that a tokenizer names beside its vocabulary: special and added tokens."""
    description = _described(tokenizer)
    named = {*tokenizer.all_special_ids, *(added["id"] for added in description["added_tokens"])}

    def note(index: int) -> int:
        named.add(index)
        return index

    _with_ids(description["post_processor"] or {}, note)
    vocabulary = tokenizer.get_vocab()
    return named & {*vocabulary.values()} | {vocabulary[piece] for piece in pieces.smallest(description["model"])}


def num_tokens(tokenizer: Any, *, keep: float) -> int:
    """How many tokens ``choose_tokens`` keeps."""
    return max(len(_indispensable(tokenizer)), round(keep * len(tokenizer.get_vocab())))


def keep_tokens(model: nn.Module, tokenizer: Any, tokens: Sequence[int]) -> tuple[nn.Module, Any]:
    """Keeps only these rows of the token table, and of a decoder's head, and a tokenizer that knows only these tokens.

    A decoder's logits of kept tokens are what they were. Rows of the table beyond the tokenizer's tokens go.

    Args:
        tokens: ascending ids, as ``choose_tokens`` gives them.

    Raises:
        FeatherweightError: the vocabulary of such a tokenizer cannot be cut.
    """
    cut, renumbered = cut_tokenizer(tokenizer, tokens)
    smaller = copy.deepcopy(model)
    architecture = architectures.of_model(smaller)
    table = architecture.token_embedding(smaller)
    index = torch.as_tensor(list(tokens), device=table.weight.device)
    kept = nn.Parameter(table.weight.detach()[index].clone())
    if isinstance(architecture, Decoder):
        head: Any = smaller.get_output_embeddings()  # type: ignore[operator]
        is_tied = head.weight is table.weight
        surgery.keep_outputs(head, index)
        if is_tied:
            head.weight = kept
    table.weight = kept
    table.num_embeddings = len(tokens)
    config: Any = smaller.config
    config.vocab_size = len(tokens)
    for settings in (config, getattr(smaller, "generation_config", None)):
        _renumber_settings(settings, renumbered)
    if table.padding_idx is not None:
        table.padding_idx = renumbered.get(table.padding_idx)
    if not isinstance(architecture, Decoder) and architecture.positions_follow_padding:
        _shift_positions(smaller, old=tokenizer.pad_token_id, new=renumbered[tokenizer.pad_token_id])
    return smaller, cut


def _renumber_settings(settings: Any, renumbered: Mapping[int, int]) -> None:
    """Has settings such as ``eos_token_id`` name the same tokens by other ids; a token that is gone is not named."""
    for name, said in (settings.to_dict() if settings else {}).items():
        if name.endswith("_token_id") and isinstance(said, int):
            setattr(settings, name, renumbered.get(said))
        elif name.endswith("_token_id") and isinstance(said, list):
            setattr(settings, name, [renumbered[one] for one in said if one in renumbered] or None)


def _shift_positions(model: nn.Module, *, old: int, new: int) -> None:
    """Lets positions count from another id of the padding token, for which as many rows of their table go."""
    config: Any = model.config
    family: Any = architectures.of_model(model)
    positions: Any = family.backbone(model).get_submodule(family.position_embeddings)
    positions.weight = nn.Parameter(positions.weight.detach()[old - new :].clone())
    positions.num_embeddings = config.max_position_embeddings = len(positions.weight)
    holder: Any = family.backbone(model).get_submodule(family.position_embeddings.rpartition(".")[0])
    positions.padding_idx = holder.padding_idx = new


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


def cut_tokenizer(tokenizer: Any, tokens: Sequence[int]) -> tuple[Any, dict[int, int]]:
    """A tokenizer that knows only these tokens, and the new id of each of them."""
    _described(tokenizer)
    renumbered = {old: new for new, old in enumerate(tokens)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenization.save(tokenizer, folder)
        for stale in (path for pattern in STALE for path in folder.glob(pattern)):
            stale.unlink()
        path = folder / tokenization.FILE
        description = json.loads(path.read_text(encoding="utf-8"))
        description["model"] = pieces.without(description["model"], renumbered)
        for added in description["added_tokens"]:
            added["id"] = renumbered[added["id"]]
        if description["post_processor"]:
            description["post_processor"] = _with_ids(description["post_processor"], renumbered.__getitem__)
        description["padding"]["pad_id"] = renumbered[description["padding"]["pad_id"]]
        path.write_text(json.dumps(description), encoding="utf-8")
        found = tokenization.load(folder)
    wanted = {token: renumbered[old] for token, old in tokenizer.get_vocab().items() if old in renumbered}
    if found.get_vocab() != wanted:
        raise FeatherweightError(
            f"pruning.keep_vocabulary: a tokenizer of the class {type(tokenizer).__name__} numbers its tokens by "
            "itself, and cannot be cut; use 1"
        )
    return found, renumbered
