"""What kinds of values the fields of a run's files have, so that a damaged one is found where it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Tells whether a value is a number, or None, which stands for one that is not finite."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def is_count(value: Any) -> bool:
    """Tells whether a value is a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_text(value: Any) -> bool:
    """Tells whether a value is a text."""
    return isinstance(value, str)


def is_flag(value: Any) -> bool:
    """Tells whether a value is true or false."""
    return isinstance(value, bool)


def list_of(check: Check) -> Check:
    """Returns a check of lists whose entries pass another one."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def table_of(check: Check) -> Check:
    """Returns a check of objects whose values pass another one."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def record_of(fields: Mapping[str, Check]) -> Check:
    """Returns a check of objects that have all of some fields, each of which passes its own."""
    return lambda value: (
        isinstance(value, dict) and all(name in value and check(value[name]) for name, check in fields.items())
    )


_DISTANCES = ("mmd_median", "mmd_fixed", "energy_distance")

_ROUND: dict[str, Check] = {
    "round": is_count,
    "kind": is_text,
    "blocks": is_count,
    "step_sizes": list_of(is_number),
    "movements": list_of(is_number),
    "movement_spread": is_number,
    "val_nll": is_number,
    "kept": is_flag,
    "seconds": is_number,
}
_FIGURE: dict[str, Check] = {"model": is_text, "nll": is_number, "source": is_text}

OPTIONAL_METRICS: dict[str, Check] = {
    "rounds": list_of(record_of(_ROUND)),
    "columns": list_of(record_of(dict.fromkeys(("name", "kind", "reason", "treatment", "measure"), is_text))),
    "rows_left_out": table_of(is_count),
    "seen": lambda value: isinstance(value, dict),
    "published": list_of(record_of(_FIGURE)),
    "movements_stderr": list_of(is_number),
    **dict.fromkeys(("experiment", "paper_remark", "paper_nll_units", "fingerprint", "initial_map"), is_text),
    **dict.fromkeys(("test_nll_converged", "paper_nll_comparable"), is_flag),
    **dict.fromkeys(("n_val", "n_test", "context_dim", "two_sample_rows"), is_count),
    **dict.fromkeys(
        (
            *("test_bits_per_dim", "test_bits_per_dim_stderr", "val_nll", "overfit_gap", "overfit_gap_stderr"),
            *("inversion_error_stderr", "reconstruction_error", "paper_nll", "reproduced_nll", "reproduced_nll_stderr"),
            *(f"inversion_error_exact_{name}" for name in ("mean", "max", "stderr")),
            *(f"{name}{part}" for name in _DISTANCES for part in ("", "_stderr", "_threshold")),
        ),
        is_number,
    ),
}
"""Checks of the metrics that runs have since some version, or by some command."""

TOGETHER: tuple[tuple[str, ...], ...] = (
    ("test_bits_per_dim", "test_bits_per_dim_stderr"),
    ("inversion_error_exact_mean", "inversion_error_exact_max"),
    *((name, f"{name}_stderr", f"{name}_threshold", "two_sample_rows") for name in _DISTANCES),
    ("experiment", "reproduced_nll", "reproduced_nll_stderr", "paper_nll", "paper_nll_units", "paper_nll_comparable"),
    ("experiment", "paper_remark", "published"),
)
"""Metrics that come together: where the first is, the others are."""

_TEXTS = ("event", "kind", "action")


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Refuses metrics of another kind than a run writes.

    Raises:
        ValueError: If there is one; the message names it.
    """
    for name, check in OPTIONAL_METRICS.items():
        if name in metrics and not check(metrics[name]):
            raise ValueError(f"{name} is not what a run writes: {str(metrics[name])[:60]!r}")
    for first, *others in TOGETHER:
        missing = [name for name in others if first in metrics and name not in metrics]
        if missing:
            raise ValueError(f"it has {first} and no {', '.join(missing)}")


def check_record(record: Mapping[str, Any]) -> None:
    """Refuses a record of the history with values of another kind than a run writes.

    Raises:
        ValueError: If there is one; the message names it.
    """
    for name, value in record.items():
        plain = is_text(value) if name in _TEXTS else is_number(value) or is_flag(value)
        if not (plain or (name not in _TEXTS and list_of(is_number)(value))):
            raise ValueError(f"{name} is not what a run writes: {str(value)[:60]!r}")
