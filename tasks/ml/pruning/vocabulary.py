"""What a smaller vocabulary does to text that nobody chose it for."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Sequence
from typing import Any

from tasks.ml.models import tokenization

NUM_TEXTS = 1000


def foreign_texts() -> list[str]:
    """English prose of a domain of its own that every installation has: paragraphs of Python's reference manual."""
    paragraphs = (
        " ".join(paragraph.split())
        for _, topic in sorted(pydoc_data.topics.topics.items())
        for paragraph in topic.split("\n\n")
    )
    # Short paragraphs are headings and code.
    return [paragraph for paragraph in paragraphs if len(paragraph.split()) >= 8][:NUM_TEXTS]


def _count(tokenizer: Any, texts: Sequence[str]) -> tuple[int, int]:
    """Tokens of all texts, and how many of them are unknown."""
    rows = [encoding.ids for encoding in tokenization.encodings(texts, tokenizer, special_tokens=False)]
    return sum(map(len, rows)), sum(row.count(tokenizer.unk_token_id) for row in rows)


def safety(before: Any, after: Any, texts: Sequence[str]) -> dict[str, float]:
    """What texts cost and lose when one tokenizer takes the place of another.

    Returns:
        ``unknown_rate`` and ``unknown_rate_before``, fractions of tokens; ``tokens_per_text``; and ``token_growth``,
        how many times as many tokens as before.
    """
    (old, old_unknown), (new, new_unknown) = _count(before, texts), _count(after, texts)
    return {
        "texts": len(texts),
        "unknown_rate_before": old_unknown / old,
        "unknown_rate": new_unknown / new,
        "tokens_per_text": new / len(texts),
        "token_growth": new / old,
    }
