"""The vector fields of sbi's flow matching that are MLPs once the time is given, as the kernels read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

import torch
from sbi.neural_nets.estimators import FlowMatchingEstimator
from sbi.neural_nets.net_builders.vector_field_nets import VectorFieldMLP
from sbi.utils.vector_field_utils import VectorFieldNet
from torch import Tensor, nn

from jkoflow.activation import Activation
from jkoflow.velocity import MLPField, MLPVelocity, Velocity
from jkoflow.velocity.altered import altered, altered_linear


class MLPVectorField(VectorFieldNet):
    """A network for sbi's vector fields that the kernels take: an `MLPVelocity` behind sbi's interface.

    Arguments:
        dim: Number d of parameters.
        condition_dim: Number c of conditioning variables, behind the embedding.
        hidden: Widths of the hidden layers, 1 to 8 of them.
        activation: Activation, see `jkoflow.MLPVelocity`.

    Example:
        >>> net = MLPVectorField(2, condition_dim=3)
        >>> net(torch.randn(5, 2), torch.randn(5, 3), torch.rand(5)).shape
        torch.Size([5, 2])

        ``FMPE(prior, vf_estimator=sbi.neural_nets.posterior_flow_nn(model=net))`` trains it.
    """

    def __init__(
        self, dim: int, condition_dim: int, hidden: Sequence[int] = (128, 128), activation: str = "silu"
    ) -> None:
        super().__init__()
        self.velocity = MLPVelocity(dim, hidden, activation, context_dim=condition_dim)

    def forward(self, theta: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Evaluates the field (*, d) at parameters (*, d), embedded observations (*, c) and times (*)."""
        return self.velocity(theta, t, x)


class FoldedVelocity(Velocity):
    """A velocity that is an MLP at every single time, with weights that are computed from the time.

    It is a view of a network that sbi owns, for one integration: it is neither scaled nor saved.

    Arguments:
        dim: Number d of features of x.
        context_dim: Number c of conditioning variables.
        fold: Function of a time, a tensor without axes, that returns the weights at this time.
        like: Tensor whose dtype and device the weights have.
    """

    def __init__(self, dim: int, context_dim: int, fold: Callable[[Tensor], MLPField], like: Tensor) -> None:
        super().__init__()
        self.dim, self.context_dim = dim, context_dim
        self._fold, self._like = fold, like

    def forward(self, x: Tensor, t: float | Tensor = 0.0, context: Tensor | None = None) -> Tensor:
        """Evaluates the velocity (B, d) at positions x (B, d) and context (B, c), at one time for all of them."""
        field = self.field_at(t)
        h = x if context is None else torch.cat([x, context], -1)
        for weight, bias in zip(field.weights[:-1], field.biases[:-1], strict=True):
            h = field.activation.value(h @ weight.T + bias)
        v = h @ field.weights[-1].T + field.biases[-1]
        return v if field.linear is None else v + x @ field.linear.T

    def field_at(self, t: float | Tensor) -> MLPField:
        """Returns the weights at one time, a number or a tensor of one number."""
        return self._fold(torch.as_tensor(t, dtype=self._like.dtype, device=self._like.device).reshape(()))

    def unfused(self) -> str:
        """Says why there is no one field."""
        return "the field of an sbi estimator depends on t in every layer, so that every stage has its own weights"

    def describe(self) -> NoReturn:
        """Refuses: what is to be saved is sbi's estimator.

        Raises:
            TypeError: Always.
        """
        raise TypeError("the field of an sbi estimator is not saved with a flow; save the estimator with torch.save")

    def scale_output(self, factor: float) -> NoReturn:
        """Refuses: the parameters are sbi's.

        Raises:
            TypeError: Always.
        """
        raise TypeError("the field of an sbi estimator is not scaled here; train the estimator")

    def work(self) -> float:
        """Returns about how many floating-point operations v and its exact divergence take at one point."""
        weights = sum(weight.numel() for weight in self.field_at(0.0).weights)
        return 2.0 * weights * (1 + self.dim)


class _Network(NamedTuple):
    """A network of positions, conditions and time that is an MLP at every single time."""

    activation: Activation
    dim: int
    context_dim: int
    layers_at: Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]
    """Weights and biases at a time; layer 1 reads positions, then conditions."""


def folded_estimator(estimator: FlowMatchingEstimator) -> FoldedVelocity | None:
    """Returns the field of a flow matching estimator as a velocity; None if its network is no MLP that is known.

    The estimator wraps its network in scales of positions and velocities, those of positions functions of time. Scales
    before the first layer and after the last one go into the weights of these, and the velocity of a Gaussian, which
    the estimator may add, is a linear term.
    """
    network = _network(estimator.net)
    if network is None or len(estimator.input_shape) != 1 or any(map(_altered, estimator.net.modules())):
        return None
    dim, activation = network.dim, network.activation

    def fold(t: Tensor) -> MLPField:
        weights, biases = network.layers_at(t)
        mean, deviation = (moment.flatten() for moment in estimator._get_time_dependent_stats(t.reshape(1)))
        shift, scale = (moment.flatten() for moment in estimator._get_velocity_normalization())
        linear = None
        if estimator.gaussian_baseline:
            origin = torch.zeros_like(mean).unsqueeze(0)
            shift = estimator._compute_velocity_baseline(origin, t.reshape(1)).flatten()
            linear = torch.diag(estimator._compute_velocity_baseline(origin + 1, t.reshape(1)).flatten() - shift)
        weights[0] = torch.cat([weights[0][:, :dim] / deviation, weights[0][:, dim:]], 1)
        biases[0] = biases[0] - weights[0][:, :dim] @ mean
        weights[-1] = scale.unsqueeze(1) * weights[-1]
        biases[-1] = scale * biases[-1] + shift
        return MLPField(dim, network.context_dim, False, activation, tuple(weights), tuple(biases), linear)

    return FoldedVelocity(dim, network.context_dim, fold, next(estimator.net.parameters()))


def _network(net: nn.Module) -> _Network | None:
    """Returns a network whose layers are known; None for any other."""
    if type(net) is MLPVectorField:
        return _network_of_velocity(net.velocity)
    if type(net) is VectorFieldMLP and not (net.layer_norm or net.skip_connections):
        return _network_of_sbi(net)
    return None


def _network_of_velocity(velocity: MLPVelocity) -> _Network | None:
    field = velocity.field()
    if field is None:
        return None
    d = field.dim

    def layers_at(t: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        (first, *weights), (bias, *biases) = field.weights, field.biases
        without_time = torch.cat([first[:, :d], first[:, d + 1 :]], 1)
        return [without_time, *weights], [bias + t * first[:, d], *biases]

    return _Network(field.activation, d, field.context_dim, layers_at)


def _network_of_sbi(net: VectorFieldMLP) -> _Network | None:
    """Returns sbi's MLP: positions and conditions enter side by side, and every layer adds an embedding of time."""
    activation = _activation(net.activation)
    position, condition = net.input_layer, net.condition_layer
    if activation is None:
        return None

    def layers_at(t: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        embedded = net.time_linear_layer(net.time_emb(t.reshape(1))).reshape(-1)
        beside = torch.block_diag(position.weight, condition.weight)
        # what a layer adds to its activations, the next one sees as a shift
        layers = [*net.layers, net.output_layer]
        plain, shifted = [net.input_merge_layer, layers[0]], layers[1:]
        weights = [beside, *(layer.weight for layer in (*plain, *shifted))]
        biases = [torch.cat([position.bias, condition.bias]), *(layer.bias for layer in plain)]
        return weights, biases + [layer.bias + layer.weight @ embedded for layer in shifted]

    return _Network(activation, position.in_features, condition.in_features, layers_at)


def _activation(module: nn.Module) -> Activation | None:
    """Returns the activation that a module of PyTorch computes, if the kernels have it with these settings."""
    plain: dict[type[nn.Module], str] = {nn.Tanh: "tanh", nn.SiLU: "silu", nn.SELU: "selu"}
    if type(module) in plain:
        return Activation(plain[type(module)])
    if type(module) is nn.ELU and module.alpha == 1.0:
        return Activation("elu")
    if type(module) is nn.GELU and module.approximate == "none":
        return Activation("gelu")
    return None


def _altered(module: nn.Module) -> bool:
    """Tells whether a call of a module does other than its class and its parameters say."""
    return (altered_linear(module) if isinstance(module, nn.Linear) else altered(module)) is not None
