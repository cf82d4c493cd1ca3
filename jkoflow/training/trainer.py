"""The training run: the sequence of rounds, of which the best flow is kept, and the evaluation at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.callers import warn_caller
from jkoflow.checkpoint import finite
from jkoflow.data import DataError, Dataset
from jkoflow.data.checks import own_names
from jkoflow.data.continuous import Treatments, choose_links, described, warn_of_wild_values
from jkoflow.flow import JKOFlow
from jkoflow.gain import paired_gain
from jkoflow.table_flow import Model
from jkoflow.training import overfit, rounds
from jkoflow.training.config import TrainConfig
from jkoflow.training.evaluation import evaluate
from jkoflow.training.events import Events
from jkoflow.training.fit import Fit
from jkoflow.training.interruption import Interruption, interrupt
from jkoflow.training.plan import FEWEST_ROWS, PUSH_SHARE
from jkoflow.training.progress import Progress
from jkoflow.training.pushed import PushedSamples
from jkoflow.training.round_trainer import RoundTrainer, RunContext
from jkoflow.training.run_directory import RunDirectory
from jkoflow.training.run_plan import FIRST_WIDTH, RunPlan
from jkoflow.training.start import entered_rows, entering, plain_flow, settled
from jkoflow.training.state import ConvergenceWarning, RunState, fingerprint
from jkoflow.training.usable import usable_rows
from jkoflow.training.world import World

_PARTS = ("train", "val", "test")


Complete = Callable[[JKOFlow, dict[str, Any]], tuple[Model, dict[str, Any], Mapping[str, NDArray[Any]]]]


class Trainer:
    """Runs one round after the other, keeps the best flow and evaluates it at the end.

    Arguments:
        data: The data.
        config: Settings.
        device: Where to train.
        world: The process that trains, with its clock.
        directory: Directory for the results; this process writes nothing if None.
        keeps: Whether the run has a directory, into which another process may write.
        progress: Receives the run's news.
        start: The flow to begin with; a new chain is built if None.
        state: State of the run to resume; a new run begins if None.
        complete: Function that makes the model, its results and the test columns of a table of the best flow and its
            results; the flow itself is the model if None.
        history: List that the records of a history are added to, beside those in the directory; None for none.
        events: Receives the records of the history, too, and the results.
    """

    def __init__(
        self,
        data: Dataset,
        config: TrainConfig,
        device: torch.device,
        world: World,
        directory: RunDirectory | None,
        progress: Progress,
        start: JKOFlow | None = None,
        state: RunState | None = None,
        complete: Complete | None = None,
        history: list[dict[str, Any]] | None = None,
        keeps: bool = False,
        events: Events | None = None,
    ) -> None:
        self.config, self.world, self.directory, self.progress = config, world, directory, progress
        self._fingerprint = fingerprint(data, start) if keeps else ""
        if (count := len(data.train)) < world.size:
            raise DataError(f"{count} training rows are fewer than the {world.size} processes; start fewer")
        self._treatments: Treatments | None = None
        if start is None:
            self._treatments = (
                self._treat(data) if state is None else Treatments.from_description(state.treatments, data)
            )
            start = plain_flow(data, config, self._treatments)
        world.check_same(
            lambda: fingerprint(data, start),
            "the processes of one training must have the same rows in the same order, and compute the same from them: "
            "give all the same data and settings, and run them on processors of one kind, with the same versions",
        )
        self.best = start.with_blocks(start.stack).to(device)  # the best flow so far
        entered = entered_rows(self.best, data.train[world.part(len(data.train))])
        self._entered_train: Tensor | None
        self.data, self._entered_train, self._place, self._left_out = usable_rows(self.best, data, entered, world)
        if (rows := len(self.data.train)) < config.batch_size:
            progress.message(f"batch_size = {config.batch_size} is more than there are: a batch has all {rows} rows")
        self._context = RunContext(self.data, config, world, progress, self._record, self._save_if_due)
        self.rounds: list[dict[str, Any]] = []
        self.guard_events = 0
        self._plan: RunPlan | None = None  # of a time budget
        self._round: RoundTrainer | None = None
        self._entered: PushedSamples | None = None  # kept for the next round
        self._rows_of_best: Tensor | None = None
        self._state = state
        self._complete, self._history = complete, history
        self._events = Events() if events is None else events
        self._iterations_done = 0  # of the fits that have ended
        if state is not None:
            self._restore(state, device)
        elif self.best.stack:
            self._measure_start()
        self._saved = world.elapsed()
        self._interruption, self._keeps = Interruption(), keeps
        world.listen(lambda: self._interruption.asked or self._events.asked())

    def run(self) -> Model:
        """Trains the rounds that are left, evaluates the best flow and returns the model."""
        with self._interruption if self._keeps else nullcontext():
            while (kind := self._next_kind()) is not None:
                self._round = self._begin_round(kind)
                errors = self._round.train()
                self._plan = self._round.plan
                self._end_round(self._round, errors)
                self._round = None
                self._save_if_due(None)
            return self._finish()

    def _treat(self, data: Dataset) -> Treatments:
        """Chooses the treatments of the columns of a new run, and tells of values far out."""
        treatments = settled(choose_links(data), data, self.config)
        warn_of_wild_values(data, treatments)
        return treatments

    # ---- Rounds

    def _next_kind(self) -> str | None:
        share, divide = rounds.finetune_share(self.config, self._plan), rounds.divide(self.config, self._plan)
        return rounds.next_kind(self.rounds, self.config, share > 0, divide)

    def _enter(self, kind: str) -> PushedSamples:
        """Returns the samples that enter the first block in a round of some kind."""
        samples, self._entered = self._entered, None
        train, self._entered_train = self._entered_train, None
        samples = samples or entering(self.best, self.data, self.config.val_rows, self.world, self._place, train)
        if kind == rounds.BUILD and self._context.budget is not None:  # time is short, and another round likely
            self._entered = dataclasses.replace(samples)
        return samples

    def _begin_round(self, kind: str) -> RoundTrainer:
        """Returns the trainer of a round, with the blocks and the fit that a resumed run has already trained in it."""
        state, self._state = self._state, None
        going_on = state is not None and (bool(state.summaries) or state.fit is not None)
        trainer = RoundTrainer(
            self._context,
            number=len(self.rounds),
            kind=kind,
            warm=[] if kind == rounds.BUILD else rounds.warm_blocks(kind, self.best, self.config, self._plan),
            flow=self.best.with_blocks([]),
            samples=self._enter(kind),
            later_rounds=rounds.rounds_after(kind, self.rounds, self.config),
            plan=self._plan,
            started=state.round_started if state is not None and going_on else self.world.elapsed(),
        )
        if state is not None:
            trainer.go_on(state.blocks, state.summaries, state.fit)
        return trainer

    def _end_round(self, trainer: RoundTrainer, errors: list[float]) -> None:
        """Keeps or undoes the result of a round; ``errors`` are the standard errors of its blocks' movements."""
        best = rounds.last_kept(self.rounds)["val_nll"] if self.rounds else None
        seconds, nll = self.world.elapsed() - trainer.started, trainer.samples.val_nll()
        rows = trainer.samples.val_rows()
        gain = None if best is None else paired_gain(self._best_rows(), rows)
        record = rounds.record(trainer.number, trainer.kind, trainer.flow.stack, errors, nll, gain, seconds)
        if trainer.kind == rounds.BUILD:
            record["first_layer_scale"] = trainer.scale
        if record["kept"]:
            self.best, self._rows_of_best = trainer.flow, rows
        else:
            chance = "" if gain is None or not gain.value > 0 else f" beyond chance ({gain.stderr:.4f})"
            self.progress.message(
                f"round {trainer.number + 1} ({trainer.kind}) ended at a validation NLL of {record['val_nll']:.4f} "
                f"nats, no better than {best:.4f} before{chance}: undone"
            )
        self._record(record)
        self.rounds.append(record)

    def _best_rows(self) -> Tensor:
        """Returns the NLL of every validation row under the best flow so far, but for the Gaussian's constant."""
        if self._rows_of_best is None:  # a resumed run
            samples = entering(self.best, self.data, self.config.val_rows, self.world, self._place)
            for block in self.best.stack:
                samples.push_val(block)
            self._rows_of_best = samples.val_rows()
        return self._rows_of_best

    def _measure_start(self) -> None:
        """Records the flow to start from as a round of its own, with which the next round is compared."""
        blocks, samples = self.best.stack, self._enter(rounds.START)
        if (budget := self._context.budget) is not None:

            def carry() -> None:
                for block in blocks:
                    samples.carry_val(block)

            seconds = self.world.seconds(carry)
            affordable = int(PUSH_SHARE * budget.seconds * len(samples.val) / max(seconds, 1e-12))
            samples.keep(max(affordable, FEWEST_ROWS), self.config.seed, samples.rows)
        errors = samples.push_through(blocks)
        record = rounds.record(0, rounds.START, blocks, errors, samples.val_nll(), None, self.world.elapsed())
        self._record(record)
        self.rounds.append(record)

    def _finish(self) -> Model:
        """Evaluates the best flow and writes the results."""
        seconds = self.world.elapsed()
        flow = self.best.requires_grad_(False).eval()
        budget, doubts = self._context.budget, list[str]()
        results = evaluate(
            flow, self.data, self.config.val_rows, budget, self.progress.message, doubts.append, self.world.share_out
        )
        overflowing = results["rows_left_out"]
        results |= {
            "rows_left_out": {part: self._left_out.get(part, 0) + overflowing.get(part, 0) for part in _PARTS},
            "movements": [block.movement for block in flow.stack],
            "movements_stderr": rounds.last_kept(self.rounds)["movements_stderr"],
            "guard_events": self.guard_events,
            "train_seconds": seconds,
            "seed": self.config.seed,
            "fingerprint": self._fingerprint,
            "initial_map": flow.initial_map.recipe,
            "rounds": [{k: v for k, v in record.items() if k != "event"} for record in self.rounds],
        }
        if not self.data.prepared:
            flow.features, flow.context_features = own_names(self.data.features), own_names(self.data.context_features)
            flow.frames = self.data.frames
        model: Model = flow
        columns: Mapping[str, NDArray[Any]] | None = None
        if self._complete is not None:
            model, results, columns = self._complete(flow, results)
        elif self._treatments is not None:
            results["columns"] = described(self.data, self._treatments)
        if budget is not None and budget.is_overrun():
            self.progress.message(
                f"the run has taken {self.world.elapsed():.1f} s of a time budget of {budget.seconds:g} s: that is too "
                "short for these data and settings; raise time_budget, or lower batch_size, hidden or max_blocks"
            )
        model.metrics = without_times(results)
        if self.directory is not None:
            self.directory.finish(model, results, self.data, columns)
        for text in overfit.told(results):
            self.progress.message(text)
        for text in doubts:
            self.progress.message(text)
        self._events.tell({"event": "evaluation", "global_step": self._iterations_done, "metrics": results})
        for text in doubts:  # at last: a warning may be an error
            warn_caller(text, ConvergenceWarning)
        return model

    # ---- What is kept

    def _record(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "guard":
            self.guard_events += 1
        step = self._iterations_done + event.get("iteration", 0)
        if event["event"] == "block":
            step = self._iterations_done = self._iterations_done + event["iterations"]
        record = {"event": event["event"], "round": len(self.rounds), **event, "global_step": step}
        if self.directory is not None:
            self.directory.record(record)
        if self._history is not None:
            self._history.append(finite(record))
        self._events.tell(record)

    def _save_if_due(self, fit: Fit | None) -> None:
        """Saves the state: always between two fits, and within a fit if the last save is long ago, or a signal ends it.

        Raises:
            jkoflow.training.interruption.Interrupted: If a signal has asked for the end of the run.
        """
        signal = self.world.signal() if fit is None else self.world.recent_signal()
        if fit is None or signal is not None or self.world.recent() - self._saved >= self.config.save_seconds:
            self._save(fit)
        if signal is not None:
            self.world.meet()  # what the first process has saved is there for all
            self.world.together(self._events.check)
            interrupt(signal)

    def _save(self, fit: Fit | None) -> None:
        self._saved = elapsed = self.world.elapsed()
        if self.directory is None:
            return
        trainer = self._round
        plan = self._plan if trainer is None else trainer.plan
        history_bytes, history_digest = self.directory.flush()
        state = RunState(
            settings=self.config.to_mapping(),
            fingerprint=self._fingerprint,
            elapsed=elapsed,
            history_bytes=history_bytes,
            history_digest=history_digest,
            guard_events=self.guard_events,
            iterations_done=self._iterations_done,
            planned_blocks=None if plan is None else plan.blocks,
            planned_finetune=0.0 if plan is None else plan.finetune,
            planned_divide=1 if plan is None else plan.divide,
            planned_width=FIRST_WIDTH if plan is None else plan.width,
            planned_more_steps=0 if plan is None else plan.more_steps,
            planned_together=False if plan is None else plan.together,
            planned_rate_share=1.0 if plan is None else plan.rate_share,
            rounds=self.rounds,
            accepted=self.best.stack,
            round_started=0.0 if trainer is None else trainer.started,
            summaries=[] if trainer is None else trainer.summaries,
            blocks=[] if trainer is None else trainer.flow.stack,
            fit=None if fit is None else fit.state(),
            treatments=None if self._treatments is None else self._treatments.describe(),
        )
        self.directory.save_state(state)

    def _restore(self, state: RunState, device: torch.device) -> None:
        """Restores the run from a saved state, except for the round in training, which `_begin_round` restores."""
        self.world.go_on_after(state.elapsed)
        self.rounds, self.guard_events = state.rounds, state.guard_events
        self._iterations_done = state.iterations_done
        if state.planned_blocks is not None:
            self._plan = RunPlan(
                state.planned_blocks,
                state.planned_finetune,
                state.planned_divide,
                state.planned_width,
                state.planned_more_steps,
                state.planned_together,
                state.planned_rate_share,
            )
        self.best = self.best.with_blocks([block.to(device) for block in state.accepted])


def without_times(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the results of a run but for the seconds, which differ from run to run where nothing else does."""
    rounds_of = [{name: value for name, value in record.items() if name != "seconds"} for record in results["rounds"]]
    return {**{name: value for name, value in results.items() if name != "train_seconds"}, "rounds": rounds_of}
