"""Any value of any type, in a setting or an argument, is taken, or refused in one line that names it."""

import dataclasses
import math
import tomllib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jkoflow
from jkoflow import MLPVelocity, TrainConfig
from jkoflow.ops import IntegrationError
from jkoflow.training.toml import dumps
from soak import amount

FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
SMALL = {"hidden": (4,), "max_blocks": 1, "iterations_per_block": 2, "batch_size": 20, "num_steps": 2}

NUMBERS = st.integers() | st.floats() | st.sampled_from([10**20, 10**400, -(10**400), 2**31, 2**63, 2**64, 1e300, -0.0])
PLAIN = st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.binary(max_size=3) | st.complex_numbers()
ANYTHING = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(max_size=2), inner)
)
EXTREMES = [0, 1, 2, 0.5, -1, 1e-300, 1e30, 1e300, 10**20, 10**400, math.inf, -math.inf, math.nan, True, "x", [1]]


@pytest.mark.parametrize("name", FIELDS)
@settings(max_examples=amount(60, 500))
@given(value=ANYTHING)
def test_a_setting_is_taken_or_refused(name, value):
    try:
        config = TrainConfig(**{**SMALL, name: value})
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 (whether it is raised depends on the value)
        return
    assert TrainConfig.from_mapping(tomllib.loads(dumps(config.to_mapping()))) == config


TAKES_FOR_EVER = {"iterations_per_block", "time_budget"}


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - TAKES_FOR_EVER))
def test_what_is_taken_trains_or_says_what_to_change(name):
    rows = torch.randn(60, 2)
    for value in EXTREMES:
        try:
            flow = jkoflow.train(rows, TrainConfig(**{**SMALL, name: value}))
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert flow.dim == 2


ARGUMENTS = ["num_steps", "t0", "t1", "method", "rtol", "atol", "max_steps", "times", "divergence", "noise", "context"]
ARGUMENTS += ["backend", "precision"]


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@settings(max_examples=amount(60, 500))
@given(value=ANYTHING)
def test_an_argument_of_integrate_is_taken_or_refused(name, method, value):
    if name == "num_steps" and isinstance(value, int) and value > 1000:
        value = -value  # it would be taken, and go on for ever
    arguments = {"method": method, "max_steps": 50, name: value}
    try:
        end = jkoflow.integrate(MLPVelocity(2, (4,)), torch.zeros(3, 2), **arguments).x
    except (ValueError, IntegrationError, jkoflow.ops.UnsupportedError) as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert end.shape == (3, 2)
