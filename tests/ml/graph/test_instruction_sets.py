"""The same file gives the same answers on processors that multiply bytes otherwise: with VNNI and without."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.ml.graph import export as onnx_export
from tasks.ml.runtime import sessions
from tests import needs
from tests.ml import answers_elsewhere
from tests.ml.graph.test_export import export, pruned, simulation
from tests.ml.graph.test_integers import planned


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors' kernels have no such pairs")
def test_a_processor_without_vnni_answers_what_the_simulation_says(tmp_path: Path) -> None:
    needs.debian("qemu-user", shutil.which(answers_elsewhere.HASWELL[0]))
    specs = {scheme: planned(scheme) for scheme in ("int8-dynamic", "int8-static", "int4")}
    for scheme, spec in specs.items():
        (tmp_path / scheme).mkdir()
        export(pruned(), tmp_path / scheme, spec)
    generator = np.random.default_rng(0)
    rows = [generator.integers(5, 80, length).tolist() for length in (31, 17, 9, 2)]
    models = {scheme: tmp_path / scheme / onnx_export.MODEL for scheme in specs}
    answers = answers_elsewhere.ask(models, rows, emulator=answers_elsewhere.HASWELL)

    assert answers["wrong_beyond"] > 0, "the emulated processor does not do what this test is about"
    assert answers["wrong"] == 0
    feed = {name: torch.from_numpy(array) for name, array in sessions.feed(rows, pad_id=1).items()}
    for scheme, spec in specs.items():
        with torch.inference_mode():
            expected = simulation(spec)(**feed).logits.numpy()
        for kind, logits in answers[scheme].items():
            assert np.median(np.abs(logits - expected)) < 1e-4, (scheme, kind)
        here = sessions.open_session(models[scheme], provider=sessions.CPU, threads=1)
        assert np.median(np.abs(answers[scheme]["ours"] - here.run(None, sessions.feed(rows, pad_id=1))[0])) < 1e-4
