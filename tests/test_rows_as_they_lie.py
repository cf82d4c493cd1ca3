"""Rows in the forms that they lie in, through every door: the same numbers come out, under one rule for their form."""

import json
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch.testing import assert_close

import jkoflow
from jkoflow import JKOFlow, TableFlow, TrainConfig
from jkoflow.arrays import InputError
from jkoflow.data import DataError, load_dataset, split_rows
from jkoflow.frames import LIBRARIES, library_of, to_frame

CONFIG = TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=3, batch_size=100)
NAMES, GIVEN = ["a", "b"], ["c"]
COUNT = 12

pytestmark = pytest.mark.filterwarnings("ignore::jkoflow.data.DataWarning")  # of columns taken for counts


def numbers(count, columns, seed=0):
    """Rows that every type of the forms below holds exactly."""
    return np.random.default_rng(seed).normal(size=(count, columns)).astype(np.float32).astype(np.float64)


def eighths(count, columns, seed=1):
    """Rows that even bfloat16 holds exactly."""
    return np.round(8 * numbers(count, columns, seed)) / 8


# Each makes, of rows (N, d) and the names of their columns, what a user may have; N is divisible by 6.
FORMS = {
    "float64": lambda rows, names: rows,
    "float32": lambda rows, names: rows.astype(np.float32),
    "Fortran": lambda rows, names: np.asfortranarray(rows),
    "big endian": lambda rows, names: rows.astype(">f8"),
    "objects": lambda rows, names: rows.astype(object),
    "lists": lambda rows, names: rows.tolist(),
    "tuples": lambda rows, names: tuple(map(tuple, rows.tolist())),
    "list of arrays": lambda rows, names: list(rows),
    "list of tensors": lambda rows, names: list(torch.from_numpy(rows)),
    "tensor": lambda rows, names: torch.from_numpy(rows).float(),
    "float64 tensor": lambda rows, names: torch.from_numpy(rows),
    "leading axes": lambda rows, names: rows.reshape(2, 3, -1, rows.shape[1]),
    "leading axes of a tensor": lambda rows, names: torch.from_numpy(rows).reshape(3, -1, rows.shape[1]),
    "pandas": lambda rows, names: pd.DataFrame(rows, columns=names),
    "pandas, nullable": lambda rows, names: pd.DataFrame(rows, columns=names).astype("Float64"),
    "pandas, Arrow": lambda rows, names: pd.DataFrame(rows, columns=names).astype("double[pyarrow]"),
    "pandas, an index": lambda rows, names: pd.DataFrame(rows, columns=names).set_index(np.arange(len(rows)) + 5),
    "pandas, no names": lambda rows, names: pd.DataFrame(rows),
    "polars": lambda rows, names: pl.DataFrame(rows, schema=names),
    "Arrow": lambda rows, names: pa.table(dict(zip(names, rows.T, strict=True))),
    "record batch": lambda rows, names: pa.record_batch(dict(zip(names, rows.T, strict=True))),
}
# These hold fewer digits, or have their columns found by name: for doors behind the training.
LATER_FORMS = {
    "float16": lambda rows, names: rows.astype(np.float16),
    "bfloat16": lambda rows, names: torch.from_numpy(rows).bfloat16(),
    "pandas, other order": lambda rows, names: pd.DataFrame(rows, columns=names)[names[::-1]].assign(other="text"),
    "polars, other order": lambda rows, names: pl.DataFrame(rows, schema=names)[names[::-1]].with_columns(z=pl.lit(0)),
    "Arrow, other order": lambda rows, names: pa.table(dict(zip(names, rows.T, strict=True))).select(names[::-1]),
}


@pytest.fixture(scope="module")
def plain():
    """A conditional flow of numbers, trained on a data frame of pandas."""
    rows, given = pd.DataFrame(numbers(200, 2), columns=NAMES), pd.DataFrame(numbers(200, 1, 2), columns=GIVEN)
    return jkoflow.train(rows, CONFIG, context=given)


@pytest.fixture(scope="module")
def counts():
    """The flow of a table of numbers, conditional on a number, trained on an array."""
    rows = np.stack([np.random.default_rng(0).poisson(2.0, 300).astype(float), numbers(300, 1)[:, 0]], 1)
    return jkoflow.train(rows, CONFIG, context=numbers(300, 1, 2), columns={"x0": "integer"})


def mixed(count=200):
    random = np.random.default_rng(0)
    level = random.normal(size=count)
    return pd.DataFrame(
        {
            "level": level,
            "kind": np.where(level > 0, "high", "low"),
            "on": random.random(count) < 0.5,
            "n": np.arange(count) % 3,
        }
    )


@pytest.fixture(scope="module")
def table():
    return jkoflow.train(mixed(), CONFIG)


# ---- What computes: tensors, under the axes of the rows


DOORS = {
    "log_prob": lambda flow, x, c: flow.log_prob(x, c),
    "log_prob within": lambda flow, x, c: flow.log_prob(x, c, tol=0.1),
    "log_prob in float64": lambda flow, x, c: flow.log_prob(x, c, precision="float64"),
    "log_prob_and_error": lambda flow, x, c: flow.log_prob_and_error(x, c)[0],
    "forward": lambda flow, x, c: flow(x, c)[0],
    "inverse": lambda flow, x, c: flow.inverse(x, c)[1],
    "carry": lambda flow, x, c: flow.carry(x, c),
    "trajectory": lambda flow, x, c: flow.trajectory(x, c).x.movedim(0, -1),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("form", [*FORMS, *LATER_FORMS])
def test_any_form_gives_the_same_tensors(plain, door, form):
    rows, given = eighths(COUNT, 2), eighths(COUNT, 1, 3)
    make = (FORMS | LATER_FORMS)[form]
    if door == "inverse" and "other order" in form:
        pytest.skip("noise has no names")
    wanted = DOORS[door](plain, torch.from_numpy(rows).float(), torch.from_numpy(given).float())
    found = DOORS[door](plain, make(rows, NAMES), make(given, GIVEN))
    assert isinstance(found, torch.Tensor)
    axes = tuple(make(rows, NAMES).shape[:-1]) if "leading" in form else (COUNT,)
    assert found.shape == axes + wanted.shape[1:]
    assert_close(found.reshape(wanted.shape), wanted, rtol=0, atol=0)
    assert not found.requires_grad


@pytest.mark.parametrize("form", [*FORMS, *LATER_FORMS])
def test_any_form_is_scored_by_the_flow_of_a_table(counts, form):
    rows, given = eighths(COUNT, 2), eighths(COUNT, 1, 3)
    rows[:, 0] = np.arange(COUNT) % 4
    make = (FORMS | LATER_FORMS)[form]
    wanted = counts.log_prob(rows, given)
    assert bool(wanted.isfinite().all())
    names = ["x0", "x1"]
    found = counts.log_prob(make(rows, names), make(given, ["c0"]))
    assert found.dtype == torch.float64
    assert found.shape == (tuple(make(rows, names).shape[:-1]) if "leading" in form else (COUNT,))
    assert_close(found.reshape(COUNT), wanted, rtol=0, atol=0)
    errors = counts.log_prob_and_error(make(rows, names), make(given, ["c0"]))[1]
    assert errors.shape == found.shape


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int8, bool, torch.int32, torch.bool])
def test_whole_numbers_and_truth_values_are_numbers(plain, kind):
    rows = np.arange(COUNT).reshape(-1, 2) % 2
    given = torch.from_numpy(rows).to(kind) if isinstance(kind, torch.dtype) else rows.astype(kind)
    found = plain.log_prob(given, given[:, :1])
    assert_close(found, plain.log_prob(rows * 1.0, rows[:, :1] * 1.0), rtol=0, atol=0)


ONE_ROW = {
    "tensor": lambda row, names: torch.from_numpy(row),
    "array": lambda row, names: row,
    "list": lambda row, names: row.tolist(),
    "row of pandas": lambda row, names: pd.DataFrame([row], columns=names).iloc[0],
    "row of pandas, other order": lambda row, names: pd.DataFrame([row], columns=names)[names[::-1]].iloc[0],
    "Series without names": lambda row, names: pd.Series(row),
    "row of polars": lambda row, names: pl.DataFrame([row.tolist()], schema=names, orient="row").row(0),
}


@pytest.mark.parametrize("form", ONE_ROW)
def test_one_row_has_one_number(plain, counts, form):
    for flow, names, row in ((plain, NAMES, eighths(1, 2)), (counts, ["x0", "x1"], np.array([[2.0, 0.5]]))):
        found = flow.log_prob(ONE_ROW[form](row[0], names), [0.25])
        assert found.shape == ()
        assert_close(found, flow.log_prob(row, [[0.25]])[0], rtol=0, atol=0)


def test_a_row_or_frame_may_hold_the_context_too(plain, counts):
    rows = pd.DataFrame(eighths(COUNT, 3), columns=["c", "b", "a"])
    wanted = plain.log_prob(rows[NAMES], rows[GIVEN])
    for frame in (rows, pl.from_pandas(rows), pa.Table.from_pandas(rows)):
        assert_close(plain.log_prob(frame), wanted, rtol=0, atol=0)
    assert_close(plain.log_prob(rows.iloc[3]), wanted[3], rtol=0, atol=0)
    joint = np.concatenate([np.array([[1.0, 0.5]]), [[0.25]]], 1)
    assert_close(counts.log_prob(joint), counts.log_prob(joint[:, :2], joint[:, 2:]), rtol=0, atol=0)


ONE_CONDITION = {
    "(c,)": np.array([0.25]),
    "a list": [0.25],
    "a tensor": torch.tensor([0.25]),
    "a number": 0.25,
    "pandas": pd.DataFrame({"c": [0.25]}),
    "polars": pl.DataFrame({"c": [0.25]}),
    "Series": pd.Series([0.25]),
    "row of pandas": pd.Series({"c": 0.25, "other": 1.0}),
}


@pytest.mark.parametrize("form", ONE_CONDITION)
def test_one_condition_is_that_of_all_rows_and_samples(plain, counts, form):
    context = ONE_CONDITION[form]
    if isinstance(context, pd.DataFrame | pl.DataFrame | pd.Series):
        renamed = (
            context.rename({"c": "c0"})
            if not isinstance(context, pd.DataFrame)
            else context.rename(columns={"c": "c0"})
        )
    else:
        renamed = context
    for flow, given, row in ((plain, context, eighths(5, 2)), (counts, renamed, np.array([[1.0, 0.5]] * 5))):
        every = np.full((5, 1), 0.25)
        assert_close(flow.log_prob(row, given), flow.log_prob(row, every), rtol=0, atol=0)
        first, second = (flow.sample(5, c, generator=torch.Generator().manual_seed(0)) for c in (given, every))
        assert np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize("form", [*FORMS, *LATER_FORMS])
def test_samples_take_their_context_in_any_form(plain, counts, form):
    if "leading" in form:
        pytest.skip("n samples have one axis")
    given = eighths(COUNT, 1, 3)
    make = (FORMS | LATER_FORMS)[form]
    for flow, name in ((plain, "c"), (counts, "c0")):
        first, second = (
            flow.sample(COUNT, c, generator=torch.Generator().manual_seed(0)) for c in (make(given, [name]), given)
        )
        assert np.array_equal(np.asarray(first), np.asarray(second))


# ---- Training


@pytest.mark.parametrize("form", FORMS)
def test_any_form_trains_the_same_flow_whose_samples_are_of_its_kind(form):
    rows, given = numbers(120, 2), numbers(120, 1, 2)
    wanted = jkoflow.train(rows, CONFIG, context=given)
    make = FORMS[form]
    flow = jkoflow.train(make(rows, NAMES), CONFIG, context=make(given, GIVEN))
    assert isinstance(flow, JKOFlow)
    assert_close(flow.log_prob(rows, given), wanted.log_prob(rows, given), rtol=0, atol=0)
    library = library_of(make(rows, NAMES))
    samples = flow.sample(3, given[:3])
    assert library_of(samples) == library
    if library is None:
        assert isinstance(samples, torch.Tensor)
    else:
        assert list(getattr(samples, "column_names", samples.columns)) == (
            ["x0", "x1"] if "no names" in form else NAMES
        )
    drawn, log_prob = flow.sample_and_log_prob(3, given[:3])
    assert library_of(drawn) == library
    assert_close(log_prob, flow.log_prob(drawn, given[:3]), rtol=0, atol=1e-2)


def test_one_conditioning_variable_needs_no_axis_in_training_and_later():
    rows, given = numbers(120, 2).reshape(2, 60, 2), numbers(120, 1, 2).reshape(2, 60)
    flow = jkoflow.train(rows, CONFIG, context=given, group=np.arange(120).reshape(2, 60) // 2)
    assert (flow.dim, flow.context_dim) == (2, 1)
    assert flow.log_prob(rows, given).shape == (2, 60)


def test_leading_axes_are_told():
    class Told(jkoflow.training.Progress):
        def __init__(self):
            self.lines = []

        def message(self, text):
            self.lines.append(text)

    told = Told()
    jkoflow.train(numbers(120, 2).reshape(3, 40, 2), CONFIG, progress=told)
    assert told.lines[0] == "rows of shape (3, 40, 2) are taken for 120 rows of 2 columns"


@pytest.mark.parametrize("library", LIBRARIES)
def test_tables_come_out_as_they_went_in(library, tmp_path, table):
    frame = mixed()
    given = to_frame(library, {name: frame[name].to_numpy() for name in frame})
    flow = jkoflow.train(given, CONFIG)
    assert isinstance(flow, TableFlow)
    assert torch.equal(flow.log_prob(given), table.log_prob(frame))
    assert torch.equal(flow.log_prob(frame), table.log_prob(frame))
    flow.save(tmp_path / "flow.safetensors")
    for model in (flow, jkoflow.load(tmp_path / "flow.safetensors"), pickle.loads(pickle.dumps(flow))):
        drawn = model.sample(20)
        assert library_of(drawn) == library
        columns = drawn.to_pydict() if library == "pyarrow" else {name: drawn[name].to_list() for name in frame}
        assert [type(columns[name][0]) for name in frame] == [float, str, bool, int]
        assert bool(flow.log_prob(drawn).isfinite().all())


def test_missing_entries_and_categories_of_polars_are_those_of_pandas():
    frame = mixed().astype({"n": float})
    frame.loc[::7, "n"] = np.nan
    frame.loc[::9, "kind"] = None
    rows = pl.from_pandas(frame).with_columns(pl.col("kind").cast(pl.Categorical), pl.col("n").cast(pl.Int64))
    assert rows["n"].null_count() > 0
    wanted, flow = (jkoflow.train(given, CONFIG, missing="indicator") for given in (frame, rows))
    assert torch.equal(flow.log_prob(rows), wanted.log_prob(frame))
    drawn = flow.sample(300)
    assert drawn["kind"].null_count() > 0
    assert drawn["n"].null_count() > 0
    with pytest.raises(DataError, match=r"NaN in row 0 .*column 'kind'|NaN in row 0 .*column 'n'"):
        jkoflow.train(rows, CONFIG)


def test_series_are_columns():
    values = numbers(120, 1)[:, 0]
    wanted = jkoflow.train(values, CONFIG).log_prob(values)
    for series in (pd.Series(values, name="a"), pl.Series("a", values), pa.chunked_array([values]), pa.array(values)):
        flow = jkoflow.train(series, CONFIG)
        assert torch.equal(flow.log_prob(series), wanted)
        assert flow.sample(4).shape == (4, 1)
        assert library_of(flow.sample(4)) == library_of(series)


def test_labels_of_polars_split():
    rows = pl.DataFrame(numbers(120, 2), schema=NAMES)
    groups = pl.Series("person", np.arange(120) // 4)
    wanted = jkoflow.train(rows, CONFIG, group=groups.to_numpy())
    assert torch.equal(jkoflow.train(rows, CONFIG, group=groups).log_prob(rows), wanted.log_prob(rows))


def test_a_file_counts_as_a_frame_of_pandas_and_prepared_numbers_as_what_they_were(tmp_path):
    frame = pd.DataFrame(numbers(120, 2), columns=NAMES)
    frame.to_parquet(tmp_path / "rows.parquet")
    assert isinstance(jkoflow.train(load_dataset(tmp_path / "rows.parquet"), CONFIG).sample(2), pd.DataFrame)
    assert isinstance(jkoflow.train(split_rows(pl.from_pandas(frame)), CONFIG).sample(2), pl.DataFrame)
    assert isinstance(jkoflow.train(split_rows(frame.to_numpy()), CONFIG).sample(2), torch.Tensor)


def test_gradients_flow_through_rsample_whatever_sample_returns(plain):
    flow = pickle.loads(pickle.dumps(plain)).requires_grad_()
    context = [0.5]
    drawn = flow.rsample(4, context, generator=torch.Generator().manual_seed(0))
    assert drawn.requires_grad
    sampled = flow.sample(4, context, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(sampled.to_numpy(), drawn.detach().double().numpy())
    x, log_prob = flow.rsample_and_log_prob(4, context)
    (x.sum() + log_prob.sum()).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in flow.parameters())


# ---- What does not fit


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
def test_a_frame_that_lacks_a_column_is_refused_by_its_name(plain, table, make):
    for flow, error in ((plain, InputError), (table, DataError)):
        with pytest.raises(error, match=r"lacks the columns? .*it has a, z"):
            flow.log_prob(make({"a": [0.0], "z": [0.0]}), *([[0.0]] if flow is plain else []))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pl.DataFrame({"a": ["x"], "b": [1.0]}), "column 'a' of x must be real numbers"),
        (pl.DataFrame({"a": [None, 1.0], "b": [1.0, 1.0]}), r"x must be finite, got nan in row 0, column 0"),
        (numbers(6, 3).reshape(2, 3, 3), r"x must have shape \(B, 2\) .*, got \(2, 3, 3\)"),
        ([[1.0, 2.0], [3.0]], "x must be an array of real numbers, one row per sample"),
    ],
)
def test_rows_that_are_no_numbers_are_refused(plain, rows, message):
    with pytest.raises(InputError, match=message):
        plain.log_prob(rows, [0.0])


def test_contexts_of_other_rows_are_refused(plain, counts):
    for flow in (plain, counts):
        for context in (np.zeros((2, 1)), np.zeros((4, 1, 1)), pl.DataFrame({"c": [0.0] * 3, "c0": [0.0] * 3})):
            with pytest.raises(ValueError, match="context must have"):
                flow.log_prob(np.array([[1.0, 0.5]] * 4), context)


def test_frames_of_a_library_that_is_none_are_refused():
    with pytest.raises(jkoflow.errors.UserError, match="frames must be of pandas, polars, pyarrow, got 'excel'"):
        to_frame("excel", {"a": np.zeros(1)})


# ---- A loaded flow is as a trained one


def trained_and_derived(plain, counts, tmp_path):
    plain.save(tmp_path / "plain.safetensors")
    counts.save(tmp_path / "counts.safetensors")
    yield from (
        plain,
        counts,
        jkoflow.load(tmp_path / "plain.safetensors"),
        jkoflow.load(tmp_path / "counts.safetensors"),
    )
    yield from (plain.refine(2), plain.reparametrize(), plain.with_blocks(plain.stack))
    for flow in (plain, counts):
        yield pickle.loads(pickle.dumps(flow))


def test_flows_are_for_evaluation_and_have_no_gradients_unless_asked(plain, counts, tmp_path):
    for flow in trained_and_derived(plain, counts, tmp_path):
        assert not any(module.training for module in flow.modules())
        assert not any(parameter.requires_grad for parameter in flow.parameters())
        assert not flow.log_prob([[1.0, 0.5]], [0.25]).requires_grad
        asked = flow.requires_grad_()
        assert any(parameter.requires_grad for parameter in asked.parameters())
        flow.requires_grad_(False)


def test_what_is_made_of_a_flow_knows_its_columns(plain, tmp_path):
    rows = pd.DataFrame(eighths(5, 3), columns=["c", "b", "a"])
    plain.refine(2).save(tmp_path / "fine.safetensors")
    for flow in (plain.refine(1), plain.reparametrize(), jkoflow.load(tmp_path / "fine.safetensors")):
        assert_close(flow.log_prob(rows, tol=1e-4), plain.log_prob(rows, tol=1e-4), rtol=0, atol=1e-3)
        assert list(flow.sample(2, [0.0]).columns) == NAMES


# ---- The history


def without_times(history):
    return [{name: value for name, value in record.items() if "seconds" not in name} for record in history]


def test_a_history_is_a_plain_list_and_the_same_with_a_directory(tmp_path):
    rows = numbers(120, 2)
    flow, history = jkoflow.train(rows, CONFIG, return_history=True)
    assert isinstance(flow, JKOFlow)
    assert json.loads(json.dumps(history)) == history
    assert {record["event"] for record in history} == {"validation", "guard", "iteration", "block", "round"} & {
        record["event"] for record in history
    }
    losses = [record["loss"] for record in history if record["event"] == "iteration"]
    assert losses
    assert all(np.isfinite(losses))
    assert len(pd.DataFrame(history)) == len(history)
    again, kept = jkoflow.train(rows, CONFIG, run_dir=tmp_path / "run", return_history=True)
    assert torch.equal(again.log_prob(rows), flow.log_prob(rows))
    assert without_times(kept) == without_times(history)
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == kept
    loaded, same = jkoflow.train(rows, CONFIG, run_dir=tmp_path / "run", resume=True, return_history=True)
    assert same == kept
    assert torch.equal(loaded.log_prob(rows), flow.log_prob(rows))


def test_the_history_of_a_resumed_run_begins_before_it_was_killed(tmp_path):
    class Killed(Exception):  # noqa: N818
        pass

    class Killer(jkoflow.training.Progress):
        def update(self, block, iteration, terms):
            if block == 1:
                raise Killed

    config = TrainConfig(hidden=(8,), max_blocks=2, iterations_per_block=12, batch_size=100, save_seconds=0)
    rows = numbers(120, 2)
    _, wanted = jkoflow.train(rows, config, return_history=True)
    with pytest.raises(Killed):
        jkoflow.train(rows, config, run_dir=tmp_path, progress=Killer())
    _, history = jkoflow.train(rows, config, run_dir=tmp_path, resume=True, return_history=True)
    assert without_times(history) == without_times(wanted)


def test_a_table_has_a_history_too(table):
    flow, history = jkoflow.train(mixed(), CONFIG, return_history=True)
    assert isinstance(flow, TableFlow)
    assert torch.equal(flow.log_prob(mixed()), table.log_prob(mixed()))
    assert history[-1]["event"] == "round"


def test_arrays_that_run_backwards_are_rows_like_others():
    flow, rows = jkoflow.JKOFlow(2, [jkoflow.Block(jkoflow.MLPVelocity(2))]), np.arange(10.0).reshape(5, 2)
    assert torch.equal(flow.log_prob(rows[::-1, ::-1]), flow.log_prob(rows[::-1, ::-1].copy()))
