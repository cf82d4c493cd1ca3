"""Builds the extension for this machine's GPU and stages what gpu_check.py runs: python gpu_build.py ARCHITECTURE.

A build that was made elsewhere (scripts/gpu_prebuilt.py) is linked if it fits; else, or if it cannot be linked or
loaded, everything is compiled. What comes of it lies in SITE, the folder that the stages import from, and PROGRAMS.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
import zlib
from pathlib import Path

import gpu_prebuilt
from supervision import ROOT

BUILD = ROOT / "build" / "gpu_check"
SITE = BUILD / "site"
"""Folder that the stages import from: the package with the extension of this build, and unpacked wheels."""
PROGRAMS = BUILD / "programs"
"""Folder of the programs of tests/native/cuda."""
MODULE = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
"""Name of the extension for this Python: there may be others beside it."""
LOADS = "import torch; from jkoflow import _C; print('loaded;', _C.cuda_device_problem() or 'a GPU can be used')"


def checked_digest() -> str:
    """Returns a hash of all that is checked, which names its state if there is no repository."""
    native = (path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    return gpu_prebuilt.digest([*native, *(ROOT / "jkoflow").rglob("*.py")])


def site_problem() -> str | None:
    """Says why SITE, which an earlier check has left, is none of the present sources; returns None if it is."""
    try:
        built = json.loads((SITE / "sources.json").read_text())
    except (OSError, ValueError):
        return f"there is no {SITE}"
    return None if built == checked_digest() else f"{SITE} is of other sources"


def build(architecture: str) -> None:
    """Builds in the faster way that works, and exits with a message if none does."""
    why = gpu_prebuilt.misfit(architecture)
    if why is None:
        try:
            linked(architecture)
            print("linked the build from elsewhere", flush=True)
            return
        except subprocess.CalledProcessError as error:
            why = f"the build from elsewhere could not be used ({error.cmd[0]} exited with {error.returncode})"
        except (OSError, EOFError, zlib.error) as error:
            why = f"the build from elsewhere could not be used ({error})"
    print(f"{why}: compiling everything", flush=True)
    compiled(architecture)


def linked(architecture: str) -> None:
    """Compiles the sources of the Python module only, and links the archive that was made elsewhere."""
    _stage_programs(gpu_prebuilt.PREBUILT)
    folder = _configure("linked", architecture, f"-DJKOFLOW_PREBUILT={gpu_prebuilt.unpack(BUILD)}")
    _run(["cmake", "--build", str(folder), "--target", "_C"])
    _stage_site(folder / MODULE)


def compiled(architecture: str) -> None:
    """Compiles everything; of the programs, those that compile."""
    folder = _configure("compiled", architecture)
    command = ["cmake", "--build", str(folder), "--target", "_C", *gpu_prebuilt.PROGRAMS, "--", "-k", "0"]
    failed = subprocess.run(command, cwd=ROOT, check=False).returncode
    _stage_programs(folder / "tests" / "native" / "cuda")
    _stage_site(folder / MODULE)
    if failed:
        raise SystemExit(failed)


def _configure(name: str, architecture: str, *options: str) -> Path:
    """Configures a CMake folder; one that was made at another place is removed, since CMake refuses it."""
    folder = BUILD / name
    cache = folder / "CMakeCache.txt"
    if cache.is_file() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text(errors="replace"):
        shutil.rmtree(folder)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise SystemExit(f"there is no {header}: the extension cannot be built without Python's headers (python3-dev)")
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DJKOFLOW_CUDA=ON", *gpu_prebuilt.OPTIONS]
    command += [f"-DCMAKE_CUDA_ARCHITECTURES={architecture}-real", f"-DPython_EXECUTABLE={sys.executable}"]
    _run([*command, *options])
    return folder


def _stage_programs(folder: Path) -> None:
    """Puts those programs that a folder has into PROGRAMS; they need no extension."""
    shutil.rmtree(PROGRAMS, ignore_errors=True)
    PROGRAMS.mkdir(parents=True)
    for name in gpu_prebuilt.PROGRAMS:
        if (folder / name).is_file():
            shutil.copy2(folder / name, PROGRAMS)
            (PROGRAMS / name).chmod(0o755)


def _stage_site(module: Path) -> None:
    """Puts the package with the built extension, and the wheels' contents, into SITE, and loads the extension."""
    if not module.is_file():
        raise SystemExit(f"the build left no {module}")
    shutil.rmtree(SITE, ignore_errors=True)
    SITE.mkdir(parents=True)
    shutil.copytree(ROOT / "jkoflow", SITE / "jkoflow", ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
    shutil.copy2(module, SITE / "jkoflow")
    if wheels := os.environ.get("WHEELS"):
        for wheel in sorted(Path(wheels).glob("*.whl")):
            zipfile.ZipFile(wheel).extractall(SITE)
    environment = os.environ | {"PYTHONPATH": str(SITE), "PYTHONDONTWRITEBYTECODE": "1"}
    _run([sys.executable, "-P", "-c", LOADS], environment)
    (SITE / "sources.json").write_text(json.dumps(checked_digest()))


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    print(f"{time.monotonic() - started:.0f} s: {' '.join(command)[:160]}", flush=True)


if __name__ == "__main__":
    build(sys.argv[1])
