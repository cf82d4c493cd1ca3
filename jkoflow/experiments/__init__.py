"""The experiments by name: data, settings and published figures, each in a TOML file beside this module."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jkoflow.errors import UserError
from jkoflow.images import AutoencoderConfig
from jkoflow.training.config import TrainConfig

FOLDER = Path(__file__).parent

OURS = "JKO-iFlow"
"""Name of the model whose published figure a run is compared with."""


class ExperimentError(UserError, ValueError):
    """Raised if an experiment is unknown or an argument does not fit it; the message is one line and tells the fix."""


@dataclass(frozen=True)
class Published:
    """A figure from the literature."""

    model: str
    nll: float
    """Test NLL per row, in nats."""
    source: str
    """Source in which the figure was published."""


@dataclass(frozen=True)
class Experiment:
    """The data, settings and published figures that `jkoflow reproduce` uses under one name."""

    name: str
    summary: str
    """Description in one line."""
    data: str
    """Source for `jkoflow.data.load_dataset`; ``{directory}`` stands for the directory of the files."""
    directory: str | None
    """Default directory of the files; None if there is no default."""
    settings: Mapping[str, Any]
    """Settings of a `TrainConfig`; the rest keeps its defaults."""
    units: str
    """Units of the published figures and of the run's NLL beside them."""
    comparable: bool
    """Whether the published figures were measured on the same rows."""
    remark: str
    """Remark for those who compare the figures."""
    published: tuple[Published, ...] = ()
    autoencoder: AutoencoderConfig | None = None
    """Settings of the autoencoder that carries pictures to the vectors that the flow learns; None without pictures."""

    @property
    def needs_files(self) -> bool:
        """Tells whether the experiment needs a directory of files."""
        return "{directory}" in self.data

    def source(self, directory: Path | None) -> str:
        """Returns the source of the data, with the given directory or the default one.

        Raises:
            ExperimentError: If a needed directory is missing, or one is given that is not needed.
        """
        if not self.needs_files:
            if directory is not None:
                raise ExperimentError(f"{self.name} needs no files; leave --data out")
            return self.data
        where = directory if directory is not None else self.directory
        if where is None:
            raise ExperimentError(
                f"{self.name} needs files: jkoflow reproduce {self.name} --data DIR; docs/experiments.md says which"
            )
        return self.data.format(directory=where)

    @property
    def paper(self) -> Published | None:
        """Returns the figure of the JKO-iFlow paper; None if the paper has none."""
        return next((figure for figure in self.published if figure.model == OURS), None)


def names() -> list[str]:
    """Returns the names of all experiments."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Experiment:
    """Reads an experiment.

    Raises:
        ExperimentError: If there is no experiment of that name.

    Example:
        >>> jkoflow.experiments.load("rose").settings["hidden"]
        [128, 128, 128]
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ExperimentError(f"unknown experiment {name!r}: {hint}there are {', '.join(names())}")
    return parse(name, tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8")))


def parse(name: str, content: dict[str, Any]) -> Experiment:
    """Makes an experiment from the content of its file.

    Raises:
        ExperimentError: If something is missing, superfluous or out of its range.
    """
    content = dict(content)
    try:
        figures = tuple(Published(**figure) for figure in content.pop("published", []))
        autoencoder = content.pop("autoencoder", None)
        TrainConfig.from_mapping(content["settings"])
        return Experiment(
            name=name,
            published=figures,
            autoencoder=None if autoencoder is None else AutoencoderConfig(**autoencoder),
            directory=content.pop("directory", None),
            **content,
        )
    except (TypeError, ValueError, KeyError) as error:
        raise ExperimentError(f"the experiment {name} is not well described: {error}") from error


def comparison(experiment: Experiment, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the comparison of a run's metrics with the published figures.

    Arguments:
        experiment: The experiment.
        metrics: The metrics of the finished run.

    Returns:
        ``experiment``; ``paper_nll``, the figure of the JKO-iFlow paper, or None; ``paper_nll_units``;
        ``paper_nll_comparable``, whether it was measured on the same rows; ``paper_remark``; ``reproduced_nll`` and
        ``reproduced_nll_stderr``, the step-converged test NLL in the same units; ``published``, all known figures.
    """
    paper = experiment.paper
    return {
        "experiment": experiment.name,
        "paper_nll": None if paper is None else paper.nll,
        "paper_nll_units": experiment.units,
        "paper_nll_comparable": experiment.comparable,
        "paper_remark": experiment.remark,
        "reproduced_nll": metrics["test_nll_data_units"],
        "reproduced_nll_stderr": metrics["test_nll_stderr"],
        "published": [{"model": p.model, "nll": p.nll, "source": p.source} for p in experiment.published],
    }
