"""The record of a comparison as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

NAMES = {
    "jkoflow": "jkoflow",
    "end_to_end": "the same blocks, end to end",
    "flow_matching": "flow matching",
    "local_flow_matching": "local flow matching",
    "ffjord": "FFJORD",
    "ot_flow": "OT-Flow",
    "maf": "MAF (zuko)",
    "nsf": "NSF (zuko)",
    "sospf": "SOSPF (zuko)",
}
HEADINGS = (
    "method", "test NLL", "MMD² x 1000", "inversion error, mean (max)", "batches", "s / batch", "parameters", "MiB",
    "NLL computed with", "evaluations / row", "rows scored / s", "rows sampled / s",
)  # fmt: skip

SHORTEST = 30
"""Smallest budget in seconds of a fair comparison; in less, planning and first steps decide."""

OVERRUN = 1.05
"""Share of the budget beyond which a note tells the time that a method took."""


def markdown(record: Mapping[str, Any]) -> str:
    """Returns a table for every data set, with notes."""
    parts = []
    if min(run["budget"] for run in record["runs"]) < SHORTEST:
        parts.append(
            f"**Budgets under {SHORTEST} s show what a user sees at once, longer ones which method is better.**"
        )
    for budget in sorted({run["budget"] for run in record["runs"]}):
        runs = [run for run in record["runs"] if run["budget"] == budget]
        parts.append(f"### Test NLL after {budget:g} s\n\n{_overview(runs)}")
    for title, runs in by_problem(record):
        first = runs[0]
        rows = [_row(name, group) for name, group in by_method(runs)]
        head = (
            f"### {title}\n\nd = {first['dim']}, {first['train_rows']:,} training and {first['test_rows']:,} test "
            f"rows, {first['budget']:g} s{_clock(first)}, {_plural(first['threads'], 'thread')}, "
            f"batches of {first['batch_size']}"
        )
        chance = [run["mmd_median_threshold"] for run in runs if run.get("mmd_median_threshold") is not None]
        if chance:
            head += f"; MMD² x 1000 that chance exceeds in one case of twenty: {1000 * mean(chance):.2f}"
        parts.append(f"{head}.\n\n{_table(HEADINGS, rows)}")
        parts += _notes(runs)
    parts += [_settings(record), _surroundings(record)]
    return "\n\n".join(parts) + "\n"


def by_problem(record: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yields the runs of every data set at every budget with a title, in the record's order."""
    for data, budget in dict.fromkeys((run["data"], run["budget"]) for run in record["runs"]):
        chosen = [run for run in record["runs"] if (run["data"], run["budget"]) == (data, budget)]
        yield f"{data}, {budget:g} s", chosen


def by_data(record: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yields the runs of every data set, in the record's order."""
    for data in dict.fromkeys(run["data"] for run in record["runs"]):
        yield data, [run for run in record["runs"] if run["data"] == data]


def by_method(runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yields the runs of every method, in the record's order."""
    for method in dict.fromkeys(run["method"] for run in runs):
        yield method, [run for run in runs if run["method"] == method]


def spread(values: Sequence[float | None], form: str = ".3f", factor: float = 1.0) -> str:
    """Returns mean and standard deviation over the seeds, such as ``1.234 ± 0.005``, and tells what is not finite."""
    found = [factor * value for value in values if value is not None]
    if len(found) < len(values):
        return f"not finite in {len(values) - len(found)} of {len(values)}"
    text = format(mean(found), form)
    return text if len(found) < 2 else f"{text} ± {stdev(found):{form}}"


def _overview(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table of the test NLLs, a line for each method and a column for each data set; the least are bold."""
    data = [name for name, _ in by_data({"runs": runs})]
    found: dict[tuple[str, str], list[float | None]] = {}
    for run in runs:
        found.setdefault((run["method"], run["data"]), []).append(run.get("test_nll"))
    means = {place: mean(values) for place, values in found.items() if None not in values}  # type: ignore[type-var]
    best = {name: min((value for (_, of), value in means.items() if of == name), default=None) for name in data}

    def cell(method: str, name: str) -> str:
        if (method, name) not in found:
            return ""
        text = spread(found[method, name])
        return f"**{text}**" if means.get((method, name)) == best[name] else text

    rows = [[NAMES[method], *(cell(method, name) for name in data)] for method, _ in by_method(runs)]
    return _table(("method", *data), rows)


def _row(method: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    def of(key: str) -> list[float | None]:
        return [run.get(key) for run in runs]

    memory = of("peak_memory_mib")
    worst = [value for value in of("inversion_error_max") if value is not None]
    missing = "" if len(worst) == len(runs) else "inf"
    return [
        NAMES[method] + ("" if len(runs) == 1 else f" ({len(runs)} seeds)"),
        spread(of("test_nll")) + ("" if all(run["nll_converged"] for run in runs) else " (not converged)"),
        spread(of("mmd_median"), ".2f", 1000.0),
        f"{spread(of('inversion_error_mean'), '.1e')} ({missing or format(max(worst), '.1e')})",
        format(mean(run["batches"] for run in runs), ",.0f"),
        format(mean(run["seconds_per_batch"] for run in runs), ".2g"),
        format(runs[0]["parameters"], ","),
        "" if None in memory else format(mean(value for value in memory if value is not None), ",.0f"),
        " / ".join(dict.fromkeys(run["computed_with"] for run in runs)),
        *(_cost(runs, key) for key in ("evaluations_per_row", "rows_scored_per_second", "rows_sampled_per_second")),
    ]


def _cost(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    """Returns the mean over the seeds in three digits; an empty text if a run does not know it."""
    if any(key not in run for run in runs):
        return ""
    found = [run[key] for run in runs if run[key] is not None]
    if not found:
        return "not reached"
    text = f"{float(f'{mean(found):.3g}'):,.10g}"
    return text if len(found) == len(runs) else f"{text} ({len(found)} of {len(runs)})"


def _notes(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the notes about single methods."""
    lines = []
    for method, group in by_method(runs):
        gaps = [
            run["test_nll"] - run["test_nll_as_trained"]
            for run in group
            if None not in (run["test_nll"], run["test_nll_as_trained"])
        ]
        if gaps and max(map(abs, gaps)) >= 0.01:
            worst = max(gaps, key=abs)
            lines.append(
                f"- {NAMES[method]}: the converged NLL differs from that of the training's steps by {worst:+.3f}"
            )
        longest = max(run["train_seconds"] for run in group)
        if longest > OVERRUN * group[0]["budget"]:
            lines.append(f"- {NAMES[method]}: trained for up to {longest:.1f} s")
        events = [event for run in group for event in run["events"]]
        if events:
            lines.append(f"- {NAMES[method]}: {_plural(len(events), 'intervention')} in training, such as: {events[0]}")
    return ["\n".join(lines)] if lines else []


def _settings(record: Mapping[str, Any]) -> str:
    lines = []
    for method, runs in by_method(record["runs"]):
        rates = {title: group[0]["settings"].get("learning_rate") for title, group in by_problem({"runs": runs})}
        names = dict.fromkeys(key for run in runs for key in run["settings"] if key != "learning_rate")
        values = {name: dict.fromkeys(str(run["settings"].get(name)) for run in runs) for name in names}
        told = [f"{name} = {' or '.join(found)}" for name, found in values.items()]
        if len(found := {rate for rate in rates.values() if rate is not None}) == 1:
            told.append(f"learning rate {found.pop():g}")
        elif found:
            told.append("learning rate " + ", ".join(f"{rate:g} ({title})" for title, rate in rates.items()))
        tuned = sorted({run["rate_tuned_at"] for run in runs if "rate_tuned_at" in run})
        if tuned:
            told.append(f"tuned at {' and '.join(f'{seconds:g}' for seconds in tuned)} s")
        lines.append(f"- {NAMES[method]}: {'; '.join(told) or 'the default configuration'}")
    return "Settings:\n\n" + "\n".join(lines)


def _surroundings(record: Mapping[str, Any]) -> str:
    lines = []
    for found in record["environments"]:
        lines.append(
            f"Measured on {found['cpu']} ({found['kernels']['isa'] or 'no kernels'}) with jkoflow {found['jkoflow']}, "
            f"torch {found['torch']}. Allocator: {found['allocator']}."
        )
    return "\n\n".join(dict.fromkeys(lines))


def _clock(run: Mapping[str, Any]) -> str:
    return " of processor time" if run["clock"] == "processor" else ""


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
