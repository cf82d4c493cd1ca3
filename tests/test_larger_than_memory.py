"""Rows larger than memory: the same numbers as in memory, and no more memory than was allowed."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import jkoflow
from jkoflow import mapped, memory_limit
from jkoflow.data import DataError, DataWarning, TableOptions, load_dataset
from jkoflow.data.readers.options import KEEP, ReadOptions
from jkoflow.data.repeats import row_groups, row_keys
from jkoflow.data.splits import split_order as split_in_memory
from jkoflow.data.streamed import survey
from jkoflow.data.streamed.distinct import find_repeats
from jkoflow.data.streamed.order import in_order, split_order
from jkoflow.memory_limit import MemoryLimit
from jkoflow.training.run_directory import RunDirectory
from jkoflow.training.state import RunError

pytest.importorskip("pyarrow")
import pyarrow
import pyarrow.parquet

QUICK = {"max_blocks": 2, "iterations_per_block": 30, "hidden": (16,), "val_rows": 500, "batch_size": 100}
LIMIT = "150KB"
"""Less than any table here takes in memory, if a process and its work take nothing."""


@pytest.fixture
def small_parts(monkeypatch):
    """Lets small tables be larger than memory, and go through it in many parts."""
    monkeypatch.setattr(memory_limit, "PROCESS", 0)
    monkeypatch.setattr(memory_limit, "WORK", 0)
    monkeypatch.setattr(memory_limit, "FIT", 0)
    monkeypatch.setattr(memory_limit, "FIT_COLUMN", 0)
    monkeypatch.setattr(mapped, "PART_BYTES", 1 << 12)
    monkeypatch.setattr(survey, "BLOCK_VALUES", 700)


def rows_of(kind="plain", count=5000):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((count, 3))
    x[:, 1] += x[:, 0] ** 2
    if kind == "bounded":
        x[:, 2] = np.exp(2 * x[:, 2])
        x[:, 0] = rng.uniform(size=count)
    if kind == "heavy":
        x[:, 2] = rng.standard_cauchy(count)
    if kind == "wild":
        x[[7, count // 2], 2] = 1e6, -2e6
    if kind == "repeated":
        x[count // 2 : count // 2 + count // 20] = x[: count // 20]
    return x


def write(path, x, names=None):
    """Writes rows in the form that the path's name asks for."""
    if path.suffix == ".npy":
        np.save(path, x)
        return path
    table = pyarrow.table(dict(zip(names or "abc", x.T, strict=False)))
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=900)
        return path
    for number, start in enumerate(range(0, len(x), 1300)):
        folder = path / f"half={number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table.slice(start, 1300), folder / f"{number}.parquet", row_group_size=500)
    return path


def both(source, **more):
    """The same table in scratch files and in memory."""
    found = load_dataset(source, memory=LIMIT, **more)
    plain = load_dataset(source, **more)
    assert mapped.is_mapped(found.train)
    assert not mapped.is_mapped(plain.train)
    return found, plain


def assert_same_rows(found, plain):
    for part in ("train", "val", "test", "train_context", "val_context", "test_context"):
        ours, theirs = getattr(found, part), getattr(plain, part)
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    assert (found.features, found.context_features) == (plain.features, plain.context_features)
    assert (found.links, found.frames, found.name) == (plain.links, plain.frames, plain.name)


def same_metrics(found, plain):
    """Compares two runs' metrics to 1e-6."""
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        if isinstance(value, float):
            assert math.isclose(found[name], value, rel_tol=1e-6, abs_tol=1e-6), name
        elif name not in ("rounds", "movements", "movements_stderr", "fingerprint"):
            assert found[name] == value, name
    np.testing.assert_allclose(found["movements"], plain["movements"], rtol=1e-6)
    np.testing.assert_allclose(found["movements_stderr"], plain["movements_stderr"], rtol=1e-6)


# ---- The same as in memory


@pytest.mark.parametrize("name", ["rows.npy", "rows.parquet", "folder"])
def test_files_give_the_rows_that_they_give_in_memory(small_parts, tmp_path, name):
    source = write(tmp_path / name, rows_of())
    assert_same_rows(*both(source, options=TableOptions(columns={"half": "drop"} if name == "folder" else {})))


@pytest.mark.parametrize(
    "array",
    [
        rows_of().astype(">f4"),
        np.asfortranarray(rows_of()),
        rows_of(count=10_000)[:, 0],
        np.column_stack([np.arange(5000), rows_of()]),
        np.array(list(map(tuple, rows_of())), dtype=[("u", "f4"), ("v", "f8"), ("w", "f4")]),
    ],
    ids=["big-endian", "column-by-column", "one-column", "row-numbers", "fields"],
)
@pytest.mark.filterwarnings("ignore:.*left out row numbers:jkoflow.data.DataWarning")
def test_arrays_of_any_layout_give_the_rows_that_they_give_in_memory(small_parts, tmp_path, array):
    np.save(tmp_path / "rows.npy", array)
    assert_same_rows(*both(tmp_path / "rows.npy"))


def test_row_numbers_are_kept_where_asked_for(small_parts, tmp_path):
    source = write(tmp_path / "rows.parquet", np.column_stack([np.arange(5000), rows_of()]), ["id", "a", "b", "c"])
    options = TableOptions(columns={"id": "real"}, reading=ReadOptions(index_column=KEEP))
    assert load_dataset(source, options=options, memory=LIMIT).features == ("id", "a", "b", "c")
    with pytest.warns(DataWarning, match="left out row numbers: 'id'"):
        assert load_dataset(source, memory=LIMIT).features == ("a", "b", "c")


def test_context_and_given_kinds_are_those_of_memory(small_parts, tmp_path):
    source = write(tmp_path / "rows.parquet", rows_of("bounded"))
    found, plain = both(source, context_columns=["b"], options=TableOptions(columns={"c": "log"}))
    assert_same_rows(found, plain)
    config = jkoflow.TrainConfig(**QUICK)
    same_metrics(jkoflow.train(found, config).metrics, jkoflow.train(plain, config).metrics)


@pytest.mark.parametrize("kind", ["plain", "bounded", "heavy", "wild"])
@pytest.mark.filterwarnings("ignore::jkoflow.data.DataWarning")
def test_training_ends_with_the_numbers_of_memory(small_parts, tmp_path, kind):
    x = rows_of(kind)
    source = write(tmp_path / "rows.npy", x)
    config = jkoflow.TrainConfig(**QUICK)
    plain = jkoflow.train(load_dataset(source), config).metrics
    found = jkoflow.train(load_dataset(source, memory=LIMIT), config).metrics
    same_metrics(found, plain)


def test_a_mapped_array_in_python_is_as_its_file(small_parts, tmp_path):
    array = np.load(write(tmp_path / "rows.npy", rows_of()), mmap_mode="r")
    same = [
        jkoflow.train(rows, jkoflow.TrainConfig(**QUICK, memory=memory)).metrics
        for rows, memory in ((array, LIMIT), (array, None), (torch.from_numpy(rows_of()), LIMIT))
    ]
    same_metrics(same[0], same[1])
    same_metrics(same[2], same[1])


def test_chains_time_budgets_and_left_rows_go_through_scratch_files(small_parts, tmp_path):
    data = load_dataset(write(tmp_path / "rows.npy", rows_of()), memory=LIMIT)
    plain = load_dataset(tmp_path / "rows.npy")
    config = jkoflow.TrainConfig(**QUICK, finetune=0.3, refine=2)
    same_metrics(jkoflow.train(data, config).metrics, jkoflow.train(plain, config).metrics)
    timed = jkoflow.TrainConfig(hidden=(8,), time_budget=1.5, max_blocks=2)
    assert jkoflow.train(data, timed).metrics["n_train"] == 4000


def test_rows_that_overflow_are_left_out_as_in_memory(small_parts, tmp_path):
    x = rows_of()
    x[11] = 1e17
    source = write(tmp_path / "rows.npy", x)
    config = jkoflow.TrainConfig(**QUICK, initial_map="whiten")
    results = []
    for memory in (None, LIMIT):
        with pytest.warns(DataWarning):
            results.append(jkoflow.train(load_dataset(source, memory=memory), config).metrics)
    same_metrics(results[1], results[0])


def test_a_limit_without_need_changes_nothing(tmp_path):
    source = write(tmp_path / "rows.npy", rows_of())
    data = load_dataset(source, memory="2GB")
    assert not mapped.is_mapped(data.train)
    assert_same_rows(data, load_dataset(source))


# ---- Equal rows


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.filterwarnings("ignore:.*rows that must go to the same part:jkoflow.data.DataWarning")
def test_equal_rows_are_found_and_split_as_in_memory(small_parts, tmp_path, seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(200, 3000))
    shares = rng.dirichlet(np.full(30, 0.3)) if seed % 2 else np.full(30, 1 / 30)
    few = np.array([0.0, 0.3, 0.9])[seed % 3]
    values = np.where(rng.random(count) < few, rng.choice(30, count, p=shares), 100 + np.arange(count)).astype(float)
    column = rng.permutation(values)
    rows = mapped.empty((count, 1), torch.float32, tmp_path)
    rows.copy_(torch.from_numpy(column)[:, None])
    keys = mapped.empty_beside(rows, count, torch.int64)
    keys.copy_(torch.from_numpy(row_keys([column]).view(np.int64)))
    repeats = find_repeats(keys, room=64 * count)
    groups = row_groups([column])
    assert np.array_equal(repeats.groups(np.arange(count)), groups)
    order, sizes = split_order(rows, repeats, seed)
    # a group for each row, or its number, keeps equal rows together without asking whether chance made them
    wanted = split_in_memory([column], seed, group=groups)
    assert sizes == [len(part) for part in wanted]
    assert np.array_equal(order.numpy(), np.concatenate(wanted))
    assert np.array_equal(in_order(rows, order, slice(None), 4000).numpy()[:, 0], column[np.concatenate(wanted)])


def test_copies_stay_together_and_are_told(small_parts, tmp_path):
    source = write(tmp_path / "rows.npy", rows_of("repeated"))
    with pytest.warns(DataWarning, match="250 of 5000 rows repeat an earlier row"):
        assert_same_rows(*both(source))


def test_more_copies_than_memory_holds_are_refused(small_parts, tmp_path):
    source = write(tmp_path / "rows.npy", np.repeat(rows_of(), 2, axis=0))
    with pytest.raises(DataError, match="rows are equal to others, too many for memory; drop them, or raise it"):
        load_dataset(source, memory=LIMIT)


# ---- What is refused


def spoilt(value):
    x = rows_of()
    x[4321, 1] = value
    return x


@pytest.mark.parametrize(
    ("x", "options", "match"),
    [
        (spoilt(np.nan), {}, r"NaN in row 4321 \(counting from 0\), column 1 \(1 such value\)"),
        (spoilt(np.nan), {"missing": "indicator"}, "states for what is missing need the rows in memory"),
        (np.column_stack([np.arange(5000), spoilt(np.nan)]), {}, "row 4321 .* column 1 "),
        (spoilt(-np.inf), {}, r"-inf in row 4321 .* drop or impute"),
        (spoilt(1e19), {}, r"value 1e\+19 in row 4321 .* is beyond 1e\+18"),
        (rows_of().round(), {}, r"'x0' \(integer: whole numbers .* leave out with --columns x0=drop"),
        (rows_of()[:, [0, 0]], {}, "a function of others"),
        (np.column_stack([rows_of(), np.ones(5000)]), {}, "constant"),
        (rows_of(), {"group": "x0"}, "group needs all rows in memory"),
        (rows_of(), {"split_by": "x0"}, "split_by needs all rows in memory"),
        (rows_of().astype(str), {}, "must hold numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:left out row numbers:jkoflow.data.DataWarning")
def test_what_needs_memory_is_refused_in_one_line(small_parts, tmp_path, x, options, match):
    np.save(tmp_path / "rows.npy", x)
    with pytest.raises(DataError, match=match) as refused:
        load_dataset(tmp_path / "rows.npy", options=TableOptions(**options), memory=LIMIT)
    assert "\n" not in str(refused.value)


def test_text_in_parquet_is_refused_with_the_fix_that_works(small_parts, tmp_path):
    path = tmp_path / "rows.parquet"
    columns = {"a": rows_of()[:, 0], "city": ["Bonn", "Rome"] * 2500, "b": rows_of()[:, 1]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(DataError, match=r"the column 'city' \(string\) must hold .* --columns city=drop"):
        load_dataset(path, memory=LIMIT)
    assert load_dataset(path, options=TableOptions(columns={"city": "drop"}), memory=LIMIT).features == ("a", "b")


def test_files_of_a_folder_must_be_alike(small_parts, tmp_path):
    folder = write(tmp_path / "folder", rows_of())
    pyarrow.parquet.write_table(pyarrow.table({"a": [1.0], "b": [1.0]}), folder / "half=1" / "z.parquet")
    with pytest.raises(DataError, match=r"z.parquet lacks the column 'c'"):
        load_dataset(folder, options=TableOptions(columns={"half": "drop"}), memory=LIMIT)


def test_a_damaged_parquet_file_is_told(small_parts, tmp_path):
    path = write(tmp_path / "rows.parquet", rows_of())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"damaged or not a \.parquet file"):
        load_dataset(path, memory=LIMIT)


def test_too_little_memory_tells_how_much_is_needed(tmp_path):
    source = write(tmp_path / "rows.npy", rows_of())
    with pytest.raises(DataError, match=r"memory = 0.3GB is too little for 5,000 rows of 3 columns, which need 590MB"):
        load_dataset(source, memory="300MB")


def test_other_kinds_of_file_are_refused_if_they_are_large(small_parts, tmp_path):
    path = tmp_path / "rows.csv"
    np.savetxt(path, rows_of(), delimiter=",")
    with pytest.raises(DataError, match=r"does not hold a .csv file of .* convert it to .npy or .parquet"):
        load_dataset(path, memory=LIMIT)


def test_a_full_disk_is_told_before_anything_is_written(small_parts, tmp_path, monkeypatch):
    source = write(tmp_path / "rows.npy", rows_of())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(mapped.ScratchError, match=r"need 0.0 GB of scratch files in .*, where 0.0 GB are free"):
        load_dataset(source, memory=LIMIT, scratch=tmp_path)


@pytest.mark.parametrize("text", ["", "GB", "0GB", "-1GB", "2 XB", "nan", "0.1B", 400 * "9"])
def test_a_limit_that_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="memory must be a size such as 2GB or 800MB"):
        jkoflow.TrainConfig(memory=text)


# ---- Runs


def test_a_run_resumes_from_its_data_and_leaves_no_scratch(small_parts, tmp_path):
    source = write(tmp_path / "rows.npy", rows_of())
    config = jkoflow.TrainConfig(**QUICK, memory=LIMIT, save_seconds=0.0)
    whole = jkoflow.train(load_dataset(source, memory=LIMIT), config)

    class StopError(Exception):
        pass

    class Stopping(jkoflow.training.Progress):
        def __init__(self):
            self.told = []

        def message(self, text):
            self.told.append(text)

        def update(self, block, iteration, numbers):
            if block == 1 and iteration > 5:
                raise StopError

        def start_round(self, number, kind, blocks): ...
        def start_block(self, block, iterations): ...
        def end_block(self, block, summary): ...

    run, stopping = tmp_path / "run", Stopping()
    with pytest.raises(StopError):
        jkoflow.train(load_dataset(source, memory=LIMIT, scratch=run), config, run_dir=run, progress=stopping)
    assert "5,000 rows are more than memory = 150KB holds: they lie in scratch files in" in stopping.told[0]
    again = jkoflow.train(load_dataset(source, memory=LIMIT, scratch=run), config, run_dir=run, resume=True)
    same_metrics(again.metrics, whole.metrics)
    assert RunDirectory(run).settings().config.memory == LIMIT
    assert not [file for file in run.iterdir() if "tmp" in file.name]
    other = jkoflow.TrainConfig(**QUICK, memory="1GB", save_seconds=0.0)
    with pytest.raises(RunError, match="memory"):
        jkoflow.train(load_dataset(source), other, run_dir=run, resume=True)


def test_the_command_takes_a_limit_and_keeps_it(small_parts, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from jkoflow.cli import training_run
    from jkoflow.cli.commands import app

    monkeypatch.setattr(training_run, "write_report", lambda run: run / "report.html")
    source, run = write(tmp_path / "rows.parquet", rows_of()), tmp_path / "run"
    (tmp_path / "settings.toml").write_text("hidden = [8]\niterations_per_block = 10\nmax_blocks = 1\n")
    command = ["train", str(source), "--out", str(run), "--config", str(tmp_path / "settings.toml")]
    done = CliRunner().invoke(app, [*command, "--memory", LIMIT])
    assert done.exit_code == 0, done.output
    assert f"they lie in scratch files in {tmp_path}" in done.output.replace("\n", "")
    assert 'memory = "150KB"' in (run / "config.toml").read_text()
    assert "already ended" in CliRunner().invoke(app, ["train", "--resume", str(run)]).output.replace("\n", " ")


def test_training_on_a_gpu_is_refused(small_parts, tmp_path):
    data = load_dataset(write(tmp_path / "rows.npy", rows_of()), memory=LIMIT)
    with pytest.raises(ValueError, match="memory bounds training on the CPU, got device = 'cuda'"):
        jkoflow.train(data, jkoflow.TrainConfig(device="cuda"))


# ---- Mapped tensors


def test_mapped_tensors_are_as_others(small_parts, tmp_path):
    rows = mapped.empty((3000, 3), torch.float32, tmp_path)
    plain = torch.randn(3000, 3)
    rows.copy_(plain)
    mapped.release(rows)
    places = torch.randint(0, 3000, (500,))
    mask = torch.rand(3000) < 0.3
    assert torch.equal(mapped.gather(rows, places), plain[places])
    assert torch.equal(mapped.select(rows, mask), plain[mask])
    assert mapped.is_mapped(mapped.select(rows, mask))
    assert torch.equal(torch.cat(list(mapped.parts(rows))), plain)
    assert len(list(mapped.parts(rows))) > 5
    assert len(list(mapped.parts(plain))) == 1
    order = mapped.permutation(rows, torch.Generator().manual_seed(4))
    assert order.dtype == torch.int32
    assert torch.equal(order.long(), torch.randperm(3000, generator=torch.Generator().manual_seed(4)))


def test_the_file_of_a_tensor_goes_with_it(tmp_path):
    rows = mapped.empty((1000, 3), torch.float32, tmp_path)
    view = rows[10:20]
    del rows
    assert mapped.is_mapped(view)
    assert list(tmp_path.iterdir()) == []
    before = len(mapped._FILES)
    del view
    assert len(mapped._FILES) == before - 1


# ---- Memory

MEASURED = """
import json, sys
import numpy, jkoflow, jkoflow.data
data = jkoflow.data.load_dataset(sys.argv[1], memory=sys.argv[2])
config = jkoflow.TrainConfig(max_blocks=1, hidden=(8,), num_steps=1, iterations_per_block=40, val_rows=500)
metrics = jkoflow.train(data, config).metrics
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"peak": 1024 * int(status["VmHWM"].split()[0]), "nll": metrics["test_nll"]}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_process_takes_no_more_than_its_limit(tmp_path):
    source, rows = tmp_path / "rows.npy", 1_000_000
    array = np.lib.format.open_memmap(source, "w+", np.float32, (rows, 4))
    rng = np.random.default_rng(0)
    for start in range(0, rows, 100_000):
        array[start : start + 100_000] = rng.standard_normal((100_000, 4), dtype=np.float32)
    del array
    limit = MemoryLimit.parse("600MB")
    assert not limit.holds(rows, 4)
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, str(source), "600MB"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["peak"] <= limit.limit
    assert abs(measured["nll"] - 4 * (0.5 + 0.5 * math.log(2 * math.pi))) < 0.05
