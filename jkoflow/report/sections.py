"""The sections of a report, figures and tables with their captions, as HTML."""

from __future__ import annotations

from html import escape

import torch

from jkoflow.checkpoint import CheckpointError
from jkoflow.images import IMAGES_FILE
from jkoflow.report import page, probes, tables
from jkoflow.report.column_views import plain_views
from jkoflow.report.results import Results
from jkoflow.report.table_sections import pairs, table_pictures
from jkoflow.training import overfit


def images(run: Results) -> list[str]:
    """Returns the section of decoded samples of a run on pictures; none for other runs."""
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


def published(run: Results) -> list[str]:
    """Returns the section that compares the run with published figures; none for a run that is no experiment."""
    return [page.section("Beside published figures", tables.published(run))] if "experiment" in run.metrics else []


def pictures(run: Results) -> list[str]:
    """Returns the sections that show the flow itself, which depend on its dimension."""
    if run.table is not None:
        return table_pictures(run)
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
    views = plain_views(features, probes.to_array(data), probes.to_array(samples))
    return [
        page.section("Data and samples, column by column", marginals),
        page.section("Data and samples, pair by pair", pairs(views)),
        page.section("Noise", noise),
    ]


def columns(run: Results) -> list[str]:
    """Returns the section about the kinds of the columns; none for runs of versions that did not keep them."""
    if not run.metrics.get("columns"):
        return []
    body = tables.columns(run)
    if len(run.metrics["columns"]) > probes.MAX_COLUMNS:
        body = page.details(page.count(len(run.metrics["columns"]), "column"), body)
    return [page.section("Columns", body)]


def training(run: Results) -> str:
    """Returns the section about the training: curves, blocks, rounds and the guard's interventions."""
    if not run.has_numbers:
        return page.section("Training", "<p>All columns are discrete: their masses are fitted, and no block is.</p>")
    from jkoflow.report import training_figures

    guards = probes.guard_records(run.history)
    curves = page.figure(
        training_figures.training_figure(run.history),
        "Validation negative log-likelihood, terms of the loss and movement penalty over iterations, block by block.",
        "Loss = potential + divergence + movement penalty. Lines are running medians, bands hold 80 % of the recorded "
        "iterations; vertical lines separate blocks, thick ones rounds; the last may train all blocks at once. "
        "Each block starts from what the blocks before it left, so its potential does too."
        + (" Red triangles: the integrator guard stepped in." if guards else ""),
    )
    bars = page.figure(
        training_figures.blocks_figure(run.metrics["movements"], [block.jko_step for block in run.flow.stack]),
        "Bars: movement and JKO step size of every block.",
        "Movement is the root mean squared distance the training rows travel in a block. A free block has no "
        "penalty (h = ∞).",
    )
    lessons = "".join(f"<p>{escape(text[0].upper() + text[1:])}.</p>" for text in overfit.told(run.metrics))
    details = page.details("Block by block", tables.blocks(run))
    if guards:
        title = f"Integrator guard: {page.count(len(guards), 'event')}"
        details += page.details(title, tables.guard_events(run))
    return page.section("Training", curves + lessons + bars + _rounds(run) + details)


def _rounds(run: Results) -> str:
    """Returns the figure of movements before and after every round; an empty text for a single round."""
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
    return drawing + tables.rounds(run)
