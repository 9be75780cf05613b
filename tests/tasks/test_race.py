"""The stage: two tiny models in turns, one exported and one in PyTorch."""

from __future__ import annotations

from tasks.engine import quiet, store, tracking
from tasks.export import ExportConfig, export
from tasks.ml.runtime import timing
from tasks.race import FILE, race
from tests.tasks import tiny_models

QUICK = quiet.TimingConfig(device="cpu", threads=1, repeats=3, sentences=10)


def test_an_exported_model_races_its_teacher() -> None:
    splits, line = tiny_models.publish_data(), tiny_models.publish_line()
    with tracking.pipeline_run("race", {}, run_name="race") as run_id:
        exported = export(line["quantize"], ExportConfig(), run_id=run_id).bundle
        result = race(exported, splits, QUICK, rival=line["train"], run_id=run_id)
        again = race(exported, splits, QUICK, rival=line["train"], run_id=run_id)
    shipped, teacher = timing.read_paces(store.path(result.evidence) / FILE)
    assert len(shipped.latency_rounds_ms) == len(teacher.throughput_rounds_per_s) == 3
    assert 0 < shipped.latency_p50_ms < teacher.latency_p50_ms
    assert result.bundle == exported
    assert result.scorecard.latency_p50_ms == shipped.latency_p50_ms
    assert result.scorecard.throughput_per_s == shipped.throughput_per_s
    assert again.cached
    assert again.evidence == result.evidence
