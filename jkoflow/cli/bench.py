"""The command bench, with its progress and its tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from jkoflow.bench import chart
from jkoflow.bench.adaptive.cases import CASES
from jkoflow.bench.adaptive.rivals import RIVAL_LIBRARIES
from jkoflow.bench.gpu import open_gpu
from jkoflow.bench.measure import measure
from jkoflow.bench.peers import LIBRARIES
from jkoflow.bench.record import broken, write_record
from jkoflow.bench.settings import Settings, device_type
from jkoflow.bench.shapes import DIRECTIONS, STAGES, Shape, parse_shapes
from jkoflow.bench.table import TITLES, markdown, number, size
from jkoflow.cli import console, json_lines
from jkoflow.cli.bench_adaptive import bench_adaptive
from jkoflow.cli.bench_bars import BenchBars
from jkoflow.cli.settings import ConfigError
from jkoflow.data import require

RECORD_FILE, TABLE_FILE, CHART_FILE = "bench.json", "bench.md", "bench.png"


GROUPS = ("equal", "adaptive")
"""What is compared: one block of equal steps at many shapes, or what users of adaptive solvers run today."""


def bench(
    group: Annotated[
        str,
        typer.Option(
            help="What to compare: equal (one block of equal steps), or adaptive (fields and solvers as users of other "
            "libraries have them, on the CPU)."
        ),
    ] = "equal",
    cases: Annotated[
        str | None,
        typer.Option(
            help=f"Cases of --group adaptive, with spaces between them: {', '.join(CASES)}.",
            show_default="all of them",
        ),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            help='Sizes "d,H,layers,B,steps ...", with spaces between shapes.', show_default="those of the device"
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help=f"Whom to measure besides jkoflow: {', '.join(LIBRARIES[1:])}; with --group adaptive "
            f"{', '.join(RIVAL_LIBRARIES)}.",
            show_default="all of them",
        ),
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
    as_json: json_lines.Json = False,
) -> None:
    """Measure the kernels against other libraries. What they reach is told beside the device's matrix product.

    Every result is compared with ours (on a GPU with float64) before it is timed; peers that are not installed are
    listed, and so is what there is no time or memory for.
    """
    if out is not None:
        require("matplotlib", "the bar chart", "bench")
        out.mkdir(parents=True, exist_ok=True)
    options = {"threads": threads, "rounds": rounds, "seconds": seconds}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if peers is not None:
        given["libraries"] = tuple(name.strip() for name in peers.split(",") if name.strip())
    if group not in GROUPS:
        raise ConfigError(f"--group must be {' or '.join(GROUPS)}, got {group!r}")
    if group == "adaptive":
        if shapes is not None or device != "cpu":
            raise ConfigError("--group adaptive has --cases instead of --shapes, and runs on the CPU")
        if cases is not None:
            given["cases"] = tuple(cases.split())
        bench_adaptive(quick, given | {"compiled": compiled}, out)
        return
    if cases is not None:
        raise ConfigError("--cases is for --group adaptive; --shapes chooses here")
    try:
        if shapes is not None:
            given["shapes"] = tuple(parse_shapes(shapes))
        settings = Settings.on(device, quick, **given, compiled=compiled)
        gpu = open_gpu(device) if device_type(device) == "cuda" else None
    except ValueError as error:
        raise ConfigError(str(error)) from error
    threads_before = torch.get_num_threads()
    try:
        with BenchBars(Console(), show_shape) as progress:
            record = measure(settings, progress, lambda found: write_record(found, out, RECORD_FILE), gpu)
    finally:
        torch.set_num_threads(threads_before)
    show_memory(record)
    if out is not None:
        write_record(record, out, RECORD_FILE)
        (out / TABLE_FILE).write_text(markdown(record), encoding="utf-8")
        written = [RECORD_FILE, TABLE_FILE]
        if chart.has_figures(record):
            chart.draw(record, out / CHART_FILE)
            written.append(CHART_FILE)
        print(f"written: {', '.join(str(out / name) for name in written)}")
    json_lines.result("bench", out=out, record=record)
    wrong = broken(record)
    for line in wrong:
        console.error(line)
    if wrong:
        raise typer.Exit(1)


def show_shape(entry: dict[str, Any], screen: Console) -> None:
    """Prints the table of a shape or of a part of it, and its notes."""
    screen.print(shape_table(entry))
    for result in entry["peers"]:
        for note in filter(None, (result["note"], _effort(result, entry))):
            screen.print(f"{result['peer']}: {note}", markup=False, highlight=False, style="dim")
    screen.print()


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
