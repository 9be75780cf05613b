"""What holds for a lesson however often it is interrupted or repeated."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.ml.data.datasets import Split
from tasks.ml.distillation import answers, teaching
from tasks.ml.jobs.lessons import Lesson
from tasks.ml.models import families, first_token, modeling
from tasks.ml.tokens import Partly, counted
from tasks.ml.training import precision, trainer
from tests.ml.processes import FOR_MODEL, FOR_TRAINER, Recorder, assert_same_weights, interrupt, lesson, train

BITS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@pytest.mark.parametrize(("first", "second"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_a_resumed_run_keeps_the_precision_that_was_measured_at_its_start(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    def faster(name: str) -> None:
        monkeypatch.setattr(precision, "matmul_rate", lambda _, dtype: 9.0 if BITS[dtype] == name else 1.0)

    what = lesson(model)
    faster(first)
    whole, _, history = train(model, what, 1, precision="auto")
    interrupt(model, what, 1, tmp_path, precision="auto")
    faster(second)
    resumed, recorder, again = train(model, what, 1, tmp_path, precision="auto")
    assert recorder.first_step == 6
    assert again.notes["precision"] == history.notes["precision"]
    assert again.notes["precision"].startswith(first)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_trainings_that_belong_together_keep_what_the_first_chose(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first left no checkpoint, and the next has a directory of its own: rounds of pruning."""
    rates = iter([(1.0, 9.0), (9.0, 1.0)])
    found = []
    for number in range(2):
        fp32, bf16 = next(rates)
        monkeypatch.setattr(
            precision, "matmul_rate", lambda _, dtype, fp32=fp32, bf16=bf16: bf16 if dtype == torch.bfloat16 else fp32
        )
        folder = tmp_path / str(number)
        *_, history = train(model, lesson(model), 1, folder, precision="auto", chosen_in=str(tmp_path))
        found.append(history.notes["precision"])
    assert found[0] == found[1]
    assert found[0].startswith("bf16")
    (tmp_path / precision.FILE).write_text("[]")
    assert precision.of_run("fp32", torch.device("cpu"), tmp_path).autocast is None, "damaged: chosen anew"


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_choice_is_read_as_it_was_written(name: str) -> None:
    choice = precision.choose(name, torch.device("cpu"))
    assert precision.Choice.from_json(choice.to_json()) == choice


def asked(teacher: nn.Module) -> list[list[list[int]]]:
    """The texts that a teacher computes from now on, question by question."""
    questions: list[list[list[int]]] = []
    teacher.register_forward_pre_hook(
        lambda _, __, given: questions.append(given["input_ids"].tolist()), with_kwargs=True
    )
    return questions


class Killing(Recorder):
    """Copies, after a step, what a run that is killed then would leave."""

    def __init__(self, folder: Path, after: int) -> None:
        super().__init__()
        self.folder, self.after = folder, after

    def step(self, step: int, point: Mapping[str, float]) -> None:
        if step == self.after:
            shutil.copytree(self.folder, self.folder.with_name("left"))


@pytest.mark.parametrize("file_bytes", [answers.FILE_BYTES, 40])
def test_a_tutored_run_that_was_killed_goes_on_to_the_bit(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: int
) -> None:
    """Its teacher is asked what it would have been asked, in the same company, wherever files of answers end: 40 bytes
    are the logits of five texts, and three are asked about at once."""
    monkeypatch.setattr(answers, "FILE_BYTES", file_bytes)

    def learn(folder: Path, observer: Recorder) -> tuple[nn.Module, trainer.History, list[list[list[int]]]]:
        what = lesson(model, tutored=True)
        assert what.tutor is not None
        tutor = replace(what.tutor, memory=answers.Memory(folder / "answers" / "teacher"))
        student, questions = copy.deepcopy(model), asked(tutor.teacher)
        trainer.seed_everything(0)
        options: dict[str, Any] = FOR_TRAINER | {"saves_every": 0.0, "micro_batch": 3}
        history = replace(what, tutor=tutor).learn(
            student, for_model=FOR_MODEL, observer=observer, checkpoint=folder / "checkpoints", **options
        )
        return student, history, questions

    whole, uninterrupted, questions = learn(tmp_path / "run", Killing(tmp_path / "run", after=4))
    recorder = Recorder()
    resumed, history, later = learn(tmp_path / "left", recorder)
    assert recorder.first_step == history.notes["resumed_at_step"] == 3
    assert later == questions[-len(later) :]
    assert 0 < len(later) < len(questions)
    losses = [[point["loss"] for point in each.points] for each in (uninterrupted, history)]
    assert losses[0] == losses[1]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def tokens_in_the_last_layer(model: nn.Module) -> set[int]:
    """How many tokens of a text the last layer's feed-forward network computes from now on."""
    found: set[int] = set()
    last = families.of_model(model).layer_list(model)[-1]
    last.get_submodule("output.dense").register_forward_pre_hook(lambda _, given: found.add(given[0].shape[1]))
    return found


@pytest.mark.parametrize("heads", [4, 0])
def test_of_a_lesson_about_answers_the_last_layer_computes_the_first_token_and_learns_as_of_all(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, heads: int
) -> None:
    """Also where pruning left the last layer no attention."""
    last = families.of_model(model).layer_list(model)[-1]
    modeling.resize(families.of_model(model), last, heads=heads, ffn=64)
    what = lesson(model, tutored=True, weights=teaching.Weights(labels=0.5))
    runs, widths = [], []
    for narrowed in (first_token.narrowed, nullcontext):
        monkeypatch.setattr(first_token, "narrowed", narrowed)
        student = copy.deepcopy(model)
        widths.append(tokens_in_the_last_layer(student))
        runs.append(train(student, what, 1))
    assert widths[0] == {1}
    assert max(widths[1]) == max(map(len, what.input_ids))
    (narrow, one, history), (whole, other, expected) = runs
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    norms = [[point["gradient_norm"] for point in each.points] for each in (history, expected)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert_same_weights(narrow, whole, model)


@pytest.mark.parametrize("part", ["attention", "maps"])
def test_what_is_compared_at_every_token_is_computed_there(model: nn.Module, part: str) -> None:
    what = lesson(model, tutored=True, weights=teaching.Weights(**{part: 1.0}))
    student = copy.deepcopy(model)
    widths = tokens_in_the_last_layer(student)
    train(student, what, 1, steps=1)
    assert 1 not in widths


def test_hidden_states_of_a_last_layer_are_compared_where_a_head_reads_them(model: nn.Module) -> None:
    student = copy.deepcopy(model)
    widths = tokens_in_the_last_layer(student)
    train(student, lesson(model, tutored=True, weights=teaching.Weights(hidden=1.0)), 1, steps=1)
    assert widths == {1}


def test_a_teacher_holds_rounded_weights_only_while_it_teaches(model: nn.Module) -> None:
    """What it says is what autocast would have it say."""
    what = lesson(model, tutored=True, weights=teaching.Weights(hidden=1.0))
    assert what.tutor is not None
    query = what.tutor.teacher.bert.encoder.layer[0].attention.self.query  # type: ignore[union-attr, index]
    whole, batch = query.weight.clone(), {"input_ids": torch.tensor(what.input_ids[:1])}
    chosen = precision.choose("bf16", torch.device("cpu"))
    with precision.autocast(chosen, torch.device("cpu")), torch.no_grad():
        expected = what.tutor.teacher(**batch).logits
        with what.step_loss(copy.deepcopy(model), precision=chosen):
            assert query.weight.dtype == torch.bfloat16
            assert torch.equal(what.tutor.teacher(**batch).logits, expected)
    assert torch.equal(query.weight, whole)


@pytest.mark.parametrize("processes", [1, 2])
def test_no_steps_leave_a_model_as_it_was(model: nn.Module, tmp_path: Path, processes: int) -> None:
    what = lesson(model, tutored=True)
    same, recorder, history = train(model, what, processes, tmp_path, steps=0, compile="auto", max_memory=50.0)
    assert recorder.first_step == 0
    assert recorder.losses == {}
    assert history.points == history.evaluations == []
    assert history.notes["total_steps"] == history.notes["training_s"] == 0
    assert not same.training
    for (name, a), b in zip(model.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_teacher_is_left_as_it_was_however_often_it_taught(model: nn.Module) -> None:
    what = lesson(model, tutored=True)
    assert what.tutor is not None

    def hooks(taught: nn.Module) -> int:
        return sum(len(module._forward_hooks) for module in taught.modules())

    for _ in range(2):
        student, _, _ = train(model, what, 1, epochs=0.2)
        assert hooks(what.tutor.teacher) == hooks(student) == 0
    broken: Lesson = replace(what, input_ids=[[2, 10**6, 3]] * len(what.input_ids))
    with pytest.raises(IndexError):
        train(model, broken, 1)
    assert hooks(what.tutor.teacher) == 0


def test_other_processes_learn_what_counts_and_no_more(tmp_path: Path) -> None:
    rows = [Partly([5, 6, 7], [0, 1, 1]), [8, 9], Partly([3], [0])]
    targets = np.array([3, 2, 1])
    Lesson("causal-lm", 0, rows, targets, Split([""] * 2, rows[:2], targets[:2])).write(tmp_path)
    found = Lesson.read(tmp_path, torch.device("cpu"))
    assert found.input_ids == rows
    assert [list(counted(row)) for row in found.input_ids] == [[0, 1, 1], [1, 1], [0]]
    assert [list(counted(row)) for row in found.selection.input_ids] == [[0, 1, 1], [1, 1]]
