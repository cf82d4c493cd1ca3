"""Exact densities and samples from neural-ODE flows trained block by block on fused kernels."""

from __future__ import annotations

from jkoflow import _startup
from jkoflow._version import __version__

try:
    from jkoflow.block import Block
    from jkoflow.exporting import export
    from jkoflow.flow import JKOFlow
    from jkoflow.ops import FallbackWarning, Integrated, JKOTerms, integrate, jko_loss, velocity_and_divergence
    from jkoflow.table_flow import TableFlow, load
    from jkoflow.training import TrainConfig, train
    from jkoflow.velocity import ConcatSquashMLP, FourierTimeMLP, HyperMLP, MLPVelocity, ResidualMLP
except KeyboardInterrupt:
    _startup.end_if_command()
    raise

__all__ = [
    "Block",
    "ConcatSquashMLP",
    "FallbackWarning",
    "FourierTimeMLP",
    "HyperMLP",
    "Integrated",
    "JKOFlow",
    "JKOTerms",
    "MLPVelocity",
    "ResidualMLP",
    "TableFlow",
    "TrainConfig",
    "__version__",
    "export",
    "integrate",
    "jko_loss",
    "load",
    "train",
    "velocity_and_divergence",
]
