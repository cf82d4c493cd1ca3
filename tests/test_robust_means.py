"""A row whose density is not finite, or that is far outside, decides no mean alone: it is named, and left out."""

import dataclasses
import json
import math
import re

import pytest
import torch

from jkoflow import Block, JKOFlow, MLPVelocity, TrainConfig, metrics, train
from jkoflow.cli import console
from jkoflow.data import DataError, Dataset, DataWarning, split_rows
from jkoflow.left_out import RowNames
from jkoflow.links import Link
from jkoflow.report import write_report
from jkoflow.training.evaluation import evaluate
from jkoflow.training.fit import Fit
from jkoflow.training.guard import guard_samples
from jkoflow.training.progress import Silent

TINY = TrainConfig(
    initial_map="none", first_layer_scale=1.0, hidden=(8,), max_blocks=2, iterations_per_block=30, batch_size=100,
    num_steps=2,
)  # fmt: skip


class Messages(Silent):
    def __init__(self):
        self.texts = []

    def message(self, text):
        self.texts.append(text)


def ring(rows):
    angle = torch.rand(rows) * 2 * math.pi
    return torch.stack([angle.cos(), angle.sin()], 1) + 1e-3 * torch.randn(rows, 2)


def clusters(rows):
    return torch.randn(rows, 2) + 3 * torch.randint(-1, 2, (rows, 1))


def parts(make=ring, **changed):
    """Data in three parts, of which some are changed."""
    torch.manual_seed(0)
    rows = {"train": make(1000), "val": make(300), "test": make(200)}
    rows |= {part: change(rows[part]) for part, change in changed.items()}
    return Dataset("data", **rows, features=("a", "b"), links=(Link(), Link()))  # links would bring far rows near


def with_row(number, row):
    """Puts a row in the place of another."""

    def change(rows):
        rows = rows.clone()
        rows[number] = torch.as_tensor(row)
        return rows

    return change


def results_of(data, tmp_path, config=TINY, progress=None):
    flow = train(data, config, run_dir=tmp_path / "run", progress=progress)
    return flow, json.loads((tmp_path / "run/metrics.json").read_text())


def overflowing_flow(beyond, dim=2):
    """The density is inf where the first column is greater than a number, since the block overflows there."""
    flow = JKOFlow(dim, [Block(MLPVelocity(dim, (4,)), 1)]).requires_grad_(False)
    flow.blocks[0].velocity.scale_output(0.0)

    def overflow(block, args, output):
        y, logdet = output
        return y, torch.where(args[0][:, 0] > beyond, math.inf, logdet)

    flow.blocks[0].register_forward_hook(overflow)
    return flow


# ------------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("bad", [[0], [17], [499], [3, 400]])
@pytest.mark.parametrize("value", [1e20, 1e30])
def test_a_mean_leaves_out_what_is_too_far_and_names_it(bad, value):
    torch.manual_seed(0)
    flow, x = JKOFlow(2), torch.randn(500, 2)
    rest = torch.ones(500, dtype=torch.bool)
    rest[bad] = False
    clean = metrics.mean_nll(flow, x[rest])
    x[bad] = value
    first = f"row {bad[0]}" if len(bad) == 1 else f"the first is row {bad[0]}"
    text = rf"no finite density for {len(bad)} of 500 rows of x \({first}, counting from 0\): too far outside"
    with pytest.warns(DataWarning, match=text):
        found = metrics.mean_nll(flow, x)
    assert found == clean
    with pytest.warns(DataWarning, match=text):
        result = metrics.step_converged_nll(flow, x)
    assert result.converged
    assert result.left_out == len(bad)
    assert result.nll == pytest.approx(clean[0], abs=1e-12)
    with pytest.warns(DataWarning, match=text):
        metrics.calibrate(flow, x)


@pytest.mark.parametrize(
    ("beyond", "text"), [(2.9, "the blocks overflow there.*train with rows like them"), (-1.0, "training has diverged")]
)
def test_the_cause_is_told_where_blocks_overflow(beyond, text):
    torch.manual_seed(0)
    x = torch.randn(1000, 2)
    with pytest.warns(DataWarning, match=f"no finite density for .* of 1000 rows of x .*{text}"):
        nll, _ = metrics.mean_nll(overflowing_flow(beyond), x)
    assert math.isfinite(nll)


def test_both_causes_are_told_apart():
    torch.manual_seed(0)
    x = torch.randn(1000, 2)
    x[5], x[6, 0] = 1e25, 4.0
    with pytest.warns(DataWarning) as told:
        metrics.mean_nll(overflowing_flow(3.9), x)
    texts = [str(warning.message) for warning in told]
    assert len(texts) == 2
    assert "1 of 1000 rows of x (row 5, counting from 0): too far" in texts[0]
    assert "1 of 1000 rows of x (row 6, counting from 0): the blocks overflow there" in texts[1]


def test_a_row_that_overflows_on_coarse_grids_only_is_not_converged_and_decides_nothing_unnamed():
    """Euler steps of a quickly contracting field overflow until they are short enough."""
    velocity = MLPVelocity(2, (4,), linear=True)
    velocity.scale_output(0.0)
    with torch.no_grad():
        velocity.linear.weight.copy_(-1e3 * torch.eye(2))
    flow = JKOFlow(2, [Block(velocity, 16, "euler")]).requires_grad_(False)
    torch.manual_seed(0)
    x = torch.zeros(100, 2)
    x[7] = 1.0
    with pytest.warns(DataWarning, match=r"1 of 100 rows of x \(row 7"):
        result = metrics.step_converged_nll(flow, x, 16, max_num_steps=32)
    assert result.left_out == 1
    result = metrics.step_converged_nll(flow, x, 1024, max_num_steps=4096)
    assert result.left_out == 0


def test_a_row_that_alone_makes_the_change_is_known():
    velocity = MLPVelocity(2, (4,), linear=True)
    velocity.scale_output(0.0)
    with torch.no_grad():
        velocity.linear.weight.copy_(torch.tensor([[0.0, 2.0], [-2.0, 0.0]]))
    flow = JKOFlow(2, [Block(velocity, 1, "euler")]).requires_grad_(False)
    torch.manual_seed(0)
    x = 0.1 * torch.randn(200, 2)
    x[33] = 30.0
    result = metrics.step_converged_nll(flow, x, max_num_steps=8)
    assert not result.converged
    assert result.decisive == 33
    assert metrics.step_converged_nll(flow, 0.1 * torch.randn(200, 2), max_num_steps=8).decisive is None
    told = []
    data = parts(lambda n: 0.1 * torch.randn(n, 2), test=with_row(33, [30.0, 30.0]))
    flow.blocks[0].velocity.linear.weight.mul_(40)
    results = evaluate(flow, data, 300, tell=told.append)
    assert not results["test_nll_converged"]
    (text,) = [text for text in told if "still moves" in text]
    assert "row 33 of the test rows (counting from 0) alone makes most of the change" in text


@pytest.mark.parametrize("distance", [1e3, 1e5, 1e8])
def test_rounding_of_a_row_far_out_is_no_sign_of_too_few_steps(distance):
    torch.manual_seed(0)
    data = split_rows(torch.randn(2000, 2))
    flow = train(data, TINY)
    x = data.test.clone()
    x[3] = distance
    result = metrics.step_converged_nll(flow, x)
    assert result.converged
    assert result.num_steps <= 64


# ------------------------------------------------------------------------------------------------ training, validation


@pytest.mark.parametrize("make", [ring, clusters])
@pytest.mark.parametrize("row", [[1.3, 0.0], [1e3, -1e3], [1e6, 0.0], [1e17, 1e17]])
def test_one_validation_row_does_not_undo_a_training(make, row, tmp_path):
    clean, expected = results_of(parts(make), tmp_path / "clean")
    data = parts(make, val=with_row(17, row))
    if row[0] > 100:
        with pytest.warns(DataWarning, match=r"1 of 300 validation rows \(row 17, counting from 0\): far outside"):
            flow, found = results_of(data, tmp_path)
        assert found["rows_left_out"] == {"train": 0, "val": 1, "test": 0}
        assert found["val_nll"] == pytest.approx(expected["val_nll"], abs=0.1)
    else:
        flow, found = results_of(data, tmp_path)
        assert found["rows_left_out"] == {"train": 0, "val": 0, "test": 0}
    assert found["test_nll"] == pytest.approx(expected["test_nll"], abs=0.2)
    assert found["guard_events"] <= expected["guard_events"] + 2
    assert (flow.stack[0].movement or 0.0) > 0.5 * (clean.stack[0].movement or 0.0) > 0.0


@pytest.mark.parametrize("number", [0, 17, 199])
def test_one_test_row_does_not_undo_the_evaluation(number, tmp_path):
    """The squares of 1e18 over a deviation of 1e-3 overflow."""
    make = lambda n: 1e-3 * torch.randn(n, 2)  # noqa: E731
    _, expected = results_of(parts(make), tmp_path / "clean")
    text = rf"no finite density for 1 of 200 test rows \(row {number}, counting from 0\): too far outside the training"
    told = Messages()
    with pytest.warns(DataWarning, match=text):
        _, found = results_of(parts(make, test=with_row(number, [9e17, 0.0])), tmp_path, progress=told)
    assert found["rows_left_out"] == {"train": 0, "val": 0, "test": 1}
    assert found["n_test"] == 199
    assert found["test_nll"] == pytest.approx(expected["test_nll"], abs=0.1)
    assert found["test_nll_converged"]
    assert math.isfinite(found["inversion_error_max"])
    assert math.isfinite(found["energy_distance"])
    assert not any("guard" in text for text in told.texts)


def test_a_test_row_far_outside_is_scored_and_named(tmp_path):
    with pytest.warns(
        DataWarning, match=r"1 of 200 test rows \(row 3, counting from 0\): far outside.* weigh on the test"
    ):
        _, found = results_of(parts(test=with_row(3, [1e4, 0.0])), tmp_path)
    assert found["n_test"] == 200
    assert found["test_nll"] > 1e4
    assert found["test_nll_converged"]


def test_rows_of_a_flow_to_start_from_are_looked_at_too(tmp_path):
    """Its scale is that of other data, so that training rows overflow."""
    torch.manual_seed(0)
    start = train(1e-12 * torch.randn(1000, 2), TINY)
    data = parts(lambda n: 1e-12 * torch.randn(n, 2), train=with_row(5, [1e17, 1.0]), val=with_row(0, [1e17, 2.0]))
    with pytest.warns(DataWarning) as told:
        flow = train(data, TINY, start=start, run_dir=tmp_path / "run")
    texts = [str(warning.message) for warning in told]
    assert any("1 of 1000 training rows (row 5, counting from 0): overflow before the first block" in t for t in texts)
    assert any("1 of 300 validation rows (row 0, counting from 0): far outside" in text for text in texts)
    found = json.loads((tmp_path / "run/metrics.json").read_text())
    assert found["rows_left_out"] == {"train": 1, "val": 1, "test": 0}
    assert all(bool(torch.isfinite(parameter).all()) for parameter in flow.parameters())


def test_the_context_of_rows_left_out_goes_with_them():
    torch.manual_seed(0)
    data = split_rows(torch.randn(1000, 2), context=torch.randn(1000, 1))
    data = dataclasses.replace(data, val=with_row(4, [1e9, 0.0])(data.val), links=(Link(), Link()))
    with pytest.warns(DataWarning, match=r"1 of 100 validation rows \(row 4"):
        flow = train(data, TINY)
    assert bool(torch.isfinite(flow.log_prob(data.test, data.test_context)).all())


def test_validation_rows_of_other_units_are_refused():
    with (
        pytest.warns(DataWarning, match="300 of 300 validation rows"),
        pytest.raises(
            DataError, match=r"all validation rows lie far outside the training rows; give .* the same units"
        ),
    ):
        train(parts(val=lambda rows: 1e6 * rows), TINY)


# ---------------------------------------------------------------------------------------------------------- evaluation


def test_a_flow_that_overflows_on_many_rows_has_diverged():
    told = []
    with pytest.warns(DataWarning) as warned:
        results = evaluate(overflowing_flow(0.0), parts(lambda n: torch.randn(n, 2)), 300, tell=told.append)
    texts = [str(warning.message) for warning in warned]
    assert any("validation rows" in text and "training has diverged" in text for text in texts)
    assert any("test rows" in text and "training has diverged" in text for text in texts)
    assert 50 < results["rows_left_out"]["test"] < 150
    assert results["n_test"] == 200 - results["rows_left_out"]["test"]
    assert math.isfinite(results["test_nll"])


def test_without_a_single_finite_density_there_are_results_all_the_same():
    with pytest.warns(DataWarning, match="300 of 300 validation rows|200 of 200 test rows"):
        results = evaluate(overflowing_flow(-math.inf), parts(), 300)
    assert math.isnan(results["test_nll"])
    assert not results["test_nll_converged"]
    assert results["n_test"] == 0
    assert results["inversion_error_max"] == math.inf


def test_console_and_report_count_the_rows_left_out(tmp_path, capsys):
    with pytest.warns(DataWarning):
        _, found = results_of(parts(val=with_row([1, 2], [1e4, 0.0])), tmp_path)
    console.show_metrics(found)
    assert re.search(r"^rows left out +2 of val$", capsys.readouterr().out, re.MULTILINE)
    text = write_report(tmp_path / "run").read_text()
    assert "Validation rows left out" in text
    assert "Test rows left out" not in text
    console.show_metrics({**found, "test_nll": None, "test_nll_converged": False})
    assert "no finite density on any test row: do not trust it" in capsys.readouterr().err


def test_rows_are_named_by_their_number_in_the_whole_part():
    names = RowNames("test rows", [0, 10, 20])
    assert names.some(torch.tensor([False, True, True])) == "2 of 3 test rows (the first is row 10, counting from 0)"


def test_the_guard_reads_what_float32_resolves():
    x, context = torch.randn(20, 2), torch.arange(20.0)[:, None]
    assert torch.equal(guard_samples(x, None, 10)[0], x[:10])
    x[3] = 1e5
    rows, conditions = guard_samples(x, context, 10)
    assert torch.equal(rows, torch.cat([x[:3], x[4:11]]))
    assert conditions is not None
    assert conditions[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    x[:] = 1e5  # nothing else to read
    assert torch.equal(guard_samples(x, None, 10)[0], x[:10])


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_block_that_overflows_says_so_once(loss, monkeypatch):
    """Four looks at the validation rows in each of two blocks."""
    torch.manual_seed(0)
    told = Messages()
    monkeypatch.setattr(Fit, "_validate", lambda fit: (loss, loss, True))
    train(clusters(1000), dataclasses.replace(TINY, validate_every=10, gain_tolerance=-1.0), progress=told)
    first, *overflows, last = told.texts
    assert first.startswith("begins with the initial map none, layers of 8,")
    assert [text.split(" after ")[0] for text in overflows] == [
        f"block {index} overflows on validation rows" for index in (0, 1)
    ]
    assert "no block is clearly better than none" in last
