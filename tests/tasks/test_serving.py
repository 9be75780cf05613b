"""The serving bundle: what is in it, that it answers alone, and that it notices damage."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.contracts import FeatherweightError
from tasks.judge import BudgetConfig, weigh
from tasks.serving import bundle as bundles
from tasks.serving.predictor import Predictor, self_test
from tests.tasks.shippable import LABELS, MAX_LENGTH, TEXTS, write_evidence, write_onnx_bundle


def build(folder: Path, **changes: Any) -> Path:
    source, evidence, target = folder / "source", folder / "evidence", folder / "serving"
    for directory in (source, evidence, target):
        directory.mkdir(parents=True)
    write_onnx_bundle(source)
    write_evidence(evidence)
    values: dict[str, Any] = {
        "source": source,
        "name": "polarity",
        "problem": "text-classification",
        "base_model": "package:tiny/model",
        "data": "demo:movie-snippets",
        "max_length": MAX_LENGTH,
        "texts": TEXTS,
        "validation": json.loads((evidence / "validation.json").read_text()),
        "verdict": weigh(evidence, BudgetConfig(min_shrink=6, min_speedup=9)),
    }
    bundles.build(target, **(values | changes))
    return target


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
    assert [check["name"] for check in manifest["verdict"]["checks"]] == ["quality_drop", "shrink", "speedup"]
    assert set(manifest["files"]) | {"manifest.json"} == {path.name for path in serving.iterdir()}


def test_golden_rows_run_from_short_to_long(serving: Path) -> None:
    golden = json.loads((serving / "golden.json").read_text())
    lengths = [len(row["text"]) for row in golden]
    assert len(golden) == bundles.GOLDEN_ROWS
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
    assert {row["label"] for row in golden} == set(LABELS)


def test_the_snippet_on_the_card_runs_with_onnxruntime_and_tokenizers_alone(serving: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (serving / "README.md").read_text(), flags=re.DOTALL)
    check = "\nimport sys; assert not {'torch', 'transformers', 'mlflow', 'tasks'} & set(sys.modules)\n"
    done = _isolated("-c", snippet + check, cwd=serving)
    assert done.returncode == 0, done.stderr
    expected = Predictor(serving).predict(["an utter delight", "a waste of an evening"])
    lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["positive", "negative"]
    assert [float(line[1]) for line in lines] == pytest.approx([answer["score"] for answer in expected], abs=1e-3)


def test_the_card_says_how_well_and_on_what(serving: Path) -> None:
    card = (serving / "README.md").read_text()
    for words in ("package:tiny/model", "demo:movie-snippets", "2098 rows", "Test CPU, 2 threads", "| 10.50 | 1.00 |"):
        assert words in card
    assert re.search(r"\| quality_drop \| 0\.00715 \| -?[\d.e-]+ to 0\.0\d+ \| ≤ 0\.015 \| 2098 \| passed \|", card)
    assert "{" not in re.sub(r"```.*?```", "", card, flags=re.DOTALL)


def test_order_batch_and_padding_do_not_change_the_answer(serving: Path) -> None:
    predictor = Predictor(serving)
    texts = ["a dull film", "delight", "the great and moving and great film", "an evening", ""]
    together = predictor.probabilities(texts, batch_size=2)
    alone = np.concatenate([predictor.probabilities([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(predictor.probabilities(texts[::-1], batch_size=3)[::-1], alone, atol=1e-6)
    np.testing.assert_allclose(together.sum(axis=1), 1.0, atol=1e-6)
    assert predictor.probabilities([]).shape == (0, 2)


def test_left_padding_is_obeyed(tmp_path: Path, serving: Path) -> None:
    left = shutil.copytree(serving, tmp_path / "left")
    manifest = json.loads((left / "manifest.json").read_text())
    manifest["padding"]["side"] = "left"
    (left / "manifest.json").write_text(json.dumps(manifest))
    texts = ["a great film", "dull"]
    np.testing.assert_allclose(Predictor(left).probabilities(texts), Predictor(serving).probabilities(texts), atol=1e-6)


def test_long_texts_are_cut_as_in_training(serving: Path) -> None:
    predictor = Predictor(serving)
    kept = "great " * (MAX_LENGTH - 2)
    assert predictor.predict([kept + "waste " * 50]) == predictor.predict([kept])


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
    assert json.loads(done.stdout)["golden_rows"] == bundles.GOLDEN_ROWS


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


def test_the_self_test_finds_swapped_labels(serving: Path) -> None:
    manifest = json.loads((serving / "manifest.json").read_text())
    manifest["labels"].reverse()
    (serving / "manifest.json").write_text(json.dumps(manifest))
    done = _isolated("predictor.py", "--self-test", cwd=serving)
    assert done.returncode == 1
    assert done.stderr.startswith("golden row 0: expected")
    assert "Traceback" not in done.stderr


def test_a_tokenizer_without_padding_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "other"
    source.mkdir()
    write_onnx_bundle(source)
    (source / "tokenizer_config.json").write_text("{}")
    with pytest.raises(FeatherweightError, match="pad_token None is not in the vocabulary"):
        build(tmp_path, source=source)
