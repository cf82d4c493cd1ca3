"""The examples in the docstrings run, and the main names have one."""

import doctest
import importlib
import inspect
import pkgutil

import numpy
import pandas
import pytest
import torch
from torch import nn

import jkoflow

MODULES = [
    "jkoflow",
    *(
        info.name
        for info in pkgutil.walk_packages(jkoflow.__path__, "jkoflow.")
        if info.name not in ("jkoflow._C", "jkoflow.__main__")
    ),
]


LIBRARIES = {"jkoflow": jkoflow, "numpy": numpy, "pandas": pandas, "torch": torch}


def examples(module):
    names = {name: getattr(jkoflow, name) for name in jkoflow.__all__} | LIBRARIES
    found = doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=names)
    return [test for test in found if test.examples]


CASES = {test.name: test for name in MODULES for test in examples(importlib.import_module(name))}


@pytest.mark.parametrize("name", CASES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some of them write files
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    result = runner.run(CASES[name], out=report.append)
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize("name", [name for name in jkoflow.__all__ if not name.startswith("_")])
def test_public_names_are_documented(name):
    thing = getattr(jkoflow, name)
    assert inspect.getdoc(thing)
    if inspect.isfunction(thing) or (inspect.isclass(thing) and issubclass(thing, nn.Module)):
        assert f"{thing.__module__}.{thing.__qualname__}" in CASES, f"{name} has no Example in its docstring"
