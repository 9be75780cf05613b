"""A decoder loses tokens in the line: what is kept of its teacher, what is compared, and what is written down of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tasks import tutoring
from tasks.contracts.base import FeatherweightError
from tasks.contracts.hyperparameters import ComputeConfig
from tasks.contracts.values import Bundle, Splits
from tasks.engine import store, tracking
from tasks.export import ExportConfig, export
from tasks.ml.data import datasets
from tasks.ml.data.splitting import SPLITS
from tasks.ml.models import modeling, tokenization
from tasks.ml.problems import causal_lm
from tasks.ml.quality import evaluation
from tasks.prune import PruningConfig, prune
from tasks.quantize import QuantizationConfig, quantize
from tasks.tutoring import TeachingConfig
from tests.ml import bpe_tokenizers, decoder_bundles
from tests.ml.bpe_tokenizers import TEXTS
from tests.ml.tiny_decoders import SIZES
from tests.tasks import tiny_models

MAX_LENGTH = 24
KEPT = 0.6
BRIEF: dict[str, Any] = {"steps": 2, "batch_size": 8, "embeddings": "frozen"}
WHOLE = {"keep_ffn": 1.0, "keep_heads": 1.0}
HOW: dict[str, Any] = {
    "teaching": TeachingConfig(temperature=1.0), "compute": ComputeConfig(precision="fp32"), "seed": 0
}  # fmt: skip


@pytest.fixture
def run_id() -> Iterator[str]:
    with tracking.pipeline_run("vocabulary", {}, run_name="vocabulary") as run_id:
        yield run_id


def publish(*, positions: int = 128) -> tuple[Bundle, Splits]:
    """A random Llama whose table has rows that no token has, and texts, some of several rows."""
    tokenizer = bpe_tokenizers.build(byte_level=True)
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": len(tokenizer) + 5, "num_hidden_layers": 1, "max_position_embeddings": positions}
    model: nn.Module = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", **sizes, tie_word_embeddings=True)
    )
    texts = [" ".join(text.split()[:12]) for text in TEXTS[:75]]
    found = dict(zip(SPLITS, (texts[:30], texts[30:35], texts[35:55], texts[55:]), strict=True))
    with store.workspace() as directory:
        decoder_bundles.write_data(directory, found, tokenizer, max_length=MAX_LENGTH)
        data = Splits(digest=store.publish(directory), problem="causal-lm")
    with store.workspace() as directory:
        modeling.save(model, tokenizer, directory)
        return Bundle(digest=store.publish(directory), format="torch", problem="causal-lm"), data


def bits(bundle: Bundle, data: Splits) -> float:
    """What the selection texts need, a byte."""
    directory = store.path(bundle.digest)
    tokenizer = tokenization.load(directory)
    split = datasets.read(store.path(data.digest), "selection", tokenizer)
    model = modeling.load(directory, bundle.problem)
    kept = evaluation.logits(model, split.input_ids, pad_id=0, problem=causal_lm)  # type: ignore[arg-type]
    return float(causal_lm.predictions(kept).sum()) / math.log(2) / float(split.targets.sum())


def test_a_decoder_goes_on_with_fewer_tokens(run_id: str) -> None:
    teacher, data = publish()
    config = PruningConfig(**BRIEF, width=WHOLE, keep_vocabulary=KEPT)
    pruned = prune(teacher, data, config, teacher=teacher, **HOW, run_id=run_id)
    assert pruned.bundle is not None
    directory = store.path(pruned.bundle.digest)
    cut, whole = tokenization.load(directory), tokenization.load(store.path(teacher.digest))
    assert len(cut) == round(KEPT * len(whole))
    described = tiny_models.read_json(directory, "config.json")
    assert described["vocab_size"] == len(cut)
    assert (described["pad_token_id"], described["eos_token_id"]) == (cut.pad_token_id, cut.eos_token_id)
    assert pruned.scorecard.quality == pytest.approx(-bits(pruned.bundle, data), rel=1e-4)

    # Agreement is told of the rows that both read alike, token by token.
    stored, again = (datasets.read(store.path(data.digest), "selection", one).input_ids for one in (None, cut))
    ids = tokenization.ids_in(cut, whole)
    alike = [ids[row].tolist() == other for row, other in zip(again, stored, strict=True)]
    assert 0 < pruned.scorecard.agreement_rows == sum(alike) < len(alike) == pruned.scorecard.num_examples
    model, master = (modeling.load(store.path(one.digest), "causal-lm") for one in (pruned.bundle, teacher))
    with torch.no_grad():
        shares = [
            np.mean(
                ids[model(input_ids=torch.tensor([row])).logits[0, :-1].argmax(-1)]
                == master(input_ids=torch.tensor([other])).logits[0, :-1].argmax(-1).numpy()
            )
            for row, other, same in zip(again, stored, alike, strict=True)
            if same
        ]
    assert pruned.scorecard.agreement_with_teacher == pytest.approx(np.mean(shares))

    training = {"training": BRIEF}
    four = QuantizationConfig(scheme="int4", embeddings="int4", **training)
    quantized = quantize(pruned.bundle, data, four, teacher=teacher, **HOW, run_id=run_id)
    assert quantized.scorecard.agreement_rows == pruned.scorecard.agreement_rows
    assert quantized.scorecard.agreement_with_unquantized is not None
    assert quantized.bundle is not None
    exported = export(quantized.bundle, ExportConfig(), run_id=run_id)
    assert exported.bundle is not None
    folder = store.path(exported.bundle.digest)
    genai = tiny_models.read_json(folder, "genai_config.json")["model"]
    assert (genai["vocab_size"], genai["eos_token_id"]) == (len(cut), [cut.eos_token_id])
    assert (genai["bos_token_id"], genai["pad_token_id"]) == (cut.bos_token_id, cut.pad_token_id)
    assert tokenization.load(folder).get_vocab() == cut.get_vocab()


def test_what_a_teacher_says_of_fewer_tokens_has_a_place_of_its_own(run_id: str) -> None:
    teacher = publish()[0]
    whole, cut, other = (tutoring.memory(teacher, vocabulary=tokens) for tokens in (None, [0, 2, 5], [0, 2, 6]))
    assert len({whole.directory, cut.directory, other.directory}) == 3
    assert isinstance(whole.directory, Path)
    assert whole.directory.parent == cut.directory.parent == other.directory.parent, "they share a limit"
    assert cut.key([1, 2]) == whole.key([1, 2]), "by its own ids"
    encoder = teacher.model_copy(update={"problem": tiny_models.PROBLEM})
    whole, cut = (tutoring.memory(encoder, vocabulary=tokens) for tokens in (None, [0, 2, 5]))
    assert whole.directory == cut.directory
    assert cut.key([1, 2]) == whole.key([2, 5])


def test_rows_that_get_too_long_are_refused(run_id: str) -> None:
    teacher, data = publish(positions=MAX_LENGTH)
    config = PruningConfig(**BRIEF, width=WHOLE, keep_vocabulary=KEPT)
    with pytest.raises(
        FeatherweightError, match=r"tokens by so small a vocabulary, and the base model has positions for 24"
    ):
        prune(teacher, data, config, teacher=teacher, **HOW, run_id=run_id)
