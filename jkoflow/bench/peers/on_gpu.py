"""All peers of a GPU, ours first: each precision of the kernels, launched and replayed from a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from jkoflow.bench.candidate import Peer, Work
from jkoflow.bench.peers import COMPILES, FUSED, OURS, PEERS, closed_form, ours, torchdiffeq
from jkoflow.ops import Backend, Precision

PRECISIONS: tuple[Precision, ...] = ("tf32x3", "tf32", "fp32")

COMPILING = 60.0
"""Seconds that ``torch.compile`` may take in mode max-autotune for the forward direction."""


def peers(precisions: Sequence[Precision] = PRECISIONS, backend: Backend = "cuda") -> tuple[Peer, ...]:
    """Returns all peers of a GPU; those that others are compared with come first.

    Arguments:
        precisions: Precisions of our kernels; all peers are compared with the first.
        backend: Backend of our peers.
    """
    others = [peer for peer in PEERS if peer.library in ("torchdiffeq", "zuko", "jax", "diffrax")]
    return (*_ours(precisions, backend), *_closed_form(), *_standing_for_torchdiffeq(), *others)


def _ours(precisions: Sequence[Precision], backend: Backend) -> Iterator[Peer]:
    for precision in precisions:
        tf32 = precision == "tf32"
        work = Work(unit="fp32" if precision == "fp32" else "tf32", products=3 if precision == "tf32x3" else 1)
        options = {"precision": precision, "backend": backend}
        integrated = partial(ours.Integrated, **options)
        yield from _twice(
            Peer(
                f"{FUSED}, {precision}",
                "jkoflow",
                partial(ours.FusedLoss, **options),
                directions=("forward+backward",),
                work=work._replace(fused=True),
                tf32=tf32,
            )
        )
        yield from _twice(Peer(f"{OURS}, {precision}", "jkoflow", integrated, work=work, tf32=tf32))
        if precision == precisions[0]:
            estimated = partial(integrated, estimate=True)
            yield Peer(f"{OURS}, {precision}, Hutchinson", "jkoflow", estimated, estimate=True, tf32=tf32)


def _closed_form() -> Iterator[Peer]:
    for ending, tf32 in (("", False), (", TF32", True)):
        yield from _twice(Peer(f"closed form by hand, eager{ending}", "closed-form", closed_form.eager, tf32=tf32))
        yield Peer(
            f"closed form by hand, max-autotune{ending}",
            "closed-form",
            closed_form.max_autotune,
            optional=COMPILES,
            tf32=tf32,
            compiling=COMPILING,
        )


def _standing_for_torchdiffeq() -> Iterator[Peer]:
    """Yields the peers that a machine without torchdiffeq measures in its place."""
    yield Peer(
        "autograd on a fixed grid, exact",
        "torchdiffeq",
        torchdiffeq.like_exact,
        unavailable=torchdiffeq.needs_no_stand_in,
    )
    yield Peer(
        "autograd on a fixed grid, Hutchinson",
        "torchdiffeq",
        torchdiffeq.like_hutchinson,
        estimate=True,
        unavailable=torchdiffeq.needs_no_stand_in,
    )


def _twice(peer: Peer) -> Iterator[Peer]:
    """Yields a peer as it is launched, and replayed from a CUDA graph."""
    yield peer
    yield replace(peer, name=f"{peer.name}, graph", graph=True)


CUDA_PEERS = peers()
