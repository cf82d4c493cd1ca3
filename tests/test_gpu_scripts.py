"""What scripts/gpu_check.py runs on a GPU, without one: small cases, profile, training, builds from elsewhere."""

import copy
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import jkoflow

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

# ncu --csv --page raw, with few of its columns; the kernels of a case follow PyTorch's mark
NCU = """\
==PROF== Connected to process 4242 (/usr/bin/python3.12)
==PROF== Profiling "spin_kernel" - 0: 0%....50%....100% - 9 passes
==WARNING== something that ncu says
"ID","Process ID","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread",\
"sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio","Device Name"
"","","","ns","register/thread","%","inst","inst",""
"0","4242","at::cuda::(anonymous namespace)::spin_kernel(long)","1,000","8","0","0","0","H100"
"1","4242","jkoflow::cuda::<unnamed>::prepare_kernel(jkoflow::cuda::PrepareParams)","4,100","40","0","n/a","2","H100"
"2","4242","void jkoflow::cuda::forward_kernel<(int)128, (jkoflow::cuda::Precision)1, (bool)0>(jkoflow::cuda::Params)",\
"151,234.5","123","61.5","1.5","2.5","H100"
"3","4242","at::cuda::(anonymous namespace)::spin_kernel(long)","1,000","8","0","0","0","H100"
"4","4242","jkoflow::cuda::<unnamed>::finish_kernel(jkoflow::cuda::FinishParams)","9,000","50","0","1","3","H100"
==PROF== Disconnected from process 4242
"""


@pytest.fixture
def script(monkeypatch):
    """Imports a script by name."""
    monkeypatch.syspath_prepend(SCRIPTS)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name.startswith("gpu_") or name == "supervision":
            del sys.modules[name]


# ---- Small cases


def test_small_cases_come_first_and_end_in_time(script, monkeypatch, capsys):
    small = script("gpu_small")
    ran = []
    monkeypatch.setattr(small, "run", lambda case, compare: ran.append(case))
    monkeypatch.setattr(small.cuda, "missing", lambda: None)
    gpu = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(small.torch.cuda, "get_device_properties", lambda index: gpu)
    monkeypatch.setattr(sys, "argv", ["gpu_small.py"])
    small.main()
    assert len(set(ran)) == len(ran) == 126
    assert {case.hidden for case in ran[: len(small.WIDTHS)]} == set(small.WIDTHS)
    first = ran[: 5 * len(small.WIDTHS)]
    assert {(case.adaptive, case.divergence) for case in first} == {
        (False, "exact"), (True, "exact"), (False, "hutchinson"), (True, "hutchinson"), (False, "none")
    }  # fmt: skip
    assert {case.precision for case in first} == {"tf32x3"}
    batches = [case.batch for case in ran]
    assert batches == sorted(batches)
    assert batches[-1] == 92 * 132
    monkeypatch.setattr(sys, "argv", ["gpu_small.py", "--fewer", "--seconds", "-1"])
    small.main()
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 91 cases"


def test_small_cases_that_are_wrong_are_named(script, monkeypatch, capsys):
    small = script("gpu_small")
    monkeypatch.setattr(small.cuda, "missing", lambda: None)
    monkeypatch.setattr(
        small.torch.cuda, "get_device_properties", lambda index: SimpleNamespace(multi_processor_count=1)
    )
    monkeypatch.setattr(small.torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(jkoflow.MLPVelocity, "cuda", lambda self: self)
    real = torch.randn
    monkeypatch.setattr(small.torch, "randn", lambda *size, device: real(*size))
    monkeypatch.setattr(small, "all_cases", lambda *given: [small.Case("fp32", False, "exact", 9, (8, 8))] * 2)
    found = small.results

    def results(velocity, x, context, case, **where):
        got = found(velocity, x, context, case, backend="reference")
        if x.dtype == torch.float32:
            got["logdet"] = got["logdet"] + wrong
        return got

    monkeypatch.setattr(small, "results", results)
    monkeypatch.setattr(sys, "argv", ["gpu_small.py", "--compare"])
    wrong = 0.0
    small.main()
    assert "2 of 2 cases" in capsys.readouterr().out
    wrong = 0.01
    with pytest.raises(SystemExit, match="2 cases are wrong"):
        small.main()
    assert "(8, 8): logdet is wrong by 1.0e-02" in capsys.readouterr().out


@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_results_of_a_small_case(script, adaptive, divergence):
    small = script("gpu_small")
    case = small.Case("fp32", adaptive, divergence, 5, (9, 8))
    velocity = jkoflow.MLPVelocity(3, case.hidden, context_dim=2, linear=True)
    x, context = torch.randn(5, 3), torch.randn(5, 2)
    got = small.results(velocity, x, context, case, backend="reference")
    exact = small.results(copy.deepcopy(velocity).double(), x.double(), context.double(), case, backend="reference")
    assert got.keys() == exact.keys() >= {"x", "logdet", "grad x", "grad layers.0.weight"}
    assert ("loss" in got) == (divergence != "none")
    assert ("velocity" in got) == (not adaptive)
    for name, value in exact.items():
        torch.testing.assert_close(got[name].double(), value, rtol=1e-4, atol=1e-4, msg=name)


# ---- The profile


def test_what_ncu_writes_is_read(script):
    profile = script("gpu_profile")
    prepare, forward, finish = profile.summarise(profile.read(NCU.splitlines()))
    assert (prepare["kernel"], forward["kernel"], finish["kernel"]) == (
        "prepare_kernel", "forward_kernel<128, 1, 0>", "finish_kernel"
    )  # fmt: skip
    assert forward["case"] == prepare["case"] == profile.CASES[0].name
    assert finish["case"] == profile.CASES[1].name
    assert forward["figures"] == {"us": pytest.approx(151.2345), "tensor pipe %": 61.5, "registers": 123}
    assert list(forward["stalls"].items()) == [("barrier", 2.5), ("long_scoreboard", 1.5)]
    assert list(prepare["stalls"]) == ["barrier"]  # "n/a" is no number
    assert profile.read(["==ERROR== ERR_NVGPUCTRPERM"]) == []


@pytest.mark.parametrize("works", [True, False])
def test_the_profile_is_written_whatever_ncu_says(script, tmp_path, monkeypatch, capsys, works):
    profile = script("gpu_profile")
    tool = tmp_path / "ncu"
    said = NCU if works else "==ERROR== ERR_NVGPUCTRPERM - no permission\n"
    (tmp_path / "said").write_text(said)
    # the stand-in writes to what follows --log-file
    tool.write_text(
        f'#!/bin/sh\nwhile [ "$1" != --log-file ]; do shift; done\ncp {tmp_path}/said "$2"\nexit {0 if works else 1}\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "argv", ["gpu_profile.py", str(tmp_path / "profile.json")])
    assert profile.main() == (0 if works else 1)
    record = json.loads((tmp_path / "profile.json").read_text())
    lines = script("gpu_table").profile_lines(record)
    if works:
        assert len(record["kernels"]) == 3
        assert record["said"] == ["==WARNING== something that ncu says"]
        assert "forward_kernel<128, 1, 0>: us 151.2, tensor pipe % 61.5" in lines[1]
        assert lines[1].endswith("stalls: barrier 2.50, long_scoreboard 1.50")
    else:
        assert lines == [f"profile: {record['problem']}"]
        assert "ERR_NVGPUCTRPERM" in record["problem"]


# ---- Training


def test_iterations_are_counted_by_what_training_tells(script, monkeypatch, tmp_path, capsys):
    train = script("gpu_train")
    monkeypatch.setattr(train, "gasturbine", lambda: torch.randn(300, 2))
    for name in ("WARM_UP", "PROFILED", "TIMED"):
        monkeypatch.setattr(train, name, 10)
    measure = train.measure
    monkeypatch.setattr(train, "measure", lambda batch: measure(batch, "cpu"))
    monkeypatch.setattr(train, "BATCHES", (8,))
    monkeypatch.setattr(sys, "argv", ["gpu_train.py", str(tmp_path / "train.json")])
    train.main()
    (entry,) = json.loads((tmp_path / "train.json").read_text())["batches"]
    assert entry["rows_a_second"] == pytest.approx(8 * 1e6 / entry["us_an_iteration"])
    assert entry["launches"] == entry["kernels"] == 0  # there is no GPU
    assert "rows a second" in script("gpu_table").training_lines({"batches": [entry]})[0]


# ---- Builds from elsewhere


@pytest.fixture
def elsewhere(script, tmp_path, monkeypatch):
    """A build from elsewhere, whose archive is no archive, beside a record of what CMake was asked for."""
    prebuilt, build = script("gpu_prebuilt"), script("gpu_build")
    folder = tmp_path / "prebuilt"
    folder.mkdir()
    monkeypatch.setattr(prebuilt, "PREBUILT", folder)
    monkeypatch.setattr(prebuilt, "PACKED", folder / "libjkoflow_kernels.a.gz")
    monkeypatch.setattr(prebuilt, "nvcc_release", lambda: "13.0")
    monkeypatch.setattr(build, "BUILD", tmp_path / "build")
    monkeypatch.setattr(build, "SITE", tmp_path / "build" / "site")
    monkeypatch.setattr(build, "PROGRAMS", tmp_path / "build" / "programs")
    with prebuilt.gzip.open(prebuilt.PACKED, "wb") as packed:
        packed.write(b"kernels")
    for name in prebuilt.PROGRAMS:
        (folder / name).write_text("a program")
    manifest = {"sources": prebuilt.native_digest(), "architecture": "90", "nvcc": "13.0", "compiler": "c++"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    asked = []

    def run(command, environment=None):
        asked.append(command)
        if "--build" in command:
            (Path(command[2]) / build.MODULE).parent.mkdir(parents=True, exist_ok=True)
            (Path(command[2]) / build.MODULE).write_text("a module")

    def compiled(command, **options):
        run(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(build, "_run", run)
    monkeypatch.setattr(build.subprocess, "run", compiled)
    header = tmp_path / "Python.h"
    header.touch()
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path))
    return SimpleNamespace(prebuilt=prebuilt, build=build, folder=folder, manifest=manifest, asked=asked, header=header)


def test_what_is_made_here_fits_elsewhere(elsewhere, tmp_path, monkeypatch, capsys):
    prebuilt, asked = elsewhere.prebuilt, []

    def run(command, check):
        asked.append(command)
        folder = Path(command[command.index("-B" if "-B" in command else "--build") + 1])
        (folder / "tests" / "native" / "cuda").mkdir(parents=True, exist_ok=True)
        (folder / prebuilt.ARCHIVE).write_text("other kernels")
        for name in prebuilt.PROGRAMS:
            (folder / "tests" / "native" / "cuda" / name).write_text("a program")

    monkeypatch.setattr(prebuilt.subprocess, "run", run)
    digest = prebuilt.native_digest()
    monkeypatch.setattr(prebuilt, "native_digest", lambda: digest)
    monkeypatch.setattr(prebuilt, "BUILD", tmp_path)
    prebuilt.make("90", 2)
    configure, build = asked
    assert "-DJKOFLOW_PYTHON=OFF" in configure
    assert "-DCMAKE_CUDA_ARCHITECTURES=90-real" in configure
    assert build[-5:] == ["jkoflow_kernels", *prebuilt.PROGRAMS, "--parallel", "2"]
    assert prebuilt.misfit("90") is None
    assert prebuilt.unpack(tmp_path / "there").read_text() == "other kernels"


def test_a_build_from_elsewhere_is_linked(elsewhere, tmp_path, capsys):
    assert elsewhere.prebuilt.misfit("90") is None
    elsewhere.build.build("90")
    assert "linked the build from elsewhere" in capsys.readouterr().out
    configure, build, load = elsewhere.asked
    archive = tmp_path / "build" / "libjkoflow_kernels.a"
    assert archive.read_text() == "kernels"
    assert f"-DJKOFLOW_PREBUILT={archive}" in configure
    assert build[-2:] == ["--target", "_C"]
    assert load[-2:] == ["-c", elsewhere.build.LOADS]
    assert (tmp_path / "build" / "programs" / "faulty").read_text() == "a program"
    assert [path.name for path in (tmp_path / "build" / "site" / "jkoflow").glob("_C*.so")] == [elsewhere.build.MODULE]
    assert elsewhere.build.site_problem() is None
    (tmp_path / "build" / "site" / "sources.json").write_text('"0"')
    assert elsewhere.build.site_problem().endswith("is of other sources")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sources": "0" * 64}, "is of sources 000000000000, here are"),
        ({"architecture": "80"}, "is for compute capability 80, here is 90"),
        ({"nvcc": "12.9"}, "is by nvcc 12.9, here is 13.0"),
        (None, "there is no build from elsewhere"),
    ],
)
def test_a_build_that_does_not_fit_is_not_used_and_it_says_so(elsewhere, changes, reason, capsys):
    manifest = elsewhere.folder / "manifest.json"
    manifest.unlink() if changes is None else manifest.write_text(json.dumps(elsewhere.manifest | changes))
    elsewhere.build.build("90")
    out = capsys.readouterr().out
    assert reason in out
    assert ": compiling everything" in out
    assert not any("JKOFLOW_PREBUILT" in part for command in elsewhere.asked for part in command)


def test_a_build_from_elsewhere_that_cannot_be_linked_is_not_used(elsewhere, monkeypatch, capsys):
    run = elsewhere.build._run

    def fails(command, environment=None):
        run(command)
        if "--build" in command and "linked" in command[2]:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(elsewhere.build, "_run", fails)
    elsewhere.build.build("90")
    assert "could not be used (cmake exited with 1): compiling everything" in capsys.readouterr().out
    elsewhere.prebuilt.PACKED.write_text("no archive")
    elsewhere.build.build("90")
    assert "Not a gzipped file" in capsys.readouterr().out


def test_a_build_folder_of_another_place_is_removed(elsewhere, tmp_path):
    for place, stays in (("/elsewhere", False), (str(elsewhere.build.ROOT), True)):
        cache = tmp_path / "build" / "linked" / "CMakeCache.txt"
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(f"CMAKE_HOME_DIRECTORY:INTERNAL={place}\n")
        elsewhere.build.build("90")
        assert cache.exists() == stays


def test_without_the_headers_of_python_it_says_so(elsewhere):
    elsewhere.header.unlink()
    with pytest.raises(SystemExit, match=r"there is no .*Python\.h: the extension cannot be built"):
        elsewhere.build.build("90")


def test_the_sources_of_the_module_are_not_those_of_the_archive(script, monkeypatch):
    prebuilt = script("gpu_prebuilt")
    seen = []
    monkeypatch.setattr(prebuilt, "digest", seen.extend)
    prebuilt.native_digest()
    names = {str(path.relative_to(prebuilt.ROOT)) for path in seen}
    assert {"CMakeLists.txt", "csrc/cuda/tile.cuh", "csrc/cuda/sources.cmake", "tests/native/cuda/faulty.cu"} <= names
    assert not names & {"csrc/bindings.cpp", "csrc/cuda/bindings.cpp", "csrc/bindings.h"}
