"""Defines a small convolutional autoencoder of grey pictures, in plain PyTorch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from jkoflow import checkpoint
from jkoflow.data import DataError
from jkoflow.restore import described, restored

KIND = "autoencoder"


@dataclass(frozen=True)
class AutoencoderConfig:
    """The settings of an autoencoder and of its training.

    Arguments:
        dim: Length d of the vectors that pictures are carried to.
        channels: Channels after each convolution; every one halves height and width.
        epochs: Passes over the training pictures.
        batch_size: Pictures per iteration.
        learning_rate: Peak learning rate of Adam, left along a cosine.
        noise: Standard deviation of the noise that is added to a vector's components in training. Points between the
            vectors of training pictures then decode to pictures like their neighbours.
        weight: Weight of the vectors' mean square in the loss, against the squared error summed over a picture. It
            keeps the vectors from growing until the noise no longer matters.

    Raises:
        ValueError: If a value is out of its range.
    """

    dim: int = 16
    channels: tuple[int, ...] = (32, 64)
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 2e-3
    noise: float = 0.1
    weight: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # TOML and JSON give lists
        whole = (self.dim, self.epochs, self.batch_size, *self.channels)
        if not self.channels or not all(isinstance(value, int) and value >= 1 for value in whole):
            raise ValueError(f"dim, channels, epochs and batch_size must be whole numbers of at least 1, got {self}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        if not (0 <= self.noise < math.inf and 0 <= self.weight < math.inf):
            raise ValueError(f"noise and weight must be finite and not negative, got {self.noise} and {self.weight}")


class Autoencoder(nn.Module):
    """Carries pictures to vectors and back.

    Arguments:
        height: Height of a picture; it and the width must be divisible by 2 once for every entry of ``channels``.
        width: Width of a picture.
        dim: Length d of the vectors.
        channels: Channels after each convolution.

    Raises:
        DataError: If height or width cannot be halved that often.

    Example:
        >>> autoencoder = Autoencoder(28, 28, 16)
        >>> autoencoder.decode(autoencoder.encode(torch.rand(5, 28, 28))).shape
        torch.Size([5, 28, 28])
    """

    def __init__(self, height: int, width: int, dim: int = 16, channels: tuple[int, ...] = (32, 64)) -> None:
        super().__init__()
        share = 2 ** len(channels)
        if height % share or width % share or min(height, width) < share:
            raise DataError(
                f"pictures must have sides divisible by {share} for {len(channels)} convolutions, "
                f"got {height} x {width}"
            )
        self.height, self.width, self.dim, self.channels = height, width, dim, tuple(channels)
        self.inner = (channels[-1], height // share, width // share)
        size = math.prod(self.inner)
        down: list[nn.Module] = []
        for before, after in zip((1, *channels), channels, strict=False):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.SiLU()]
        up: list[nn.Module] = []
        for before, after in zip(reversed(channels), (*reversed(channels[:-1]), 1), strict=True):
            up += [nn.SiLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(size, dim))
        self.decoder = nn.Sequential(nn.Linear(dim, size), nn.Unflatten(1, self.inner), *up, nn.Sigmoid())

    def encode(self, pictures: Tensor) -> Tensor:
        """Carries pictures, from 0 to 1 and with shape (B, height, width), to vectors (B, d)."""
        return self.encoder(pictures.unsqueeze(1))

    def decode(self, vectors: Tensor) -> Tensor:
        """Carries vectors (B, d) to pictures, from 0 to 1 and with shape (B, height, width)."""
        return self.decoder(vectors).squeeze(1)

    def save(self, path: str | Path, config: AutoencoderConfig, seed: int) -> None:
        """Writes the weights, and the settings they were trained with, into one safetensors file, atomically."""
        shape = {"height": self.height, "width": self.width, "dim": self.dim, "channels": list(self.channels)}
        checkpoint.save(
            path, KIND, self.state_dict(), {"shape": shape, "settings": dataclasses.asdict(config), "seed": seed}
        )

    @classmethod
    def load(cls, path: str | Path) -> Autoencoder:
        """Reads an autoencoder that `save` wrote.

        Raises:
            jkoflow.checkpoint.CheckpointError: If the file is missing or damaged.
        """
        tensors, description = checkpoint.load(path, KIND)
        with described(path, "an autoencoder"):
            shape = description["shape"]
            sizes = shape["height"], shape["width"], shape["dim"], tuple(shape["channels"])
            return restored(lambda: cls(*sizes), tensors)
