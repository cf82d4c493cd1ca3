"""Adam, Muon and SOAP against plain implementations of the published algorithms, and what all of them must stand."""

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from jkoflow import Block, MLPVelocity
from jkoflow.training.chain import Chain
from jkoflow.training.optimizer import OPTIMIZERS, Group, Optimizer, PeakRates, adam, build_optimizer, groups_of
from jkoflow.training.optimizer.muon import orthogonalized
from jkoflow.velocity import Velocity

SHAPES = [(1, 4), (4, 1), (5, 5), (5, 5), (5, 3), (3, 5), (1, 1), (20, 7)]
RATES = PeakRates(0.02, 0.005)


def matrices(seed=0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator)) for shape in shapes]


def moving_loss(parameters, step):
    """A function of all parameters whose gradient is another one at every step."""
    return sum((p * torch.cos(step + torch.arange(p.numel()).view(p.shape) + p)).sum() for p in parameters)


@functools.cache
def polar_express(low, iterations):
    """The odd polynomials of degree 5 nearest to 1 on an interval that shrinks with each, by Remez's exchange."""
    high, found = 1.0, []
    for _ in range(iterations):
        x = np.array([low, low + (high - low) / 4, low + 3 * (high - low) / 4, high])
        grid = np.unique(np.concatenate([np.linspace(low, high, 100_001), np.geomspace(low, high, 100_001)]))
        for _ in range(30):
            signs = (-1.0) ** np.arange(4)
            *coefficients, error = np.linalg.solve(np.stack([x, x**3, x**5, signs], 1), np.ones(4))
            off = np.stack([grid, grid**3, grid**5], 1) @ coefficients - 1
            parts = np.split(np.arange(len(grid)), np.flatnonzero(np.diff(np.sign(off))) + 1)
            x = np.array([grid[part[np.abs(off[part]).argmax()]] for part in parts])
        found.append(tuple(coefficients))
        low, high = 1 - abs(error), 1 + abs(error)
    return tuple(found)


def plain_muon(parameter, gradient, memory, rate, decay):
    """One update of one matrix as the publications have it: Muon's step, Polar Express's polynomials."""
    memory["m"] = 0.95 * memory.get("m", torch.zeros_like(gradient)) + 0.05 * gradient
    X = 0.05 * gradient + 0.95 * memory["m"]
    X = X / (X.square().sum().sqrt() + 1e-7)
    for a, b, c in polar_express(0.01, 3):
        X = a * X + b * X @ X.T @ X + c * X @ X.T @ X @ X.T @ X
    rows, columns = X.shape
    return (1 - rate * decay) * parameter - rate * max(1, rows / columns) ** 0.5 * X


def plain_soap(parameter, gradient, memory, rate, decay):
    """One update of one matrix as the publication has it, but for the first bases: a QR decomposition from I."""
    zeros = torch.zeros_like
    G, L, R = gradient, gradient @ gradient.T, gradient.T @ gradient
    if not memory:
        memory |= {"t": 0, "m": zeros(G), "v": zeros(G)}
        memory |= {
            f"{name}{side}": torch.eye(len(P)).double() for side, P in (("L", L), ("R", R)) for name in ("", "Q")
        }
    memory["t"] += 1
    for name, value in (("m", G), ("L", L), ("R", R)):
        memory[name] = 0.95 * memory[name] + 0.05 * value
    if memory["t"] in (1, 11, 21):
        for side in "LR":
            memory[f"Q{side}"] = torch.linalg.qr(memory[side] @ memory[f"Q{side}"])[0]
    left, right = memory["QL"], memory["QR"]
    memory["v"] = 0.95 * memory["v"] + 0.05 * (left.T @ G @ right).square()
    bias = 1 - 0.95 ** memory["t"]
    turned = (left.T @ memory["m"] @ right / bias) / ((memory["v"] / bias).sqrt() + 1e-8)
    return (1 - rate * decay) * parameter - rate * left @ turned @ right.T


@pytest.mark.parametrize(("name", "plain"), [("muon", plain_muon), ("soap", plain_soap)])
def test_matrices_go_the_way_of_the_publication(name, plain):
    """Of every shape, neighbours of one shape included, over two refreshes of SOAP's bases."""
    ours, theirs = matrices(), matrices()
    optimizer = Optimizer([Group(tuple(ours), name, 0.1, decay=0.5)])
    memories = [{} for _ in theirs]
    for memory in optimizer.memory.values():
        if memory.ndim == 3:  # SOAP's means, here from I: the bases of singular ones would be a matter of rounding
            memory.copy_(torch.eye(memory.shape[1]))
    for step in range(22):
        factor = 1 / (1 + step)
        optimizer.update(moving_loss(ours, step), factor)
        gradients = torch.autograd.grad(moving_loss(theirs, step), theirs)
        theirs = [
            plain(p.detach(), g, memory, 0.1 * factor, 0.5).requires_grad_()
            for p, g, memory in zip(theirs, gradients, memories, strict=True)
        ]
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-6, atol=1e-8)


def test_adam_is_adam():
    """The same path as PyTorch's Adam behind PyTorch's clipping."""
    ours, theirs = (MLPVelocity(3, hidden=(7, 5), linear=True).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = adam(ours, 1.0, 0.8, 0.97, clip_norm=0.5)
    torchs = torch.optim.Adam(theirs.parameters(), betas=(0.8, 0.97))
    for step in range(20):
        x = torch.randn(10, 3, dtype=torch.float64)
        rate = 0.01 * (step + 1)
        norm = optimizer.update(ours(x).square().sum(), rate)
        torchs.zero_grad()
        theirs(x).square().sum().backward()
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        torchs.param_groups[0]["lr"] = rate
        torchs.step()
        assert norm.item() == pytest.approx(expected.item(), rel=1e-6)  # PyTorch adds 1e-6 to the norm
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 60, 5), (2, 5, 60), (1, 1, 9), (1, 9, 1)])
def test_the_iterations_keep_the_singular_vectors_and_evens_the_values(shape):
    generator = torch.Generator().manual_seed(1)
    U, _, Vh = torch.linalg.svd(torch.randn(shape, generator=generator).double(), full_matrices=False)
    values = torch.logspace(0, -1.0, U.shape[2], dtype=torch.float64)  # all above a hundredth of the norm
    result = orthogonalized(7.0 * U * values @ Vh)
    singular = U.mT @ result @ Vh.mT
    assert (singular - torch.diag_embed(singular.diagonal(dim1=1, dim2=2))).abs().max() < 1e-9
    assert singular.diagonal(dim1=1, dim2=2).min() > 0.73
    assert singular.diagonal(dim1=1, dim2=2).max() < 1.27


@pytest.mark.parametrize("name", ["muon", "soap"])
def test_matrices_of_one_shape_are_updated_as_single_ones(name):
    together, alone = matrices(shapes=[(6, 6)] * 4), matrices(shapes=[(6, 6)] * 4)
    optimizers = [Optimizer([Group(tuple(together), name, 0.1)]), *(Optimizer([Group((p,), name, 0.1)]) for p in alone)]
    for step in range(12):
        for optimizer, own in zip(optimizers, [together, *([p] for p in alone)], strict=True):
            optimizer.update(sum(moving_loss([p], step) for p in own))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-9, atol=1e-12)


# ----------------------------------------------------------------------------------------------- every one of the three


def block(dim=3, hidden=(8, 8), **settings):
    return Block(MLPVelocity(dim, hidden, linear=True, **settings), jko_step=math.inf)


def fit(module, optimizer, x, updates, first=0):
    """The losses of updates whose factor falls from 1."""
    losses = []
    for update in range(first, first + updates):
        losses.append(module.jko_loss(x).total)
        optimizer.update(losses[-1], 1 / (1 + 0.1 * update))
    return torch.stack(losses).detach()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("module", [block, lambda: Chain([block(), block()])], ids=["block", "chain"])
def test_it_descends(name, module):
    module, x = module(), 2.0 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    losses = fit(module, build_optimizer(module, name, RATES, 0.1, clip_norm=1.0), x, 60)
    best = 0.5 * 3 - 3 * math.log(0.5)  # of the map x / 2
    assert losses[-1] < 0.5 * (losses[0] + best)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_state_goes_on_to_the_bit(name):
    whole, broken, resumed = block(), block(), block()
    for other in (broken, resumed):
        other.load_state_dict(whole.state_dict())
    x = torch.randn(50, 3)
    expected = fit(whole, build_optimizer(whole, name, RATES, 0.1), x, 25)
    first = build_optimizer(broken, name, RATES, 0.1)
    losses = fit(broken, first, x, 13)
    state = first.state()
    fit(broken, first, x, 3, first=13)  # a state is a copy
    second = build_optimizer(resumed, name, RATES, 0.1)
    second.restore(state.to(torch.device("cpu")))
    assert second.updates == 13
    assert torch.equal(torch.cat([losses, fit(resumed, second, x, 12, first=13)]), expected)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_state_of_another_optimizer_is_refused():
    optimizers = {name: build_optimizer(block(), name, RATES) for name in OPTIMIZERS}
    before = optimizers["muon"].parameters.clone()
    with pytest.raises(
        ValueError, match=r"state must have tensors of the shapes .* restore it with the optimizer that"
    ):
        optimizers["muon"].restore(optimizers["soap"].state())
    with pytest.raises(ValueError, match="state must have tensors"):
        optimizers["muon"].restore(build_optimizer(block(4), "muon", RATES).state())
    assert torch.equal(optimizers["muon"].parameters, before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_zero_gradient_changes_nothing(name):
    module = block()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer = build_optimizer(module, name, RATES, clip_norm=1.0)
    for _ in range(11):
        optimizer.update(sum((p * 0).sum() for p in module.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_smallest_and_largest_gradients_leave_finite_parameters(name):
    for size in (1e-40, 1e-20, 1e-12, 1e15):
        module = block()
        optimizer = build_optimizer(module, name, RATES, clip_norm=1.0)
        for _ in range(3):
            optimizer.update(sum((p * size).sum() for p in module.parameters()))
        assert bool(optimizer.parameters.isfinite().all()), size


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_that_is_nan_is_seen_and_undone(name):
    """It must neither raise nor hang: the guard looks at the parameters and goes back."""
    module = block()
    optimizer = build_optimizer(module, name, RATES, clip_norm=1.0)
    x = torch.randn(50, 3)
    good = optimizer.state()
    for _ in range(12):
        assert optimizer.update(module.jko_loss(x).total * math.nan).isnan()
    assert bool(optimizer.parameters.isnan().any())
    optimizer.restore(good)
    assert bool(fit(module, optimizer, x, 12).isfinite().all())
    assert bool(optimizer.parameters.isfinite().all())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_released_parameters_own_their_memory(name):
    module = block()
    optimizer = build_optimizer(module, name, RATES)
    optimizer.release()
    optimizer.parameters.fill_(7)
    assert not any(bool((parameter == 7).any()) for parameter in module.parameters())
    assert all(parameter.grad is None for parameter in module.parameters())


# ------------------------------------------------------------------------------------------- which parameters are whose


def summary(groups, module):
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [
        (g.algorithm, g.rate, g.decay, [names[id(p)].removeprefix("velocity.") for p in g.parameters]) for g in groups
    ]


def test_the_layers_of_a_block_have_their_groups():
    module = block(hidden=(8, 9, 8))
    biases = [f"layers.{k}.bias" for k in range(4)]
    assert summary(groups_of(module, "muon", RATES, 0.1), module) == [
        ("muon", 0.02, 0.0, ["layers.0.weight"]),
        ("muon", 0.02, 0.1, ["layers.2.weight", "layers.1.weight"]),
        ("muon", 0.005, 0.1, ["layers.3.weight"]),
        ("adam", 0.005, 0.0, [*biases, "linear.weight"]),
    ]
    (of_soap, vectors) = summary(groups_of(module, "soap", RATES, 0.1), module)
    assert of_soap[:3] == ("soap", 0.02, 0.0)
    assert sorted(of_soap[3]) == [f"layers.{k}.weight" for k in range(4)]
    assert vectors == ("adam", 0.005, 0.0, [*biases, "linear.weight"])
    (everything,) = groups_of(module, "adam", RATES, 0.1)
    assert everything[1:] == ("adam", 0.02, 0.0)
    assert all(a is b for a, b in zip(everything.parameters, module.parameters(), strict=True))  # as version 0.1 has it


def test_the_layers_of_a_chain_are_updated_together():
    chain = Chain([block(), block()])
    first, hidden, output, vectors = groups_of(chain, "muon", RATES, 0.1)
    for group, layer in ((first, 0), (hidden, 1), (output, 2)):
        weights = [one.velocity.layers[layer].weight for one in chain.blocks]
        assert all(a is b for a, b in zip(group.parameters, weights, strict=True))
    assert len(vectors.parameters) == 8


class Gated(Velocity):
    """A velocity of another kind, with parameters of all ranks and one that is not trained."""

    def __init__(self):
        super().__init__()
        self.dim, self.context_dim = 3, 0
        self.inner, self.outer = nn.Linear(3, 6), nn.Linear(6, 3)
        self.gate, self.mixers = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.zeros(2, 3, 3))
        self.fixed = nn.Parameter(torch.eye(3), requires_grad=False)

    def forward(self, x, t=0.0, context=None):
        return self.gate * self.outer(torch.tanh(self.inner(x))) + x @ (self.mixers.sum(0) + 0 * self.fixed)

    def describe(self):
        return {}

    def scale_output(self, factor):
        self.outer.weight.data.mul_(factor)

    def work(self):
        return 1.0


def test_all_matrices_of_another_velocity_are_hidden_ones():
    module = Block(Gated(), jko_step=math.inf)
    assert summary(groups_of(module, "muon", RATES, 0.1), module) == [
        ("muon", 0.02, 0.1, ["outer.weight", "inner.weight"]),
        ("adam", 0.005, 0.0, ["gate", "mixers", "fixed", "inner.bias", "outer.bias"]),
    ]


def test_what_is_not_trained_stays():
    module = Block(Gated(), jko_step=math.inf)
    optimizer = build_optimizer(module, "muon", RATES, 0.1)
    for _ in range(3):
        optimizer.update(module.velocity(torch.randn(20, 3)).square().sum())
    assert torch.equal(module.velocity.fixed, torch.eye(3))


def test_tied_parameters_are_updated_once():
    first, second = block(), block()
    second.velocity.layers[1] = first.velocity.layers[1]
    chain = Chain([first, second])
    optimizer = build_optimizer(chain, "muon", RATES)
    fit(chain, optimizer, torch.randn(20, 3), 2)
    assert first.velocity.layers[1].weight is second.velocity.layers[1].weight
    assert sum(group.parameters[0].shape == (8, 8) for group in groups_of(chain, "muon", RATES)) == 1


@pytest.mark.parametrize("name", ["muon", "soap"])
def test_vectors_are_refused(name):
    with pytest.raises(ValueError, match=r"must be matrices, got one of shape \(3,\); update it with adam"):
        Optimizer([Group((nn.Parameter(torch.zeros(3)),), name, 0.1)])


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="algorithm must be adam, muon or soap, got 'sgd'"):
        Optimizer([Group((nn.Parameter(torch.zeros(3, 3)),), "sgd", 0.1)])


def test_only_muon_leaves_the_gradient_unclipped():
    lengths = {}
    for name in OPTIMIZERS:
        module = block()
        optimizer = build_optimizer(module, name, RATES, clip_norm=1e-3)
        assert optimizer.update(100 * module.jko_loss(torch.randn(50, 3)).total) > 1
        lengths[name] = torch.linalg.vector_norm(optimizer.gradient).item()
    assert lengths["adam"] == pytest.approx(1e-3)
    assert lengths["soap"] == pytest.approx(1e-3)
    assert lengths["muon"] > 1
