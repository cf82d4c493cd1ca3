"""The Python of the documentation's pages runs as it stands, page by page, in small settings.

`make site` runs the notebooks; their plain blocks run here, too.
"""

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import parquet

import jkoflow
from documents import ROOT, blocks
from jkoflow.images import Autoencoder, AutoencoderConfig

SMALL = {"hidden": (8,), "max_blocks": 1, "iterations_per_block": 5, "batch_size": 50}
ROWS = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))


def code_of(page):
    return [block for block in blocks(page.read_text()) if block.language == "python"]


PAGES = {str(page.relative_to(ROOT)): page for page in sorted((ROOT / "docs").rglob("*.md")) if code_of(page)}


def a_flow(columns=2, context=0):
    velocity = jkoflow.MLPVelocity(columns, hidden=(8,), context_dim=context)
    return jkoflow.JKOFlow(columns, [jkoflow.Block(velocity, num_steps=2)])


def leave_rows():
    """Leaves rows where pages take them from: in folders of Parquet files, and in an array."""
    np.save("rows.npy", ROWS.numpy())
    for name in ("folder", "rows", "new"):
        Path(name).mkdir()
        pd.DataFrame(ROWS.numpy(), columns=["x", "y"]).to_parquet(Path(name) / "part.parquet")


def leave_run(path, columns=2):
    Path(path).mkdir(parents=True)
    a_flow(columns).save(Path(path) / "model.safetensors")


def for_distributed(monkeypatch, request):
    """A process group of one."""
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    request.addfinalizer(torch.distributed.destroy_process_group)
    return {"rows": ROWS, "config": jkoflow.TrainConfig(**SMALL)}


def for_dropin(monkeypatch, request):
    """What a user of each library has."""
    pytest.importorskip("lampe.inference", reason="needs the extra interop")
    utils = pytest.importorskip("sbi.utils", reason="needs the extra interop")
    importlib.import_module("jkoflow.interop.zuko")
    noise = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
    flow = {"flow": a_flow(context=1), "context": torch.zeros(10, 1), "noise": noise, "x": ROWS[:20]}
    prior = utils.BoxUniform(-torch.ones(2), torch.ones(2))
    sbi = {"NPE": importlib.import_module("sbi.inference").NPE, "prior": prior}
    rows = ROWS[:150].numpy()
    return {**flow, **sbi, "lampe": importlib.import_module("lampe"), "X": rows, "new": rows[:5]}


def for_experiments(monkeypatch, request):
    """A run of pictures of 8 x 8."""
    leave_run("runs/fashion", columns=16)
    config = AutoencoderConfig(channels=(4,))
    Autoencoder(8, 8, channels=(4,)).save("runs/fashion/autoencoder.safetensors", config, seed=0)
    return {}


def for_large_data(monkeypatch, request):
    """Rows in files, and trainings that are short whatever the page asks for."""
    leave_rows()
    train = jkoflow.train
    monkeypatch.setattr(
        jkoflow, "train", lambda rows, config, **more: train(rows, dataclasses.replace(config, **SMALL), **more)
    )
    return {"np": np}


class OnePart:
    """Rows of Parquet as Ray Data has them, in one part in this process; tests/test_interop_ray.py has Ray itself."""

    def __init__(self, table):
        self.table = table

    def map_batches(self, function, batch_format):
        assert batch_format == "pyarrow"
        return OnePart(function(self.table))

    def write_parquet(self, folder):
        Path(folder).mkdir()
        parquet.write_table(self.table, Path(folder) / "part.parquet")


def for_ray(monkeypatch, request):
    """Finished runs, and Ray's names."""
    leave_rows()
    leave_run("runs/first")
    leave_run("runs/two")
    ray = SimpleNamespace(data=SimpleNamespace(read_parquet=lambda folder: OnePart(parquet.read_table(folder))))
    monkeypatch.setitem(sys.modules, "ray", ray)
    return {"ray": ray, "Score": importlib.import_module("jkoflow.interop.ray").Score}


def for_export(monkeypatch, request):
    """An exported flow; tests/test_exporting.py compiles one for AOTInductor, and runs one in ONNX Runtime."""
    flow, x = a_flow(), ROWS[:5]
    jkoflow.export(flow, "flow.pt2")

    class Compiled:
        def __call__(self, rows):
            return (flow.log_prob(rows),)

        def get_metadata(self):
            return {}

    class Session:
        def __init__(self, path):
            self.path = path

        def get_modelmeta(self):
            return SimpleNamespace(custom_metadata_map={})

        def run(self, outputs, inputs):
            return [flow.log_prob(torch.as_tensor(inputs["x"])).detach().numpy()]

    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: Compiled())
    return {"json": json, "x": x, "onnxruntime": SimpleNamespace(InferenceSession=Session)}


class Tracker:
    """What Weights & Biases and MLflow have in common with a context manager that takes everything."""

    def __init__(self):
        self.summary = {}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def __getattr__(self, name):
        return lambda *values, **named: Tracker()


def for_logging(monkeypatch, request):
    """Trackers that take everything; tests/test_events.py looks at what they get."""
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, Tracker())
    return {"rows": ROWS, "config": jkoflow.TrainConfig(**SMALL)}


PREPARE = {
    "docs/export.md": for_export,
    "docs/logging.md": for_logging,
    "docs/distributed.md": for_distributed,
    "docs/dropin.md": for_dropin,
    "docs/experiments.md": for_experiments,
    "docs/large_data.md": for_large_data,
    "docs/scale.md": for_ray,
    "docs/tutorials/many_machines.md": for_ray,
}
"""What gives the names and files that a page takes for given; other pages need none but torch and jkoflow."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of lampe, sbi
@pytest.mark.filterwarnings("ignore::jkoflow.data.DataWarning")  # of rows that are few
@pytest.mark.parametrize("name", PAGES)
def test_python_of_a_page(name, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    names = {"jkoflow": jkoflow, "torch": torch}
    names |= PREPARE.get(name, lambda *fixtures: {})(monkeypatch, request)
    for block in code_of(PAGES[name]):
        place = "\n" * block.line + block.text  # so that a traceback names the page's line
        exec(compile(place, name, "exec"), names)
