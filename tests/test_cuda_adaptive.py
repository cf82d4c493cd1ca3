"""Adaptive steps by the CUDA kernels, steps of its own for every row: run by the emulator, against the reference."""

import copy

import pytest
import torch

from emulation import EmulatedKernels
from jkoflow.ops import Adaptive, IntegrationError, cuda_rows, integrate, library, native, native_rows, row_operators
from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.reference import mlp_rhs
from oracles import random_velocity

pytestmark = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")

NETWORKS = {
    "one layer": {"dim": 3, "hidden": (40,)},
    "two layers": {"dim": 3, "hidden": (50, 64), "linear": True, "context_dim": 2},
    "three layers": {"dim": 2, "hidden": (20, 64, 33), "context_dim": 1, "linear": True},
    "no time": {"dim": 5, "hidden": (30, 20), "time": False, "context_dim": 1},
}
TIGHT = {"rtol": 1e-4, "atol": 1e-4}
ERRORS = {"fp32": 2e-5, "tf32x3": 2e-5, "tf32": 1e-2}  # of float32 numbers, in units of the largest entry


@pytest.fixture
def emulated(emulation, monkeypatch):
    """Lets the CPU's operators run the emulated CUDA kernels, by the way that a GPU's tensors take."""

    def use(precision="fp32"):
        monkeypatch.setattr(native, "_C", EmulatedKernels(emulation, precision))
        monkeypatch.setattr(native_rows, "on_gpu", lambda x: True)

    use.emulation = emulation
    return use


def inputs(network, batch):
    velocity = random_velocity(**network, dtype=torch.float32, scale=0.8)
    generator = torch.Generator().manual_seed(1)
    columns = {"x": velocity.dim, "context": velocity.context_dim, "noise": velocity.dim}
    return velocity, {name: torch.randn(batch, count, generator=generator) for name, count in columns.items()}


def run(velocity, tensors, backend, gradients=True, divergence="exact", **options):
    """Results of an integration and, unless gradients is false, gradients of everything."""
    leaves = {name: tensors[name].detach().clone().requires_grad_(gradients) for name in ("x", "context")}
    if velocity.context_dim == 0:
        del leaves["context"]
    noise = tensors["noise"] if divergence == "hutchinson" else None
    options = {"method": "dopri5", **TIGHT, **options}
    with torch.set_grad_enabled(gradients):
        result = integrate(
            velocity,
            leaves["x"],
            context=leaves.get("context"),
            divergence=divergence,
            noise=noise,
            backend=backend,
            **options,
        )
    members = {name: getattr(result, name) for name in ("x", "logdet", "path", "logdet_path", "evaluations")}
    found = {name: value.detach() for name, value in members.items() if value is not None}
    if gradients:
        parts = [part for part in list(members.values())[:-1] if part is not None and part.requires_grad]
        bars = torch.Generator().manual_seed(7)
        loss = sum((part * torch.randn(part.shape, generator=bars).to(part.dtype)).sum() for part in parts)
        wanted = leaves | dict(velocity.named_parameters())
        pulled = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
        found |= {f"gradient of {name}": value for name, value in zip(wanted, pulled, strict=True)}
    return found


def steps_of(last_step, records):
    """Starts and sizes of every row's steps, float64 with shape (steps, B): those that a row does not take are zero."""
    starts = records[:, :2].contiguous().view(torch.float64)
    chains = []
    for last in last_step.tolist():
        chains.append([])
        while last >= 0:
            chains[-1].insert(0, starts[last].tolist())
            last = int(records[last, 2])
    longest = max(map(len, chains))
    padded = [chain + [[chain[-1][0] if chain else 0.0, 0.0]] * (longest - len(chain)) for chain in chains]
    return torch.tensor(padded, dtype=torch.float64).permute(2, 1, 0)


def replay(velocity, x, context, noise, divergence, method, times, t, dt):
    """x, logdet and their values at times, by steps that are given: the reference of the kernel's exact gradient."""
    rhs, method = mlp_rhs(velocity.field(), context, divergence, noise), EMBEDDED[method]
    logdet, outputs = torch.zeros(len(x), dtype=x.dtype), [(x, torch.zeros(len(x), dtype=x.dtype))] * len(times)
    for start, size in zip(t, dt, strict=True):
        slopes = []
        for row, c in zip(method.a, method.c, strict=True):
            moved = x + sum((size.unsqueeze(1) * a * v for a, (v, _) in zip(row, slopes, strict=True)), torch.zeros(()))
            slopes.append(rhs(moved, start + c * size))
        for i, time in enumerate(times):
            theta = (time - start) / torch.where(size == 0, 1.0, size)
            inside = (size != 0) & (theta > 0) & (theta <= 1)
            weights = [size * sum(w * theta ** (k + 1) for k, w in enumerate(row)) for row in method.dense]
            x_out = x + sum(w.unsqueeze(1) * v for w, (v, _) in zip(weights, slopes, strict=True))
            logdet_out = logdet + sum(w * d for w, (_, d) in zip(weights, slopes, strict=True))
            kept = outputs[i]
            outputs[i] = torch.where(inside.unsqueeze(1), x_out, kept[0]), torch.where(inside, logdet_out, kept[1])
        logdet = logdet + sum(size * b * d for b, (_, d) in zip(method.b, slopes, strict=True))
        x = moved
    x_outputs = torch.stack([x for x, _ in outputs]) if outputs else None
    return x, logdet, x_outputs, torch.stack([d for _, d in outputs]) if outputs else None


def check(emulated, network, batch, precision="fp32", divergence="exact", method="dopri5", times=(), span=(0.0, 1.0)):
    """Compares the kernels with the reference, and their gradient with that of the same steps in float64."""
    velocity, tensors = inputs(network, batch)
    context, noise = (tensors["context"] if velocity.context_dim else None), tensors["noise"]
    noise = noise if divergence == "hutchinson" else None
    between = {"times": [span[0], *times, span[1]]} if times else {"t0": span[0], "t1": span[1]}
    peer = integrate(velocity, tensors["x"], context=context, noise=noise, divergence=divergence, method=method,
                     backend="reference", **TIGHT, **between)  # fmt: skip
    emulated(precision)
    field, leaves = velocity.field(), {"x": tensors["x"].requires_grad_(), "context": context}
    if context is not None:
        context.requires_grad_()
    text = field.activation.text
    settings = native.Settings(divergence, field.time, text, *span, Adaptive(1e-4, 1e-4, 100), method, precision="auto")
    inner = torch.tensor(times, dtype=torch.float64)
    found = row_operators.integrate_adaptively(field, leaves["x"], context, noise, settings, inner)
    attempts = (found.evaluations - peer.evaluations).abs()  # a step more or less, where rounding decides
    assert precision == "tf32" or (attempts <= EMBEDDED[method].stages - 1).all()
    for got, expected in ((found.x_end, peer.x), (found.logdet, peer.logdet)):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 + ERRORS[precision])  # the tolerance of a step

    velocity64 = copy.deepcopy(velocity).double()
    copies = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items() if leaf is not None}
    noise64 = None if noise is None else noise.double()
    t, dt = steps_of(found.last_step, found.records)
    exact = replay(velocity64, copies["x"], copies.get("context"), noise64, divergence, method, times, t, dt)
    pairs = {"x": (found.x_end, exact[0]), "logdet": (found.logdet, exact[1])}
    if times:
        pairs |= {"x at times": (found.x_outputs, exact[2]), "logdet at times": (found.logdet_outputs, exact[3])}
    bars, losses = torch.Generator().manual_seed(7), [0.0, 0.0]
    for got, expected in pairs.values():
        bar = torch.randn(got.shape, generator=bars)
        if got.requires_grad:
            losses = [losses[0] + (got * bar).sum(), losses[1] + (expected * bar.double()).sum()]
    wanted = [leaf for leaf in leaves.values() if leaf is not None], list(copies.values())
    gradients = [
        torch.autograd.grad(loss, [*own, *module.parameters()], allow_unused=True, materialize_grads=True)
        for loss, own, module in zip(losses, wanted, (velocity, velocity64), strict=True)
    ]
    names = [*copies, *(name for name, _ in velocity.named_parameters())]
    pairs |= {f"gradient of {name}": pair for name, pair in zip(names, zip(*gradients, strict=True), strict=True)}
    for name, (got, expected) in pairs.items():
        scale = max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
        torch.testing.assert_close(
            got.double(), expected, rtol=0, atol=ERRORS[precision] * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("method", EMBEDDED)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_steps_and_their_gradient(emulated, network, method):
    check(emulated, network, 41, method=method)


@pytest.mark.parametrize("precision", ["tf32x3", "tf32"])
@pytest.mark.parametrize(
    "hidden", [(40,), (50, 64), (20, 64, 33), (128, 70), (33, 128, 65), (129,), (200, 256), (16, 200, 64)]
)
def test_every_family_of_kernels(emulated, hidden, precision):
    check(emulated, {"dim": 3, "hidden": hidden, "context_dim": 1, "linear": True}, 21, precision, method="bosh3")


@pytest.mark.parametrize("divergence", ["hutchinson", "none"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_divergences(emulated, network, divergence):
    check(emulated, network, 37, divergence=divergence)


@pytest.mark.parametrize("method", EMBEDDED)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
def test_values_at_times(emulated, divergence, method):
    options = {"divergence": divergence, "method": method}
    check(emulated, NETWORKS["two layers"], 35, times=(0.5, 0.49, 0.1), span=(0.7, -0.4), **options)
    check(emulated, NETWORKS["three layers"], 5, times=(0.5, 0.51, 0.9), **options)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_row_does_not_depend_on_its_neighbours(emulated, gradients):
    velocity, tensors = inputs(NETWORKS["two layers"], 75)
    tensors["x"][::3] *= 5  # rows of more steps than others
    emulated()
    together = run(velocity, tensors, "cpu", gradients=gradients)
    assert len(together["evaluations"].unique()) > 1
    names = ["x", "logdet", "evaluations"]
    for rows in (slice(0, 1), slice(3, 60), slice(74, 75)):
        alone = run(velocity, {name: tensor[rows] for name, tensor in tensors.items()}, "cpu", gradients=gradients)
        for name in names:
            assert torch.equal(alone[name], together[name][rows]), name
    emulated.emulation.configure(multiprocessors=5)
    spread = run(velocity, tensors, "cpu", gradients=gradients)
    for name in names:
        assert torch.equal(spread[name], together[name]), name


def test_gradients_of_rows_do_not_depend_on_their_neighbours(emulated):
    velocity, tensors = inputs(NETWORKS["three layers"], 40)
    tensors["x"][::3] *= 5
    emulated()

    def gradients(rows):
        x, context = (tensors[name][rows].clone().requires_grad_() for name in ("x", "context"))
        result = integrate(velocity, x, context=context, method="tsit5", **TIGHT, backend="cpu")
        return torch.autograd.grad(result.x.square().sum() + result.logdet.sum(), (x, context))

    for whole, part in zip(gradients(slice(0, 40)), gradients(slice(7, 20)), strict=True):
        assert torch.equal(whole[7:20], part)


def test_more_steps_than_there_is_room_for(emulated, monkeypatch):
    """The second launch has room for all steps, and what is recorded gives the same gradient."""
    case = inputs(NETWORKS["two layers"], 20)
    emulated()
    whole = run(*case, "cpu")
    assert whole["evaluations"].max() > 2 + 6 * 2
    launches = []
    original = native.run_kernel
    monkeypatch.setattr(
        native_rows, "run_kernel", lambda name, *rest: (launches.append(name), original(name, *rest))[1]
    )
    monkeypatch.setattr(cuda_rows, "_FIRST_ROOM", 1)
    again = run(*case, "cpu")
    assert launches == ["adaptive", "adaptive", "adaptive_backward"]
    for name, value in whole.items():
        assert torch.equal(again[name], value), name
    launches.clear()
    run(*case, "cpu", gradients=False)
    assert launches == ["adaptive"]  # nothing is recorded


@pytest.mark.parametrize("batch", [0, 1, 32, 33])
def test_batches(emulated, batch):
    emulated.emulation.configure(multiprocessors=3)
    if batch > 0:
        check(emulated, NETWORKS["one layer"], batch)
    else:
        velocity, tensors = inputs(NETWORKS["two layers"], 0)
        emulated()
        found = run(velocity, tensors, "cpu", times=[0.0, 0.5, 1.0])
        assert found["path"].shape == (3, 0, 3)
        assert all(not found[name].any() for name in found if name.startswith("gradient"))


def test_no_interval(emulated):
    velocity, tensors = inputs(NETWORKS["one layer"], 3)
    emulated()
    got = run(velocity, tensors, "cpu", t0=0.5, t1=0.5)
    assert torch.equal(got["x"], tensors["x"])
    assert got["logdet"].tolist() == [0, 0, 0]


def test_rows_that_do_not_arrive(emulated):
    velocity, tensors = inputs(NETWORKS["two layers"], 50)
    emulated()
    with pytest.raises(IntegrationError, match=r"row 0 stops at t = .*raise max_steps"):
        run(velocity, tensors, "cpu", max_steps=2)
    tensors["x"][[17, 30]] = float("nan")
    with pytest.raises(IntegrationError, match=r"row 17 stops at t = 0: .*not finite") as caught:
        run(velocity, tensors, "cpu")
    assert (caught.value.row, caught.value.reason) == (17, "not_finite")


def test_a_velocity_that_becomes_infinite(emulated):
    velocity, tensors = inputs({"dim": 2, "hidden": (20,), "activation": "softplus(1)", "linear": True}, 9)
    with torch.no_grad():
        velocity.linear.weight.copy_(300 * torch.eye(2))
    emulated()
    with pytest.raises(IntegrationError):
        run(velocity, tensors, "cpu", rtol=1e-2, atol=1e-2, max_steps=400)


def test_records_that_lead_elsewhere_are_not_followed(emulated):
    """Places that do not descend, or are none, end a row's chain: nothing beyond the records is read."""
    velocity, tensors = inputs(NETWORKS["one layer"], 4)
    field, x = velocity.field(), tensors["x"]
    settings = native.Settings("exact", True, field.activation.text, 0.0, 1.0, Adaptive(1e-4, 1e-4, 100), "dopri5")
    request = [x, None, *library.slots_of(field), None, library.encode(settings), torch.zeros(0, dtype=torch.float64)]
    emulated()
    *_, last_step, records = torch.ops.jkoflow.integrate_adaptive.default(*request, True)
    backward = torch.ops.jkoflow.integrate_adaptive_backward.default
    bars = [torch.ones_like(x), None, None, None, True]
    right = backward(*request, last_step, records, *bars)[0]
    far, circular = records.clone(), records.clone()
    far[:, 2] = 1 << 40
    circular[:, 2] = torch.arange(len(records))
    got = [backward(*request, last_step, broken, *bars)[0] for broken in (far, circular)]
    got.append(backward(*request, last_step + len(records), records, *bars)[0])
    assert torch.equal(got[0], got[1])  # of the last step alone
    assert not torch.equal(got[0], right)
    assert torch.equal(got[2], torch.ones_like(x))  # of no step
    with pytest.raises(ValueError, match="records must hold"):
        backward(*request, last_step, records[:, :-1], *bars)
