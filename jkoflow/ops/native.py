"""Loads the compiled kernels and registers them as torch custom operators.

The extension does not know torch: tensors are allocated and checked here, and cross over as addresses. Layer sizes are
those of `jkoflow.velocity.MLPField`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch  # before the extension: both then share the OpenMP runtime that ships with torch
from torch import Tensor

from jkoflow.activation import Activation
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
    tensors = (x, context, *field.weights, *field.biases, field.linear)
    needs_path = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    x_end, logdet, path = _integrate(
        x,
        context,
        field.weights,
        field.biases,
        coupling(field) if exact else None,
        field.linear,
        field.time,
        float(t0),
        float(t1),
        num_steps,
        method,
        field.activation.name,
        field.activation.beta,
        keep_path or needs_path,
    )
    if not exact:
        logdet = logdet.detach()  # zero: no gradient flows through it
    elif field.linear is not None:
        logdet = logdet + (t1 - t0) * torch.trace(field.linear)
    return x_end, logdet, path


_NETWORK = "Tensor? context, Tensor[] weights, Tensor[] biases, Tensor? coupling, Tensor? linear"
_SCALARS = "bool time, float t0, float t1, int num_steps, str method, str activation, float beta"


@torch.library.custom_op(
    "jkoflow::integrate",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor x, {_NETWORK}, {_SCALARS}, bool keep_path) -> (Tensor, Tensor, Tensor)",
)
def _integrate(x, context, weights, biases, coupling, linear, time, t0, t1, num_steps, method, activation, beta, keep_path):  # noqa: ANN001, ANN202, E501
    problem, alive = _describe(
        x, context, weights, biases, coupling, linear, time, t0, t1, num_steps, method, activation, beta
    )
    x_end, logdet, path = _outputs(x, num_steps, keep_path)
    problem.x_end, problem.logdet = x_end.data_ptr(), logdet.data_ptr()
    problem.path = path.data_ptr() if keep_path else 0
    _C.cpu_forward(problem)
    del alive
    return x_end, logdet, path


@_integrate.register_fake
def _(x, context, weights, biases, coupling, linear, time, t0, t1, num_steps, method, activation, beta, keep_path):  # noqa: ANN001, ANN202, E501
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
        f"(Tensor? x_end_bar, Tensor? logdet_bar, Tensor? path_bar, Tensor path, {_NETWORK}, {_SCALARS}, "
        "bool parameters) -> Tensor[]"
    ),
)
def _integrate_backward(
    x_end_bar, logdet_bar, path_bar, path, context, weights, biases, coupling, linear, time, t0, t1, num_steps, method,
    activation, beta, parameters,
):  # fmt: skip  # noqa: ANN001, ANN202
    path = path.contiguous()
    problem, alive = _describe(
        path[0], context, weights, biases, coupling, linear, time, t0, t1, num_steps, method, activation, beta
    )
    problem.path = path.data_ptr()
    adjoint = _C.Adjoint()
    cotangents = [bar if bar is None else bar.contiguous() for bar in (x_end_bar, logdet_bar, path_bar)]
    adjoint.x_end, adjoint.logdet, adjoint.path = (_address(bar) for bar in cotangents)
    gradients = _gradients(path, context, weights, biases, coupling, linear, parameters)
    adjoint.x, adjoint.context, adjoint.coupling, adjoint.linear = (_address(g) for g in gradients[:4])
    if parameters:
        adjoint.weights = [g.data_ptr() for g in gradients[4 : 4 + len(weights)]]
        adjoint.biases = [g.data_ptr() for g in gradients[4 + len(weights) :]]
    _C.cpu_backward(problem, adjoint)
    del alive
    return gradients


@_integrate_backward.register_fake
def _(
    x_end_bar, logdet_bar, path_bar, path, context, weights, biases, coupling, linear, time, t0, t1, num_steps, method,
    activation, beta, parameters,
):  # fmt: skip  # noqa: ANN001, ANN202
    return _gradients(path, context, weights, biases, coupling, linear, parameters)


def _gradients(
    path: Tensor,
    context: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    coupling: Tensor | None,
    linear: Tensor | None,
    parameters: bool,
) -> list[Tensor]:
    """Uninitialised gradients of x, context, coupling, linear, weights and biases; empty where not wanted."""

    def like(tensor: Tensor | None, wanted: bool = parameters) -> Tensor:
        return path.new_empty(tensor.shape if tensor is not None and wanted else (0,))

    return [path.new_empty(path.shape[1:]), like(context, True), *map(like, (coupling, linear, *weights, *biases))]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, context, weights, biases, coupling, linear, *scalars = inputs
    ctx.set_materialize_grads(False)
    ctx.layers = len(weights)
    ctx.scalars = scalars[:-1]
    ctx.save_for_backward(output[2], context, coupling, linear, *weights, *biases)


def _backward(ctx: Any, x_end_bar: Tensor | None, logdet_bar: Tensor | None, path_bar: Tensor | None) -> tuple[Any, ...]:
    path, context, coupling, linear, *layers = ctx.saved_tensors
    weights, biases = layers[: ctx.layers], layers[ctx.layers :]
    parameters = any(_any_needed(needed) for needed in ctx.needs_input_grad[2:6])
    x_bar, context_bar, coupling_bar, linear_bar, *layer_bars = _integrate_backward(
        x_end_bar, logdet_bar, path_bar, path, context, weights, biases, coupling, linear, *ctx.scalars, parameters
    )
    nothing = (None,) * (len(ctx.scalars) + 1)
    if not parameters:
        absent = [None] * ctx.layers
        return x_bar, _if(context, context_bar), absent, absent, None, None, *nothing
    return (
        x_bar,
        _if(context, context_bar),
        layer_bars[: ctx.layers],
        layer_bars[ctx.layers :],
        _if(coupling, coupling_bar),
        _if(linear, linear_bar),
        *nothing,
    )


def _any_needed(needed: Any) -> bool:
    return any(needed) if isinstance(needed, (list, tuple)) else bool(needed)


def _if(tensor: Tensor | None, gradient: Tensor) -> Tensor | None:
    return None if tensor is None else gradient


def _refuse_double_backward(ctx: Any, *bars: Any) -> None:
    raise RuntimeError(
        "the fused kernels of jkoflow.integrate cannot be differentiated twice; "
        "pass backend='reference' for second derivatives"
    )


_integrate.register_autograd(_backward, setup_context=_setup_context)
_integrate_backward.register_autograd(_refuse_double_backward)


@functools.cache
def _tableau(method: str) -> Any:
    tableau = TABLEAUX[method]
    return _C.Tableau(tableau.a, tableau.b, tableau.c)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _describe(
    x: Tensor,
    context: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    coupling: Tensor | None,
    linear: Tensor | None,
    time: bool,
    t0: float,
    t1: float,
    num_steps: int,
    method: str,
    activation: str,
    beta: float,
) -> tuple[Any, list[Tensor]]:
    """The kernel's description of the problem, and the tensors that must outlive it."""
    x, *layers = (tensor.contiguous() for tensor in (x, *weights, *biases))
    optional = [tensor if tensor is None else tensor.contiguous() for tensor in (context, coupling, linear)]
    problem = _C.Problem()
    problem.float64 = x.dtype == torch.float64
    problem.batch, problem.dim = x.shape
    problem.context_dim = 0 if context is None else context.shape[1]
    problem.time = time
    problem.hidden = [weight.shape[0] for weight in weights[:-1]]
    problem.activation = getattr(_C.ActivationKind, activation)
    problem.beta = beta
    problem.t0, problem.t1, problem.num_steps = t0, t1, num_steps
    problem.tableau = _tableau(method)
    problem.threads = torch.get_num_threads()
    problem.x = x.data_ptr()
    problem.weights = [layer.data_ptr() for layer in layers[: len(weights)]]
    problem.biases = [layer.data_ptr() for layer in layers[len(weights) :]]
    problem.context, problem.coupling, problem.linear = (_address(tensor) for tensor in optional)
    return problem, [x, *layers, *(tensor for tensor in optional if tensor is not None)]
