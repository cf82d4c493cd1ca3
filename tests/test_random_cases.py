"""Random integrations in float32 on every instruction set: none errs more than twice as much as PyTorch."""

import pytest

import random_cases
from jkoflow.ops import native

CASES = 200

pytestmark = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")


def test_random_cases():
    found = [excess for part in random_cases.compare(range(CASES), native.capabilities()["isas"]) for excess in part]
    assert found == []


def test_cases_differ_and_can_be_drawn_again():
    cases = [random_cases.case_of(number) for number in range(CASES)]
    assert cases == [random_cases.case_of(number) for number in range(CASES)]
    assert {case.activation for case in cases} == set(random_cases.ACTIVATIONS)
    assert {len(case.hidden) for case in cases} == {1, 2, 3, 4}
    assert len({(case.method, case.divergence) for case in cases}) == 2 * len(random_cases.TABLEAUX)


def test_an_error_beyond_the_rule_is_found():
    case = random_cases.case_of(0)
    exact = random_cases.run(case, "reference", random_cases.torch.float64)
    peer = {name: value.float() for name, value in exact.items()}
    off = {**peer, "logdet": peer["logdet"] + 1e-3 * peer["logdet"].abs().max().clamp(min=1)}
    assert random_cases.excesses("this", case, peer, peer, exact) == []
    assert [excess.name for excess in random_cases.excesses("this", case, off, peer, exact)] == ["logdet"]
