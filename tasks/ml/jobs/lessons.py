"""A lesson: all that a model needs to be trained, as one value that can be written down for other processes to read.

B = rows of a batch, N = rows, S = tokens, C = classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tasks.ml import tokens
from tasks.ml.data import batching
from tasks.ml.data.datasets import Split
from tasks.ml.distillation import answers, projection, teaching
from tasks.ml.models import first_token, modeling
from tasks.ml.models.quantization_spec import SPEC_FILE, Spec
from tasks.ml.problem import problem_of
from tasks.ml.pruning import sparsity
from tasks.ml.quality import learning
from tasks.ml.quantization import block_files, fake_quantization, simulation
from tasks.ml.quantization.blocks import Blocks
from tasks.ml.training import activations, trainable, trainer
from tasks.ml.training import precision as precisions
from tasks.ml.training.updates import StepLoss

ZEROS = "zeros."
"""Prefix of the masks among a written lesson's tensors."""


@dataclass(frozen=True)
class Tutor:
    """Who teaches, and what of its answers counts."""

    teacher: nn.Module
    layer_map: list[int]
    """Teacher layer that each student layer learns."""
    weights: teaching.Weights
    temperature: float
    memory: answers.Memory = field(default_factory=answers.Memory)
    """What the teacher said already."""


@dataclass(frozen=True)
class Lesson:
    """Rows to learn from, with labels or with a tutor's answers, and labelled rows to be measured on."""

    problem: str
    pad_id: int
    input_ids: list[list[int]]
    targets: np.ndarray
    """(N,) int64; the problem's ``NO_TARGET`` where there is no label."""
    selection: Split
    label_smoothing: float = 0.0
    tutor: Tutor | None = None
    reference: np.ndarray | None = None
    """What is kept of the logits on the selection texts (N, …) of the teacher as it was, before anything was cut from
    its vocabulary, told by the tokens of these rows."""
    zeros: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Weights of linear layers that stay zero: bool (O, I) by qualified name."""
    spec: Spec | None = None
    """What is computed as if it were quantized already; see ``fake_quantization``."""
    codes: Mapping[str, Blocks] = field(default_factory=dict)
    """The same of products in blocks."""

    @contextmanager
    def step_loss(self, model: nn.Module, *, precision: precisions.Choice) -> Iterator[StepLoss]:
        """The loss of a batch of rows, for ``trainer.fit``, while it is open.

        Args:
            precision: that it is computed in.
        """
        multiple = precisions.length_multiple(precision, next(model.parameters()).device)
        padding = batching.Padding(multiple, limit=max(map(len, self.input_ids)))
        problem = problem_of(self.problem)
        if self.tutor is None:
            rows = Split([""] * len(self.input_ids), self.input_ids, self.targets)
            yield learning.Supervised(
                model, problem, rows, pad_id=self.pad_id, label_smoothing=self.label_smoothing, padding=padding
            )
            return
        tutored = teaching.Tutored(
            model,
            self.tutor.teacher,
            self.input_ids,
            torch.as_tensor(self.targets),
            layer_map=self.tutor.layer_map,
            weights=self.tutor.weights,
            temperature=self.tutor.temperature,
            pad_id=self.pad_id,
            problem=problem,
            memory=self.tutor.memory,
            padding=padding,
        )
        with closing(tutored), precisions.rounded(self.tutor.teacher, precision):
            yield tutored

    def demand(self, model: nn.Module, *, precision: precisions.Choice) -> activations.Demand:
        """What learning this takes beside weights, gradients and optimizer state."""
        length = max(map(len, self.input_ids))
        found = activations.of_model(
            model,
            precision,
            lengths=[len(row) for row in self.input_ids],
            first_token_only=self.first_token_only,
        )
        if self.tutor is not None:
            weights = self.tutor.weights
            found += activations.of_teacher(
                self.tutor.teacher,
                precision,
                length=length,
                tokens=sum(map(len, self.input_ids)),
                layers=len(self.tutor.layer_map) if weights.hidden > 0 else 0,
                vectors=len(weights.relations),
            )
        if self.spec is not None:
            found += activations.of_rounding(map(model.get_submodule, self.spec.linears), length=length)
        return found

    def quality(self, model: nn.Module) -> dict[str, float]:
        """Measures a model on the selection rows, as ``learning.quality`` does."""
        problem = problem_of(self.problem)
        return learning.quality(model, problem, self.selection, pad_id=self.pad_id, reference=self.reference)

    @property
    def first_token_only(self) -> bool:
        """Whether nobody reads the last layer's other tokens: neither a head nor who compares relations of tokens."""
        of_answers = self.tutor is None or not self.tutor.weights.relations
        return of_answers and problem_of(self.problem).FIRST_TOKEN_ONLY

    def learn(
        self,
        model: nn.Module,
        *,
        for_model: Mapping[str, Any],
        observer: trainer.Observer,
        precision: str,
        checkpoint: Path | None = None,
        chosen_in: str | None = None,
        **for_trainer: Any,
    ) -> trainer.History:
        """Trains a model in place.

        Args:
            for_model: keyword arguments of ``trainable.prepared``.
            precision: one of ``precisions.PRECISIONS``; fp32, whatever it is, where products of integers are simulated;
                of products in blocks only codes are found in it, since few bits of weights cost far more than bf16.
            checkpoint: see ``trainer.fit``.
            chosen_in: directory of what trainings that belong together choose at the start of the first, if it is not
                the checkpoint's.
            for_trainer: its other keyword arguments.
        """
        directory = Path(chosen_in) if chosen_in else checkpoint
        if self.spec is not None and self.spec.linears:
            # In bf16 the rest of the model would be rounded about as much as quantization rounds.
            precision, chosen = "fp32", precisions.Choice(None, "fp32 (what quantized numbers are simulated in)")
        else:
            chosen = precisions.of_run(precision, next(model.parameters()).device, directory)
        with ExitStack() as stack:
            if self.tutor is not None and self.tutor.weights.hidden > 0:
                shares = for_model.get("parallelism", "replicated")
                stack.enter_context(projection.attached(model, self.tutor.teacher, parallelism=shares))
            optimizer = for_trainer["optimizer"]
            stack.enter_context(trainable.prepared(model, optimizer=optimizer, precision=precision, **for_model))
            stack.enter_context(sparsity.held(model, self.zeros))
            if self.tutor is not None:
                stack.callback(self.tutor.memory.publish)
                for_trainer["before_saving"] = self.tutor.memory.publish
            if self.first_token_only:
                stack.enter_context(first_token.narrowed(model))
            stack.enter_context(fake_quantization.products(model, self.spec, self.codes))
            limited = for_trainer.get("max_memory", 0.0) > 0
            return trainer.fit(
                model,
                stack.enter_context(self.step_loss(model, precision=chosen)),
                lengths=[len(row) for row in self.input_ids],
                evaluate=lambda: self.quality(model),
                observer=observer,
                precision=chosen,
                checkpoint=checkpoint,
                demand=self.demand(model, precision=chosen) if limited else None,
                **for_trainer,
            )

    def write(self, directory: Path) -> None:
        """Writes the lesson, teacher included, into an existing directory: safetensors and JSON."""
        tensors = {
            "targets": torch.as_tensor(self.targets),
            "selection_targets": torch.as_tensor(self.selection.targets),
        }
        for name, rows in (("input_ids", self.input_ids), ("selection_ids", self.selection.input_ids)):
            tensors[name] = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
            tensors[f"{name}_counted"] = torch.tensor(
                [one for row in rows for one in tokens.counted(row)], dtype=torch.uint8
            )
            tensors[f"{name}_lengths"] = torch.tensor([len(row) for row in rows])
        tensors |= {f"{ZEROS}{name}": mask for name, mask in self.zeros.items()}
        if self.reference is not None:
            tensors["reference"] = torch.tensor(self.reference)
        about: dict[str, Any] = {
            "problem": self.problem, "pad_id": self.pad_id, "label_smoothing": self.label_smoothing,
        }  # fmt: skip
        if self.spec is not None:
            (directory / SPEC_FILE).write_text(self.spec.to_json(), encoding="utf-8")
        if self.codes:
            block_files.save(directory, self.codes)
        if self.tutor is not None:
            about["tutor"] = {
                "layer_map": self.tutor.layer_map,
                "weights": asdict(self.tutor.weights),
                "temperature": self.tutor.temperature,
                "answers": str(self.tutor.memory.directory) if self.tutor.memory.directory else None,
                "vocabulary": self.tutor.memory.vocabulary,
            }
            (directory / "teacher").mkdir()
            modeling.save_model(self.tutor.teacher, directory / "teacher")
        save_file(tensors, directory / "lesson.safetensors")
        (directory / "lesson.json").write_text(json.dumps(about), encoding="utf-8")

    @classmethod
    def read(cls, directory: Path, device: torch.device) -> Lesson:
        """Reads what ``write`` wrote; the teacher goes to the device."""
        about = json.loads((directory / "lesson.json").read_text(encoding="utf-8"))
        tensors, spec = load_file(directory / "lesson.safetensors"), directory / SPEC_FILE

        def rows(name: str) -> list[list[int]]:
            lengths = tensors[f"{name}_lengths"].tolist()
            ids, counted = (tensors[one].split(lengths) for one in (name, f"{name}_counted"))
            return [tokens.row(*(part.tolist() for part in parts)) for parts in zip(ids, counted, strict=True)]

        selection_ids = rows("selection_ids")
        tutor = None
        if "tutor" in about:
            said = about.pop("tutor")
            teacher = simulation.load(directory / "teacher", about["problem"]).to(device)
            kept = answers.Memory(Path(said["answers"]) if said["answers"] else None, said["vocabulary"])
            tutor = Tutor(teacher, said["layer_map"], teaching.Weights(**said["weights"]), said["temperature"], kept)
        return cls(
            **about,
            input_ids=rows("input_ids"),
            targets=tensors["targets"].numpy(),
            selection=Split([""] * len(selection_ids), selection_ids, tensors["selection_targets"].numpy()),
            tutor=tutor,
            reference=tensors["reference"].numpy() if "reference" in tensors else None,
            zeros={name.removeprefix(ZEROS): mask for name, mask in tensors.items() if name.startswith(ZEROS)},
            spec=Spec.from_json(spec.read_text(encoding="utf-8")) if spec.is_file() else None,
            codes=block_files.load(directory),
        )
