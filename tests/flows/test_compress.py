"""The smoke recipe through the real engine, as a person would run it: once, again, and with a late field changed.

``tests/golden/smoke.json`` holds what it came to. A refactor leaves it as it is; a change of the mathematics explains
its new numbers. To write it anew: ``FEATHERWEIGHT_WRITE_GOLDEN=1 infra/run pytest tests/flows/test_compress.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.contracts.values import Scorecard

GOLDEN = Path(__file__).parent.parent / "golden" / "smoke.json"
MODEL_STAGES = ["train", "distill", "prune", "quantize", "export", "validate"]
EXACT = ("num_parameters", "num_examples", "num_rows", "fused_attention_nodes", "quantized_matmul_nodes")
CLOSE = {"loss": 0.02, "size_mb": 0.001}
"""Relative tolerance: other processors add in another order."""
FP32 = ("compute.precision=fp32",)
"""What auto chooses is the machine's affair, and bf16 comes to other figures."""
ROWS_APART = 2
"""Rows of the split by which an accuracy may differ."""


def featherweight(home: Path, *arguments: str, status: int = 0) -> Any:
    """Runs the command line in a process of its own and returns its JSON document."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "PREFECT_HOME")}
    done = subprocess.run(
        [sys.executable, "-m", "flows.command.cli", *arguments, "--json"],
        env={**environment, "FEATHERWEIGHT_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == status, done.stderr[-3000:]
    return json.loads(done.stdout)


def compress(home: Path, *changes: str, status: int = 0) -> dict[str, Any]:
    """Runs the smoke recipe with some fields changed."""
    arguments = [part for change in (*FP32, *changes) for part in ("--set", change)]
    return featherweight(home, "compress", "smoke", *arguments, status=status)


def stages(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage for stage in document["stages"]}


pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smoke")


@pytest.fixture(scope="module")
def first(shared_home: Path) -> dict[str, Any]:
    """The smoke recipe in an empty home."""
    return compress(shared_home)


def test_the_whole_line_ends_in_a_bundle_that_answers(first: dict[str, Any]) -> None:
    assert first["verdict"]["status"] == "passed"
    assert not any(stage["cached"] for stage in first["stages"])
    bundle = Path(first["bundle"])
    assert {"model.onnx", "tokenizer.json", "manifest.json", "README.md"} <= {path.name for path in bundle.iterdir()}
    assert Path(first["report"]).stat().st_size > 10_000
    answer = subprocess.run(
        [sys.executable, "-I", str(bundle / "predictor.py"), "a wonderful, moving film"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "positive" in answer.stdout
    assert "negative" in answer.stdout


def test_it_comes_to_what_it_came_to_before(first: dict[str, Any]) -> None:
    cards = {name: Scorecard(**stage["scorecard"]).metrics() for name, stage in stages(first).items()}
    kept = {
        name: {key: card[key] for key in (*EXACT, *CLOSE, "accuracy") if key in card} for name, card in cards.items()
    }
    if os.environ.get("FEATHERWEIGHT_WRITE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert kept.keys() == golden.keys()
    for name, expected in golden.items():
        card = kept[name]
        assert card.keys() == expected.keys()
        assert {key: card[key] for key in EXACT if key in card} == {key: expected[key] for key in EXACT if key in card}
        for key, tolerance in CLOSE.items():
            if key in expected:
                assert card[key] == pytest.approx(expected[key], rel=tolerance), f"{name}.{key}"
        if "accuracy" in expected:
            assert abs(card["accuracy"] - expected["accuracy"]) * card["num_examples"] <= ROWS_APART, name


def test_again_everything_is_cached(first: dict[str, Any], shared_home: Path) -> None:
    again = compress(shared_home)
    assert {name for name, stage in stages(again).items() if stage["cached"]} == {"prepare", *MODEL_STAGES}
    assert again["verdict"] == first["verdict"]
    assert again["bundle"] == first["bundle"]
    assert again["run_id"] != first["run_id"]
    assert again["release"] == first["release"], "the same bundle is the same version"
    assert featherweight(shared_home, "show") == again


@pytest.mark.slow
def test_a_late_field_reuses_what_comes_before_it(first: dict[str, Any], shared_home: Path) -> None:
    changed = stages(compress(shared_home, "quantization.embeddings=int4", "budget.min_speedup=0.5"))
    assert [name for name in MODEL_STAGES if changed[name]["cached"]] == ["train", "distill", "prune"]
    before = stages(first)["validate"]["scorecard"]["size_mb"]
    assert changed["validate"]["scorecard"]["size_mb"] < 0.75 * before


def test_a_budget_that_nothing_can_meet_ships_nothing(first: dict[str, Any], shared_home: Path) -> None:
    rejected = compress(shared_home, "budget.min_shrink=1000", status=1)
    assert rejected["verdict"]["status"] == "failed"
    assert [check["name"] for check in rejected["verdict"]["checks"] if check["status"] == "failed"] == ["shrink"]
    assert all(stage["cached"] for stage in rejected["stages"])
    assert rejected["release"] is rejected["bundle"] is None
    assert Path(rejected["report"]).is_file()
    assert featherweight(shared_home, "runs")[0]["verdict"] == "failed"
    assert not list((shared_home / "store" / "tmp").iterdir())
