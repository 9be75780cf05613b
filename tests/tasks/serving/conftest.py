"""What tests of serving share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.serving.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(serving: Path) -> Predictor:
    """Of the bundle that a module builds as ``serving``."""
    return Predictor(serving, threads=1)
