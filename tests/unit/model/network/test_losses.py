import math

import pytest
import torch

from model.network.losses import (
    MAX_LOG_SCALE,
    contrastive_loss,
    generation_loss,
    teacher_loss,
    total_loss,
)


def _notes(count: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def _double_sum(emb: torch.Tensor, tau: float, ignored: set[tuple[int, int]] = frozenset()) -> float:
    """Eq. (2) written out term by term."""
    unit = emb / emb.norm(dim=1, keepdim=True)

    def sim(i: int, j: int) -> float:
        return math.exp(float(unit[i] @ unit[j]) * math.exp(tau))

    count = len(emb)
    terms = [
        -math.log(sim(i, i ^ 1) / sum(sim(i, j) for j in range(count) if j != i and (i, j) not in ignored))
        for i in range(count)
    ]
    return sum(terms) / count


def test_the_contrastive_loss_is_the_papers_double_sum():
    emb = _notes(6)
    assert contrastive_loss(emb, torch.tensor(1.5)).item() == pytest.approx(_double_sum(emb, 1.5), rel=1e-5)


def test_the_scale_is_exp_tau_so_that_a_perfect_positive_can_be_learned():
    """Two pairs of identical, mutually orthogonal notes: with tau = 3 the loss is log(1 + 2 exp(-exp(3)))."""
    emb = torch.eye(2).repeat_interleave(2, dim=0)
    expected = math.log(1 + 2 * math.exp(-math.exp(3)))
    assert contrastive_loss(emb, torch.tensor(3.0)).item() == pytest.approx(expected, abs=1e-6)


def test_a_known_pair_is_nobodys_negative_but_stays_a_positive():
    emb = _notes(6)
    related = torch.zeros(6, 6, dtype=torch.bool)
    for i, j in [(0, 1), (1, 0), (0, 4), (4, 0)]:
        related[i, j] = True
    expected = _double_sum(emb, 1.0, ignored={(0, 4), (4, 0)})
    assert contrastive_loss(emb, torch.tensor(1.0), related).item() == pytest.approx(expected, rel=1e-5)


def test_the_length_of_an_embedding_does_not_matter():
    emb = _notes(4)
    lengths = torch.tensor([[1.0], [0.1], [7.0], [100.0]])
    assert contrastive_loss(emb * lengths, torch.tensor(1.0)).item() == pytest.approx(
        contrastive_loss(emb, torch.tensor(1.0)).item(), rel=1e-5
    )


def test_tau_is_clamped_at_ln_100():
    emb = _notes(4)
    assert contrastive_loss(emb, torch.tensor(50.0)) == contrastive_loss(emb, torch.tensor(MAX_LOG_SCALE))


@pytest.mark.parametrize("count", [0, 2, 5])
def test_a_batch_without_negatives_or_partners_is_refused(count):
    with pytest.raises(ValueError, match="even number of notes"):
        contrastive_loss(_notes(count), torch.tensor(1.0))


def test_the_generation_loss_is_summed_over_tokens():
    logits = _notes(5, dim=11)
    target = torch.tensor([3, 0, 10, 4, 4])
    probabilities = torch.softmax(logits, dim=1)
    expected = -sum(math.log(probabilities[row, token]) for row, token in enumerate(target))
    assert generation_loss(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_a_pupil_that_points_where_the_teacher_points_has_nothing_to_learn():
    emb = _notes(4)
    assert teacher_loss(3 * emb, emb).item() == pytest.approx(0.0, abs=1e-6)
    assert teacher_loss(-emb, emb).item() == pytest.approx(2.0, abs=1e-6)


def test_a_batch_without_outputs_has_generation_loss_zero_and_still_a_gradient_path():
    logits = torch.zeros(0, 11, requires_grad=True)
    loss = generation_loss(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0


def test_the_sum_is_eq_4():
    assert total_loss(torch.tensor(2.0), torch.tensor(5.0), 0.01).item() == pytest.approx((2.0 + 0.05) / 1.01)
