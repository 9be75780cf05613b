"""The mathematics: torch, transformers, onnx, onnxruntime. Knows neither Prefect nor MLflow."""
