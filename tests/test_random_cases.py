"""Random integrations in float32 on every instruction set: they err no more than PyTorch."""

import pytest
import torch

import random_cases
from jkoflow.ops import native
from soak import amount

CASES = amount(200, 2500)

pytestmark = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")


def test_random_cases():
    isas = native.capabilities()["isas"]
    results = [result for found in random_cases.compare(range(CASES), isas) for result in found]
    beyond = {
        who: {result.case.number for result in results if result.who == who and result.beyond()}
        for who in (*isas, random_cases.PYTORCH)
    }
    for isa in isas:
        # what PyTorch does to itself in sensitive cases, and one in twenty: the baseline has no fused multiply-adds
        assert len(beyond[isa]) <= len(beyond[random_cases.PYTORCH]) + CASES // 20, beyond
        for activation in random_cases.ACTIVATIONS:
            own = [result for result in results if result.who == isa and result.case.activation == activation]
            assert random_cases.ratio(own) < 1.5, activation


def test_cases_differ_and_can_be_drawn_again():
    cases = [random_cases.case_of(number) for number in range(CASES)]
    assert cases == [random_cases.case_of(number) for number in range(CASES)]
    assert {case.activation for case in cases} == set(random_cases.ACTIVATIONS)
    assert {len(case.hidden) for case in cases} == {1, 2, 3, 4}
    assert len({(case.method, case.divergence) for case in cases}) == 2 * len(random_cases.TABLEAUX)


def test_the_order_of_hidden_units_is_only_that():
    case = random_cases.case_of(2)
    first, second = (random_cases.run(case, "reference", torch.float64, order) for order in (0, 1))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-6, atol=1e-8)


def test_an_error_beyond_the_rule_is_found():
    case = random_cases.case_of(0)
    exact = random_cases.run(case, "reference", torch.float64)
    peer = {name: value.float() for name, value in exact.items()}
    off = {**peer, "logdet": peer["logdet"] + 1e-3 * peer["logdet"].abs().max().clamp(min=1)}
    results = random_cases.judge(case, {"this": off, "that": peer}, [peer], exact)
    assert [(result.who, result.name) for result in results if result.beyond()] == [("this", "logdet")]
    assert random_cases.ratio([result for result in results if result.beyond()]) > 100
