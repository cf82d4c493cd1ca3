"""Runs torchdiffeq's own tests with the functions of `jkoflow.interop.torchdiffeq` in the place of torchdiffeq's.

    python scripts/torchdiffeq_suite.py CHECKOUT            # of the version that is installed
    python scripts/torchdiffeq_suite.py CHECKOUT --itself   # torchdiffeq as it is, to compare with

Exits with 1 if a test fails.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import unittest
from pathlib import Path

import torchdiffeq

from jkoflow.interop import torchdiffeq as ours

FILES = ("api_tests", "event_tests", "gradient_tests", "norm_tests", "odeint_tests")


def main() -> int:
    """Runs the tests and prints how many have passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of torchdiffeq's sources, with its tests")
    parser.add_argument("--itself", action="store_true", help="leave torchdiffeq in its place")
    arguments = parser.parse_args()
    folder = arguments.checkout / "tests"
    if not (folder / f"{FILES[0]}.py").is_file():
        parser.error(f"{folder} must hold {FILES[0]}.py; give the folder of a checkout of torchdiffeq")
    sys.path.insert(0, str(folder))
    suite = unittest.TestSuite()
    for name in FILES:
        module = importlib.import_module(name)
        vars(module)["torchdiffeq"] = torchdiffeq if arguments.itself else ours
        suite.addTests(unittest.defaultTestLoader.loadTestsFromModule(module))
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    whose = "torchdiffeq" if arguments.itself else "jkoflow.interop.torchdiffeq"
    failed = len(result.failures) + len(result.errors)
    print(f"{whose}, torchdiffeq {torchdiffeq.__version__}: {result.testsRun} tests, {failed} failures and errors")
    return int(not result.wasSuccessful())


if __name__ == "__main__":
    sys.exit(main())
