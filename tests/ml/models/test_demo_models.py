"""Demo models: the same each time, whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import demo_models, inspection, locators, modeling, tokenization
from tasks.ml.problems import causal_lm


def test_the_tiny_decoder_is_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for name in ("one", "other"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        directory = locators.locate("demo:tiny-llama")
        assert [path.name for path in directory.parent.iterdir()] == ["tiny-llama"], "nothing half-made is left"
        digests.add(locators.directory_digest(directory))
    assert len(digests) == 1
    inspection.require_finite(inspection.inspect(directory))
    model, tokenizer = causal_lm.load_base(directory, []), tokenization.load(directory)
    assert modeling.num_parameters(model) < 1e6
    assert tokenizer.decode(tokenizer("Fünf Äpfel").input_ids) == "Fünf Äpfel"


def test_a_demo_model_that_there_is_not_is_said() -> None:
    with pytest.raises(FeatherweightError, match="there is no demo model 'gpt-9'; there is tiny-llama, smollm2"):
        demo_models.directory("gpt-9", field="base_model")
