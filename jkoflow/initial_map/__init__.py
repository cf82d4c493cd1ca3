"""The initial map, which is fitted to the data in closed form before the first block is trained.

A Gaussian copula makes every column Gaussian, and then the correlations those of the base. A radial map makes the
distances from the centre those of the base. The blocks learn the rest, which needs a network.
"""

from jkoflow.initial_map.chain import RECIPES, STAGES, InitialMap
from jkoflow.initial_map.held_out import held_out_nll
from jkoflow.initial_map.marginals import CORE_SEARCH, Marginals, is_partial
from jkoflow.initial_map.radial import Radial
from jkoflow.initial_map.whiten import Whiten

__all__ = [
    "CORE_SEARCH",
    "RECIPES",
    "STAGES",
    "InitialMap",
    "Marginals",
    "Radial",
    "Whiten",
    "held_out_nll",
    "is_partial",
]
