"""A whole search at its smallest, through the real engine, of a tiny model; killed midway; and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import search
from flows.recipe import Recipe
from flows.search import SearchConfig
from flows.trials import branch, comparing
from flows.trials.attempt import Runner, pool
from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Bundle
from tasks.engine import disk, registry, tracking
from tasks.ml.models import modeling
from tasks.reporting import search as sections
from tasks.reporting.trials import Minimize, Search, State
from tests.flows import tiny_recipes
from tests.flows.tiny_recipes import children
from tests.tasks import tiny_models

SPACE: dict[str, list[Any]] = {
    "pruning.width.keep_heads": [0.5], "pruning.width.keep_ffn": [0.5, 1.0], "quantization.scheme": ["int8-dynamic"],
    "quantization.embeddings": ["none", "int8"],
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipes.write(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_finds_ships_and_repeats_nothing(recipe: Recipe, tmp_path: Path) -> None:
    config = SearchConfig(minimize=Minimize.SIZE, trials=5, finalists=2, space=SPACE)
    found = search.search(recipe, config)
    assert isinstance(found, Search)
    assert [trial.number for trial in found.trials] == [1, 2, 3, 4, 5]
    assert found.trials[0].changes["distillation.layers"] == 1, "the recipe itself comes first"
    assert len({json.dumps(trial.changes, sort_keys=True) for trial in found.trials}) == 5
    assert len(found.complete) >= 2
    for trial in found.complete:
        assert trial.forecast_mb == pytest.approx(trial.stages[2].scorecard.size_mb)

    assert found.winner is not None
    assert 1 <= len(found.finalists) <= 2
    cheapest = min(trial.cost(Minimize.SIZE) or 0 for trial in found.complete if trial.keeps_to(found.limits))
    assert found.finalists[0].trial.cost(Minimize.SIZE) == cheapest or len(found.finalists) == 2
    version = registry.find("tiny", registry.CHAMPION)
    assert version.tags[registry.VERDICT_TAG] == "passed"
    assert version.run_id == found.winner.trial.run_id
    best = registry.find("tiny", search.BEST)
    assert best.run_id in {trial.run_id for trial in found.complete}

    runs = {run.info.run_id: run for run in children(found.run_id, "trial")}
    assert runs.keys() == {trial.run_id for trial in found.trials}
    for trial in found.trials:
        data = runs[trial.run_id].data
        assert data.tags["featherweight.state"] == trial.state.value
        assert data.params["pruning.width.keep_ffn"] == str(trial.changes["pruning.width.keep_ffn"])
        tested = [run for run in children(trial.run_id, "stage") if run.data.tags["featherweight.stage"] == "validate"]
        assert len(tested) == (trial.number in {one.trial.number for one in found.finalists})
    path = comparing.copy(sections, found, tmp_path / "search.html")
    assert path.read_text(encoding="utf-8") == tracking.read_text(found.run_id, "search.html")
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["winner"] == found.winner.trial.number

    more = search.search(recipe, config.model_copy(update={"trials": 6}))
    assert isinstance(more, Search)
    assert more.run_id == found.run_id
    assert more.trials[:5] == found.trials
    assert len(more.trials) == 6


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("runner", Runner)
def test_trials_go_side_by_side(recipe: Recipe, runner: Runner) -> None:
    config = SearchConfig(minimize=Minimize.SIZE, trials=3, finalists=1, space=SPACE, parallel=2, runner=runner)
    found = search.search(recipe, config)
    assert isinstance(found, Search)
    assert sorted(trial.number for trial in found.trials) == [1, 2, 3]
    assert not [trial.reason for trial in found.trials if trial.state is State.FAILED]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_that_was_killed_goes_on_and_repeats_nothing(recipe: Recipe, tmp_path: Path) -> None:
    home = tmp_path / "killed"
    file = tmp_path / "tiny.yaml"
    file.write_text(recipe.model_dump_json(), encoding="utf-8")  # JSON is YAML
    space = [part for path, values in SPACE.items() for part in ("--space", f"{path}={json.dumps(values)}")]
    command = [
        sys.executable, "-m", "flows.command.cli", "search", str(file), "--minimize", "size", "--trials", "6",
        *space, "--json",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "PREFECT_HOME")}
    environment["FEATHERWEIGHT_HOME"] = str(home)

    def records() -> dict[str, int]:
        """A record that is written anew is another file; one that is used has a new time of its change only."""
        return {path.name: path.stat().st_ino for path in (home / "store" / "records").glob("*.json")}

    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + 200
        while len(records()) < 12 and time.monotonic() < deadline and first.poll() is None:
            time.sleep(0.02)
        first.kill()
    before = records()
    assert len(before) >= 12
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads(done.stdout)
    assert [trial["number"] for trial in document["trials"]] == [1, 2, 3, 4, 5, 6]
    after = records()
    assert {name: after[name] for name in before} == before, "what was computed was not computed again"
    assert "going on" in done.stderr or "go on" in done.stderr


def test_a_search_is_not_among_the_runs_with_a_verdict() -> None:
    from flows.command import history

    with tracking.pipeline_run("tiny", {}, run_name="search", tags={"featherweight.kind": search.KIND}):
        pass
    assert history.runs(limit=5) == []


def test_trials_and_time_do_not_make_another_search(recipe: Recipe) -> None:
    def home(**changes: Any) -> Path:
        return search._home(recipe, SearchConfig.model_validate(changes))

    assert home(trials=3, minutes=5, parallel=2, finalists=1) == home()
    assert home(minimize="size") != home()
    assert home(space={"pruning.width.keep_ffn": [0.5]}) != home()
    assert home().is_relative_to(disk.home())


def test_another_model_of_the_same_name_is_another_ledger(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    model = tmp_path / "words"
    model.mkdir()
    made = branch.variation(recipe, {"teaching.augmentation": {"kind": "both", "model": str(model)}})
    bundle = Bundle(digest="0" * 64, format="torch", problem="text-classification")
    course: Any = SimpleNamespace(recipe=made, splits=bundle, teacher=bundle)

    def ledger(layers: int) -> Path:
        modeling.save(tiny_models.model(layers=layers), tiny_models.tokenizer(), model)
        return search._journal(home, course)

    assert ledger(layers=1) != ledger(layers=2)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"trials": 0}, "search: trials: must be greater than or equal to 1"),
        ({"minimize": "cost"}, "search: minimize: must be 'latency' or 'size'"),
        ({"space": {"pruning.width.keep_ffn": 0.5}}, "search: space.pruning.width.keep_ffn: must be a valid list"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, object], said: str) -> None:
    with pytest.raises(FeatherweightError, match=said):
        comparing.checked(search.KIND, search.CONFIG, fields)


def test_a_wrong_space_is_refused_before_any_work(recipe: Recipe) -> None:
    with pytest.raises(FeatherweightError, match=r"pruning\.width\.keep_ffn: must be greater than 0"):
        search.search(recipe, SearchConfig(space={"pruning.width.keep_ffn": [0]}))
    assert not (disk.home() / "store" / "records").exists()


def test_threads_need_nothing_more() -> None:
    assert type(pool(Runner.THREADS, parallel=2, address="")).__name__ == "ThreadPoolTaskRunner"
