"""The joint probability of discrete columns, one column after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from jkoflow.masses.column import LEARNERS, Column
from jkoflow.masses.learner import Rows

FAR = 3.0
"""Distance from the median, in deviations, beyond which conditioning variables are drawn together, to within two."""


class Masses(nn.Module):
    r"""The probability of k discrete states per row: P(s_1 | c) P(s_2 | s_1, c) ... P(s_k | s_1, ..., s_{k-1}, c).

    Every factor is a mixture of up to three: the shares of the column's states; their shares given some earlier
    columns, its parents; and small networks that see all earlier columns and the context. `fit` chooses the parents,
    the networks and the weights. A new module has equal masses until numbers are loaded.

    Arguments:
        levels: Number of states of each column, at least 1; the states of column j are 0, ..., levels[j] - 1.
        context_dim: Number c of conditioning variables.
        hidden: Widths of the networks' hidden layers, at least one.
        parents: For each column the earlier columns that its table is for; none if left out.
        learners: For each column which of "networks" and "trees" it has; none if left out.

    Raises:
        ValueError: If an argument is out of range.

    References:
        | Modeling high-dimensional discrete data with multi-layer neural networks (Bengio and Bengio, 1999)
        | https://papers.nips.cc/paper/1679

    Example:
        >>> from jkoflow.masses import Masses
        >>> coin = torch.arange(1000)[:, None] % 2
        >>> masses = Masses.fit(torch.cat([coin, 1 - coin], 1), levels=(2, 2))
        >>> masses.log_prob(torch.tensor([[0, 1], [1, 0], [1, 1]])).exp().round(decimals=2)
        tensor([0.5000, 0.5000, 0.0000])
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        context_dim: int = 0,
        hidden: Sequence[int] = (64,),
        parents: Sequence[Sequence[int]] | None = None,
        learners: Sequence[Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.levels, self.hidden, self.context_dim = tuple(map(int, levels)), tuple(map(int, hidden)), context_dim
        parents = [()] * len(self.levels) if parents is None else parents
        learners = [()] * len(self.levels) if learners is None else learners
        if min(self.levels, default=1) < 1:
            raise ValueError(f"levels must be at least 1 in every column, got {list(self.levels)}")
        if min(self.hidden, default=0) < 1:
            raise ValueError(f"hidden must be one or more widths of at least 1, got {list(self.hidden)}")
        if any(not 0 <= parent < column for column, group in enumerate(parents) for parent in group):
            raise ValueError(f"parents must be earlier columns, got {[list(group) for group in parents]}")
        if any(name not in LEARNERS for names in learners for name in names):
            raise ValueError(f"learners must be of {', '.join(LEARNERS)}, got {[list(names) for names in learners]}")
        self.register_buffer("centre", torch.zeros(context_dim, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(context_dim, dtype=torch.float64))
        self.columns = nn.ModuleList(
            Column(self.levels[: number + 1], context_dim, self.hidden, group, names)
            for number, (group, names) in enumerate(zip(parents, learners, strict=True))
        )
        self.requires_grad_(False).eval()

    def log_prob(self, states: Tensor, context: Tensor | None = None) -> Tensor:
        """Returns log P(states | context) in nats, with shape (B,).

        Arguments:
            states: The states (B, k), int64.
            context: Conditioning variables (B, c), None if c = 0.

        Raises:
            ValueError: If a state is out of range or a shape does not match.
        """
        context = self._scaled(_checked(states, self.levels, context, self.context_dim))
        total = torch.zeros(len(states), dtype=torch.float64, device=states.device)
        for number, column in self._varying:
            factors = [
                column(states[rows], context[rows]).gather(1, states[rows, number, None]).squeeze(1)
                for rows in column.chunks(len(states))
            ]
            total = total + torch.cat(factors)
        return total.float()

    def conditional_log_probs(self, column: int, states: Tensor, context: Tensor | None = None) -> Tensor:
        """Returns log P(state of a column = . | states before it, context) in nats, with shape (B, levels[column]).

        Arguments:
            column: Number of the column.
            states: The states (B, k), int64; only those before the column matter, the others may be missing.
            context: Conditioning variables (B, c), None if c = 0.

        Raises:
            ValueError: If a state before the column is out of range or a shape does not match.
        """
        if not 0 <= column < len(self.levels):
            raise ValueError(f"column must be from 0 to {len(self.levels) - 1}, got {column}")
        states = states[:, :column]
        context = self._scaled(_checked(states, self.levels[:column], context, self.context_dim))
        chosen = cast("Column", self.columns[column])
        return torch.cat([chosen(states[rows], context[rows]).float() for rows in chosen.chunks(len(states))])

    def sample(self, n: int, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draws states (n, k), int64.

        Arguments:
            n: Number of rows.
            context: Conditioning variables (n, c), None if c = 0.
            generator: Source of the random numbers; torch's global one if left out.

        Raises:
            ValueError: If the context does not match.
        """
        shape, device = (n, len(self.levels)), self.centre.device
        states = torch.zeros(shape, dtype=torch.int64, device=device)
        context = self._scaled(_checked(states, self.levels, context, self.context_dim))
        levels = torch.rand(shape, dtype=torch.float64, device=device, generator=generator)
        for number, column in self._varying:
            for rows in column.chunks(n):
                cumulative = column(states[rows], context[rows]).exp().cumsum(1)
                drawn = torch.searchsorted(cumulative, levels[rows, number, None].contiguous()).squeeze(1)
                states[rows, number] = drawn.clamp(max=self.levels[number] - 1)  # the last sum may round below 1
        return states

    def describe(self) -> dict[str, Any]:
        """Returns the structure without the numbers, as JSON values; `from_description` builds it again."""
        columns = cast("list[Column]", list(self.columns))
        return {
            "levels": list(self.levels),
            "context_dim": self.context_dim,
            "hidden": list(self.hidden),
            "parents": [list(column.parents) for column in columns],
            "learners": [list(column.learners) for column in columns],
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Masses:
        """Builds the structure from what `describe` returned; its numbers are still to be loaded."""
        return cls(**description)

    @classmethod
    def fit(
        cls,
        states: Tensor,
        levels: Sequence[int],
        context: Tensor | None = None,
        val_states: Tensor | None = None,
        val_context: Tensor | None = None,
        seed: int = 0,
        hidden: Sequence[int] = (64,),
        affordable: Callable[[], bool] = lambda: True,
    ) -> Masses:
        """Fits the probability to rows; the same rows and seed give the same result, in any mode of autograd.

        Arguments:
            states: The states (N, k), int64, N at least 1.
            levels: Number of states of each column.
            context: Conditioning variables (N, c), or None.
            val_states: States (V, k) that decide when the networks' training ends and how much each part of a mixture
                counts. If left out, the rows of the data take turns: what judges a part is not what it learnt from.
            val_context: Conditioning variables (V, c) of these rows.
            seed: Seed of the networks' first numbers and of the order of the rows.
            hidden: Widths of the networks' hidden layers.
            affordable: Function that is asked before every column whether there is time for networks and trees; a
                column without them has its tables alone.

        Raises:
            ValueError: If a state is out of range, a shape does not match or there are no rows.
        """
        with torch.inference_mode(False), torch.enable_grad():
            if context is not None and context.dim() != 2:
                raise ValueError(f"context must have shape ({len(states)}, c), got {tuple(context.shape)}")
            masses = cls(levels, 0 if context is None else context.shape[1], hidden)
            context = _checked(states, masses.levels, context, masses.context_dim)
            for name, some in (("states", states), ("val_states", val_states)):
                if some is not None and len(some) == 0:
                    raise ValueError(f"{name} must have at least one row, got none")
            masses.centre, masses.scale = _centre_and_scale(context.detach().cpu().double())
            rows, held = masses._copied(states, context), None
            if val_states is not None:
                val_context = _checked(val_states, masses.levels, val_context, masses.context_dim, "val_")
                held = masses._copied(val_states, val_context)
            generator = torch.Generator().manual_seed(seed)
            for number, column in masses._varying:
                learns = affordable()
                masses.columns[number] = Column.fit(rows, held, column.levels, masses.hidden, generator, learns)
            return masses.requires_grad_(False).eval().to(states.device)

    def _copied(self, states: Tensor, context: Tensor) -> Rows:
        """Returns rows on the CPU that autograd may save, whatever mode the caller's were made in."""
        return Rows(states.cpu().clone(), self._scaled(context.detach().cpu().clone()))

    @property
    def _varying(self) -> list[tuple[int, Column]]:
        """Returns the columns of more than one state with their numbers; the others contribute nothing."""
        columns = cast("list[Column]", list(self.columns))
        return [(number, column) for number, column in enumerate(columns) if self.levels[number] > 1]

    def _scaled(self, context: Tensor) -> Tensor:
        """Returns context (B, c) as float32, in units of its spread; what is far out is bounded and keeps its order."""
        scaled = ((context - self.centre) / self.scale).clamp(-1e6, 1e6).float()
        beyond = (scaled.abs() - FAR).clamp(min=0)
        return scaled.clamp(-FAR, FAR) + scaled.sign() * beyond / (1 + beyond / 2)


def _centre_and_scale(context: Tensor) -> tuple[Tensor, Tensor]:
    """Returns robust centres and scales (c,) of context (N, c): medians, and the distances of quartiles.

    Where the quartiles are equal, the scale is the median distance of the values that differ from the median.
    """
    ordered = context.sort(0).values
    low, centre, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    distance = (context - centre).abs()
    others = distance.where(distance > 0, torch.nan).nanmedian(0).values
    return centre, torch.where(high > low, (high - low) / 1.35, others.nan_to_num(1.0))


def _checked(
    states: Tensor, levels: Sequence[int], context: Tensor | None, context_dim: int, prefix: str = ""
) -> Tensor:
    """Returns the context (B, c), of no columns if there is none, and refuses what does not match."""
    if states.dim() != 2 or states.shape[1] != len(levels) or states.dtype != torch.int64:
        raise ValueError(
            f"{prefix}states must be int64 with shape (B, {len(levels)}), got {states.dtype} {tuple(states.shape)}"
        )
    wrong = (states < 0) | (states >= torch.tensor(levels, dtype=torch.int64, device=states.device))
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{prefix}states must be from 0 to {levels[column] - 1} in column {column}, "
            f"got {int(states[row, column])} in row {row} ({int(wrong.sum())} such values)"
        )
    if context is None and context_dim == 0:
        return torch.zeros(len(states), 0, dtype=torch.float32, device=states.device)
    got = None if context is None else tuple(context.shape)
    if context is not None and context_dim == 0:
        raise ValueError(f"{prefix}context must be None without conditioning variables, got {got}")
    if context is None or got != (len(states), context_dim):
        raise ValueError(f"{prefix}context must have shape {(len(states), context_dim)}, got {got}")
    finite = context.isfinite()
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"{prefix}context must be finite, got {context[row, column].item()} in row {row}, column {column}"
        )
    return context
