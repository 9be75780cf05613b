"""Parts of a model in real processes, joined by gloo, against the whole of it in one process on the same lesson."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from tasks.contracts.base import FeatherweightError
from tasks.ml.distillation.teaching import Weights
from tests.ml import tiny_decoders
from tests.ml.processes import EVERYTHING, FOR_MODEL, assert_same_weights, interrupt, lesson, train

DENSE = FOR_MODEL | {"embeddings": "dense"}
HOW = {"sharded": "FSDP2", "tensor": "tensor parallelism"}


def held(way: str, **changes: Any) -> dict[str, Any]:
    return {"for_model": DENSE | {"parallelism": way} | changes}


@pytest.mark.parametrize(
    ("way", "processes"),
    [("sharded", 2), *(pytest.param("tensor", count, marks=pytest.mark.slow) for count in (2, 4))],
)
def test_parts_learn_what_the_whole_learns_and_take_less_memory(model: nn.Module, way: str, processes: int) -> None:
    """Losses agree to 1e-4. At 3 rows a micro-batch, processes differ in how many they have."""
    what = lesson(model)
    alone, one, whole = train(model, what, 1, for_model=DENSE)
    together, several, part = train(model, what, processes, micro_batch=3, **held(way))
    assert part.notes["gradients"] == HOW[way]
    assert several.losses.keys() == one.losses.keys() == set(range(1, 13))
    assert several.evaluations == one.evaluations == [6, 12]
    assert several.losses == pytest.approx(one.losses, rel=1e-4)
    assert_same_weights(together, alone, model)
    for name in ("weights_mb", "optimizer_state_mb"):
        if way == "sharded":
            assert part.notes[name] == pytest.approx(whole.notes[name] / processes, rel=0.03), name
        else:  # norms, positions and the head are whole in each
            assert whole.notes[name] / processes < part.notes[name] < 0.7 * whole.notes[name], name


@pytest.mark.parametrize("name", ["llama, tied", pytest.param("llama", marks=pytest.mark.slow)])
def test_parts_of_a_decoder_learn_what_the_whole_learns(name: str) -> None:
    """With a head that is the token table, one parameter in two places, and with one of its own."""
    model = tiny_decoders.model_of(name)
    what = replace(lesson(model), problem="causal-lm")
    alone, one, whole = train(model, what, 1, for_model=DENSE)
    together, several, part = train(model, what, 2, micro_batch=3, **held("sharded"))
    assert several.losses == pytest.approx(one.losses, rel=1e-4)
    assert_same_weights(together, alone, model)
    assert part.notes["weights_mb"] == pytest.approx(whole.notes["weights_mb"] / 2, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [EVERYTHING, Weights(hidden=1.0)])
@pytest.mark.parametrize("way", HOW)
def test_parts_learn_from_a_teacher_what_they_compute_again(model: nn.Module, way: str, weights: Weights) -> None:
    """Activations of the parts are checkpointed, those of the whole are not."""
    what = lesson(model, tutored=True, weights=weights)
    alone, one, _ = train(model, what, 1, for_model=DENSE)
    together, several, _ = train(model, what, 2, micro_batch=3, **held(way, activation_checkpointing=True))
    assert several.losses == pytest.approx(one.losses, rel=1e-4)
    assert_same_weights(together, alone, model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"), [("muon", "sharded"), ("muon", "tensor"), ("lion", "tensor"), ("schedule-free-adamw", "tensor")]
)
def test_other_optimizers_train_parts(model: nn.Module, name: str, way: str) -> None:
    """Element by element where some weights are parts and some are whole; matrices as a whole."""
    what = lesson(model)
    options = {"optimizer": name, "learning_rate": 3e-4, "layer_decay": 0.9}
    _, one, _ = train(model, what, 1, for_model=DENSE, **options)
    _, several, _ = train(model, what, 2, **held(way), **options)
    assert several.losses == pytest.approx(one.losses, rel=1e-3)


@pytest.mark.slow
def test_adapters_are_sharded_and_merged(model: nn.Module) -> None:
    what = lesson(model)
    alone, one, _ = train(model, what, 1, for_model=DENSE | {"lora_rank": 2})
    together, several, _ = train(model, what, 2, **held("sharded", lora_rank=2))
    assert several.losses == pytest.approx(one.losses, rel=1e-3)
    assert_same_weights(together, alone, model)


def leave_a_damaged_one(checkpoint: Path) -> None:
    """A newer checkpoint of which one file is cut short."""
    good, bad = checkpoint / "step-000000006", checkpoint / "step-000000007"
    shutil.copytree(good, bad)
    shutil.copy(good.with_suffix(".json"), bad.with_suffix(".json"))
    file = min(bad.iterdir())
    file.write_bytes(file.read_bytes()[:-8])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("sharded", 2), ("replicated", 1)),
        (("sharded", 2), ("sharded", 4)),
        (("tensor", 2), ("sharded", 2)),
        (("replicated", 2), ("tensor", 2)),
        (("replicated", 1), ("sharded", 2)),
    ],
)
def test_a_run_resumes_in_other_parts_and_passes_over_a_damaged_checkpoint(
    model: nn.Module, tmp_path: Path, before: tuple[str, int], after: tuple[str, int]
) -> None:
    what = lesson(model)
    whole, one, alone = train(model, what, 1, for_model=DENSE)
    way, processes = before
    interrupt(model, what, processes, tmp_path, **held(way))
    leave_a_damaged_one(tmp_path)
    way, processes = after
    resumed, recorder, history = train(model, what, processes, checkpoint=tmp_path, **held(way))
    assert recorder.first_step == history.notes["resumed_at_step"] == 6
    assert recorder.losses == pytest.approx({step: one.losses[step] for step in range(7, 13)}, rel=1e-4)
    assert_same_weights(resumed, whole, model)
    if way == "sharded":
        assert history.notes["weights_mb"] == pytest.approx(alone.notes["weights_mb"] / processes, rel=0.03)


@pytest.mark.slow
def test_heads_that_cannot_be_dealt_out_are_an_error(model: nn.Module) -> None:
    config = BertConfig(
        vocab_size=model.config.vocab_size,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=32,
    )
    odd = BertForSequenceClassification(config)
    with pytest.raises(FeatherweightError, match=r"parallelism: tensor.*layer 0 has 3 for 2: choose another num_proc"):
        train(odd, lesson(odd), 2, **held("tensor"))


@pytest.mark.slow
def test_fp16_is_for_processes_that_see_all_gradients(model: nn.Module) -> None:
    """Others would not leave out the same steps: those in which a gradient overflows while its scale is found."""
    what = lesson(model)
    _, several, history = train(model, what, 2, **held("replicated"), precision="fp16")
    assert history.notes["gradients"] == "DistributedDataParallel"
    assert several.losses.keys() == set(range(1, 13))
    with pytest.raises(FeatherweightError, match=r"precision: fp16 is not for processes .* choose bf16 or fp32"):
        train(model, what, 2, **held("sharded"), precision="fp16")
