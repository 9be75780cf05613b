"""What onnxruntime-genai has to know of a folder with a decoder's graph: ``genai_config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from tasks.ml.graph import decoding
from tasks.ml.models import decoders

FILE = "genai_config.json"


def describe(
    model: nn.Module,
    *,
    graph: str,
    ends: list[int],
    begins: int | None,
    pads: int,
    length: int,
    grows_in_place: bool = True,
) -> dict[str, Any]:
    """The description of a graph that ``decoding.Builder`` built.

    Args:
        graph: its file.
        ends: tokens after which nothing is generated.
        begins: the token that a text begins with, if one does.
        pads: the token that rows are filled up with.
        length: tokens of the longest text.
        grows_in_place: whether attention writes into a cache of ``length`` tokens; on CPUs not with one in int8.
    """
    config: Any = model.config
    attention = decoders.attention(model)
    key, value = (name.replace("0", "%d") for name in decoding.past(0))
    new_key, new_value = (name.replace("0", "%d") for name in decoding.present(0))
    return {
        "model": {
            "type": config.model_type,
            "vocab_size": config.vocab_size,
            "context_length": length,
            "bos_token_id": ends[0] if begins is None else begins,
            "eos_token_id": ends,
            "pad_token_id": pads,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": graph,
                "head_size": attention.head_size,
                "hidden_size": config.hidden_size,
                "num_attention_heads": attention.heads,
                "num_key_value_heads": attention.kv_heads,
                "num_hidden_layers": len(decoders.of_model(model).layer_list(model)),
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": key,
                    "past_value_names": value,
                },
                "outputs": {"logits": "logits", "present_key_names": new_key, "present_value_names": new_value},
            },
        },
        "search": {"do_sample": False, "max_length": length, "past_present_share_buffer": grows_in_place},
    }


def write(directory: Path, described: dict[str, Any]) -> None:
    """Writes a description into the folder of its graph."""
    (directory / FILE).write_text(json.dumps(described, indent=1), encoding="utf-8")
