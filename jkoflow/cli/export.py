"""The command export, which writes a flow into a file that runs without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jkoflow.cli import completion, json_lines, models
from jkoflow.cli.settings import ConfigError, check_option
from jkoflow.data import check_place
from jkoflow.exporting import FORMATS, FUNCTIONS, Exported
from jkoflow.exporting import export as write
from jkoflow.flow import MODEL_FILE
from jkoflow.table_flow import Model, TableFlow
from jkoflow.training.run_directory import PREVIEW_FILE, RunDirectory


def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="Directory of a finished run, or its model file.", show_default=False, autocompletion=completion.runs
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write: .pt2, or .onnx for --format onnx.", show_default=False)],
    format: Annotated[
        str,
        typer.Option(
            help="torch-export, which Python runs; aoti, compiled for this processor, which C++ runs, too; or onnx.",
            autocompletion=completion.one_of(*FORMATS),
        ),
    ] = "torch-export",
    what: Annotated[
        str,
        typer.Option(
            help="log_prob of data; forward: data to noise and logdet; inverse: noise to data and logdet; sample: "
            "noise to samples and their log_prob.",
            autocompletion=completion.one_of(*FUNCTIONS),
        ),
    ] = "log_prob",
    num_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runge-Kutta steps per block. Default: steps with which the mean is right.",
            show_default=False,
        ),
    ] = None,
    tol: Annotated[
        float | None,
        typer.Option(
            help="Largest error of a row's log-density in nats, in place of --num-steps; found on samples.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="auto or float64: rows, numbers and results in float64.")] = "auto",
    as_json: json_lines.Json = False,
) -> None:
    """Write a flow into a file that runs without jkoflow.

    Python runs it, and C++; its steps are fixed. The file is loaded again and compared with the flow before it is put
    in its place. It says itself which columns it takes, in which order, and with which steps; docs/export.md tells
    how to run it.
    """
    for option, value, known in (("--format", format, FORMATS), ("--what", what, FUNCTIONS)):
        if value not in known:
            raise ConfigError(f"{option} must be one of {', '.join(known)}, got {value!r}")
    if precision not in ("auto", "float64"):
        raise ConfigError(f"--precision must be auto or float64, got {precision!r}")
    if num_steps is not None and tol is not None:
        raise ConfigError("--tol finds the number of steps: give either --tol or --num-steps")
    check_option(tol)
    check_place(out, [run / MODEL_FILE if run.is_dir() else run])
    model = models.load_model(run)
    features, context_features = models.names_of(run, model)
    if not isinstance(model, TableFlow):  # the model of an array has no names, its run has
        model.features, model.context_features = features, context_features or None
    found = write(
        model,
        out,
        format,  # type: ignore[arg-type]
        what=what,  # type: ignore[arg-type]
        num_steps=num_steps,
        tol=tol,
        precision=precision,  # type: ignore[arg-type]
        context=_seen_context(run, model, context_features),
    )
    _show(found, len(features), len(context_features))
    json_lines.result("export", out=found.path, **found.about, **found.agreement._asdict())


def _seen_context(run: Path, model: Model, names: tuple[str, ...]) -> Any:
    """Returns conditions that the run has kept for its report; None for a model file, or without any."""
    if not names or not (run / PREVIEW_FILE).is_file():
        return None
    preview = RunDirectory(run).preview()
    if isinstance(model, TableFlow):
        columns = preview.columns or {}
        numeric = all(name in columns and columns[name].dtype.kind in "fiu" for name in names)
        return list(zip(*(columns[name] for name in names), strict=True)) if numeric else None
    return preview.context


def _show(found: Exported, columns: int, conditions: int) -> None:
    """Prints what has been written, its steps and how it agrees with the flow."""
    about, agreed = found.about, found.agreement
    given = f", given {conditions}" if conditions else ""
    print(f"exported: {about['function']} of {columns} column{'s' if columns > 1 else ''}{given}, {about['dtype']}")
    print(f"steps of each block: {', '.join(about['steps'].splitlines()) or 'none'}")
    moved = f", {agreed.moved:.1e} standard deviations" if agreed.moved else ""
    rounding = f" ({about['dtype']} itself rounds by {agreed.rounding:.1e})" if agreed.rounding else ""
    print(f"largest difference from the flow: {agreed.difference:.1e} nats{moved}{rounding}, on {agreed.rows} rows")
    size = found.path.stat().st_size / 1e6
    print(f"written: {found.path} ({about['format']}, {size:.1f} MB, torch {about['torch']})")
