"""Fine-tuning: a chain is one free block, and training it betters what its blocks have reached one by one."""

import copy
import dataclasses
import json
import math

import pytest
import torch

from jkoflow import Block, JKOFlow, TrainConfig, train
from jkoflow.data import draw, split_rows
from jkoflow.ops import Fixed, jko_terms
from jkoflow.training import round_trainer
from jkoflow.training.chain import Chain
from jkoflow.training.fit import Fit
from jkoflow.training.guard import Tolerances
from jkoflow.training.progress import Silent
from jkoflow.training.recipe import recipe_of_block, recipe_of_chain
from oracles import random_velocity

SMALL = TrainConfig(
    initial_map="none", hidden=(16, 16), max_blocks=3, iterations_per_block=60, batch_size=400, learning_rate=0.02,
    val_rows=1000, validate_every=20, gain_tolerance=-9.0, movement_tolerance=0.0, jko_step=0.3, finetune=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return split_rows(draw("rose", 4000, seed=0))


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    """A fine-tuned run."""
    path = tmp_path_factory.mktemp("finetune")
    return train(rows, SMALL, run_dir=path), path


def blocks_of(*steps, context=0):
    return [
        Block(random_velocity(2, linear=True, scale=0.7, seed=k, context_dim=context), n, jko_step=0.5)
        for k, n in enumerate(steps)
    ]


def history(path, event):
    records = (json.loads(line) for line in (path / "history.jsonl").read_text().splitlines())
    return [record for record in records if record["event"] == event]


# ------------------------------------------------------------------------------------------------------------ the chain


@pytest.mark.parametrize("context", [0, 2])
def test_a_chain_is_its_blocks_one_after_the_other(context):
    blocks, x = blocks_of(4, 2, 1, context=context), torch.randn(30, 2).double()
    given = torch.randn(30, context).double() if context else None
    y, logdet = Chain(blocks)(x, given, Fixed(8))
    expected, total = x, 0
    for block, steps in zip(blocks, (8, 4, 2), strict=True):
        expected, increment = block(expected, given, steps)
        total = total + increment
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    torch.testing.assert_close(logdet, total)
    torch.testing.assert_close(Chain(blocks).carry(x, given, Fixed(8)), y, rtol=0, atol=1e-12)
    back = Chain(blocks).carry(y, given, Fixed(64), inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-3)


def test_its_objective_is_that_of_a_free_block():
    chain, x = Chain(blocks_of(2, 1, 1)), torch.randn(50, 2).double()
    terms = chain.jko_loss(x)
    terms.total.backward()
    gradients = [p.grad.clone() for p in chain.parameters()]
    for parameter in chain.parameters():
        parameter.grad = None
    expected = jko_terms(x, *chain(x), math.inf)
    expected.total.backward()
    for a, b in zip(terms, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert len(gradients) == sum(1 for _ in chain.parameters()) > 0
    for gradient, parameter in zip(gradients, chain.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
        assert gradient.abs().max() > 0


def test_steps_keep_their_proportion():
    blocks = blocks_of(8, 2, 1)
    chain = Chain(blocks)
    seen = []
    for steps in (16, 8, 4, 2, 16):
        chain.grid = Fixed(steps)
        assert chain.grid == Fixed(steps)
        seen.append([block.num_steps for block in blocks])
    assert seen == [[16, 4, 2], [8, 2, 1], [4, 1, 1], [2, 1, 1], [16, 4, 2]]


def test_its_description_knows_the_proportion_too():
    chain = Chain(blocks_of(8, 1))
    chain.grid = Fixed(4)
    again = Chain.from_description(json.loads(json.dumps(chain.describe())))
    again.grid = Fixed(8)
    assert [block.num_steps for block in again.blocks] == [8, 1]
    assert [block.describe() for block in chain.blocks] == chain.describe()["blocks"]


# --------------------------------------------------------------------------------------------------------- a real run


def test_it_betters_the_flow(run, rows):
    flow, path = run
    build, finetune = json.loads((path / "metrics.json").read_text())["rounds"]
    assert (build["kind"], finetune["kind"], finetune["kept"]) == ("build", "finetune", True)
    assert finetune["val_nll"] < build["val_nll"] - 0.01
    assert finetune["step_sizes"] == build["step_sizes"] == [0.3, 0.3 * 1.5, None]
    measured = JKOFlow.load(path).measure_movements(rows.train)
    assert [block.movement for block in flow.stack] == finetune["movements"] == pytest.approx(measured, rel=1e-3)
    assert finetune["movements"] != build["movements"]


def test_the_record_tells_it_from_a_block(run):
    _, path = run
    (end,) = (record for record in history(path, "block") if record["round"] == 1)
    assert (end["block"], end["step_size"], end["iterations"]) == (0, None, 60)  # half of the work
    assert end["val_nll"] == history(path, "round")[1]["val_nll"]
    assert {(r["block"], r["movement"]) for r in history(path, "iteration") if r["round"] == 1} == {(0, 0.0)}
    first = next(r for r in history(path, "validation") if r["round"] == 1)
    assert first["nll"] == pytest.approx(history(path, "round")[0]["val_nll"], abs=1e-5)  # it goes on from there


def test_the_report_shows_it(run):
    from jkoflow.report import render
    from jkoflow.report.results import read_results

    text = render(read_results(run[1]))
    assert "all, together" in text
    assert "2: finetune" in text


def test_one_block_alone_is_not_trained_twice(rows, tmp_path):
    config = dataclasses.replace(SMALL, max_blocks=1, iterations_per_block=5)
    train(rows, config, run_dir=tmp_path)
    assert [record["kind"] for record in history(tmp_path, "round")] == ["build"]


def test_it_is_undone_if_it_gains_nothing(rows, tmp_path, monkeypatch):
    run = Fit.run

    def ruin(fit):
        if fit.recipe.alone is not None:
            run(fit)
            return
        with torch.no_grad():
            fit.optimizer.parameters.mul_(0.5)

    monkeypatch.setattr(Fit, "run", ruin)
    flow = train(rows, dataclasses.replace(SMALL, iterations_per_block=20), run_dir=tmp_path)
    build, finetune = history(tmp_path, "round")
    assert not finetune["kept"]
    assert [block.movement for block in flow.stack] == build["movements"]


def test_the_guard_watches_the_chain(rows, tmp_path, monkeypatch):
    """Tolerances that the blocks' steps do not pass: they are raised, in all blocks, and training goes on."""
    recipe_of_chain = round_trainer.recipe_of_chain

    def strict(*args):
        return recipe_of_chain(*args)._replace(tolerances=Tolerances(1e-7, 1e-7))

    monkeypatch.setattr(round_trainer, "recipe_of_chain", strict)
    train(rows, dataclasses.replace(SMALL, iterations_per_block=30), run_dir=tmp_path)
    events = [record for record in history(tmp_path, "guard") if record["round"] == 1]
    assert events
    assert {record["block"] for record in events} == {0}
    assert events[0]["action"] == "raised"
    built, tuned = history(tmp_path, "round")
    assert all(fine > coarse for coarse, fine in zip(built["num_steps"], tuned["num_steps"], strict=True))


def test_a_chain_may_be_off_as_much_as_its_blocks_together():
    config = dataclasses.replace(SMALL, guard_nll=0.01, guard_round_trip=0.03)
    blocks = blocks_of(2, 1, 1)
    assert recipe_of_block(blocks[0], config, 2).tolerances == (0.01, 0.03)
    of_chain = recipe_of_chain(Chain(blocks), config, 2, scale=1.0, share=0.5, divided=False)
    assert of_chain.tolerances == (0.03, pytest.approx(0.09))


def test_a_divided_block_goes_on_where_its_learning_rate_ended():
    chain = Chain(blocks_of(1, 1))
    config = dataclasses.replace(SMALL, num_steps=2, weight_decay=0.1, iterations_per_block=300)
    before = recipe_of_block(chain.blocks[0], config, 2, scale=4.0, end=0.25)
    after = recipe_of_chain(chain, config, 2, scale=4.0, share=0.75, divided=True)
    built = recipe_of_chain(chain, config, 2, scale=4.0, share=0.75, divided=False)
    assert (before.span, after.span, built.span) == ((0.0, 0.25), (0.25, 1.0), (0.0, 1.0))
    assert before.peak_rates == after.peak_rates == built.peak_rates.times(2)
    assert before.weight_decay == after.weight_decay == pytest.approx(0.025)
    assert after.iterations == 900, "three quarters of the work"
    assert [after.rate_share(cost) for cost in (1, 2, 8)] == [1.0, 1.0, 0.5]
    assert [built.rate_share(cost) for cost in (2, 4, 16)] == [1.0, 1.0, 0.5]


def test_a_single_block_is_divided_and_trained_on(rows, tmp_path):
    config = dataclasses.replace(SMALL, max_blocks=1, divide=3, num_steps=3, finetune=0.6)
    flow = train(rows, config, run_dir=tmp_path)
    build, together = history(tmp_path, "round")
    assert (build["kind"], build["blocks"], together["kind"], together["blocks"]) == ("build", 1, "finetune", 3)
    assert [(block.t0, block.t1) for block in flow.blocks] == [
        (0.0, pytest.approx(1 / 3)), (pytest.approx(1 / 3), pytest.approx(2 / 3)), (pytest.approx(2 / 3), 1.0)
    ]  # fmt: skip
    rates = [record["learning_rate"] for record in history(tmp_path, "iteration") if record["round"] == 0]
    first, *_ = [record for record in history(tmp_path, "validation") if record["round"] == 1]
    assert first["nll"] == pytest.approx(build["val_nll"], abs=0.02), "dividing changes nothing"
    assert together["val_nll"] < build["val_nll"]
    assert rates[-1] > 0.5 * max(rates), "the curve is cut where the block is divided"


def test_a_chain_has_no_jko_step_of_its_own():
    with pytest.raises(ValueError, match="jko_step must be inf for a chain"):
        Chain(blocks_of(1, 1)).jko_loss(torch.randn(5, 2).double(), None, 0.5)


def test_a_conditional_flow_is_fine_tuned(tmp_path):
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(2000, 1, generator=generator)
    x = context + 0.3 * torch.randn(2000, 1, generator=generator)
    config = dataclasses.replace(SMALL, max_blocks=2, iterations_per_block=40)
    train(x, config, context=context, run_dir=tmp_path)
    assert [(r["kind"], r["kept"]) for r in history(tmp_path, "round")] == [("build", True), ("finetune", True)]


def test_a_time_budget_leaves_its_share(rows, tmp_path):
    """Iterations are planned from measured times, so only that there are some of both is certain."""
    config = dataclasses.replace(SMALL, time_budget=6.0, max_blocks=2)
    train(rows, config, run_dir=tmp_path)
    build, finetune = history(tmp_path, "round")
    assert finetune["kind"] == "finetune"
    assert build["seconds"] > 0
    (end,) = (record for record in history(tmp_path, "block") if record["round"] == 1)
    assert end["iterations"] > 10


class Listener(Silent):
    def __init__(self):
        self.blocks = []

    def start_round(self, number, kind, blocks):
        self.kind = kind

    def start_block(self, block, iterations):
        self.blocks.append((self.kind, block))


def test_progress_is_told(rows):
    listener = Listener()
    train(rows, dataclasses.replace(SMALL, iterations_per_block=5, max_blocks=2), progress=listener)
    assert listener.blocks == [("build", 0), ("build", 1), ("finetune", 0)]


def test_training_a_chain_leaves_the_flow_before_alone(rows):
    base = train(rows, dataclasses.replace(SMALL, finetune=0.0, iterations_per_block=20))
    before = copy.deepcopy(base.state_dict())
    train(rows, dataclasses.replace(SMALL, iterations_per_block=10), start=base)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_wrong_share_is_refused(share):
    with pytest.raises(ValueError, match=r"finetune must be at least 0 and less than 1"):
        dataclasses.replace(SMALL, finetune=share)
