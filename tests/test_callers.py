"""What callers from Python have at hand and in force: modes, dtypes, arrays, frames, transforms, warnings, metrics."""

import copy
import json
import math
import pickle
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch

import jkoflow
from jkoflow import Block, JKOFlow, MLPVelocity, TrainConfig, checkpoint, train
from jkoflow.arrays import InputError
from jkoflow.data import DataError, Dataset, DataWarning, load_dataset, split_rows
from jkoflow.initial_map import InitialMap
from jkoflow.training import ConvergenceWarning
from oracles import random_velocity

TINY = TrainConfig(hidden=(8,), max_blocks=2, iterations_per_block=15, batch_size=50, val_rows=100)
CONVERGED = TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=5, batch_size=50)


def table(rows=300, columns=2):
    return np.random.default_rng(0).normal(size=(rows, columns)) * np.arange(1, columns + 1) + 3


def random_flow(dim=2, context_dim=0, dtype=torch.float64, maps="marginals+whiten+radial"):
    blocks = [Block(random_velocity(dim, (6, 5), context_dim=context_dim, dtype=dtype), 2) for _ in range(2)]
    context = (torch.full((context_dim,), value, dtype=dtype) for value in (1.0, 2.0)) if context_dim else (None, None)
    initial_map = InitialMap.fit(torch.randn(500, dim, dtype=dtype), maps)
    mean, std = torch.arange(dim, dtype=dtype), torch.full((dim,), 1.5, dtype=dtype)
    return JKOFlow(dim, blocks, mean, std, 3, *context, initial_map)


def numbers(flow):
    return {name: tensor.clone() for name, tensor in flow.state_dict().items()}


# Modes and default dtypes


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("maps", ["none", "marginals+whiten+radial"])
def test_training_does_not_depend_on_the_mode(mode, maps):
    config = TrainConfig(**{**TINY.to_mapping(), "initial_map": maps, "finetune": 0.5, "refine": 2})
    rows = torch.from_numpy(table()).float()
    expected = train(rows, config)
    with mode():
        flow = train(rows.clone(), config, start=None)  # in inference mode an inference tensor
        again = train(rows.clone(), TINY, start=copy.deepcopy(flow))
        assert not torch.is_grad_enabled()
    assert all(torch.equal(value, numbers(expected)[name]) for name, value in numbers(flow).items())
    assert flow.metrics == expected.metrics
    for trained in (flow, again):
        assert not any(tensor.is_inference() for tensor in trained.state_dict().values())
        x = rows[:5].clone().requires_grad_()
        trained.log_prob(x).sum().backward()
        assert x.grad is not None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_flow_loaded_in_a_mode_is_usable_outside(mode, tmp_path):
    random_flow().save(tmp_path / "flow")
    with mode():
        flow = JKOFlow.load(tmp_path / "flow")
    x = torch.randn(5, 2).double().requires_grad_()
    flow.requires_grad_().log_prob(x).sum().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


def test_training_does_not_depend_on_the_default_dtype(double_by_default, tmp_path):
    config = TrainConfig(**{**TINY.to_mapping(), "finetune": 0.5})
    flow = train(table(), config, run_dir=tmp_path / "run")
    assert torch.get_default_dtype() == torch.float64
    torch.set_default_dtype(torch.float32)
    expected = train(table(), config)
    assert all(torch.equal(value, numbers(expected)[name]) for name, value in numbers(flow).items())
    torch.set_default_dtype(torch.float64)
    loaded = JKOFlow.load(tmp_path / "run")
    x = torch.from_numpy(table(5))
    assert torch.equal(loaded.log_prob(x), expected.log_prob(x))
    assert loaded.sample(3).dtype == torch.float32


@pytest.mark.parametrize("config", [TINY, TrainConfig(**{**TINY.to_mapping(), "finetune": 0.5})])
def test_an_interrupted_run_goes_on_under_any_default_dtype(config, tmp_path, double_by_default):
    class Killer(jkoflow.training.progress.Silent):
        def update(self, block, iteration, terms):
            if block == 0 and iteration >= 10:
                raise KeyboardInterrupt

    config = TrainConfig(**{**config.to_mapping(), "save_seconds": 0.0})
    with pytest.raises(KeyboardInterrupt):
        train(table(), config, run_dir=tmp_path / "run", progress=Killer())
    flow = train(table(), config, run_dir=tmp_path / "run", resume=True)
    torch.set_default_dtype(torch.float32)
    expected = train(table(), config)
    assert all(torch.equal(value, numbers(expected)[name]) for name, value in numbers(flow).items())


# Points in the forms that callers have

POINTS = np.array([[0.5, -1.0], [2.0, 3.25], [1.0, 0.0], [-2.0, 7.5], [4.0, 1.5], [0.25, 2.0]])  # exact in any float
FORMS = {
    "float64": lambda p: torch.from_numpy(p),
    "float16": lambda p: torch.from_numpy(p).half(),
    "bfloat16": lambda p: torch.from_numpy(p).bfloat16(),
    "numpy": lambda p: p,
    "numpy float16": lambda p: p.astype(np.float16),
    "longdouble": lambda p: p.astype(np.longdouble),
    "sparse frame": lambda p: pd.DataFrame(p).astype(pd.SparseDtype("float")),
    "sparse": lambda p: torch.from_numpy(p).to_sparse(),
    "big endian": lambda p: p.astype(">f4"),
    "read-only": lambda p: np.broadcast_to(p, p.shape),
    "strides": lambda p: np.asfortranarray(p)[::-1][::-1],
    "lists": lambda p: p.tolist(),
    "arrays in a list": list,
    "tensors in a list": lambda p: list(torch.from_numpy(p)),
    "frame": pd.DataFrame,
    "nullable frame": lambda p: pd.DataFrame(p).astype("Float64"),
    "arrow frame": lambda p: pd.DataFrame(p).convert_dtypes(dtype_backend="pyarrow"),
    "decimals": lambda p: [[Decimal(str(value)) for value in row] for row in p],
    "nothing masked": np.ma.masked_array,
}


def calls(flow, context=None):
    return {
        "log_prob": lambda x: (flow.log_prob(x, context),),
        "forward": lambda x: flow(x, context),
        "inverse": lambda x: flow.inverse(x, context),
        "carry": lambda x: (flow.carry(x, context),),
        "trajectory": lambda x: tuple(flow.trajectory(x, context)),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_points_may_have_any_form(form, dtype):
    flow = random_flow(dtype=dtype)
    plain = torch.from_numpy(POINTS).to(dtype)
    for name, call in calls(flow).items():
        for got, expected in zip(call(FORMS[form](POINTS)), call(plain), strict=True):
            assert got.dtype == dtype
            assert torch.equal(got, expected), name


@pytest.mark.parametrize(
    "form",
    [
        lambda p: torch.from_numpy(p),
        lambda p: p,
        lambda p: p.tolist(),
        lambda p: pd.DataFrame(p, dtype="Int64"),
        lambda p: pd.DataFrame(p.astype(np.uint8)),
    ],
)
@torch.no_grad()
def test_integers_are_numbers(form):
    integers = np.array([[0, 1], [2, 3], [1, 0]])
    flow = random_flow()
    assert torch.equal(flow.log_prob(form(integers)), flow.log_prob(torch.from_numpy(integers).double()))
    assert torch.equal(flow.log_prob(integers.astype(np.uint16)), flow.log_prob(form(integers)))
    truth = [torch.from_numpy(integers > 0), integers > 0, (integers > 0).tolist(), pd.DataFrame(integers > 0)]
    for given in truth:
        assert torch.equal(flow.log_prob(given), flow.log_prob(truth[0].double()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("axes", [(), (1,), (6,), (2, 3), (3, 1, 2), (0,), (2, 0)])
@torch.no_grad()
def test_leading_axes_are_kept(axes, dtype):
    flow = random_flow(dtype=dtype)
    points = torch.from_numpy(POINTS).to(dtype)[: math.prod(axes)]
    z = flow(points)[0]
    shaped = points.reshape(*axes, 2)
    for x in (shaped, shaped.numpy(), shaped.double(), shaped.tolist() if shaped.numel() else shaped):
        got = calls(flow)
        assert torch.equal(got["log_prob"](x)[0], flow.log_prob(points).reshape(axes))
        assert [part.shape for part in got["forward"](x)] == [(*axes, 2), axes]
        assert torch.equal(flow(x)[0].reshape(-1, 2), z)
        assert torch.equal(flow.carry(x).reshape(-1, 2), z)
        assert [part.shape for part in got["inverse"](x)] == [(*axes, 2), axes]
        assert [part.shape for part in got["trajectory"](x)] == [(3, *axes, 2), (3, *axes)]
    if math.prod(axes):
        path = torch.from_numpy(POINTS).to(dtype).reshape(6, 2)
        flow.measure_movements(path.reshape(2, 3, 2))
        movements = [block.movement for block in flow.stack]
        assert movements == flow.measure_movements(path)


@torch.no_grad()
def test_one_column_may_be_flat():
    flow = random_flow(dim=1)
    column = torch.linspace(-1, 1, 7).double()
    expected = flow.log_prob(column[:, None])
    for flat in (column, column.numpy(), column.tolist(), pd.Series(column.numpy(), name="length")):
        assert torch.equal(flow.log_prob(flat), expected)
    assert torch.equal(flow.log_prob(column[:1]), expected[:1])
    assert torch.equal(flow.log_prob(column[0]), expected[0])
    assert torch.equal(flow.log_prob(float(column[0])), expected[0])
    assert flow(column)[0].shape == (7, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_gradients_flow_through_the_conversion(dtype):
    flow = random_flow(dtype=torch.float32)
    plain = torch.from_numpy(POINTS).float().requires_grad_()
    flow.log_prob(plain).sum().backward()
    x = torch.from_numpy(POINTS).reshape(2, 3, 2).to(dtype).requires_grad_()
    flow.log_prob(x).sum().backward()
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad.float().reshape(6, 2), plain.grad, rtol=2e-3, atol=1e-3)
    rows = [torch.tensor(row, requires_grad=True) for row in POINTS]
    flow.log_prob(rows).sum().backward()
    torch.testing.assert_close(torch.stack([row.grad for row in rows]).float(), plain.grad)


def test_what_is_no_row_of_numbers_is_refused_in_one_line():
    flow = random_flow(dtype=torch.float32)
    frame = pd.DataFrame(POINTS, columns=["a", "b"])
    masked = np.ma.masked_array(POINTS, np.arange(12).reshape(6, 2) == 7)
    cases = [
        (frame.assign(b="x"), "column 'b' of x must be real numbers, got 'x'"),
        (frame.assign(b=pd.Timestamp("2020-01-01")), "column 'b' of x must be real numbers, got datetime64"),
        (frame.assign(b=pd.array([1, 2, None, 4, 5, 6], dtype="Int64")), "must be finite, got nan in row 2, column 1"),
        (masked, "must be finite, got nan in row 3, column 1"),
        (masked.reshape(2, 3, 2), r"must be finite, got nan in row \(1, 0\), column 1"),
        ([0.0, None], "must be finite, got nan in column 1"),
        ([[0.0, math.inf], [0.0, -math.inf]], r"got inf in row 0, column 1 \(2 such values\)"),
        ([[0.0, 1.0], [2.0]], "must be an array of real numbers, one row per sample"),
        ([["0.5", "1.5"]], "must be real numbers, got <U3"),
        (np.array([["0.5", 1.5]], dtype=object), "must be real numbers, got '0.5'"),
        (POINTS + 0j, "must be real numbers, got complex128"),
        (torch.from_numpy(POINTS + 0j), "must be real numbers, got torch.complex128"),
        (torch.zeros(4, 3), r"must have shape \(B, 2\) to match flow.dim, got \(4, 3\)"),
        (0.5, r"must have shape \(B, 2\) to match flow.dim, got \(\)"),
        (
            torch.tensor([[0.0, 1e39]], dtype=torch.float64),
            "finite in the flow's torch.float32.*row 0, column 1.*rescale",
        ),
        (np.array([[0.0, 1e39]]), "finite in the flow's torch.float32.*row 0, column 1.*rescale"),
    ]
    for data, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            flow.log_prob(data)
        assert "\n" not in str(caught.value)


# Context


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_context_has_the_forms_of_points(dtype):
    flow = random_flow(context_dim=2, dtype=dtype)
    points, context = torch.from_numpy(POINTS).to(dtype), torch.from_numpy(POINTS[::-1] / 2)
    expected = flow.log_prob(points, context.to(dtype))
    for form in (context, context.numpy(), context.tolist(), pd.DataFrame(context.numpy())):
        assert torch.equal(flow.log_prob(points, form), expected)
    assert torch.equal(flow.log_prob(points.view(2, 3, 2), context.view(2, 3, 2)), expected.view(2, 3))
    assert torch.equal(flow.log_prob(points[1], context[1]), expected[1])
    same = flow.log_prob(points, context[:1].repeat(6, 1).to(dtype))
    assert torch.equal(flow.log_prob(points, context[0]), same)
    assert torch.equal(flow.log_prob(points.view(3, 2, 2), context[0].tolist()), same.view(3, 2))
    for name, call in calls(flow, context[0].numpy()).items():
        assert all(part.dtype == dtype for part in call(POINTS)), name
    draws = [
        flow.sample(6, given, generator=torch.Generator().manual_seed(0))
        for given in (context[0], context[:1].repeat(6, 1).to(dtype))
    ]
    assert torch.equal(*draws)
    for wrong in (context[:3], context[:1], context[:, :1], context.view(2, 3, 2), context[0, :1], context.flatten()):
        with pytest.raises(InputError, match=r"context must have shape \(6, 2\) to match x and the flow"):
            flow.log_prob(points, wrong)


@torch.no_grad()
def test_one_conditioning_variable_may_be_flat():
    flow = random_flow(context_dim=1)
    points, context = torch.from_numpy(POINTS), torch.linspace(-1, 1, 6).double()
    expected = flow.log_prob(points, context[:, None])
    for form in (context, context.numpy(), context.tolist(), pd.Series(context.numpy(), index=range(6, 0, -1))):
        assert torch.equal(flow.log_prob(points, form), expected)
    assert torch.equal(flow.log_prob(points.view(2, 3, 2), context.view(2, 3)), expected.view(2, 3))
    same = flow.log_prob(points, context[:1].expand(6)[:, None])
    for single in (context[:1], context[0], float(context[0])):
        assert torch.equal(flow.log_prob(points, single), same)
        assert torch.equal(flow.log_prob(points[:1], single), same[:1])
    with pytest.raises(InputError, match=r"context must have shape \(6, 1\)"):
        flow.log_prob(points, context[:5])
    with pytest.raises(InputError, match="context must be finite, got nan in row 3"):
        flow.log_prob(points, [0, 0, 0, math.nan, 0, 0])


# Rows to train on


def same_split(data, expected, features):
    assert data.features == features
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(data, part), getattr(expected, part))


@pytest.mark.parametrize("form", FORMS)
def test_rows_to_train_on_may_have_any_form(form):
    rows = np.round(table() * 8) / 8  # exact in any of the forms, if of few digits
    rows = rows.clip(-15, 15)
    same_split(split_rows(FORMS[form](rows)), split_rows(rows), ("x0", "x1"))


def test_a_frame_gives_its_names_and_takes_truth_values_and_integers_for_numbers():
    rows = table(columns=3)
    frame = pd.DataFrame({"width": rows[:, 0], "n": (rows[:, 1] * 100).astype(int), "wet": rows[:, 2] > 3})
    expected = np.stack([rows[:, 0], frame["n"], frame["wet"].astype(float)], 1)
    for given in (frame, frame.convert_dtypes(), frame.convert_dtypes(dtype_backend="pyarrow")):
        with pytest.warns(DataWarning, match="column 'wet' takes only 2 distinct values"):
            data = split_rows(given)
        with pytest.warns(DataWarning, match="column 2 takes only 2 distinct values"):
            same_split(data, split_rows(expected), ("width", "n", "wet"))


def test_flat_rows_are_one_column():
    column = table(columns=1)[:, 0]
    for flat in (column, torch.from_numpy(column), column.tolist(), pd.Series(column)):
        same_split(split_rows(flat), split_rows(column[:, None]), ("x0",))
    assert split_rows(pd.Series(column, name="length")).features == ("length",)
    flow = train(column, TINY)
    assert flow.log_prob(column).shape == (300,)


@pytest.mark.parametrize("name", ["series", "array", "tensor", "column"])
def test_context_to_train_on(name):
    rows = table(columns=3)
    frame = pd.DataFrame(rows, columns=["a", "b", "given"])
    context = {
        "series": frame["given"],
        "array": rows[:, 2],
        "tensor": torch.from_numpy(rows[:, 2]),
        "column": rows[:, 2:],
    }[name]
    data = split_rows(frame[["a", "b"]], context=context)
    expected = split_rows(rows).condition_on(["x2"])
    same_split(data, expected, ("a", "b"))
    assert torch.equal(data.train_context, expected.train_context)
    assert data.context_features == (("given",) if name == "series" else ("c0",))
    flow = train(frame[["a", "b"]], TINY, context=context)
    assert torch.equal(flow.log_prob(frame[["a", "b"]], context), flow.log_prob(rows[:, :2], rows[:, 2:]))


def test_tables_that_cannot_be_trained_on_are_refused_by_name():
    rows = table(columns=3)
    frame = pd.DataFrame(rows, columns=["a", "b", "c"])
    missing = frame.assign(n=pd.array([*range(299), None], dtype="Int64"))
    truth = frame.assign(t=pd.array([True, False, None] * 100, dtype="boolean"))
    masked = np.ma.masked_array(rows, np.arange(900).reshape(300, 3) == 7)
    cases = [
        ({"rows": missing}, r"NaN in row 299 \(counting from 0\), column 'n' \(1 such value\)"),
        ({"rows": truth}, r"NaN in row 2 \(counting from 0\), column 't' \(100 such values\)"),
        ({"rows": masked}, r"row 2 \(counting from 0\), column 1 is masked \(1 such value\)"),
        ({"rows": masked.astype(int)}, r"row 2 \(counting from 0\), column 1 is masked"),
        ({"rows": frame.assign(b="x", c=pd.Timestamp("2020-01-01"))}, r"columns 'b' \(text\), 'c' \(datetime64"),
        ({"rows": frame.assign(a=pd.Categorical(["x", None, "y"] * 100))}, r"column 'a' \(text\) must hold numbers"),
        ({"rows": rows + 0j}, "must be real numbers, got complex128"),
        ({"rows": [[1.0, 2.0], [3.0]]}, "one row per sample"),
        ({"rows": rows[None]}, r"must be real numbers with shape \(N, d\), got float64 with shape \(1, 300, 3\)"),
        ({"rows": frame[[]]}, "at least one column"),
        ({"rows": frame, "context": frame["b"]}, "rows and context must be different columns, got b in both"),
        ({"rows": frame[["a"]], "context": frame["b"][::-1]}, "rows and context have different indexes"),
        ({"rows": frame[["a"]], "context": rows[:200, 1]}, "context must have 300 rows as rows has, got 200"),
    ]
    for arguments, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            split_rows(**arguments)
        assert "\n" not in str(caught.value)


# Warnings


@pytest.mark.parametrize("name", ["context", "group", "split_by"])
def test_what_belongs_to_rows_has_their_index(name):
    frame = pd.DataFrame(table(columns=3), columns=["a", "b", "c"])
    other = pd.Series(np.repeat(table(100, 1)[:, 0], 3), name="other", index=frame.index)
    for wrong in (other[::-1], other.set_axis(np.arange(300) + 1)):
        with pytest.raises(DataError, match=f"rows and {name} have different indexes; .* {name}.loc"):
            train(frame, TINY, **{name: wrong})
    for right in (other, other[::-1].to_numpy()):
        train(frame, CONVERGED, **{name: right})


def caught_warnings(call, *arguments, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*arguments, **options)
    assert all(warning.filename == __file__ for warning in caught)  # where the caller can do something about it
    return [(warning.category, str(warning.message)) for warning in caught]


def test_files_and_memory_give_the_same_warnings_once(tmp_path):
    rows = table(1000, 4)
    rows[:, 1] = np.arange(1000) % 3
    rows[:, 2] = 1.7e9 + 100 * rows[:, 2]
    frame = pd.DataFrame(rows, columns=["a", "kind", "time", "d"])
    frame.to_parquet(tmp_path / "t.parquet")
    told = caught_warnings(load_dataset, tmp_path / "t.parquet")
    assert told
    assert all(category is DataWarning for category, _ in told)
    assert any("'kind'" in text for _, text in told)
    assert caught_warnings(train, frame, CONVERGED) == told
    expected = caught_warnings(split_rows, frame)
    assert [category for category, _ in expected] == [DataWarning, DataWarning]
    assert "'kind' takes only 3 distinct values" in expected[0][1]
    assert "'time' loses digits" in expected[1][1]
    assert caught_warnings(split_rows, frame[["a", "d"]], context=frame[["kind", "time"]]) == expected
    with pytest.warns(DataWarning):
        data = split_rows(frame)
    assert caught_warnings(train, data, CONVERGED) == []  # told when it was split
    assert caught_warnings(train, data.condition_on(["kind"]), CONVERGED) == []


def test_a_dataset_made_by_hand_is_warned_of_when_it_is_trained():
    rows = torch.from_numpy(table(1000, 3)).float()
    rows[:, 1] = torch.arange(1000) % 2
    data = Dataset("mine", rows[:800], rows[800:900], rows[900:], ("a", "b", "c"))
    for given, told in ((data, 1), (data.condition_on(["b"]), 1), (data.condition_on(["a"]), 1)):
        texts = [text for _, text in caught_warnings(train, given, CONVERGED)]
        assert len(texts) == told
        assert "column 'b' takes only 2 distinct values" in texts[0]


def stiff(monkeypatch):
    """Lets the calibration end before it can have converged."""
    original = jkoflow.metrics.step_converged_nll
    monkeypatch.setattr(
        jkoflow.metrics,
        "step_converged_nll",
        lambda *given, **named: original(*given, **named)._replace(converged=False),
    )


def test_what_is_not_step_converged_is_warned_of(monkeypatch, tmp_path):
    stiff(monkeypatch)
    told = []

    class Listener(jkoflow.training.progress.Silent):
        def message(self, text):
            told.append(text)

    with pytest.warns(ConvergenceWarning, match="the NLL still moves at .* do not trust it") as caught:
        flow = train(table(), CONVERGED, progress=Listener(), run_dir=tmp_path / "run")
    (warning,) = caught
    assert warning.filename == __file__
    assert told[-1] == str(warning.message)
    assert flow.converged is False
    assert JKOFlow.load(tmp_path / "run").converged is False


def test_a_warning_that_is_an_error_does_not_cost_the_run(monkeypatch, tmp_path):
    stiff(monkeypatch)
    with pytest.raises(ConvergenceWarning):  # as everywhere in these tests
        train(table(), CONVERGED, run_dir=tmp_path / "run")
    assert JKOFlow.load(tmp_path / "run").metrics["test_nll_converged"] is False


# Transforms and derivatives


@pytest.mark.filterwarnings("ignore:using the PyTorch reference. the kernels differentiate once")
@pytest.mark.parametrize("maps", ["none", "marginals+whiten+radial"])
def test_second_derivatives_of_a_density(maps):
    flow = random_flow(maps=maps)
    x = torch.from_numpy(POINTS[0] / 4)
    hessian = torch.autograd.functional.hessian(flow.log_prob, x)
    step = 1e-5 * torch.eye(2).double()
    gradient = [torch.autograd.functional.jacobian(flow.log_prob, x + sign * e) for e in step for sign in (1, -1)]
    expected = torch.stack([(gradient[0] - gradient[1]), (gradient[2] - gradient[3])]) / 2e-5
    torch.testing.assert_close(hessian, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:using the PyTorch reference. the kernels")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # from within torch
@pytest.mark.filterwarnings("ignore:torch.searchsorted.*non-contiguous")  # once a process, from within vmap
@pytest.mark.parametrize("maps", ["none", "marginals+whiten+radial"])
def test_function_transforms(maps):
    flow = random_flow(maps=maps).requires_grad_(False)
    x = torch.from_numpy(POINTS / 4)
    got = torch.func.vmap(flow.log_prob)(x)
    torch.testing.assert_close(got, flow.log_prob(x))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(flow.log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(flow.log_prob)(x[0]), gradient[0])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(flow.log_prob))(x), gradient)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: flow(row)[0]))(x)
    torch.testing.assert_close(jacobian, torch.func.vmap(torch.func.jacfwd(lambda row: flow(row)[0]))(x))
    discrete = flow.log_prob(x, discrete=True) - jkoflow.flow.base_log_prob(flow(x)[0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, discrete)
    hessian = torch.func.vmap(torch.func.hessian(flow.log_prob))(x)
    torch.testing.assert_close(hessian[0], torch.autograd.functional.hessian(flow.log_prob, x[0]))
    poisoned = x.clone()
    poisoned[3, 1] = math.nan
    with pytest.raises(InputError, match="x must be finite, got NaN or inf"):
        torch.func.vmap(flow.log_prob)(poisoned)


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    flow = random_flow(dtype=torch.float32).requires_grad_(False).eval()
    x = torch.from_numpy(POINTS).float()
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(flow, (x,), dynamic_shapes={"x": {0: rows}}, strict=strict).module()
    for points in (x, torch.randn(9, 2)):
        for got, expected in zip(program(points), flow(points), strict=True):
            torch.testing.assert_close(got, expected)
    x[2, 1] = math.nan
    with pytest.raises(RuntimeError, match="x must be finite"):
        program(x)


@pytest.mark.parametrize("dynamic", [False, True])
@torch.no_grad()
def test_densities_compile_into_one_graph(dynamic):
    flow = random_flow(context_dim=1, dtype=torch.float32)
    compiled = torch.compile(
        lambda x, c: flow.log_prob(x, c, validate=False), backend="aot_eager", fullgraph=True, dynamic=dynamic
    )
    for rows in (6, 3):
        x, context = torch.from_numpy(POINTS[:rows]).float(), torch.linspace(-1, 1, rows)[:, None]
        torch.testing.assert_close(compiled(x, context), flow.log_prob(x, context))


# Trained and loaded flows


def test_a_trained_flow_and_a_loaded_one_behave_alike(tmp_path):
    rows = table()
    trained = train(rows, TINY, run_dir=tmp_path / "run")
    loaded = JKOFlow.load(tmp_path / "run")
    for flow in (trained, loaded):
        assert not flow.training
        assert not any(parameter.requires_grad for parameter in flow.parameters())
        for result in (flow.sample(1000), *flow.sample_and_log_prob(3), flow.log_prob(rows), *flow.trajectory(rows)):
            assert result.grad_fn is None  # a graph would keep what every step computed
            result.numpy()
    assert all(torch.equal(numbers(loaded)[name], value) for name, value in numbers(trained).items())
    again = [train(rows, TINY, start=flow.requires_grad_(grad)) for flow in (trained, loaded) for grad in (True, False)]
    for flow in again[1:]:
        assert all(torch.equal(numbers(again[0])[name], value) for name, value in numbers(flow).items())
    assert all(parameter.grad is None for flow in (trained, loaded) for parameter in flow.parameters())
    loaded.requires_grad_().log_prob(rows).mean().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_a_flow_has_the_metrics_of_its_run(tmp_path):
    flow = train(table(), TINY, run_dir=tmp_path / "run")
    written = json.loads((tmp_path / "run/metrics.json").read_text())
    assert written.pop("train_seconds") > 0
    assert all(record.pop("seconds") >= 0 for record in written["rounds"])
    assert flow.metrics == written
    assert flow.converged is written["test_nll_converged"] is True
    flow.save(tmp_path / "again")
    for copied in (
        JKOFlow.load(tmp_path / "run"),
        JKOFlow.load(tmp_path / "again"),
        copy.deepcopy(flow),
        pickle.loads(pickle.dumps(flow)),
    ):
        assert copied.metrics == flow.metrics
    for changed in (flow.refine(2), flow.reparametrize(), flow.with_blocks(flow.blocks)):
        assert changed.metrics is None
        assert changed.converged is None


def test_a_flow_without_an_evaluation_has_no_metrics(tmp_path):
    flow = JKOFlow(2, [Block(MLPVelocity(2))])
    assert (flow.metrics, flow.converged) == (None, None)
    flow.save(tmp_path / "flow")
    assert JKOFlow.load(tmp_path / "flow").metrics is None
    del flow.__dict__["_eval_num_steps"]
    state = flow.__getstate__() if hasattr(flow, "__getstate__") else flow.__dict__
    assert "_metrics" not in (state or flow.__dict__)  # as in what earlier versions have pickled


def test_metrics_that_are_not_finite_are_null(tmp_path):
    flow = JKOFlow(2)
    flow.metrics = {"inversion_error_exact_mean": math.inf, "rounds": [{"val_nll": math.nan}]}
    assert flow.metrics == {"inversion_error_exact_mean": None, "rounds": [{"val_nll": None}]}
    assert flow.converged is None
    flow.save(tmp_path / "flow")
    assert JKOFlow.load(tmp_path / "flow").metrics == flow.metrics
    tensors, description = checkpoint.load(tmp_path / "flow", "flow")
    for wrong in ([1], 3, "metrics"):
        checkpoint.save(tmp_path / "flow", "flow", tensors, {**description, "metrics": wrong})
        with pytest.raises(checkpoint.CheckpointError, match="does not describe a flow"):
            JKOFlow.load(tmp_path / "flow")


def test_columns_of_a_frame_are_found_by_name(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(0).standard_normal((400, 3)) * [1, 5, 20], columns=["a", "b", "c"])
    flow = train(frame[["a", "b"]], TINY, context=frame[["c"]])
    flow.save(tmp_path / "m.safetensors")
    expected = flow.log_prob(frame[["a", "b"]].to_numpy(), frame[["c"]].to_numpy())
    for model in (flow, jkoflow.JKOFlow.load(tmp_path / "m.safetensors")):
        assert model.features == ("a", "b")
        assert model.context_features == ("c",)
        assert torch.equal(model.log_prob(frame[["b", "a"]], frame[["c"]]), expected)
        assert torch.equal(model.log_prob(frame[["c", "b", "a"]]), expected)
        with pytest.raises(InputError, match="x lacks the column b"):
            model.log_prob(frame[["a", "c"]])
        unnamed = pd.DataFrame(frame[["a", "b"]].to_numpy())
        assert torch.equal(model.log_prob(unnamed, frame[["c"]]), expected)
