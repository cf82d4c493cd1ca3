"""What the comparison needs of a flow, whoever trains it."""

from __future__ import annotations

from torch import Tensor, nn

from jkoflow.flow import base_log_prob


class SolverError(RuntimeError):
    """The solver of a continuous flow gave up: its velocity has become too steep."""


class Model(nn.Module):
    """A flow on standardised columns whose map can be computed more and more finely.

    Level 0 is how the flow is trained; every further level is finer: twice the Runge-Kutta steps, or a tolerance ten
    times tighter. A flow in closed form has one level only.
    """

    levels: int = 1
    """Number of levels."""

    val_level: int = 0
    """The level at which validation rows are scored: a likelihood that only a coarse level has is no likelihood."""

    def loss(self, x: Tensor) -> Tensor:
        """What training minimises on a batch x (B, d): the mean NLL in nats, and regularisation."""
        return self.nll(x).mean()

    def encode(self, x: Tensor, level: int = 0) -> tuple[Tensor, Tensor]:
        """Carries data x (B, d) to noise (B, d), with the log abs det of the Jacobian (B,)."""
        raise NotImplementedError

    def decode(self, z: Tensor, level: int = 0) -> Tensor:
        """Carries noise (B, d) to data (B, d)."""
        raise NotImplementedError

    def describe_level(self, level: int) -> str:
        """The level for a reader, such as ``12 steps per block``."""
        return "closed form"

    def refine(self) -> bool:
        """Makes training itself finer; False if it cannot be."""
        return False

    def nll(self, x: Tensor, level: int = 0) -> Tensor:
        """Negative log-likelihood of every row in nats, with shape (B,)."""
        z, logdet = self.encode(x, level)
        return -base_log_prob(z) - logdet

    @property
    def has_fixed_steps(self) -> bool:
        """Whether level 1 has twice the Runge-Kutta steps of level 0, so that their difference tells a guard."""
        return False
