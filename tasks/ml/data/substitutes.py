"""Words that could stand in a word's place: near it in an embedding table, or predicted by a masked language model.

V = words, H = hidden size, K = words that are proposed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.data import batching
from tasks.ml.data.augmentation import Draft, Substitutes

PROPOSED = 15
"""K of TinyBERT (Jiao et al. 2020, arXiv:1909.10351, section 4.2)."""
ROWS_AT_ONCE = 1024
BATCH = 64
HEADLESS = (
    "{field}: {directory} has no head that predicts masked tokens ({lacking} is missing); name a masked language "
    "model, or leave it empty for neighbours in the teacher's embeddings"
)


def _word(draft: Draft, number: int) -> str:
    start, end = draft.characters[number]
    return draft.text[start:end].strip().lower()


def neighbours(table: torch.Tensor, found: Sequence[Draft], *, count: int = PROPOSED) -> Substitutes:
    """Proposes the words whose embeddings have the highest cosine similarity, among those that occur in some texts.

    Their order, and so what is drawn from them, does not depend on how a vocabulary is numbered.

    Args:
        table: token embeddings, whose rows token ids are.
        found: the texts, with all of their words as places.
    """
    ids = {_word(draft, n): draft.input_ids[place] for draft in found for n, place in enumerate(draft.places)}
    known = sorted(ids)
    rows = torch.tensor([ids[word] for word in known], dtype=torch.int64, device=table.device)
    unit = F.normalize(table.detach()[rows].float(), dim=-1)
    near: dict[str, list[str]] = {}
    for start in range(0, len(known), ROWS_AT_ONCE):
        similarity = unit[start : start + ROWS_AT_ONCE] @ unit.T
        itself = torch.arange(len(similarity), device=table.device)
        similarity[itself, start + itself] = -torch.inf
        best = similarity.topk(min(count, len(known) - 1), dim=-1).indices.tolist()
        near |= {known[start + n]: [known[other] for other in others] for n, others in enumerate(best)}

    def propose(drafts: Sequence[Draft]) -> list[list[list[str]]]:
        return [[near[_word(draft, n)] for n in range(len(draft.places))] for draft in drafts]

    return propose


def load_masked(directory: Path) -> nn.Module:
    """Loads a masked language model, from safetensors only.

    Raises:
        FeatherweightError: its weights lack the head that predicts tokens.
    """
    from transformers import AutoModelForMaskedLM

    model, about = AutoModelForMaskedLM.from_pretrained(
        directory, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    lacking = sorted(about["missing_keys"])
    if lacking:
        field = "teaching.augmentation.model"
        raise FeatherweightError(HEADLESS.format(field=field, directory=directory, lacking=lacking[0]))
    return model.eval()


def require_head(directory: Path, stored: Collection[str], *, field: str) -> None:
    """Sees from the names of its tensors that a model has a head which predicts masked tokens; reads no weights.

    Args:
        stored: names of the tensors in its files.
        field: what errors say was wrong.

    Raises:
        FeatherweightError: it has none.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM

    try:
        with torch.device("meta"):
            model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(directory))
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise FeatherweightError(f"{field}: {directory} cannot be a masked language model: {said}") from None
    head = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    if not {name.partition(".")[0] for name in stored} & set(head):
        raise FeatherweightError(HEADLESS.format(field=field, directory=directory, lacking=" and ".join(head)))


@torch.no_grad()
def _predicted(model: nn.Module, tokenizer: Any, drafts: Sequence[Draft], keep: int) -> list[torch.Tensor]:
    """The most likely token ids at each place of each draft (places, keep)."""
    rows = [list(draft.input_ids) for draft in drafts]
    for row, draft in zip(rows, drafts, strict=True):
        for place in draft.places:
            row[place] = tokenizer.mask_token_id
    ids, mask = batching.collate(rows, pad_id=tokenizer.pad_token_id, device=next(model.parameters()).device)
    logits = model(input_ids=ids, attention_mask=mask).logits
    return [logits[n, draft.places].topk(keep, dim=-1).indices.cpu() for n, draft in enumerate(drafts)]


def predictions(model: nn.Module, tokenizer: Any, *, count: int = PROPOSED) -> Substitutes:
    """Proposes the words that a masked language model finds most likely in the places of a draft.

    Departure from TinyBERT: all places of a draft are masked at once, which is one pass per text and not per word.

    Args:
        tokenizer: of that model, which found the places.
    """
    # More than are wanted: some of the most likely tokens are no words, or the word itself.
    keep = min(4 * count, len(tokenizer))

    def surface(token: int) -> str:
        piece = str(tokenizer.convert_ids_to_tokens(token))
        text = tokenizer.decode([token]).strip()
        return text if text.isalpha() and not piece.startswith("##") and token not in special else ""

    special = set(tokenizer.all_special_ids)

    def propose(drafts: Sequence[Draft]) -> list[list[list[str]]]:
        proposals: list[list[list[str]]] = [[] for _ in drafts]
        for batch in batching.by_length([len(draft.input_ids) for draft in drafts], BATCH):
            for index, best in zip(batch, _predicted(model, tokenizer, [drafts[n] for n in batch], keep), strict=True):
                for number, tokens in enumerate(best.tolist()):
                    words = dict.fromkeys(surface(token) for token in tokens)
                    own = {"", _word(drafts[index], number)}
                    proposals[index].append([word for word in words if word.lower() not in own][:count])
        return proposals

    return propose
