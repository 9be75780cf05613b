"""The serving bundle: what is in it, that it answers alone, and that it notices damage."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer

from tasks.contracts.base import FeatherweightError
from tasks.serving import bundle as bundles
from tasks.serving import card
from tasks.serving.predictor import Predictor, self_test
from tests.tasks.shippable import (
    LABELS,
    MAX_LENGTH,
    build,
    tokenizer,
)


@pytest.fixture
def serving(tmp_path: Path) -> Path:
    return build(tmp_path)


def _isolated(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = build(tmp_path / "first"), build(tmp_path / "elsewhere")
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_the_manifest_says_what_goes_in_and_what_comes_out(serving: Path) -> None:
    manifest = json.loads((serving / "manifest.json").read_text())
    assert manifest["inputs"] == [
        {"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]},
        {"name": "attention_mask", "dtype": "int64", "shape": ["batch", "sequence"]},
    ]
    assert manifest["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 2]}]
    assert manifest["labels"] == list(LABELS)
    assert manifest["batch_invariant"] is True
    assert manifest["max_length"] == MAX_LENGTH
    assert manifest["padding"] == {"id": 0, "token": "[PAD]", "side": "right"}
    assert manifest["versions"]["opsets"] == {"ai.onnx": 20}
    assert manifest["verdict"]["status"] == "passed"
    assert [check["name"] for check in manifest["verdict"]["checks"]] == [
        "quality_drop",
        "lost_classes",
        "floor",
        "shrink",
        "speedup",
    ]
    assert set(manifest["files"]) | {"manifest.json"} == {path.name for path in serving.iterdir()}


def test_golden_rows_run_from_short_to_long(serving: Path) -> None:
    golden = json.loads((serving / "golden.json").read_text())
    lengths = [len(row["text"]) for row in golden]
    assert len(golden) == bundles.GOLDEN_ROWS + 2
    assert lengths[:-2] == sorted(lengths[:-2])
    assert lengths[0] < lengths[-3]
    assert {row["label"] for row in golden} == set(LABELS)


@pytest.mark.parametrize("settings", [{}, {"truncation_side": "left"}, {"padding_side": "left"}], ids=str)
def test_golden_rows_are_texts_as_they_were_learned_an_empty_and_a_long_one_among_them(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    serving = build(tmp_path, learned=settings)
    golden = json.loads((serving / "golden.json").read_text())
    reference = tokenizer(**settings)
    for row in golden:
        assert row["input_ids"] == reference(row["text"], truncation=True, max_length=MAX_LENGTH)["input_ids"]
    empty, long = golden[-2:]
    assert (empty["text"], len(long["input_ids"])) == ("", MAX_LENGTH)
    assert len(reference(long["text"])["input_ids"]) > MAX_LENGTH


def test_the_snippet_on_the_card_runs_with_onnxruntime_and_tokenizers_alone(serving: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (serving / "README.md").read_text(), flags=re.DOTALL)
    check = "\nimport sys; assert not {'torch', 'transformers', 'mlflow', 'tasks'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-c", snippet + check], cwd=serving, capture_output=True, text=True, check=True
    )
    texts = ["an utter delight", "a waste of an evening"]
    expected = Predictor(serving).predict(texts)
    assert done.stdout.splitlines() == [f"{answer} {text}" for answer, text in zip(expected, texts, strict=True)]


def test_the_card_says_how_well_and_on_what(serving: Path) -> None:
    card = (serving / "README.md").read_text()
    needed = "needs at least one row and one token"
    measured = ("2098 rows", "Test CPU, 2 threads", "| 10.50 | 1.00 |")
    for words in ("package:tiny/model", "demo:movie-snippets", *measured, needed):
        assert words in card
    assert re.search(r"\| quality_drop \| 0\.00715 \| -?[\d.e-]+ to 0\.0\d+ \| ≤ 0\.015 \| 2098 \| passed \|", card)
    assert "{" not in re.sub(r"```.*?```", "", card, flags=re.DOTALL)


def test_the_card_shows_labels_as_text(tmp_path: Path) -> None:
    serving = build(tmp_path)
    manifest = json.loads((serving / "manifest.json").read_text())
    manifest["labels"] = ["<script>alert(1)</script>\n# x", "a | `b`"]
    manifest["verdict"]["reason"] = "failed: class '<img src=x>\n\n# y' is lost"
    validation = json.loads((tmp_path / "evidence" / "validation.json").read_text())
    text = card.render(
        manifest,
        purpose="Tells which of 2 labels a text has",
        base_model="a`b",
        data="file:x\n# z",
        validation=validation,
    )
    assert "labels a text has: `<script>alert(1)</script> # x`, `` a | `b` ``." in text
    assert "<img" not in text
    assert not re.search("^# [xyz]", text, re.MULTILINE)


def test_order_batch_and_padding_do_not_change_the_answer(serving: Path) -> None:
    predictor = Predictor(serving)
    texts = ["a dull film", "delight", "the great and moving and great film", "an evening", ""]
    together = predictor.logits(texts, batch_size=2)
    alone = np.concatenate([predictor.logits([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(predictor.logits(texts[::-1], batch_size=3)[::-1], alone, atol=1e-6)
    assert predictor.logits([]).shape == (0, 2)


def test_rows_are_padded_on_the_right_whatever_the_tokenizer_asks(tmp_path: Path) -> None:
    """The graph counts positions, and the head reads, from the first token."""
    serving = build(tmp_path, learned={"padding_side": "left"})
    assert json.loads((serving / "manifest.json").read_text())["padding"]["side"] == "right"
    fed: list[dict[str, np.ndarray]] = []
    predictor = Predictor(serving)
    run = predictor.session.run
    predictor.session = SimpleNamespace(run=lambda names, feed: fed.append(feed) or run(names, feed))  # type: ignore[assignment, func-returns-value]
    predictor.logits(["dull", "a great film"])
    alone = Tokenizer.from_file(str(serving / "tokenizer.json")).encode_batch(["dull", "a great film"])
    assert fed[0]["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5] == [one.attention_mask for one in alone]
    assert fed[0]["input_ids"].tolist() == [one.ids for one in alone]


@pytest.mark.parametrize("side", ["right", "left"])
def test_long_texts_are_cut_as_in_training(tmp_path: Path, side: str) -> None:
    predictor = Predictor(build(tmp_path, learned={"truncation_side": side}))
    kept, cut = "great " * (MAX_LENGTH - 2), "waste " * 50
    assert predictor.predict([kept + cut if side == "right" else cut + kept]) == predictor.predict([kept])


def test_a_tokenizer_that_would_cut_otherwise_than_in_training_is_not_shipped(tmp_path: Path) -> None:
    with pytest.raises(FeatherweightError, match=r"12 tokens \(\[CLS\] .*\), but the model learned it as 12 tokens"):
        build(tmp_path, learned={"truncation_side": "left"}, shipped={"truncation_side": "right"})


def test_a_batch_without_a_single_token_is_answered(serving: Path) -> None:
    predictor = Predictor(serving)
    predictor.encode = lambda texts: [[] for _ in texts]  # type: ignore[method-assign, misc]  # no special tokens
    assert predictor.logits(["", ""]).shape == (2, 2)


def test_probabilities_belong_to_their_labels(serving: Path) -> None:
    good, bad = Predictor(serving).predict(["a great delight", "a dull waste"])
    assert (good["label"], bad["label"]) == ("positive", "negative")
    assert good["score"] == good["probabilities"]["positive"] > 0.9
    assert bad["score"] == bad["probabilities"]["negative"] > 0.9


def test_what_is_no_text_is_refused(serving: Path) -> None:
    with pytest.raises(ValueError, match="row 1: text must be a string, not float"):
        Predictor(serving).predict(["fine", float("nan")])  # type: ignore[list-item]


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_work_is_an_error_and_no_fall_back(serving: Path) -> None:
    with pytest.raises((RuntimeError, ValueError), match=r"NoSuchProvider"):
        Predictor(serving, provider="NoSuchProvider")


def test_it_answers_on_the_command_line_without_torch(serving: Path) -> None:
    done = _isolated("predictor.py", "an utter delight", "a waste", cwd=serving)
    assert [json.loads(line)["label"] for line in done.stdout.splitlines()] == ["positive", "negative"]
    done = _isolated("predictor.py", "--self-test", cwd=serving)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["golden_rows"] == bundles.GOLDEN_ROWS + 2


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "golden.json", "README.md", "predictor.py"])
def test_the_self_test_finds_a_changed_file_and_a_missing_one(serving: Path, name: str) -> None:
    content = bytearray((serving / name).read_bytes())
    content[len(content) // 2] ^= 1
    (serving / name).write_bytes(content)
    with pytest.raises(RuntimeError, match=f"{name} was changed"):
        self_test(serving)
    (serving / name).unlink()
    with pytest.raises(RuntimeError, match=f"{name} is missing"):
        self_test(serving)


def test_the_self_test_finds_a_text_that_is_read_otherwise(serving: Path) -> None:
    golden = json.loads((serving / "golden.json").read_text())
    golden[3]["input_ids"][1] += 1
    content = json.dumps(golden).encode()
    (serving / "golden.json").write_bytes(content)
    manifest = json.loads((serving / "manifest.json").read_text())
    manifest["files"]["golden.json"] = hashlib.sha256(content).hexdigest()
    (serving / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RuntimeError, match="golden row 3: expected the tokens"):
        self_test(serving)


def test_the_self_test_finds_swapped_labels(serving: Path) -> None:
    manifest = json.loads((serving / "manifest.json").read_text())
    manifest["labels"].reverse()
    (serving / "manifest.json").write_text(json.dumps(manifest))
    done = _isolated("predictor.py", "--self-test", cwd=serving)
    assert done.returncode == 1
    assert done.stderr.startswith("golden row 0: expected")
    assert "Traceback" not in done.stderr
