"""What a student is taught by. B = rows, S = tokens, C = classes, H = hidden size, A = relation heads.

Every loss is zero where student and teacher agree, and a mean: over rows, tokens, or pairs of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """KL(teacher ‖ student) between softened label distributions, in nats per row.

    Hinton, Vinyals & Dean 2015 (arXiv:1503.02531), eq. 1 and section 2.1: the factor T² keeps the gradient's size
    independent of the temperature T.

    Args:
        student, teacher: logits (B, C).
    """
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def variance(count: float | torch.Tensor, total: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Unbiased variance of so many values, of their sum and the sum of their squares; not below 1e-6.

    Sums of parts add up to those of the whole, variances do not; in float64 the difference keeps its digits.
    """
    return ((squares - total.square() / count) / (count - 1)).clamp_min(1e-6)


def hidden_states(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, *, variance: float | torch.Tensor
) -> torch.Tensor:
    """Mean squared error between hidden states over real tokens, relative to the teacher's variance.

    TinyBERT, Jiao et al. 2020 (arXiv:1909.10351), eq. 8, with W = I because a student cut from its teacher shares the
    hidden size. Departure: dividing by the teacher's variance makes one weight fit layers of any scale.

    Args:
        student, teacher: hidden states (B, S, H).
        mask: 1 on tokens, 0 on padding (B, S).
        variance: of the teacher's states at all tokens of the batch that are compared, of which these may be a part.
    """
    tokens = mask.bool()
    return F.mse_loss(student[tokens].float(), teacher[tokens].float()) / variance


def relations(vectors: torch.Tensor, mask: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Log of the scaled dot-product self-relation of queries, keys or values: (B, S, H) → (B, A, S, S)."""
    heads = vectors.float().unflatten(-1, (num_heads, -1)).transpose(1, 2)
    scores = heads @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5
    return F.log_softmax(scores.masked_fill(~mask.bool()[:, None, None, :], float("-inf")), dim=-1)


def attention_maps(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    mask: torch.Tensor,
    *,
    num_heads: int,
) -> torch.Tensor:
    """Mean squared error between the attention scores of student and teacher, over heads and pairs of real tokens.

    TinyBERT, Jiao et al. 2020 (arXiv:1909.10351), eq. 7, of the scores before the softmax as there. Departure: where
    the student has fewer heads, its vectors are divided among as many as the teacher has.

    Args:
        student, teacher: concatenated query and key vectors, (B, S, H) each; H may differ between the two.
        mask: 1 on tokens, 0 on padding (B, S).
        num_heads: A; must divide both widths.
    """

    def scores(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        queries, keys = (x.float().unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in vectors)
        return queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5

    pairs = (mask[:, None, :, None] * mask[:, None, None, :]).bool()
    difference = (scores(student) - scores(teacher)).masked_fill(~pairs, 0.0)
    return difference.square().sum() / (pairs.sum() * num_heads)


def attention_relations(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, *, num_heads: int
) -> torch.Tensor:
    """KL divergence between the self-relations of student and teacher, in nats per head and query token.

    MiniLMv2, Wang et al. 2021 (arXiv:2012.15828), eqs. 2–5. The number of relation heads is free, so that student and
    teacher may differ in width and in attention heads.

    Args:
        student: concatenated query, key or value vectors (B, S, H_student).
        teacher: the same of the teacher (B, S, H_teacher).
        mask: 1 on tokens, 0 on padding (B, S).
        num_heads: relation heads A; must divide both widths.
    """
    log_student = relations(student, mask, num_heads)
    log_teacher = relations(teacher, mask, num_heads)
    queries = mask.bool()[:, None, :, None]
    keys = mask.bool()[:, None, None, :]
    # Padded keys hold −inf in both; exp(−inf) · (−inf − −inf) would be NaN.
    difference = torch.where(keys, log_teacher - log_student, 0.0)
    divergence = (log_teacher.exp() * difference).masked_fill(~queries, 0.0).sum()
    return divergence / (mask.sum() * num_heads)
