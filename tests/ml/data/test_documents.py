"""Long texts of a problem that cuts none: several rows of one document, which together are the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tasks.ml.data import datasets, held_out
from tasks.ml.data.splitting import Division, Row, key
from tasks.ml.data.tables import Table
from tasks.ml.data.targets import classes
from tasks.ml.problems import causal_lm
from tasks.ml.pruning import kept_tokens

LENGTH = 8
TEXTS = [
    "short",
    "a text that is longer than a row, with  two spaces\nand lines\n",
    "ünïcode: €uro, 日本語テキスト, and 🙂🙃 emoji 👩‍👩‍👧 here",
    "  leading and trailing  " * 3,
    "eight",
]


def byte_level(kind: str) -> PreTrainedTokenizerFast:
    """Bytes and a few merges, with or without a first token, and with places that leave out spaces or not."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets="trimmed" in kind)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(TEXTS, trainer)
    steps: list[Any] = [processors.ByteLevel(trim_offsets=True)] if "trimmed" in kind else []
    if "first" in kind:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)]))
    core.post_processor = processors.Sequence(steps) if steps else None
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")


@pytest.fixture(params=["plain", "first", "trimmed", "trimmed first"])
def bpe(request: Any) -> PreTrainedTokenizerFast:
    return byte_level(request.param)


def division(texts: list[str]) -> Division:
    table = Table("here", "row", [], texts, [], "")
    targets = causal_lm.targets({"train": table})
    rows = [Row(text, str(len(text.encode())), key(text)) for text in texts]
    splits = dict.fromkeys(("train", "calibration", "selection", "test"), rows)
    return Division(targets, splits=splits | {"unlabeled": [Row(text, "", key(text)) for text in texts]}, dropped={})


@pytest.fixture
def directory(tmp_path: Path, bpe: PreTrainedTokenizerFast) -> Path:
    directory = tmp_path / "dataset"
    directory.mkdir()
    datasets.write(directory, division(TEXTS), bpe, max_length=LENGTH)
    return directory


def test_parts_are_the_text_and_nothing_is_cut(directory: Path, bpe: PreTrainedTokenizerFast) -> None:
    split = datasets.read(directory, "train")
    special = bpe.num_special_tokens_to_add()
    assert len(split) > len(TEXTS)
    assert split.documents.tolist() == sorted(split.documents.tolist())
    for document, text in enumerate(TEXTS):
        rows = np.flatnonzero(split.documents == document)
        assert "".join(split.texts[row] for row in rows) == text
        ids = [token for row in rows for token in split.input_ids[row][special:]]
        assert ids == bpe(text, add_special_tokens=False)["input_ids"]
        assert split.targets[rows].sum() == len(text.encode())
    assert all(len(ids) <= LENGTH for ids in split.input_ids)
    assert [len(text.encode()) for text in split.texts] == split.targets.tolist()
    if special:
        assert all(ids[0] == bpe.convert_tokens_to_ids("<s>") for ids in split.input_ids)


def test_parts_stay_whole_for_a_tokenizer_with_fewer_tokens(directory: Path, bpe: PreTrainedTokenizerFast) -> None:
    assert datasets.info(directory).in_parts
    stored = datasets.read(directory, "train")
    cut, _ = kept_tokens.cut_tokenizer(bpe, kept_tokens.choose_tokens(bpe, [], keep=1e-9))
    split = datasets.read(directory, "train", cut)
    assert (split.texts, split.targets.tolist()) == (stored.texts, stored.targets.tolist())
    special = bpe.num_special_tokens_to_add()
    lengths = [len(row) - special for row in split.input_ids]
    assert lengths == [len(text.encode()) for text in split.texts]
    assert max(lengths) > LENGTH
    assert [cut.decode(row[special:]) for row in split.input_ids] == split.texts


def test_rows_without_a_label_become_parts_too(directory: Path) -> None:
    split = datasets.read(directory, "unlabeled")
    assert split.targets.tolist() == [causal_lm.NO_TARGET] * len(split)
    assert split.texts == datasets.read(directory, "train").texts


def test_the_profile_counts_rows_as_they_are_stored(directory: Path) -> None:
    profile = json.loads((directory / datasets.PROFILE).read_text())
    for name in ("train", "unlabeled"):
        about, split = profile["splits"][name], datasets.read(directory, name)
        lengths = [len(ids) for ids in split.input_ids]
        assert about["rows"] == sum(about["token_histogram"]) == len(split)
        assert about["rows_cut"] == 0
        assert about["tokens_mean"] == pytest.approx(np.mean(lengths), abs=1e-3)
    assert sum(profile["splits"]["train"]["labels"].values()) == len(datasets.read(directory, "train"))


def test_the_first_rows_keep_their_documents(directory: Path) -> None:
    split = datasets.read(directory, "train").head(3)
    assert split.documents.tolist() == [0, 1, 1]


@pytest.fixture(autouse=True)
def _as_validate() -> Any:
    with held_out.asking("validate"):
        yield


def test_what_encoders_read_is_cut_and_each_row_is_a_document(tmp_path: Path, tokenizer: Any) -> None:
    texts = ["a very great film", "the plot is dull and flat and not funny but the acting is great"]
    rows = [Row(text, "good", key(text)) for text in texts]
    splits = dict.fromkeys(("train", "calibration", "selection", "test", "unlabeled"), rows)
    what = Division(classes({}, ["good"], missing=-100), splits=splits, dropped={})
    datasets.write(tmp_path, what, tokenizer, max_length=LENGTH)
    split = datasets.read(tmp_path, "test")
    assert split.texts == texts
    assert split.documents.tolist() == [0, 1]
    assert split.input_ids == [tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"] for text in texts]
    with pa.memory_map(str(tmp_path / "test.arrow")) as source:
        assert pa.ipc.open_file(source).read_all()["document"].to_pylist() == [0, 1]
