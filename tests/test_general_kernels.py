"""The CPU kernels of layers that time and context scale and shift, and of residual layers, against the reference."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import jkoflow
from jkoflow import ConcatSquashMLP, FourierTimeMLP, ResidualMLP
from jkoflow.activation import parse_activation
from jkoflow.ops import jko_loss, native
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.velocity import MLPField, Modulation, Velocity
from oracles import assert_within_twice

pytestmark = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")


class AnyField(Velocity):
    """A velocity of any field at all, with numbers far from their initialisation."""

    def __init__(
        self, dim, hidden, activation="tanh", *, context_dim=0, linear=False, residual=False, gate="sigmoid",
        gated=(), shifted=(), time=True, frequencies=0, modulated=True, seed=0,
    ):  # fmt: skip
        super().__init__()
        self.dim, self.context_dim, self.residual, self.gate = dim, context_dim, residual, gate
        self.time, self.activation, self.modulated = time, parse_activation(activation), modulated
        generator = torch.Generator().manual_seed(seed)

        def parameter(*shape, scale=None):
            size = (1 / shape[-1] ** 0.5 if len(shape) == 2 else 0.3) if scale is None else scale
            return nn.Parameter(size * torch.randn(shape, generator=generator, dtype=torch.float64))

        columns = int(time) + 2 * frequencies + context_dim
        widths = (dim if modulated else dim + int(time) + context_dim, *hidden, dim)
        outputs = widths[1:]
        self.weights = nn.ParameterList(parameter(o, i) for i, o in zip(widths[:-1], outputs, strict=True))
        self.biases = nn.ParameterList(parameter(o) for o in outputs)
        self.matrix = parameter(dim, dim) if linear else None
        self.frequencies = parameter(frequencies, scale=3.0) if frequencies else None
        self.gates = nn.ParameterDict({str(i): parameter(outputs[i], columns, scale=0.4) for i in gated})
        self.gate_biases = nn.ParameterDict({str(i): parameter(outputs[i]) for i in gated})
        self.shifts = nn.ParameterDict({str(i): parameter(outputs[i], columns) for i in shifted})

    def field(self):
        names = [str(layer) for layer in range(len(self.weights))]
        gates = tuple((self.gates[n], self.gate_biases[n]) if n in self.gates else None for n in names)
        shifts = tuple(self.shifts.get(n, None) for n in names)
        modulation = Modulation(self.gate, self.time, self.frequencies, gates, shifts) if self.modulated else None
        time = self.time and not self.modulated
        kind = self.dim, self.context_dim, time, self.activation, tuple(self.weights), tuple(self.biases)
        return MLPField(*kind, self.matrix, modulation, self.residual)

    def unfused(self):
        return None

    def forward(self, x, t=0.0, context=None):
        raise AssertionError("kernels and reference read the field")

    def describe(self):
        return {}

    def scale_output(self, factor):
        raise AssertionError

    def work(self):
        return 1.0


FIELDS = {
    "gates inside, one layer": {"dim": 3, "hidden": (20,), "gated": (0,)},
    "gates inside, two layers": {"dim": 3, "hidden": (20, 33), "gated": (0, 1), "shifted": (1, 2), "linear": True},
    "gate in one layer of two": {"dim": 2, "hidden": (9, 12), "gated": (1,), "shifted": (0,), "activation": "silu"},
    "gates everywhere": {"dim": 4, "hidden": (17, 16), "gated": (0, 1, 2), "shifted": (0, 1, 2), "context_dim": 3},
    "gates everywhere, one layer": {"dim": 2, "hidden": (15,), "gated": (0, 1), "shifted": (0, 1), "linear": True},
    "gates everywhere, three layers": {
        "dim": 3, "hidden": (20, 33, 12), "gated": (0, 1, 2, 3), "shifted": (0, 1, 2, 3), "gate": "affine",
        "activation": "softplus(3)", "linear": True, "context_dim": 1,
    },
    "gate of the output alone": {"dim": 17, "hidden": (24, 40), "gated": (2,), "gate": "affine"},
    "shifts alone": {"dim": 3, "hidden": (20, 12), "shifted": (0, 1, 2), "context_dim": 2},
    "shifts alone, deep": {"dim": 2, "hidden": (8, 9, 10, 11), "shifted": (0, 3, 4), "activation": "silu"},
    "many columns": {
        "dim": 3, "hidden": (33, 20), "gated": (0, 1), "shifted": (0, 1), "frequencies": 4, "context_dim": 3,
    },
    "many columns, gate of the output": {
        "dim": 12, "hidden": (33, 20), "gated": (0, 2), "shifted": (2,), "frequencies": 5, "time": False,
    },
    "context alone": {"dim": 3, "hidden": (16, 16), "gated": (0, 1), "time": False, "context_dim": 2},
    "widths of one": {"dim": 1, "hidden": (1, 1), "gated": (0, 1, 2), "shifted": (0, 1, 2), "frequencies": 1},
    "residual, one layer": {"dim": 3, "hidden": (20,), "residual": True, "modulated": False},
    "residual, two layers": {
        "dim": 3, "hidden": (20, 20), "residual": True, "modulated": False, "context_dim": 2, "linear": True,
    },
    "residual, two layers, silu": {
        "dim": 2, "hidden": (33, 33), "residual": True, "modulated": False, "activation": "silu", "time": False,
    },
    "residual, four layers": {"dim": 3, "hidden": (12, 12, 12, 12), "residual": True, "modulated": False},
    "residual, gates inside": {"dim": 3, "hidden": (20, 20), "residual": True, "gated": (0, 1), "shifted": (0, 1)},
    "residual, gates everywhere": {
        "dim": 3, "hidden": (12, 12, 12), "residual": True, "gated": (0, 1, 2, 3), "shifted": (1, 3), "context_dim": 2,
        "frequencies": 2, "activation": "softplus(2)",
    },
    "wide": {"dim": 6, "hidden": (130, 256), "gated": (0, 1), "shifted": (0, 1), "linear": True},
}  # fmt: skip


def inputs(velocity, batch, dtype=torch.float64, divergence="exact"):
    """x, context and noise; the first two want gradients."""
    generator = torch.Generator().manual_seed(batch)

    def draw(columns):
        return torch.randn(batch, columns, generator=generator, dtype=torch.float64).to(dtype)

    x, context, noise = draw(velocity.dim), draw(velocity.context_dim), draw(velocity.dim)
    return (
        x.requires_grad_(),
        context.requires_grad_() if velocity.context_dim else None,
        noise if divergence == "hutchinson" else None,
    )


def results(velocity, batch, backend, dtype=torch.float64, divergence="exact", **options):
    """Everything that comes out of integrate, then the gradients of x, context and the parameters."""
    x, context, noise = inputs(velocity, batch, dtype, divergence)
    found = jkoflow.integrate(
        velocity, x, context=context, divergence=divergence, noise=noise, backend=backend, **options
    )
    leaves = {"x": x, **({} if context is None else {"context": context}), **dict(velocity.named_parameters())}
    generator = torch.Generator().manual_seed(5)
    bars = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(dtype) for part in found]
    parts = [(part, bar) for part, bar in zip(found, bars, strict=True) if part.requires_grad]
    gradients = torch.autograd.grad(
        [part for part, _ in parts], list(leaves.values()), [bar for _, bar in parts], materialize_grads=True,
        allow_unused=True,
    )  # fmt: skip
    values = dict(zip(("x", "logdet", "path"), (part.detach() for part in found), strict=True))
    return values | {f"grad {name}": g for name, g in zip(leaves, gradients, strict=True)}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
def test_values_and_gradients_in_float64(name, divergence):
    velocity = AnyField(**FIELDS[name])
    options = {"divergence": divergence, "t0": 0.9, "t1": -0.4}
    got, expected = (results(velocity, 37, backend, **options) for backend in ("cpu", "reference"))
    assert divergence == "none" or all(value.abs().max() > 0 for value in expected.values())
    for part, value in expected.items():
        torch.testing.assert_close(got[part], value, rtol=1e-10, atol=1e-11, msg=lambda text, n=part: f"{n}: {text}")


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_float32_within_twice_the_error_of_pytorch(name, divergence):
    exact = results(AnyField(**FIELDS[name]), 53, "reference", divergence=divergence)
    velocity = AnyField(**FIELDS[name]).float()
    options = {"dtype": torch.float32, "divergence": divergence}
    got, peer = (results(velocity, 53, backend, **options) for backend in ("cpu", "reference"))
    for part, value in exact.items():
        # a few roundings of the largest entry, and of sums over rows and stages
        floor = (4e-7 if part in ("x", "logdet", "path", "grad x") else 3e-6) * max(1.0, value.abs().max().item())
        assert_within_twice(got[part], peer[part], value, floor, part)


@pytest.mark.parametrize("batch", [0, 1, 15, 17, 47, 49, 203])
@pytest.mark.parametrize("name", ["gates everywhere", "many columns", "residual, gates everywhere"])
def test_batches(batch, name):
    velocity = AnyField(**FIELDS[name])
    got, expected = (results(velocity, batch, backend, num_steps=2) for backend in ("cpu", "reference"))
    for part, value in expected.items():
        torch.testing.assert_close(got[part], value, rtol=1e-10, atol=1e-10, msg=lambda text, n=part: f"{n}: {text}")


@pytest.mark.parametrize("method", TABLEAUX)
def test_methods(method):
    velocity = AnyField(**FIELDS["many columns"])
    got, expected = (results(velocity, 20, backend, method=method, num_steps=2) for backend in ("cpu", "reference"))
    for part, value in expected.items():
        torch.testing.assert_close(got[part], value, rtol=1e-10, atol=1e-10, msg=lambda text, n=part: f"{n}: {text}")


@pytest.mark.parametrize("name", FIELDS)
def test_the_loss_is_that_of_integrating(name):
    velocity = AnyField(**FIELDS[name])
    x, context, _ = inputs(velocity, 70)
    leaves = [x, *([] if context is None else [context]), *velocity.parameters()]
    found = []
    for backend in ("cpu", "reference"):
        terms = jko_loss(velocity, x, 0.7, context=context, backend=backend)
        found.append([*terms, *torch.autograd.grad(terms.total, leaves)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["gates everywhere", "many columns", "residual, two layers"])
def test_threads_and_rows_on_their_own(name):
    velocity = AnyField(**FIELDS[name]).float()
    x, context, _ = inputs(velocity, 200, torch.float32)
    threads = torch.get_num_threads()
    try:
        whole = []
        for count in (1, 3):
            torch.set_num_threads(count)
            whole.append(jkoflow.integrate(velocity, x, context=context, backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    alone = jkoflow.integrate(velocity, x[70:71], context=None if context is None else context[70:71], backend="cpu")
    for result in whole:
        assert torch.equal(result.x[70:71], alone.x)
        assert torch.equal(result.logdet[70:71], alone.logdet)


@pytest.mark.parametrize("phase", [1.0, 700.0, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_embeddings_of_any_phase(phase, dtype):
    # the velocity of width d = 1 with h = tanh(tiny (cos w t + sin w t)): one Euler step gives the embedding
    velocity = AnyField(1, (1,), frequencies=1, shifted=(0,), time=False).to(dtype)
    tiny = 2.0**-12
    times = torch.linspace(-phase, phase, 41, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        for parameter in velocity.parameters():
            parameter.zero_()
        velocity.frequencies.fill_(1.0)
        velocity.weights[1].fill_(1.0)
        for sine, function in ((0, torch.cos), (1, torch.sin)):
            velocity.shifts["0"].zero_()
            velocity.shifts["0"][0, sine] = tiny
            for t in times.tolist():
                x = torch.zeros(3, 1, dtype=dtype)
                options = {"t0": t, "t1": t + 1, "num_steps": 1, "method": "euler", "divergence": "none"}
                got = jkoflow.integrate(velocity, x, backend="cpu", **options).x / tiny
                exact = torch.tanh(tiny * function(torch.tensor(t, dtype=torch.float64))) / tiny
                error = (got.double() - exact).abs().max().item()
                assert error < (1e-6 if dtype is torch.float32 else 4e-15), (t, function)


@pytest.mark.parametrize("name", ["gates inside, two layers", "gates everywhere", "residual, gates everywhere"])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.filterwarnings("ignore:using the PyTorch reference. the kernels differentiate once")
def test_second_derivatives(name, divergence):
    velocity = AnyField(**{**FIELDS[name], "hidden": (4,) * len(FIELDS[name]["hidden"])})
    x, context, noise = inputs(velocity, 4, divergence=divergence)
    leaves = [x, *([] if context is None else [context]), *velocity.parameters()]
    found = []
    for backend in ("cpu", "reference"):
        options = {"divergence": divergence, "noise": noise, "num_steps": 1, "backend": backend}
        result = jkoflow.integrate(velocity, x, context=context, **options)
        value = result.x.sin().sum() + result.logdet.square().sum()
        gradients = torch.autograd.grad(value, leaves, create_graph=True)
        value = sum(gradient.sin().sum() for gradient in gradients)
        found.append(torch.autograd.grad(value, leaves, materialize_grads=True, allow_unused=True))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
def test_evaluations_with_a_time_for_every_row(name, divergence):
    velocity = AnyField(**FIELDS[name])
    x, context, noise = inputs(velocity, 53, divergence=divergence)
    t = torch.linspace(-1, 2, 53, dtype=torch.float64).requires_grad_()
    leaves = [x, t, *([] if context is None else [context]), *velocity.parameters()]
    found = []
    for backend in ("cpu", "reference"):
        v, div = jkoflow.velocity_and_divergence(
            velocity, x, t, context, divergence=divergence, noise=noise, backend=backend
        )
        loss = v.sin().sum() + div.square().sum()
        found.append([v, div, *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_adaptive_steps(name, divergence):
    velocity = AnyField(**FIELDS[name])
    x, context, noise = inputs(velocity, 53, divergence=divergence)
    leaves = [x, *([] if context is None else [context]), *velocity.parameters()]
    found = []
    for backend in ("cpu", "reference"):
        options = {"divergence": divergence, "noise": noise, "backend": backend, "times": [1.0, 0.4, 0.0]}
        result = jkoflow.integrate(velocity, x, context=context, method="dopri5", rtol=1e-4, atol=1e-4, **options)
        loss = result.path.sin().sum() + result.logdet_path.square().sum()
        found.append([*result, result.evaluations, *torch.autograd.grad(loss, leaves)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:using the PyTorch reference. the kernels differentiate once")
def test_second_derivatives_of_an_evaluation():
    velocity = AnyField(2, (4, 5), "silu", gated=(0, 2), shifted=(1,), frequencies=1, context_dim=1)
    x, context, _ = inputs(velocity, 4)
    t = torch.linspace(-1, 2, 4, dtype=torch.float64).requires_grad_()
    leaves = [x, t, context, *velocity.parameters()]
    found = []
    for backend in ("cpu", "reference"):
        v, div = jkoflow.velocity_and_divergence(velocity, x, t, context, backend=backend)
        gradients = torch.autograd.grad(v.sin().sum() + div.square().sum(), leaves, create_graph=True)
        value = sum(gradient.sin().sum() for gradient in gradients)
        found.append(torch.autograd.grad(value, leaves))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


DEEP = {
    "five": {"dim": 3, "hidden": (8, 9, 10, 11, 12)},
    "eight": {"dim": 2, "hidden": (6, 5, 4, 7, 6, 5, 4, 9), "linear": True, "context_dim": 1},
    "eight, residual": {"dim": 2, "hidden": (9,) * 8, "residual": True},
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
def test_five_to_eight_hidden_layers(name, divergence):
    velocity = AnyField(**DEEP[name], modulated=False)
    got, expected = (results(velocity, 19, backend, divergence=divergence) for backend in ("cpu", "reference"))
    for part, value in expected.items():
        torch.testing.assert_close(got[part], value, rtol=1e-10, atol=1e-10, msg=lambda text, n=part: f"{n}: {text}")


READY = {
    "concat-squash": lambda: ConcatSquashMLP(2, (16, 16), context_dim=1, linear=True),
    "fourier": lambda: FourierTimeMLP(2, (16, 16), "silu", embedding="random"),
    "residual": lambda: ResidualMLP(2, (16, 16, 16), context_dim=1),
}


@pytest.mark.parametrize("name", READY)
def test_ready_made_velocities_are_fused(name):
    torch.manual_seed(0)
    velocity = READY[name]().double()
    x, context, _ = inputs(velocity, 30)
    found = [jkoflow.integrate(velocity, x, context=context, backend=backend) for backend in ("auto", "reference")]
    gradients = [torch.autograd.grad(r.logdet.sum() + r.x.square().sum(), list(velocity.parameters())) for r in found]
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", READY)
def test_compiles_into_one_graph(name):
    torch.manual_seed(0)
    velocity = READY[name]()

    def loss(x, context):
        result = jkoflow.integrate(velocity, x * 2, context=context, num_steps=2)
        return (result.x.square().sum(1) - result.logdet).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x, context, _ = inputs(velocity, 6, torch.float32)
    parameters = list(velocity.parameters())
    got, expected = (torch.autograd.grad(f(x, context), parameters) for f in (compiled, loss))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


CHILD = """
import sys
sys.path[:0] = sys.argv[1:]
import test_general_kernels as tests
for name in tests.FIELDS:
    for divergence in ("exact", "hutchinson"):
        tests.test_values_and_gradients_in_float64(name, divergence)
    tests.test_float32_within_twice_the_error_of_pytorch(name, "exact")
print(tests.native.capabilities()["isa"])
"""


@pytest.mark.parametrize("isa", [isa for isa in native.capabilities()["isas"] if isa != native.capabilities()["isa"]])
def test_other_instruction_sets(isa):
    here = Path(__file__).parent
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(here)], env={**os.environ, "JKOFLOW_ISA": isa}, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == isa
