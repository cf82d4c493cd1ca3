"""README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_python_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(compile(block, str(README), "exec"), names)
    assert names["log_p"].shape == (5000,)
    assert names["x"].shape == (1000, 3)
    assert (names["back"] - names["rows"]).abs().max() < 0.05
    assert all(parameter.grad is not None for parameter in names["velocity"].parameters())


def test_files_that_the_readme_names_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert links
    for link in links:
        assert (README.parent / link).exists(), link


def test_makefile_targets_that_the_readme_names_exist():
    makefile = (README.parent / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", README.read_text())):
        if not re.search(rf"^{target}:", makefile, re.MULTILINE):
            pytest.fail(f"README names make {target}")
