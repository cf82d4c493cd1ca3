"""Scores rows with a flow that `jkoflow export` wrote, by PyTorch alone: python serve.py FLOW.pt2 < rows.csv.

The file is of --format torch-export or aoti. The first line of the table names its columns, which are found by name.
Prints the log-density of every row, in nats. Nothing here imports jkoflow, which need not be installed.
"""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from collections.abc import Callable

import torch
from torch import Tensor


def load(path: str) -> tuple[Callable[..., tuple[Tensor, ...]], dict[str, str]]:
    """Returns the function in a file, and what the file says about it."""
    with zipfile.ZipFile(path) as archive:
        is_compiled = any("/aotinductor/" in name for name in archive.namelist())
    if is_compiled:
        package = torch._inductor.aoti_load_package(path)
        return package, package.get_metadata()
    extra = {"jkoflow.json": ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module(), json.loads(extra["jkoflow.json"])


def main() -> None:
    run, about = load(sys.argv[1])
    if about["function"] != "log_prob":
        sys.exit(f"error: {sys.argv[1]} computes {about['function']}, not log_prob")
    header, *rows = csv.reader(sys.stdin)
    table = torch.tensor([[float(cell) for cell in row] for row in rows], dtype=torch.float64)

    def columns(names: str) -> Tensor:
        chosen = table[:, [header.index(name) for name in names.splitlines()]]
        return chosen.to(getattr(torch, about["dtype"])).contiguous()  # compiled files look at no strides

    inputs = [columns(about[name]) for name in ("columns", "context") if about[name]]
    with torch.no_grad():
        (log_prob,) = run(*inputs)
    for value in log_prob.double().tolist():
        print(f"{value:.17g}")


if __name__ == "__main__":
    main()
