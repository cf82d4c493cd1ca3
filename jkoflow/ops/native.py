"""The compiled kernels called on tensors, without autograd: `jkoflow.ops.operators` makes torch operators of them.

The extension does not know torch: tensors are allocated here and cross over as addresses.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jkoflow.activation import parse_activation
from jkoflow.ops import cuda, modulation
from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.extension import BAD_ISA as _BAD_ISA
from jkoflow.ops.extension import MISSING as _MISSING
from jkoflow.ops.extension import C as _C
from jkoflow.ops.extension import KernelError
from jkoflow.ops.grid import Adaptive, Grid, as_grid
from jkoflow.ops.network import Network
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.velocity import MLPField

MAX_HIDDEN_LAYERS: int = getattr(_C, "max_hidden_layers", 4)
_ACTIVATIONS = ("tanh", "softplus", "silu", "elu", "selu", "gelu")
_NAMES = [(f"velocity.layers[{i}].weight", f"velocity.layers[{i}].bias") for i in range(MAX_HIDDEN_LAYERS + 1)]
_NO_SPLIT: str | None = None if _MISSING else _C.cpu_split_problem() or None  # why bf16x3 cannot be had


def capabilities() -> dict[str, Any]:
    """Returns what this build can run on this machine, and why it cannot run the rest, for `jkoflow doctor`.

    Returns:
        ``cpu`` and ``cuda`` (None if usable, else the reason), ``isa`` in use, ``isas`` available (best first),
        ``bf16x3`` (None if usable, else the reason), ``openmp``, ``cuda_architectures`` that the CUDA kernels are
        built for, ``cuda_plan`` of a usual problem (see `jkoflow.ops.cuda.usual_plan`), ``threads``.
    """
    return {
        "cpu": _MISSING,
        "cuda": cuda.missing(),
        "isa": None if _MISSING else _C.cpu_isa(),
        "isas": [] if _C is None else _C.cpu_isas(),
        "bf16x3": _MISSING or _NO_SPLIT,
        "openmp": _C is not None and _C.has_openmp,
        "cuda_architectures": cuda.architectures(),
        "cuda_plan": cuda.usual_plan(),
        "threads": torch.get_num_threads(),
    }


def unsupported(
    field: MLPField | str,
    x: Tensor,
    divergence: str,
    noise: Tensor | None,
    backend: str,
    precision: str,
) -> str | None:
    """Says why no compiled kernel can run the request; None if one can.

    Arguments:
        field: Weights of the velocity, or the reason for which there are none.
        x: Positions, with shape (B, d).
        divergence: Kind of divergence, see `jkoflow.integrate`.
        noise: The probe of ``"hutchinson"``.
        backend: Kernels that were asked for by name, or ``"auto"``.
        precision: Precision of products, see `jkoflow.integrate`.

    Raises:
        jkoflow.ops.KernelError: If the environment asks for CPU kernels that are not available.
    """
    device = x.device.type if backend == "auto" else backend
    if _BAD_ISA is not None and device == "cpu":
        raise KernelError(_BAD_ISA)
    if _C is None or (_MISSING is not None and device != "cuda"):
        return _MISSING
    if device == "cuda" and (reason := cuda.missing()) is not None:
        return reason
    if device not in ("cpu", "cuda"):
        return f"the kernels are for the CPU and for CUDA, x is on {x.device}"
    if x.device.type != device:
        return f"the {device.upper()} kernels need {device.upper()} tensors, x is on {x.device}"
    if isinstance(field, str):
        return field
    if x.dtype not in (torch.float32, torch.float64):
        return f"the kernels compute in float32 and float64, x is {x.dtype}"
    if field.activation.name not in _ACTIVATIONS:
        return f"the kernels know the activations {', '.join(_ACTIVATIONS)}, not {field.activation.name}"
    if len(field.biases) - 1 > MAX_HIDDEN_LAYERS:
        return f"the kernels have 1 to {MAX_HIDDEN_LAYERS} hidden layers, the velocity has {len(field.biases) - 1}"
    if device == "cuda" and field.modulation is not None:
        return "the CUDA kernels have no layers that time and context scale and shift"
    if device == "cuda" and field.residual:
        return "the CUDA kernels have no residual layers"
    if noise is not None and noise.requires_grad:
        return "the kernels take the noise as a constant, but it requires a gradient"
    if device == "cuda":
        return cuda.unsupported(field, x.device, x.dtype == torch.float64, divergence, precision)
    if precision == "bf16x3" and _NO_SPLIT:
        return f"{_NO_SPLIT}; use precision='auto'"
    return None


class Settings(NamedTuple):
    """The settings of one integration that are not tensors."""

    divergence: str
    time: bool
    activation: str  # as parse_activation reads it
    t0: float
    t1: float
    grid: Grid | Adaptive
    method: str
    precision: str = "auto"  # of products, as `integrate` describes it
    layers: str = modulation.PLAIN  # their kind, see `jkoflow.ops.modulation`


def forward(
    x: Tensor, context: Tensor | None, network: Network, noise: Tensor | None, settings: Settings, keep_path: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Integrates x (B, d); returns x at t1, logdet (B,) and path (num_steps + 1, B, d), empty unless ``keep_path``."""
    x, context, network, noise = contiguous(x, context, network, noise)
    problem = describe(x, context, network, noise, settings)
    x_end, logdet, path = new_outputs(x, settings.grid, keep_path)
    problem.x_end, problem.logdet, problem.path = address(x_end), address(logdet), address(path)
    _run("forward", x.device, settings, problem)
    if settings.divergence != "none" and network.linear is not None:
        logdet += linear_logdet(network.linear, noise, settings)
    return x_end, logdet, path


def equal_steps(grid: Grid | Adaptive) -> int:
    """Returns the number of equal steps of a grid.

    Raises:
        ValueError: If the grid is adaptive.
    """
    if isinstance(grid, Adaptive):
        raise ValueError(f"grid must have equal steps, got {grid}")
    return grid.num_steps


def dense_like(tensor: Tensor) -> Tensor:
    """Returns an uninitialised contiguous tensor of the same shape, where empty_like would copy the strides."""
    return tensor.new_empty(tensor.shape)


def new_outputs(x: Tensor, grid: Grid | Adaptive, keep_path: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns uninitialised tensors for x at t1, logdet and path."""
    batch, dim = x.shape
    steps = equal_steps(grid) + 1 if keep_path else 0
    return x.new_empty((batch, dim)), x.new_empty((batch,)), x.new_empty((steps, batch, dim))


def backward(
    bars: tuple[Tensor | None, Tensor | None, Tensor | None],
    path: Tensor,
    context: Tensor | None,
    network: Network,
    noise: Tensor | None,
    settings: Settings,
    parameters_wanted: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns the gradients of x (B, d), context and parameters (`Network.new_gradient`).

    ``bars`` are the gradients of x at t1, logdet and path; None stands for zero.
    """
    path, context, network, noise = contiguous(path, context, network, noise)
    steps = equal_steps(settings.grid)
    if path.dim() != 3 or len(path) != steps + 1:
        expected = f"({steps + 1}, B, d) to hold every step"
        raise ValueError(f"path must have shape {expected}, got {tuple(path.shape)}; keep it with keep_path=True")
    x = path[0]
    problem = describe(x, context, network, noise, settings)
    x_end_bar, logdet_bar, path_bar = map(dense, bars)
    adjoint, like = _C.Adjoint(), (x.dtype, x.device)
    problem.path = given("path", path, path.nbytes, *like)
    adjoint.x_end = given("the gradient of x", x_end_bar, x.nbytes, *like)
    adjoint.logdet = given("the gradient of logdet", logdet_bar, len(x) * x.itemsize, *like)
    adjoint.path = given("the gradient of path", path_bar, path.nbytes, *like)
    x_grad = dense_like(x)
    context_grad = None if context is None else dense_like(context)
    adjoint.x, adjoint.context = address(x_grad), address(context_grad)
    gradient = set_gradient(adjoint, network, parameters_wanted)
    _run("backward", path.device, settings, problem, adjoint)
    if settings.divergence != "none" and logdet_bar is not None and gradient is not None:
        add_linear_gradient(gradient, network, noise, settings, logdet_bar)
    return x_grad, context_grad, gradient


def jko_loss(
    x: Tensor,
    context: Tensor | None,
    network: Network,
    noise: Tensor | None,
    settings: Settings,
    jko_step: float,
    x_wanted: bool,
    parameters_wanted: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Returns the JKO objective's terms (3,) for x (B, d), float64, and their sum's gradients, as from `backward`."""
    x, context, network, noise = contiguous(x, context, network, noise)
    problem = describe(x, context, network, noise, settings)
    terms = torch.empty(3, dtype=torch.float64, device=x.device)
    loss = _C.JkoLoss()
    loss.step_size, loss.terms = jko_step, address(terms)
    adjoint = _C.Adjoint()
    x_grad = dense_like(x) if x_wanted else None
    context_grad = None if context is None else dense_like(context)
    adjoint.x, adjoint.context = address(x_grad), address(context_grad)
    gradient = set_gradient(adjoint, network, parameters_wanted)
    _run("jko_loss", x.device, settings, problem, loss, adjoint)
    if network.linear is not None:
        terms[1] -= linear_logdet(network.linear, noise, settings).mean()
        if gradient is not None:
            add_linear_gradient(gradient, network, noise, settings, x.new_full((len(x),), -1.0 / len(x)))
    return terms, x_grad, context_grad, gradient


# ---- The linear term's divergence is constant, so the kernels leave it to a few lines here.


def linear_logdet(linear: Tensor, noise: Tensor | None, settings: Settings) -> Tensor:
    """Returns the linear term's share of logdet: one number, or with noise one for each row."""
    divergence = torch.trace(linear) if noise is None else ((noise @ linear.T) * noise).sum(1)
    return (settings.t1 - settings.t0) * divergence


def add_linear_gradient(
    gradient: Tensor, network: Network, noise: Tensor | None, settings: Settings, logdet_bar: Tensor
) -> None:
    """Adds to the gradient of the linear term, if there is one, the part that comes from its share of logdet."""
    if network.linear is None:
        return
    end = gradient.numel() - (0 if network.modulation is None else network.modulation.numel())
    linear = gradient[end - network.linear.numel() : end].view(network.linear.shape)
    if noise is None:
        linear.diagonal().add_(logdet_bar.sum(), alpha=settings.t1 - settings.t0)
    else:
        linear.addmm_((noise * logdet_bar.unsqueeze(1)).T, noise, alpha=settings.t1 - settings.t0)


# ---- What crosses over to the extension.


def _run(kernel: cuda.Kernel, device: torch.device, settings: Settings, *descriptions: Any) -> None:
    equal_steps(settings.grid)  # these kernels know no others
    run_kernel(kernel, device, settings, *descriptions)


def run_kernel(kernel: cuda.Kernel, device: torch.device, settings: Settings, *descriptions: Any) -> None:
    """Runs a kernel on a device, which holds all the tensors that are described."""
    if device.type == "cuda":
        cuda.launch(kernel, device, settings.precision, *descriptions)
    else:
        getattr(_C, f"cpu_{kernel}")(*descriptions)


@functools.lru_cache(maxsize=256)  # as many as library.decode keeps
def _prototype(settings: Settings) -> Any:
    """Returns a description without sizes and tensors, which is copied, since setting every attribute takes a while."""
    problem = _C.Problem()
    activation = parse_activation(settings.activation)
    problem.time, problem.divergence = settings.time, getattr(_C.Divergence, settings.divergence)
    problem.activation, problem.beta = getattr(_C.ActivationKind, activation.name), activation.beta
    problem.t0, problem.t1 = settings.t0, settings.t1
    if isinstance(settings.grid, Adaptive):
        settings.grid.checked()
        tableau, problem.row_times = EMBEDDED[settings.method], True
    else:
        tableau, problem.num_steps = TABLEAUX[settings.method], as_grid(settings.grid).num_steps
    problem.tableau = _C.Tableau(tableau.a, tableau.b, tableau.c)
    problem.split = settings.precision == "bf16x3"
    modulation.describe(problem, settings.layers)
    return problem


def address(tensor: Tensor | None) -> int:
    """Returns the address of a tensor; 0 for None and for an empty one."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def given(name: str, tensor: Tensor | None, size: int, dtype: torch.dtype, device: torch.device) -> int:
    """Returns the address of a contiguous tensor, which must have exactly the bytes that a kernel assumes.

    Kernels check nothing. This check keeps them from foreign memory, by whatever code an operator is called and
    whatever has been done to a parameter since the forward pass.
    """
    if tensor is None:
        return 0
    if tensor.nbytes != size or tensor.dtype is not dtype or tensor.device != device:
        raise ValueError(
            f"{name} must hold {size // dtype.itemsize} numbers of {dtype} on {device}, got shape "
            f"{tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
        )
    if size == 0:
        return 0
    address, memory = tensor.data_ptr(), tensor.untyped_storage()
    if address == 0 or address + size > memory.data_ptr() + memory.nbytes():
        raise ValueError(f"{name} must lie within its memory, but that has been resized to {memory.nbytes()} bytes")
    return address


def contiguous(
    x: Tensor, context: Tensor | None, network: Network, noise: Tensor | None
) -> tuple[Tensor, Tensor | None, Network, Tensor | None]:
    """Returns the tensors as the kernels read them: without gaps."""
    weights, biases, linear, factors = network
    layers = [weight.contiguous() for weight in weights], [bias.contiguous() for bias in biases]
    return x.contiguous(), dense(context), Network(*layers, dense(linear), dense(factors)), dense(noise)


def dense(tensor: Any) -> Any:
    """Returns a tensor without gaps; None for None."""
    return tensor if tensor is None else tensor.contiguous()


def describe(x: Tensor, context: Tensor | None, network: Network, noise: Tensor | None, settings: Settings) -> Any:
    """Returns the kernel's description of the problem; the (contiguous) tensors must outlive it."""
    problem, dtype, device = _C.Problem(_prototype(settings)), x.dtype, x.device
    if dtype is not torch.float32 and (dtype is not torch.float64 or problem.split):
        raise ValueError(f"x must be torch.float32 (or torch.float64, without bf16x3), got {dtype}")
    if (noise is None) == (settings.divergence == "hutchinson"):
        raise ValueError(f"noise must be given for 'hutchinson' and nothing else, got {settings.divergence!r}")
    batch, dim = x.shape
    widths, columns = [bias.numel() for bias in network.biases[:-1]], 0 if context is None else context.shape[1]
    if dim < 1 or min(widths) < 1:
        raise ValueError(f"x and the hidden layers must be at least 1 wide, got {dim} and {widths}")
    problem.float64 = dtype is torch.float64
    problem.batch, problem.dim, problem.context_dim, problem.hidden = batch, dim, columns, widths
    problem.threads = torch.get_num_threads()
    item = dtype.itemsize
    problem.x = given("x", x, batch * dim * item, dtype, device)
    if context is not None:
        problem.context = given("context", context, batch * columns * item, dtype, device)
    if noise is not None:
        problem.noise = given("noise", noise, batch * dim * item, dtype, device)
    if network.linear is not None:
        problem.linear = given("velocity.linear.weight", network.linear, dim * dim * item, dtype, device)
    if settings.layers == modulation.PLAIN and network.modulation is None:  # at once, since most are
        columns += dim + settings.time
    else:
        modulation.check(settings.layers, network.modulation is not None, widths)
        if network.modulation is not None:
            size = modulation.size_of(settings.layers, (*widths, dim), columns)
            problem.modulation_tensor = given("the modulation", network.modulation, size * item, dtype, device)
        columns = dim + settings.time + columns if modulation.reads_inputs(settings.layers) else dim
    weights, biases = [], []
    for names, weight, bias, width in zip(_NAMES, network.weights, network.biases, (*widths, dim), strict=False):
        size = width * item
        weights.append(given(names[0], weight, size * columns, dtype, device))
        biases.append(given(names[1], bias, size, dtype, device))
        columns = width
    problem.weights, problem.biases = weights, biases
    return problem


def set_gradient(adjoint: Any, network: Network, wanted: bool) -> Tensor | None:
    """Gives an adjoint the places of the parameters' gradients in one new tensor; returns it, or None if not wanted."""
    if not wanted:
        return None
    gradient = network.new_gradient()
    sizes = [slot.nbytes for slot in network.slots]
    addresses = list(itertools.accumulate(sizes, initial=gradient.data_ptr()))
    layers = 2 * len(network.weights)
    adjoint.weights, adjoint.biases = addresses[0:layers:2], addresses[1:layers:2]
    adjoint.linear = 0 if network.linear is None else addresses[layers]
    adjoint.modulation = 0 if network.modulation is None else addresses[-2]
    return gradient
