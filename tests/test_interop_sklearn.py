"""The estimator of scikit-learn: its own checks, what KernelDensity's tests ask, and how it works with the rest."""

import pickle

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.testing import assert_close

import jkoflow
from jkoflow.interop.sklearn import JKODensity

QUICK = {"iterations": 10, "hidden": (8,), "random_state": 0}


def two_bumps(count=400, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, 2)) * 0.5 + random.choice([-2.0, 2.0], (count, 1))


def mixed(count=200):
    random = np.random.default_rng(0)
    level = random.normal(size=count)
    return pd.DataFrame({"level": level, "kind": np.where(level + random.normal(size=count) > 0, "high", "low")})


@pytest.fixture(scope="module")
def fitted():
    return JKODensity(iterations=150, hidden=(16, 16), random_state=0).fit(two_bumps())


@parametrize_with_checks([JKODensity(iterations=5, hidden=(8,))])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


# ---- Scores


def test_scores_are_log_densities_of_the_flow(fitted):
    rows = two_bumps(50, 1)
    scores = fitted.score_samples(rows)
    assert scores.dtype == np.float64
    assert_close(scores, fitted.flow_.log_prob(rows).double().numpy())
    assert fitted.score(rows) == pytest.approx(scores.mean())
    assert_close(JKODensity(**QUICK, tol=1e-3).fit(rows).score_samples(rows[:3]).shape, (3,))


def test_a_density_integrates_to_one():
    rows = two_bumps()[:, :1]
    density = JKODensity(iterations=50, hidden=(16,), random_state=0).fit(rows)
    line = np.linspace(-12, 12, 4001)
    assert np.trapezoid(np.exp(density.score_samples(line[:, None])), line) == pytest.approx(1, abs=1e-2)


def test_it_beats_the_gaussian_and_the_untrained_by_the_number_that_a_search_compares(fitted):
    new = two_bumps(400, 1)
    assert fitted.score(new) > GaussianMixture(1).fit(two_bumps()).score(new) + 0.3
    assert fitted.score(new) > JKODensity(**QUICK).fit(two_bumps()).score(new)


def test_a_score_does_not_depend_on_the_number_of_rows(fitted):
    rows = two_bumps(60, 1)
    assert fitted.score(rows) == pytest.approx(fitted.score(np.concatenate([rows, rows])))


# ---- Samples, and the map to noise


def test_samples_are_repeatable_and_of_the_density(fitted):
    first = fitted.sample(500, random_state=3)
    assert isinstance(first, np.ndarray)
    assert first.shape == (500, 2)
    assert np.array_equal(first, fitted.sample(500, random_state=3))
    assert not np.array_equal(first, fitted.sample(500, random_state=4))
    assert not np.array_equal(fitted.sample(2), fitted.sample(2))
    assert fitted.sample().shape == (1, 2)
    assert fitted.score(first) == pytest.approx(fitted.score(fitted.sample(500, np.random.RandomState(7))), abs=0.2)
    assert abs((first[:, 0] > 0).mean() - 0.5) < 0.1


def test_transform_is_inverted_and_makes_rows_gaussian(fitted):
    rows = two_bumps(400, 1)
    noise = fitted.transform(rows)
    assert np.abs(fitted.inverse_transform(noise) - rows).max() < 0.01
    assert np.abs(np.cov(noise.T) - np.eye(2)).max() < 0.35
    assert fitted.get_feature_names_out().tolist() == ["jkodensity0", "jkodensity1"]
    with pytest.raises(ValueError, match=r"\(B, 2\)"):
        fitted.inverse_transform(noise[:, :1])


@pytest.mark.parametrize(("container", "frame"), [("pandas", pd.DataFrame), ("polars", pl.DataFrame)])
def test_frames_come_out_where_set_output_asks(container, frame):
    rows = pd.DataFrame(two_bumps(100), columns=["a", "b"])
    density = JKODensity(**QUICK).set_output(transform=container).fit(rows)
    assert density.feature_names_in_.tolist() == ["a", "b"]
    for made, names in (
        (density.sample(3), ["a", "b"]),
        (density.transform(rows), ["jkodensity0", "jkodensity1"]),
        (density.inverse_transform(rows), ["a", "b"]),
    ):
        assert isinstance(made, frame)
        assert list(made.columns) == names
    assert isinstance(density.set_output(transform="default").sample(3), np.ndarray)


# ---- Rows


def test_frames_and_arrays_make_the_same_flow():
    rows = two_bumps(100)
    wanted = JKODensity(**QUICK).fit(rows).score_samples(rows)
    for frame in (pd.DataFrame(rows, columns=["a", "b"]), pl.DataFrame(rows, schema=["a", "b"])):
        density = JKODensity(**QUICK).fit(frame)
        assert np.array_equal(density.score_samples(frame), wanted)
        with pytest.raises(ValueError, match="feature names"):
            density.score_samples(frame[["b", "a"]])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_of_mixed_columns_are_scored_and_sampled(library):
    rows = mixed() if library == "pandas" else pl.from_pandas(mixed())
    density = JKODensity(**QUICK).fit(rows)
    assert isinstance(density.flow_, jkoflow.TableFlow)
    assert np.isfinite(density.score_samples(rows)).all()
    unknown = (
        rows.head(1).assign(kind="none") if library == "pandas" else rows.head(1).with_columns(kind=pl.lit("none"))
    )
    assert density.score_samples(unknown).tolist() == [-np.inf]
    drawn = density.sample(5, random_state=0)
    assert drawn.dtype == object
    assert set(drawn[:, 1]) <= {"high", "low"}
    named = density.set_output(transform=library).sample(5, random_state=0)
    assert list(named.columns) == ["level", "kind"]
    assert named["kind"].to_list() == drawn[:, 1].tolist()
    with pytest.raises(ValueError, match=r"transform needs real numbers, and 'kind' hold others; encode them"):
        density.transform(rows)


@pytest.mark.filterwarnings("ignore::jkoflow.data.DataWarning")  # of columns taken for counts
def test_numbers_are_real_unless_other_kinds_are_told():
    rows = np.random.default_rng(0).poisson(3, (300, 2)).astype(float)
    rows[:, 1] += np.random.default_rng(1).normal(size=300)
    assert isinstance(JKODensity(**QUICK).fit(rows).flow_, jkoflow.JKOFlow)
    for columns in ("auto", {"x0": "integer"}):
        density = JKODensity(**QUICK, columns=columns).fit(rows)
        assert isinstance(density.flow_, jkoflow.TableFlow)
        assert (density.sample(20, random_state=0)[:, 0] % 1 == 0).all()
        assert density.score_samples([[0.5, 1.0]]).tolist() == [-np.inf]


@pytest.mark.parametrize("count", [10, 50])
def test_few_rows_are_enough(count):
    assert np.isfinite(JKODensity(random_state=0).fit(two_bumps(count)).score(two_bumps()))


@pytest.mark.parametrize("count", [1, 2, 9])
def test_too_few_rows_are_refused(count):
    with pytest.raises(ValueError, match=rf"{count} sample\(s\) .* minimum of 10 is required by JKODensity"):
        JKODensity().fit(two_bumps(count))


def test_a_constant_column_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^column 1 is constant in train .*remove it from the data$"):
        JKODensity().fit(two_bumps() * [1, 0])


# ---- Parameters


def test_a_random_state_makes_a_fit_repeatable():
    rows = two_bumps(100)
    scores = [JKODensity(**QUICK | {"random_state": seed}).fit(rows).score(rows) for seed in (0, 0, 1, None, None)]
    assert scores[0] == scores[1]
    assert len(set(scores)) == 4


def test_clones_and_copies(fitted, tmp_path):
    config = jkoflow.TrainConfig(activation="silu", iterations_per_block=3)
    density = clone(JKODensity(config=config, hidden=[8], random_state=0)).fit(two_bumps(100))
    assert density.flow_.blocks[0].velocity.activation.name == "silu"
    assert max(record.get("iteration", 0) for record in density.history_) == 3
    joblib.dump(fitted, tmp_path / "density")
    rows = two_bumps(20, 1)
    for copy in (pickle.loads(pickle.dumps(fitted)), joblib.load(tmp_path / "density")):
        assert np.array_equal(copy.score_samples(rows), fitted.score_samples(rows))
        assert np.array_equal(copy.sample(3, 0), fitted.sample(3, 0))


def test_a_time_budget_is_another_length():
    assert not JKODensity().__sklearn_tags__().non_deterministic
    density = JKODensity(time_budget=0.5, hidden=(8,)).fit(two_bumps(100))
    assert density.__sklearn_tags__().non_deterministic
    assert np.isfinite(density.score(two_bumps()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iterations": 5, "time_budget": 1.0}, r"iterations=5 and time_budget=1.0; give one of them"),
        ({"columns": "kinds"}, "'columns' parameter of JKODensity must be .*'auto'.* Got 'kinds'"),
        ({"iterations": 0}, r"'iterations' parameter of JKODensity must be an int in the range \[1, inf\)"),
        ({"hidden": 8}, "'hidden' parameter of JKODensity must be an array-like"),
        ({"config": {"hidden": [8]}}, "'config' parameter of JKODensity must be an instance of .*TrainConfig"),
        ({"columns": {"x7": "integer"}}, "there is no column 'x7'"),
    ],
)
def test_wrong_parameters_are_refused_by_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        JKODensity(**arguments).fit(two_bumps(100))


def test_a_fit_is_quiet_unless_told(capfd):
    JKODensity(**QUICK).fit(two_bumps(100))
    assert capfd.readouterr() == ("", "")
    JKODensity(**QUICK, verbose=True).fit(two_bumps(100))
    assert "[JKODensity] block 1: NLL of held-out rows" in capfd.readouterr().out


# ---- With the rest of scikit-learn


def test_a_search_over_two_processes_finds_the_better_density():
    search = GridSearchCV(
        JKODensity(hidden=(16,), random_state=0), {"iterations": [1, 100]}, n_jobs=2, cv=2, error_score="raise"
    ).fit(two_bumps(200))
    assert search.best_params_ == {"iterations": 100}
    assert search.score(two_bumps(50, 1)) == search.best_estimator_.score(two_bumps(50, 1))


def test_pipelines_before_and_behind_it():
    rows = two_bumps(200)
    scaled = make_pipeline(StandardScaler(), JKODensity(**QUICK)).fit(rows)
    units = np.log(scaled[0].scale_).sum()
    assert scaled.score(rows) - units == pytest.approx(JKODensity(**QUICK).fit(rows).score(rows), abs=0.05)
    assert np.isfinite(cross_val_score(scaled, rows, cv=2)).all()
    regression = make_pipeline(JKODensity(**QUICK), LinearRegression()).fit(rows, rows.sum(1))
    assert regression.score(rows, rows.sum(1)) > 0.9
