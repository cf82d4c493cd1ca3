"""How much the tests of trust try: a little in every run, much with ``make soak`` (JKOFLOW_SOAK=long)."""

import os
from typing import TypeVar

T = TypeVar("T")

LONG = os.environ.get("JKOFLOW_SOAK") == "long"


def amount(short: T, long: T) -> T:
    """How often, or on what, something is tried."""
    return long if LONG else short
