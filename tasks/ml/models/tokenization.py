"""Tokenizers: their settings are read here and nowhere else, so that a text has the same ids in training and serving.

A model directory says in ``tokenizer_config.json`` how texts are cut and padded, and again, as presets, in
``tokenizer.json``. Of all that

- the side on which a text is cut is the tokenizer's own;
- after how many tokens it is cut is ``data.max_length``, whatever presets and ``model_max_length`` say;
- rows are padded on the right, whatever the tokenizer asks: heads read the first token, and positions count from it.

``save`` writes what holds into ``tokenizer.json`` alone, which the library ``tokenizers`` obeys without transformers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.contracts.base import FeatherweightError
from tasks.ml import digests
from tasks.ml.models import inspection

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

FILE = "tokenizer.json"
UNLIMITED = 2**31 - 1
"""Tokens after which a tokenizer cuts that was never told where."""


def load(directory: Path, *, max_length: int = 0) -> PreTrainedTokenizerBase:
    """Loads the (fast) tokenizer of a model directory.

    Args:
        max_length: tokens after which the model that it is loaded for learns texts cut; what is saved says so. 0: as
            the directory says.

    Raises:
        FeatherweightError: it has no tokenizer, none that can be read, no fast one, which serving without transformers
            needs, or no token to pad with.
    """
    from transformers import AutoTokenizer  # not by those who only look at stored rows

    inspection.tokenizer_files(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, use_fast=True)
    except Exception as error:  # the library tokenizers knows no other
        reason = " ".join(str(error).split())[:200]
        raise FeatherweightError(f"base_model: the tokenizer in {directory} cannot be read: {reason}") from error
    if not tokenizer.is_fast:
        raise FeatherweightError(f"base_model: {directory} has no fast tokenizer ({FILE})")
    if tokenizer.pad_token_id is None:
        raise FeatherweightError(
            f"base_model: {directory / 'tokenizer_config.json'} names no pad_token, with which rows are filled"
        )
    if max_length:
        tokenizer.model_max_length = max_length
    return tokenizer


def save(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes a tokenizer into an existing directory; its ``tokenizer.json`` cuts and pads by itself."""
    core: Tokenizer = tokenizer.backend_tokenizer
    limit = min(int(tokenizer.model_max_length), UNLIMITED)
    core.enable_truncation(limit, direction=tokenizer.truncation_side)
    core.enable_padding(direction="right", pad_id=tokenizer.pad_token_id, pad_token=str(tokenizer.pad_token))
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(directory)


def encodings(
    texts: Sequence[str], tokenizer: Any, *, max_length: int = 0, special_tokens: bool = True
) -> list[Encoding]:
    """Tokens of each text with their ids, words and places, without padding.

    Args:
        tokenizer: as ``load`` gives it.
        max_length: tokens after which a text is cut, special ones included; 0 leaves all whole.
    """
    core: Tokenizer = tokenizer.backend_tokenizer
    core.no_padding()
    if max_length:
        core.enable_truncation(max_length, direction=tokenizer.truncation_side)
    else:
        core.no_truncation()
    return core.encode_batch(list(texts), add_special_tokens=special_tokens)


def encode(texts: Sequence[str], tokenizer: Any, *, max_length: int) -> list[list[int]]:
    """Token ids with the special tokens, at most ``max_length`` a row; 0 leaves all whole."""
    return [encoding.ids for encoding in encodings(texts, tokenizer, max_length=max_length)]


def ids_in(tokenizer: Any, other: Any) -> np.ndarray:
    """By the ids of a tokenizer, (V,), those of the same tokens in another one; −1 where that has none."""
    vocabulary, ids = tokenizer.get_vocab(), other.get_vocab()
    found = np.full(max(vocabulary.values()) + 1, -1)
    for token, index in vocabulary.items():
        found[index] = ids.get(token, -1)
    return found


def standalone(file: Path, *, max_length: int) -> Tokenizer:
    """Reads a ``tokenizer.json`` that ``save`` wrote, without transformers; it cuts after so many tokens, and pads."""
    from tokenizers import Tokenizer

    core = Tokenizer.from_file(str(file))
    truncation: Any = core.truncation
    core.enable_truncation(max_length, direction=truncation["direction"])
    return core


@functools.lru_cache(maxsize=8)
def digest(tokenizer: Any) -> str:
    """SHA-256 of what a fast tokenizer says about itself: equal digests encode equally, cut after as many tokens."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description.update(truncation=tokenizer.truncation_side, padding=None)
    return digests.of_value(description)
