"""The stages that cut: what they keep, in which rounds, and what an interrupted one does again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tasks import fitting
from tasks.contracts.base import FeatherweightError
from tasks.contracts.hyperparameters import ComputeConfig
from tasks.contracts.values import Bundle, Splits
from tasks.distill import DistillationConfig, distill
from tasks.engine import latency, store, tracking
from tasks.ml.latency.latency_table import LatencyTable, LayerTimes
from tasks.ml.models import families, modeling
from tasks.ml.quantization import simulation
from tasks.prune import PruningConfig, SpeedConfig, WidthConfig, prune
from tasks.tutoring import TeachingConfig
from tests.tasks import tiny_models

TIMES = LayerTimes(0.1, {0: 0.0, 2: 0.2, 4: 0.4}, {0: 0.0, 32: 0.2, 64: 0.4})
BRIEF: dict[str, Any] = {"steps": 4, "batch_size": 16}
HOW: dict[str, Any] = {"teaching": TeachingConfig(), "compute": ComputeConfig(precision="fp32"), "seed": 0}


@pytest.fixture
def run_id() -> Iterator[str]:
    with tracking.pipeline_run("prune", {}, run_name="prune") as run_id:
        yield run_id


@pytest.fixture
def data() -> tuple[Bundle, Splits]:
    return tiny_models.publish_model(tiny_models.model()), tiny_models.publish_data()


def shapes(bundle: Bundle | None) -> list[dict[str, int]]:
    assert bundle is not None
    return tiny_models.read_json(store.path(bundle.digest), "config.json")["featherweight"]["layers"]


@pytest.mark.parametrize("integer", [True, False])
def test_a_target_is_met_by_the_table(
    run_id: str, data: tuple[Bundle, Splits], monkeypatch: pytest.MonkeyPatch, integer: bool
) -> None:
    table = LatencyTable(0.2, TIMES, TIMES)
    asked: list[dict[str, Any]] = []

    def look_up(*_: Any, **request: Any) -> LatencyTable:
        asked.append(request)
        return table

    monkeypatch.setattr(latency, "table", look_up)
    bundle, splits = data
    config = PruningConfig(**BRIEF, width={"target_speedup": 1.6, "request_rows": 8}, importance="activation")
    result = prune(bundle, splits, config, teacher=bundle, integer=integer, **HOW, run_id=run_id)
    assert table.predict([{"heads": 4, "ffn": 64}] * 2) / table.predict(shapes(result.bundle)) >= 1.6
    assert asked == [{"batch": 8, "length": asked[0]["length"], "integer": integer}]
    text = Path(tracking.client().download_artifacts(result.run_id, "allocation-1.00.json")).read_text(encoding="utf-8")
    assert json.loads(text)["layers"] == shapes(result.bundle)


def test_rounds_cut_step_by_step_and_an_interrupted_stage_goes_on(
    run_id: str, data: tuple[Bundle, Splits], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, splits = data
    config = PruningConfig(**BRIEF, width={"keep_heads": 0.25, "keep_ffn": 0.25}, rounds=3)
    learn, seen = fitting.learn, []

    def dying(title: str, model: Any, *arguments: Any, **options: Any) -> Any:
        from tasks.ml.models import modeling

        seen.append((title, modeling.shapes(model)[0], options["config"].steps))
        if len(seen) == 2:
            raise FeatherweightError("interrupted")
        return learn(title, model, *arguments, **options)

    monkeypatch.setattr(fitting, "learn", dying)
    with pytest.raises(FeatherweightError, match="interrupted"):
        prune(bundle, splits, config, teacher=bundle, **HOW, run_id=run_id)
    result = prune(bundle, splits, config, teacher=bundle, **HOW, run_id=run_id)
    assert seen == [
        ("prune-1", {"heads": 3, "ffn": 48}, 2),
        ("prune-2", {"heads": 2, "ffn": 32}, 2),
        ("prune-2", {"heads": 2, "ffn": 32}, 2),
        ("prune", {"heads": 1, "ffn": 16}, 2),
    ]
    assert shapes(result.bundle) == [{"heads": 1, "ffn": 16}] * 2


def test_a_student_may_be_narrower_and_choose_its_layers(run_id: str, data: tuple[Bundle, Splits]) -> None:
    bundle, splits = data
    config = DistillationConfig(**BRIEF, layers=1, keep_hidden=0.5, layer_choice="influence")
    result = distill(bundle, splits, config, **HOW, run_id=run_id)
    assert result.bundle is not None
    directory = store.path(result.bundle.digest)
    described = tiny_models.read_json(directory, "config.json")
    assert (described["hidden_size"], described["num_attention_heads"], len(shapes(result.bundle))) == (16, 2, 1)
    pruned = prune(result.bundle, splits, PruningConfig(**BRIEF), teacher=bundle, **HOW, run_id=run_id)
    assert shapes(pruned.bundle) == [{"heads": 3, "ffn": 32}]


@pytest.mark.parametrize(("bits", "healed"), [(4, True), (8, True), (4, False)])
def test_recovery_heals_the_rounding_of_embeddings_that_comes_later(
    run_id: str, data: tuple[Bundle, Splits], bits: int, healed: bool
) -> None:
    bundle, splits = data
    rounding = {"token_bits": bits, "block_size": 16} if healed else None
    config = PruningConfig(**BRIEF, embeddings="frozen", heal_rounding=healed)
    result = prune(bundle, splits, config, teacher=bundle, rounding=rounding, **HOW, run_id=run_id)
    assert result.bundle is not None
    model = modeling.load(store.path(result.bundle.digest), bundle.problem)
    table = families.of("bert").token_embedding(model).weight.detach()
    rounded = simulation.simulate_table(table, bits, 16)
    assert torch.allclose(rounded, table, rtol=1e-6, atol=0) == healed


def test_embeddings_that_are_trained_cannot_be_healed() -> None:
    with pytest.raises(
        ValidationError, match=r"heal_rounding: embeddings that are trained .* set embeddings to frozen"
    ):
        PruningConfig(heal_rounding=True)


def weights(bundle: Bundle | None) -> dict[str, torch.Tensor]:
    assert bundle is not None
    return modeling.load(store.path(bundle.digest), bundle.problem).state_dict()


def test_without_steps_what_was_cut_is_published_as_it_is(run_id: str, data: tuple[Bundle, Splits]) -> None:
    bundle, splits = data
    cut = DistillationConfig(steps=0, layers=1, hidden_weight=1.0)
    student = distill(bundle, splits, cut, **HOW, run_id=run_id)
    assert len(shapes(student.bundle)) == 1
    before, found = weights(bundle), weights(student.bundle)
    assert all(
        torch.equal(found[name.replace("layer.1", "layer.0")], before[name]) for name in before if "layer.1" in name
    )
    whole = {"keep_heads": 1.0, "keep_ffn": 1.0}
    pruned = prune(student.bundle, splits, PruningConfig(steps=0, width=whole), teacher=bundle, **HOW, run_id=run_id)
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights(pruned.bundle).items())
    assert pruned.scorecard.quality == student.scorecard.quality
    rounds = PruningConfig(steps=0, rounds=2, sparsity={"pattern": "2:4"})
    sparse = prune(student.bundle, splits, rounds, teacher=bundle, **HOW, run_id=run_id)
    assert shapes(sparse.bundle) == [{"heads": 3, "ffn": 32}]
    assert sparse.scorecard.sparsity == pytest.approx(0.5)
    for result in (student, pruned, sparse):
        history = tiny_models.read_json(store.path(result.evidence), "history.json")
        assert history["points"] == history["evaluations"] == []
        assert result.scorecard.agreement_with_teacher is not None
        assert result.scorecard.samples_per_s is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, WidthConfig()),
        ({"keep_ffn": 0.25}, WidthConfig(keep_ffn=0.25)),
        ({"target_speedup": 2.0}, SpeedConfig(target_speedup=2.0)),
        ({"request_rows": 8}, SpeedConfig(request_rows=8)),
        (SpeedConfig(), SpeedConfig()),
    ],
)
def test_how_much_stays_is_known_by_its_fields(given: Any, expected: WidthConfig | SpeedConfig) -> None:
    config = PruningConfig(width=given)
    assert config.width == expected
    assert PruningConfig.model_validate_json(config.model_dump_json()) == config


def test_fractions_and_a_target_are_not_asked_for_at_once() -> None:
    with pytest.raises(ValidationError, match=r"width\.speed\.keep_ffn\n  Extra inputs are not permitted"):
        PruningConfig(width={"keep_ffn": 0.5, "target_speedup": 2.0})
