"""A serving bundle that continues texts: a random Llama with a token for each byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from tasks.judge import BudgetConfig, weigh
from tasks.ml.data.datasets import Golden
from tasks.ml.graph import decoding, genai
from tasks.ml.problem import Answer
from tasks.serving import bundle as bundles
from tests.ml.tiny_decoders import VOCABULARY, model_of
from tests.tasks.shippable import write_evidence

CONTEXT, NEW_TOKENS, END = 64, 12, 2
TEXTS = ["the film is a delight", "a waste of an evening", "dull", "Great café, 5 € well spent", "moving and flat"]
BYTES = [*range(0x20, 0x7F), *"éèüñß€".encode()]


def tokenizer_of(*, begins: bool = True) -> Tokenizer:
    """A token for each byte of some; a text begins with ``<s>``."""
    special = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    known = dict(zip(printable, (chr(byte) for byte in printable), strict=True))
    rest = (byte for byte in range(256) if byte not in known)
    known |= {byte: chr(256 + place) for place, byte in enumerate(rest)}
    assert sorted(known.values(), key=ord) == alphabet
    names = [*special, *dict.fromkeys(known[byte] for byte in BYTES)]
    names += [one for one in alphabet if one not in names][: VOCABULARY - len(names)]
    core = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    core.add_special_tokens([AddedToken(name, special=True) for name in special])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if begins:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.enable_truncation(CONTEXT)
    return core


def build(
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    graph: ir.Model | None = None,
    describes: bool = True,
    companions: Path | None = None,
    **changes: Any,
) -> Path:
    """The bundle of a random Llama.

    Args:
        describes: whether the export left what onnxruntime-genai reads.
        companions: a folder of more files that the export left.
    """
    source, evidence, target = (folder / name for name in ("source", "evidence", "serving"))
    for directory in (source, evidence, target):
        directory.mkdir(parents=True)
    decoder, core = model_of("llama"), tokenizer or tokenizer_of()
    ir.save(graph or decoding.Builder(decoder, weights={}).build(), source / "model.onnx")
    described = genai.describe(decoder, graph="model.onnx", ends=[END], begins=1, pads=0, length=CONTEXT)
    if describes:
        genai.write(source, described)
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    for path in companions.iterdir() if companions else ():
        shutil.copyfile(path, source / path.name)
    write_evidence(evidence)
    texts = [*TEXTS, "", " ".join(TEXTS)]
    values: dict[str, Any] = {
        "source": source,
        "name": "scribe",
        "problem": "causal-lm",
        "answer": Answer(
            "completion", [], "Continues each text", {"ends": [END], "new_tokens": NEW_TOKENS, "context": CONTEXT}
        ),
        "base_model": "package:tiny/model",
        "data": "demo:movie-snippets",
        "tokenizer": core,
        "golden": [Golden(text, core.encode(text).tokens) for text in texts],
        "validation": json.loads((evidence / "validation.json").read_text()),
        "verdict": weigh(evidence, BudgetConfig(min_shrink=6, min_speedup=9)),
    }
    bundles.build(target, **(values | changes))
    return target
