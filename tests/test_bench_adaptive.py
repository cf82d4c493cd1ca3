"""``jkoflow bench --group adaptive``: everybody computes the same density, and the figures name their errors."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from jkoflow.bench.adaptive import measure
from jkoflow.bench.adaptive.cases import CASES
from jkoflow.bench.adaptive.ours import FACTORS, ours
from jkoflow.bench.adaptive.rivals import RIVAL_LIBRARIES, RIVALS, Rival, Torchdiffeq
from jkoflow.bench.adaptive.settings import AdaptiveSettings
from jkoflow.bench.adaptive.solver import TorchSolver
from jkoflow.bench.adaptive.table import markdown
from jkoflow.bench.case import Solution
from jkoflow.bench.deadline import Deadline
from jkoflow.cli.commands import app

ROOT = Path(__file__).parent.parent
ROWS = 12


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny batches have no work for more; what a benchmark sets does not reach other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def exact():
    """The float64 results of each case, which are computed once."""
    found = {}

    def of(name):
        if name not in found:
            case = CASES[name](ROWS)
            found[name] = case, measure.exact(case)
        return found[name]

    return of


def off(case, solver, right):
    solution = solver.forward()
    return measure.errors(case, solution, solver.gradient(), right)


KIND_OF = {"mlp": "mlp-2", "hypernet": "cnf.py", "zuko": "zuko-6", "ffjord": "ffjord"}


# torch.compile looks for a gradient in inputs that depend on parameters, and hides the warning unless it is an error
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize(
    ("rival", "name"),
    [pytest.param(rival, KIND_OF[kind], id=f"{rival.name}-{kind}") for rival in RIVALS for kind in rival.kinds],
)
def test_every_rival_computes_our_density_and_gradient(rival, name, exact, monkeypatch):
    if rival.missing():
        pytest.skip(f"{rival.missing()} not installed")
    # the same graph without minutes of C++ compilation
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    case, right = exact(name)
    solver = rival.build(case)
    try:
        found = off(case, solver, right)
        assert found["rms"] < 3e-3
        assert found["gradient"] < 1e-2
        assert measure.disagreement(found) is None
        assert solver.seconds("forward+backward", 1) > 0
        assert (solver.evaluations is None) == (rival.library == "diffrax")
        assert solver.evaluations is None or solver.evaluations > 12
    finally:
        solver.close()


@pytest.mark.parametrize("name", CASES)
def test_ours_runs_in_a_kernel_and_converges_to_the_exact_solution(name, exact):
    case, right = exact(name)
    loose, tight = (off(case, ours(case, factor), right) for factor in (FACTORS[0], FACTORS[-1]))
    assert tight["rms"] < loose["rms"]
    assert tight["rms"] < 1e-4
    assert tight["gradient"] < 5e-3  # ELU bends at once, and few rows do not average that
    solver = ours(case, 1.0)
    solver.forward()
    assert solver.note is None  # no figure of the reference passes for one of a kernel
    assert len(solver.gradient()) == len(case.parameters)


@pytest.mark.parametrize("name", CASES)
def test_the_exact_solution_is_that_of_the_published_field(name, exact):
    """The published field in float64 through torchdiffeq with the trace by autograd: it shares no code with ours."""
    pytest.importorskip("torchdiffeq")
    case, right = exact(name)
    double = replace(case.double(), rtol=1e-7, atol=1e-7)
    solver = Torchdiffeq(double)
    log_prob = double.log_prob(solver.forward())
    gradient = torch.cat([tensor.flatten() for tensor in solver.gradient()])
    assert (log_prob - right.log_prob).abs().max() < 3e-5
    # the curvature of ELU jumps: a solver's gradient converges no faster than its steps become short
    most = 5e-3 if case.kind == "zuko" else 1e-4
    assert (gradient - right.gradient).norm() < most * right.gradient.norm()
    dim = case.x.shape[1]
    standard = Solution(torch.zeros(1, dim), torch.zeros(1))
    assert case.log_prob(standard).item() == pytest.approx(-0.5 * dim * math.log(2 * math.pi * case.variance))


class Off(TorchSolver):
    """Solves with an error in every logdet, as a wrong trace makes it."""

    def solve(self, x):
        x, logdet = ours(self.case, 1.0).solve(x)
        return Solution(x, 1.5 * logdet)


class Fails(TorchSolver):
    """Breaks at once."""

    def solve(self, x):
        raise OSError("no disk\nno fun")


class Tires(TorchSolver):
    """Passes the check and breaks when it is timed."""

    def solve(self, x):
        return ours(self.case, 1.0).solve(x)

    def seconds(self, direction, repeats):
        raise MemoryError("no more")


class Loose(TorchSolver):
    """As inaccurate as a solver may be: far looser than ours at its loosest."""

    def solve(self, x):
        x, logdet = ours(self.case, 1e-3).solve(x)
        return Solution(x, logdet + 5e-3)


class Perfect(TorchSolver):
    """More accurate than ours at any tolerance."""

    def solve(self, x):
        return Solution(*(tensor.float() for tensor in ours(self.case.double(), 1e-5).solve(x.double())))

    def gradient(self):
        return ours(self.case, 1.0).gradient()

    def forward(self):
        return Solution(*(tensor for tensor in ours(self.case.double(), 1e-5).forward()))


@pytest.fixture
def record(monkeypatch):
    kinds = ("mlp",)
    rivals = [Rival(kind.__name__, "zuko", kinds, kind) for kind in (Off, Fails, Tires, Loose, Perfect)]
    monkeypatch.setattr(measure, "RIVALS", (*rivals, Rival("absent", "zuko", kinds, Off, ("no_such_package",))))
    settings = AdaptiveSettings.of(cases=("mlp-2",), rows=ROWS, rounds=2, budget=1e-4, threads=1)
    return measure.measure(settings, Quiet())


class Quiet:
    """A `jkoflow.bench.progress.Progress` that says nothing."""

    def start(self, parts):
        assert parts == 1

    def part(self, text):
        assert text == f"MLP 64 x 2 tanh, d = 2, B = {ROWS}"

    def detail(self, text):
        pass

    def measured(self, entry):
        assert entry["case"] == "mlp-2"


def test_the_record_tells_errors_and_compares_at_no_larger_error(record):
    json.loads(json.dumps(record), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (entry,) = record["cases"]
    ours_by = {result["factor"]: result for result in entry["ours"]}
    peers = {result["peer"]: result for result in entry["peers"]}
    assert set(ours_by) == {1.0, FACTORS[0]}
    assert all(len(result["rounds_ms"]) == 2 and result["ms"] > 0 for result in ours_by.values())
    assert 12 < ours_by[FACTORS[0]]["evaluations"] < ours_by[1.0]["evaluations"]
    assert peers["Loose"]["factor"] == FACTORS[0]  # the loosest that is accurate enough
    assert peers["Loose"]["of_ours"] > 0
    assert peers["Loose"]["of_as_accurate"] > 0
    assert peers["Perfect"]["factor"] is peers["Perfect"]["of_ours"] is peers["Perfect"]["of_as_accurate"] is None
    assert peers["Perfect"]["ms"] > 0
    statuses = {name: result["status"] for name, result in peers.items()}
    assert statuses == {
        "Off": "disagrees",
        "Fails": "failed",
        "Tires": "failed",
        "Loose": "measured",
        "Perfect": "measured",
        "absent": "not installed",
    }
    assert peers["Fails"]["note"] == "OSError: no disk"
    assert peers["Tires"]["note"] == "MemoryError: no more"
    assert "rms is off by" in peers["Off"]["note"]
    assert [line.split(" at ")[0] for line in measure.broken(record)] == ["Off", "Fails", "Tires"]
    assert record["environment"]["packages"] == {}


def test_the_tables_in_markdown(record):
    text = markdown(record)
    assert f"| MLP 64 x 2 tanh, d = 2, B = {ROWS} | ms | evaluations | error of log_prob (largest) |" in text
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}
    assert lines["Perfect"].endswith("| less accurate | - |")
    assert lines["Loose"].endswith(" (x 10) |")
    assert lines["absent"] == "| absent | not installed |  |  |  |  |"
    assert "- Fails: OSError: no disk (mlp-2)" in text
    assert "threads: 1" in text
    with pytest.raises(ValueError, match="must be of group adaptive and format 1, got None and 2"):
        markdown({"format": 2})


def test_a_time_limit_lists_what_is_left():
    settings = AdaptiveSettings.of(rows=ROWS)
    entry = measure.measure_case(CASES["zuko-2"](ROWS), settings, Deadline(0.001), lambda text: None)
    assert {(result["status"], result["note"]) for result in entry["peers"]} == {("left out", "no time left")}
    assert entry["ours"] == []


def test_our_own_error_stops_everything(monkeypatch):
    monkeypatch.setattr(measure, "WRONG", {"rms": 0.0, "gradient": 0.0})
    with pytest.raises(RuntimeError, match="jkoflow itself is wrong at MLP"):
        measure.measure_case(CASES["mlp-2"](ROWS), AdaptiveSettings(), Deadline(None), lambda text: None)


def test_the_tables_of_the_readme_are_those_of_the_record():
    record = json.loads((ROOT / "benchmarks/results/adaptive.json").read_text())
    assert markdown(record) in (ROOT / "README.md").read_text()
    assert {entry["case"] for entry in record["cases"]} == set(CASES)


def test_the_command_writes_record_and_table(tmp_path):
    arguments = ["bench", "--group", "adaptive", "--quick", "--cases", "zuko-2", "--threads", "1"]
    result = CliRunner().invoke(app, [*arguments, "--rounds", "1", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "adaptive.json").read_text())
    (entry,) = record["cases"]
    assert (entry["case"], entry["rows"]) == ("zuko-2", 64)
    assert (tmp_path / "adaptive.md").read_text() == markdown(record)
    assert "zuko CNF" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group", "adaptive", "--cases", "mlp-3"], f"cases must be among {', '.join(CASES)}, got mlp-3"),
        (["--group", "adaptive", "--cases", " "], "cases must name at least one"),
        (["--group", "adaptive", "--peers", "jax"], f"peers must be among {', '.join(RIVAL_LIBRARIES)}, got jax"),
        (["--group", "adaptive", "--shapes", "2,8,2,16,1"], "has --cases instead of --shapes"),
        (["--group", "adaptive", "--device", "cuda"], "runs on the CPU"),
        (["--group", "other"], "--group must be equal or adaptive, got 'other'"),
        (["--cases", "mlp-2"], "--cases is for --group adaptive"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_settings_are_checked():
    with pytest.raises(ValueError, match="rounds must be positive, got 0"):
        AdaptiveSettings(rounds=0)
