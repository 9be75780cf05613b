"""What the teacher says about each text, computed once and kept, and the loss of a student that listens.

B = rows, S = tokens, H = hidden size, C = classes, N = rows of all texts, L = layers that are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.data import batching
from tasks.ml.distillation import answers, losses, projection
from tasks.ml.models import architectures, families, first_token
from tasks.ml.parallel import parallelism
from tasks.ml.problem import Problem

RELATIONS = ("query", "key", "value")


@dataclass(frozen=True)
class Weights:
    """Weights of the parts of the loss; a part of weight zero is neither computed nor kept."""

    logits: float = 1.0
    hidden: float = 0.0
    attention: float = 0.0
    labels: float = 0.0
    maps: float = 0.0

    @property
    def relations(self) -> tuple[str, ...]:
        """Of which vectors of the last layer something is learned."""
        return RELATIONS if self.attention > 0 else RELATIONS[:2] if self.maps > 0 else ()


@dataclass
class _Answer:
    """What a model said about a batch. ``hidden``: per mapped layer (B, S, H), or (B, 1, H) of one that is narrowed to
    its first token; ``relations``: q, k, v of the last."""

    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...]
    relations: tuple[torch.Tensor, ...]


class Listener:
    """Runs a model and catches the outputs of chosen layers, and the last one's query, key and value vectors, until it
    is closed."""

    def __init__(self, model: nn.Module, layers: Sequence[int], *, relations: Sequence[str]) -> None:
        family = architectures.of_model(model)
        self.model, self.layers, self.relations = model, tuple(layers), tuple(relations)
        self.caught: dict[int | str, torch.Tensor] = {}
        modules = list(family.layer_list(model))
        caught: dict[int | str, nn.Module] = {index: modules[index] for index in self.layers}
        caught |= {name: modules[-1].get_submodule(getattr(family, name)) for name in self.relations}
        self.hooks = [module.register_forward_hook(self._catch(key)) for key, module in caught.items()]

    def _catch(self, key: int | str) -> Callable[..., None]:
        def hook(module: nn.Module, _: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            given = output[0] if isinstance(output, tuple) else output
            self.caught[key] = parallelism.whole_output(module, given)

        return hook

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> _Answer:
        self.caught.clear()
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        relations = tuple(self.caught[name] for name in self.relations)
        return _Answer(logits, tuple(self.caught[index] for index in self.layers), relations)

    def close(self) -> None:
        """Leaves the model as it was."""
        for hook in self.hooks:
            hook.remove()


class Teacher:
    """Answers by row; asked twice about a text, it answers from memory.

    Args:
        first_only: layers of whose hidden states the first token's are kept, and no others.
    """

    def __init__(
        self,
        listener: Listener,
        rows: Sequence[Sequence[int]],
        *,
        pad_id: int,
        memory: answers.Memory,
        problem: Problem,
        first_only: Container[int] = (),
    ) -> None:
        self.listener, self.rows, self.pad_id, self.memory, self.problem = listener, rows, pad_id, memory, problem
        self.keys = [memory.key(row) for row in rows]
        self.lengths = {key: len(row) for key, row in zip(self.keys, rows, strict=True)}
        self.device = next(listener.model.parameters()).device
        config: Any = listener.model.config
        size = 2 * config.hidden_size
        said = 4 * problem.said_width(config)
        self.kinds = [
            answers.Kind("logits", per_token=said) if problem.PER_TOKEN else answers.Kind("logits", per_text=said)
        ]
        for layer in listener.layers:
            of_first = answers.Kind(f"hidden-{layer}-first", per_text=size)
            self.kinds.append(of_first if layer in first_only else answers.Kind(f"hidden-{layer}", per_token=size))
        self.kinds += [answers.Kind(name, per_token=size) for name in listener.relations]
        self._moments = torch.full((len(rows), 2, len(listener.layers)), math.nan, dtype=torch.float64)
        listener.model.eval()

    def _setting(self) -> str:
        """What the numbers of an answer depend on beside teacher and text."""
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return f"{kind}-{dtype}-{torch.get_float32_matmul_precision()}".replace("torch.", "")

    @torch.no_grad()
    def _ask(self, indices: Sequence[int]) -> _Answer:
        ids, mask = batching.collate([self.rows[i] for i in indices], pad_id=self.pad_id, device=self.device)
        return self.listener(ids, mask)

    def _said(self, indices: Sequence[int]) -> list[list[torch.Tensor]]:
        """The answer about each row: what is learned of logits, (1, C) or (tokens, C), then hidden states and vectors
        (tokens, H), in the host's memory.

        Rows that are not remembered are asked about at once.
        """
        self.memory.open(self._setting(), self.kinds, self.lengths)
        said = {index: self.memory.get(self.keys[index]) for index in indices}
        known = {index: parts for index, parts in said.items() if parts is not None}
        new = [index for index in said if index not in known]
        if new:
            answer = self._ask(new)
            said_now = self.problem.said(answer.logits)
            logits = said_now if self.problem.PER_TOKEN else said_now.unsqueeze(1)
            told = (logits, *(tensor.bfloat16() for tensor in (*answer.hidden, *answer.relations)))
            for position, index in enumerate(new):
                tokens = len(self.rows[index])
                known[index] = [
                    tensor[position, : tokens if kind.per_token else 1].cpu()
                    for kind, tensor in zip(self.kinds, told, strict=True)
                ]
            self.memory.put({self.keys[index]: known[index] for index in new})
        return [known[index] for index in indices]

    def answer(self, indices: Sequence[int], *, length: int) -> _Answer:
        """Returns the answer for these rows, padded to so many tokens."""
        said = self._said(indices)
        together = (
            nn.utils.rnn.pad_sequence([row[k] for row in said], batch_first=True) for k in range(len(self.kinds))
        )
        logits, *padded = (
            batching.send(F.pad(part, (0, 0, 0, length - part.shape[1])) if kind.per_token else part, self.device)
            for kind, part in zip(self.kinds, together, strict=True)
        )
        logits = logits if self.problem.PER_TOKEN else logits.squeeze(1)
        cut = len(self.listener.layers)
        return _Answer(logits, tuple(padded[:cut]), tuple(padded[cut:]))

    def moments(self, indices: Sequence[int]) -> torch.Tensor:
        """Returns the sum of the hidden states kept of these rows and that of their squares, per layer: (2, L).

        They are kept by row, so that a teacher whose answers are not is asked once more in the first epoch only.
        """
        cut = len(self.listener.layers)
        if cut and self._moments[indices].isnan().any():
            for index, (_, *states) in zip(indices, self._said(indices), strict=True):
                wide = [state.double() for state in states[:cut]]
                self._moments[index] = torch.stack(
                    [torch.stack([state.sum(), state.square().sum()]) for state in wide], dim=1
                )
        return self._moments[indices].sum(dim=0)


def _relation_heads(student: nn.Module, teacher: nn.Module) -> int:
    """Most relation heads, up to the teacher's own number, that divide the widths of both last layers.

    Raises:
        FeatherweightError: a last layer has no heads to compare.
    """
    family = families.of_model(student)
    lasts = [family.layer_list(model)[-1] for model in (student, teacher)]
    common = math.gcd(*(family.num_heads(layer) * family.head_size(layer) for layer in lasts))
    if not all(family.num_heads(layer) for layer in lasts):
        raise FeatherweightError("attention_weight: the last layer has no heads left to compare; set it to 0")
    most = family.num_heads(lasts[1])
    return max(heads for heads in range(1, most + 1) if common % heads == 0)


class Tutored:
    """The loss of a student that listens to its teacher, a ``StepLoss``, until it is closed.

    loss = w_logits · the problem's soft loss + w_hidden · mean over layers of relative MSE
         + w_attention · mean KL of query, key and value relations of the last layer
         + w_maps · MSE of its attention scores + w_labels · supervised

    Of a last layer that only a head reads, the first token alone is computed and compared, unless relations are. Hidden
    states and relations are compared of all tokens, also of those whose answers do not count: others are read by them.

    Args:
        rows: token ids per row, valid for both models.
        targets: class per row (N,), or the problem's mark for none.
        layer_map: teacher layer whose output each student layer learns.
        memory: of this teacher's answers; if there is none, they are remembered as long as the loss is.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        rows: Sequence[Sequence[int]],
        targets: torch.Tensor,
        *,
        layer_map: Sequence[int],
        weights: Weights,
        temperature: float,
        pad_id: int,
        problem: Problem,
        memory: answers.Memory | None = None,
        padding: batching.Padding = batching.Padding(),
    ) -> None:
        self.rows, self.targets, self.problem = rows, targets, problem
        self.weights, self.temperature, self.pad_id, self.padding = weights, temperature, pad_id, padding
        mapped = tuple(layer_map) if weights.hidden > 0 else ()
        self.num_layers = len(mapped)
        self.num_heads = _relation_heads(student, teacher) if weights.relations else 0
        self.listener = Listener(student, range(len(mapped)), relations=weights.relations)
        self.open, first_only = ExitStack(), set()
        if problem.FIRST_TOKEN_ONLY and not weights.relations:
            self.open.enter_context(first_token.narrowed(teacher))
            own, its = (len(families.of_model(model).layer_list(model)) - 1 for model in (student, teacher))
            first_only = {layer for index, layer in enumerate(mapped) if index == own or layer == its}
        self.of_first = [layer in first_only for layer in mapped]
        speaker = Listener(teacher, mapped, relations=weights.relations)
        memory = memory or answers.Memory()
        self.source = Teacher(speaker, rows, pad_id=pad_id, memory=memory, problem=problem, first_only=first_only)
        self.width = int(teacher.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.project = projection.of(student)
        self.device = next(student.parameters()).device

    def close(self) -> None:
        """Leaves student and teacher as they were."""
        self.open.close()
        self.listener.close()
        self.source.listener.close()

    def _counts(self, rows: Sequence[int]) -> torch.Tensor:
        """Rows, tokens, pairs of tokens of the same row, and labels: (4,)."""
        lengths = [len(self.rows[row]) for row in rows]
        labels = self.problem.amount([self.rows[row] for row in rows], self.targets[list(rows)])
        pairs = sum(length * length for length in lengths)
        return torch.tensor([len(rows), sum(lengths), pairs, labels], dtype=torch.float64)

    def amounts(self, parts: Sequence[list[int]]) -> torch.Tensor:
        """Those counts, then the sums of the teacher's hidden states and of their squares: (4 + 2 · L,)."""
        counts, moments = torch.zeros(4, dtype=torch.float64), torch.zeros(2, self.num_layers, dtype=torch.float64)
        for rows in parts:
            counts += self._counts(rows)
            moments += self.source.moments(rows)
        return torch.cat([counts, moments.flatten()])

    def __call__(self, rows: list[int], whole: torch.Tensor) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        texts = [self.rows[row] for row in rows]
        ids, mask = batching.collate(texts, pad_id=self.pad_id, device=self.device, padding=self.padding)
        counted = batching.counted(texts, mask)
        wanted = self.source.answer(rows, length=ids.shape[1])
        given = self.listener(ids, mask)
        weights, counts, moments = self.weights, whole[:4], whole[4:].view(2, self.num_layers)
        of_rows, of_tokens, of_pairs, of_labels = (self._counts(rows) / counts.clamp_min(1)).tolist()
        of_answers = of_labels if self.problem.PER_TOKEN else of_rows
        softened = self.problem.soft_loss(given.logits, wanted.logits, counted, temperature=self.temperature)
        parts = {"logit_loss": weights.logits * of_answers * softened}
        if self.num_layers:
            errors = []
            of_both = zip(given.hidden, wanted.hidden, moments.unbind(1), self.of_first, strict=True)
            for own, its, sums, of_first in of_both:
                size, share = (counts[0], of_rows) if of_first else (counts[1], of_tokens)
                variance = losses.variance(size * self.width, *sums).item()
                seen = slice(1) if of_first else slice(None)
                error = losses.hidden_states(self.project(own[:, seen]), its, mask[:, seen], variance=variance)
                errors.append(share * error)
            parts["hidden_loss"] = weights.hidden * torch.stack(errors).mean()
        if weights.attention > 0:
            divergences = [
                losses.attention_relations(s, t, mask, num_heads=self.num_heads)
                for s, t in zip(given.relations, wanted.relations, strict=True)
            ]
            parts["attention_loss"] = weights.attention * of_tokens * torch.stack(divergences).mean()
        if weights.maps > 0:
            error = losses.attention_maps(given.relations[:2], wanted.relations[:2], mask, num_heads=self.num_heads)
            parts["map_loss"] = weights.maps * of_pairs * error
        if weights.labels > 0:
            targets = batching.send(self.targets[rows], self.device)
            batch = {"input_ids": ids, "attention_mask": mask, "counted": counted, "targets": targets}
            parts["label_loss"] = weights.labels * of_labels * self.problem.loss(given.logits, batch)
        return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}
