"""What cannot come about is said before the first row is read, with the value that would do, and by every flow."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect import Flow
from transformers import BertForMaskedLM

from flows import preflight
from flows.ablation import AblationConfig, ablation
from flows.command import recipe_files
from flows.compress import compress
from flows.recipe import Recipe
from flows.search import SearchConfig, search
from flows.study import study
from tasks.contracts.base import FeatherweightError
from tasks.ml import machine
from tasks.ml.models.inspection import Inspection
from tasks.ml.training import trainer
from tests.flows import tiny_recipes
from tests.tasks import tiny_models

BERT = {
    "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536,
}  # fmt: skip
BY_TIMES = {"width": {"target_speedup": 1.5}}
WANDA = {"sparsity": {"method": "wanda", "pattern": "2:4"}}
SHARDED = {"num_processes": 2, "parallelism": "sharded"}
TENSOR = {"num_processes": 8, "parallelism": "tensor"}


def model(directory: Path, *, kind: str = "WordPiece", **changes: Any) -> Inspection:
    """The shapes of MiniLM, or others."""
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"type": kind}}))
    return Inspection(directory, {**BERT, **changes}, {})


def objections(base: Inspection, **fields: Any) -> list[str]:
    return list(preflight.objections(Recipe.model_validate(fields), base))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if "smollm2" in name else ())  # which is 93 MB
        for name in recipe_files.ready_names()
    ],
)
def test_nothing_is_said_against_ready_recipes(name: str) -> None:
    recipe = recipe_files.load(name)
    assert list(preflight.objections(recipe, preflight.inspected(recipe.base_model))) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"distillation": {"layers": 7}}, "distillation.layers: 7 are more than the base model's 6; use 6 or fewer"),
        (
            {"distillation": {"embedding_rank": 384}},
            "distillation.embedding_rank: 384 is not below the student's hidden size of 384; use 192 or so",
        ),
        (
            {"distillation": {"embedding_rank": 200, "keep_hidden": 0.5}},
            "distillation.embedding_rank: 200 is not below the student's hidden size of 192; use 96 or so",
        ),
        (
            {"quantization": {"embeddings": "int4", "block_size": 256}},
            "quantization.block_size: 256 does not divide the token table's 384 columns; use 16 or 32 or 64 or 128",
        ),
        (
            {"quantization": {"embeddings": "int4"}, "distillation": {"embedding_rank": 100}},
            "quantization.block_size: 32 does not divide the token table's 100 columns; set quantization.embeddings to",
        ),
        (
            {"pruning": {"sparsity": {"method": "magnitude", "pattern": "2:5"}}},
            "pruning.sparsity.pattern: 5 does not divide 288, which is as many inputs as a layer then has; use n:m "
            "with an m that divides 96, or a fraction such as 0.5",
        ),
        (
            {"pruning": {**WANDA, "width": {"keep_ffn": 0.501}}},
            "pruning.sparsity.pattern: 4 does not divide 770, which is as many inputs as a layer then has; use n:m "
            "with an m that divides 2, or a fraction such as 0.5",
        ),
        (
            {"pruning": WANDA, "distillation": {"embedding_rank": 126}},
            "pruning.sparsity.pattern: 4 does not divide 126",
        ),
        (
            {"pruning": {**BY_TIMES, "sparsity": {"pattern": "2:64"}}},
            "pruning.sparsity.pattern: 64 does not divide 32",
        ),
        (
            {"compute": TENSOR},
            "compute.num_processes: 8 processes cannot have the same number of a layer's 12 heads; use a number that "
            "divides 3, or parallelism sharded",
        ),
        (
            {"compute": {**TENSOR, "num_processes": 2}},
            "compute.num_processes: 2 processes cannot have the same number of a layer's 9 heads; use a number that "
            "divides 3, or parallelism sharded",
        ),
        (
            {"compute": SHARDED, "distillation": {"keep_hidden": 0.5}},
            "compute.parallelism: sharded does not train a student narrower than its teacher "
            "(distillation.keep_hidden); use replicated, or distillation.hidden_weight 0",
        ),
        (
            {"teaching": {"augmentation": {"kind": "both", "model": "./nowhere"}}},
            "teaching.augmentation.model: directory './nowhere' does not exist",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_with_what_could(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    (found,) = objections(model(tmp_path), **fields)
    assert found.startswith(said)


@pytest.mark.parametrize(
    "fields",
    [
        {"distillation": {"layers": 6, "embedding_rank": 128}, "quantization": {"embeddings": "int4"}},
        {"quantization": {"embeddings": "int8", "block_size": 100}},
        {"pruning": {**WANDA, **BY_TIMES}},
        {"pruning": {"sparsity": {"pattern": "0.5"}}},
        {"compute": {**TENSOR, "num_processes": 3}},
        {"compute": {**TENSOR, "num_processes": 1}},
        {"compute": SHARDED, "distillation": {"keep_hidden": 0.5, "hidden_weight": 0}},
    ],
)
def test_nothing_is_said_against_what_can_be(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert objections(model(tmp_path), **fields) == []


LION = {"optimizer": "lion", "learning_rate": 1e-5}
OF_TRAINING = "pip install 'featherweight[training]'"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"training": LION}, f"training.optimizer: lion needs the package pytorch-optimizer: {OF_TRAINING}"),
        (
            {"distillation": {"optimizer": "adamw-8bit"}},
            f"distillation.optimizer: adamw-8bit needs the package torchao: {OF_TRAINING}",
        ),
        ({"pruning": {"lora_rank": 4}}, f"pruning.lora_rank: needs the package peft: {OF_TRAINING}"),
    ],
)
def test_what_is_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], said: str
) -> None:
    assert objections(model(tmp_path), **fields) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(preflight, "find_spec", lambda _: None)
    assert objections(model(tmp_path), **fields) == [said]
    aware = {"quantization": {"training": LION}}
    assert objections(model(tmp_path), **aware)[0].startswith("quantization.training.optimizer: lion needs")


def test_a_gpu_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    field = {"device": "cuda"}
    monkeypatch.setattr(machine, "gpus", lambda: ("H200", "driver 1"))
    assert objections(model(tmp_path), validation=field) == []
    monkeypatch.setattr(machine, "gpus", lambda: ())
    (said,) = objections(model(tmp_path), validation=field)
    assert said.startswith("validation.device: a GPU was asked for, and there is none")


def test_a_precision_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "default_device", lambda: torch.device("cpu"))
    (said,) = objections(model(tmp_path), compute={"precision": "fp8"})
    assert said.startswith("compute.precision: fp8 needs an NVIDIA GPU of compute capability 8.9")


def test_a_model_that_proposes_words_needs_a_head(tmp_path: Path) -> None:
    tiny: Any = tiny_models.model()
    tiny.bert.save_pretrained(tmp_path / "encoder")
    BertForMaskedLM(tiny.config).save_pretrained(tmp_path / "masked")

    def said(name: str, **fields: Any) -> list[str]:
        asked = {"kind": "both", "model": str(tmp_path / name), **fields}
        return objections(model(tmp_path), teaching={"augmentation": asked})

    (found,) = said("encoder")
    assert "encoder has no head that predicts masked tokens (cls is missing)" in found
    assert said("masked") == []


def test_not_every_vocabulary_is_cut(tmp_path: Path) -> None:
    fields = {"pruning": {"keep_vocabulary": 0.5}}
    for kind in ("WordPiece", "BPE"):
        assert objections(model(tmp_path, kind=kind), **fields) == []
    (found,) = objections(model(tmp_path, kind="Unigram"), **fields)
    whose = "only WordPiece and BPE vocabularies can be cut, and the base model's is Unigram"
    assert found == f"pruning.keep_vocabulary: {whose}; use 1"
    base = model(tmp_path)
    described = {"model": {"type": "BPE", "end_of_word_suffix": "</w>", "continuing_subword_prefix": ""}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    (found,) = objections(base, **fields)
    assert found.startswith("pruning.keep_vocabulary: merges with end_of_word_suffix '</w>', which the base model's")


def test_all_is_said_at_once(tmp_path: Path) -> None:
    fields = {"distillation": {"layers": 7, "embedding_rank": 500}, "pruning": {"keep_vocabulary": 0.5}}
    found = objections(model(tmp_path, kind="Unigram"), **fields)
    assert [line.partition(":")[0] for line in found] == [
        "distillation.layers", "pruning.keep_vocabulary", "distillation.embedding_rank"
    ]  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipes.write(tmp_path)


FLOWS: dict[str, tuple[Flow[..., Any], tuple[Any, ...], str]] = {
    "compress": (compress, (), "distillation.layers"),
    "search": (search, (SearchConfig(trials=1),), "distillation.layers"),
    "ablation": (ablation, (AblationConfig(techniques=("GPTQ",)),), "distillation.layers"),
    "study": (study, (), "compute.num_processes"),
}


@pytest.mark.parametrize(("flow", "config", "said"), FLOWS.values(), ids=FLOWS)
def test_every_flow_says_it_before_any_work(
    recipe: Recipe, home: Path, flow: Flow[..., Any], config: tuple[Any, ...], said: str
) -> None:
    values = recipe.model_dump(mode="json")
    values["distillation"]["layers"] = 3
    values["compute"] |= {"num_processes": 3, "parallelism": "tensor"}
    with pytest.raises(FeatherweightError, match=said):
        flow(Recipe.model_validate(values), *config)
    assert not list((home / "store" / "objects").glob("*"))


def test_a_base_model_that_is_damaged_ends_a_run_before_any_work(recipe: Recipe, home: Path) -> None:
    weights = Path(recipe.base_model) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(FeatherweightError, match=r"model\.safetensors has \d+ bytes and should have \d+; fetch it"):
        compress(recipe)
    assert not list((home / "store" / "objects").glob("*"))


def test_a_technique_that_the_model_cannot_use_is_left_out(recipe: Recipe) -> None:
    from flows import ablation as module

    base = preflight.inspected(recipe.base_model)
    assert base.config["hidden_size"] == 32
    config = AblationConfig(techniques=("factorized embeddings", "GPTQ"))
    arms, left_out = module._planned(recipe, config)
    assert [arm.technique.name for arm in arms] == ["GPTQ"]
    assert left_out["factorized embeddings"].startswith("distillation.embedding_rank: 128 is not below")
