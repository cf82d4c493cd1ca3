"""A flow is pickled by the bytes of its file, with the checks of its reader; what a file cannot say by PyTorch."""

import copy
import functools
import io
import pickle
import warnings

import joblib
import pandas
import pytest
import torch
from torch.utils.data import DataLoader

import jkoflow
from jkoflow import Block, JKOFlow, MLPVelocity, TrainConfig
from jkoflow.checkpoint import CheckpointError
from jkoflow.saved import _unpickled
from jkoflow.velocity import ConcatSquashMLP, FourierTimeMLP, HyperMLP, ResidualMLP, Velocity

TINY = TrainConfig(hidden=(6,), max_blocks=2, iterations_per_block=4, batch_size=100)
ROWS = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))


@functools.cache
def packed_plain():
    return pickle.dumps(jkoflow.train(ROWS, TINY))


def plain():
    return pickle.loads(packed_plain())


def trained(**options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jkoflow.data.DataWarning)
        return jkoflow.train(options.pop("rows", ROWS), TINY, **options)


def table():
    kinds = ["a", "b", None, "c"] * 125
    return pandas.DataFrame({"kind": kinds, "count": ROWS[:, 0].abs().round().long().numpy(), "x": ROWS[:, 1].numpy()})


MODELS = {
    "plain": lambda: (trained(), (ROWS,)),
    "float64": lambda: (trained().double(), (ROWS.double(),)),
    "conditional": lambda: (trained(rows=ROWS[:, :2], context=ROWS[:, 2:]), (ROWS[:, :2], ROWS[:, 2:])),
    "positive columns": lambda: (trained(rows=ROWS.exp(), columns={"x0": "log"}), (ROWS.exp(),)),
    "masses": lambda: (trained(rows=table(), missing="indicator"), (table(),)),
    "nothing": lambda: (JKOFlow(3), (ROWS,)),
    **{
        kind.__name__: lambda kind=kind: (JKOFlow(3, [Block(kind(3), num_steps=2)], eval_num_steps=3), (ROWS,))
        for kind in (MLPVelocity, ConcatSquashMLP, FourierTimeMLP, HyperMLP, ResidualMLP)
    },
}


def is_by_file(model):
    return b"format_version" in pickle.dumps(model)


@pytest.mark.parametrize("name", MODELS)
def test_pickles_and_copies_keep_every_bit(name):
    model, rows = MODELS[name]()
    expected = model.log_prob(*rows)
    assert is_by_file(model)  # with whatever a call has cached
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for again in (
        *(pickle.loads(pickle.dumps(model, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        torch.load(buffer, weights_only=False),
        copy.copy(model),
        copy.deepcopy(model),
    ):
        assert type(again) is type(model)
        own, other = model.state_dict(), again.state_dict()
        assert list(own) == list(other)
        assert all(torch.equal(own[key], other[key]) and own[key].dtype == other[key].dtype for key in own)
        assert torch.equal(again.log_prob(*rows), expected)
        assert again.metrics == model.metrics
        assert again.features == model.features
        assert again.describe() == model.describe()
        flags = [(part.training, *(p.requires_grad for p in part.parameters())) for part in model.modules()]
        assert flags == [(part.training, *(p.requires_grad for p in part.parameters())) for part in again.modules()]


def test_what_is_in_training_stays_in_training():
    flow = plain()
    flow.train()
    flow.blocks[1].eval()
    flow.blocks[0].requires_grad_()
    again = pickle.loads(pickle.dumps(flow))
    assert [part.training for part in again.modules()] == [part.training for part in flow.modules()]
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in flow.parameters()]


class Named(JKOFlow):
    pass


class Numbered(JKOFlow):
    def __init__(self, *args, number=7, **options):
        super().__init__(*args, **options)
        self.number = number


class Turn(Velocity):
    dim, context_dim = 3, 0

    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t=0.0, context=None):
        return self.rate * x.roll(1, -1)

    def describe(self):
        raise NotImplementedError("no file holds this one")

    def scale_output(self, factor):
        self.rate.data.mul_(factor)

    def work(self):
        return 1.0


def test_a_subclass_comes_back_as_itself():
    again = pickle.loads(pickle.dumps(Named(3, [Block(MLPVelocity(3))])))
    assert type(again) is Named
    assert is_by_file(again)


def tied():
    velocity = MLPVelocity(3)
    return JKOFlow(3, [Block(velocity), Block(velocity)])


def with_attribute():
    flow = JKOFlow(3, [Block(MLPVelocity(3))])
    flow.blocks[0].remark = "mine"
    return flow


def with_hook():
    flow = JKOFlow(3, [Block(MLPVelocity(3))])
    flow.blocks[0].register_forward_hook(print)
    return flow


ORDINARY = {
    "a velocity of one's own": (lambda: JKOFlow(3, [Block(Turn())]), lambda flow: flow.blocks[0].velocity.rate == 0.5),
    "a further attribute": (with_attribute, lambda flow: flow.blocks[0].remark == "mine"),
    "another number": (lambda: Numbered(3, number=8), lambda flow: flow.number == 8),
    "a hook": (with_hook, lambda flow: len(flow.blocks[0]._forward_hooks) == 1),
    "another dtype": (
        lambda: JKOFlow(3, [Block(MLPVelocity(3))]).half(),
        lambda flow: flow.standardize.mean.dtype == torch.half,
    ),
    "one velocity twice": (tied, lambda flow: flow.blocks[0].velocity is flow.blocks[1].velocity),
    "shared memory": (lambda: JKOFlow(3, [Block(MLPVelocity(3))]).share_memory(), lambda flow: True),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_what_a_file_cannot_say_is_pickled_by_pytorch(name):
    make, holds = ORDINARY[name]
    flow = make()
    assert not is_by_file(flow)
    for again in (pickle.loads(pickle.dumps(flow)), copy.deepcopy(flow)):
        assert type(again) is type(flow)
        assert holds(again)
        assert all(torch.equal(a, b) for a, b in zip(flow.parameters(), again.parameters(), strict=True))


def test_copies_in_one_call_share_what_was_shared():
    flow = JKOFlow(3, [Block(MLPVelocity(3))])
    again, weights = copy.deepcopy((flow, list(flow.parameters())))
    assert all(a is b for a, b in zip(again.parameters(), weights, strict=True))


def test_damage_is_refused():
    packed = pickle.dumps(plain())
    place = packed.index(b"jko_step") if b"jko_step" in packed else packed.index(b"step_size")
    with pytest.raises(CheckpointError, match="the pickled flow is damaged"):
        pickle.loads(packed[:place] + packed[place : place + 1].upper() + packed[place + 1 :])
    cls, payload, flags = plain().__reduce_ex__(4)[1]
    for wrong in (payload[:-1], payload[: len(payload) // 2], b"", b"\xff" * 20, payload[:-4] + b"\0\0\0\x01"):
        with pytest.raises(CheckpointError, match="the pickled flow is damaged"):
            _unpickled(cls, wrong, flags)
    with pytest.raises(CheckpointError, match=r"no part 'blocks\.9'"):
        _unpickled(cls, payload, {**flags, "training": ["blocks.9"]})
    table_flow = MODELS["masses"]()[0]
    with pytest.raises(CheckpointError, match="holds a table-flow, expected a flow"):
        _unpickled(JKOFlow, table_flow.__reduce_ex__(4)[1][1], flags)


def test_numbers_that_a_file_may_not_have_are_refused_before():
    flow = plain()
    flow.blocks[0].velocity.layers[0].weight.data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"blocks\.0\.velocity\.layers\.0\.weight must be finite"):
        pickle.dumps(flow)
    assert copy.deepcopy(flow).blocks[0].velocity.layers[0].weight[0, 0].isnan()


def test_a_pickle_read_in_inference_mode_has_gradients_outside():
    packed = pickle.dumps(JKOFlow(3, [Block(MLPVelocity(3))]))
    with torch.inference_mode():
        flow = pickle.loads(packed)
    flow.log_prob(ROWS).mean().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


class Densities(torch.utils.data.Dataset):
    def __init__(self, flow):
        self.flow = flow

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.flow.log_prob(ROWS[index : index + 1])


def test_joblib_and_the_processes_of_a_loader_take_it(tmp_path):
    flow = plain()
    joblib.dump({"flow": flow}, tmp_path / "flow.joblib")
    assert torch.equal(joblib.load(tmp_path / "flow.joblib")["flow"].log_prob(ROWS), flow.log_prob(ROWS))
    loader = DataLoader(Densities(flow), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(torch.cat(list(loader)), flow.log_prob(ROWS[:4]))
