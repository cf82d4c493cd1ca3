"""What version 0.1 has left behind, kept in the folder version_0_1, is read and gone on with.

There: a finished model, and the run directory of the same training as it was in the middle of its second round.
"""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from jkoflow import JKOFlow, TrainConfig, train
from jkoflow.checkpoint import OldFormatWarning
from jkoflow.data import split_rows
from jkoflow.training.run_directory import RunDirectory
from jkoflow.training.state import RunError

old_format = pytest.mark.filterwarnings("ignore::jkoflow.checkpoint.OldFormatWarning")
LEFT = Path(__file__).parent / "version_0_1"


def rows():
    return split_rows(torch.from_numpy(np.load(LEFT / "rows.npy")))


@pytest.fixture
def interrupted(tmp_path):
    return shutil.copytree(LEFT / "interrupted", tmp_path / "run")


@old_format
def test_a_model_gives_its_densities():
    flow = JKOFlow.load(LEFT / "model.safetensors")
    found = flow.log_prob(torch.tensor([[0.5, 1.0], [1.0, 2.0], [3.0, 0.2]]))
    torch.testing.assert_close(found, torch.tensor([-1.1850233, -3.1616340, -3.6638408]), rtol=0, atol=2e-5)
    assert [block.jko_step for block in flow.stack] == [block.step_size for block in flow.stack]


def test_a_model_says_that_its_description_is_not_covered_until_it_is_saved(tmp_path):
    with pytest.warns(OldFormatWarning, match=r"model\.safetensors was written by version 0\.1") as caught:
        flow = JKOFlow.load(LEFT / "model.safetensors")
    assert caught[0].filename == __file__
    flow.save(tmp_path / "again.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = JKOFlow.load(tmp_path / "again.safetensors")
    assert again.describe() == flow.describe()
    assert all(map(torch.equal, again.state_dict().values(), flow.state_dict().values()))


def test_settings_have_their_present_names(interrupted):
    settings = RunDirectory(interrupted).settings()
    assert (settings.config.jko_step, settings.config.jko_step_growth, settings.config.jko_step_max) == (0.4, 1.2, 2.0)
    assert "step_size = 0.4" in (interrupted / "config.toml").read_text()


@old_format
def test_a_run_goes_on_and_ends_no_worse_than_it_would_have(interrupted):
    before = (interrupted / "history.jsonl").read_bytes()
    config = RunDirectory(interrupted).settings().config
    flow = train(rows(), config, run_dir=interrupted, resume=True)
    metrics = json.loads((interrupted / "metrics.json").read_text())
    assert [record["kind"] for record in metrics["rounds"]] == ["build", "reparametrize"]
    # 1.2342146 of 0.1 itself, whose guard and rates were others
    assert 1.2342146 - 0.1 < metrics["test_nll"] < 1.2342146 + 0.02
    finished = JKOFlow.load(LEFT / "model.safetensors")
    x = rows().test
    assert float((flow.log_prob(x) - finished.log_prob(x)).mean()) == pytest.approx(0.0, abs=0.1)
    kept = [json.loads(line) for line in before.splitlines()]
    after = RunDirectory(interrupted).history()
    places = [(r["event"], r["round"], r.get("block"), r.get("iteration"), r.get("action")) for r in after]
    assert len(places) == len(set(places)), "no event twice"
    assert after[: len(kept)] == kept
    assert not (interrupted / "state.safetensors").exists()


@old_format
def test_other_settings_are_still_refused(interrupted):
    config = RunDirectory(interrupted).settings().config
    other = TrainConfig.from_mapping({**config.to_mapping(), "jko_step": 0.5})
    with pytest.raises(RunError, match=r"jko_step = 0.5 \(was 0.4\)"):
        train(rows(), other, run_dir=interrupted, resume=True)
