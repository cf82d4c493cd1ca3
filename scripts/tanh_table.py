"""Computes csrc/cpu/tanh_table.h: tanh in pieces, for processors that look up 32 numbers at once.

    python scripts/tanh_table.py > csrc/cpu/tanh_table.h

The text is formatted as clang-format formats it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BOUND, SCALE, SHIFT = 8.25, 1.0859375, 3.0
DEGREE = 4

HEADER = """\
// tanh in pieces, for processors that look up 32 numbers at once. Written by scripts/tanh_table.py.
#pragma once

namespace jkoflow::tanh_table {

// a = abs(x) up to kBound belongs to the piece whose number is bits 19 to 23 of kScale * a + kShift, a number in
// [3, 12): the exponent's last bit and the first four of the mantissa. Pieces are shortest near 0, where tanh bends.
"""


def pieces() -> list[tuple[float, float]]:
    """Returns the first and the last a of each piece, by the piece's number."""
    found: dict[int, tuple[float, float]] = {}
    for octave in (2, 4, 8):
        for first in np.arange(octave, 2 * octave, octave / 16):
            if SHIFT <= first < 4 * SHIFT:
                number = (np.float32(first).view(np.int32) >> 19) & 31
                last = min((first + octave / 16 - SHIFT) / SCALE, BOUND)
                found[int(number)] = (float(first - SHIFT) / SCALE, float(last))
    return [found[number] for number in range(32)]


def powers(first: float, last: float) -> NDArray[np.float64]:
    """Computes coefficients that are float32 numbers: the highest is rounded first, then the others are fitted again.

    Near 0 there is no constant, and the relative error counts.
    """
    x = (first + last) / 2 + (last - first) / 2 * np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    rest, weight = np.tanh(x), 1 / x if first == 0 else np.ones_like(x)
    result = np.zeros(DEGREE + 1)
    for highest in range(DEGREE, -1 if first else 0, -1):
        exponents = np.arange(0 if first else 1, highest + 1)
        columns = weight[:, None] * (x[:, None] / last) ** exponents
        result[highest] = np.float32(np.linalg.lstsq(columns, weight * rest, rcond=1e-17)[0][-1] / last**highest)
        rest = rest - result[highest] * x**highest
    return result


def literal(number: float) -> str:
    """Returns a float32 number as C++ writes it."""
    text = f"{number:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def errors(table: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the largest absolute and relative error in float32 with fused multiply-adds."""
    x = np.concatenate([np.linspace(0, 9, 500_001)[1:], np.geomspace(1e-6, 1, 500_001)]).astype(np.float32)
    size = np.minimum(x, np.float32(BOUND))
    number = ((size.astype(np.float64) * SCALE + SHIFT).astype(np.float32).view(np.int32) >> 19) & 31
    total = table[number, DEGREE].astype(np.float32)
    for k in range(DEGREE - 1, -1, -1):
        total = (total.astype(np.float64) * size + table[number, k]).astype(np.float32)
    exact = np.tanh(x.astype(np.float64))
    error = np.abs(total - exact)
    return float(error.max()), float((error / exact).max())


def main() -> None:
    """Prints the header."""
    table = np.array([powers(*piece) for piece in pieces()])
    absolute, relative = errors(table)
    print(HEADER, end="")
    print(f"constexpr float kBound = {literal(BOUND)}, kScale = {literal(SCALE)}, kShift = {literal(SHIFT)};\n")
    print("// tanh(a) = sum_k kPowers[k][piece] a^k with a greatest error in float32 of")
    print(f"// {absolute:.1e}, relative {relative:.1e}.")
    print(f"alignas(64) constexpr float kPowers[{DEGREE + 1}][32] = {{")
    for column in table.T:
        print(f"    {{{', '.join(map(literal, column))}}},")
    print("};\n\n}  // namespace jkoflow::tanh_table")


if __name__ == "__main__":
    main()
