"""The mathematics: torch, transformers, onnx, onnxruntime. Knows neither Prefect nor MLflow."""

import logging

for _name in ("torchao", "torch.utils._pytree"):  # transformers imports torchao, which says what GPUs here lack
    logging.getLogger(_name).setLevel(logging.ERROR)
