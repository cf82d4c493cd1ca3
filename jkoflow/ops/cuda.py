"""The CUDA kernels: the reasons for which they cannot run a request, and their launches on PyTorch's current stream."""

from __future__ import annotations

import functools
import re
from typing import Any, Literal

import torch

from jkoflow.activation import parse_activation
from jkoflow.ops.compiler_marks import constant_result
from jkoflow.ops.extension import MISSING
from jkoflow.ops.extension import C as _C
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.velocity import MLPField

NOT_BUILT = (
    "this build of jkoflow has no CUDA kernels; `JKOFLOW_CUDA=ON pip install .` in a checkout builds them, "
    "with nvcc on PATH"
)
Kernel = Literal["forward", "backward", "jko_loss", "evaluate", "evaluate_backward", "adaptive", "adaptive_backward"]

_FAST_TF32 = {(8, 0), (9, 0), (10, 0), (10, 3)}
"""Compute capabilities whose tensor cores make three TF32 products faster than one in float32."""


@constant_result
def missing() -> str | None:
    """Returns why no CUDA kernel can run here; None if they can. The device is asked once."""
    return _missing()


@functools.cache
def _missing() -> str | None:
    if _C is None:
        return MISSING
    if not _C.has_cuda:
        return NOT_BUILT
    if problem := _C.cuda_device_problem():
        return problem
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA; install one that is built with it"
    return None if torch.cuda.is_available() else "no CUDA device that PyTorch can use"


def architectures() -> list[str]:
    """Returns the architectures of the build, as CMake names them: ``["80-real", "90a-real", "90-virtual"]``."""
    return _C.cuda_architectures.split() if _C is not None and _C.has_cuda else []


def unsupported(field: MLPField, device: torch.device, float64: bool, divergence: str, precision: str) -> str | None:
    """Returns why the CUDA kernels cannot integrate a field on a device; None if they can."""
    return _unsupported(
        0 if device.index is None else device.index,
        float64,
        field.dim,
        field.context_dim,
        field.time,
        field.hidden,
        field.activation.text,
        divergence,
        precision,
    )


@constant_result
def _unsupported(*request: Any) -> str | None:
    return _cached_unsupported(*request)


@functools.lru_cache(maxsize=256)
def _cached_unsupported(
    index: int,
    float64: bool,
    dim: int,
    context_dim: int,
    time: bool,
    hidden: tuple[int, ...],
    activation: str,
    divergence: str,
    precision: str,
) -> str | None:
    capability = torch.cuda.get_device_capability(index)
    if not covers(architectures(), capability):
        major, minor = capability
        return (
            f"the CUDA kernels are built for {' '.join(architectures())}, cuda:{index} has compute capability "
            f"{major}.{minor}" + ("" if major < 8 else f"; build them with TORCH_CUDA_ARCH_LIST={major}.{minor}")
        )
    problem = _C.Problem()
    problem.float64 = float64
    problem.batch, problem.dim, problem.context_dim, problem.time = 1, dim, context_dim, time
    problem.hidden = hidden
    problem.divergence = getattr(_C.Divergence, divergence)
    kind = parse_activation(activation)
    problem.activation, problem.beta = getattr(_C.ActivationKind, kind.name), kind.beta
    tableau = TABLEAUX["dopri5"]  # as many stages as there are
    problem.tableau = _C.Tableau(tableau.a, tableau.b, tableau.c)
    reason = _C.cuda_unsupported(problem, getattr(_C.Precision, resolve_precision(precision, index)))
    return f"the CUDA kernels {reason}" if reason else None


def covers(built_for: list[str], capability: tuple[int, int]) -> bool:
    """Tells whether a GPU can run kernels that were built for the given CUDA architectures, as CMake names them."""
    major, minor = capability
    for architecture in built_for:
        match = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", architecture)
        if match is None:  # "native", "all", "all-major": whoever asked for them knows
            return True
        built, variant, form = (int(match[1]), int(match[2])), match[3], match[4]
        same_family = built[0] == major and built[1] <= minor
        if variant == "a":
            same_family = built == capability
        newer = form != "-real" and not variant and built <= capability  # its PTX is compiled when it is loaded
        if newer or (same_family and form != "-virtual") or (same_family and variant):
            return True
    return False


@functools.cache
def resolve_precision(precision: str, index: int) -> str:
    """Returns a precision with ``"auto"`` resolved on a GPU: the fastest that is about as accurate as float32."""
    if precision != "auto":
        return precision
    return "tf32x3" if torch.cuda.get_device_capability(index) in _FAST_TF32 else "fp32"


@functools.cache
def _describe_launch(index: int, precision: str) -> Any:
    """Returns a description without stream and workspace, which is copied."""
    settings = _C.CudaLaunch()
    settings.device, settings.precision = index, getattr(_C.Precision, resolve_precision(precision, index))
    return settings


def launch(kernel: Kernel, device: torch.device, precision: str, problem: Any, *rest: Any) -> None:
    """Launches a kernel on PyTorch's current stream of the device, without waiting for it.

    Arguments:
        kernel: Name of the kernel.
        device: The GPU that holds all tensors.
        precision: How products are computed: ``"auto"``, ``"fp32"``, ``"tf32x3"`` or ``"tf32"``.
        problem: Description of the integration.
        rest: Further descriptions that the kernel takes.
    """
    settings = _C.CudaLaunch(_describe_launch(device.index, precision))
    # PyTorch changes the device, not the extension: it knows on which devices it has begun, and starts no other one
    # when it changes back.
    with torch.cuda.device(device):
        settings.stream = torch.cuda.current_stream(device).cuda_stream
        # Given back to PyTorch on return: it hands the memory out again on the same stream only, behind the kernel.
        size = _C.cuda_bytes(problem, kernel, settings)
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
        settings.workspace = workspace.data_ptr()
        getattr(_C, f"cuda_{kernel}")(problem, *rest, settings)


def usual_plan() -> dict[str, Any] | None:
    """Plans the loss of a usual problem, as ``jkoflow doctor`` shows it, without using a GPU.

    Returns:
        None without the extension, else the problem (``batch``, ``dim``, ``hidden``), ``gpu``: the name of the first
        GPU if the kernels can run on it, else of an H100 as its data sheet has it, and how the call would run there:
        ``precision``, ``thread_blocks`` and the samples of each one (``share``), ``threads`` of a thread block,
        ``tile`` and ``small_tile`` in samples, ``resident`` thread blocks on a multiprocessor (estimated),
        ``shared_bytes`` of a thread block and ``workspace_bytes`` of the call.
    """
    if _C is None:
        return None
    gpu, name, precision = _C.CudaGpu(), "H100 (assumed)", "tf32x3"
    if missing() is None and covers(architectures(), torch.cuda.get_device_capability(0)):
        gpu, name, precision = _C.cuda_gpu(0), torch.cuda.get_device_name(0), resolve_precision("auto", 0)
    problem, tableau = _C.Problem(), TABLEAUX["rk4"]
    problem.batch, problem.dim, problem.time, problem.hidden, problem.num_steps = 10_000, 6, True, [128, 128], 3
    problem.tableau = _C.Tableau(tableau.a, tableau.b, tableau.c)
    plan = _C.cuda_plan(problem, "jko_loss", getattr(_C.Precision, precision), gpu)
    shown = ("precision", "thread_blocks", "share", "threads", "tile", "small_tile", "resident", "shared_bytes")
    return {
        "gpu": name,
        "batch": problem.batch,
        "dim": problem.dim,
        "hidden": problem.hidden,
        **{key: plan[key] for key in (*shown, "workspace_bytes")},
    }
