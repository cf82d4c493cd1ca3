"""A velocity with residual hidden layers, whose divergence keeps a closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from jkoflow.activation import Activation
from jkoflow.velocity.arguments import check_inputs
from jkoflow.velocity.field import MLPField
from jkoflow.velocity.mlp import MLPVelocity


class ResidualMLP(MLPVelocity):
    r"""An `MLPVelocity` whose hidden layers from the second on add their activation to what they read.

    .. math:: h_1 = \sigma(W_1 [x, t, c] + b_1), \quad h_l = h_{l-1} + \sigma(W_l h_{l-1} + b_l), \quad
              v = W h_L + b + A x

    With two hidden layers the divergence is :math:`c \cdot s_1 + s_2^T M s_1`, s being the slopes of the activations,
    :math:`c_a = \sum_i W^1_{ai} W_{ia}` and :math:`M = W_2 \circ (W^1_x W)^T`: one product, as without the additions.

    Arguments:
        dim: Number d of features of x.
        hidden: Widths of the hidden layers, all the same.
        activation: Any that `jkoflow.MLPVelocity` takes.
        time: Whether layer 1 reads t.
        context_dim: Number c of conditioning variables, which the divergence does not differentiate.
        linear: Whether to add the linear term :math:`A x`, starting at :math:`A = 0`.

    Raises:
        ValueError: If a size is not positive, the widths differ, or the activation is unknown or not smooth.

    References:
        | Deep residual learning for image recognition (He et al., 2015)
        | https://arxiv.org/abs/1512.03385

    Example:
        >>> velocity = ResidualMLP(2, hidden=(64, 64, 64), activation="silu")
        >>> velocity(torch.zeros(5, 2), t=0.5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (128, 128),
        activation: str | Activation = "tanh",
        time: bool = True,
        context_dim: int = 0,
        linear: bool = False,
    ) -> None:
        super().__init__(dim, hidden, activation, time, context_dim, linear)
        if len(set(self.hidden)) > 1:
            raise ValueError(f"hidden must list one width only, since residual layers are added, got {self.hidden}")

    def forward(self, x: Tensor, t: float | Tensor = 0.0, context: Tensor | None = None) -> Tensor:
        """Evaluates the velocity (*, d) at positions x (*, d), times t that broadcast to (*) and context (*, c).

        Raises:
            ValueError: If a shape does not match, or context is missing or superfluous.
        """
        check_inputs(self.dim, self.context_dim, x, context)
        first, *others, last = self.layers
        h = self.activation.value(first(self._columns(x, t, context)))
        for layer in others:
            h = h + self.activation.value(layer(h))
        v = last(h)
        return v if self.linear is None else v + self.linear(x)

    _DEFINED: ClassVar[Callable[..., Tensor]] = forward

    def field(self) -> MLPField | None:
        """Returns the plain parameters; None if `unfused` has a reason.

        Raises:
            ValueError: As `MLPVelocity.field`.
        """
        field = super().field()
        return None if field is None else field._replace(residual=True)

    def describe(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as JSON values."""
        return {"kind": "residual", **super().describe()}
