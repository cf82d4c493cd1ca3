"""Stages of commands with a time limit, whose processes must not hold up the caller, and all their output."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
"""Folder in which every command runs."""
TAIL = 6000
"""Number of characters of a stage's output that its entry keeps."""
GRACE = 10
"""Seconds of a command's time in which it may end after an interrupt."""


@dataclass
class Stage:
    """A stage: some commands that belong together."""

    name: str
    commands: list[list[str]]
    limit: float
    """Seconds that the stage may take."""
    needs: tuple[str, ...] = ()
    """Names of the stages without whose success it cannot run."""
    environment: dict[str, str] = field(default_factory=dict)
    least: float = 0
    """Seconds that the stages before must leave to this stage."""
    makes: tuple[Path, ...] = ()
    """Files that other stages need; if an earlier check has left all of them, those stages run without this one."""


def run_stage(stage: Stage, limit: float, log: Path) -> dict[str, Any]:
    """Runs a stage's commands in turn, for ``limit`` seconds at most; returns its entry of the report."""
    started = time.monotonic()
    entry: dict[str, Any] = {"result": "passed", "limit": round(limit, 1)}
    output = ""
    for command in stage.commands:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n==== {stage.name}: {' '.join(command)}\n")
        code, text = run_command(command, limit - (time.monotonic() - started), stage.environment, log)
        output += text
        if code != 0:
            entry["result"] = "timed out" if code is None else "failed"
            entry["status"], entry["command"] = code, command
            break
    return entry | {"seconds": round(time.monotonic() - started, 1), "output_end": output[-TAIL:]}


def run_command(
    command: list[str], seconds: float, environment: dict[str, str], log: Path | None = None
) -> tuple[int | None, str]:
    """Runs a command; returns its status (None if the time was up) and its output, which goes to the log, too.

    The output goes through a file: a pipe would have to be read to its end, which never comes if a process in a session
    of its own holds it.
    """
    if seconds <= 0:
        return None, "no time left\n"
    with tempfile.TemporaryFile() if log is None else log.open("ab+") as output:
        begin = output.seek(0, os.SEEK_END)
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return 127, f"{command[0]} cannot be started: {error}\n"
        code = wait(process, seconds)
        output.seek(begin)
        text = output.read().decode(errors="replace")
    return code, text if code is not None else text + f"\nstopped after {seconds:.0f} s\n"


def wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Waits for a command and returns its status, None if its time was up; kills what is left of its process group."""
    grace = min(GRACE, seconds / 4)
    code = None
    try:
        code = process.wait(seconds - grace)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)  # pytest then reports its failures so far
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # what hangs in the driver cannot be killed
        process.wait(5)
    return code
