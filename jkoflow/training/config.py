"""The settings of a training run, with their ranges and defaults."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from jkoflow.activation import parse_activation
from jkoflow.former_names import FORMER_AUTO, accepts_former_names, attribute, of_earlier_run, under_present_names
from jkoflow.initial_map import RECIPES
from jkoflow.memory_limit import MemoryLimit
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.training.optimizer.rates import OPTIMIZERS
from jkoflow.training.run_plan import FIRST_WIDTH

MOST_UNITS = 2**16
"""Largest width of a hidden layer."""

MOST_COUNT, LARGEST = 2**63 - 1, 1e30
"""Largest whole number, and largest finite number, that a setting may be: counters and float32 end beyond these."""

DEFAULT_BLOCKS = 4
"""Largest number of blocks unless the settings name another."""


class Range(NamedTuple):
    """The range of values that a setting allows, in words and as a test."""

    words: str
    """End of the sentence that begins with "it must"."""
    holds: Callable[[Any], bool]
    """Function that tells whether a value, which is not None, is allowed."""


AT_LEAST_ONE = Range("be at least 1", lambda value: value >= 1)
POSITIVE = Range("be positive and finite", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Range("not be negative", lambda value: value >= 0)
PARTS = Range("be from 1 to 1024", lambda value: 1 <= value <= 1024)
BELOW_ONE = Range("be at least 0 and less than 1", lambda value: 0 <= value < 1)


def ranged(default: Any, allowed: Range) -> Any:
    """Returns the dataclass field of a setting; None is allowed beside the range if the setting's type has it."""
    return dataclasses.field(default=default, metadata={"range": allowed})


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run; the same settings, data and thread count give the same numbers.

    Arguments:
        seed: Seed of the first parameters and of the order of the rows.
        device: Where to train: ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        initial_map: What is fitted in closed form before the first block (`jkoflow.initial_map.RECIPES`). ``"auto"``
            whitens, with splines before or a radial map behind where rows that are held out gain from these
            (`jkoflow.training.choose_map`); ``"auto-0.1"`` chooses as version 0.1 did. A given ``start`` keeps its own.
        hidden: Widths of the velocity's hidden layers. None means two of 128, and under a time budget two as wide as
            its plan has (`jkoflow.training.run_plan.width_within`).
        activation: The velocity's activation, see `jkoflow.MLPVelocity`.
        linear: Whether the velocity has the linear term A x.
        first_layer_scale: Factor of the initial weights in the first layer of the first block: the larger, the finer
            the details that it begins with. None means that it is measured on the data
            (`jkoflow.training.first_layer`).
        time: Whether the velocity depends on time.
        method: Runge-Kutta method, see `jkoflow.integrate`.
        num_steps: Runge-Kutta steps per block that training begins with; the guard may raise them for a block, and
            lower them again. None means 2 to 6, the more, the finer the details that the data can have
            (`jkoflow.training.first_layer.first_steps`), and two more in a long training on fine details.
        max_blocks: Largest number of blocks, the free one included. None means 4, and under a time budget what its plan
            has (`jkoflow.training.run_plan.plan_run`): a single free block, which a longer budget divides.
        free_block: Whether the last block is trained without the movement penalty (h = inf).
        jko_step: JKO step size h of the first block.
        jko_step_growth: Factor from one block's JKO step size to that of the next block.
        jko_step_max: Upper bound of the JKO step sizes.
        reparam_rounds: Rounds of reparametrisation after the first training: the JKO step sizes change towards equal
            movements, with ``jko_step_max`` as their bound, and all blocks are trained again from where they are.
        reparam_damping: How far a round takes the JKO step sizes towards those of equal movements, at most 1.
        refine: Number of blocks that every block is divided into at the end, each then trained again with its share of
            the JKO step size; 1 means none. A round that leaves the validation NLL no better is undone.
        finetune: Share of the training (of a time budget, or of the work that the iterations are) that goes to a last
            round, in which all blocks are trained together, end to end, on the likelihood. 0 means no such round. It is
            undone like the others if it gains nothing. None means what a time budget's plan has
            (`jkoflow.training.run_plan.plan_run`), and 0 under any other or without one.
        divide: Number of blocks that every block is divided into before all are trained together, each for a part of
            the block's time interval and with a velocity of its own. None means what a time budget's plan has, and 1
            without one.
        movement_tolerance: A block whose movement (standardised units) is less ends the chain; the free block follows.
        gain_tolerance: A block that lowers the validation NLL by less (nats) ends the chain; the free block follows.
        batch_size: Rows per iteration.
        iterations_per_block: Iterations per block; not used with a time budget.
        time_budget: Seconds for the whole of `jkoflow.train`, evaluation included; None means no limit. Iterations
            are planned from the measured speed, so that another machine trains longer or shorter.
        optimizer: How parameters are updated. ``"muon"`` and ``"soap"`` are for the matrices of the velocity's layers,
            and take Adam for biases and the linear term; ``"adam"`` takes it for everything.
        learning_rate: Peak learning rate of the matrices, reached after the warm-up and left along a cosine. The rate
            of biases and linear term changes by the same factor. None means the optimiser's own
            (`jkoflow.training.optimizer.peak_rates`).
        weight_decay: Every update of ``"muon"`` takes this share of the learning rate off the matrices, those of first
            layers excepted. The other optimisers have none.
        warmup: Iterations of linear warm-up at the start of every block (a fifth of the block at most).
        beta1: Decay of Adam's mean of gradients.
        beta2: Decay of Adam's mean of squared gradients.
        clip_norm: Gradients longer than this are scaled down to it; not used by ``"muon"``, whose steps do not depend
            on the gradient's length.
        validate_every: Iterations between two looks at the validation loss, by which a block's parameters are chosen.
        val_rows: Validation rows for the validation loss and the evaluation's calibration; all if there are fewer.
        guard: Whether to watch the integrator (see `jkoflow.training.guard`).
        guard_every: Iterations between two guard checks; every validation is preceded by one, too.
        guard_rows: Validation rows of a guard check.
        guard_nll: Mean absolute difference (nats) of a block's NLL between num_steps and twice as many that is allowed,
            for rows of up to ten columns; more for more (`jkoflow.training.guard.guard_tolerances`).
        guard_round_trip: Mean distance (standardised units) between x and the end of its way through a block and back
            that is allowed for rows of up to ten columns; more for more, as with ``guard_nll``.
        max_num_steps: Runge-Kutta steps per block beyond which the guard ends the block instead of raising them.
        save_seconds: Seconds between two saves of the state that a killed run resumes from.
        memory: Memory that the whole process may take on the CPU, such as ``"2GB"``. Rows of a file or an array that
            need more lie in scratch files, which the process reads in parts (docs/large_data.md); others are trained on
            as without a limit. None means no limit.

    Raises:
        ValueError: If a value is out of its range; the message names it.

    Example:
        >>> TrainConfig(max_blocks=4, hidden=(64, 64)).hidden
        (64, 64)
    """

    seed: int = ranged(0, NOT_NEGATIVE)
    device: str = "cpu"
    initial_map: str = "auto"
    hidden: tuple[int, ...] | None = None
    activation: str = "tanh"
    linear: bool = True
    first_layer_scale: float | None = ranged(None, POSITIVE)
    time: bool = True
    method: str = "rk4"
    num_steps: int | None = ranged(None, AT_LEAST_ONE)
    max_blocks: int | None = ranged(None, AT_LEAST_ONE)
    free_block: bool = True
    jko_step: float = ranged(0.5, POSITIVE)
    jko_step_growth: float = ranged(1.5, AT_LEAST_ONE)
    jko_step_max: float = 5.0
    reparam_rounds: int = ranged(0, NOT_NEGATIVE)
    reparam_damping: float = ranged(0.5, Range("be greater than 0 and at most 1", lambda value: 0 < value <= 1))
    refine: int = ranged(1, PARTS)
    finetune: float | None = ranged(None, BELOW_ONE)
    divide: int | None = ranged(None, PARTS)
    movement_tolerance: float = ranged(0.01, NOT_NEGATIVE)
    gain_tolerance: float = ranged(0.002, Range("be a number", lambda value: not math.isnan(value)))
    batch_size: int = ranged(250, AT_LEAST_ONE)
    iterations_per_block: int = ranged(1000, AT_LEAST_ONE)
    time_budget: float | None = ranged(
        None, Range("be positive and finite, or None", lambda value: 0 < value < math.inf)
    )
    optimizer: str = "muon"
    learning_rate: float | None = ranged(None, POSITIVE)
    weight_decay: float = ranged(0.3, NOT_NEGATIVE)
    warmup: int = ranged(50, NOT_NEGATIVE)
    beta1: float = ranged(0.9, BELOW_ONE)
    beta2: float = ranged(0.99, BELOW_ONE)
    clip_norm: float = ranged(1.0, POSITIVE)
    validate_every: int = ranged(50, AT_LEAST_ONE)
    val_rows: int = ranged(5000, AT_LEAST_ONE)
    guard: bool = True
    guard_every: int = ranged(50, AT_LEAST_ONE)
    guard_rows: int = ranged(500, AT_LEAST_ONE)
    guard_nll: float = ranged(0.1, POSITIVE)
    guard_round_trip: float = ranged(0.1, POSITIVE)
    max_num_steps: int = 24
    save_seconds: float = ranged(30.0, NOT_NEGATIVE)
    memory: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.hidden, list):  # TOML and JSON give lists
            object.__setattr__(self, "hidden", tuple(self.hidden))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _check_type(field.name, field.type, value)
            allowed: Range | None = field.metadata.get("range")
            if allowed is not None and value is not None and not allowed.holds(value):
                raise ValueError(f"{field.name} must {allowed.words}, got {value}")
        if self.initial_map not in ("auto", FORMER_AUTO, *RECIPES):
            raise ValueError(f"initial_map must be auto or one of {', '.join(RECIPES)}, got {self.initial_map!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        parse_activation(self.activation)
        if self.memory is not None:
            MemoryLimit.parse(self.memory)
        if self.method not in TABLEAUX:
            raise ValueError(f"method must be one of {', '.join(TABLEAUX)}, got {self.method!r}")
        if self.hidden is not None and not (self.hidden and 1 <= min(self.hidden) <= max(self.hidden) <= MOST_UNITS):
            raise ValueError(f"hidden must list one or more widths from 1 to {MOST_UNITS}, got {self.hidden}")
        for name, least in (("jko_step_max", self.jko_step), ("max_num_steps", self.num_steps or 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes what was pickled, in version 0.1, too."""
        self.__dict__.update(of_earlier_run(state))

    step_size = attribute("jko_step")
    step_size_growth = attribute("jko_step_growth")
    step_size_max = attribute("jko_step_max")

    @property
    def most_blocks(self) -> int:
        """Returns ``max_blocks``, or `DEFAULT_BLOCKS` if it is None."""
        return DEFAULT_BLOCKS if self.max_blocks is None else self.max_blocks

    @property
    def first_hidden(self) -> tuple[int, ...]:
        """Returns ``hidden``, or two layers of `FIRST_WIDTH` if it is None."""
        return (FIRST_WIDTH, FIRST_WIDTH) if self.hidden is None else self.hidden

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> Self:
        """Builds a configuration from names and values, such as a TOML file's; the rest keeps its defaults.

        Raises:
            ValueError: If a name is unknown or a value has the wrong type or is out of range.
        """
        settings = under_present_names(settings)
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                raise ValueError(f"unknown setting {name!r}; the settings are {', '.join(known)}")
        return cls(**settings)

    def to_mapping(self) -> dict[str, Any]:
        """Returns names and values as TOML and JSON can hold them; a setting that is None is left out."""
        values = dataclasses.asdict(self)
        values["hidden"] = None if self.hidden is None else list(self.hidden)
        return {name: value for name, value in values.items() if value is not None}


TrainConfig.__init__ = accepts_former_names(TrainConfig.__init__)


def _check_type(name: str, annotation: Any, value: Any) -> None:
    # annotations are strings here; bool is an int in Python but not in a configuration
    number = isinstance(value, int | float) and not isinstance(value, bool)
    integer = number and isinstance(value, int)
    fits = {
        "int": integer,
        "int | None": integer or value is None,
        "float": number,
        "float | None": number or value is None,
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
        "str | None": isinstance(value, str) or value is None,
        "tuple[int, ...] | None": value is None
        or (isinstance(value, tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)),
    }
    if not fits[annotation]:
        expected = "integers" if annotation.startswith("tuple") else annotation.removesuffix(" | None")
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    if isinstance(value, int | float) and number:
        most = MOST_COUNT if annotation.startswith("int") else LARGEST
        if abs(value) > most and not math.isinf(value if isinstance(value, float) else 0.0):
            raise ValueError(f"{name} must be at most {most:.3g} in size, got {str(value)[:40]}")
