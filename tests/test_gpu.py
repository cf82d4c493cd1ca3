"""The CUDA kernels on a GPU: values, gradients, streams, graphs, compilation and training.

Needs torch, numpy, safetensors and pytest only, and no conftest.py, so that it runs on a bare machine: see
scripts/gpu_check.sh.
"""

import copy
import math
import os
import subprocess
import sys

import pytest
import torch

import jkoflow
from jkoflow import Block, FallbackWarning, JKOFlow, TrainConfig, integrate, jko_loss, metrics
from jkoflow.ops import Fixed, IntegrationError, cuda, cuda_rows, jko_terms, library, native
from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.training.captured import Captured, CudaGraphs
from jkoflow.training.chain import Chain
from jkoflow.training.fit import Fit, FitHooks
from jkoflow.training.optimizer import OPTIMIZERS, build_optimizer, peak_rates
from jkoflow.training.optimizer import optimizer as optimizer_module
from jkoflow.training.progress import Silent
from jkoflow.training.pushed import PushedSamples
from jkoflow.training.recipe import recipe_of_block, recipe_of_chain
from jkoflow.training.state import FitCounters
from jkoflow.training.upload import Upload
from jkoflow.training.world import World
from oracles import random_velocity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        cuda.missing() is not None and "JKOFLOW_REQUIRE_GPU" not in os.environ,
        reason=f"no CUDA kernels here: {cuda.missing()}",
    ),
]

PRECISIONS = ["fp32", "tf32x3", "tf32"]
ACCURATE = ["fp32", "tf32x3"]
FLOOR = {"fp32": 2e-6, "tf32x3": 1e-5, "tf32": 1e-2}
"""Error that is always allowed, relative to the largest entry: a few roundings of the products, and what the kernels'
activations err, up to 3e-7 each where PyTorch's round correctly."""

NETWORKS = {
    "one layer": {"dim": 3, "hidden": (20,)},
    "two layers": {"dim": 3, "hidden": (20, 12)},
    "three layers": {"dim": 3, "hidden": (20, 12, 17)},
    "widths of one": {"dim": 1, "hidden": (1, 1)},
    "no time": {"dim": 2, "hidden": (9, 33), "time": False},
    "context and linear": {"dim": 4, "hidden": (17, 16), "context_dim": 3, "linear": True},
    "one layer, all inputs": {"dim": 5, "hidden": (48,), "context_dim": 1, "linear": True},
    "three layers, all inputs": {"dim": 2, "hidden": (30, 64, 33), "context_dim": 2, "linear": True},
    "softplus": {"dim": 2, "hidden": (16, 16), "activation": "softplus(3)"},
    "silu": {"dim": 2, "hidden": (64, 64), "activation": "silu", "linear": True},
    "full width": {"dim": 6, "hidden": (128, 128)},
    "wide": {"dim": 17, "hidden": (256, 130), "linear": True},
    "widest": {"dim": 63, "hidden": (256, 256)},
    "three wide layers": {"dim": 3, "hidden": (256, 200, 128)},
    "many features": {"dim": 128, "hidden": (24, 40)},
}


@pytest.fixture(autouse=True)
def _float32_products():
    """PyTorch's own products in float32: the peer of the comparisons."""
    torch.manual_seed(0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def case(network, batch, dtype=torch.float32, device="cuda"):
    velocity = random_velocity(**network, dtype=dtype).to(device)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, velocity.dim, generator=generator, dtype=torch.float64).to(device, dtype)
    context = None
    if velocity.context_dim:
        context = torch.randn(batch, velocity.context_dim, generator=generator, dtype=torch.float64).to(device, dtype)
    return velocity, x, context


def probe(x):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).sign().to(x.device, x.dtype)


def outputs_and_gradients(velocity, x, context, **options):
    """Everything that comes out of integrate, then the gradients of x, context and the parameters, by name."""
    leaves = [x.detach().clone().requires_grad_()]
    if context is not None:
        leaves.append(context.detach().clone().requires_grad_())
    if options.get("divergence") == "hutchinson":
        options["noise"] = probe(x)
    result = integrate(velocity, leaves[0], context=leaves[1] if context is not None else None, **options)
    generator = torch.Generator().manual_seed(7)
    bars = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part) for part in result]
    parts, bars = zip(*((part, bar) for part, bar in zip(result, bars, strict=True) if part.requires_grad), strict=True)
    gradients = torch.autograd.grad(
        parts, leaves + list(velocity.parameters()), bars, allow_unused=True, materialize_grads=True
    )
    names = ["x", "logdet", "path", "grad x"] + ["grad context"] * (context is not None)
    names += [f"grad {name}" for name, _ in velocity.named_parameters()]
    return dict(zip(names, [*(part.detach() for part in result), *gradients], strict=True))


def loss_and_gradients(velocity, x, context, jko_step, **options):
    leaves = [x.detach().clone().requires_grad_()]
    if context is not None:
        leaves.append(context.detach().clone().requires_grad_())
    if options.get("divergence") == "hutchinson":
        options["noise"] = probe(x)
    terms = jko_loss(velocity, leaves[0], jko_step, context=leaves[1] if context is not None else None, **options)
    gradients = torch.autograd.grad(3 * terms.total, leaves + list(velocity.parameters()))
    names = [*terms._fields, "grad x"] + ["grad context"] * (context is not None)
    names += [f"grad {name}" for name, _ in velocity.named_parameters()]
    return dict(zip(names, [*(term.detach() for term in terms), *gradients], strict=True))


def assert_accurate(got, peer, exact, precision, terms):
    """The 2x rule for every result: at most twice PyTorch's error in float32 against float64, plus the floor.

    Gradients of parameters are sums over rows and stages (``terms`` of them), whose rounding grows with the root of
    their number.
    """
    assert got.keys() == exact.keys()
    for name, value in exact.items():
        assert got[name].dtype == torch.float32
        assert got[name].shape == value.shape, name
        if value.numel() == 0:
            continue
        error, allowed = ((part[name].double() - value).abs().max().item() for part in (got, peer))
        grown = max(1.0, 0.25 * math.sqrt(terms)) if name.startswith("grad l") else 1.0
        allowed = 2 * allowed + FLOOR[precision] * grown * max(1.0, value.abs().max().item())
        assert error <= allowed, f"{name}: error {error:.3e} against float64, allowed {allowed:.3e}"


def assert_parity(network, batch, precision, run=outputs_and_gradients, **options):
    velocity, x, context = case(network, batch)
    got = run(velocity, x, context, backend="cuda", precision=precision, **options)
    peer = run(velocity, x, context, backend="reference", **options)
    wide = copy.deepcopy(velocity).double(), x.double(), None if context is None else context.double()
    exact = run(*wide, backend="reference", **options)
    stages = len(TABLEAUX[options.get("method", "rk4")].b) * options.get("num_steps", 3)
    assert_accurate(got, peer, exact, precision, batch * stages)


def loss(velocity, x, context, **options):
    return loss_and_gradients(velocity, x, context, 0.3, **options)


def free_loss(velocity, x, context, **options):
    return loss_and_gradients(velocity, x, context, math.inf, **options)


# ---- Values and gradients


def evaluation(velocity, x, context, backend, precision="auto", **options):
    """Velocity, divergence and their gradients, every row at its own time."""
    leaves = {"x": x, "t": torch.linspace(-1, 2, len(x), dtype=x.dtype, device=x.device), "context": context}
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items() if leaf is not None}
    if options.get("divergence") == "hutchinson":
        options["noise"] = probe(x)
    results = jkoflow.velocity_and_divergence(
        velocity, leaves["x"], leaves["t"], leaves.get("context"), backend=backend, precision=precision, **options
    )
    leaves |= dict(velocity.named_parameters())
    loss = sum((part * probe(part)).sum() for part in results)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    named = {f"grad {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {"velocity": results[0].detach(), "divergence": results[1].detach()} | named


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_single_evaluations(network, precision):
    for batch in (0, 50, 3000):
        assert_parity(network, batch, precision, evaluation, divergence="exact")
    assert_parity(network, 50, precision, evaluation, divergence="hutchinson")
    assert_parity(network, 50, precision, evaluation, divergence="none")


ADAPTIVE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("method", EMBEDDED)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_adaptive_steps(network, method):
    """Rounding may decide on a step more or less, so that results agree to the tolerance; gradients likewise."""
    for divergence in ("exact", "hutchinson", "none"):
        velocity, x, context = case(network, 300)
        options = {"method": method, "divergence": divergence, "times": [1.0, 0.4, 0.0], **ADAPTIVE}
        got = outputs_and_gradients(velocity, x, context, backend="cuda", **options)
        wide = copy.deepcopy(velocity).double(), x.double(), None if context is None else context.double()
        exact = outputs_and_gradients(*wide, backend="reference", **options)
        for name, value in exact.items():
            scale = max(1.0, value.abs().max().item()) * (len(x) if name.startswith("grad l") else 1)
            torch.testing.assert_close(
                got[name].double(), value, rtol=0, atol=3e-4 * scale, msg=f"{name}, {divergence}"
            )


def test_rows_of_adaptive_steps_do_not_depend_on_their_neighbours(monkeypatch):
    velocity, x, _ = case(NETWORKS["full width"], 3000)
    x[::7] *= 10
    whole = integrate(velocity, x, method="dopri5", backend="cuda", **ADAPTIVE)
    part = integrate(velocity, x[1000:1033], method="dopri5", backend="cuda", **ADAPTIVE)
    for name in ("x", "logdet", "evaluations"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[1000:1033]), name
    gradients = []
    for room in (16, 1):  # the second run has to ask for more
        monkeypatch.setattr(cuda_rows, "_FIRST_ROOM", room)
        leaf = x.clone().requires_grad_()
        result = integrate(velocity, leaf, method="dopri5", backend="cuda", **ADAPTIVE)
        gradients.append(torch.autograd.grad(result.x.square().sum() + result.logdet.sum(), leaf)[0])
    assert torch.equal(*gradients)


def test_rows_of_adaptive_steps_that_do_not_arrive():
    velocity, x, _ = case(NETWORKS["two layers"], 500)
    x[[77, 300]] = math.nan
    with pytest.raises(IntegrationError, match="row 77 stops at t = 0"):
        integrate(velocity, x, method="tsit5", backend="cuda")
    with pytest.raises(IntegrationError, match="raise max_steps"):
        integrate(velocity, x[:77], method="tsit5", backend="cuda", max_steps=1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_networks(network, precision):
    assert_parity(network, 37, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_networks_in_the_fused_loss(network, precision):
    assert_parity(network, 37, precision, loss)


@pytest.mark.parametrize("precision", ACCURATE)
@pytest.mark.parametrize("batch", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 129, 1003])
@pytest.mark.parametrize("hidden", [(64, 70), (130,), (256, 200), (33, 20, 40)], ids=str)
def test_batches(batch, hidden, precision):
    network = {"dim": 6, "hidden": hidden, "linear": True}
    assert_parity(network, batch, precision)
    if batch > 0:
        assert_parity(network, batch, precision, free_loss)


@pytest.mark.parametrize("precision", ACCURATE)
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 8, 9, 17, 32, 33, 63, 64, 65, 127, 128])
def test_dimensions(dim, precision):
    for hidden in ((50,), (100, 36)):
        assert_parity({"dim": dim, "hidden": hidden, "activation": "silu"}, 97, precision)


@pytest.mark.parametrize("dim", [1, 5, 17])
def test_dimensions_with_three_layers(dim):
    assert_parity({"dim": dim, "hidden": (40, 36, 70)}, 50, "tf32x3")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
@pytest.mark.parametrize("method", TABLEAUX)
def test_methods_and_divergences(method, divergence, precision):
    for name in ("one layer, all inputs", "context and linear", "three layers, all inputs"):
        assert_parity(NETWORKS[name], 20, precision, method=method, divergence=divergence, num_steps=2)
        if divergence != "none":
            assert_parity(NETWORKS[name], 20, precision, loss, method=method, divergence=divergence, num_steps=2)


@pytest.mark.parametrize("activation", ["tanh", "softplus", "softplus(5)", "silu", "elu", "selu", "gelu"])
def test_activations(activation):
    for hidden in ((33,), (64, 20), (20, 20, 20)):
        assert_parity({"dim": 3, "hidden": hidden, "activation": activation}, 50, "tf32x3")


def test_backwards_and_partial_intervals():
    for precision in PRECISIONS:
        assert_parity(NETWORKS["two layers"], 20, precision, t0=1.0, t1=0.0)
        assert_parity(NETWORKS["two layers"], 20, precision, t0=-0.5, t1=0.25, num_steps=5)


def test_many_steps_in_the_fused_loss():
    assert_parity(NETWORKS["full width"], 100, "fp32", loss, num_steps=24)


@pytest.mark.parametrize("batch", [6_000, 9_000, 12_011, 24_000])
@pytest.mark.parametrize("hidden", [(64, 40), (128, 100), (130, 256), (33, 20, 40)], ids=str)
def test_large_and_small_tiles(hidden, batch):
    """Blocks have up to some large tiles and a small one: which ones depends on the batch and on the GPU."""
    for run in (outputs_and_gradients, loss):
        assert_parity({"dim": 18, "hidden": hidden, "linear": True}, batch, "tf32x3", run, num_steps=1)


@pytest.mark.parametrize("network", ["full width", "widest"])
@pytest.mark.parametrize("batch", [10_000, 100_000])
def test_large_batches(network, batch):
    """More tiles than blocks at once; the first and the last rows are where an index would overflow."""
    velocity, x, _ = case(NETWORKS[network], batch)
    got = integrate(velocity, x, backend="cuda", precision="tf32x3")
    for rows in (slice(0, 500), slice(batch - 500, batch)):
        exact = integrate(copy.deepcopy(velocity).double(), x[rows].double(), backend="reference")
        torch.testing.assert_close(got.x[rows].double(), exact.x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.logdet[rows].double(), exact.logdet, rtol=1e-4, atol=1e-3)
    whole = loss_and_gradients(velocity, x, None, 0.5, backend="cuda", precision="tf32x3")
    halves = [loss_and_gradients(velocity, half, None, 0.5, backend="cuda", precision="tf32x3") for half in x.chunk(2)]
    for name in whole:
        if name != "grad x":
            mean = torch.stack([half[name] for half in halves]).mean(0)
            torch.testing.assert_close(whole[name], mean, rtol=1e-3, atol=1e-4 * max(1.0, mean.abs().max().item()))


def test_saturated_activations_stay_accurate():
    for activation in ("tanh", "softplus(5)", "silu", "elu", "selu", "gelu"):
        velocity, x, _ = case({"dim": 2, "hidden": (24, 24), "activation": activation}, 33)
        with torch.no_grad():
            velocity.layers[0].bias.copy_(torch.linspace(-60, 60, 24))
            velocity.layers[2].weight.mul_(0.01)
        got = integrate(velocity, x, backend="cuda", precision="fp32")
        exact = integrate(copy.deepcopy(velocity).double(), x.double(), backend="reference")
        torch.testing.assert_close(got.x.double(), exact.x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.logdet.double(), exact.logdet, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ACCURATE)
@pytest.mark.parametrize("activation", ["tanh", "silu", "elu", "selu", "gelu"])
def test_activations_near_zero_stay_accurate(activation, precision):
    """The second layer makes up for a first one that is small, so that a relative error of its activations shows."""
    velocity, x, _ = case({"dim": 3, "hidden": (24, 24), "activation": activation}, 33)
    with torch.no_grad():
        velocity.layers[0].weight.mul_(1e-3)
        velocity.layers[0].bias.mul_(1e-3)
        velocity.layers[1].weight.mul_(1e3)
    got = outputs_and_gradients(velocity, x, None, backend="cuda", precision=precision)
    peer = outputs_and_gradients(velocity, x, None, backend="reference")
    exact = outputs_and_gradients(copy.deepcopy(velocity).double(), x.double(), None, backend="reference")
    assert_accurate(got, peer, exact, precision, 33 * 12)


def test_gradients_where_wanted_only():
    velocity, x, context = case(NETWORKS["context and linear"], 21)
    for trainable in ("x", "context", "parameters", "nothing"):
        velocity.requires_grad_(trainable == "parameters")
        leaves = {name: tensor.detach().clone() for name, tensor in (("x", x), ("context", context))}
        wanted = list(velocity.parameters()) if trainable == "parameters" else []
        if trainable in leaves:
            wanted = [leaves[trainable].requires_grad_()]
        results = [
            integrate(velocity, leaves["x"], context=leaves["context"], backend=backend, precision="fp32")
            if backend == "cuda"
            else integrate(velocity, leaves["x"], context=leaves["context"], backend=backend)
            for backend in ("cuda", "reference")
        ]
        if not wanted:
            assert not any(part.requires_grad for part in results[0])
            continue
        got, expected = (torch.autograd.grad(r.logdet.sum() + r.x.square().sum(), wanted) for r in results)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


# ---- Memory


def test_any_strides_and_alignment():
    velocity, x, context = case(NETWORKS["context and linear"], 40)
    expected = outputs_and_gradients(velocity, x, context, backend="cuda")
    padded = torch.full((41, 9), math.nan, device="cuda")
    padded[1:, 3:7] = x
    flat = torch.full((40 * 4 + 3,), math.nan, device="cuda")
    flat[1:161] = x.flatten()
    layouts = {"transposed": x.T.contiguous().T, "slice": padded[1:, 3:7], "unaligned": flat[1:161].view(40, 4)}
    layouts["every other"] = x.repeat_interleave(2, 0)[::2]
    for name, strided in layouts.items():
        with torch.no_grad():
            got = integrate(velocity, strided, context=context.T.contiguous().T, backend="cuda")
        assert torch.equal(got.x, expected["x"]), name
        assert torch.equal(got.logdet, expected["logdet"]), name
    for parameter in velocity.parameters():  # dense, but at odd addresses
        room = torch.full((parameter.numel() + 1,), math.nan, device="cuda")
        room[1:] = parameter.detach().flatten()
        parameter.data = room[1:].view(parameter.shape)
    unaligned = outputs_and_gradients(velocity, x, context, backend="cuda")
    assert all(torch.equal(unaligned[name], value) for name, value in expected.items())


@pytest.mark.parametrize("network", ["one layer, all inputs", "full width", "three layers, all inputs"])
def test_every_output_is_written_and_nothing_stale_is_read(network):
    """The allocator hands out memory full of NaN, which shows where an output is not written or a read comes first."""
    velocity, x, context = case(NETWORKS[network], 100)
    torch.cuda.empty_cache()
    for run in (outputs_and_gradients, loss):
        for size in (2**10, 2**14, 2**18, 2**22, 2**26):
            blocks = [torch.full((size // 4,), math.nan, device="cuda") for _ in range(8)]
            del blocks
        for name, value in run(velocity, x, context, backend="cuda").items():
            assert bool(value.isfinite().all()), name


def test_memory_is_given_back():
    velocity, x, context = case(NETWORKS["context and linear"], 1000)
    outputs_and_gradients(velocity, x, context, backend="cuda")
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        outputs_and_gradients(velocity, x, context, backend="cuda")
        loss(velocity, x, context, backend="cuda")
    assert torch.cuda.memory_allocated() == before


def test_a_row_does_not_depend_on_the_other_rows():
    velocity, x, _ = case(NETWORKS["full width"], 200)
    whole = integrate(velocity, x, backend="cuda")
    poisoned = x.clone()
    poisoned[100] = math.nan
    around = integrate(velocity, poisoned, backend="cuda")
    others = torch.arange(200, device="cuda") != 100
    assert torch.equal(around.x[others], whole.x[others])
    assert torch.equal(around.logdet[others], whole.logdet[others])
    assert around.x[100].isnan().all()
    assert around.logdet[100].isnan()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_nan_among_the_weights_shows(precision):
    velocity, x, _ = case(NETWORKS["full width"], 50)
    with torch.no_grad():  # the bits of the NaN that the GPU computes
        velocity.layers[1].weight[3, 5] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    result = integrate(velocity, x, backend="cuda", precision=precision)
    assert result.x.isnan().all()
    assert result.logdet.isnan().all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", ["one layer", "full width", "widest", "three layers, all inputs"])
def test_same_bits_every_time(network, precision):
    velocity, x, context = case(NETWORKS[network], 3000)
    for run in (outputs_and_gradients, loss):
        first = run(velocity, x, context, backend="cuda", precision=precision)
        for _ in range(3):
            again = run(velocity, x, context, backend="cuda", precision=precision)
            assert all(torch.equal(again[name], value) for name, value in first.items())


# ---- Streams, graphs, devices


def training_step(velocity, x, jko_step=0.5):
    """Loss and gradients as one list of tensors, by both ways of training."""
    parameters = list(velocity.parameters())
    result = integrate(velocity, x, backend="cuda", keep_path=False)
    total = jko_terms(x, result.x, result.logdet, jko_step).total
    gradients = torch.autograd.grad(total, parameters)
    fused = jko_loss(velocity, x, jko_step, backend="cuda").total
    return [total, fused, *gradients, *torch.autograd.grad(fused, parameters)]


def test_work_goes_to_the_current_stream():
    velocity, x, _ = case(NETWORKS["full width"], 5000)
    expected = training_step(velocity, x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    late = torch.zeros_like(x)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # about a tenth of a second: who does not wait for the stream reads zeros
        late.copy_(x)
        got = training_step(velocity, late)
    stream.synchronize()
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


def test_no_wait_for_the_device():
    velocity, x, context = case(NETWORKS["three layers, all inputs"], 100)
    x.requires_grad_()

    def everything():
        for divergence in ("exact", "hutchinson"):
            noise = torch.ones_like(x) if divergence == "hutchinson" else None
            options = {"context": context, "divergence": divergence, "noise": noise, "backend": "cuda"}
            result = integrate(velocity, x, **options)
            (result.x.sum() + result.logdet.sum()).backward()
            v, rate = jkoflow.velocity_and_divergence(velocity, x, 0.5, **options)
            (v.sum() + rate.sum()).backward()
            jko_loss(velocity, x, 0.5, **options).total.backward()

    everything()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_calls_return_before_the_device_is_done():
    """The mode above knows PyTorch's own waits only; this one sees those of the extension, too."""
    velocity, x, _ = case(NETWORKS["full width"], 500)
    training_step(velocity, x)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)  # a second or so
    training_step(velocity, x)
    done.record()
    assert not done.query()
    torch.cuda.synchronize()


def captured(run, warm_up=3):
    """A CUDA graph of a function, and what it returned while it was captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph, outputs


@pytest.mark.parametrize("network", ["one layer", "full width", "three layers"])
def test_cuda_graph(network):
    velocity, x, _ = case(NETWORKS[network], 500)
    place = x.clone()
    graph, outputs = captured(lambda: training_step(velocity, place))
    for seed in (0, 1):
        fresh = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to("cuda")
        expected = training_step(velocity, fresh)
        place.copy_(fresh)
        for output in outputs:
            output.detach().fill_(math.nan)
        graph.replay()
        torch.cuda.synchronize()
        for one, other in zip(outputs, expected, strict=True):
            assert torch.equal(one, other)


def test_cuda_graph_without_gradients():
    velocity, x, _ = case(NETWORKS["full width"], 500)
    with torch.no_grad():
        expected = integrate(velocity, x, backend="cuda")
        graph, result = captured(lambda: integrate(velocity, x, backend="cuda"))
        for part in result:
            part.fill_(math.nan)
        graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(result, expected, strict=True):
        assert torch.equal(one, other)


FIRST_CALL = """
import torch
from jkoflow import MLPVelocity, integrate, jko_loss
velocity, x = MLPVelocity(3, (40, 30)).cuda(), torch.randn(100, 3, device="cuda")
def run():
    loss = jko_loss(velocity, x, 0.5, backend="cuda").total
    with torch.no_grad():
        return [integrate(velocity, x, backend="cuda").x, *torch.autograd.grad(loss, list(velocity.parameters()))]
torch.autograd.grad(velocity(x, 0.5).sum(), list(velocity.parameters()))  # PyTorch has begun, our kernels have not
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    outputs = run()
graph.replay()
assert all(torch.equal(one, other) for one, other in zip(outputs, run(), strict=True))
print("the same")
"""


def test_cuda_graph_of_the_first_call():
    """In a process of its own: CUDA loads our kernels while the graph is captured."""
    done = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["the same"], done.stdout + done.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_another_device_than_the_current_one():
    velocity, x, context = case(NETWORKS["context and linear"], 100)
    expected = outputs_and_gradients(velocity, x, context, backend="cuda", precision="fp32")
    assert torch.cuda.current_device() == 0
    velocity, x, context = case(NETWORKS["context and linear"], 100, device="cuda:1")
    got = outputs_and_gradients(velocity, x, context, backend="cuda", precision="fp32")
    for name, value in got.items():
        assert value.device == torch.device("cuda:1")
        torch.testing.assert_close(value.cpu(), expected[name].cpu(), rtol=1e-5, atol=1e-5)
    assert torch.cuda.current_device() == 0
    other = loss(velocity, x, context, backend="cuda", precision="fp32")  # the fused loss, while 1 is current
    with torch.cuda.device(1):
        again = loss(velocity, x, context, backend="cuda", precision="fp32")
    assert all(torch.equal(other[name], value) for name, value in again.items())


# ---- PyTorch's machinery


def operator_arguments(network):
    velocity, x, context = case(NETWORKS[network], 7)
    field = velocity.field()
    settings = native.Settings("exact", field.time, field.activation.text, 0.0, 1.0, Fixed(2), "rk4", "fp32")
    return x.requires_grad_(), context, *library.slots_of(field), None, library.encode(settings)


@pytest.mark.parametrize("network", ["one layer", "context and linear", "three layers"])
def test_opcheck(network):
    torch.library.opcheck(torch.ops.jkoflow.integrate.default, (*operator_arguments(network), True))
    torch.library.opcheck(torch.ops.jkoflow.jko_loss.default, (*operator_arguments(network), 0.5, True, True))


def test_opcheck_of_the_adjoint():
    x, *rest = (part.detach() if torch.is_tensor(part) else part for part in operator_arguments("context and linear"))
    bars = torch.randn_like(x), torch.randn(x.shape[0], device="cuda"), None
    path = torch.randn(3, *x.shape, device="cuda")
    torch.library.opcheck(
        torch.ops.jkoflow.integrate_backward.default,
        (path, *rest, *bars, True),
        test_utils=("test_schema", "test_faketensor"),
    )


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.velocity = random_velocity(**NETWORKS["context and linear"], dtype=torch.float32)

    def forward(self, x, context):
        result = integrate(self.velocity, x * 2, context=context, num_steps=2, backend="cuda")
        return result.x.square().sum(1) - result.logdet


@pytest.mark.parametrize("options", [{"dynamic": False}, {"dynamic": True}, {"mode": "reduce-overhead"}], ids=str)
def test_torch_compile(options):
    torch.compiler.reset()
    model = Model().to("cuda")
    compiled = torch.compile(model, fullgraph=True, **options)
    for batch in (5, 8, 8, 8):  # the third time, reduce-overhead replays a graph
        x, context = torch.randn(batch, 4, device="cuda"), torch.randn(batch, 3, device="cuda")
        expected = torch.autograd.grad(model(x, context).sum(), list(model.parameters()))
        got = torch.autograd.grad(compiled(x, context).sum(), list(model.parameters()))
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one.clone(), other)


def test_second_derivatives():
    velocity, x, _ = case(NETWORKS["two layers"], 4)
    found = []
    for backend in ("cuda", "reference"):
        result = integrate(velocity, x.requires_grad_(), backend=backend)
        (gradient,) = torch.autograd.grad(result.logdet.sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_float64_runs_in_the_reference_and_says_so(monkeypatch):
    monkeypatch.setattr(jkoflow.ops.fallback, "_warned", set())
    velocity, x, _ = case(NETWORKS["two layers"], 4, torch.float64)
    with pytest.warns(FallbackWarning, match="the CUDA kernels .*float64"):
        result = integrate(velocity, x)
    assert result.x.is_cuda
    assert result.x.dtype == torch.float64


def test_auto_takes_the_kernel_and_the_best_precision(recwarn):
    velocity, x, _ = case(NETWORKS["full width"], 100)
    best = cuda.resolve_precision("auto", x.device.index)
    assert best in ACCURATE
    got, expected = integrate(velocity, x), integrate(velocity, x, backend="cuda", precision=best)
    assert torch.equal(got.x, expected.x)
    assert torch.equal(got.logdet, expected.logdet)
    assert not [warning for warning in recwarn if issubclass(warning.category, FallbackWarning)]
    assert native.capabilities()["cuda"] is None


# ---- The flow


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_iteration_of_training_waits_for_nothing(name):
    block = Block(random_velocity(6, (64, 64), linear=True, dtype=torch.float32), jko_step=0.5).to("cuda")
    optimizer = build_optimizer(block, name, peak_rates(name, 6), weight_decay=0.1, clip_norm=1.0)
    x = torch.randn(1000, 6, device="cuda")
    optimizer.update(block.jko_loss(x).total, 0.1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(11):  # SOAP's bases are refreshed in one of them
            optimizer.update(block.jko_loss(x).total, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(optimizer.parameters.isfinite().all())


class CountedGraphs(CudaGraphs):
    """The GPU's graphs, which count what they are asked for."""

    captures = replays = 0

    def capture(self, run):
        replay, result = super().capture(run)
        self.captures += 1

        def counted():
            self.replays += 1
            replay()

        return counted, result


class Heard(Silent):
    """Refuses all news: none is expected."""

    def message(self, text):
        pytest.fail(text)


def make_fit(kind, optimizer, graphs, iterations=150, **settings):
    """The fit of a block or chain, which captures its iterations in graphs unless they are None, and its events."""
    config = TrainConfig(
        hidden=(32, 32), batch_size=100, optimizer=optimizer, validate_every=50, guard_every=20, **settings
    )
    columns = 2 * (kind == "context")
    generator = torch.Generator().manual_seed(0)
    rows = 2.0 * torch.randn(1500, 4, generator=generator).to("cuda")
    context = torch.randn(1500, columns, generator=generator).to("cuda") if columns else None
    parts = (None, None) if context is None else (context[:1000], context[1000:])
    samples = PushedSamples(rows[:1000], rows[1000:], torch.zeros(500, device="cuda"), *parts)
    blocks = [
        Block(random_velocity(4, (32, 32), context_dim=columns, linear=True, dtype=torch.float32), 1, jko_step=0.5)
        for _ in range(2)
    ]
    if kind == "chain":
        module = Chain(blocks).to("cuda")
        recipe = recipe_of_chain(module, config, 4, 1.0, 1.0, False)
    else:
        module = blocks[0].to("cuda")
        recipe = recipe_of_block(module, config, 4)
    events = []
    hooks = FitHooks(World(), events.append, lambda fit: None, None, Heard())
    fit = Fit(0, module, samples, config, recipe._replace(alone=None), hooks, FitCounters(iterations=iterations))
    fit._captured = None if graphs is None else Captured(graphs, hooks.progress.message)
    return fit, events


@pytest.mark.parametrize("kind", ["block", "context", "chain"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_captured_iterations_are_launched_ones_to_the_bit(kind, optimizer):
    """Over changes of the grid, after which there is a new capture."""
    graphs = CountedGraphs(torch.device("cuda", torch.cuda.current_device()))
    fit, events = make_fit(kind, optimizer, graphs, guard_nll=1e-4)
    plain, plain_events = make_fit(kind, optimizer, None, guard_nll=1e-4)
    fit.run()
    plain.run()
    assert graphs.captures >= 2, "a grid has a graph of its own"
    assert graphs.replays > 100
    looks, plain_looks = ([e for e in one if e["event"] != "iteration"] for one in (events, plain_events))
    assert looks == plain_looks
    assert torch.equal(fit.optimizer.parameters, plain.optimizer.parameters)
    assert all(torch.equal(a, b) for a, b in zip(fit.block.parameters(), plain.block.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["muon", "soap"])
def test_parts_side_by_side_are_those_one_after_the_other(optimizer, monkeypatch):
    fits = []
    for iterations in (60, 60):
        fit, _ = make_fit("block", optimizer, CountedGraphs(torch.device("cuda", 0)))
        for _ in range(iterations):
            fit.iterate()
        fits.append(fit)
        monkeypatch.setattr(optimizer_module, "side_by_side", lambda runs, device: [run() for run in runs])
    assert all(fit._captured._graphs.replays > 40 for fit in fits)
    assert torch.equal(*(fit.optimizer.parameters for fit in fits))


@pytest.mark.parametrize("kind", ["block", "chain"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_captured_iteration_waits_for_nothing(kind, optimizer):
    fit, _ = make_fit(kind, optimizer, CountedGraphs(torch.device("cuda", 0)))
    for _ in range(3):  # the first loss is recorded, and the iterations are captured
        fit.iterate()
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(1_000_000_000)  # half a second or so
        for _ in range(17):  # with a new epoch, and with a refresh of SOAP's bases
            fit.iterate()
        done.record()
        assert optimizer == "soap" or not done.query(), "cuSOLVER alone may wait by itself"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(fit.optimizer.parameters.isfinite().all())


def test_what_is_uploaded_is_what_it_was_when_it_was_handed_over():
    """Also where the CPU would be further ahead than there are slots."""
    upload, seen = Upload((1000,), torch.float32, torch.device("cuda"), 3), []
    torch.cuda._sleep(200_000_000)
    for number in range(10):
        upload(torch.full((1000,), float(number)))
        seen.append(upload.there.clone())
    assert [float(numbers.mean()) for numbers in seen] == list(range(10))


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_an_iteration_is_three_launches(optimizer):
    fit, _ = make_fit("block", optimizer, CountedGraphs(torch.device("cuda", 0)))
    for _ in range(11):
        fit.iterate()
    assert fit._captured._graphs.captures == 1
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(8):  # no epoch begins, no loss is recorded
            fit.iterate()
        torch.cuda.synchronize()
    calls = [event.name for event in profile.events() if event.name.startswith(("cuda", "cu"))]
    assert calls.count("cudaGraphLaunch") == 8
    assert sum("Memcpy" in name for name in calls) == 16, "the factors of the update, the places of the batch"
    assert not [name for name in calls if "LaunchKernel" in name]


def test_a_budget_measures_captured_iterations():
    """That is as long as they take, and nothing is changed by it."""
    fit, _ = make_fit("block", "muon", CountedGraphs(torch.device("cuda", 0)))
    before = fit.optimizer.state()
    measured = fit._measured_updates()
    assert all(torch.equal(tensor, before.memory[name]) for name, tensor in fit.optimizer.memory.items())
    assert torch.equal(fit.optimizer.parameters, before.parameters)
    seconds = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(40):
            fit._update(0, 0.0)
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 40 / 1e3)
    assert 0.5 * min(seconds) < measured < 3 * min(seconds)


def test_training_is_as_good_as_on_the_cpu():
    rows = torch.randn(6000, 2, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([rows[:, 0], rows[:, 1] + rows[:, 0] ** 2], 1)
    options = {"hidden": (32, 32), "max_blocks": 2, "iterations_per_block": 300, "batch_size": 250}
    nlls = [
        jkoflow.train(rows, TrainConfig(device=device, **options)).metrics["test_nll_data_units"]
        for device in ("cuda", "cpu")
    ]
    assert abs(nlls[0] - nlls[1]) < 0.05


def test_training_end_to_end(tmp_path):
    factor = torch.tensor([[3.0, 0.0], [0.4, 0.5]])
    rows = torch.randn(12_000, 2) @ factor.T
    config = TrainConfig(
        device="cuda", hidden=(64, 64), max_blocks=3, iterations_per_block=250, batch_size=500, learning_rate=1e-2
    )
    flow = jkoflow.train(rows, config)
    assert all(parameter.is_cuda for parameter in flow.parameters())
    fresh = torch.randn(5000, 2) @ factor.T
    exact = torch.distributions.MultivariateNormal(torch.zeros(2), factor @ factor.T).log_prob(fresh)
    with torch.no_grad():
        log_prob = flow.log_prob(fresh.to("cuda")).cpu()
    assert -0.01 < (exact - log_prob).mean().item() < 0.03  # KL of the flow from the truth
    assert metrics.inversion_error(flow, fresh.to("cuda")).mean < 1e-3
    flow.save(tmp_path / "flow.safetensors")
    loaded = JKOFlow.load(tmp_path / "flow.safetensors")
    with torch.no_grad():  # the same densities on the CPU
        torch.testing.assert_close(loaded.log_prob(fresh), log_prob, rtol=1e-3, atol=1e-3)
        within = flow.log_prob(fresh.to("cuda"), tol=1e-3).cpu()
        torch.testing.assert_close(loaded.log_prob(fresh, tol=1e-3), within, rtol=0, atol=2e-3)


def test_the_same_seed_gives_the_same_flow():
    rows = torch.randn(3000, 2)
    config = TrainConfig(device="cuda", hidden=(32, 32), max_blocks=2, iterations_per_block=30)
    first, second = (jkoflow.train(rows, config).state_dict() for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_an_iteration_that_waits_is_told_of_and_launched(monkeypatch):
    """And leaves the stream and the iterations as they are without a capture. At last, since PyTorch's memory of a
    capture that has failed is not that of one that has ended."""
    descend, told = Fit._descend, []

    def waiting(self, places):
        numbers = descend(self, places)
        assert math.isfinite(numbers[0].item())
        return numbers

    plain, _ = make_fit("block", "adam", None)
    monkeypatch.setattr(Fit, "_descend", waiting)
    fit, _ = make_fit("block", "adam", CountedGraphs(torch.device("cuda", 0)))
    fit._captured._tell = told.append
    for one in (plain, fit):
        for _ in range(20):
            one.iterate()
    assert len(told) == 1
    assert "captur" in told[0].partition("slower: ")[2]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.equal(fit.optimizer.parameters, plain.optimizer.parameters)
