"""What the teacher says about each text, computed once and kept, and the loss of a student that listens.

B = rows, S = tokens, H = hidden size, C = classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tasks.contracts import FeatherweightError
from tasks.ml import answers, batching, families, losses, parallelism, projection

RELATIONS = ("query", "key", "value")

SupervisedLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Weights:
    """Weights of the parts of the loss; a part of weight zero is neither computed nor kept."""

    logits: float = 1.0
    hidden: float = 1.0
    attention: float = 0.0
    labels: float = 0.0
    maps: float = 0.0

    @property
    def relations(self) -> tuple[str, ...]:
        """Of which vectors of the last layer something is learned."""
        return RELATIONS if self.attention > 0 else RELATIONS[:2] if self.maps > 0 else ()


@dataclass
class _Answer:
    """What a model said about a batch. ``hidden``: per mapped layer (B, S, H); ``relations``: q, k, v of the last."""

    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...]
    relations: tuple[torch.Tensor, ...]


class Listener:
    """Runs a model and catches the outputs of chosen layers, and the last one's query, key and value vectors."""

    def __init__(self, model: nn.Module, layers: Sequence[int], *, relations: Sequence[str]) -> None:
        family = families.of(model.config.model_type)  # type: ignore[union-attr, arg-type]
        self.model, self.layers, self.relations = model, tuple(layers), tuple(relations)
        self.caught: dict[int | str, torch.Tensor] = {}
        modules = list(family.layer_list(model))
        for index in self.layers:
            modules[index].register_forward_hook(self._catch(index))
        for name in self.relations:
            modules[-1].get_submodule(getattr(family, name)).register_forward_hook(self._catch(name))

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


class Teacher:
    """Answers by row; asked twice about a text, it answers from memory."""

    def __init__(
        self, listener: Listener, rows: Sequence[Sequence[int]], *, pad_id: int, memory: answers.Memory
    ) -> None:
        self.listener, self.rows, self.pad_id, self.memory = listener, rows, pad_id, memory
        self.keys = [memory.key(row) for row in rows]
        self.lengths = {key: len(row) for key, row in zip(self.keys, rows, strict=True)}
        self.device = next(listener.model.parameters()).device
        config: Any = listener.model.config
        names = [*(f"hidden-{layer}" for layer in listener.layers), *listener.relations]
        logits = answers.Kind("logits", per_text=4 * config.num_labels)
        self.kinds = [logits, *(answers.Kind(name, per_token=2 * config.hidden_size) for name in names)]
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

    def answer(self, indices: Sequence[int], *, length: int) -> _Answer:
        """Returns the answer for these rows, padded to so many tokens."""
        self.memory.open(self._setting(), self.kinds, self.lengths)
        said = {index: self.memory.get(self.keys[index]) for index in indices}
        known = {index: parts for index, parts in said.items() if parts is not None}
        new = [index for index in said if index not in known]
        if new:
            answer = self._ask(new)
            for position, index in enumerate(new):
                tokens = len(self.rows[index])
                kept = [tensor[position, :tokens].bfloat16() for tensor in (*answer.hidden, *answer.relations)]
                known[index] = [part.cpu() for part in (answer.logits[position : position + 1].float(), *kept)]
                self.memory.put(self.keys[index], known[index])
        stored = [known[index] for index in indices]
        logits, *padded = (
            nn.utils.rnn.pad_sequence([row[k] for row in stored], batch_first=True) for k in range(len(self.kinds))
        )
        padded = [F.pad(part, (0, 0, 0, length - part.shape[1])) for part in padded]
        logits, *padded = (batching.send(part, self.device) for part in (logits.squeeze(1), *padded))
        cut = len(self.listener.layers)
        return _Answer(logits, tuple(padded[:cut]), tuple(padded[cut:]))


def _relation_heads(student: nn.Module, teacher: nn.Module) -> int:
    """Most relation heads, up to the teacher's own number, that divide the widths of both last layers.

    Raises:
        FeatherweightError: a last layer has no heads to compare.
    """
    family = families.of(student.config.model_type)  # type: ignore[union-attr, arg-type]
    lasts = [family.layer_list(model)[-1] for model in (student, teacher)]
    common = math.gcd(*(family.num_heads(layer) * family.head_size(layer) for layer in lasts))
    if not all(family.num_heads(layer) for layer in lasts):
        raise FeatherweightError("attention_weight: the last layer has no heads left to compare; set it to 0")
    most = family.num_heads(lasts[1])
    return max(heads for heads in range(1, most + 1) if common % heads == 0)


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
    memory: answers.Memory | None = None,
    padding: batching.Padding = batching.Padding(),
) -> Callable[[list[int]], tuple[torch.Tensor, Mapping[str, torch.Tensor]]]:
    """Makes the loss of a batch of rows for ``trainer.fit``.

    loss = w_logits · soft cross-entropy + w_hidden · mean over layers of relative MSE
         + w_attention · mean KL of query, key and value relations of the last layer
         + w_maps · MSE of its attention scores + w_labels · supervised

    Args:
        rows: token ids per row, valid for both models.
        targets: class per row (N,), or the problem's mark for none.
        layer_map: teacher layer whose output each student layer learns.
        supervised: from logits (B, C) and targets (B,) to a mean loss.
        memory: of this teacher's answers; if there is none, they are remembered as long as the loss is.
    """
    mapped = tuple(layer_map) if weights.hidden > 0 else ()
    listener = Listener(student, range(len(mapped)), relations=weights.relations)
    speaker = Listener(teacher, mapped, relations=weights.relations)
    source = Teacher(speaker, rows, pad_id=pad_id, memory=memory or answers.Memory())
    num_heads = _relation_heads(student, teacher) if weights.relations else 0
    project = projection.of(student)
    device = next(student.parameters()).device

    def loss(indices: list[int]) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        ids, mask = batching.collate([rows[i] for i in indices], pad_id=pad_id, device=device, padding=padding)
        wanted = source.answer(indices, length=ids.shape[1])
        given = listener(ids, mask)
        parts = {
            "logit_loss": weights.logits
            * losses.soft_cross_entropy(given.logits, wanted.logits, temperature=temperature)
        }
        if mapped:
            pairs = zip(given.hidden, wanted.hidden, strict=True)
            mean = torch.stack([losses.hidden_states(project(s), t, mask) for s, t in pairs]).mean()
            parts["hidden_loss"] = weights.hidden * mean
        if weights.attention > 0:
            pairs = zip(given.relations, wanted.relations, strict=True)
            mean = torch.stack([losses.attention_relations(s, t, mask, num_heads=num_heads) for s, t in pairs]).mean()
            parts["attention_loss"] = weights.attention * mean
        if weights.maps > 0:
            error = losses.attention_maps(given.relations[:2], wanted.relations[:2], mask, num_heads=num_heads)
            parts["map_loss"] = weights.maps * error
        if weights.labels > 0:
            parts["label_loss"] = weights.labels * supervised(given.logits, batching.send(targets[indices], device))
        return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}

    return loss
