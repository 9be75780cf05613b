"""Every optimizer, in a real run: it learns, it holds what its description says, and it resumes to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.contracts.hyperparameters import Optimizer
from tasks.ml.training import optimizers

WIDTH = 64
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


COMPILES = "adamw-8bit"
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n == COMPILES else n for n in optimizers.OPTIMIZERS]


class Tiny(nn.Module):
    """Named like a transformer: embedding, two layers, a head."""

    def __init__(self, *, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(8, WIDTH, sparse=sparse)
        self.layer = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)) for _ in range(2))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(ids)
        for layer in self.layer:
            x = x + layer(x)
        return self.head(x)


IDS = torch.arange(6)
TARGETS = IDS % 2


def built(model: nn.Module, name: str, **changes: Any) -> optimizers.Optimizers:
    rate = 1e-3 * optimizers.describe(name).learning_rate_factor
    return optimizers.build(model, name, **{"learning_rate": rate, "weight_decay": 0.01} | changes)


def train(model: nn.Module, algorithm: optimizers.Optimizers, steps: int) -> float:
    for _ in range(steps):
        algorithm.set_learning_rate(1.0)
        loss = nn.functional.cross_entropy(model(IDS), TARGETS)
        loss.backward()
        algorithm.step(NO_SCALER)
    with algorithm.averaged(), torch.no_grad():
        return float(nn.functional.cross_entropy(model(IDS), TARGETS))


def test_the_config_offers_exactly_the_optimizers_there_are() -> None:
    assert [name.value for name in Optimizer] == list(optimizers.OPTIMIZERS)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_and_resumes_to_the_bit(name: str) -> None:
    whole = Tiny()
    algorithm = built(whole, name)
    before = nn.functional.cross_entropy(whole(IDS), TARGETS).item()
    train(whole, algorithm, 20)
    tensors = {key: tensor.clone() for key, tensor in algorithm.tensors().items()}
    scalars, weights = algorithm.scalars(), {key: value.clone() for key, value in whole.state_dict().items()}

    again = Tiny()
    resumed = built(again, name)
    resumed.prime()
    for key, tensor in resumed.tensors().items():
        tensor.copy_(tensors[key])
    resumed.restore(scalars)
    again.load_state_dict(weights)
    assert train(whole, algorithm, 10) == train(again, resumed, 10) < 0.5 * before
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_its_state_is_as_large_as_described(name: str) -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(512, 512, bias=False)])})
    algorithm = built(model, name)
    model["layers"][0].weight.grad = torch.randn(512, 512)
    algorithm.step(NO_SCALER)
    described = optimizers.describe(name).bytes_per_parameter
    assert algorithm.state_bytes() / 512**2 == pytest.approx(described, rel=0.05, abs=0.02)


def test_biases_and_norms_do_not_decay() -> None:
    model = Tiny()
    groups = built(model, "adamw").members[0].param_groups
    decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decaying == {id(p) for p in model.parameters() if p.ndim == 2}


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    model = Tiny()
    muon, adamw = built(model, "muon").members
    assert [id(p) for group in muon.param_groups for p in group["params"]] == [id(x[0].weight) for x in model.layer]
    rest = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert {id(model.embeddings.weight), id(model.head.weight)} < rest


def test_layers_below_the_head_learn_slower() -> None:
    model = Tiny()
    algorithm = built(model, "adamw", learning_rate=1.0, layer_decay=0.5)
    peaks = {id(p): group["peak"] for group in algorithm.members[0].param_groups for p in group["params"]}
    parts = [model.embeddings.weight, model.layer[0][0].weight, model.layer[1][0].weight, model.head.weight]
    assert [peaks[id(p)] for p in parts] == [0.125, 0.25, 0.5, 1.0]


def test_sparse_embeddings_learn_as_dense_ones_do_where_every_row_is_touched() -> None:
    dense, sparse = Tiny(), Tiny(sparse=True)
    for model in (dense, sparse):
        train(model, built(model, "adamw", weight_decay=0.0), 5)
    torch.testing.assert_close(sparse.embeddings.weight[:6], dense.embeddings.weight[:6], rtol=0, atol=2e-5)
    assert torch.equal(sparse.embeddings.weight[6:], Tiny().embeddings.weight[6:])


def test_gradients_of_repeated_rows_add_up_in_the_norm() -> None:
    norms = []
    for sparse in (False, True):
        model = Tiny(sparse=sparse)
        nn.functional.cross_entropy(model(torch.tensor([1, 1, 1])), torch.tensor([0, 1, 1])).backward()
        norms.append(nn.utils.get_total_norm(optimizers.gradients(model.parameters())))
    torch.testing.assert_close(norms[0], norms[1])


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(FeatherweightError, match=r"'adam' is not known; choose one of adamw, adamw-8bit"):
        optimizers.describe("adam")
