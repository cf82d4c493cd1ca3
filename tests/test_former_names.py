"""What was called step_size in version 0.1 is called jko_step, and is accepted under both names."""

import dataclasses

import pytest
import torch

from jkoflow import Block, JKOFlow, MLPVelocity, TrainConfig, jko_loss
from jkoflow.former_names import PRESENT_NAMES, under_present_names
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


def test_settings_pickled_by_version_0_1_keep_their_values():
    config = TrainConfig()
    state = dict(config.__dict__)
    for former, present in PRESENT_NAMES.items():
        state[former] = 2 * state.pop(present)
    loaded = TrainConfig.__new__(TrainConfig)
    loaded.__setstate__(state)
    assert (loaded.jko_step, loaded.jko_step_growth, loaded.jko_step_max) == (1.0, 3.0, 10.0)


def test_modules_pickled_by_version_0_1_work():
    flow = JKOFlow(2, [Block(MLPVelocity(2, (8,)), 5, jko_step=0.7)], eval_num_steps=6)
    expected = flow.log_prob(torch.ones(3, 2))
    block, velocity = flow.stack[0], flow.stack[0].velocity
    states = [dict(module.__dict__) for module in (velocity, block, flow)]
    del states[0]["_built"]
    states[1]["num_steps"], states[1]["step_size"] = states[1].pop("_grid").num_steps, states[1].pop("jko_step")
    states[2]["eval_num_steps"] = states[2].pop("_eval_num_steps")
    for module, state in zip((velocity, block, flow), states, strict=True):
        module.__dict__.clear()
        module.__setstate__(state)
    assert (block.grid.num_steps, block.jko_step, flow.eval_num_steps) == (5, 0.7, 6)
    assert torch.equal(flow.log_prob(torch.ones(3, 2)), expected)
