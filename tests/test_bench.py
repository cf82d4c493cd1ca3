"""``jkoflow bench``: everybody computes the same, what is broken is told, and the figures come out as files."""

import io
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from jkoflow.bench import agreement, floor, measure, memory, timing
from jkoflow.bench.candidate import Peer, TorchCandidate
from jkoflow.bench.case import Case, Solution
from jkoflow.bench.deadline import Deadline
from jkoflow.bench.peers import LIBRARIES, MEASURED_MEMORY, PEERS, closed_form, jax_process, ours
from jkoflow.bench.record import blank, broken
from jkoflow.bench.settings import Settings
from jkoflow.bench.shapes import SHAPES, STAGES, Shape, flops, forward_flops, parse_shapes
from jkoflow.bench.table import markdown, number, size
from jkoflow.cli.bench import shape_table, show_shape
from jkoflow.cli.bench_bars import BenchBars
from jkoflow.cli.commands import app
from jkoflow.ops import UnsupportedError

TINY = Shape(2, 16, 2, 24, 3)
README = Path(__file__).parent.parent / "README.md"


class Quiet:
    """A `jkoflow.bench.progress.Progress` that keeps what it is told."""

    def __init__(self):
        self.told = []

    def start(self, parts):
        self.told.append(parts)

    def part(self, text):
        self.told.append(text)

    def detail(self, text):
        self.told.append(text)

    def measured(self, entry):
        self.told.append(entry)


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny batches have no work for more; what a benchmark sets does not reach other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny():
    return Settings(shapes=(TINY,), libraries=("closed-form",), threads=1, rounds=2, budget=1e-4, memory=False)


def strict_json(text):
    """Parses JSON and refuses NaN and Infinity, which Python would write and nobody else read."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# ---- The peers


@pytest.mark.filterwarnings("ignore::jkoflow.FallbackWarning")
@pytest.mark.parametrize(
    ("peer", "layers"),
    [
        pytest.param(peer, layers, id=f"{peer.name}-{layers}")
        for peer in PEERS
        for layers in ((2 if peer.library == "diffrax" else 3,) if peer.needs_cpu else (1, 2, 3))  # they start slowly
    ],
)
def test_every_peer_agrees_with_ours(peer, layers, monkeypatch):
    if peer.missing():
        pytest.skip(f"{peer.missing()} not installed")
    if peer.unavailable() is not None:
        pytest.skip(peer.unavailable())
    # the same graph without minutes of C++ compilation
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    case = Case(TINY._replace(layers=layers))
    right = agreement.expected(case, peer.estimate)
    candidate = peer.build(case)
    try:
        errors = agreement.errors(peer, candidate, right)
        assert agreement.disagreement(peer, errors, TINY.steps) is None
        assert set(errors) == ({"x", "logdet"} if "forward" in peer.directions else set()) | {"gradient"}
        assert peer.own_steps or max(errors.values()) < (2e-5 if "bf16x3" in peer.name else 5e-6)
        assert all(candidate.seconds(direction, 2) > 0 for direction in peer.directions)
        assert (candidate.evaluations is not None) == (peer.library == "zuko")
        assert candidate.evaluations is None or candidate.evaluations > 6
    finally:
        candidate.close()


def test_a_case_is_the_same_every_time_and_bends_the_paths():
    first, second = Case(TINY), Case(TINY)
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.probe, second.probe)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters, second.parameters, strict=True))
    moved = first.solve(estimate=False).x - first.x
    assert moved.norm() > 0.1 * first.x.norm()
    three_steps, converged = first.solve(False).x, first.converged(False).x
    assert 1e-6 < (three_steps - converged).abs().max() < 1e-2


def test_the_adaptive_peer_is_as_accurate_as_our_steps():
    pytest.importorskip("zuko")
    (peer,) = (peer for peer in PEERS if peer.name == "zuko CNF, exact")
    case = Case(TINY)
    converged = case.converged(False)
    candidate = peer.build(case)
    assert candidate.note is None
    error, our_error = ((x - converged.x).abs().max() for x in (candidate.forward().x, case.solve(False).x))
    assert error <= max(our_error, 2e-5 * converged.x.abs().max())


def test_a_figure_of_the_reference_says_so(monkeypatch):
    assert ours.Integrated(Case(TINY)).note is None

    def refuse(self, estimate, x=None, backend="auto"):
        if backend != "auto":
            raise UnsupportedError(f"backend {backend!r} cannot run this", "too much of it")

    monkeypatch.setattr(Case, "solve", refuse)
    told = "the PyTorch reference ran, because too much of it"
    assert ours.Integrated(Case(TINY)).note == ours.FusedLoss(Case(TINY)).note == told

    def fail(self, estimate, x=None, backend="auto"):
        raise RuntimeError("a kernel's fault")

    monkeypatch.setattr(Case, "solve", fail)
    with pytest.raises(RuntimeError, match="a kernel's fault"):
        ours.Integrated(Case(TINY))


def test_the_fused_loss_has_no_forward_direction():
    with pytest.raises(NotImplementedError, match="no solution"):
        ours.FusedLoss(Case(TINY)).forward()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.exit('no such library')", "ended: no such library"),
        ('input(); print(\'{"error": "OddError: odd"}\')', "OddError: odd"),
    ],
    ids=["ends", "answers with an error"],
)
def test_what_breaks_in_the_other_process_is_told(script, message, tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text(script)
    monkeypatch.setattr(jax_process, "WORKER", worker)
    with pytest.raises(RuntimeError, match=message):
        jax_process.closed_form(Case(TINY))


# ---- Work and time


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_products_are_those_of_the_closed_form(layers):
    shape = Shape(5, 12, layers, 7, 2)
    case = Case(shape)
    solve = closed_form.unrolled(case.velocity, shape.steps)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        solve(case.x)
    uncounted = 0
    if layers == 2:
        counted_once = 2 * shape.dim * shape.width**2  # the matrix of the closed form
    else:
        counted_once = 0
        if layers >= 3:  # the contraction with the last layer, written as a sum
            uncounted = 2 * shape.dim * shape.width * shape.batch * shape.steps * STAGES
    assert forward_flops(shape) == counter.get_total_flops() - counted_once + uncounted


def test_a_backward_pass_costs_two_products_more_for_each_and_ours_recomputes():
    assert flops(TINY, "forward") == forward_flops(TINY)
    assert flops(TINY, "forward+backward") == 4 * forward_flops(TINY)
    assert flops(TINY, "forward+backward", fused=True) == 3 * forward_flops(TINY)


def test_rounds_run_what_fits_and_let_the_slow_sit_out(monkeypatch):
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    calls = {"fast": [], "slow": [], "slower": []}

    def timer(name, seconds):
        return lambda repeats: calls[name].append(repeats) or seconds * repeats

    timers = {"fast": timer("fast", 0.01), "slow": timer("slow", 0.5), "slower": timer("slower", 5)}
    times = timing.rounds(timers, 7, 0.1)
    assert calls == {"fast": [1, 1, *[10] * 7], "slow": [1, 1, 1, 1], "slower": [1, 1, 1]}
    assert times["fast"] == pytest.approx([0.01] * 7)
    assert times["slow"] == [0.5, None, None, 0.5, None, None, 0.5]
    assert times["slower"] == [5, None, None, None, None, None, 5]
    assert timing.median(times["slow"]) == 0.5
    assert timing.ratio(times["slow"], times["fast"]) == pytest.approx(50)


def test_a_pause_lasts_until_the_threads_of_others_rest(monkeypatch):
    spent, naps = [], []
    monkeypatch.setattr(timing.time, "sleep", naps.append)
    monkeypatch.setattr(timing.time, "process_time", lambda: spent.pop(0) if len(spent) > 1 else spent[0])
    spent[:] = [timing.PAUSE * share for share in (0, 1, 1, 2, 2, 2.01)]
    timing.settle()
    assert len(naps) == 3
    monkeypatch.setattr(timing.time, "process_time", partial(next, iter(range(1000))))
    timing.settle()
    assert sum(naps[3:]) == pytest.approx(timing.LONGEST_PAUSE)


def test_the_floor_is_the_faster_product():
    products = dict.fromkeys(("torch.mm", "numpy.matmul"))
    times = {"torch.mm": [4.0, None, 2.0], "numpy.matmul": [2.0, 9.0, 2.5], "jkoflow": [0.1, 0.1, 0.1]}
    assert floor.fastest(times, products) is times["numpy.matmul"]
    assert floor.gflops(times, products) == pytest.approx(
        {"torch.mm": floor.FLOPS / 3e9, "numpy.matmul": floor.FLOPS / 2.5e9}
    )


def test_both_products_have_the_threads_of_torch(monkeypatch):
    monkeypatch.setattr(floor, "SIZE", 16)
    threadpoolctl = pytest.importorskip("threadpoolctl")
    seen, multiply = [], floor.np.matmul

    def watched(*matrices, out):
        pools = threadpoolctl.ThreadpoolController().select(internal_api="openblas").info()
        seen.append({pool["num_threads"] for pool in pools})
        return multiply(*matrices, out=out)

    monkeypatch.setattr(floor.np, "matmul", watched)
    products = floor.timers()
    assert all(timer(1) > 0 for timer in products.values())
    torch.set_num_threads(2)
    assert products["numpy.matmul"](1) > 0
    assert not any(seen) or seen == [{1}, {2}]  # a NumPy without OpenBLAS shows no pools of it


def test_ratios_are_taken_within_a_round():
    assert timing.ratio([1.0, None, 8.0], [1.0, 1.0, 4.0]) == 1.5


def test_shapes_are_read_and_checked():
    text = " ".join(",".join(map(str, shape)) for shape in SHAPES)
    assert tuple(parse_shapes(text)) == SHAPES
    for wrong in ("2,128,2,2000", "2,128,2,2000,0", "a,1,1,1,1", "-2,128,2,10,3"):
        with pytest.raises(ValueError, match="five positive numbers"):
            parse_shapes(wrong)
    with pytest.raises(ValueError, match="at least one"):
        parse_shapes(" ")


# ---- The record


def test_the_record_holds_every_peer_and_the_surroundings(tiny):
    progress = Quiet()
    saved = []
    record = measure.measure(tiny, progress, lambda found: saved.append(json.dumps(found)))
    assert saved == [json.dumps(record)]
    assert progress.told[:2] == [1, TINY.text]
    assert strict_json(json.dumps(record)) == json.loads(json.dumps(record))
    assert record["format"] == 2
    assert record["settings"] == {
        "libraries": ("closed-form",),
        "threads": 1,
        "rounds": 2,
        "budget": 1e-4,
        "compiled": False,
        "memory": False,
        "device": "cpu",
        "seconds": None,
    }
    assert record["reference"] == {"forward": "jkoflow", "forward+backward": "jkoflow, fused loss"}
    assert {"cpu", "torch", "kernels", "threads", "allocator", "packages"} <= record["environment"].keys()
    (entry,) = record["shapes"]
    assert Shape(**entry["shape"]) == TINY
    for rates in entry["floor_gflops"].values():
        assert set(rates) == {"torch.mm", "numpy.matmul"}
        assert min(rates.values()) > 0
    results = {result["peer"]: result for result in entry["peers"]}
    assert set(results) == {peer.name for peer in PEERS if peer.library in ("jkoflow", "closed-form")}
    for peer in (peer for peer in PEERS if peer.name in results):
        result = results[peer.name]
        reason = peer.unavailable() or peer.optional
        if reason:
            assert (result["status"], result["note"]) == ("left out", reason)
            continue
        assert result["status"] == "measured"
        for direction in peer.directions:
            figures = result[direction]
            assert len(figures["rounds_ms"]) == 2
            assert figures["ms"] > 0
            assert figures["of_ours"] > 0
            assert ("of_floor" in figures) == ("jkoflow" in peer.name and "Hutchinson" not in peer.name)
    assert results["jkoflow"]["forward"]["of_ours"] == 1
    assert results["jkoflow, fused loss"]["forward+backward"]["of_ours"] == 1
    assert broken(record) == []
    assert torch.get_num_threads() == 1


def raising(case):
    raise OSError("no disk\nno fun")


def wrong(case):
    return TorchCandidate(case, lambda x: Solution(*(1.01 * tensor for tensor in case.solve(False, x))))


def not_a_number(case):
    return TorchCandidate(case, lambda x: Solution(*(math.nan * tensor for tensor in case.solve(False, x))))


class Tiring(TorchCandidate):
    """Passes the check and breaks when it is timed."""

    def seconds(self, direction, repeats):
        raise MemoryError("no more")


def tiring(case):
    return Tiring(case, partial(case.solve, False))


BROKEN = (
    Peer("tires", "closed-form", tiring),
    Peer("raises", "closed-form", raising),
    Peer("is wrong", "closed-form", wrong),
    Peer("is not a number", "closed-form", not_a_number),
    Peer("is not there", "closed-form", wrong, requires=("no_such_package",)),
)


def test_a_broken_peer_is_told_and_costs_the_others_nothing(tiny, monkeypatch):
    monkeypatch.setattr(measure, "PEERS", (*PEERS, *BROKEN))
    record = measure.measure(tiny, Quiet())
    results = {result["peer"]: result for result in record["shapes"][0]["peers"]}
    assert results["closed form by hand, eager"]["forward"]["ms"] > 0
    assert (results["raises"]["status"], results["raises"]["note"]) == ("failed", "OSError: no disk")
    assert (results["tires"]["status"], results["tires"]["note"]) == ("failed", "MemoryError: no more")
    assert results["is wrong"]["status"] == results["is not a number"]["status"] == "disagrees"
    assert "x is off by 1.0e-02, allowed 0.0001" in results["is wrong"]["note"]
    assert results["is not a number"]["errors"]["x"] is None
    assert results["is not there"]["status"] == "not installed"
    assert results["is not there"]["note"] == "no_such_package not installed (pip install jkoflow[bench])"
    assert not any("forward" in results[peer.name] for peer in BROKEN)
    lines = broken(record)
    assert [line.split(" at ")[0] for line in lines] == ["tires", "raises", "is wrong", "is not a number"]
    strict_json(json.dumps(record))
    table = markdown(record)
    assert "| raises | failed |" in table
    assert "| is not there | not installed |" in table
    assert "- is wrong: x is off" in table


def test_peers_of_the_cpu_are_left_out_elsewhere():
    (peer,) = (peer for peer in PEERS if peer.library == "jax")
    here = replace(peer, requires=())
    assert blank(here, Settings())["status"] == "measured"
    elsewhere = blank(here, Settings(device="cuda:1"))
    assert (elsewhere["status"], elsewhere["note"]) == ("left out", "measured on the CPU only, not on cuda:1")


def test_a_time_limit_lists_what_is_left(tiny):
    found = measure.measure(replace(tiny, memory=True, seconds=1), Quiet())
    results = {result["peer"]: result for result in found["shapes"][0]["peers"]}
    assert (results["jkoflow"]["status"], results["jkoflow"]["note"]) == ("left out", "no time left")
    assert "forward" not in results["jkoflow"]
    assert "| jkoflow | left out |" in markdown(found)
    assert found["memory"]["note"].startswith("not measured: ")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"libraries": ("jax", "tensorflow")}, "got tensorflow"),
        ({"rounds": 0}, "rounds must be positive"),
        ({"shapes": ()}, "at least one shape"),
        ({"seconds": 0}, "seconds must be positive, got 0"),
        ({"device": "gpu"}, "device must be cpu, cuda or the index of a GPU such as cuda:1, got 'gpu'"),
        ({"device": "meta"}, "device must be cpu, cuda"),
    ],
)
def test_settings_are_checked(given, message):
    with pytest.raises(ValueError, match=message):
        Settings(**given)


# ---- Memory


def test_memory_grows_with_the_batch_as_the_graph_does():
    reason = memory.unsupported()
    if reason is not None:
        pytest.skip(reason)
    shapes = [TINY._replace(width=64)]
    (by_hand,) = memory.measure("closed form by hand, eager", shapes, largest=1024)
    (fused,) = memory.measure("jkoflow", shapes, largest=1024)
    stages = TINY.steps * STAGES
    activations = 4 * 64 * 2 * stages  # bytes of both tanh outputs, which their backward pass needs
    assert activations < by_hand < 10 * activations
    assert fused < activations / 10  # positions and their gradients only


def test_memory_that_cannot_be_measured_is_told(tiny, monkeypatch):
    with pytest.raises(RuntimeError, match="ValueError"):
        memory.measure("nobody", [TINY])

    def fail(name, shapes):
        raise RuntimeError("killed")

    monkeypatch.setattr(memory, "measure", fail)
    endless = Deadline(None)
    used = measure.measure_memory(replace(tiny, memory=True), endless, lambda text: None)
    if used["note"] is None:
        assert used["failed"]["jkoflow"] == "RuntimeError: killed"
    monkeypatch.setattr(memory, "unsupported", lambda: "no /proc")
    assert measure.measure_memory(tiny, endless, lambda text: None)["note"] == "not measured: no /proc"


# ---- What is shown


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.12"), (0.99, "0.99"), (5.26, "5.3"), (79.66, "79.7"), (1347.7, "1348")]
)
def test_numbers_have_about_three_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (72.4, "72 B"), (2024, "2.0 KiB"), (31930, "31 KiB"), (2881184, "2.7 MiB")]
)
def test_sizes_have_units(count, text):
    assert size(count) == text


def record_of(of_ours=4.3, ms=79.66):
    """A small record as `measure` makes it."""
    fused = {"ms": 18.4, "rounds_ms": [18.4], "of_ours": 1.0, "of_floor": 0.81}
    peer = {"ms": ms, "rounds_ms": [ms], "of_ours": of_ours}
    common = {"status": "measured", "note": None, "evaluations": None, "errors": {}}
    results = [
        {"peer": "jkoflow, fused loss", **common, "forward+backward": fused},
        {"peer": "jkoflow", **common, "forward": {**fused, "ms": 5.32}, "forward+backward": {**peer, "of_floor": 0.8}},
        {"peer": "zuko CNF, exact", **common, "evaluations": 28, "forward": peer, "forward+backward": peer},
        {"peer": "diffrax", **common, "status": "not installed", "note": "pip install it"},
    ]
    floors = {"forward": {"torch.mm": 184.4, "numpy.matmul": 210}, "forward+backward": {"torch.mm": 180}}
    return {
        "format": 2,
        "environment": {
            "jkoflow": "0", "torch": "2", "cpu": "a chip", "kernels": {"isa": "avx2"}, "packages": {}, "allocator": "x"
        },
        "settings": {"threads": 2},
        "shapes": [{"shape": TINY._asdict(), "floor_gflops": floors, "peers": results}],
        "memory": {"method": "so", "note": None, "failed": {}, "bytes_per_row": {"jkoflow": [72.0]}},
    }  # fmt: skip


def test_the_tables_in_markdown():
    text = markdown(record_of())
    assert text == (
        "| forward, ms (x ours) | d = 2, H = 16 x 2, B = 24 |\n"
        "| --- | ---: |\n"
        "| jkoflow | 5.3 |\n"
        "| zuko CNF, exact | 79.7 (4.3) |\n"
        "| diffrax | not installed |\n"
        "\n"
        "| forward + backward, ms (x ours) | d = 2, H = 16 x 2, B = 24 |\n"
        "| --- | ---: |\n"
        "| jkoflow, fused loss | 18.4 |\n"
        "| jkoflow | 79.7 (4.3) |\n"
        "| zuko CNF, exact | 79.7 (4.3) |\n"
        "| diffrax | not installed |\n"
        "\n"
        "| share of the floor | d = 2, H = 16 x 2, B = 24 |\n"
        "| --- | ---: |\n"
        "| jkoflow, forward | 81% |\n"
        "| jkoflow, forward + backward | 80% |\n"
        "| jkoflow, fused loss, forward + backward | 81% |\n"
        "\n"
        "| peak memory per row | d = 2, H = 16 x 2, B = 24 |\n"
        "| --- | ---: |\n"
        "| jkoflow | 72 B |\n"
        "\n"
        "- zuko CNF, exact: as accurate as ours; its steps evaluate velocity and divergence 28 times, ours 12\n"
        "- diffrax: pip install it\n"
        "\n"
        "The floor is the fastest product of 2048 x 2048 float32 matrices in the same rounds: "
        "torch.mm 180 to 184 GFLOP/s, numpy.matmul 210 to 210 GFLOP/s.\n"
        "\n"
        "Measured on a chip (avx2), threads: 2, with jkoflow 0, torch 2. Allocator: x.\n"
    )
    with pytest.raises(ValueError, match="must have format 2, got 1"):
        markdown(record_of() | {"format": 1})


def test_the_tables_of_the_readme_are_those_of_the_record():
    record = json.loads((README.parent / "benchmarks/results/bench.json").read_text())
    assert markdown(record) in README.read_text()


def test_a_terminal_sees_a_bar_and_the_tables():
    screen = Console(file=io.StringIO(), force_terminal=True, width=140)
    with BenchBars(screen, show_shape) as bars:
        bars.start(2)
        bars.part("a shape")
        bars.detail("checking somebody")
        bars.measured(record_of()["shapes"][0])
    output = screen.file.getvalue()
    assert "a shape" in output
    assert "checking somebody" in output
    assert "zuko CNF, exact: its own steps, as accurate as ours: 28 evaluations a solve, ours 12" in output


def test_a_table_tells_who_came_as_far_as_one_direction():
    (entry,) = record_of()["shapes"]
    half = {**entry["peers"][2], "peer": "half", "status": "left out", "note": "forward+backward: out of memory"}
    del half["forward+backward"]
    screen = Console(file=io.StringIO(), width=160)
    screen.print(shape_table({**entry, "peers": [*entry["peers"], half]}))
    output = screen.file.getvalue()
    assert "floor: numpy.matmul, 210 GFLOP/s" in output
    lines = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in rows(output)}
    assert lines["half"] == ["79.7", "4.3", "", "left out", "", ""]
    assert lines["zuko CNF, exact"] == ["79.7", "4.3", "", "79.7", "4.3", ""]
    assert lines["diffrax"] == ["not installed", "", "", "", "", ""]
    assert markdown({**record_of(), "shapes": [{**entry, "peers": [*entry["peers"], half]}]}).count("left out") == 1


def rows(table):
    """The cells of each row that a table shows."""
    return [line.split("│") for line in table.splitlines() if line.startswith("│")]


def test_the_command_writes_record_table_and_chart(tmp_path):
    arguments = ["bench", "--quick", "--shapes", "2,8,2,16,2 2,8,3,16,2", "--peers", "closed-form,torchdiffeq"]
    result = CliRunner().invoke(app, [*arguments, "--threads", "1", "--out", str(tmp_path / "new/out")])
    assert result.exit_code == 0, result.output
    assert "1/2: d = 2, H = 8 x 2, B = 16, 2 steps" in result.stdout
    assert "torchdiffeq, exact, adjoint" in result.stdout
    record = strict_json((tmp_path / "new/out/bench.json").read_text())
    assert len(record["shapes"]) == 2
    assert record["settings"]["rounds"] == 3
    assert {r["status"] for entry in record["shapes"] for r in entry["peers"]} == {"measured", "left out"}
    assert (tmp_path / "new/out/bench.md").read_text() == markdown(record)
    assert (tmp_path / "new/out/bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_fails_if_a_peer_is_broken(monkeypatch):
    monkeypatch.setattr(measure, "PEERS", (*PEERS, *BROKEN))
    arguments = ["bench", "--quick", "--shapes", "2,8,2,16,1", "--peers", "closed-form", "--threads", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "error: raises at d = 2, H = 8 x 2, B = 16, 1 steps failed: OSError: no disk" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "2,128"], "five positive numbers"),
        (["--peers", "tensorflow"], f"peers must be among {', '.join(LIBRARIES)}, got tensorflow"),
        (["--threads", "0"], "'--threads'"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_memory_is_measured_of_peers_that_exist():
    assert set(MEASURED_MEMORY) <= {peer.name for peer in PEERS}
