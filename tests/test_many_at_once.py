"""Threads and processes that use the same flow get the bits that one alone gets."""

import multiprocessing
import os
import pickle
import threading

import pytest
import torch

import jkoflow
from jkoflow import Block, JKOFlow, MLPVelocity
from soak import amount

THREADS = 8


def flow_of(seed, hidden=(16, 16)):
    torch.manual_seed(seed)
    return JKOFlow(3, [Block(MLPVelocity(3, hidden)) for _ in range(2)]).requires_grad_(False).eval()


def rows_of(seed, count=50):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def gradient(velocity, x):
    found = jkoflow.jko_loss(velocity, x, 0.5).total
    return [found.detach(), *torch.autograd.grad(found, list(velocity.parameters()))]


def in_threads(work, count=THREADS):
    """Runs work(number) in so many threads at once, and raises what any of them has raised."""
    errors, start = [], threading.Barrier(count)

    def run(number):
        try:
            start.wait()
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_get_the_same_bits():
    flows = [flow_of(seed, (16,) * (1 + seed % 3)) for seed in range(THREADS)]
    velocities = [MLPVelocity(3, (8 + seed, 8)) for seed in range(THREADS)]
    x = rows_of(0)
    densities = [flow.log_prob(x) for flow in flows]
    gradients = [gradient(velocity, x) for velocity in velocities]

    def work(number):
        for turn in range(amount(10, 2000)):
            own = (number + turn) % THREADS  # each flow is used by several threads at once
            assert torch.equal(flows[own].log_prob(x), densities[own])
            found = gradient(velocities[number], x)
            assert all(map(torch.equal, found, gradients[number]))

    in_threads(work)


def density_of(packed):
    torch.set_num_threads(1)
    return pickle.loads(packed).log_prob(rows_of(1)).tolist()


METHODS = ["spawn", "forkserver", *(["fork"] if hasattr(os, "fork") else [])]


@pytest.mark.parametrize("method", METHODS)
def test_processes_get_the_same_bits(method):
    if method == "fork" and torch.get_num_threads() > 1:
        pytest.skip("a fork of a process with OpenMP's threads hangs, in PyTorch's own functions, too")
    flow = flow_of(2)
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map(density_of, [pickle.dumps(flow)] * amount(2, 20))
    assert all(each == flow.log_prob(rows_of(1)).tolist() for each in found)


def test_joblib_gets_the_same_bits():
    joblib = pytest.importorskip("joblib")
    packed = pickle.dumps(flow_of(3))
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(density_of)(packed) for _ in range(3))
    assert all(each == flow_of(3).log_prob(rows_of(1)).tolist() for each in found)
