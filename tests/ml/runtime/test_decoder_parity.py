"""A decoder's graph is held against its simulation: one that is the same passes, one that is another is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from tasks.ml.graph import decoding
from tasks.ml.models import decoders
from tasks.ml.quantization import block_files, cache_scales
from tasks.ml.quantization.blocks import Format
from tasks.ml.runtime import decoder_parity, sessions
from tasks.ml.runtime.parity import ParityError
from tasks.ml.tokens import Partly
from tests.ml import decoder_bundles
from tests.ml.tiny_decoders import VOCABULARY, model_of

LENGTHS = (1, 2, 17, 24, 31, 40)
FOUND = {
    "n": 1000, "rows": 10, "label_flips": 20, "tied_flips": 15, "shape_rows": 200, "shape_flips": 0,
    "shape_tied_flips": 0, "perplexity": 20.01, "simulated_perplexity": 20.0, "perplexity_change": 5e-4,
    "allowed_perplexity_change": 1e-3, "max_abs_error": 1e-3, "allowed_abs_error": 1e-2, "non_finite": 0,
    "chunk_error": 1e-4, "allowed_chunk_error": 1e-3, "prompts": 20, "generated": 64, "common_prefixes": [64] * 20,
    "whole_prompts": 20, "tied_prompts": 0, "generated_choices": 1280,
}  # fmt: skip


def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]


def compared(source: Path, graph: Path, some: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
    session = sessions.open_session(graph / "model.onnx", provider=sessions.CPU, threads=1)
    return decoder_parity.compare(
        source, graph / "model.onnx", session, decoder_bundles.PROBLEM, some or rows(), pad_id=0, max_length=40
    )


@pytest.mark.parametrize("name", ["llama", "qwen2, windows", "qwen3"])
def test_a_graph_in_floats_is_its_model(name: str, tmp_path: Path) -> None:
    found = compared(*decoder_bundles.write(tmp_path, name, form=decoder_bundles.EXACT))
    decoder_parity.require(found, max_flips=0.0)
    assert (found["n"], found["rows"]) == (sum(LENGTHS) - len(LENGTHS), len(LENGTHS))
    assert found["agreement"] > 0.99
    assert abs(found["perplexity_change"]) < 1e-4
    assert 0 < found["max_abs_error"] < found["allowed_abs_error"]
    assert found["prompts"] == len(found["common_prefixes"]) == len(LENGTHS)
    assert found["whole_prompts"] + found["tied_prompts"] == len(LENGTHS)
    assert found["generated"] == 32
    assert found["shapes"] == [[1, 2], [3, 7], [5, 21], [8, 40]]


def test_tokens_that_do_not_count_are_not_compared(tmp_path: Path) -> None:
    source, graph = decoder_bundles.write(tmp_path, form=decoder_bundles.EXACT)
    partly = [Partly(row, [index >= 10 for index in range(len(row))]) for row in rows()]
    found, whole = compared(source, graph, partly), compared(source, graph)
    decoder_parity.require(found, max_flips=0.0)
    assert found["n"] == sum(max(0, length - 10) for length in LENGTHS)
    assert found["perplexity"] != whole["perplexity"]
    assert found["common_prefixes"] == whole["common_prefixes"]


@pytest.mark.parametrize("form", [Format(8, 16), Format(4, 32), Format(2, 64, symmetric=True), Format(2, 16)], ids=str)
def test_rounded_inputs_are_simulated(form: Format, tmp_path: Path) -> None:
    source, graph = decoder_bundles.write(tmp_path, form=form)
    in_int8 = form != Format(2, 16)
    limits = decoder_parity.INPUTS_IN_INT8 if in_int8 else decoder_parity.IN_FLOATS
    assert decoder_parity.limits(graph / "model.onnx") == limits
    found = compared(source, graph)
    assert (found["allowed_abs_error"] is None) == in_int8
    assert 1e-3 <= found["allowed_perplexity_change"] < 5e-3
    decoder_parity.require(found, max_flips=0.05)
    (source / block_files.FILE).unlink()
    left_as_they_are = compared(source, graph)["median_abs_error"]
    assert found["median_abs_error"] < (left_as_they_are / 10 if in_int8 else 1e-5)


def test_a_cache_in_int8_is_allowed_more(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scales = cache_scales.of_rows(model_of("llama"), [torch.tensor([row]) for row in rows() if len(row) > 1])
    source, graph = decoder_bundles.write(tmp_path, cache_scales=scales)
    assert decoder_parity.limits(graph / "model.onnx") == decoder_parity.CACHE_IN_INT8
    decoder_parity.require(compared(source, graph), max_flips=0.01)


@pytest.mark.parametrize(
    ("name", "factor", "part", "complaint"),
    [
        ("final_norm.weight", float("nan"), slice(None), "NaN or infinity after"),
        ("head.weight", 1.2, slice(None), r"perplexity is .* on the runtime and .*; the graph is not the model"),
        ("layers.1.mlp.down_proj.weight", 1.05, slice(3), r"a token loses .* nats more or less on the runtime"),
        ("sin", 0.0, slice(45, None), r"texts are continued otherwise .* no tie"),
    ],
    ids=["not a number", "logits", "three channels", "positions that only generation reaches"],
)
def test_a_graph_of_other_weights_is_refused(
    name: str, factor: float, part: slice, complaint: str, tmp_path: Path
) -> None:
    source, graph = decoder_bundles.write(tmp_path)
    decoder_bundles.scale(graph, name, factor, part)
    with pytest.raises(ParityError, match=complaint):
        decoder_parity.require(compared(source, graph), max_flips=0.01)


def test_a_graph_that_keeps_the_wrong_things_is_refused(tmp_path: Path) -> None:
    """Keys and values change places in the cache: whole texts do not show it."""
    source, graph = decoder_bundles.write(tmp_path)
    model = onnx.load(graph / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    node.output[1], node.output[2] = node.output[2], node.output[1]
    onnx.save(model, graph / "model.onnx")
    found = compared(source, graph)
    assert found["label_flips"] == 0
    with pytest.raises(ParityError, match=r"reads in two parts .* the cache is not used rightly"):
        decoder_parity.require(found, max_flips=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {"non_finite": 1},
        {"perplexity_change": -2e-3},
        {"perplexity_change": float("nan")},
        {"label_flips": 40},
        {"shape_flips": 20},
        {"max_abs_error": 0.02},
        {"chunk_error": 0.01},
        {"whole_prompts": 6},
    ],
)
def test_everything_that_is_measured_is_held_against_a_limit(changes: dict[str, Any]) -> None:
    decoder_parity.require(FOUND, max_flips=0.01)
    with pytest.raises(ParityError):
        decoder_parity.require(FOUND | changes, max_flips=0.01)


def test_what_is_nearly_as_likely_may_change_places() -> None:
    ties = {"label_flips": 40, "tied_flips": 35, "whole_prompts": 6, "tied_prompts": 14}
    decoder_parity.require(FOUND | ties, max_flips=0.01)


def test_batches_hold_no_more_tokens_than_logits_are_computed_of() -> None:
    shapes = decoder_parity.other_shapes(1024, tokens_at_once=2048)
    assert shapes == [(1, 2), (3, 7), (3, 513), (2, 1024)]


def test_every_family_has_the_cache_that_limits_look_at() -> None:
    assert all(decoding.past(0)[0].startswith(sessions.CACHE) for _ in decoders.DECODERS)
