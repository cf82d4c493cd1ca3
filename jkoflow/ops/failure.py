"""The error of an integration that does not reach its end."""

from __future__ import annotations

from jkoflow.errors import UserError

_REASONS = {
    "max_steps": "max_steps = {max_steps} steps are taken; raise max_steps, or loosen rtol and atol",
    "underflow": "the step has shrunk to {dt:.3g}; the velocity may have a jump or a pole there",
    "not_finite": "the velocity or its divergence is not finite; is the row finite?",
}


class IntegrationError(UserError, RuntimeError):
    """Raised if adaptive steps do not carry a row to the end of its interval."""

    def __init__(self, row: int, reason: str, t: float, dt: float, max_steps: int) -> None:
        super().__init__(row, reason, t, dt, max_steps)
        self.row = row
        """Number of the first such row."""
        self.reason = reason
        """Reason: ``"max_steps"``, ``"underflow"`` or ``"not_finite"``."""
        self.t = t
        """Time that the row has reached."""

    def __str__(self) -> str:
        row, reason, t, dt, max_steps = self.args
        return f"row {row} stops at t = {t:.6g}: " + _REASONS[reason].format(max_steps=max_steps, dt=dt)
