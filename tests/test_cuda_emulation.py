"""The CUDA kernels, run on the CPU by the emulator, against the reference in float64; and the emulator itself."""

import math
import subprocess

import pytest
import torch

import emulation as emulation_build
from emulation import EmulatedKernels, problem_of
from jkoflow.ops import integrate, jko_loss, native
from jkoflow.ops.tableau import TABLEAUX
from oracles import assert_within_twice, random_velocity

pytestmark = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")

PRECISIONS = ("tf32x3", "fp32", "tf32")
FUSED = ["tanh", "softplus(5)", "silu", "elu", "selu", "gelu"]
# What a precision may err beside twice PyTorch's float32 error, in units of the largest entry. The kernels' exponential
# and the order of sums cost a few roundings; 3xTF32 truncates factors at 21 bits; TF32 rounds them to 11.
FLOORS = {"fp32": 1.5e-6, "tf32x3": 4e-6, "tf32": 3e-3}


def run(velocity, x, context, task, options):
    """Outputs of the task and, unless it is the forward pass, gradients of everything."""
    leaves = [x.detach().clone().requires_grad_(task != "forward")]
    if context is not None:
        leaves.append(context.detach().clone().requires_grad_(task != "forward"))
    options = dict(options)
    if options.get("divergence") == "hutchinson":
        options["noise"] = noise_like(x)
    arguments = {"context": leaves[1] if context is not None else None, **options}
    if task == "loss":
        loss = jko_loss(velocity, leaves[0], 0.5, **arguments)
        outputs, differentiated, bars = {"total": loss.total, **loss._asdict()}, [loss.total], None
    else:
        result = integrate(velocity, leaves[0], **arguments)
        outputs = result._asdict()
        differentiated = [part for part in result if part.requires_grad]
        generator = torch.Generator().manual_seed(7)
        bars = [torch.randn(part.shape, generator=generator).to(part.dtype) for part in differentiated]
    values = {name: value.detach() for name, value in outputs.items()}
    if task != "forward":
        wanted = {"x": leaves[0], **({"context": leaves[1]} if context is not None else {})}
        wanted |= dict(velocity.named_parameters())
        gradients = torch.autograd.grad(differentiated, list(wanted.values()), bars, materialize_grads=True)
        values |= {f"gradient of {name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}
    return values


def noise_like(x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(x.dtype)


def check(emulation, monkeypatch, network, batch, task, precision, **options):
    velocity = random_velocity(**network, dtype=torch.float32, scale=0.8)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, velocity.dim, generator=generator)
    context = torch.randn(batch, velocity.context_dim, generator=generator) if velocity.context_dim else None
    with monkeypatch.context() as patched:
        patched.setattr(native, "_C", EmulatedKernels(emulation, precision))
        got = run(velocity, x, context, task, {**options, "backend": "cpu"})
    peer = run(velocity, x, context, task, {**options, "backend": "reference"})
    velocity = velocity.double()
    context = None if context is None else context.double()
    exact = run(velocity, x.double(), context, task, {**options, "backend": "reference"})
    for name, value in exact.items():
        scale = max(1.0, value.abs().max().item() if value.numel() else 0.0)
        what = f"{name} ({task}, {precision}, {network}, batch {batch})"
        assert got[name].isfinite().all(), what
        got_name = got[name].to(peer[name].dtype)
        assert_within_twice(got_name, peer[name], value, FLOORS[precision] * scale, what)


HIDDEN = {
    "64, 1 layer": (40,),
    "64, 2 layers": (50, 64),
    "64, 3 layers": (20, 64, 33),
    "128, 1 layer": (100,),
    "128, 2 layers": (128, 70),
    "128, 3 layers": (33, 128, 65),
    "256, 1 layer": (129,),
    "256, 2 layers": (200, 256),
    "256, 3 layers": (16, 200, 64),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("task", ["forward", "backward", "loss"])
@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN.keys())
def test_every_family_of_kernels(emulation, monkeypatch, hidden, task, precision):
    # two steps of Heun's method: as much code as rk4 at a quarter of the time
    options = {"method": "heun", "num_steps": 2}
    network = {"dim": 3, "hidden": hidden, "context_dim": 1, "linear": True}
    batch = 43 if max(hidden) <= 128 else 21  # on one multiprocessor: large tiles, then a small one
    check(emulation, monkeypatch, network, batch, task, precision, **options)


@pytest.mark.parametrize("precision", ["tf32x3", "fp32"])
@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN.keys())
def test_small_batches_are_spread(emulation, monkeypatch, hidden, precision):
    emulation.configure(multiprocessors=8)
    network = {"dim": 18, "hidden": hidden, "linear": True}
    for task in ("backward", "loss"):  # small tiles only, in several blocks
        check(emulation, monkeypatch, network, 35, task, precision, method="midpoint", num_steps=1)


@pytest.mark.parametrize("precision", ["tf32", "fp32"])
@pytest.mark.parametrize("divergence", ["hutchinson", "none"])
@pytest.mark.parametrize("hidden", [(40,), (50, 64), (33, 20, 64), (130, 16), (9, 70, 80)])
def test_divergences(emulation, monkeypatch, hidden, divergence, precision):
    options = {"divergence": divergence, "method": "heun", "num_steps": 2}
    network = {"dim": 3, "hidden": hidden, "context_dim": 2, "linear": True}
    for task in ["backward"] if divergence == "none" else ["backward", "loss"]:
        check(emulation, monkeypatch, network, 19, task, precision, **options)


@pytest.mark.parametrize("batch", [0, 1, 15, 16, 17, 47, 48, 49])
def test_batches(emulation, monkeypatch, batch):
    for precision in ("tf32x3", "fp32"):
        check(emulation, monkeypatch, {"dim": 2, "hidden": (30, 20)}, batch, "backward", precision, num_steps=1)
        if batch > 0:
            check(emulation, monkeypatch, {"dim": 2, "hidden": (30, 20)}, batch, "loss", precision, num_steps=1)


def test_many_tiles(emulation, monkeypatch):
    emulation.configure(multiprocessors=3)
    check(emulation, monkeypatch, {"dim": 2, "hidden": (64, 64)}, 1003, "backward", "fp32", num_steps=1)
    check(emulation, monkeypatch, {"dim": 2, "hidden": (64,)}, 1003, "loss", "tf32x3", num_steps=1)


@pytest.mark.parametrize("hidden", [(40,), (50, 64)])
def test_many_thread_blocks(emulation, monkeypatch, hidden):
    """More of them than warps that sum their gradients, and than threads that sum their terms of the loss."""
    emulation.configure(multiprocessors=41)
    check(emulation, monkeypatch, {"dim": 2, "hidden": hidden}, 16 * 41, "loss", "fp32", method="euler", num_steps=1)


@pytest.mark.parametrize("dim", [1, 2, 17, 63, 64, 128])
def test_dimensions(emulation, monkeypatch, dim):
    network = {"dim": dim, "hidden": (24, 40), "linear": True, "context_dim": 5}
    for precision in ("tf32x3", "fp32"):
        check(emulation, monkeypatch, network, 9, "backward", precision, method="midpoint", num_steps=1)
        check(emulation, monkeypatch, network, 9, "loss", precision, method="midpoint", num_steps=2)


@pytest.mark.parametrize("precision", ["tf32x3", "fp32"])
@pytest.mark.parametrize("hidden", [(64, 64), (64, 64, 64)])
def test_narrow_sums_with_room_between_their_rows(emulation, monkeypatch, hidden, precision):
    """With time and bias 16 columns, which lie 24 apart; and no unit is padding."""
    network = {"dim": 14, "hidden": hidden, "linear": True}
    check(emulation, monkeypatch, network, 9, "backward", precision, method="euler", num_steps=1)


@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("hidden", [(30,), (30, 20), (10, 20, 30)])
def test_activations(emulation, monkeypatch, activation, hidden):
    network = {"dim": 2, "hidden": hidden, "activation": activation, "time": False}
    check(emulation, monkeypatch, network, 20, "backward", "tf32x3", num_steps=1)


@pytest.mark.parametrize("method", TABLEAUX)
def test_methods(emulation, monkeypatch, method):
    for task in ("backward", "loss"):
        options = {"method": method, "num_steps": 2, "t0": 0.7, "t1": -0.2}
        check(emulation, monkeypatch, {"dim": 2, "hidden": (30, 20)}, 20, task, "fp32", **options)


@pytest.mark.parametrize("order", ["descending", "random"])
@pytest.mark.parametrize("hidden", [(50, 64), (20, 64, 33)])
def test_results_do_not_depend_on_the_order_of_threads(emulation, monkeypatch, order, hidden):
    emulation.set(order=getattr(emulation.Order, order))
    for precision in ("tf32", "fp32"):
        options = {"method": "heun", "num_steps": 1}
        check(emulation, monkeypatch, {"dim": 3, "hidden": hidden}, 20, "backward", precision, **options)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_nan_that_gpus_compute_stays_one(emulation, monkeypatch, precision):
    """Rounding to TF32 by adding to its bits would make a zero of it."""
    velocity, x = random_velocity(2, (20, 20), dtype=torch.float32), torch.randn(9, 2)
    nan = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    with torch.no_grad():
        velocity.layers[1].weight[3, 5] = nan
    monkeypatch.setattr(native, "_C", EmulatedKernels(emulation, precision))
    result = integrate(velocity, x, backend="cpu", num_steps=1)
    assert result.x.isnan().all()
    assert result.logdet.isnan().all()


def test_a_free_block_does_not_move_whatever_overflows(emulation, monkeypatch):
    velocity, x = random_velocity(2, (20, 20), dtype=torch.float32), torch.randn(9, 2)
    x[3, 1] = math.inf
    monkeypatch.setattr(native, "_C", EmulatedKernels(emulation, "fp32"))
    terms = jko_loss(velocity, x, math.inf, backend="cpu", num_steps=1)
    assert terms.movement.item() == 0.0  # no 0 * inf
    assert not terms.total.isfinite()


def test_a_tensor_core_that_truncates_its_sums(emulation, monkeypatch):
    emulation.set(truncate=True)
    monkeypatch.setitem(FLOORS, "tf32x3", 1e-5)
    check(emulation, monkeypatch, {"dim": 6, "hidden": (128, 128)}, 20, "backward", "tf32x3", num_steps=1)


@pytest.mark.parametrize("activation", FUSED)
def test_functions_that_err_as_much_as_those_of_a_gpu(emulation, monkeypatch, activation):
    velocity, x = random_velocity(3, (40, 33), dtype=torch.float32, activation=activation), torch.randn(20, 3)
    ends = []
    for approximate in (True, False):
        emulation.set(approximate=approximate)
        with monkeypatch.context() as patched:
            patched.setattr(native, "_C", EmulatedKernels(emulation, "fp32"))
            ends.append(integrate(velocity, x, backend="cpu").x)
    assert not torch.equal(*ends)  # they do err
    emulation.set(approximate=True)
    for hidden in ((30,), (64, 50), (10, 20, 30)):
        network = {"dim": 3, "hidden": hidden, "activation": activation}
        check(emulation, monkeypatch, network, 20, "loss", "fp32", method="heun", num_steps=2)


@pytest.mark.parametrize("hidden", [(128, 128), (128, 128, 128)])
@pytest.mark.parametrize("dim", [3, 100])
def test_what_does_not_fit_into_shared_memory_goes_elsewhere(emulation, monkeypatch, hidden, dim):
    emulation.configure(multiprocessors=2, shared_bytes=99 * 1024)
    for task in ("forward", "backward", "loss"):
        options = {"method": "heun", "num_steps": 1, "divergence": "hutchinson" if len(hidden) == 3 else "exact"}
        check(emulation, monkeypatch, {"dim": dim, "hidden": hidden, "linear": True}, 20, task, "fp32", **options)


@pytest.mark.parametrize("precision", ["tf32x3", "fp32"])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_long_inputs_take_the_kernel_that_carries_fewer_samples(emulation, monkeypatch, divergence, precision):
    """Beside 128 units, 128 features with time fit into the shared memory of some GPUs but not of all."""
    bytes_needed = []
    for shared_bytes in (99 * 1024, 227 * 1024):
        emulation.configure(multiprocessors=2, shared_bytes=shared_bytes)
        options = {"divergence": divergence, "method": "euler", "num_steps": 2}
        for task in ("backward", "loss"):
            check(emulation, monkeypatch, {"dim": 128, "hidden": (100, 36)}, 9, task, precision, **options)
        problem = problem_of(dim=128, hidden=[100, 36], time=True, divergence=getattr(native._C.Divergence, divergence))
        task = "backward" if divergence == "exact" else "forward"
        bytes_needed.append(getattr(emulation, f"{task}_bytes")(problem, getattr(native._C.Precision, precision)))
    assert bytes_needed[0] > 1.5 * bytes_needed[1]  # of other kernels: 256 units instead of 128


def test_gradients_do_not_depend_on_the_run(emulation, monkeypatch):
    velocity = random_velocity(3, (64, 50), dtype=torch.float32)
    x = torch.randn(70, 3)
    monkeypatch.setattr(native, "_C", EmulatedKernels(emulation, "tf32x3"))
    first, second = (run(velocity, x, None, "backward", {"backend": "cpu", "num_steps": 1}) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_plan_says_what_a_call_takes(emulation):
    gpu = native._C.CudaGpu()
    gpu.architecture, gpu.multiprocessors = 80, 3
    emulation.configure(multiprocessors=3)
    for hidden in ([128, 128], [200], [256, 40, 30]):  # with these a multiprocessor holds one thread block
        for divergence in ("exact", "hutchinson"):
            kind = getattr(native._C.Divergence, divergence)
            problem = problem_of(batch=100, hidden=hidden, context_dim=2, divergence=kind)
            for call in ("forward", "backward", "jko_loss"):
                if call == "forward" and max(hidden) <= 128:
                    continue
                for precision in (native._C.Precision.fp32, native._C.Precision.tf32x3):
                    plan = native._C.cuda_plan(problem, call, precision, gpu)
                    assert plan["resident"] == 1
                    assert plan["workspace_bytes"] == getattr(emulation, f"{call}_bytes")(problem, precision)


def test_what_the_kernels_do_not_cover_is_refused_before_anything_runs(emulation):
    with pytest.raises(RuntimeError, match="the CUDA kernels take up to 128 features, x has 129"):
        emulation.forward_bytes(problem_of(dim=129), native._C.Precision.tf32x3)


def test_layout_of_a_tensor_product(emulation):
    assert emulation.mma_layout_errors() == 0


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("overrun", "access beyond shared memory"),
        ("overrun by reading", "access beyond shared memory"),
        ("divergent collective", "wait in a barrier or collective that others never reach"),
        ("mixed collectives", "different collectives"),
        ("divergent barrier", "different barriers"),
        ("early exit", "a thread ended while others wait|never reach"),
        ("early exit from a warp", "a thread ended while others wait|never reach"),
        ("misaligned", "misaligned"),
    ],
)
def test_the_emulator_catches_wrong_kernels(emulation, kernel, message):
    with pytest.raises(RuntimeError, match=message):
        emulation.run_faulty(kernel)


def test_the_emulator_shows_reads_of_what_nobody_wrote(emulation):
    assert all(math.isnan(value) for value in emulation.run_faulty("uninitialised"))
    assert emulation.run_faulty("correct") == [63.5 - i for i in range(64)]


@pytest.mark.parametrize("mode", ["all", "mutate"])
def test_no_races_and_every_barrier_is_needed(mode):
    program = emulation_build.build("races") / "races"
    done = subprocess.run([program, mode], capture_output=True, text=True, check=False)
    if "FATAL: ThreadSanitizer" in done.stderr:
        pytest.skip(f"ThreadSanitizer cannot run here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) >= 15
