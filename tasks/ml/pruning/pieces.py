"""What tokenizers make tokens of, so that some tokens can go: WordPiece takes the longest piece it knows, BPE merges.

A tokenizer's ``model`` is here what ``tokenizer.json`` has under that name: ``type``, ``vocab``, and ``merges`` of BPE.

**WordPiece** takes of a word the longest piece it knows, then of the rest. A text whose pieces are all kept is read as
before, since no longer piece comes in; a word that lost its piece is read in shorter ones, at worst in characters.

**BPE** (Sennrich et al. 2016, arXiv:1508.07909) begins with characters, and merges, again and again, of all neighbours
those of the lowest rank, the leftmost first, until no two neighbours have a rank. A text whose tokens are all kept is
read as before, if the merges of their characters ``on_the_way`` to each of them are kept, too, and ranks keep their
order:

1. No merge reaches across the border of two tokens that a text ends up with. So those within a token happen in the
   order in which they would happen to it alone: of the neighbours within it those of the lowest rank, the leftmost
   first.
2. What is merged in the text is then kept: parts and products are on the way to a token that is.
3. Fewer merges never let another one be first: the first of all was kept, so it is the first of those that are left.
   And where none of all is left to be done, none of fewer is.

Any other text is read by what merges are left, at worst in characters or bytes, which are all kept: nothing becomes
unknown. With ``ignore_merges`` a word that is a token is taken whole, whatever merges say: that holds for those that
are kept as before. With ``dropout`` merges are left out by chance, and with affixes a piece is called otherwise amid a
word than at its end: both are refused.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

WORDPIECE, BPE = "WordPiece", "BPE"
CONTINUES = "##"
"""What WordPiece has before pieces that do not begin a word, where it does not say."""
BYTE = re.compile("<0x[0-9A-F]{2}>")
"""A token that stands for a byte of a character that has none."""
UNCUT = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")


def objection(model: Mapping[str, Any]) -> str:
    """Why the vocabulary of such a tokenizer cannot be cut; empty if it can, as far as is known."""
    kind = model.get("type") or ""
    if kind not in (WORDPIECE, BPE, ""):
        return f"only {WORDPIECE} and {BPE} vocabularies can be cut, and the base model's is {kind}"
    for name in UNCUT if kind == BPE else ():
        if model.get(name):
            return f"merges with {name} {model[name]!r}, which the base model's tokenizer has, cannot be cut"
    return ""


def smallest(model: Mapping[str, Any]) -> set[str]:
    """Pieces without which a text could become unknown: single characters, and bytes."""
    prefix = (model.get("continuing_subword_prefix") or CONTINUES) if model["type"] == WORDPIECE else ""
    of_bytes = bool(model.get("byte_fallback"))
    unknown = model.get("unk_token")
    return {
        token
        for token in model["vocab"]
        if len(token.removeprefix(prefix)) == 1 or token == unknown or (of_bytes and BYTE.fullmatch(token))
    }


def on_the_way(model: Mapping[str, Any]) -> Callable[[str], set[str]]:
    """From a token to the pieces that merges make of its characters before they make it; none where they do not."""
    ranks = {_pair(merge): rank for rank, merge in enumerate(model.get("merges") or ())}

    def pieces(token: str) -> set[str]:
        parts, made = list(token), set()
        while len(parts) > 1:
            ranked = ((ranks.get(pair), place) for place, pair in enumerate(itertools.pairwise(parts)))
            first = min(((rank, place) for rank, place in ranked if rank is not None), default=None)
            if first is None:  # such a token is only ever taken whole
                return set()
            place = first[1]
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
            made.add(parts[place])
        return made - {token}

    return pieces


def without(model: Mapping[str, Any], renumbered: Mapping[int, int]) -> dict[str, Any]:
    """The same model with these tokens only, under other ids; merges of what is gone, or into it, are gone.

    Args:
        renumbered: the new id of each token that stays, by its old one.
    """
    vocabulary = {token: renumbered[old] for token, old in model["vocab"].items() if old in renumbered}
    found = {**model, "vocab": vocabulary}
    if "merges" in model:
        merges = ((merge, _pair(merge)) for merge in model["merges"])
        found["merges"] = [merge for merge, (a, b) in merges if {a, b, a + b} <= vocabulary.keys()]
    return found


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """The two parts of a merge, which older files have as one string."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right
