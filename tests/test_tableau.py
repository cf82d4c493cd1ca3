import dataclasses

import numpy as np
import pytest

from jkoflow.ops.embedded import EMBEDDED, EmbeddedMethod
from jkoflow.ops.tableau import TABLEAUX, Tableau


def order_conditions(tableau):
    """Rooted trees up to order 5: (order, sum over stages, required value)."""
    stages = tableau.stages
    a = np.zeros((stages, stages))
    for i, row in enumerate(tableau.a):
        a[i, :i] = row
    return conditions(a, np.array(tableau.b), np.array(tableau.c))


def conditions(a, b, c, theta=1.0):
    """The same for weights within a step, at a share theta of it."""
    trees = [
        (1, b.sum(), 1),
        (2, b @ c, 1 / 2),
        (3, b @ c**2, 1 / 3),
        (3, b @ a @ c, 1 / 6),
        (4, b @ c**3, 1 / 4),
        (4, (b * c) @ a @ c, 1 / 8),
        (4, b @ a @ c**2, 1 / 12),
        (4, b @ a @ a @ c, 1 / 24),
        (5, b @ c**4, 1 / 5),
        (5, (b * c**2) @ a @ c, 1 / 10),
        (5, (b * c) @ a @ c**2, 1 / 15),
        (5, (b * c) @ a @ a @ c, 1 / 30),
        (5, b @ (a @ c) ** 2, 1 / 20),
        (5, b @ a @ c**3, 1 / 20),
        (5, b @ a @ (c * (a @ c)), 1 / 40),
        (5, b @ a @ a @ c**2, 1 / 60),
        (5, b @ a @ a @ a @ c, 1 / 120),
    ]
    return [(order, value, required * theta**order) for order, value, required in trees]


def embedded_arrays(method):
    a = np.zeros((method.stages, method.stages))
    for i, row in enumerate(method.a):
        a[i, :i] = row
    return a, np.array(method.c)


@pytest.mark.parametrize("method", TABLEAUX)
def test_order_is_exactly_the_declared_one(method):
    tableau = TABLEAUX[method]
    for order, value, required in order_conditions(tableau):
        if order <= tableau.order:
            assert value == pytest.approx(required, abs=1e-14)
    higher = [abs(value - required) for order, value, required in order_conditions(tableau) if order > tableau.order]
    assert not higher or max(higher) > 1e-4


@pytest.mark.parametrize("method", TABLEAUX)
def test_stages(method):
    expected = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "rk4_classic": 4, "bosh3": 3, "dopri5": 6, "tsit5": 6}
    assert TABLEAUX[method].stages == expected[method]


@pytest.mark.parametrize("method", EMBEDDED.values(), ids=EMBEDDED)
def test_error_estimate_is_of_the_order_below(method):
    a, c = embedded_arrays(method)
    found = conditions(a, np.array(method.b) - np.array(method.error), c)
    assert all(abs(value - required) < 1e-14 for order, value, required in found if order < method.order)
    assert max(abs(value - required) for order, value, required in found if order == method.order) > 1e-4


@pytest.mark.parametrize("method", EMBEDDED.values(), ids=EMBEDDED)
@pytest.mark.parametrize("theta", [0.1, 0.5, 0.9, 1.0])
def test_interpolant_is_of_the_order_below(method, theta):
    a, c = embedded_arrays(method)
    weights = np.array([sum(p * theta ** (k + 1) for k, p in enumerate(row)) for row in method.dense])
    least = 3 if method.order == 3 else 4
    found = conditions(a, weights, c, theta)
    assert all(abs(value - required) < 1e-13 for order, value, required in found if order <= least)


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


def test_inconsistent_embedded_methods_are_refused():
    method = EMBEDDED["bosh3"]
    fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    for change in (
        {"c": (0.0, 0.5, 0.7, 1.0)},
        {"error": (0.1, 0.0, 0.0, 0.0)},
        {"dense": (*method.dense[:-1], (0.5,))},
    ):
        with pytest.raises(ValueError, match="not consistent"):
            EmbeddedMethod(**(fields | change))
    with pytest.raises(ValueError, match="rows must have"):
        EmbeddedMethod(**(fields | {"a": method.a[1:]}))
