"""Imports point one way, every module has a layer and a moderate length, and `import jkoflow` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jkoflow

PACKAGE = Path(jkoflow.__file__).parent
REPOSITORY = PACKAGE.parent

# A module may import only from modules before it (and, in a sub-package, from its own). A new module belongs here,
# right after the last one that it imports.
LAYERS = [
    "_version",
    "_startup",
    "errors",
    "mapped",
    "memory_limit",
    "float64",
    "callers",
    "former_names",
    "activation",
    "velocity",
    "_C",  # the compiled kernels
    "ops",
    "checkpoint",
    "restore",
    "saved",
    "discrete",
    "schedule",
    "block",
    "standardize",
    "links",
    "spline",
    "masses",
    "knots",
    "gain",
    "initial_map",
    "optional",
    "frames",
    "arrays",
    "inputs",
    "tolerance",
    "composition",
    "log_densities",
    "within",
    "density",
    "distribution",
    "flow",
    "in_parts",
    "data",
    "left_out",
    "metrics",
    "quadrature",
    "table_rows",
    "table_flow",
    "exporting",
    "surprise",
    "two_sample",
    "environment",
    "training",
    "interop",
    "images",
    "experiments",
    "report",
    "bench",
    "cli",
    "__main__",
]


def module_of(path: Path) -> str:
    """The dotted name below jkoflow: ``ops.reference``, ``ops`` for ops/__init__.py, empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, is_package: bool) -> list[str]:
    """Full names of everything imported anywhere in the source, inside functions too."""
    package = ["jkoflow", *module.split(".")] if module else ["jkoflow"]
    if not is_package:
        package.pop()
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What breaks the rules, one line each."""
    layer = module.split(".")[0]
    if layer and layer not in LAYERS:
        return [f"jkoflow.{layer} has no layer: add it to LAYERS in tests/test_layers.py, after the last it imports"]
    found = []
    tree = ast.parse(source)
    for name in imports(tree, module, is_package):
        root, target = [*name.split("."), ""][:2]
        if root == "jkoflow" and layer not in ("", "cli", "__main__") and not is_module(target):
            found.append(f"{module} imports {name} from the package itself: import it from the module that defines it")
        elif root == "jkoflow" and layer and target in LAYERS and LAYERS.index(target) > LAYERS.index(layer):
            found.append(f"{module} imports {name}, which comes later in LAYERS")
        elif layer == "ops" and (root, target) == ("torch", "nn"):
            found.append(f"{module} imports {name}: ops works on plain tensors")
    if layer == "ops":
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.nn":
                found.append(f"{module} uses torch.nn: ops works on plain tensors")
    return found


def is_module(name: str) -> bool:
    return name != "" and (name in LAYERS or (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name).is_dir())


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: module_of(path) or "jkoflow")
def test_imports_point_one_way(path):
    assert violations(path.read_text(), module_of(path), path.name == "__init__.py") == []


COMPILED = ["_C"]  # has a layer and no Python source


def unmatched(layers, modules):
    """What is in one of the lists alone, or twice in a list, one line each."""
    rooms, known = {module.split(".")[0] for module in modules if module} | set(COMPILED), set(layers)
    return [
        *(f"{name} is missing in LAYERS: add it after the last it imports" for name in sorted(rooms - known)),
        *(f"{name} in LAYERS is no module of jkoflow any more: remove it" for name in sorted(known - rooms)),
        *(f"{name} stands in LAYERS twice" for name in sorted(known) if layers.count(name) > 1),
    ]


def test_every_module_has_a_layer_and_every_layer_a_module():
    assert unmatched(LAYERS, [module_of(path) for path in SOURCES]) == []


@pytest.mark.parametrize(
    ("layers", "modules", "found"),
    [
        (["_C", "ops", "flow"], ["", "ops", "ops.native", "flow"], []),
        (["_C", "ops"], ["ops", "flow"], ["flow is missing in LAYERS: add it after the last it imports"]),
        (["_C", "ops", "flow"], ["ops"], ["flow in LAYERS is no module of jkoflow any more: remove it"]),
        (["ops"], ["ops"], ["_C is missing in LAYERS: add it after the last it imports"]),
        (["_C", "ops", "ops"], ["ops"], ["ops stands in LAYERS twice"]),
    ],
)
def test_the_check_of_the_layers_itself(layers, modules, found):
    assert unmatched(layers, modules) == found


LONGEST = 400  # lines of a module


def too_long(folder):
    """Sources of Python, C++, CUDA, CMake and shell below a folder that have more lines, one line each."""
    kinds = {".py", ".cpp", ".h", ".cu", ".cuh", ".cmake", ".sh"}
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted(folder.rglob("*"))
        if path.suffix in kinds and path.is_file()
    }
    return [
        f"{path.relative_to(folder.parent)} has {lines} lines, more than {LONGEST}: split it"
        for path, lines in lengths.items()
        if lines > LONGEST
    ]


@pytest.mark.parametrize("folder", ["jkoflow", "csrc", "benchmarks", "scripts"])
def test_no_module_is_too_long(folder):
    assert (REPOSITORY / folder).is_dir()
    assert too_long(REPOSITORY / folder) == []


def test_the_check_of_the_lengths_itself(tmp_path):
    (tmp_path / "deep/er").mkdir(parents=True)
    for name, lines in (("fine.py", 400), ("deep/long.py", 401), ("deep/er/long.cuh", 500), ("table.json", 9999)):
        (tmp_path / name).write_text("x\n" * lines)
    root = tmp_path.name
    assert too_long(tmp_path) == [
        f"{root}/deep/er/long.cuh has 500 lines, more than 400: split it",
        f"{root}/deep/long.py has 401 lines, more than 400: split it",
    ]


@pytest.mark.parametrize(
    ("source", "module", "message"),
    [
        ("from jkoflow.block import Block", "velocity", "comes later"),
        ("import jkoflow.flow", "block", "comes later"),
        ("from jkoflow import checkpoint", "ops.native", "comes later"),
        ("def f():\n    from ..flow import JKOFlow", "ops.native", "comes later"),
        ("from . import flow", "block", "comes later"),
        ("from jkoflow import JKOFlow", "training", "from the package itself"),
        ("import jkoflow", "training", "from the package itself"),
        ("from torch import nn", "ops.reference", "plain tensors"),
        ("from torch.nn import functional", "ops", "plain tensors"),
        ("import torch\nx = torch.nn.Linear(1, 1)", "ops.native", "plain tensors"),
        ("", "novelty", "jkoflow.novelty has no layer: add it to LAYERS"),
    ],
)
def test_the_check_itself_notices(source, module, message):
    assert message in violations(source, module)[0]


def test_the_check_itself_allows():
    assert violations("from jkoflow.ops import integrate\nfrom torch import nn", "block") == []
    assert violations("from .tableau import TABLEAUX\nfrom jkoflow.velocity import MLPField", "ops.reference") == []
    assert violations("from jkoflow.ops import native, reference", "ops", is_package=True) == []


def test_import_stays_light():
    optional = [
        "matplotlib",
        "pandas",
        "typer",
        "rich",
        "pyarrow",
        "scipy",
        "torchdiffeq",
        "sklearn",
        "h5py",
        "astropy",
        "pyro",
        "zuko",
        "lampe",
        "torch._dynamo",
        "torch._inductor",
        "tensorboard",
    ]
    code = f"import jkoflow, sys; print([name for name in {optional} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert result.stdout.strip() == "[]"
    assert result.stderr == ""
