"""Log-densities of many rows on a cluster: Ray Data maps the model over batches, beside a plain loop in one process.

Each process reads the model once. The numbers are those of the loop, bit for bit: a row's log-density does not depend
on the rows it comes with. Without Ray (pip install "jkoflow[distributed]") only the loop runs.

    python examples/score_many.py            # a million rows on two CPUs
    python examples/score_many.py --quick    # few rows, without Ray; the flow is hardly trained
"""

import argparse
import importlib.util
import logging
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import jkoflow
from jkoflow.interop.ray import Score

parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
parser.add_argument("--quick", action="store_true", help="small settings, for a test")
quick = parser.parse_args().quick
count, batch = (4_000, 1_000) if quick else (1_000_000, 50_000)


def measurements(rows: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    load = random.gamma(4, 1, rows)
    noise = random.normal(0, 0.1, (rows, 2))
    return pd.DataFrame({"load": load, "heat": load**1.2 + noise[:, 0], "sound": np.sin(load) + noise[:, 1]})


config = jkoflow.TrainConfig(time_budget=2 if quick else 30)
flow = jkoflow.train(measurements(4_000, 0), config)
path = Path(tempfile.mkdtemp()) / "flow.safetensors"
flow.save(path)
rows = measurements(count, 1)

score = Score(path)
score(rows[:10])  # reads the model
begun = time.perf_counter()
plain = np.concatenate([score(rows[start : start + batch])["log_prob"] for start in range(0, count, batch)])
print(f"a loop in one process: {count / (time.perf_counter() - begun):,.0f} rows a second")

if quick or importlib.util.find_spec("ray") is None:
    print('left out: Ray, which the full example starts if it is installed; pip install "jkoflow[distributed]"')
else:
    warnings.simplefilter("ignore")  # of Ray's own
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.from_pandas(rows.reset_index()).repartition(4).materialize()
    begun = time.perf_counter()
    scored = data.map_batches(
        Score, fn_constructor_args=(str(path),), concurrency=2, batch_size=batch, batch_format="pandas"
    ).materialize()
    print(f"Ray, two actors: {count / (time.perf_counter() - begun):,.0f} rows a second, their start included")
    found = scored.to_pandas().sort_values("index")["log_prob"].to_numpy()
    assert np.array_equal(found, plain), "the numbers must be those of the loop"
    ray.shutdown()
