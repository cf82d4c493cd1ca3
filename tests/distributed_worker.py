"""One of the processes of test_distributed.py: trains with the others, and writes down what it has seen.

Run as ``python distributed_worker.py RANK SIZE FOLDER``. The cases are functions, whose results go to a file for each
process.
"""

import hashlib
import itertools
import json
import signal
import sys
import warnings
from pathlib import Path

import pandas
import torch
import torch.distributed as dist

import jkoflow
from jkoflow import TrainConfig
from jkoflow.training.fit import Fit
from jkoflow.training.interruption import Interrupted
from jkoflow.training.ranks import Ranks

CONFIG = TrainConfig(
    hidden=(8, 8), max_blocks=2, iterations_per_block=20, batch_size=100, num_steps=2, finetune=0.3, validate_every=10
)
BRIEF = TrainConfig(hidden=(4,), max_blocks=2, iterations_per_block=14, batch_size=50, num_steps=2)


def rows(count=1003, columns=2, seed=1):
    """Skewed rows, whose number no number of processes divides."""
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed)).exp()


def budgeted():
    """A configuration with a time budget, for a clock that goes on with every look at it."""
    return TrainConfig(hidden=(4,), time_budget=40.0, batch_size=50, val_rows=100)


def counting(step):
    """A clock that goes on by a step with every look at it."""
    return map(lambda count: count * step, itertools.count()).__next__


def found(flow, history=()):
    """What can be compared of a trained flow and its history."""
    parameters = [tensor.double().flatten() for tensor in flow.state_dict().values()]
    steps = [r for r in history if r["event"] == "iteration"]
    return {
        "digest": hashlib.sha256(torch.cat(parameters).numpy().tobytes()).hexdigest(),
        "parameters": torch.cat(parameters).tolist(),
        "metrics": {k: v for k, v in flow.metrics.items() if isinstance(v, int | float) or k.startswith("movements")},
        "losses": [r["loss"] for r in steps],
        "first_validation": next((r["loss"] for r in history if r["event"] == "validation"), None),
        "kinds": [r["event"] for r in history],
    }


def acting(act, call):
    """Makes a call, in whose training something is done before iteration 12 of the first block."""
    kept = Fit.iterate

    def iterate(this):
        if this.index == 0 and this.counters.iteration == 12:
            act()
        kept(this)

    Fit.iterate = iterate
    try:
        return call()
    finally:
        Fit.iterate = kept


def error_of(call, kinds=Exception):
    """The kind and text of the error that a call raises."""
    try:
        call()
    except kinds as error:
        return {"kind": type(error).__name__, "text": str(error)}
    return None


# ---- Cases, of the number of the process and a folder that all processes share


def trained(rank, folder):
    flow, history = jkoflow.train(rows(), CONFIG, return_history=True)
    return found(flow, history)


def given_context(rank, folder):
    values = rows(600, 3)
    return found(jkoflow.train(values[:, :2], BRIEF, context=values[:, 2:]))


def of_a_table(rank, folder):
    values = rows(600, 2)
    table = pandas.DataFrame({"count": (values[:, 0] * 3).long().numpy(), "level": values[:, 1].numpy()})
    flow = jkoflow.train(table, BRIEF, columns={"count": "integer"})
    return {"nll": flow.metrics["test_nll"], "left_out": sum(flow.metrics["rows_left_out"].values())}


def by_the_clock_of_the_first(rank, folder):
    clock = counting(0.5) if rank == 0 else counting(1000.0)
    flow, history = jkoflow.train(rows(), budgeted(), clock=clock, return_history=True)
    return found(flow, history)


def other_rows(rank, folder):
    values = rows(seed=rank).log()
    values[5, 0] = 1e6  # of which training warns
    return error_of(lambda: jkoflow.train(values, BRIEF))


def signalled(rank, folder):
    """A signal comes to the last process alone; the run then goes on."""
    last = rank == dist.get_world_size() - 1
    act = (lambda: signal.raise_signal(signal.SIGTERM)) if last else (lambda: None)
    run = folder / "signalled"
    error = error_of(lambda: acting(act, lambda: jkoflow.train(rows(), CONFIG, run_dir=run)), Interrupted)
    files = sorted(path.name for path in run.iterdir())
    Ranks().meet()  # nobody goes on before all have looked
    resumed = jkoflow.train(rows(), CONFIG, run_dir=run, resume=True)
    again = jkoflow.train(rows(), CONFIG, run_dir=run, resume=True)
    occupied = error_of(lambda: jkoflow.train(rows(), CONFIG, run_dir=run))
    return {
        "error": error,
        "files": files,
        "resumed": found(resumed)["digest"],
        "again": found(again)["digest"],
        "occupied": occupied,
    }


def failing_to_tell(rank, folder):
    """The callback of the first process fails; that of no other one is called."""
    told, run = [], folder / "untold"

    def callback(event):
        told.append(event["event"])
        if event["event"] == "validation":
            raise ZeroDivisionError("no room")

    error = error_of(lambda: jkoflow.train(rows(), BRIEF, run_dir=run, callback=callback))
    resumed = jkoflow.train(rows(), BRIEF, run_dir=run, resume=True)
    return {"error": error, "told": told, "digest": found(resumed)["digest"]}


def failing_elsewhere(rank, folder):
    """One process fails; the others are told, and the group can train again."""

    def fail():
        if rank == 1:
            raise ZeroDivisionError

    error = error_of(lambda: acting(fail, lambda: jkoflow.train(rows(), BRIEF)))
    return {"error": error, "after": found(jkoflow.train(rows(), BRIEF))["digest"]}


def drifting(rank, folder):
    """One process computes something else."""

    def drift():
        if rank == 1:
            kept = Ranks.update

            def other(self, gradient_and_tail):
                kept(self, gradient_and_tail)
                gradient_and_tail[0] += 1e-3
                Ranks.update = kept

            Ranks.update = other

    return error_of(lambda: acting(drift, lambda: jkoflow.train(rows(), BRIEF)))


def exchanged(rank, folder):
    world = Ranks()
    x = torch.arange(23.0).reshape(-1, 1) * torch.tensor([1.0, -1.0])

    def both(x, context):
        return x.square().sum(1), torch.stack([x, 2 * x], 2)

    squares, stacked = world.share_out(both, x, None)
    few, _ = world.share_out(both, x[:1], None)
    part = world.part(len(x))
    world.update(vector := torch.full((32,), float(rank + 1)))
    return {
        "squares": squares.equal(both(x, None)[0]) and few.equal(both(x[:1], None)[0]),
        "stacked": stacked.equal(both(x, None)[1]) and stacked.is_contiguous(),
        "gathered": world.gathered(x[part]).equal(x),
        "sums": world.sums([1.0, float(rank)]),
        "update": vector[:-3].tolist(),
        "first": world.first(lambda: f"of {rank}"),
        "fails": error_of(lambda: world.first(lambda: 1 // 0)),
        "together": error_of(lambda: world.together(lambda: 1 // (1 - rank)), Exception),
    }


CASES = (trained, other_rows, signalled, failing_to_tell, failing_elsewhere, exchanged)
MORE_OF_TWO = (given_context, of_a_table, by_the_clock_of_the_first, drifting)
"""Cases that two processes have and three have not, since they would be no others."""


def main():
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size)
    results = {}
    for case in CASES + (MORE_OF_TWO if size == 2 else ()):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            results[case.__name__] = {"result": case(rank, folder), "warnings": [str(w.message) for w in heard]}
    (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
