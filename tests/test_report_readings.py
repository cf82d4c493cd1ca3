"""What the figures of the report tell where they are pointed at: the right values, in place, by one safe script."""

import base64
import hashlib
import html
import re

import numpy as np
import pytest
import torch

from jkoflow.report import figures, page, readings, style, table_figures, training_figures, write_report
from jkoflow.report.column_views import plain_views
from jkoflow.report.table_sections import pairs
from test_report import make_run

RECT = re.compile(
    r'<rect x="([-.\de]+)" y="([-.\de]+)" width="([-.\de]+)" height="([-.\de]+)"><title>(.*?)</title>', re.S
)


def told(text):
    """The boxes (left, top, right, bottom, text) of every panel by its name."""
    panels = {}
    for name, body in re.findall(r'<g role="img" aria-label="([^"]*)">(<rect.*?)</g>', text, re.S):
        boxes = [(*map(float, box[:4]), html.unescape(box[4])) for box in RECT.findall(body)]
        panels[html.unescape(name)] = [(x, y, x + w, y + h, said) for x, y, w, h, said in boxes]
    return panels


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "run", 3, blocks=3)).read_text()


def test_bars_of_the_blocks_tell_their_movements(run):
    found = [said for *_, said in told(run)["Movement of each block"]]
    assert found == [f"block {k + 1}\nmovement {page.number(1.0 / (k + 1))}" for k in range(3)]
    assert [said for *_, said in told(run)["JKO step size of each block"]][-1] == "block 3\nstep size ∞ (free)"


def test_every_validation_tells_its_nll_and_its_place(run):
    found = [said for *_, said in told(run)["Validation NLL over iterations"]]
    assert found == [
        f"round 1, block {k + 1}, iteration 49\nvalidation NLL {page.number(2.0 - k, 4)}" for k in range(3)
    ]


def test_terms_of_the_loss_are_told_together(run):
    boxes = told(run)["Terms of the loss over iterations"]
    assert len(boxes) == 30
    lines = boxes[0][4].splitlines()
    assert [line.split()[0] for line in lines] == ["about", "potential", "divergence", "loss"]
    assert lines[3] == "loss 1.0000 (1.0000 to 1.0000)"


def test_boxes_lie_over_the_bars_that_they_tell_of():
    text = page.svg(training_figures.blocks_figure([1.0, 0.5, 0.25], [1.0, 2.0, 3.0]), "bars")
    bars = re.findall(rf'<path d="([^"]*)"[^>]*fill: {style.DATA}', text)
    assert len(bars) == 3
    for bar, (left, _, right, _, _) in zip(bars, told(text)["Movement of each block"], strict=True):
        x = np.array(re.findall(r"[ML] ([-.\d]+)", bar), float)
        assert left < x.min() < x.max() < right


def test_histograms_tell_the_shares_of_their_bins():
    random = np.random.default_rng(0)
    data, drawn = random.normal(size=(400, 2)), random.normal(0.5, 1, size=(300, 2))
    drawing = figures.marginals_figure(torch.from_numpy(data), torch.from_numpy(drawn), ["a", "b"])
    for k, panel in enumerate(drawing.readings):
        edges = np.append(panel.boxes[:, 0], panel.boxes[-1, 1])
        shares = [np.histogram(rows[:, k], edges)[0] / len(rows) for rows in (data, drawn)]
        for place, text in enumerate(panel.texts):
            name, first, second = text.splitlines()
            assert name.startswith("ab"[k] + ": ")
            assert first == f"test data: {100 * shares[0][place]:.3g} %"
            assert second == f"samples: {100 * shares[1][place]:.3g} %"


def test_maps_of_pairs_tell_the_rows_of_their_cells():
    random = np.random.default_rng(0)
    data, drawn = random.normal(size=(500, 2)), random.normal(size=(500, 2))
    text = pairs(plain_views(["a", "b"], data, drawn))
    assert list(told(text)) == ["test data, b against a", "samples, b against a"]
    boxes = told(text)["samples, b against a"]
    assert {len(said.splitlines()) for *_, said in boxes} == {4}
    for source, rows in ((2, data), (3, drawn)):
        total = sum(int(re.search(r": ([\d,]+) rows", said.splitlines()[source])[1]) for *_, said in boxes)
        spans = [style.robust_span(data[:, k]) for k in (0, 1)]
        inside = np.all([(rows[:, k] >= low) & (rows[:, k] < high) for k, (low, high) in enumerate(spans)], 0)
        assert total == inside.sum()


def test_boxes_stay_inside_the_figure_and_nothing_is_told_of_nothing(run):
    for box in re.findall(r'<svg class="readings" viewBox="0 0 ([.\d]+) ([.\d]+)">(.*?)</svg>', run, re.S):
        width, height = map(float, box[:2])
        for boxes in told(box[2]).values():
            for left, top, right, bottom, _ in boxes:
                assert -0.01 <= left < right <= width + 0.1
                assert -0.01 <= top < bottom <= height + 0.1
    drawing = style.new_figure(4, 2)
    ax = drawing.subplots()
    readings.tell_at(ax, "nothing", np.array([np.nan]), ["never"])
    assert "readings" not in page.svg(drawing, "an empty figure")


def test_a_box_beyond_the_panel_is_left_out():
    drawing = style.new_figure(4, 2)
    ax = drawing.subplots()
    ax.set_xlim(0, 2)
    readings.tell_between(ax, "three", np.array([0.0, 1.0, 2.0, 3.0]), ["a", "b", "c"])
    boxes = told(page.svg(drawing, "three boxes"))["three"]
    assert [said for *_, said in boxes] == ["a", "b"]
    assert boxes[0][2] == pytest.approx(boxes[1][0], abs=0.1)


def test_levels_and_counts_tell_their_shares():
    random = np.random.default_rng(0)
    view = plain_views(["a"], random.normal(size=(50, 1)), random.normal(size=(40, 1)))[0]
    drawing = table_figures.columns_figure([view])
    total = sum(float(re.search(r"test data: ([-.\de+]+) %", text)[1]) for text in drawing.readings[0].texts)
    assert total == pytest.approx(100, abs=2.5)  # histograms are clipped to robust quantiles


def test_only_the_pages_own_script_may_run_and_nothing_is_loaded(run):
    script = re.search(r"<script>(.*?)</script>", run, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', run)[1]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    for unsafe in ("innerHTML", "outerHTML", "eval", "fetch", "XMLHttp", "import", "document.write"):
        assert unsafe not in script
    assert len(run.encode()) < 3_000_000


def test_without_the_script_the_texts_are_titles_and_no_panel_asks_for_the_keyboard(run):
    body = run[: run.index("<script>")]
    assert body.count("<title>") - 1 == sum(len(boxes) for boxes in told(body).values()) > 100
    assert "tabindex" not in body
    assert '<p class="hint" hidden>' in body


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.0, "1"), (-2.5, "−2.5"), (1234.567, "1,235"), (0.00012345, "1.23 × 10⁻⁴"), (3.14159, "3.142")],
)
def test_significant_digits(value, text):
    assert page.significant(value) == text
