"""All peers that are measured on the CPU, ours first; `jkoflow.bench.peers.on_gpu` has the peers of a GPU."""

from __future__ import annotations

from functools import partial

from jkoflow.bench.candidate import Peer, Work
from jkoflow.bench.peers import closed_form, jax_process, ours, torchdiffeq, zuko

OURS = "jkoflow"
FUSED = "jkoflow, fused loss"
SPLIT = "jkoflow, bf16x3"
SPLIT_FUSED = "jkoflow, fused loss, bf16x3"

COMPILES = "compiling takes minutes: ask with --compile"
"""Reason for which peers that compile are left out unless asked for."""

PEERS: tuple[Peer, ...] = (
    Peer(FUSED, "jkoflow", ours.FusedLoss, directions=("forward+backward",), work=Work(fused=True)),
    Peer(OURS, "jkoflow", ours.Integrated, work=Work()),
    Peer(
        SPLIT_FUSED,
        "jkoflow",
        partial(ours.FusedLoss, precision="bf16x3"),
        directions=("forward+backward",),
        unavailable=ours.no_bf16x3,
        needs_cpu=True,
        work=Work(fused=True),
    ),
    Peer(
        SPLIT,
        "jkoflow",
        partial(ours.Integrated, precision="bf16x3"),
        unavailable=ours.no_bf16x3,
        needs_cpu=True,
        work=Work(),
    ),
    Peer(
        f"{FUSED}, Hutchinson",
        "jkoflow",
        partial(ours.FusedLoss, estimate=True),
        directions=("forward+backward",),
        estimate=True,
    ),
    Peer(f"{OURS}, Hutchinson", "jkoflow", partial(ours.Integrated, estimate=True), estimate=True),
    Peer("torchdiffeq, exact", "torchdiffeq", torchdiffeq.exact, ("torchdiffeq",)),
    Peer(
        "torchdiffeq, exact, adjoint",
        "torchdiffeq",
        torchdiffeq.exact_adjoint,
        ("torchdiffeq",),
        directions=("forward+backward",),  # its forward direction is that of the line above
        own_steps=True,
    ),
    Peer("torchdiffeq, Hutchinson", "torchdiffeq", torchdiffeq.hutchinson, ("torchdiffeq",), estimate=True),
    Peer("zuko CNF, exact", "zuko", zuko.exact, ("zuko",), own_steps=True),
    Peer("zuko CNF, Hutchinson", "zuko", zuko.hutchinson, ("zuko",), estimate=True, own_steps=True),
    Peer("closed form by hand, eager", "closed-form", closed_form.eager),
    Peer(
        "closed form by hand, torch.compile",
        "closed-form",
        closed_form.compiled,
        optional=COMPILES,
    ),
    Peer("JAX jit, closed form", "jax", jax_process.closed_form, ("jax",), needs_cpu=True),
    Peer("diffrax, closed form", "diffrax", jax_process.diffrax, ("jax", "diffrax"), needs_cpu=True),
)

LIBRARIES = tuple(dict.fromkeys(peer.library for peer in PEERS))
"""Names of the libraries that ``--peers`` chooses from."""

MEASURED_MEMORY = (FUSED, OURS, "closed form by hand, eager", "torchdiffeq, exact")
"""Names of the peers whose memory in training is measured."""
