"""Pins, hashes and licences of what is installed, and the absence of connections."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import licences
import pins
import pytest

ROOT = Path(__file__).parent.parent
TEXT = pins.CONSTRAINTS.read_text()


def names_of(requirements):
    """The packages that requirements ask for, without those of the project's own extras."""
    return {pins.canonical(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements} - {"jkoflow"}


def test_every_requirement_is_pinned_with_a_hash():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = names_of(project["build-system"]["requires"]) | names_of(project["project"]["dependencies"])
    for requirements in project["project"]["optional-dependencies"].values():
        wanted |= names_of(requirements)
    lines = list(pins.requirements(TEXT, set()))
    assert wanted <= {pins.canonical(line.split("==")[0]) for line in lines}
    assert all("--hash=sha256:" in line for line in lines)


def test_sections_can_be_left_out():
    run_time = list(pins.requirements(TEXT, set(pins.sections(TEXT)) - {"run time"}))
    assert any(line.startswith("torch==") for line in run_time)
    assert not any(line.startswith(("pytest==", "jax==")) for line in run_time)
    with pytest.raises(ValueError, match="no section benches, only run time, "):
        list(pins.requirements(TEXT, {"benches"}))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("numpy>=2", "line 2 of constraints.txt is no pin: numpy>=2"),
        ("numpy==2.0  # sha256:12", "line 2 of constraints.txt is no pin"),
        ("numpy==2.0", "has no hash for numpy"),
    ],
)
def test_what_is_no_pin_is_told(line, says):
    with pytest.raises(ValueError, match=says):
        list(pins.requirements(f"# run time\n{line}\n", set()))


def test_renewed_hashes_come_before_those_of_other_files(monkeypatch):
    asked = []

    def hashes_of(wanted):
        asked.extend(wanted)
        return {"ruamel-yaml": f"sha256:{'a' * 64}"}

    monkeypatch.setattr(pins, "hashes_of", hashes_of)
    before = f"# lint\nruamel.yaml==0.19.1  # sha256:{'b' * 64}\n"
    assert pins.renewed(before) == f"# lint\nruamel.yaml==0.19.1  # sha256:{'a' * 64} sha256:{'b' * 64}\n"
    assert asked == ["ruamel.yaml==0.19.1"]


def test_the_command_prints_what_pip_reads():
    command = [sys.executable, ROOT / "scripts" / "pins.py", "--without", "bench"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert printed == list(pins.requirements(TEXT, {"bench"}))


def test_every_pinned_package_has_its_licence_on_the_page():
    listed = re.findall(r"^\| (\S+) \| (.+) \|$", licences.PAGE.read_text(), re.MULTILINE)
    pinned = [pin["name"] for section in pins.sections(TEXT).values() for pin in section]
    assert [name for name, _ in listed if name not in ("package", "---")] == pinned
    assert not any(licence in ("", "none named") for _, licence in listed)


def test_the_package_opens_no_connection():
    network = {"socket", "ssl", "http", "urllib", "urllib3", "requests", "httpx", "aiohttp", "ftplib", "smtplib"}
    for path in (ROOT / "jkoflow").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            assert not network & {name.split(".")[0] for name in names}, path
