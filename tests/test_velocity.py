import pytest
import torch
from torch import nn

from jkoflow import MLPVelocity
from oracles import random_velocity


def test_layer_one_reads_x_then_t_then_context():
    velocity = random_velocity(2, (5, 4), "silu", context_dim=3, linear=True)
    x, context = torch.randn(7, 2).double(), torch.randn(7, 3).double()
    first, second, last = velocity.layers
    h = nn.functional.silu(first(torch.cat([x, torch.full((7, 1), 0.3).double(), context], 1)))
    expected = last(nn.functional.silu(second(h))) + x @ velocity.linear.weight.T
    torch.testing.assert_close(velocity(x, 0.3, context), expected)


def test_layers_are_plain_linears():
    velocity = MLPVelocity(3, hidden=(8, 6, 7), context_dim=2)
    assert [type(layer) for layer in velocity.layers] == [nn.Linear] * 4
    assert [tuple(layer.weight.shape) for layer in velocity.layers] == [(8, 6), (6, 8), (7, 6), (3, 7)]


def test_time_can_be_left_out():
    velocity = random_velocity(2, time=False)
    x = torch.randn(4, 2).double()
    assert velocity.layers[0].in_features == 2
    assert torch.equal(velocity(x, 0.0), velocity(x, 5.0))
    timed = random_velocity(2)
    assert not torch.allclose(timed(x, 0.0), timed(x, 5.0))


def test_leading_dimensions_and_a_time_for_every_row():
    velocity = random_velocity(2, context_dim=1)
    x, t, context = (torch.randn(3, 4, n).double() for n in (2, 1, 1))
    t = t.squeeze(-1)
    batched = velocity(x, t, context)
    assert batched.shape == (3, 4, 2)
    for i in range(3):
        for j in range(4):
            torch.testing.assert_close(batched[i, j], velocity(x[i, j], t[i, j], context[i, j]))


def test_the_linear_term_starts_at_zero():
    torch.manual_seed(3)
    plain = MLPVelocity(2, hidden=(8,))
    torch.manual_seed(3)
    linear = MLPVelocity(2, hidden=(8,), linear=True)
    x = torch.randn(5, 2)
    assert torch.equal(plain(x), linear(x))
    linear(x).sum().backward()
    assert linear.linear.weight.grad.abs().min() > 0


def test_field_shares_the_parameters():
    velocity = MLPVelocity(3, hidden=(8, 6), activation="softplus(5)", context_dim=2, linear=True)
    field = velocity.field()
    assert (field.dim, field.context_dim, field.time, str(field.activation)) == (3, 2, True, "softplus(5)")
    assert field.hidden == (8, 6)
    assert all(w is layer.weight for w, layer in zip(field.weights, velocity.layers, strict=True))
    assert all(b is layer.bias for b, layer in zip(field.biases, velocity.layers, strict=True))
    assert field.linear is velocity.linear.weight
    assert MLPVelocity(3).field().linear is None


def test_a_subclass_with_its_own_forward_has_no_field():
    class Doubled(MLPVelocity):
        def forward(self, x, t=0.0, context=None):
            return 2 * super().forward(x, t, context)

    class Renamed(MLPVelocity):
        pass

    assert Doubled(2).field() is None
    assert Renamed(2).field() is not None


def test_repr_shows_the_arguments():
    text = repr(MLPVelocity(3, hidden=(8,), activation="softplus(5)", linear=True))
    for part in ("dim=3", "hidden=(8,)", "activation='softplus(5)'", "time=True", "context_dim=0", "linear=True"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"dim": 2, "hidden": ()}, r"hidden must list one or more positive widths, got \(\)"),
        ({"dim": 2, "hidden": (8, 0)}, r"hidden must list one or more positive widths, got \(8, 0\)"),
        ({"dim": 2, "context_dim": -1}, "context_dim must not be negative, got -1"),
        ({"dim": 2, "activation": "relu"}, "activation must bend, got 'relu'"),
        ({"dim": 2, "activation": "tahn"}, "activation must be one of .*, got 'tahn'"),
    ],
)
def test_bad_constructor_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLPVelocity(**arguments)


@pytest.mark.parametrize(
    ("context_dim", "x", "context", "message"),
    [
        (0, torch.zeros(4, 3), None, r"x must have shape \(\*, 2\) to match velocity.dim, got \(4, 3\)"),
        (0, torch.zeros(()), None, r"x must have shape \(\*, 2\) to match velocity.dim, got \(\)"),
        (3, torch.zeros(4, 2), None, r"context must be with shape \(\*, 3\) to match .*context_dim, got None"),
        (3, torch.zeros(4, 2), torch.zeros(4, 2), r"context must be with shape \(\*, 3\) .*, got \(4, 2\)"),
        (3, torch.zeros(4, 2), torch.zeros(4, 1), r"context must be with shape \(\*, 3\) .*, got \(4, 1\)"),
        (0, torch.zeros(4, 2), torch.zeros(4, 1), r"context must be None to match .*context_dim, got \(4, 1\)"),
    ],
)
def test_bad_inputs(context_dim, x, context, message):
    with pytest.raises(ValueError, match=message):
        MLPVelocity(2, context_dim=context_dim)(x, 0.0, context)
