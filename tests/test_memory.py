"""No kernel is handed memory that is not the velocity's: what does not fit is refused, before any of them runs.

`make sanitize` runs this file on an extension under AddressSanitizer, too.
"""

import copy
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import jkoflow
from jkoflow.ops import jko_loss, library, native
from jkoflow.ops.grid import Fixed
from oracles import random_velocity

pytestmark = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")

X = torch.linspace(-1, 1, 12).view(4, 3)


def velocity_to_change(**options):
    return random_velocity(3, (16, 12), dtype=torch.float32, **options)


# ---- Layers that do not fit, each with what the refusal must say


def replaced(index, *arguments, **options):
    def change(v):
        v.layers[index] = nn.Linear(*arguments, **options)

    return change


def layer_set(index, name, value):
    def change(v):
        layer = v.layers[index]
        delattr(layer, name)
        setattr(layer, name, nn.Parameter(value, requires_grad=value.is_floating_point()))

    return change


def smuggled(index, name, value):
    """Puts something between the parameters that nn.Module would refuse."""

    def change(v):
        v.layers[index]._parameters[name] = value

    return change


def attribute(name, value):
    return lambda v: setattr(v, name, value)


def data(index, name, value):
    def change(v):
        getattr(v.layers[index], name).data = value

    return change


def shrunk(v):
    v.layers[1].weight.untyped_storage().resize_(32)


def quantised(v):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer releases of torch deprecate them
        smuggled(1, "weight", torch.quantize_per_tensor(torch.zeros(12, 16), 0.1, 0, torch.qint8))(v)


def linear_replaced(*arguments, **options):
    return lambda v: setattr(v, "linear", nn.Linear(*arguments, **options))


MISFITS = {
    "no bias in the first layer": (replaced(0, 4, 16, bias=False), r"layers\[0\].bias .*\(16,\), got None"),
    "no bias in a hidden layer": (replaced(1, 16, 12, bias=False), r"layers\[1\].bias .*\(12,\), got None"),
    "no bias in the last layer": (replaced(2, 12, 3, bias=False), r"layers\[2\].bias .*\(3,\), got None"),
    "no bias in two layers": (
        lambda v: (replaced(1, 16, 12, bias=False)(v), replaced(2, 12, 3, bias=False)(v)),
        r"layers\[1\].bias .*got None",
    ),
    "no bias at all": (
        lambda v: [setattr(layer, "bias", None) for layer in v.layers],
        r"layers\[0\].bias .*\(16,\), got None",
    ),
    "bias deleted": (lambda v: delattr(v.layers[0], "bias"), r"layers\[0\].bias .*\(16,\), got None"),
    "hidden widths do not chain": (replaced(1, 8, 12), r"layers\[1\].weight .*\(12, 16\).*got shape \(12, 8\)"),
    "hidden widths too wide": (replaced(1, 64, 12), r"layers\[1\].weight .*\(12, 16\).*got shape \(12, 64\)"),
    "last layer of 2": (replaced(2, 12, 2), r"layers\[2\].weight .*\(3, 12\).*got shape \(2, 12\)"),
    "last layer of 5": (replaced(2, 12, 5), r"layers\[2\].weight .*\(3, 12\).*got shape \(5, 12\)"),
    "last layer of other inputs": (replaced(2, 7, 3), r"layers\[2\].weight .*\(3, 12\).*got shape \(3, 7\)"),
    "first layer too narrow": (replaced(0, 2, 16), r"layers\[0\].weight .*\(16, 4\).*got shape \(16, 2\)"),
    "first layer too wide": (replaced(0, 9, 16), r"layers\[0\].weight .*\(16, 4\).*got shape \(16, 9\)"),
    "bias too short": (layer_set(0, "bias", torch.zeros(3)), r"layers\[0\].bias .*\(16,\).*got shape \(3,\)"),
    "bias too long": (layer_set(1, "bias", torch.zeros(40)), r"layers\[1\].bias .*\(12,\).*got shape \(40,\)"),
    "bias of a number": (layer_set(1, "bias", torch.zeros(())), r"layers\[1\].bias .*\(12,\).*got shape \(\)"),
    "bias of two axes": (layer_set(1, "bias", torch.zeros(1, 12)), r"layers\[1\].bias .*\(12,\).*shape \(1, 12\)"),
    "weight of one axis": (layer_set(1, "weight", torch.zeros(192)), r"layers\[1\].weight .*got shape \(192,\)"),
    "weight of a number": (layer_set(0, "weight", torch.zeros(())), r"layers\[0\].weight .*got shape \(\)"),
    "weight of three axes": (layer_set(2, "weight", torch.zeros(3, 12, 1)), r"layers\[2\].weight .*\(3, 12, 1\)"),
    "weight without rows": (layer_set(1, "weight", torch.zeros(0, 16)), r"layers\[1\].weight .*got shape \(0, 16\)"),
    "weight without columns": (layer_set(1, "weight", torch.zeros(12, 0)), r"layers\[1\].weight .*shape \(12, 0\)"),
    "first weight without rows": (layer_set(0, "weight", torch.zeros(0, 4)), r"layers\[0\].weight .*shape \(0, 4\)"),
    "last weight without rows": (layer_set(2, "weight", torch.zeros(0, 12)), r"layers\[2\].weight .*shape \(0, 12\)"),
    "one layer float64": (lambda v: v.layers[1].double(), r"layers\[1\].weight .*float32.*got .*float64"),
    "first layer float64": (lambda v: v.layers[0].double(), r"layers\[0\].weight .*float32.*got .*float64"),
    "last layer float64": (lambda v: v.layers[2].double(), r"layers\[2\].weight .*float32.*got .*float64"),
    "one layer float16": (lambda v: v.layers[1].half(), r"layers\[1\].weight .*float32.*got .*float16"),
    "one bias bfloat16": (
        layer_set(1, "bias", torch.zeros(12, dtype=torch.bfloat16)),
        r"layers\[1\].bias .*float32.*got .*bfloat16",
    ),
    "integer weight": (
        layer_set(1, "weight", torch.zeros(12, 16, dtype=torch.int32)),
        r"layers\[1\].weight .*float32.*got .*int32",
    ),
    "complex weight": (
        smuggled(1, "weight", torch.zeros(12, 16, dtype=torch.complex64)),
        r"layers\[1\].weight .*float32.*got .*complex64",
    ),
    "quantised weight": (
        quantised,
        r"layers\[1\].weight .*float32.*got .*qint8",
    ),
    "sparse weight": (
        smuggled(1, "weight", torch.zeros(12, 16).to_sparse()),
        r"layers\[1\].weight .*dense.*got .*torch.sparse_coo",
    ),
    "sparse bias": (smuggled(1, "bias", torch.zeros(12).to_sparse()), r"layers\[1\].bias .*dense.*sparse_coo"),
    "layer on meta": (lambda v: v.layers[1].to("meta"), r"layers\[1\].weight .*on cpu.*got .*on meta"),
    "bias on meta": (layer_set(2, "bias", torch.zeros(3, device="meta")), r"layers\[2\].bias .*on cpu.*on meta"),
    "weight that is no tensor": (
        smuggled(1, "weight", [[0.0] * 16] * 12),
        r"layers\[1\].weight .*\(12, 16\), got a list",
    ),
    "bias that is no tensor": (smuggled(1, "bias", 0.0), r"layers\[1\].bias .*\(12,\), got a float"),
    "dim less": (attribute("dim", 2), "velocity.dim must stay .* built with, 3, got 2"),
    "dim more": (attribute("dim", 4), "velocity.dim must stay .* built with, 3, got 4"),
    "dim no integer": (attribute("dim", 3.0), "velocity.dim must stay .* built with, 3, got 3.0"),
    "dim None": (attribute("dim", None), "velocity.dim must stay .* built with, 3, got None"),
    "no time": (attribute("time", False), "velocity.time must stay .* built with, True, got False"),
    "time no bool": (attribute("time", 1), "velocity.time must stay .* built with, True, got 1"),
    "context": (attribute("context_dim", 2), "velocity.context_dim must stay .* built with, 0, got 2"),
    "context below zero": (attribute("context_dim", -1), "velocity.context_dim must stay .* with, 0, got -1"),
    "time made context": (
        lambda v: (attribute("time", False)(v), attribute("context_dim", 1)(v)),
        "velocity.time must stay .* built with, True, got False",
    ),
    "activation by name": (attribute("activation", "tanh"), "velocity.activation must be an Activation, got 'tanh'"),
    "appended": (
        lambda v: v.layers.append(nn.Linear(16, 16)),
        r"layers\[2\].weight .*got|layers\[3\].weight .*\(16, 16\)",
    ),
    "inserted": (lambda v: v.layers.insert(1, nn.Linear(7, 7)), r"layers\[1\].weight .*got shape \(7, 7\)"),
    "removed": (lambda v: v.layers.pop(-1), r"layers\[1\].weight .*\(3, 16\).*got shape \(12, 16\)"),
    "emptied": (lambda v: [v.layers.pop(-1) for _ in range(3)], "velocity.layers must hold 2 layers or more, got 0"),
    "one left": (lambda v: [v.layers.pop(-1) for _ in range(2)], "velocity.layers must hold 2 layers or more, got 1"),
    "no Linear": (
        lambda v: v.layers.__setitem__(1, nn.Identity()),
        r"layers\[1\] must be a torch.nn.Linear, got a Identity",
    ),
    "a Bilinear": (
        lambda v: v.layers.__setitem__(0, nn.Bilinear(4, 4, 16)),
        r"layers\[0\] must be a torch.nn.Linear, got a Bilinear",
    ),
    "linear term of another size": (linear_replaced(2, 2, bias=False), r"velocity.linear.weight .*\(3, 3\).*\(2, 2\)"),
    "linear term not square": (linear_replaced(3, 2, bias=False), r"velocity.linear.weight .*\(3, 3\).*\(2, 3\)"),
    "linear term with a bias": (linear_replaced(3, 3), "velocity.linear must have no bias"),
    "linear term float64": (
        linear_replaced(3, 3, bias=False, dtype=torch.float64),
        "velocity.linear.weight .*float32.*got .*float64",
    ),
    "linear term on meta": (
        linear_replaced(3, 3, bias=False, device="meta"),
        "velocity.linear.weight .*on cpu.*got .*on meta",
    ),
    "linear term no Linear": (
        attribute("linear", nn.Identity()),
        "velocity.linear must be a torch.nn.Linear, got a Id",
    ),
    "weight swapped for a smaller one": (
        data(1, "weight", torch.zeros(2, 2)),
        r"layers\[1\].weight .*got shape \(2, 2\)",
    ),
    "memory taken away": (shrunk, r"layers\[1\].weight must lie within its memory, .* resized to 32 bytes"),
}


def refused(message):
    return pytest.raises(ValueError, match=message)


TASKS = {
    "forward": lambda v, x: jkoflow.integrate(v, x),
    "forward, no_grad": lambda v, x: torch.no_grad()(jkoflow.integrate)(v, x),
    "forward, inference": lambda v, x: torch.inference_mode()(jkoflow.integrate)(v, x),
    "forward, by name": lambda v, x: jkoflow.integrate(v, x, backend="cpu"),
    "backward": lambda v, x: jkoflow.integrate(v, x.clone().requires_grad_()).x.sum().backward(),
    "jko_loss": lambda v, x: jko_loss(v, x, 1.0).total.backward(),
    "jko_loss, no_grad": lambda v, x: torch.no_grad()(jko_loss)(v, x, 1.0),
    "hutchinson": lambda v, x: jkoflow.integrate(v, x, divergence="hutchinson", noise=x),
    "block": lambda v, x: jkoflow.Block(v)(x),
    "discrete": lambda v, x: jkoflow.Block(v)(x.detach(), discrete=True),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_refused_everywhere(name):
    change, message = MISFITS[name]
    velocity = velocity_to_change()
    change(velocity)
    for task, run in TASKS.items():
        if task == "discrete" and name in ("memory taken away", "quantised weight"):  # a copy is none, or no copy
            continue
        with refused(message):
            run(velocity, X)


@pytest.mark.parametrize("name", [name for name in MISFITS if name != "memory taken away"])  # PyTorch does not look
def test_the_reference_is_not_handed_it_either(name):
    change, message = MISFITS[name]
    velocity = velocity_to_change()
    change(velocity)
    with refused(message):
        jkoflow.integrate(velocity, X, backend="reference")


@pytest.mark.parametrize("name", ["no bias in the last layer", "hidden widths do not chain", "layer on meta"])
def test_compiled_code_refuses_it(name):
    change, message = MISFITS[name]
    velocity = velocity_to_change()
    compiled = torch.compile(lambda x: jkoflow.integrate(velocity, x).x, backend="aot_eager")
    compiled(X)
    change(velocity)
    with refused(message):
        compiled(X)


@pytest.mark.parametrize("name", ["no bias in the last layer", "hidden widths do not chain", "dim less"])
def test_function_transforms_refuse_it(name):
    change, message = MISFITS[name]
    velocity = velocity_to_change()
    change(velocity)
    for transform in (torch.func.grad, torch.func.vmap):
        with refused(message):
            transform(lambda x: jkoflow.integrate(velocity, x.view(-1, 3)).x.sum())(X)


def test_what_is_unusual_and_fits_is_integrated():
    changes = {
        "inserted": lambda v: v.layers.insert(1, nn.Linear(16, 16)),
        "transposed": lambda v: setattr(v.layers[1].weight, "data", v.layers[1].weight.data.T.contiguous().T),
        "a view": lambda v: setattr(v.layers[1].weight, "data", torch.randn(20, 30)[3:15, 7:23]),
        "tied": lambda v: (v.layers.insert(1, nn.Linear(16, 16)), v.layers.insert(1, v.layers[1])),
        "renamed": lambda v: v.layers.__setitem__(1, type("Mine", (nn.Linear,), {})(16, 12)),
        "on all of it": lambda v: v.to(torch.float32),
        "copied": lambda v: v.__setstate__(copy.deepcopy(v).__dict__),
        "functional": lambda v: v.layers[1]._parameters.update(weight=v.layers[1].weight * 2),
        "without a linear term": lambda v: setattr(v, "linear", None),
    }
    for name, change in changes.items():
        velocity = velocity_to_change(linear=True)
        change(velocity)
        got = jkoflow.integrate(velocity, X, num_steps=1, method="euler", backend="cpu")
        torch.testing.assert_close(
            got.x, X + velocity(X), rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


# ---- Context and noise


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (X[:, :1], r"context must have shape \(4, 2\) .*, got \(4, 1\)"),
        (X, r"context must have shape \(4, 2\) .*, got \(4, 3\)"),
        (X[:3, :2], r"context must have shape \(4, 2\) .*, got \(3, 2\)"),
        (X[:, :2].double(), r"context must match x's dtype and device .*float64"),
        (X[:, :2].half(), r"context must match x's dtype and device .*float16"),
        (X[:, :2].to("meta"), r"context must match x's dtype and device .*meta"),
        (X[:, :2].to_sparse(), r"context must be a dense tensor, got torch.sparse_coo"),
        ([[0.0, 0.0]] * 4, r"context must be a tensor of shape \(B, c\) or None, got list"),
    ],
)
def test_context_that_does_not_fit(context, message):
    velocity = velocity_to_change(context_dim=2)
    for call in (jkoflow.integrate, lambda *given, **named: jko_loss(*given, 1.0, **named)):
        with refused(message):
            call(velocity, X, context=context)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (X[:, :2], r"noise must have shape \(4, 3\) .*, got \(4, 2\)"),
        (X[:2], r"noise must have shape \(4, 3\) .*, got \(2, 3\)"),
        (X.double(), "noise must have .*float32 as x, got .*float64"),
        (X.to("meta"), "noise must have .*cpu .*, got .*meta"),
        (X.to_sparse(), "noise must be a dense tensor, got torch.sparse_coo"),
        ([[0.0] * 3] * 4, r"noise must be a tensor of shape \(4, 3\), got list"),
    ],
)
def test_noise_that_does_not_fit(noise, message):
    for call in (jkoflow.integrate, lambda *given, **named: jko_loss(*given, 1.0, **named)):
        with refused(message):
            call(velocity_to_change(), X, divergence="hutchinson", noise=noise)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.to_sparse(), "x must be a dense tensor, got torch.sparse_coo"),
        (X.tolist(), r"x must be a tensor of shape \(B, d\), got list"),
        (X.to("meta"), "x must match the velocity's dtype and device"),
        (X.to(torch.complex64), "x must be a floating-point tensor"),
    ],
)
def test_x_that_does_not_fit(x, message):
    with refused(message):
        jkoflow.integrate(velocity_to_change(), x)


# ---- Between the forward and the backward pass, where autograd's version counter does not see it


CHANGES_UNSEEN = {
    "smaller weight": (data(1, "weight", torch.zeros(2, 2)), r"layers\[1\].weight must hold 192 numbers"),
    "smaller first weight": (data(0, "weight", torch.zeros(2, 2)), r"layers\[0\].weight must hold 64 numbers"),
    "smaller bias": (data(1, "bias", torch.zeros(2)), r"layers\[1\].weight must hold 32 numbers"),
    "empty bias": (data(0, "bias", torch.zeros(0)), "hidden layers must be at least 1 wide"),
    "smaller last bias": (data(2, "bias", torch.zeros(1)), r"layers\[2\].bias must hold 3 numbers"),
    "a number": (data(1, "weight", torch.zeros(())), r"layers\[1\].weight must hold 192 numbers"),
    "float64": (data(1, "weight", torch.zeros(12, 16, dtype=torch.float64)), r"layers\[1\].weight must .*float32"),
    "memory taken away": (shrunk, r"layers\[1\].weight must lie within its memory"),
    "all memory taken away": (
        lambda v: v.layers[2].weight.untyped_storage().resize_(0),
        r"layers\[2\].weight must lie within its memory",
    ),
    "linear term": (lambda v: setattr(v.linear.weight, "data", torch.zeros(1)), "linear.weight must hold 9 numbers"),
}


@pytest.mark.parametrize("name", CHANGES_UNSEEN)
def test_what_changes_before_the_backward_pass_is_refused(name):
    change, message = CHANGES_UNSEEN[name]
    velocity = velocity_to_change(linear=True)
    result = jkoflow.integrate(velocity, X.clone().requires_grad_())
    change(velocity)
    with refused(message):
        (result.x.sum() + result.logdet.sum()).backward()


def test_the_gradient_of_the_loss_is_there_before_anything_can_change():
    velocity = velocity_to_change(linear=True)
    loss = jko_loss(velocity, X.clone().requires_grad_(), 1.0)
    shrunk(velocity)
    loss.total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in velocity.parameters())


def test_a_path_that_is_resized_is_refused():
    velocity = velocity_to_change()
    result = jkoflow.integrate(velocity, X.clone().requires_grad_())
    result.path.data.untyped_storage().resize_(16)
    with pytest.raises((ValueError, RuntimeError), match=r"must lie within its memory|out of bounds for storage"):
        result.x.sum().backward()


# ---- The operators themselves


def operator_arguments(divergence="exact", context_dim=0, **settings):
    """The tensors of one call by name, x first, and its settings as a text."""
    velocity = velocity_to_change(context_dim=context_dim, linear=True).requires_grad_(False)
    field = velocity.field()
    layers = range(1, native.MAX_HIDDEN_LAYERS + 2)
    names = [*(f"{kind}{layer}" for layer in layers for kind in "wb"), "linear", "modulation"]
    tensors = {"x": X.clone(), "context": torch.zeros(4, context_dim) if context_dim else None}
    tensors |= dict(zip(names, library.slots_of(field), strict=True))
    tensors["noise"] = X.clone() if divergence == "hutchinson" else None
    described = {"grid": Fixed(3), "method": "rk4", "precision": "auto", "layers": "plain"} | settings
    given = native.Settings(divergence, True, "tanh", 0.0, 1.0, *described.values())
    return tensors, library.encode(given)


def run_operator(operator, tensors, text, **changes):
    tensors = tensors | changes
    if operator == "integrate":
        return torch.ops.jkoflow.integrate(*tensors.values(), text, True)
    if operator == "jko_loss":
        return torch.ops.jkoflow.jko_loss(*tensors.values(), text, 0.5, True, True)
    x = tensors.pop("x")
    path = tensors.pop("path", x.unsqueeze(0).repeat(4, 1, 1) if x.dim() == 2 else x)
    bars = [tensors.pop(name, None) for name in ("x_bar", "logdet_bar", "path_bar")]
    bars = [torch.ones_like(x), torch.ones(4), None] if bars == [None] * 3 else bars
    return torch.ops.jkoflow.integrate_backward(path, *tensors.values(), text, *bars, True)


OPERATORS = ("integrate", "integrate_backward", "jko_loss")
WRONG_SLOTS = {
    "x of other columns": {"x": torch.zeros(4, 2)},
    "x of more columns": {"x": torch.zeros(4, 5)},
    "x without columns": {"x": torch.zeros(4, 0)},
    "x float64": {"x": X.double()},
    "x float16": {"x": X.half()},
    "x integer": {"x": X.int()},
    "no third layer's bias": {"b3": None},
    "no third layer's weight": {"w3": None},
    "no third layer": {"w3": None, "b3": None},
    "a layer behind a gap": {"w5": torch.zeros(3, 7), "b5": torch.zeros(3)},
    "weights exchanged": {"w1": torch.zeros(12, 16), "w2": torch.zeros(16, 4)},
    "first weight small": {"w1": torch.zeros(16, 2)},
    "first weight empty": {"w1": torch.zeros(0, 4)},
    "bias in the place of a weight": {"w2": torch.zeros(12)},
    "bias empty": {"b1": torch.zeros(0)},
    "bias long": {"b2": torch.zeros(100)},
    "last bias short": {"b3": torch.zeros(1)},
    "weight float64": {"w2": torch.zeros(12, 16, dtype=torch.float64)},
    "weight of as many bytes": {"w2": torch.zeros(12, 16, dtype=torch.int32)},
    "linear term small": {"linear": torch.zeros(1)},
    "modulation of plain layers": {"modulation": torch.zeros(4)},
    "linear term float64": {"linear": torch.zeros(3, 3, dtype=torch.float64)},
    "context that layer 1 does not read": {"context": torch.zeros(4, 1)},
    "context of other rows": {"context": torch.zeros(1, 1)},
    "noise without hutchinson": {"noise": X},
}


@pytest.mark.parametrize("name", WRONG_SLOTS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_refuse_what_does_not_fit(operator, name):
    tensors, text = operator_arguments()
    run_operator(operator, tensors, text)
    with pytest.raises((ValueError, RuntimeError, TypeError, IndexError)):
        run_operator(operator, tensors, text, **WRONG_SLOTS[name])


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_refuse_a_probe_or_context_that_does_not_fit(operator):
    tensors, text = operator_arguments("hutchinson", context_dim=2)
    run_operator(operator, tensors, text)
    for name, value in (
        ("noise", None),
        ("noise", torch.zeros(1, 3)),
        ("noise", X.double()),
        ("context", None),
        ("context", torch.zeros(4, 1)),
        ("context", torch.zeros(1, 2)),
        ("context", torch.zeros(4)),
        ("context", torch.zeros(4, 2).double()),
    ):
        with pytest.raises((ValueError, IndexError)):
            run_operator(operator, tensors, text, **{name: value})


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_refuse_modulations_that_do_not_fit(operator):
    word, size = "plain:sigmoid:1:2:7:5", 2 + 5 * (16 + 12 + 3 + 16 + 3) + 16 + 12 + 3
    tensors, text = operator_arguments(layers=word)
    tensors |= {"w1": torch.zeros(16, 3), "modulation": torch.zeros(size)}
    run_operator(operator, tensors, text)
    for value in (None, torch.zeros(size - 1), torch.zeros(size + 1), torch.zeros(0), torch.zeros(size).double()):
        with refused("modulation"):
            run_operator(operator, tensors, text, modulation=value)
    with refused(r"layers\[0\].weight must hold"):
        run_operator(operator, tensors, text, w1=torch.zeros(16, 4))
    for other in ("plain", "plain:sigmoid:1:2:7:7", "plain:sigmoid:0:2:7:5", "plain:sigmoid:1:-1:7:5"):
        with refused("modulation"):
            run_operator(operator, tensors, operator_arguments(layers=other)[1])
    with refused(r"residual layers must have one width, got \(16, 12\)"):
        run_operator(operator, operator_arguments()[0], operator_arguments(layers="residual")[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"path": torch.zeros(0, 4, 3)},
        {"path": torch.zeros(1, 4, 3)},
        {"path": torch.zeros(5, 4, 3)},
        {"path": torch.zeros(4, 3)},
        {"path": torch.zeros(4, 4, 3, dtype=torch.float64)},
        {"x_bar": torch.zeros(1, 3)},
        {"x_bar": torch.zeros(4, 3, dtype=torch.float64)},
        {"x_bar": torch.zeros(())},
        {"logdet_bar": torch.zeros(1)},
        {"logdet_bar": torch.zeros(0)},
        {"path_bar": torch.zeros(4, 3)},
        {"path_bar": torch.zeros(3, 4, 3)},
    ],
)
def test_the_adjoint_refuses_a_path_or_gradients_that_do_not_fit(changes):
    tensors, text = operator_arguments()
    with refused("path must have shape|must hold|float32"):
        run_operator("integrate_backward", tensors, text, **changes)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("steps", [0, -1, -(2**31), 2**40])
def test_operators_refuse_numbers_of_steps_that_there_are_not(operator, steps):
    tensors, text = operator_arguments(grid=Fixed(steps))
    with pytest.raises((ValueError, TypeError)):
        run_operator(operator, tensors, text)


def test_operators_refuse_split_products_of_float64():
    tensors, text = operator_arguments(precision="bf16x3")
    doubled = {name: tensor if tensor is None else tensor.double() for name, tensor in tensors.items()}
    for operator in OPERATORS:
        with refused("x must be torch.float32"):
            run_operator(operator, doubled, text)


# ---- The sanitizer

UNCHECKED = """
import torch, jkoflow
from jkoflow.ops import checks, native
checks.check_field = lambda field, x: None
native.given = lambda name, tensor, *expected: 0 if tensor is None else tensor.data_ptr()
velocity = jkoflow.MLPVelocity(3, (16, 12))
velocity.layers[1] = torch.nn.Linear(8, 12)
jkoflow.integrate(velocity, torch.zeros(4, 3))
"""


@pytest.mark.skipif("libasan" not in os.environ.get("LD_PRELOAD", ""), reason="make sanitize runs this")
def test_the_sanitizer_sees_what_the_checks_keep_from_the_kernels():
    expect_report(UNCHECKED, "AddressSanitizer: heap-buffer-overflow")


def expect_report(program, report):
    """A program reads memory that is not the velocity's, and the sanitizer says so."""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert report in done.stderr
    assert "READ of size" in done.stderr
