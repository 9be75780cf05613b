"""A Triton model repository, parsed with Triton's own definitions."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tasks.contracts.base import FeatherweightError
from tasks.engine import disk, store, tracking
from tasks.register import serving_bundle
from tasks.serving import triton
from tests.tasks.shippable import RECIPE, outcome


@pytest.fixture
def bundle() -> Path:
    with tracking.pipeline_run("polarity", RECIPE, run_name="first") as run_id:
        return store.path(serving_bundle("polarity", outcome(run_id), run_id))


def parse(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_the_configuration_is_one_and_fits_the_model(bundle: Path, tmp_path: Path) -> None:
    folder = triton.write(bundle, tmp_path / "repository", "polarity", 3)
    config = parse(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("polarity", "onnxruntime", triton.MAX_BATCH)
    assert config.HasField("dynamic_batching")
    session = onnxruntime.InferenceSession(folder / "3" / "model.onnx", providers=["CPUExecutionProvider"])
    types = {"TYPE_INT64": "tensor(int64)", "TYPE_FP32": "tensor(float)"}
    for described, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [one.name for one in described] == [one.name for one in real]
        names = [model_config_pb2.DataType.Name(one.data_type) for one in described]
        assert [types[name] for name in names] == [one.type for one in real]
        assert [list(one.dims) for one in described] == [
            [size if isinstance(size, int) else -1 for size in one.shape[1:]] for one in real
        ]


def test_the_warm_up_requests_are_ones_that_the_model_answers(bundle: Path, tmp_path: Path) -> None:
    folder = triton.write(bundle, tmp_path, "polarity", 1)
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    warmups = parse(folder).model_warmup
    assert [warmup.batch_size for warmup in warmups] == [1, triton.MAX_BATCH]
    for warmup in warmups:
        feed = {
            name: np.zeros((warmup.batch_size, *tensor.dims), dtype=np.int64) for name, tensor in warmup.inputs.items()
        }
        assert session.run(None, feed)[0].shape[0] == warmup.batch_size


def _is_never_gone(bundle: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two steps a server finds a whole model; what a killed process left goes, and its own never stays."""
    rename = Path.rename

    def watched(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        assert (repository / "polarity" / "config.pbtxt").is_file()
        return moved

    (repository / ".new-x7d2/polarity/2").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", watched)
        triton.write(bundle, repository, "polarity", 3)
    assert [path.name for path in repository.iterdir()] == ["polarity"]

    def full(*_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "exchange", full)
        with pytest.raises(OSError, match="No space left"):
            triton.write(bundle, repository, "polarity", 4)
    assert [path.name for path in repository.iterdir()] == ["polarity"]
    assert (repository / "polarity" / "3" / "model.onnx").is_file()


def test_written_again_it_is_replaced_and_what_is_not_ours_is_not(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    triton.write(bundle, repository, "polarity", 1)
    folder = triton.write(bundle, repository, "polarity", 2)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["2"]
    assert [path.name for path in repository.iterdir()] == ["polarity"]
    _is_never_gone(bundle, repository, monkeypatch)
    (repository / "other").mkdir()
    with pytest.raises(FeatherweightError, match="was not written by Featherweight"):
        triton.write(bundle, repository, "other", 1)
