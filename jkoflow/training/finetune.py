"""Fine-tuning: the blocks of a finished chain trained together, end to end, on the likelihood.

Each block was trained for what is best for itself, after blocks that did not know of it. Together they can do better,
and they begin where an end-to-end flow from scratch takes long to come.
"""

from __future__ import annotations

from jkoflow.training.chain import Chain
from jkoflow.training.fit import BlockFit

RATE_SHARE = 0.5
"""Peak learning rate, as a share of that of a block on its own."""


class ChainFit(BlockFit):
    """The training of a chain, like that of a block; the chain as it comes is the first candidate.

    ``block`` is a `Chain` and ``samples`` are those that enter its first block.
    """

    def _begin(self) -> None:
        pass  # the loop looks at the chain as it comes before the first iteration

    def _soften_start(self) -> str | None:
        return None  # it was trained for these samples: more steps are what it lacks

    def _choose_rate(self) -> float:
        return RATE_SHARE * super()._choose_rate()

    def _choose_tolerances(self) -> tuple[float, float]:
        # every block has passed with its own
        assert isinstance(self.block, Chain)
        nll, round_trip = super()._choose_tolerances()
        return len(self.block.blocks) * nll, len(self.block.blocks) * round_trip

    def _choose_iterations(self) -> int:
        # an iteration takes as long as one of every block
        share = self.config.finetune or 0.0  # without a time budget there is no such round unless it is set
        return max(1, round(super()._choose_iterations() * share / (1 - share)))
