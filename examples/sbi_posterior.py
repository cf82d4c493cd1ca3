"""A posterior by sbi's NPE with a flow of jkoflow: one argument, and numbers that show that it is right.

The simulator is two moons of the sbi benchmark (Lueckmann et al., 2021), whose posterior can be drawn from exactly. A
classifier tries to tell samples of NPE's from exact ones: 0.5 is chance. And the density sums to one over a grid.

    python examples/sbi_posterior.py [--quick]
"""

import argparse
import math
import warnings

import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform
from torch import Tensor

from jkoflow.interop.sbi import density_estimator
from jkoflow.two_sample import classifier_accuracy


def crescent(rows: int) -> Tensor:
    """Draws points of a crescent."""
    angle, radius = math.pi * (torch.rand(rows) - 0.5), 0.1 + 0.01 * torch.randn(rows)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)


def simulate(theta: Tensor) -> Tensor:
    """Returns an observation for each row of parameters."""
    shift = torch.stack([-theta.sum(1).abs(), theta[:, 1] - theta[:, 0]], 1) / math.sqrt(2)
    return crescent(len(theta)) + shift


def exact_posterior(x: Tensor, rows: int) -> Tensor:
    """Draws parameters that may have given the observation x, by solving the simulator for them."""
    shift = (x - crescent(8 * rows)) * math.sqrt(2)
    shift = shift[shift[:, 0] <= 0]
    total = -shift[:, 0] * (2.0 * torch.randint(2, (len(shift),)) - 1)
    theta = torch.stack([total - shift[:, 1], total + shift[:, 1]], 1) / 2
    return theta[theta.abs().amax(1) <= 1][:rows]


def main() -> None:
    """Trains, and compares with the exact posterior."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer simulations and epochs")
    quick = parser.parse_args().quick
    simulations, epochs, batch, rate, samples = (1000, 25, 50, 2e-3, 100) if quick else (10_000, 300, 200, 5e-4, 1000)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((simulations,))

    inference = NPE(prior, density_estimator=density_estimator(hidden=(64, 64)), show_progress_bars=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Maximum number of epochs", UserWarning)  # as it was asked to
        inference.append_simulations(theta, simulate(theta))
        estimator = inference.train(training_batch_size=batch, learning_rate=rate, max_num_epochs=epochs)
    posterior = inference.build_posterior()

    observed = torch.zeros(1, 2)
    found = posterior.sample((samples,), x=observed, show_progress_bars=False)
    exact = exact_posterior(observed, samples)
    accuracy = classifier_accuracy(found, exact)

    axis = torch.linspace(-2, 2, 200 if quick else 1000)
    grid, cell = torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2
    with torch.no_grad():
        total = float(estimator.log_prob(grid.unsqueeze(1), observed).exp().sum()) * cell
        log_prob = float(estimator.log_prob(exact.unsqueeze(1), observed).mean())
    print(f"{simulations} simulations, best validation loss {inference.summary['best_validation_loss'][-1]:.3f}")
    print(f"classifier's accuracy between {len(found)} samples and {len(exact)} exact ones: {accuracy.value:.3f}")
    print(f"mean log-density of the exact ones {log_prob:.3f}; the density sums to {total:.4f}")
    assert abs(total - 1) < 0.02, f"the density sums to {total}"
    assert log_prob > -math.log(4) + 0.5, "the posterior knows no more than the prior"
    assert quick or accuracy.value < 0.65, f"a classifier tells the samples apart in {accuracy.value} of all cases"


if __name__ == "__main__":
    main()
