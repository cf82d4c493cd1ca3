"""A continuous normalizing flow in torchdiffeq, before and after: the same loss and gradients, both timings.

Before, the divergence is the trace of a Jacobian that autograd computes row by row. After, `odeint` comes from
jkoflow.interop.torchdiffeq, and func is a CNFFunc over the same network.

    python examples/torchdiffeq_before_after.py [--quick]
"""

import argparse
import statistics
import time

import torch
import torchdiffeq

import jkoflow
from jkoflow.interop.torchdiffeq import CNFFunc, odeint


class FlowBefore(torch.nn.Module):
    """The right-hand side as it is usually written."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity = velocity

    def forward(self, t, states):
        z, _ = states
        with torch.enable_grad():
            z = z.requires_grad_()
            v = self.velocity(z, t)
            rows = [torch.autograd.grad(v[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(z.shape[1])]
        return v, -torch.stack(rows, 1).sum(1, keepdim=True)


def iteration(solve, func, x, settings):
    """Returns the loss, the gradients and the seconds of one iteration of training."""
    func.zero_grad()
    start = time.perf_counter()
    states = x.clone(), torch.zeros(len(x), 1)
    z, change = solve(func, states, torch.tensor([1.0, 0.0]), **settings)
    log_prob = torch.distributions.Normal(0, 1).log_prob(z[-1]).sum(1, keepdim=True) - change[-1]
    loss = -log_prob.mean()
    loss.backward()
    seconds = time.perf_counter() - start
    return loss.detach(), torch.cat([p.grad.flatten() for p in func.parameters()]), seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows, rounds = (64, 2) if quick else (512, 9)
    cases = [("rk4, 4 steps", {"method": "rk4", "options": {"step_size": 0.25}})]
    cases.append(("dopri5, 1e-5", {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5}))
    print(f"one iteration of training, {rows} rows, 64 x 2 tanh, milliseconds")
    for dim in (2, 6):
        velocity = jkoflow.MLPVelocity(dim, hidden=(64, 64))
        x = torch.randn(rows, dim)
        for name, settings in cases:
            ways = (torchdiffeq.odeint, FlowBefore(velocity)), (odeint, CNFFunc(velocity))
            found = [[iteration(solve, func, x, settings) for solve, func in ways] for _ in range(rounds + 1)]
            before, after = found[0]
            pairs = [(one[2], other[2]) for one, other in found[1:]]
            torch.testing.assert_close(after[0], before[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(after[1], before[1], rtol=1e-3, atol=1e-4)
            slow, fast = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
            ratio = statistics.median(one / other for one, other in pairs)
            apart = (after[1] - before[1]).abs().max()
            print(f"d = {dim}, {name}: before {slow:.1f}, after {fast:.1f}, {ratio:.1f} times faster; loss", end=" ")
            print(f"{before[0]:.6f} and {after[0]:.6f}, gradients {apart:.0e} apart")


if __name__ == "__main__":
    main()
