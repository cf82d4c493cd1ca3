"""MAF and NSF, the autoregressive flows of zuko."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fixed_budget.model import Model
from jkoflow.data import require


class Autoregressive(Model):
    """Masked autoregressive transformations, affine or by rational-quadratic splines on [-5, 5].

    Arguments:
        dim: Number d of columns.
        seed: Seed of the parameters.
        kind: ``"MAF"`` or ``"NSF"``.
        transforms: Number of transformations.
        hidden: Widths of the hidden layers in the transformations' networks.
        bins: Bins of the splines; not used by MAF.

    References:
        | Masked autoregressive flow for density estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057
        | Neural spline flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032
    """

    def __init__(
        self,
        dim: int,
        seed: int,
        kind: Literal["MAF", "NSF"],
        transforms: int = 5,
        hidden: tuple[int, ...] = (128, 128),
        bins: int = 8,
    ) -> None:
        super().__init__()
        flows = require("zuko", f"the method {kind.lower()}", "bench").flows
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {"features": dim, "transforms": transforms, "hidden_features": hidden}
        self.flow = flows.MAF(**sizes) if kind == "MAF" else flows.NSF(bins=bins, **sizes)

    def encode(self, x: Tensor, level: int = 0) -> tuple[Tensor, Tensor]:
        """Carries x (B, d) to the noise in one pass."""
        return self.flow().transform.call_and_ladj(x)

    def decode(self, z: Tensor, level: int = 0) -> Tensor:
        """Carries z (B, d) to the data in d passes per transformation."""
        return self.flow().transform.inv(z)
