"""Answers of a stored model are those that it gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.ml.models.quantization_spec import SPEC_FILE, Spec
from tasks.ml.quality import evaluation


def test_a_quantized_bundle_is_not_asked_by_its_weights_alone(tmp_path: Path) -> None:
    (tmp_path / SPEC_FILE).write_text(Spec().to_json(), encoding="utf-8")
    with pytest.raises(ValueError, match="is quantized: its weights alone do not answer as it does"):
        evaluation.answers(tmp_path, tmp_path, "text-classification")
