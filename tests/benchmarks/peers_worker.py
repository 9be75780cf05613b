"""What the peers make of a model, in their own environment: a process of this file per configuration.

    python peers_worker.py CONFIGURATION MODEL CALIBRATION OUTPUT

MODEL is a Hugging Face directory with a sequence classifier, CALIBRATION a JSON list of rows of token ids, OUTPUT an
empty directory that gets ``model.onnx``. Imported elsewhere it needs nothing but Python: the names are in
``CONFIGURATIONS``.

Each peer is given what makes it best on a CPU with VNNI: both exporters of torch, because ONNX Runtime's optimizer
finds attention in the graph of the older one only; its fusions; integers per tensor and per channel, scaled at run time
or by calibration; and 4-bit blocks, which are smaller and not faster, and need products and tables that are not fused.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

OPSET = 20
BLOCK = 32
"""Columns that share a scale in 4-bit tables."""


class Job(NamedTuple):
    model: Path
    calibration: list[list[int]]
    folder: Path


def shape(job: Job) -> dict[str, Any]:
    """What ONNX Runtime's optimizer wants to be told of a BERT."""
    config = json.loads((job.model / "config.json").read_text(encoding="utf-8"))
    return {"model_type": "bert", "num_heads": config["num_attention_heads"], "hidden_size": config["hidden_size"]}


def feeds(job: Job, names: list[str]) -> Iterator[dict[str, Any]]:
    """One calibration row after the other, as a graph with such inputs takes it: int64 (1, S)."""
    import numpy as np

    for row in job.calibration:
        ids = np.array([row], dtype=np.int64)
        whole = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        yield {name: whole[name] for name in names}


# Olive


def olive(job: Job, *, dynamo: bool, quantization: dict[str, Any] | None) -> Path:
    """Conversion, transformer optimization and a quantization pass."""
    from olive.data.registry import Registry
    from olive.workflows import run
    from torch.utils.data import Dataset

    class Rows(Dataset):
        def __len__(self) -> int:
            return len(job.calibration)

        def __getitem__(self, index: int) -> tuple[dict[str, Any], int]:
            names = ["input_ids", "attention_mask", "token_type_ids"]
            (feed,) = feeds(job._replace(calibration=[job.calibration[index]]), names)
            return {name: array[0] for name, array in feed.items()}, 0

    @Registry.register_dataset("calibration_rows")
    def _(**_: Any) -> Dataset:
        return Rows()

    plain = {"type": "skip_pre_process"}, {"type": "skip_post_process"}
    data = {
        "name": "calibration", "load_dataset_config": {"type": "calibration_rows"},
        "pre_process_data_config": plain[0], "post_process_data_config": plain[1],
        "dataloader_config": {"type": "default_dataloader", "batch_size": 1},
    }  # fmt: skip
    passes = {
        "conversion": {"type": "OnnxConversion", "use_dynamo_exporter": dynamo, "target_opset": OPSET},
        "optimization": {"type": "OrtTransformersOptimization", "opt_level": 0, **shape(job)},
    }
    if quantization:
        static = {"data_config": data} if quantization["type"] == "OnnxStaticQuantization" else {}
        passes["quantization"] = quantization | static
    accelerators = [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]
    made = run(
        {
            "input_model": {"type": "HfModel", "model_path": str(job.model), "task": "text-classification"},
            "systems": {"here": {"type": "LocalSystem", "accelerators": accelerators}},
            "passes": passes, "host": "here", "target": "here", "log_severity_level": 2,
            "cache_dir": str(job.folder / "cache"), "output_dir": str(job.folder / "olive"),
        }
    )  # fmt: skip
    best = made.get_best_candidate()
    if best is None:
        raise RuntimeError("Olive ended without a model: a pass failed")
    return Path(best.model_path)


# optimum-onnx


def optimum(job: Job, *, level: str | None, quantization: dict[str, Any] | None) -> Path:
    """Export, one of its levels of optimization, and quantization for VNNI.

    Args:
        quantization: keyword arguments of ``AutoQuantizationConfig.avx512_vnni``.
    """
    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import ORTOptimizer, ORTQuantizer
    from optimum.onnxruntime.configuration import (
        AutoCalibrationConfig,
        AutoOptimizationConfig,
        AutoQuantizationConfig,
    )

    folder, name = job.folder / "export", "model.onnx"
    main_export(str(job.model), folder, task="text-classification", opset=OPSET if level is None else None)
    if level is not None:
        config = getattr(AutoOptimizationConfig, level)()
        ORTOptimizer.from_pretrained(folder).optimize(config, save_dir=job.folder / "optimized")
        folder, name = job.folder / "optimized", "model_optimized.onnx"
    if quantization is None:
        return folder / name
    quantizer = ORTQuantizer.from_pretrained(folder, file_name=name)
    config = AutoQuantizationConfig.avx512_vnni(**quantization)
    ranges = None
    if config.is_static:
        from datasets import Dataset

        names = ["input_ids", "attention_mask", "token_type_ids"]
        rows = Dataset.from_list([{k: v[0].tolist() for k, v in feed.items()} for feed in feeds(job, names)])
        ranges = quantizer.fit(
            rows,
            AutoCalibrationConfig.minmax(rows),
            onnx_augmented_model_name=str(job.folder / "augmented.onnx"),
            operators_to_quantize=config.operators_to_quantize,
        )
    quantizer.quantize(config, save_dir=job.folder / "quantized", calibration_tensors_range=ranges)
    return next((job.folder / "quantized").glob("*.onnx"))


# ONNX Runtime's own tools


def exported(job: Job, *, dynamo: bool) -> Path:
    """The fp32 graph by one of torch's exporters, and all that ONNX Runtime's transformer optimizer finds in it."""
    import torch
    from onnxruntime.transformers import optimizer
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(str(job.model), attn_implementation="eager").eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ids = torch.tensor([job.calibration[0][:8]] * 2)
    sample = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    raw, optimized = job.folder / "raw.onnx", job.folder / "optimized.onnx"
    axes: dict[str, Any] = {"dynamic_axes": {name: {0: "batch", 1: "length"} for name in names}, "opset_version": OPSET}
    if dynamo:
        batch, length = torch.export.Dim("batch", max=4096), torch.export.Dim("length", max=512)
        axes = {"dynamic_shapes": [{0: batch, 1: length}] * 3, "external_data": False}
    torch.onnx.export(model, sample, str(raw), dynamo=dynamo, input_names=names, output_names=["logits"], **axes)
    optimizer.optimize_model(str(raw), opt_level=1, **shape(job)).save_model_to_file(str(optimized))
    return optimized


def onnxruntime(job: Job, *, dynamo: bool, quantize: Callable[[Job, Path, Path], None] | None) -> Path:
    source, target = exported(job, dynamo=dynamo), job.folder / "quantized.onnx"
    if quantize is None:
        return source
    quantize(job, source, target)
    return target


def dynamic(_: Job, source: Path, target: Path, *, per_channel: bool, reduce_range: bool = False) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # what the optimizer leaves there no longer fits the graph
    quantize_dynamic(
        model, str(target), weight_type=QuantType.QInt8, per_channel=per_channel, reduce_range=reduce_range,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )  # fmt: skip


def static(job: Job, source: Path, target: Path, *, method: str) -> None:
    """QDQ with uint8 activations and int8 weights per channel, but for the head, which follows on what has no scale."""
    import onnx
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    head = [node.name for node in onnx.load(source).graph.node if node.op_type == "Gemm"]
    names = [one.name for one in InferenceSession(str(source), providers=["CPUExecutionProvider"]).get_inputs()]

    class Reader(CalibrationDataReader):
        rows = feeds(job, names)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rows, None)

    quantize_static(
        str(source), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod[method],
        nodes_to_exclude=head, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )  # fmt: skip


def blocks(_: Job, source: Path, target: Path) -> None:
    """4-bit blocks in products and tables, with integer arithmetic in the products."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=True, accuracy_level=4, op_types_to_quantize=("MatMul", "Gather"),
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )  # fmt: skip
    quantizer = MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))


def olive_pass(kind: str, **settings: Any) -> dict[str, Any]:
    return {"type": kind, **settings}


DYNAMIC = {"is_static": False, "per_channel": False}
CONFIGURATIONS: dict[str, Callable[[Job], Path]] = {
    "Olive, dynamo, fp32": partial(olive, dynamo=True, quantization=None),
    "Olive, TorchScript, fp32": partial(olive, dynamo=False, quantization=None),
    **{
        f"Olive, {exporter}, int8 dynamic per {granularity}": partial(
            olive,
            dynamo=exporter == "dynamo",
            quantization=olive_pass("OnnxDynamicQuantization", precision="int8", per_channel=granularity == "channel"),
        )
        for exporter in ("dynamo", "TorchScript")
        for granularity in ("tensor", "channel")
    },
    **{
        f"Olive, {exporter}, int8 static QDQ": partial(
            olive,
            dynamo=exporter == "dynamo",
            quantization=olive_pass(
                "OnnxStaticQuantization", precision="int8", activation_type="uint8", per_channel=True
            ),
        )
        for exporter in ("dynamo", "TorchScript")
    },
    "Olive, dynamo, int4 blocks": partial(
        olive,
        dynamo=True,
        quantization=olive_pass("OnnxBlockWiseRtnQuantization", block_size=BLOCK, accuracy_level=4),
    ),
    **{
        f"optimum, {level or 'export'}, fp32": partial(optimum, level=level, quantization=None)
        for level in (None, "O1", "O2", "O3")
    },
    **{
        f"optimum, {level or 'export'}, avx512_vnni dynamic per {granularity}": partial(
            optimum, level=level, quantization=DYNAMIC | {"per_channel": granularity == "channel"}
        )
        for level, granularity in (
            (None, "tensor"), (None, "channel"), ("O1", "channel"), ("O2", "channel"), ("O3", "tensor"),
            ("O3", "channel"),
        )
    },
    "optimum, export, avx512_vnni static QDQ": partial(optimum, level=None, quantization={"is_static": True}),
    "ONNX Runtime, dynamo, fp32": partial(onnxruntime, dynamo=True, quantize=None),
    "ONNX Runtime, TorchScript, fp32": partial(onnxruntime, dynamo=False, quantize=None),
    **{
        f"ONNX Runtime, {exporter}, int8 dynamic per {granularity}": partial(
            onnxruntime,
            dynamo=exporter == "dynamo",
            quantize=partial(dynamic, per_channel=granularity == "channel"),
        )
        for exporter in ("dynamo", "TorchScript")
        for granularity in ("tensor", "channel")
    },
    "ONNX Runtime, TorchScript, int8 dynamic per channel, 7 bits": partial(
        onnxruntime, dynamo=False, quantize=partial(dynamic, per_channel=True, reduce_range=True)
    ),
    **{
        f"ONNX Runtime, {exporter}, int8 static QDQ, {method}": partial(
            onnxruntime, dynamo=exporter == "dynamo", quantize=partial(static, method=method)
        )
        for exporter, method in (("dynamo", "MinMax"), ("TorchScript", "MinMax"), ("TorchScript", "Percentile"))
    },
    "ONNX Runtime, dynamo, int4 blocks": partial(onnxruntime, dynamo=True, quantize=blocks),
}  # fmt: skip


def main() -> None:
    name, model, calibration, output = sys.argv[1:]
    import tempfile

    import onnx

    with tempfile.TemporaryDirectory() as folder:
        rows = json.loads(Path(calibration).read_text(encoding="utf-8"))
        made = CONFIGURATIONS[name](Job(Path(model), rows, Path(folder)))
        whole = onnx.load(made)  # with what lies in files beside it
        part = Path(output) / "model.onnx.part"
        onnx.save(whole, part)
        part.replace(Path(output) / "model.onnx")
    # Olive leaves threads behind that would keep the process.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
