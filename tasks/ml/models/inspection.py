"""What the directory of a base model holds: settings, every tensor by name and shape, the tokenizer's kind.

Configuration and headers are read, so that looking costs milliseconds and needs no torch. Whatever would be loaded in
part, or as something else than it is, is refused here by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import architectures, families, locators

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
TOKENIZERS = {"tokenizer.json": "", "vocab.txt": "WordPiece", "vocab.json": "BPE"}
"""Files that a tokenizer can be made of, and the kind that each means; empty where the file says it itself."""
SENTENCEPIECE = "*.model"

POINTER = b"version https://git-lfs"
LENGTH_BYTES = 8
LARGEST_HEADER = 100_000_000
"""Bytes; the safetensors library reads no larger one."""
EXPONENTS = {
    "F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "F16": ("<u2", 0x1F << 10), "BF16": ("<u2", 0xFF << 7),
}  # fmt: skip
"""By type of number: unsigned integers of its size, and the bits of the exponent, all of which NaN and infinity set."""
CHUNK = 1 << 16
BUFFERS = ("position_ids", "token_type_ids", "rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""What older checkpoints store beside parameters; models make it themselves."""
SHOWN = 3
HEAD = "lm_head."
"""A decoder's head, which is not stored where it is the token table."""

ABSENT: tuple[Any, ...] = (None, False, 0, "", [], {})
SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "chunk_size_feed_forward": ABSENT,
    "position_embedding_type": (*ABSENT, "absolute"),
    "is_decoder": ABSENT,
    "add_cross_attention": ABSENT,
    "pruned_heads": ABSENT,
    "quantization_config": ABSENT,
}
"""Values of settings with which training, surgery and export compute what the model is; with others they would not."""


@dataclass(frozen=True)
class Tensor:
    """Where a stored tensor lies: bytes ``start`` to ``end`` of a file."""

    file: Path
    dtype: str
    """As safetensors names it, such as ``F32``."""
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Inspection:
    """A base model that is whole."""

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    """All that is stored, by its name in the backbone, or in the model on it."""

    @property
    def family(self) -> architectures.Architecture:
        return architectures.of(self.config["model_type"])

    @property
    def head(self) -> list[str]:
        """Names of the stored parameters of a classifier, and of the layer between it and the backbone."""
        return sorted(name for name in self.tensors if _is_head(self.family, name))

    @property
    def head_size(self) -> int:
        """Columns of one attention head."""
        size = self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"]
        return int(size)


def inspect(directory: Path) -> Inspection:
    """Looks at a model directory that ``locators.locate`` found.

    Raises:
        FeatherweightError: a setting is not supported, a file is missing or cut, or the stored tensors are not those
            of the configuration.
    """
    config = settings(directory)
    family = architectures.of(config["model_type"])
    require_no_pointers(directory)
    tokenizer_files(directory)
    stored = stored_tensors(directory)
    found = Inspection(directory, config, {_plain(name, family): tensor for name, tensor in stored.items()})
    _account(found, stored)
    return found


def settings(directory: Path) -> dict[str, Any]:
    """Reads the configuration of a model directory; every architecture's settings by the same names.

    Raises:
        FeatherweightError: the architecture or a setting is not supported, or a size is missing.
    """
    config = locators.read_config(directory)
    architecture = architectures.of(str(config["model_type"]))
    config = architecture.settings(config)
    place = f"base_model: {directory / 'config.json'}"
    for name in architecture.sizes:
        value = config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            said = f"has {name} {value!r}" if name in config else f"has no {name}"
            raise FeatherweightError(f"{place} {said}; it must be a whole number above 0")
    if not config.get("head_dim") and config["hidden_size"] % config["num_attention_heads"]:
        raise FeatherweightError(
            f"{place}: num_attention_heads {config['num_attention_heads']} does not divide hidden_size "
            f"{config['hidden_size']}"
        )
    for name, allowed in SETTINGS.items():
        if config.get(name) not in allowed:
            right = f"{allowed[-1]!r} or none" if allowed[-1] else "none"
            raise FeatherweightError(f"{place}: {name} {str(config[name])[:80]!r} is not supported; it must be {right}")
    return config


def require_no_pointers(directory: Path, *, field: str = "base_model") -> None:
    """Raises ``FeatherweightError`` if a file is a Git LFS pointer to what should be in it."""
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.suffix in (*locators.DESCRIPTIONS, locators.WEIGHTS):
            with path.open("rb") as file:
                if file.read(len(POINTER)) == POINTER:
                    raise FeatherweightError(
                        f"{field}: {path} is a Git LFS pointer and not the file itself; fetch it with 'git lfs pull'"
                    )


def tokenizer_files(directory: Path) -> list[Path]:
    """Files of a model directory that a tokenizer can be made of, the one that says most first.

    Raises:
        FeatherweightError: there is none; transformers would make up a tokenizer of special tokens.
    """
    named = [directory / name for name in TOKENIZERS if (directory / name).is_file()]
    found = named + sorted(path for path in directory.glob(SENTENCEPIECE) if path.is_file())
    if not found:
        raise FeatherweightError(
            f"base_model: {directory} has no tokenizer ({', '.join(TOKENIZERS)} or {SENTENCEPIECE}); copy the files "
            "of the tokenizer that the model was trained with there"
        )
    return found


def tokenizer_kind(directory: Path) -> str:
    """``WordPiece``, ``BPE``, ``Unigram`` or ``WordLevel``; empty where the files do not tell.

    Raises:
        FeatherweightError: ``tokenizer.json`` is no description of a tokenizer.
    """
    return str(tokenizer_model(directory).get("type") or "")


def tokenizer_model(directory: Path) -> dict[str, Any]:
    """What ``tokenizer.json`` has under ``model``; the ``type`` alone where other files tell no more.

    Raises:
        FeatherweightError: it is no description of a tokenizer.
    """
    path = tokenizer_files(directory)[0]
    if path.name != "tokenizer.json":
        return {"type": TOKENIZERS.get(path.name, "Unigram")}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["model"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FeatherweightError(f"base_model: {path} is not the description of a tokenizer: {error}") from None


def is_wordpiece(directory: Path) -> bool:
    """Whether the tokenizer is WordPiece, as far as its files tell."""
    return tokenizer_kind(directory) in ("WordPiece", "")


def stored_tensors(directory: Path, *, field: str = "base_model") -> dict[str, Tensor]:
    """Reads what safetensors files hold, by the names that stand in them, from their headers.

    Args:
        field: what errors say was wrong.

    Raises:
        FeatherweightError: a file is missing, cut or something else.
    """
    if (directory / ADAPTER).is_file() or not any((directory / name).is_file() for name in (WEIGHTS, INDEX)):
        there = sorted(path.name for path in directory.glob(f"*{locators.WEIGHTS}"))
        if (directory / ADAPTER).is_file() or any(name.startswith("adapter") for name in there):
            raise FeatherweightError(
                f"{field}: {directory} is an adapter without the model it was trained on; merge the two "
                "(merge_and_unload in peft) and name the result"
            )
        raise FeatherweightError(
            f"{field}: {directory} has neither {WEIGHTS} nor {INDEX}; there is {', '.join(there) or 'no such file'}"
        )
    if (directory / WEIGHTS).is_file():
        return _header(directory / WEIGHTS, field)
    index = directory / INDEX
    try:
        places = {str(name): str(file) for name, file in json.loads(index.read_text("utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FeatherweightError(f"{field}: {index} is not an index of weights: {error}") from None
    files = sorted(set(places.values()))
    if gone := [name for name in files if not (directory / name).is_file()]:
        raise FeatherweightError(f"{field}: {directory / gone[0]} is missing, which {INDEX} names; fetch it")
    found = {name: tensor for file in files for name, tensor in _header(directory / file, field).items()}
    if gone := sorted(places.keys() - found.keys()):
        raise FeatherweightError(f"{field}: {_listed(gone)} not in the files that {index} names")
    return found


def _header(path: Path, field: str) -> dict[str, Tensor]:
    """Reads the header of one safetensors file, and compares it with the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        text = file.read(length) if length <= LARGEST_HEADER else b""
    try:
        described = json.loads(text)
        data = LENGTH_BYTES + length
        found = {
            name: Tensor(
                path, str(about["dtype"]), tuple(map(int, about["shape"])),
                *(data + int(offset) for offset in about["data_offsets"]),
            )
            for name, about in described.items() if name != "__metadata__"
        }  # fmt: skip
        whole = max((tensor.end for tensor in found.values()), default=data)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FeatherweightError(
            f"{field}: {path} ({size} bytes) is not a whole safetensors file; fetch it again"
        ) from None
    if whole != size:
        raise FeatherweightError(f"{field}: {path} has {size} bytes and should have {whole}; fetch it again")
    return found


def _plain(name: str, family: architectures.Architecture) -> str:
    """The name of a tensor in the backbone, whatever is on it, and however old the checkpoint is."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.replace(old, new)
    return name.removeprefix(f"{family.prefix}.")


def _is_head(family: architectures.Architecture, name: str) -> bool:
    if not isinstance(family, families.Family):
        return name.startswith(HEAD)
    head = (f"{part.removeprefix(f'{family.prefix}.')}." for part in (family.summary, family.classifier))
    return name.startswith(tuple(head))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more} {'is' if len(names) == 1 else 'are'}"


def _account(found: Inspection, stored: Mapping[str, Tensor]) -> None:
    """Refuses a checkpoint that is not, tensor by tensor, the backbone that the configuration describes."""
    config, family = found.config, found.family
    wanted = family.tensors(config)
    place = f"base_model: {found.directory}"
    if missing := [name for name in wanted if name not in found.tensors]:
        raise FeatherweightError(f"{place}: {_listed(missing)} missing in the weights{_cause(found, missing, stored)}")
    rooms = {name.partition(".")[0] for name in wanted}
    unexpected = [
        name for name in sorted(found.tensors)
        if name.partition(".")[0] in rooms and name not in wanted and not name.endswith(BUFFERS)
    ]  # fmt: skip
    if unexpected:
        raise FeatherweightError(f"{place}: {_listed(unexpected)} in the weights and not in a model of its config.json"
                                 f"{_count(found)}")  # fmt: skip
    whole_head = {f"{HEAD}weight": (config["vocab_size"], config["hidden_size"])}
    heads = {} if isinstance(family, families.Family) else {name: whole_head[name] for name in found.head}
    for name, shape in (wanted | heads).items():
        tensor = found.tensors[name]
        if tensor.shape != shape:
            raise FeatherweightError(
                f"{place}: {name} is {tensor.shape} in the weights and {shape} by config.json; they are not of one "
                "model"
            )
        if tensor.dtype not in EXPONENTS:
            raise FeatherweightError(
                f"{place}: {name} is stored as {tensor.dtype}; name the model as it was before it was quantized"
            )
        itemsize = np.dtype(EXPONENTS[tensor.dtype][0]).itemsize
        if tensor.end - tensor.start != math.prod(shape) * itemsize:
            raise FeatherweightError(f"{place}: {name} has {tensor.end - tensor.start} bytes, which is not its shape")


def _count(found: Inspection) -> str:
    """Whether config and weights disagree about the number of layers."""
    start = f"{found.family.layers}."
    there = {name.removeprefix(start).partition(".")[0] for name in found.tensors if name.startswith(start)}
    said = found.config["num_hidden_layers"]
    return f"; num_hidden_layers is {said}, and {len(there)} layers are stored" if len(there) != said else ""


def _cause(found: Inspection, missing: Sequence[str], stored: Mapping[str, Tensor]) -> str:
    """What probably became of missing tensors."""
    if other := next((name for name in stored if name.endswith(f".{missing[0]}")), ""):
        wrapper = other.removesuffix(missing[0])
        return f", which has {other} instead: rename its tensors without {wrapper!r}, or save the model unwrapped"
    return _count(found)


def require_finite(found: Inspection) -> None:
    """Reads the numbers that training would start from.

    Raises:
        FeatherweightError: one of them is NaN or infinite.
    """
    wanted = [*found.family.tensors(found.config), *found.head]
    for name in wanted:
        tensor = found.tensors[name]
        if tensor.dtype not in EXPONENTS:
            continue
        integers, mask = EXPONENTS[tensor.dtype]
        count = math.prod(tensor.shape)
        bits = np.memmap(tensor.file, dtype=np.uint8, mode="r", offset=tensor.start, shape=(tensor.end - tensor.start,))
        for start in range(0, count, CHUNK):
            part = bits.view(integers)[start : start + CHUNK]
            wrong = np.flatnonzero((part & part.dtype.type(mask)) == mask)
            if wrong.size:
                at = np.unravel_index(start + int(wrong[0]), tensor.shape)
                raise FeatherweightError(
                    f"base_model: {tensor.file}: {name} is not finite at {tuple(map(int, at))}; these weights are "
                    "damaged, or of a training that diverged"
                )


def require_rows(tokenizer: Any, config: Mapping[str, Any], directory: Path) -> None:
    """Raises ``FeatherweightError`` if a token of a tokenizer has no row in the model's token table.

    Args:
        tokenizer: as ``tokenization.load`` gives it, with the tokens that transformers adds.
        config: of the model.
    """
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if last >= config["vocab_size"]:
        raise FeatherweightError(
            f"base_model: the tokenizer in {directory} has token {token!r} with id {last}, and the model's token table "
            f"has {config['vocab_size']} rows; use the tokenizer that the model was trained with"
        )
