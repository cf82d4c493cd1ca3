"""Computes csrc/cpu/tanh_table.h: tanh in pieces, for processors that look up 32 numbers at once.

    python scripts/tanh_table.py > csrc/cpu/tanh_table.h

Pieces and powers are those of least error.
"""

from __future__ import annotations

import textwrap

import numpy as np
from numpy.typing import NDArray

SCALE, SHIFT = 0.953125, 1.0
DEGREE = 5

HEADER = """\
// tanh in pieces, for processors that look up 32 numbers at once. Written by scripts/tanh_table.py.
#pragma once

namespace jkoflow::tanh_table {

// a = abs(x) up to kBound belongs to the piece whose number is bits 20 to 24 of kScale * a + kShift, a number in
// [1, 16): the exponent's last two bits and the first three of the mantissa. Pieces are shortest near 0, where tanh
// bends; the last holds kBound, and there tanh is 1 and its slope 0.
"""


def complement(a: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Returns 1 - tanh(a) with full relative accuracy."""
    power = np.exp(-2 * np.asarray(a))
    return 2 * power / (1 + power)


def pieces() -> dict[int, tuple[float, float]]:
    """Returns the first and the last a of each piece, by the piece's number, in the order of a."""
    found: dict[int, tuple[float, float]] = {}
    first = SHIFT
    while len(found) < 32:
        last = first + 2.0 ** np.floor(np.log2(first)) / 8
        found[int(np.float32(first).view(np.int32)) >> 20 & 31] = ((first - SHIFT) / SCALE, (last - SHIFT) / SCALE)
        first = last
    return found


def powers(first: float, last: float, centre: float) -> NDArray[np.float64]:
    """Computes c_1, c_2, ... with the least greatest error of tanh(a) = tanh(centre) + sum_k c_k (a - centre)^k.

    What counts is the error relative to 1 - tanh(a), which is that of the slope, and near 0 to a. Least squares whose
    weights follow the error come close to it (Lawson, 1961).
    """
    half = (last - first) / 2
    a = (first + last) / 2 + half * np.cos(np.pi * (np.arange(200) + 0.5) / 200)
    wanted = complement(centre) - complement(a)
    scale = a if first == 0 else complement(a)
    columns = ((a - centre)[:, None] / half) ** np.arange(1, DEGREE + 1) / scale[:, None]
    weight, best, least = np.ones_like(a), np.zeros(DEGREE), np.inf
    for _ in range(30):
        found = np.linalg.lstsq(columns * weight[:, None], wanted / scale * weight, rcond=1e-15)[0]
        error = np.abs(columns @ found - wanted / scale)
        if error.max() < least:
            best, least = found, error.max()
        weight = weight * np.sqrt(0.05 + error / error.max())
    return best / half ** np.arange(1, DEGREE + 1)


def rows() -> tuple[NDArray[np.float32], float]:
    """Computes centre, tanh(centre), 1 - tanh(centre) and the powers of each piece, and the bound."""
    table, (*bent, flat) = np.zeros((3 + DEGREE, 32), np.float32), pieces().items()
    for number, (first, last) in bent:
        centre = float(np.float32((first + last) / 2)) if first else 0.0
        table[:, number] = [centre, np.tanh(centre), complement(centre), *powers(first, last, centre)]
    bound = sum(flat[1]) / 2  # well within the piece, whatever rounding does
    table[:3, flat[0]] = [bound, 1, 0]
    return table, bound


def literal(number: float) -> str:
    """Returns a float32 number as C++ writes it."""
    text = f"{number:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def errors(table: NDArray[np.float32], bound: float) -> dict[str, float]:
    """Returns the greatest errors in float32 with fused multiply-adds."""
    x = np.concatenate([np.linspace(0, 16, 1_000_001)[1:], np.geomspace(1e-6, 1, 500_001)]).astype(np.float32)
    size = np.minimum(x, np.float32(bound))
    number = ((size.astype(np.float64) * SCALE + SHIFT).astype(np.float32).view(np.int32) >> 20) & 31
    d = (size - table[0, number]).astype(np.float64)
    total = table[2 + DEGREE, number]
    for k in range(1 + DEGREE, 2, -1):
        total = (total * d + table[k, number]).astype(np.float32)
    total = (total * d).astype(np.float32)
    value, rest = total + table[1, number], table[2, number] - total
    slope = (value.astype(np.float64) * rest + rest).astype(np.float32)
    exact = np.tanh(x.astype(np.float64))
    exact_slope = complement(x.astype(np.float64)) * (1 + exact)
    beyond = x >= np.float32(bound)
    assert (slope[beyond] == 0).all()
    assert (value[beyond] == 1).all()
    off = np.abs(slope - exact_slope)
    return {
        "value": float(np.abs(value - exact).max()),
        "value, relative": float((np.abs(value - exact) / exact).max()),
        "slope": float(off.max()),
        **{
            f"slope above {least:g}, relative": float((off / exact_slope)[exact_slope > least].max())
            for least in (1e-5, 1e-12)
        },
    }


def main() -> None:
    """Prints the header."""
    table, bound = rows()
    print(HEADER, end="")
    print(f"constexpr float kScale = {literal(SCALE)}, kShift = {literal(SHIFT)}, kBound = {literal(bound)};")
    print(f"constexpr int kDegree = {DEGREE};\n")
    print("// Of each piece: a centre c, tanh(c), 1 - tanh(c), and the p_k of tanh(a) = tanh(c) + sum_k p_k (a - c)^k.")
    print("// Greatest errors in float32:")
    for name, error in errors(table, bound).items():
        print(f"//   {name}: {error:.1e}")
    print("// clang-format off")
    print(f"alignas(64) constexpr float kTable[{3 + DEGREE}][32] = {{")
    for row in table:
        print(textwrap.fill(f"    {{{', '.join(map(literal, row))}}},", 120, subsequent_indent=" " * 5))
    print("};\n// clang-format on\n\n}  // namespace jkoflow::tanh_table")


if __name__ == "__main__":
    main()
