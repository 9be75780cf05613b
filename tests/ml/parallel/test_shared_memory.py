"""Weights that processes share, in a group of one process: what its passes leave is what autocast leaves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from tasks.ml.parallel.shared_memory import SharedWeights

MICRO_BATCHES = torch.tensor([[[2, 7, 9, 3]], [[2, 11, 8, 3]]])


@pytest.fixture
def _group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def accumulate(model: nn.Module) -> None:
    for ids in MICRO_BATCHES:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.logsumexp(-1).sum()
        loss.backward()


@pytest.mark.usefixtures("_group")
def test_layers_with_rounded_weights_learn_what_autocast_learns(model: nn.Module) -> None:
    alone = copy.deepcopy(model)
    names = [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())
    shared = SharedWeights(model, parameters, [], torch.bfloat16)
    assert shared.rounded is not None
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert shared.rounded.layers == linear
    for _ in range(3):
        accumulate(alone)
        with shared.passing():
            assert {layer.weight.dtype for layer in linear} == {torch.bfloat16}
            accumulate(model)
        shared.exchange()
        assert [name for name, _ in model.named_parameters()] == names
        for name, mine, theirs in zip(names, parameters, alone.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None)
            if theirs.grad is None:
                continue
            assert torch.equal(mine.grad, theirs.grad), name
            for parameter in (mine, theirs):
                parameter.data -= 0.1 * parameter.grad
                parameter.grad = None
        shared.updated()
    shared.close()
    for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)


@pytest.mark.usefixtures("_group")
def test_a_weight_with_two_holders_stays_as_it_is(model: nn.Module) -> None:
    first, second = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.shape[0] == m.weight.shape[1]][
        :2
    ]
    second.weight = first.weight
    shared = SharedWeights(model, list(model.parameters()), [], torch.bfloat16)
    assert shared.rounded is not None
    assert first not in shared.rounded.layers
    assert second not in shared.rounded.layers
    shared.close()
