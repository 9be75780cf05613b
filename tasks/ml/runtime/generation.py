"""Greedy generation with a cache of keys and values, one text at a time, as a decoder is served. Imports no torch.

S = new tokens, V = vocabulary, P = tokens in the cache, K = heads of keys and values, D = head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from tasks.ml.runtime import sessions

if TYPE_CHECKING:
    from torch import nn

AT_ONCE = 128
"""Tokens of a prompt that a graph reads at once: each of them has logits of a whole vocabulary."""

Read = Callable[[Sequence[int]], np.ndarray]
"""Reads the next tokens of a text into its cache; returns logits (…, V), of which the last are the last token's."""
Begin = Callable[[], Read]
"""Begins a text: its cache is empty."""


def of_session(session: ort.InferenceSession, *, at_once: int = AT_ONCE) -> Begin:
    """Texts that a graph with a cache reads. What a step leaves in the cache stays where it was computed, and is what
    the next step is given.

    Args:
        at_once: most tokens of a step; 0: all that are given, whose logits (S, V) are then returned.
    """
    types = {one.name: sessions.TYPES[one.type] for one in session.get_inputs()}
    device = "cuda" if sessions.CUDA in session.get_providers() else "cpu"
    empty = sessions.wanted(session, sessions.feed([[0]], pad_id=0))
    names = [name for name in empty if name.startswith(sessions.CACHE)]

    def begin() -> Read:
        cache = {name: ort.OrtValue.ortvalue_from_numpy(empty[name]) for name in names}
        done = 0

        def step(tokens: Sequence[int]) -> Any:
            nonlocal cache, done
            done += len(tokens)
            binding = session.io_binding()
            binding.bind_cpu_input("input_ids", np.array([tokens], dtype=types["input_ids"]))
            binding.bind_cpu_input("attention_mask", np.ones((1, done), dtype=types["attention_mask"]))
            binding.bind_output("logits", "cpu")
            for name, value in cache.items():
                binding.bind_ortvalue_input(name, value)
                binding.bind_output(name.replace(sessions.CACHE, sessions.NEW_CACHE), device)
            session.run_with_iobinding(binding)
            logits, *values = binding.get_outputs()
            cache = dict(zip(cache, values, strict=True))
            return logits

        def read(tokens: Sequence[int]) -> np.ndarray:
            size = at_once or len(tokens)
            *_, last = (step(tokens[start : start + size]) for start in range(0, len(tokens), size))
            found: np.ndarray = last.numpy()[0]
            return found

        return read

    return begin


def of_module(model: nn.Module) -> Begin:
    """Texts that a decoder of transformers reads on its device, in eager mode; a step computes its last logits only,
    as transformers generates."""
    import torch
    from transformers import DynamicCache

    device = next(model.parameters()).device

    def begin() -> Read:
        cache = DynamicCache(config=model.config)  # type: ignore[arg-type]

        def read(tokens: Sequence[int]) -> np.ndarray:
            with torch.inference_mode():
                ids = torch.tensor([list(tokens)], device=device)
                found = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            logits: np.ndarray = found[0].float().cpu().numpy()
            return logits

        return read

    return begin


def greedy(read: Read, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest tokens after a prompt, one after the other; no token ends a text."""
    tokens = [int(read(prompt)[-1].argmax())]
    while len(tokens) < count:
        tokens.append(int(read(tokens[-1:])[-1].argmax()))
    return tokens
