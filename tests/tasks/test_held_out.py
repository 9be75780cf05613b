"""Nobody but validate and judge opens the test split: every stage tries, and so do threads, processes and flows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest

from tasks.contracts.base import PlainText
from tasks.contracts.values import Splits, StageOutput
from tasks.engine import store, tracking
from tasks.engine.stage import stage
from tasks.ml.data import datasets, held_out
from tests.tasks import tiny_models

ROOT = Path(__file__).parent.parent.parent
OTHERS = ("train", "calibration", "selection", "unlabeled")


def sources() -> dict[str, ast.AST]:
    """Every module of ours, parsed, by its path from the root."""
    paths = [path for package in ("flows", "tasks") for path in (ROOT / package).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def stages() -> list[str]:
    """The name of every function that ``@stage`` decorates."""
    return sorted(
        node.name
        for tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if isinstance(named := decorator.func if isinstance(decorator, ast.Call) else decorator, ast.Name)
        and named.id == "stage"
    )


def look(splits: Splits, split: PlainText) -> StageOutput:
    datasets.read(store.path(splits.digest), split)
    return StageOutput(splits=splits)


def called(name: str) -> FunctionType:
    """The same body under another stage's name."""
    copy = FunctionType(look.__code__, look.__globals__, name)
    copy.__annotations__, copy.__module__ = look.__annotations__, look.__module__
    return copy


@pytest.fixture
def run_id() -> Iterator[str]:
    with tracking.pipeline_run("looking", {}, run_name="looking") as run_id:
        yield run_id


def test_there_are_stages_to_ask() -> None:
    assert {"prepare", "train", "distill", "prune", "quantize", "export", "validate"} <= set(stages())


@pytest.mark.parametrize("name", sorted({*stages(), "report"} - set(held_out.MAY_OPEN)))
def test_every_other_stage_is_refused_the_test_split_and_no_other(run_id: str, name: str) -> None:
    splits = tiny_models.publish_data(8)
    peek = stage(reuse=False)(called(name))
    for split in OTHERS:
        peek(splits, split, run_id=run_id)
    with pytest.raises(held_out.HeldOutError, match=f"stage {name} wanted to open the test split"):
        peek(splits, "test", run_id=run_id)


@pytest.mark.parametrize("name", held_out.MAY_OPEN)
def test_the_stages_that_judge_may(run_id: str, name: str) -> None:
    stage(reuse=False)(called(name))(tiny_models.publish_data(8), "test", run_id=run_id)


def test_outside_a_stage_the_answer_is_no_also_in_threads_and_processes() -> None:
    directory = store.path(tiny_models.publish_data(8).digest)
    with pytest.raises(held_out.HeldOutError, match="somebody outside a stage"):
        datasets.read(directory, "test")
    refused: list[BaseException] = []

    def attempt() -> None:
        try:
            datasets.read(directory, "test")
        except held_out.HeldOutError as error:
            refused.append(error)

    with held_out.asking("prune"):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert len(refused) == 1
    program = f"import pathlib; from tasks.ml.data.datasets import read; read(pathlib.Path({str(directory)!r}), 'test')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "HeldOutError" in done.stderr


def test_what_a_stage_may_ends_with_it() -> None:
    directory = store.path(tiny_models.publish_data(8).digest)
    with held_out.asking("validate"):
        with held_out.asking("quantize"), pytest.raises(held_out.HeldOutError, match="stage quantize"):
            datasets.read(directory, "test")
        datasets.read(directory, "test")
    with pytest.raises(held_out.HeldOutError):
        datasets.read(directory, "test")


def test_the_door_is_the_only_one() -> None:
    """Only ``datasets`` names the test split's file, or puts such a name together; only ``@stage`` says who asks."""
    named, said = [], []
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(r"(test)?\.arrow", node.value):
                    named.append(path)
            elif isinstance(node, ast.Attribute) and node.attr == "asking":
                said.append(path)
    assert set(named) == {"tasks/ml/data/datasets.py"}
    assert said == ["tasks/engine/stage.py"]
