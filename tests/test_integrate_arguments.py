"""Every refusal of `integrate` names the argument, what it must be and what it was."""

import warnings
from pathlib import Path

import pytest
import torch

import jkoflow
from jkoflow import Block, FallbackWarning, MLPVelocity, integrate
from oracles import random_velocity

X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(32, 5), {}, r"x must have shape \(B, 2\) to match velocity.dim, got \(32, 5\)"),
        (torch.zeros(2), {}, r"x must have shape \(B, 2\) to match velocity.dim, got \(2,\)"),
        (torch.zeros(1, 4, 2), {}, r"x must have shape \(B, 2\) .*, got \(1, 4, 2\)"),
        (torch.zeros(4, 2).long(), {}, r"x must be a floating-point tensor, got torch.int64; convert it with x.float"),
        (
            torch.zeros(4, 2).double(),
            {},
            r"must match the velocity's dtype and device \(torch.float32, cpu\), got \(tor",
        ),
        (X.to("meta"), {}, r"must match the velocity's dtype and device .*, got \(torch.float32, meta\)"),
        (X, {"context": torch.zeros(4, 1)}, r"context must be None, got \(4, 1\)"),
        (X, {"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        (X, {"num_steps": -3}, "num_steps must be an integer of at least 1, got -3"),
        (X, {"num_steps": 2.5}, "num_steps must be an integer of at least 1, got 2.5"),
        (X, {"t0": float("nan")}, "t0 and t1 must be finite numbers, got nan and 1.0"),
        (X, {"t1": float("inf")}, "t0 and t1 must be finite numbers, got 0.0 and inf"),
        (X, {"t1": "1"}, "t0 and t1 must be finite numbers, got 0.0 and '1'"),
        (
            X,
            {"method": "dopri8"},
            "method must be one of euler, midpoint, heun, rk4, rk4_classic, bosh3, dopri5, tsit5, got 'dopri8'",
        ),
        (X, {"method": "dopri5", "atol": 0}, "atol must be a finite number, positive, got 0"),
        (X, {"method": "dopri5", "rtol": -1e-3}, "rtol must be a finite number, at least 0, got -0.001"),
        (X, {"method": "dopri5", "rtol": float("nan")}, "rtol must be a finite number, at least 0, got nan"),
        (X, {"method": "dopri5", "max_steps": 0}, "max_steps must be an integer from 1 to 2147483647, got 0"),
        (X, {"method": "tsit5", "max_steps": 1.5}, "max_steps must be an integer from 1 to 2147483647, got 1.5"),
        (X, {"times": [0.0]}, r"times must be two or more increasing or decreasing numbers, got \[0.0\]"),
        (X, {"times": [0.0, 1.0, 0.5]}, "times must be two or more increasing or decreasing numbers"),
        (X, {"times": [0.0, 1.0], "t1": 2.0}, "times stand in place of t0 and t1, which must be left out"),
        (X, {"divergence": "trace"}, "divergence must be one of exact, hutchinson, none, got 'trace'"),
        (X, {"backend": "gpu"}, "backend must be one of auto, cpu, cuda, reference, got 'gpu'"),
        (X, {"precision": "fp8"}, "precision must be one of auto, fp32, bf16x3, tf32x3, tf32, float64, got 'fp8'"),
        (
            X,
            {"precision": "tf32"},
            "precision must be 'auto', 'fp32', 'bf16x3' or 'float64' outside the CUDA kernels, got 'tf32'",
        ),
        (X, {"divergence": "hutchinson"}, r"noise must be a probe of shape \(4, 2\) with divergence='hutchinson'"),
        (X, {"noise": X}, "noise must be None with divergence='exact'"),
        (X, {"divergence": "hutchinson", "noise": X[:3]}, r"noise must have shape \(4, 2\) .* as x, got \(3, 2\)"),
        (X, {"divergence": "hutchinson", "noise": X.double()}, "noise must have .* dtype torch.float32 as x, got .*64"),
    ],
)
def test_refusals(x, options, message):
    with pytest.raises(ValueError, match=message):
        integrate(MLPVelocity(2), x, **options)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (None, r"context must have shape \(4, 3\) to match velocity.context_dim, got None"),
        (torch.zeros(4, 2), r"context must have shape \(4, 3\) .*, got \(4, 2\)"),
        (torch.zeros(5, 3), r"context must have shape \(4, 3\) .*, got \(5, 3\)"),
        (torch.zeros(3), r"context must have shape \(4, 3\) .*, got \(3,\)"),
        (
            torch.zeros(4, 3).double(),
            r"context must match x's dtype and device \(torch.float32, cpu\), got \(tor.*64, cpu",
        ),
    ],
)
def test_context(context, message):
    with pytest.raises(ValueError, match=message):
        integrate(MLPVelocity(2, context_dim=3), X, context=context)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4), r"x must have shape \(B, d\), got \(4,\)"),
        (torch.zeros(4, 0), r"x must have shape \(B, d\), got \(4, 0\)"),
    ],
)
def test_generic_callables_check_x(x, message):
    with pytest.raises(ValueError, match=message):
        integrate(lambda x, t, context: x, x, backend="reference")


def test_a_velocity_of_the_wrong_shape_does_not_broadcast():
    for divergence in ("exact", "none"):
        with pytest.raises(ValueError, match=r"velocity must return the shape of x, \(4, 2\), got \(4, 1\)"):
            integrate(lambda x, t, c: x[:, :1], X, backend="reference", divergence=divergence)


def test_a_velocity_without_a_graph_has_no_divergence_to_report():
    velocity = MLPVelocity(2)

    @torch.no_grad()
    def detached(x, t, context):
        return velocity(x, t)

    with pytest.raises(ValueError, match=r"differentiable in x .* computed under torch.no_grad.*divergence=\"none\""):
        integrate(detached, X, backend="reference")
    result = integrate(detached, X, backend="reference", divergence="none")
    assert torch.equal(result.logdet, torch.zeros(4))


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("hidden", [(8,), (8, 8)], ids=len)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_batch(backend, hidden, dtype):
    velocity = MLPVelocity(3, hidden=hidden, context_dim=2, linear=True).to(dtype)
    x = torch.zeros(0, 3, dtype=dtype, requires_grad=True)
    result = integrate(velocity, x, context=torch.zeros(0, 2, dtype=dtype), num_steps=4, backend=backend)
    assert result.x.shape == (0, 3)
    assert result.logdet.shape == (0,)
    assert result.path.shape == (5, 0, 3)
    assert result.x.dtype == result.logdet.dtype == result.path.dtype == dtype
    (result.x.sum() + result.logdet.sum()).backward()
    assert x.grad.shape == (0, 3)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in velocity.parameters())


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_strides_do_not_matter(backend):
    velocity = random_velocity(3, (8, 8), context_dim=2)
    wide, contexts = torch.randn(3, 10).double(), torch.randn(5, 4).double()
    x, context = wide[:, ::2].T, contexts[:, 1:3]
    got = integrate(velocity, x, context=context, backend=backend)
    expected = integrate(velocity, x.contiguous(), context=context.contiguous(), backend=backend)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


def test_inputs_are_left_alone():
    velocity, x = random_velocity(2), torch.randn(5, 2).double()
    copy = x.clone()
    result = integrate(velocity, x)
    result.x.data.zero_()
    assert torch.equal(x, copy)


UNCOVERED = {
    "nine hidden layers": lambda: (MLPVelocity(2, hidden=(4,) * 9), {}),
    "sin": lambda: (MLPVelocity(2, hidden=(4,), activation="sin"), {}),
    "trainable noise": lambda: (
        MLPVelocity(2, hidden=(4,)),
        {"divergence": "hutchinson", "noise": torch.ones(4, 2, requires_grad=True)},
    ),
    "callable": lambda: (lambda x, t, context: x, {}),
}


@pytest.mark.parametrize("request_for", UNCOVERED)
def test_auto_falls_back_and_says_why_once(request_for):
    velocity, options = UNCOVERED[request_for]()
    with pytest.warns(FallbackWarning, match=r"using the PyTorch reference: \w+") as record:
        first = integrate(velocity, X, **options)
    assert len(record) == 1
    assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = integrate(velocity, X, **options)
        silent = integrate(velocity, X, **options, backend="reference")
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.logdet, silent.logdet)


@pytest.mark.parametrize("request_for", UNCOVERED)
def test_a_backend_asked_for_by_name_never_falls_back(request_for):
    velocity, options = UNCOVERED[request_for]()
    with pytest.raises(RuntimeError, match=r"backend 'cpu' cannot run this: \w+"):
        integrate(velocity, X, backend="cpu", **options)


def test_cuda_by_name_on_cpu_tensors():
    with pytest.raises(RuntimeError, match=r"backend 'cuda' cannot run this: \w+"):
        integrate(MLPVelocity(2), X, backend="cuda")


def test_public_names_exist():
    assert all(hasattr(jkoflow, name) for name in jkoflow.__all__)


CALLS = {
    "integrate": integrate,
    "jko_loss": lambda velocity, x: jkoflow.jko_loss(velocity, x, 1.0),
    "block": lambda velocity, x: Block(velocity)(x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_fallback_points_at_the_line_that_asked_for_it(call):
    velocity = jkoflow.MLPVelocity(2, (4,), "sin")
    with pytest.warns(jkoflow.FallbackWarning) as caught:
        call(velocity, torch.randn(3, 2))
    assert {Path(warning.filename).name for warning in caught} == {"test_integrate_arguments.py"}
