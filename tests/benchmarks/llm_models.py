"""The decoders that ``llm.py`` compares: one that is fine-tuned, and what this project and a peer make of it."""

from __future__ import annotations

import hashlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BASE, REVIEWS = "demo:smollm2-135m-instruct", "movie-reviews"
LENGTH = 512
"""Tokens of a text, at most."""
OURS: Mapping[str, dict[str, Any]] = {
    "ours, nearest, head in 4 bits": {"rounding": "clipped", "table_bits": 4},
    "ours, gptq, head in 4 bits": {"rounding": "gptq", "table_bits": 4},
    "ours, gptq, head in 8 bits": {"rounding": "gptq", "table_bits": 8},
    "ours, gptq, head in 4 bits, blocks of 64": {"rounding": "gptq", "table_bits": 4, "block_size": 64},
    "ours, gptq, head in 4 bits, blocks of 128": {"rounding": "gptq", "table_bits": 4, "block_size": 128},
}
THEIRS: Mapping[str, dict[str, str]] = {
    "genai builder, default": {},
    "genai builder, k_quant": {"algo_config": "k_quant"},
    "genai builder, blocks of 128": {"block_size": "128"},
}


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


def rotated(source: Path, folder: Path) -> None:
    """The same function by other weights: the norms' are multiplied into the columns of what reads them, and hidden
    states are rotated by a random orthogonal matrix, as RMS norms without weights allow (SliceGPT, Ashkboos et al.
    2024, arXiv:2401.15024, section 3.1). The final norm is not the table's affair, so the head becomes one of its own.
    """
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = torch.tensor([tokenizer("Of all the films that I have seen this year, this one").input_ids])
    with torch.no_grad():
        before, width = model(ids).logits, model.config.hidden_size
        generator = torch.Generator().manual_seed(0)
        turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]

        def read(linear: Any, norm: Any) -> None:
            linear.weight = nn.Parameter((linear.weight.double() * norm.weight.double() @ turn).float())

        def written(linear: Any) -> None:
            linear.weight = nn.Parameter((turn.T @ linear.weight.double()).float())

        head = nn.Linear(width, model.config.vocab_size, bias=False)
        head.weight = nn.Parameter(model.lm_head.weight.clone())
        model.lm_head, model.config.tie_word_embeddings = head, False
        read(model.lm_head, model.model.norm)
        model.model.norm.weight.fill_(1)
        table = model.model.embed_tokens
        table.weight = nn.Parameter((table.weight.double() @ turn).float())
        for layer in model.model.layers:
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                read(linear, layer.input_layernorm)
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                read(linear, layer.post_attention_layernorm)
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                written(linear)
            layer.input_layernorm.weight.fill_(1)
            layer.post_attention_layernorm.weight.fill_(1)
        off = (model(ids).logits - before).abs().max().item()
    if off > 1e-2:
        raise SystemExit(f"the rotated model is another function: logits are {off:.1e} off")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
    source: Path, folder: Path, packages: Path, *, rounding: str, table_bits: int, block_size: int = 32, bits: float = 4
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
        model, rows, bits=bits, block_size=block_size, table_bits=table_bits, rounding=rounding, length=LENGTH
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
