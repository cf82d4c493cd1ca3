"""Writes the files of a run on pictures beside the flow: the autoencoder, its vectors, and pictures of the samples."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.checkpoint import write_atomically
from jkoflow.data import require
from jkoflow.data.idx import PictureSet
from jkoflow.flow import JKOFlow
from jkoflow.images.autoencoder import Autoencoder, AutoencoderConfig
from jkoflow.images.autoencoder_training import encode, reconstruction_error, train_autoencoder
from jkoflow.metrics import spread_rows

AUTOENCODER_FILE = "autoencoder.safetensors"
LATENTS_FILE = "latents.npz"
IMAGES_FILE = "images.png"

COLUMNS = 16
"""Number of pictures in a line of IMAGES_FILE."""

LINES = (2, 2, 4)
"""Numbers of lines of real pictures, of their reconstructions by the autoencoder, and of samples."""


def prepare_latents(
    pictures: PictureSet,
    config: AutoencoderConfig,
    run: Path,
    *,
    seed: int = 0,
    seconds: float | None = None,
    device: str = "cpu",
    report: Callable[[str], None] | None = None,
) -> Path:
    """Trains an autoencoder and writes it, and the vectors of all pictures, into a run's directory.

    Arguments:
        pictures: The pictures.
        config: Settings of the autoencoder.
        run: Directory of the run; made if it does not exist.
        seed: Seed of the training, see `train_autoencoder`.
        seconds: Limit of time, see `train_autoencoder`.
        device: Where to train.
        report: Function that is called after every epoch, see `train_autoencoder`.

    Returns:
        The path of the vectors, a file for `jkoflow.data.load_dataset`.

    Raises:
        jkoflow.data.DataError: If the pictures' sides do not suit the autoencoder.
        jkoflow.environment.DeviceError: If PyTorch cannot use the device here.
        OSError: If the directory cannot be written.
    """
    autoencoder = train_autoencoder(
        pictures.train, pictures.val, config, seed=seed, seconds=seconds, device=device, report=report
    )
    run.mkdir(parents=True, exist_ok=True)
    autoencoder.save(run / AUTOENCODER_FILE, config, seed)
    parts = {name: encode(autoencoder, part).numpy() for name, part in pictures._asdict().items()}
    content = io.BytesIO()
    np.savez(content, **parts, features=np.array([f"z{column}" for column in range(config.dim)]))  # type: ignore[arg-type]
    write_atomically(run / LATENTS_FILE, content.getvalue())
    return run / LATENTS_FILE


def show_samples(pictures: PictureSet, flow: JKOFlow, run: Path, seed: int = 0) -> dict[str, float]:
    """Writes RUN/images.png: real test pictures, their reconstructions, and decoded samples of the flow.

    Arguments:
        pictures: The pictures.
        flow: The flow of the run.
        run: The run's directory, with the autoencoder.
        seed: Seed of the samples.

    Returns:
        ``reconstruction_error``, the root mean square error of the test pictures' pixels (from 0 to 1).

    Raises:
        jkoflow.checkpoint.CheckpointError: If the autoencoder is missing or damaged.
        jkoflow.data.MissingExtraError: If matplotlib is missing.
    """
    image = require("matplotlib.image", "writing a picture")
    autoencoder = Autoencoder.load(run / AUTOENCODER_FILE)
    real = spread_rows(torch.from_numpy(pictures.test.copy()), COLUMNS * LINES[0]).float() / 255
    vectors = flow.standardize.mean
    generator = torch.Generator(vectors.device).manual_seed(seed)
    with torch.no_grad():
        drawn = flow.rsample(COLUMNS * LINES[2], generator=generator).cpu().float()
        bands = [real, autoencoder.decode(autoencoder.encode(real)), autoencoder.decode(drawn)]
    content = io.BytesIO()
    image.imsave(content, mosaic(bands), cmap="gray", vmin=0, vmax=1, format="png", metadata={"Software": None})
    write_atomically(run / IMAGES_FILE, content.getvalue())
    return {"reconstruction_error": reconstruction_error(autoencoder, pictures.test)}


def mosaic(bands: list[Tensor], columns: int = COLUMNS, gap: int = 2) -> NDArray[np.float32]:
    """Lays pictures (n, height, width) side by side in lines, band under band, white between the bands."""
    sheets = []
    for band in bands:
        count, height, width = band.shape
        lines = -(-count // columns)
        padded = torch.ones(lines * columns, height, width)
        padded[:count] = band
        sheet = padded.reshape(lines, columns, height, width).transpose(1, 2).reshape(lines * height, columns * width)
        sheets += [sheet, torch.ones(4 * gap, columns * width)]
    return torch.cat(sheets[:-1]).numpy().astype(np.float32)
