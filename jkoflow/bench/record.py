"""The record of a benchmark: the entry of each peer at a shape, the environment, and the failures."""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from jkoflow.bench.candidate import Peer
from jkoflow.bench.peers import PEERS
from jkoflow.bench.settings import Settings, device_type
from jkoflow.bench.shapes import Direction, Shape, flops
from jkoflow.bench.timing import Rounds, median

FORMAT = 2
"""Version of the record's format."""

NO_TIME = "no time left"


def blank(peer: Peer, settings: Settings) -> dict[str, Any]:
    """Returns the entry of a peer that has not been measured yet, which says why if it cannot be measured."""
    status, note = _standing(peer, settings)
    return {"peer": peer.name, "status": status, "note": note, "evaluations": None, "errors": {}}


def chosen(peers: Iterable[Peer], settings: Settings) -> list[Peer]:
    """Returns the peers of the libraries that are asked for, and ours."""
    return [peer for peer in peers if peer.library in {*settings.libraries, "jkoflow"}]


def figures(times: Rounds) -> dict[str, Any]:
    """Returns the milliseconds of a direction: ``ms``, the median, and ``rounds_ms``, those of the rounds."""
    return {"ms": 1e3 * median(times), "rounds_ms": [t if t is None else 1e3 * t for t in times]}


def work(peer: Peer, shape: Shape, direction: Direction) -> int | None:
    """Counts the operations that a peer's unit does in one run; returns None if they are not counted."""
    if peer.work is None:
        return None
    return peer.work.products * flops(shape, direction, fused=peer.work.fused)


def finite(errors: Mapping[str, float]) -> dict[str, float | None]:
    """Returns errors as JSON can hold them: None for an error that is not a finite number."""
    return {name: error if math.isfinite(error) else None for name, error in errors.items()}


def broken(record: Mapping[str, Any]) -> list[str]:
    """Returns one line for each peer that failed or computes something else; none if all is well."""
    lines = [
        f"{result['peer']} at {Shape(**entry['shape']).text} {result['status']}: {result['note']}"
        for entry in record["shapes"]
        for result in entry["peers"]
        if result["status"] in ("failed", "disagrees")
    ]
    used = record["memory"] or {"failed": {}}
    return lines + [f"{name}: its memory cannot be measured: {why}" for name, why in used["failed"].items()]


class Importing(Protocol):
    """Somebody who imports packages."""

    @property
    def requires(self) -> tuple[str, ...]:
        """Returns their names."""
        ...

    def missing(self) -> tuple[str, ...]:
        """Returns the names of those that are not installed."""
        ...


def write_record(record: Mapping[str, Any], out: Path | None, name: str) -> None:
    """Writes the record so far into a directory, if one is given; a reader never finds a part of a file."""
    if out is None:
        return
    part = out / f"{name}.part"
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(out / name)


def packages(peers: Iterable[Importing] = PEERS) -> dict[str, str]:
    """Returns the versions of the packages that peers import, as far as they are installed."""
    names = sorted({name for peer in peers for name in peer.requires if not peer.missing()})
    return {name: importlib.metadata.version(name) for name in names}


def one_line(error: Exception) -> str:
    """Returns the text of an error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def _standing(peer: Peer, settings: Settings) -> tuple[str, str | None]:
    if peer.needs_cpu and device_type(settings.device) != "cpu":
        return "left out", f"measured on the CPU only, not on {settings.device}"
    missing = peer.missing()
    if missing:
        return "not installed", f"{', '.join(missing)} not installed (pip install jkoflow[bench])"
    reason = peer.unavailable()
    if reason is not None:
        return "left out", reason
    if peer.optional is not None and not settings.compiled:
        return "left out", peer.optional
    return "measured", None
