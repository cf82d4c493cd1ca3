"""JAX and diffrax on the same weights and rows, in a process of their own, see `jkoflow.bench.peers.jax_worker`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from jkoflow.bench.candidate import Candidate
from jkoflow.bench.case import Case, Solution
from jkoflow.bench.shapes import Direction
from jkoflow.ops.tableau import TABLEAUX

WORKER = Path(__file__).with_name("jax_worker.py")


class Rows(Protocol):
    """What the worker's process is told of a case."""

    @property
    def x(self) -> Tensor:
        """Returns the rows (B, d)."""
        ...

    @property
    def parameters(self) -> list[Tensor]:
        """Returns weight and bias of each layer in turn, of an MLP with tanh that reads t."""
        ...


def closed_form(case: Case) -> Candidate:
    """Builds the solver with the closed-form divergence, unrolled over the stages and compiled by ``jax.jit``."""
    return Remote(case, "jax", **_equal_steps(case))


def diffrax(case: Case) -> Candidate:
    """Builds diffrax's solver with the closed-form divergence, compiled by ``jax.jit``."""
    return Remote(case, "diffrax", **_equal_steps(case))


def _equal_steps(case: Case) -> dict[str, Any]:
    tableau = TABLEAUX["rk4"]
    return {"steps": case.shape.steps, "tableau": {"a": tableau.a, "b": tableau.b, "c": tableau.c}}


class Remote(Candidate):
    """A candidate in the worker's process, timed by its own clock in the same rounds as all peers, while we wait.

    Arguments:
        case: The case to solve.
        solver: One of the worker's ``SOLVERS``.
        options: What that solver takes, as JSON can hold it.
    """

    def __init__(self, case: Rows, solver: str, **options: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="jkoflow-bench-")
        arrays = Path(self._folder.name) / "case.npz"
        tensors: dict[str, Any] = {"x": case.x, **{f"p{i}": p.detach() for i, p in enumerate(case.parameters)}}
        np.savez(arrays, **{name: tensor.numpy() for name, tensor in tensors.items()})
        with (Path(self._folder.name) / "stderr.txt").open("w", encoding="utf-8") as told:
            self._process = subprocess.Popen(
                # -P: the worker's neighbours are named like libraries
                [sys.executable, "-P", str(WORKER), str(torch.get_num_threads())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=told,
                env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0"},
                text=True,
            )
        try:
            self._ask(do="prepare", solver=solver, options=options, arrays=str(arrays))
        except BaseException:
            self.close()
            raise

    def forward(self) -> Solution:
        """Solves the batch without gradients."""
        return Solution(*self._result("forward"))

    def gradient(self) -> list[Tensor]:
        """Solves the batch and differentiates the loss by each parameter."""
        return self._result("forward+backward")

    def seconds(self, direction: Direction, repeats: int) -> float:
        """Returns the seconds of ``repeats`` runs."""
        return self._ask(do="time", direction=direction, repeats=repeats)["seconds"]

    def close(self) -> None:
        """Ends the process by closing its input."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def _result(self, direction: Direction) -> list[Tensor]:
        out = Path(self._folder.name) / "result.npz"
        self._ask(do="result", direction=direction, out=str(out))
        with np.load(out, allow_pickle=False) as archive:
            return [torch.from_numpy(archive[f"r{i}"]) for i in range(len(archive.files))]

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            told = (Path(self._folder.name) / "stderr.txt").read_text(encoding="utf-8", errors="replace").strip()
            raise RuntimeError(f"JAX's process ended: {told.splitlines()[-1] if told else 'without a message'}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer
