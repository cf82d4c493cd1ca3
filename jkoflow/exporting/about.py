"""What an artefact says about itself: names and texts that C++ reads, too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jkoflow._version import __version__
from jkoflow.frames import default_features
from jkoflow.ops.grid import Fixed
from jkoflow.table_flow import Model, TableFlow


def about(
    model: Model,
    form: str,
    what: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    given: Tensor,
    grids: Sequence[Fixed],
) -> dict[str, str]:
    """Describes an artefact.

    Arguments:
        model: What was exported.
        form: Name of the format.
        what: Name of the function.
        inputs: Names of what the function is given.
        outputs: Names of its results.
        given: Rows of which the function takes such.
        grids: The grid of every block.

    Returns:
        Texts by name. Names of columns stand one on a line; a line break within a name becomes a space.
    """
    flow = model.flow if isinstance(model, TableFlow) else model
    columns, context = names_of(model)
    steps = (f"{block.method} {grid.num_steps}" for block, grid in zip(flow.stack, grids, strict=True))
    return {
        "jkoflow": __version__,
        "torch": str(torch.__version__),
        "format": form,
        "function": what,
        "inputs": "\n".join(inputs),
        "outputs": "\n".join(outputs),
        "columns": _lines(columns),
        "context": _lines(context),
        "dtype": str(given.dtype).removeprefix("torch."),
        "steps": "\n".join(steps),
        "units": "x and context in the columns' own units, log_prob and logdet in nats in these units",
    }


def names_of(model: Model) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of the columns and of the context, in the order in which the artefact takes them."""
    if isinstance(model, TableFlow):
        return model.features, model.context_features
    return model.features or default_features(model.dim), model.context_features or tuple(
        f"context{column}" for column in range(model.context_dim)
    )


def _lines(names: Sequence[str]) -> str:
    return "\n".join(" ".join(name.splitlines()) for name in names)
