"""What ships the package agrees with pyproject.toml."""

import re
import tomllib
from pathlib import Path

import yaml

import jkoflow

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONDA_NAMES = {"torch": "pytorch"}


def requirement(text):
    """Name and bound of a requirement, as conda-forge writes them."""
    name, bound = re.fullmatch(r"([\w-]+)(.*)", text.replace(" ", "")).groups()
    return f"{CONDA_NAMES.get(name, name)} {bound}".strip()


def test_the_recipe_asks_for_what_the_project_asks_for():
    recipe = yaml.safe_load((ROOT / "scripts/conda_recipe.yaml").read_text())
    assert recipe["context"]["version"] == jkoflow.__version__
    run = set(recipe["requirements"]["run"]) - {"python"}
    assert run == {requirement(text) for text in PROJECT["project"]["dependencies"]}
    made_with = {text for part in ("build", "host") for text in recipe["requirements"][part] if isinstance(text, str)}
    assert {requirement(text) for text in PROJECT["build-system"]["requires"]} <= made_with


def test_the_wheels_are_for_the_versions_of_python_that_are_promised():
    built = [int(tag.removeprefix("cp3").removesuffix("-*")) for tag in PROJECT["tool"]["cibuildwheel"]["build"]]
    assert f">=3.{min(built)}" == PROJECT["project"]["requires-python"]
    assert built == list(range(min(built), max(built) + 1))
    classified = {text.rpartition(" ")[2] for text in PROJECT["project"]["classifiers"] if "Python :: 3." in text}
    assert classified == {f"3.{minor}" for minor in built}
    tests = re.findall(r'"(\w+)"', re.search(r"TESTS = \((.*)\)", (ROOT / "scripts/try_wheel.py").read_text())[1])
    assert all((ROOT / f"tests/test_{name}.py").is_file() for name in tests)
