"""The rows that a training can use: those that enter the first block at a finite place, not far outside the others."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from jkoflow.callers import warn_caller
from jkoflow.data import DataError, Dataset, DataWarning
from jkoflow.flow import JKOFlow
from jkoflow.left_out import RowNames
from jkoflow.mapped import parts, select
from jkoflow.training.place import Place
from jkoflow.training.start import ENTERED_ROWS, entered_rows
from jkoflow.training.world import World

FAR = 3.0
"""Distance from the centre, as a multiple of that of the farthest training row, beyond which a row is far outside."""


def usable_rows(
    flow: JKOFlow, data: Dataset, entered: Tensor, world: World
) -> tuple[Dataset, Tensor, Place | None, dict[str, int]]:
    """Returns data without the rows that would decide a training alone, and how many these are, by part.

    One such row makes every mean that it is part of NaN, or so large that the other rows do not count: no block would
    be taken. A `jkoflow.data.DataWarning` names the rows.

    Arguments:
        flow: The flow, of which standardisation and initial map are used.
        data: The data.
        entered: The training rows of this process (`World.part`) as they enter the first block, with shape (n, d).
        world: The processes.

    Returns:
        The data without training rows that overflow before the first block, and without validation rows that do so or
        are far outside the training rows; test rows stay. The training rows of these and of this process as they enter
        the first block, and their place among all of them; None if they are all. And the numbers of rows left out, by
        ``"train"`` and ``"val"``.

    Raises:
        DataError: If no training row, or no validation row, is left.
    """
    good_train, farthest = torch.empty(len(entered), dtype=torch.bool), torch.full((1,), -torch.inf)
    for part, good in zip(parts(entered, ENTERED_ROWS), good_train.split(ENTERED_ROWS), strict=True):
        distance = part.square().sum(1).sqrt().cpu()
        good.copy_(torch.isfinite(distance))
        farthest = torch.maximum(farthest, distance.where(good, -torch.inf).max())
    good_train, farthest = world.gathered(good_train.view(torch.uint8)).view(torch.bool), world.gathered(farthest).max()
    val, test = (_distances(entered_rows(flow, rows)) for rows in (data.val, data.test))
    if not bool(good_train.any()):
        raise DataError("no training row enters the first block at a finite place; rescale the columns")
    limit = FAR * farthest
    good_val = val <= limit  # False for NaN
    outside = test > limit
    _warn(~good_train, "training rows", "overflow before the first block: they are left out; drop them, or rescale")
    _warn(
        ~good_val,
        "validation rows",
        "far outside the training rows: they would decide alone which parameters are best, and are left out; drop "
        "them, or see whether they are in the units of the training rows",
    )
    _warn(
        outside & torch.isfinite(test),
        "test rows",
        "far outside the training rows: they weigh on the test NLL; drop them, or see whether they are in the units of "
        "the training rows",
    )
    if not bool(good_val.any()):
        raise DataError("all validation rows lie far outside the training rows; give validation rows in the same units")
    left_out = {name: len(good) - _count(good) for name, good in (("train", good_train), ("val", good_val))}
    part, place = world.part(len(data.train)), None
    entered = select(entered, good_train[part]) if left_out["train"] else entered
    if world.size > 1:
        place = Place(*(_count(good_train[:end]) for end in (part.start, part.stop, len(good_train))))
    return _only(data, good_train, good_val), entered, place, left_out


def _only(data: Dataset, train: Tensor, val: Tensor) -> Dataset:
    """Returns data with the chosen training rows (N,) and validation rows (N_val,) alone."""
    chosen = {name: mask for name, mask in (("train", train), ("val", val)) if not bool(mask.all())}
    fields = {}
    for name, mask in chosen.items():
        for field in (name, f"{name}_context"):
            rows = getattr(data, field)
            fields[field] = None if rows is None else select(rows, mask)
    return dataclasses.replace(data, **fields) if fields else data


def _count(chosen: Tensor) -> int:
    """Returns the number of the chosen rows (N,); a sum would take 8 bytes of memory for each row."""
    return int(torch.count_nonzero(chosen))


def _distances(entered: Tensor) -> Tensor:
    """Returns the distances (N,) of rows (N, d) from the centre, on the CPU."""
    return torch.cat([part.square().sum(1).sqrt().cpu() for part in parts(entered)])


def _warn(rows: Tensor, name: str, text: str) -> None:
    if bool(rows.any()):
        warn_caller(f"{RowNames(name).some(rows)}: {text}", DataWarning)
