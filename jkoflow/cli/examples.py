"""Examples of every command, for its help."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": (
        "jkoflow demo",
        "jkoflow demo --seconds 40 --out runs/look",
    ),
    "train": (
        "jkoflow train rose --out runs/rose --time-budget 60",
        "jkoflow train people.csv --out runs/people --columns age=integer",
        "jkoflow train rows.parquet --out runs/given --context-columns pressure",
        "jkoflow train rows.npy --out runs/curves --tensorboard curves/first",
        "jkoflow train rows.npy --out runs/piped --json | jq -c .loss",
        "jkoflow train --resume runs/people",
    ),
    "score": (
        "jkoflow score runs/people people.csv --out scores.csv --explain 5",
        "jkoflow score runs/people new.parquet --out scores.parquet --tol 0.01",
        "jkoflow score runs/people partitions/ --out scores/ --workers 4",
    ),
    "sample": (
        "jkoflow sample runs/people -n 1000 --out people.csv",
        "jkoflow sample runs/given -n 10 --out s.csv --context conditions.csv",
    ),
    "inspect": (
        "jkoflow inspect people.csv",
        "jkoflow inspect people.csv --columns age=integer,id=drop",
    ),
    "export": (
        "jkoflow export runs/people --out people.pt2",
        "jkoflow export runs/people --out people.pt2 --format aoti --tol 0.001",
    ),
    "report": (
        "jkoflow report runs/people",
        "jkoflow report runs/people runs/rose --out both.html",
    ),
    "reproduce": (
        "jkoflow reproduce --list",
        "jkoflow reproduce rose --out runs/paper --time-budget 300",
    ),
    "bench": (
        "jkoflow bench --quick",
        'jkoflow bench --shapes "6,128,2,10000,3" --peers torchdiffeq',
    ),
    "doctor": (
        "jkoflow doctor",
        "jkoflow doctor --json",
    ),
}
"""Command lines by the command that they are of."""


BEGIN = "\b\nTo begin with:  jkoflow demo\nOf a command:   jkoflow train --help"
"""End of the help of the group of all commands."""


def of(command: str) -> str:
    """Returns the end of a command's help; the first line keeps the others from being filled up."""
    lines = "\n".join(f"  {line}" for line in EXAMPLES[command])
    return f"\b\nExamples:\n{lines}"
