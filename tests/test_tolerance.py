"""A tolerance in nats finds the fewest steps that keep it, says what rows are off by, and where it is not kept."""

import copy
import itertools

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import jkoflow
from jkoflow import Block, JKOFlow, tolerance, within
from jkoflow.cli.commands import app
from jkoflow.log_densities import LogDensities
from jkoflow.ops import Adaptive, Fixed
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.tolerance import ToleranceWarning, Usual, cheapest, settled
from oracles import random_velocity

FINE = 160  # steps per block, on which every flow here stands still to some 1e-5 nats in float64


def expanding_flow(dim, blocks, scale, dtype=torch.float32, method="rk4", context_dim=0, seed=0):
    velocities = [
        random_velocity(dim, (16, 16), scale=scale, seed=seed + k, linear=True, dtype=dtype, context_dim=context_dim)
        for k in range(blocks)
    ]
    flow = JKOFlow(dim, [Block(velocity, 4, method) for velocity in velocities])
    return flow.requires_grad_(False)


def rows(count, dim, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def exact_log_prob(flow, x, context=None, num_steps=FINE):
    double = copy.deepcopy(flow).double()
    return double.log_prob(x.double(), None if context is None else context.double(), num_steps)


FLOWS = {
    "easy": lambda dtype=torch.float32: expanding_flow(3, 2, 1.2, dtype),
    "steep": lambda dtype=torch.float32: expanding_flow(2, 1, 2.5, dtype, seed=3),
    "uneven": lambda dtype=torch.float32: uneven_flow(dtype),
}


def uneven_flow(dtype=torch.float32):
    flow = expanding_flow(4, 3, 1.2, dtype, seed=7)
    flow.stack[0].velocity.scale_output(0.1)
    flow.stack[1].velocity.scale_output(0.3)
    return flow


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("tol", [1e-1, 1e-3])
def test_the_steps_are_the_fewest_known_afterwards(name, tol):
    flow = FLOWS[name](torch.float64)
    x = rows(200, flow.dim).double()
    exact = flow.log_prob(x, num_steps=FINE)
    grids = flow.grids_for(x, tol=tol)
    assert float((flow.log_prob(x, num_steps=grids) - exact).abs().max()) <= 1.01 * tol
    worst = [float((flow.log_prob(x, num_steps=n) - exact).abs().max()) for n in range(1, 100)]
    best = max(n for n, error in enumerate(worst, 1) if error > tol) + 1  # from there on all are within
    assert best < 99
    everything = torch.arange(len(x))
    cost = LogDensities(flow, x, None).evaluations(everything, grids)
    stages = TABLEAUX[flow.stack[0].method].stages
    assert cost <= stages * max(1.1 * best * len(flow.blocks), best * len(flow.blocks) + 1)
    if isinstance(grids[0], Adaptive):  # no cheaper tolerances of a step were known afterwards
        for looser in (2.0, 4.0, 16.0):
            loose = tuple(Adaptive(looser * grid.rtol, looser * grid.atol) for grid in grids)
            fewer = LogDensities(flow, x, None).evaluations(everything, loose)
            error = float((flow.log_prob(x, num_steps=loose) - exact).abs().max())
            assert error > tol or fewer > 0.9 * cost


def test_steps_of_their_own_are_taken_where_they_are_cheaper(monkeypatch):
    tol = 1e-3
    flow, x = FLOWS["steep"](torch.float64), rows(200, 2).double()
    density, everything = LogDensities(flow, x, None), torch.arange(200)
    own = flow.grids_for(x, tol=tol)
    assert all(isinstance(grid, Adaptive) for grid in own)
    monkeypatch.setattr(LogDensities, "can_adapt", False)
    equal = flow.grids_for(x, tol=tol)
    assert all(isinstance(grid, Fixed) for grid in equal)
    assert density.evaluations(everything, own) < 0.9 * density.evaluations(everything, equal)
    apart = torch.cat([flow.log_prob(row, num_steps=own) for row in x.split(7)])
    assert torch.equal(apart, flow.log_prob(x, num_steps=own))
    z, logdet = flow(x, num_steps=own)
    back, inverse_logdet = flow.inverse(z, num_steps=own)
    torch.testing.assert_close(back, x, rtol=0, atol=10 * tol)
    torch.testing.assert_close(inverse_logdet, -logdet, rtol=0, atol=10 * tol)


def test_the_discrete_map_has_equal_steps():
    flow = FLOWS["easy"]()
    with pytest.raises(ValueError, match="the discrete map is that of equal steps; pass their number"):
        flow.log_prob(rows(3, 3), num_steps=Adaptive(), discrete=True)


def test_blocks_get_what_they_need(monkeypatch):
    monkeypatch.setattr(LogDensities, "can_adapt", False)
    flow = uneven_flow()
    first, second, third = (grid.cost for grid in flow.grids_for(rows(200, 4), tol=1e-3))
    assert first <= second < third


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("tol", [1e-1, 1e-3])
def test_few_rows_are_all_within(name, tol):
    flow = FLOWS[name]()
    x = rows(100, flow.dim)
    log_p = flow.log_prob(x, tol=tol)
    assert log_p.dtype == torch.float32
    assert float((log_p.double() - exact_log_prob(flow, x)).abs().max()) <= tol


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("tol", [1e-1, 1e-2])
def test_every_row_is_within_if_its_error_is_asked_for_and_the_estimate_is_honest(name, tol):
    flow = FLOWS[name]()
    x = rows(1500, flow.dim)
    log_p, estimate = flow.log_prob_and_error(x, tol=tol)
    error = (log_p.double() - exact_log_prob(flow, x)).abs()
    assert float(estimate.max()) <= tol
    assert int((error > tol).sum()) <= 1  # a row may stand still by accident
    assert float(error.max()) <= 1.1 * tol
    assert float((error > 2 * estimate).double().mean()) <= 0.01


@pytest.mark.parametrize("name", FLOWS)
def test_of_many_rows_as_many_are_beyond_as_is_said(name):
    flow, tol = FLOWS[name](), 1e-2
    x = rows(3000, flow.dim)
    error = (flow.log_prob(x, tol=tol).double() - exact_log_prob(flow, x)).abs()
    assert float((error > tol).double().mean()) <= 3 / (within.PILOT[0] + 1)
    assert float(error.max()) <= 10 * tol


def test_a_row_less_likely_than_all_others_is_looked_at():
    flow, tol = FLOWS["easy"](), 1e-2
    x = rows(2000, 3)
    grids, far = flow.grids_for(x, tol=tol), 3 * rows(300, 3, seed=1)
    exact = exact_log_prob(flow, far)
    error = (flow.log_prob(far, num_steps=grids) - exact).abs()
    error[exact > exact_log_prob(flow, x).min()] = 0.0
    hardest = int(error.argmax())
    assert float(error[hardest]) > 2 * tol
    x[77] = far[hardest]
    assert float((flow.log_prob(x, tol=tol)[77] - exact[hardest]).abs()) <= tol


@pytest.mark.parametrize("steps", [4, 12, [6, 9]])
def test_the_error_of_given_steps(steps):
    flow = FLOWS["easy"]()
    x = rows(1000, 3)
    log_p, estimate = flow.log_prob_and_error(x, num_steps=steps)
    assert torch.equal(log_p, flow.log_prob(x, num_steps=steps))
    error = (log_p.double() - exact_log_prob(flow, x)).abs()
    assert float((error > 2 * estimate).double().mean()) <= 0.01
    assert float(estimate.mean()) <= 3 * float(error.mean())


def test_the_estimate_counts_rounding():
    flow = FLOWS["easy"]()
    x = rows(500, 3)
    log_p, estimate = flow.log_prob_and_error(x, num_steps=100)
    error = (log_p.double() - exact_log_prob(flow, x)).abs()
    steps_alone = (exact_log_prob(flow, x, num_steps=100) - exact_log_prob(flow, x)).abs()
    assert float(error.median()) > 10 * float(steps_alone.median())
    assert float((error > 3 * estimate).double().mean()) <= 0.01


def test_a_tolerance_below_the_rounding_is_told_with_the_fix():
    flow = FLOWS["easy"]()
    x = rows(400, 3)
    with pytest.warns(
        ToleranceWarning, match=r"tol=1e-06 is not kept for \d+ of \d+ rows .* rounding of float32.*double"
    ):
        flow.log_prob(x, tol=1e-6)
    with pytest.warns(ToleranceWarning, match="of 400 rows: their log-densities are off by up to"):
        flow.log_prob_and_error(x, tol=1e-6)
    double = copy.deepcopy(flow).double()  # the fix helps
    log_p, error = double.log_prob_and_error(x, tol=1e-6)
    assert float(error.max()) <= 1e-6
    assert float((log_p - double.log_prob(x, num_steps=4 * FINE)).abs().max()) <= 1e-6


def test_a_tolerance_in_float64():
    flow = FLOWS["easy"]()
    x = rows(300, 3)
    exact = exact_log_prob(flow, x, num_steps=4 * FINE)
    log_p = flow.log_prob(x, precision="float64", tol=1e-6)
    assert log_p.dtype == torch.float64
    assert float((log_p - exact).abs().quantile(0.99)) <= 1e-6
    flow.requires_grad_(True)
    log_p = flow.log_prob(x, precision="float64", tol=1e-6)
    log_p.sum().backward()
    assert all(parameter.grad is not None for parameter in flow.stack[0].parameters())
    assert float((log_p - exact).detach().abs().quantile(0.99)) <= 1e-6


def test_a_flow_too_steep_for_the_most_steps_is_told(monkeypatch):
    for module in (tolerance, within):
        monkeypatch.setattr(module, "MOST", 8)
    flow = FLOWS["steep"](torch.float64)
    for count in (100, 400):
        with pytest.warns(ToleranceWarning, match="as many as 8 steps per block; ask for a larger tol"):
            flow.log_prob(rows(count, 2), tol=1e-4)


def test_gradients_are_those_of_the_steps_that_were_found():
    flow = FLOWS["uneven"](torch.float64)
    x = rows(50, 4).double()
    grids = flow.grids_for(x, tol=1e-3)
    flow.requires_grad_(True)
    results = []
    for options in ({"tol": 1e-3}, {"num_steps": grids}):
        given = x.clone().requires_grad_()
        log_p = flow.log_prob(given, **options)
        weight = next(flow.parameters())
        results.append([log_p, *torch.autograd.grad(log_p.sum(), [given, weight])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    log_p, error = flow.log_prob_and_error(x, tol=1e-3)
    assert log_p.requires_grad
    assert not error.requires_grad


def test_gradients_of_many_rows():
    flow = FLOWS["easy"]()
    x = rows(400, 3).requires_grad_()
    flow.log_prob_and_error(x, tol=1e-2)[0].sum().backward()
    again = x.detach().requires_grad_()
    flow.log_prob(again, num_steps=64).sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=0.05, atol=0.05)


def test_context_counts():
    flow = expanding_flow(2, 2, 1.3, context_dim=1)
    flow = JKOFlow(2, flow.stack, context_mean=torch.tensor([1.0]), context_std=torch.tensor([2.0]))
    x, context = rows(300, 2), rows(300, 1, seed=1) * 2
    log_p, _ = flow.log_prob_and_error(x, context, tol=1e-2)
    assert float((log_p.double() - exact_log_prob(flow, x, context)).abs().max()) <= 1e-2
    assert flow.log_prob(x[:4], context[0], tol=1e-2).shape == (4,)
    drawn, told = flow.sample_and_log_prob(100, context[0], tol=1e-2)
    given = context[:1].expand(100, 1)
    assert float((told.double() - exact_log_prob(flow, drawn, given)).abs().max()) <= 1e-2


@pytest.mark.parametrize("name", ["easy", "uneven"])
@pytest.mark.parametrize("exact", [False, True])
def test_the_density_that_comes_with_a_sample_is_that_of_the_sample(name, exact):
    flow = FLOWS[name]()
    for tol in (1e-1, 1e-2):
        generators = [torch.Generator().manual_seed(5) for _ in range(2)]
        x, log_p = flow.sample_and_log_prob(200, generator=generators[0], exact=exact, tol=tol)
        assert float((log_p.double() - exact_log_prob(flow, x)).abs().max()) <= 1.01 * tol
        torch.testing.assert_close(
            flow.sample(200, generator=generators[1], exact=exact, tol=tol), x, rtol=1e-5, atol=1e-5
        )


def test_a_row_does_not_depend_on_its_batch_on_steps_that_were_found():
    flow, tol = FLOWS["easy"](), 1e-2
    x = rows(600, 3)
    grids = flow.grids_for(x, tol=tol)
    together = flow.log_prob(x, num_steps=grids)
    assert torch.equal(together[200:300], flow.log_prob(x[200:300], num_steps=grids))
    parts = torch.cat([flow.log_prob(part, tol=tol) for part in x.split(100)])
    assert float((parts - flow.log_prob_and_error(x, tol=tol)[0]).abs().max()) <= 2 * tol


@pytest.mark.parametrize("method", TABLEAUX)
def test_all_methods_keep_a_tolerance(method):
    flow = expanding_flow(2, 2, 0.7, torch.float64, method)
    x = rows(40, 2).double()
    exact = copy.deepcopy(flow)
    for block in exact.stack:
        block.method = "rk4"
    exact = exact.log_prob(x, num_steps=FINE)
    tol = 1e-2
    grids = flow.grids_for(x, tol=tol)
    assert float((flow.log_prob(x, num_steps=grids) - exact).abs().max()) <= 1.01 * tol
    assert float((flow.log_prob(x, tol=tol) - exact).abs().max()) <= tol
    fewer = tuple(Fixed(max(1, int(0.8 * grid.cost))) for grid in grids)
    assert fewer == grids or float((flow.log_prob(x, num_steps=fewer) - exact).abs().max()) > tol


def test_forms_and_dtypes_are_those_of_log_prob():
    flow = FLOWS["easy"]()
    x = rows(12, 3)
    expected = flow.log_prob(x, tol=1e-2)
    for form in (x.double(), x.tolist(), x.numpy()):
        assert torch.equal(flow.log_prob(form, tol=1e-2), expected)
    assert torch.equal(flow.log_prob(x.reshape(3, 4, 3), tol=1e-2), expected.reshape(3, 4))
    assert flow.log_prob(x[0], tol=1e-2).shape == ()
    log_p, error = flow.log_prob_and_error(x.reshape(3, 4, 3), tol=1e-2)
    assert (log_p.dtype, error.dtype, error.shape) == (torch.float32, torch.float64, (3, 4))


def test_no_rows_and_no_blocks():
    flow = FLOWS["easy"]()
    assert flow.log_prob(rows(0, 3), tol=1e-2).shape == (0,)
    assert [part.shape for part in flow.log_prob_and_error(rows(0, 3), tol=1e-2)] == [(0,), (0,)]
    assert [part.shape for part in flow.log_prob_and_error(rows(0, 3))] == [(0,), (0,)]
    assert flow.sample(0, tol=1e-2).shape == (0, 3)
    with pytest.raises(ValueError, match="x must have at least one row"):
        flow.grids_for(rows(0, 3))
    nothing = JKOFlow(2)
    for count in (5, 500):
        x = rows(count, 2)
        torch.testing.assert_close(nothing.log_prob(x, tol=1e-3), nothing.log_prob(x))
        log_p, error = nothing.log_prob_and_error(x, tol=1e-3)
        torch.testing.assert_close(log_p, nothing.log_prob(x))
        assert float(error.max()) <= 1e-5
    assert nothing.grids_for(rows(5, 2)) == ()
    assert nothing.sample(5, tol=1e-3).shape == (5, 2)


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf"), "1e-3", True])
def test_what_is_no_tolerance_is_refused(wrong):
    with pytest.raises(ValueError, match="tol must be a positive number of nats, got"):
        FLOWS["easy"]().log_prob(rows(5, 3), tol=wrong)


def test_what_contradicts_a_tolerance_is_refused():
    flow, x = FLOWS["easy"](), rows(5, 3)
    for call in (flow.log_prob, flow.log_prob_and_error):
        with pytest.raises(ValueError, match=r"pass either tol or num_steps, got 0\.1 and 4"):
            call(x, num_steps=4, tol=0.1)
    with pytest.raises(ValueError, match="pass either tol or num_steps"):
        flow.sample(5, num_steps=4, tol=0.1)
    with pytest.raises(ValueError, match="discrete=True has no error of steps"):
        flow.log_prob(x, discrete=True, tol=0.1)


def test_every_block_may_have_steps_of_its_own():
    flow, x = FLOWS["easy"](), rows(20, 3)
    z, logdet = flow.enter(x)
    for block, steps in zip(flow.stack, (3, 5), strict=True):
        z, increment = block(z, None, steps)
        logdet = logdet + increment
    for steps in ([3, 5], (Fixed(3), 5)):
        got = flow(x, num_steps=steps)
        assert torch.equal(got[0], z)
        assert torch.equal(got[1], logdet)
        assert torch.equal(flow.trajectory(x, num_steps=steps).x[-1], z)
    torch.testing.assert_close(flow.carry(z, num_steps=(40, 50), inverse=True), flow.inverse(z, num_steps=(40, 50))[0])
    with pytest.raises(ValueError, match="num_steps must have one number for each of the flow's 2 blocks, got 3"):
        flow(x, num_steps=(1, 2, 3))


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
def test_the_cheapest_steps_of_errors_that_are_known(tol):
    sizes = torch.tensor([[3.0, 0.01], [1.0, 0.02], [0.5, 0.001]], dtype=torch.float64)

    def error(some, grids):
        return sum(sizes[some, k] / grid.cost**4 for k, grid in enumerate(grids))

    everything = torch.arange(3)
    start = (Fixed(8), Fixed(8))
    grids, errors = cheapest(error, everything, start, error(everything, start), tol, 4)
    assert float(errors.max()) <= tol
    assert torch.equal(errors, error(everything, grids))
    within_tol = (
        a + b
        for a, b in itertools.product(range(1, 90), range(1, 40))
        if float(error(everything, (Fixed(a), Fixed(b))).max()) <= tol
    )
    assert sum(grid.cost for grid in grids) <= 1.05 * min(within_tol) + 1


def test_rows_are_refined_one_by_one_until_they_stand_still():
    sizes, calls = torch.tensor([1.0, 100.0, 1e4], dtype=torch.float64), []

    def values(some, grids):
        calls.append((some.tolist(), grids[0].cost))
        return sizes[some] / grids[0].cost ** 4

    start = (Fixed(10),)
    everything = torch.arange(3)
    found, error = settled(values, everything, values(everything, start), start, 1e-3, Usual(0.0, 0.0, 4))
    assert [len(some) for some, _ in calls] == sorted((len(some) for some, _ in calls), reverse=True)
    assert calls[-1][0] == [2]
    assert float(error.max()) <= 1e-3
    assert bool((found <= error).all())


def test_a_table_keeps_a_tolerance(tmp_path):
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((600,), 30.0), generator=generator)
    table = torch.stack([counts, counts * 0.3 + torch.randn(600, generator=generator), (counts > 30).float()], 1)
    config = jkoflow.TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=20, batch_size=200, num_steps=2)
    flow = jkoflow.train(table, config, columns={"x0": "integer", "x2": "category"})
    assert isinstance(flow, jkoflow.TableFlow)
    with torch.no_grad():
        for parameter in flow.flow.stack[0].parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    exact = flow.log_prob(table, num_steps=FINE)
    log_p, error = flow.log_prob_and_error(table, tol=1e-2)
    assert float((flow.log_prob(table, num_steps=2) - exact).abs().max()) > 1e-2
    assert float((log_p - exact).abs().max()) <= 1e-2
    assert 0 < float(error.max()) <= 1e-2
    assert float((flow.log_prob(table, tol=1e-2) - exact).abs().quantile(0.99)) <= 1e-2
    impossible = table[:2].clone()
    impossible[0, 2] = 7.0
    log_p, error = flow.log_prob_and_error(impossible, tol=1e-2)
    assert (float(log_p[0]), float(error[0])) == (-float("inf"), 0.0)
    assert flow.log_prob(table[:0], tol=1e-2).shape == (0,)
    assert flow.sample(20, tol=1e-2).shape == (20, 3)
    given, _ = flow.log_prob_and_error(table[:5], num_steps=6)
    assert torch.equal(given, flow.log_prob(table[:5], num_steps=6))
    with pytest.raises(ValueError, match="pass either tol or num_steps"):
        flow.log_prob(table, num_steps=4, tol=0.1)


def test_the_command_line_takes_a_tolerance_and_writes_errors(tmp_path):
    flow = FLOWS["easy"]()
    flow.save(tmp_path / "flow.safetensors")
    x = rows(300, 3)
    np.save(tmp_path / "rows.npy", x.numpy())
    model, data, out = (str(tmp_path / name) for name in ("flow.safetensors", "rows.npy", "out.csv"))

    def run(*arguments):
        return CliRunner().invoke(app, list(arguments), catch_exceptions=False)

    result = run("score", model, data, "--out", out, "--tol", "1e-2", "--with-error")
    assert result.exit_code == 0, result.output
    assert "error of a row:" in result.output
    written = np.genfromtxt(out, delimiter=",", names=True)
    assert np.abs(written["log_prob"] - exact_log_prob(flow, x).numpy()).max() <= 1e-2
    assert 0 < written["error"].max() <= 1e-2
    result = run("sample", model, "-n", "20", "--out", out, "--tol", "1e-2")
    assert result.exit_code == 0, result.output
    assert len(np.genfromtxt(out, delimiter=",", names=True)) == 20
    for command in (("score", model, data), ("sample", model, "-n", "5")):
        result = run(*command, "--out", out, "--tol", "0")
        assert result.exit_code == 2
        assert "--tol must be a positive number of nats, got 0.0" in result.output + result.stderr
    result = run("score", model, data, "--out", str(tmp_path / "out.npy"), "--with-error")
    assert result.exit_code == 2
