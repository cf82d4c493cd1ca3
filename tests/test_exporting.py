"""Exported flows run without the package, in Python, C++ and ONNX Runtime, and agree with the flow."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import jkoflow
from jkoflow import Block, ConcatSquashMLP, HyperMLP, JKOFlow, MLPVelocity, TableFlow, TrainConfig
from jkoflow.cli.commands import app
from jkoflow.data.columns.codec import Category
from jkoflow.data.columns.numbers import Constant, Date, Mixed, Real
from jkoflow.data.columns.schema import Dependence, Schema
from jkoflow.errors import UserError
from jkoflow.exporting import ExportError, export, formats
from jkoflow.exporting.functions import FUNCTIONS
from jkoflow.exporting.integration import Integration
from jkoflow.initial_map import InitialMap
from jkoflow.links import Link, Links
from jkoflow.ops import Adaptive
from jkoflow.velocity import KINDS
from oracles import random_velocity

ROOT = Path(jkoflow.__file__).parent.parent
SERVE = ROOT / "examples" / "serve"
NO_PACKAGE = "raise ImportError('the package is not to be imported')"


def small_flow(dtype=torch.float32, blocks=1, **arguments):
    stack = [Block(random_velocity(2, (5, 4), dtype=dtype, scale=0.7, seed=s), num_steps=3) for s in range(blocks)]
    flow = JKOFlow(2, stack, torch.ones(2, dtype=dtype), 2 * torch.ones(2, dtype=dtype), **arguments)
    return flow.requires_grad_(False)


def rich_flow():
    """A conditional flow with every kind of link and of initial map, in float32."""
    torch.manual_seed(0)
    rows = torch.randn(2000, 5, dtype=torch.float64).exp()
    rows[:, 0], rows[:, 4] = torch.sigmoid(rows[:, 0] - 1), -rows[:, 4]
    links = Links(
        [
            Link("logit", lower=0.0, upper=1.0),
            Link("log", lower=0.0),
            Link("real"),
            Link("asinh", centre=1.0, scale=2.0),
            Link("reflected", upper=0.0),
        ]
    )
    linked = links(rows)[0]
    mean, std = linked.mean(0), linked.std(0)
    initial_map = InitialMap.fit((linked - mean) / std, "marginals+whiten+radial")
    velocities = [
        MLPVelocity(5, hidden=(6, 5), context_dim=2, activation="softplus(5)", linear=True),
        ConcatSquashMLP(5, hidden=(6,), context_dim=2),
    ]
    blocks = [Block(velocities[0], 4, "rk4"), Block(velocities[1], 3, "midpoint", t0=0.2)]
    context = {"context_mean": torch.ones(2), "context_std": 2 * torch.ones(2)}
    flow = JKOFlow(
        5, blocks, mean.float(), std.float(), initial_map=initial_map.float(), links=links, **context
    )  # fmt: skip
    flow.context_links = Links([Link("log", lower=0.0), Link()])
    flow.features, flow.context_features = tuple("abcde"), ("day", "hour")
    return flow.requires_grad_(False)


def without_the_package(tmp_path):
    """An environment in which `import jkoflow` fails, whatever else is on the path."""
    hidden = tmp_path / "hidden"
    hidden.mkdir(exist_ok=True)
    (hidden / "jkoflow.py").write_text(NO_PACKAGE)
    return {**os.environ, "PYTHONPATH": str(hidden)}


def served(command, table, names, environment):
    lines = [",".join(names), *(",".join(f"{value:.17g}" for value in row) for row in table.tolist())]
    done = subprocess.run(
        command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return torch.tensor([float(line) for line in done.stdout.split()], dtype=torch.float64)


def operators_of(module):
    """Names of all operators of a program, those of its loops, too."""
    graphs = [part for part in module.modules() if isinstance(part, torch.fx.GraphModule)]
    return {str(node.target) for part in graphs for node in part.graph.nodes if node.op == "call_function"}


def test_a_conditional_flow_with_all_its_layers_is_served_by_pytorch_alone(tmp_path):
    flow, path = rich_flow(), tmp_path / "flow.pt2"
    found = export(flow, path, num_steps=[4, 5])
    assert found.agreement.difference <= 1e-5
    assert found.agreement.rows == 1000
    assert found.about["columns"].split() == list("abcde")
    assert found.about["context"].split() == ["day", "hour"]
    assert found.about["steps"].splitlines() == ["rk4 4", "midpoint 5"]
    context = torch.rand(7, 2) + 0.5
    x = flow.sample(7, context, generator=torch.Generator().manual_seed(1))
    expected = flow.log_prob(x, context, num_steps=[4, 5]).double()

    swapped = torch.cat([context, x.flip(1)], 1)  # columns are found by name
    command = [sys.executable, str(SERVE / "serve.py"), str(path)]
    got = served(command, swapped, ["day", "hour", *"edcba"], without_the_package(tmp_path))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)

    program = torch.export.load(path)
    assert all("jkoflow" not in name for name in operators_of(program.graph_module))
    assert any("scan" in name for name in operators_of(program.graph_module))
    run = program.module()
    for rows in (0, 1, 3):
        torch.testing.assert_close(run(x[:rows], context[:rows])[0], got[:rows].float())
    broken = x.clone()
    broken[1, 2], broken[2, 1] = torch.nan, -1.0  # no number; beyond the edge of a link
    values = run(broken, context)[0]
    assert values[1].isnan()
    assert values[2] == -torch.inf
    torch.testing.assert_close(values[[0, 3, 4, 5, 6]], got[[0, 3, 4, 5, 6]].float())


def test_weights_that_depend_on_time_in_float64(tmp_path):
    torch.manual_seed(0)
    flow = JKOFlow(2, [Block(HyperMLP(2, (4,), context_dim=1).double(), 2, "midpoint", t0=1.0, t1=0.4)])
    found = export(flow, tmp_path / "flow.pt2", context=[[0.5], [2.0]])
    assert found.agreement.difference <= 1e-12
    assert found.agreement.rows == 1000


@pytest.mark.parametrize("kind", KINDS)
def test_every_velocity_of_the_package_is_integrated_as_by_its_block(kind):
    torch.manual_seed(0)
    velocity = KINDS[kind](2, hidden=(4, 4), context_dim=1).double().requires_grad_(False)
    block = Block(velocity, 3, "heun", t0=0.3, t1=1.5)
    x, context = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    for inverse, step in ((False, block), (True, block.inverse)):
        for value, wanted in zip(Integration(block, 3, inverse)(x, context), step(x, context), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)


def test_samples_are_a_function_of_noise_and_float64_is_asked_for(tmp_path):
    flow, path = small_flow(), tmp_path / "flow.pt2"
    found = export(flow, path, what="sample", tol=1e-6, precision="float64")
    assert found.about["dtype"] == "float64"
    assert found.about["inputs"] == "z"
    assert found.about["outputs"].split() == ["x", "log_prob"]
    (steps,) = found.about["steps"].splitlines()
    assert int(steps.split()[1]) > 3
    z = torch.randn(5, 2, dtype=torch.float64)
    x, log_prob = torch.export.load(path).module()(z)
    torch.testing.assert_close(log_prob, flow.log_prob(x, precision="float64", num_steps=200), rtol=0, atol=2e-6)


@pytest.mark.parametrize("what", FUNCTIONS)
def test_the_functions_are_those_of_the_flow(what):
    flow = small_flow(torch.float64, blocks=2)
    given = torch.randn(4, 2, dtype=torch.float64)
    with torch.no_grad():
        got = FUNCTIONS[what](flow, flow.grids())(given)
        z, logdet = flow(given)
        x, inverse_logdet = flow.inverse(given)
        base = torch.distributions.Normal(0.0, 1.0)
        expected = {
            "log_prob": (flow.log_prob(given),),
            "forward": (z, logdet),
            "inverse": (x, inverse_logdet),
            "sample": (x, base.log_prob(given).sum(1) - inverse_logdet),
        }[what]
    assert len(got) == len(FUNCTIONS[what].outputs)
    for value, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)


# ---- C++


@pytest.mark.skipif(shutil.which("c++") is None or shutil.which("cmake") is None, reason="needs a C++ compiler, cmake")
def test_cpp_and_python_run_a_compiled_flow_without_the_package(tmp_path):
    flow, path, build = small_flow(), tmp_path / "flow.pt2", tmp_path / "build"
    flow.features = ("wind", "sun")
    found = export(flow, path, "aoti")
    assert found.agreement.difference <= 1e-5
    x = flow.sample(6, generator=torch.Generator().manual_seed(1))
    expected = flow.log_prob(x).double()
    environment = without_the_package(tmp_path)
    got = served([sys.executable, str(SERVE / "serve.py"), str(path)], x, flow.features, environment)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)

    configure = ["cmake", "-S", SERVE, "-B", build, f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"]
    for command in (configure, ["cmake", "--build", build]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    got = served([str(build / "serve"), str(path)], x.flip(1), ("sun", "wind"), environment)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    done = subprocess.run(
        [str(build / "serve"), str(path)], input="sun\n1\n", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "error: the table lacks the column wind\n")


def test_aoti_without_a_compiler_says_what_to_do(tmp_path):
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(ExportError, match="needs a C"),
    ):
        export(small_flow(), tmp_path / "flow.pt2", "aoti")
    assert list(tmp_path.iterdir()) == []


# ---- ONNX


def test_onnx_runtime_runs_a_flow_with_all_its_layers(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    flow, path = rich_flow(), tmp_path / "flow.onnx"
    found = export(flow, path, "onnx")
    assert found.agreement.difference <= 1e-5
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["columns"].split() == list("abcde")
    context = torch.rand(3, 2) + 0.5
    x = flow.sample(3, context)
    (got,) = session.run(["log_prob"], {"x": x.numpy(), "context": context.numpy()})
    np.testing.assert_allclose(got, flow.log_prob(x, context).numpy(), rtol=0, atol=1e-5)


def test_onnx_without_its_packages_says_how_to_install_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r'needs onnx; install it with: pip install "jkoflow\[onnx\]"'):
        export(small_flow(), tmp_path / "flow.onnx", "onnx")


# ---- Tables


def table_flow(**other):
    """The flow of a table with a price, a fine lattice of counts, a constant, a sum and one further column."""
    codecs = {
        "price": Real({"kind": "log", "lower": 0.0}, 0.3, 1.2),
        "visits": Real({"kind": "real"}, 500.0, 120.0, first=0.0, step=1.0),
        "year": Constant(2024),
        "both": None,
        **other,
    }
    given = {"day": Real({"kind": "logit", "lower": 0.0, "upper": 7.0}, 0.0, 1.0)}
    schema = Schema(
        tuple(codecs),
        tuple(codecs.values()),
        tuple(given),
        tuple(given.values()),
        {"both": Dependence(("price", "visits"), (1.0, 2.0), 3.0, 1e-9)},
    )
    flow = JKOFlow(2, [Block(random_velocity(2, (5,), context_dim=1, dtype=torch.float32), num_steps=3)])
    return TableFlow(schema, flow, None, None)


def test_a_table_of_numbers_has_the_densities_of_the_table(tmp_path):
    table, path = table_flow(), tmp_path / "table.pt2"
    found = export(table, path)
    assert found.agreement.difference <= 1e-5
    assert found.about["columns"].split() == ["price", "visits", "year", "both"]
    context = torch.tensor([[0.5], [1.0], [3.0], [6.5], [2.0], [7.5]], dtype=torch.float64)
    x = table.sample(6, context[:5].mean(0).numpy())
    x[1, 0] = -1.0  # beyond the edge
    x[2, 1:] += 0.4 * torch.tensor([1.0, 0.0, 2.0])  # off the lattice
    x[3, 2] = 2025.0  # another constant
    x[4, 3] += 1e-3  # not the sum
    expected = table.log_prob(x.numpy(), context.numpy())
    assert expected.isfinite().tolist() == [True, False, False, False, False, True]
    (got,) = torch.export.load(path).module()(x, context)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        (Category(["a", "b"]), "column 'odd' cannot be exported: it is of kind category, whose states have masses"),
        (Mixed(Real({"kind": "real"}, 0.0, 1.0), [0.0], False), r"column 'odd'.*real\+spikes"),
        (Date(Real({"kind": "real"}, 0.0, 1.0), "D"), "column 'odd' cannot be exported: it is of kind date"),
        (Constant("here"), "column 'odd' cannot be exported: its one value 'here' is not a number"),
    ],
    ids=["category", "spikes", "date", "text"],
)
def test_other_columns_are_refused_by_name(codec, text, tmp_path):
    with pytest.raises(ExportError, match=text) as told:
        export(table_flow(odd=codec), tmp_path / "flow.pt2")
    assert "\n" not in str(told.value)


# ---- What is refused


@pytest.mark.parametrize(
    ("path", "options", "text"),
    [
        ("flow.onnx", {}, "must end in .pt2, got flow.onnx"),
        ("flow.pt2", {"format": "onnx"}, "must end in .onnx"),
        ("flow.pt2", {"format": "jit"}, "format must be one of torch-export, aoti, onnx, got 'jit'"),
        ("flow.pt2", {"what": "density"}, "what must be one of log_prob, forward, inverse, sample, got 'density'"),
        ("flow.pt2", {"precision": "half"}, "precision must be auto or float64, got 'half'"),
        ("flow.pt2", {"num_steps": Adaptive()}, "equal steps for all rows"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(path, options, text, tmp_path):
    with pytest.raises(ExportError, match=text):
        export(small_flow(), tmp_path / path, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_tolerance_beside_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pass either tol or num_steps"):
        export(small_flow(), tmp_path / "flow.pt2", tol=1e-3, num_steps=3)


def test_a_velocity_without_a_field_is_refused():
    class Own(MLPVelocity):
        def forward(self, x, t=0.0, context=None):
            return super().forward(x, t, context).sin()

    with pytest.raises(ExportError, match="Own cannot be exported: Own has a forward of its own"):
        Integration(Block(Own(2)), 3)


def test_an_old_torch_is_told_which_one_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.4.1+cpu")
    least = ".".join(map(str, formats.LEAST_TORCH))
    with pytest.raises(ExportError, match=f"needs torch {least} or newer, this is 2.4.1; upgrade torch"):
        export(small_flow(), tmp_path / "flow.pt2")


def test_an_artefact_that_disagrees_is_not_put_in_place(tmp_path, monkeypatch):
    path = tmp_path / "flow.pt2"
    path.write_text("what was there")
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    monkeypatch.setattr(formats.TorchExport, "write", lambda *_: _[-1].touch())
    flow = small_flow()
    for wrong, text in ((1e-3, "differs from the flow by 1.0e-03 nats"), (torch.nan, "by inf nats")):
        monkeypatch.setattr(formats.TorchExport, "load", lambda *_, wrong=wrong: lambda x: (flow.log_prob(x) + wrong,))
        with pytest.raises(ExportError, match=text):
            export(flow, path)
    monkeypatch.setattr(formats.TorchExport, "load", lambda *_: lambda x: (flow.log_prob(x)[:, None],))
    with pytest.raises(ExportError, match=r"returns \(1000, 1\) of torch.float32 where the flow returns \(1000,\)"):
        export(flow, path)
    assert [path.name for path in tmp_path.iterdir()] == ["flow.pt2"]
    assert path.read_text() == "what was there"


# ---- The command


def run_cli(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run of a conditional flow, whose context is far from Gaussian."""
    path = tmp_path_factory.mktemp("export") / "run"
    rng = np.random.default_rng(0)
    day = rng.integers(0, 2, 400) * 1000.0 + rng.normal(0, 1, 400)
    rows = rng.normal(3 + (day > 500), 1, 400)[:, None]
    config = TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=5, batch_size=100, guard_rows=40)
    jkoflow.train(rows, config, run_dir=path, context=day[:, None])
    return path


def test_the_command_exports_a_run_and_tells_what_it_did(run, tmp_path):
    path = tmp_path / "flow.pt2"
    done = run_cli(run, "--out", path, "--num-steps", 5)
    assert done.exit_code == 0, done.output
    first, steps, difference, written = done.stdout.splitlines()
    assert first == "exported: log_prob of 1 column, given 1, float32"
    assert steps == "steps of each block: rk4 5"
    assert re.fullmatch(
        r"largest difference from the flow: \S+ nats( \(float32 itself rounds by \S+\))?, on 1000 rows", difference
    )
    assert written.startswith(f"written: {path} (torch-export, ")
    x, context = torch.tensor([[3.5], [4.0]]), torch.tensor([[0.0], [1000.0]])
    got = torch.export.load(path).module()(x, context)[0]
    torch.testing.assert_close(got, jkoflow.load(run).log_prob(x, context, num_steps=5), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--format", "jit"], "--format must be one of torch-export, aoti, onnx, got 'jit'"),
        (["--what", "mean"], "--what must be one of log_prob, forward, inverse, sample, got 'mean'"),
        (["--precision", "half"], "--precision must be auto or float64, got 'half'"),
        (["--tol", 1e-3, "--num-steps", 3], "give either --tol or --num-steps"),
        (["--tol", -1], "--tol must be a positive number"),
        (["--format", "onnx"], "a file of format onnx must end in .onnx, got flow.pt2"),
    ],
)
def test_the_command_refuses_in_one_line(run, arguments, text, tmp_path):
    done = run_cli(run, "--out", tmp_path / "flow.pt2", *arguments)
    assert done.exit_code == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_places_that_it_cannot_write(run, tmp_path):
    for out, text in ((tmp_path / "no" / "flow.pt2", "there is no directory"), (tmp_path, "it is a directory")):
        done = run_cli(run, "--out", out)
        assert done.exit_code == 2
        assert text in done.stderr
    model = tmp_path / "model.pt2"
    shutil.copy(run / "model.safetensors", model)
    done = run_cli(model, "--out", model)
    assert (done.exit_code, "it is the file that is read" in done.stderr) == (2, True)
    assert jkoflow.load(model).dim == 1
