"""The JKO objective against closed forms."""

import math

import pytest
import torch

from jkoflow import Block, MLPVelocity
from jkoflow.ops import jko_terms


def test_terms_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    y = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    terms = jko_terms(x, y, torch.tensor([0.5, 1.5]), jko_step=0.25)
    assert terms.potential.item() == pytest.approx((4.5 + 2.0) / 2)
    assert terms.divergence.item() == pytest.approx(-1.0)
    assert terms.movement.item() == pytest.approx(4 / 2 / (2 * 0.25))
    assert terms.total.item() == pytest.approx(3.25 - 1.0 + 4.0)


def test_free_block_has_no_penalty():
    x, y, logdet = torch.randn(3, 5, 2).unbind()
    terms = jko_terms(x, y, logdet[:, 0], math.inf)
    assert terms.movement.item() == 0
    assert terms.total.item() == pytest.approx((terms.potential + terms.divergence).item())
    assert terms.total.item() == pytest.approx(jko_terms(x, y, logdet[:, 0], 1e12).total.item())


def test_infinite_positions_stay_infinite():
    x, y = torch.zeros(2, 1), torch.tensor([[math.inf], [0.0]])
    assert jko_terms(x, y, torch.zeros(2), math.inf).total.item() == math.inf


@pytest.mark.parametrize("jko_step", [0.0, -1.0, math.nan])
def test_step_size_must_be_positive(jko_step):
    x = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="jko_step must be positive"):
        jko_terms(x, x, torch.zeros(2), jko_step)


@pytest.mark.parametrize("jko_step", [0.1, 1.0, math.inf])
def test_minimiser_of_a_scaling_is_the_known_one(jko_step):
    """Of the maps y = a x, the objective is least where a s - 1/a + (a - 1) s / h = 0, s = E x^2."""
    x = 3 * torch.randn(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = x.square().mean().item()
    a2, a1 = s * (1 + 1 / jko_step), s / jko_step
    best = (a1 + math.sqrt(a1 * a1 + 4 * a2)) / (2 * a2)

    def slope(value):
        a = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        jko_terms(x, a * x, a.log().expand(1000), jko_step).total.backward()
        return a.grad.item()

    assert abs(slope(best)) < 1e-12
    assert slope(0.9 * best) < -1e-3
    assert slope(1.1 * best) > 1e-3


def test_loss_of_a_block_uses_its_own_grid_and_jko_step():
    block = Block(MLPVelocity(2, hidden=(8,)), num_steps=1, method="euler", jko_step=0.5)
    x = torch.randn(7, 2)
    velocity = block.velocity(x, 0.0)
    terms = block.jko_loss(x)
    assert terms.movement.item() == pytest.approx(velocity.square().sum(1).mean().item(), rel=1e-5)
    assert terms.potential.item() == pytest.approx(0.5 * (x + velocity).square().sum(1).mean().item(), rel=1e-5)
    terms.total.backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in block.velocity.layers[-1].parameters())
