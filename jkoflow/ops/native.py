"""Loads the compiled kernels and registers them as torch custom operators.

The extension does not know torch: tensors are allocated and checked here, and cross over as addresses. Layer sizes are
those of `jkoflow.velocity.MLPField`.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch  # before the extension: both then share the OpenMP runtime that ships with torch
from torch import Tensor

from jkoflow.ops.objective import JKOTerms
from jkoflow.ops.reference import coupling
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.velocity import MLPField

# Settled at import, as constants: torch.compile traces what reads them.
_C: Any = None
_MISSING: str | None = None  # why the kernels cannot run
_BAD_ISA: str | None = None  # a wish in JKOFLOW_ISA that cannot be met
try:
    from jkoflow import _C  # pyright: ignore[reportAttributeAccessIssue]

    _C.cpu_isa()
except ImportError as error:
    _MISSING = f"the compiled extension cannot be loaded ({error}); `pip install .` in a checkout builds it"
except RuntimeError as error:
    _MISSING = _BAD_ISA = str(error)

_NO_CUDA = "this version of jkoflow has no CUDA kernels"
_ACTIVATIONS = ("tanh", "softplus", "silu")


def capabilities() -> dict[str, Any]:
    """What this build can run on this machine, and why not: for `jkoflow doctor`.

    Returns:
        ``cpu`` and ``cuda`` (None if usable, else the reason), ``isa`` in use, ``isas`` available (best first),
        ``openmp``, ``threads``.
    """
    return {
        "cpu": _MISSING,
        "cuda": _NO_CUDA,
        "isa": None if _MISSING else _C.cpu_isa(),
        "isas": [] if _C is None else _C.cpu_isas(),
        "openmp": _C is not None and _C.has_openmp,
        "threads": torch.get_num_threads(),
    }


def unsupported(field: MLPField | None, x: Tensor, divergence: str, backend: str) -> str | None:
    """Why no compiled kernel can run the request, or None if one can."""
    if backend == "cuda":
        return _NO_CUDA
    if x.device.type != "cpu":
        return f"the CPU kernels need CPU tensors, x is on {x.device}" + (
            f" ({_NO_CUDA})" if x.device.type == "cuda" else ""
        )
    if _BAD_ISA is not None:
        raise RuntimeError(_BAD_ISA)
    if _MISSING is not None:
        return _MISSING
    if field is None:
        return "the kernels integrate an MLPVelocity; another velocity is differentiated by autograd"
    if x.dtype not in (torch.float32, torch.float64):
        return f"the kernels compute in float32 and float64, x is {x.dtype}"
    if field.activation.name not in _ACTIVATIONS:
        return f"the kernels know the activations {', '.join(_ACTIVATIONS)}, not {field.activation.name}"
    if len(field.hidden) > _C.max_hidden_layers:
        return f"the kernels have 1 to {_C.max_hidden_layers} hidden layers, the velocity has {len(field.hidden)}"
    if divergence == "hutchinson":
        return "the kernels compute the exact divergence or none, not Hutchinson's estimate"
    return None


def integrate_mlp(
    field: MLPField,
    x: Tensor,
    context: Tensor | None,
    t0: float,
    t1: float,
    num_steps: int,
    method: str,
    divergence: str,
    keep_path: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the fused kernel; arguments as in `jkoflow.integrate`. The path is empty unless it is kept."""
    exact = divergence == "exact"
    x_end, logdet, path = _integrate(
        x,
        context,
        _flat_parameters(field, exact),
        *_description(field, exact, t0, t1, num_steps, method),
        keep_path or needs_gradient(field, x, context),
    )
    if not exact:
        logdet = logdet.detach()  # zero: no gradient flows through it
    elif field.linear is not None:
        logdet = logdet + (t1 - t0) * torch.trace(field.linear)
    return x_end, logdet, path


def jko_loss_mlp(
    field: MLPField,
    x: Tensor,
    context: Tensor | None,
    t0: float,
    t1: float,
    num_steps: int,
    method: str,
    step_size: float,
) -> JKOTerms:
    """Runs the fused loss; arguments as in `jkoflow.ops.jko_loss`. Costs a gradient, so only where one is needed."""
    parameters = _flat_parameters(field, True)
    total, terms, *_ = _jko_loss(
        x,
        context,
        parameters,
        *_description(field, True, t0, t1, num_steps, method),
        float(step_size),
        x.requires_grad,
        parameters.requires_grad,
    )
    potential, divergence, movement = terms.unbind()
    if field.linear is not None:
        trace = (t1 - t0) * torch.trace(field.linear)
        total, divergence = total - trace, divergence - trace.detach()
    return JKOTerms(total, potential, divergence, movement)


def needs_gradient(field: MLPField, x: Tensor, context: Tensor | None) -> bool:
    """Whether autograd will want the gradient of something."""
    tensors = (x, context, field.linear, *field.weights, *field.biases)
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _flat_parameters(field: MLPField, exact: bool) -> Tensor:
    parts = [part.reshape(-1) for layer in zip(field.weights, field.biases, strict=True) for part in layer]
    parts += [coupling(field).reshape(-1)] if exact else []
    parts += [field.linear.reshape(-1)] if field.linear is not None else []
    return torch.cat(parts)


def _description(field: MLPField, exact: bool, t0: float, t1: float, num_steps: int, method: str) -> tuple[Any, ...]:
    """The operators' scalar arguments, in the order of _SCALARS."""
    network = (list(field.hidden), exact, field.linear is not None, field.time)
    activation = (field.activation.name, field.activation.beta)
    return *network, *activation, float(t0), float(t1), num_steps, method


# ---- The operators. All parameters travel in one flat tensor: weight and bias of each layer, then the coupling if the
# divergence is exact, then the linear term. Lists of tensors would cost autograd more time than a small kernel.

_SCALARS = (
    "int[] hidden, bool exact, bool linear, bool time, str activation, float beta, "
    "float t0, float t1, int num_steps, str method"
)


@torch.library.custom_op(
    "jkoflow::integrate",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor x, Tensor? context, Tensor parameters, {_SCALARS}, bool keep_path) -> (Tensor, Tensor, Tensor)",
)
def _integrate(x: Tensor, context: Tensor | None, parameters: Tensor, *scalars: Any) -> tuple[Tensor, Tensor, Tensor]:
    *description, keep_path = scalars
    x, context, parameters = _contiguous(x, context, parameters)
    problem = _describe(x, context, parameters, *description)
    x_end, logdet, path = _outputs(x, problem.num_steps, keep_path)
    problem.x_end, problem.logdet, problem.path = _address(x_end), _address(logdet), _address(path)
    _C.cpu_forward(problem)
    return x_end, logdet, path


@_integrate.register_fake
def _(x: Tensor, context: Tensor | None, parameters: Tensor, *scalars: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, num_steps, _method, keep_path = scalars
    return _outputs(x, num_steps, keep_path)


def _outputs(x: Tensor, num_steps: int, keep_path: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, dim = x.shape
    steps = num_steps + 1 if keep_path else 0
    return x.new_empty((batch, dim)), x.new_empty((batch,)), x.new_empty((steps, batch, dim))


@torch.library.custom_op(
    "jkoflow::integrate_backward",
    mutates_args=(),
    device_types="cpu",
    schema=(
        "(Tensor? x_end_bar, Tensor? logdet_bar, Tensor? path_bar, Tensor path, Tensor? context, Tensor parameters, "
        f"{_SCALARS}, bool parameters_wanted) -> (Tensor, Tensor, Tensor)"
    ),
)
def _integrate_backward(
    x_end_bar: Tensor | None,
    logdet_bar: Tensor | None,
    path_bar: Tensor | None,
    path: Tensor,
    context: Tensor | None,
    parameters: Tensor,
    *scalars: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    *description, parameters_wanted = scalars
    path, context, parameters = _contiguous(path, context, parameters)
    problem = _describe(path[0], context, parameters, *description)
    problem.path = _address(path)
    cotangents = _contiguous(x_end_bar, logdet_bar, path_bar)
    gradients = _gradients(path, context, parameters, parameters_wanted)
    adjoint = _C.Adjoint()
    adjoint.x_end, adjoint.logdet, adjoint.path = (_address(bar) for bar in cotangents)
    adjoint.x, adjoint.context = _address(gradients[0]), _address(gradients[1])
    if parameters_wanted:
        _set_parameters(adjoint, gradients[2], path.shape[2], context, *description[:4])
    _C.cpu_backward(problem, adjoint)
    return gradients


@_integrate_backward.register_fake
def _(
    x_end_bar: Tensor | None,
    logdet_bar: Tensor | None,
    path_bar: Tensor | None,
    path: Tensor,
    context: Tensor | None,
    parameters: Tensor,
    *scalars: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(path, context, parameters, scalars[-1])


def _gradients(
    path: Tensor, context: Tensor | None, parameters: Tensor, parameters_wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised gradients of x, context and parameters; empty where there is nothing or nothing is wanted."""
    return (
        path.new_empty(path.shape[1:]),
        path.new_empty((0,) if context is None else context.shape),
        path.new_empty(parameters.shape if parameters_wanted else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, context, parameters, *scalars = inputs
    ctx.set_materialize_grads(False)
    ctx.description = scalars[:-1]
    ctx.save_for_backward(output[2], context, parameters)


def _backward(ctx: Any, *bars: Tensor | None) -> tuple[Any, ...]:
    path, context, parameters = ctx.saved_tensors
    wanted = ctx.needs_input_grad[2]
    x_grad, context_grad, parameters_grad = _integrate_backward(
        *bars, path, context, parameters, *ctx.description, wanted
    )
    scalars = (None,) * (len(ctx.description) + 1)
    return x_grad, None if context is None else context_grad, parameters_grad if wanted else None, *scalars


def _refuse_double_backward(ctx: Any, *bars: Any) -> None:
    raise RuntimeError(
        "the fused kernels cannot be differentiated twice; pass backend='reference' for second derivatives"
    )


_integrate.register_autograd(_backward, setup_context=_setup_context)
_integrate_backward.register_autograd(_refuse_double_backward)


@torch.library.custom_op(
    "jkoflow::jko_loss",
    mutates_args=(),
    device_types="cpu",
    schema=(
        f"(Tensor x, Tensor? context, Tensor parameters, {_SCALARS}, float step_size, bool x_wanted, "
        "bool parameters_wanted) -> (Tensor total, Tensor terms, Tensor x_grad, Tensor context_grad, "
        "Tensor parameters_grad)"
    ),
)
def _jko_loss(x: Tensor, context: Tensor | None, parameters: Tensor, *scalars: Any) -> tuple[Tensor, ...]:
    *description, step_size, x_wanted, parameters_wanted = scalars
    x, context, parameters = _contiguous(x, context, parameters)
    problem = _describe(x, context, parameters, *description)
    means = torch.empty(3, dtype=torch.float64)
    loss = _C.JkoLoss()
    loss.step_size, loss.terms = step_size, means.data_ptr()
    gradients = _loss_gradients(x, context, parameters, x_wanted, parameters_wanted)
    adjoint = _C.Adjoint()
    adjoint.x, adjoint.context = _address(gradients[0]), _address(gradients[1])
    if parameters_wanted:
        _set_parameters(adjoint, gradients[2], x.shape[1], context, *description[:4])
    _C.cpu_jko_loss(problem, loss, adjoint)
    return means.sum().to(x.dtype), means.to(x.dtype), *gradients


@_jko_loss.register_fake
def _(x: Tensor, context: Tensor | None, parameters: Tensor, *scalars: Any) -> tuple[Tensor, ...]:
    return x.new_empty(()), x.new_empty((3,)), *_loss_gradients(x, context, parameters, *scalars[-2:])


def _loss_gradients(
    x: Tensor, context: Tensor | None, parameters: Tensor, x_wanted: bool, parameters_wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if x_wanted else (0,)),
        x.new_empty((0,) if context is None else context.shape),
        x.new_empty(parameters.shape if parameters_wanted else (0,)),
    )


def _loss_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.inputs = len(inputs)
    ctx.save_for_backward(*output[2:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _loss_backward(ctx: Any, total_bar: Tensor | None, *bars: Tensor | None) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # create_graph=True
        _refuse_double_backward(ctx)
    wanted = ctx.needs_input_grad[:3]
    grads = [
        gradient * total_bar if want and total_bar is not None else None
        for gradient, want in zip(ctx.saved_tensors, wanted, strict=True)
    ]
    return *grads, *(None,) * (ctx.inputs - 3)


_jko_loss.register_autograd(_loss_backward, setup_context=_loss_setup_context)


# ---- What crosses over to the extension.


@functools.cache
def _tableau(method: str) -> Any:
    tableau = TABLEAUX[method]
    return _C.Tableau(tableau.a, tableau.b, tableau.c)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _contiguous(*tensors: Tensor | None) -> tuple[Any, ...]:
    return tuple(tensor if tensor is None else tensor.contiguous() for tensor in tensors)


def _describe(
    x: Tensor,
    context: Tensor | None,
    parameters: Tensor,
    hidden: list[int],
    exact: bool,
    linear: bool,
    time: bool,
    activation: str,
    beta: float,
    t0: float,
    t1: float,
    num_steps: int,
    method: str,
) -> Any:
    """The kernel's description of the problem; the (contiguous) tensors must outlive it."""
    problem = _C.Problem()
    problem.float64 = x.dtype == torch.float64
    problem.batch, problem.dim = x.shape
    problem.context_dim = 0 if context is None else context.shape[1]
    problem.time = time
    problem.hidden = hidden
    problem.activation = getattr(_C.ActivationKind, activation)
    problem.beta = beta
    problem.t0, problem.t1, problem.num_steps = t0, t1, num_steps
    problem.tableau = _tableau(method)
    problem.threads = torch.get_num_threads()
    problem.x, problem.context = _address(x), _address(context)
    _set_parameters(problem, parameters, x.shape[1], context, hidden, exact, linear, time)
    return problem


def _set_parameters(
    target: Any,
    flat: Tensor,
    dim: int,
    context: Tensor | None,
    hidden: list[int],
    exact: bool,
    linear: bool,
    time: bool,
) -> None:
    """Points a Problem at the parameters, or an Adjoint at their gradients, in the flat tensor."""
    widths = [dim + int(time) + (0 if context is None else context.shape[1]), *hidden, dim]
    sizes = [size for i, o in itertools.pairwise(widths) for size in (i * o, o)]
    sizes += [math.prod(hidden)] if exact else []
    sizes += [dim * dim] if linear else []
    if flat.numel() != sum(sizes):
        raise ValueError(f"parameters must have {sum(sizes)} entries for layers {widths}, got {flat.numel()}")
    start, item = flat.data_ptr(), flat.element_size()
    addresses = [start + item * offset for offset in itertools.accumulate(sizes[:-1], initial=0)]
    layers = 2 * len(widths) - 2
    target.weights, target.biases = addresses[0:layers:2], addresses[1:layers:2]
    target.coupling = addresses[layers] if exact else 0
    target.linear = addresses[-1] if linear else 0
