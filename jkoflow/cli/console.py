"""The output of the command line: progress bars, tables and one-line messages."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TimeRemainingColumn
from rich.table import Table

from jkoflow.cli import json_lines
from jkoflow.cli.bars import Bars
from jkoflow.training.objectives import TERMS
from jkoflow.training.rounds import FINETUNE

LINE_SECONDS = 10.0
"""Seconds between two lines about the same block if there is no terminal to draw bars on."""


def error(text: str) -> None:
    """Tells of an error, in one line on stderr."""
    _remark("error", text)


def note(text: str) -> None:
    """Tells something worth knowing, in one line on stderr."""
    _remark("note", text)


def _remark(kind: str, text: str) -> None:
    text = " ".join(text.split())
    if json_lines.is_on():
        json_lines.tell(kind, text=text)
    else:
        print(f"{kind}: {text}", file=sys.stderr, flush=True)


def for_progress() -> Console:
    """Returns where the progress of a command is drawn whose results go to stdout: stderr, or nowhere."""
    return Console(stderr=True, quiet=json_lines.is_on())


def training_progress() -> TrainingBars | TrainingLines:
    """Returns bars on a terminal, plain lines in a file or a pipe."""
    console = Console()
    return TrainingBars(console) if console.is_terminal else TrainingLines()


class TrainingBars(Bars):
    """One bar per block on a terminal: a `jkoflow.training.progress.Progress` and a context manager.

    Arguments:
        console: Where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._short = console.width < 110
        self._tasks: dict[int, TaskID] = {}
        self._kind = ""  # of the round
        super().__init__(
            console,
            BarColumn(bar_width=16 if self._short else 32),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            refresh_per_second=4,
        )

    def start_round(self, number: int, kind: str, blocks: int) -> None:
        """Prints which round begins, and gives it bars of its own."""
        self._tasks.clear()
        self._kind = kind
        if number > 0:
            self._bars.console.print(round_text(number, kind, blocks), markup=False, highlight=False)

    def start_block(self, block: int, iterations: int) -> None:
        """Draws the bar of a block, or changes its length."""
        if block in self._tasks:
            self._bars.update(self._tasks[block], total=iterations)
        else:
            self._tasks[block] = self._bars.add_task(fit_name(self._kind, block), total=iterations, news="")

    def update(self, block: int, iteration: int, terms: Mapping[str, float]) -> None:
        """Moves the block's bar and shows the loss and its terms."""
        news = loss_text(terms, self._short)
        self._bars.update(self._tasks[block], completed=iteration, news=news)

    def end_block(self, block: int, summary: Mapping[str, Any]) -> None:
        """Fills the block's bar and shows its result."""
        done = summary["iterations"]  # fewer than planned if the guard ended the block
        self._bars.update(self._tasks[block], total=done, completed=done, news=block_text(summary, self._short))

    def message(self, text: str) -> None:
        """Prints a line above the bars."""
        self._bars.console.print(f"note: {text}", markup=False, highlight=False)


class TrainingLines:
    """The progress of a training as plain lines, a few per block; a context manager."""

    def __init__(self) -> None:
        self._iterations: dict[int, int] = {}
        self._kind = ""  # of the round
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def start_round(self, number: int, kind: str, blocks: int) -> None:
        """Prints which round begins, except for the first."""
        self._kind = kind
        if number > 0:
            self._say(round_text(number, kind, blocks))

    def start_block(self, block: int, iterations: int) -> None:
        """Prints the number of iterations of the block."""
        self._iterations[block] = iterations
        self._say(f"{fit_name(self._kind, block)}: {iterations} iterations")

    def update(self, block: int, iteration: int, terms: Mapping[str, float]) -> None:
        """Prints the loss and its terms, if `LINE_SECONDS` have passed since the last line."""
        if time.monotonic() - self._printed >= LINE_SECONDS:
            self._say(f"{fit_name(self._kind, block)}: {iteration}/{self._iterations[block]} {loss_text(terms)}")

    def end_block(self, block: int, summary: Mapping[str, Any]) -> None:
        """Prints the result of the block."""
        self._say(f"{fit_name(self._kind, block)}: {block_text(summary)}, {summary['seconds']:.1f} s")

    def message(self, text: str) -> None:
        """Prints a text in one line."""
        self._say(f"note: {text}")

    def _say(self, text: str) -> None:
        print(text, flush=True)
        self._printed = time.monotonic()


def round_text(number: int, kind: str, blocks: int) -> str:
    """Returns the line that says which round begins and with how many blocks."""
    how = "together" if kind == FINETUNE else "again"
    return f"round {number + 1}, {kind}: {blocks} block{'' if blocks == 1 else 's'} to train {how}"


def fit_name(kind: str, block: int) -> str:
    """Returns the name of the block, or of all blocks, that a round of a kind trains."""
    return "all blocks" if kind == FINETUNE else f"block {block + 1}"


def loss_text(terms: Mapping[str, float], short: bool = False) -> str:
    """Returns the text of the loss and of the terms whose sum it is, in nats."""
    if short:
        return f"loss {terms['loss']:.3f}"
    return f"loss {terms['loss']:.3f} = " + " + ".join(f"{terms[name]:.3f} {name}" for name in TERMS)


def block_text(summary: Mapping[str, Any], short: bool = False) -> str:
    """Returns the text about the result of a finished block, from its record in the history."""
    if short:
        return f"NLL {summary['val_nll']:.3f}"
    kind = "free" if summary["step_size"] is None else f"h {summary['step_size']:.3g}"
    return f"validation NLL {summary['val_nll']:.3f}, movement {summary['movement']:.3f}, {kind}"


def show_metrics(metrics: Mapping[str, Any]) -> None:
    """Prints the results of a run."""
    doubt = "" if metrics.get("test_nll_converged", True) else ", where the NLL still moves: do not trust it"
    error = {name: _number(metrics[f"inversion_error_{name}"], ".2g") for name in ("mean", "max")}
    test = {name: _number(metrics[name], ".4f") for name in ("test_nll", "test_nll_stderr", "test_nll_data_units")}
    rows = {
        "test NLL, standardised columns": f"{test['test_nll']} ± {test['test_nll_stderr']} nats",
        "test NLL, data units": f"{test['test_nll_data_units']} nats",
        **_bits(metrics),
        "evaluated at": f"{metrics['eval_num_steps']} Runge-Kutta steps per block{doubt}",
        "inversion error": f"{error['mean']} mean, {error['max']} max",
        **distances(metrics),
        "blocks": str(metrics["blocks"]),
        "movements": " ".join(f"{movement:.3f}" for movement in metrics["movements"]),
        "guard events": str(metrics["guard_events"]),
        **({"test rows": str(metrics["n_test"])} if "n_test" in metrics else {}),
        **_left_out(metrics),
        "training": f"{metrics['train_seconds']:.1f} s on {metrics['n_train']} rows of {metrics['dim']} columns",
    }
    rows |= published(metrics)
    if len(metrics.get("rounds", [])) > 1:
        rows["rounds"] = "; ".join(_round_result(record) for record in metrics["rounds"])
    _show_table(rows)
    if metrics["test_nll"] is None:
        note(
            "the flow has no finite density on any test row: do not trust it; train with guard = true, or give test "
            "rows in the units of the training rows"
        )


def show_environment(environment: Mapping[str, Any]) -> None:
    """Prints an environment as `jkoflow.environment.describe` returns it."""
    kernels = environment["kernels"]
    rows = {name: str(value) for name, value in environment.items() if name != "kernels"}
    for backend in ("cpu", "cuda"):
        reason = kernels[backend]
        rows[f"{backend} kernels"] = "available" if reason is None else f"not available: {reason}"
    if built_for := kernels.get("cuda_architectures"):
        rows["cuda kernels for"] = " ".join(built_for)
    if plan := kernels.get("cuda_plan"):
        units = " x ".join(map(str, plan["hidden"]))
        rows["cuda plan"] = (
            f"{plan['gpu']}: loss of {plan['batch']} samples, {plan['dim']} features, {units} units: "
            f"{plan['thread_blocks']} thread blocks of {plan['share']} samples in tiles of {plan['tile']} and "
            f"{plan['small_tile']}, {plan['shared_bytes'] / 1024:.3g} KB shared"
        )
    rows["instruction set"] = f"{kernels['isa'] or 'none'} (available: {', '.join(kernels['isas']) or 'none'})"
    rows["bf16x3"] = "no: " + kernels["bf16x3"] if kernels["bf16x3"] else "yes"
    rows["OpenMP"] = "yes" if kernels["openmp"] else "no: the kernels run on one thread"
    _show_table(rows)


def _show_table(rows: Mapping[str, str]) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        width = max(len(name) for name in rows)
        for name, value in rows.items():
            print(f"{name:<{width}}  {value}")
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def _left_out(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Returns the text about rows that were left out, by its name; none if there are none."""
    counts = {part: count for part, count in metrics.get("rows_left_out", {}).items() if count}
    text = ", ".join(f"{count} of {part}" for part, count in counts.items())
    return {"rows left out": text} if counts else {}


def _bits(metrics: Mapping[str, Any]) -> dict[str, str]:
    if "test_bits_per_dim" not in metrics:  # a run of an earlier version
        return {}
    bits = (_number(metrics[name], ".4f") for name in ("test_bits_per_dim", "test_bits_per_dim_stderr"))
    return {"test NLL, data units, per column": f"{' ± '.join(bits)} bits"}


def distances(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Returns the texts of the measured distances between data and samples, by the distances' names."""
    names = {
        "mmd_median": "MMD², median bandwidth",
        "mmd_fixed": "MMD², bandwidth 1",
        "energy_distance": "energy distance",
    }
    return {
        label: f"{_number(metrics[name], '.2e')} ± {_number(metrics[f'{name}_stderr'], '.1e')} "
        f"(by chance up to {_number(metrics[f'{name}_threshold'], '.2e')})"
        for name, label in names.items()
        if name in metrics
    }


def published(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Returns the texts of an experiment's NLL and of the published ones, by their names; none for other runs."""
    if "experiment" not in metrics:
        return {}
    reproduced, paper = metrics["reproduced_nll"], metrics["paper_nll"]
    error = _number(metrics["reproduced_nll_stderr"], ".3f")
    rows = {"reproduced NLL": f"{_number(reproduced, '.3f')} ± {error} {metrics['paper_nll_units']}"}
    text = "none" if paper is None else f"{paper:.2f}"
    if paper is not None and reproduced is not None and metrics["paper_nll_comparable"]:
        text += f", ours is {reproduced - paper:+.2f}"
    rows["the paper's NLL"] = f"{text} ({metrics['paper_remark']})"
    others = [f"{figure['model']} {figure['nll']:.2f}" for figure in metrics["published"][paper is not None :]]
    if others:
        rows["others published"] = ", ".join(others)
    if "reconstruction_error" in metrics:
        rows["autoencoder's error"] = f"{metrics['reconstruction_error']:.4f} per pixel, from 0 to 1"
    return rows


def _round_result(record: Mapping[str, Any]) -> str:
    spread = "" if record["movement_spread"] is None else f", movements spread {record['movement_spread']:.2f}"
    kept = "" if record["kept"] else ", undone"
    return f"{record['kind']}: validation NLL {_number(record['val_nll'], '.4f')}{spread}{kept}"


def _number(number: float | None, form: str) -> str:
    return "not finite" if number is None else format(number, form)
