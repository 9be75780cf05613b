"""A whole ablation at its smallest, through the real engine, of a tiny model; what ends it, is left out or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flows import ablation
from flows.recipe import Recipe
from flows.trials import branch, comparing, techniques
from tasks.contracts.base import FeatherweightError
from tasks.engine import disk, tracking
from tasks.reporting import ablation as sections
from tests.flows import tiny_recipes
from tests.flows.tiny_recipes import children

CONFIG = ablation.AblationConfig(techniques=("hidden states", "unlabeled text", "dynamic int8"), seeds=2)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipes.write(tmp_path)


@pytest.mark.slow
def test_an_ablation_compares_row_by_row_and_repeats_nothing(recipe: Recipe, tmp_path: Path) -> None:
    first = ablation.ablation(recipe, CONFIG)
    assert [(row.name, row.is_used) for row in first.rows] == [("hidden states", True), ("dynamic int8", True)]
    assert list(first.left_out) == ["unlabeled text"]
    assert first.seeds == (3, 4)
    for row in first.rows:
        same = {"latency_p50_ms": first.whole.latency_p50_ms, "throughput_per_s": first.whole.throughput_per_s}
        assert replace(row.used, **same) == first.whole, "what the recipe uses is compared with the recipe itself"
        assert row.used.latency_p50_ms != first.whole.latency_p50_ms, "times are those of rounds taken in turns"
        difference = row.used.quality.measured - row.spared.quality.measured
        assert row.effect.quality.measured == pytest.approx(difference)
        assert row.effect.quality.low is not None
        assert row.effect.smaller.measured == pytest.approx(row.spared.size_mb.measured / row.used.size_mb.measured)
    hidden, integers = first.rows
    assert hidden.effect.signs()["size"] == 0, "a loss term weighs nothing"
    assert integers.effect.signs()["size"] == 1, "int8 weights are smaller"

    trials = {run.info.run_name: run for run in children(first.run_id, "trial")}
    assert trials.keys() == {
        f"{title}, seed {seed}"
        for title in ("as the recipe is", "without hidden states", "without dynamic int8")
        for seed in (3, 4)
    }
    spared = trials["without dynamic int8, seed 4"]
    assert spared.data.params["quantization.scheme"] == "none"
    assert spared.data.params["seed"] == "4"
    assert len(children(spared.info.run_id, "stage")) == 6, "prepare, distill, prune, quantize, export, appraise"
    sizes = [trials[f"without dynamic int8, seed {seed}"].data.metrics["size_mb"] for seed in (3, 4)]
    assert integers.spared.size_mb.measured == pytest.approx(sum(sizes) / 2)
    races = [run for run in children(first.run_id, "stage") if run.info.run_name == "race"]
    assert len(races) == 4, "each technique, with each seed"
    parent = tracking.client().get_run(first.run_id).data
    assert parent.tags["featherweight.kind"] == "ablation"
    assert parent.metrics["dynamic int8/smaller"] == integers.effect.smaller.measured
    document = json.loads(tracking.read_text(first.run_id, "ablation.json") or "")
    assert [row["name"] for row in document["rows"]] == ["hidden states", "dynamic int8"]
    page = comparing.copy(sections, first, tmp_path / "ablation.html")
    assert page.read_text(encoding="utf-8") == tracking.read_text(first.run_id, "ablation.html")

    more = techniques.find("hidden states").name, techniques.find("GPTQ").name
    again = ablation.ablation(recipe, ablation.AblationConfig(techniques=more, seeds=1))
    assert again.rows[0].used.size_mb.measured == first.rows[0].used.size_mb.measured
    cached = {
        run.info.run_name: {stage.data.tags.get("featherweight.cached") for stage in children(run.info.run_id, "stage")}
        for run in children(again.run_id, "trial")
    }
    assert cached["as the recipe is, seed 3"] == cached["without hidden states, seed 3"] == {"true"}
    assert cached["with GPTQ, seed 3"] == {"true", None}, "distill and prune are those of the recipe"


def test_a_variation_that_cannot_come_about_is_left_out_before_the_first_row(recipe: Recipe) -> None:
    config = ablation.AblationConfig(techniques=("vocabulary pruning", "int8 embeddings"))
    arms, left_out = ablation._planned(recipe, config)
    assert [arm.technique.name for arm in arms] == ["int8 embeddings"]
    assert left_out["vocabulary pruning"].startswith(
        "pruning.keep_vocabulary: only WordPiece and BPE vocabularies can be cut"
    )

    broken = branch.variation(recipe, {"pruning.keep_vocabulary": 0.5})
    with pytest.raises(FeatherweightError, match="only WordPiece and BPE vocabularies can be cut"):
        ablation.ablation(broken, config)


@pytest.mark.slow
def test_a_variation_that_fails_while_it_is_made_is_a_finding(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.preflight.objections", lambda *_: [])
    config = ablation.AblationConfig(techniques=("vocabulary pruning", "int8 embeddings"))
    found = ablation.ablation(recipe, config)
    assert [row.name for row in found.rows] == ["int8 embeddings"]
    said = found.left_out["vocabulary pruning"]
    assert said.startswith("with vocabulary pruning, it could not be made: ")
    assert "WordPiece" in said
    states = {run.info.run_name: run.info.status for run in children(found.run_id, "trial")}
    assert states["with vocabulary pruning, seed 3"] == "FAILED"
    assert states["without int8 embeddings, seed 3"] == "FINISHED"


def test_an_ablation_is_not_among_the_runs_with_a_verdict() -> None:
    from flows.command import history

    with tracking.pipeline_run("tiny", {}, run_name="ablation", tags={"featherweight.kind": ablation.KIND}):
        pass
    assert history.runs(limit=5) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"seeds": 0}, "ablation: seeds: must be greater than or equal to 1"),
        ({"techniques": ["GPTQ", "magic"]}, "ablation: techniques: 'magic' is not known; choose among hidden states, "),
        ({"techniques": "GPTQ"}, "ablation: techniques: must be a valid tuple"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, object], said: str) -> None:
    with pytest.raises(FeatherweightError, match=said):
        comparing.checked(ablation.KIND, ablation.CONFIG, fields)


def test_a_technique_named_twice_is_measured_once() -> None:
    assert comparing.checked(ablation.KIND, ablation.CONFIG, {"techniques": ["GPTQ", "labels", "GPTQ"]}).techniques == (
        "GPTQ",
        "labels",
    )
    assert comparing.checked(ablation.KIND, ablation.CONFIG, {}).chosen() == list(techniques.TECHNIQUES)


def test_nothing_to_compare_is_refused_before_any_work(recipe: Recipe) -> None:
    with pytest.raises(FeatherweightError, match="nothing to compare: unlabeled text: the recipe does not use it"):
        ablation.ablation(recipe, ablation.AblationConfig(techniques=("unlabeled text",)))
    assert not (disk.home() / "store" / "records").exists()
