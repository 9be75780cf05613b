"""A run's models on this processor and on one without VNNI, and what exact products cost: on an idle machine.

    infra/run python tests/benchmarks/instruction_sets.py --home DIRECTORY [--run ID] [--parts flips golden price]

flips: the run's teacher, quantized as it is by both schemes of 8 bits, asked all rows of selection here and by a
runtime that finds AVX2 alone (``without_vnni.py``), against its simulation, one at a time and in batches of 32, whose
rows share scales where these are dynamic. golden: the golden rows of the shipped bundle, by its predictor and by a
plain session. price: the shipped graph in turns with a twin of any int8 weights, which is wrong without VNNI, and one
of uint8 weights around 128, which is right; and the accuracy of the teacher with codes up to ±127, with those that fit
in pairs and with ±63; without VNNI where ``without_vnni.py`` runs the whole. Prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks import without_vnni
from tests.ml.graph import answers_elsewhere

PLACES: dict[str, Sequence[str]] = {"here": ()}
SCHEMES = ("int8-dynamic", "int8-static")
BATCH_SIZES = (1, 32)
PARTS = ("flips", "golden", "price")


def ask(emulator: Sequence[str], model: Path, rows: Sequence[Sequence[int]], **how: int) -> np.ndarray:
    """Logits (N, C) of a plain session."""
    answers = answers_elsewhere.ask({"it": model}, rows, emulator=emulator, kinds=("plain",), **how)
    return np.array(answers["it"]["plain"], dtype=np.float32)


def quantized(teacher: Path, data: Path, problem: str, scheme: str, directory: Path) -> dict[int, np.ndarray]:
    """Exports the teacher as a scheme has it; returns its simulation's logits (N, C) on selection by batch size."""
    from tasks.ml.data import datasets
    from tasks.ml.graph import export
    from tasks.ml.models import first_token, quantization_spec, tokenization
    from tasks.ml.problem import problem_of
    from tasks.ml.quality import evaluation
    from tasks.ml.quantization import post_training, simulation

    kind, tokenizer = problem_of(problem), tokenization.load(teacher)
    model, pad_id = simulation.load(teacher, problem), tokenizer.pad_token_id
    plan = quantization_spec.plan(model, scheme=scheme, linears=True, token_bits=8, block_size=32)
    spec, _ = post_training.decide(model, plan, kind, datasets.read(data, "calibration", tokenizer), pad_id=pad_id)
    names = {"inputs": kind.ONNX_INPUTS, "outputs": kind.ONNX_OUTPUTS}
    first_only = kind.FIRST_TOKEN_ONLY
    export.export_onnx(model, directory, spec=spec, opset=20, first_token_only=first_only, **names)
    simulation.simulate(model, spec)
    if first_only:
        first_token.narrow(model)
    rows = datasets.read(data, "selection", tokenizer).input_ids
    return {size: evaluation.logits(model, rows, pad_id=pad_id, batch_size=size) for size in BATCH_SIZES}


def flips(teacher: Path, data: Path, problem: str) -> None:
    """Prints how often, and by how much, the runtime says something else than the simulation of the teacher."""
    from tasks.ml.data import datasets
    from tasks.ml.graph import export
    from tasks.ml.models import tokenization

    tokenizer = tokenization.load(teacher)
    rows = datasets.read(data, "selection", tokenizer).input_ids
    print("\n| teacher | rows at once | processor | labels that differ | median difference of a logit | largest |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(SCHEMES)) as pool:
        expected, found = {}, {}
        for scheme in SCHEMES:
            directory = Path(folder) / scheme
            directory.mkdir()
            expected[scheme] = quantized(teacher, data, problem, scheme, directory)
            for size, (place, emulator) in itertools.product(BATCH_SIZES, PLACES.items()):
                how = {"pad_id": tokenizer.pad_token_id, "batch_size": size}
                found[scheme, size, place] = pool.submit(ask, emulator, directory / export.MODEL, rows, **how)
        for (scheme, size, place), future in found.items():
            actual, simulated = future.result(), expected[scheme][size]
            errors, differ = np.abs(actual - simulated), (actual.argmax(-1) != simulated.argmax(-1)).sum()
            print(
                f"| {scheme} | {size} | {place} | {differ} of {len(rows)} ({differ / len(rows):.2%}) | "
                f"{np.median(errors):.1e} | {errors.max():.1e} |",
                flush=True,
            )


def golden(bundle: Path) -> None:
    """Prints how far the golden rows are off, by the predictor of the bundle and by a plain session."""
    rows = json.loads((bundle / "golden.json").read_text(encoding="utf-8"))
    pad_id = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["padding"]["id"]
    labels = list(rows[0]["probabilities"])
    expected = np.array([[row["probabilities"][label] for label in labels] for row in rows])
    print(
        f"\n| largest difference of a probability, {len(rows)} golden rows | predictor | plain session |\n|---|---|---|"
    )
    for place, emulator in PLACES.items():
        predictor = answers_elsewhere.said(emulator, str(bundle / "predictor.py"), "--self-test")["max_abs_error"]
        logits = ask(emulator, bundle / "model.onnx", [row["input_ids"] for row in rows], pad_id=pad_id, batch_size=1)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        plain = np.abs(shares / shares.sum(-1, keepdims=True) - expected).max()
        print(f"| {place} | {predictor:.1e} | {plain:.1e} |", flush=True)


def twin(source: Path, target: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Copies a bundle, and changes codes and zero points of its products."""
    shutil.copytree(source, target)
    model = onnx.load(source / "model.onnx")
    weights = {"DynamicQuantizeMatMul": (1, 3), "MatMulIntegerToFloat": (1, 5), "QAttention": (1, 7)}
    names = {node.input[index] for node in model.graph.node for index in weights.get(node.op_type, ())}
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, target / "model.onnx")


def anything(codes: np.ndarray) -> np.ndarray:
    """Of any pairs; a zero point stays."""
    return np.random.default_rng(0).integers(-127, 128, codes.shape).astype(np.int8) if codes.ndim else codes


def unsigned(codes: np.ndarray) -> np.ndarray:
    return (codes.astype(np.int16) + 128).astype(np.uint8)


def price(shipped: Path, data: Path, problem: str, *, rounds: int) -> None:
    """Times the shipped graph in turns with its twins."""
    from tasks.ml import machine
    from tasks.ml.proof import proof
    from tasks.ml.runtime import sessions, timing

    with tempfile.TemporaryDirectory() as folder:
        folders = {"shipped": shipped, "any int8": Path(folder) / "int8", "uint8": Path(folder) / "uint8"}
        twin(shipped, folders["any int8"], anything)
        twin(shipped, folders["uint8"], unsigned)
        subjects = [proof.subject(name, name, one, data, split="selection") for name, one in folders.items()]
        options = {"problem": problem, "provider": sessions.CPU, "threads": machine.num_cores(), "sentences": 160}
        with proof.probes(subjects, **options) as probes:
            found = timing.paces(probes, rounds=rounds, batch_size=16)

    def spread(ratios: np.ndarray) -> str:
        return f"{np.median(ratios):.3f}× ({np.quantile(ratios, 0.25):.3f} … {np.quantile(ratios, 0.75):.3f})"

    plain = found["any int8"]
    print(
        f"\n| weights | p50, ms, one sentence | rows/s, batch 16 | slower than any int8, {rounds} rounds | in batches |"
    )
    print("|---|---|---|---|---|")
    for name, pace in found.items():
        slower = np.array(pace.latency_rounds_ms) / plain.latency_rounds_ms
        fewer = np.array(plain.throughput_rounds_per_s) / pace.throughput_rounds_per_s
        cells = f"{pace.latency_p50_ms:.3f} | {pace.throughput_per_s:.0f} | {spread(slower)} | {spread(fewer)}"
        print(f"| {name} | {cells} |", flush=True)


def codes(teacher: Path, data: Path, problem: str) -> None:
    """Prints the accuracy of the teacher on selection with all codes, with those that fit in pairs, and with half."""
    from tasks.ml.data import datasets
    from tasks.ml.models import quantization_spec, tokenization
    from tasks.ml.problem import problem_of
    from tasks.ml.quality import evaluation
    from tasks.ml.quantization import simulation

    kind, tokenizer = problem_of(problem), tokenization.load(teacher)
    rows = datasets.read(data, "selection", tokenizer)
    print("\n| weights of the teacher, simulated | accuracy on selection | agreement with fp32 |\n|---|---|---|")
    exact = evaluation.logits(simulation.load(teacher, problem), rows.input_ids, pad_id=tokenizer.pad_token_id)
    for title, most, together in (("±127", 127, 254), ("±127, pairs ±128", 127, 128), ("±63", 63, 126)):
        simulation.INT8_MAX, simulation.PAIR_MAX = most, together
        model = simulation.load(teacher, problem)
        plan = quantization_spec.plan(model, scheme="int8-dynamic", linears=True, token_bits=32, block_size=32)
        simulation.simulate(model, plan)
        found = evaluation.logits(model, rows.input_ids, pad_id=tokenizer.pad_token_id)
        right, same = kind.scores(found, rows.targets).mean(), (found.argmax(-1) == exact.argmax(-1)).mean()
        print(f"| {title} | {right:.4f} | {same:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, help="of the run")
    parser.add_argument("--run", default="", help="id of the run, or its beginning; the newest by default")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=31, help="of timing")
    options = parser.parse_args()
    os.environ["FEATHERWEIGHT_HOME"] = str(options.home)
    from flows.command import history
    from flows.servers import embedded

    embedded.configure()
    from tasks.engine import store
    from tasks.ml import machine

    outcome = history.outcome(options.run)
    assert outcome.release is not None, "the run shipped nothing"
    paths = {stage.stage: store.path(stage.bundle.digest) for stage in outcome.stages if stage.bundle}
    (data,) = (store.path(stage.splits.digest) for stage in outcome.stages if stage.splits)
    bundle = store.path(outcome.release.digest)
    problem = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["problem"]
    print(f"{machine.cpu_model()}, {machine.num_cores()} threads")
    if "price" in options.parts:
        price(paths["validate"], data, problem, rounds=options.rounds)
        codes(paths["train"], data, problem)
    with tempfile.TemporaryDirectory() as folder:
        PLACES["AVX2 alone"] = without_vnni.without_vnni(Path(folder))
        if "golden" in options.parts:
            golden(bundle)
        if "flips" in options.parts:
            flips(paths["train"], data, problem)


if __name__ == "__main__":
    main()
