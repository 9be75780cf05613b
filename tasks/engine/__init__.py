"""What makes a function a stage: its cache key, its run in MLflow, the store that its results are published to."""
