"""The commands train, report and doctor, and the group of all commands; the others have modules of their own."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jkoflow._version import __version__
from jkoflow.checkpoint import OldFormatWarning
from jkoflow.cli import completion, console, examples, json_lines, launched, settings, table_options, training_run
from jkoflow.cli.bench import bench
from jkoflow.cli.demo import demo
from jkoflow.cli.export import export
from jkoflow.cli.inspect import inspect
from jkoflow.cli.reproduce import reproduce
from jkoflow.cli.sample import sample
from jkoflow.cli.score import score
from jkoflow.data import (
    DataWarning,
    load_dataset,
    place,
    require,
)
from jkoflow.environment import describe
from jkoflow.errors import UserError
from jkoflow.ops import FallbackWarning
from jkoflow.report import write_comparison, write_report
from jkoflow.tolerance import ToleranceWarning
from jkoflow.training import ConvergenceWarning
from jkoflow.training.config import TrainConfig
from jkoflow.training.interruption import interrupt
from jkoflow.training.run_directory import RunDirectory

# click's own, wherever this version of typer keeps it
_CLICK_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class _StoppedError(Exception):
    """Raised in place of the interruption that has ended a command."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.text, self.number = text, number


class OneLineErrors(TyperGroup):
    """The command group, which turns errors into one line on stderr, with exit code 2, or 130 after Ctrl-C."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Runs a command and exits, or returns the exit code if not ``standalone_mode``."""
        given = args[0] if args else extra.pop("args", None)
        arguments = sys.argv[1:] if given is None else list(given)
        if json_lines.asked(arguments):
            try:
                with json_lines.on_stdout():
                    code = self._exit_code(arguments, *args[1:], **extra)
            except BrokenPipeError:  # while an error was told: there is nobody left to tell
                code = 1
        else:
            code = self._exit_code(arguments, *args[1:], **extra)
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that is named; newer versions of typer would end in silence at an interruption."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _StoppedError(str(error) or "interrupted", getattr(error, "number", signal.SIGINT)) from None

    def _exit_code(self, arguments: list[str], *rest: Any, **extra: Any) -> int:
        """Runs a command, tells its error if it fails, and returns the exit code."""
        try:
            with _warnings_as_notes(), _terminated_in_order():
                return super().main(arguments, *rest, standalone_mode=False, **extra) or 0
        except _CLICK_ERROR as error:
            console.error(_usage(error, arguments))
        except UserError as error:
            console.error(str(error))
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            console.error(f"{place}{error.strerror or error}; choose a place that can be read and written")
        except _StoppedError as stopped:
            console.error(stopped.text)
            return 128 + stopped.number
        except (typer.Abort, KeyboardInterrupt):
            console.error("interrupted")
            return 128 + signal.SIGINT
        except Exception as bug:
            json_lines.tell("error", text=f"{type(bug).__name__}: {bug}")  # people see its traceback
            raise
        return 2


app = typer.Typer(
    cls=OneLineErrors,
    help="Exact densities and samples from neural-ODE flows trained block by block.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True, epilog=examples.BEGIN)
def group(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Exact densities and samples from neural-ODE flows trained block by block."""
    if version:
        print(f"jkoflow {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def train(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help="A built-in name (rose, fractal_tree, checkerboard, rings, pinwheel, spirals, moons, gasturbine) or a "
            "file of a table (.csv, .tsv, .txt, also packed; .parquet, .feather, .npy, .npz, .mat, .fits); rose:100000 "
            "for another number of rows; power:DIRECTORY (gas, hepmass, miniboone, bsds300) for the MAF benchmark's "
            "files. With --resume and without --out: the run to resume.",
            show_default=False,
            autocompletion=completion.data,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the run; made if it is not there.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of settings; flags win over it.", show_default=False, autocompletion=completion.settings
        ),
    ] = None,
    blocks: Annotated[int | None, typer.Option(min=1, help="Largest number of blocks.", show_default=False)] = None,
    time_budget: Annotated[
        float | None, typer.Option(help="Seconds for the whole training.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the data's split and of the training.", show_default=False)
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="How parameters are updated: muon, soap or adam.",
            show_default=False,
            autocompletion=completion.one_of("muon", "soap", "adam"),
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory that training may take, as 2GB; rows beyond it lie on the disk.", show_default=False),
    ] = None,
    context_columns: table_options.ContextColumns = None,
    columns: table_options.Columns = None,
    missing: table_options.Missing = None,
    group: table_options.Group = None,
    split_by: table_options.SplitBy = None,
    header: table_options.Header = None,
    sep: table_options.Separator = None,
    decimal: table_options.Decimal = None,
    index_column: table_options.IndexColumn = None,
    reparam_rounds: Annotated[
        int | None,
        typer.Option(min=0, help="Rounds that even out the blocks' movements and train again.", show_default=False),
    ] = None,
    refine: Annotated[
        int | None,
        typer.Option(min=1, help="Parts that every block is divided into at the end.", show_default=False),
    ] = None,
    finetune: Annotated[
        float | None,
        typer.Option(help="Share of the training for a last round of all blocks at once.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    tensorboard: training_run.Curves = None,
    as_json: json_lines.Json = False,
) -> None:
    """Train a flow, measure it and write its report.

    RUN then holds the model, its metrics, the history and report.html. Several processes train together as
    torchrun --nproc-per-node N -m jkoflow train DATA --out RUN.
    """
    training_run.require_for_run()
    flags = {
        "max_blocks": blocks,
        "time_budget": time_budget,
        "seed": seed,
        "optimizer": optimizer,
        "reparam_rounds": reparam_rounds,
        "refine": refine,
        "finetune": finetune,
        "memory": memory,
    }
    chosen = {name: value for name, value in flags.items() if value is not None}
    told = table_options.mapping(context)

    def resolved() -> tuple[Path, settings.Source, TrainConfig, bool]:
        given = settings.given(config, chosen, told)
        goes_on = resume or (launched.is_restarted() and out is not None and RunDirectory(out).holds_run())
        resolve = settings.for_resume if goes_on else settings.for_start
        return *resolve(data, out, given), goes_on

    with launched.processes() as world:
        run, source, chosen_settings, goes_on = world.first(resolved)
        world.check_memory(chosen_settings.memory)
        dataset = world.together(
            lambda: load_dataset(source.data, chosen_settings.seed, (), source.options, chosen_settings.memory, run)
        )
        again = launched.command(f"train --resume {shlex.quote(str(run))}")
        found = training_run.train_and_report(
            dataset,
            place(source.data),
            chosen_settings,
            run,
            resume=goes_on,
            again=again,
            options=source.options,
            world=world,
            curves=tensorboard,
        )
        json_lines.result("train", **found)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Directory of a finished run, or of two to compare.",
            metavar="RUN [RUN2]",
            show_default=False,
            autocompletion=completion.runs,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File of the page; report.html in RUN if not given, of two runs comparison.html in the first.",
            show_default=False,
        ),
    ] = None,
    as_json: json_lines.Json = False,
) -> None:
    """Write the report of a run again, or a page of two runs.

    The page of two runs shows which settings and data differ, and which run makes the same test rows more likely.
    """
    if len(runs) > 2:
        raise typer.BadParameter(f"report takes one run, or two to compare, got {len(runs)}; compare them two by two")
    require("matplotlib", "the report")
    page = write_report(runs[0], out) if len(runs) == 1 else write_comparison(runs[0], runs[1], out)
    print(f"report: {page}")
    json_lines.result("report", report=page)


def doctor(as_json: json_lines.Json = False) -> None:
    """Show versions, processor, threads and kernels. If a kernel is missing, it says why."""
    environment = describe()
    console.show_environment(environment)
    json_lines.result("doctor", **environment)


for command in (demo, inspect, train, report, score, sample, export, reproduce, bench, doctor):
    app.command(epilog=examples.of(command.__name__))(command)


def _usage(error: Any, arguments: Sequence[str]) -> str:
    """Returns the text of an error of the command line, with what was given and where to read what it may be."""
    context, text = getattr(error, "ctx", None), error.format_message().strip()
    if context is None:
        return text
    text, given = text.removesuffix("."), _given(getattr(error, "param", None), arguments)
    if given is not None and repr(given) not in text:
        text += f", got {given!r}"
    command = " ".join(["jkoflow", *context.command_path.split()[1:]])
    return f"{text}; see: {command} --help"


def _given(parameter: Any, arguments: Sequence[str]) -> str | None:
    """Returns what the arguments give for an option; None if they do not give it."""
    for name in getattr(parameter, "opts", ()):
        for word, following in pairwise([*arguments, ""]):
            if word == name and following:
                return following
            if word.startswith(f"{name}="):
                return word.removeprefix(f"{name}=")
    return None


@contextmanager
def _terminated_in_order() -> Iterator[None]:
    """Makes an exception of SIGTERM, so that what has been begun is put in order, unless it is handled already."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Prints jkoflow's own warnings in one line, without their place in the source."""
    with warnings.catch_warnings():
        for kind in (DataWarning, FallbackWarning, OldFormatWarning, ToleranceWarning):
            warnings.simplefilter("always", kind)
        warnings.simplefilter("ignore", ConvergenceWarning)  # the progress of the training shows its text
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, DataWarning | FallbackWarning | OldFormatWarning | ToleranceWarning):
                console.note(str(message))
            else:
                shown(message, category, *rest, **named)

        warnings.showwarning = show
        yield
