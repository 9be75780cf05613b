from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tasks.ml.quantization import blocks
from tasks.ml.quantization.blocks import BITS, Blocks, Format
from tasks.ml.runtime import sessions

FORMATS = [Format(bits, size, symmetric) for bits, size, symmetric in product(BITS, (16, 32), (False, True))]


def weight(rows: int = 12, columns: int = 72) -> torch.Tensor:
    """Rows with outliers, as those of language models have."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator) * torch.rand(columns, generator=generator).exp() ** 2


def product_of_the_runtime(x: torch.Tensor, weight: Blocks, folder: Path) -> np.ndarray:
    form = weight.format
    arrays = {
        "codes": weight.packed_codes().numpy(),
        "scales": weight.scales.numpy(),
        "zeros": weight.packed_zeros().numpy(),
    }
    if form.symmetric:
        del arrays["zeros"]
    node = helper.make_node(
        "MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft",
        K=weight.inputs, N=len(weight.codes), bits=form.bits, block_size=form.block_size, accuracy_level=0,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "product.onnx")
    session = onnxruntime.InferenceSession(str(folder / "product.onnx"), providers=[sessions.CPU])
    return session.run(None, {"x": x.numpy()})[0]


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("columns", [64, 72])
def test_the_runtime_reads_codes_scales_and_zero_points_as_they_are_meant(
    form: Format, columns: int, tmp_path: Path
) -> None:
    found = blocks.clipped(weight(12, columns), form)
    x = torch.randn(5, columns, generator=torch.Generator().manual_seed(1))
    wanted = x @ found.dense().T
    np.testing.assert_allclose(product_of_the_runtime(x, found, tmp_path), wanted.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_a_weight_that_is_on_a_grid_stays_as_it_is(form: Format) -> None:
    once = blocks.nearest(weight(), form).dense()
    torch.testing.assert_close(blocks.nearest(once, form).dense(), once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_each_element_is_within_half_a_step_of_what_it_was(form: Format) -> None:
    found = blocks.nearest(weight(), form)
    steps = found.scales.abs().repeat_interleave(form.block_size, dim=1)[:, :72]
    # The whole range has 2^bits − 1 steps; a symmetric one leaves out the last on the side that is not the largest.
    beyond = 1.0 if form.symmetric else 0.5
    assert ((found.dense() - weight()).abs() <= (beyond + 1e-3) * steps).all()


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_what_is_clipped_is_nearer_in_what_counts(form: Format) -> None:
    importance = torch.rand(72, generator=torch.Generator().manual_seed(2)) ** 4
    near, clipped, blind = (
        ((one.dense() - weight()).square() * importance).sum(dim=1)
        for one in (
            blocks.nearest(weight(), form),
            blocks.clipped(weight(), form, importance),
            blocks.clipped(weight(), form),
        )
    )
    assert (clipped <= near * (1 + 1e-5)).all()
    assert clipped.sum() < 0.95 * near.sum()
    assert clipped.sum() < blind.sum()


def test_blocks_of_zeros_stay_zeros() -> None:
    for form in FORMATS:
        assert not blocks.clipped(torch.zeros(3, 40), form).dense().any()


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_bytes_are_those_of_what_is_stored(form: Format) -> None:
    found = blocks.nearest(weight(8, 128), form)
    stored = found.packed_codes().nbytes + found.scales.nbytes
    stored += 0 if form.symmetric else found.packed_zeros().nbytes
    assert found.nbytes == stored == 8 * 128 * form.bits_per_weight / 8


def test_outputs_are_joined_and_parted() -> None:
    form = Format(4, 32)
    one, other = (blocks.nearest(weight(rows), form) for rows in (3, 5))
    both = blocks.joined([one, other])
    assert torch.equal(both.dense(), torch.cat([one.dense(), other.dense()]))
    assert torch.equal(both.rows(3, 8).dense(), other.dense())
    with pytest.raises(ValueError, match="different formats"):
        blocks.joined([one, blocks.nearest(weight(5), Format(2, 32))])
