"""Our training loop beside Hugging Face's Trainer: run it on an otherwise idle machine, after installation.

    infra/run python tests/benchmarks/training.py [--device cuda] [--seeds 0 1] [--json FILE]

The same model, rows, batch size, dropout, learning rates, weight decay and clipping for one epoch of the demo's data,
three times: by the Trainer with a plain script's arguments and dynamic padding; by the Trainer at the best settings
that a search found; by ``tasks.ml.training.trainer`` as the stage ``train`` calls it. Each has a process of its own.
They take turns of some optimizer steps, and only one computes at a time, so that what slows the machine slows all.

- Seconds run from the call that trains to the end of the last step: they include what an epoch begins with, and exclude
  waiting for the turn and evaluation. Before that, each process trains in its own way on some rows, to compile and to
  start its threads, and then puts the weights back.
- Slices differ in length of rows, so the figure is the ratio of the sums over the epoch. Its 95 % interval resamples
  rounds (one slice of each), which includes how rows fell into slices: it is wide rather than narrow.
- The search is greedy: one setting after the other, each raced in the same way against the best so far, for an epoch of
  the same 1,024 rows, drawn as each draws them (grouped by length, the longest of some batches come first: a part of an
  epoch would mislead). A setting that compiles for more than 120 s is given up; else compiling is not counted.
- Accuracy is that of the weights after the epoch, in fp32, by ``tasks.ml.quality.learning`` for all. Peak memory is the
  largest resident set of the process until its last step (Linux only); on a GPU, what torch allocated there.
- Share of peak: 6 · N · tokens / seconds, over the rate of a large square product. N counts parameters outside the
  embeddings, and padding is no token: it is what the epoch is worth, however little or much was computed for it.
- The Trainer reads a plain list of encoded rows, which costs it less than a ``datasets.Dataset``.

Prints Markdown on standard output and progress on standard error; takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

SETTINGS = {"epochs": 1, "learning_rate": 1e-4, "batch_size": 32, "dropout": 0.1, "weight_decay": 0.01, "warmup": 0.1}
CHOICES: dict[str, dict[str, Any]] = {
    "bf16": {"bf16": True},
    "rows grouped by length": {"train_sampling_strategy": "group_by_length"},
    "eager attention": {"attn_implementation": "eager"},
    "a process that loads rows": {"dataloader_num_workers": 1},
    "torch.compile": {"torch_compile": True},
}
"""What the search tries on top of the Trainer's defaults, in this order."""
TRIAL_ROWS = 1024
WARMUP_ROWS = 200
"""Not a multiple of the batch size: the last batch of an epoch may be smaller, and compiling differs for it."""
COMPILE_LIMIT_S = 120.0
RESAMPLES = 10_000
NAMES = ("trainer-defaults", "trainer-best", "featherweight")


# A worker: loads, warms up, trains and is measured; each on its turn.


class Turns:
    """A worker's end of the pipes: it says what it did in its turn, and waits for the next."""

    def __init__(self, steps_per_slice: int, device: str) -> None:
        self.steps_per_slice, self.steps, self.started, self.sliced = steps_per_slice, 0, 0.0, False
        self.device = device
        # Whatever libraries print on standard output goes to the log.
        self.controller = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def say(self, **message: Any) -> None:
        print(json.dumps(message), file=self.controller)
        if not sys.stdin.readline():
            sys.exit("there is no next turn")

    def now(self) -> float:
        """The time, once all that was begun is done."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def begin_epoch(self) -> None:
        self.steps, self.started = 0, self.now()

    def begin_step(self) -> None:
        if self.steps == self.steps_per_slice:
            self.end_epoch()
            self.begin_epoch()
        self.steps += 1

    def end_epoch(self) -> None:
        if self.sliced:
            self.say(seconds=self.now() - self.started, steps=self.steps, peak_mb=held_mb("VmHWM", self.device))


def held_mb(field: str, device: str) -> float:
    """Memory in MB, ``VmRSS`` now or ``VmHWM`` at its most: the resident set, or what torch allocated on a GPU."""
    if device == "cuda":
        import torch

        return (torch.cuda.memory_allocated() if field == "VmRSS" else torch.cuda.max_memory_allocated()) / 1e6
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found, field
    return int(found[1]) * 1024 / 1e6


class Task(NamedTuple):
    """What both trainers are given: the model, labelled rows, and where to report."""

    model: Any
    tokenizer: Any
    rows: Any
    selection: Any
    problem: Any
    seed: int
    settings: Mapping[str, Any]
    """Keyword arguments of ``trainer.fit``."""


def train_theirs(task: Task, turns: Turns, *, changes: Mapping[str, Any]) -> None:
    """Trains with the Trainer.

    Args:
        changes: what is not as a plain script has it.
    """
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    class Gate(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.begin_step()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == state.max_steps:
                turns.end_epoch()

    arguments = dict(changes)
    task.model.set_attn_implementation(arguments.pop("attn_implementation", "sdpa"))
    rows = zip(task.rows.input_ids, task.rows.targets, strict=True)
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(
            model=task.model,
            args=TrainingArguments(
                output_dir=directory,
                use_cpu=turns.device == "cpu",
                seed=task.seed,
                report_to=[],
                save_strategy="no",
                num_train_epochs=task.settings["epochs"],
                per_device_train_batch_size=task.settings["batch_size"],
                learning_rate=task.settings["learning_rate"],
                lr_scheduler_type=task.settings["schedule"],
                warmup_steps=task.settings["warmup"],
                weight_decay=task.settings["weight_decay"],
                max_grad_norm=task.settings["clip_norm"],
                **arguments,
            ),
            train_dataset=[{"input_ids": ids, "labels": int(target)} for ids, target in rows],
            data_collator=DataCollatorWithPadding(task.tokenizer),
            callbacks=[Gate()],
        )
        turns.begin_epoch()
        trainer.train()
        # Else autocast would be wrapped around itself when the same model is trained again.
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)


def train_ours(task: Task, turns: Turns, *, for_model: Mapping[str, Any]) -> None:
    """Trains as the stage ``train`` does."""
    from tasks.ml.jobs import lessons

    class Unseen:
        def start(self, *, total_steps: int, first_step: int) -> None: ...
        def step(self, step: int, point: Mapping[str, float]) -> None: ...
        def evaluation(self, step: int, point: Mapping[str, float]) -> None: ...

    class Waiting:
        """A loss whose steps wait for their turn."""

        def __init__(self, loss: Any) -> None:
            self.loss, self.amounts = loss, loss.amounts

        def __call__(self, rows: list[int], whole: Any) -> Any:
            turns.begin_step()
            return self.loss(rows, whole)

    class Timed(lessons.Lesson):
        @contextmanager
        def step_loss(self, model: Any, **options: Any) -> Iterator[Any]:
            with super().step_loss(model, **options) as loss:
                yield Waiting(loss)

        def quality(self, model: Any) -> dict[str, float]:
            turns.end_epoch()
            return super().quality(model)

    lesson = Timed(
        problem=task.problem,
        pad_id=task.tokenizer.pad_token_id,
        input_ids=task.rows.input_ids,
        targets=task.rows.targets,
        selection=task.selection,
    )
    turns.begin_epoch()
    lesson.learn(task.model, for_model=for_model, observer=Unseen(), seed=task.seed, **task.settings)


def work(spec: Mapping[str, Any]) -> None:
    """The life of a worker, whose ``say`` ends a turn each."""
    turns = Turns(spec["slice"], spec["device"])
    if spec["name"] != "featherweight":
        from transformers import Trainer  # noqa: F401  # part of the memory after loading
    import torch

    from tasks.ml.data import datasets, held_out
    from tasks.ml.models import locators, tokenization
    from tasks.ml.problem import problem_of
    from tasks.ml.quality import learning
    from tasks.ml.training import trainer

    data, problem = Path(spec["data"]), problem_of(spec["problem"])
    base, labels = locators.locate(spec["base_model"]), datasets.info(data).labels
    tokenizer = tokenization.load(base)
    with held_out.asking("judge"):
        splits = {name: datasets.read(data, name) for name in ("train", "selection", "test")}
    rows = splits["train"].head(spec["rows"])

    def load() -> Any:
        trainer.seed_everything(spec["seed"])
        return problem.load_base(base, labels, dropout=spec["dropout"]).to(spec["device"])

    def train(rows: Any) -> None:
        task = Task(model, tokenizer, rows, splits["selection"], spec["problem"], spec["seed"], spec["settings"])
        if spec["name"] == "featherweight":
            train_ours(task, turns, for_model=spec["for_model"])
        else:
            train_theirs(task, turns, changes=spec["changes"])

    model = load()
    embedded = {id(m.weight) for m in model.modules() if type(m).__name__ == "Embedding"}
    turns.say(
        loaded_mb=held_mb("VmRSS", spec["device"]),
        rows=len(rows),
        tokens=sum(len(row) for row in rows.input_ids),
        parameters=sum(p.numel() for p in model.parameters() if id(p) not in embedded),
    )
    started = time.perf_counter()
    train(rows.head(WARMUP_ROWS))
    model.load_state_dict(load().state_dict())
    model.zero_grad()
    gc.collect()
    # What warming up took goes back to the system, and the largest resident set counts from here.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if spec["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    turns.say(warmup_s=time.perf_counter() - started)
    turns.sliced = True
    train(rows)
    trained = load()
    before = torch.cat([p.detach().flatten() for p in trained.parameters()])
    trained.load_state_dict(model.state_dict())
    moved = torch.cat([p.detach().flatten() for p in trained.parameters()]) - before
    quality = {
        name: learning.quality(trained, problem, splits[name], pad_id=tokenizer.pad_token_id) | {"n": len(splits[name])}
        for name in ("selection", "test")
    }
    turns.say(**quality, change=(moved.norm() / before.norm()).item())


# The controller: gives turns, compares and prints.


class Worker:
    """The controller's end of a worker's pipes."""

    def __init__(self, folder: Path, spec: Mapping[str, Any]) -> None:
        self.name, self.slices, self.log = spec["name"], [], folder / "workers.log"
        # Of several GPUs, the Trainer would take all.
        gpus = "" if spec["device"] == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
        environment = {"CUDA_VISIBLE_DEVICES": gpus, "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--worker", json.dumps(spec)],
                env=os.environ | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.about = self.hear()
        self.warm: dict[str, float] = {}

    def hear(self, limit_s: float | None = None) -> dict[str, Any]:
        """What it says at the end of its turn.

        Raises:
            TimeoutError: it says nothing for so long.
        """
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], limit_s)[0]:
            raise TimeoutError
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} failed:\n" + self.log.read_text()[-5000:])
        return json.loads(line)

    def turn(self, limit_s: float | None = None) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return self.hear(limit_s)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def race(folder: Path, specs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Trains an epoch each, taking turns, and returns what was measured of each; ``None`` if one compiled too long."""
    workers: list[Worker] = []
    try:
        for spec in specs:
            workers.append(Worker(folder, spec))
            workers[-1].warm = workers[-1].turn(COMPILE_LIMIT_S)
        steps = -(-workers[0].about["rows"] // specs[0]["settings"]["batch_size"])
        rounds = -(-steps // specs[0]["slice"])
        for number in range(rounds):
            # Whoever comes first in a round comes last in the next.
            for worker in workers[number % len(workers) :] + workers[: number % len(workers)]:
                worker.slices.append(worker.turn())
            speeds = (f"{w.name} {w.slices[-1]['steps'] / w.slices[-1]['seconds']:.2f}" for w in workers)
            say(f"round {number + 1} of {rounds}, steps/s: {', '.join(speeds)}")
        assert all(sum(each["steps"] for each in worker.slices) == steps for worker in workers)
        return [
            worker.about
            | worker.warm
            | {"name": worker.name, "seed": spec["seed"], "peak_mb": worker.slices[-1]["peak_mb"]}
            | {"seconds": [each["seconds"] for each in worker.slices]}
            | worker.turn()
            for worker, spec in zip(workers, specs, strict=True)
        ]
    except TimeoutError:
        return None
    finally:
        for worker in workers:
            worker.end()


def times_faster(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float]:
    """Ratio of the sums over rounds with its bootstrap interval, and the quartiles of the rounds' own ratios."""
    rounds = np.array([slower, faster])
    index = np.random.default_rng(0).integers(rounds.shape[1], size=(RESAMPLES, rounds.shape[1]))
    above, below = rounds[:, index].sum(axis=-1)
    low, high = np.quantile(above / below, [0.025, 0.975])
    quartiles = np.quantile(rounds[0] / rounds[1], [0.25, 0.5, 0.75])
    return {
        "measured": float(rounds[0].sum() / rounds[1].sum()), "low": float(low), "high": float(high),
        "lower_quartile": float(quartiles[0]), "median": float(quartiles[1]), "upper_quartile": float(quartiles[2]),
    }  # fmt: skip


def search(folder: Path, spec: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The Trainer's best settings, and how each choice did against the best before it."""
    best: dict[str, Any] = {}
    trials: list[dict[str, Any]] = []
    for choice, change in CHOICES.items():
        candidates = [{"name": "best so far", "changes": best}, {"name": choice, "changes": best | change}]
        done = race(folder, [{**spec, **candidate, "rows": min(spec["rows"], TRIAL_ROWS)} for candidate in candidates])
        if done is None:
            say(f"search: {choice}: given up after {COMPILE_LIMIT_S:.0f} s of warm-up")
            trials.append({"choice": choice, "given_up": True})
            continue
        ratio = times_faster(done[0]["seconds"], done[1]["seconds"])
        trials.append({"choice": choice, **ratio, "warmup_s": done[1]["warmup_s"], "runs": done})
        say(f"search: {choice}: {interval(ratio)} times as fast; warm-up took {done[1]['warmup_s']:.0f} s")
        if ratio["measured"] > 1:
            best = best | change
    return best, trials


def prepare(folder: Path, name: str = "demo") -> dict[str, Any]:
    """Makes the dataset of a recipe as the stage ``prepare`` does, and says what workers need to know."""
    from flows.command import recipe_files
    from tasks.contracts.hyperparameters import ComputeConfig
    from tasks.engine import disk
    from tasks.ml.data import datasets, sources, splitting
    from tasks.ml.models import locators, tokenization
    from tasks.ml.problem import problem_of
    from tasks.train import TrainingConfig

    recipe, config, compute = recipe_files.load(name), TrainingConfig(**SETTINGS), ComputeConfig()
    table = sources.read(
        recipe.data.source, text=recipe.data.text, label=recipe.data.label, cache=disk.home() / "cache"
    )
    division = splitting.divide(
        problem_of(recipe.problem).targets(table),
        test=recipe.data.test_fraction,
        selection=recipe.data.selection_fraction,
        calibration=recipe.data.calibration_fraction,
    )
    problem, base = str(recipe.problem), locators.locate(recipe.base_model)
    tokenizer = tokenization.load(base)
    (folder / "data").mkdir()
    datasets.write(folder / "data", division, tokenizer, max_length=recipe.data.max_length)
    return {
        "data": str(folder / "data"), "problem": problem, "base_model": recipe.base_model, "dropout": config.dropout,
        "settings": config.for_trainer() | compute.for_trainer(), "for_model": config.for_model() | compute.for_model(),
    }  # fmt: skip


def peaks(device: str) -> dict[str, float]:
    """Largest measured rate of a square product in FLOP/s."""
    import torch

    from tasks.ml.training.precision import matmul_rate

    return {name: matmul_rate(device, getattr(torch, name), seconds=2.0) for name in ("float32", "bfloat16")}


def shares(runs: Sequence[Mapping[str, Any]], rates: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Of each worker, the share of each peak that was of use: by type, 6 · N · tokens / seconds / peak."""
    useful: dict[str, float] = {}
    for name in NAMES:
        mine = [run for run in runs if run["name"] == name]
        seconds = sum(s for run in mine for s in run["seconds"])
        useful[name] = sum(6 * run["parameters"] * run["tokens"] for run in mine) / seconds
    return {name: {kind: value / rate for kind, rate in rates.items()} for name, value in useful.items()}


def interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio['measured']:.2f} ({ratio['low']:.2f} … {ratio['high']:.2f})"


def table(runs: Sequence[Mapping[str, Any]], rates: Mapping[str, float]) -> str:
    """What was measured, in Markdown, a column per worker; seeds are put together in time and apart in accuracy."""
    of = {name: [run for run in runs if run["name"] == name] for name in NAMES}
    rounds = {name: [s for run in found for s in run["seconds"]] for name, found in of.items()}
    share = shares(runs, rates)
    faster = {n: {other: times_faster(rounds[other], rounds[n]) for other in NAMES if other != n} for n in NAMES}

    def quartiles(found: Mapping[str, float]) -> str:
        return f"{found['median']:.2f} ({found['lower_quartile']:.2f} … {found['upper_quartile']:.2f})"

    def line(title: str, value: Callable[[str], str]) -> str:
        return f"| {title} | {' | '.join(value(name) for name in NAMES)} |"

    def per_seed(value: Callable[[Mapping[str, Any]], str]) -> Callable[[str], str]:
        return lambda name: ", ".join(value(run) for run in of[name])

    def against(other: str, show: Callable[[Mapping[str, float]], str]) -> Callable[[str], str]:
        return lambda name: show(faster[name][other]) if name != other else "1"

    seeds = ", ".join(str(run["seed"]) for run in of[NAMES[0]])
    lines = [
        line("measure", lambda name: name),
        "|---" * (1 + len(NAMES)) + "|",
        line("samples/s", lambda name: f"{sum(run['rows'] for run in of[name]) / sum(rounds[name]):.1f}"),
        *(line(f"times as fast as {other}", against(other, interval)) for other in NAMES[:2]),
        *(line(f"the same, median round (quartiles), {other}", against(other, quartiles)) for other in NAMES[:2]),
        line("seconds an epoch", per_seed(lambda run: f"{sum(run['seconds']):.1f}")),
        line("warm-up, s", per_seed(lambda run: f"{run['warmup_s']:.1f}")),
        line("peak memory, MB", per_seed(lambda run: f"{run['peak_mb']:.0f}")),
        line("of which after loading, MB", per_seed(lambda run: f"{run['loaded_mb']:.0f}")),
        *(
            line(f"accuracy, {s}, n = {runs[0][s]['n']}", per_seed(lambda run, s=s: f"{run[s]['quality']:.4f}"))
            for s in ("selection", "test")
        ),
        *(
            line(f"share of peak, {kind} ({rate / 1e9:.0f} GFLOP/s)", lambda n, kind=kind: f"{share[n][kind]:.1%}")
            for kind, rate in rates.items()
        ),
    ]  # fmt: skip
    return f"{runs[0]['rows']} rows, seeds {seeds}\n\n" + "\n".join(lines)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--recipe", default="demo", help="whose data and base model to take; the demo's by default")
    parser.add_argument("--rows", type=int, default=sys.maxsize, help="rows to train on; all by default")
    parser.add_argument("--slice", type=int, default=10, help="optimizer steps a turn")
    parser.add_argument("--best", type=json.loads, help="the Trainer's best settings, as JSON: skips the search")
    parser.add_argument("--keep", type=Path, help="an empty directory for the data and the log of the workers")
    parser.add_argument("--json", type=Path, help="a file for everything that was measured")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="featherweight-benchmark-"))
    folder.mkdir(parents=True, exist_ok=True)
    spec = prepare(folder, options.recipe) | {
        "rows": options.rows, "slice": options.slice, "seed": options.seeds[0], "device": options.device
    }  # fmt: skip
    rates = peaks(options.device)
    best, trials = (options.best, []) if options.best is not None else search(folder, spec)
    say(f"the Trainer's best settings: {best or 'its defaults'}")
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        changes = dict(zip(NAMES, ({}, best, {}), strict=True))
        done = race(folder, [{**spec, "name": name, "seed": seed, "changes": changes[name]} for name in NAMES])
        assert done, f"compiling took more than {COMPILE_LIMIT_S:.0f} s"
        runs += done
    if trials:
        print("| the Trainer with | times as fast as the best before |\n|---|---|")
        for trial in trials:
            print(f"| {trial['choice']} | {'given up' if 'given_up' in trial else interval(trial)} |")
    print(f"\nThe Trainer's best settings: `{json.dumps(best)}`\n\n{table(runs, rates)}")
    if options.json:
        document = {"best": best, "trials": trials, "runs": runs, "peak_flops": rates, "settings": spec["settings"]}
        document["shares_of_peak"] = shares(runs, rates)
        options.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
