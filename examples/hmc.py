"""Hamiltonian Monte Carlo in Pyro with a trained flow for a prior: the sampler follows log_prob's gradient.

    python examples/hmc.py [--quick]

A flow learns the prior from samples of two half moons; then the sum of the two coordinates is observed with noise, and
the posterior is sampled. Weighting draws of the prior by the likelihood gives the same moments.
"""

import argparse
import math
import warnings

import torch

import jkoflow

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Pyro's own, at import
    import pyro
    from pyro.distributions import Normal
    from pyro.infer import HMC, MCMC

OBSERVED, NOISE = 1.0, 0.3


def half_moons(n):
    """Draws points of two half moons that interlock."""
    angle, upper = math.pi * torch.rand(n), torch.rand(n) < 0.5
    x = torch.stack([angle.cos(), angle.sin()], 1)
    return torch.where(upper.unsqueeze(1), x, torch.tensor([1.0, 0.5]) - x) + 0.15 * torch.randn(n, 2)


def main():
    """Trains the prior, samples the posterior and compares its moments with those by importance weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="short training and chain, for tests")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    config = jkoflow.TrainConfig(hidden=(32, 32), max_blocks=1, iterations_per_block=60 if quick else 1500)
    flow = jkoflow.train(half_moons(2000 if quick else 10_000), config)
    prior = flow.distribution()

    def model():
        x = pyro.sample("x", prior)
        pyro.sample("sum", Normal(x.sum(-1), NOISE), obs=torch.tensor(OBSERVED))

    steps = {"step_size": 0.15, "num_steps": 5 if quick else 10, "adapt_step_size": False}
    chain = MCMC(HMC(model, **steps), num_samples=150 if quick else 2000, warmup_steps=20, disable_progbar=True)
    chain.run()
    found = chain.get_samples()["x"]

    x = prior.sample((100_000,))
    weights = (-0.5 * ((x.sum(-1) - OBSERVED) / NOISE).square()).softmax(0)
    mean = (weights.unsqueeze(1) * x).sum(0)
    deviation = (weights.unsqueeze(1) * (x - mean).square()).sum(0).sqrt()
    for name, moment, right in (("mean", found.mean(0), mean), ("deviation", found.std(0), deviation)):
        print(f"{name:<9}  HMC ({moment[0]:.3f}, {moment[1]:.3f})  by weights ({right[0]:.3f}, {right[1]:.3f})")
    assert bool((found.mean(0) - mean).abs().max() < (0.5 if quick else 0.2))


if __name__ == "__main__":
    main()
