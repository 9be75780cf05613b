"""Losses are tested by identities, and by the cases in which they must not be zero."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tasks.ml.distillation import losses

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])


def vectors(seed: int, width: int = 8) -> torch.Tensor:
    return torch.randn(2, 4, width, generator=torch.Generator().manual_seed(seed))


def test_soft_cross_entropy_of_identical_logits_is_zero() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.3], [0.0, 4.0, 1.0]])
    assert losses.soft_cross_entropy(logits, logits, temperature=3.0).item() == pytest.approx(0.0, abs=1e-6)


def test_soft_cross_entropy_is_the_kl_divergence_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert losses.soft_cross_entropy(student, teacher, temperature=1.0).item() == pytest.approx(by_hand, rel=1e-5)


def test_soft_cross_entropy_gradient_hardly_depends_on_temperature_when_warm() -> None:
    teacher = torch.tensor([[0.6, -0.2]])

    def gradient(temperature: float) -> torch.Tensor:
        student = torch.tensor([[0.1, 0.3]], requires_grad=True)
        losses.soft_cross_entropy(student, teacher, temperature=temperature).backward()
        assert student.grad is not None
        return student.grad

    torch.testing.assert_close(gradient(20.0), gradient(40.0), rtol=0.02, atol=1e-4)


def test_hidden_states_is_zero_for_equals_and_blind_to_padding() -> None:
    teacher = vectors(0)
    student = teacher.clone()
    student[0, 3] += 100.0
    assert losses.hidden_states(student, teacher, MASK, variance=1.0).item() == 0.0
    student[1, 3] += 1.0
    assert losses.hidden_states(student, teacher, MASK, variance=1.0).item() > 0.0


def test_hidden_states_does_not_change_with_scale() -> None:
    teacher, student = vectors(0), vectors(1)
    small = losses.hidden_states(student, teacher, MASK, variance=teacher.var())
    large = losses.hidden_states(10 * student, 10 * teacher, MASK, variance=(10 * teacher).var())
    torch.testing.assert_close(small, large)


def test_the_variance_of_parts_that_lie_apart_is_that_of_the_whole() -> None:
    parts = [vectors(seed).double() + 1000 * seed for seed in range(3)]
    count = sum(part.numel() for part in parts)
    total, squares = sum(part.sum() for part in parts), sum(part.square().sum() for part in parts)
    torch.testing.assert_close(losses.variance(count, total, squares), torch.stack(parts).var())
    assert losses.variance(2, torch.tensor(2.0), torch.tensor(2.0)) == pytest.approx(1e-6)


def test_attention_relations_of_identical_vectors_is_zero_and_blind_to_padding() -> None:
    teacher = vectors(0)
    student = teacher.clone()
    student[0, 3] += 5.0
    assert losses.attention_relations(student, teacher, MASK, num_heads=2).item() == pytest.approx(0.0, abs=1e-6)
    student[1, 0] += 1.0
    assert losses.attention_relations(student, teacher, MASK, num_heads=2).item() > 1e-4


def test_attention_relations_is_finite_with_padding_and_has_a_gradient() -> None:
    student = vectors(1).requires_grad_()
    loss = losses.attention_relations(student, vectors(0), MASK, num_heads=4)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().sum() > 0


def test_attention_relations_accepts_a_narrower_student() -> None:
    assert losses.attention_relations(vectors(1, width=6), vectors(0, width=8), MASK, num_heads=2).item() > 0


def test_relations_is_the_log_softmax_of_scaled_products() -> None:
    x = vectors(2)
    heads = x.view(2, 4, 2, 4).transpose(1, 2)
    expected = F.softmax(heads @ heads.transpose(-1, -2) / 2.0, dim=-1)
    torch.testing.assert_close(losses.relations(x, torch.ones(2, 4), 2).exp(), expected)


def test_attention_maps_of_identical_vectors_are_zero_and_blind_to_padding() -> None:
    teacher = vectors(0), vectors(1)
    student = vectors(0), vectors(1)
    for part in student:
        part[0, 3] += 5.0
    assert losses.attention_maps(student, teacher, MASK, num_heads=2).item() == 0.0
    student[0][1, 3] += 1.0
    assert losses.attention_maps(student, teacher, MASK, num_heads=2).item() > 1e-3


def test_attention_maps_are_the_mean_squared_error_of_scaled_products() -> None:
    student, teacher = (vectors(0), vectors(1)), (vectors(2), vectors(3))

    def scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bqad,bkad->baqk", query.view(2, 4, 2, 4), key.view(2, 4, 2, 4)) / 2.0

    expected = F.mse_loss(scores(*student), scores(*teacher))
    found = losses.attention_maps(student, teacher, torch.ones(2, 4, dtype=torch.int64), num_heads=2)
    torch.testing.assert_close(found, expected)


def test_attention_maps_accept_a_narrower_student() -> None:
    narrow = vectors(0, width=6), vectors(1, width=6)
    assert losses.attention_maps(narrow, (vectors(0), vectors(1)), MASK, num_heads=2).item() > 0
