"""Every example runs, as its docstring says, in the small settings of --quick; each asserts what it claims."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jkoflow

ROOT = Path(jkoflow.__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_is_an_example_of_each_kind():
    needed = {
        "torchdiffeq_before_after",
        "ffjord_field",
        "hypernet_cnf",
        "zuko_swap",
        "sbi_posterior",
        "flow_matching_likelihood",
        "sklearn_pipeline",
        "variational_inference",
        "plain_pytorch_loop",
        "hmc",
        "score_many",
    }
    assert needed <= {path.stem for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(path), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_shows(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 90
    assert len(ast.get_docstring(ast.parse(text)) or "") > 60
