"""The processes that torchrun has started: they become one world, of which the first tells the news and the errors."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import typer

from jkoflow.errors import UserError
from jkoflow.training.ranks import LostProcessError, Ranks
from jkoflow.training.world import World


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def is_restarted() -> bool:
    """Tells whether torchrun has started the processes again, after one of them had ended."""
    return dist.is_torchelastic_launched() and _restarts() > 0


@contextmanager
def processes() -> Iterator[World]:
    """Joins the processes that torchrun has started, if it has started several, and yields their world.

    What the others than the first print, warn of and fail by, the first does, too, and tells; but every process tells
    of a lost one.
    """
    if not (dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1):
        yield World()
        return
    from torch.distributed.rendezvous import rendezvous  # which PyTorch has with distributed alone

    # Processes that are started again find the store of those before them, with addresses at which nobody is any more.
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(f"jkoflow-{_restarts()}", store),  # type: ignore[reportPrivateImportUsage]
        rank=rank,
        world_size=size,
    )
    with contextlib.closing(Ranks()) as world:
        if world.leads:
            yield world
        else:
            with _silenced():
                yield world
    dist.destroy_process_group()


@contextmanager
def _silenced() -> Iterator[None]:
    try:
        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    except LostProcessError:
        raise
    except UserError:
        raise typer.Exit(2) from None
    except KeyboardInterrupt as error:
        raise typer.Exit(128 + getattr(error, "number", signal.SIGINT)) from None


def command(arguments: str) -> str:
    """Returns the command that runs jkoflow with some arguments in processes as these are."""
    if not dist.is_torchelastic_launched():
        return f"jkoflow {arguments}"
    local = os.environ["LOCAL_WORLD_SIZE"]
    here = f"--standalone --nproc-per-node {local}"
    options = here if local == os.environ["WORLD_SIZE"] else "(with its options as before)"
    return f"torchrun {options} -m jkoflow {arguments}"
