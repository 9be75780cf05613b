"""What the teacher says about each text, computed once and kept, and the loss of a student that listens.

B = rows, S = tokens, H = hidden size, C = classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tasks.ml import batching, families, losses, parallelism

RELATIONS = ("query", "key", "value")
LARGEST_CACHE = 4_000_000_000
"""Bytes of teacher answers to keep in memory; beyond that they are computed anew in every epoch."""

SupervisedLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Weights:
    """Weights of the parts of the loss; a part of weight zero is neither computed nor kept."""

    logits: float = 1.0
    hidden: float = 1.0
    attention: float = 0.0
    labels: float = 0.0


@dataclass
class _Answer:
    """What a model said about a batch. ``hidden``: per mapped layer (B, S, H); ``relations``: q, k, v of the last."""

    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...]
    relations: tuple[torch.Tensor, ...]


class Listener:
    """Runs a model and catches the outputs of chosen layers, and the last one's query, key and value vectors."""

    def __init__(self, model: nn.Module, layers: Sequence[int], *, relations: bool) -> None:
        family = families.of(model.config.model_type)  # type: ignore[union-attr, arg-type]
        self.model, self.layers = model, tuple(layers)
        self.caught: dict[int | str, torch.Tensor] = {}
        modules = list(family.layer_list(model))
        for index in self.layers:
            modules[index].register_forward_hook(self._catch(index))
        if relations:
            for name in RELATIONS:
                module = modules[-1].get_submodule(getattr(family, name))
                module.register_forward_hook(self._catch(name))

    def _catch(self, key: int | str) -> Callable[..., None]:
        def hook(module: nn.Module, _: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            given = output[0] if isinstance(output, tuple) else output
            self.caught[key] = parallelism.whole_output(module, given)

        return hook

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> _Answer:
        self.caught.clear()
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        relations = tuple(self.caught[name] for name in RELATIONS if name in self.caught)
        return _Answer(logits, tuple(self.caught[index] for index in self.layers), relations)


class Teacher:
    """Answers by row; asked twice about a row, it answers from memory."""

    def __init__(self, listener: Listener, rows: Sequence[Sequence[int]], *, pad_id: int, num_tensors: int) -> None:
        self.listener, self.rows, self.pad_id = listener, rows, pad_id
        hidden_size = listener.model.config.hidden_size  # type: ignore[union-attr]
        needed = sum(map(len, rows)) * hidden_size * 2 * num_tensors  # type: ignore[operator]
        self.memory: dict[int, list[torch.Tensor]] | None = {} if needed <= LARGEST_CACHE else None
        listener.model.eval()

    @torch.no_grad()
    def _ask(self, indices: Sequence[int]) -> _Answer:
        device = next(self.listener.model.parameters()).device
        ids, mask = batching.collate([self.rows[i] for i in indices], pad_id=self.pad_id, device=device)
        return self.listener(ids, mask)

    def answer(self, indices: Sequence[int]) -> _Answer:
        """Returns the answer for these rows, padded as ``batching.collate`` pads them."""
        if self.memory is None:
            return self._ask(indices)
        new = [index for index in indices if index not in self.memory]
        if new:
            answer = self._ask(new)
            for position, index in enumerate(new):
                length = len(self.rows[index])
                kept = [tensor[position, :length].to(torch.bfloat16) for tensor in (*answer.hidden, *answer.relations)]
                self.memory[index] = [answer.logits[position].float(), *kept]
        stored = [self.memory[index] for index in indices]
        padded = [
            nn.utils.rnn.pad_sequence([row[k] for row in stored], batch_first=True) for k in range(1, len(stored[0]))
        ]
        cut = len(self.listener.layers)
        return _Answer(torch.stack([row[0] for row in stored]), tuple(padded[:cut]), tuple(padded[cut:]))


def step_loss(
    student: nn.Module,
    teacher: nn.Module,
    rows: Sequence[Sequence[int]],
    targets: torch.Tensor,
    *,
    layer_map: Sequence[int],
    weights: Weights,
    temperature: float,
    pad_id: int,
    supervised: SupervisedLoss,
) -> Callable[[list[int]], tuple[torch.Tensor, Mapping[str, torch.Tensor]]]:
    """Makes the loss of a batch of rows for ``trainer.fit``.

    loss = w_logits · soft cross-entropy + w_hidden · mean over layers of relative MSE
         + w_attention · mean KL of query, key and value relations of the last layer + w_labels · supervised

    Args:
        rows: token ids per row, valid for both models.
        targets: class per row (N,), or the problem's mark for none.
        layer_map: teacher layer whose output each student layer learns.
        supervised: from logits (B, C) and targets (B,) to a mean loss.
    """
    relations = weights.attention > 0
    mapped = tuple(layer_map) if weights.hidden > 0 else ()
    listener = Listener(student, range(len(mapped)), relations=relations)
    speaker = Listener(teacher, mapped, relations=relations)
    num_tensors = len(mapped) + (len(RELATIONS) if relations else 0)
    source = Teacher(speaker, rows, pad_id=pad_id, num_tensors=num_tensors)
    num_heads = teacher.config.num_attention_heads  # type: ignore[union-attr]
    device = next(student.parameters()).device

    def loss(indices: list[int]) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        ids, mask = batching.collate([rows[i] for i in indices], pad_id=pad_id, device=device)
        wanted = source.answer(indices)
        given = listener(ids, mask)
        parts = {
            "logit_loss": weights.logits
            * losses.soft_cross_entropy(given.logits, wanted.logits, temperature=temperature)
        }
        if mapped:
            pairs = zip(given.hidden, wanted.hidden, strict=True)
            mean = torch.stack([losses.hidden_states(s, t, mask) for s, t in pairs]).mean()
            parts["hidden_loss"] = weights.hidden * mean
        if relations:
            pairs = zip(given.relations, wanted.relations, strict=True)
            mean = torch.stack([losses.attention_relations(s, t, mask, num_heads=num_heads) for s, t in pairs]).mean()  # type: ignore[arg-type]
            parts["attention_loss"] = weights.attention * mean
        if weights.labels > 0:
            parts["label_loss"] = weights.labels * supervised(given.logits, batching.send(targets[indices], device))
        return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}

    return loss
