"""What OpenVINO and llama.cpp make of a decoder and how they answer, in their own environment: a process per call.

    python llm_worker.py make NAME MODEL FOLDER ROWS
    python llm_worker.py perplexity FOLDER ROWS
    python llm_worker.py speeds FOLDER

MODEL is a Hugging Face directory with a Llama, ROWS a JSON object with a list of rows of token ids, FOLDER an empty one
for what is made, or a made one. Imported elsewhere it needs nothing but Python: the names are in ``CONFIGURATIONS``.
Each peer computes as it does by itself (OpenVINO reads what products read in groups of 8 bits, and keeps its cache in 8
bits), with two threads; what is measured of quality is measured so, too.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

THREADS = 2
CONTEXT = 2048
CONTEXTS = (128, 1024)
GENERATED = 96
GGUF, OPENVINO = "model.gguf", "openvino_model.xml"


# OpenVINO


def openvino(source: Path, folder: Path, rows: Sequence[list[int]], **options: Any) -> None:
    """Conversion by optimum-intel, and NNCF's compression of weights; what it leaves out of 4 bits gets 8."""
    import nncf
    import numpy as np
    import openvino as ov
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM
    from transformers import AutoTokenizer

    model = OVModelForCausalLM.from_pretrained(source, export=True, compile=False, load_in_8bit=False)

    def feed(row: Sequence[int]) -> dict[str, Any]:
        ids = np.array([row], dtype=np.int64)
        places = np.arange(len(row), dtype=np.int64)[None]
        known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": places}
        return known | {"beam_idx": np.zeros(1, dtype=np.int32)}

    if options.pop("with_data", False):
        options["dataset"] = nncf.Dataset([feed(row) for row in rows])
    smaller = nncf.compress_weights(model.model, mode=nncf.CompressWeightsMode.INT4_ASYM, ratio=1.0, **options)
    ov.save_model(smaller, folder / OPENVINO)
    model.config.save_pretrained(folder)
    for part, name in zip(
        convert_tokenizer(AutoTokenizer.from_pretrained(source), with_detokenizer=True),
        ("openvino_tokenizer.xml", "openvino_detokenizer.xml"),
        strict=True,
    ):
        ov.save_model(part, folder / name)


def openvino_answers(folder: Path) -> Callable[[Sequence[int]], Any]:
    """What gives the logits (S, V) of token ids."""
    import numpy as np
    import openvino as ov

    core = ov.Core()
    compiled = core.compile_model(folder / OPENVINO, "CPU", {"INFERENCE_NUM_THREADS": THREADS})
    request, inputs = compiled.create_infer_request(), {name for port in compiled.inputs for name in port.names}

    def ask(row: Sequence[int]) -> Any:
        request.reset_state()
        ids = np.array([row], dtype=np.int64)
        known = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        known |= {"position_ids": np.arange(len(row), dtype=np.int64)[None], "beam_idx": np.zeros(1, dtype=np.int32)}
        return request.infer({name: value for name, value in known.items() if name in inputs})["logits"][0]

    return ask


def openvino_times(folder: Path) -> Callable[[Sequence[int]], tuple[float, float]]:
    """What gives the seconds until a prompt's first token, and of each later one."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    pipeline = genai.LLMPipeline(str(folder), "CPU", INFERENCE_NUM_THREADS=THREADS, PERFORMANCE_HINT="LATENCY")
    settings = genai.GenerationConfig()
    settings.max_new_tokens, settings.ignore_eos, settings.do_sample = GENERATED + 1, True, False

    def ask(prompt: Sequence[int]) -> tuple[float, float]:
        ids = np.array([prompt], dtype=np.int64)
        asked = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        found = pipeline.generate(asked, settings).perf_metrics
        assert found.get_num_generated_tokens() == GENERATED + 1
        return found.get_ttft().mean / 1e3, found.get_tpot().mean / 1e3

    return ask


# llama.cpp


def llama(source: Path, folder: Path, rows: Sequence[list[int]], *, kind: str) -> None:
    """A GGUF file with the weights in fp32, and llama.cpp's own rounding of it."""
    import llama_cpp

    whole = folder / "whole.gguf"
    _as_gguf(source, whole)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), THREADS
    if llama_cpp.llama_model_quantize(str(whole).encode(), str(folder / GGUF).encode(), settings):
        raise SystemExit(f"llama.cpp could not make {kind}")
    whole.unlink()


def _as_gguf(source: Path, path: Path) -> None:
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    described = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    special = {added["content"] for added in described["added_tokens"] if added["special"]}
    ordered = sorted(described["model"]["vocab"].items() | {(a["content"], a["id"]) for a in described["added_tokens"]},
                     key=lambda item: item[1])  # fmt: skip
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([token for token, _ in ordered])
    kinds = (gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token, _ in ordered)
    writer.add_token_types(list(kinds))
    merges = described["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    tensors = {name: value for file in source.glob("*.safetensors") for name, value in load_file(file).items()}
    for name, value in tensors.items():
        # llama.cpp rotates neighbours, and transformers halves.
        if turned := re.search(r"\.(q|k)_proj\.weight$", name):
            count = heads if turned[1] == "q" else kv_heads
            value = value.reshape(count, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), value.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _loaded(folder: Path, **options: Any) -> Any:
    from llama_cpp import Llama

    threads = {"n_threads": THREADS, "n_threads_batch": THREADS}
    return Llama(str(folder / GGUF), n_ctx=CONTEXT, verbose=False, **threads, **options)


def llama_answers(folder: Path) -> Callable[[Sequence[int]], Any]:
    """What gives the logits (S, V) of token ids."""
    model = _loaded(folder, logits_all=True)

    def ask(row: Sequence[int]) -> Any:
        model.reset()
        model.eval(row)
        return model.scores[: len(row)].copy()

    return ask


def llama_times(folder: Path) -> Callable[[Sequence[int]], tuple[float, float]]:
    """What gives the seconds until a prompt's first token, and of each later one."""
    model = _loaded(folder)

    def ask(prompt: Sequence[int]) -> tuple[float, float]:
        model.reset()
        started = time.perf_counter()
        model.eval(prompt)
        token = int(model.scores[0].argmax())
        read = time.perf_counter()
        for _ in range(GENERATED):
            model.eval([token])
            token = int(model.scores[0].argmax())
        return read - started, (time.perf_counter() - read) / GENERATED

    return ask


# Both


CONFIGURATIONS: Mapping[str, Callable[[Path, Path, Sequence[list[int]]], None]] = {
    "OpenVINO, groups of 32": partial(openvino, group_size=32),
    "OpenVINO, groups of 64": partial(openvino, group_size=64),
    "OpenVINO, groups of 64, AWQ and scale estimation": partial(
        openvino, group_size=64, with_data=True, awq=True, scale_estimation=True
    ),
    "llama.cpp, Q4_0": partial(llama, kind="Q4_0"),
    "llama.cpp, Q4_K_M": partial(llama, kind="Q4_K_M"),
}


def lost(ask: Callable[[Sequence[int]], Any], rows: Sequence[list[int]]) -> dict[str, float]:
    """Nats that rows lose by what gives their logits (S, V), and their tokens."""
    import numpy as np

    nats, tokens = 0.0, 0
    for row in rows:
        logits = np.asarray(ask(row)[:-1], dtype=np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        told = logits[np.arange(len(row) - 1), row[1:]] - np.log(np.exp(logits).sum(axis=-1))
        nats, tokens = nats - float(told.sum()), tokens + len(row) - 1
    return {"nats": nats, "tokens": tokens}


def perplexity(folder: Path, file: Path) -> dict[str, float]:
    """Nats that rows of a file lose, and their tokens."""
    return lost((llama_answers if (folder / GGUF).is_file() else openvino_answers)(folder), rows_of(file))


def peak_mb() -> float:
    """Highest resident set of this process, MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1e3  # type: ignore[index]


def speeds(folder: Path) -> dict[str, float]:
    """Tokens a second of reading and of writing at two lengths of context, and the highest resident set, MB."""
    import numpy as np

    ask = (llama_times if (folder / GGUF).is_file() else openvino_times)(folder)
    generator, found = np.random.default_rng(0), {}
    for context in CONTEXTS:
        for _ in range(2):  # the first brings memory and threads; another text, since a text may be remembered
            read, written = ask(generator.integers(1000, 40_000, context).tolist())
        found |= {f"prefill, {context}": context / read, f"decode, {context}": 1 / written}
    return found | {"memory": peak_mb()}


def rows_of(file: Path) -> list[list[int]]:
    """Rows of token ids, as a file has them."""
    rows: list[list[int]] = json.loads(file.read_text(encoding="ascii"))["rows"]
    return rows


def main() -> None:
    what, *given = sys.argv[1:]
    if what == "make":
        name, source, folder, rows = given
        CONFIGURATIONS[name](Path(source), Path(folder), rows_of(Path(rows)))
        print("{}")
    elif what == "perplexity":
        print(json.dumps(perplexity(*map(Path, given))))
    else:
        print(json.dumps(speeds(Path(given[0]))))


if __name__ == "__main__":
    main()
