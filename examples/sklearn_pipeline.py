"""A flow in the place of scikit-learn's density estimators, on a DataFrame: pipeline, search, anomalies, samples.

Hourly measurements of a gas turbine. KernelDensity and GaussianMixture choose their best settings by cross-validation
first; then all three are compared on rows that none of them has seen, and the flow ranks damaged rows among sound ones.

    python examples/sklearn_pipeline.py            # some two minutes on one core
    python examples/sklearn_pipeline.py --quick    # small settings; the flow is not trained to its end
"""

import argparse
import time
import warnings

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from jkoflow.data import Dataset, DataWarning, load_dataset
from jkoflow.interop.sklearn import JKODensity

parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
parser.add_argument("--quick", action="store_true", help="small settings, for a test")
quick = parser.parse_args().quick
rows, new_rows = (800, 400) if quick else (6000, 3000)

warnings.simplefilter("ignore", DataWarning)  # of a few readings far out, which every fold would tell again
data = load_dataset("gasturbine")
assert isinstance(data, Dataset)  # plain numbers, split already
frame = pd.DataFrame(data.train.numpy()[:rows], columns=data.features)
new = pd.DataFrame(data.test.numpy()[:new_rows], columns=data.features)

# A flow is searched like the others: by the mean log-likelihood of rows that are held out.
iterations = [20, 60] if quick else [300, 2000]
searches = {
    "KernelDensity": (KernelDensity(), {"density__bandwidth": np.geomspace(0.05, 1.0, 4 if quick else 10)}),
    "GaussianMixture": (GaussianMixture(random_state=0), {"density__n_components": [1, 5] if quick else [5, 20, 50]}),
    "JKODensity": (JKODensity(hidden=(32, 32) if quick else None, random_state=0), {"density__iterations": iterations}),
}
found = {}
print(f"{'estimator':16} {'best setting':22} {'log-likelihood of a new row':28} seconds")
for name, (estimator, grid) in searches.items():
    begun = time.perf_counter()
    pipeline = Pipeline([("scale", StandardScaler()), ("density", estimator)])
    search = GridSearchCV(pipeline, grid, cv=2 if quick else 3).fit(frame)
    found[name] = search.best_estimator_
    score = search.best_estimator_.score_samples(new).mean()
    best = ", ".join(f"{key.removeprefix('density__')}={value:.4g}" for key, value in search.best_params_.items())
    print(f"{name:16} {best:22} {score:10.3f} nats, scaled units {time.perf_counter() - begun:12.1f}")

# Anomalies: one reading of a sound row is exchanged for that of another row, so that no reading alone is unusual.
random = np.random.default_rng(0)
damaged = new.copy()
for row, column in enumerate(random.integers(0, new.shape[1], len(new))):
    damaged.iat[row, column] = new.iat[random.integers(len(new)), column]
labels = np.repeat([0, 1], len(new))
areas = {name: roc_auc_score(labels, -model.score_samples(pd.concat([new, damaged]))) for name, model in found.items()}
print("area under the ROC curve of the damaged rows:", ", ".join(f"{name} {area:.3f}" for name, area in areas.items()))
assert areas["JKODensity"] > 0.6, "the flow must rank damaged rows as less likely"

# DataFrame in, DataFrame out: samples under the columns' names, and a map to independent Gaussian noise and back.
density = JKODensity(iterations=50 if quick else 1000, random_state=0).set_output(transform="pandas").fit(frame)
samples = density.sample(3, random_state=0)
back = density.inverse_transform(density.transform(new))
print(samples.round(2).to_string(index=False))
assert list(samples.columns) == list(frame.columns)
assert np.abs(back - new).max().max() < 0.02 * frame.std().max(), "the map to noise must be invertible"
