"""Tables of FITS files, through astropy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jkoflow.data.checks import DataError
from jkoflow.data.readers.arrays import array_table
from jkoflow.data.readers.damage import reading
from jkoflow.data.readers.options import ReadOptions
from jkoflow.data.readers.packed import check_announced
from jkoflow.data.readers.row_numbers import without_row_numbers
from jkoflow.data.table import Table
from jkoflow.optional import require


def read_fits(path: Path, options: ReadOptions, notes: list[str]) -> Table:
    """Reads the first table of a FITS file, missing where it is masked; columns of arrays are left out with a note."""
    fits = require("astropy.io.fits", "reading FITS files", "fits")
    tables = require("astropy.table", "reading FITS files", "fits")
    with reading(".fits"), fits.open(path, memmap=False) as file:
        found = [unit for unit in file if isinstance(unit, fits.BinTableHDU | fits.TableHDU)]
        if not found:
            raise DataError("has no table, only images; save the table's extension")
        check_announced(int(found[0].header["NAXIS1"]) * int(found[0].header["NAXIS2"]))
        held = tables.Table.read(found[0])
        columns: dict[str, Any] = {name: np.ma.copy(np.ma.asarray(held[name])) for name in held.colnames}
    if len(found) > 1:
        notes.append(f"took the first of {len(found)} tables")
    left_out = [name for name, column in columns.items() if column.ndim != 1]
    if left_out:
        notes.append(f"left out the columns that hold arrays: {', '.join(left_out)}")
    kept = [name for name in columns if name not in left_out]
    if not kept:
        raise DataError("has no columns of one value for each row")
    values = [array_table({"all": columns[name]}, None, ReadOptions(), []).parts["all"][0] for name in kept]
    return without_row_numbers(Table({"all": values}, tuple(kept)), True, options, notes)
