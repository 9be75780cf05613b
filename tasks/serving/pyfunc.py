"""What MLflow loads and serves: a script in the sense of "models from code", so that nothing is pickled.

It takes the predictor out of the serving bundle that it is logged with. ``featherweight serve`` puts its own there.
``FEATHERWEIGHT_PROVIDER`` and ``FEATHERWEIGHT_THREADS`` choose the execution provider and the CPU threads of a server.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Served(PythonModel):
    """Column ``text`` or ``messages`` → a column for each field of the predictor's answers."""

    def load_context(self, context: Any) -> None:
        bundle = Path(context.artifacts["bundle"])
        spec = importlib.util.spec_from_file_location("featherweight_predictor", bundle / "predictor.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.predictor = module.Predictor(
            bundle,
            provider=os.environ.get("FEATHERWEIGHT_PROVIDER", ""),
            threads=int(os.environ.get("FEATHERWEIGHT_THREADS", "0")),
        )

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        texts = model_input[self.predictor.answers.INPUT].tolist()
        return pd.DataFrame(self.predictor.predict(texts, **self._options(params)))

    def predict_stream(
        self, context: Any, model_input: dict[str, Any], params: dict[str, Any] | None = None
    ) -> Iterator[str]:
        """Pieces of what continues one text; only models that generate are logged as ones that stream."""
        text = model_input[self.predictor.answers.INPUT]
        found: Iterator[str] = self.predictor.stream(text, **self._options(params))
        return found

    def _options(self, params: dict[str, Any] | None) -> dict[str, int]:
        """What the signature knows of what was asked, as plain numbers."""
        given = params or {}
        return {name: int(given[name]) for name in self.predictor.answers.options if given.get(name) is not None}


set_model(Served())
