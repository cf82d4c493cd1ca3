"""The events of a training run, and the callback that is told of them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

from jkoflow.checkpoint import finite
from jkoflow.data import Dataset, TableData
from jkoflow.training.config import TrainConfig
from jkoflow.training.progress import Progress
from jkoflow.training.run_directory import RunDirectory
from jkoflow.training.state import RunState
from jkoflow.training.world import World

Callback = Callable[[dict[str, Any]], object]
"""Function of an event; what it returns does not matter."""


class Events:
    """Tells a callback of a training run's events.

    A callback that fails ends the training, but not in the middle of an iteration: it is called no more, and its error
    is raised where the state has been saved.

    Arguments:
        callback: The callback; None for none.
    """

    def __init__(self, callback: Callback | None = None) -> None:
        self._callback = callback
        self._error: Exception | None = None

    def tell(self, event: Mapping[str, Any]) -> None:
        """Calls the callback with an event, which it may keep and change; what is not finite becomes None."""
        if self._callback is None or self._error is not None:
            return
        try:
            self._callback(finite(event))
        except Exception as error:  # raised by `check`
            error.add_note(f"raised by the callback of a training, told of {event['event']!r}")
            self._error = error

    def asked(self) -> int | None:
        """Returns the number of the signal that would end the training likewise if the callback has failed, or None."""
        return None if self._error is None else signal.SIGTERM

    def check(self) -> None:
        """Raises the error of the callback, if it has failed."""
        if self._error is not None:
            raise self._error


class Told:
    """A `Progress` that passes the news on, and makes events of those that are no records of the history.

    Arguments:
        progress: Receives the news.
        events: Receives the events.
    """

    def __init__(self, progress: Progress, events: Events) -> None:
        self._progress, self._events = progress, events
        self._round = 0

    def start_round(self, number: int, kind: str, blocks: int) -> None:
        """Makes an event of the beginning of a round."""
        self._round = number
        self._events.tell({"event": "round_start", "round": number, "kind": kind, "blocks": blocks})
        self._progress.start_round(number, kind, blocks)

    def start_block(self, block: int, iterations: int) -> None:
        """Makes an event of the planned number of iterations."""
        self._events.tell({"event": "plan", "round": self._round, "block": block, "iterations": iterations})
        self._progress.start_block(block, iterations)

    def update(self, block: int, iteration: int, terms: Mapping[str, float]) -> None:
        """Passes the loss on."""
        self._progress.update(block, iteration, terms)

    def end_block(self, block: int, summary: Mapping[str, Any]) -> None:
        """Passes the end of a block on."""
        self._progress.end_block(block, summary)

    def message(self, text: str) -> None:
        """Makes an event of a text for people."""
        self._events.tell({"event": "note", "text": text})
        self._progress.message(text)


def start_event(
    data: Dataset | TableData,
    source: str,
    config: TrainConfig,
    world: World,
    run: RunDirectory | None,
    state: RunState | None,
) -> dict[str, Any]:
    """Returns the first event of a training: what is trained on, with what settings, and from where on.

    Arguments:
        data: The data.
        source: Name or path of the data.
        config: Settings.
        world: The processes that train.
        run: The run's directory, if there is one.
        state: State of the run to go on from; None for the beginning.
    """
    numbers, schema = (data, None) if isinstance(data, Dataset) else (data.numbers, data.schema)
    train = len(numbers.train) if isinstance(data, Dataset) else len(data.states["train"])
    return {
        "event": "start",
        "run_dir": None if run is None else str(run.path),
        "data": source,
        "rows": {"train": train, "val": len(numbers.val), "test": len(numbers.test)},
        "columns": list(numbers.features if schema is None else schema.features),
        "context_columns": list(numbers.context_features if schema is None else schema.context_features),
        "kinds": {} if isinstance(data, Dataset) else {plan.name: plan.kind for plan in data.plans},
        "config": config.to_mapping(),
        "processes": world.size,
        "resumed": state is not None,
        "seconds": 0.0 if state is None else state.elapsed,
        "global_step": 0 if state is None else state.iterations_done + _iterations_of_fit(state),
    }


def _iterations_of_fit(state: RunState) -> int:
    return 0 if state.fit is None else state.fit.counters.iteration
