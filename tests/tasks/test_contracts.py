"""What travels: it survives a round trip through JSON, refuses what it does not know, and cannot be changed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasks.contracts.base import Contract, FeatherweightError
from tasks.contracts.hyperparameters import OptimizerConfig
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
def test_what_processes_cannot_train_is_refused_before_any_work(values: dict[str, object], message: str) -> None:
    assert OptimizerConfig.model_validate(values).num_processes == 1
    with pytest.raises(ValidationError, match=message):
        OptimizerConfig.model_validate({**values, "num_processes": 2})
