"""The X-ray page as a browser shows it, for an encoder and a decoder, light and dark, narrow and wide."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tasks.ml.xray.architecture import Architecture
from tasks.ml.xray.cost_model import COMPONENTS
from tasks.ml.xray.roofline import Machine
from tasks.ml.xray.xray import OUTSIDE, Measurement, XRay
from tasks.reporting import page, xray
from tests.browser.looking import look

BERT = {
    "model_type": "bert", "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536, "max_position_embeddings": 512, "type_vocab_size": 2,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
MACHINE = Machine("A processor of some make × 2", "cpu", {"fp32": 2.6e11, "bf16": 1.5e11}, 2.2e10, 1.3e11)
REACHED = dict(zip(COMPONENTS, (0.4, 0.8, 0.5, 0.8, 0.75, 0.3, 0.1), strict=True))
"""Of the roofline, by component."""


def sample(config: dict[str, object], *, training: bool) -> XRay:
    """What a machine would measure that reaches so much of its roofline."""
    found = XRay("a_model", Architecture.from_config(config), MACHINE, "fp32", training, dropout=False)
    found.skipped[32, 512] = "a pass would take 12 s or more"
    for batch, length in ((1, 32), (1, 512), (32, 32)):
        rows = found.components(batch, length)
        parts = {row["component"]: row["roofline_seconds"] / REACHED[row["component"]] for row in rows}
        seconds = sum(parts.values()) + 0.001
        kept = int(found.memory(batch, length)["activations"]) if training else None
        found.measured[batch, length] = Measurement(
            seconds, 0.9 * seconds, 1.2 * seconds, 5, {**parts, OUTSIDE: 0.001}, kept
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [420, 800, 1280])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_page_fits_reads_and_answers(chromium: Browser, tmp_path: Path, kind: str, width: int, dark: bool) -> None:
    found = sample(BERT, training=False) if kind == "encoder" else sample(LLAMA, training=True)
    surroundings = page.Surroundings(datetime(2026, 1, 2, tzinfo=UTC), {"python": "3.11", "featherweight": "0.1.0"})
    path = tmp_path / "xray.html"
    path.write_text(xray.render(found, surroundings), encoding="utf-8")
    seen = look(chromium, path, width=width, dark=dark)
    assert seen["dark"] is dark
    assert seen["width"] == [width, width], "the page scrolls sideways"
    assert seen["written"] > 150
    assert seen["faint"] == [], "text with a contrast below 4.5"
    assert seen["overlaps"] == [], "labels of a chart that run into each other"
    assert seen["smallest"] >= 9, "text of a chart too small to read, in pixels"
    assert seen["marks"] > 80
    assert seen["answers"] == seen["marks"]
    assert seen["hidden"]


def test_a_machine_that_was_not_left_alone_is_remarked() -> None:
    surroundings = page.Surroundings(datetime(2026, 1, 2, tzinfo=UTC), {"python": "3.11", "featherweight": "0.1.0"})
    found = replace(sample(BERT, training=False), others_share=0.5)
    assert f'<p class="remark">{xray.disturbed(found)}</p>' in xray.render(found, surroundings)
