"""The compiled kernels against the reference: values, gradients, sizes, operators, instruction sets."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import jkoflow
from jkoflow.errors import UserError
from jkoflow.ops import UnsupportedError, jko_loss, jko_terms, library, native
from jkoflow.ops.grid import Fixed
from jkoflow.ops.tableau import TABLEAUX
from oracles import assert_within_twice, random_velocity

pytestmark = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")

NETWORKS = {
    "one layer": {"dim": 3, "hidden": (20,)},
    "two layers": {"dim": 3, "hidden": (20, 12)},
    "widths of one": {"dim": 1, "hidden": (1, 1)},
    "no time": {"dim": 2, "hidden": (9, 33), "time": False},
    "context and linear": {"dim": 4, "hidden": (17, 16), "context_dim": 3, "linear": True},
    "one layer, all inputs": {"dim": 5, "hidden": (48,), "context_dim": 1, "linear": True},
    "softplus": {"dim": 2, "hidden": (16, 16), "activation": "softplus(3)"},
    "softplus, one layer": {"dim": 2, "hidden": (15,), "activation": "softplus"},
    "silu": {"dim": 2, "hidden": (16, 16), "activation": "silu"},
    "silu, one layer": {"dim": 2, "hidden": (15,), "activation": "silu", "linear": True},
    "elu": {"dim": 2, "hidden": (16, 16), "activation": "elu"},
    "elu, one layer": {"dim": 3, "hidden": (15,), "activation": "elu", "linear": True},
    "selu": {"dim": 2, "hidden": (16, 16), "activation": "selu"},
    "gelu": {"dim": 2, "hidden": (16, 16), "activation": "gelu"},
    "gelu, one layer": {"dim": 3, "hidden": (15,), "activation": "gelu", "linear": True},
    "wide": {"dim": 17, "hidden": (512, 130), "linear": True},
    "many features": {"dim": 256, "hidden": (24, 40)},
    "three layers": {"dim": 3, "hidden": (20, 33, 12)},
    "three layers, all inputs": {"dim": 2, "hidden": (17, 16, 40), "context_dim": 3, "linear": True},
    "four layers": {"dim": 5, "hidden": (9, 33, 16, 20), "linear": True},
    "four layers of one": {"dim": 1, "hidden": (1, 1, 1, 1), "time": False},
    "three layers, softplus": {"dim": 2, "hidden": (16, 15, 17), "activation": "softplus(3)"},
    "three layers, elu": {"dim": 2, "hidden": (16, 15, 17), "activation": "elu"},
    "three layers, selu": {"dim": 2, "hidden": (16, 15, 17), "activation": "selu", "context_dim": 2},
    "four layers, gelu": {"dim": 3, "hidden": (16, 8, 8, 24), "activation": "gelu"},
    "four layers, silu": {"dim": 3, "hidden": (16, 8, 8, 24), "activation": "silu", "linear": True},
}
FUSED = ["tanh", "softplus(5)", "silu", "elu", "selu", "gelu"]


def case(network, batch, dtype=torch.float64, seed=0):
    velocity = random_velocity(**network, dtype=dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(batch, velocity.dim, generator=generator, dtype=torch.float64).to(dtype)
    context = None
    if velocity.context_dim:
        context = torch.randn(batch, velocity.context_dim, generator=generator, dtype=torch.float64).to(dtype)
    return velocity, x, context


def outputs_and_gradients(velocity, x, context, backend, **options):
    """Everything that comes out of integrate, then the gradients of x, context and the parameters."""
    if options.get("divergence") == "hutchinson":
        generator = torch.Generator().manual_seed(11)
        options["noise"] = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
    leaves = [x.detach().clone().requires_grad_()]
    if context is not None:
        leaves.append(context.detach().clone().requires_grad_())
    result = jkoflow.integrate(
        velocity, leaves[0], context=leaves[1] if context is not None else None, backend=backend, **options
    )
    generator = torch.Generator().manual_seed(7)
    bars = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part.dtype) for part in result]
    parts, bars = zip(*((part, bar) for part, bar in zip(result, bars, strict=True) if part.requires_grad), strict=True)
    gradients = torch.autograd.grad(
        parts, leaves + list(velocity.parameters()), bars, allow_unused=True, materialize_grads=True
    )
    names = ["x", "logdet", "path", "grad x"] + ["grad context"] * (context is not None)
    names += [f"grad {name}" for name, _ in velocity.named_parameters()]
    return dict(zip(names, [*(part.detach() for part in result), *gradients], strict=True))


def assert_float64_parity(network, batch, **options):
    velocity, x, context = case(network, batch)
    got = outputs_and_gradients(velocity, x, context, "cpu", **options)
    expected = outputs_and_gradients(velocity, x, context, "reference", **options)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_values_and_gradients_in_float64(network, divergence):
    assert_float64_parity(network, 37, divergence=divergence)


@pytest.mark.parametrize("method", TABLEAUX)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
@pytest.mark.parametrize("name", ["context and linear", "one layer", "three layers, all inputs", "four layers"])
def test_methods_and_divergences(method, divergence, name):
    assert_float64_parity(NETWORKS[name], 20, method=method, divergence=divergence, num_steps=2)


def test_backwards_and_partial_intervals():
    assert_float64_parity(NETWORKS["two layers"], 20, t0=1.0, t1=0.0)
    assert_float64_parity(NETWORKS["two layers"], 20, t0=-0.5, t1=0.25, num_steps=5)


@pytest.mark.parametrize("batch", [0, 1, 15, 16, 17, 47, 48, 49, 1003])
@pytest.mark.parametrize("hidden", [(64, 70), (130,), (40, 50, 34), (20, 30, 40, 50)])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_float32_within_twice_the_error_of_pytorch_over_batches(batch, hidden, divergence):
    assert_float32_within_twice({"dim": 6, "hidden": hidden, "linear": True}, batch, divergence)


@pytest.mark.parametrize("dim", [1, 2, 3, 17, 63, 64])
@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("hidden", [(100, 36), (36, 20, 52)])
def test_float32_within_twice_the_error_of_pytorch_over_dimensions(dim, activation, hidden):
    assert_float32_within_twice({"dim": dim, "hidden": hidden, "activation": activation}, 97)


def assert_float32_within_twice(network, batch, divergence="exact"):
    velocity, x, context = case(network, batch, torch.float32)
    got = outputs_and_gradients(velocity, x, context, "cpu", divergence=divergence)
    peer = outputs_and_gradients(velocity, x, context, "reference", divergence=divergence)
    exact = outputs_and_gradients(
        velocity.double(),
        x.double(),
        None if context is None else context.double(),
        "reference",
        divergence=divergence,
    )
    for name, value in exact.items():
        # The floor, for results on which PyTorch is exact by luck: a few roundings of the largest entry. Gradients of
        # parameters are sums over rows and stages, whose rounding grows with the root of their number.
        terms = batch * 12 if name.startswith("grad l") else 0
        floor = max(4e-7, 1e-7 * terms**0.5) * max(1.0, value.abs().max().item() if value.numel() else 0.0)
        assert_within_twice(got[name], peer[name], value, floor, name)


def test_tanh_is_accurate_and_odd():
    # one Euler step of dx/dt = tanh(scale * x), with x too small to cost accuracy
    scale, z = 2.0**20, torch.cat([torch.linspace(0, 12, 4001), torch.logspace(-30, 0, 500)]).unsqueeze(1)
    velocity = jkoflow.MLPVelocity(1, (1,), time=False)
    with torch.no_grad():
        for parameter, value in zip(velocity.parameters(), (scale, 0, 1, 0), strict=True):
            parameter.fill_(value)
        options = {"num_steps": 1, "method": "euler", "divergence": "none", "backend": "cpu"}
        up, down = (jkoflow.integrate(velocity, sign * z / scale, **options).x for sign in (1, -1))
    exact = (z.double() / scale) + torch.tanh(z.double())
    assert torch.equal(up, -down)
    assert (up - exact).abs().max() < 4e-7
    assert ((up - exact).abs() / exact.clamp_min(1e-37))[1:].max() < 5e-7


def test_saturated_activations_stay_accurate():
    for activation in FUSED:
        velocity, x, _ = case({"dim": 2, "hidden": (24, 24), "activation": activation}, 33, torch.float32)
        with torch.no_grad():
            velocity.layers[0].bias.copy_(torch.linspace(-60, 60, 24))
            velocity.layers[2].weight.mul_(0.01)
        got = jkoflow.integrate(velocity, x, backend="cpu")
        peer = jkoflow.integrate(velocity, x, backend="reference")
        exact = jkoflow.integrate(velocity.double(), x.double(), backend="reference")
        for name in ("x", "logdet"):
            assert_within_twice(getattr(got, name), getattr(peer, name), getattr(exact, name), 1e-6, name)


GRADCHECKED = ["one layer", "two layers", "context and linear", "softplus", "silu, one layer", "no time"]
GRADCHECKED += ["elu", "gelu, one layer", "three layers, all inputs", "four layers, silu"]


@pytest.mark.parametrize("name", GRADCHECKED)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
def test_gradcheck(name, divergence):
    velocity, x, context = case({**NETWORKS[name], "hidden": (5, 4, 3, 4)[: len(NETWORKS[name]["hidden"])]}, 3)
    noise = torch.randn(x.shape, dtype=x.dtype) if divergence == "hutchinson" else None
    names = [name for name, _ in velocity.named_parameters()]

    def function(x, context, *parameters):
        def field():
            return jkoflow.MLPVelocity.field(velocity)

        with nn.utils.stateless._reparametrize_module(velocity, dict(zip(names, parameters, strict=True))):
            assert field().weights[0] is parameters[names.index("layers.0.weight")]
            options = {"num_steps": 2, "divergence": divergence, "noise": noise}
            result = jkoflow.integrate(velocity, x, context=context, backend="cpu", **options)
        return (result.x, result.path) if divergence == "none" else (result.x, result.logdet, result.path)

    parameters = [parameter.detach().clone().requires_grad_() for parameter in velocity.parameters()]
    context = context if context is None else context.requires_grad_()
    assert torch.autograd.gradcheck(function, (x.requires_grad_(), context, *parameters))


def operator_arguments(network, dtype, divergence="exact"):
    velocity, x, context = case(network, 7, dtype)
    field = velocity.field()
    settings = native.Settings(divergence, field.time, field.activation.text, 0.0, 1.0, Fixed(2), "rk4")
    noise = torch.randn(x.shape, dtype=x.dtype) if divergence == "hutchinson" else None
    return x.requires_grad_(), context, *library.slots_of(field), noise, library.encode(settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["one layer", "two layers", "context and linear", "four layers"])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_opcheck(name, dtype, divergence):
    arguments = operator_arguments(NETWORKS[name], dtype, divergence)
    torch.library.opcheck(torch.ops.jkoflow.integrate.default, (*arguments, True))


@pytest.mark.parametrize("operator", ["integrate", "jko_loss"])
def test_opcheck_with_strided_tensors(operator):
    arguments = operator_arguments(NETWORKS["context and linear"], torch.float64)
    strided = [
        part.detach().T.contiguous().T.requires_grad_(part.requires_grad)
        if torch.is_tensor(part) and part.dim() == 2
        else part
        for part in arguments
    ]
    rest = (True,) if operator == "integrate" else (0.5, True, True)
    torch.library.opcheck(getattr(torch.ops.jkoflow, operator).default, (*strided, *rest))


@pytest.mark.parametrize("name", ["two layers", "context and linear"])
@pytest.mark.parametrize("parameters_wanted", [True, False])
def test_opcheck_of_the_adjoint(name, parameters_wanted):
    x, *rest = operator_arguments(NETWORKS[name], torch.float64)
    rest = [part.detach() if isinstance(part, torch.Tensor) else part for part in rest]
    bars = torch.randn_like(x), torch.randn(x.shape[0], dtype=x.dtype), None
    path = torch.randn(3, *x.shape, dtype=x.dtype)
    torch.library.opcheck(
        torch.ops.jkoflow.integrate_backward.default,
        (path, *rest, *(bar if bar is None else bar.detach() for bar in bars), parameters_wanted),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.velocity = random_velocity(**NETWORKS["context and linear"], dtype=torch.float32)

        def forward(self, x, context):
            result = jkoflow.integrate(self.velocity, x * 2, context=context, num_steps=2)
            return result.x.square().sum(1) - result.logdet

    model = Model()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (5, 8):
        x, context = torch.randn(batch, 4), torch.randn(batch, 3)
        expected = torch.autograd.grad(model(x, context).sum(), list(model.parameters()))
        got = torch.autograd.grad(compiled(x, context).sum(), list(model.parameters()))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:using the PyTorch reference. the kernels differentiate once")
@pytest.mark.parametrize("network", ["two layers", "context and linear"])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
def test_second_and_third_derivatives(network, divergence):
    velocity, x, context = case(NETWORKS[network], 4)
    noise = torch.randn_like(x) if divergence == "hutchinson" else None
    inputs = [x, *([] if context is None else [context]), *velocity.parameters()]
    for tensor in inputs:
        tensor.requires_grad_()
    found = []
    for backend in ("cpu", "reference"):
        result = jkoflow.integrate(
            velocity, x, context=context, num_steps=2, divergence=divergence, noise=noise, backend=backend
        )
        value = result.x.sin().sum() + result.logdet.square().sum() + result.path[1].cos().sum()
        for _ in range(2):
            gradients = torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
            value = sum(gradient.sin().sum() for gradient in gradients)
        found.append(torch.autograd.grad(value, inputs, materialize_grads=True))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.filterwarnings("ignore:using the PyTorch reference. the kernels differentiate once")
def test_second_derivatives_of_some_inputs():
    velocity, x, context = case(NETWORKS["context and linear"], 4)
    for wanted in ([x], [context], list(velocity.parameters())[1:2]):
        velocity.requires_grad_(False)
        found = []
        for backend in ("cpu", "reference"):
            for tensor in wanted:
                tensor.requires_grad_()
            result = jkoflow.integrate(velocity, x, context=context, backend=backend)
            gradients = torch.autograd.grad(result.logdet.sum(), wanted, create_graph=True)
            found.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), wanted))
            for tensor in wanted:
                tensor.requires_grad_(False)
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("trainable", ["x", "context", "parameters", "nothing"])
def test_gradients_only_where_wanted(trainable):
    velocity, x, context = case(NETWORKS["context and linear"], 21)
    velocity.requires_grad_(trainable == "parameters")
    wanted = {"x": [x], "context": [context], "parameters": list(velocity.parameters()), "nothing": []}[trainable]
    for tensor in wanted:
        tensor.requires_grad_()
    results = [jkoflow.integrate(velocity, x, context=context, backend=b) for b in ("cpu", "reference")]
    if not wanted:
        assert not any(part.requires_grad for part in results[0])
        return
    got, expected = (torch.autograd.grad(r.logdet.sum() + r.x.square().sum(), wanted) for r in results)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_any_strides_and_alignment():
    velocity, x, context = case(NETWORKS["context and linear"], 40)
    expected = jkoflow.integrate(velocity, x, context=context, backend="cpu")
    padded = torch.full((41, 9), float("nan"), dtype=x.dtype)
    padded[1:, 3:7] = x
    layouts = {"transposed": x.T.contiguous().T, "slice": padded[1:, 3:7], "reversed": x.flip(0).flip(0)}
    layouts["every other"] = x.repeat_interleave(2, 0)[::2]
    for name, strided in layouts.items():
        got = jkoflow.integrate(velocity, strided, context=context.T.contiguous().T, backend="cpu")
        assert torch.equal(got.x, expected.x), name
        assert torch.equal(got.logdet, expected.logdet), name
    with torch.no_grad():
        velocity.layers[0].weight.data = velocity.layers[0].weight.data.T.contiguous().T
    assert torch.equal(jkoflow.integrate(velocity, x, context=context, backend="cpu").x, expected.x)


def test_a_row_does_not_depend_on_the_other_rows():
    velocity, x, _ = case(NETWORKS["two layers"], 200, torch.float32)
    whole = jkoflow.integrate(velocity, x, backend="cpu")
    poisoned = x.clone()
    poisoned[100] = float("nan")
    alone = jkoflow.integrate(velocity, x[70:71], backend="cpu")
    assert torch.equal(alone.x, whole.x[70:71])
    assert torch.equal(alone.logdet, whole.logdet[70:71])
    around = jkoflow.integrate(velocity, poisoned, backend="cpu")
    others = torch.arange(200) != 100
    assert torch.equal(around.x[others], whole.x[others])
    assert around.x[100].isnan().all()
    assert around.logdet[100].isnan()


def test_same_bits_every_time_and_for_any_number_of_threads():
    velocity, x, _ = case(NETWORKS["wide"], 130, torch.float32)
    before = torch.get_num_threads()
    try:
        runs = {}
        for threads in (1, 2, 7, 64):
            torch.set_num_threads(threads)
            runs[threads] = outputs_and_gradients(velocity, x, None, "cpu")
            again = outputs_and_gradients(velocity, x, None, "cpu")
            assert all(torch.equal(again[name], value) for name, value in runs[threads].items())
        for run in runs.values():
            assert torch.equal(run["x"], runs[1]["x"])
            assert torch.equal(run["logdet"], runs[1]["logdet"])
            assert torch.equal(run["grad x"], runs[1]["grad x"])
            for name, value in run.items():  # sums over rows may be taken in another order
                torch.testing.assert_close(value, runs[1][name], rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)


def test_path_is_x_at_every_step():
    velocity, x, _ = case(NETWORKS["two layers"], 10)
    result = jkoflow.integrate(velocity, x, num_steps=4, backend="cpu")
    assert torch.equal(result.path[0], x)
    assert torch.equal(result.path[-1], result.x)
    half = jkoflow.integrate(velocity, x, t1=0.5, num_steps=2, backend="cpu")
    torch.testing.assert_close(result.path[2], half.x)
    assert jkoflow.integrate(velocity, x, backend="cpu", keep_path=False).path is None


ISA_PROGRAM = """
import torch, sys
sys.path.insert(0, {tests!r})
from jkoflow.ops import native
import test_native
print(native.capabilities()["isa"])
for name in test_native.NETWORKS:
    for divergence in ("exact", "hutchinson"):
        test_native.assert_float64_parity(test_native.NETWORKS[name], 37, divergence=divergence)
test_native.test_tanh_is_accurate_and_odd()
for activation in test_native.FUSED:
    test_native.assert_float32_within_twice({{"dim": 6, "hidden": (64, 70), "activation": activation}}, 49)
"""


def run_with_isa(isa, program):
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JKOFLOW_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("isa", native.capabilities()["isas"])
def test_every_instruction_set(isa):
    done = run_with_isa(isa, ISA_PROGRAM.format(tests=str(Path(__file__).parent)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]


def test_unknown_instruction_set_is_refused():
    done = run_with_isa("sse9", "import torch, jkoflow; jkoflow.integrate(jkoflow.MLPVelocity(2), torch.zeros(1, 2))")
    assert done.returncode != 0
    assert "KernelError: JKOFLOW_ISA must be one of" in done.stderr
    assert "got 'sse9'" in done.stderr


def test_what_the_kernels_do_not_cover_falls_back_and_is_refused_by_name():
    x = torch.randn(3, 2)
    requests = {
        "1 to 8 hidden layers": (jkoflow.MLPVelocity(2, (8,) * 9), {}),
        "not sin": (jkoflow.MLPVelocity(2, (8,), "sin"), {}),
        "noise as a constant": (
            jkoflow.MLPVelocity(2, (8,)),
            {"divergence": "hutchinson", "noise": torch.ones(3, 2, requires_grad=True)},
        ),
        "another velocity": (lambda x, t, context: -x, {}),
    }
    for reason, (velocity, options) in requests.items():
        with pytest.warns(jkoflow.FallbackWarning, match=reason):
            jkoflow.integrate(velocity, x, **options)
        with pytest.raises(RuntimeError, match=f"backend 'cpu' cannot run this: .*{reason}"):
            jkoflow.integrate(velocity, x, backend="cpu", **options)


def loss_and_gradients(velocity, x, context, backend, jko_step, **options):
    leaves = [x.detach().clone().requires_grad_()]
    if context is not None:
        leaves.append(context.detach().clone().requires_grad_())
    if options.get("divergence") == "hutchinson":
        options["noise"] = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    loss = jko_loss(
        velocity, leaves[0], jko_step, context=leaves[-1] if len(leaves) > 1 else None, backend=backend, **options
    )
    gradients = torch.autograd.grad(3 * loss.total, leaves + list(velocity.parameters()))
    return [*(term.detach() for term in loss), *gradients]


@pytest.mark.parametrize("jko_step", [0.3, float("inf")])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_fused_loss_in_float64(network, jko_step, divergence):
    velocity, x, context = case(network, 37)
    got = loss_and_gradients(velocity, x, context, "cpu", jko_step, divergence=divergence)
    expected = loss_and_gradients(velocity, x, context, "reference", jko_step, divergence=divergence)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("batch", [1, 16, 17, 49, 1003])
@pytest.mark.parametrize("activation", ["tanh", "silu", "elu"])
@pytest.mark.parametrize("hidden", [(64, 70), (40, 30, 50)])
def test_fused_loss_equals_the_two_operators_to_rounding(batch, activation, hidden):
    velocity, x, _ = case({"dim": 6, "hidden": hidden, "activation": activation}, batch, torch.float32)
    got = loss_and_gradients(velocity, x, None, "cpu", 0.5)
    x = x.requires_grad_()
    end, logdet, _ = jkoflow.integrate(velocity, x, backend="cpu")
    terms = jko_terms(x, end, logdet, 0.5)
    gradients = torch.autograd.grad(3 * terms.total, [x, *velocity.parameters()])
    for a, b in zip(got, [*terms, *gradients], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("hidden", [(512, 512), (448, 320, 320)])
def test_fused_loss_recomputes_what_it_cannot_keep(hidden):
    # about 68 MiB of activations a tile, more than the 64 that the kernel keeps: stages are recomputed step by step
    velocity, x, _ = case({"dim": 2, "hidden": hidden, "linear": True}, 30)
    got = loss_and_gradients(velocity, x, None, "cpu", 0.5, num_steps=240, method="euler")
    expected = loss_and_gradients(velocity, x, None, "reference", 0.5, num_steps=240, method="euler")
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("trainable", ["x", "parameters", "nothing"])
def test_fused_loss_gradients_only_where_wanted(trainable):
    velocity, x, _ = case(NETWORKS["two layers"], 21)
    velocity.requires_grad_(trainable == "parameters")
    wanted = {"x": [x], "parameters": list(velocity.parameters()), "nothing": []}[trainable]
    for tensor in wanted:
        tensor.requires_grad_()
    got, expected = (jko_loss(velocity, x, 1.0, backend=backend) for backend in ("cpu", "reference"))
    torch.testing.assert_close(got.total, expected.total)
    assert got.total.requires_grad == bool(wanted)
    if wanted:
        pairs = zip(*(torch.autograd.grad(loss.total, wanted) for loss in (got, expected)), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["one layer", "context and linear"])
def test_opcheck_of_the_loss(name):
    arguments = operator_arguments(NETWORKS[name], torch.float64)
    torch.library.opcheck(torch.ops.jkoflow.jko_loss.default, (*arguments, 0.5, True, True))


def test_loss_refuses_empty_batches_and_bad_jko_steps():
    velocity, x, _ = case(NETWORKS["two layers"], 4)
    with pytest.raises(ValueError, match="at least one row"):
        jko_loss(velocity, x[:0], 1.0)
    with pytest.raises(ValueError, match="jko_step must be positive"):
        jko_loss(velocity, x, 0.0)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:using the PyTorch reference. the kernels have no forward mode")
@pytest.mark.parametrize("grad", [False, True])
def test_forward_mode_is_never_ignored(grad):
    velocity, x, _ = case(NETWORKS["two layers"], 4)
    with torch.set_grad_enabled(grad), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangents = [
            torch.autograd.forward_ad.unpack_dual(jkoflow.integrate(velocity, dual, backend=backend).logdet).tangent
            for backend in ("cpu", "reference")
        ]
    torch.testing.assert_close(*tangents)


def test_errors_of_the_kernels_are_errors_that_a_user_can_put_right():
    error = UnsupportedError("backend 'cpu' cannot run this", "no kernel")
    assert isinstance(error, UserError)
    assert isinstance(error, RuntimeError)
    for again in (error, pickle.loads(pickle.dumps(error))):
        assert str(again) == "backend 'cpu' cannot run this: no kernel"
        assert again.reason == "no kernel"
    with pytest.raises(UnsupportedError) as refusal:
        jkoflow.integrate(jkoflow.MLPVelocity(2, (8,), "sin"), torch.zeros(3, 2), backend="cpu")
    assert refusal.value.reason == "the kernels know the activations tanh, softplus, silu, elu, selu, gelu, not sin"
