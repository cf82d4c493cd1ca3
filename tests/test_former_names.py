"""What was called step_size in version 0.1 is called jko_step, and is accepted under both names."""

import dataclasses

import pytest
import torch

from jkoflow import Block, JKOFlow, MLPVelocity, TrainConfig, jko_loss
from jkoflow.former_names import under_present_names
from jkoflow.ops import jko_terms


def test_settings_take_both():
    former = TrainConfig(step_size=0.25, step_size_growth=2.0, step_size_max=3.0)
    assert former == TrainConfig(jko_step=0.25, jko_step_growth=2.0, jko_step_max=3.0)
    assert former == TrainConfig.from_mapping({"step_size": 0.25, "step_size_growth": 2.0, "step_size_max": 3.0})
    assert (former.step_size, former.step_size_growth, former.step_size_max) == (0.25, 2.0, 3.0)
    assert "step_size" not in former.to_mapping()
    assert dataclasses.replace(former, jko_step=0.5).step_size == 0.5


def test_both_at_once_are_refused():
    with pytest.raises(ValueError, match=r"jko_step must be given once, got it as step_size .* leave step_size out"):
        TrainConfig(step_size=0.5, jko_step=0.5)
    with pytest.raises(ValueError, match="jko_step_max must be given once"):
        TrainConfig.from_mapping({"jko_step_max": 1.0, "step_size_max": 1.0})


def test_blocks_and_losses_take_both():
    velocity, x = MLPVelocity(2, (8,)), torch.randn(5, 2)
    block = Block(velocity, step_size=0.5)
    assert block.jko_step == block.step_size == 0.5
    block.step_size = 2.0
    assert block.jko_step == 2.0
    for loss in (lambda **h: jko_loss(velocity, x, **h).total, lambda **h: jko_terms(x, 2 * x, x.sum(1), **h).total):
        assert torch.equal(loss(step_size=0.5), loss(jko_step=0.5))
    flow = JKOFlow(2, [Block(velocity, jko_step=h, movement=1.0 / h) for h in (1.0, 2.0)])
    former, present = (flow.reparametrize(**limit) for limit in ({"step_size_max": 1.2}, {"jko_step_max": 1.2}))
    assert [block.jko_step for block in former.stack] == [block.jko_step for block in present.stack]


def test_other_names_pass():
    assert under_present_names({"seed": 1, "step_size": 2}) == {"seed": 1, "jko_step": 2}
    with pytest.raises(TypeError, match="stepsize"):
        TrainConfig(stepsize=1.0)
