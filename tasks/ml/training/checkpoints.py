"""What a run needs to go on after it was killed: safetensors, then the JSON that makes them count; the newest that is
whole is taken up.

Of what each process holds a part of, or one process only, none ever holds the whole: all write and read what they have,
by torch's distributed checkpoint in its safetensors format (the other one is a pickle). Any number of processes reads
what any other wrote.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from tasks.ml import digests, paths
from tasks.ml.parallel import world

KEPT = 2
"""The newest may turn out broken: the one before it stays."""
WHOLE = "whole.safetensors"
"""The file that a process alone writes."""


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Clones what shares memory with another (tied weights), which safetensors refuses, and nothing else."""
    seen: set[int] = set()
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous()
        address = world.local(plain).data_ptr()
        kept[name] = plain.clone() if address in seen else plain
        seen.add(address)
    return kept


def _digests(directory: Path) -> dict[str, str]:
    """SHA-256 of each file of a directory, by name; each process reads its share of them."""
    mine = world.share(sorted(directory.iterdir()))
    return dict(world.everybody([(path.name, digests.of_file(path)) for path in mine]))


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is whole: its state, with its ``step``, and the directory that its tensors are in."""

    state: dict[str, Any]
    directory: Path

    def read(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fills the tensors, or parts of them, that this process holds; returns when all have. All must take part.

        Raises:
            CheckpointException: a tensor is not in the checkpoint, or has another shape there.
        """
        reader = HuggingFaceStorageReader(str(self.directory))
        alone = world.size() == 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that is what alone means
            distributed_checkpoint.load(dict(tensors), storage_reader=reader, no_dist=alone)


class Checkpoints:
    """The checkpoints of one run in a directory, or nowhere if it is ``None``. All processes must take part."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Writes the tensors, then the JSON that makes them count; both reach the disk before older ones go."""
        if self.directory is None:
            return
        path = self.directory / f"step-{step:09d}"
        if world.rank() == 0:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        world.wait()
        if world.size() == 1:
            # The writer below copies all of a file before it writes it.
            save_file({name: tensor.cpu() for name, tensor in _unshared(tensors).items()}, path / WHOLE)
        else:
            writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
            distributed_checkpoint.save(_unshared(tensors), storage_writer=writer)
        world.wait()
        for file in world.share(sorted(path.iterdir())):
            paths.fsync(file)
        digests = _digests(path)
        if world.rank() == 0:
            paths.fsync(path)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps({**state, "step": step, "sha256": digests}), encoding="utf-8")
            paths.fsync(temporary)
            temporary.replace(path.with_suffix(".json"))
            paths.fsync(self.directory)
            self._remove_old()

    def _remove_old(self) -> None:
        """Removes all but the newest ones, and what was left of one that never counted."""
        assert self.directory is not None
        states = sorted(self.directory.glob("step-*.json"))
        for old in states[:-KEPT]:
            old.unlink()
        kept = {state.stem for state in states[-KEPT:]}
        for path in self.directory.glob("step-*"):
            if path.stem not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def newest(self) -> Saved | None:
        """Returns the newest checkpoint that is whole, if any."""
        if self.directory is None:
            return None
        for path in sorted(self.directory.glob("step-*.json"), reverse=True):
            directory = path.with_suffix("")
            with suppress(OSError, ValueError, KeyError):
                state = json.loads(path.read_text(encoding="utf-8"))
                if directory.is_dir() and _digests(directory) == state["sha256"]:
                    return Saved(state, directory)
        return None
