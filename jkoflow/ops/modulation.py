"""Layers that are not plain, as the kernels take them: a word that says of what kind, and one tensor of all numbers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jkoflow.ops.extension import C as _C
from jkoflow.velocity import MLPField, Modulation

PLAIN = "plain"
"""The word for layers without scale and shift that are not residual."""


class _Kind(NamedTuple):
    residual: bool
    modulated: bool = False
    gate: str = "affine"
    time: bool = False
    frequencies: int = 0
    gated: int = 0  # bit l: whether layer l has a gate
    shifted: int = 0


def word_of(field: MLPField) -> str:
    """Returns the kind of a field's layers as one word, for the settings of an integration."""
    residual = "residual" if field.residual else PLAIN
    modulation = field.modulation
    if modulation is None:
        return residual
    count = 0 if modulation.frequencies is None else modulation.frequencies.shape[0]
    gated = sum(1 << layer for layer, gate in enumerate(modulation.gates) if gate is not None)
    shifted = sum(1 << layer for layer, shift in enumerate(modulation.shifts) if shift is not None)
    return f"{residual}:{modulation.gate}:{int(modulation.time)}:{count}:{gated}:{shifted}"


@functools.lru_cache(maxsize=256)
def _kind(word: str) -> _Kind:
    residual, *rest = word.split(":")
    if not rest:
        return _Kind(residual == "residual")
    gate, *numbers = rest
    time, frequencies, gated, shifted = map(int, numbers)
    return _Kind(residual == "residual", True, gate, time == 1, frequencies, gated, shifted)


def packed(field: MLPField) -> Tensor | None:
    """Returns all numbers of a field's modulation in one tensor: frequencies, then G, g0 and S of each layer."""
    modulation = field.modulation
    if modulation is None:
        return None
    parts = [] if modulation.frequencies is None else [modulation.frequencies]
    for gate, shift in zip(modulation.gates, modulation.shifts, strict=True):
        if gate is not None:
            parts += gate[0].reshape(-1), gate[1]
        if shift is not None:
            parts.append(shift.reshape(-1))
    return torch.cat(parts)


def unpacked(word: str, tensor: Tensor | None, rows: Sequence[int], context_dim: int) -> tuple[Modulation | None, bool]:
    """Returns the modulation in a tensor from `packed`, and whether layers are residual.

    Arguments:
        word: Kind of the layers, from `word_of`.
        tensor: All numbers.
        rows: Widths of the layers, the last one (of d rows) included.
        context_dim: Number of conditioning variables.
    """
    kind = _kind(word)
    if not kind.modulated or tensor is None:
        return None, kind.residual
    columns, place = int(kind.time) + 2 * kind.frequencies + context_dim, 0

    def take(*shape: int) -> Tensor:
        nonlocal place
        count = 1
        for size in shape:
            count *= size
        place += count
        return tensor[place - count : place].view(shape)

    frequencies = take(kind.frequencies) if kind.frequencies else None
    gates, shifts = [], []
    for layer, width in enumerate(rows):
        gates.append((take(width, columns), take(width)) if kind.gated >> layer & 1 else None)
        shifts.append(take(width, columns) if kind.shifted >> layer & 1 else None)
    return Modulation(kind.gate, kind.time, frequencies, tuple(gates), tuple(shifts)), kind.residual


def size_of(word: str, rows: Sequence[int], context_dim: int) -> int:
    """Returns how many numbers the tensor of `packed` holds."""
    kind = _kind(word)
    columns, size = int(kind.time) + 2 * kind.frequencies + context_dim, kind.frequencies
    for layer, width in enumerate(rows):
        size += width * (columns + 1) * (kind.gated >> layer & 1) + width * columns * (kind.shifted >> layer & 1)
    return size


def check(word: str, given: bool, widths: Sequence[int]) -> None:
    """Refuses layers of a kind that their tensors are not for; the kernels would read what is not there.

    Raises:
        ValueError: If a modulation is missing or superfluous, or residual layers have several widths.
    """
    kind = _kind(word)
    if given != kind.modulated:
        raise ValueError(f"a modulation must be given for layers that have one and for no others, got {word!r}")
    if kind.frequencies < 0:
        raise ValueError(f"a modulation must have 0 frequencies or more, got {kind.frequencies}")
    if kind.residual and len(set(widths)) > 1:
        raise ValueError(f"residual layers must have one width, got {tuple(widths)}")


def reads_inputs(word: str) -> bool:
    """Tells whether layer 1 reads t and context beside x, which a modulation does in its place."""
    return not _kind(word).modulated


def describe(problem: Any, word: str) -> None:
    """Tells the kernels' description of a problem of what kind the layers are."""
    kind = _kind(word)
    problem.residual = kind.residual
    if not kind.modulated:
        return
    modulation = _C.Modulation()
    modulation.present, modulation.gate = True, getattr(_C.GateKind, kind.gate)
    modulation.time, modulation.frequencies = kind.time, kind.frequencies
    modulation.gated, modulation.shifted = kind.gated, kind.shifted
    problem.modulation = modulation
