"""What ``validate`` measures of each model of a run: quality on test, size, and time. N = rows, C = classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from tasks.ml import machine
from tasks.ml.data import datasets
from tasks.ml.graph.export import MODEL, num_bytes, read_spec
from tasks.ml.models import locators, modeling, tokenization
from tasks.ml.problem import problem_of
from tasks.ml.quality import evaluation, learning
from tasks.ml.quantization import block_files, quantized
from tasks.ml.runtime import decoder_parity, parity, timing
from tasks.ml.runtime import sessions as runtime

logger = logging.getLogger("featherweight")

Kind = Literal["torch", "simulated", "onnx"]

REQUESTS = 4
"""How many times fewer texts are timed where each of them is continued."""

TIMINGS = (
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "latency_p50_rounds_ms",
    "throughput_per_s",
    "load_time_s",
    "peak_memory_mb",
)


@dataclass(frozen=True)
class Subject:
    """One model of a run.

    Attributes:
        kind: ``simulated`` models have a quality and a size, but no speed of their own.
        rows: token ids of the split that it is measured on, by this model's own tokenizer.
    """

    stage: str
    title: str
    directory: Path
    kind: Kind
    rows: Sequence[Sequence[int]]
    tokenizer: Any

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def runtime(self, provider: str) -> str:
        """What runs the model, for people."""
        return {
            "torch": "PyTorch eager fp32",
            "simulated": "PyTorch, integers simulated",
            "onnx": f"ONNX Runtime ({provider})",
        }[self.kind]


def subject(
    stage: str, title: str, directory: Path, data: Path, *, simulated: bool = False, split: str = "test"
) -> Subject:
    """Describes a bundle and encodes a split for it.

    Raises:
        FeatherweightError: a row has more tokens than the model has positions for.
    """
    tokenizer = tokenization.load(directory)
    rows = datasets.read(data, split, tokenizer).input_ids
    locators.require_room(directory, rows)
    kind: Kind = "onnx" if (directory / MODEL).is_file() else "simulated" if simulated else "torch"
    return Subject(stage, title, directory, kind, rows, tokenizer)


def provider_of(subject: Subject, *, device: str) -> str:
    """Returns the execution provider that a subject is measured on; of PyTorch models it is not asked."""
    if subject.kind != "onnx":
        return runtime.CPU
    sample = runtime.feed(subject.rows[:1], pad_id=subject.pad_id)
    return runtime.choose_provider(subject.directory / MODEL, sample, device=device)


def logits_of(subject: Subject, *, problem: str, provider: str, threads: int) -> np.ndarray:
    """Logits (N, C) of the subject's rows. The shipped model answers one row at a time, as it will be asked."""
    if subject.kind == "onnx":
        session = runtime.open_session(subject.directory / MODEL, provider=provider, threads=threads)
        return runtime.logits(session, subject.rows, pad_id=subject.pad_id, problem=problem_of(problem))
    load = parity.simulated if subject.kind == "simulated" else modeling.load
    model = load(subject.directory, problem)
    return evaluation.logits(model, subject.rows, pad_id=subject.pad_id, problem=problem_of(problem))


def told(subject: Subject, kept: np.ndarray, teacher: Subject, *, problem: str) -> np.ndarray:
    """What was kept of a subject's logits, to be held against its teacher's, row by row."""
    ids = tokenization.ids_in(subject.tokenizer, teacher.tokenizer)
    return problem_of(problem).retold(kept, subject.rows, teacher.rows, ids)


def held(
    subject: Subject,
    simulated: Path,
    rows: Sequence[Sequence[int]],
    *,
    problem_name: str,
    provider: str,
    threads: int,
    max_length: int,
    max_flips: float,
) -> dict[str, Any]:
    """Holds an exported model against its simulation, row by row or, where answers are per token, token by token.

    Args:
        simulated: the torch bundle that it was exported from.
        rows: token ids that both read.
        max_flips: share of answers that may differ.

    Returns:
        What ``compare`` of ``parity`` or of ``decoder_parity`` says.

    Raises:
        ParityError: they do not say the same.
    """
    file = subject.directory / MODEL
    session = runtime.open_session(file, provider=provider, threads=threads)
    about: dict[str, Any] = {"pad_id": subject.pad_id, "max_length": max_length}
    if problem_of(problem_name).PER_TOKEN:
        found = decoder_parity.compare(simulated, file, session, problem_name, rows, **about)
        decoder_parity.require(found, max_flips=max_flips)
    else:
        found = parity.compare(simulated, session, problem_name, rows, **about)
        parity.require(found, max_flips=max_flips)
    return found


def weight(subject: Subject, *, problem: str) -> dict[str, float]:
    """``size_mb`` of the weights (of a simulated model: as the runtime will store them) and ``num_parameters``."""
    if subject.kind == "onnx":
        return {"size_mb": num_bytes(subject.directory) / 1e6}
    model = modeling.load(subject.directory, problem)
    stored = (subject.directory / modeling.WEIGHTS).stat().st_size
    if subject.kind == "simulated":
        how = quantized.Quantized(read_spec(subject.directory), block_files.load(subject.directory))
        stored = how.num_bytes(model)
    return {"size_mb": stored / 1e6, "num_parameters": modeling.num_parameters(model)}


@contextmanager
def probes(
    subjects: Sequence[Subject], *, problem: str, provider: str, threads: int, sentences: int
) -> Iterator[dict[str, timing.Probe]]:
    """Starts the timing processes of all models that have a speed, one after the other; yields each model's process."""
    if problem_of(problem).PER_TOKEN:
        sentences = -(-sentences // REQUESTS)
    groups = [[subject for subject in subjects if subject.kind == "torch"]]
    groups += [[subject] for subject in subjects if subject.kind == "onnx"]
    running: dict[str, timing.Probe] = {}
    with ExitStack() as stack:
        for group in filter(None, groups):
            probe = timing.Probe(
                runtime=group[0].kind,
                models={
                    subject.stage: {
                        "directory": str(subject.directory),
                        "pad_id": subject.pad_id,
                        "rows": [list(row) for row in subject.rows[:sentences] if row],
                    }
                    for subject in group
                },
                problem=problem,
                provider=provider,
                device="cuda" if provider == runtime.CUDA and torch.cuda.is_available() else "cpu",
                threads=threads,
            )
            running |= dict.fromkeys((subject.stage for subject in group), stack.enter_context(probe))
        yield running


def timings(
    running: Mapping[str, timing.Probe], *, rounds: int, tokens_at_once: int, announce: Callable[[int], None]
) -> dict[str, dict[str, Any]]:
    """Latency, throughput, load time and peak memory of every running model; ``announce`` is told of every round."""
    measured = timing.interleaved(running, rounds=rounds, announce=announce)
    return {
        stage: timing.summary(measured[stage])
        | {"throughput_per_s": probe.throughput(stage, tokens_at_once=tokens_at_once), **probe.loaded[stage]}
        for stage, probe in running.items()
    }


def generations(
    subjects: Sequence[Subject], running: Mapping[str, timing.Probe], *, rounds: int
) -> list[dict[str, Any]]:
    """How fast decoders generate after texts of some lengths, for which all of them have positions: of each ``stage``
    and ``context`` what ``timing.generations`` measures. To be asked before whatever takes more memory."""
    contexts = timing.contexts(min(locators.positions(one.directory) for one in subjects))
    return timing.generations({one.stage: running[one.stage] for one in subjects}, contexts, rounds=rounds)


def examine(
    models: Sequence[Subject],
    shipped: Subject,
    *,
    data: Path,
    problem_name: str,
    device: str,
    threads: int,
    repeats: int,
    sentences: int,
    max_flips: float,
    progress: Callable[[float, str], None] = lambda fraction, text: None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Makes the whole proof.

    Args:
        models: the line in PyTorch, teacher first, the simulated model last.
        progress: told now and then which fraction is done, and what comes next.

    Returns:
        What ``validation.json`` holds, and the test logits (N, C) of each model by stage, as they are held against the
        teacher's.

    Raises:
        FeatherweightError: a GPU was asked for and heavy nodes ran elsewhere, or the runtime is not at parity.
    """
    problem, about = problem_of(problem_name), datasets.info(data)
    threads = threads or machine.num_cores()
    file = shipped.directory / MODEL
    sample = runtime.feed(shipped.rows[:1], pad_id=shipped.pad_id)
    provider = runtime.choose_provider(file, sample, device=device)
    progress(0.0, "parity with the simulated model")
    agreement = held(
        shipped,
        models[-1].directory,
        datasets.read(data, "selection", tokenization.load(shipped.directory)).input_ids,
        problem_name=problem_name,
        provider=provider,
        threads=threads,
        max_length=about.max_length,
        max_flips=max_flips,
    )
    logger.info(
        "validate: on %s, %d of %d answers differ from the simulated model",
        provider, agreement["label_flips"], agreement["n"],
    )  # fmt: skip
    everyone = [*models, shipped]
    progress(0.2, f"{len(everyone)} models read the test split")
    logits = {
        one.stage: told(
            one,
            logits_of(one, problem=problem_name, provider=provider, threads=threads),
            models[0],
            problem=problem_name,
        )
        for one in everyone
    }
    agreements = {stage: learning.agreement(problem, kept, logits[models[0].stage]) for stage, kept in logits.items()}
    targets = datasets.read(data, "test").targets
    logger.info("validate: test split read by %d models; timing %d rounds", len(everyone), repeats)
    company = machine.Company()
    with probes(everyone, problem=problem_name, provider=provider, threads=threads, sentences=sentences) as running:

        def announce(number: int) -> None:
            text = f"round {number + 1} of {repeats}: timing {len(running)} models in turn"
            progress(0.5 + 0.3 * number / repeats, text)
            logger.info("validate: %s", text)

        generated = []
        if problem.PER_TOKEN:
            progress(0.5, f"{repeats} rounds of generation")
            logger.info("validate: %d rounds of generation", repeats)
            generated = generations((models[0], shipped), running, rounds=repeats)
        timed = timings(running, rounds=repeats, tokens_at_once=problem.TOKENS_AT_ONCE, announce=announce)
        progress(0.8, "timing the grid of batch sizes and lengths")
        logger.info("validate: timing the grid of batch sizes and lengths")
        shapes = timing.grid_shapes(about.max_length, tokens_at_once=problem.TOKENS_AT_ONCE)
        grid = [
            {"stage": one.stage, **cell}
            for one in (models[0], shipped)
            for cell in running[one.stage].grid(one.stage, shapes)
        ]
    others_share = company.share()
    described: list[dict[str, Any]] = [
        {
            "stage": one.stage,
            "title": one.title,
            "runtime": one.runtime(provider),
            "metric": problem.METRIC,
            "quality": float(problem.scores(logits[one.stage], targets).mean()),
            "agreement_with_teacher": agreements[one.stage].share,
            "agreement_rows": agreements[one.stage].rows,
            "n": len(targets),
            **weight(one, problem=problem_name),
            **timed.get(one.stage, dict.fromkeys(TIMINGS)),
        }
        for one in everyone
    ]
    described[-1]["num_parameters"] = described[-2]["num_parameters"]
    progress(1.0, "done")
    validation = {
        "device": {
            "provider": provider,
            "cpu_model": machine.cpu_model(),
            "kernels": machine.kernels(),
            "threads": threads,
            "torch_threads": threads,
            "others_share": others_share,
            **({"gpu": torch.cuda.get_device_name()} if provider == runtime.CUDA and torch.cuda.is_available() else {}),
        },
        "split": "test",
        "n": len(targets),
        "problem": problem_name,
        "rows": problem.describe(about.labels, datasets.read(data, "train").targets),
        "models": described,
        "grid": grid,
        **({"generation": generated} if generated else {}),
        "parity": agreement,
        "nodes": runtime.placement(file, sample, provider=provider, threads=threads),
    }
    return validation, logits


def write_rows(
    path: Path,
    data: Path,
    problem_name: str,
    logits: Mapping[str, np.ndarray],
    *,
    teacher: str = "train",
    split: str = "test",
) -> None:
    """Writes of every row of a split its target, and of each model prediction, score and agreement with the teacher,
    which is NaN where it cannot be told."""
    problem, rows = problem_of(problem_name), datasets.read(data, split)
    targets = rows.targets
    columns: dict[str, np.ndarray] = {"target": targets, "document": rows.documents}
    for stage, values in logits.items():
        columns[f"prediction_{stage}"] = problem.predictions(values)
        columns[f"score_{stage}"] = problem.scores(values, targets)
        columns[f"agrees_{stage}"] = problem.same(values, logits[teacher])
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
