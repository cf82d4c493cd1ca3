"""A disk that fails at any write, flush or rename loses no file that was whole, and the run goes on from there."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

import jkoflow
from jkoflow import TrainConfig
from jkoflow.training.run_directory import FILES, HISTORY_FILE, STATE_FILE, RunDirectory
from soak import amount

CONFIG = TrainConfig(hidden=(4,), max_blocks=2, iterations_per_block=30, batch_size=50, num_steps=2, save_seconds=0.0)
ROWS = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))


class Disk:
    """Counts calls of the operating system's functions for one directory, and fails at one of them."""

    def __init__(self, monkeypatch, folder):
        self.folder, self.calls, self.fails_at = str(folder), 0, None
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self._counting(getattr(os, name)))
        fdopen = os.fdopen

        def opened(handle, *arguments, **named):
            file = fdopen(handle, *arguments, **named)
            if "b" in (arguments or ("",))[0]:
                return Watched(file, self._count)
            return file

        monkeypatch.setattr(os, "fdopen", opened)

    def _count(self):
        self.calls += 1
        if self.calls == self.fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _counting(self, call):
        def counted(*arguments, **named):
            self._count()
            return call(*arguments, **named)

        return counted


class Watched:
    """A file whose writes may fail half way."""

    def __init__(self, file, count):
        self._file, self._count = file, count

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.__exit__(*error)

    def write(self, content):
        try:
            self._count()
        except OSError:
            self._file.write(content[: len(content) // 2])
            raise
        return self._file.write(content)


def results(path):
    metrics = RunDirectory(path).metrics()
    history = [json.loads(line) for line in (path / HISTORY_FILE).read_text().splitlines()]
    for record in (metrics, *metrics["rounds"], *history):
        for name in ("seconds", "train_seconds"):
            record.pop(name, None)
    return metrics, history, (path / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    jkoflow.train(ROWS, CONFIG, run_dir=path)
    return results(path)


def test_a_run_goes_on_after_any_failure_of_the_disk(tmp_path, monkeypatch, whole):
    disk = Disk(monkeypatch, tmp_path)
    jkoflow.train(ROWS, CONFIG, run_dir=tmp_path / "counted")
    total, tries = disk.calls, amount(12, 400)
    assert total > 100
    for fails_at in sorted({1 + (total - 1) * each // (tries - 1) for each in range(tries)}):
        path = tmp_path / str(fails_at)
        disk.calls, disk.fails_at = 0, fails_at
        with pytest.raises(OSError, match="No space left"):
            jkoflow.train(ROWS, CONFIG, run_dir=path)
        disk.fails_at = None
        assert not list(path.glob("*.tmp"))
        assert not list(path.glob(".*.tmp"))
        begun = RunDirectory(path).holds_run()
        jkoflow.train(ROWS, CONFIG, run_dir=path, resume=begun)
        assert results(path) == whole, f"failure {fails_at} of {total}"
        assert {entry.name for entry in path.iterdir()} <= set(FILES) - {STATE_FILE}


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_model_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, failing):
    flow = jkoflow.train(ROWS, TrainConfig(hidden=(4,), max_blocks=1, iterations_per_block=2, batch_size=50))
    path = tmp_path / "model"
    flow.save(path)
    before = path.read_bytes()

    def fail(*arguments, **named):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(OSError, match="Input/output"):
            flow.refine(2).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in Path(tmp_path).iterdir()] == ["model"]
