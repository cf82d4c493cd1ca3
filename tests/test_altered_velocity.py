"""A velocity that means something else than its parameters say runs through its own forward, and that is told."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

import jkoflow
from jkoflow import Block, FallbackWarning, MLPVelocity
from jkoflow.activation import Activation, parse_activation
from jkoflow.ops import UnsupportedError, jko_loss, native
from oracles import autograd_divergence, random_velocity

pytestmark = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")

X = torch.linspace(-1, 1, 12).view(4, 3)


def velocity_to_change():
    return random_velocity(3, (16, 12), dtype=torch.float32, linear=True)


def halve(module, inputs, output):
    return output * 0.5


def double(module, inputs):
    return (inputs[0] * 2, *inputs[1:])


class LoRA(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 0.1 * x.sum(-1, keepdim=True)


class Scaled(nn.Linear):
    """Computes its weight at every look."""

    @property
    def weight(self):
        return 2 * self._parameters["weight"]


class LooksUp(nn.Linear):
    def __getattr__(self, name):
        value = super().__getattr__(name)
        return value * 2 if name == "weight" else value


class Called(nn.Linear):
    def __call__(self, x):
        return super().__call__(x) * 3


def replaced(kind, index=1):
    def change(v):
        v.layers[index].__class__ = kind

    return change


def deprecated(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(*arguments)


def kept_up_to_date(v):
    raw = v.layers[1].weight.detach().clone().requires_grad_()
    del v.layers[1].weight
    v.layers[1].weight = raw * 2


def shadowed(v):
    v.layers[1].__dict__["weight"] = torch.ones(12, 16)


def as_buffer(v):
    bias = v.layers[1].bias.detach()
    del v.layers[1].bias
    v.layers[1].register_buffer("bias", bias)


def own_forward(module):
    plain = module.forward
    module.forward = lambda *given: 0.5 * plain(*given)


ALTERED = {
    "forward hook on a layer": (lambda v: v.layers[0].register_forward_hook(halve), r"layers\[0\] has a forward hook"),
    "forward pre-hook on a layer": (
        lambda v: v.layers[2].register_forward_pre_hook(double),
        r"layers\[2\] has a forward pre-hook",
    ),
    "forward hook on the linear term": (
        lambda v: v.linear.register_forward_hook(halve),
        "velocity.linear has a forward hook",
    ),
    "forward hook on the velocity": (lambda v: v.register_forward_hook(halve), "the velocity has a forward hook"),
    "forward pre-hook on the velocity": (
        lambda v: v.register_forward_pre_hook(double),
        "the velocity has a forward pre-hook",
    ),
    "hook with keywords": (
        lambda v: v.layers[1].register_forward_hook(lambda m, i, k, o: o * 2, with_kwargs=True),
        r"layers\[1\] has a forward hook",
    ),
    "backward hook on a layer": (
        lambda v: v.layers[1].register_full_backward_hook(lambda m, i, o: None),
        r"layers\[1\] has a backward hook",
    ),
    "backward pre-hook on the velocity": (
        lambda v: v.register_full_backward_pre_hook(lambda m, o: None),
        "the velocity has a backward pre-hook",
    ),
    "hook on the list": (lambda v: v.layers.register_forward_hook(halve), "velocity.layers has a forward hook"),
    "LoRA": (replaced(LoRA), r"layers\[1\] is a LoRA, which has a forward of its own"),
    "LoRA in the first layer": (replaced(LoRA, 0), r"layers\[0\] is a LoRA"),
    "computed weight": (replaced(Scaled), r"layers\[1\] is a Scaled, which computes its weight"),
    "own look-up": (replaced(LooksUp), r"layers\[1\] is a LooksUp, which looks its attributes up"),
    "own call": (replaced(Called), r"layers\[1\] is a Called, which has a __call__ of its own"),
    "forward of a layer": (lambda v: own_forward(v.layers[1]), r"layers\[1\] has a forward of its own"),
    "forward of the velocity": (own_forward, "the velocity has a forward of its own"),
    "prune": (lambda v: prune.l1_unstructured(v.layers[1], "weight", 0.5), r"layers\[1\] has a forward pre-hook"),
    "weight_norm of old": (
        lambda v: deprecated(nn.utils.weight_norm, v.layers[1]),
        r"layers\[1\] has a forward pre-hook",
    ),
    "spectral_norm of old": (
        lambda v: deprecated(nn.utils.spectral_norm, v.layers[1].eval()),
        r"layers\[1\] has a forward pre-hook",
    ),
    "a weight that is computed elsewhere": (kept_up_to_date, r"layers\[1\] has a weight that is no parameter"),
    "a weight before the parameter": (shadowed, r"layers\[1\] has a weight that is no parameter"),
    "a buffer": (as_buffer, r"layers\[1\] has a bias that is no parameter"),
    "another list": (lambda v: setattr(v, "layers", nn.Sequential(*v.layers)), "velocity.layers is no ModuleList"),
    "linear term that is no module": (
        lambda v: (delattr(v, "linear"), setattr(v, "linear", lambda x: 2 * x)),
        "velocity.linear is no module",
    ),
}


@pytest.mark.parametrize("name", ALTERED)
def test_it_runs_through_its_own_forward_and_says_why(name):
    change, reason = ALTERED[name]
    velocity = velocity_to_change()
    change(velocity)
    # as if it had been updated since: what is computed at a call must not be what was computed before
    with torch.no_grad():
        for parameter in velocity.parameters():
            parameter.mul_(1.1)
    if name == "a weight that is computed elsewhere":
        velocity.requires_grad_(False)
    with pytest.warns(FallbackWarning, match=reason):
        got = jkoflow.integrate(velocity, X, num_steps=1, method="euler")
    torch.testing.assert_close(got.x, X + velocity(X))
    torch.testing.assert_close(got.logdet, autograd_divergence(velocity, X))
    assert velocity.field() is None
    with pytest.raises(UnsupportedError, match="backend 'cpu' cannot run this: .*" + reason) as refusal:
        jkoflow.integrate(velocity, X, backend="cpu")
    assert refusal.value.reason == velocity.unfused()
    jko_loss(velocity, X, 1.0)
    block = Block(velocity, num_steps=1, method="euler")
    torch.testing.assert_close(block(X)[0], X + velocity(X))
    torch.testing.assert_close(block(X, discrete=True)[0], (X + velocity(X)).detach())


@pytest.mark.parametrize("name", ["forward hook on a layer", "weight_norm of old", "LoRA", "own look-up"])
def test_gradients_are_those_of_its_own_forward(name):
    change, _ = ALTERED[name]
    velocity = velocity_to_change()
    change(velocity)
    parameters = list(velocity.parameters())
    with pytest.warns(FallbackWarning):
        got = jkoflow.integrate(velocity, X, num_steps=1, method="euler")
    weights = torch.arange(12.0).view(4, 3)
    gradients = torch.autograd.grad((got.x * weights).sum(), parameters, allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad((velocity(X) * weights).sum(), parameters)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_global_hooks():
    velocity = velocity_to_change()
    handle = module_hooks.register_module_forward_hook(lambda m, i, o: o * 0.5 if isinstance(m, nn.Linear) else None)
    try:
        with pytest.warns(FallbackWarning, match="a global module hook is registered"):
            got = jkoflow.integrate(velocity, X, num_steps=1, method="euler")
        torch.testing.assert_close(got.x, X + velocity(X))
    finally:
        handle.remove()
    assert velocity.unfused() is None


@pytest.mark.parametrize("owner", [nn.Linear, MLPVelocity])
def test_a_class_that_is_patched(monkeypatch, owner):
    velocity, plain = velocity_to_change(), owner.forward
    monkeypatch.setattr(owner, "forward", lambda self, *given: 0.5 * plain(self, *given))
    with pytest.warns(FallbackWarning, match="has a forward of its own"):
        got = jkoflow.integrate(velocity, X, num_steps=1, method="euler")
    torch.testing.assert_close(got.x, X + velocity(X))


def test_a_hook_that_is_removed_leaves_the_velocity_fused():
    velocity = velocity_to_change()
    velocity.layers[0].register_forward_hook(halve).remove()
    assert velocity.unfused() is None
    assert velocity.field() is not None
    jkoflow.integrate(velocity, X, backend="cpu")


class Symmetric(nn.Module):
    calls = 0

    def forward(self, weight):
        type(self).calls += 1
        return weight.triu() + weight.triu(1).T


PARAMETRIZED = {
    "weight_norm": lambda v: parametrizations.weight_norm(v.layers[1]),
    "spectral_norm": lambda v: parametrizations.spectral_norm(v.layers[1]).eval(),
    "orthogonal": lambda v: parametrizations.orthogonal(v.layers[1]),
    "one of the user's": lambda v: parametrize.register_parametrization(v.linear, "weight", Symmetric()),
    "of a bias": lambda v: parametrize.register_parametrization(v.layers[0], "bias", nn.Softplus()),
    "two": lambda v: (
        parametrize.register_parametrization(v.linear, "weight", Symmetric()),
        parametrizations.weight_norm(v.layers[2]),
    ),
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrizations_stay_fused_and_right(name):
    velocity = velocity_to_change()
    PARAMETRIZED[name](velocity)
    assert velocity.unfused() is None
    parameters = list(velocity.parameters())
    got, expected = (jkoflow.integrate(velocity, X, backend=backend) for backend in ("cpu", "reference"))
    torch.testing.assert_close(got.x, expected.x)
    step = jkoflow.integrate(velocity, X, num_steps=1, method="euler", backend="cpu")
    torch.testing.assert_close(step.x, X + velocity(X))
    losses = [jko_loss(velocity, X, 1.0, backend=backend).total for backend in ("cpu", "reference")]
    gradients = [torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True) for loss in losses]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_parametrization_is_evaluated_once_a_call(backend):
    velocity = velocity_to_change()
    parametrize.register_parametrization(velocity.linear, "weight", Symmetric())
    for call in (lambda: jkoflow.integrate(velocity, X, backend=backend), lambda: jko_loss(velocity, X, 1.0)):
        Symmetric.calls = 0
        call()
        assert Symmetric.calls == 1


def test_copies_and_replicas_stay_fused():
    velocity = velocity_to_change()
    assert copy.deepcopy(velocity).field() is not None
    replica = velocity._replicate_for_data_parallel()
    for name, module in velocity.named_modules():
        if isinstance(module, nn.Linear):  # what torch.nn.parallel.replicate does
            copied = module._replicate_for_data_parallel()
            copied._former_parameters = {}
            for key, parameter in module._parameters.items():
                if parameter is None:
                    copied._parameters[key] = None
                else:
                    setattr(copied, key, parameter * 1)
                    copied._former_parameters[key] = getattr(copied, key)
            if name == "linear":
                replica._modules["linear"] = copied
    assert replica.unfused() is None
    assert replica.field().linear is replica.linear.weight


def test_compiled_velocities_and_other_callables_run_as_they_are():
    velocity = velocity_to_change()
    compiled = torch.compile(velocity, backend="eager")
    expected = jkoflow.integrate(velocity, X, backend="reference").x
    for callable_velocity in (compiled, velocity.forward, nn.DataParallel(velocity)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(jkoflow.integrate(callable_velocity, X).x, expected)


class Louder(Activation):
    def value(self, z):
        return 2 * super().value(z)


class Doubling(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * out if func is nn.functional.linear else out


def test_an_activation_of_its_own():
    velocity = MLPVelocity(3, (8,), Louder("tanh"))
    with pytest.warns(FallbackWarning, match="velocity.activation is a Louder"):
        got = jkoflow.integrate(velocity, X, num_steps=1, method="euler")
    torch.testing.assert_close(got.x, X + velocity(X))


def test_an_activation_that_is_changed_to_another_is_computed():
    velocity = velocity_to_change()
    velocity.activation = parse_activation("silu")
    assert velocity.unfused() is None
    torch.testing.assert_close(jkoflow.integrate(velocity, X, num_steps=1, method="euler").x, X + velocity(X))


def test_a_weight_that_computes_in_its_own_way():
    velocity = velocity_to_change()
    velocity.layers[0].weight = nn.Parameter(velocity.layers[0].weight.detach().as_subclass(Doubling))
    with pytest.warns(FallbackWarning, match=r"velocity.layers\[0\] has a weight that is a Doubling"):
        got = jkoflow.integrate(velocity, X, num_steps=1, method="euler")
    torch.testing.assert_close(torch.Tensor(got.x), torch.Tensor(X + velocity(X)))


def test_tools_of_torch_that_count_change_nothing():
    velocity = velocity_to_change()
    expected = jkoflow.integrate(velocity, X).x
    with FlopCounterMode(display=False):
        got = jkoflow.Block(velocity)(X)[0]
    assert torch.equal(got, expected)
