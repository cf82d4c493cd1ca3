"""FFJORD's kind of field, concat-squash layers, in code that is written for its ODEfunc.

CNF is what FFJORD's code has around an ODEfunc: it calls before_odeint, counts evaluations, integrates regularizers as
further states in training and leaves them out in evaluation. CNFFunc takes the ODEfunc's place.

    python examples/ffjord_field.py [--quick]
"""

import argparse
import time

import torch

import jkoflow
from jkoflow.interop.torchdiffeq import CNFFunc, odeint_adjoint, unfused


class CNF(torch.nn.Module):
    """A continuous flow around an ODEfunc."""

    def __init__(self, odefunc, regularizers=0):
        super().__init__()
        self.odefunc, self.regularizers = odefunc, regularizers

    def forward(self, z):
        """Returns log p(z) and the integrals of the regularizers."""
        self.odefunc.before_odeint()
        states = z, torch.zeros(len(z), 1)
        if self.training:
            states += tuple(torch.zeros(()) for _ in range(self.regularizers))
        times, settings = torch.tensor([0.0, 1.0]), {"rtol": 1e-5, "atol": 1e-5, "method": "dopri5"}
        z, change, *integrals = (state[-1] for state in odeint_adjoint(self.odefunc, states, times, **settings))
        log_prob = torch.distributions.Normal(0, 1).log_prob(z).sum(1) - change.view(-1)
        return log_prob, integrals


def train(flow, x, iterations):
    """Trains and returns the mean log-likelihood and the seconds of an iteration."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    start = time.perf_counter()
    for _ in range(iterations):
        log_prob, integrals = flow.train()(x)
        loss = -log_prob.mean() + sum(0.02 * integral for integral in integrals)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = (time.perf_counter() - start) / iterations
    with torch.no_grad():
        return flow.eval()(x)[0].mean().item(), seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer rows and iterations")
    rows, iterations, width = (32, 2, 16) if parser.parse_args().quick else (512, 30, 64)
    torch.set_num_threads(1)
    for name, arguments in {
        "exact": {"divergence_fn": "brute_force"},
        "approximate": {"divergence_fn": "approximate", "rademacher": True},
        "exact, kinetic and |J e|^2": {"regularizers": ("kinetic", "jacobian")},
    }.items():
        torch.manual_seed(0)
        x = torch.randn(rows, 2) * 0.1 + 2 * torch.randint(0, 2, (rows, 2)) - 1
        velocity = jkoflow.ConcatSquashMLP(2, hidden=(width, width, width))
        odefunc = CNFFunc(velocity, **arguments)
        flow = CNF(odefunc, len(odefunc.regularizers))
        before = flow.eval()(x)[0].mean().item()
        after, seconds = train(flow, x, iterations)
        assert after > before
        states = (x, torch.zeros(rows, 1), *(torch.zeros(()) for _ in odefunc.regularizers))
        how = unfused(odefunc, states, torch.tensor([0.0, 1.0])) or "the whole solve"
        print(f"{name}: log-likelihood {before:.3f} to {after:.3f}, {1e3 * seconds:.1f} ms an iteration,", end=" ")
        print(f"{odefunc.num_evals():.0f} evaluations at the end; fused: {how}")


if __name__ == "__main__":
    main()
