"""Metrics against flows whose every number is known."""

import math

import pytest
import torch

from jkoflow import Block, JKOFlow, MLPVelocity, metrics
from jkoflow.data import DataWarning


def linear_flow(rate, dim=2, method="rk4", num_steps=1, blocks=1, std=1.0):
    """Blocks with the velocity v(x) = rate x: a block multiplies by exp(rate), logdet is dim * rate."""
    made = []
    for _ in range(blocks):
        velocity = MLPVelocity(dim, hidden=(4,), linear=True).double()
        with torch.no_grad():
            for parameter in velocity.layers[-1].parameters():
                parameter.zero_()
            velocity.linear.weight.copy_(rate * torch.eye(dim, dtype=torch.float64))
        made.append(Block(velocity, num_steps, method))
    mean = torch.full((dim,), 5.0, dtype=torch.float64)
    return JKOFlow(dim, made, mean=mean, std=torch.full_like(mean, std))


def rows(n=500, dim=2, std=1.0):
    return 5 + std * torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def exact_nll(x, rate, std=1.0):
    z = math.exp(rate) * (x - 5) / std
    return 0.5 * z.square().sum(1) + x.shape[1] * (0.5 * math.log(2 * math.pi) - rate + math.log(std))


def test_mean_and_standard_error_are_those_of_the_rows():
    x = rows(std=3.0)
    nll, stderr = metrics.mean_nll(linear_flow(-0.5, std=3.0, num_steps=32), x)
    expected = exact_nll(x, -0.5, std=3.0)
    assert nll == pytest.approx(expected.mean().item(), abs=1e-6)
    assert stderr == pytest.approx(expected.std().item() / math.sqrt(500), rel=1e-4)


def test_a_single_row_has_no_standard_error():
    nll, stderr = metrics.mean_nll(linear_flow(0.0), rows(1))
    assert math.isfinite(nll)
    assert math.isnan(stderr)


@pytest.mark.parametrize("measure", [metrics.mean_nll, metrics.step_converged_nll, metrics.inversion_error])
def test_chunks_change_nothing(measure, monkeypatch):
    x, flow = rows(101), linear_flow(0.7, method="euler", num_steps=4)
    whole = measure(flow, x)
    monkeypatch.setattr(metrics, "CHUNK", 10)
    found = zip(measure(flow, x), whole, strict=True)
    assert all(
        value == (expected if expected is None else pytest.approx(expected, rel=1e-12)) for value, expected in found
    )


def test_step_converged_nll_sees_through_a_coarse_integrator():
    x, flow = rows(), linear_flow(1.0, method="euler")
    expected = exact_nll(x, 1.0).mean().item()
    assert abs(metrics.mean_nll(flow, x)[0] - expected) > 1  # what one Euler step claims
    result = metrics.step_converged_nll(flow, x, max_num_steps=2**16)
    assert result.converged
    assert result.change < 1e-3
    assert result.nll == pytest.approx(expected, abs=2e-3)
    # the number reported is the one used, and half of it would not have done
    assert result.nll == metrics.mean_nll(flow, x, result.num_steps)[0]
    coarse = [metrics.mean_nll(flow, x, result.num_steps // n)[0] for n in (2, 4)]
    assert abs(coarse[0] - coarse[1]) >= 1e-3


def test_unconverged_nll_says_so():
    result = metrics.step_converged_nll(linear_flow(1.0, method="euler"), rows(), max_num_steps=8)
    assert not result.converged
    assert result.num_steps == 8
    assert result.change > 1e-3


def test_overflow_is_not_convergence():
    with pytest.warns(DataWarning, match=r"500 of 500 rows of x \(the first is row 0, .*training has diverged"):
        result = metrics.step_converged_nll(linear_flow(1e300, method="euler", blocks=2), rows(), max_num_steps=4)
    assert not result.converged
    assert not math.isfinite(result.nll)


def test_calibration_sets_the_number_of_steps_that_evaluation_uses():
    x, flow = rows(), linear_flow(0.5, num_steps=1, blocks=2)
    flow.blocks[1].num_steps = 3
    result = metrics.calibrate(flow, x)
    assert result.converged
    assert flow.eval_num_steps == result.num_steps >= 6  # it begins with the most steps of any block
    assert metrics.mean_nll(flow, x) == metrics.mean_nll(flow, x, result.num_steps)
    again = metrics.step_converged_nll(flow, x)
    assert again.num_steps == result.num_steps


def test_empty_rows_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        metrics.step_converged_nll(JKOFlow(2), torch.zeros(0, 2))


@pytest.mark.parametrize("std", [1.0, 100.0])
def test_inversion_error_of_one_euler_step_is_known(std):
    """(1 + a) (1 - a) x - x = -a^2 x, in standardised units."""
    x = rows(std=std)
    result = metrics.inversion_error(linear_flow(0.3, method="euler", std=std), x)
    distance = 0.09 * ((x - 5) / std).square().sum(1).sqrt()
    assert result.mean == pytest.approx(distance.mean().item(), rel=1e-9)
    assert result.maximum == pytest.approx(distance.max().item(), rel=1e-9)


def test_inversion_error_uses_the_calibrated_steps():
    flow = linear_flow(0.3, method="euler")
    coarse = metrics.inversion_error(flow, rows())
    flow.eval_num_steps = 64
    assert metrics.inversion_error(flow, rows()).mean < coarse.mean / 20


def test_inversion_error_of_a_broken_flow_is_infinite():
    assert metrics.inversion_error(linear_flow(1e300, blocks=2), rows())[:2] == (math.inf, math.inf)


def test_spread_rows_come_from_the_whole_file():
    x = torch.arange(1001.0).unsqueeze(1)
    assert torch.equal(metrics.spread_rows(x, 1001), x)
    some = metrics.spread_rows(x, 11).squeeze().tolist()
    assert some == [100.0 * k for k in range(11)]


def test_movement_is_the_root_mean_square():
    x = torch.zeros(2, 2)
    assert metrics.movement(x, torch.tensor([[3.0, 4.0], [0.0, 0.0]])).value == pytest.approx(math.sqrt(25 / 2))


def test_metrics_leave_no_graph():
    flow = linear_flow(0.1)
    metrics.calibrate(flow, rows())
    metrics.inversion_error(flow, rows())
    assert all(parameter.grad is None for parameter in flow.parameters())
