"""Tries an installed jkoflow with the tests of this checkout that need no compiler and no other libraries.

    python scripts/try_wheel.py CHECKOUT

Run by the interpreter that jkoflow is installed for. Unlike the tests in the checkout it fails without kernels.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

import jkoflow
from jkoflow.environment import describe

TESTS = ("adaptive", "checkpoint", "evaluation", "flow", "general_kernels", "random_cases", "reference", "stages")


def main() -> None:
    """Runs the tests, beside the installed package."""
    checkout = Path(sys.argv[1]).resolve()
    place = Path(jkoflow.__file__).resolve()
    if checkout in place.parents and not place.is_relative_to(sysconfig.get_path("purelib")):
        raise SystemExit(f"jkoflow is taken from the checkout ({place.parent}), not from where it is installed")
    kernels = describe()["kernels"]
    if kernels["cpu"] is not None or not kernels["openmp"]:
        raise SystemExit(f"the wheel has no kernels, or no OpenMP: {kernels}")
    print(f"jkoflow {jkoflow.__version__} in {place.parent}, kernels for {', '.join(kernels['isas'])}", flush=True)
    files = [str(checkout / f"tests/test_{name}.py") for name in TESTS]
    # the program, not `python -m pytest`, which would find the checkout's own package first
    code = "import sys; sys.path[:] = [p for p in sys.path if p]; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", code, "-p", "no:cacheprovider", "-n", "auto", "--dist", "loadfile", *files]
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
