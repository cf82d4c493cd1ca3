"""The rounds of a training run, which build a chain block by block, then reparametrise, refine and fine-tune it.

A round trains all blocks of a chain once, one after the other or, to fine-tune them, together. The first adds blocks
until the chain ends, or trains those of a given flow; every later one begins with the blocks of the best flow so far
and ends with a better flow, or is undone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jkoflow import schedule
from jkoflow.block import Block
from jkoflow.flow import JKOFlow
from jkoflow.gain import Gain
from jkoflow.metrics import Movement
from jkoflow.training.config import TrainConfig
from jkoflow.training.fit import Fit
from jkoflow.training.run_plan import RunPlan

START, BUILD, RETRAIN, REPARAMETRIZE, REFINE = "start", "build", "retrain", "reparametrize", "refine"
"""Kinds of rounds: take a given flow as it is, build the chain, train its blocks again, train them again with other
JKO step sizes, train more blocks."""

FINETUNE = "finetune"
"""The last kind of round: train all blocks at once, on the likelihood."""


def next_kind(rounds: Sequence[Mapping[str, Any]], config: TrainConfig, finetune: bool, divide: int = 1) -> str | None:
    """Returns the kind of the next round, given the records of the rounds that have ended; None at the end of the run.

    A round of reparametrisation that gained nothing is the last of its kind, since the next would have the same
    JKO step sizes. ``finetune`` tells whether a last round is to train all blocks at once, and ``divide`` the number
    that every block is divided into before.
    """
    if not rounds:
        return BUILD
    if rounds[-1]["kind"] == START:
        return RETRAIN
    kinds = [record["kind"] for record in rounds]
    if FINETUNE in kinds:
        return None
    kept = last_kept(rounds)
    penalised = sum(h is not None for h in kept["step_sizes"])
    stuck = kinds[-1] == REPARAMETRIZE and not rounds[-1]["kept"]
    # one penalised block alone has nothing to share with
    if REFINE not in kinds and not stuck and penalised > 1 and kinds.count(REPARAMETRIZE) < config.reparam_rounds:
        return REPARAMETRIZE
    if config.refine > 1 and REFINE not in kinds:
        return REFINE
    # a single block has no other to do better with
    return FINETUNE if finetune and kept["blocks"] * divide > 1 else None


def has_converged(
    movements: Sequence[float], val_nlls: Sequence[float], movement_tolerance: float, gain_tolerance: float
) -> bool:
    """Tells whether the last block did so little that no further one is worth its cost.

    Arguments:
        movements: Movement of every block so far.
        val_nlls: Validation NLL in nats before the first block and after every block, one more than the movements.
        movement_tolerance: A block that moves less than this ends the chain.
        gain_tolerance: A block that lowers the validation NLL by less than this ends the chain.

    Returns:
        True if the last block is under either tolerance; False before the first block.

    Raises:
        ValueError: If the lengths do not fit together.
    """
    if len(val_nlls) != len(movements) + 1:
        raise ValueError(
            f"val_nlls must have {len(movements) + 1} entries, one more than movements, got {len(val_nlls)}"
        )
    if not movements:
        return False
    return movements[-1] < movement_tolerance or val_nlls[-2] - val_nlls[-1] < gain_tolerance


def next_jko_step(
    summaries: Sequence[Mapping[str, Any]], first_nll: float, most_blocks: int, config: TrainConfig
) -> float | None:
    """Returns the JKO step size of the next block of a chain that is built, inf for the free one; None at its end.

    Arguments:
        summaries: The records of the blocks so far.
        first_nll: Validation NLL before the first block, in nats on standardised columns.
        most_blocks: Largest number of blocks.
        config: Settings.
    """
    done = len(summaries)
    if done and summaries[-1]["step_size"] is None:
        return None
    converged = has_converged(
        [summary["movement"] for summary in summaries],
        [first_nll, *(summary["val_nll"] for summary in summaries)],
        config.movement_tolerance,
        config.gain_tolerance,
    )
    if done == most_blocks or (converged and not config.free_block):
        return None
    if config.free_block and (converged or done == most_blocks - 1):
        return math.inf
    return schedule.jko_step(done, config.jko_step, config.jko_step_growth, config.jko_step_max)


def last_kept(rounds: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns the record of the round that the best flow is from."""
    return next(record for record in reversed(rounds) if record["kept"])


def finetune_share(config: TrainConfig, plan: RunPlan | None) -> float:
    """Returns the share of the training for fine-tuning: the setting if there is one, else the planned share."""
    if config.finetune is not None:
        return config.finetune
    return 0.0 if plan is None else plan.finetune


def divide(config: TrainConfig, plan: RunPlan | None) -> int:
    """Returns the number of blocks that every block is divided into before the fine-tuning."""
    if config.divide is not None:
        return config.divide
    return 1 if plan is None else plan.divide


def is_divided_single(config: TrainConfig, plan: RunPlan | None) -> bool:
    """Tells whether the run is one block that is trained, divided and trained on along one curve of learning rates."""
    blocks = config.most_blocks if plan is None else plan.blocks
    plain = config.reparam_rounds == 0 and config.refine == 1 and config.free_block
    return plain and blocks == 1 and finetune_share(config, plan) > 0 and divide(config, plan) > 1


def rounds_after(kind: str, rounds: Sequence[Mapping[str, Any]], config: TrainConfig) -> int:
    """Returns how many rounds of single blocks may follow the present one, so that time is left for them."""
    if kind in (REFINE, FINETUNE):
        return 0
    done = sum(record["kind"] == REPARAMETRIZE for record in rounds) + (kind == REPARAMETRIZE)
    return max(0, config.reparam_rounds - done) + (config.refine > 1)


def warm_blocks(kind: str, flow: JKOFlow, config: TrainConfig, plan: RunPlan | None = None) -> list[Block]:
    """Returns the blocks that a round other than the first begins with: copies with the round's JKO step sizes."""
    if kind == REPARAMETRIZE:
        flow = flow.reparametrize(config.reparam_damping, config.jko_step_max)
    elif kind == REFINE:
        flow = flow.refine(config.refine)
    elif kind == FINETUNE:
        flow = flow.refine(divide(config, plan))
    else:
        flow = flow.with_blocks([copy.deepcopy(block) for block in flow.stack])
    sizes = [block.jko_step for block in flow.stack]
    if kind != FINETUNE:  # which keeps them to tell what the blocks were trained with one by one
        sizes = schedule.penalised_jko_steps(sizes, config.jko_step)
    for block, size in zip(flow.stack, sizes, strict=True):
        block.jko_step = size
        block.requires_grad_(True)
    return flow.stack


def summary(number: int, fit: Fit, moved: Movement, val_nll: float, seconds: float) -> dict[str, Any]:
    """Returns the history's record of a block that has ended, or of a chain under the number of its first block.

    Arguments:
        number: Number of the round, from 0.
        fit: The training of the block or chain.
        moved: Movement of the training rows in the block or chain.
        val_nll: Validation NLL with the block or chain, in nats on standardised columns.
        seconds: Seconds that the fit took.
    """
    jko_step = fit.recipe.objective.jko_step
    return {
        "event": "block",
        "round": number,
        "block": fit.index,
        "step_size": None if math.isinf(jko_step) else jko_step,
        "num_steps": fit.block.grid.num_steps,
        "iterations": fit.counters.iteration,
        "movement": moved.value,
        "movement_stderr": moved.stderr,
        "train_rows": fit.counters.kept_rows,
        "val_nll": val_nll,
        "seconds": seconds,
    }


def record(
    number: int,
    kind: str,
    blocks: Sequence[Block],
    movements_stderr: Sequence[float],
    val_nll: float,
    gain: Gain | None,
    seconds: float,
) -> dict[str, Any]:
    """Returns the history's record of a round that has ended.

    Arguments:
        number: Number of the round, from 0.
        kind: Kind of the round.
        blocks: The blocks at the end of the round.
        movements_stderr: Standard errors of the blocks' movements.
        val_nll: Validation NLL with these blocks, in nats on standardised columns.
        gain: What the validation rows gain from the best flow before to this one; None for the first round.
        seconds: Seconds that the round took.

    Returns:
        Names and values; ``kept`` is False if the gain is not clear, as few rows gain by chance.
    """
    return {
        "event": "round",
        "round": number,
        "kind": kind,
        "blocks": len(blocks),
        "step_sizes": [None if math.isinf(block.jko_step) else block.jko_step for block in blocks],
        "num_steps": [block.num_steps for block in blocks],
        "movements": [block.movement for block in blocks],
        "movements_stderr": list(movements_stderr),
        "movement_spread": movement_spread(blocks),
        "val_nll": val_nll,
        "kept": gain is None or gain.is_clear,
        "seconds": seconds,
    }


def movement_spread(blocks: Sequence[Block]) -> float | None:
    """Returns the standard deviation of the penalised blocks' movements over their mean; None for fewer than two."""
    movements = [block.movement or 0.0 for block in blocks if not math.isinf(block.jko_step)]
    spread = schedule.relative_spread(movements)
    return spread if len(movements) > 1 and math.isfinite(spread) else None
