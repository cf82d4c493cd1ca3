"""scripts/gpu_check.py without a GPU: stages that pass, fail, hang and are not run, its report and its table."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import jkoflow.cli.bench
from cpu_as_gpu import cpu_as_gpu
from jkoflow.bench.peers import on_gpu
from jkoflow.cli.commands import app

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

SMI = """#!/bin/sh
case "$1" in --query-gpu=*) echo "NVIDIA Test GPU, 580.1, 9.0, 81559 MiB, 1980 MHz";; *) exit 2;; esac
"""


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    yield importlib.import_module("gpu_check")
    for name in [name for name in sys.modules if name.startswith("gpu_") or name == "supervision"]:
        del sys.modules[name]


@pytest.fixture
def supervision(gpu_check):
    return sys.modules["supervision"]


@pytest.fixture
def fake_gpu(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    smi = folder / "nvidia-smi"
    smi.write_text(SMI)
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("COMMIT", "0123abc")


def python(code):
    return [sys.executable, "-c", code]


def test_every_stage_is_recorded_whatever_the_others_do(gpu_check, fake_gpu, tmp_path, monkeypatch, capsys):
    hang = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    summary = "print('5 of 63 cases'); print('==== ERROR SUMMARY: 0 errors')"
    made = [
        gpu_check.Stage("build", [python("print('built')"), python("print('linked')")], 60),
        gpu_check.Stage("layout", [python("import sys; print('row 3 is wrong'); sys.exit(4)")], 60),
        gpu_check.Stage("tests", [python("print('12 passed')")], 60, ("build",)),
        gpu_check.Stage("memcheck", [["no-such-program"]], 60, ("build",)),
        gpu_check.Stage("racecheck", [python(hang), python("print('never')")], 5, ("build",)),
        gpu_check.Stage("follows", [python("print('never')")], 60, ("layout",)),
        gpu_check.Stage("sanitizer", [python(summary)], 60),
    ]
    monkeypatch.setattr(gpu_check, "stages", lambda *given: made)
    started = time.monotonic()
    report = gpu_check.check(tmp_path / "out", 300, None)
    assert time.monotonic() - started < 200  # what hangs is ended, its children too
    results = {name: entry["result"] for name, entry in report["stages"].items()}
    assert results == {
        "build": "passed",
        "layout": "failed",
        "tests": "passed",
        "memcheck": "failed",
        "racecheck": "timed out",
        "follows": "not run",
        "sanitizer": "passed",
    }
    assert report["stages"]["layout"]["status"] == 4
    assert "row 3 is wrong" in report["stages"]["layout"]["output_end"]
    assert "no-such-program cannot be started" in report["stages"]["memcheck"]["output_end"]
    assert report["stages"]["follows"]["reason"] == "layout did not pass"
    assert report["machine"]["gpu"]["name"] == "NVIDIA Test GPU"
    assert report["machine"]["gpu"]["compute_cap"] == "9.0"
    assert len(report["machine"]["sources"]) == 64
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "linked" in log
    assert "never" not in log.replace("print('never')", "")
    table = gpu_check.table(report)
    for text in ("NVIDIA Test GPU", "tests      passed", "12 passed", "layout     failed", "row 3 is wrong"):
        assert text in table
    assert "5 of 63 cases, ==== ERROR SUMMARY: 0 errors" in table


def test_the_report_is_there_before_the_end(gpu_check, fake_gpu, tmp_path, monkeypatch):
    out = tmp_path / "out"
    look = f"import json; print(sorted(json.load(open({str(out / 'report.json')!r}))['stages']))"
    made = [gpu_check.Stage("build", [python(look)], 60), gpu_check.Stage("tests", [python(look)], 60)]
    monkeypatch.setattr(gpu_check, "stages", lambda *given: made)
    stages = gpu_check.check(out, 300, None)["stages"]
    assert [stages[name]["output_end"] for name in ("build", "tests")] == ["[]\n", "['build']\n"]


def test_what_is_interrupted_says_what_it_has(supervision):
    late = (
        "import time\n"
        "try:\n    print('begun', flush=True)\n    time.sleep(600)\n"
        "except KeyboardInterrupt:\n    print('3 failed so far')"
    )
    with subprocess.Popen(python(late), stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout.readline() == b"begun\n"
        assert supervision.wait(process, 6) is None
        assert process.stdout.read() == b"3 failed so far\n"


def test_a_process_that_left_its_group_holds_nothing_up(supervision):
    """It keeps the output open, which nobody may wait for."""
    detached = (
        "import subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); "
        "print(child.pid)"
    )
    started = time.monotonic()
    code, text = supervision.run_command(python(detached), 300, {})
    os.kill(int(text), signal.SIGKILL)
    assert code == 0
    assert time.monotonic() - started < 200


def test_tools_are_also_found_beside_python_and_in_cuda_home(gpu_check, tmp_path, monkeypatch):
    tool = tmp_path / "cuda" / "bin" / "jkoflow-test-nvcc"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("PATH", os.environ["PATH"])  # restored afterwards
    assert shutil.which(tool.name) is None
    gpu_check.extend_path()
    assert shutil.which(tool.name) == str(tool)
    assert str(Path(sys.executable).parent) in os.environ["PATH"].split(os.pathsep)


def test_no_time_left(gpu_check, fake_gpu, tmp_path, monkeypatch):
    made = [gpu_check.Stage("build", [python("print('never')")], 60)]
    monkeypatch.setattr(gpu_check, "stages", lambda *given: made)
    entry = gpu_check.check(tmp_path / "out", 10, None)["stages"]["build"]
    assert entry == {"result": "not run", "reason": "no time left", "seconds": 0.0}


def test_every_stage_leaves_time_to_those_after_it(gpu_check, fake_gpu, tmp_path, monkeypatch):
    made = [
        gpu_check.Stage("build", [python("")], 600),
        gpu_check.Stage("tests", [python("")], 600, least=50),
        gpu_check.Stage("benchmark", [python("")], 600, least=100),
    ]
    monkeypatch.setattr(gpu_check, "stages", lambda *given: made)
    limits = {name: entry["limit"] for name, entry in gpu_check.check(tmp_path / "a", 300, None)["stages"].items()}
    assert limits["build"] <= 300 - 150 - gpu_check.RESERVE
    assert limits["tests"] <= 300 - 100 - gpu_check.RESERVE
    assert limits["benchmark"] > limits["tests"] > limits["build"] > 0
    chosen = gpu_check.check(tmp_path / "b", 300, ["build"])["stages"]
    assert chosen["build"]["limit"] > limits["benchmark"] - 100  # nothing is kept for what does not run


def test_all_stages_have_a_share_of_the_time(gpu_check, tmp_path):
    made = gpu_check.stages(tmp_path, "9.0")
    late = [stage for stage in made if stage.environment]
    assert [stage.name for stage in late] == [
        "smoke", "core", "memcheck", "racecheck", "synccheck", "profile", "train", "rest", "plans", "benchmark"
    ]  # fmt: skip
    assert all(stage.least > 0 for stage in late)
    before_the_build = 480 - gpu_check.RESERVE - 20  # 20: asking the machine what it is
    assert before_the_build - sum(stage.least for stage in made) >= 120  # for the build, if all has to be compiled
    for stage in late:  # nothing is left behind elsewhere
        for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "MPLCONFIGDIR"):
            assert Path(stage.environment[name]).is_relative_to(SCRIPTS.parent / "build" / "gpu_check")


def test_the_results_are_few_files(gpu_check):
    """The report, the log, and of jkoflow bench a table and a chart beside its figures."""
    assert len(set(gpu_check.FIGURES.values())) + 4 <= 8


@pytest.mark.parametrize(("status", "result"), [(9, "passed"), (0, "failed"), (1, "failed")])
def test_a_sanitizer_that_sees_no_fault_is_no_check(gpu_check, tmp_path, monkeypatch, status, result):
    tool = tmp_path / "compute-sanitizer"
    # sees the fault by its status, and nothing wrong with the small cases
    tool.write_text(f'#!/bin/sh\ncase "$*" in *gpu_small.py*) exit 0;; *faulty*) exit {status};; esac\nexit 3\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for stage in gpu_check.stages(tmp_path, "9.0"):
        if stage.name in ("memcheck", "racecheck", "synccheck"):
            entry = gpu_check.run_stage(stage, 100, tmp_path / "log.txt")
            assert entry["result"] == result, entry


def test_stages_of_a_gpu(gpu_check, tmp_path):
    made = gpu_check.stages(tmp_path, "8.6")
    assert [stage.name for stage in made][:3] == ["build", "layout", "smoke"]
    assert made[0].commands[0][-1] == "86"
    assert made[1].needs == ()  # layout: it needs no extension
    for stage in made:
        for command in stage.commands:
            for part in command:
                if part.endswith((".py", ".cu")):
                    assert (SCRIPTS.parent / part).is_file(), part


def test_core_and_rest_are_all_tests(gpu_check, tmp_path):
    """Every test is in one of the two, and the tests that take longest are not in the first."""
    collected = {}
    for stage in gpu_check.stages(tmp_path, "9.0"):
        if stage.name in ("core", "rest"):
            command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--noconftest", "-o", "addopts="]
            chosen = stage.commands[-1][stage.commands[-1].index("-k") + 1]
            done = subprocess.run(
                [*command, "-p", "no:cacheprovider", "tests/test_gpu.py", "-k", chosen],
                capture_output=True, text=True, check=True, cwd=SCRIPTS.parent,
            )  # fmt: skip
            collected[stage.name] = {line.split("[")[0] for line in done.stdout.splitlines() if "::" in line}
    assert not collected["core"] & collected["rest"]
    assert any("test_batches" in name for name in collected["core"])
    for late in ("test_adaptive_steps", "test_torch_compile", "test_training_end_to_end"):
        assert any(late in name for name in collected["rest"])


def test_a_stage_that_does_not_exist(gpu_check, fake_gpu, tmp_path):
    with pytest.raises(SystemExit, match="no such stage: bild; there are build, layout"):
        gpu_check.check(tmp_path / "out", 300, ["bild", "layout"])


def test_a_stage_whose_needs_are_not_there_says_so(gpu_check, fake_gpu, tmp_path, monkeypatch):
    program = tmp_path / "program"
    made = [
        gpu_check.Stage("faulty", [python("import sys; sys.exit(3)")], 60, makes=(program,)),
        gpu_check.Stage("layout", [python("import sys; sys.exit(4)")], 60),
        gpu_check.Stage("memcheck", [python("print('watched')")], 60, ("faulty",)),
    ]
    monkeypatch.setattr(gpu_check, "stages", lambda *given: made)
    entry = gpu_check.check(tmp_path / "a", 300, None)["stages"]["memcheck"]
    assert (entry["result"], entry["reason"]) == ("not run", "faulty did not pass")
    entry = gpu_check.check(tmp_path / "b", 300, ["memcheck"])["stages"]["memcheck"]
    assert (entry["result"], entry["reason"]) == ("not run", f"faulty was not chosen and there is no {program}")
    program.touch()  # by an earlier check
    assert gpu_check.check(tmp_path / "c", 300, ["memcheck"])["stages"]["memcheck"]["result"] == "passed"
    made[0].commands = [python("")]
    stages = gpu_check.check(tmp_path / "d", 300, None)["stages"]
    assert (stages["layout"]["result"], stages["memcheck"]["result"]) == ("failed", "passed")


def test_the_sanitizers_need_the_program_with_faults(gpu_check, tmp_path):
    made = {stage.name: stage for stage in gpu_check.stages(tmp_path, "9.0")}
    _, program = made["build"].makes
    faults = (SCRIPTS.parent / "tests" / "native" / "cuda" / "faulty.cu").read_text()
    for name, fault in (("memcheck", "memory"), ("racecheck", "race"), ("synccheck", "sync")):
        assert made[name].needs == ("build",)
        assert f"{program} {fault}; test $? -eq 9" in made[name].commands[0][-1]
        assert f'argv[1], "{fault}"' in faults
    assert all(made[name].makes for stage in made.values() for name in stage.needs)


def test_a_build_of_other_sources_is_no_build(gpu_check, fake_gpu, tmp_path, monkeypatch):
    made = [gpu_check.Stage("build", [python("")], 60), gpu_check.Stage("core", [python("")], 60, ("build",))]
    monkeypatch.setattr(gpu_check, "stages", lambda *given: made)
    monkeypatch.setattr(gpu_check, "site_problem", lambda: "the folder is of other sources")
    entry = gpu_check.check(tmp_path / "a", 300, ["core"])["stages"]["core"]
    assert entry["reason"] == "build was not chosen and the folder is of other sources"
    assert gpu_check.check(tmp_path / "b", 300, ["build", "core"])["stages"]["core"]["result"] == "passed"


def test_figures_of_an_earlier_check_are_not_those_of_this_one(gpu_check, fake_gpu, tmp_path, monkeypatch):
    (tmp_path / "train.json").write_text('{"batches": []}')
    monkeypatch.setattr(gpu_check, "stages", lambda *given: [gpu_check.Stage("train", [python("")], 60)])
    assert "No such file" in gpu_check.check(tmp_path, 300, None)["train"]["problem"]


def test_the_benchmark_is_a_command_that_ends_in_time(gpu_check, fake_gpu, tmp_path, monkeypatch, capsys):
    """What the stage would ask of jkoflow is run here, with the CPU in the place of the GPU."""
    stage = gpu_check.stages(tmp_path, "9.0", ["--peers", "closed-form"])[-1]
    ((_, _, _, module, *arguments),) = stage.commands
    assert module == "jkoflow"
    told = arguments.index("--seconds") + 1
    assert arguments[told] == "{seconds}"
    peers = tuple(peer for peer in on_gpu.peers(("fp32",), "cpu") if not peer.compiling)
    monkeypatch.setattr(jkoflow.cli.bench, "open_gpu", lambda name: cpu_as_gpu(peers=peers))
    arguments[told] = "300"
    result = CliRunner().invoke(app, [*arguments, "--shapes", "2,8,2,30,1", "--rounds", "1", "--threads", "1"])
    assert result.exit_code == 0, result.output

    record = (tmp_path / "bench.json").rename(tmp_path / "measured.json").read_text()
    copying = ["cp", str(tmp_path / "measured.json"), str(tmp_path / "bench.json")]
    stage.commands = [python("print('{seconds}')"), copying]
    monkeypatch.setattr(gpu_check, "stages", lambda *given: [stage])
    stage.needs = ()
    report = gpu_check.check(tmp_path, 300, None)
    seconds = float(report["stages"]["benchmark"]["output_end"])
    assert 100 < seconds <= report["stages"]["benchmark"]["limit"] - gpu_check.ENDING["benchmark"] + 1
    assert report["benchmark"] == json.loads(record)
    table, gpu_table = gpu_check.table(report), sys.modules["gpu_table"]
    assert "dim 2, width 8, layers 2, batch 30, steps 1: us forward | forward+backward" in table
    assert "(fp32 0.1 TFLOP/s, tf32 0.3 TFLOP/s)" in table
    (line,) = (line for line in table.splitlines() if line.startswith("jkoflow, fused loss, fp32, graph "))
    assert re.search(r" +- \| +[\d.]+ \| \d\.\de-\d\d \| +- \| +\d+%$", line), line
    assert "zuko CNF, exact" not in table  # not asked for
    assert gpu_table.benchmark_lines({"problem": "no such file"}) == ["benchmark: no such file"]
    assert gpu_table.benchmark_lines({}) == []


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho no devices were found\nexit 6\n")
    smi.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHON": sys.executable}
    done = subprocess.run(
        [SCRIPTS / "gpu_check.sh", tmp_path / "out"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 1
    assert "neither nvidia-smi nor torch finds a GPU: no devices were found; torch finds no GPU either" in done.stdout
    assert json.loads((tmp_path / "out" / "report.json").read_text())["machine"]["gpu"] is None


def test_without_nvidia_smi_torch_says_what_gpu_there_is(gpu_check, tmp_path, monkeypatch):
    machine = sys.modules["gpu_machine"]
    said = '{"name": "H100", "driver_version": "?", "compute_cap": "9.0", "memory.total": "81559 MiB", "gpus": 2}'

    def run_command(command, *rest):
        if command[0] == "nvidia-smi":
            return 127, "nvidia-smi cannot be started"
        return 0, f"a warning\n{said}\n"

    monkeypatch.setattr(machine, "run_command", run_command)
    found = machine.describe_machine()
    assert (found["gpu"]["name"], found["gpu"]["compute_cap"], found["gpus"]) == ("H100", "9.0", 2)
