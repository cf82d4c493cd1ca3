"""Variational inference: a flow learns an unnormalised density by the reverse Kullback-Leibler divergence.

    python examples/variational_inference.py [--quick]

Samples of the flow and their log-densities come from one pass, with gradients through both. The loss bounds the
logarithm of the normalising constant from below; weighting the samples by p / q estimates it.
"""

import argparse
import math

import torch

import jkoflow

LOG_CONSTANT = math.log(2 * math.pi)
"""Logarithm of the integral of the density below."""


def log_density(x):
    """Returns the unnormalised log-density of a banana: x2 is around x1^2 / 2, with deviation 1."""
    return -0.5 * x[..., 0].square() - 0.5 * (x[..., 1] - 0.5 * x[..., 0].square()).square()


def main():
    """Trains a flow on the density and compares the constant and the moments with the exact ones."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="few iterations, for tests")
    iterations = 150 if parser.parse_args().quick else 1500
    torch.manual_seed(0)
    velocity = jkoflow.MLPVelocity(2, hidden=(32, 32), linear=True)
    velocity.scale_output(0.1)
    flow = jkoflow.JKOFlow(2, [jkoflow.Block(velocity, num_steps=6)])
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    guide = flow.distribution()
    for iteration in range(iterations):
        optimizer.zero_grad()
        x, log_q = guide.rsample_and_log_prob((256,))
        loss = (log_q - log_density(x)).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        if iteration % (iterations // 5) == 0:
            print(f"iteration {iteration:5d}  -ELBO {loss.item():8.3f}")

    flow.requires_grad_(False)
    accurate = flow.distribution(num_steps=30)  # the densities that count are step-converged
    x, log_q = accurate.sample_and_log_prob((20_000,))
    log_weights = log_density(x) - log_q
    elbo = float(log_weights.mean())
    constant = float(log_weights.logsumexp(0) - math.log(len(x)))
    weights = log_weights.softmax(0)
    effective = float(1 / (weights.square().sum() * len(x)))
    mean = (weights.unsqueeze(1) * x).sum(0)
    print(f"log of the constant: exact {LOG_CONSTANT:.4f}, ELBO {elbo:.4f}, by importance weights {constant:.4f}")
    print(f"mean: exact (0, 0.5), weighted ({mean[0]:.3f}, {mean[1]:.3f}); effective sample size {effective:.1%}")
    assert elbo < LOG_CONSTANT + 0.02
    assert abs(constant - LOG_CONSTANT) < 0.1
    assert abs(mean[1] - 0.5) < 0.2


if __name__ == "__main__":
    main()
