"""The proof of a decoder: its parity by token, what it generates in which time, and its size in blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tasks.ml.data import datasets, held_out
from tasks.ml.data.splitting import SPLITS, Division, Row, key
from tasks.ml.data.tables import Table
from tasks.ml.problem import problem_of
from tasks.ml.proof import appraisal, proof
from tasks.ml.quantization import block_files
from tasks.ml.quantization.blocks import Format
from tasks.ml.runtime.parity import ParityError
from tests.ml import decoder_bundles
from tests.ml.decoder_bundles import PROBLEM
from tests.ml.tiny_decoders import VOCABULARY, model_of

ROWS, MAX_LENGTH = 12, 32
HOW: dict[str, Any] = {"device": "cpu", "threads": 1, "repeats": 3, "sentences": 10, "max_flips": 0.01}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Texts of random words."""

    def texts(name: str) -> list[str]:
        generator = torch.Generator().manual_seed(len(name))
        lengths = [3 + 2 * row for row in range(ROWS)]
        return [
            " ".join(f"w{word}" for word in torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())
            for length in lengths
        ]

    found = {name: texts(name) for name in SPLITS}
    tables = {name: Table(name, "row", range(ROWS), rows, [], "") for name, rows in found.items()}
    targets = problem_of(PROBLEM).targets(tables)
    splits = {name: [Row(text, str(len(text)), key(text)) for text in rows] for name, rows in found.items()}
    directory = tmp_path / "data"
    directory.mkdir()
    division = Division(targets, splits=splits | {"unlabeled": []}, dropped={})
    datasets.write(directory, division, decoder_bundles.tokenizer(), max_length=MAX_LENGTH)
    return directory


@pytest.mark.alone
def test_a_whole_proof_of_a_decoder(data: Path, tmp_path: Path) -> None:
    teacher, _ = decoder_bundles.write(tmp_path / "teacher")
    source, graph = decoder_bundles.write(tmp_path / "shipped", form=Format(4, 32))
    with held_out.asking("validate"):  # whose work this is
        models = [
            proof.subject("train", "Teacher", teacher, data),
            proof.subject("quantize", "Quantized (simulated)", source, data, simulated=True),
        ]
        shipped = proof.subject("validate", "Shipped", graph, data)
        found, kept = proof.examine(models, shipped, data=data, problem_name=PROBLEM, **HOW)
        proof.write_rows(tmp_path / "rows.arrow", data, PROBLEM, kept)
    json.dumps(found, allow_nan=False)
    assert [(cell["stage"], cell["context"]) for cell in found["generation"]] == [("train", 32), ("validate", 32)]
    assert 0.001 < found["parity"]["allowed_perplexity_change"] < 0.01
    assert found["parity"]["prompts"] == ROWS
    assert {(cell["stage"], cell["batch"], cell["length"]) for cell in found["grid"]} == {
        (stage, batch, length) for stage in ("train", "validate") for batch in (1, 8, 32) for length in (16, 32)
    }
    rows = {model["stage"]: model for model in found["models"]}
    assert rows["quantize"]["latency_p50_ms"] is None
    assert 0 < rows["validate"]["latency_p50_ms"] < rows["train"]["latency_p50_ms"]
    assert rows["train"]["quality"] == pytest.approx(rows["quantize"]["quality"], rel=0.1)
    assert rows["validate"]["quality"] == pytest.approx(rows["quantize"]["quality"], rel=0.01)
    assert found["nodes"]["CPUExecutionProvider"]["GroupQueryAttention"] == 3
    table = pa.ipc.open_file(tmp_path / "rows.arrow").read_all()
    assert np.mean(table["score_validate"].to_numpy()) == pytest.approx(rows["validate"]["quality"])


@pytest.mark.alone
def test_a_candidate_that_generates_is_appraised(data: Path, tmp_path: Path) -> None:
    teacher, _ = decoder_bundles.write(tmp_path / "teacher")
    source, graph = decoder_bundles.write(tmp_path / "candidate", form=decoder_bundles.EXACT)
    about: dict[str, Any] = {"teacher": teacher, "simulated": source, "data": data, "problem_name": PROBLEM}
    found = appraisal.measure(graph, **about, **HOW, batch_size=16)
    assert found.measured["label_flips"] == 0
    assert found.measured["max_abs_error"] < 1e-3
    assert found.measured["num_examples"] == ROWS
    assert [cell["context"] for cell in found.measured["generation"]] == [32]
    decoder_bundles.scale(graph, "final_norm.weight", 1.5)
    with pytest.raises(ParityError, match="perplexity is"):
        appraisal.measure(graph, **about, **HOW, batch_size=16)


def test_a_simulated_decoder_is_as_large_as_its_codes(data: Path, tmp_path: Path) -> None:
    source, _ = decoder_bundles.write(tmp_path / "model")
    model = model_of("llama")
    blocks = decoder_bundles.rounded(model, Format(4, 32))
    block_files.save(source, blocks)
    subject = proof.subject("quantize", "Quantized", source, data, simulated=True, split="selection")
    coded = {f"{name}.weight" for name in blocks}
    rest = sum(4 * one.numel() for name, one in model.named_parameters() if name not in coded)
    expected = rest + sum(one.nbytes for one in blocks.values())
    assert proof.weight(subject, problem=PROBLEM)["size_mb"] == pytest.approx(expected / 1e6)
    assert expected < (source / "model.safetensors").stat().st_size / 2
