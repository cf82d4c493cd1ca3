"""Everybody who is measured, ours first."""

from __future__ import annotations

from jkoflow.bench.candidate import Peer
from jkoflow.bench.peers import closed_form, jax_process, ours, torchdiffeq, zuko

OURS = "jkoflow"
FUSED = "jkoflow, fused loss"

PEERS: tuple[Peer, ...] = (
    Peer(FUSED, "jkoflow", ours.fused_loss, directions=("forward+backward",)),
    Peer(OURS, "jkoflow", ours.integrated),
    Peer(f"{FUSED}, Hutchinson", "jkoflow", ours.estimated_loss, directions=("forward+backward",), estimate=True),
    Peer(f"{OURS}, Hutchinson", "jkoflow", ours.estimated, estimate=True),
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
        optional="compiling takes minutes: ask with --compile",
    ),
    Peer("JAX jit, closed form", "jax", jax_process.closed_form, ("jax",), cpu_only=True),
    Peer("diffrax, closed form", "diffrax", jax_process.diffrax, ("jax", "diffrax"), cpu_only=True),
)

LIBRARIES = tuple(dict.fromkeys(peer.library for peer in PEERS))
"""What ``--peers`` chooses from."""

MEASURED_MEMORY = (FUSED, OURS, "closed form by hand, eager", "torchdiffeq, exact")
"""Whose memory is measured in training."""
