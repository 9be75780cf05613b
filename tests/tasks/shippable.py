"""A tiny ONNX bundle that really classifies, and the outcome of a run that passed with it, all published to the store.

The model averages one polarity per word over the words that the attention mask lets through.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tasks.contracts.values import Bundle, Outcome, Scorecard, Splits, StageResult
from tasks.deploy import DeploymentConfig, deploy
from tasks.engine import store, tracking
from tasks.judge import BudgetConfig, weigh
from tasks.ml.data import datasets
from tasks.ml.data.splitting import Division, Row, key
from tasks.ml.data.targets import classes
from tasks.ml.models import tokenization
from tasks.ml.problems import text_classification
from tasks.register import register
from tasks.serving import bundle as bundles

POLARITY = {"delight": 4.0, "great": 3.0, "moving": 2.0, "dull": -3.0, "waste": -4.0, "flat": -2.0}
NEUTRAL = ("an", "a", "utter", "of", "evening", "film", "is", "the", "and")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = {token: index for index, token in enumerate((*SPECIAL, *POLARITY, *NEUTRAL))}
LABELS = ("negative", "positive")
MAX_LENGTH = 12
TEXTS = [f"{adverb} {word} film {'and ' * n}{word}" for n, word in enumerate(POLARITY) for adverb in ("a", "the", "an")]


def model() -> onnx.ModelProto:
    """input_ids, attention_mask (batch, sequence) → logits (batch, 2)."""
    table = np.zeros((len(VOCABULARY), 2), dtype=np.float32)
    for word, polarity in POLARITY.items():
        table[VOCABULARY[word]] = (-polarity, polarity)
    table[VOCABULARY["[PAD]"]] = (99.0, -99.0)  # a mask that is not obeyed is noticed
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["scores"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["scores", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "middle"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask3", "middle"], ["count"], keepdims=0),
        helper.make_node("Div", ["total", "count"], ["logits"]),
    ]
    constants = {"table": table, "last": np.array([2]), "middle": np.array([1])}
    axes = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "polarity",
        [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def tokenizer(**settings: str) -> Any:
    """One token per word; a text is "[CLS] text [SEP]".

    Args:
        settings: ``truncation_side`` and ``padding_side``.
    """
    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, VOCABULARY[token]) for token in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", **settings)


def write_onnx_bundle(folder: Path, *, labels: tuple[str, ...] = LABELS, **settings: str) -> Path:
    """Writes what ``export`` publishes, as far as shipping reads it."""
    onnx.save(model(), str(folder / "model.onnx"))
    tokenization.save(tokenizer(**settings), folder)
    (folder / "config.json").write_text(json.dumps({"id2label": {str(i): label for i, label in enumerate(labels)}}))
    return folder


def write_dataset(folder: Path, texts: list[str] = TEXTS, **settings: str) -> Path:
    """Writes what ``prepare`` publishes, with these texts in the selection split."""
    rows = [Row(text, LABELS[index % 2], key(text)) for index, text in enumerate(texts)]
    splits = {name: rows if name == "selection" else [] for name in ("train", "calibration", "selection", "test")}
    division = Division(classes({}, LABELS, missing=-100), splits=splits, dropped={})
    datasets.write(folder, division, tokenizer(**settings), max_length=MAX_LENGTH)
    return folder


def write_arrow(path: Path, columns: dict[str, Any]) -> None:
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def write_evidence(
    folder: Path,
    *,
    n: int = 2098,
    lost: int = 60,
    gained: int = 45,
    size_mb: float = 9.0,
    rounds: tuple[float, ...] = (1.0, 1.02, 0.98, 1.01, 0.99),
) -> Path:
    """Writes what ``validate`` leaves; of ``n`` rows, two classes in turns, the shipped model loses and gains some."""
    teacher, shipped, targets = np.ones(n), np.ones(n), np.arange(n) % 2
    shipped[:lost] = 0.0
    teacher[lost : lost + gained] = 0.0
    write_arrow(
        folder / "rows.arrow",
        {
            "target": targets,
            "prediction_train": np.where(teacher == 1, targets, 1 - targets),
            "score_train": teacher,
            "prediction_validate": np.where(shipped == 1, targets, 1 - targets),
            "score_validate": shipped,
        },
    )
    models_measured = [
        {
            "stage": "train",
            "title": "Teacher",
            "runtime": "PyTorch eager fp32",
            "metric": "accuracy",
            "quality": float(teacher.mean()),
            "n": n,
            "size_mb": 90.9,
            "num_parameters": 22_713_986,
            "latency_p50_ms": 10.5,
            "latency_p95_ms": 12.5,
            "latency_p99_ms": 13.1,
            "latency_p50_rounds_ms": [10.5, 10.8, 10.4, 10.6, 10.5][: len(rounds)],
            "throughput_per_s": 240.0,
            "load_time_s": 0.41,
            "peak_memory_mb": 612.0,
        },
        {
            "stage": "validate",
            "title": "Shipped",
            "runtime": "ONNX Runtime (CPUExecutionProvider)",
            "metric": "accuracy",
            "quality": float(shipped.mean()),
            "n": n,
            "size_mb": size_mb,
            "num_parameters": 9_000_000,
            "latency_p50_ms": 1.0,
            "latency_p95_ms": 1.4,
            "latency_p99_ms": 1.6,
            "latency_p50_rounds_ms": list(rounds),
            "throughput_per_s": 2400.0,
            "load_time_s": 0.05,
            "peak_memory_mb": 120.0,
        },
    ]
    simulated = {"stage": "quantize", "title": "Quantized", "size_mb": 9.5, "latency_p50_rounds_ms": None}
    device = {"provider": "CPUExecutionProvider", "cpu_model": "Test CPU", "threads": 2, "torch_threads": 2}
    document = {
        "device": device,
        "split": "test",
        "n": n,
        "problem": "text-classification",
        "rows": {"labels": LABELS, "majority": 0, "majority_share": 0.5},
        "models": [*models_measured[:1], simulated, models_measured[1]],
    }
    (folder / "validation.json").write_text(json.dumps(document))
    return folder


def outcome(run_id: str, *, recipe: str = "polarity", texts: list[str] = TEXTS, **evidence: Any) -> Outcome:
    """Publishes dataset, model and evidence, and returns the outcome of the run that made them."""
    with store.workspace() as folder:
        splits = Splits(digest=store.publish(write_dataset(folder, texts)), problem="text-classification")
    with store.workspace() as folder:
        write_onnx_bundle(folder)
        bundle = Bundle(digest=store.publish(folder), format="onnx", problem="text-classification")
    with store.workspace() as folder:
        digest = store.publish(write_evidence(folder, **evidence))
    return Outcome(
        recipe=recipe,
        run_id=run_id,
        verdict=weigh(store.path(digest), BudgetConfig(max_quality_drop=0.015, min_shrink=6, min_speedup=9)),
        stages=(
            StageResult(stage="prepare", run_id="prepared", splits=splits),
            StageResult(stage="validate", run_id="validated", bundle=bundle, scorecard=Scorecard(), evidence=digest),
        ),
    )


def build(folder: Path, **changes: Any) -> Path:
    """Builds a serving bundle of a model that learned with one tokenizer, and is shipped with the same or another."""
    source, data, evidence, target = (folder / name for name in ("source", "data", "evidence", "serving"))
    for directory in (source, data, evidence, target):
        directory.mkdir(parents=True)
    learned = changes.pop("learned", {})
    write_onnx_bundle(source, **changes.pop("shipped", learned))
    write_dataset(data, changes.pop("texts", TEXTS), **learned)
    write_evidence(evidence)
    values: dict[str, Any] = {
        "source": source,
        "name": "polarity",
        "problem": "text-classification",
        "answer": text_classification.answer(LABELS, {}),
        "base_model": "package:tiny/model",
        "data": "demo:movie-snippets",
        "tokenizer": tokenization.standalone(source / tokenization.FILE, max_length=MAX_LENGTH),
        "golden": datasets.golden(data, "selection", bundles.GOLDEN_ROWS),
        "validation": json.loads((evidence / "validation.json").read_text()),
        "verdict": weigh(evidence, BudgetConfig(min_shrink=6, min_speedup=9)),
    }
    bundles.build(target, **(values | changes))
    return target


RECIPE = {"name": "polarity", "base_model": "package:tiny/model", "data": {"source": "demo:movie-snippets"}}


def register_two() -> None:
    """Registers two versions that passed: the first is deployed as champion, the second is the candidate."""
    with tracking.pipeline_run("polarity", RECIPE, run_name="first") as run_id:
        deploy.fn(register.fn("polarity", outcome(run_id), run_id=run_id), DeploymentConfig(), run_id=run_id)
        register.fn("polarity", outcome(run_id, lost=61), run_id=run_id)
