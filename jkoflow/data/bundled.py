"""Real data that ship with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jkoflow.data.dataset import Dataset
from jkoflow.data.splits import to_float32

GASTURBINE_ATTRIBUTION = (
    "Gas Turbine CO and NOx Emission Data Set (H. Kaya, P. Tüfekci, E. Uzun, 2019), UCI Machine Learning Repository "
    "551, CC BY 4.0; duplicate rows dropped, five coarsely rounded columns dequantised"
)


def gasturbine() -> Dataset:
    """Loads eleven hourly sensor readings of a gas turbine, in their own units, with a fixed split."""
    with np.load(Path(__file__).with_name("gasturbine.npz"), allow_pickle=False) as archive:
        mean, std = archive["mean"], archive["std"]
        train, val, test = (to_float32(archive[part] * std + mean) for part in ("train", "val", "test"))
        features = tuple(str(name) for name in archive["features"])
    return Dataset("gasturbine", train, val, test, features, GASTURBINE_ATTRIBUTION)
