"""The scoring of a folder, file by file: what is done is skipped, and several processes share the work."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from jkoflow._version import __version__
from jkoflow.checkpoint import UNFINISHED
from jkoflow.cli import models
from jkoflow.cli.score_pieces import Asked, Scorer
from jkoflow.cli.tally import Tally
from jkoflow.data import DataError, DataWarning, TableOptions, reading_of, require
from jkoflow.data.readers import suffix_of
from jkoflow.errors import UserError
from jkoflow.flow import MODEL_FILE
from jkoflow.training.run_lock import LockedError, locked

KINDS = (".parquet", ".csv", ".tsv", ".npy")
"""Suffixes of the files of a folder that are scored; those of text may be followed by one of packing."""

KEY = "jkoflow.score"
"""Name under which a scored Parquet file says what it was made of."""

WHOLE = re.compile(r"-?[0-9]{1,9}|__HIVE_DEFAULT_PARTITION__")
"""Values in the names of folders that are whole numbers, or missing."""

BLOCK = 1 << 20
"""Number of bytes that are hashed at once."""


class Done(NamedTuple):
    """What has become of a file."""

    name: str
    """Its path below the folder."""
    state: str
    """``"scored"``, ``"skipped"``, ``"held"`` by another process, or ``"failed"``."""
    tally: Tally | None = None
    text: str = ""
    """Why it has failed, who holds it, or why it is scored again."""


@dataclass(frozen=True)
class Work:
    """All that a process needs to know to score files of a folder."""

    run: Path
    folder: Path
    out: Path
    asked: Asked
    precision: str
    options: TableOptions
    told: Mapping[str, Any] = field(default_factory=dict)


def input_files(folder: Path) -> list[str]:
    """Returns the paths below a folder of the files to score, in order, without hidden ones.

    Raises:
        DataError: If there are none.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith((".", "_")) for part in name.parts)
        if not hidden and suffix_of(path) in KINDS and path.is_file():
            found.append(name.as_posix())
    if not found:
        raise DataError(f"{folder} holds no files to score; those of a folder end in {', '.join(KINDS)}")
    return found


def output_of(out: Path, name: str) -> Path:
    """Returns the Parquet file for an input: of the same name, with .parquet behind that of another kind."""
    return out / (name if suffix_of(Path(name)) == ".parquet" else f"{name}.parquet")


def check_folders(folder: Path, out: Path) -> None:
    """Refuses an output that is, or lies in, the folder that is read, or that cannot be a folder.

    Raises:
        DataError: If it is refused.
        MissingExtraError: If a package for Parquet is missing.
    """
    require("pandas", "writing .parquet files")
    require("pyarrow", "writing .parquet files")
    if out.exists() and not out.is_dir():
        raise DataError(f"cannot write {out}: it is a file; scores of a folder go to a folder, choose another --out")
    if folder.resolve() == out.resolve() or folder.resolve() in out.resolve().parents:
        raise DataError(f"cannot write {out}: it is in {folder}, which is read; choose another --out")


def score_folder(work: Work, names: list[str], workers: int, tell: Callable[[Done], None]) -> list[Done]:
    """Scores the files of a folder that are not done.

    Arguments:
        work: What to do.
        names: The files.
        workers: Number of processes.
        tell: Function that is told what becomes of each file, at least once, and in the end once more than others by
            no file.

    Returns:
        What has become of each file, in order.
    """
    best: dict[str, Done] = {}
    rank = ("held", "failed", "skipped", "scored")
    for done in _sweep(work, names) if workers == 1 else _in_processes(work, names, workers):
        before = best.get(done.name)
        if before is None or rank.index(done.state) > rank.index(before.state):
            best[done.name] = done
            tell(done)
    return [
        best.get(name, Done(name, "failed", text="its process has died, perhaps for want of memory")) for name in names
    ]


def _sweep(work: Work, names: list[str]) -> Iterator[Done]:
    """Scores those files that nobody else is at, one by one."""
    model = models.load_model(work.run)
    if work.precision == "float64":
        model.double()
    scorer = Scorer(model, models.names_of(work.run, model), work.asked)
    stamp = _stamp(work)
    constants = _partitions(names)
    for name in names:
        target = output_of(work.out, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with locked(target.parent, f".{target.name}.lock"):
                yield _scored(work, scorer, name, target, stamp, constants[name])
        except LockedError as error:
            yield Done(name, "held", text=str(error))


def _scored(
    work: Work, scorer: Scorer, name: str, target: Path, stamp: Mapping[str, Any], constants: Mapping[str, Any]
) -> Done:
    source = work.folder / name
    try:
        before = source.stat()
        record = {**stamp, "input": _digest(source)}
        found, rows = _record(target)
        if found == record:
            return Done(name, "skipped", Tally(rows=rows))
        for unfinished in target.parent.glob(f".{target.name}.*{UNFINISHED}"):
            unfinished.unlink(missing_ok=True)  # of a process that was killed: nobody else holds the lock
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", DataWarning)
            tally, _ = scorer.score(
                source,
                target,
                reading_of(source, work.options, work.told),
                constants={key: value for key, value in constants.items() if key in scorer.wanted},
                metadata={KEY: json.dumps(record)},
            )
        after = source.stat()
        tally.notes += [str(note.message) for note in notes]
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            target.unlink()
            return Done(name, "failed", text=f"{source} has changed while it was read; score it again")
        return Done(name, "scored", tally, "" if found is None else _why_again(found, record))
    except UserError as error:
        return Done(name, "failed", text=str(error))
    except OSError as error:
        return Done(name, "failed", text=f"{error.filename or source}: {error.strerror or error}")


def _stamp(work: Work) -> dict[str, Any]:
    """Returns what the scores depend on beside their input."""
    file = work.run / MODEL_FILE if work.run.is_dir() else work.run
    asked = {**vars(work.asked), "precision": work.precision, "reading": dict(work.told)}
    return {"model": _digest(file), "asked": asked, "version": __version__}


def _why_again(found: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    changed = {"input": "its input", "model": "the model", "asked": "what is asked for", "version": "jkoflow"}
    return " and ".join(text for key, text in changed.items() if found.get(key) != record[key]) + " changed"


def _record(target: Path) -> tuple[dict[str, Any] | None, int]:
    """Returns what a scored file says that it was made of, and its number of rows; {} if it is damaged.

    Raises:
        DataError: If the file is none of scores.
    """
    if not target.exists():
        return None, 0
    pyarrow, parquet = require("pyarrow", "Parquet files"), require("pyarrow.parquet", "Parquet files")
    try:
        with parquet.ParquetFile(target) as file:
            metadata, rows = file.schema_arrow.metadata or {}, file.metadata.num_rows
    except (pyarrow.ArrowException, OSError):
        return {}, 0
    if KEY.encode() not in metadata:
        raise DataError(f"{target} holds something else than scores of jkoflow; choose another --out")
    return json.loads(metadata[KEY.encode()]), rows


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _partitions(names: list[str]) -> dict[str, dict[str, Any]]:
    """Returns the values of the columns that folders called ``key=value`` give each file, by name.

    They are whole numbers where all values of a key are, as for a folder that is read as one table; else text.
    """
    pyarrow, dataset = require("pyarrow", "Parquet folders"), require("pyarrow.dataset", "Parquet folders")
    values: dict[str, set[str]] = {}
    for name in names:
        for part in Path(name).parts[:-1]:
            key, is_key, value = part.partition("=")
            if is_key:
                values.setdefault(key, set()).add(value)
    types = {
        key: pyarrow.int32() if all(WHOLE.fullmatch(value) for value in found) else pyarrow.string()
        for key, found in values.items()
    }
    partitioning = dataset.partitioning(pyarrow.schema(list(types.items())), flavor="hive")
    return {name: dataset.get_partition_keys(partitioning.parse(name)) if types else {} for name in names}


def _in_processes(work: Work, names: list[str], workers: int) -> Iterator[Done]:
    """Lets processes of their own sweep the files; each passes over what another one holds or has done."""
    context = multiprocessing.get_context("spawn")
    threads = max((os.cpu_count() or 1) // workers, 1)
    running: dict[Connection, Any] = {}
    try:
        for number in range(min(workers, len(names))):
            ours, theirs = context.Pipe(duplex=False)
            start = number * len(names) // workers
            turned = [*names[start:], *names[:start]]
            process = context.Process(target=_worker, args=(work, turned, threads, theirs), daemon=True)
            process.start()
            theirs.close()
            running[ours] = process
        while running:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                try:
                    found = ready.recv()
                except EOFError:
                    running.pop(ready).join()
                    continue
                if isinstance(found, BaseException):
                    raise found
                yield found
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def _worker(work: Work, names: list[str], threads: int, told: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        for done in _sweep(work, names):
            told.send(done)
    except UserError as error:
        told.send(error)
    except KeyboardInterrupt:
        pass  # the process that has started this one tells of it


def _end_with_parent() -> None:
    """Ends the process when the one that has started it is gone; what it was writing is aside."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
