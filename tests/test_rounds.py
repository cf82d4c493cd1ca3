"""Reparametrisation and refinement: the same map before training, a better flow after it, or the old one."""

import dataclasses
import json
import math
from itertools import pairwise

import pytest
import torch

from jkoflow import Block, JKOFlow, TrainConfig, checkpoint, train
from jkoflow.data import draw, split_rows
from jkoflow.schedule import relative_spread
from jkoflow.training import rounds
from jkoflow.training.fit import Fit
from jkoflow.training.progress import Silent
from jkoflow.training.pushed import Batches
from oracles import random_velocity

SMALL = TrainConfig(
    initial_map="none", first_layer_scale=1.0, hidden=(16, 16), max_blocks=4, iterations_per_block=80, batch_size=400,
    optimizer="adam", learning_rate=0.02, val_rows=1000, validate_every=20, gain_tolerance=-9.0,
    movement_tolerance=0.0, free_block=False, jko_step=0.3,
)  # fmt: skip


class Listener(Silent):
    def __init__(self):
        self.rounds, self.messages = [], []

    def start_round(self, number, kind, blocks):
        self.rounds.append((number, kind, blocks))

    def message(self, text):
        self.messages.append(text)


@pytest.fixture(scope="module")
def rows():
    return split_rows(draw("rose", 4000, seed=0))


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    """A run of two reparametrisations and a refinement, with what it told."""
    path, listener = tmp_path_factory.mktemp("rounds"), Listener()
    config = dataclasses.replace(SMALL, reparam_rounds=2, reparam_damping=1.0, refine=2)
    return train(rows, config, run_dir=path, progress=listener), path, listener


@pytest.fixture(scope="module")
def base(rows):
    return train(rows, SMALL)


def random_flow(num_steps=4, **options):
    blocks = [
        Block(
            random_velocity(2, linear=True, scale=0.9, seed=k), num_steps, t0=0.5 * k, t1=0.5 * k + 0.8, jko_step=h,
            movement=0.5**k,
        )
        for k, h in enumerate((0.5, 1.0, math.inf))
    ]  # fmt: skip
    return JKOFlow(2, blocks, torch.tensor([1.0, 2.0]).double(), torch.tensor([0.5, 3.0]).double(), **options)


def history(path, event):
    records = (json.loads(line) for line in (path / "history.jsonl").read_text().splitlines())
    return [record for record in records if record["event"] == event]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# -------------------------------------------------------------------------------------------------- before any training


@torch.no_grad()
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_refined_flow_is_the_same_map_where_the_steps_divide(factor):
    flow, x = random_flow(eval_num_steps=8), torch.randn(20, 2).double()
    fine = flow.refine(factor)
    assert len(fine.blocks) == 3 * factor
    assert fine.eval_num_steps == 8 // factor
    for num_steps in (None, 4):
        children = None if num_steps is None else num_steps // factor
        for a, b in zip(flow(x, num_steps=num_steps), fine(x, num_steps=children), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(fine.inverse(fine(x)[0])[0], flow.inverse(flow(x)[0])[0], rtol=0, atol=1e-12)


@torch.no_grad()
def test_refined_flow_is_the_same_map_to_the_integrators_error_where_they_do_not():
    x = torch.randn(50, 2).double()
    errors = []
    for num_steps in (5, 10, 20):
        flow = random_flow(num_steps)
        fine = flow.refine(3)
        assert [block.num_steps for block in fine.blocks] == [-(-num_steps // 3)] * 9
        errors.append((flow.log_prob(x) - fine.log_prob(x)).abs().mean())
    assert errors[2] > 0
    assert errors[0] / errors[1] > 8
    assert errors[1] / errors[2] > 8


def test_children_take_parts_of_interval_and_jko_step():
    flow = random_flow()
    children = flow.refine(2).stack
    assert [block.jko_step for block in children] == [0.25, 0.25, 0.5, 0.5, math.inf, math.inf]
    assert [(c.t0, c.t1) for c in children[2:4]] == [(0.5, 0.9), (0.9, 1.3)]
    assert all(block.movement is None for block in children)
    children[0].velocity.layers[0].weight.data.zero_()
    assert (flow.stack[0].velocity.layers[0].weight != 0).any(), "children share memory with their parent"


@pytest.mark.parametrize("factor", [0, -1, 1.5])
def test_a_wrong_factor_is_refused(factor):
    with pytest.raises(ValueError, match="factor must be an integer of at least 1"):
        random_flow().refine(factor)


@torch.no_grad()
def test_reparametrised_flow_is_the_same_map():
    flow, x = random_flow(eval_num_steps=7), torch.randn(20, 2).double()
    new = flow.reparametrize(damping=1.0)
    assert same(flow, new)
    assert torch.equal(flow.log_prob(x), new.log_prob(x))
    assert [block.jko_step for block in new.blocks] == pytest.approx([0.375, 1.125, math.inf])  # of movements 1, 1/2
    assert [block.jko_step for block in flow.blocks] == [0.5, 1.0, math.inf]
    assert [block.jko_step for block in flow.reparametrize(1.0, 1.1).blocks][1] == 1.1
    halfway = [block.jko_step for block in flow.reparametrize(0.5).blocks]
    assert halfway == pytest.approx([0.4375, 1.0625, math.inf])


def test_movements_are_measured_and_kept(tmp_path):
    flow, x = random_flow(), torch.randn(400, 2).double()
    path = flow.trajectory(x).x
    flow.stack[1].movement = None
    with pytest.raises(ValueError, match=r"block 1 has no movement to go by; measure it with flow.measure_movements"):
        flow.reparametrize()
    movements = flow.measure_movements(x)
    assert movements == pytest.approx([(b - a).square().sum(1).mean().sqrt().item() for a, b in pairwise(path)])
    flow.save(tmp_path / "flow")
    assert [block.movement for block in JKOFlow.load(tmp_path / "flow").blocks] == movements
    flow.reparametrize()


def test_files_of_earlier_versions_know_no_movement(tmp_path):
    random_flow().save(tmp_path / "flow")
    tensors, description = checkpoint.load(tmp_path / "flow", "flow")
    for block in description["blocks"]:
        del block["movement"]
    checkpoint.save(tmp_path / "old", "flow", tensors, description)
    old = JKOFlow.load(tmp_path / "old")
    assert same(old, random_flow())
    assert all(block.movement is None for block in old.blocks)


# --------------------------------------------------------------------------------------------------------- a real run


def test_rounds_even_out_the_movements_and_better_the_flow(run):
    flow, path, listener = run
    records = json.loads((path / "metrics.json").read_text())["rounds"]
    assert [record["kind"] for record in records] == ["build", "reparametrize", "reparametrize", "refine"]
    assert listener.rounds == [(k, record["kind"], record["blocks"]) for k, record in enumerate(records)]
    before, after = records[0], records[2]
    assert after["movement_spread"] < 0.7 * before["movement_spread"]
    assert after["movement_spread"] == pytest.approx(relative_spread(after["movements"]))
    assert sum(after["step_sizes"]) == pytest.approx(sum(before["step_sizes"]))
    nlls = [record["val_nll"] for record in records if record["kept"]]
    assert all(late < early for early, late in pairwise(nlls))
    assert len(flow.blocks) == next(record["blocks"] for record in reversed(records) if record["kept"])


def test_the_record_lets_each_round_be_compared(run):
    flow, path, _ = run
    events = history(path, "round")
    result = json.loads((path / "metrics.json").read_text())
    own = {"event", "global_step"}  # what the history alone has
    assert [{k: v for k, v in event.items() if k not in own} for event in events] == result["rounds"]
    for event in events:
        blocks = [record for record in history(path, "block") if record["round"] == event["round"]]
        assert [record["movement"] for record in blocks] == event["movements"]
        assert [record["step_size"] for record in blocks] == event["step_sizes"]
        assert blocks[-1]["val_nll"] == event["val_nll"]
    kept = rounds.last_kept(events)
    assert result["movements"] == kept["movements"] == [block.movement for block in flow.blocks]
    seen = {(line["round"], line["block"]) for line in history(path, "iteration")}
    assert seen == {(event["round"], block) for event in events for block in range(event["blocks"])}


def test_movements_are_noted_in_the_model(run):
    flow, path, _ = run
    loaded = JKOFlow.load(path)
    assert [block.movement for block in loaded.blocks] == [block.movement for block in flow.blocks]
    loaded.reparametrize()


def test_report_shows_movements_before_and_after(run):
    from jkoflow.report import render
    from jkoflow.report.results import read_results

    text = render(read_results(run[1]))
    for expected in ("spread of movements", "reparametrize", "2: reparametrize", "4: refine", "thick ones rounds"):
        assert expected in text, expected


def test_blocks_are_trained_from_where_they_are(base, rows, tmp_path):
    """A round's first loss is that of the last round's parameters, with the new step size and in a new order."""
    new = base.reparametrize(1.0)
    train(rows, SMALL, start=new, run_dir=tmp_path)
    first = history(tmp_path, "iteration")[0]
    assert (first["round"], first["block"], first["iteration"]) == (1, 0, 0)
    standardised = base.enter(rows.train)[0]
    batch = Batches(standardised, SMALL.batch_size, SMALL.seed, 0, round_number=1)(0)
    assert first["loss"] == pytest.approx(new.stack[0].jko_loss(batch).total.item(), rel=1e-5)
    assert not torch.equal(batch, Batches(standardised, SMALL.batch_size, SMALL.seed, 0)(0))


@pytest.mark.parametrize("change", ["reparametrize", "refine"])
def test_library_calls_lead_to_the_same_rounds(base, rows, change, tmp_path):
    before, listener = base.state_dict(), Listener()
    copied = {name: tensor.clone() for name, tensor in before.items()}
    flow = train(rows, SMALL, start=getattr(base, change)(), run_dir=tmp_path, progress=listener)
    assert all(torch.equal(copied[name], tensor) for name, tensor in base.state_dict().items())
    records = json.loads((tmp_path / "metrics.json").read_text())["rounds"]
    assert [record["kind"] for record in records] == ["start", "retrain"]
    assert records[1]["val_nll"] < records[0]["val_nll"]
    assert len(flow.blocks) == {"reparametrize": 4, "refine": 8}[change]
    assert records[0]["movements"] != records[1]["movements"]
    assert listener.rounds[0] == (1, "retrain", len(flow.blocks))


def test_a_round_that_makes_it_worse_is_undone(base, rows, tmp_path, monkeypatch):
    """A training that ruins its blocks: the flow stays as it was, and the record says so."""
    monkeypatch.setattr(Fit, "run", lambda fit: fit.block.velocity.scale_output(0.5))
    listener = Listener()
    config = dataclasses.replace(SMALL, reparam_rounds=2, refine=2)
    flow = train(rows, config, start=base, run_dir=tmp_path, progress=listener)
    records = json.loads((tmp_path / "metrics.json").read_text())["rounds"]
    # after a reparametrisation in vain there is no second one
    assert [(r["kind"], r["kept"]) for r in records] == [
        ("start", True), ("retrain", False), ("reparametrize", False), ("refine", False)
    ]  # fmt: skip
    assert same(flow, base)
    assert [block.jko_step for block in flow.blocks] == [block.jko_step for block in base.blocks]
    assert len(listener.messages) == 3
    assert "round 2 (retrain) ended at a validation NLL of" in listener.messages[0]
    assert "undone" in listener.messages[0]


def test_a_resumed_run_from_a_flow_wants_the_same_flow(base, rows, tmp_path):
    class Stop(Silent):
        def end_block(self, block, summary):
            if block == 1:  # the first block is saved
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(rows, SMALL, start=base, run_dir=tmp_path, progress=Stop())
    with pytest.raises(ValueError, match=r"the data have changed"):
        train(rows, SMALL, run_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"the data \(or the flow to start from\) have changed"):
        train(rows, SMALL, start=base.reparametrize(), run_dir=tmp_path, resume=True)
    assert same(train(rows, SMALL, start=base, run_dir=tmp_path, resume=True), train(rows, SMALL, start=base))


def test_a_free_block_among_children_is_trained_with_a_penalty():
    blocks = rounds.warm_blocks(rounds.REFINE, random_flow(), dataclasses.replace(SMALL, refine=2))
    assert [block.jko_step for block in blocks] == [0.25, 0.25, 0.5, 0.5, 0.5, math.inf]


def test_chain_goes_on_while_blocks_move_and_gain():
    assert not rounds.has_converged([], [3.0], 0.1, 0.1)
    assert not rounds.has_converged([0.5, 0.4], [3.0, 2.0, 1.5], 0.1, 0.1)


@pytest.mark.parametrize(
    ("movements", "val_nlls"),
    [([0.5, 0.05], [3.0, 2.0, 1.0]), ([0.5, 0.5], [3.0, 2.0, 1.95]), ([0.5, 0.5], [3.0, 2.0, 2.5])],
    ids=["still", "little gain", "loss"],
)
def test_chain_ends_when_the_last_block_does_little(movements, val_nlls):
    assert rounds.has_converged(movements, val_nlls, 0.1, 0.1)


def test_only_the_last_block_counts():
    assert not rounds.has_converged([0.01, 0.5], [3.0, 3.0, 1.0], 0.1, 0.1)


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="val_nlls must have 2 entries"):
        rounds.has_converged([0.5], [3.0], 0.1, 0.1)


@pytest.mark.parametrize(
    ("records", "settings", "expected"),
    [
        ([], {}, "build"),
        (["start"], {}, "retrain"),
        (["build"], {}, None),
        (["build"], {"reparam_rounds": 1}, "reparametrize"),
        (["build", "reparametrize"], {"reparam_rounds": 1}, None),
        (["build", "reparametrize"], {"reparam_rounds": 2, "refine": 3}, "reparametrize"),
        (["build", "reparametrize-"], {"reparam_rounds": 2, "refine": 3}, "refine"),
        (["build", "reparametrize"], {"reparam_rounds": 1, "refine": 3}, "refine"),
        (["build", "refine"], {"reparam_rounds": 1, "refine": 3}, None),
        (["build1"], {"reparam_rounds": 1}, None),
        (["build1"], {"reparam_rounds": 1, "refine": 2}, "refine"),
        (["build"], {"finetune": 0.5}, "finetune"),
        (["build"], {"finetune": 0.5, "refine": 2}, "refine"),
        (["build", "refine-"], {"finetune": 0.5, "refine": 2}, "finetune"),
        (["build", "finetune-"], {"finetune": 0.5, "reparam_rounds": 1, "refine": 2}, None),
        (["start", "retrain-"], {"finetune": 0.5}, "finetune"),
        (["build1"], {"finetune": 0.5}, None),
    ],
)
def test_order_of_rounds(records, settings, expected):
    made = [
        {
            "kind": kind.rstrip("-1"), "kept": not kind.endswith("-"),
            "blocks": 2 - ("1" in kind), "step_sizes": [1.0, *([2.0] * ("1" not in kind))],
        }
        for kind in records
    ]  # fmt: skip
    config = dataclasses.replace(SMALL, **settings)
    assert rounds.next_kind(made, config, bool(config.finetune)) == expected


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (JKOFlow(2), "start must have at least one block to train"),
        (JKOFlow(1, [Block(random_velocity(1, dtype=torch.float32))]), "start must have the 2 columns of the data"),
        (random_flow(), r"start must be float32, as training is, got torch.float64; pass start.float\(\)"),
    ],
)
def test_a_flow_that_does_not_fit_is_refused(rows, start, message):
    with pytest.raises(ValueError, match=message):
        train(rows, SMALL, start=start)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reparam_rounds": -1}, "reparam_rounds must not be negative"),
        ({"refine": 0}, "refine must be from 1 to 1024"),
        ({"reparam_damping": 0.0}, "reparam_damping must be greater than 0 and at most 1"),
        ({"reparam_damping": 2.0}, "reparam_damping must be greater than 0 and at most 1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **settings)
