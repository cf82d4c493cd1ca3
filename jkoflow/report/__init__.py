"""One self-contained HTML page about a finished run: what was learned, how well, and how the training went."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from jkoflow.block import Block
from jkoflow.checkpoint import CheckpointError, write_atomically
from jkoflow.flow import JKOFlow
from jkoflow.images import IMAGES_FILE
from jkoflow.report import page, probes
from jkoflow.report.results import Results, read_results
from jkoflow.two_sample import FIXED_BANDWIDTH

if TYPE_CHECKING:
    pass

REPORT_FILE = "report.html"


def write_report(run_dir: str | Path) -> Path:
    """Writes RUN/report.html: one page with its pictures inside, that needs no network and no script.

    Arguments:
        run_dir: The directory of a finished run, as `jkoflow.train` leaves it.

    Returns:
        The path of the page.

    Raises:
        CheckpointError: If a file of the run is missing or damaged, or two of them disagree.
        ImportError: If matplotlib is missing.
        OSError: If the page cannot be written.

    Example:
        >>> write_report("runs/gasturbine")  # doctest: +SKIP
        PosixPath('runs/gasturbine/report.html')
    """
    run = read_results(run_dir)
    path = run.path / REPORT_FILE
    write_atomically(path, render(run).encode())
    return path


def render(run: Results) -> str:
    """The page as HTML; deterministic for a given run."""
    source = str(run.config.get("data", run.path.name))
    title = str(run.metrics.get("experiment") or Path(source).stem or source)
    sections = [
        *_images(run),
        *_published(run),
        *_pictures(run),
        _training(run),
        page.section("Results", _metrics_table(run)),
        page.section("Load the model", _load_snippet(run.path, run.flow)),
        '<div class="columns">',
        page.section("Configuration", page.pair_table(page.flat(run.config))),
        page.section("Environment", page.pair_table(_environment(run))),
        "</div>",
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · jkoflow report</title>\n<style>{page.STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{_headline(run, title)}\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    )


def _environment(run: Results) -> list[tuple[str, str]]:
    rows = page.flat(run.environment)
    # A kernel that can be used has no reason why not.
    return [(k, "available" if k in ("kernels.cpu", "kernels.cuda") and v == "–" else v) for k, v in rows]


def _headline(run: Results, title: str) -> str:
    m = run.metrics
    tiles = (
        (
            "Test NLL",
            f"{page.number(m['test_nll'], 3)} <small>± {page.number(m['test_nll_stderr'], 3)}</small>",
            "nats per row, standardised columns",
        ),
        (
            "Converged at" if m.get("test_nll_converged", True) else "Not converged at",
            page.number(m["eval_num_steps"]),
            "Runge-Kutta steps per block",
        ),
        (
            "Inversion error",
            page.number(m["inversion_error_mean"]),
            f"mean; {page.number(m['inversion_error_max'])} at most",
        ),
        ("Training", page.duration(m["train_seconds"]), page.count(m["guard_events"], "guard event")),
    )
    cells = "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{value}</dd><dd class="note">{note}</dd></div>'
        for name, value, note in tiles
    )
    lede = (
        f"A flow of {page.count(len(run.flow.blocks), 'block')}, trained on {page.count(m['n_train'], 'row')} of "
        f"{page.count(run.flow.dim, 'column')}{_given(run)}; drawn with {page.count(len(run.data), 'test row')}."
    )
    return (
        f'<header><p class="eyebrow">jkoflow report</p><h1>{escape(title)}</h1><p>{lede}</p>'
        f'<dl class="tiles">{cells}</dl></header>'
    )


def _given(run: Results) -> str:
    return f" given {', '.join(run.context_features)}" if run.context_features else ""


def _pictures(run: Results) -> list[str]:
    """The sections that show the flow itself, by dimension."""
    from jkoflow.report import figures

    flow, data, features = run.flow, run.data, run.features
    names = ", ".join(features)
    gap = "KS is the largest gap between the two cumulative distributions"
    norms = ", and the norm |z| the chi distribution" if flow.dim > 1 else ""
    context = run.context
    averaged = "" if context is None else f" Densities are averaged over {probes.MAX_CONTEXTS} rows of the context."
    z = torch.from_numpy(probes.flow_stages(flow, data, [len(flow.blocks)], context=context)[0])
    noise = page.figure(
        figures.noise_figure(z),
        "Histograms of the test data carried to the noise side, column by column, with the standard Gaussian.",
        f"Test data carried to the noise side: each column should follow the standard Gaussian{norms}. {gap}.",
    )
    if flow.dim == 1:
        curve = figures.curve_figure(flow, data, features[0], context=context)
        caption = (
            "Left: the density of the flow over histograms of test data and samples. Right: quantiles of the data, "
            f"followed through the blocks; where lines spread, density falls.{averaged}"
        )
        alt = f"Density of {names} under the flow, drawn over histograms, and paths of quantiles from data to noise."
        return [page.section("Density", page.figure(curve, alt, caption)), page.section("Noise", noise)]
    if flow.dim == 2:
        panels = page.figure(
            figures.density_figure(flow, data, features, context=context),
            f"Three panels over {names}: test data, samples of the flow, and its log-density.",
            f"Test data, as many samples, and the log-density of the flow (nats), on the same axes.{averaged}",
        )
        shown = len(probes.chosen_stages(len(flow.blocks)))
        omitted = len(flow.blocks) + 1 - shown
        thinned = f" {shown} of {len(flow.blocks) + 1} stages, evenly spaced, are shown." if omitted else ""
        stages = page.figure(
            figures.stages_figure(flow, data, context=context),
            "Stages of the flow in columns from data to noise; rows: data pushed forward, noise carried back, density.",
            "Every column is the state after a block. First row: test data pushed towards the noise. Second row: noise "
            "carried back to the data side, read from right to left. Third row: the density at that stage, brightest "
            f"where it is highest in its own panel. All panels share the standardised axes.{thinned}",
        )
        return [
            page.section("Data and model", panels),
            page.section("From data to noise, and back", stages),
            page.section("Noise", noise),
        ]
    samples = probes.flow_samples(flow, len(data), context=context)
    shown = min(flow.dim, probes.MAX_COLUMNS)
    which = "All columns" if shown == flow.dim else f"The {shown} columns of {flow.dim} that fit worst"
    chance = probes.chance_ks(len(data), len(samples))
    marginals = page.figure(
        figures.marginals_figure(data, samples, features),
        "Histograms of test data and of samples, one panel per column.",
        f"{which}, clipped to robust quantiles. {gap}; with {len(data):,} and {len(samples):,} points, chance alone "
        f"exceeds {chance:.3f} in one column of twenty.",
    )
    pairs = page.figure(
        figures.pairs_figure(data, samples, features),
        "Two-dimensional histograms of pairs of columns: test data above, samples below.",
        "Pairs by turns most correlated and least Gaussian: test data above, as many samples below; counts in "
        "logarithmic colours, the same in both rows.",
    )
    return [
        page.section("Data and samples, column by column", marginals),
        page.section("Data and samples, pair by pair", pairs),
        page.section("Noise", noise),
    ]


def _images(run: Results) -> list[str]:
    """Decoded samples of a run on pictures; nothing for other runs."""
    path = run.path / IMAGES_FILE
    if "reconstruction_error" not in run.metrics:
        return []
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; restore it, or train the run again")
    error = page.number(run.metrics["reconstruction_error"])
    caption = (
        "Above: real test pictures. Middle: what the autoencoder makes of them (root mean square error "
        f"{error} per pixel, from 0 to 1). Below: samples of the flow in the autoencoder's latent space, decoded. The "
        "columns further down are those of the latent space."
    )
    alt = "Three bands of small pictures: real ones, their reconstructions, and decoded samples of the flow."
    return [page.section("Images", page.picture(path.read_bytes(), alt, caption))]


def _published(run: Results) -> list[str]:
    """The run beside published figures; nothing for a run that is no experiment."""
    m = run.metrics
    if "experiment" not in m:
        return []
    error = page.number(m["reproduced_nll_stderr"], 3)
    rows = [("this run", f"{page.number(m['reproduced_nll'], 3)} ± {error}", "step-converged, test rows")]
    rows += [(figure["model"], page.number(figure["nll"], 2), figure["source"]) for figure in m["published"]]
    verdict = "The figures compare" if m["paper_nll_comparable"] else "The figures do not compare one to one"
    note = f"<p>{escape(verdict)}: {escape(m['paper_remark'])}.</p>"
    table = page.grid_table(("model", f"test NLL, {m['paper_nll_units']}", "source"), rows)
    return [page.section("Beside published figures", table + note)]


def _training(run: Results) -> str:
    from jkoflow.report import training_figures

    kept = [record["round"] for record in run.metrics.get("rounds", []) if record["kept"]]
    together = probes.fine_tuning_rounds(run.history)
    # the rounds that the flow is from: the last one that trained block by block, and the one after it if there was one
    number = next((number for number in reversed(kept) if number not in together), 0)
    ends = {r["block"]: r for r in run.history if r["event"] == "block" and probes.place_of(r)[0] == number}
    tuned = [r for r in run.history if r["event"] == "block" and probes.place_of(r)[0] in together & set(kept)]
    guards = [r for r in run.history if r["event"] == "guard"]
    curves = page.figure(
        training_figures.training_figure(run.history),
        "Validation negative log-likelihood, terms of the loss and movement penalty over iterations, block by block.",
        "Loss = potential + divergence + movement penalty. Lines are running medians, bands hold 80 % of the recorded "
        "iterations; vertical lines separate blocks, thick ones rounds; the last may train all blocks at once. "
        "Each block starts from what the blocks before it left, so its potential does too."
        + (" Red triangles: the integrator guard stepped in." if guards else ""),
    )
    jko_steps = [cast(Block, block).jko_step for block in run.flow.blocks]
    bars = page.figure(
        training_figures.blocks_figure(run.metrics["movements"], jko_steps),
        "Bars: movement and JKO step size of every block.",
        "Movement is the root mean squared distance the training rows travel in a block. A free block has no "
        "penalty (h = ∞).",
    )
    head = ("block", "step size h", "steps", "iterations", "movement", "validation NLL (nats)", "time")
    rows = [
        _block_row(k + 1, jko_steps[k], cast(Block, run.flow.blocks[k]).num_steps, movement, ends.get(k, {}))
        for k, movement in enumerate(run.metrics["movements"])
    ]
    rows += [_block_row("all, together", math.inf, r.get("num_steps"), r.get("movement"), r) for r in tuned]
    details = page.details("Block by block", page.grid_table(head, rows))
    if guards:
        head = ("round", "block", "iteration", "NLL gap (nats)", "round-trip error", "steps now", "action")
        keys = ("iteration", "nll_difference", "round_trip", "num_steps")
        rows = [
            (
                probes.place_of(r)[0] + 1,
                "all" if probes.place_of(r)[0] in together else probes.place_of(r)[1] + 1,
                *(page.number(r.get(key)) for key in keys),
                _action(r),
            )
            for r in guards
        ]
        details += page.details(f"Integrator guard: {page.count(len(guards), 'event')}", page.grid_table(head, rows))
    return page.section("Training", curves + bars + _rounds(run) + details)


def _block_row(
    name: int | str, jko_step: float, steps: int | None, movement: float | None, end: Mapping[str, Any]
) -> tuple[object, ...]:
    """What is known of a block: from the flow, and from the record of its training if there is one."""
    return (
        name,
        "∞ (free)" if math.isinf(jko_step) else page.number(jko_step),
        page.number(steps),
        page.number(end.get("iterations")),
        page.number(movement),
        page.number(end.get("val_nll"), 3),
        page.duration(end["seconds"]) if "seconds" in end else "–",
    )


def _rounds(run: Results) -> str:
    """Movements before and after every round, if there was more than one."""
    from jkoflow.report import training_figures

    records = run.metrics.get("rounds", [])
    if len(records) < 2:
        return ""
    drawing = page.figure(
        training_figures.rounds_figure(records),
        "Bars: movement and step size of every block, one column per round of training.",
        "Movements and step sizes round by round. Reparametrisation changes the step sizes so that penalised blocks "
        "move more equally far; refinement divides every block; fine-tuning trains all of them at once, on the "
        "likelihood. A round that does not improve the validation NLL is undone.",
    )
    head = ("round", "kind", "blocks", "spread of movements", "validation NLL (nats)", "result", "time")
    rows = [
        (
            record["round"] + 1,
            record["kind"],
            record["blocks"],
            page.number(record["movement_spread"]),
            page.number(record["val_nll"], 4),
            "kept" if record["kept"] else "undone",
            page.duration(record["seconds"]),
        )
        for record in records
    ]
    return drawing + page.grid_table(head, rows)


_CONVERGED = {
    True: "Runge-Kutta steps per block; twice as many move the NLL by less than 0.001 nats",
    False: "Runge-Kutta steps per block; the NLL has NOT converged, do not rely on it",
}
_ACTIONS = {
    "doubled": "went back to the last good parameters, doubled the steps",
    "halved": "halved the steps: half as many are enough again",
    "damped": "halved the velocity that the block was warm-started with",
    "reset": "started the block afresh",
    "stopped": "ended the block with its best parameters",
}


def _action(record: dict[str, Any]) -> str:
    action = str(record.get("action", "–"))
    return _ACTIONS.get(action, action)


def _metrics_table(run: Results) -> str:
    m = run.metrics
    parameters = sum(parameter.numel() for parameter in run.flow.parameters())
    rows: list[tuple[str, str, str]] = [
        (
            "Test NLL",
            f"{page.number(m['test_nll'], 4)} ± {page.number(m['test_nll_stderr'], 4)}",
            "nats per row, standardised columns",
        ),
        ("Test NLL", page.number(m["test_nll_data_units"], 4), "nats per row, the data's own units"),
        *_bits(m),
    ]
    gaussian = _gaussian_nll(run)
    if gaussian is not None:
        rows.append(
            (
                "Gaussian for comparison",
                page.number(gaussian, 4),
                "nats per row, standardised; mean and covariance of these test rows"
                + (" and their context" if run.context_features else ""),
            )
        )
    rows += [
        (
            "Evaluated with",
            page.number(m["eval_num_steps"]),
            _CONVERGED[bool(m.get("test_nll_converged", True))],
        ),
        (
            "Inversion error, mean",
            page.number(m["inversion_error_mean"]),
            "distance between x and inverse(forward(x)), standardised",
        ),
        ("Inversion error, largest", page.number(m["inversion_error_max"]), "same"),
        *_exact_inversion(m),
        *_distances(m),
        ("Total movement", page.number(sum(m["movements"])), "standardised units, summed over the blocks"),
        ("Blocks", page.number(m["blocks"]), ""),
        ("Parameters", f"{parameters:,}", ""),
        ("Training rows", f"{m['n_train']:,}", f"{m['dim']} columns"),
        *([("Test rows", f"{m['n_test']:,}", "scored")] if "n_test" in m else []),
        ("Training time", page.duration(m["train_seconds"]), ""),
        ("Guard events", page.number(m["guard_events"]), "times the integrator guard stepped in"),
        ("Seed", str(m["seed"]), ""),
    ]
    return page.grid_table(("", "value", "unit"), rows)


def _bits(m: dict[str, Any]) -> list[tuple[str, str, str]]:
    if "test_bits_per_dim" not in m:
        return []
    value, error = (page.number(m[name], 4) for name in ("test_bits_per_dim", "test_bits_per_dim_stderr"))
    return [("Test NLL", f"{value} ± {error}", "bits per column, the data's own units")]


_DISTANCES = {
    "mmd_median": "MMD², median bandwidth",
    "mmd_fixed": f"MMD², bandwidth {FIXED_BANDWIDTH:g}",
    "energy_distance": "Energy distance",
}


def _distances(m: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Distances between test rows and samples; nothing for runs of versions that did not measure them."""
    return [
        (
            label,
            f"{page.number(m[name])} ± {page.number(m[f'{name}_stderr'])}",
            f"{m['two_sample_rows']:,} test rows against samples; chance alone exceeds "
            f"{page.number(m[f'{name}_threshold'])} in one case of twenty",
        )
        for name, label in _DISTANCES.items()
        if name in m
    ]


def _exact_inversion(m: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The error of the exact inverse; nothing for runs of versions that did not measure it."""
    if "inversion_error_exact_mean" not in m:
        return []
    mean, largest = m["inversion_error_exact_mean"], m["inversion_error_exact_max"]
    if mean is None:
        return [("Exact inverse", "none", "a Runge-Kutta step is too coarse to be inverted")]
    return [("Inversion error, exact inverse", page.number(mean), f"mean; {page.number(largest)} at most")]


def _gaussian_nll(run: Results) -> float | None:
    """NLL of a Gaussian with the moments of the test rows on standardised columns; None if they are degenerate."""
    dim, count = run.flow.dim, run.flow.dim + run.flow.context_dim
    if len(run.data) <= 2 * count:
        return None
    z = run.flow.standardize(run.data.to(run.flow.standardize.mean))[0].double()
    joint = z if run.context is None else torch.cat([z, run.context.double()], 1)
    covariance = torch.cov(joint.T).reshape(count, count)
    sign, log_det = torch.linalg.slogdet(covariance)
    # of the rows given their context: the determinant of the joint covariance over that of the context's
    context_sign, context_log_det = torch.linalg.slogdet(covariance[dim:, dim:])
    value = 0.5 * (float(log_det - context_log_det) + dim * (1 + math.log(2 * math.pi)))
    return value if float(sign) > 0 and float(context_sign) > 0 and math.isfinite(value) else None


def _load_snippet(path: Path, flow: JKOFlow) -> str:
    if flow.context_dim:
        lines = (
            f"log_p = flow.log_prob(x, c)        # nats, x of shape (n, {flow.dim}), context c of shape "
            f"(n, {flow.context_dim}), in their own units",
            "samples = flow.sample(len(c), c)   # one for each row of c",
            "z, logdet = flow.forward(x, c)     # to the noise side; flow.inverse(z, c) leads back",
        )
    else:
        lines = (
            f"log_p = flow.log_prob(x)      # nats, x of shape (n, {flow.dim}) in the data's own units",
            "samples = flow.sample(1000)   # in the data's own units",
            "z, logdet = flow.forward(x)   # to the noise side; flow.inverse(z) leads back",
        )
    code = "\n".join(["from jkoflow import JKOFlow", "", f"flow = JKOFlow.load({_relative(path)!r})", *lines])
    return f"<pre><code>{escape(code)}</code></pre>"


def _relative(path: Path) -> str:
    """The run as seen from the working directory, or its bare name: a page that travels holds no machine's paths."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.resolve().name
