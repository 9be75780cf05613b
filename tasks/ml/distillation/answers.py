"""What a teacher said about texts, kept so that it is asked about each text once: in this process and on disk, where
later stages, resumed runs and other trials find it.

On disk there is a directory per teacher, in it one per way to compute (device and precision) and kind of answer
(logits, a layer's hidden states, …), and in that files of many texts each, named by the SHA-256 of their bytes. A file
is whole or not there, is verified before it is used, and is mapped into memory, not read.
N = texts of a file, T = their tokens, C = classes, H = hidden size.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tasks.ml import digests, paths
from tasks.ml.distillation import limits

logger = logging.getLogger("featherweight")

LARGEST_IN_MEMORY = 4_000_000_000
"""Bytes of answers that a process keeps beside those on disk; beyond that they are computed anew in every epoch."""
SHARE_OF_MEMORY = 0.25
"""Most of the memory that is free on the machine that these may take."""
SHARE_OF_DISK = 0.25
"""Most of the free space of a disk that answers may take."""
FILE_BYTES = 128_000_000
"""Answers that are written down at once, or as soon as somebody asks for it: what a killed process loses."""
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Kind:
    """A part of an answer, and its bytes: per text and per token of it."""

    name: str
    per_text: int = 0
    per_token: int = 0


def key(row: Sequence[int]) -> bytes:
    """Identity of a text: SHA-256 of its token ids as int32."""
    return hashlib.sha256(np.asarray(row, dtype=np.int32).tobytes()).digest()


def trim(directory: Path, limit: float) -> None:
    """Removes the files below a directory that were not used for longest, until those that stay hold ``limit`` bytes.

    A process that has mapped one of them goes on reading it.
    """
    found = []
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # others remove and publish at the same time
            if path.is_file():
                about = path.stat()
                found.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size


def _write(directory: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Publishes a file under the digest of its bytes, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".") as folder:
        temporary = Path(folder) / "answers"
        save_file(dict(tensors), temporary)
        paths.fsync(temporary)
        return temporary.replace(directory / f"{digests.of_file(temporary)}{SUFFIX}")


def _read(path: Path) -> dict[bytes, torch.Tensor]:
    """Answers of a file by text, mapped into memory; none if it does not hold what its name says, and then it goes."""
    if digests.of_file(path) != path.stem:
        logger.warning("answers of the teacher in %s were changed; it will be asked again", path.name)
        path.unlink(missing_ok=True)
        return {}
    os.utime(path)
    with safe_open(path, framework="pt") as file:
        keys, lengths, values = (file.get_tensor(name) for name in ("keys", "lengths", "values"))
    parts = values.split(lengths.tolist())
    return {bytes(row): part for row, part in zip(keys.numpy(), parts, strict=True)}


@dataclass
class _Shelf:
    """Answers of one kind, in the order in which they came."""

    directory: Path | None
    """Where new ones are published; ``None``: nowhere."""
    answers: dict[bytes, torch.Tensor] = field(default_factory=dict)
    """Per text (length, H), or (1, C) for what is said of a text as a whole."""
    unpublished: list[bytes] = field(default_factory=list)
    num_bytes: int = 0
    """Bytes of what is not published."""

    def put(self, text: bytes, answer: torch.Tensor) -> None:
        if text in self.answers:
            return
        self.answers[text] = answer
        if self.directory is not None:
            self.unpublished.append(text)
            self.num_bytes += answer.nbytes

    def publish(self) -> None:
        if self.directory is None or not self.unpublished:
            return
        new = [self.answers[text] for text in self.unpublished]
        tensors = {
            "keys": torch.frombuffer(bytearray(b"".join(self.unpublished)), dtype=torch.uint8).view(-1, 32),
            "lengths": torch.tensor([len(answer) for answer in new]),
            "values": torch.cat(new),
        }
        self.unpublished, self.num_bytes = [], 0
        try:
            # What is mapped can leave memory again, what was computed could not.
            self.answers |= _read(_write(self.directory, tensors))
        except OSError as error:
            logger.warning("answers of the teacher are not kept on disk: %s", error)
            self.directory = None


class Memory:
    """What one teacher said, by text.

    Args:
        directory: of this teacher; its siblings, of other teachers, share the limit of ``limits``. ``None``
            keeps answers in this process only.
        vocabulary: token id of the teacher for each id that texts are written in, where its vocabulary was cut; texts
            are then the same as before the cut.
    """

    def __init__(self, directory: Path | None = None, vocabulary: Sequence[int] | None = None) -> None:
        self.directory, self.vocabulary = directory, None if vocabulary is None else list(vocabulary)
        self.shelves: dict[str, _Shelf] = {}
        self.setting: str | None = None

    def key(self, row: Sequence[int]) -> bytes:
        """Identity of a text for this teacher."""
        return key(row if self.vocabulary is None else [self.vocabulary[token] for token in row])

    def open(self, setting: str, kinds: Sequence[Kind], lengths: Mapping[bytes, int]) -> None:
        """Takes up what is on disk about these texts, and decides what else will be kept, and where.

        The kinds that come first are kept on disk, as many as there is room for; the others in memory, if all fit.

        Args:
            setting: what else the answers depend on; those of another setting are not looked at.
            kinds: wanted of every text.
            lengths: tokens of each text.
        """
        if setting == self.setting and self.shelves.keys() == {kind.name for kind in kinds}:
            return
        self.setting, self.shelves = setting, {}
        room = self._room()
        in_memory = missing = 0
        for kind in kinds:
            shelf = _Shelf(None if self.directory is None else self.directory / setting / kind.name)
            if shelf.directory is not None:
                for path in sorted(shelf.directory.glob(f"*{SUFFIX}")):
                    with suppress(FileNotFoundError):  # trimmed by another process
                        shelf.answers |= {text: answer for text, answer in _read(path).items() if text in lengths}
            new = [length for text, length in lengths.items() if text not in shelf.answers]
            needed = len(new) * kind.per_text + sum(new) * kind.per_token
            if missing + needed <= room:
                missing += needed
            else:
                shelf.directory, room = None, missing
                in_memory += needed
            self.shelves[kind.name] = shelf
        room = SHARE_OF_MEMORY * psutil.virtual_memory().available
        self.in_memory = in_memory <= min(LARGEST_IN_MEMORY, room)
        if self.directory is not None:
            trim(self.directory.parent, limits.answers_on_disk() - missing)

    def _room(self) -> float:
        """Bytes that new answers may take on disk."""
        if self.directory is None:
            return -1
        self.directory.mkdir(parents=True, exist_ok=True)
        return min(limits.answers_on_disk(), SHARE_OF_DISK * shutil.disk_usage(self.directory).free)

    def get(self, text: bytes) -> list[torch.Tensor] | None:
        """Returns the answer about a text, one tensor per kind, unless a part of it is not there."""
        try:
            return [shelf.answers[text] for shelf in self.shelves.values()]
        except KeyError:
            return None

    def put(self, said: Mapping[bytes, Sequence[torch.Tensor]]) -> None:
        """Keeps what there is room for of answers by text, one tensor per kind, each (tokens, H) or (1, C).

        Those of texts that a teacher computed together, whose last bits depend on their company, get to the disk
        together: a run that was killed asks about all of them again or about none.
        """
        for text, answer in said.items():
            for shelf, part in zip(self.shelves.values(), answer, strict=True):
                if shelf.directory is not None or self.in_memory:
                    shelf.put(text, part)
        for shelf in self.shelves.values():
            if shelf.num_bytes >= FILE_BYTES:
                shelf.publish()

    def publish(self) -> None:
        """Writes down what is not on disk yet."""
        for shelf in self.shelves.values():
            shelf.publish()
