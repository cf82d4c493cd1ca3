"""How much the tests of trust try: a little in every run, much with ``make soak`` (JKOFLOW_SOAK=long)."""

import os

LONG = os.environ.get("JKOFLOW_SOAK") == "long"


def amount(short: int, long: int) -> int:
    """How often something is tried."""
    return long if LONG else short
