"""Velocities whose layers depend on time and context, against plain modules written from the published equations."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import jkoflow
from jkoflow import ConcatSquashMLP, FallbackWarning, FourierTimeMLP, HyperMLP, JKOFlow, MLPVelocity, ResidualMLP
from jkoflow.ops import jko_loss, jko_terms, native, reference
from jkoflow.velocity import KINDS, from_description
from oracles import autograd_divergence

ACTIVATIONS = {"tanh": torch.tanh, "silu": nn.functional.silu}


def columns(x, t, context):
    """[t, c] for every row."""
    t = torch.as_tensor(t, dtype=x.dtype).expand(x.shape[:-1]).unsqueeze(-1)
    return t if context is None else torch.cat([t, context], -1)


def layered(velocity, x, layer, size):
    h = x
    for index in range(size):
        h = layer(index, h)
        if index < size - 1:
            h = ACTIVATIONS[str(velocity.activation)](h)
    return h if velocity.linear is None else h + x @ velocity.linear.weight.T


def published_concat_squash(velocity, x, t, context):
    """FFJORD's layers and PointFlow's, whose gates read [t, c], as their papers and code define them."""
    u, kind = columns(x, t, context), velocity.describe()["layer"]

    def layer(index, h):
        main, key = velocity.layers[index], str(index)
        if kind == "concat":  # a linear layer of [u, h]
            weight = torch.cat([velocity.shifts[key].weight, main.weight], 1)
            return nn.functional.linear(torch.cat([u, h], -1), weight, main.bias)
        gate = nn.functional.linear(u, velocity.gates[key].weight, velocity.gates[key].bias)
        if kind == "squash":
            return main(h) * torch.sigmoid(gate)
        shift = nn.functional.linear(u, velocity.shifts[key].weight)
        if kind == "concatsquash":
            return main(h) * torch.sigmoid(gate) + shift
        return main(h) * (1 + gate) + shift

    return layered(velocity, x, layer, len(velocity.layers))


def published_fourier(velocity, x, t, context):
    phase = columns(x, t, None) * velocity.frequencies
    embedding = torch.cat([phase.cos(), phase.sin()], -1)
    first = torch.cat([velocity.layers[0].weight, velocity.shifts["0"].weight], 1)
    inputs = torch.cat([x, embedding] if context is None else [x, embedding, context], -1)

    def layer(index, h):
        return nn.functional.linear(inputs, first, velocity.layers[0].bias) if index == 0 else velocity.layers[index](h)

    return layered(velocity, x, layer, len(velocity.layers))


def published_residual(velocity, x, t, context):
    sigma = ACTIVATIONS[str(velocity.activation)]
    h = sigma(velocity.layers[0](torch.cat([x, columns(x, t, context)], -1)))
    for layer in velocity.layers[1:-1]:
        h = h + sigma(layer(h))
    v = velocity.layers[-1](h)
    return v if velocity.linear is None else v + x @ velocity.linear.weight.T


def published_hyper(velocity, x, t, context):
    """FFJORD's HyperLinear and BlendLinear, and the hypernetwork of torchdiffeq's example; t is a number."""
    t = torch.as_tensor(t, dtype=x.dtype).reshape(1, 1)
    kind, sigma = velocity.describe()["hyper"], ACTIVATIONS[str(velocity.activation)]
    h = x if context is None else torch.cat([x, context], -1)
    if kind == "gated":
        units, inputs, dim = velocity.hidden[0], h.shape[-1], velocity.dim
        flat = velocity.hypers[0](t).reshape(-1)
        w = flat[: units * inputs].reshape(units, inputs, 1)
        u, gate = flat[units * inputs : units * (inputs + 2 * dim)].reshape(2, units, 1, dim)
        b = flat[-units:].reshape(units, 1, 1)
        hidden = sigma(h.unsqueeze(0) @ w + b)  # (units, B, 1)
        return (hidden @ (u * torch.sigmoid(gate))).mean(0)
    widths = (h.shape[-1], *velocity.hidden, velocity.dim)
    for index, (i, o) in enumerate(itertools.pairwise(widths)):
        if kind == "blend":
            start, end = (
                nn.functional.linear(h, p[: i * o].view(o, i), p[i * o :]) for p in velocity.hypers[index].parameters()
            )
            z = (1 - t) * start + t * end
        else:
            flat = velocity.hypers[index](t).reshape(-1)
            z = nn.functional.linear(h, flat[: i * o].view(o, i), flat[i * o :])
        h = sigma(z) if index < len(widths) - 2 else z
    return h


CASES = {
    **{
        f"{layer}, {len(hidden)} hidden": (
            lambda layer=layer, hidden=hidden, context=context: ConcatSquashMLP(
                3, hidden, "silu", layer, context_dim=context, linear=context == 0
            ),
            published_concat_squash,
        )
        for layer in ("concat", "squash", "concatsquash", "film")
        for hidden, context in (((7,), 2), ((7, 6), 0), ((7, 6, 5), 2))
    },
    "fourier": (lambda: FourierTimeMLP(3, (7, 6), "silu", context_dim=2), published_fourier),
    "sinusoidal": (lambda: FourierTimeMLP(3, (7,), frequencies=4, embedding="sinusoidal"), published_fourier),
    "random": (lambda: FourierTimeMLP(3, (7, 6, 5), embedding="random", linear=True), published_fourier),
    "residual, 1 hidden": (lambda: ResidualMLP(3, (7,), context_dim=2), published_residual),
    "residual, 2 hidden": (lambda: ResidualMLP(3, (7, 7), "silu", context_dim=1, linear=True), published_residual),
    "residual, 4 hidden": (lambda: ResidualMLP(3, (5, 5, 5, 5)), published_residual),
    "hyper layers": (lambda: HyperMLP(3, (7, 6), "silu", hyper_hidden=(4, 5), context_dim=2), published_hyper),
    "hyper layers, deep": (lambda: HyperMLP(3, (5, 6, 4), hyper_hidden=()), published_hyper),
    "blend": (lambda: HyperMLP(3, (7,), hyper="blend", context_dim=1), published_hyper),
    "gated": (lambda: HyperMLP(3, (7,), hyper="gated", hyper_hidden=(6, 6), context_dim=2), published_hyper),
}


def case(name):
    """A velocity of which every parameter matters, its published twin, x (5, 3) and context."""
    build, published = CASES[name]
    velocity = build().double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in velocity.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    x = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    context = None
    if velocity.context_dim:
        context = torch.randn(5, velocity.context_dim, dtype=torch.float64, generator=generator)
    return velocity, published, x, context


def right_hand_side(velocity, context, divergence="exact", noise=None):
    field = velocity.field()
    if field is None:
        return reference.field_rhs(velocity.field_at, context, divergence, noise)
    return reference.mlp_rhs(field, context, divergence, noise)


@pytest.mark.parametrize("name", CASES)
def test_values_divergence_and_gradients_are_those_of_the_published_equations(name):
    velocity, published, x, context = case(name)
    parameters = list(velocity.parameters())
    torch.testing.assert_close(velocity(x, 0.7, context), published(velocity, x, 0.7, context), rtol=1e-13, atol=1e-13)
    v, divergence = right_hand_side(velocity, context)(x, 0.7)
    expected = published(velocity, x, 0.7, context)
    torch.testing.assert_close(v, expected, rtol=1e-13, atol=1e-13)
    trace = x.new_zeros(5)
    rows = x.clone().requires_grad_()
    out = published(velocity, rows, 0.7, context)
    for i in range(3):
        (row,) = torch.autograd.grad(out[:, i].sum(), rows, create_graph=True)
        trace = trace + row[:, i]
    torch.testing.assert_close(divergence, trace, rtol=1e-12, atol=1e-13)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    got, wanted = (
        torch.autograd.grad(
            (weights * d).sum() + (weights.unsqueeze(1) * u).square().sum(), parameters, allow_unused=True
        )
        for u, d in ((v, divergence), (expected, trace))
    )
    for (label, _), a, b in zip(velocity.named_parameters(), got, wanted, strict=True):
        assert b is not None, label
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12, msg=lambda text, n=label: f"{n}: {text}")


@pytest.mark.parametrize("name", CASES)
def test_a_time_and_a_context_for_every_row(name):
    velocity, published, x, context = case(name)
    t = torch.linspace(-0.3, 1.1, 5, dtype=torch.float64)
    together = velocity(x, t, context)
    assert velocity(x.view(5, 1, 3), t.view(5, 1), None if context is None else context.unsqueeze(1)).shape == (5, 1, 3)
    for i in range(5):
        row = None if context is None else context[i : i + 1]
        torch.testing.assert_close(together[i : i + 1], published(velocity, x[i : i + 1], t[i], row))


@pytest.mark.parametrize("name", CASES)
def test_integrals_are_those_by_autograd(name):
    velocity, published, x, context = case(name)
    noise = torch.tensor([1.0, -1.0, 1.0]).double().expand(5, 3)
    for options in ({"divergence": "exact"}, {"divergence": "hutchinson", "noise": noise}, {"divergence": "none"}):
        # as if nothing were known of its layers
        expected = jkoflow.integrate(
            lambda x, t, c: published(velocity, x, t, c), x, context=context, backend="reference", **options
        )
        got = jkoflow.integrate(velocity, x, context=context, backend="reference", **options)
        torch.testing.assert_close(got.x, expected.x, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(got.logdet, expected.logdet, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_saved_flows_come_back(name, tmp_path):
    velocity, _, x, context = case(name)
    flow = JKOFlow(3, [jkoflow.Block(velocity, num_steps=2)]).double()
    flow.save(tmp_path / "flow.safetensors")
    loaded = JKOFlow.load(tmp_path / "flow.safetensors")
    again = loaded.stack[0].velocity
    assert type(again) is type(velocity)
    assert again.describe() == velocity.describe()
    names = [[name for name, _ in v.named_parameters()] for v in (again, velocity)]
    assert names[0] == names[1]
    assert torch.equal(again(x, 0.3, context), velocity(x, 0.3, context))
    assert torch.equal(copy.deepcopy(velocity)(x, 0.3, context), velocity(x, 0.3, context))


@pytest.mark.parametrize("name", CASES)
def test_scaled_output(name):
    velocity, _, x, context = case(name)
    before = velocity(x, 0.4, context)
    velocity.scale_output(-0.5)
    torch.testing.assert_close(velocity(x, 0.4, context), -0.5 * before, rtol=1e-12, atol=1e-13)
    assert velocity.work() > 2 * 3 * 5


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_integrating(name):
    velocity, _, x, context = case(name)
    terms = jko_loss(velocity, x, 0.7, context=context, backend="reference")
    end, logdet, _ = jkoflow.integrate(velocity, x, context=context, backend="reference")
    assert torch.equal(terms.total, jko_terms(x, end, logdet, 0.7).total)
    gradients = torch.autograd.grad(terms.total, list(velocity.parameters()))
    assert all(g.abs().max() > 0 for g in gradients)


HYPERS = ["hyper layers", "hyper layers, deep", "blend", "gated"]
fused = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")


@fused
@pytest.mark.parametrize("name", HYPERS)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
def test_hypernetworks_are_fused_stage_by_stage(name, divergence):
    velocity, _, x, context = case(name)
    noise = torch.ones_like(x) if divergence == "hutchinson" else None
    leaves = [x.requires_grad_(), *velocity.parameters()]
    found = []
    for backend in ("cpu", "reference"):
        options = {"divergence": divergence, "noise": noise, "backend": backend, "num_steps": 2}
        got = jkoflow.integrate(velocity, x, context=context, **options)
        loss = got.x.square().sum() + got.logdet.sin().sum()
        found.append([*got, *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@fused
@pytest.mark.parametrize("name", HYPERS)
def test_one_evaluation_of_a_hypernetwork(name):
    velocity, published, x, context = case(name)
    for t in (0.3, torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)):
        v, divergence = jkoflow.velocity_and_divergence(velocity, x, t, context, backend="cpu")
        expected = published(velocity, x, 0.3, context)
        torch.testing.assert_close(v, expected, rtol=1e-11, atol=1e-12)
        trace = autograd_divergence(lambda rows: published(velocity, rows, 0.3, context), x)
        torch.testing.assert_close(divergence, trace, rtol=1e-11, atol=1e-12)
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    got, _ = jkoflow.velocity_and_divergence(velocity, x, t, context, backend="cpu")
    torch.testing.assert_close(
        *(torch.autograd.grad(v.square().sum(), t)[0] for v in (got, velocity(x, t, context))), rtol=1e-10, atol=1e-11
    )


def test_rows_with_times_of_their_own_need_the_forward_of_a_hypernetwork():
    velocity, _, x, context = case("hyper layers")
    t = torch.linspace(0, 1, 5).double()
    with pytest.warns(FallbackWarning, match="the weights of HyperMLP depend on t"):
        v, _ = jkoflow.velocity_and_divergence(velocity, x, t, context)
    torch.testing.assert_close(v, velocity(x, t, context))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_all_rows_take_the_adaptive_steps_of_a_hypernetwork(backend):
    velocity, _, x, context = case("hyper layers")
    given = {"context": context, "backend": backend}
    results = [
        jkoflow.integrate(velocity, x, **given, method="dopri5", rtol=1e-9, atol=1e-9, times=[0.0, 0.4, 1.0]),
        jkoflow.integrate(velocity, x, **given, num_steps=30, times=[0.0, 0.4, 1.0]),
    ]
    evaluations = results[0].evaluations
    assert (evaluations == evaluations[0]).all()
    gradients = []
    for result in results:
        loss = result.path.square().sum() + result.logdet_path.sum()
        gradients.append(torch.autograd.grad(loss, list(velocity.parameters())))
    for name in ("path", "logdet_path"):
        torch.testing.assert_close(*(getattr(result, name) for result in results), rtol=1e-5, atol=1e-6)
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_every_kind_is_read_back():
    assert {type(from_description(case(name)[0].describe())) for name in CASES} | {MLPVelocity} == set(KINDS.values())


def test_a_film_begins_as_the_plain_network():
    velocity = ConcatSquashMLP(2, (8, 8), layer="film", context_dim=1)
    plain = nn.Sequential(velocity.layers[0], nn.Tanh(), velocity.layers[1], nn.Tanh(), velocity.layers[2])
    x = torch.randn(4, 2)
    torch.testing.assert_close(velocity(x, 0.3, torch.randn(4, 1)), plain(x))


def test_frequencies():
    assert torch.equal(FourierTimeMLP(2).frequencies, math.pi * torch.tensor([1.0, 2.0, 3.0]))
    sinusoidal = FourierTimeMLP(2, frequencies=4, embedding="sinusoidal", base=100).frequencies
    torch.testing.assert_close(sinusoidal, torch.tensor([1.0, 10**0.5, 10.0, 1000**0.5]))
    assert not isinstance(sinusoidal, nn.Parameter)
    random = FourierTimeMLP(2, frequencies=4096, embedding="random", base=3.0).frequencies
    assert isinstance(random, nn.Parameter)
    assert random.std().item() == pytest.approx(6 * math.pi, rel=0.1)
    assert not isinstance(FourierTimeMLP(2, embedding="random", learnable=False).frequencies, nn.Parameter)


def test_the_same_numbers_as_zuko():
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(0)
    theirs = zuko.flows.CNF(3, 2, freqs=3, hidden_features=(7, 6), activation=nn.SiLU).double()
    ours = FourierTimeMLP(3, (7, 6), "silu", frequencies=3, context_dim=2).double()
    first, *rest = [module for module in theirs.transform.ode if hasattr(module, "weight")]
    with torch.no_grad():
        embedding, x_part, context_part = first.weight.split((6, 3, 2), dim=1)
        ours.layers[0].weight.copy_(x_part)
        ours.layers[0].bias.copy_(first.bias)
        ours.shifts["0"].weight.copy_(torch.cat([embedding, context_part], 1))
        for layer, module in zip(ours.layers[1:], rest, strict=True):
            layer.load_state_dict(module.state_dict())
    x, context = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    t = torch.tensor(0.3).double()
    torch.testing.assert_close(ours(x, 0.3, context), theirs.transform.f(t, x, context))
    with torch.no_grad():
        z, logdet, _ = jkoflow.integrate(ours, x, context=context, num_steps=40, backend="reference")
        expected, ladj = theirs.transform(context).call_and_ladj(x)
    torch.testing.assert_close(z, expected, rtol=0, atol=3e-5)
    torch.testing.assert_close(logdet, ladj, rtol=0, atol=3e-5)


def hook(module, inputs, output):
    return 2 * output


@pytest.mark.parametrize(
    ("name", "part", "reason"),
    [
        ("concatsquash, 2 hidden", lambda v: v.gates["1"], r"velocity.gates\[1\] has a forward hook"),
        ("concatsquash, 2 hidden", lambda v: v.layers[2], r"velocity.layers\[2\] has a forward hook"),
        ("random", lambda v: v.shifts["0"], r"velocity.shifts\[0\] has a forward hook"),
        ("residual, 2 hidden", lambda v: v.layers[1], r"velocity.layers\[1\] has a forward hook"),
        ("hyper layers", lambda v: v, "the velocity has a forward hook"),
    ],
)
def test_what_has_been_altered_runs_through_its_own_forward(name, part, reason):
    velocity, _, x, context = case(name)
    part(velocity).register_forward_hook(hook)
    assert velocity.field() is None
    assert velocity.field_at(0.0) is None
    with pytest.warns(FallbackWarning, match=reason):
        got = jkoflow.integrate(velocity, x, context=context, num_steps=1, method="euler")
    torch.testing.assert_close(got.x, x + velocity(x, 0.0, context))
    torch.testing.assert_close(got.logdet, autograd_divergence(lambda rows: velocity(rows, 0.0, context), x))


def test_a_hook_on_a_hypernetwork_is_obeyed():
    velocity, _, x, context = case("hyper layers")
    velocity.hypers[0].register_forward_hook(hook)
    v, _ = right_hand_side(velocity, context)(x, 0.3)
    torch.testing.assert_close(v, velocity(x, 0.3, context))


@pytest.mark.parametrize("kind", [ConcatSquashMLP, FourierTimeMLP, ResidualMLP, HyperMLP])
def test_a_subclass_with_its_own_forward_has_no_field(kind):
    class Doubled(kind):
        def forward(self, x, t=0.0, context=None):
            return 2 * super().forward(x, t, context)

    velocity = Doubled(2, (4,))
    assert velocity.field() is None
    assert velocity.field_at(0.0) is None
    assert "Doubled has a forward of its own" in velocity.unfused()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: ConcatSquashMLP(2, layer="hyper"),
            "layer must be one of concat, squash, concatsquash, film, got 'hyper'",
        ),
        (lambda: ConcatSquashMLP(2, ()), r"hidden must list one or more positive widths, got \(\)"),
        (lambda: FourierTimeMLP(0), "dim must be at least 1, got 0"),
        (lambda: FourierTimeMLP(2, frequencies=0), "frequencies must be at least 1, got 0"),
        (lambda: FourierTimeMLP(2, embedding="sin"), "embedding must be one of fourier, sinusoidal, random, got 'sin'"),
        (lambda: FourierTimeMLP(2, embedding="random", base=-1), "base must be positive and finite, got -1"),
        (lambda: ResidualMLP(2, (4, 5)), r"hidden must list one width only, .*, got \(4, 5\)"),
        (lambda: HyperMLP(2, hyper="net"), "hyper must be one of layers, blend, gated, got 'net'"),
        (lambda: HyperMLP(2, (4, 4), hyper="gated"), r"hidden must list one width with hyper='gated', got \(4, 4\)"),
        (lambda: HyperMLP(2, hyper_hidden=(0,)), r"hyper_hidden must list positive widths, got \(0,\)"),
        (lambda: HyperMLP(2, context_dim=-1), "context_dim must not be negative, got -1"),
    ],
)
def test_bad_constructor_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("kind", [ConcatSquashMLP, FourierTimeMLP, ResidualMLP, HyperMLP])
def test_bad_inputs(kind):
    velocity = kind(2, (4, 4), context_dim=1)
    with pytest.raises(ValueError, match=r"x must have shape \(\*, 2\) to match velocity.dim, got \(4, 3\)"):
        velocity(torch.zeros(4, 3), 0.0, torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"context must be with shape \(\*, 1\) .*, got None"):
        velocity(torch.zeros(4, 2))


SQUASHED = "concatsquash, 2 hidden"


def replaced(parts, key, module):
    def change(velocity):
        getattr(velocity, parts)[key] = module

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (SQUASHED, replaced("gates", "0", nn.Linear(1, 3)), r"velocity.gates\[0\].weight must be .* \(7, 1\)"),
        (SQUASHED, replaced("gates", "0", nn.Linear(1, 7, bias=False)), r"velocity.gates\[0\].bias must be"),
        (SQUASHED, replaced("shifts", "1", nn.Linear(2, 6, bias=False)), r"velocity.shifts\[1\].weight must be"),
        (SQUASHED, replaced("shifts", "1", nn.Linear(1, 6)), r"velocity.shifts\[1\] must have no bias"),
        (SQUASHED, replaced("gates", "1", nn.Identity()), r"velocity.gates\[1\] must be a torch.nn.Linear"),
        ("residual, 2 hidden", replaced("layers", 1, nn.Linear(7, 6)), r"velocity.layers\[1\].weight must be square"),
        ("fourier", lambda v: setattr(v, "frequencies", torch.ones(2, 3).double()), r"velocity.frequencies must be"),
    ],
)
def test_layers_that_do_not_fit(name, change, message):
    velocity, _, x, context = case(name)
    change(velocity)
    if name.startswith("residual"):
        velocity.layers[2] = nn.Linear(6, 3)
    velocity.double()
    with pytest.raises(ValueError, match=message):
        jkoflow.integrate(velocity, x, context=context, backend="reference")
