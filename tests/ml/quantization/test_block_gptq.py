from __future__ import annotations

import pytest
import torch

from tasks.ml.quantization import block_gptq, blocks, gptq
from tasks.ml.quantization.blocks import Format

FORMATS = [Format(2, 16), Format(4, 32), Format(4, 32, symmetric=True), Format(4, 128), Format(8, 32)]


def weight(rows: int = 12, columns: int = 160) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def hessian(columns: int = 160) -> torch.Tensor:
    """Of inputs whose channels go together, as those of real layers do, and of which some are much larger."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 16, generator=generator) @ torch.randn(16, columns, generator=generator)
    x = x + 0.3 * torch.randn(400, columns, generator=generator)
    x[:, ::20] *= 5
    return x.T @ x


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_no_output_is_worse_than_rounded_alone_and_all_together_are_much_better(form: Format) -> None:
    found = block_gptq.round_weight(weight(), hessian(), form).dense()
    alone = blocks.clipped(weight(), form, hessian().diagonal()).dense()
    ours, theirs = (gptq.layer_error(weight(), one, hessian()) for one in (found, alone))
    assert (ours <= theirs).all()
    assert ours.sum() < 0.5 * theirs.sum()


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_inputs_that_know_nothing_of_each_other_are_rounded_alone(form: Format) -> None:
    found = block_gptq.round_weight(weight(), torch.eye(160), form)
    torch.testing.assert_close(found.dense(), blocks.clipped(weight(), form).dense())


@pytest.mark.parametrize("form", [Format(4, 32), Format(2, 256)], ids=str)
@pytest.mark.parametrize("columns", [288, 300])
def test_corrections_that_are_made_together_are_those_made_one_by_one(
    form: Format, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = block_gptq.round_weight(weight(12, columns), hessian(columns), form)
    monkeypatch.setattr(block_gptq, "LAZY", 1024)
    one_by_one = block_gptq.round_weight(weight(12, columns), hessian(columns), form)
    error = (gptq.layer_error(weight(12, columns), one.dense(), hessian(columns)) for one in (together, one_by_one))
    torch.testing.assert_close(*error, rtol=1e-2, atol=0)


def test_inputs_that_are_never_there_do_no_harm() -> None:
    silent = hessian()
    silent[5], silent[:, 5] = 0, 0
    for form in FORMATS:
        assert block_gptq.round_weight(weight(), silent, form).dense().isfinite().all()
