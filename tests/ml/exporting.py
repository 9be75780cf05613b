"""What tests of several rooms share: small encoders, their graphs, and how far a graph is from its simulation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from tasks.ml.graph import export as onnx_export
from tasks.ml.models import families, first_token, modeling, quantization_spec
from tasks.ml.problems import text_classification
from tasks.ml.quantization import calibration, simulation
from tasks.ml.runtime import sessions

SIZES = {
    "vocab_size": 80,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
SHAPES = ((1, 1), (1, 9), (3, 5), (4, 31))
"""None is the exported (2, 8)."""


class Exported(NamedTuple):
    folder: Path
    spec: quantization_spec.Spec
    operators: onnx_export.Operators


@cache
def pruned() -> nn.Module:
    """A BERT with layers of different shapes, as pruning leaves them."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES, max_position_embeddings=512)).eval()
    family = families.of("bert")
    for layer, (heads, ffn) in zip(family.layer_list(model), [(3, 40), (1, 24)], strict=True):
        modeling.resize(family, layer, heads=heads, ffn=ffn)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
            nn.init.normal_(module.bias, std=0.2)
    return model


def export(model: nn.Module, folder: Path, spec: quantization_spec.Spec, opset: int = 20) -> onnx_export.Operators:
    return onnx_export.export_onnx(
        model, folder, spec=spec, inputs=text_classification.ONNX_INPUTS, outputs=text_classification.ONNX_OUTPUTS,
        opset=opset, first_token_only=True,
    )  # fmt: skip


def batches() -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for length in (4, 12, 20):
        ids = torch.randint(5, 80, (6, length), generator=generator)
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def planned(scheme: str) -> quantization_spec.Spec:
    """The spec of a scheme, with ranges taken from random rows."""
    spec = quantization_spec.plan(pruned(), linears=True, scheme=scheme, token_bits=8, block_size=16)
    return calibration.calibrate(pruned(), spec, batches, method="min-max") if scheme == "int8-static" else spec


def simulated_as(spec: quantization_spec.Spec, model: nn.Module | None = None) -> nn.Module:
    """The simulation of a model, or of the pruned one."""
    simulated = copy.deepcopy(model or pruned())
    simulation.simulate(simulated, spec)
    first_token.narrow(simulated)
    return simulated


def answered(model: nn.Module, feed: sessions.Feed) -> np.ndarray:
    """Logits (B, C) of a module for what a session is fed."""
    with torch.inference_mode():
        return model(**{name: torch.from_numpy(array) for name, array in feed.items()}).logits.numpy()


def errors(reference: nn.Module, directory: Path) -> np.ndarray:
    """Largest logit difference of each row over all shapes; every row but the first is padded."""
    session = sessions.open_session(directory / onnx_export.MODEL, provider=sessions.CPU, threads=1)
    generator = np.random.default_rng(0)
    found = []
    for batch, length in SHAPES:
        rows = [generator.integers(5, 80, max(1, length - 2 * row)).tolist() for row in range(batch)]
        feed = sessions.feed(rows, pad_id=1, length=length)
        found.append(np.abs(answered(reference, feed) - session.run(None, feed)[0]).max(axis=-1))
    return np.concatenate(found)


def require_finite_without_tokens(directory: Path) -> None:
    """Rows that are all padding give numbers, beside others and alone, from one token to as many as there are."""
    session = sessions.open_session(directory / onnx_export.MODEL, provider=sessions.CPU, threads=1)
    for batch, length in ((2, 5), (1, 1), (3, 512)):
        feed = sessions.feed([[5, 6, 7, 8, 9][:length], *([[]] * (batch - 1))], pad_id=0, length=length)
        for empty in (0, batch - 1):
            feed["attention_mask"][empty] = 0
            assert np.isfinite(session.run(None, feed)[0]).all(), (batch, length, empty)


def median_difference(
    model: nn.Module, tokenizer: Any, texts: list[str], folder: Path, spec: quantization_spec.Spec
) -> np.floating[Any]:
    """The median difference of logits between the graph of a model and its simulation."""
    export(model, folder, spec)
    session = sessions.open_session(folder / onnx_export.MODEL, provider=sessions.CPU, threads=1)
    feed = sessions.feed(tokenizer(texts)["input_ids"], pad_id=tokenizer.pad_token_id)
    return np.median(np.abs(session.run(None, feed)[0] - answered(simulated_as(spec, model), feed)))
