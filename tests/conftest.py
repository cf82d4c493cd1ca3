"""What every test gets: fixed seeds, deterministic hypothesis, warnings that ignore the order of tests."""

import hypothesis
import pytest
import torch

from emulation import emulation, emulation_module
from jkoflow.ops import fallback

__all__ = ["emulation", "emulation_module"]  # fixtures of several files

# derandomize: the same examples on every machine; deadline: shared machines stall, and speed is not tested here.
hypothesis.settings.register_profile("jkoflow", deadline=None, derandomize=True, max_examples=30, database=None)
hypothesis.settings.load_profile("jkoflow")


@pytest.fixture(autouse=True)
def _same_start(monkeypatch):
    torch.manual_seed(0)
    # A fallback is reported once a process; here once a test, whichever test came before.
    monkeypatch.setattr(fallback, "_warned", set())
