"""Our training loop beside Hugging Face's Trainer, small: ``tests/benchmarks/training.py`` itself, on a GPU or a CPU.

``pytest -m gpu -s tests/gpu/test_comparison.py`` prints the table. To measure a GPU, call the benchmark itself: it
takes the demo's data, and enough of it.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tasks import tiny_models

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "training.py"
DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu), pytest.param("cpu", marks=pytest.mark.slow)]


def recipe(folder: Path) -> Path:
    """200 texts whose label is their first word, and the tiny model with its tokenizer."""
    rng = random.Random(0)
    lines = ["text,label"]
    for number in range(200):
        words = rng.choices(tiny_models.WORDS, k=rng.randint(2, 12))
        lines.append(f"{'great' if number % 2 else 'dull'} {' '.join(words)},{number % 2}")
    (folder / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    tiny_models.model().save_pretrained(folder / "model")
    tiny_models.tokenizer().save_pretrained(folder / "model")
    path = folder / "tiny.yaml"
    path.write_text(
        f"name: tiny\nbase_model: {folder / 'model'}\ndata: {{source: 'file:{folder / 'rows.csv'}', max_length: 16}}\n",
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize("device", DEVICES)
def test_all_train_the_same_and_say_what_share_of_the_peak_was_of_use(tmp_path: Path, device: str) -> None:
    result = tmp_path / "result.json"
    arguments = [
        "--device", device, "--recipe", recipe(tmp_path), "--seeds", "0", "--slice", "2", "--best", '{"bf16": true}',
        "--keep", tmp_path / "kept", "--json", result,
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, BENCHMARK, *map(str, arguments)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    found = json.loads(result.read_text(encoding="utf-8"))
    assert [run["name"] for run in found["runs"]] == ["trainer-defaults", "trainer-best", "featherweight"]
    for run in found["runs"]:
        assert 0 < run["change"] < 1, "weights were trained, and not replaced"
        assert all(math.isfinite(run[split]["loss"]) for split in ("selection", "test"))
        assert run["peak_mb"] >= run["loaded_mb"] > 0
    assert len({(run["rows"], run["tokens"], run["parameters"]) for run in found["runs"]}) == 1
    for shares in found["shares_of_peak"].values():
        assert all(0 < share <= 1 for share in shares.values())
    assert "| share of peak, bfloat16" in done.stdout
