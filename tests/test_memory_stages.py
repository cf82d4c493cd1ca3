"""The kernels in which every stage has a network of its own read nothing that is not the call's: networks, steps, path.

`make sanitize` runs this file on an extension under AddressSanitizer, too.
"""

import os

import pytest
import torch

from jkoflow import HyperMLP
from jkoflow.ops import library, native
from jkoflow.ops.grid import Adaptive, Fixed
from test_memory import X, expect_report, refused

pytestmark = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")

OUTPUT_TIMES = torch.tensor([0.25, 0.5], dtype=torch.float64)
OPERATORS = ("integrate_stages", "stages_backward")
STEPS = 3


def arguments_of(operator, divergence="exact", context_dim=0):
    """The arguments of an operator by name and in their order; the adjoint is that of adaptive steps with outputs."""
    adaptive = operator == "stages_backward"
    velocity = HyperMLP(3, (16, 12), context_dim=context_dim).requires_grad_(False)
    stages = 4 if not adaptive else 7
    field = velocity.fields_at(torch.linspace(0, 1, STEPS * stages))
    layers = range(1, native.MAX_HIDDEN_LAYERS + 2)
    names = [*(f"{kind}{layer}" for layer in layers for kind in "wb"), "linear", "modulation"]
    given = {"x": X.clone(), "context": torch.zeros(4, context_dim) if context_dim else None}
    given |= dict(
        zip(names, (slot if slot is None else slot.contiguous() for slot in library.slots_of(field)), strict=True)
    )
    given["noise"] = X.clone() if divergence == "hutchinson" else None
    grid, method = (Adaptive(), "dopri5") if adaptive else (Fixed(STEPS), "rk4")
    given["settings"] = library.encode(native.Settings(divergence, False, "tanh", 0.0, 1.0, grid, method))
    if not adaptive:
        return given | {"keep_path": True}
    steps = torch.tensor([[0.0, 0.2], [0.2, 0.4], [0.6, 0.4]], dtype=torch.float64)
    given |= {"steps": steps, "output_times": OUTPUT_TIMES.clone(), "path": X.repeat(STEPS, 1, 1)}
    given |= {"x_bar": torch.ones(4, 3), "logdet_bar": torch.ones(4), "path_bar": torch.ones(STEPS + 1, 4, 3)}
    return given | {"x_outputs_bar": torch.ones(2, 4, 3), "logdet_outputs_bar": torch.ones(2, 4), "wanted": True}


def run(operator, arguments, **changes):
    return getattr(torch.ops.jkoflow, operator)(*(arguments | changes).values())


def resized(tensor, size):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(size)
    return tensor


def other(name, make):
    """Replaces an argument by what is made of it."""
    return lambda arguments: {name: make(arguments[name])}


WRONG = {
    "x of other columns": other("x", lambda x: torch.zeros(4, 2)),
    "x of more rows": other("x", lambda x: torch.zeros(5, 3).double()),
    "x float64": other("x", torch.Tensor.double),
    "fewer networks": other("w1", lambda w: w[:-1]),
    "more networks": other("w1", lambda w: torch.cat([w, w])),
    "no network": other("w1", lambda w: w[:0]),
    "one network": other("w1", lambda w: w[0]),
    "fewer biases": other("b2", lambda b: b[1:]),
    "one bias": other("b1", lambda b: b[0]),
    "a last layer of two rows": other("w3", lambda w: w[:, :2]),
    "a hidden layer of fewer columns": other("w2", lambda w: w[:, :, :-1]),
    "a bias of fewer": other("b3", lambda b: b[:, :2]),
    "biases of three axes": other("b1", lambda b: b.unsqueeze(2)),
    "weights as other numbers": other("w2", torch.Tensor.double),
    "memory of weights taken away": other("w2", lambda w: resized(w, 64)),
    "memory of biases taken away": other("b3", lambda b: resized(b, 4)),
    "no third layer": lambda arguments: {"w3": None, "b3": None},
    "a linear term": lambda arguments: {"linear": torch.zeros(3, 3)},
    "a modulation": lambda arguments: {"modulation": torch.zeros(8)},
    "a context that is not read": lambda arguments: {"context": torch.zeros(4, 2)},
    "a probe that is not asked for": lambda arguments: {"noise": X.clone()},
    "settings that read t": other("settings", lambda text: text.replace("steady", "time")),
    "settings of other layers": other("settings", lambda text: text.replace("rk4", "euler").replace("dopri5", "bosh3")),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_of_stages_refuse_what_does_not_fit(operator, name):
    arguments = arguments_of(operator)
    run(operator, arguments)
    with pytest.raises((ValueError, RuntimeError, TypeError, IndexError)):
        run(operator, arguments, **WRONG[name](arguments))


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_of_stages_refuse_a_probe_or_context_that_does_not_fit(operator):
    arguments = arguments_of(operator, "hutchinson", 2)
    run(operator, arguments)
    for name, value in (
        ("noise", None),
        ("noise", torch.zeros(1, 3)),
        ("context", None),
        ("context", torch.zeros(4, 1)),
        ("context", torch.zeros(4, 2).double()),
    ):
        with pytest.raises((ValueError, IndexError)):
            run(operator, arguments, **{name: value})


def test_equal_steps_refuse_adaptive_ones():
    text = library.encode(native.Settings("exact", False, "tanh", 0.0, 1.0, Adaptive(), "dopri5"))
    with refused("grid must have equal steps"):
        run("integrate_stages", arguments_of("integrate_stages"), settings=text)


DAMAGE = {
    "fewer steps": other("steps", lambda steps: steps[:-1]),
    "more steps": other("steps", lambda steps: torch.cat([steps, steps])),
    "steps of three numbers": other("steps", lambda steps: torch.zeros(2, 3, dtype=torch.float64)),
    "steps of one axis": other("steps", lambda steps: steps[0]),
    "steps as other numbers": other("steps", torch.Tensor.float),
    "steps taken away": other("steps", lambda steps: resized(steps, 16)),
    "no numbers as steps": other("steps", lambda steps: steps * float("nan")),
    "steps that are zero": other("steps", torch.zeros_like),
    "fewer positions": other("path", lambda path: path[:-1]),
    "positions of other columns": other("path", lambda path: path[:, :, :-1]),
    "positions as other numbers": other("path", torch.Tensor.double),
    "positions taken away": other("path", lambda path: resized(path, 40)),
    "fewer output times": other("output_times", lambda times: times[:1]),
    "no output times": other("output_times", lambda times: times[:0]),
    "output times taken away": other("output_times", lambda times: resized(times, 0)),
    "output times as other numbers": other("output_times", torch.Tensor.float),
    "a gradient of other rows": other("x_bar", lambda bar: bar[:1]),
    "a gradient of other numbers": other("logdet_bar", torch.Tensor.double),
    "a gradient of fewer steps": other("path_bar", lambda bar: bar[:-1]),
    "a gradient of other outputs": other("x_outputs_bar", lambda bar: bar[:1]),
    "a gradient of more outputs": other("logdet_outputs_bar", lambda bar: bar.repeat(2, 1)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_the_adjoint_of_stages_refuses_damaged_records(name):
    arguments = arguments_of("stages_backward")
    with refused("must"):
        run("stages_backward", arguments, **DAMAGE[name](arguments))


def test_bits_that_flip_in_steps_are_refused_or_harmless():
    arguments = arguments_of("stages_backward")
    generator = torch.Generator().manual_seed(1)
    outcomes = set()
    for _ in range(200):
        steps = arguments["steps"].clone()
        flipped = steps.view(torch.int64).view(-1)
        at, bit = (int(torch.randint(most, (), generator=generator)) for most in (len(flipped), 64))
        flipped[at] ^= (1 << bit) - (1 << 64 if bit == 63 else 0)
        try:
            assert run("stages_backward", arguments, steps=steps)[0].shape == X.shape
            outcomes.add("harmless")
        except ValueError as refusal:
            outcomes.add(" ".join(str(refusal).split()[:2]))
    assert outcomes == {"harmless", "steps must"}


@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
def test_opcheck(divergence):
    arguments = arguments_of("integrate_stages", divergence, 2)
    leaves = {name: arguments[name].clone().requires_grad_() for name in ("x", "context", "w1", "b1", "w3")}
    torch.library.opcheck(torch.ops.jkoflow.integrate_stages.default, tuple((arguments | leaves).values()))
    arguments = arguments_of("stages_backward", divergence, 2)
    torch.library.opcheck(torch.ops.jkoflow.stages_backward.default, tuple(arguments.values()))


def test_opcheck_of_steps_that_have_been_taken():
    arguments = arguments_of("stages_backward", "exact", 2)
    names = list(arguments)[: list(arguments).index("path") + 1]
    results = X.clone(), torch.zeros(4), torch.zeros(2, 4, 3), torch.zeros(2, 4)
    leaves = {name: arguments[name].clone().requires_grad_() for name in ("x", "context", "w2", "b3")}
    given = [(arguments | leaves)[name] for name in names]
    torch.library.opcheck(torch.ops.jkoflow.recorded_stages.default, (*given, *results))


UNCHECKED = """
import torch, jkoflow
from jkoflow.ops import native_stages
native_stages.given = lambda name, tensor, *rest: 0 if tensor is None else tensor.data_ptr()
x = torch.zeros(4, 3, requires_grad=True)
result = jkoflow.integrate(jkoflow.HyperMLP(3, (16, 12)), x, method="dopri5")
saved = result.x.grad_fn.saved_tensors
saved[-1].data.untyped_storage().resize_(4)  # the path
result.x.sum().backward()
"""


@pytest.mark.skipif("libasan" not in os.environ.get("LD_PRELOAD", ""), reason="make sanitize runs this")
def test_the_sanitizer_sees_what_the_checks_keep_from_the_kernels():
    expect_report(UNCHECKED, "AddressSanitizer: heap")
