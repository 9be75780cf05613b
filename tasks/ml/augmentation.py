"""More text to distill on. The teacher labels it, so a fragment needs no label of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence

SHORTEST = 0.3
"""Shortest sub-span, as a fraction of its text's words."""


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
