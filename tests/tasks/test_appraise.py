"""The stage: a tiny candidate and its teacher on the selection split, with the test split out of reach."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from tasks.appraise import AppraisalConfig, appraise
from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Bundle, Splits
from tasks.engine import store, tracking
from tasks.export import ExportConfig, export
from tests.tasks import tiny_models

QUICK = AppraisalConfig(device="cpu", threads=1, repeats=3, sentences=10)


@pytest.fixture
def run_id() -> Iterator[str]:
    with tracking.pipeline_run("appraise", {}, run_name="appraise") as run_id:
        yield run_id


def without_test(splits: Splits) -> Splits:
    """The same data, but for its test split."""
    with store.workspace() as directory:
        kept = shutil.ignore_patterns(store.FILES, "test.arrow")
        shutil.copytree(store.path(splits.digest), directory, ignore=kept, dirs_exist_ok=True)
        return Splits(digest=store.publish(directory), problem=splits.problem)


def test_a_candidate_is_measured_without_the_test_split(run_id: str) -> None:
    splits, line = without_test(tiny_models.publish_data()), tiny_models.publish_line()
    candidate = export(line["quantize"], ExportConfig(), run_id=run_id).bundle
    assert candidate is not None

    def appraised(source: Bundle, **more: Bundle) -> tuple[dict[str, float], pa.Table]:
        result = appraise(source, splits, QUICK, teacher=line["train"], run_id=run_id, **more)
        assert result.scorecard.split == "selection"
        assert result.bundle == source
        rows = pa.ipc.open_file(store.path(result.evidence) / "selection.arrow").read_all()
        return result.scorecard.metrics(), rows

    card, rows = appraised(candidate, simulated=line["quantize"])
    assert rows.num_rows == card["num_examples"] == 60
    said = {name: rows[f"prediction_{name}"].to_numpy() for name in ("teacher", "candidate")}
    assert card["agreement_with_teacher"] == (said["teacher"] == said["candidate"]).mean() < 1
    assert card["accuracy"] == (said["candidate"] == rows["target"].to_numpy()).mean()
    assert card["size_mb"] == (store.path(candidate.digest) / "model.onnx").stat().st_size / 1e6
    assert 0 < card["latency_p50_ms"] <= card["latency_p99_ms"]
    assert card["throughput_per_s"] > 0
    assert card["label_flips"] == 0

    own, rows = appraised(line["train"])
    assert own["agreement_with_teacher"] == 1
    assert np.array_equal(rows["score_teacher"].to_numpy(), rows["score_candidate"].to_numpy())
    assert own["num_parameters"] > card["num_parameters"]

    again = appraise(candidate, splits, QUICK, teacher=line["train"], simulated=line["quantize"], run_id=run_id)
    assert again.cached


def test_what_was_exported_from_something_else_fails(run_id: str) -> None:
    splits, line = tiny_models.publish_data(), tiny_models.publish_line()
    candidate = export(line["quantize"], ExportConfig(), run_id=run_id).bundle
    assert candidate is not None
    with pytest.raises(FeatherweightError, match=r"of 78 answers .* differ"):
        appraise(candidate, splits, QUICK, teacher=line["train"], simulated=line["train"], run_id=run_id)
