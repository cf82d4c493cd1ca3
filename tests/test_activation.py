import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jkoflow.activation import Activation, parse_activation

BENT = ["tanh", "softplus", "softplus(5)", "softplus(0.25)", "silu", "elu", "selu", "gelu", "sin"]


@pytest.mark.parametrize("name", BENT)
def test_slope_is_the_derivative_of_value(name):
    sigma = parse_activation(name)
    z = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)  # with 0, where elu and selu have a kink
    (derivative,) = torch.autograd.grad(sigma.value(z).sum(), z)
    torch.testing.assert_close(sigma.slope(z), derivative, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", BENT)
def test_slope_is_differentiable(name):
    sigma = parse_activation(name)
    z = torch.linspace(-4, 4, 10, dtype=torch.float64, requires_grad=True)  # without 0
    assert torch.autograd.gradcheck(sigma.slope, z)


@pytest.mark.parametrize("name", BENT)
def test_finite_far_from_zero(name):
    sigma = parse_activation(name)
    z = torch.tensor([-300.0, -80.0, 80.0, 300.0], requires_grad=True)
    value, slope = sigma.value(z), sigma.slope(z)
    (curvature,) = torch.autograd.grad(slope.sum(), z)
    assert torch.isfinite(torch.stack([value, slope, curvature])).all()


def test_softplus_matches_its_formula():
    z = torch.linspace(-9, 9, 41, dtype=torch.float64)
    expected = torch.logaddexp(torch.zeros_like(z), 5 * z) / 5
    torch.testing.assert_close(parse_activation("softplus(5)").value(z), expected, rtol=1e-14, atol=1e-16)


def test_parsing():
    assert parse_activation("softplus") == Activation("softplus", 1.0)
    assert parse_activation("softplus(5)") == Activation("softplus", 5.0)
    sigma = Activation("silu")
    assert parse_activation(sigma) is sigma
    assert str(parse_activation("softplus(5)")) == "softplus(5)"
    assert str(parse_activation("tanh")) == "tanh"


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_text_and_back_keeps_every_bit_of_beta(beta):
    sigma = Activation("softplus", beta)
    assert parse_activation(str(sigma)) == sigma


@pytest.mark.parametrize("name", ["elu", "selu"])
def test_the_kink_of_an_exponential_unit_has_the_derivatives_of_its_left_side(name):
    sigma = parse_activation(name)
    z = torch.tensor([-1e-12, 0.0], dtype=torch.float64, requires_grad=True)
    slope = sigma.slope(z)
    (curvature,) = torch.autograd.grad(slope.sum(), z)
    torch.testing.assert_close(slope[1], slope[0])
    torch.testing.assert_close(curvature[1], curvature[0])


@pytest.mark.parametrize("linear", ["relu", "leaky_relu", "hardtanh"])
def test_piecewise_linear_activations_are_refused_with_the_reason(linear):
    with pytest.raises(ValueError, match=f"must bend, got '{linear}': it is linear in pieces.*use one of tanh, sof"):
        parse_activation(linear)


@pytest.mark.parametrize("text", ["swish", "", "tanh(2)", "softplus(", "softplus(1)x", "Tanh"])
def test_unknown_text(text):
    with pytest.raises(ValueError, match=rf"must be one of tanh.* or 'softplus\(BETA\)', got {re.escape(repr(text))}"):
        parse_activation(text)


@pytest.mark.parametrize("beta", ["0", "-1", "inf", "nan", "", "five", str(-math.inf)])
def test_beta_must_be_positive_and_finite(beta):
    with pytest.raises(ValueError, match=re.escape(f"needs a positive finite beta, got 'softplus({beta})'")):
        parse_activation(f"softplus({beta})")
