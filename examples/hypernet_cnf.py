"""The usual script of a continuous flow, whose network's weights a hypernet makes of t: three ways to run it.

1. As it is, with torchdiffeq's odeint. 2. With the import changed: the field is the user's own, so that jkoflow hands
it on to torchdiffeq, and the numbers stay the same to the last bit. 3. With the field's class exchanged for CNFFunc
over HyperMLP, which takes over the weights: the numbers agree to the tolerance.

    python examples/hypernet_cnf.py [--quick]
"""

import argparse
import statistics
import time

import torch
import torchdiffeq

import jkoflow
from jkoflow.interop.torchdiffeq import CNFFunc, odeint

WIDTH = 64


class HypernetFlow(torch.nn.Module):
    """v = mean over units of tanh(w . z + b) u sigmoid(g), where a network of t gives w, u, g and b of every unit."""

    def __init__(self):
        super().__init__()
        layers = [torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh()]
        self.network = torch.nn.Sequential(*layers, torch.nn.Linear(32, 7 * WIDTH))

    def forward(self, t, states):
        w, u, gate, b = self.network(t.reshape(1)).split([2 * WIDTH, 2 * WIDTH, 2 * WIDTH, WIDTH])
        with torch.enable_grad():
            z = states[0].requires_grad_()
            v = torch.tanh(z @ w.view(WIDTH, 2).T + b) @ (u * torch.sigmoid(gate)).view(WIDTH, 2) / WIDTH
            rows = [torch.autograd.grad(v[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2)]
        return v, -torch.stack(rows, 1).sum(1, keepdim=True)


def iteration(solve, func, x, base):
    """Returns the loss, the change of log p at 41 times and the seconds of the iteration."""
    settings = {"rtol": 1e-5, "atol": 1e-5, "method": "dopri5"}
    start = time.perf_counter()
    z, change = solve(func, (x.clone(), torch.zeros(len(x), 1)), torch.tensor([10.0, 0.0]), **settings)
    loss = -(base.log_prob(z[-1]) - change[-1].view(-1)).mean()
    loss.backward()
    seconds = time.perf_counter() - start
    with torch.no_grad():  # what the plots show
        plotted = solve(func, (x.clone(), torch.zeros(len(x), 1)), torch.linspace(10.0, 0.0, 41), **settings)[1]
    return loss.detach(), plotted, seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    rows, rounds = (64, 1) if parser.parse_args().quick else (512, 5)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    angle = 2 * torch.pi * torch.rand(rows)
    x = torch.stack([angle.cos(), angle.sin()], 1) * (1 - 0.5 * (torch.rand(rows, 1) < 0.5)) + 0.06 * torch.randn(
        rows, 2
    )
    base = torch.distributions.MultivariateNormal(torch.zeros(2), 0.1 * torch.eye(2))

    field = HypernetFlow()
    velocity = jkoflow.HyperMLP(2, hidden=(WIDTH,), hyper="gated", hyper_hidden=(32, 32))
    velocity.hypers[0].load_state_dict(field.network.state_dict())
    ways = [(torchdiffeq.odeint, field), (odeint, field), (odeint, CNFFunc(velocity))]
    names = ["torchdiffeq's odeint", "import changed", "CNFFunc over HyperMLP"]
    found = [[iteration(solve, func, x, base) for solve, func in ways] for _ in range(rounds + 1)][1:]
    for place, name in enumerate(names):
        milliseconds = 1e3 * statistics.median(round_[place][2] for round_ in found)
        ratio = statistics.median(round_[0][2] / round_[place][2] for round_ in found)
        print(f"{name}: {milliseconds:.1f} ms an iteration, {ratio:.2f} times as fast, loss {found[0][place][0]:.6f}")
    before, changed, exchanged = found[0]
    torch.testing.assert_close(changed[:2], before[:2], rtol=0.0, atol=0.0)
    torch.testing.assert_close(exchanged[0], before[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(exchanged[1], before[1], rtol=1e-2, atol=1e-2)


if __name__ == "__main__":
    main()
