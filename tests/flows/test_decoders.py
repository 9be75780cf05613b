"""A tiny decoder through the whole line, as a person would run it; then from the cache, and what it serves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.test_compress import featherweight


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_decoder_goes_the_whole_line_and_answers(tmp_path: Path) -> None:
    first = featherweight(tmp_path, "compress", "smoke-lm")
    cards = {stage["stage"]: stage["scorecard"] for stage in first["stages"]}
    assert [check["name"] for check in first["verdict"]["checks"]] == ["quality_drop", "shrink", "speedup"]
    assert all(check["status"] == "passed" for check in first["verdict"]["checks"])
    assert cards["train"]["metric"] == "minus_bits_per_byte"
    assert -4 < cards["train"]["quality"] < -2, "bits a byte, fewer than single bytes' frequencies need"
    assert cards["distill"]["num_parameters"] > cards["prune"]["num_parameters"]
    assert cards["validate"]["size_mb"] < cards["train"]["size_mb"] / 3
    assert cards["export"]["fused_attention_nodes"] == 3
    assert cards["export"]["quantized_matmul_nodes"] == 3 * 4 + 1

    again = featherweight(tmp_path, "compress", "smoke-lm")
    assert all(stage["cached"] for stage in again["stages"])
    assert again["release"] == first["release"]

    bundle = tmp_path / "store" / "objects" / first["release"]["digest"]
    assert (bundle / "genai_config.json").is_file()
    command = [sys.executable, "-I", "-B", str(bundle / "predictor.py"), "a film that"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["completion"]
    assert answer["tokens"] == 64
