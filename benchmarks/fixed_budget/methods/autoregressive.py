"""MAF, NSF and SOSPF, autoregressive flows of zuko."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fixed_budget.model import Model
from jkoflow.data import require


class Autoregressive(Model):
    """Masked autoregressive transformations: affine, by splines on [-5, 5], or by polynomials.

    Arguments:
        dim: Number d of columns.
        seed: Seed of the parameters.
        kind: ``"MAF"``, ``"NSF"``, or ``"SOSPF"``, whose inverse the library finds by bisection, on [-10, 10].
        transforms: Number of transformations.
        hidden: Widths of the hidden layers in the transformations' networks.
        options: What else the library's flow takes, such as ``bins`` of the splines.

    References:
        | Masked autoregressive flow for density estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057
        | Neural spline flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032
        | Sum-of-squares polynomial flow (Jaini et al., 2019)
        | https://arxiv.org/abs/1905.02325
    """

    def __init__(
        self,
        dim: int,
        seed: int,
        kind: Literal["MAF", "NSF", "SOSPF"],
        transforms: int = 5,
        hidden: tuple[int, ...] = (128, 128),
        **options: Any,
    ) -> None:
        super().__init__()
        flows = require("zuko", f"the method {kind.lower()}", "bench").flows
        torch.manual_seed(seed)
        self.flow = getattr(flows, kind)(features=dim, transforms=transforms, hidden_features=hidden, **options)
        self.transforms = transforms

    def encode(self, x: Tensor, level: int = 0) -> tuple[Tensor, Tensor]:
        """Carries x (B, d) to the noise in one pass."""
        return self.flow().transform.call_and_ladj(x)

    def decode(self, z: Tensor, level: int = 0) -> Tensor:
        """Carries z (B, d) to the data in d passes per transformation."""
        return self.flow().transform.inv(z)

    def evaluations(self, x: Tensor) -> float:
        """Returns the number of transformations, each with one network."""
        return self.transforms
