"""What tests of other shapes share: a bundle with its integer graph, beside the simulation of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.ml import first_token, onnx_export, quantization, runtime
from tasks.ml.problems import text_classification


def median_difference(
    model: nn.Module, tokenizer: Any, texts: list[str], folder: Path, spec: quantization.Spec
) -> np.floating[Any]:
    """Exports a model, leaves it as its simulation, and returns the median difference of logits between the two."""
    onnx_export.export_onnx(
        model, folder, spec=spec, inputs=text_classification.ONNX_INPUTS,
        outputs=text_classification.ONNX_OUTPUTS, opset=20, first_token_only=True,
    )  # fmt: skip
    quantization.simulate(model, spec)
    first_token.narrow(model)
    session = runtime.open_session(folder / onnx_export.MODEL, provider=runtime.CPU, threads=1)
    feed = runtime.feed(tokenizer(texts)["input_ids"], pad_id=tokenizer.pad_token_id)
    expected = model(**{name: torch.from_numpy(array) for name, array in feed.items()}).logits.detach().numpy()
    return np.median(np.abs(session.run(None, feed)[0] - expected))
