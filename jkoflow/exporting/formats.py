"""The formats of artefacts: how a program is written to a file, and loaded again without the package."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jkoflow.exporting.errors import ExportError
from jkoflow.optional import require

ABOUT = "jkoflow.json"
"""Name of the description in a torch-export archive."""

LEAST_TORCH = (2, 9)
"""The first version of PyTorch whose loops all formats can hold."""

Program = Any
"""A `torch.export.ExportedProgram`, whose module is not imported before it is asked for."""

Run = Callable[..., tuple[Tensor, ...]]
"""A loaded artefact: results of x, or of x and context."""


class Format(ABC):
    """A format of artefacts."""

    suffix: str
    """End of the names of its files."""

    def check(self) -> None:
        """Looks for what writing needs, before anything is computed for it.

        Raises:
            ExportError: If something is missing.
        """
        version = torch.__version__.partition("+")[0]
        numbers = tuple(int(part) for part in version.split(".")[:2])
        if numbers < LEAST_TORCH:
            least = ".".join(map(str, LEAST_TORCH))
            raise ExportError(f"an export needs torch {least} or newer, this is {version}; upgrade torch")

    @abstractmethod
    def write(self, program: Program, about: Mapping[str, str], outputs: tuple[str, ...], path: Path) -> None:
        """Writes a program with its description, and the names of its results."""

    @abstractmethod
    def load(self, path: Path) -> Run:
        """Loads what `write` has written, by the library that runs it."""


class TorchExport(Format):
    """The archive of `torch.export.save`, which PyTorch runs operation by operation or compiles again."""

    suffix = ".pt2"

    def write(self, program: Program, about: Mapping[str, str], outputs: tuple[str, ...], path: Path) -> None:
        """Writes the archive, with the description as an extra file."""
        torch.export.save(program, path, extra_files={ABOUT: json.dumps(about, indent=2)})

    def load(self, path: Path) -> Run:
        """Loads the archive."""
        return torch.export.load(path).module()


class AOTInductor(Format):
    """The package of AOTInductor: a library compiled for this machine's processor, which C++ runs, too."""

    suffix = ".pt2"

    def check(self) -> None:
        """Looks for a C++ compiler, too."""
        super().check()
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise ExportError(
                "--format aoti needs a C++ compiler, and there is none on PATH; install g++, name another one in the "
                "environment variable CXX, or use --format torch-export"
            ) from None

    def write(self, program: Program, about: Mapping[str, str], outputs: tuple[str, ...], path: Path) -> None:
        """Compiles the program; the description is the package's metadata."""
        from torch._inductor import aoti_compile_and_package
        from torch._inductor.exc import CppCompileError

        settings = {
            "aot_inductor.metadata": dict(about),
            "cpp.dynamic_threads": True,  # as many as the process that runs it has, not as this one
        }
        try:
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
        except Exception as error:
            if not isinstance(_root(error), CppCompileError):
                raise
            raise ExportError(
                f"the C++ compiler failed ({str(_root(error)).strip().splitlines()[-1]}); name another one in the "
                "environment variable CXX, or use --format torch-export"
            ) from error

    def load(self, path: Path) -> Run:
        """Loads the package, which unpacks its library and opens it; the library takes rows to be contiguous."""
        run = torch._inductor.aoti_load_package(str(path))
        return lambda *inputs: tuple(run(*(rows.contiguous() for rows in inputs)))


class ONNX(Format):
    """A model of ONNX, which ONNX Runtime runs."""

    suffix = ".onnx"

    def check(self) -> None:
        """Looks for the packages of the extra, too."""
        super().check()
        for module in ("onnx", "onnxscript", "onnxruntime"):
            require(module, "--format onnx", "onnx")

    def write(self, program: Program, about: Mapping[str, str], outputs: tuple[str, ...], path: Path) -> None:
        """Writes the model with its numbers in one file; the description is the model's metadata."""
        from jkoflow.exporting.onnx_operators import translations

        found = torch.onnx.export(
            program, dynamo=True, verbose=False, output_names=list(outputs), custom_translation_table=translations()
        )
        assert found is not None
        found.model.metadata_props.update(about)
        found.save(path, external_data=False)

    def load(self, path: Path) -> Run:
        """Loads the model into a session on the CPU."""
        session = require("onnxruntime", "--format onnx", "onnx").InferenceSession(
            str(path), providers=["CPUExecutionProvider"]
        )
        names = [given.name for given in session.get_inputs()]

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
            return tuple(torch.from_numpy(value) for value in session.run(None, given))

        return run


FORMATS: dict[str, Format] = {"torch-export": TorchExport(), "aoti": AOTInductor(), "onnx": ONNX()}
"""The formats by name."""


def _root(error: BaseException) -> BaseException:
    """Returns the error that others have come of."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return error
