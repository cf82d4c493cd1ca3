"""The tabular sets of the MAF benchmark, from the benchmark's files or UCI's, with the published preprocessing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.checks import DataError, DataWarning, default_features
from jkoflow.data.readers import ReadOptions, one_line, read_table
from jkoflow.data.readers.options import KEEP
from jkoflow.data.table import PARTS, Table
from jkoflow.optional import require

Rows = NDArray[Any]

COLLECTION = "the benchmark's files are on Zenodo, DOI 10.5281/zenodo.1161203"
"""Sentence that tells where Papamakarios et al. published their prepared files."""

HEPMASS_ROWS = (700_000, 350_000)
"""Rows read from the start of UCI's training and test file, a tenth of each; the benchmark's files hold no more."""

GAS_SHARE = 0.25
"""Share of the rows of UCI's file that the benchmark drew; which rows was not published."""

MANY_EQUAL = 5
"""Number of times that a column's smallest value may occur; HEPMASS leaves out columns in which it occurs more."""

ALIKE = 0.98
"""Largest correlation of a column of GAS with a later one; columns that correlate more are left out."""


@dataclass(frozen=True)
class Benchmark:
    """One set of the benchmark."""

    read: Callable[[Path], dict[str, Rows]]
    """Function that reads the three parts of the set from its directory."""
    files: tuple[tuple[str, ...], ...]
    """Files of the set; of each, the possible names in the order in which they are looked for."""
    origin: str
    """Sentence that tells where the files come from."""
    sizes: tuple[int, int, int]
    """Numbers of rows of the three published parts."""


def read_benchmark(name: str, directory: str | Path) -> Table:
    """Reads one set of the MAF benchmark.

    Arguments:
        name: A key of `BENCHMARKS`.
        directory: The directory of the files, or one with a folder of the set's name (``power``, ``BSDS300``) for them.

    Returns:
        Three parts, float32, in the units in which the benchmark's likelihoods are reported: standardised, but for
        ``bsds300``. Parts of other sizes than the published ones are a `DataWarning`.

    Raises:
        DataError: If a file is missing or is not the benchmark's; the message says where the file comes from.
        MissingExtraError: If pandas (HEPMASS, GAS) or h5py (``BSDS300.hdf5``) is needed and not installed.

    References:
        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057
    """
    benchmark = BENCHMARKS[name]
    parts = benchmark.read(_place(name, Path(directory)))
    sizes = tuple(len(parts[part]) for part in PARTS)
    if min(sizes) == 0:
        raise DataError(f"{directory}: too few rows for three parts of {name.upper()}, got {sizes}")
    if sizes != benchmark.sizes:
        wanted, found = (" / ".join(f"{size:,}" for size in both) for both in (benchmark.sizes, sizes))
        warnings.warn(
            f"{directory}: {name.upper()} has {wanted} rows to train on, to choose by and to report on, these files "
            f"give {found}: likelihoods do not compare with published ones",
            DataWarning,
            stacklevel=2,
        )
    parts = {part: parts[part].astype(np.float32) for part in PARTS}
    return Table({part: list(rows.T) for part, rows in parts.items()}, default_features(parts["train"].shape[1]))


def _power(place: Path) -> dict[str, Rows]:
    """Reads household power consumption, without two columns, its rounding undone by noise of the benchmark's seed."""
    rows = np.array(_array(place / "data.npy"), dtype=np.float64)
    _require_columns(rows, 8, place / "data.npy")
    generator = np.random.RandomState(42)  # the old generator, so that rows and noise are the published ones
    generator.shuffle(rows)
    rows = np.delete(rows, [1, 3], axis=1)  # as published: reactive power and current
    count = len(rows)
    voltage = 0.01 * generator.rand(count, 1)
    active = 0.001 * generator.rand(count, 1)
    meters = generator.rand(count, 3)
    rows += np.hstack([active, voltage, meters, np.zeros((count, 1))])  # the time of day is exact
    return _standardised(_tail_split(rows))


def _gas(place: Path) -> dict[str, Rows]:
    """Reads gas sensors: a random quarter of the rows, no time, no concentrations, one of every two columns alike."""
    pandas = require("pandas", "reading ethylene_CO.txt")
    path = place / "ethylene_CO.txt"
    frame = _parse(path, lambda: pandas.read_csv(path, sep=r"\s+", skiprows=1, header=None, dtype=np.float64))
    rows = frame.to_numpy()
    _require_columns(rows, 19, path)
    chosen = np.random.default_rng(0).permutation(len(rows))[: round(GAS_SHARE * len(rows))]
    rows = rows[chosen, 3:]
    alike = np.corrcoef(rows.T) > ALIKE
    kept = list(range(rows.shape[1]))
    while len(repeated := [column for column in kept if alike[column, kept].sum() > 1]):
        kept.remove(repeated[0])
    rows = rows[:, kept]
    return _tail_split((rows - rows.mean(0)) / rows.std(0, ddof=1))  # all rows, those of the test too, as published


def _hepmass(place: Path) -> dict[str, Rows]:
    """Reads particle collisions: rows of the signal only, without columns that hold many equal values."""
    paths = (place / "1000_train.csv", place / "1000_test.csv")
    train, test = (_signal(path, limit) for path, limit in zip(paths, HEPMASS_ROWS, strict=True))
    if test.shape[1] not in (train.shape[1], train.shape[1] + 1):
        raise DataError(
            f"{paths[1]} must have the {train.shape[1]} features of {paths[0].name}, and perhaps one more, "
            f"got {test.shape[1]}; {BENCHMARKS['hepmass'].origin}"
        )
    test = test[:, : train.shape[1]]  # the published test file has a column too many
    mean, std = train.mean(0), train.std(0, ddof=1)
    kept = (train == train.min(0)).sum(0) <= MANY_EQUAL
    train, test = ((rows[:, kept] - mean[kept]) / std[kept] for rows in (train, test))
    held_out = int(0.1 * len(train))
    return {"train": train[: len(train) - held_out], "val": train[len(train) - held_out :], "test": test}


def _signal(path: Path, limit: int) -> Rows:
    """Reads the features of the rows with label 1 among the first ``limit`` rows."""
    pandas = require("pandas", f"reading {path.name}")

    def read() -> Rows:
        # the header of the test file lacks a name: without one, every column is read; in pieces, as UCI's is large
        pieces = pandas.read_csv(path, header=None, skiprows=1, nrows=limit, chunksize=100_000, dtype=np.float64)
        return np.concatenate([rows[rows[:, 0] == 1][:, 1:] for rows in (piece.to_numpy() for piece in pieces)])

    rows = _parse(path, read)
    if len(rows) == 0 or rows.shape[1] == 0:
        raise DataError(f"{path} has no rows with label 1 in its first column; {BENCHMARKS['hepmass'].origin}")
    return rows


def _miniboone(place: Path) -> dict[str, Rows]:
    """Reads neutrino oscillations as the benchmark's file has them."""
    return _standardised(_tail_split(np.asarray(_array(place / "data.npy"), dtype=np.float64)))


def _bsds300(place: Path) -> dict[str, Rows]:
    """Reads patches of photographs without standardising them, since their likelihoods are reported in these units."""
    own = place / "BSDS300.hdf5"
    if not own.exists():
        table = read_table(place / "bsds300.npz")
        if not table.is_split:
            raise DataError(f"{place / 'bsds300.npz'} must hold the arrays train, val and test")
        return {part: table.numbers(part) for part in PARTS}
    h5py = require("h5py", "reading BSDS300.hdf5", "hdf5")

    def read() -> dict[str, Rows]:
        with h5py.File(own, "r") as file:
            names = {"train": "train", "val": "validation", "test": "test"}
            return {part: np.asarray(file[name], dtype=np.float32) for part, name in names.items()}

    parts = _parse(own, read)
    widths = {part: rows.shape[1:] for part, rows in parts.items()}
    if any(rows.ndim != 2 for rows in parts.values()) or len(set(widths.values())) > 1:
        raise DataError(f"{own} must hold three tables of as many columns, got {widths}")
    return parts


def _array(path: Path) -> Rows:
    table = read_table(path, ReadOptions(index_column=KEEP))
    if table.is_split:
        raise DataError(f"{path} must hold one array of rows")
    return table.numbers("all")


def _require_columns(rows: Rows, columns: int, path: Path) -> None:
    if rows.shape[1] != columns:
        raise DataError(f"{path} must have {columns} columns as the benchmark's file, got {rows.shape[1]}")


def _tail_split(rows: Rows) -> dict[str, Rows]:
    """Splits rows: the last tenth is for the test, the last tenth of the rest for validation."""
    test = int(0.1 * len(rows))
    val = int(0.1 * (len(rows) - test))
    ends = [len(rows) - test - val, len(rows) - test]
    return dict(zip(PARTS, np.split(rows, ends), strict=True))


def _standardised(parts: dict[str, Rows]) -> dict[str, Rows]:
    """Standardises the parts by the moments of training and validation rows together, as published."""
    known = np.concatenate([parts["train"], parts["val"]])
    if len(known) == 0:
        return parts
    mean, std = known.mean(0), known.std(0)
    return {part: (rows - mean) / std for part, rows in parts.items()}


def _parse(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise DataError(f"{path} is damaged or not the benchmark's file: {one_line(error)}") from error


def _place(name: str, directory: Path) -> Path:
    """Returns the folder of a set's files; if one is missing, raises an error that says where it comes from."""
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory; give the one with the files of {name.upper()}")
    choices = [directory, *(directory / folder for folder in (name, name.upper()))]
    files = BENCHMARKS[name].files
    for place in choices:
        if all(any((place / file).is_file() for file in either) for either in files):
            return place
    missing = [
        " or ".join(either)
        for either in files
        if not any((place / file).is_file() for place in choices for file in either)
    ]
    raise DataError(
        f"{directory} (or {name}/ in it) lacks {', '.join(missing) or 'the files, all in one place'}; "
        f"{BENCHMARKS[name].origin}"
    )


BENCHMARKS: dict[str, Benchmark] = {
    "power": Benchmark(
        _power,
        (("data.npy",),),
        f"{COLLECTION}; power/data.npy there was made from UCI 235, Individual household electric power consumption",
        (1_659_917, 184_435, 204_928),
    ),
    "gas": Benchmark(
        _gas,
        (("ethylene_CO.txt",),),
        "it is in UCI 322, Gas sensor array under dynamic gas mixtures; the benchmark's own pickle is not read, since "
        "loading a pickle can run anything",
        (852_174, 94_685, 105_206),
    ),
    "hepmass": Benchmark(
        _hepmass,
        (("1000_train.csv",), ("1000_test.csv",)),
        f"they are in UCI 347, HEPMASS (unpacked); or {COLLECTION}",
        (315_123, 35_013, 174_987),
    ),
    "miniboone": Benchmark(
        _miniboone,
        (("data.npy",),),
        f"{COLLECTION}; miniboone/data.npy there was made from UCI 199, MiniBooNE particle identification",
        (29_556, 3_284, 3_648),
    ),
    "bsds300": Benchmark(
        _bsds300,
        (("BSDS300.hdf5", "bsds300.npz"),),
        f"{COLLECTION}; bsds300.npz is one's own draw of patches from the Berkeley Segmentation Dataset, as arrays "
        "train, val and test",
        (1_000_000, 50_000, 250_000),
    ),
}
"""The sets of the benchmark by name."""
