"""Computes the polynomials of the activations.

They are 2^f - 1 for vectors, tanh and e^z - 1 near 0 for the device, and Mills' ratio of the normal distribution
(csrc/mills.h) for both.

    python scripts/minimax.py power
    python scripts/minimax.py near
    python scripts/minimax.py mills > csrc/mills.h

Needs mpmath, which torch brings along.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from typing import Any

import mpmath as mp

mp.mp.dps = 60
Number = Any  # mpmath has no types

# Of float and of double: the number of coefficients, k of t = 1 / (1 + k a), and the a beyond which the density
# underflows.
MILLS = {"float": (9, mp.mpf("0.35"), mp.mpf("13.3")), "double": (22, mp.mpf("0.2"), mp.mpf("38.7"))}
POWER = {"float": 6, "double": 12}

HEADER = """\
// Mills' ratio of the normal distribution, (1 - Phi(a)) / phi(a), for the activation gelu. Written by
// scripts/minimax.py.
#pragma once

#include "polynomial.h"

namespace jkoflow {

"""

FUNCTION = """\
// By t = 1 / (1 + k a) and a polynomial in t - 1/2, for a >= 0 up to where phi(a) underflows; relative errors
// {errors}.
template <class Real>
constexpr Real kMillsScale = sizeof(Real) == 4 ? Real({float_scale}) : Real({double_scale});

// clang-format off
template <class Real, class V>
JKOFLOW_INLINE V mills_ratio(const V& t) {{
  const V u = t - Real(0.5);
  if constexpr (sizeof(Real) == 4) {{
{float}
  }} else {{
{double}
  }}
}}
// clang-format on

}}  // namespace jkoflow
"""


def minimax(function: Callable[[Number], Number], count: int, low: Number, high: Number) -> tuple[list[Number], Number]:
    """Returns the coefficients, lowest first, of the polynomial with the least greatest relative error, and that error.

    By the exchange algorithm of Remez.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    grid = [low, *(middle - half * mp.cos(mp.pi * (k + mp.mpf("0.5")) / 400) for k in range(400)), high]
    reference = [middle - half * mp.cos(mp.pi * k / count) for k in range(count + 1)]
    coefficients, greatest = [], mp.mpf(0)
    for _ in range(12):
        system, right = mp.matrix(count + 1, count + 1), mp.matrix(count + 1, 1)
        for i, x in enumerate(reference):
            right[i] = function(x)
            system[i, count] = (-1) ** i * right[i]
            for j in range(count):
                system[i, j] = x**j
        coefficients = list(mp.lu_solve(system, right))[:count]
        peaks: list[tuple[Number, Number]] = []  # the greatest error between two changes of sign
        for x in grid:
            error = mp.polyval(coefficients[::-1], x) / function(x) - 1
            if not peaks or mp.sign(peaks[-1][1]) != mp.sign(error):
                peaks.append((x, error))
            elif abs(error) > abs(peaks[-1][1]):
                peaks[-1] = (x, error)
        greatest = max(abs(error) for _, error in peaks)
        if len(peaks) != count + 1 or greatest < 1.001 * min(abs(error) for _, error in peaks):
            break
        reference = [x for x, _ in peaks]
    return coefficients, greatest


def horner(coefficients: list[Number], kind: str, variable: str) -> str:
    """Returns a call of `polynomial`, highest power first."""
    digits, suffix = (9, "f") if kind == "float" else (17, "")
    numbers = [f"{mp.nstr(c, digits, strip_zeros=False)}{suffix}" for c in reversed(coefficients)]
    return f"polynomial({variable}, V{{}} + {', '.join(numbers)})"


def mills() -> str:
    """Returns the text of csrc/mills.h."""
    texts, errors = {}, []
    for kind, (count, scale, last) in MILLS.items():

        def over_t(u: Number, scale: Number = scale) -> Number:
            t = u + mp.mpf("0.5")
            a = (1 / t - 1) / scale
            return mp.sqrt(mp.pi / 2) * mp.exp(a * a / 2) * mp.erfc(a / mp.sqrt(2)) / t

        found, error = minimax(over_t, count, 1 / (1 + scale * last) - mp.mpf("0.5"), mp.mpf("0.5"))
        line = f"    return t * {horner(found, kind, 'u')};"
        texts[kind] = textwrap.fill(line, 120, subsequent_indent=" " * 26)
        errors.append(f"{mp.nstr(error, 2)} in {kind}")
    scales = {f"{kind}_scale": mp.nstr(MILLS[kind][1], 3) for kind in MILLS}
    return HEADER + FUNCTION.format(errors=", ".join(errors), **scales, **texts)


def power() -> str:
    """Returns (2^f - 1) / f for abs(f) <= 1/2, as csrc/cpu/functions.h writes it."""

    def over_f(f: Number) -> Number:
        return mp.log(2) if f == 0 else mp.expm1(f * mp.log(2)) / f

    lines = []
    for kind, count in POWER.items():
        found, error = minimax(over_f, count, -mp.mpf("0.5"), mp.mpf("0.5"))
        lines.append(f"{horner(found, kind, 'f')};  // relative error {mp.nstr(error, 2)}")
    return "\n".join(lines) + "\n"


def near() -> str:
    """Returns (tanh(z) / z - 1) / z^2 below 0.9 and (e^z - 1 - z) / z^2 for -0.35 < z < 0, as the device has them."""

    def bend(y: Number) -> Number:
        return (mp.tanh(mp.sqrt(y)) / mp.sqrt(y) - 1) / y

    def decay(z: Number) -> Number:
        return (mp.expm1(z) / z - 1) / z

    tiny = mp.mpf("1e-8")
    lines = []
    for name, (found, error) in {
        "y": minimax(bend, 6, tiny, mp.mpf("0.9") ** 2),
        "below": minimax(decay, 4, -mp.mpf("0.35"), -tiny),
    }.items():
        lines.append(f"{horner(found, 'float', name)};  // relative error {mp.nstr(error, 2)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print({"power": power, "mills": mills, "near": near}[sys.argv[1]](), end="")
