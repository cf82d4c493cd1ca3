"""Kernels that one machine compiles for another: gpu_check.sh --prebuild 90, and a look whether they fit the sources.

The folder PREBUILT then has an archive of everything but the sources of the Python module, which needs no Python, the
programs of tests/native/cuda, and a manifest that names the sources and tools. Carried to a machine with a GPU, it
saves the minutes that compiling the kernels takes there: scripts/gpu_build.py links it. The CMake folder beside it
stays where it is; after a change only what it touches is compiled again.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from supervision import ROOT, run_command

BUILD = ROOT / "build"
PREBUILT = BUILD / "prebuilt"
ARCHIVE = "libjkoflow_kernels.a"
"""Name of the archive; in PREBUILT it is compressed, to a fifth of what the compiler leaves."""
PACKED = PREBUILT / f"{ARCHIVE}.gz"
PROGRAMS = ("mma_layout", "faulty")
OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CUDA_FLAGS=-lineinfo", "-DJKOFLOW_WIDE_ISAS=avx512")
"""What every build for a check is configured with: -lineinfo, which leaves the code as it is, is for compute-sanitizer
and ncu; on the CPU the checks need few kernels."""

_OF_THE_MODULE = ("csrc/bindings.cpp", "csrc/bindings.h", "csrc/cuda/bindings.cpp")


def digest(files: Iterable[Path]) -> str:
    """Returns a hash of the names and contents of files below ROOT."""
    found = hashlib.sha256()
    for path in sorted(files):
        found.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def native_digest() -> str:
    """Returns a hash of what the archive and the programs are made of."""
    folders = ROOT / "csrc", ROOT / "cmake", ROOT / "tests" / "native" / "cuda"
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    left_out = {ROOT / name for name in _OF_THE_MODULE}
    return digest([ROOT / "CMakeLists.txt", *(path for path in files if path not in left_out)])


def nvcc_release() -> str | None:
    """Returns the release of nvcc ("13.0"); None if there is none."""
    code, text = run_command(["nvcc", "--version"], 30, {})
    match = re.search(r"release (\d+\.\d+)", text)
    return match[1] if code == 0 and match else None


def make(architecture: str, jobs: int | None) -> None:
    """Builds the archive and the programs for GPUs of one architecture ("90") and puts them into PREBUILT."""
    folder = BUILD / f"prebuild-{architecture}"
    configure = [
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(folder),
        "-G",
        "Ninja",
        "-DJKOFLOW_PYTHON=OFF",
        "-DJKOFLOW_CUDA=ON",
    ]
    configure += [*OPTIONS, f"-DCMAKE_CUDA_ARCHITECTURES={architecture}-real"]
    configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    build = ["cmake", "--build", str(folder), "--target", "jkoflow_kernels", *PROGRAMS]
    sources = native_digest()  # before the build: what changes meanwhile is not in it for certain
    for command in (configure, build + (["--parallel", str(jobs)] if jobs else [])):
        subprocess.run(command, check=True)
    shutil.rmtree(PREBUILT, ignore_errors=True)
    PREBUILT.mkdir(parents=True)
    with (folder / ARCHIVE).open("rb") as archive, gzip.open(PACKED, "wb", compresslevel=6) as packed:
        shutil.copyfileobj(archive, packed)
    for program in PROGRAMS:
        shutil.copy2(folder / "tests" / "native" / "cuda" / program, PREBUILT)
    _, compiler = run_command(["c++", "--version"], 30, {})
    manifest = {"sources": sources, "architecture": architecture, "nvcc": nvcc_release()}
    manifest["compiler"] = compiler.splitlines()[0] if compiler else None
    (PREBUILT / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    size = sum(path.stat().st_size for path in PREBUILT.iterdir()) / 2**20
    print(f"{PREBUILT}: {size:.1f} MiB for compute capability {architecture}, sources {sources[:12]}")


def unpack(folder: Path) -> Path:
    """Unpacks the archive into a folder and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(PACKED, "rb") as packed, (folder / ARCHIVE).open("wb") as archive:
        shutil.copyfileobj(packed, archive)
    return folder / ARCHIVE


def misfit(architecture: str) -> str | None:
    """Says why what is in PREBUILT cannot be linked here; returns None if it can."""
    try:
        manifest: dict[str, Any] = json.loads((PREBUILT / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        return f"there is no build from elsewhere ({error})"
    if manifest["sources"] != (here := native_digest()):
        return f"the build from elsewhere is of sources {manifest['sources'][:12]}, here are {here[:12]}"
    if manifest["architecture"] != architecture:
        return f"the build from elsewhere is for compute capability {manifest['architecture']}, here is {architecture}"
    theirs, ours = manifest["nvcc"], nvcc_release()
    if ours is None or ours.split(".")[0] != theirs.split(".")[0]:  # the archive needs the CUDA runtime of its release
        return f"the build from elsewhere is by nvcc {theirs}, here is {ours or 'none'}"
    missing = [name for name in (PACKED.name, *PROGRAMS) if not (PREBUILT / name).is_file()]
    return f"the build from elsewhere lacks {', '.join(missing)}" if missing else None
