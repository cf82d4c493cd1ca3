"""Small files of every kind that tables are read from."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest


def write_every_kind(folder: Path) -> None:
    """Writes a table, and tables alike, in every kind of file that what is installed can write."""
    rows = np.random.default_rng(0).normal(size=(60, 3))
    frame = pd.DataFrame(rows[:30], columns=["a", "b", "c"])
    frame = frame.assign(kind=["x", "y"] * 15, day=pd.Timestamp("2024-01-01"))
    for suffix in (".csv", ".tsv", ".txt", ".csv.gz", ".csv.bz2", ".csv.xz"):
        frame.to_csv(folder / f"t{suffix}")
    with pyarrow.CompressedOutputStream(str(folder / "t.csv.zst"), "zstd") as stream:
        stream.write(frame.to_csv().encode())
    frame.to_parquet(folder / "t.parquet")
    frame.to_feather(folder / "t.feather")
    frame.to_feather(folder / "t.arrow", compression="uncompressed")
    np.save(folder / "t.npy", rows)
    np.savez(folder / "t.npz", rows=rows, features=np.array(list("abc")))
    np.savez_compressed(folder / "packed.npz", rows)
    scipy_io = pytest.importorskip("scipy.io")
    held = {"X": rows, "names": np.array(["a", "b", "c"], object)}
    scipy_io.savemat(folder / "t.mat", held)
    scipy_io.savemat(folder / "packed.mat", held, do_compression=True)
    scipy_io.savemat(folder / "old.mat", {"X": rows}, format="4")
    with pytest.importorskip("h5py").File(folder / "new.mat", "w") as file:
        file["X"] = rows.T
    try:
        from astropy.table import Table
    except ImportError:
        return
    Table.from_pandas(frame[["a", "b", "kind"]]).write(folder / "t.fits")
