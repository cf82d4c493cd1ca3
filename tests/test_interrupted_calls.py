"""A signal ends a call of the CPU kernels that would go on for days, and the next call is as if nothing had been."""

import signal
import threading

import pytest
import torch

import jkoflow
from jkoflow import MLPVelocity
from jkoflow.ops import Fixed, extension

pytestmark = pytest.mark.skipif(extension.C is None, reason="no compiled extension")

FOREVER = 2**31 - 1


class Alarm(Exception):  # noqa: N818 (what a program's own handler raises)
    pass


@pytest.fixture
def alarm():
    """Raises `Alarm` soon, in the main thread."""

    def ring(number, frame):
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def velocity(wants_gradient):
    torch.manual_seed(0)
    return MLPVelocity(2, (8, 8)).requires_grad_(wants_gradient)


def forward(v, x):
    jkoflow.integrate(v, x, num_steps=FOREVER, keep_path=False, backend="cpu")


def adaptive(v, x):
    turning = MLPVelocity(2, (8,), linear=True).requires_grad_(False)
    turning.scale_output(0.0)
    turning.linear.weight.copy_(torch.tensor([[0.0, 5.0], [-5.0, 0.0]]))
    jkoflow.integrate(turning, x, method="bosh3", rtol=1e-4, atol=1e-4, max_steps=FOREVER, backend="cpu", t1=1e9)


def train_forever(v, x):
    while True:  # each call takes a while, so that most of the time passes in one
        jkoflow.integrate(v, x, num_steps=2000, backend="cpu").logdet.sum().backward()


@pytest.mark.parametrize(("call", "rows"), [(forward, 2), (forward, 5000), (adaptive, 20)])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_that_raises_ends_the_call(alarm, call, rows, threads):
    v, x, before = velocity(False), torch.randn(rows, 2), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(Alarm):
            call(v, x)
        expected = jkoflow.integrate(v, x, backend="reference").x
        torch.testing.assert_close(jkoflow.integrate(v, x, backend="cpu").x, expected, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_the_gradient_of_many_steps_ends(alarm):
    v, x = velocity(True), torch.randn(400, 2)
    with pytest.raises(Alarm):
        train_forever(v, x)
    v.zero_grad()
    jkoflow.integrate(v, x, backend="cpu").x.sum().backward()
    found = [parameter.grad for parameter in v.parameters()]
    expected = torch.autograd.grad(jkoflow.integrate(v, x, backend="reference").x.sum(), list(v.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_handler_that_returns_lets_the_call_go_on():
    v, x, seen = velocity(False), torch.randn(3000, 2), []
    expected = jkoflow.integrate(v, x, num_steps=1000, keep_path=False, backend="cpu")
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        found = jkoflow.integrate(v, x, num_steps=1000, keep_path=False, backend="cpu")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.logdet, expected.logdet)


def test_calls_of_other_threads_are_not_ended(alarm):
    v, x, found = velocity(False), torch.randn(3000, 2), []
    other = threading.Thread(target=lambda: found.append(jkoflow.integrate(v, x, num_steps=2000, backend="cpu").x))
    other.start()
    with pytest.raises(Alarm):
        jkoflow.integrate(v, x, num_steps=Fixed(FOREVER), keep_path=False, backend="cpu")
    other.join()
    assert torch.equal(found[0], jkoflow.integrate(v, x, num_steps=2000, backend="cpu").x)
