"""The CUDA side without a GPU: refusals, outputs on fake tensors, what the launches are handed, build switches."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import jkoflow.data
from jkoflow import FallbackWarning, MLPVelocity, TrainConfig, integrate, jko_loss
from jkoflow.ops import cuda, library, native, reference
from jkoflow.ops.extension import C
from jkoflow.ops.grid import Fixed
from jkoflow.training.fit import LOG_EVERY

ROOT = Path(__file__).resolve().parent.parent
BUILT = C is not None and C.has_cuda
with_kernels = pytest.mark.skipif(
    not BUILT, reason="the extension is built without CUDA kernels (no nvcc, or CUDA=OFF)"
)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture(autouse=True)
def _ask_again():
    """What is asked of a device once is asked again by the next test."""
    yield
    cuda._missing.cache_clear()
    cuda._describe_launch.cache_clear()


@contextmanager
def gpu(monkeypatch, capability=(9, 0)):
    """Tensors on CUDA that hold nothing, on a machine that believes to have a GPU."""
    monkeypatch.setattr(cuda, "missing", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    cuda._cached_unsupported.cache_clear()
    cuda.resolve_precision.cache_clear()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        cuda._cached_unsupported.cache_clear()
        cuda.resolve_precision.cache_clear()


def velocity_on_gpu(dim=2, dtype=torch.float32, **options):
    velocity = MLPVelocity(dim, **options)
    for module in velocity.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device="cuda")))
    return velocity.requires_grad_(False)  # autograd needs a PyTorch with CUDA, even for tensors without data


# ---- Refusals


def test_not_built(monkeypatch):
    monkeypatch.setattr(cuda, "_C", SimpleNamespace(has_cuda=False))
    cuda._missing.cache_clear()
    assert "JKOFLOW_CUDA=ON pip install ." in (cuda.missing() or "")
    with pytest.raises(RuntimeError, match=r"backend 'cuda' cannot run this: this build .* `JKOFLOW_CUDA=ON pip"):
        integrate(MLPVelocity(2), torch.zeros(4, 2), backend="cuda")
    monkeypatch.setattr(cuda, "usual_plan", lambda: None)
    assert native.capabilities()["cuda"] == cuda.NOT_BUILT
    assert native.capabilities()["cuda_architectures"] == []


def test_extension_missing(monkeypatch):
    monkeypatch.setattr(cuda, "_C", None)
    monkeypatch.setattr(cuda, "MISSING", "the compiled extension cannot be loaded")
    cuda._missing.cache_clear()
    assert cuda.missing() == "the compiled extension cannot be loaded"


@with_kernels
@without_gpu
def test_no_device():
    assert C.cuda_device_problem().startswith("no CUDA device")
    assert "no CUDA device" in native.capabilities()["cuda"]
    for call in (integrate, lambda *given, **named: jko_loss(*given, 1.0, **named)):
        with pytest.raises(RuntimeError, match="backend 'cuda' cannot run this: no CUDA device"):
            call(MLPVelocity(2), torch.zeros(4, 2), backend="cuda")


def test_pytorch_without_cuda(monkeypatch):
    monkeypatch.setattr(cuda, "_C", SimpleNamespace(has_cuda=True, cuda_device_problem=lambda: ""))
    monkeypatch.setattr(torch.version, "cuda", None)
    cuda._missing.cache_clear()
    assert cuda.missing() == "this PyTorch is built without CUDA; install one that is built with it"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cuda._missing.cache_clear()
    assert "no CUDA device that PyTorch can use" in (cuda.missing() or "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cuda._missing.cache_clear()
    assert cuda.missing() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked again, at every call"))
    assert cuda.missing() is None


def test_cpu_tensors_with_a_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "missing", lambda: None)
    with pytest.raises(RuntimeError, match="the CUDA kernels need CUDA tensors, x is on cpu"):
        integrate(MLPVelocity(2), torch.zeros(4, 2), backend="cuda")


def test_cuda_tensors_for_the_cpu_kernels(monkeypatch):
    with gpu(monkeypatch):
        velocity, x = velocity_on_gpu(), torch.empty(4, 2, device="cuda")
        with pytest.raises(RuntimeError, match="the CPU kernels need CPU tensors, x is on cuda:0"):
            integrate(velocity, x, backend="cpu")


@with_kernels
@pytest.mark.parametrize(
    ("capability", "reason"), [((7, 5), r"compute capability 7\.5$"), ((12, 0), r"12\.0; build them with TORCH_CUDA_A")]
)
def test_gpus_that_the_build_leaves_out(monkeypatch, capability, reason):
    monkeypatch.setattr(cuda, "architectures", lambda: ["80-real", "90-real"])
    with gpu(monkeypatch, capability):
        velocity, x = velocity_on_gpu(), torch.empty(4, 2, device="cuda")
        with pytest.raises(RuntimeError, match=r"are built for 80-real 90-real, cuda:0 has .*" + reason):
            integrate(velocity, x, backend="cuda")


@with_kernels
def test_float64_falls_back_on_the_gpu_and_says_so(monkeypatch):
    with gpu(monkeypatch):
        velocity, x = velocity_on_gpu(dtype=torch.float64), torch.empty(4, 2, dtype=torch.float64, device="cuda")
        with pytest.raises(RuntimeError, match=r"backend 'cuda' cannot run this: the CUDA kernels .*float64"):
            integrate(velocity, x, backend="cuda")
        monkeypatch.setattr(reference, "mlp_rhs", lambda *given: None)
        monkeypatch.setattr(reference, "integrate_steps", lambda rhs, x, *given: (x, x, x))
        with pytest.warns(FallbackWarning, match=r"using the PyTorch reference: the CUDA kernels .*float64"):
            assert integrate(velocity, x).x is x


@with_kernels
def test_widths_beyond_the_kernels_are_refused(monkeypatch):
    with gpu(monkeypatch):
        velocity, x = velocity_on_gpu(hidden=(300, 300)), torch.empty(4, 2, device="cuda")
        with pytest.raises(RuntimeError, match=r"the CUDA kernels \w.*300"):
            integrate(velocity, x, backend="cuda")


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("80-real 90a-real 90-virtual", (8, 0), True),
        ("80-real 90a-real 90-virtual", (8, 6), True),  # machine code serves the later minor versions
        ("80-real 90a-real 90-virtual", (9, 0), True),
        ("80-real 90a-real 90-virtual", (10, 0), True),  # PTX serves everything newer
        ("80-real 90a-real 90-virtual", (12, 0), True),
        ("80-real 90a-real 90-virtual", (7, 5), False),
        ("86-real", (8, 0), False),
        ("86-real", (8, 9), True),
        ("86-real", (9, 0), False),
        ("90-virtual", (8, 9), False),
        ("90", (10, 0), True),
        ("90a-real", (9, 0), True),
        ("90a-virtual", (10, 0), False),
        ("100f-real", (10, 3), True),
        ("120-real", (12, 0), True),
        ("native", (8, 0), True),
        ("", (8, 0), False),
    ],
)
def test_architectures_that_a_gpu_can_run(architectures, capability, expected):
    assert cuda.covers(architectures.split(), capability) == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((8, 0), "tf32x3"), ((9, 0), "tf32x3"), ((8, 6), "fp32"), ((12, 0), "fp32")]
)
def test_precision_of_the_device(monkeypatch, capability, expected):
    with gpu(monkeypatch, capability):
        assert cuda.resolve_precision("auto", 0) == expected
        assert cuda.resolve_precision("tf32", 0) == "tf32"


def test_precision_is_refused_where_it_means_nothing():
    for backend in ("auto", "cpu", "reference"):
        with pytest.raises(
            ValueError,
            match="precision must be 'auto', 'fp32', 'bf16x3' or 'float64' outside the CUDA kernels, got 'tf32x3'",
        ):
            integrate(MLPVelocity(2), torch.zeros(4, 2), precision="tf32x3", backend=backend)
        with pytest.raises(
            ValueError,
            match="precision must be 'auto', 'fp32', 'bf16x3' or 'float64' outside the CUDA kernels, got 'tf32x3'",
        ):
            jko_loss(MLPVelocity(2), torch.zeros(4, 2), 1.0, precision="tf32x3", backend=backend)


def test_tensors_on_several_devices_never_reach_a_kernel(monkeypatch):
    with gpu(monkeypatch):
        velocity, x = velocity_on_gpu(), torch.empty(4, 2, device="cuda")
        with pytest.raises(ValueError, match=r"noise must have shape \(4, 2\) on cuda:0 .* got \(4, 2\) on cpu"):
            integrate(velocity, x, divergence="hutchinson", noise=torch.ones(4, 2))
        velocity.layers[1] = nn.Linear(128, 128)
        with pytest.raises(
            ValueError, match=r"velocity.layers\[1\].weight must .* on cuda:0, .*, got .* on cpu; convert it"
        ):
            integrate(velocity, x)


@without_gpu
def test_training_on_a_gpu_that_is_not_there():
    with pytest.raises(ValueError, match="device must be one that PyTorch can use here, got 'cuda': "):
        jkoflow.train(torch.randn(2000, 2), TrainConfig(device="cuda"))


# ---- The operators on tensors without data

NETWORKS = {
    "one layer": {"dim": 3, "hidden": (20,)},
    "two layers": {"dim": 3, "hidden": (20, 12), "linear": True},
    "context": {"dim": 4, "hidden": (17, 16), "context_dim": 3},
    "three layers": {"dim": 2, "hidden": (8, 9, 7), "time": False},
}


def fake_arguments(network, batch):
    velocity = velocity_on_gpu(**network)
    x = torch.empty(velocity.dim, batch, device="cuda").T  # not contiguous
    context = torch.empty(batch, velocity.context_dim, device="cuda") if velocity.context_dim else None
    return velocity, x, context


def assert_like(got, shape):
    assert got.shape == torch.Size(shape)
    assert got.device == torch.device("cuda:0")
    assert got.dtype == torch.float32
    assert got.is_contiguous()


def assert_gradients_like(gradients, x, context, slots):
    in_one = sum(slot.numel() for slot in slots if slot is not None)
    shapes = x.shape, (0,) if context is None else context.shape, (in_one,)
    for gradient, shape in zip(gradients, shapes, strict=True):
        assert_like(gradient, shape)


@with_kernels
@pytest.mark.parametrize("batch", [0, 1, 100])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_outputs_of_integrate_and_its_adjoint(monkeypatch, network, batch):
    monkeypatch.setattr(cuda, "unsupported", lambda *request: None)
    with gpu(monkeypatch):
        velocity, x, context = fake_arguments(network, batch)
        result = integrate(velocity, x, context=context, num_steps=5, backend="cuda")
        assert_like(result.x, (batch, velocity.dim))
        assert_like(result.logdet, (batch,))
        assert_like(result.path, (6, batch, velocity.dim))
        slots = library.slots_of(velocity.field())
        text = library.encode(native.Settings("exact", velocity.time, "tanh", 0.0, 1.0, Fixed(5), "rk4", "fp32"))
        gradients = torch.ops.jkoflow.integrate_backward.default(
            result.path, context, *slots, None, text, result.x, result.logdet, None, True
        )
        assert_gradients_like(gradients, x, context, slots)


@with_kernels
def test_outputs_of_the_loss(monkeypatch):
    with gpu(monkeypatch):
        velocity, x, context = fake_arguments(NETWORKS["context"], 10)
        slots = library.slots_of(velocity.field())
        text = library.encode(native.Settings("hutchinson", True, "tanh", 0.0, 1.0, Fixed(5), "rk4", "tf32"))
        total, terms, *gradients = torch.ops.jkoflow.jko_loss.default(
            x, context, *slots, torch.empty_like(x), text, 0.5, True, True
        )
        assert_like(total, ())
        assert_like(terms, (3,))
        assert_gradients_like(gradients, x, context, slots)


def test_operators_have_cuda_kernels():
    for name in (
        "integrate",
        "integrate_backward",
        "jko_loss",
        "evaluate",
        "evaluate_backward",
        "integrate_adaptive",
        "integrate_adaptive_backward",
    ):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"jkoflow::{name}", "CUDA")


# ---- The launches, with a stand-in for the compiled functions


class Recorder:
    """In place of the extension: the real descriptions, and functions that note what they were handed."""

    def __init__(self):
        self.calls = []
        self.current = [torch.device("cuda:0")]  # innermost last

    @contextmanager
    def on(self, device):
        self.current.append(device)
        yield
        self.current.pop()

    def __getattr__(self, name):
        if name == "cuda_bytes":
            return lambda problem, call, launch: 1000
        if name in ("cuda_forward", "cuda_backward", "cuda_jko_loss"):
            return lambda *given: self.calls.append((name, given, self.current[-1]))
        return getattr(C, name)


@with_kernels
@pytest.mark.parametrize(("precision", "expected"), [("auto", "tf32x3"), ("fp32", "fp32"), ("tf32", "tf32")])
def test_a_launch_has_stream_device_precision_and_workspace(monkeypatch, precision, expected):
    recorder = Recorder()
    monkeypatch.setattr(cuda, "_C", recorder)
    monkeypatch.setattr(torch.cuda, "device", recorder.on)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1234 + device.index))
    allocated, empty = [], torch.empty

    def on_the_cpu(size, dtype, device):
        allocated.append((size, dtype, device, empty(size, dtype=dtype)))
        return allocated[-1][-1]

    monkeypatch.setattr(torch, "empty", on_the_cpu)
    cuda.resolve_precision.cache_clear()
    problem, adjoint, device = C.Problem(), C.Adjoint(), torch.device("cuda:3")
    cuda._describe_launch.cache_clear()
    cuda.launch("backward", device, precision, problem, adjoint)
    cuda.resolve_precision.cache_clear()
    ((name, (got_problem, got_adjoint, launch), current),) = recorder.calls
    assert name == "cuda_backward"
    assert current == device  # whatever the caller's is
    assert len(recorder.current) == 1  # and it is that again
    assert got_problem is problem
    assert got_adjoint is adjoint
    assert (launch.device, launch.stream, launch.precision) == (3, 1237, getattr(C.Precision, expected))
    ((size, dtype, where, workspace),) = allocated
    assert (size, dtype, where) == (1000, torch.uint8, device)
    assert launch.workspace == workspace.data_ptr()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=5))
    cuda.launch("backward", device, precision, problem, adjoint)
    assert (launch.stream, recorder.calls[1][1][-1].stream) == (1237, 5)  # of every launch its own


ALLOWED_OF_CUDA = {
    "cudaDeviceGetAttribute",
    "cudaDriverGetVersion",
    "cudaFuncGetAttributes",
    "cudaFuncSetAttribute",
    "cudaGetDevice",
    "cudaGetDeviceCount",
    "cudaGetErrorName",
    "cudaGetErrorString",
    "cudaGetLastError",
    "cudaLaunchKernel",
    "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
    "cudaRuntimeGetVersion",
    "cudaSetDevice",
    "cudaThreadExchangeStreamCaptureMode",
}


def test_the_host_calls_nothing_that_allocates_copies_or_waits():
    """No call outside this list is made: so none waits for the device, and a graph can capture them all."""
    called = {}
    for path in (ROOT / "csrc" / "cuda").rglob("*.[ch]*"):
        text = re.sub(r"//.*", "", path.read_text())
        for name in re.findall(r"\b(cu[A-Z]\w+|cuda[A-Z]\w+)\s*\(|<<<", text):
            called.setdefault(name, []).append(path.name)
    assert set(called) <= ALLOWED_OF_CUDA, called
    assert {"cudaLaunchKernel", "cudaSetDevice"} <= set(called)  # the search finds calls
    assert {file for files in called.values() for file in files} == {"runtime.cu"}


def test_settings_carry_the_precision():
    settings = native.Settings("exact", True, "tanh", 0.0, 1.0, Fixed(3), "rk4", "tf32")
    assert library.decode(library.encode(settings)) == settings


@with_kernels
def test_torch_compile_asks_the_device_at_compile_time(monkeypatch):
    """What tells whether the kernels can run is no part of the graph, and does not break it."""
    asked = []

    def covers(built_for, capability):
        asked.append(capability)
        return True

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(cuda, "covers", covers)
    cuda._cached_unsupported.cache_clear()
    cuda.resolve_precision.cache_clear()
    velocity = MLPVelocity(2)

    @torch.compile(fullgraph=True, backend="eager")
    def ask(x):
        reason = cuda.unsupported(velocity.field(), torch.device("cuda:0"), False, "exact", "auto")
        return x + 1 if reason is None else x - 1

    assert ask(torch.zeros(2)).tolist() == [1, 1]
    assert ask(torch.zeros(2)).tolist() == [1, 1]
    assert asked == [(9, 0)]
    cuda._cached_unsupported.cache_clear()
    cuda.resolve_precision.cache_clear()


# ---- Training


def test_training_reads_from_the_device_only_to_log(monkeypatch):
    """Each read waits for the device: one for every record of the loss, none for the iterations between."""
    reads = []
    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)

        def counting(self, *given, original=original, name=name, **named):
            reads.append(name)
            return original(self, *given, **named)

        monkeypatch.setattr(torch.Tensor, name, counting)
    totals = {}
    rows = jkoflow.data.split_rows(torch.randn(500, 2))
    for iterations in (100, 300):
        reads.clear()
        config = TrainConfig(
            initial_map="none", hidden=(4,), max_blocks=1, batch_size=400, validate_every=10_000, guard_every=10_000,
            num_steps=8,  # enough for the evaluation, whatever is learned: the number of its doublings is not the point
        )  # fmt: skip
        jkoflow.train(rows, dataclasses.replace(config, iterations_per_block=iterations))
        totals[iterations] = len(reads)
    assert totals[100] > 10  # the counting works
    assert totals[300] - totals[100] <= 200 / LOG_EVERY


# ---- The build

ARCHITECTURES = """
include({root}/cmake/cuda.cmake)
jkoflow_cuda_architectures(found)
message(NOTICE "found: ${{found}}")
"""


def cmake_says(tmp_path, *definitions, **environment):
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None:
        pytest.skip("there is no cmake")
    script = tmp_path / "script.cmake"
    script.write_text(ARCHITECTURES.format(root=ROOT))
    inherited = {k: v for k, v in os.environ.items() if k not in ("TORCH_CUDA_ARCH_LIST", "CUDAARCHS")}
    done = subprocess.run(
        [cmake, *definitions, "-P", script], capture_output=True, text=True, check=False, env=inherited | environment
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("torch_list", "expected"),
    [
        ("8.0;9.0+PTX", "80-real;90a-real;90-virtual"),  # warp groups need sm_90a
        ("7.5 8.0 8.6 9.0 10.0 12.0+PTX", "80-real;86-real;90a-real;100-real;120-real;120-virtual"),
        ("9.0a", "90a-real"),
        ("8.9+PTX, 8.9", "89-real;89-virtual"),
        ("7.0", ""),
        ("", "80-real;90a-real;90-virtual"),
    ],
)
def test_architectures_from_torch_cuda_arch_list(tmp_path, torch_list, expected):
    code, text = cmake_says(tmp_path, TORCH_CUDA_ARCH_LIST=torch_list)
    assert code == 0, text
    assert text.splitlines()[-1] == f"found: {expected}"


def test_what_cmake_is_told_comes_before_what_torch_is_told(tmp_path):
    told = {"TORCH_CUDA_ARCH_LIST": "8.0"}
    assert "found: 86\n" in cmake_says(tmp_path, "-DCMAKE_CUDA_ARCHITECTURES=86", **told)[1]
    assert "found: 86-real;89\n" in cmake_says(tmp_path, CUDAARCHS="86-real;89", **told)[1]
    assert "found: 90a-real;90-virtual\n" in cmake_says(tmp_path, "-DCMAKE_CUDA_ARCHITECTURES=90", **told)[1]


def test_an_architecture_list_that_is_none(tmp_path):
    code, text = cmake_says(tmp_path, TORCH_CUDA_ARCH_LIST="8.0;Hopper")
    assert code != 0
    assert "TORCH_CUDA_ARCH_LIST must be a list such as '8.0;9.0+PTX', got" in " ".join(text.split())
