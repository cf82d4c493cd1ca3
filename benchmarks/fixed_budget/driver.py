"""The runs that are missing in a directory, each in a process of its own, as many at once as there are slots."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from fixed_budget.problem import name_of
from fixed_budget.worker import Job

SCRIPT = Path(__file__).parent.parent / "compare.py"


def jobs(sources: Sequence[str], methods: Sequence[str], seeds: int, budget: float, threads: int) -> Iterator[Job]:
    """Yields all jobs, first seeds first, so that an interrupted comparison is a smaller one and not a part of one."""
    for seed in range(seeds):
        for source in sources:
            for method in methods:
                yield Job(source, method, seed, budget, threads)


def place(job: Job, folder: Path) -> Path:
    """Returns the path of a job's record."""
    rate = "" if job.learning_rate is None else f"-{job.learning_rate:g}"
    label = "" if not job.label else f"-{job.label}"
    return folder / f"{name_of(job.source)}-{job.method}-{job.seed}{rate}{label}.json"


def run_missing(wanted: Sequence[Job], folder: Path, slots: int) -> list[str]:
    """Runs the jobs that have no record yet and prints how they went.

    Arguments:
        wanted: The jobs.
        folder: Folder of the records; made if it does not exist.
        slots: Number of jobs at once; with more than one, each job is pinned to cores of its own.

    Returns:
        One line per job that failed. Such a job has no record and is run again the next time.

    Raises:
        ValueError: If a record is of another budget or number of threads, or there are too few cores.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = []
    for job in wanted:
        if not place(job, folder).is_file():
            missing.append(job)
        elif (found := _like(place(job, folder))) != (job.budget, job.threads):
            raise ValueError(
                f"{place(job, folder)} was run with budget and threads {found}, not {(job.budget, job.threads)}; "
                "choose another directory"
            )
    groups = _core_groups(slots, max((job.threads for job in missing), default=1))
    print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are there already", flush=True)
    failures: list[str] = []
    with _Slots(groups) as executor:
        futures = {executor.submit(_run, job, place(job, folder), executor): job for job in missing}
        for done, future in enumerate(as_completed(futures), 1):
            job = futures[future]
            error = future.result()
            name = f"{name_of(job.source)} {job.method} seed {job.seed}"
            if error:
                failures.append(f"{name}: {error}")
            print(f"{done}/{len(missing)} {name}: {error or _summary(place(job, folder))}", flush=True)
    return failures


class _Slots(ThreadPoolExecutor):
    """The groups of cores, each with a thread that runs one job at a time."""

    def __init__(self, groups: Sequence[frozenset[int] | None]) -> None:
        self.cores = threading.local()
        waiting = list(groups)
        super().__init__(len(groups), initializer=lambda: setattr(self.cores, "mine", waiting.pop()))


def _run(job: Job, path: Path, slots: _Slots) -> str:
    """Runs a job in a process of its own and returns the last line of its error; an empty text without an error."""
    cores: frozenset[int] | None = slots.cores.mine
    request = {**dataclasses.asdict(job), "out": str(path), "cores": None if cores is None else sorted(cores)}
    environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    with tempfile.TemporaryFile() as errors:
        result = subprocess.run(
            [sys.executable, str(SCRIPT), "one"],
            input=json.dumps(request).encode(),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
        )
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    return "" if result.returncode == 0 else (lines or [f"exit code {result.returncode}"])[-1]


def run_one(request: dict[str, Any]) -> None:
    """Runs the job of a request, in the process that was started for it."""
    from fixed_budget import worker

    cores, out = request.pop("cores"), Path(request.pop("out"))
    if cores is not None:
        os.sched_setaffinity(0, cores)
    started = time.perf_counter()
    worker.write(Job(**request), out)
    print(f"{time.perf_counter() - started:.0f} s")


def _core_groups(slots: int, threads: int) -> list[frozenset[int] | None]:
    if slots == 1:
        return [None]
    cores = sorted(os.sched_getaffinity(0))
    if slots * threads > len(cores):
        raise ValueError(f"{slots} jobs of {threads} threads need {slots * threads} cores, there are {len(cores)}")
    return [frozenset(cores[slot * threads : (slot + 1) * threads]) for slot in range(slots)]


def _like(path: Path) -> tuple[float, int]:
    record = json.loads(path.read_text(encoding="utf-8"))
    return record["budget"], record["threads"]


def _summary(path: Path) -> str:
    record = json.loads(path.read_text(encoding="utf-8"))
    nll = record.get("test_nll", record["val_nll"])
    text = "no finite NLL" if nll is None else f"NLL {nll:.4f}"
    return f"{text}, {record['batches']} batches in {record['train_seconds']:.1f} s"
