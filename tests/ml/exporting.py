"""What tests of other shapes share: a bundle with its integer graph, beside the simulation of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.ml.graph import export
from tasks.ml.models import first_token, quantization_spec
from tasks.ml.problems import text_classification
from tasks.ml.quantization import simulation
from tasks.ml.runtime import sessions


def median_difference(
    model: nn.Module, tokenizer: Any, texts: list[str], folder: Path, spec: quantization_spec.Spec
) -> np.floating[Any]:
    """Exports a model, leaves it as its simulation, and returns the median difference of logits between the two."""
    export.export_onnx(
        model, folder, spec=spec, inputs=text_classification.ONNX_INPUTS,
        outputs=text_classification.ONNX_OUTPUTS, opset=20, first_token_only=True,
    )  # fmt: skip
    simulation.simulate(model, spec)
    first_token.narrow(model)
    session = sessions.open_session(folder / export.MODEL, provider=sessions.CPU, threads=1)
    feed = sessions.feed(tokenizer(texts)["input_ids"], pad_id=tokenizer.pad_token_id)
    expected = model(**{name: torch.from_numpy(array) for name, array in feed.items()}).logits.detach().numpy()
    return np.median(np.abs(session.run(None, feed)[0] - expected))
