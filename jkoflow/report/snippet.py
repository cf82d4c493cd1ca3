"""The lines of Python that load the model of a report."""

from __future__ import annotations

from html import escape
from pathlib import Path

from jkoflow.table_flow import Model, TableFlow


def load_snippet(path: Path, flow: Model) -> str:
    """Returns the HTML of a few lines that load a run's model, score rows and draw samples."""
    if isinstance(flow, TableFlow):
        return _table_snippet(path, flow)
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


def _table_snippet(path: Path, model: TableFlow) -> str:
    rows = "a DataFrame with the columns of the training" if model.frames else f"of shape (n, {len(model.features)})"
    drawn = "a DataFrame" if model.frames else "a tensor"
    if model.context_features:
        given = "a DataFrame" if model.frames else f"of shape (n, {len(model.context_features)})"
        lines = (
            f"log_p = model.log_prob(x, c)        # nats, x {rows}, context c {given}",
            f"samples = model.sample(len(c), c)   # {drawn}, one row for each row of c",
        )
    else:
        lines = (
            f"log_p = model.log_prob(x)      # nats, x {rows}",
            f"samples = model.sample(1000)   # {drawn} in the columns' own units and types",
        )
    code = "\n".join(["import jkoflow", "", f"model = jkoflow.load({_relative(path)!r})", *lines])
    return f"<pre><code>{escape(code)}</code></pre>"


def _relative(path: Path) -> str:
    """Returns a run's path relative to the working directory, or its bare name: a page holds no machine's paths."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.resolve().name
