"""Builds the extension through CMake; everything else about the package is in pyproject.toml.

Environment variables: ``CMAKE_ARGS`` (more arguments for CMake), ``JKOFLOW_CUDA`` (``AUTO``, ``ON`` or ``OFF``),
``TORCH_CUDA_ARCH_LIST`` or ``CUDAARCHS`` (GPUs to compile for), ``MAX_JOBS`` or ``CMAKE_BUILD_PARALLEL_LEVEL``
(parallel compilations), ``DEBUG=1`` (unoptimised build with assertions and symbols), ``JKOFLOW_VERSION_TAG`` (what is
added to the version, such as ``+cu130``).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

CMAKE_READS = ("TORCH_CUDA_ARCH_LIST", "CUDAARCHS", "CUDACXX")
"""Environment variables that CMake and CMakeLists.txt read themselves."""


class CMakeBuild(build_ext):
    """The build command, which configures with Ninja, builds and copies the module to where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Builds one extension; the build folder is kept, so that a second build is incremental."""
        build_type = "Debug" if os.environ.get("DEBUG", "0") not in ("", "0") else "Release"
        extra = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        if cuda := os.environ.get("JKOFLOW_CUDA"):
            extra.append(f"-DJKOFLOW_CUDA={cuda}")
        # CMake remembers its arguments, so builds with different ones get different folders.
        identity = shlex.join(extra + [f"{name}={os.environ[name]}" for name in CMAKE_READS if name in os.environ])
        suffix = f"-{zlib.crc32(identity.encode()):08x}" if identity else ""
        folder = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{build_type.lower()}{suffix}"
        _remove_if_moved(folder)
        pybind11 = subprocess.check_output([sys.executable, "-m", "pybind11", "--cmakedir"], text=True).strip()
        # Paths of the build environment are passed on every run: pip's isolated ones change and the cached are gone.
        configure = [
            _tool("cmake"),
            *("-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={build_type}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11}",
            *extra,
        ]
        build = [_tool("cmake"), "--build", str(folder), "--target", "_C"]
        if jobs := os.environ.get("MAX_JOBS"):
            build += ["--parallel", jobs]
        for command in (configure, build):
            try:
                subprocess.run(command, check=True)
            except subprocess.CalledProcessError as error:
                # The traceback would hide the compiler's message, which stands just above.
                raise SystemExit(f"jkoflow: {shlex.join(command)} failed with status {error.returncode}") from None
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)  # a running process may have the old one mapped
        shutil.copy2(folder / output.name, output)
        for library in folder.glob("libgomp.so.*"):  # with JKOFLOW_BUNDLE_OPENMP
            shutil.copy2(library, output.parent)


def _tool(name: str) -> str:
    # The interpreter's own folder comes last: an isolated build has its tools on PATH.
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        raise SystemExit(
            f"jkoflow: {name} was not found; build with isolation (plain `pip install .`) or `pip install {name}`"
        )
    return path


def _remove_if_moved(folder: Path) -> None:
    """Removes a build folder that was configured at another place, since CMake refuses it."""
    cache = folder / "CMakeCache.txt"
    if cache.is_file() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text(errors="replace"):
        shutil.rmtree(folder)


setup(
    ext_modules=[Extension("jkoflow._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    options={"egg_info": {"tag_build": os.environ.get("JKOFLOW_VERSION_TAG", "")}},
)
