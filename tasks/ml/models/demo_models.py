"""Base models that come with nothing: a tiny random decoder that reads bytes, made where it is asked for."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np

from tasks.contracts.base import FeatherweightError

TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 384,
    "max_position_embeddings": 256, "vocab_size": 258, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 257,
    "attention_bias": False, "mlp_bias": False, "initializer_range": 0.02,
}  # fmt: skip
MODELS = {"tiny-llama": TINY_LLAMA}
END, PADDING = "<|end|>", "<|pad|>"


def directory(name: str, *, field: str) -> Path:
    """The directory of a demo model, which is made unless it is there: the same each time.

    Raises:
        FeatherweightError: there is no demo model of that name.
    """
    if name not in MODELS:
        raise FeatherweightError(f"{field}: there is no demo model {name!r}; there is {', '.join(MODELS)}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featherweight"
    folder = cache / name
    if not (folder / "config.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache))
        _write(made, MODELS[name])
        try:
            made.rename(folder)
        except OSError:  # another process was first
            for path in made.iterdir():
                path.unlink()
            made.rmdir()
    return folder


def _write(folder: Path, config: dict[str, object]) -> None:
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    from tasks.ml.models import decoders as architectures

    random = np.random.default_rng(0)
    shapes = architectures.LLAMA.tensors(config)
    tensors = {
        f"model.{name}": (
            np.ones(shape, dtype=np.float32)
            if len(shape) == 1
            else random.normal(scale=0.02, size=shape).astype(np.float32)
        )
        for name, shape in shapes.items()
    }
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens([END, PADDING])
    core.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END, "pad_token": PADDING}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
