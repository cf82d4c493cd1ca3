"""The settings of a run: defaults, then a TOML file, then flags; or the settings of the run that is resumed."""

from __future__ import annotations

import dataclasses
import difflib
import os
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jkoflow.data import DataError, TableOptions
from jkoflow.data.columns.options import NAMES
from jkoflow.errors import UserError
from jkoflow.former_names import under_present_names
from jkoflow.training.config import TrainConfig
from jkoflow.training.run_directory import RunDirectory
from jkoflow.training.state import RunError
from jkoflow.within import check_tolerance


class ConfigError(UserError, ValueError):
    """Raised if a setting or a combination of arguments is wrong; the message is one line and tells the fix."""


class Source(NamedTuple):
    """The data of a run."""

    data: str
    """Name of built-in data, or a path."""
    options: TableOptions
    """What was said about the table."""


@dataclass(frozen=True)
class Given:
    """The settings that the user chose, by flag or file."""

    values: dict[str, Any] = field(default_factory=dict)
    """Settings of a `TrainConfig` by name."""
    source: str | None = None
    """Source of the data that the file names; None if it names none."""
    table: dict[str, Any] = field(default_factory=dict)
    """What the user said about the table, under the names of `TableOptions`."""
    file: Path | None = None
    from_file: frozenset[str] = frozenset()
    """Names of the values that the file gave and no flag."""

    def blame(self, error: ValueError) -> str:
        """Returns the error's text, with the file's name if the setting at the beginning of the text came from it."""
        return f"{error} ({self.file})" if str(error).partition(" ")[0] in self.from_file else str(error)


def given(file: Path | None, flags: Mapping[str, Any], table: Mapping[str, Any] | None = None) -> Given:
    """Merges flags with the settings of a TOML file, which flags replace; ``table`` are flags about the table.

    Raises:
        ConfigError: If the file cannot be read or has a name that is not a setting.
    """
    told = dict(table or {})
    if file is None:
        return Given(dict(flags), table=told)
    values = _read_settings(file)
    in_file = {name: values.pop(name) for name in NAMES if name in values}
    try:
        TableOptions.from_mapping(in_file)
    except DataError as error:
        raise ConfigError(f"{error} ({file})") from error
    source = values.pop("data", None)
    if source is not None and not isinstance(source, str):
        raise ConfigError(f"data in {file} must be a name or a path, got {source!r}")
    known = [item.name for item in dataclasses.fields(TrainConfig)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, (*known, *NAMES), n=1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join((*known, *NAMES))}"
            raise ConfigError(f"unknown setting {name!r} in {file}; {hint}")
    return Given({**values, **flags}, source, {**in_file, **told}, file, frozenset(values) - frozenset(flags))


def for_start(data: str | None, out: Path | None, chosen: Given) -> tuple[Path, Source, TrainConfig]:
    """Resolves the arguments of a new run.

    Returns:
        The run's directory, the source of the data and the settings.

    Raises:
        ConfigError: If an argument is missing or a setting is out of its range.
        RunError: If the directory holds a run, or files that a run would overwrite, or cannot be made.
    """
    source = data or chosen.source
    if source is None:
        raise ConfigError("name the data: jkoflow train DATA --out RUN, such as jkoflow train rose --out runs/rose")
    if out is None:
        raise ConfigError(f"name the run's directory: jkoflow train {shlex.quote(source)} --out RUN")
    RunDirectory(out).check_free("add --resume to go on with it", "choose another --out")
    _check_directory(out)
    try:
        return out, Source(source, TableOptions.from_mapping(chosen.table)), TrainConfig.from_mapping(chosen.values)
    except ValueError as error:
        raise ConfigError(chosen.blame(error)) from error


def for_resume(data: str | None, out: Path | None, chosen: Given) -> tuple[Path, Source, TrainConfig]:
    """Resolves the arguments of a resumed run: ``train --resume RUN``, or the first command with ``--resume`` added.

    Returns:
        The run's directory, and the source of the data and the settings that the run was started with.

    Raises:
        ConfigError: If no run is named, or a given setting is not the run's.
        RunError: If there is no run to resume.
        CheckpointError: If the run's settings are damaged.
    """
    if out is None and data is None:
        raise ConfigError("name the run to resume: jkoflow train --resume RUN")
    run = Path(data or "") if out is None else out
    if not RunDirectory(run).holds_run():
        raise RunError(
            f"{run} holds no run to resume; start one with: jkoflow train DATA --out {shlex.quote(str(run))}"
        )
    data_source, options, config = RunDirectory(run).settings()
    source = Source(data_source, options)
    has = {**options.to_mapping(), **config.to_mapping()}
    asked = TableOptions.from_mapping(chosen.table).to_mapping()
    for name, value in {**asked, **chosen.values}.items():
        if has.get(name) != value:
            raise ConfigError(
                f"{run} was started with {name} = {has.get(name)}, got {value}: a resumed run keeps its settings; "
                "leave the setting out, or start a new run"
            )
    if out is not None and data is not None:
        source = source._replace(data=data)  # the training checks that they are the same rows, wherever they lie now
    return run, source, config


def _read_settings(file: Path) -> dict[str, Any]:
    """Reads a TOML file of settings, under their present names."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file; check the path, it starts at {Path.cwd()}") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; name a TOML file of settings") from error
    except ValueError as error:  # TOML or UTF-8
        raise ConfigError(f"{file} is not valid TOML: {error}; write name = value, text in quotation marks") from error
    try:
        return under_present_names(values)
    except ValueError as error:
        raise ConfigError(f"{error} ({file})") from error


def _check_directory(out: Path) -> None:
    """Refuses a directory that cannot be made or written to, before anything is computed for it."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise RunError(f"cannot write {out}: {existing} is a file; choose another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunError(f"cannot write {out}: no permission to write in {existing}; choose another --out")


def check_option(tol: float | None) -> None:
    """Refuses a tolerance of the command line that is no positive number.

    Raises:
        ConfigError: If it is not.
    """
    try:
        check_tolerance(tol)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
