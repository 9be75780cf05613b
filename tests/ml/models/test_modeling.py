"""Models on disk are built without drawing weights that the file has, whatever other threads build meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tasks.ml import problem
from tasks.ml.models import modeling
from tests.ml import tiny_decoders
from tests.tasks import tiny_models

WAIT_S = 60


class Held:
    """Builds the model of a problem in a thread, and holds it at its end until it may go on."""

    def __init__(self, bundle: Path) -> None:
        self.inside, self.go = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=modeling.skeleton, args=(bundle, self))
        self.thread.start()
        assert self.inside.wait(WAIT_S)

    def build(self, config: Any) -> nn.Module:
        model = problem.problem_of(tiny_models.PROBLEM).build(config)
        self.inside.set()
        assert self.go.wait(WAIT_S)
        return model

    def leave(self) -> None:
        self.go.set()
        self.thread.join()


def is_initialized() -> bool:
    """Whether a layer that is made now gets the numbers that it has in PyTorch; memory is not zeros here."""
    filled = [torch.full((64,), 7.0) for _ in range(64)]
    del filled
    norm = nn.LayerNorm(64)
    return bool((norm.weight == 1).all()) and not norm.bias.any() and nn.Linear(64, 64).weight.std().item() > 0.01


def test_other_threads_draw_what_they_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that build side by side, and end in the order in which they began."""
    modeling.save_model(tiny_models.model(), tmp_path)
    monkeypatch.setattr(modeling, "problem_of", lambda one: one)
    before = nn.init.zeros_, nn.init.normal_
    first, second = Held(tmp_path), Held(tmp_path)
    during = is_initialized()
    first.leave()
    second.leave()
    assert during
    assert (nn.init.zeros_, nn.init.normal_) == before
    assert is_initialized()


@pytest.mark.parametrize("causal", [False, True])
def test_building_draws_nothing(tmp_path: Path, causal: bool) -> None:
    model = tiny_decoders.model_of("llama") if causal else tiny_models.model()
    modeling.save_model(model, tmp_path)
    state = torch.get_rng_state()
    built = modeling.skeleton(tmp_path, "causal-lm" if causal else tiny_models.PROBLEM)
    assert torch.equal(torch.get_rng_state(), state)
    assert modeling.tied(built) == modeling.tied(model)
    assert built.state_dict().keys() == model.state_dict().keys()
