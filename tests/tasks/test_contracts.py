"""What travels: it survives a round trip through JSON, refuses what it does not know, and cannot be changed."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.contracts.base import Contract, FeatherweightError
from tasks.contracts.hyperparameters import ComputeConfig, OptimizerConfig, unsuited
from tasks.contracts.values import (
    Bundle,
    Check,
    CheckStatus,
    Outcome,
    Release,
    Scorecard,
    Splits,
    StageOutput,
    StageResult,
    Verdict,
)
from tasks.distill import DistillationConfig
from tasks.ml.training import trainer
from tasks.prune import PruningConfig
from tasks.quantize import AwareTrainingConfig
from tasks.train import TrainingConfig
from tasks.tutoring import StudentConfig

DIGEST = "ab" * 32


def check(status: CheckStatus, name: str = "quality_drop") -> Check:
    return Check(
        name=name, measured=0.01, low=0.0, high=0.02, limit=0.015, direction="at_most", n=100, status=status,
        explanation=f"{name} was measured",
    )  # fmt: skip


def outcome() -> Outcome:
    teacher = StageResult(
        bundle=Bundle(digest=DIGEST, format="torch", problem="text-classification"),
        scorecard=Scorecard(split="test", num_examples=7, quality=0.857, size_mb=91.0),
        stage="train", run_id="r1", seconds=1.5,
    )  # fmt: skip
    prepared = StageResult(splits=Splits(digest=DIGEST, problem="text-classification"), stage="prepare", run_id="r0")
    return Outcome(
        recipe="demo", run_id="r", flow_run_id="f", stages=(prepared, teacher),
        verdict=Verdict(checks=(check(CheckStatus.PASSED),)),
        release=Release(name="demo", version=1, digest=DIGEST, model_uri="models:/m-1"),
    )  # fmt: skip


@pytest.mark.parametrize("value", [outcome(), *outcome().stages, outcome().verdict, StageOutput(), Scorecard()])
def test_round_trip(value: Contract) -> None:
    assert type(value).model_validate_json(value.model_dump_json()) == value


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Bundle.model_validate({"digest": DIGEST, "format": "onnx", "problem": "p", "path": "/tmp"})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\\b", "models:/a"])
def test_what_names_files_is_no_path(name: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        Release(name=name, version=1, digest=DIGEST, model_uri="models:/a/1")
    with pytest.raises(ValidationError, match="should match pattern"):
        StageResult(stage="train", run_id=name)


def test_values_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        outcome().run_id = "other"


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["passed", "passed"], "passed"),
        (["passed", "undecidable"], "undecidable"),
        (["undecidable", "failed", "passed"], "failed"),
    ],
)
def test_a_verdict_is_its_worst_check(statuses: list[str], expected: str) -> None:
    verdict = Verdict(checks=tuple(check(CheckStatus(s), name=f"check-{s}") for s in statuses))
    assert verdict.status == expected
    assert verdict.passed is (expected == "passed")
    assert verdict.reason.startswith(expected)
    if expected != "passed":
        assert f"check-{expected}" in verdict.reason


def test_a_verdict_needs_a_check() -> None:
    with pytest.raises(ValidationError, match="at least 1"):
        Verdict(checks=())


def test_metrics_are_what_was_measured() -> None:
    assert Scorecard(split="test", quality=0.5, num_examples=4).metrics() == {"accuracy": 0.5, "num_examples": 4.0}


def test_mendable_errors_are_value_errors() -> None:
    assert issubclass(FeatherweightError, ValueError)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parallelism": "tensor", "lora_rank": 8}, "lora_rank: adapters are not cut by parallelism tensor"),
        ({"parallelism": "sharded", "optimizer": "sgd"}, "optimizer: sgd does not train parts.*choose adamw, lion"),
        ({"parallelism": "tensor", "optimizer": "adamw-8bit"}, "optimizer: adamw-8bit does not train parts"),
        ({"parallelism": "sharded", "precision": "fp8"}, "precision: fp8 is not for parallelism sharded"),
        ({"parallelism": "tensor", "offload_optimizer": True}, "offload_optimizer: not for parallelism tensor"),
    ],
)
def test_what_processes_cannot_train_is_known_before_any_work(values: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"optimizer": "adamw", "precision": "auto", "lora_rank": 0, **values}
    assert re.search(message, unsuited(**asked))
    assert unsuited(**asked | {"parallelism": "replicated"}) == ""


def test_a_batch_is_counted_in_rows_or_in_tokens() -> None:
    rows, tokens = OptimizerConfig(batch_size=16), OptimizerConfig(batch_size="4096 tokens")  # type: ignore[arg-type]
    assert rows == OptimizerConfig(batch_size="16")
    assert rows.for_trainer()["batch_size"] == 16
    assert "batch_tokens" not in rows.for_trainer()
    assert {name: tokens.for_trainer()[name] for name in ("batch_size", "batch_tokens")} == {
        "batch_size": 0, "batch_tokens": 4096
    }  # fmt: skip


@pytest.mark.parametrize("value", [0, -8, 8.0, True, "0", "8 rows", "tokens", " 8", "8  tokens", ""])
def test_what_is_no_size_of_a_batch_is_refused(value: object) -> None:
    with pytest.raises(ValidationError, match="batch_size"):
        OptimizerConfig.model_validate({"batch_size": value})


STAGES = [TrainingConfig, DistillationConfig, PruningConfig, AwareTrainingConfig]


@pytest.mark.parametrize("config", STAGES)
def test_every_field_of_a_training_reaches_the_trainer_or_the_model(config: type[OptimizerConfig]) -> None:
    """But those that say what is learned from, or what of."""
    own = {
        TrainingConfig: {"dropout", "label_smoothing"},
        DistillationConfig: config.model_fields.keys() - StudentConfig.model_fields.keys(),
        PruningConfig: config.model_fields.keys() - StudentConfig.model_fields.keys() - {"lora_rank"},
        AwareTrainingConfig: set(),
    }[config]
    told = config().for_trainer()
    assert told.keys() <= inspect.signature(trainer.fit).parameters.keys()
    assert told.keys() | config().for_model().keys() | own >= config.model_fields.keys()
    assert OptimizerConfig.model_fields.keys() <= told.keys() | config().for_model().keys()


def test_all_of_how_a_machine_computes_reaches_the_trainer_or_the_model() -> None:
    told, model = ComputeConfig().for_trainer(), ComputeConfig().for_model()
    assert told.keys() <= inspect.signature(trainer.fit).parameters.keys()
    assert told.keys() | model.keys() | {"num_processes"} == ComputeConfig.model_fields.keys()


def test_off_is_a_word() -> None:
    """YAML reads it as a truth value."""
    assert ComputeConfig.model_validate({"compile": False}).compile == "off"
    with pytest.raises(ValidationError, match="compile"):
        ComputeConfig.model_validate({"compile": True})
