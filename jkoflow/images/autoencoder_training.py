"""The training of an autoencoder, its use on many pictures and the measure of its error."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jkoflow.data.idx import Pictures
from jkoflow.environment import usable_device
from jkoflow.images.autoencoder import Autoencoder, AutoencoderConfig

CHUNK = 1000
"""Number of pictures that are encoded or decoded at a time after training."""


def train_autoencoder(
    pictures: Pictures,
    val: Pictures,
    config: AutoencoderConfig,
    *,
    seed: int = 0,
    seconds: float | None = None,
    device: str | torch.device = "cpu",
    report: Callable[[str], None] | None = None,
) -> Autoencoder:
    """Trains an autoencoder on grey pictures, for the squared error of their pixels.

    Arguments:
        pictures: Pictures of 0 to 255 to train on, with shape (N, height, width).
        val: Pictures to measure the error on.
        config: Settings.
        seed: Seed of the first weights, of the order of the pictures and of the noise.
        seconds: Limit of time: the learning rate's cosine then runs along the time, over as many epochs as there is
            time for. None means ``config.epochs`` epochs.
        device: Where to train.
        report: Function that is called after every epoch with a line of text about the error.

    Returns:
        The autoencoder, in evaluation mode.

    Raises:
        DataError: If the pictures' sides do not suit ``config.channels``.
        DeviceError: If PyTorch cannot use the device here.
    """
    started = time.monotonic()
    device = usable_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        height, width = pictures.shape[1:]
        autoencoder = Autoencoder(height, width, config.dim, config.channels).to(device)
    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(autoencoder.parameters(), config.learning_rate)
    rows = torch.from_numpy(pictures.copy())  # the file's bytes are read-only
    batches = math.ceil(len(rows) / config.batch_size)
    epoch, progress = 0, 0.0
    while progress < 1:
        for number, chosen in enumerate(torch.randperm(len(rows), generator=generator).split(config.batch_size)):
            if seconds is None:
                progress = (epoch * batches + number) / (config.epochs * batches)
            else:
                progress = min((time.monotonic() - started) / seconds, 1.0)
            if progress >= 1:
                break
            for group in adam.param_groups:
                group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
            _update(autoencoder, adam, rows[chosen], config, generator)
        epoch += 1
        if seconds is None:
            progress = epoch / config.epochs
        if report is not None:
            whole = "" if seconds is not None else f"/{config.epochs}"
            report(f"autoencoder: epoch {epoch}{whole}, error {reconstruction_error(autoencoder, val):.4f}")
    return autoencoder.eval()


def _update(
    autoencoder: Autoencoder,
    adam: torch.optim.Adam,
    batch: Tensor,
    config: AutoencoderConfig,
    generator: torch.Generator,
) -> None:
    device = next(autoencoder.parameters()).device
    x = batch.to(device).float() / 255
    vectors = autoencoder.encode(x)
    noise = torch.randn(vectors.shape, generator=generator).to(device)
    decoded = autoencoder.decode(vectors + config.noise * noise)
    loss = (decoded - x).square().sum((1, 2)).mean() + config.weight * vectors.square().sum(1).mean()
    adam.zero_grad(set_to_none=True)
    loss.backward()
    adam.step()


@torch.no_grad()
def encode(autoencoder: Autoencoder, pictures: Pictures) -> Tensor:
    """Carries pictures of 0 to 255 with shape (N, height, width) to vectors, on the CPU, with shape (N, d)."""
    return torch.cat([autoencoder.encode(part).cpu() for part in _parts(autoencoder, pictures)])


@torch.no_grad()
def reconstruction_error(autoencoder: Autoencoder, pictures: Pictures) -> float:
    """Computes the root mean square of the pixels' errors, pixels from 0 to 1."""
    total = 0.0
    for part in _parts(autoencoder, pictures):
        total += float((autoencoder.decode(autoencoder.encode(part)) - part).double().square().sum())
    return math.sqrt(total / pictures.size)


def _parts(autoencoder: Autoencoder, pictures: Pictures) -> Iterator[Tensor]:
    device = next(autoencoder.parameters()).device
    for begin in range(0, len(pictures), CHUNK):
        yield torch.from_numpy(pictures[begin : begin + CHUNK].copy()).to(device).float() / 255
