"""The error of an export."""

from __future__ import annotations

from jkoflow.errors import UserError


class ExportError(UserError, ValueError):
    """Raised if a model cannot be exported as asked; the message is one line and tells the fix."""
