"""Value, slope and curvature of the activations in the kernels, number by number, in every instruction set.

One Euler step of one unit shows them: with x = 0 and the argument as context, x moves by the value, logdet is the
slope, and their gradients by the context are the slope and the curvature that the adjoint uses.
"""

import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import mpmath
import pytest
import torch

import jkoflow
from emulation import EmulatedKernels, load
from jkoflow.ops import native

pytestmark = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")

ACTIVATIONS = ["tanh", "softplus", "softplus(10)", "silu", "elu", "selu", "gelu"]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
QUANTITIES = ("value", "slope", "slope in the adjoint", "curvature")
HUGE = [1e4, 1e5, 1e20, 3e38]
# Of a float: half a unit in the last place, the size that slopes are held to relatively, and what is taken for zero.
ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53}
UNDERFLOW = {"float32": 1e-36, "float64": 1e-300}


def arguments(dtype):
    """A dense set on both sides of 0, with tails to where everything underflows, both zeros and huge numbers."""
    sizes = torch.cat(
        [
            torch.linspace(0, 20, 1201, dtype=torch.float64),
            torch.logspace(-30, 1.95, 300, dtype=torch.float64),
            torch.linspace(20, 120 if dtype == torch.float32 else 760, 150, dtype=torch.float64),
            torch.tensor(HUGE, dtype=torch.float64),
        ]
    )
    return torch.cat([-sizes, sizes]).to(dtype)


def measure(activation, z):
    """The four `QUANTITIES` at z (n,), as the CPU kernels have them, with shape (4, n)."""
    velocity = jkoflow.MLPVelocity(1, (1,), activation, time=False, context_dim=1).to(z.dtype)
    with torch.no_grad():
        for parameter in velocity.parameters():
            parameter.fill_(1.0 if parameter.dim() == 2 else 0.0)
    context = z.unsqueeze(1).requires_grad_()
    options = {"num_steps": 1, "method": "euler", "backend": "cpu"}
    x, logdet, _ = jkoflow.integrate(velocity, torch.zeros_like(context), context=context, **options)
    slope, curvature = (torch.autograd.grad(out.sum(), context, retain_graph=True)[0].squeeze(1) for out in (x, logdet))
    return torch.stack([x.squeeze(1), logdet, slope, curvature]).detach()


PROGRAM = """
import sys, torch
sys.path.insert(0, {tests!r})
import test_pointwise as tests
found, special = {{}}, {{}}
for activation in tests.ACTIVATIONS:
    for name, dtype in tests.DTYPES.items():
        found[activation, name] = tests.measure(activation, tests.arguments(dtype))
        numbers = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype)
        special[activation, name] = tests.measure(activation, numbers)
torch.save((found, special), {out!r})
"""


@pytest.fixture(scope="module", params=native.capabilities()["isas"])
def measured(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("pointwise") / "found.pt"
    program = PROGRAM.format(tests=str(Path(__file__).parent), out=str(out))
    environment = {**os.environ, "JKOFLOW_ISA": request.param}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return request.param, *torch.load(out)


def jet(activation, z):
    """Value, slope and curvature at one number, to 40 digits."""
    z, one = mpmath.mpf(z), mpmath.mpf(1)
    name, _, beta = activation.rstrip(")").partition("(")
    if name == "tanh":
        h, slope = mpmath.tanh(z), mpmath.sech(z) ** 2
        return h, slope, -2 * h * slope
    if name in ("elu", "selu"):
        above = mpmath.mpf("1.0507009873554804934193349852946") if name == "selu" else one
        below = above * mpmath.mpf("1.6732632423543772848170429916717") if name == "selu" else one
        power = below * mpmath.exp(z)
        return (above * z, above, mpmath.mpf(0)) if z > 0 else (below * mpmath.expm1(z), power, power)
    if name == "gelu":
        below, density = mpmath.ncdf(z), mpmath.npdf(z)
        return z * below, below + z * density, density * (2 - z * z)
    b = mpmath.mpf(beta or 1)
    power = mpmath.exp(-abs(b * z))
    larger, smaller = 1 / (1 + power), power / (1 + power)
    gate, closed = (larger, smaller) if z > 0 else (smaller, larger)
    if name == "softplus":
        return max(z, mpmath.mpf(0)) + mpmath.log1p(power) / b, gate, b * gate * closed
    return z * gate, gate * (1 + z * closed), gate * closed * (2 + z * (closed - gate))


@functools.cache
def exact(activation, dtype):
    """What `measure` should find, in float64, and the argument of each."""
    with mpmath.workdps(40):
        z = arguments(DTYPES[dtype])
        jets = [jet(activation, number) for number in z.tolist()]
        return z.double(), torch.tensor([[float(part) for part in parts] for parts in jets], dtype=torch.float64).T


def fused(name):
    """Whether products and sums are rounded once; elsewhere e^-a errs by a rounding of a."""
    return name != "baseline"


def allowed(activation, dtype, name, z, wanted, isa):
    """The error that is allowed of each quantity, in half units of the last place.

    Relatively it is a few roundings, and those of what stands in the exponent. Where parts cancel (near the zeros of
    slope and curvature of silu and gelu) it is a few roundings of the parts.
    """
    beta = float(activation.rstrip(")").partition("(")[2] or 1)
    exponent = {"tanh": 2 * z.abs(), "gelu": z * z / 2}.get(activation, beta * z.abs()).clamp(max=1000)
    rounded = (activation == "gelu" or beta != 1) + (0.4 if fused(isa) else 1.3)  # the exponent itself, its reduction
    relative = 6 + exponent * rounded
    parts = torch.zeros_like(z)
    if activation in ("silu", "gelu") and name != "value":
        parts = 4 * torch.exp(-exponent) * (1 + z.abs())
    if activation == "tanh":
        if isa == "avx512" and dtype == "float32" and name != "value":
            relative = torch.where(wanted.abs() > 1e-5, 25.0, 1500.0)  # the table's, which ends at a slope of 1e-12
            parts += (4e-12 if name == "curvature" else 2e-12) / ROUNDING[dtype]
        if name == "slope in the adjoint":
            return 6.0 + relative * wanted.abs()  # 1 - h^2 from the value that was kept
        if name == "value":
            relative = torch.full_like(z, 4.0)
    return relative * wanted.abs() + parts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_errors(measured, activation, dtype):
    isa, found, _ = measured
    z, expected = exact(activation, dtype)
    for name, got, wanted in zip(QUANTITIES, found[activation, dtype].double(), expected[[0, 1, 1, 2]], strict=True):
        bound = ROUNDING[dtype] * allowed(activation, dtype, name, z, wanted, isa) + UNDERFLOW[dtype]
        excess = (got - wanted).abs() / bound
        worst = int(excess.nan_to_num(math.inf).argmax())
        assert excess[worst] <= 1, f"{name} at {z[worst]}: {got[worst]} instead of {wanted[worst]}"


def test_tanh_in_float32_is_right_to_two_units_in_the_last_place(measured):
    _, found, _ = measured
    _, expected = exact("tanh", "float32")
    assert (found["tanh", "float32"][0].double() - expected[0]).abs().max() < 1.2e-7


@pytest.mark.parametrize("dtype", DTYPES)
def test_far_out_tanh_is_1_and_its_slope_0(measured, dtype):
    _, found, _ = measured
    z = arguments(DTYPES[dtype])
    far = z.abs() > (50 if dtype == "float32" else 360)
    value, *derivatives = found["tanh", dtype][:, far]
    assert torch.equal(value, z[far].sign())
    assert all((derivative == 0).all() for derivative in derivatives)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity(measured, activation, dtype):
    nan, high, low = measured[2][activation, dtype].T
    assert nan.isnan().all()
    limits = {"tanh": ((1, 0, 0, 0), (-1, 0, 0, 0)), "elu": ((math.inf, 1, 1, 0), (-1, 0, 0, 0))}
    limits["softplus"] = limits["softplus(10)"] = ((math.inf, 1, 1, 0), (0, 0, 0, 0))
    scale, alpha = 1.0507009873554804934, 1.6732632423543772848
    limits["selu"] = ((math.inf, scale, scale, 0), (-scale * alpha, 0, 0, 0))
    if activation in limits:
        for got, wanted in zip((high, low), limits[activation], strict=True):
            torch.testing.assert_close(got, torch.tensor(wanted, dtype=got.dtype))
    else:  # z times something that is 0 there is NaN in PyTorch, too
        assert high[0] == math.inf
        assert torch.stack([high[1:], low[1:]]).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_two_zeros_are_one(measured, activation, dtype):
    _, found, _ = measured
    z = arguments(DTYPES[dtype])
    zeros = found[activation, dtype][:, z == 0]
    assert zeros.shape[1] >= 2
    assert (zeros == zeros[:, :1]).all()


# Of the device, by functions that err as much as a GPU's may: absolute beside relative errors.
DEVICE_BOUNDS = {
    "tanh": {"value": (2e-7, 3e-7), "slope": (0, 3e-6), "curvature": (3e-7, 3e-6)},
    "softplus": {"value": (4e-7, 3e-7), "slope": (0, 3e-6), "curvature": (0, 3e-6)},
    "silu": {"value": (1e-7, 3e-6), "slope": (5e-7, 3e-6), "curvature": (5e-7, 3e-6)},
    "elu": {"value": (3e-7, 6e-7), "slope": (0, 3e-6), "curvature": (0, 3e-6)},
    "selu": {"value": (6e-7, 6e-7), "slope": (0, 3e-6), "curvature": (0, 3e-6)},
    "gelu": {"value": (1e-7, 1e-5), "slope": (5e-7, 1e-5), "curvature": (5e-7, 1e-5)},
}


@pytest.mark.parametrize("activation", DEVICE_BOUNDS)
def test_errors_on_the_device(monkeypatch, activation):
    emulation = load()
    emulation.configure()
    emulation.set(approximate=True)
    z, expected = exact(activation, "float32")
    some = torch.arange(0, len(z), 5)
    some = some[z[some].abs() < 25]
    monkeypatch.setattr(native, "_C", EmulatedKernels(emulation, "fp32"))
    found = measure(activation, z[some].float()).double()
    for name, got, wanted in zip(QUANTITIES, found, expected[[0, 1, 1, 2]][:, some], strict=True):
        absolute, relative = DEVICE_BOUNDS[activation][name.removesuffix(" in the adjoint")]
        excess = (got - wanted).abs() / (absolute + relative * wanted.abs() + 1e-36)
        worst = int(excess.nan_to_num(math.inf).argmax())
        assert excess[worst] <= 1, f"{name} at {z[some][worst]}: {got[worst]} instead of {wanted[worst]}"


@pytest.mark.parametrize("activation", DEVICE_BOUNDS)
def test_huge_numbers_on_the_device(monkeypatch, activation):
    emulation = load()
    emulation.configure()
    emulation.set()
    monkeypatch.setattr(native, "_C", EmulatedKernels(emulation, "fp32"))
    z = torch.tensor([3e38, 1e20, 1e5, -1e5, -1e20, -3e38])
    if activation != "selu":  # which multiplies
        assert torch.equal(measure(activation, z)[0, :3], z[:3] if activation != "tanh" else torch.ones(3))
    assert measure(activation, z).isfinite().all()
    assert measure(activation, torch.tensor([math.nan])).isnan().all()
