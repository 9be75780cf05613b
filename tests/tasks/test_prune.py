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
from tasks.contracts.values import Bundle, Splits
from tasks.distill import DistillationConfig, distill
from tasks.engine import latency, store, tracking
from tasks.ml.latency.latency_table import LatencyTable, LayerTimes
from tasks.ml.models import families, modeling
from tasks.ml.quantization import simulation
from tasks.prune import PruningConfig, prune
from tests.tasks import tiny_models

TIMES = LayerTimes(0.1, {0: 0.0, 2: 0.2, 4: 0.4}, {0: 0.0, 32: 0.2, 64: 0.4})
BRIEF: dict[str, Any] = {"epochs": 1, "augmentation": 0, "batch_size": 16, "precision": "fp32"}


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


def test_a_target_is_met_by_the_table(
    run_id: str, data: tuple[Bundle, Splits], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = LatencyTable(0.2, TIMES, TIMES)
    asked: list[dict[str, Any]] = []

    def look_up(*_: Any, **request: Any) -> LatencyTable:
        asked.append(request)
        return table

    monkeypatch.setattr(latency, "table", look_up)
    bundle, splits = data
    config = PruningConfig(**BRIEF, target_speedup=1.6, importance="activation", request_rows=8)
    result = prune(bundle, splits, config, teacher=bundle, seed=0, run_id=run_id)
    assert table.predict([{"heads": 4, "ffn": 64}] * 2) / table.predict(shapes(result.bundle)) >= 1.6
    assert asked == [{"batch": 8, "length": asked[0]["length"], "integer": True}]
    text = Path(tracking.client().download_artifacts(result.run_id, "allocation-1.00.json")).read_text(encoding="utf-8")
    assert json.loads(text)["layers"] == shapes(result.bundle)


def test_rounds_cut_step_by_step_and_an_interrupted_stage_goes_on(
    run_id: str, data: tuple[Bundle, Splits], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, splits = data
    config = PruningConfig(**BRIEF, keep_heads=0.25, keep_ffn=0.25, rounds=3)
    learn, seen = fitting.learn, []

    def dying(title: str, model: Any, *arguments: Any, **options: Any) -> Any:
        from tasks.ml.models import modeling

        seen.append((title, modeling.shapes(model)[0], options["config"].epochs))
        if len(seen) == 2:
            raise FeatherweightError("interrupted")
        return learn(title, model, *arguments, **options)

    monkeypatch.setattr(fitting, "learn", dying)
    with pytest.raises(FeatherweightError, match="interrupted"):
        prune(bundle, splits, config, teacher=bundle, seed=0, run_id=run_id)
    result = prune(bundle, splits, config, teacher=bundle, seed=0, run_id=run_id)
    third = pytest.approx(1 / 3)
    assert seen == [
        ("prune-1", {"heads": 3, "ffn": 48}, third),
        ("prune-2", {"heads": 2, "ffn": 32}, third),
        ("prune-2", {"heads": 2, "ffn": 32}, third),
        ("prune", {"heads": 1, "ffn": 16}, third),
    ]
    assert shapes(result.bundle) == [{"heads": 1, "ffn": 16}] * 2


def test_a_student_may_be_narrower_and_choose_its_layers(run_id: str, data: tuple[Bundle, Splits]) -> None:
    bundle, splits = data
    config = DistillationConfig(**BRIEF, layers=1, keep_hidden=0.5, layer_choice="influence")
    result = distill(bundle, splits, config, seed=0, run_id=run_id)
    assert result.bundle is not None
    directory = store.path(result.bundle.digest)
    described = tiny_models.read_json(directory, "config.json")
    assert (described["hidden_size"], described["num_attention_heads"], len(shapes(result.bundle))) == (16, 2, 1)
    pruned = prune(result.bundle, splits, PruningConfig(**BRIEF), teacher=bundle, seed=0, run_id=run_id)
    assert shapes(pruned.bundle) == [{"heads": 3, "ffn": 32}]


@pytest.mark.parametrize(("bits", "healed"), [(4, True), (8, True), (4, False)])
def test_recovery_heals_the_rounding_of_embeddings_that_comes_later(
    run_id: str, data: tuple[Bundle, Splits], bits: int, healed: bool
) -> None:
    bundle, splits = data
    rounding = {"token_bits": bits, "block_size": 16} if healed else None
    config = PruningConfig(**BRIEF, embeddings="frozen", heal_rounding=healed)
    result = prune(bundle, splits, config, teacher=bundle, rounding=rounding, seed=0, run_id=run_id)
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
