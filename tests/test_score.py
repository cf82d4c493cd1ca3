"""score and sample of tables: what is kept, what is told, and which columns make a row unlikely."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import jkoflow
from jkoflow.cli.commands import app
from jkoflow.data import DataError, TableOptions, load_dataset
from jkoflow.data.seen import QUANTILES, outside, quantiles
from jkoflow.flow import JKOFlow
from jkoflow.initial_map import InitialMap, Whiten
from jkoflow.links import Link, Links
from jkoflow.surprise import surprise

CONFIG = jkoflow.TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=10, batch_size=100)

pytestmark = pytest.mark.filterwarnings("ignore::jkoflow.data.DataWarning")


def cli(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def seen_by(path):
    return (jkoflow.load(path).metrics or {})["seen"]


def done(*args):
    result = cli(*args)
    assert result.exit_code == 0, result.output
    return result


def refused(*args):
    result = cli(*args)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def forest(n=800, seed=0):
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "id": random.permutation(n) + 1000,
            "name": [f"tree {i}" for i in range(n)],
            "kind": random.choice(["ash", "elm", "oak"], n),
            "rings": random.poisson(3, n),
            "height": random.normal(20, 4, n),
            "snow": np.where(random.random(n) < 0.5, 0.0, random.gamma(3, 2, n)),
            "day": pd.to_datetime("2020-01-01") + pd.to_timedelta(random.integers(0, 3000, n), unit="D"),
            "felled": random.random(n) < 0.3,
        }
    )


COLUMNS = ["kind", "rings", "height", "snow", "day", "felled"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a finished run on a table (run), on numbers (plain), and on both given others (given)."""
    path = tmp_path_factory.mktemp("score")
    forest().to_csv(path / "forest.csv", index=False)
    numbers = forest()[["id", "height", "snow"]].assign(height=lambda frame: frame.height / 3)
    numbers["snow"] = np.random.default_rng(1).normal(0.1, 0.03, len(numbers)) + 0.01 * numbers.height
    numbers.to_csv(path / "numbers.csv", index=False)
    for name, file, options in (
        ("run", "forest", TableOptions()),
        ("plain", "numbers", TableOptions()),
        ("given", "forest", TableOptions(context_columns=("kind", "day"), columns={"snow": "drop", "rings": "drop"})),
    ):
        with pytest.warns():
            data = load_dataset(path / f"{file}.csv", 3, options=options)
        config = jkoflow.TrainConfig.from_mapping({**CONFIG.to_mapping(), "seed": 3})
        jkoflow.train(data, config, run_dir=path / name, options=options, source=str(path / f"{file}.csv"))
    return path


@pytest.fixture(scope="module")
def model(place):
    return jkoflow.load(place / "run")


@pytest.fixture
def spoilt(place, tmp_path):
    """Writes the first rows of the forest with some values changed: (row, column, value)."""

    def write(*changes, rows=30):
        frame = forest().head(rows).astype(object)
        for row, column, value in changes:
            frame.loc[row, column] = value
        frame.to_csv(tmp_path / "rows.csv", index=False)
        return tmp_path / "rows.csv"

    return write


# --------------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".tsv"])
def test_identifiers_stay_beside_the_log_densities_in_the_order_of_the_rows(place, model, tmp_path, suffix):
    shuffled = forest().sample(frac=1, random_state=0)[
        ["day", "felled", "id", "snow", "kind", "name", "rings", "height"]
    ]
    shuffled.to_csv(tmp_path / "rows.csv", index=False)
    out = tmp_path / f"out{suffix}"
    result = done("score", place / "run", tmp_path / "rows.csv", "--out", out)
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".tsv": lambda path: pd.read_csv(path, sep="\t")}
    found = readers[suffix](out)
    assert list(found.columns) == ["id", "name", "log_prob", "outside"]
    assert found["id"].tolist() == shuffled["id"].tolist()
    assert found["name"].tolist() == shuffled["name"].tolist()
    expected = model.log_prob(shuffled[COLUMNS])
    np.testing.assert_allclose(found["log_prob"], expected, rtol=1e-9)
    assert f"mean log-likelihood: {expected.mean():.4f}" in result.stdout
    assert "masses and densities" in result.stdout
    assert "standardised" not in result.stdout


def test_npy_holds_the_log_densities_alone(place, model, tmp_path):
    done("score", place / "run", place / "forest.csv", "--out", tmp_path / "out.npy")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), model.log_prob(forest()[COLUMNS]), rtol=1e-9)
    for flag in ("--contributions", "--all-columns"):
        assert "for more columns write .csv" in refused(
            "score", place / "run", place / "forest.csv", "--out", tmp_path / "b.npy", flag
        )
    assert not (tmp_path / "b.npy").exists()


@pytest.mark.parametrize(("run", "file"), [("run", "forest"), ("plain", "numbers"), ("given", "forest")])
def test_float64_scores_are_those_of_the_converted_model(place, tmp_path, run, file):
    outs = tmp_path / "auto.npy", tmp_path / "float64.npy"
    data = place / f"{file}.csv"
    done("score", place / run, data, "--split", "all", "--out", outs[0])
    done("score", place / run, data, "--split", "all", "--out", outs[1], "--precision", "float64")
    single, double = (np.load(out) for out in outs)
    assert double.dtype == np.float64
    finite = np.isfinite(single)
    assert (np.isfinite(double) == finite).all()
    np.testing.assert_allclose(double[finite], single[finite], atol=1e-3)
    assert (double[finite] != single[finite]).all()
    frame = pd.read_csv(data)
    converted = jkoflow.load(place / run).double()
    np.testing.assert_allclose(double[:20], converted.log_prob(frame[:20]).numpy(), rtol=1e-12)


def test_float64_is_the_only_other_precision(place, tmp_path):
    line = refused("score", place / "plain", place / "numbers.csv", "--out", tmp_path / "a.npy", "--precision", "half")
    assert "--precision must be auto or float64, got 'half'" in line


@pytest.mark.parametrize("run", ["run", "plain"])
def test_all_columns_are_kept_if_asked_for(place, tmp_path, run):
    file = place / ("forest.csv" if run == "run" else "numbers.csv")
    done("score", place / run, file, "--out", tmp_path / "out.csv", "--all-columns")
    found, given = pd.read_csv(tmp_path / "out.csv"), pd.read_csv(file)
    assert list(found.columns) == [*given.columns, "log_prob", "outside"]
    pd.testing.assert_frame_equal(found[given.columns], given)


def test_columns_called_as_the_new_ones_lose_nothing(place, tmp_path):
    frame = forest().head(20).assign(log_prob=1.5, outside="yes", surprise_kind=2)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    result = done("score", place / "run", tmp_path / "rows.csv", "--out", tmp_path / "out.csv", "--contributions")
    found = pd.read_csv(tmp_path / "out.csv")
    for name in ("log_prob", "outside", "surprise_kind"):
        assert found[name].tolist() == frame[name].tolist()
        assert f"{name}_" in found.columns
        assert f"has a column {name!r} of the input" in " ".join(result.stderr.split())


def test_a_model_column_called_log_prob(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 2)), columns=["log_prob", "b"])
    frame.to_csv(tmp_path / "rows.csv", index=False)
    jkoflow.train(load_dataset(tmp_path / "rows.csv"), CONFIG, run_dir=tmp_path / "run", options=TableOptions())
    for flags, names in (([], ["log_prob", "outside"]), (["--all-columns"], ["log_prob", "b", "log_prob_", "outside"])):
        done("score", tmp_path / "run", tmp_path / "rows.csv", "--out", tmp_path / "out.csv", *flags)
        assert list(pd.read_csv(tmp_path / "out.csv").columns) == names


def test_a_part_is_that_of_the_training_though_row_numbers_are_kept(place, tmp_path):
    for run, file in (("run", "forest.csv"), ("plain", "numbers.csv")):
        done("score", place / run, place / file, "--out", tmp_path / "out.csv", "--split", "test")
        found = pd.read_csv(tmp_path / "out.csv")
        metrics = json.loads((place / run / "metrics.json").read_text())
        assert len(found) == metrics["n_test"] == found["id"].nunique()
        assert -found["log_prob"].mean() == pytest.approx(metrics["test_nll_data_units"], abs=1e-4)


# --------------------------------------------------------------------------------------------------- which columns


@pytest.mark.parametrize(("run", "file"), [("run", "forest.csv"), ("plain", "numbers.csv")])
def test_a_misspelt_column_is_named_with_a_near_one(place, tmp_path, run, file):
    pd.read_csv(place / file).rename(columns={"height": "hieght"}).to_csv(tmp_path / "rows.csv", index=False)
    message = refused("score", place / run, tmp_path / "rows.csv", "--out", tmp_path / "out.csv")
    assert "lacks the column height; it has" in message
    assert "did you mean hieght?" in message
    assert not (tmp_path / "out.csv").exists()


def test_a_file_without_names_goes_by_position(place, tmp_path):
    frame = forest().head(40)
    for name, columns in (("with.csv", ["id", *COLUMNS]), ("without.csv", COLUMNS)):
        frame[columns].assign(**({"id": range(40)} if "id" in columns else {})).to_csv(
            tmp_path / name, index=False, header=False
        )
        done("score", place / "run", tmp_path / name, "--out", tmp_path / f"{name}.npy", "--no-header")
    frame.to_csv(tmp_path / "named.csv", index=False)
    done("score", place / "run", tmp_path / "named.csv", "--out", tmp_path / "named.npy")
    expected = np.load(tmp_path / "named.npy")
    for name in ("with.csv", "without.csv"):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected)


def test_how_a_file_is_read_may_be_told(place, tmp_path):
    frame = pd.read_csv(place / "numbers.csv").head(50)
    frame.to_csv(tmp_path / "rows.csv", index=False, sep=";", decimal=",")
    frame.to_parquet(tmp_path / "rows.parquet", index=False)
    done("score", place / "plain", tmp_path / "rows.csv", "--out", tmp_path / "a.npy", "--sep", ";", "--decimal", ",")
    done("score", place / "plain", tmp_path / "rows.parquet", "--out", tmp_path / "b.npy")
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    for flags in (["--sep", ";"], ["--index-column", "none"]):
        assert "built in" in refused("score", place / "plain", "moons", "--out", tmp_path / "c.npy", *flags)
    message = refused(
        "score", place / "plain", tmp_path / "rows.csv", "--out", tmp_path / "c.npy", "--index-column", "nr"
    )
    assert "has no column 'nr'" in message


def test_what_was_told_of_the_training_file_does_not_bind_others(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 2)), columns=["a", "b"])
    frame.assign(nr=range(300)).to_csv(tmp_path / "rows.csv", index=False, sep=";")
    options = TableOptions.from_mapping({"separator": ";", "index_column": "nr"})
    jkoflow.train(
        load_dataset(tmp_path / "rows.csv", options=options), CONFIG, run_dir=tmp_path / "run", options=options
    )
    frame.to_parquet(tmp_path / "rows.parquet")
    for file in ("rows.csv", "rows.parquet"):
        done("score", tmp_path / "run", tmp_path / file, "--out", tmp_path / f"{file}.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "rows.csv.npy"), np.load(tmp_path / "rows.parquet.npy"))


# --------------------------------------------------------------------------------------------------- what is told


@pytest.mark.parametrize("column", COLUMNS)
def test_missing_values_that_the_training_did_not_have(place, spoilt, tmp_path, column):
    file = spoilt((4, column, None), (7, column, None))
    message = refused("score", place / "run", file, "--out", tmp_path / "out.csv")
    assert f"NaN in row 4 (counting from 0), column {column!r} (2 such values)" in message
    assert "--missing indicator" in message
    with pytest.raises(DataError, match=f"column {column!r}"):
        jkoflow.load(place / "run").log_prob(pd.read_csv(file).assign(day=lambda f: pd.to_datetime(f.day)))


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("kind", "yew", "is a category that the training never had"),
        ("rings", 2.5, "off the lattice of steps of 1"),
        ("rings", -2, "is beyond the edge 0"),
    ],
)
def test_impossible_values_are_told_by_column(place, spoilt, tmp_path, column, value, why):
    result = done("score", place / "run", spoilt((3, column, value), (5, column, value)), "--out", tmp_path / "out.csv")
    notes = [line for line in result.stderr.split("note: ") if "density zero" in line]
    assert len(notes) == 1
    text = " ".join(notes[0].split())
    assert f"column {column!r}: density zero for 2 of 30 rows (the first is row 3, counting from 0)" in text
    assert why in text
    found = pd.read_csv(tmp_path / "out.csv")["log_prob"]
    assert np.flatnonzero(np.isneginf(found)).tolist() == [3, 5]
    assert "28 of them with a finite density" in result.stdout
    assert f"{column} = {value}: inf" in result.stdout


@pytest.mark.parametrize(("column", "value"), [("height", "high"), ("day", "4 oaks"), ("rings", "many")])
def test_a_column_of_another_type_is_refused(place, spoilt, tmp_path, column, value):
    file = spoilt(*((row, column, value) for row in range(30)))
    message = refused("score", place / "run", file, "--out", tmp_path / "out.csv")
    assert column in message
    assert value in message


def test_rows_outside_of_the_training_are_told(place, spoilt, tmp_path):
    file = spoilt((2, "height", 90), (2, "rings", 40), (6, "height", -90), (9, "day", "2031-01-01"), (11, "snow", 0.0))
    result = done("score", place / "run", file, "--out", tmp_path / "out.csv")
    found = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)["outside"].tolist()
    assert [found[row] for row in (2, 6, 9, 11)] == ["rings;height", "height", "day", ""]
    text = " ".join(result.stderr.split())
    assert "column 'height': outside of what the training has seen are 2 of 30 rows (the first is row 2," in text
    assert "column 'day': outside of what the training has seen are 1 of 30 rows (row 9," in text


@pytest.mark.parametrize(("run", "file"), [("run", "forest.csv"), ("plain", "numbers.csv"), ("given", "forest.csv")])
def test_no_training_row_is_outside_of_the_training(place, tmp_path, run, file):
    result = done("score", place / run, place / file, "--out", tmp_path / "out.csv", "--split", "train")
    assert (pd.read_csv(tmp_path / "out.csv", keep_default_na=False)["outside"] == "").all()
    assert "outside" not in result.stderr


def test_a_plain_flow_tells_of_rows_outside(place, tmp_path):
    frame = pd.read_csv(place / "numbers.csv").head(30)
    frame.loc[4, "snow"] = 2.0
    frame.to_csv(tmp_path / "rows.csv", index=False)
    result = done("score", place / "plain/model.safetensors", tmp_path / "rows.csv", "--out", tmp_path / "out.csv")
    found = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert found.columns.tolist() == ["id", "log_prob", "outside"]
    assert np.flatnonzero(found["outside"] == "snow").tolist() == [4]
    assert "row 4 (id " in result.stdout
    assert "snow = 2" in result.stdout


def test_the_least_likely_rows_are_explained(place, spoilt, tmp_path):
    file = spoilt((2, "height", 90), (6, "rings", 40))
    result = done("score", place / "run", file, "--out", tmp_path / "out.csv", "--explain", 2)
    worst = pd.read_csv(tmp_path / "out.csv")["log_prob"].nsmallest(2).index.tolist()
    assert sorted(worst) == [2, 6]
    blocks = result.stdout.split("  row ")[1:]
    assert [int(block.split(" ", 1)[0]) for block in blocks] == worst
    for block in blocks:
        row = int(block.split(" ", 1)[0])
        assert f"(id {forest().id[row]}, name tree {row})" in block
        assert block.splitlines()[1].strip().startswith({2: "height = 90: ", 6: "rings = 40: "}[row])
    assert "94% of the training in" in result.stdout
    none = done("score", place / "run", file, "--out", tmp_path / "out.csv", "--explain", 0)
    assert "least likely" not in none.stdout


def test_a_model_without_what_was_seen_still_scores(place, model, tmp_path):
    old = jkoflow.load(place / "run")
    assert old.metrics is not None
    old.metrics.pop("seen")
    old.save(tmp_path / "old")
    result = done("score", tmp_path / "old", place / "forest.csv", "--out", tmp_path / "out.csv")
    assert list(pd.read_csv(tmp_path / "out.csv").columns) == ["id", "name", "log_prob"]
    assert "least likely" not in result.stdout
    with pytest.raises(DataError, match="train it again"):
        surprise(old, forest()[COLUMNS])


def test_tables_are_compared_with_samples(place, tmp_path):
    pytest.importorskip("sklearn")
    for run in ("run", "given"):
        result = done("score", place / run, place / "forest.csv", "--out", tmp_path / "out.npy", "--two-sample")
        assert "energy distance: " in result.stdout
        accuracy = float(result.stdout.split("classifier accuracy: ")[1].split()[0])
        assert 0.4 < accuracy < 0.8


# --------------------------------------------------------------------------------------------------- what was seen


def test_models_know_what_the_training_has_seen(place):
    for run, columns in (
        ("run", COLUMNS),
        ("given", ["height", "felled", "kind", "day"]),
        ("plain", ["height", "snow"]),
    ):
        seen = seen_by(place / run)
        assert list(seen) == columns
        assert seen == json.loads((place / run / "metrics.json").read_text())["seen"]
    seen = seen_by(place / "run")
    assert seen["kind"] == ["ash", "elm", "oak"]
    assert seen["felled"] == [False, True]
    assert set(seen["rings"]) <= set(forest().rings)
    assert len(seen["height"]) == len(seen["day"]) == len(seen["snow"]) == QUANTILES
    assert seen["day"] == sorted(seen["day"])
    assert seen["day"][0].startswith("2020-")
    assert min(seen["snow"]) > 0  # the spike is a state of its own


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
@pytest.mark.parametrize("n", [1, 5, 200_000])
def test_quantiles_are_values_that_occur_and_hold_all(n, scale):
    values = np.random.default_rng(0).standard_cauchy(n) * scale
    found = quantiles(values)
    assert len(found) == QUANTILES
    assert found == sorted(found)
    assert (found[0], found[-1]) == (values.min(), values.max())
    assert np.isin(found, values).all()
    assert found[16] == pytest.approx(np.median(values), abs=0.05 * scale if n > 5 else 10 * scale)
    assert not outside(values, found).any()
    assert not outside(values.astype(np.float32), quantiles(values.astype(np.float32))).any()


def test_values_that_lost_digits_in_the_training_are_not_outside():
    values = np.array([0.1, 0.2, 0.7])
    assert not outside(values, quantiles(values.astype(np.float32))).any()
    assert outside(values + 1e-3, quantiles(values.astype(np.float32))).tolist() == [False, False, True]
    whole = np.array([1_700_000_001, 1_700_000_007])
    assert outside(whole + 1, quantiles(whole)).tolist() == [False, True]


# --------------------------------------------------------------------------------------------------- surprises


@pytest.mark.parametrize("units", [(1.0, 1.0, 1.0), (1e-6, 1.0, 1e6)])
def test_surprises_of_a_gaussian_are_squares_of_conditional_distances(units):
    covariance = torch.tensor([[1.0, 0.8, 0.0], [0.8, 1.0, 0.3], [0.0, 0.3, 1.0]], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ values.sqrt().diag() @ vectors.T
    scale = torch.tensor(units, dtype=torch.float64)
    flow = JKOFlow(
        3,
        (),
        torch.zeros(3).double(),
        scale,
        initial_map=InitialMap([Whiten(torch.zeros(3, dtype=torch.float64), root)]),
    )
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(5000, 3, dtype=torch.float64, generator=random) @ root
    grids = [quantiles(column) for column in rows.numpy().T]
    flow.metrics = {"seen": {f"x{j}": [v * units[j] for v in grid] for j, grid in enumerate(grids)}}
    few = rows[:200]
    found = surprise(flow, few * scale)
    assert found.dtype == torch.float64
    precision = torch.linalg.inv(covariance)
    for j, grid in enumerate(grids):
        rest = [other for other in range(3) if other != j]
        mean = -(few[:, rest] @ precision[j, rest]) / precision[j, j]
        exact = 0.5 * precision[j, j] * (few[:, j] - mean).square()
        gap = (torch.tensor(grid)[None] - mean[:, None]).abs().amin(1)
        nearest = 0.5 * precision[j, j] * gap.square()
        torch.testing.assert_close(found[:, j], (exact - nearest).clamp(min=0), rtol=1e-6, atol=1e-6)
        assert (exact - nearest - exact).abs().median() < 0.01  # the grid is fine where the rows are


@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_surprises_do_not_depend_on_units(factor):
    frame = forest()[["kind", "height", "snow"]]
    other = frame.assign(height=frame.height * factor, snow=frame.snow * factor)
    one, two = (jkoflow.train(rows, CONFIG) for rows in (frame, other))
    assert "spikes" in one.schema.codecs[2].kind
    torch.testing.assert_close(
        surprise(one, frame.head(60)), surprise(two, other.head(60)), rtol=1e-2, atol=1e-2, equal_nan=False
    )


def test_a_typical_number_beside_a_repeated_value_is_no_surprise():
    random = np.random.default_rng(0)
    rain = np.where(random.random(2000) < 0.6, 0.0, random.normal(500, 100, 2000))
    frame = pd.DataFrame({"rain": rain, "wind": random.normal(size=2000)})
    model = jkoflow.train(frame, CONFIG)
    rows = pd.DataFrame({"rain": [0.0, 500.0, 1000.0], "wind": 0.0})
    found = surprise(model, rows)[:, 0]
    assert found[0] == pytest.approx(0, abs=0.05)
    assert found[1] == pytest.approx(np.log(0.6 / 0.4), abs=0.2)  # by its state alone, not by units of rain
    assert found[2] > 5


def test_columns_at_fault_get_inf_and_others_nothing(model):
    rows = forest().head(4)[COLUMNS]
    rows["rings"] = rows["rings"].astype(float)
    rows.loc[0, "kind"] = "yew"
    rows.loc[1, "rings"] = 2.5
    rows.loc[2, ["kind", "rings"]] = "yew", -3
    found = surprise(model, rows)
    assert torch.isposinf(found).tolist() == [
        [True, False, False, False, False, False],
        [False, True, False, False, False, False],
        [True, True, False, False, False, False],
        [False] * 6,
    ]
    assert (found[:3][~torch.isposinf(found[:3])] == 0).all()
    assert (found >= 0).all()


def test_a_plain_flow_blames_the_columns_without_a_density():
    flow = JKOFlow(3, links=Links([Link("log", lower=0.0), Link(), Link("log", lower=0.0)]))
    flow.metrics = {"seen": {name: np.linspace(0.5, 2, QUANTILES).tolist() for name in "abc"}}
    rows = torch.tensor([[1.0, 1.0, 1.0], [-1.0, 1.0, 1.0], [-1.0, 9.0, -1.0]])
    found = surprise(flow, rows)
    assert torch.isposinf(found).tolist() == [[False] * 3, [True, False, False], [True, True, True]]
    assert (found[1, 1:] == 0).all()


def test_surprises_follow_columns_that_are_functions_of_others():
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"a": random.normal(size=500), "b": random.normal(size=500)})
    frame["sum"] = frame.a + 2 * frame.b
    model = jkoflow.train(frame, CONFIG, columns={"sum": "dependent"})
    rows = frame.head(3).copy()
    rows.loc[1, "a"] += 6
    rows["sum"] = rows.a + 2 * rows.b
    rows.loc[2, "sum"] += 1
    found = surprise(model, rows)
    assert torch.isfinite(found[:2]).all()
    assert found[1, 0] > 5
    assert found[:2, 2].tolist() == [0, 0]
    assert torch.isposinf(found[2]).tolist() == [False, False, True]


@pytest.mark.parametrize(("run", "file"), [("run", "forest.csv"), ("plain", "numbers.csv"), ("given", "forest.csv")])
def test_contributions_are_written_for_all_rows(place, tmp_path, run, file):
    pd.read_csv(place / file).head(25).to_csv(tmp_path / "rows.csv", index=False)
    done("score", place / run, tmp_path / "rows.csv", "--out", tmp_path / "out.csv", "--contributions")
    found = pd.read_csv(tmp_path / "out.csv")
    model = jkoflow.load(place / run)
    names = list(seen_by(place / run))[: 6 if run == "run" else 2]
    assert [name for name in found if name.startswith("surprise_")] == [f"surprise_{name}" for name in names]
    rows = pd.read_csv(tmp_path / "rows.csv")
    if run != "plain":
        rows["day"] = pd.to_datetime(rows["day"])
    expected = surprise(model, rows[list(seen_by(place / run))])
    np.testing.assert_allclose(found.filter(like="surprise_"), expected, rtol=1e-5, atol=1e-5)


def test_chunks_of_surprises_make_no_difference(place, monkeypatch):
    for run, rows in (("run", forest().head(9)[COLUMNS]), ("plain", torch.rand(9, 2))):
        model = jkoflow.load(place / run)
        whole = surprise(model, rows)
        monkeypatch.setattr("jkoflow.surprise.CHUNK", 70)
        torch.testing.assert_close(surprise(model, rows), whole)
        monkeypatch.undo()


# --------------------------------------------------------------------------------------------------- samples


def test_samples_of_a_table_have_its_types_and_order(place, tmp_path):
    result = done("sample", place / "run", "-n", 200, "--out", tmp_path / "out.parquet", "--seed", 1)
    assert "200 rows, 6 columns" in result.stdout
    found = pd.read_parquet(tmp_path / "out.parquet")
    assert list(found.columns) == COLUMNS
    assert set(found["kind"]) <= {"ash", "elm", "oak"}
    assert found["rings"].dtype == np.int64
    assert found["felled"].dtype == bool
    assert found["day"].dtype.kind == "M"
    assert (found["day"] == found["day"].dt.normalize()).all()
    assert 60 < (found["snow"] == 0).sum() < 140
    done("sample", place / "run", "-n", 200, "--out", tmp_path / "out.csv", "--seed", 1)
    again = pd.read_csv(tmp_path / "out.csv", parse_dates=["day"])
    pd.testing.assert_frame_equal(again, found, check_dtype=False)


def test_samples_of_a_table_stand_beside_their_context(place, tmp_path, monkeypatch):
    given = pd.DataFrame({"day": ["2021-05-01", "2025-05-01"], "more": 1, "kind": ["oak", "ash"]})
    given.to_csv(tmp_path / "given.csv", index=False)
    arguments = ("sample", place / "given", "-n", 30, "--context", tmp_path / "given.csv")
    done(*arguments, "--out", tmp_path / "out.csv")
    found = pd.read_csv(tmp_path / "out.csv")
    assert list(found.columns) == ["height", "felled", "kind", "day"]
    assert found["kind"].tolist() == ["oak"] * 30 + ["ash"] * 30
    assert found["day"].tolist() == ["2021-05-01"] * 30 + ["2025-05-01"] * 30
    monkeypatch.setattr("jkoflow.cli.sample.CHUNK", 7)
    done(*arguments, "--out", tmp_path / "chunks.csv")
    assert len(pd.read_csv(tmp_path / "chunks.csv").drop_duplicates("height")) == 60
    given.assign(kind="yew").to_csv(tmp_path / "given.csv", index=False)
    assert "never seen in training" in refused(*arguments, "--out", tmp_path / "out.csv")


@pytest.mark.parametrize("run", ["run", "given"])
def test_npy_cannot_hold_other_things_than_numbers(place, tmp_path, run):
    context = ["--context", place / "forest.csv"] if run == "given" else []
    message = refused("sample", place / run, "-n", 5, "--out", tmp_path / "s.npy", *context)
    assert all(name in message for name in ("kind", "day", "felled"))
    assert "are not numbers" in message
    assert not (tmp_path / "s.npy").exists()


def test_npy_holds_integers_and_repeated_numbers(tmp_path):
    frame = forest()[["rings", "height", "snow"]]
    frame.to_csv(tmp_path / "rows.csv", index=False)
    jkoflow.train(load_dataset(tmp_path / "rows.csv"), CONFIG, run_dir=tmp_path / "run", options=TableOptions())
    done("sample", tmp_path / "run", "-n", 100, "--out", tmp_path / "s.npy")
    found = np.load(tmp_path / "s.npy")
    assert found.shape == (100, 3)
    assert (found[:, 0] == np.floor(found[:, 0])).all()
    assert (found[:, 2] == 0).any()
