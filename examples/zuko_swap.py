"""zuko's continuous flow, before and after one import is changed: the same parameters and numbers, and both timings.

    python examples/zuko_swap.py [--quick]

Before: ``from zuko.flows import CNF``. After: ``from jkoflow.interop.zuko import CNF``.
"""

import argparse
import statistics
import time

import torch
import zuko

import jkoflow.interop.zuko


def training_step(flow, x, c):
    """Takes the loss and its gradient, as a training iteration does; returns both, and the seconds."""
    flow.zero_grad()
    start = time.perf_counter()
    loss = -flow(c).log_prob(x).mean()
    loss.backward()
    seconds = time.perf_counter() - start
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in flow.parameters()]), seconds


def compare(features, context, rows, rounds):
    """Compares zuko's flow of default settings with ours of the same parameters, with each row's own steps, too."""
    torch.manual_seed(0)
    before = zuko.flows.CNF(features, context)
    after, by_row = (jkoflow.interop.zuko.CNF(features, context, steps=steps) for steps in ("batch", "row"))
    for flow in (after, by_row):
        flow.load_state_dict(before.state_dict())
    x, c = torch.randn(rows, features), torch.randn(rows, context)
    with torch.no_grad():
        log_p = before(c).log_prob(x)
        difference = float((after(c).log_prob(x) - log_p).abs().max())
        own_steps = float((by_row(c).log_prob(x) - log_p).abs().max())
    assert difference < 2e-5, difference  # zuko's own rounding in float32 is 1e-5
    assert own_steps < 2e-3, own_steps  # what the default tolerances leave open

    seconds = [[training_step(flow, x, c)[2] for flow in (before, after, by_row)] for _ in range(rounds)]
    loss, gradient, _ = training_step(before, x, c)
    our_loss, our_gradient, _ = training_step(after, x, c)
    error = float((our_gradient - gradient).norm() / gradient.norm())
    assert abs(float(our_loss - loss)) < 1e-5
    assert error < 1e-2  # zuko's gradient is that of an integration backwards
    milliseconds = [1e3 * statistics.median(column) for column in zip(*seconds, strict=True)]
    faster, faster_by_row = (statistics.median(row[0] / row[column] for row in seconds) for column in (1, 2))
    print(
        f"{features:>8}  {milliseconds[0]:>7.0f} ms {milliseconds[1]:>7.1f} ms ({faster:4.1f} x)"
        f" {milliseconds[2]:>7.1f} ms ({faster_by_row:4.1f} x)  {difference:.0e}  {error:.0e}"
    )


def main():
    """Runs the comparison for three numbers of features."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a single small case, for tests")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print(
        "one training iteration, 5 context features, 256 rows; log_prob's largest difference, the gradient's relative"
    )
    print("features        zuko        jkoflow             steps=row           log_prob gradient")
    for features in (2,) if quick else (2, 6, 16):
        compare(features, 5, 32 if quick else 256, 1 if quick else 7)


if __name__ == "__main__":
    main()
