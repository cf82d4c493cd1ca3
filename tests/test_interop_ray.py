"""jkoflow.interop.ray: what map_batches is given, by itself and on a local cluster of Ray."""

import copy
import pickle

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch

import jkoflow
from jkoflow.data import DataError
from jkoflow.interop.ray import Score

CONFIG = jkoflow.TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=10, batch_size=100)


@pytest.fixture(scope="module")
def frame():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 400))
    return pd.DataFrame({"id": np.arange(400), "y": y + x, "x": x})


@pytest.fixture(scope="module")
def path(frame, tmp_path_factory):
    path = tmp_path_factory.mktemp("ray") / "flow.safetensors"
    jkoflow.train(frame[["x", "y"]], CONFIG).save(path)
    return path


@pytest.fixture(scope="module")
def expected(frame, path):
    return jkoflow.load(path).log_prob(frame[["x", "y"]]).numpy()


def test_batches_of_all_formats_keep_their_columns(frame, path, expected):
    score = Score(path)
    batches = (frame, pyarrow.Table.from_pandas(frame), {name: frame[name].to_numpy() for name in frame})
    for batch in batches:
        found = score(batch)
        assert type(found) is type(batch)
        assert list(getattr(found, "column_names", found)) == ["id", "y", "x", "log_prob"]
        assert np.array_equal(np.asarray(found["log_prob"]), expected)
        assert np.array_equal(np.asarray(found["id"]), frame["id"])
    assert np.array_equal(score({"data": frame[["x", "y"]].to_numpy(np.float32)})["log_prob"], expected)
    assert len(score(frame[:0])["log_prob"]) == 0


def test_options(frame, path, expected, tmp_path):
    close = Score(path, tol=1e-4, output="density")(frame)["density"]
    np.testing.assert_allclose(close, expected, atol=1e-2)
    assert np.array_equal(Score(path, num_steps=1)(frame)["log_prob"], jkoflow.load(path).log_prob(frame, num_steps=1))
    jkoflow.train(torch.from_numpy(np.stack([frame.x, frame.y], 1, dtype=np.float32)), CONFIG).save(
        tmp_path / "unnamed"
    )
    unnamed = Score(tmp_path / "unnamed", columns=["x", "y"])
    numbers = jkoflow.load(tmp_path / "unnamed").log_prob(np.stack([frame.x, frame.y], 1)).numpy()
    for batch in (frame, pyarrow.Table.from_pandas(frame), {name: frame[name].to_numpy() for name in frame}):
        np.testing.assert_allclose(np.asarray(unnamed(batch)["log_prob"]), numbers, rtol=1e-5)
    with pytest.raises(DataError, match="column 'id' already"):
        Score(path, output="id")(frame)


def test_it_travels_without_the_model(frame, path, expected):
    score = Score(path)
    score(frame)
    packed = pickle.dumps(score)
    assert len(packed) < 1000 < path.stat().st_size
    for again in (pickle.loads(packed), copy.copy(score)):
        assert np.array_equal(again(frame)["log_prob"], expected)


@pytest.mark.filterwarnings("ignore")  # of Ray's own, which are many; ours are tested above
def test_a_local_cluster(frame, path, expected):
    ray = pytest.importorskip("ray", reason="needs ray, of the extra distributed")
    pytest.importorskip("ray.data", reason="needs ray[data]")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.from_pandas(frame).repartition(3)
        for fn, options in (
            (Score(path), {"batch_format": "pyarrow"}),
            (Score, {"batch_format": "pandas", "fn_constructor_args": (str(path),), "concurrency": 1}),
        ):
            found = rows.map_batches(fn, batch_size=128, **options).to_pandas().sort_values("id")
            assert np.array_equal(found["log_prob"].to_numpy(), expected)
    finally:
        ray.shutdown()
