"""A tiny decoder through the whole line, as a person would run it; then from the cache, killed, and what it serves."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.ml.models import locators
from tests.flows.test_compress import featherweight

WORDS = ("compress", "smoke-lm")
KILLED_IN = ("prepare", "train", "distill", "prune", "quantize", "export", "validate")
CLOCKED = {
    "latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "throughput_per_s", "load_time_s", "peak_memory_mb",
    "samples_per_s", "train_time_s",
}  # fmt: skip
"""Figures that a clock or the system gives."""

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the one run that nothing interrupts."""
    return tmp_path_factory.mktemp("decoder")


@pytest.fixture(scope="module")
def first(home: Path) -> dict[str, Any]:
    return featherweight(home, *WORDS)


def cards(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage["scorecard"] for stage in run["stages"]}


def killed(home: Path, stage: str) -> None:
    """Begins the run, or goes on with it, and kills it while it is in a stage."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "PREFECT_HOME")}
    with subprocess.Popen(
        [sys.executable, "-m", "flows.command.cli", *WORDS, "--json"], text=True,
        env={**environment, "FEATHERWEIGHT_HOME": str(home)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as run:  # fmt: skip
        assert run.stderr is not None
        said = []
        while not said or f"{stage}: computing" not in said[-1]:
            said.append(run.stderr.readline())
            assert said[-1], said
        time.sleep(0.3)  # so that it is in the midst of something
        run.kill()


def test_a_decoder_goes_the_whole_line_and_answers(home: Path, first: dict[str, Any]) -> None:
    found = cards(first)
    assert [check["name"] for check in first["verdict"]["checks"]] == ["quality_drop", "shrink", "speedup"]
    assert all(check["status"] == "passed" for check in first["verdict"]["checks"])
    assert found["train"]["metric"] == "minus_bits_per_byte"
    assert -4 < found["train"]["quality"] < -2, "bits a byte, fewer than single bytes' frequencies need"
    assert found["distill"]["num_parameters"] > found["prune"]["num_parameters"]
    assert found["validate"]["size_mb"] < found["train"]["size_mb"] / 3
    assert found["export"]["fused_attention_nodes"] == 3
    assert found["export"]["quantized_matmul_nodes"] == 3 * 4 + 1

    again = featherweight(home, *WORDS)
    assert all(stage["cached"] for stage in again["stages"])
    assert again["release"] == first["release"]

    bundle = home / "store" / "objects" / first["release"]["digest"]
    assert (bundle / "genai_config.json").is_file()
    command = [sys.executable, "-I", "-B", str(bundle / "predictor.py"), "a film that"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["completion"]
    assert answer["tokens"] == 64


def test_a_decoder_that_was_killed_in_every_stage_comes_to_the_same(tmp_path: Path, first: dict[str, Any]) -> None:
    for stage in KILLED_IN:
        killed(tmp_path, stage)
    last = featherweight(tmp_path, *WORDS)
    assert [stage["stage"] for stage in last["stages"]] == [stage["stage"] for stage in first["stages"]]
    for stage, card in cards(first).items():
        figures = {name: value for name, value in card.items() if name not in CLOCKED}
        assert {name: cards(last)[stage][name] for name in figures} == figures, stage
    assert last["verdict"]["checks"][0] == first["verdict"]["checks"][0], "what it lost of quality"


def conversations(folder: Path) -> Path:
    """Questions with an answer that they tell, in the tokens of the tiny decoder of bytes; returns a recipe's file."""
    base = shutil.copytree(locators.locate("demo:tiny-llama"), folder / "base")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    words = ("good", "dull", "long", "odd")
    with (folder / "talks.jsonl").open("w") as file:
        for index in range(240):
            word = words[index % 4]
            asked = {"role": "user", "content": f"film {index}: {word}?"}
            file.write(json.dumps({"messages": [asked, {"role": "assistant", "content": f"a {word} one"}]}) + "\n")
    recipe = folder / "chat.yaml"
    recipe.write_text(
        "name: chat\nextends: smoke-lm\n"
        f"data: {{source: file:{folder}/talks.jsonl, text: messages, max_length: 64, max_rows: 0}}\n"
        f"base_model: {base}\n"
    )
    return recipe


def test_a_decoder_learns_to_answer(tmp_path: Path) -> None:
    """Each byte of an answer can be told from its question: nothing of the question, which cannot be told, counts."""
    found = featherweight(tmp_path / "home", "compress", str(conversations(tmp_path)))
    assert found["verdict"]["status"] == "passed"
    assert cards(found)["train"]["quality"] > -0.5, "questions alone need more bits"
    assert cards(found)["validate"]["num_examples"] > 20
    bundle = tmp_path / "home" / "store" / "objects" / found["release"]["digest"]
    command = [sys.executable, "-I", "-B", str(bundle / "predictor.py"), "film 999: long?"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert re.fullmatch(r"a [a-z]+ one", answer["completion"]), (
        "so few steps teach what answers are like, not each word"
    )
    assert answer["tokens"] == len(answer["completion"]) + 1, "it ends where the template ends a turn"
