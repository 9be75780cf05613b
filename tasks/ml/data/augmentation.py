"""More text to distill on: parts of texts, and texts with other words. The teacher labels it, so it needs no label."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.ml.data.splitting import key
from tasks.ml.models import tokenization

SHORTEST = 0.3
"""Shortest sub-span, as a fraction of its text's words."""
REPLACED = 0.4
"""Probability that a word is replaced (TinyBERT's p_t)."""


def sub_spans(texts: Sequence[str], per_text: float, *, seed: int) -> list[str]:
    """Cuts contiguous runs of whole words out of the texts.

    Sentiment of fragments is what the phrase labels of the Stanford treebank add (Socher et al. 2013); here the
    teacher gives them. Texts of fewer than four words yield nothing.

    Args:
        per_text: spans per text; a fraction draws that share of the texts.
    """
    rng = random.Random(seed)
    spans: list[str] = []
    for text in texts:
        words = text.split()
        count = int(per_text) + (rng.random() < per_text % 1)
        for _ in range(count if len(words) >= 4 else 0):
            length = rng.randint(max(2, round(SHORTEST * len(words))), len(words) - 1)
            start = rng.randint(0, len(words) - length)
            spans.append(" ".join(words[start : start + length]))
    return spans


@dataclass(frozen=True)
class Draft:
    """A text of which some words are to be replaced."""

    text: str
    input_ids: list[int]
    places: list[int]
    """Tokens that are to go; each is a word of its own."""
    characters: list[tuple[int, int]]
    """Where in the text each of them begins and ends."""


Substitutes = Callable[[Sequence[Draft]], list[list[list[str]]]]
"""From drafts to what could stand in each of their places, best first, without the word that stands there."""


def words(texts: Sequence[str], tokenizer: Any, *, max_length: int) -> list[Draft]:
    """Finds the words of letters that are one token each: one draft per text, with all of them as its places."""
    found = []
    for text, encoding in zip(texts, tokenization.encodings(texts, tokenizer, max_length=max_length), strict=True):
        offsets, owners = encoding.offsets, encoding.word_ids
        pieces = Counter(owners)
        places = [
            place
            for place, ((start, end), owner) in enumerate(zip(offsets, owners, strict=True))
            if owner is not None and pieces[owner] == 1 and text[start:end].strip().isalpha()
        ]
        found.append(Draft(text, encoding.ids, places, [offsets[place] for place in places]))
    return found


def _drawn(whole: Draft, rng: random.Random) -> Draft:
    """Draws the places to replace: each with the probability ``REPLACED``, and at least one."""
    chosen = [number for number in range(len(whole.places)) if rng.random() < REPLACED]
    chosen = chosen or [rng.randrange(len(whole.places))]
    places, characters = ([values[number] for number in chosen] for values in (whole.places, whole.characters))
    return Draft(whole.text, whole.input_ids, places, characters)  # type: ignore[arg-type]


def replacements(found: Sequence[Draft], per_text: float, substitutes: Substitutes, *, seed: int) -> list[str]:
    """Texts with some words replaced: TinyBERT, Jiao et al. 2020 (arXiv:1909.10351), algorithm 1.

    Texts without a word that can be replaced yield nothing.

    Args:
        found: as ``words`` finds them.
        per_text: copies per text (N_a); a fraction draws that share of the texts.
    """
    rng = random.Random(seed)
    drafts: list[Draft] = []
    for whole in found:
        count = int(per_text) + (rng.random() < per_text % 1)
        drafts += [_drawn(whole, rng) for _ in range(count if whole.places else 0)]
    texts = []
    for draft, proposals in zip(drafts, substitutes(drafts), strict=True):
        text = draft.text
        for (start, end), proposed in sorted(zip(draft.characters, proposals, strict=True), reverse=True):
            if proposed:
                text = text[:start] + rng.choice(proposed) + text[end:]
        texts.append(text)
    return texts


def unseen(texts: Iterable[str], seen: Iterable[str]) -> list[str]:
    """Leaves out what was seen already, or twice; texts are the same that are the same to ``splitting.key``."""
    known, new = {key(text) for text in seen}, []
    for text in texts:
        if (identity := key(text)) not in known:
            known.add(identity)
            new.append(text)
    return new
