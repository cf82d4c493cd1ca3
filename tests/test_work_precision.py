"""benchmarks/work_precision.py: every line falls with its tolerance, and the picture in docs is that of the record."""

import json

import pytest
import torch

import work_precision


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_lines_fall_and_are_drawn(tmp_path):
    pytest.importorskip("torchdiffeq")
    pytest.importorskip("zuko")
    record = work_precision.measure(rows=8, count=1, budget=1e-4, powers=(-2.0, -5.0), steps=(2, 8))
    assert json.loads(json.dumps(record)) == record
    assert record["lines"].keys() == work_precision.STYLES.keys()
    for loose, tight in record["lines"].values():
        assert tight["errors"]["rms"] < loose["errors"]["rms"]
        assert tight["evaluations"] > loose["evaluations"]
        assert tight["ms"] > 0
    assert record["lines"]["jkoflow rk4, equal steps"][1]["evaluations"] == 4 * 8
    work_precision.draw(record, tmp_path / "picture.svg")
    assert "</svg>" in (tmp_path / "picture.svg").read_text()


def test_the_picture_in_the_docs_is_small_and_that_of_the_record(tmp_path):
    record = json.loads(work_precision.RECORD.read_text())
    assert record["lines"].keys() == work_precision.STYLES.keys()
    assert work_precision.PICTURE.stat().st_size < 200_000
    assert record["title"].replace(" ", "") in work_precision.PICTURE.read_text().replace(" ", "")
    assert "docs/work_precision.svg" in (work_precision.ROOT / "README.md").read_text()
