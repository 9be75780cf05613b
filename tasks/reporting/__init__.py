"""PURE. Turns the outcome of a run into a page and numbers. Knows neither Prefect nor MLflow, store nor network."""
