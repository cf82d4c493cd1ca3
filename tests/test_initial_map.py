"""Splines and the maps that are fitted before the first block."""

import copy
import dataclasses
import math

import pytest
import torch

from jkoflow import JKOFlow, metrics
from jkoflow.data import split_rows
from jkoflow.flow import base_log_prob
from jkoflow.initial_map import RECIPES, InitialMap, Marginals, Radial, Whiten
from jkoflow.knots import TAIL_PIECES
from jkoflow.links import Link
from jkoflow.spline import MonotoneSpline
from jkoflow.training import TrainConfig, train

TINY = TrainConfig(hidden=(16,), max_blocks=2, iterations_per_block=40, batch_size=200, num_steps=2)


def autograd_logdet(apply, x):
    """Log abs det of the Jacobian of a map of rows, row by row."""
    rows = [torch.autograd.functional.jacobian(lambda r: apply(r[None])[0][0], row) for row in x]
    return torch.stack([torch.linalg.slogdet(jacobian)[1] for jacobian in rows])


def skewed(rows=4000, dim=3, dtype=torch.float64):
    """Correlated columns, each bent."""
    torch.manual_seed(3)
    normal = torch.randn(rows, dim, dtype=dtype)
    mixed = normal + 0.8 * normal.roll(1, 1)
    return torch.stack([mixed[:, 0].exp(), mixed[:, 1] ** 3, mixed[:, 2] * (1 + mixed[:, 2].abs())], 1)


# ------------------------------------------------------------------------------------------------------------ splines


def spline():
    x = torch.tensor([[-2.0, -1.0, 0.5, 3.0], [0.0, 1e-3, 1.0, 1.5]], dtype=torch.float64)
    y = torch.tensor([[-3.0, 0.0, 0.1, 4.0], [-1.0, 0.0, 0.2, 9.0]], dtype=torch.float64)
    return MonotoneSpline(x, y)


def test_a_spline_goes_through_its_knots_and_rises_everywhere():
    s = spline()
    assert torch.allclose(s(s.x.T)[0], s.y.T, atol=1e-12)
    x = torch.linspace(-5, 5, 4001, dtype=torch.float64)[:, None].expand(-1, 2)
    y, log_derivative = s(x)
    assert bool((y.diff(dim=0) > 0).all())
    inside = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(s(inside)[0].sum(), inside)
    assert torch.allclose(gradient.log(), log_derivative, atol=1e-9)


def test_a_spline_is_a_line_beyond_its_outer_knots():
    s = spline()
    for offset, end in ((-7.0, 0), (7.0, -1)):
        far = s.x[:, end] + offset
        y, log_derivative = s(far[None])
        assert torch.allclose(y[0], s.y[:, end] + offset * s.slope[:, end])
        assert torch.allclose(log_derivative[0], s.slope[:, end].log())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_splines_inverse_undoes_it(dtype, tolerance):
    s = spline().to(dtype)
    x = torch.linspace(-6, 6, 1001, dtype=dtype)[:, None].expand(-1, 2)
    y, log_derivative = s(x)
    back, inverse_log_derivative = s.inverse(y)
    assert torch.allclose(back, x, atol=tolerance, rtol=tolerance)
    if dtype == torch.float64:
        assert torch.allclose(inverse_log_derivative, -log_derivative, atol=1e-9)


@pytest.mark.parametrize(
    ("x", "y"),
    [([[0.0, 1.0]], [[0.0]]), ([[0.0]], [[0.0]]), ([[0.0, 0.0]], [[0.0, 1.0]]), ([[0.0, 1.0]], [[1.0, 0.0]])],
)
def test_bad_knots_are_refused(x, y):
    with pytest.raises(ValueError, match="knots"):
        MonotoneSpline(torch.tensor(x), torch.tensor(y))


# -------------------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_logdet_is_that_of_the_jacobian_and_the_inverse_undoes_the_map(recipe):
    rows = skewed()
    initial_map = InitialMap.fit(rows, recipe)
    assert initial_map.recipe == recipe
    x = torch.cat([rows[:20], 3 * rows[20:25]])  # beyond the outer knots, too
    y, logdet = initial_map(x)
    assert torch.allclose(logdet, autograd_logdet(initial_map, x), atol=1e-8)
    back, inverse_logdet = initial_map.inverse(y)
    assert torch.allclose(back, x, atol=1e-9, rtol=1e-9)
    assert torch.allclose(inverse_logdet, -logdet, atol=1e-8)


def test_marginals_make_every_column_gaussian():
    y, _ = Marginals.fit(skewed())(skewed())
    for column in y.T:
        levels = torch.special.ndtr(column.sort().values)
        assert float((levels - torch.linspace(0, 1, len(column), dtype=torch.float64)).abs().max()) < 0.03


def test_whitening_makes_the_covariance_one():
    y, _ = Whiten.fit(skewed())(skewed())
    assert torch.allclose(torch.cov(y.T), torch.eye(3, dtype=torch.float64), atol=0.05)
    assert torch.allclose(y.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-9)


def test_a_radial_map_makes_a_student_distribution_gaussian():
    torch.manual_seed(0)
    dim, freedom = 5, 3
    normal = torch.randn(20000, dim, dtype=torch.float64)
    chi = torch.distributions.Chi2(torch.tensor(float(freedom), dtype=torch.float64)).sample((len(normal), 1))
    rows = normal / (chi / freedom).sqrt()
    y, logdet = Radial.fit(rows)(rows)
    nll = float((0.5 * y.square().sum(1) - logdet).mean()) + 0.5 * dim * math.log(2 * math.pi)
    entropy = float(
        -(
            math.lgamma((freedom + dim) / 2)
            - math.lgamma(freedom / 2)
            - 0.5 * dim * math.log(freedom * math.pi)
            - 0.5 * (freedom + dim) * torch.log1p(rows.square().sum(1) / freedom)
        ).mean()
    )
    assert nll == pytest.approx(entropy, abs=0.02)
    assert nll < float((0.5 * rows.square().sum(1)).mean()) + 0.5 * dim * math.log(2 * math.pi) - 1


def test_repeated_values_and_few_rows_are_no_trouble():
    rows = torch.randn(60, 2).round()
    rows[:, 1] = rows[:, 1].clamp(max=0)
    initial_map = InitialMap.fit(rows, "marginals+whiten+radial")
    y, logdet = initial_map(rows)
    assert bool(torch.isfinite(y).all() and torch.isfinite(logdet).all())
    assert torch.allclose(initial_map.inverse(y)[0], rows, atol=1e-3)


def test_columns_that_depend_on_each_other_stay_finite():
    rows = torch.randn(1000, 2)
    rows = torch.cat([rows, rows.sum(1, keepdim=True)], 1)
    initial_map = InitialMap.fit(rows, "whiten")
    y, _ = initial_map(rows)
    assert bool(torch.isfinite(y).all())
    assert torch.allclose(initial_map.inverse(y)[0], rows, atol=1e-3)


def test_the_centre_has_a_finite_image():
    initial_map = InitialMap.fit(torch.randn(1000, 2), "whiten+radial")
    y, logdet = initial_map(initial_map.inverse(torch.zeros(1, 2))[0])
    assert bool(torch.isfinite(y).all() and torch.isfinite(logdet).all())


# -------------------------------------------------------------------------------------------------- outside the rows


def on_a_shell(rows, dim, spread):
    """Directions spread evenly, at distances of 1 and a Gaussian spread."""
    x = torch.randn(rows, dim)
    return x / x.norm(dim=1, keepdim=True) * (1 + spread * torch.randn(rows, 1))


def sparse(rows):
    """Nine values of ten are 0."""
    return torch.randn(rows, 2) * (torch.rand(rows, 2) < 0.1)


CROWDED = {
    **{f"ring of spread {spread:g}": lambda n, s=spread: on_a_shell(n, 2, s) for spread in (0.1, 1e-2, 1e-3, 1e-4)},
    **{f"directions in {dim} columns": lambda n, d=dim: on_a_shell(n, d, 0.0) for dim in (2, 10, 64)},
    "shell": lambda n: on_a_shell(n, 10, 1e-3),
    "two shells": lambda n: on_a_shell(n, 5, 1e-3) * (1 + torch.randint(0, 2, (n, 1))),
    "uniform": lambda n: torch.rand(n, 2),
    "one column": lambda n: torch.rand(n, 1),
    "exponential": lambda n: torch.empty(n, 3).exponential_(),
    "beta": lambda n: torch.distributions.Beta(0.3, 0.3).sample((n, 2)),
    "rounded": lambda n: torch.randn(n, 2).mul(10).round() / 10,
    "zeros": sparse,
    "lattice": lambda n: torch.randint(-2, 3, (n, 2)).float(),
    "corners": lambda n: torch.randint(0, 2, (n, 3)).float(),
    "heavy tails": lambda n: torch.randn(n, 3) / torch.randn(n, 1),
    "many columns": lambda n: torch.rand(n, 100),
}


def rays(dim, count=8):
    """Points on rays from the centre, from 1e-6 to 1e6 deviations, with shape (count, points, dim)."""
    towards = torch.randn(count, dim)
    towards = towards / towards.norm(dim=1, keepdim=True)
    return towards[:, None] * torch.logspace(-6, 6, 300)[None, :, None]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", CROWDED)
def test_densities_are_finite_everywhere_and_the_way_back_exists(kind, recipe):
    torch.manual_seed(1)
    rows = CROWDED[kind](2500)
    rows = (rows - rows.mean(0)) / rows.std(0)
    initial_map = InitialMap.fit(rows, recipe)
    dim = rows.shape[1]
    x = torch.cat([rays(dim).reshape(-1, dim), torch.zeros(1, dim)]).requires_grad_(True)
    y, logdet = initial_map(x)
    log_prob = base_log_prob(y) + logdet
    assert bool(torch.isfinite(log_prob).all())
    assert float(y.detach().abs().max()) < 1e9  # blocks have room before they overflow
    (gradient,) = torch.autograd.grad(log_prob.sum(), x)
    assert bool(torch.isfinite(gradient).all())
    back, inverse_logdet = initial_map.inverse(y)
    assert bool(torch.isfinite(inverse_logdet).all())
    distance = (back - x).detach().norm(dim=1)
    assert float((distance / (x.detach().norm(dim=1) + 1)).max()) < 1e-3


@pytest.mark.parametrize("kind", CROWDED)
def test_distances_and_columns_keep_their_order_outside_the_rows(kind):
    torch.manual_seed(2)
    rows = CROWDED[kind](2500)
    rows = (rows - rows.mean(0)) / rows.std(0)
    away = rays(rows.shape[1], 4)
    radial = Radial.fit(rows.double()).float()
    for ray in away:
        assert bool((radial(ray)[0].norm(dim=1).diff() > 0).all())
    marginals = Marginals.fit(rows.double()).float()
    line = torch.logspace(-2, 6, 300)
    line = torch.cat([-line.flip(0), line])[:, None].expand(-1, rows.shape[1])
    assert bool((marginals(line)[0].diff(dim=0) > 0).all())


def test_the_tails_change_nothing_where_rows_are():
    """Between the outermost knots the splines are those that the quantiles alone give."""
    torch.manual_seed(0)
    rows = torch.empty(4000, 2, dtype=torch.float64).exponential_()
    spline = Marginals.fit(rows).spline
    tail = slice(TAIL_PIECES + 1, -TAIL_PIECES - 1)
    alone = MonotoneSpline(spline.x[:, tail], spline.y[:, tail])
    inside = rows[((rows >= alone.x[:, 0]) & (rows <= alone.x[:, -1])).all(1)]
    assert len(inside) > 3990
    for found, expected in zip(spline(inside), alone(inside), strict=True):
        assert torch.allclose(found, expected, atol=1e-9)
    # a little outside nearly so
    just_below = alone.x[:, 0] - 1 / alone.slope[:, 0]
    assert torch.allclose(spline(just_below[None])[0], alone(just_below[None])[0], atol=0.2)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_slopes_far_outside_are_those_of_the_scale(scale):
    torch.manual_seed(0)
    rows = torch.rand(3000, 2, dtype=torch.float64) * scale
    far = torch.tensor([[-1e3, 1e3], [-2e3, 2e3]], dtype=torch.float64) * rows.std(0)
    y, log_derivative = Marginals.fit(rows).spline(far)
    assert torch.allclose(log_derivative.exp() * rows.std(0), torch.ones(2, 2, dtype=torch.float64))
    assert torch.allclose(y.diff(dim=0).abs(), torch.full((1, 2), 1e3, dtype=torch.float64))


def test_a_radial_map_is_linear_at_the_centre_and_far_away():
    torch.manual_seed(0)
    for dim in (1, 2, 30, 100):
        radial = Radial.fit(on_a_shell(3000, dim, 1e-2).double())
        towards = torch.ones(1, dim, dtype=torch.float64)
        for near, far in ((0.0, 1e-9), (1e-12, 1e-6), (1e3, 1e6)):
            images, logdets = radial(torch.cat([near * towards, far * towards]))
            assert float(logdets[0]) == pytest.approx(float(logdets[1]), abs=1e-6)
            if near:
                assert torch.allclose(images[1] / far, images[0] / near, rtol=1e-9)


def test_rows_at_the_centre_do_not_decide_the_scale_of_the_distances():
    torch.manual_seed(0)
    rows = torch.randint(-1, 2, (3000, 2)).double()  # one of nine at the centre
    radial = Radial.fit(rows)
    y, logdet = radial(rows)
    assert bool(torch.isfinite(base_log_prob(y) + logdet).all())
    assert torch.allclose(radial.inverse(y)[0], rows, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_trained_flow_has_finite_densities_far_outside(recipe):
    torch.manual_seed(0)
    rows = on_a_shell(3000, 2, 1e-3)
    flow = train(rows, dataclasses.replace(TINY, initial_map=recipe))
    with torch.no_grad():
        log_prob = flow.log_prob(rays(2).reshape(-1, 2))
    assert bool(torch.isfinite(log_prob).all())
    along = torch.tensor([[r, 0.0] for r in (1.0, 1.05, 1.1, 1.2, 2.0, 10.0, 1e3, 1e6)])
    assert bool((flow.log_prob(along).diff()[1:] < 0).all())


def test_an_unknown_recipe_is_named():
    with pytest.raises(ValueError, match=r"none, whiten, .* got 'whitening'"):
        InitialMap.fit(torch.randn(100, 2), "whitening")
    with pytest.raises(ValueError, match=r"auto or one of none, .* got 'whitening'"):
        TrainConfig(initial_map="whitening")


# ------------------------------------------------------------------------------------------------- flows and training


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_flow_with_an_initial_map_is_a_density_that_survives_its_file(recipe, tmp_path):
    rows = skewed(2000, 3, torch.float32)
    config = dataclasses.replace(TINY, initial_map=recipe)
    flow = train(rows, config, run_dir=tmp_path / "run")
    assert flow.initial_map.recipe == recipe
    x = rows[:50]
    z, logdet = flow.double()(x.double())
    assert torch.allclose(logdet, autograd_logdet(lambda r: flow(r, num_steps=60), x.double()), atol=1e-4)
    assert torch.allclose(flow.inverse(z, exact=True)[0], x.double(), rtol=1e-8, atol=1e-8)
    loaded = JKOFlow.load(tmp_path / "run")
    assert torch.equal(loaded.log_prob(x), flow.float().log_prob(x))
    assert torch.equal(
        loaded.sample(5, generator=torch.Generator().manual_seed(0)),
        flow.sample(5, generator=torch.Generator().manual_seed(0)),
    )


def test_samples_alone_are_those_with_densities():
    flow = train(skewed(2000, 3, torch.float32), TINY)
    alone = flow.sample(200, generator=torch.Generator().manual_seed(0))
    both, log_prob = flow.sample_and_log_prob(200, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(alone, both, rtol=1e-4, atol=1e-4)
    assert torch.allclose(log_prob, flow.log_prob(both), atol=0.05)


def student(rows, dim, freedom):
    """A multivariate t distribution."""
    torch.manual_seed(0)
    chi = torch.distributions.Chi2(torch.tensor(float(freedom))).sample((rows, 1))
    return torch.randn(rows, dim) / (chi / freedom).sqrt()


def test_auto_takes_a_radial_map_where_distances_span_orders_of_magnitude(tmp_path):
    import json

    for rows, recipe in ((student(2000, 8, 1), "whiten+radial"), (student(2000, 8, 50), "whiten")):
        flow = train(rows, dataclasses.replace(TINY, max_blocks=1), run_dir=tmp_path / recipe)
        assert flow.initial_map.recipe == recipe
        assert json.loads((tmp_path / recipe / "metrics.json").read_text())["initial_map"] == recipe


def test_a_flow_to_start_from_keeps_its_map():
    rows = skewed(2000, 3, torch.float32)
    first = train(rows, dataclasses.replace(TINY, initial_map="marginals"))
    again = train(rows, dataclasses.replace(TINY, initial_map="whiten"), start=first)
    assert again.initial_map.recipe == "marginals"


def test_the_first_nll_is_that_of_the_map():
    rows = dataclasses.replace(split_rows(skewed(3000, 3, torch.float32)), links=(Link(),) * 3)
    flow = train(rows, dataclasses.replace(TINY, initial_map="whiten", max_blocks=1, iterations_per_block=100))
    start = metrics.mean_nll(flow.with_blocks([]), rows.val)[0]
    assert start > metrics.mean_nll(flow, rows.val)[0]
    y, logdet = flow.enter(rows.val)
    by_hand = 0.5 * y.square().sum(1).mean() + 1.5 * math.log(2 * math.pi) - logdet.mean()
    assert start == pytest.approx(float(by_hand), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whitening_is_what_solving_gives(dtype):
    for dim in (1, 2, 6, 43):
        rows = torch.randn(200, dim).double() @ torch.randn(dim, dim).double()
        layer, x = Whiten.fit(rows).to(dtype), rows.to(dtype)
        for _ in range(2):
            y, logdet = layer(x)
            exact = torch.linalg.solve(layer.root.double(), (x - layer.mean).double().T).T
            torch.testing.assert_close(y.double(), exact, rtol=0, atol=5e-5 if dtype == torch.float32 else 1e-12)
            torch.testing.assert_close(logdet, -torch.linalg.slogdet(layer.root)[1].expand(200))
            assert torch.equal(layer.inverse(y)[1], -logdet)


def test_whitening_inverts_once_and_again_after_every_change(monkeypatch):
    layer, x = Whiten.fit(torch.randn(50, 3).double()), torch.randn(5, 3).double()
    calls, invert = [], torch.linalg.inv
    monkeypatch.setattr(torch.linalg, "inv", lambda root: calls.append(root) or invert(root))
    with torch.inference_mode():
        layer(x)
    y, _ = layer(x.requires_grad_())  # what was factorised in inference mode serves autograd, too
    y.sum().backward()
    layer.inverse(x)
    assert len(calls) == 1
    changes = (
        lambda: layer.root.mul_(2),
        lambda: layer.load_state_dict({"mean": layer.mean, "root": layer.root * 2}),
        lambda: layer.load_state_dict({"mean": layer.mean, "root": layer.root * 2}, assign=True),
        lambda: layer.float(),
        lambda: layer.double(),
    )
    for count, change in enumerate(changes, 2):
        with torch.no_grad():
            change()
        for _ in range(2):
            points = x.detach().to(layer.root.dtype)
            exact = torch.linalg.solve(layer.root.double(), (points - layer.mean).double().T).T
            torch.testing.assert_close(layer(points)[0].double(), exact, rtol=1e-4, atol=1e-4)
        assert len(calls) == count
    with torch.no_grad():
        layer.root.mul_(3)  # what is known is of the root before
    copied = copy.deepcopy(layer)
    exact = torch.linalg.solve(copied.root, (x.detach() - copied.mean).T).T
    torch.testing.assert_close(copied(x.detach())[0], exact, rtol=1e-9, atol=1e-9)
    with torch.inference_mode():
        inferred = copy.deepcopy(layer)
        inferred.root = inferred.root.clone()
        before = inferred(x.detach())[0]
        inferred.root.mul_(2)
        assert not torch.equal(inferred(x.detach())[0], before)
