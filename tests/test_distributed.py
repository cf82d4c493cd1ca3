"""Several processes train one flow: with the numbers of one process, ending alike, and speaking with one voice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import jkoflow
from distributed_worker import BRIEF, given_context, of_a_table, rows, trained
from jkoflow.data import DataError, load_dataset, split_rows
from jkoflow.training.place import Place
from jkoflow.training.progress import Silent
from jkoflow.training.pushed import Batches, PushedSamples
from jkoflow.training.run_directory import RunDirectory
from jkoflow.training.trainer import Trainer
from jkoflow.training.world import World

WORKER = Path(__file__).with_name("distributed_worker.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
SECONDS = 300  # after which processes that wait for each other are taken for stuck


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes has seen in every case."""
    return world_of(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """What each of three processes has seen in every case."""
    return world_of(3, tmp_path_factory.mktemp("three"))


@pytest.fixture(params=["two", "three"])
def world(request):
    """Two processes, then three."""
    return request.getfixturevalue(request.param)


def world_of(size, folder):
    command = [sys.executable, str(WORKER)]
    processes = [
        subprocess.Popen([*command, str(rank), str(size), str(folder)], env=ENVIRONMENT, stderr=subprocess.PIPE)
        for rank in range(size)
    ]
    try:
        errors = [process.communicate(timeout=SECONDS)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * size, "\n".join(errors)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def seen(world, case):
    """What the processes have seen in a case, by the number of the process."""
    return [process[case]["result"] for process in world]


def alone(case, tmp_path):
    """What one process sees in a case, with the numbers that JSON has for them."""
    return json.loads(json.dumps(case(0, tmp_path)))


def close(found, expected, tolerance=2e-4):
    """Whether numbers, or lists of them, are the same but for rounding."""
    return torch.allclose(
        torch.tensor(found, dtype=torch.float64),
        torch.tensor(expected, dtype=torch.float64),
        rtol=tolerance,
        atol=tolerance,
        equal_nan=True,
    )


def test_the_numbers_are_those_of_one_process(world, tmp_path):
    expected, (first, *others) = alone(trained, tmp_path), seen(world, "trained")
    assert first["kinds"] == expected["kinds"]
    assert first["first_validation"] == expected["first_validation"]  # a row's result is its own: bit for bit
    assert abs(first["losses"][0] - expected["losses"][0]) < 1e-5
    assert close(first["losses"], expected["losses"])
    assert close(first["parameters"], expected["parameters"])
    numbers = {name: value for name, value in first["metrics"].items() if name != "train_seconds"}
    assert numbers.keys() == expected["metrics"].keys() - {"train_seconds"}
    for name, value in numbers.items():
        assert close(value, expected["metrics"][name], 5e-3 if "inversion" in name else 1e-3), name
    assert all(other == first for other in others)  # bit for bit, the history included


@pytest.mark.parametrize("case", [given_context, of_a_table])
def test_context_and_tables_too(two, tmp_path, case):
    expected, (first, *others) = alone(case, tmp_path), seen(two, case.__name__)
    assert all(other == first for other in others)
    name = "parameters" if "parameters" in first else "nll"
    assert close(first[name], expected[name])


def test_the_clock_of_the_first_process_decides(two):
    first, *others = seen(two, "by_the_clock_of_the_first")
    assert len(first["losses"]) > 1  # a clock by which the budget is over at once would leave hardly any
    assert all(other == first for other in others)


def test_other_rows_are_refused(world):
    for error in seen(world, "other_rows"):
        assert error["kind"] == "DriftError"
        assert "must have the same rows in the same order" in error["text"]
        assert "(process 1 differs from process 0)" in error["text"]


def test_a_signal_to_one_process_saves_and_ends_all(world):
    results, whole = seen(world, "signalled"), seen(world, "trained")[0]["digest"]
    for result in results:
        assert result["error"] == {"kind": "Interrupted", "text": "interrupted by SIGTERM"}
        assert "state.safetensors" in result["files"]
        assert "model.safetensors" not in result["files"]
        assert result["resumed"] == result["again"] == whole  # as if nothing had been
        assert result["occupied"]["kind"] == "RunError"
        assert "already holds a run" in result["occupied"]["text"]


def test_a_callback_is_called_in_the_first_process_and_its_failure_ends_all(world):
    first, *others = results = seen(world, "failing_to_tell")
    assert first["error"] == {"kind": "ZeroDivisionError", "text": "no room"}
    assert first["told"][0] == "start"
    assert first["told"][-1] == "validation"
    for other in others:
        assert other["error"] == {"kind": "UserError", "text": "no room (in process 0)"}
        assert other["told"] == []
    assert len({result["digest"] for result in results}) == 1


def test_a_failure_in_one_process_ends_all(world):
    _, one, *_ = results = seen(world, "failing_elsewhere")
    assert one["error"]["kind"] == "ZeroDivisionError"
    for result in results:
        if result is not one:
            assert result["error"]["kind"] == "LostProcessError"
            assert "start all processes again" in result["error"]["text"]
            assert len(result["error"]["text"].splitlines()) == 1
        assert result["after"] == results[0]["after"]


def test_processes_that_compute_otherwise_are_refused(two):
    for error in seen(two, "drifting"):
        assert error["kind"] == "DriftError"
        assert "the parameters of block 0 must be the same" in error["text"]


def test_what_is_exchanged(world):
    results = seen(world, "exchanged")
    size = len(results)
    for result in results:
        assert result["squares"]
        assert result["stacked"]
        assert result["gathered"]
        assert result["sums"] == [size, sum(range(size))]
        assert result["update"] == [size * (size + 1) / 2] * 29
        assert result["first"] == "of 0"
        assert result["fails"]["kind"] == "ZeroDivisionError"
    kinds = [result["together"]["kind"] for result in results]
    assert kinds == ["UserError", "ZeroDivisionError", *["UserError"] * (size - 2)]
    assert results[0]["together"]["text"].endswith("(in process 1)")


def test_only_the_first_process_warns(world):
    for rank, process in enumerate(world):
        texts = [text for case in process.values() for text in case["warnings"]]
        assert (rank == 0) == bool(texts)


def test_a_group_of_one_process_changes_no_bit(tmp_path):
    expected = trained(0, tmp_path)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert trained(0, tmp_path)["digest"] == expected["digest"]
    finally:
        dist.destroy_process_group()


def test_parts_of_batches_are_the_batches_of_one_process():
    values = torch.arange(103.0).reshape(-1, 1)
    whole = Batches(values, 20, seed=1, block=2)
    places = [Place(0, 50, 103), Place(50, 51, 103), Place(51, 51, 103), Place(51, 103, 103)]
    parts = [Batches(values[p.start : p.stop], 20, 1, 2, place=p) for p in places]
    for iteration in (7, 0, 4, 5, 23):
        together = torch.cat([part(iteration) for part in parts])
        assert together.sort(0).values.equal(whole(iteration).sort(0).values)


def test_rows_that_are_kept_are_those_of_one_process():
    values = torch.arange(50.0).reshape(-1, 1)
    whole = PushedSamples(values.clone(), values[:3], torch.zeros(3))
    parts = [
        PushedSamples(values[p.start : p.stop], values[:3], torch.zeros(3), place=p)
        for p in (Place(0, 20, 50), Place(20, 50, 50))
    ]
    for samples in (whole, *parts):
        samples.keep(17, 3, 4)
    assert torch.cat([part.train for part in parts]).equal(whole.train)
    assert [part.place.total for part in parts] == [17, 17]
    assert parts[0].place.stop == parts[1].place.start == len(parts[0].train)


def test_fewer_rows_than_processes_are_refused():
    class Many(World):
        size = 1000

    data = split_rows(rows(100), 0)
    with pytest.raises(DataError, match="80 training rows are fewer than the 1000 processes; start fewer"):
        Trainer(data, BRIEF, torch.device("cpu"), Many(), None, Silent())


# ---- The command

COMMAND = """
import os, signal
from jkoflow.cli import main
from jkoflow.training.fit import Fit
kept = Fit.iterate
def iterate(self):
    kept(self)
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and self.counters.iteration == 12:
        os.kill(os.getpid(), signal.SIGKILL)
Fit.iterate = iterate
main()
"""


def torchrun(size, *arguments, cwd, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    command += ["--max-restarts", str(restarts)]
    return subprocess.run(
        [*command, *arguments], env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True, timeout=SECONDS
    )


TRAIN = ["train", "rows.csv", "--config", "config.toml", "--out", "run"]


@pytest.fixture
def folder(tmp_path):
    """Where `TRAIN` finds its files, and a program whose second process is killed in the 12th iteration."""
    (tmp_path / "killed.py").write_text(COMMAND)
    data = ",".join(f"x{i}" for i in range(2)) + "\n" + "\n".join(f"{a},{b}" for a, b in rows().tolist())
    (tmp_path / "rows.csv").write_text(data)
    (tmp_path / "config.toml").write_text(
        "hidden = [4]\nmax_blocks = 2\niterations_per_block = 20\nbatch_size = 50\nnum_steps = 2\nsave_seconds = 0.0\n"
    )
    return tmp_path


def trained_alone(folder):
    """The run of `TRAIN`, and the flow and the history of one process with its settings."""
    run = RunDirectory(folder / "run")
    config = run.settings().config
    data = load_dataset(str(folder / "rows.csv"), config.seed)
    return run, *jkoflow.train(data, config, return_history=True)


def test_a_killed_process_ends_the_run_and_another_number_goes_on(folder):
    killed = torchrun(2, "killed.py", *TRAIN, cwd=folder)
    assert killed.returncode != 0
    told = [line for line in killed.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, killed.stderr
    assert "continue with: torchrun --standalone --nproc-per-node 2 -m jkoflow train --resume run" in told[0]
    assert RunDirectory(folder / "run").load_state().fit.counters.iteration in (11, 12)
    resumed = torchrun(3, "-m", "jkoflow", "train", "--resume", "run", cwd=folder)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("block 1: 20 iterations") == 1
    run, whole, history = trained_alone(folder)
    assert close(run.metrics()["test_nll"], whole.metrics["test_nll"])
    assert [r["event"] for r in run.history()] == [r["event"] for r in history]
    for ours, theirs in zip(run.model().parameters(), whole.parameters(), strict=True):
        assert close(ours.tolist(), theirs.tolist())


def test_torchrun_starts_the_processes_again(folder):
    result = torchrun(2, "killed.py", *TRAIN, cwd=folder, restarts=1)
    assert result.returncode == 0, result.stderr
    run, whole, history = trained_alone(folder)
    assert close(run.metrics()["test_nll"], whole.metrics["test_nll"])
    assert [r["event"] for r in run.history()] == [r["event"] for r in history]
