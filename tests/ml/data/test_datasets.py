"""What is written is read back, encoded for whichever tokenizer asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tasks.ml.data import datasets, held_out
from tasks.ml.data.splitting import Division, Row, key
from tasks.ml.data.targets import classes
from tasks.ml.models import tokenization

ROWS = {
    "train": [("a very great film", "good"), ("the plot is dull and flat", "bad"), ("not funny", "bad")],
    "calibration": [("great acting", "good")],
    "selection": [("moving", "good"), ("flat", "bad")],
    "test": [("a film with acting and story and plot and film", "good"), ("dull", "bad")],
    "unlabeled": [("the film", "")],
}


@pytest.fixture(autouse=True)
def as_validate() -> Iterator[None]:
    """Reads for a stage that may open every split."""
    with held_out.asking("validate"):
        yield


@pytest.fixture
def division() -> Division:
    splits = {name: [Row(text, label, key(text)) for text, label in rows] for name, rows in ROWS.items()}
    return Division(classes({}, ["bad", "good"], missing=-100), splits=splits, dropped={"duplicates": 3})


@pytest.fixture
def directory(tmp_path: Path, division: Division, tokenizer: PreTrainedTokenizerFast) -> Path:
    directory = tmp_path / "dataset"
    directory.mkdir()
    datasets.write(directory, division, tokenizer, max_length=8)
    return directory


def smaller(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer with its words in another order, so that ids differ."""
    description: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    size = len(description["model"]["vocab"])
    description["model"]["vocab"] = {
        token: index if index < 5 else size + 4 - index for token, index in description["model"]["vocab"].items()
    }
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)), pad_token="[PAD]")


@pytest.mark.parametrize("name", ROWS)
def test_round_trip(directory: Path, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    split = datasets.read(directory, name)
    texts = [text for text, _ in ROWS[name]]
    assert split.texts == texts
    assert split.input_ids == [tokenizer(text, truncation=True, max_length=8)["input_ids"] for text in texts]
    assert split.targets.dtype == np.int64
    assert split.targets.tolist() == [{"bad": 0, "good": 1, "": -100}[label] for _, label in ROWS[name]]
    assert len(split) == len(texts)


def test_a_long_text_is_cut_and_still_ends_with_its_separator(
    directory: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = datasets.read(directory, "test").input_ids[0]
    assert len(ids) == 8
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)


def test_files_on_disk_have_the_agreed_types(directory: Path) -> None:
    with pa.memory_map(str(directory / "unlabeled.arrow")) as source:
        schema = pa.ipc.open_file(source).schema
    assert {field.name: str(field.type) for field in schema} == {
        "text": "string",
        "input_ids": "list<item: int32>",
        "document": "int32",
        "target": "int64",
    }
    assert json.loads((directory / "dataset.json").read_text())["labels"] == ["bad", "good"]
    assert tokenization.digest(tokenization.load(directory / "tokenizer"))


def test_an_equal_tokenizer_reads_what_is_stored_and_another_encodes_again(
    directory: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    stored = datasets.read(directory, "train")
    assert datasets.read(directory, "train", tokenizer).input_ids == stored.input_ids
    # What was stored is read and not encoded: the texts on disk are no longer those of the ids.
    table = pa.table({"text": ["dull"], "input_ids": [[2, 3]], "document": [0], "target": [0]})
    with pa.OSFile(str(directory / "train.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert datasets.read(directory, "train", tokenizer).input_ids == [[2, 3]]
    other = smaller(tokenizer)
    again = datasets.read(directory, "train", other).input_ids
    assert again == [other("dull")["input_ids"]]
    assert again != [tokenizer("dull")["input_ids"]]


def test_an_encoded_again_text_is_cut_at_the_same_length(directory: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(datasets.read(directory, "test", smaller(tokenizer)).input_ids[0]) == 8


def test_writing_twice_gives_the_same_bytes(
    tmp_path: Path, directory: Path, division: Division, tokenizer: PreTrainedTokenizerFast
) -> None:
    again = tmp_path / "again"
    again.mkdir()
    datasets.write(again, division, tokenizer, max_length=8)
    files = sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    assert len(files) >= 9
    assert all((again / name).read_bytes() == (directory / name).read_bytes() for name in files)


def test_info(directory: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    assert datasets.info(directory) == datasets.DatasetInfo(["bad", "good"], 8, tokenization.digest(tokenizer))


def test_the_profile_counts_every_row(directory: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    profile = json.loads((directory / "profile.json").read_text())
    assert profile["dropped"] == {"duplicates": 3}
    for name, rows in ROWS.items():
        split = profile["splits"][name]
        lengths = [len(ids) for ids in datasets.read(directory, name).input_ids]
        assert split["rows"] == sum(split["token_histogram"]) == len(rows)
        assert split["tokens_mean"] == pytest.approx(np.mean(lengths), abs=1e-3)
    assert profile["splits"]["train"]["labels"] == {"bad": 2, "good": 1}
    assert profile["splits"]["unlabeled"]["labels"] == {}
    assert profile["splits"]["test"]["rows_cut"] == 1
    assert profile["splits"]["train"]["rows_cut"] == 0, "as long as may be, and not longer"
    assert profile["tokens_at_95_percent"] == len(tokenizer(ROWS["test"][0][0])["input_ids"])


def test_texts_that_the_model_cannot_tell_apart_read_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    def same(one: str, other: str) -> bool:
        return len(set(datasets.as_read([one, other], tokenizer, max_length=8))) == 1

    assert same("a great film", "A  Great FILM")
    assert not same("a great film", "a great plot")
    assert same("a great film with a plot and acting", "a great film with a plot and story"), "cut before they differ"
