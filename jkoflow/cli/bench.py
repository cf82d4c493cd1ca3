"""The command bench, with its progress and its tables."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
from rich.table import Table

from jkoflow.bench import chart
from jkoflow.bench.gpu import open_gpu
from jkoflow.bench.measure import measure
from jkoflow.bench.peers import LIBRARIES
from jkoflow.bench.record import broken
from jkoflow.bench.settings import Settings, device_type
from jkoflow.bench.shapes import DIRECTIONS, STAGES, Shape, parse_shapes
from jkoflow.bench.table import TITLES, markdown, number, size
from jkoflow.cli import console
from jkoflow.cli.bars import Bars
from jkoflow.cli.settings import ConfigError
from jkoflow.data import require

RECORD_FILE, TABLE_FILE, CHART_FILE = "bench.json", "bench.md", "bench.png"

REFRESH_SECONDS = 0.25


def bench(
    shapes: Annotated[
        str | None,
        typer.Option(
            help='Sizes "d,H,layers,B,steps ...", with spaces between shapes.', show_default="those of the device"
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(help=f"Whom to measure besides jkoflow: {', '.join(LIBRARIES[1:])}.", show_default="all of them"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of everybody.", show_default="as many as PyTorch takes")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds; figures are medians.", show_default="7")] = None,
    device: Annotated[str, typer.Option(help="Where to measure: cpu, cuda, or a GPU such as cuda:1.")] = "cpu",
    seconds: Annotated[
        float | None,
        typer.Option(help="Start nothing more after this time.", show_default="480 on a GPU, no limit on the CPU"),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Measure torch.compile, too: minutes more.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A smoke test: one shape, three short rounds, no memory.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"Directory for {RECORD_FILE}, {TABLE_FILE} and {CHART_FILE}; made if it is not there. "
            "The record is written while it grows.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure the kernels against other libraries and against the device's matrix product.

    Every result is compared with ours (on a GPU with float64) before it is timed; peers that are not installed are
    listed, and so is what there is no time or memory for.
    """
    if out is not None:
        require("matplotlib", "the bar chart", "bench")
        out.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {}
    options = {"threads": threads, "rounds": rounds, "seconds": seconds}
    try:
        if shapes is not None:
            given["shapes"] = tuple(parse_shapes(shapes))
        if peers is not None:
            given["libraries"] = tuple(name.strip() for name in peers.split(",") if name.strip())
        given |= {name: value for name, value in options.items() if value is not None}
        settings = Settings.on(device, quick, **given, compiled=compiled)
        gpu = open_gpu(device) if device_type(device) == "cuda" else None
    except ValueError as error:
        raise ConfigError(str(error)) from error
    threads_before = torch.get_num_threads()
    try:
        with BenchBars(Console()) as progress:
            record = measure(settings, progress, lambda found: write_record(found, out), gpu)
    finally:
        torch.set_num_threads(threads_before)
    show_memory(record)
    if out is not None:
        write_record(record, out)
        (out / TABLE_FILE).write_text(markdown(record), encoding="utf-8")
        written = [RECORD_FILE, TABLE_FILE]
        if chart.has_figures(record):
            chart.draw(record, out / CHART_FILE)
            written.append(CHART_FILE)
        print(f"written: {', '.join(str(out / name) for name in written)}")
    wrong = broken(record)
    for line in wrong:
        console.error(line)
    if wrong:
        raise typer.Exit(1)


def write_record(record: Mapping[str, Any], out: Path | None) -> None:
    """Writes the record so far into a directory, if one is given; a reader never finds a part of a file."""
    if out is None:
        return
    part = out / f"{RECORD_FILE}.part"
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(out / RECORD_FILE)


class BenchBars(Bars):
    """One bar on a terminal, lines elsewhere: a `jkoflow.bench.progress.Progress` and a context manager.

    Arguments:
        screen: Where to draw.
    """

    def __init__(self, screen: Console) -> None:
        self._live = screen.is_terminal
        # a file has no width of its own: tables there take what they need
        self._screen = screen if self._live else Console(width=120)
        super().__init__(
            self._screen,
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            auto_refresh=False,  # its thread would take time from what is measured
            disable=not self._live,
        )
        self._task = self._bars.add_task("bench", total=1, news="")
        self._begun = self._parts = 0
        self._drawn = 0.0

    def start(self, parts: int) -> None:
        """Sets the length of the bar."""
        self._parts = parts
        self._bars.update(self._task, total=parts)

    def part(self, text: str) -> None:
        """Shows the name of the part that is measured next."""
        self._bars.update(self._task, completed=self._begun, description=text, refresh=True)
        self._begun += 1
        if not self._live:
            print(f"{self._begun}/{self._parts}: {text}", flush=True)

    def detail(self, text: str) -> None:
        """Shows a line about the present step of the measurement."""
        now = time.monotonic()
        self._bars.update(self._task, news=text, refresh=now - self._drawn > REFRESH_SECONDS)
        if now - self._drawn > REFRESH_SECONDS:
            self._drawn = now

    def measured(self, entry: dict[str, Any]) -> None:
        """Prints the table of a shape or of a part of it."""
        self._screen.print(shape_table(entry))
        for result in entry["peers"]:
            for note in filter(None, (result["note"], _effort(result, entry))):
                self._screen.print(f"{result['peer']}: {note}", markup=False, highlight=False, style="dim")
        self._screen.print()


def _effort(result: Mapping[str, Any], entry: Mapping[str, Any]) -> str | None:
    if result["evaluations"] is None:
        return None
    ours = STAGES * entry["shape"]["steps"]
    return f"its own steps, as accurate as ours: {result['evaluations']} evaluations a solve, ours {ours}"


def shape_table(entry: Mapping[str, Any]) -> Table:
    """Returns the table of one shape: milliseconds, their ratio to ours, and the share of the floor's rate."""
    title = f"{Shape(**entry['shape']).text}{_rates(entry)}"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for direction in DIRECTIONS:
        for heading in (f"{TITLES[direction]}, ms", "x ours", "of floor"):
            table.add_column(heading, justify="right", no_wrap=heading != f"{TITLES[direction]}, ms")
    for result in entry["peers"]:
        if not any(direction in result for direction in DIRECTIONS):
            table.add_row(result["peer"], result["status"])
            continue
        cells = []
        for direction in DIRECTIONS:
            figures = result.get(direction, {})
            if not figures and result["status"] != "measured":  # it came as far as one direction
                cells += [result["status"], "", ""]
                continue
            cells += [number(figures[key]) if key in figures else "" for key in ("ms", "of_ours")]
            cells.append(f"{figures['of_floor']:.0%}" if "of_floor" in figures else "")
        table.add_row(result["peer"], *cells)
    return table


def _rates(entry: Mapping[str, Any]) -> str:
    """Returns, in brackets, the rates that the shares of a shape refer to."""
    if units := entry.get("ceilings_gflops"):
        return f" (floor: {', '.join(f'{unit} {rate / 1e3:.1f} TFLOP/s' for unit, rate in units.items())})"
    rates = [pair for found in entry["floor_gflops"].values() for pair in found.items()]
    if not rates:
        return ""
    name, rate = max(rates, key=lambda pair: pair[1])
    return f" (floor: {name}, {rate:.0f} GFLOP/s)"


def show_memory(record: Mapping[str, Any]) -> None:
    """Prints the memory per row that a training step takes."""
    used = record["memory"]
    if used is None:
        return
    if used["note"] is not None:
        console.note(f"memory: {used['note']}")
        return
    screen = Console()
    table = Table(title="Peak memory of a training step per row of the batch", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in used["bytes_per_row"]:
        table.add_column(name, justify="right")
    for index, entry in enumerate(record["shapes"]):
        sizes = [size(values[index]) for values in used["bytes_per_row"].values()]
        table.add_row(Shape(**entry["shape"]).text, *sizes)
    (screen if screen.is_terminal else Console(width=120)).print(table)
