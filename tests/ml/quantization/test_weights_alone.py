"""A decoder's weights in blocks: model and codes say the same, sizes are kept, and files give back what was written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.data.datasets import Split
from tasks.ml.models import decoders
from tasks.ml.problems import causal_lm
from tasks.ml.quantization import block_files, blocks, quantized, weight_only, weights_alone
from tests.ml import tiny_decoders

ROWS = tiny_decoders.tokens(rows=24, length=24).tolist()
USUAL: dict[str, Any] = {"bits": 4, "block_size": 32, "table_bits": 4, "rounding": "gptq", "length": 24}


def decided(name: str = "llama, tied", **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    model = tiny_decoders.model_of(name)
    return model, weights_alone.decide(model, ROWS, **{**USUAL, **changes})


@pytest.mark.parametrize("name", ["llama, tied", "llama", "gpt2", "qwen3"])
def test_the_model_has_the_weights_that_its_codes_stand_for(name: str) -> None:
    before = tiny_decoders.model_of(name)
    model, codes = decided(name)
    family = decoders.of_model(model)
    projections = family.projections(model)
    is_tied = family.head(model).data_ptr() == family.table(model).data_ptr()
    tables = {weights_alone.HEAD} if is_tied else {weights_alone.HEAD, weights_alone.TABLE}
    assert codes.keys() == {one.name for one in projections} | tables
    for one, exact in zip(projections, family.projections(before), strict=True):
        assert torch.equal(codes[one.name].dense(), one.weight)
        error = (one.weight - exact.weight).square().mean() / exact.weight.square().mean()
        assert 1e-5 < error < 0.02
    assert torch.equal(codes[weights_alone.HEAD].dense(), family.head(model))


@pytest.mark.parametrize("name", ["llama, tied", "llama", "gpt2", "gemma"])
def test_the_head_is_rounded_for_what_it_reads(name: str) -> None:
    exact = tiny_decoders.model_of(name)
    read: list[torch.Tensor] = []
    exact.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach()))  # type: ignore[operator]
    rows = weights_alone.packed(ROWS, length=24)
    for ids in rows:
        exact(ids)
    inputs = torch.cat([one.flatten(0, -2) for one in read])
    torch.testing.assert_close(weight_only.head_hessian(exact, rows), inputs.T @ inputs, rtol=1e-4, atol=1e-3)
    head = decoders.of_model(exact).head(exact)
    blind = blocks.clipped(head, blocks.Format(4, 32)).dense()
    ours = decided(name)[1][weights_alone.HEAD].dense()
    costs = [float((inputs @ (head - one).T).square().mean()) for one in (ours, blind)]
    assert costs[0] < 0.8 * costs[1]


def test_texts_are_packed_into_rows_without_padding() -> None:
    rows = weights_alone.packed(ROWS, length=24)
    assert torch.cat([part.flatten() for part in rows]).tolist() == [token for row in ROWS for token in row]
    assert {part.shape[1] for part in rows} == {24}
    assert weights_alone.packed([[1, 2, 3], [4]], length=100)[0].tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(("bits", "fewer", "more"), [(3.0, 2, 4), (5.0, 4, 8)])
def test_bits_on_average_are_kept_and_lose_less_than_fewer(bits: float, fewer: int, more: int) -> None:
    models: dict[float, nn.Module] = {}
    for asked in (bits, fewer, more):
        models[asked], codes = decided(bits=asked, rounding="clipped", table_bits=32)
        count = sum(one.codes.numel() for one in codes.values())
        stored = sum(one.codes.numel() * one.format.bits for one in codes.values()) / count
        assert asked - 0.5 < stored <= asked
        assert len({one.format.bits for one in codes.values()}) > (1 if asked == bits else 0)
    ids, exact = tiny_decoders.tokens(), tiny_decoders.model_of("llama, tied")

    def off(other: nn.Module) -> float:
        with torch.no_grad():
            return float((other(ids).logits - exact(ids).logits).square().mean())

    assert off(models[more]) < off(models[bits]) < off(models[fewer])


def test_a_table_gets_the_largest_blocks_that_divide_its_rows() -> None:
    _, codes = decided(block_size=128)
    assert {name: one.format.block_size for name, one in codes.items()}[weights_alone.HEAD] == 64
    assert {one.format.block_size for name, one in codes.items() if name != weights_alone.HEAD} == {128}
    with pytest.raises(FeatherweightError, match="no block of up to 32 divides the 40 columns"):
        weights_alone._dividing(40, 32)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bits": 9}, "9 bits have no kernel; choose from 2 to 8"),
        ({"bits": 5, "exact_inputs": True}, "5 bits have no kernel; choose from 2 to 4"),
    ],
)
def test_what_has_no_kernel_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FeatherweightError, match=sentence):
        decided(**changes)


def test_files_give_back_what_was_written(tmp_path: Path) -> None:
    assert block_files.load(tmp_path) == {}
    _, codes = decided(bits=3.0, rounding="clipped")
    block_files.save(tmp_path, codes)
    found = block_files.load(tmp_path)
    assert found.keys() == codes.keys()
    for name, one in codes.items():
        assert found[name].format == one.format
        assert torch.equal(found[name].dense(), one.dense())


@pytest.mark.parametrize("name", ["llama, tied", "llama", "gpt2"])
def test_codes_give_back_the_model(name: str) -> None:
    model, codes = decided(name)
    again = tiny_decoders.model_of(name)
    weights_alone.adopt(again, codes)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_architecture_decides_how_it_is_quantized() -> None:
    model = tiny_decoders.model_of("llama, tied")
    split = Split([""] * len(ROWS), ROWS, np.ones(len(ROWS)))
    how = {"rounding": "nearest", "smoothing": 0.0, "ranges": "min-max", "max_damage": 0.0}
    how |= {"bits": 4, "exact_inputs": True}
    plan = {"linears": True, "scheme": "int4", "floats": "fp32", "token_bits": 8, "block_size": 32}
    made = quantized.decide(model, causal_lm, split, pad_id=0, plan=plan, **how)  # type: ignore[arg-type]
    assert made.spec.linears == {}
    assert {(one.format.bits, one.format.exact_inputs) for one in made.codes.values()} == {(4, True), (8, False)}
    stored = sum(one.nbytes for one in made.codes.values())
    norms = sum(4 * one.numel() for one in model.parameters() if one.ndim == 1)
    assert made.num_bytes(model) == stored + norms
    whole = quantized.decide(model, causal_lm, split, pad_id=0, plan={**plan, "linears": False}, **how)  # type: ignore[arg-type]
    assert whole.num_bytes(model) == sum(4 * one.numel() for one in model.parameters())


def test_without_an_end_nothing_is_exported() -> None:
    from tasks.ml.graph import decoder_export

    config = SimpleNamespace(eos_token_id=[5, 7])
    assert decoder_export.ends(config, SimpleNamespace(eos_token_id=2)) == [2, 5, 7]
    with pytest.raises(FeatherweightError, match="eos_token, which ends a text"):
        decoder_export.ends(SimpleNamespace(eos_token_id=None), SimpleNamespace(eos_token_id=None))
