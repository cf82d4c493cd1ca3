"""``jkoflow bench --device cuda`` with the CPU in the place of a GPU: order, checks, figures, limits and the record."""

import contextlib
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

import jkoflow.bench.shapes
import jkoflow.cli.bench
from cpu_as_gpu import CEILINGS, cpu_as_gpu
from jkoflow.bench import agreement, ceilings, chart, gpu, graph, stopwatch, tf32
from jkoflow.bench.candidate import Candidate, Peer, TorchCandidate, Work
from jkoflow.bench.case import BATCHES, Case, Solution
from jkoflow.bench.deadline import Deadline, Overtime, time_limit
from jkoflow.bench.measure import measure
from jkoflow.bench.one_by_one import order
from jkoflow.bench.peers import closed_form, on_gpu, torchdiffeq
from jkoflow.bench.record import broken
from jkoflow.bench.settings import Settings
from jkoflow.bench.shapes import CUDA_SHAPES, Shape, flops
from jkoflow.bench.table import markdown
from jkoflow.cli.commands import app

TINY, OTHER = Shape(2, 8, 2, 30, 1), Shape(3, 8, 2, 20, 2)


class Watching:
    """A `jkoflow.bench.progress.Progress` that keeps what it is told."""

    def __init__(self):
        self.parts, self.details, self.entries = [], [], []

    def start(self, parts):
        self.announced = parts

    def part(self, text):
        self.parts.append(text)

    def detail(self, text):
        self.details.append(text)

    def measured(self, entry):
        self.entries.append(entry)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quick(**given):
    return Settings.on("cuda", **{"shapes": (TINY,), "rounds": 2, "budget": 1e-4, "threads": 1, **given})


def measured(gpu, progress=None, save=lambda record: None, **given):
    """The record, and the results of its first shape by name."""
    record = measure(quick(**given), progress or Watching(), save, gpu)
    return record, {result["peer"]: result for result in record["shapes"][0]["peers"]}


def ours(name="jkoflow, fp32", library="jkoflow", build=None, **more):
    """A peer that solves as we do."""
    return Peer(name, library, build or (lambda case: TorchCandidate(case, partial(case.solve, False))), **more)


FUSED = ours("jkoflow, fused loss, fp32", directions=("forward+backward",), work=Work(fused=True))


def strict_json(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# ---- The whole of it


def test_everybody_is_checked_timed_and_written_down():
    saved = []
    progress = Watching()
    record, results = measured(
        cpu_as_gpu(), progress, lambda found: saved.append(json.dumps(found)), shapes=(TINY, OTHER)
    )
    assert strict_json(saved[-1]) == json.loads(json.dumps(record))
    directions = sum(len(peer.directions) for peer in on_gpu.peers(("fp32",), "cpu") if able(peer))
    assert len(saved) == 1 + 2 * directions  # after the ceilings and after every measurement
    first = json.loads(saved[0])
    assert {result["note"] for entry in first["shapes"] for result in entry["peers"]} >= {"not reached"}
    assert record["format"] == 2
    assert record["settings"]["device"] == "cuda"
    assert record["environment"]["gpu"]["name"] == "A test"
    assert record["reference"] == {"forward": "jkoflow, fp32", "forward+backward": "jkoflow, fused loss, fp32"}
    assert [tuple(entry["shape"].values()) for entry in record["shapes"]] == [TINY, OTHER]
    for peer in on_gpu.peers(("fp32",), "cpu"):
        result = results[peer.name]
        if not able(peer):
            assert result["status"] in ("left out", "not installed")
            continue
        assert result["status"] == "measured", result
        assert max(result["errors"].values()) < (0.1 if peer.own_steps else 1e-5)
        for direction in peer.directions:
            figures = result[direction]
            assert len(figures["rounds_ms"]) == 2
            reference = results[record["reference"][direction]][direction]
            assert figures["of_ours"] == pytest.approx(figures["ms"] / reference["ms"])
            if peer.work is None:
                assert "of_floor" not in figures
            else:
                rate = flops(TINY, direction, peer.work.fused) / (1e-3 * figures["ms"]) / 1e9
                assert figures["of_floor"] == pytest.approx(rate / CEILINGS["fp32"])
    assert {"jkoflow, fp32, graph", "jkoflow, fused loss, fp32, graph", "closed form by hand, eager, graph"} <= {
        name for name, result in results.items() if "forward+backward" in result
    }
    assert broken(record) == []
    assert progress.announced == len(progress.parts) == 5
    assert [part.rpartition(": ")[2] for part in progress.parts] == [
        "matrix products", "ours", "others", "ours", "others"
    ]  # fmt: skip
    table = markdown(record)
    assert "Measured on A test (compute capability 9.0)" in table
    assert "8192 x 8192 matrices on the same unit in the same run: fp32 0.1 TFLOP/s, tf32 0.3 TFLOP/s" in table
    assert "| jkoflow, fused loss, fp32, graph, forward + backward |" in table
    forward, _, backward = table.partition("| forward + backward, ms")
    assert "| jkoflow, fused loss, fp32, graph |" not in forward
    assert "| jkoflow, fused loss, fp32, graph |" in backward


def able(peer):
    return not (peer.missing() or peer.unavailable() or peer.optional or peer.needs_cpu)


def test_the_command_measures_a_gpu(tmp_path, monkeypatch):
    asked = []
    peers = [peer for peer in on_gpu.peers(("fp32",), "cpu") if peer.library in ("jkoflow", "closed-form")]
    monkeypatch.setattr(
        jkoflow.cli.bench, "open_gpu", lambda name: asked.append(name) or cpu_as_gpu(peers=tuple(peers))
    )
    arguments = ["bench", "--device", "cuda:1", "--quick", "--shapes", "2,8,2,30,1 3,8,2,20,2", "--threads", "1"]
    result = CliRunner().invoke(app, [*arguments, "--seconds", "300", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert asked == ["cuda:1"]
    assert "1/5: matrix products" in result.stdout
    assert "(floor: fp32 0.1 TFLOP/s, tf32 0.3 TFLOP/s)" in result.stdout
    record = strict_json((tmp_path / "out/bench.json").read_text())
    assert record["settings"]["seconds"] == 300
    assert record["settings"]["rounds"] == 3
    assert (tmp_path / "out/bench.md").read_text() == markdown(record)
    assert (tmp_path / "out/bench.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bench.json", "bench.md", "bench.png"]


def test_a_record_without_figures_has_no_chart(tmp_path, monkeypatch):
    monkeypatch.setattr(jkoflow.cli.bench, "open_gpu", lambda name: cpu_as_gpu())
    arguments = ["bench", "--device", "cuda", "--quick", "--shapes", "2,8,2,30,1", "--seconds", "1"]
    result = CliRunner().invoke(app, [*arguments, "--threads", "1", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.md"]
    assert "| jkoflow, fp32 | left out |" in (tmp_path / "bench.md").read_text()
    with pytest.raises(ValueError, match="must have figures"):
        chart.draw(json.loads((tmp_path / "bench.json").read_text()), tmp_path / "bench.png")


def test_it_needs_nothing_that_a_bare_machine_lacks(tmp_path):
    """Typer, pandas and matplotlib are all that it has beside torch, NumPy, safetensors and pytest."""
    lacking = [
        "tomli_w",
        "torchdiffeq",
        "zuko",
        "jax",
        "diffrax",
        "pyarrow",
        "sklearn",
        "h5py",
        "threadpoolctl",
        "scipy",
    ]
    code = (
        f"import sys; sys.modules |= dict.fromkeys({lacking}); sys.path += {sys.path!r}\n"
        "import jkoflow.cli.bench; from jkoflow.cli import main; from cpu_as_gpu import cpu_as_gpu\n"
        "jkoflow.cli.bench.open_gpu = lambda name: cpu_as_gpu()\n"
        "main()\n"
    )
    arguments = ["bench", "--device", "cuda", "--quick", "--shapes", "2,8,2,30,1", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "bench.json").read_text())["shapes"]
    results = {result["peer"]: result for result in entry["peers"]}
    assert results["torchdiffeq, exact"]["status"] == results["zuko CNF, exact"]["status"] == "not installed"
    assert results["autograd on a fixed grid, exact"]["status"] == "measured"


# ---- Order


def test_the_most_telling_comes_first():
    peers = [ours(), FUSED, ours("slow", "closed-form", compiling=60), ours("quick", "closed-form")]
    parts = [(title, [peer.name for peer in group], index) for title, group, index in order(3, peers)]
    own = ["jkoflow, fp32", "jkoflow, fused loss, fp32"]
    assert parts == [
        ("ours", own, 0),
        ("others", ["quick"], 0),
        ("ours", own, 1),
        ("ours", own, 2),
        ("compiled", ["slow"], 0),
        ("others", ["quick"], 1),
        ("others", ["quick"], 2),
        ("compiled", ["slow"], 1),
        ("compiled", ["slow"], 2),
    ]
    assert [title for title, *_ in order(1, peers[:2])] == ["ours"]


def test_the_shapes_of_a_gpu_are_the_goals_and_the_networks_of_the_cpu():
    assert CUDA_SHAPES[0] == (6, 128, 2, 10_000, 3)
    for shape in jkoflow.bench.shapes.SHAPES:
        for batch in (10_000, 100_000):
            assert shape._replace(batch=batch) in CUDA_SHAPES
    assert Settings.on("cuda:1").shapes == CUDA_SHAPES
    assert Settings.on("cuda").seconds == 480
    assert Settings.on("cuda", quick=True).shapes == CUDA_SHAPES[:1]
    assert Settings.on("cpu", quick=True).shapes == jkoflow.bench.shapes.SHAPES[:1]
    assert Settings.on("cpu") == Settings()


def test_every_precision_is_measured_launched_and_from_a_graph():
    peers = {peer.name: peer for peer in on_gpu.CUDA_PEERS}
    assert len(peers) == len(on_gpu.CUDA_PEERS)
    for precision, unit, products in (("tf32x3", "tf32", 3), ("tf32", "tf32", 1), ("fp32", "fp32", 1)):
        for name in (f"jkoflow, {precision}", f"jkoflow, fused loss, {precision}"):
            assert peers[name].work == Work("fused" in name, unit, products)
            assert peers[f"{name}, graph"] == replace(peers[name], name=f"{name}, graph", graph=True)
            assert peers[name].tf32 == (precision == "tf32")
    assert peers["closed form by hand, eager, TF32, graph"].graph
    assert peers["closed form by hand, max-autotune, TF32"].tf32
    for name in ("JAX jit, closed form", "diffrax, closed form"):
        assert peers[name].needs_cpu


# ---- Checks, before anything is timed


def test_what_computes_something_else_is_not_timed():
    def wrong(case):
        return TorchCandidate(case, lambda x: Solution(*(1.01 * part for part in case.solve(False, x))))

    timed = []

    def watch(run, repeats):
        timed.append(run())
        return 1e-3

    peers = (FUSED, ours(), ours("is wrong", "closed-form", wrong), ours("in TF32", "closed-form", wrong, tf32=True))
    record, results = measured(cpu_as_gpu(peers=(*peers, ours("nan", "closed-form", not_a_number)), stopwatch=watch))
    assert results["is wrong"]["status"] == results["nan"]["status"] == "disagrees"
    assert "forward: x is off by 1.0e-02, allowed 0.0001" in results["is wrong"]["note"]
    assert results["is wrong"].keys().isdisjoint({"forward", "forward+backward"})
    assert results["nan"]["errors"] == {"x": None, "logdet": None, "gradient": None}
    assert results["in TF32"]["status"] == "measured"
    assert len(broken(record)) == 2
    assert len(timed) == (1 + 2 + 2) * (1 + 2)  # measured directions, of each a warm-up and two rounds


def not_a_number(case):
    return TorchCandidate(case, lambda x: Solution(*(math.nan * part for part in case.solve(False, x))))


def test_what_is_right_is_in_float64():
    case = Case(OTHER)
    for estimate in (False, True):
        right = agreement.exact(case, estimate)
        assert right.solution.x.dtype == right.gradient[0].dtype == torch.float64
        ours = agreement.expected(case, estimate)
        errors = agreement.distances("forward", ours.solution, right)
        errors |= agreement.distances("forward+backward", ours.gradient, right)
        assert all(0 < error < 1e-5 for error in errors.values())


def test_every_replay_of_a_graph_is_checked_too():
    def stale(run, batches):
        result = run(batches[1])
        return [lambda: result for _ in batches]

    peers = (ours(), FUSED, ours("from a graph", graph=True))
    _, results = measured(cpu_as_gpu(peers=peers, replay=stale))
    assert results["jkoflow, fp32"]["status"] == "measured"
    assert results["from a graph"]["status"] == "disagrees"


def test_tf32_is_allowed_to_those_who_ask_for_it_and_to_nobody_else():
    seen = {}

    def build(name):
        def solve(case, x):
            seen.setdefault(name, set()).add(torch.backends.cuda.matmul.allow_tf32)
            return case.solve(False, x)

        return lambda case: TorchCandidate(case, partial(solve, case))

    before = torch.backends.cuda.matmul.allow_tf32
    peers = (ours(), FUSED, ours("a", build=build("a")), ours("b", build=build("b"), tf32=True))
    measured(cpu_as_gpu(peers=peers))
    assert seen == {"a": {False}, "b": {True}}
    assert torch.backends.cuda.matmul.allow_tf32 == before
    with pytest.raises(KeyError), tf32.products(not before):
        raise KeyError
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_no_run_finds_its_own_batch_in_the_cache():
    assert len({x.sum().item() for x in Case(TINY).batches}) == BATCHES
    timed, timing = [], []

    def solve(case, x):
        if timing:
            timed[-1].append(x.data_ptr())
        return case.solve(False, x)

    def build(case):
        timed.append([])  # for each direction
        return TorchCandidate(case, partial(solve, case))

    def watch(run, repeats):
        timing.append(1)
        stopwatch.wall_clock(run, repeats)
        timing.clear()
        return 1e-4 * repeats

    peers = (FUSED, ours(), ours("a", build=build))
    measured(cpu_as_gpu(peers=peers, stopwatch=watch), rounds=5, budget=1e-3)
    assert len(timed) == 2
    for places in timed:
        assert len(places) == 2 + 5 * 10  # two to see how long one takes, and five rounds
        assert places == (places[:BATCHES] * len(places))[: len(places)]
        assert len(set(places)) == BATCHES


# ---- What goes wrong, and what there is no time for


class Mixed(TorchCandidate):
    """Solves, but has no memory for gradients."""

    def gradient_at(self, x):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_what_breaks_is_told_and_costs_the_others_nothing():
    def fail(case):
        raise OSError("no disk\nno fun")

    class Elsewhere(Candidate):
        forward = gradient = seconds = None

    Elsewhere.__abstractmethods__ = frozenset()
    freed = []
    peers = (
        ours("raises", "closed-form", fail),
        ours("is large", "closed-form", lambda case: Mixed(case, partial(case.solve, False))),
        ours("is elsewhere", "closed-form", lambda case: Elsewhere()),
    )
    record, results = measured(cpu_as_gpu(peers=(FUSED, ours(), *peers), free=lambda: freed.append(1)))
    assert (results["raises"]["status"], results["raises"]["note"]) == ("failed", "OSError: no disk")
    large = results["is large"]
    assert (large["status"], large["note"]) == ("left out", "forward+backward: out of memory")
    assert large["forward"]["ms"] > 0
    assert "forward+backward" not in large
    assert results["is elsewhere"]["note"].startswith("TypeError: is elsewhere does not run on PyTorch's tensors")
    assert results["jkoflow, fp32"]["status"] == "measured"
    assert len(freed) == 2 + 5  # after each part and after what broke, in each direction
    assert [line.split(" at ")[0] for line in broken(record)] == ["raises", "is elsewhere"]


def test_without_ours_there_is_nothing_to_compare_with():
    def fail(case):
        raise OSError("no disk")

    _, results = measured(cpu_as_gpu(peers=(ours(build=fail), replace(FUSED, build=fail), ours("a", "closed-form"))))
    assert results["a"]["status"] == "measured"
    assert "of_ours" not in results["a"]["forward"]


def test_what_no_time_is_left_for_is_listed_as_such(monkeypatch):
    now = [0.0]
    clock = partial(Deadline, clock=lambda: now[0])
    monkeypatch.setattr(jkoflow.bench.measure, "Deadline", clock)

    def slow(case):
        now[0] += 40
        return TorchCandidate(case, partial(case.solve, False))

    peers = (FUSED, ours(build=slow), ours("compiles", "closed-form", compiling=60), ours("a", "closed-form"))
    progress = Watching()
    record, results = measured(cpu_as_gpu(peers=peers), progress, shapes=(TINY, OTHER), seconds=162, compiled=True)
    # 80 s for ours at the first shape, 80 more at the second: nothing is left for what compiles, nor for the rest
    assert results["jkoflow, fp32"]["status"] == results["a"]["status"] == "measured"
    assert (results["compiles"]["status"], results["compiles"]["note"]) == ("left out", "no time left")
    other = {result["peer"]: result for result in record["shapes"][1]["peers"]}
    assert other["jkoflow, fp32"]["status"] == "measured"
    assert (other["a"]["status"], other["a"]["note"]) == ("left out", "no time left")
    assert len(progress.entries) == 3
    assert [result["peer"] for result in progress.entries[1]["peers"]] == ["a"]


def test_a_direction_that_there_is_no_time_for_is_named(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(jkoflow.bench.measure, "Deadline", partial(Deadline, clock=lambda: now[0]))

    def slow(case):
        now[0] += 100
        return TorchCandidate(case, partial(case.solve, False))

    peers = (FUSED, ours(), ours("compiles", "closed-form", slow, compiling=60))
    _, results = measured(cpu_as_gpu(peers=peers), seconds=200)
    assert "forward" in results["compiles"]  # 60 s were left for it, and 120 for the other one are not
    assert (results["compiles"]["status"], results["compiles"]["note"]) == (
        "left out", "forward+backward: no time left"
    )  # fmt: skip


def test_a_benchmark_that_is_killed_keeps_what_it_has():
    class Killed(Watching):
        def detail(self, text):
            if text == "forward+backward: jkoflow, fp32, graph":
                raise KeyboardInterrupt

    saved = []
    with pytest.raises(KeyboardInterrupt):
        measured(cpu_as_gpu(), Killed(), lambda record: saved.append(json.dumps(record)))
    results = {result["peer"]: result for result in json.loads(saved[-1])["shapes"][0]["peers"]}
    assert results["jkoflow, fused loss, fp32"]["status"] == results["jkoflow, fp32"]["status"] == "measured"
    assert results["jkoflow, fp32, graph"]["forward"]["ms"] > 0
    assert results["jkoflow, fp32, graph"]["note"] == "forward+backward: not reached"
    assert results["jkoflow, fp32, Hutchinson"]["note"] == "not reached"
    assert results["torchdiffeq, exact"]["note"] == "not reached"
    assert markdown(json.loads(saved[-1]))


def test_what_compiles_for_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(jkoflow.bench.one_by_one, "PATIENCE", 0.02)  # of the five seconds that everything needs
    before = signal.getsignal(signal.SIGALRM)

    def endless(case):
        while True:
            with contextlib.suppress(Exception):  # as torch.compile does
                time.sleep(600)

    _, results = measured(cpu_as_gpu(peers=(FUSED, ours(), ours("endless", "closed-form", endless, compiling=1))))
    assert (results["endless"]["status"], results["endless"]["note"]) == ("left out", "took longer than 0 s")
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    with pytest.raises(Overtime, match="longer than 0 s"), time_limit(0.05):
        time.sleep(600)


def test_a_deadline_counts_from_its_start():
    now = [100.0]
    deadline = Deadline(10, clock=lambda: now[0])
    assert deadline.allows(10)
    now[0] = 105
    assert deadline.allows()
    assert not deadline.allows(5.5)
    now[0] = 106
    assert not deadline.allows()
    assert Deadline(None, clock=lambda: now[0]).allows(1e9)


# ---- The parts that belong to the device


def test_events_stand_around_the_work(monkeypatch):
    happened = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            happened.append("record")

        def synchronize(self):
            happened.append("wait for the event")

        def elapsed_time(self, end):
            return 250.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: happened.append("wait for the GPU"))
    assert stopwatch.cuda_events(lambda: happened.append("run"), 2) == 0.25
    assert happened == ["wait for the GPU", "record", "run", "run", "record", "wait for the event"]


def test_a_graph_is_captured_for_each_batch_after_a_warm_up(monkeypatch):
    happened = []

    class Stream:
        def wait_stream(self, other):
            happened.append("wait")

    class Graph:
        def replay(self):
            happened.append(f"replay {self.number}")

    @contextlib.contextmanager
    def capture(captured):
        captured.number = sum(isinstance(event, Graph) for event in happened)
        happened.append(captured)
        yield
        happened.append("captured")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    replays = graph.replayed(lambda x: happened.append(x) or f"result of {x}", ["a", "b", "c"])
    assert [event if isinstance(event, str) else "capture" for event in happened] == [
        "wait", "a", "b", "wait", *(event for x in "abc" for event in ("capture", x, "captured"))
    ]  # fmt: skip
    assert replays[2]() == "result of c"
    assert replays[0]() == "result of a"
    assert happened[-2:] == ["replay 2", "replay 0"]


def test_ceilings_are_rates_of_a_large_product(monkeypatch):
    allowed = []

    def watch(run, repeats):
        run()
        allowed.append(torch.backends.cuda.matmul.allow_tf32)
        return 0.5 * repeats

    rates = ceilings.rates(torch.device("cpu"), watch, size=64)
    assert rates == pytest.approx({"fp32": 2 * 64**3 / 0.5 / 1e9, "tf32": 2 * 64**3 / 0.5 / 1e9})
    assert allowed == sorted(allowed)  # first without TF32
    assert set(allowed) == {False, True}


def test_runs_take_turns():
    ran = []
    turn = stopwatch.in_turn([partial(ran.append, number) for number in range(3)])
    assert stopwatch.wall_clock(turn, 4) > 0
    turn()
    assert ran == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("count", "asked", "missing", "message"),
    [
        (0, "cuda", None, "--device cuda needs an NVIDIA GPU, but there is no CUDA device: .*--device cpu"),
        (1, "cuda:1", None, "--device cuda:1 needs 2 GPUs, but there is 1 x test; choose --device cuda:0$"),
        (3, "cuda:7", None, "--device cuda:7 needs 8 GPUs, but there is 3 x test; choose --device cuda:0 to cuda:2$"),
        (1, "cuda", "build them", "--device cuda needs the CUDA kernels, but they cannot run here: build them"),
    ],
)
def test_without_the_gpu_one_line_says_what_there_is(count, asked, missing, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if count:
        monkeypatch.setattr(gpu, "cuda_status", lambda: f"{count} x test")
    monkeypatch.setattr(gpu, "capabilities", lambda: {"cuda": missing})
    result = CliRunner().invoke(app, ["bench", "--device", asked])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        gpu.open_gpu(asked)


def test_a_gpu_is_what_pytorch_says_it_is(monkeypatch):
    class Properties:
        name, major, minor, multi_processor_count, total_memory = "A test", 9, 0, 132, 80 << 30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(gpu, "capabilities", lambda: {"cuda": None})
    found = gpu.open_gpu("cuda:1")
    assert found.device == torch.device("cuda:1")
    assert found.description == {"name": "A test", "capability": "9.0", "multiprocessors": 132, "memory_gib": 80.0}
    assert found.stopwatch is stopwatch.cuda_events
    assert found.replay is graph.replayed
    assert found.peers == on_gpu.CUDA_PEERS


# ---- Peers that the CPU does not measure


def test_what_stands_for_torchdiffeq_computes_the_same():
    pytest.importorskip("torchdiffeq")
    assert torchdiffeq.needs_no_stand_in() == "torchdiffeq itself is measured"
    case = Case(OTHER)
    for one, other in (
        (torchdiffeq.exact, torchdiffeq.like_exact),
        (torchdiffeq.hutchinson, torchdiffeq.like_hutchinson),
    ):
        right, like = one(case), other(case)
        for got, wanted in zip([*like.forward(), *like.gradient()], [*right.forward(), *right.gradient()], strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_what_is_compiled_for_speed_computes_the_same(monkeypatch):
    asked = []

    def compile_(run, **options):  # the same function without minutes of compilation
        asked.append(options)
        return run

    marks = []
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    case = Case(OTHER)
    candidate = closed_form.max_autotune(case)
    right = agreement.exact(case, False)
    errors = agreement.distances("forward", candidate.forward(), right)
    errors |= agreement.distances("forward+backward", candidate.gradient(), right)
    assert max(errors.values()) < 1e-5
    assert asked == [{"mode": "max-autotune", "fullgraph": True, "dynamic": False}] * 2
    assert len(marks) == 2  # before each run
