"""One of several processes that train together: joins the others, computes its share, and as the first one reports."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from tasks.ml import machine
from tasks.ml.jobs import elastic
from tasks.ml.jobs.lessons import Lesson
from tasks.ml.models import modeling
from tasks.ml.parallel import world
from tasks.ml.quantization import simulation
from tasks.ml.training import trainer


class _Reporter:
    """The ``Observer`` of process 0: one JSON line per event, for the parent to read; of any other: silent."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _say(self, event: str, **values: Any) -> None:
        if world.rank() == 0:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **values}) + "\n")

    def start(self, *, total_steps: int, first_step: int) -> None:
        self._say("start", total_steps=total_steps, first_step=first_step)

    def step(self, step: int, point: Mapping[str, float]) -> None:
        self._say("step", step=step, point=dict(point))

    def evaluation(self, step: int, point: Mapping[str, float]) -> None:
        self._say("evaluation", step=step, point=dict(point))


def _whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model, of which each process may hold a part, in process 0; in others nothing."""
    weights = {}
    for name, tensor in model.state_dict().items():
        whole = world.whole(tensor)
        if world.rank() == 0:
            weights[name] = whole.cpu()
    return weights


def main(job: Path) -> None:
    """Trains the model of a job together with the other processes; process 0 leaves the weights and the history."""
    about = json.loads((job / "job.json").read_text(encoding="utf-8"))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        model = simulation.load(job / "model", about["problem"]).to(device)
        lesson = Lesson.read(job / "lesson", device)
        # Each process drops other elements.
        trainer.seed_everything(about["for_trainer"]["seed"] + world.rank())
        history = lesson.learn(
            model,
            for_model=about["for_model"],
            observer=_Reporter(job / elastic.EVENTS),
            checkpoint=Path(about["checkpoint"]) if about["checkpoint"] else None,
            **about["for_trainer"],
        )
        weights = _whole_weights(model)
        if world.rank() == 0:
            modeling.save_model(model, job / "model", weights)
            (job / elastic.RESULT).write_text(json.dumps({"history": asdict(history)}), encoding="utf-8")
    except tuple(elastic.ERRORS.values()) as error:
        if world.rank() == 0:
            said = {"error": type(error).__name__, "message": str(error)}
            (job / elastic.RESULT).write_text(json.dumps(said), encoding="utf-8")
        raise
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    machine.end_with_parent()
    main(Path(sys.argv[1]))
