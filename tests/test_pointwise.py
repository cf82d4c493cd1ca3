"""Value, slope and curvature of the activations in the kernels, number by number, in every instruction set.

One Euler step of one unit shows them: with x = 0 and the argument as context, x moves by the value, logdet is the slope,
and their gradients by the context are the slope and the curvature that the adjoint uses.
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
    slope, curvature = (
        torch.autograd.grad(out.sum(), context, retain_graph=True)[0].squeeze(1) for out in (x, logdet)
    )
    return torch.stack([x.squeeze(1), logdet, slope, curvature]).detach()


PROGRAM = """
import sys, torch
sys.path.insert(0, {tests!r})
import test_pointwise as tests
found = {{(a, d): tests.measure(a, tests.arguments(dtype)) for a in tests.ACTIVATIONS for d, dtype in tests.DTYPES.items()}}
special = {{(a, d): tests.measure(a, torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype))
           for a in tests.ACTIVATIONS for d, dtype in tests.DTYPES.items()}}
torch.save((found, special), {out!r})
"""


@pytest.fixture(scope="module", params=native.capabilities()["isas"])
def measured(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("pointwise") / "found.pt"
    program = PROGRAM.format(tests=str(Path(__file__).parent), out=str(out))
    environment = {**os.environ, "JKOFLOW_ISA": request.param}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(out)


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


# Errors that are allowed, in half units of the last place: relative ones, and absolute ones beside them, in units of the
# largest of 1 and what cancels in the quantity. Beyond 12 units of e^-|z|'s own error, z times a rounding counts.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_errors(measured, activation, dtype):
    z, expected = exact(activation, dtype)
    found = measured[0][activation, dtype].double()
    for row, name in enumerate(QUANTITIES):
        wanted = expected[min(row, 1) if row < 3 else 2]
        error = (found[row] - wanted).abs()
        print(activation, dtype, name, float(error.max()), float((error / (wanted.abs() + 1e-30)).max()))
