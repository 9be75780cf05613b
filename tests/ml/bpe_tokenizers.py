"""Tokenizers that merge, trained on English prose: of bytes, as GPT-2's, and as SentencePiece's, as Llama-2's."""

from __future__ import annotations

import functools
import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tasks.ml.pruning import vocabulary

SIZE = 700
START, END, PAD = "<s>", "</s>", "<pad>"
SPECIAL = [PAD, START, END]
TEXTS = vocabulary.foreign_texts()[:150]
ELSEWHERE = [
    "Привет, мир", "日本語のテキスト", "مرحبا بالعالم", "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL} \N{PARTY POPPER}!",
    "naïve café, 5 €", "  two  spaces\tand\na line ", "ẞ",
]  # fmt: skip


@functools.cache
def _trained(byte_level: bool) -> str:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(False) if byte_level else pre_tokenizers.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    core.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False)
    )
    return str(core.to_str())


def described(*, byte_level: bool) -> dict[str, Any]:
    """What ``tokenizer.json`` has under ``model``, special tokens first, then, if bytes are fallbacks, these."""
    model: dict[str, Any] = json.loads(_trained(byte_level))["model"]
    fallbacks = [] if byte_level else ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names = [*SPECIAL, *fallbacks, *sorted(model["vocab"], key=model["vocab"].__getitem__)]
    changes = {} if byte_level else {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    return {**model, **changes, "vocab": {name: index for index, name in enumerate(names)}}


def build(*, byte_level: bool, model: dict[str, Any] | None = None) -> Any:
    """A tokenizer that begins each text with a token of its own."""
    core = Tokenizer(models.BPE())
    if byte_level:
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    description = json.loads(core.to_str()) | {"model": model or described(byte_level=byte_level)}
    core = Tokenizer.from_str(json.dumps(description))
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    core.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, core.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, bos_token=START, eos_token=END)


def decoded(tokenizer: Any, text: str) -> str:
    """A text after it was encoded and decoded."""
    core = tokenizer.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    return str(core.decode(core.encode(text).ids))
