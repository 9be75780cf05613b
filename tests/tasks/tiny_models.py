"""A dataset and the models of a line, tiny and real, published to the store for ``export`` and ``validate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from tasks.contracts.values import Bundle, Splits
from tasks.engine import store
from tasks.ml.data import datasets
from tasks.ml.data.splitting import Division, Row, key
from tasks.ml.data.targets import classes
from tasks.ml.models import families, modeling, quantization_spec
from tasks.ml.pruning import surgery

PROBLEM = "text-classification"
LABELS = ["negative", "positive"]
TEXT = "a the film is was not very great dull story acting plot funny moving flat and but of with"
WORDS = TEXT.split()
MAX_LENGTH = 16


def tokenizer(*, pieces: bool = False) -> Any:
    """Knows words only, or pieces of words as well, so that its vocabulary can be cut."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    kind: Any = models.WordLevel
    if pieces:
        letters = [chr(code) for code in range(ord("b"), ord("z") + 1)]  # "a" is a word
        tokens, kind = [*tokens, *letters, "##a", *(f"##{letter}" for letter in letters)], models.WordPiece
    core = Tokenizer(kind({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def model(*, layers: int = 2, vocabulary: int = len(WORDS) + 4) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    return BertForSequenceClassification(config).eval()


def publish_model(model: nn.Module, spec: quantization_spec.Spec | None = None, *, encoder: Any = None) -> Bundle:
    with store.workspace() as directory:
        modeling.save(model, encoder or tokenizer(), directory, spec=spec)
        return Bundle(digest=store.publish(directory), format="torch", problem=PROBLEM)


def publish_quantized(model: nn.Module) -> Bundle:
    return publish_model(model, quantization_spec.plan(model, linears=True, token_bits=8, block_size=32))


def publish_line() -> dict[str, Bundle]:
    """Teacher, student of one layer, the student with narrower layers, and that one quantized."""
    teacher = model()
    student = surgery.keep_layers(teacher, [1])
    pruned = surgery.keep_layers(student, [0])
    for layer in families.of("bert").layer_list(pruned):
        modeling.resize(families.of("bert"), layer, heads=2, ffn=24)
        for linear in (module for module in layer.modules() if isinstance(module, nn.Linear)):
            nn.init.normal_(linear.weight, std=0.2)
            nn.init.normal_(linear.bias, std=0.2)
    return {
        "train": publish_model(teacher),
        "distill": publish_model(student),
        "prune": publish_model(pruned),
        "quantize": publish_quantized(pruned),
    }


def publish_data(rows: int = 60) -> Splits:
    """Splits of ``rows`` texts each, labelled by chance."""

    def split(name: str) -> list[Row]:
        generator = torch.Generator().manual_seed(len(name))
        texts = [
            " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (3 + n % 9,), generator=generator))
            for n in range(rows)
        ]
        return [Row(text, LABELS[index % 2], key(text)) for index, text in enumerate(texts)]

    splits = {name: split(name) for name in ("train", "calibration", "selection", "test")} | {"unlabeled": []}
    with store.workspace() as directory:
        division = Division(classes({}, LABELS, missing=-100), splits=splits, dropped={})
        datasets.write(directory, division, tokenizer(), max_length=MAX_LENGTH)
        return Splits(digest=store.publish(directory), problem=PROBLEM)


def read_json(directory: Path, name: str) -> Any:
    return json.loads((directory / name).read_text(encoding="utf-8"))
