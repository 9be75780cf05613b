"""The proof of a decoder: its parity by token, what it generates in which time, and its size in blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.ml.data import held_out
from tasks.ml.data.splitting import SPLITS
from tasks.ml.models import modeling, tokenization
from tasks.ml.proof import appraisal, proof
from tasks.ml.pruning import kept_tokens
from tasks.ml.quality import regressions
from tasks.ml.quantization import block_files
from tasks.ml.quantization.blocks import Format
from tasks.ml.runtime.parity import ParityError
from tests.ml import bpe_tokenizers, decoder_bundles
from tests.ml.bpe_tokenizers import TEXTS
from tests.ml.decoder_bundles import PROBLEM
from tests.ml.tiny_decoders import SIZES, VOCABULARY, model_of

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

    directory, found = tmp_path / "data", {name: texts(name) for name in SPLITS}
    decoder_bundles.write_data(directory, found, decoder_bundles.tokenizer(), max_length=MAX_LENGTH)
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


def test_a_decoder_with_fewer_tokens_is_held_against_its_teacher_where_both_read_alike(tmp_path: Path) -> None:
    whole, texts = bpe_tokenizers.build(byte_level=True), [" ".join(text.split()[:9]) for text in TEXTS[:40]]
    data, teacher, student = (tmp_path / name for name in ("data", "teacher", "student"))
    decoder_bundles.write_data(data, dict.fromkeys(SPLITS, texts), whole, max_length=MAX_LENGTH)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES | {"vocab_size": len(whole)})).eval()
    tokens = kept_tokens.choose_tokens(whole, tokenization.encode(texts[:20], whole, max_length=0), keep=0.6)
    smaller, cut = kept_tokens.keep_tokens(model, whole, tokens)
    for directory, one, tokenizer in ((teacher, model, whole), (student, smaller, cut)):
        directory.mkdir()
        modeling.save(one, tokenizer, directory)
    with held_out.asking("validate"):
        subjects = [proof.subject(stage, "", one, data) for stage, one in (("train", teacher), ("validate", student))]
        kept = {
            one.stage: proof.told(
                one, proof.logits_of(one, problem=PROBLEM, provider="", threads=1), subjects[0], problem=PROBLEM
            )
            for one in subjects
        }
        proof.write_rows(tmp_path / "rows.arrow", data, PROBLEM, kept)
        lost = regressions.worst(data, PROBLEM, kept)
    table = pa.ipc.open_file(tmp_path / "rows.arrow").read_all()
    agrees, n = table["agrees_validate"].to_numpy(), len(table)
    ours, theirs = (subject.rows for subject in reversed(subjects))
    alike = np.array([[tokens[token] for token in row] == other for row, other in zip(ours, theirs, strict=True)])
    assert 0 < alike.sum() < n
    assert np.isfinite(agrees).tolist() == alike.tolist()
    with torch.no_grad():
        for row in np.flatnonzero(alike):
            before = model(input_ids=torch.tensor([theirs[row]])).logits[0, :-1].argmax(-1).tolist()
            after = smaller(input_ids=torch.tensor([ours[row]])).logits[0, :-1].argmax(-1).tolist()
            both = [one == tokens[other] for one, other in zip(before, after, strict=True)]
            assert agrees[row] == pytest.approx(np.mean(both))
    assert (lost["n"], lost["compared"]) == (n, alike.sum())
    assert lost["apart"] == (agrees < 1).sum() > 0
    nats = table["prediction_validate"].to_numpy()
    assert nats[alike].sum() < table["prediction_train"].to_numpy()[alike].sum(), "fewer tokens to choose from"
    assert np.isfinite(nats).all()


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
