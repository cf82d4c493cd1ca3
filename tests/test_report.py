"""The report page: complete, self-contained, safe and clear about what is missing."""

import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from jkoflow import Block, JKOFlow, MLPVelocity
from jkoflow.checkpoint import CheckpointError
from jkoflow.flow import base_log_prob
from jkoflow.report import probes, write_report
from jkoflow.report.results import read_results

FILES = ["config.toml", "metrics.json", "history.jsonl", "model.safetensors", "preview.npz", "environment.json"]


def make_flow(dim, blocks=2, seed=0, scale=1.0):
    torch.manual_seed(seed)
    stack = []
    for k in range(blocks):
        velocity = MLPVelocity(dim, (8, 8))
        with torch.no_grad():
            for parameter in velocity.parameters():
                parameter.mul_(scale)
        stack.append(Block(velocity, num_steps=2, jko_step=0.5 * 2**k if k + 1 < blocks else math.inf))
    return JKOFlow(dim, stack, torch.arange(dim) * 1.0, 1 + torch.arange(dim) * 0.5, eval_num_steps=4)


def make_run(path, dim, blocks=2, features=None, data="runs/demo.csv", rows=300):
    path.mkdir()
    flow = make_flow(dim, blocks)
    flow.save(path / "model.safetensors")
    metrics = {
        "test_nll": -1.2345,
        "test_nll_data_units": 3.5,
        "test_nll_stderr": 0.021,
        "eval_num_steps": 4,
        "inversion_error_mean": 3.1e-5,
        "inversion_error_max": 0.0021,
        "blocks": blocks,
        "train_seconds": 61.0,
        "guard_events": 1,
        "dim": dim,
        "n_train": 12345,
        "n_test": 6789,
        "movements": [1.0 / (k + 1) for k in range(blocks)],
        "seed": 7,
    }
    (path / "metrics.json").write_text(json.dumps(metrics))
    history = []
    for k in range(blocks):
        for i in range(0, 50, 5):
            terms = {"loss": 1.0 - i / 100, "potential": 0.9, "divergence": 0.1 - i / 100, "movement": 0.01 * i}
            history.append({"event": "iteration", "block": k, "iteration": i, **terms, "grad_norm": 1.0})
        history.append({"event": "validation", "block": k, "iteration": 49, "loss": 0.5, "nll": 2.0 - k})
        end = {"step_size": None, "num_steps": 2, "iterations": 50, "movement": 1.0, "val_nll": 2.0 - k, "seconds": 3.0}
        history.append({"event": "block", "block": k, **end})
    guard = {"nll_difference": 0.07, "round_trip": 0.01, "num_steps": 4, "action": "doubled"}
    history.append({"event": "guard", "block": 0, "iteration": 20, **guard})
    history.append({"event": "guard", "block": 0, "iteration": 45, **guard, "num_steps": 2, "action": "halved"})
    (path / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
    (path / "config.toml").write_text(f"data = {json.dumps(data)}\nhidden = [8, 8]\nguard = true\n")
    (path / "environment.json").write_text(json.dumps({"torch": "2.x", "kernels": {"cpu": None, "cuda": "not built"}}))
    drawn = flow.standardize.mean + flow.standardize.std * torch.randn(rows, dim)
    names = [f"column {i}" for i in range(dim)] if features is None else features
    np.savez(path / "preview.npz", data=drawn.numpy(), features=np.array(names))
    return path


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {dim: write_report(make_run(root / f"run{dim}", dim)).read_text() for dim in (1, 2, 11)}


class Page(HTMLParser):
    """Collects what the tests look at, and notes tags that are never closed."""

    void = ("meta", "br", "img", "input", "link")

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def sections(text):
    return re.findall(r"<h2>(.*?)</h2>", text)


COMMON = ["Noise", "Calibration", "Training", "Results", "Load the model", "Configuration", "Environment"]


@pytest.mark.parametrize(
    ("dim", "own"),
    [
        (1, ["Density"]),
        (2, ["Data and model", "From data to noise, and back"]),
        (11, ["Data and samples, column by column", "Data and samples, pair by pair"]),
    ],
)
def test_every_section_is_there(pages, dim, own):
    assert sections(pages[dim]) == own + COMMON


@pytest.mark.parametrize("dim", [1, 2, 11])
def test_page_is_self_contained_and_well_formed(pages, dim):
    page = Page(pages[dim])
    assert page.open == []
    assert not {"link", "iframe", "img", "object"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert not {"src", "onload", "onclick"} & {name for name, _ in page.attributes}
    references = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert references
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in references)
    assert "://" not in pages[dim]
    assert "@import" not in pages[dim]
    assert re.findall(r"url\((?!#)", pages[dim]) == []


@pytest.mark.parametrize("dim", [1, 2, 11])
def test_ids_are_unique_and_references_resolve(pages, dim):
    page = Page(pages[dim])
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for name, value in page.attributes if name == "xlink:href" and value.startswith("#")}
    used |= set(re.findall(r"url\(#(.*?)\)", pages[dim]))
    assert used
    assert used <= set(ids)


@pytest.mark.parametrize("dim", [1, 2, 11])
def test_every_picture_has_a_text_and_follows_the_theme(pages, dim):
    page = Page(pages[dim])
    labels = re.findall(r'<svg role="img" aria-label="(.*?)"', pages[dim])
    assert len(labels) == page.tags.count("figcaption") > 0
    assert all(len(label) > 20 for label in labels)
    assert page.tags.count("svg") == len(labels) + pages[dim].count('<svg class="readings"')
    assert "prefers-color-scheme: dark" in pages[dim]
    assert "var(--ink)" in pages[dim].split("<svg", 1)[1]
    assert "#1f2329" not in pages[dim].split("<svg", 1)[1]


def test_numbers_of_the_run_are_on_the_page(pages):
    text = " ".join("".join(Page(pages[2]).text).split())
    for expected in (
        "−1.234",
        "± 0.021",
        "3.10 × 10⁻⁵",
        "0.00210",
        "12,345 rows",
        "61 s",
        "1 guard event",
        "6,789",
        "demo",
    ):
        assert expected in text, expected
    assert "Converged at" in text
    assert "went back to the last good parameters" in text
    assert "half as many are enough again" in text
    assert "kernels.cpu" in text
    assert "available" in text
    assert "not built" in text


def test_stages_and_columns_are_named(pages):
    text = "".join(Page(pages[2]).text)
    assert all(name in text for name in ("data → noise", "noise → data", "block 1", "noise", "column 0"))
    assert all(f"column {i}" in "".join(Page(pages[11]).text) for i in range(11))


def test_load_snippet_works_from_the_working_directory(tmp_path, monkeypatch):
    run = make_run(tmp_path / "it's a run", 2)
    monkeypatch.chdir(tmp_path)
    code = re.search(r"<pre><code>(.*?)</code></pre>", write_report("it's a run").read_text(), re.DOTALL)
    assert code is not None
    source = code[1].replace("&#x27;", "'").replace("&quot;", '"')
    assert str(tmp_path) not in source
    names = {"x": read_results(run).data}
    exec(source, names)
    assert names["samples"].shape == (1000, 2)
    assert names["log_p"].shape == (300,)


def test_page_is_the_same_when_written_again(tmp_path):
    run = make_run(tmp_path / "run", 3, rows=60)
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_unconverged_likelihood_is_called_so(tmp_path):
    run = make_run(tmp_path / "run", 1)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "test_nll_converged": False, "test_nll_stderr": None}))
    text = write_report(run).read_text()
    assert "Not converged at" in text
    assert "has NOT converged" in text


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_names_are_escaped(tmp_path, dim):
    names = ["<script>alert(1)</script>", "a & b $x$ $", "\"><b id='q'>", "長い名前"][:dim]
    run = make_run(tmp_path / "run", dim, features=names, data="<img src=x>")
    text = write_report(run).read_text()
    page = Page(text)
    assert not {"img", "b"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert "<img src=x>" in "".join(page.text)
    if dim > 1:
        assert "a & b $x$ $" in "".join(page.text)


@pytest.mark.parametrize(("dim", "rows"), [(1, 2), (4, 3)])
def test_hardly_any_rows_are_drawn(tmp_path, dim, rows):
    assert "Calibration" in sections(write_report(make_run(tmp_path / "run", dim, rows=rows)).read_text())


def test_many_blocks_are_thinned_and_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "WORK", 1e7)
    assert probes.chosen_stages(3) == [0, 1, 2, 3]
    assert probes.chosen_stages(20) == [0, 3, 6, 9, 11, 14, 17, 20]
    text = write_report(make_run(tmp_path / "run", 2, blocks=8, rows=50)).read_text()
    assert "8 of 9 stages, evenly spaced, are shown" in text


def test_many_columns_are_thinned_and_said_so(tmp_path):
    text = write_report(make_run(tmp_path / "run", 30, rows=80)).read_text()
    assert "The 24 columns of 30 that fit worst" in text


def test_single_block_and_bare_history(tmp_path):
    run = make_run(tmp_path / "run", 1, blocks=1, rows=30)
    (run / "history.jsonl").write_text('{"event": "block", "block": 0}\n')
    assert sections(write_report(run).read_text())[-1] == "Environment"


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named_with_the_fix(tmp_path, name):
    run = make_run(tmp_path / "run", 2, rows=20)
    (run / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: no such file.*(--resume|train the run again)"):
        write_report(run)
    assert not (run / "report.html").exists()


# An empty TOML file is a valid one.
@pytest.mark.parametrize(
    ("name", "damage"),
    [(n, d) for n in FILES for d in ("cut", "noise", "empty") if (n, d) != ("config.toml", "empty")],
)
def test_damaged_file_is_named_with_the_fix(tmp_path, name, damage):
    run = make_run(tmp_path / "run", 2, rows=20)
    whole = (run / name).read_bytes()
    (run / name).write_bytes({"cut": whole[: len(whole) // 2 + 1], "noise": b"\xff\x00[}" * 9, "empty": b""}[damage])
    with pytest.raises(CheckpointError, match=re.escape(name)) as caught:
        write_report(run)
    assert "train the run again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "[1]", "expected a JSON object, got a list"),
        ("metrics.json", '{"test_nll": 1}', "it has no eval_num_steps, blocks"),
        ("history.jsonl", '{"event": "block", "block": 0}\n{"event"', "line 2 is not JSON"),
        ("history.jsonl", '{"event": "guard", "block": 0}\n', "line 1 must have a whole number iteration, got None"),
        ("history.jsonl", "3\n", "line 1 is not a record"),
        ("environment.json", "3", "expected a JSON object, got a int"),
    ],
)
def test_wrong_content_is_named(tmp_path, name, content, message):
    run = make_run(tmp_path / "run", 2, rows=20)
    (run / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} is damaged: .*{re.escape(message)}"):
        write_report(run)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": np.zeros((5, 2))}, "features"),
        ({"data": np.zeros(5), "features": np.array(["x"])}, "expected data of shape"),
        ({"data": np.full((5, 2), np.nan), "features": np.array(["x", "y"])}, "NaN or inf"),
        ({"data": np.zeros((5, 3)), "features": np.array(["x", "y", "z"])}, "3 columns, but model.safetensors"),
        ({"data": np.array([[{}]]), "features": np.array(["x"])}, "pickle"),
    ],
)
def test_wrong_preview_is_named(tmp_path, arrays, message):
    run = make_run(tmp_path / "run", 2, rows=20)
    np.savez(run / "preview.npz", **arrays)
    with pytest.raises(CheckpointError, match=f"preview.npz.*{message}"):
        write_report(run)


def test_a_single_test_row_is_too_few(tmp_path):
    run = make_run(tmp_path / "run", 2, rows=1)
    with pytest.raises(CheckpointError, match=r"preview.npz has a single test row, .* at least 2; train on more rows"):
        write_report(run)


def test_parts_of_different_runs_are_refused(tmp_path):
    run, other = make_run(tmp_path / "run", 2, rows=20), make_run(tmp_path / "other", 2, blocks=3, rows=20)
    shutil.copy(other / "model.safetensors", run)
    with pytest.raises(CheckpointError, match=r"metrics\.json has 2 movements, but .* has 3 blocks"):
        write_report(run)


def test_no_run_directory(tmp_path):
    with pytest.raises(CheckpointError, match="no such run directory; train one with: jkoflow train"):
        write_report(tmp_path / "nowhere")


def test_a_conditional_flow_needs_its_context(tmp_path):
    run = make_run(tmp_path / "run", 2, blocks=1, rows=20)
    JKOFlow(2, [Block(MLPVelocity(2, (8,), context_dim=1))]).save(run / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"preview.npz has 0 context columns, but .* has 1 context columns"):
        write_report(run)
    with np.load(run / "preview.npz") as file:
        arrays = dict(file)
    names = np.array(["c"])
    for context, message in ((np.zeros(20), "expected context of shape"), (np.full((20, 1), np.nan), "NaN or inf")):
        np.savez(run / "preview.npz", **arrays, context=context, context_features=names)
        with pytest.raises(CheckpointError, match=message):
            write_report(run)


def test_diverged_flow_is_refused(tmp_path):
    run = make_run(tmp_path / "run", 2, blocks=1, rows=20)
    flow = make_flow(2, 1)
    with torch.no_grad():
        flow.blocks[0].velocity.layers[-1].weight.fill_(3e38)
    flow.save(run / "model.safetensors")
    with pytest.raises(ValueError, match="to NaN or inf"):
        write_report(run)


def test_stage_densities_are_those_of_the_flow():
    flow = make_flow(2, 3, scale=2.0)
    x = torch.randn(40, 2)
    points, grids = flow.standardize(x)[0], probes.evaluation_grids(flow)
    with torch.no_grad():
        whole = flow.log_prob(x) + flow.standardize.std.log().sum()
    np.testing.assert_allclose(probes.stage_log_density(flow, 0, points, grids), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(probes.stage_log_density(flow, 3, points, grids), base_log_prob(points), rtol=1e-6)
    middle = probes.stage_log_density(flow, 2, points, grids)
    grid = probes.grid_points(flow, (-9.0, 9.0), (-9.0, 9.0), 120)
    mass = np.exp(probes.stage_log_density(flow, 2, grid, grids)).sum() * (18 / 120) ** 2
    assert mass == pytest.approx(1, abs=5e-3)
    assert np.abs(middle - whole.numpy()).max() > 1e-2


def test_grid_runs_along_x_first():
    grid = probes.grid_points(make_flow(2), (0.0, 4.0), (10.0, 12.0), 2)
    assert grid.tolist() == [[1.0, 10.5], [3.0, 10.5], [1.0, 11.5], [3.0, 11.5]]


def test_ks_distance_agrees_with_scipy():
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=200).round(1), rng.normal(0.3, 1.2, size=150).round(1)
    assert probes.ks_distance(a, b) == pytest.approx(ks_2samp(a, b).statistic, abs=1e-12)


def test_running_quantiles_keep_blocks_apart():
    history = [{"event": "iteration", "block": k, "iteration": i, "loss": 10.0 * k} for k in (0, 1) for i in range(40)]
    offsets, total = probes.timeline(history)
    x, low, median, high = probes.running_quantiles(history, "loss", offsets, total)
    gap = int(np.flatnonzero(np.isnan(x))[0])
    assert set(median[:gap]) == {0.0}
    assert set(median[gap + 1 : -1]) == {10.0}
    assert (np.diff(x[:gap]) > 0).all()
    np.testing.assert_array_equal(low, high)


def test_samples_are_seeded_and_bounded():
    flow = make_flow(3)
    assert torch.equal(probes.flow_samples(flow, 50, 1), probes.flow_samples(flow, 50, 1))
    assert not torch.equal(probes.flow_samples(flow, 50, 1), probes.flow_samples(flow, 50, 2))
    flow.eval_num_steps = 10**6
    assert probes.affordable_points(flow) < 4000


def test_figures_refuse_other_dimensions():
    from jkoflow.report import figures

    for figure, dim in ((figures.stages_figure, 2), (figures.density_figure, 2), (figures.curve_figure, 1)):
        with pytest.raises(ValueError, match=f"needs a flow of dimension {dim}, got 3"):
            figure(make_flow(3), torch.zeros(5, 3))


def test_figures_leave_no_global_state(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_report(make_run(tmp_path / "run", 1, rows=20))
    assert dict(matplotlib.rcParams) == before
