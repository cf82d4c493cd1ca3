"""The figures of a record as tables in Markdown, which README holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jkoflow.bench import ceilings
from jkoflow.bench.floor import SIZE
from jkoflow.bench.peers import FUSED, OURS, PEERS, SPLIT, SPLIT_FUSED
from jkoflow.bench.peers.on_gpu import CUDA_PEERS
from jkoflow.bench.record import FORMAT
from jkoflow.bench.shapes import DIRECTIONS, STAGES, Direction, Shape

SHARES: tuple[tuple[str, Direction], ...] = (
    (OURS, "forward"),
    (OURS, "forward+backward"),
    (FUSED, "forward+backward"),
    (SPLIT, "forward"),
    (SPLIT_FUSED, "forward+backward"),
    *((peer.name, direction) for peer in CUDA_PEERS if peer.work is not None for direction in peer.directions),
)
"""Peers whose shares are shown, and their directions."""

TITLES: dict[Direction, str] = {"forward": "forward", "forward+backward": "forward + backward"}


def markdown(record: Mapping[str, Any]) -> str:
    """Returns tables of times, of shares of the floor and of memory, and their notes.

    Raises:
        ValueError: If the record has another format.
    """
    if record.get("format") != FORMAT:
        raise ValueError(f"the record must have format {FORMAT}, got {record.get('format')}; run jkoflow bench again")
    parts = [times(record, direction) for direction in DIRECTIONS]
    parts += [shares(record), memory(record), notes(record), floor(record), surroundings(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def times(record: Mapping[str, Any], direction: Direction) -> str:
    """Returns the table of each peer's milliseconds at each shape, with their ratio to ours in brackets."""
    entries = record["shapes"]
    lack = {peer.name for peer in (*PEERS, *CUDA_PEERS) if direction not in peer.directions}
    rows = [
        [name, *(cell(_result(entry, name), direction) for entry in entries)]
        for name in _names(entries)
        if name not in lack
    ]
    return _table([f"{TITLES[direction]}, ms (x ours)", *_headings(entries)], rows)


def cell(result: Mapping[str, Any], direction: Direction) -> str:
    """Returns a cell such as ``79.7 (4.3)``, or the reason for which there is no figure."""
    figures = result.get(direction)
    if figures is None:
        return result["status"]
    if figures.get("of_ours") in (None, 1.0):
        return f"{number(figures['ms'])}"
    return f"{number(figures['ms'])} ({number(figures['of_ours'])})"


def shares(record: Mapping[str, Any]) -> str:
    """Returns the table of shares of the rate of a large matrix product."""
    entries = record["shapes"]
    rows = []
    names = _names(entries)
    for name, direction in SHARES:
        if name not in names:
            continue
        values = [_result(entry, name).get(direction, {}).get("of_floor") for entry in entries]
        if any(value is not None for value in values):
            rows.append([f"{name}, {TITLES[direction]}", *("" if v is None else f"{v:.0%}" for v in values)])
    return _table(["share of the floor", *_headings(entries)], rows) if rows else ""


def memory(record: Mapping[str, Any]) -> str:
    """Returns the table of the peak memory per row of a training step."""
    found = record["memory"]
    if found is None:
        return ""
    if found["note"] is not None:
        return f"Memory was {found['note']}."
    rows = [[name, *(size(value) for value in values)] for name, values in found["bytes_per_row"].items()]
    return _table(["peak memory per row", *_headings(record["shapes"])], rows)


def notes(record: Mapping[str, Any]) -> str:
    """Returns the notes to single figures; equal notes share a line."""
    places: dict[tuple[str, str], list[str]] = {}
    lines = []
    for name in _names(record["shapes"]):
        counts = [_result(entry, name)["evaluations"] for entry in record["shapes"]]
        if any(count is not None for count in counts):
            own = ", ".join(str(STAGES * entry["shape"]["steps"]) for entry in record["shapes"])
            told = ", ".join("-" if count is None else str(count) for count in counts)
            lines.append(
                f"- {name}: as accurate as ours; its steps evaluate velocity and divergence {told} times, ours {own}"
            )
    for entry in record["shapes"]:
        for result in entry["peers"]:
            if result["note"]:
                places.setdefault((result["peer"], result["note"]), []).append(Shape(**entry["shape"]).text)
    everywhere = len(record["shapes"])
    lines += [
        f"- {peer}: {note}" + ("" if len(where) == everywhere else f" (at {'; '.join(where)})")
        for (peer, note), where in places.items()
    ]
    return "\n".join(lines)


def references(record: Mapping[str, Any]) -> Mapping[Direction, str]:
    """Returns the names of the peers that others are compared with; records of earlier versions do not hold them."""
    return record.get("reference", {"forward": OURS, "forward+backward": FUSED})


def floor(record: Mapping[str, Any]) -> str:
    """Returns the sentence on the products that the shares refer to, with the range of their rates."""
    units = next((entry["ceilings_gflops"] for entry in record["shapes"] if "ceilings_gflops" in entry), None)
    if units is not None:
        return (
            f"The floor is the product of {ceilings.SIZE} x {ceilings.SIZE} matrices on the same unit in the same run: "
            f"{', '.join(f'{unit} {rate / 1e3:.1f} TFLOP/s' for unit, rate in units.items())}. 3xTF32 does three "
            "products for each one."
        )
    found: dict[str, list[float]] = {}
    for entry in record["shapes"]:
        for name, rate in (pair for rates in entry["floor_gflops"].values() for pair in rates.items()):
            found.setdefault(name, []).append(rate)
    if not found:
        return ""
    products = ", ".join(f"{name} {min(rates):.0f} to {max(rates):.0f} GFLOP/s" for name, rates in found.items())
    return f"The floor is the fastest product of {SIZE} x {SIZE} float32 matrices in the same rounds: {products}."


def surroundings(record: Mapping[str, Any]) -> str:
    """Returns the sentence on the machine and the versions."""
    environment = record["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    versions = f"jkoflow {environment['jkoflow']}, torch {environment['torch']}"
    if "gpu" in environment:
        gpu = environment["gpu"]
        return (
            f"Measured on {gpu['name']} (compute capability {gpu['capability']}), with {versions}"
            f"{', ' * bool(packages)}{packages}."
        )
    return (
        f"Measured on {environment['cpu']} ({environment['kernels']['isa'] or 'no kernels'}), threads: "
        f"{record['settings']['threads']}, with {versions}{', ' * bool(packages)}{packages}. "
        f"Allocator: {environment['allocator']}."
    )


def number(value: float) -> str:
    """Returns the text of a number with about three digits: ``0.53``, ``5.3``, ``22.6``, ``1348``."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value < 1 else f"{value:.1f}"


def size(count: float) -> str:
    """Returns the text of a number of bytes: ``72 B``, ``31 KiB``, ``2.7 MiB``."""
    for unit in ("B", "KiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} MiB"


def _names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(result["peer"] for entry in entries for result in entry["peers"]))


def _result(entry: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    (result,) = (result for result in entry["peers"] if result["peer"] == name)
    return result


def _headings(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    return [Shape(**entry["shape"]).text for entry in entries]


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
