"""A serving bundle as an entry of a Triton model repository, for its ONNX Runtime backend.

Triton takes token ids and gives logits: a client encodes with the bundle's ``tokenizer.json``, and what logits mean is
said in ``manifest.json`` and done in ``predictor.py``, which are put beside the configuration.
Rows of one request are padded to one length, of one token at least, because onnxruntime ends its process on none; the
dynamic batcher joins requests of equal length.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tasks.contracts.base import FeatherweightError
from tasks.engine import disk
from tasks.ml import paths

MAX_BATCH = 64
QUEUE_DELAY_US = 500
"""How long a request may wait for others to join its batch."""
TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}
SCALED_BY_BATCH = "# Activations are scaled by the batch: a row's answer depends slightly on the rows beside it."
COMPANIONS = ("tokenizer.json", "manifest.json", "predictor.py", "README.md")


def write(bundle: Path, repository: Path, name: str, version: int) -> Path:
    """Writes ``NAME/config.pbtxt`` and ``NAME/VERSION/model.onnx`` and returns ``NAME``.

    Raises:
        FeatherweightError: the repository already has a model of this name that something else wrote; or the model
            continues texts, with a cache that Triton's ONNX Runtime backend does not keep between tokens.
    """
    from tasks.serving import predictor  # not before ``guarded`` forked: onnxruntime starts threads

    target = repository / name
    if target.exists() and not (target / "manifest.json").is_file():
        raise FeatherweightError(f"{target} exists and was not written by Featherweight; choose another directory")
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    if predictor.answers(manifest).GENERATES:
        raise FeatherweightError(
            f"--to triton: {name} continues texts token by token with a cache, which Triton's ONNX Runtime backend "
            f"does not keep; serve it with `featherweight serve {name}`, or open its bundle with onnxruntime-genai"
        )
    repository.mkdir(parents=True, exist_ok=True)
    with disk.held(repository):
        for left in repository.glob(f"{FRESH}*"):  # by a process that was killed
            shutil.rmtree(left)
        fresh = repository / f"{FRESH}{name}"
        try:
            (fresh / str(version)).mkdir(parents=True)
            (fresh / "config.pbtxt").write_text(config(name, manifest), encoding="utf-8")
            for path in bundle.glob("model.onnx*"):
                shutil.copyfile(path, fresh / str(version) / path.name)
            for companion in COMPANIONS:
                shutil.copyfile(bundle / companion, fresh / companion)
            for path in [*fresh.rglob("*"), fresh]:
                paths.fsync(path)
            if target.exists():
                disk.exchange(fresh, target)
            else:
                fresh.rename(target)
            paths.fsync(repository)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return target


FRESH = ".new-"
"""Begins the name of what is not whole yet."""


def config(name: str, manifest: dict[str, Any]) -> str:
    """Returns the model configuration (``ModelConfig`` in protobuf's text format) of a bundle."""
    tensors = [_tensor(kind, one) for kind in ("input", "output") for one in manifest[f"{kind}s"]]
    warmups = [_warmup(manifest, rows) for rows in (1, MAX_BATCH)]
    return "\n".join(
        (
            f"name: {json.dumps(name)}",
            'backend: "onnxruntime"',
            f"max_batch_size: {MAX_BATCH}",
            *tensors,
            *(() if manifest["batch_invariant"] else (SCALED_BY_BATCH,)),
            f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY_US} }}",
            "instance_group [ { count: 1 kind: KIND_AUTO } ]",
            *warmups,
            "",
        )
    )


def _tensor(kind: str, tensor: dict[str, Any]) -> str:
    dimensions = ", ".join(str(size) if isinstance(size, int) else "-1" for size in tensor["shape"][1:])
    data_type = TYPES[tensor["dtype"]]
    return f"{kind} [ {{ name: {json.dumps(tensor['name'])} data_type: {data_type} dims: [ {dimensions} ] }} ]"


def _warmup(manifest: dict[str, Any], rows: int) -> str:
    """A request of full length, so that the first real one finds its memory allocated; zeros cost what tokens cost."""
    inputs = "\n".join(
        f"  inputs {{ key: {json.dumps(one['name'])} value: "
        f"{{ data_type: {TYPES[one['dtype']]} dims: [ {manifest['max_length']} ] zero_data: true }} }}"
        for one in manifest["inputs"]
    )
    return f'model_warmup [ {{\n  name: "{rows} x {manifest["max_length"]}"\n  batch_size: {rows}\n{inputs}\n}} ]'
