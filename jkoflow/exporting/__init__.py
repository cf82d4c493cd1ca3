"""Export of a trained flow into a file that Python or C++ runs without this package."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from jkoflow import checkpoint
from jkoflow.exporting.about import about
from jkoflow.exporting.check import Agreement, agreement
from jkoflow.exporting.errors import ExportError
from jkoflow.exporting.formats import FORMATS
from jkoflow.exporting.functions import FUNCTIONS
from jkoflow.exporting.quiet import quiet
from jkoflow.exporting.rows import drawn_rows
from jkoflow.exporting.steps import chosen_grids
from jkoflow.exporting.table import TableLogProb, check_columns
from jkoflow.ops.autocast import without_autocast
from jkoflow.ops.grid import Steps
from jkoflow.table_flow import Model, TableFlow

__all__ = ["FORMATS", "FUNCTIONS", "ExportError", "Exported", "export"]


class Exported(NamedTuple):
    """What has been written."""

    path: Path
    """The file."""
    about: dict[str, str]
    """What the artefact says about itself, by name, see docs/export.md."""
    agreement: Agreement
    """How the artefact agrees with the flow."""


@without_autocast
@torch.no_grad()
def export(
    model: Model,
    path: str | Path,
    format: Literal["torch-export", "aoti", "onnx"] = "torch-export",
    *,
    what: Literal["log_prob", "forward", "inverse", "sample"] = "log_prob",
    num_steps: Steps | None = None,
    tol: float | None = None,
    precision: Literal["auto", "float64"] = "auto",
    context: Any = None,
) -> Exported:
    """Writes a function of a flow into a file that runs without this package, and compares the file with the flow.

    The file holds operations of PyTorch alone, for any number of rows, and the Runge-Kutta steps are fixed in it. It
    appears, whole, once it has been loaded again and its results agree with those of the flow to 1e-5 nats, or to what
    rounding does to the flow. Rows with NaN have results of NaN; nothing else is checked when it runs.

    Arguments:
        model: The flow.
        path: The file, whose name ends in .pt2, or in .onnx for ``"onnx"``.
        format: ``"torch-export"``, which Python runs; ``"aoti"``, compiled by AOTInductor for the processor of this
            machine, which C++ runs, too; ``"onnx"``, which ONNX Runtime runs.
        what: ``"log_prob"``: data x to log_prob; ``"forward"``: data x to noise z and logdet; ``"inverse"``: noise z to
            data x and logdet; ``"sample"``: noise z to samples x and their log_prob. Tables have log_prob alone.
        num_steps: Runge-Kutta steps per block, or one number for each; None means the calibrated number.
        tol: Largest error of a row's log-density in nats, in place of ``num_steps``, on 256 samples; 1000 are compared.
        precision: ``"auto"`` computes in the flow's dtype; ``"float64"`` takes rows and computes in float64.
        context: Conditions (m, c), in the columns' own units, of the samples of a conditional flow; None makes them
            Gaussian.

    Returns:
        The file, what it says about itself and how it agrees with the flow.

    Raises:
        ExportError: If the model, the steps or the format cannot be had, or the artefact does not agree.
        jkoflow.optional.MissingExtraError: If ``"onnx"`` lacks its packages.
        ValueError: If an argument is out of its range.

    Example:
        >>> flow = JKOFlow(2, [Block(MLPVelocity(2))])
        >>> found = jkoflow.export(flow, "flow.pt2")  # doctest: +SKIP
        >>> log_prob, = torch.export.load("flow.pt2").module()(torch.zeros(5, 2))  # doctest: +SKIP
    """
    path = Path(path)
    for name, value, known in (("format", format, FORMATS), ("what", what, FUNCTIONS)):
        if value not in known:
            raise ExportError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if precision not in ("auto", "float64"):
        raise ExportError(f"precision must be auto or float64, got {precision!r}")
    form = FORMATS[format]
    if path.suffix != form.suffix:
        raise ExportError(f"a file of format {format} must end in {form.suffix}, got {path.name}")
    if isinstance(model, TableFlow):
        if what != "log_prob":
            raise ExportError(f"the flow of a table is exported as log_prob, got {what}; sample with jkoflow sample")
        check_columns(model.schema)
    form.check()
    model = copy.deepcopy(model).cpu().requires_grad_(False).eval()
    if precision == "float64":
        model = model.double()
    flow = model.flow if isinstance(model, TableFlow) else model
    kind = FUNCTIONS[what]
    drawn = drawn_rows(model, context, kind.inverse)
    grids = chosen_grids(flow, num_steps, tol, drawn.points, drawn.conditions, kind.inverse)
    module = TableLogProb(model, grids) if isinstance(model, TableFlow) else kind(flow, grids)
    names = [module.inputs, "context"][: len(drawn.inputs)]
    outputs: tuple[str, ...] = module.outputs
    told = about(model, format, what, names, outputs, drawn.inputs[0], grids)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        rows = torch.export.Dim("rows")
        dynamic = {name: {0: rows} for name in names}
        program = torch.export.export(module.eval(), drawn.inputs, dynamic_shapes=dynamic, strict=False)
        aside = Path(folder) / f"artefact{form.suffix}"
        form.write(program, told, outputs, aside)
        agreed = agreement(form.load(aside), model, what, drawn.inputs, grids)
        checkpoint.write_atomically(path, aside.read_bytes())
    return Exported(path, told, agreed)
