import dataclasses

import numpy as np
import pytest

from jkoflow.ops.tableau import TABLEAUX, Tableau


def order_conditions(tableau):
    """Rooted trees up to order 4: (order, sum over stages, required value)."""
    stages = tableau.stages
    a = np.zeros((stages, stages))
    for i, row in enumerate(tableau.a):
        a[i, :i] = row
    b, c = np.array(tableau.b), np.array(tableau.c)
    return [
        (1, b.sum(), 1),
        (2, b @ c, 1 / 2),
        (3, b @ c**2, 1 / 3),
        (3, b @ a @ c, 1 / 6),
        (4, b @ c**3, 1 / 4),
        (4, (b * c) @ a @ c, 1 / 8),
        (4, b @ a @ c**2, 1 / 12),
        (4, b @ a @ a @ c, 1 / 24),
    ]


@pytest.mark.parametrize("method", TABLEAUX)
def test_order_is_exactly_the_declared_one(method):
    tableau = TABLEAUX[method]
    for order, value, required in order_conditions(tableau):
        if order <= tableau.order:
            assert value == pytest.approx(required, abs=1e-14)
    higher = [abs(value - required) for order, value, required in order_conditions(tableau) if order > tableau.order]
    assert not higher or max(higher) > 1e-3


@pytest.mark.parametrize("method", TABLEAUX)
def test_stages(method):
    expected = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "rk4_classic": 4}
    assert TABLEAUX[method].stages == expected[method]


def test_rk4_is_the_three_eighths_rule():
    assert TABLEAUX["rk4"].b == (1 / 8, 3 / 8, 3 / 8, 1 / 8)


def test_tableaux_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TABLEAUX["rk4"].order = 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, ((), ()), (0.5, 0.5), (0.0, 1.0)), "rows must have 0, 1, ..., 1 entries"),
        ((1, ((),), (1.0,), (0.0, 1.0)), "rows must have 0, 1, ..., 0 entries"),
        ((1, ((1.0,),), (1.0,), (1.0,)), "rows must have 0, 1, ..., 0 entries"),  # implicit
        ((2, ((), (0.5,)), (0.0, 1.0), (0.0, 1.0)), "each row of a must sum to c"),
        ((2, ((), (0.5,)), (0.5, 1.0), (0.0, 0.5)), "and b to 1"),
    ],
)
def test_inconsistent_tableaux_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tableau(*arguments)
