"""What a base model's tokenizer makes of texts: how long they are, in which script, and what of them it cannot read."""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.ml.data.column_kinds import percent
from tasks.ml.models import tokenization

LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Tokens that are proposed as the longest text."""
WHOLE = 0.95
"""Share of the texts that are to be read whole."""
MUCH_UNKNOWN = 0.05
"""Share of unknown tokens from which on much of a text is not read; of English reviews hardly any is."""
LETTER_BY_LETTER = 0.75
"""Tokens per letter or digit from which on words are spelled; 0.25 is usual."""
IN_PIECES = 0.37
"""Tokens per letter or digit from which on most words are in pieces. An English vocabulary has 0.25 of English, 0.35 of
English with code in it, and 0.38 to 0.43 of French, German, Italian and Spanish."""
IDEOGRAPHS = {"CJK", "HIRAGANA", "KATAKANA"}
"""Scripts of which one character is rightly one token."""
AT_ONCE = 1000


@dataclass(frozen=True)
class Reading:
    """What was read of N texts.

    Attributes:
        lengths: tokens of each whole text, special ones included, (N,).
        unknown: share of tokens that stand for something the vocabulary lacks, special ones left out.
        per_letter: tokens over letters and digits, special tokens left out.
        script: in which most letters are, as Unicode calls it, such as Latin; "" without letters.
    """

    lengths: np.ndarray
    unknown: float
    per_letter: float
    script: str

    def cut(self, max_length: int) -> float:
        """Share of the texts that are longer."""
        return float((self.lengths > max_length).mean())

    def max_length(self, positions: int) -> int:
        """The shortest of ``LENGTHS`` for which at most 1 − ``WHOLE`` of the texts are cut, up to ``positions``."""
        needed = int(np.quantile(self.lengths, WHOLE, method="inverted_cdf"))
        return min(next((length for length in LENGTHS if length >= needed), LENGTHS[-1]), positions)

    def objections(self) -> Iterator[str]:
        """Says what of these texts the base model cannot read, as measured."""
        if self.unknown > MUCH_UNKNOWN:
            yield (
                f"{percent(self.unknown)} of the tokens are unknown to the base model, which reads nothing in their "
                f"place; name one that knows these texts ({self.script or 'without letters'}) with --base-model"
            )
        elif self.script and self.per_letter > IN_PIECES and self.script.upper() not in IDEOGRAPHS:
            knows = "spells words and hardly knows any" if self.per_letter > LETTER_BY_LETTER else "has words in pieces"
            yield (
                f"the base model has {self.per_letter:.2f} tokens per letter for these texts ({self.script}), 0.25 are "
                f"usual: it {knows}; if they are in a language that it was not trained on, name one that knows it with "
                "--base-model"
            )


def read(texts: Sequence[str], tokenizer: Any) -> Reading:
    """Encodes texts as a model would read them whole.

    Args:
        tokenizer: as ``tokenization.load`` gives it.
    """
    special, unknown_id = tokenizer.num_special_tokens_to_add(), tokenizer.unk_token_id
    lengths: list[int] = []
    scripts: Counter[str] = Counter()
    unknown = letters = 0
    for start in range(0, len(texts), AT_ONCE):
        part = texts[start : start + AT_ONCE]
        for encoded in tokenization.encodings(part, tokenizer):
            lengths.append(len(encoded.ids))
            unknown += encoded.ids.count(unknown_id)
        characters = Counter("".join(part))
        letters += sum(count for one, count in characters.items() if one.isalnum())
        for one, count in characters.items():
            if one.isalpha():
                scripts[_script(one)] += count
    tokens = sum(lengths) - special * len(lengths)
    script = scripts.most_common(1)[0][0] if scripts else ""
    return Reading(np.array(lengths, dtype=np.int64), unknown / max(tokens, 1), tokens / max(letters, 1), script)


@functools.cache
def _script(letter: str) -> str:
    """The first word of a letter's name: LATIN SMALL LETTER A is Latin."""
    name = unicodedata.name(letter, "").partition(" ")[0]
    return name if name in ("CJK", "") else name.capitalize()
