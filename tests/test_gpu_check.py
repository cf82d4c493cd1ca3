"""scripts/gpu_check.py without a GPU: stages that pass, fail, hang and are not run, its report and its table."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

SMI = """#!/bin/sh
case "$1" in --query-gpu=*) echo "NVIDIA Test GPU, 580.1, 9.0, 81559 MiB, 1980 MHz";; *) exit 2;; esac
"""


@pytest.fixture
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPTS / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_check"]


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
    made = [
        gpu_check.Stage("build", [python("print('built')"), python("print('linked')")], 60),
        gpu_check.Stage("layout", [python("import sys; print('row 3 is wrong'); sys.exit(4)")], 60),
        gpu_check.Stage("tests", [python("print('12 passed')")], 60, ("build",)),
        gpu_check.Stage("memcheck", [["no-such-program"]], 60, ("build",)),
        gpu_check.Stage("racecheck", [python(hang), python("print('never')")], 5, ("build",)),
        gpu_check.Stage("follows", [python("print('never')")], 60, ("layout",)),
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


def test_the_report_is_there_before_the_end(gpu_check, fake_gpu, tmp_path, monkeypatch):
    out = tmp_path / "out"
    look = f"import json; print(sorted(json.load(open({str(out / 'report.json')!r}))['stages']))"
    made = [gpu_check.Stage("build", [python("pass")], 60), gpu_check.Stage("tests", [python(look)], 60)]
    monkeypatch.setattr(gpu_check, "stages", lambda *given: made)
    assert gpu_check.check(out, 300, None)["stages"]["tests"]["output_end"] == "['build']\n"


def test_no_time_left(gpu_check, fake_gpu, tmp_path, monkeypatch):
    made = [gpu_check.Stage("build", [python("print('never')")], 60)]
    monkeypatch.setattr(gpu_check, "stages", lambda *given: made)
    entry = gpu_check.check(tmp_path / "out", 10, None)["stages"]["build"]
    assert entry == {"result": "not run", "reason": "no time left", "seconds": 0.0}


def test_stages_of_a_gpu(gpu_check, tmp_path):
    made = gpu_check.stages(tmp_path, "8.6")
    assert [stage.name for stage in made] == ["build", "layout", "tests", "memcheck", "racecheck", "benchmark"]
    assert "-DCMAKE_CUDA_ARCHITECTURES=86-real" in made[0].commands[0]
    assert "-arch=sm_86" in made[1].commands[0]
    for stage in made:
        for command in stage.commands:
            for part in command:
                if part.endswith((".py", ".cu")):
                    assert (SCRIPTS.parent / part).is_file(), part


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho no devices were found\nexit 6\n")
    smi.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHON": sys.executable}
    done = subprocess.run(
        [SCRIPTS / "gpu_check.sh", tmp_path / "out"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 1
    assert "nvidia-smi finds no GPU: no devices were found" in done.stdout
    assert json.loads((tmp_path / "out" / "report.json").read_text())["machine"]["gpu"] is None


def test_the_benchmark_runs_on_the_cpu_too(tmp_path):
    out = tmp_path / "benchmark.json"
    script = SCRIPTS.parent / "benchmarks" / "gpu.py"
    options = [
        "--device",
        "cpu",
        "--shapes",
        "2,8,2,30,1",
        "--groups",
        "ours,closed form,torchdiffeq",
        "--ceiling",
        "64",
    ]
    done = subprocess.run(
        [sys.executable, script, *options, "--out", out],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert figures["ceilings_tflops"]["fp32"] > 0
    measured = {(result["contender"], result["direction"]): result for result in figures["results"]}
    assert ("jkoflow fp32, fused loss", "forward+backward") in measured
    assert ("torchdiffeq, exact", "forward") in measured
    for result in measured.values():
        assert result["agrees"], result
        assert result["us"] > 0
    assert len(figures["summary"]) == 2 + len({contender for contender, _ in measured})
