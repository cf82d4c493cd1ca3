"""Pins of constraints.txt with hashes: prints them for `pip install --require-hashes`, and renews the hashes.

    python scripts/pins.py --without bench > pins.txt && pip install --no-deps --require-hashes -r pins.txt
    python scripts/pins.py --renew

pip takes no hashes from a constraints file without asking for one of everything, so they stand in comments there:
those of the files that pip takes on Linux for x86-64 and the Python of continuous integration. Where pip takes other
files, `make` installs the same versions without hashes.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
PIN = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>\S+)(?:  # (?P<hashes>sha256:[0-9a-f]{64}(?: sha256:[0-9a-f]{64})*))?"
)
SECTION = re.compile(r"# (?P<name>[a-z ]+)(?:: .*)?")


def sections(text: str) -> dict[str, list[re.Match[str]]]:
    """The pins of each section.

    Raises:
        ValueError: If a line is neither blank, a comment nor a pin.
    """
    found: dict[str, list[re.Match[str]]] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if title := SECTION.fullmatch(line):
            section = title["name"]
        elif line.strip() and not line.startswith("#"):
            if (pin := PIN.fullmatch(line)) is None:
                raise ValueError(f"line {number} of constraints.txt is no pin: {line}")
            found.setdefault(section, []).append(pin)
    return found


def requirements(text: str, without: set[str]) -> Iterator[str]:
    """Yields each pin outside the sections to leave out, with its hashes as pip reads them.

    Raises:
        ValueError: If a pin has no hash, or there is no such section.
    """
    found = sections(text)
    if unknown := without - set(found):
        there = ", ".join(found)
        raise ValueError(f"constraints.txt has no section {', '.join(sorted(unknown))}, only {there}")
    for pin in (pin for section, pins in found.items() if section not in without for pin in pins):
        if pin["hashes"] is None:
            raise ValueError(f"constraints.txt has no hash for {pin['name']}: python scripts/pins.py --renew finds it")
        yield " ".join([f"{pin['name']}=={pin['version']}", *(f"--hash={each}" for each in pin["hashes"].split())])


def canonical(name: str) -> str:
    """The name as pip compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def hashes_of(pins: list[str]) -> dict[str, str]:
    """Asks pip which file it takes for each pin; returns their hashes by canonical name."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write("\n".join(pins))
        wanted.flush()
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
        report = subprocess.run([*pip, "--report", "-", "-r", wanted.name], check=True, stdout=subprocess.PIPE).stdout
    return {
        canonical(taken["metadata"]["name"]): f"sha256:{taken['download_info']['archive_info']['hashes']['sha256']}"
        for taken in json.loads(report)["install"]
    }


def renewed(text: str) -> str:
    """The text with the hash that pip finds for each pin, before those of other files that stood there already."""
    found = hashes_of([f"{pin['name']}=={pin['version']}" for pins in sections(text).values() for pin in pins])

    def line_of(line: str) -> str:
        if (pin := PIN.fullmatch(line)) is None:
            return line
        hashes = dict.fromkeys([found[canonical(pin["name"])], *(pin["hashes"] or "").split()])
        return f"{pin['name']}=={pin['version']}  # {' '.join(hashes)}"

    return "\n".join(map(line_of, text.splitlines())) + "\n"


def main() -> None:
    """Prints requirements, or rewrites constraints.txt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", action="append", default=[], metavar="SECTION", help="leave out a section")
    parser.add_argument("--renew", action="store_true", help="write the hashes of what pip takes here")
    arguments = parser.parse_args()
    text = CONSTRAINTS.read_text()
    if arguments.renew:
        CONSTRAINTS.write_text(renewed(text))
        return
    try:
        print("\n".join(requirements(text, set(arguments.without))))
    except ValueError as error:
        raise SystemExit(f"{parser.prog}: {error}") from None


if __name__ == "__main__":
    main()
