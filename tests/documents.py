"""What the documentation says that can be checked: its blocks of code, its command lines, its links."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


class Block(NamedTuple):
    """A block of code of a page: fenced, of a language, or indented, of none."""

    line: int
    language: str
    text: str


def blocks(text):
    """Returns the blocks of code of a page in Markdown."""
    lines = [*text.splitlines(), ""]
    found, number = [], 0
    while number < len(lines):
        fence = re.match(r"( *)(`{3,}|:{3,})(.*)", lines[number])
        begin = number
        if fence:
            number = next((at for at in range(begin + 1, len(lines)) if lines[at].strip() == fence[2]), len(lines) - 1)
            body = [line.removeprefix(fence[1]) for line in lines[begin + 1 : number]]
            found.append(Block(begin + 1, fence[3].strip(), "\n".join(body) + "\n"))
        elif lines[number].startswith("    ") and (number == 0 or not lines[number - 1].strip()):
            while number + 1 < len(lines) and (lines[number + 1].startswith("    ") or not lines[number + 1].strip()):
                number += 1
            body = [line[4:] for line in lines[begin : number + 1]]
            found.append(Block(begin + 1, "", "\n".join(body).rstrip() + "\n"))
        number += 1
    return found


def prose(text):
    """Returns a page without its blocks of code; lines keep their numbers."""
    lines = text.splitlines()
    for block in blocks(text):
        height = block.text.count("\n") + (2 if block.language or lines[block.line - 1].strip()[:3] == "```" else 0)
        lines[block.line - 1 : block.line - 1 + height] = [""] * height
    return "\n".join(lines)


def spans(text):
    """Returns the pieces of code within the text of a page."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(text))


COMMANDS = ("jkoflow", "make", "torchrun", "python", ".venv/bin/python")


def _words(line):
    """Returns the words of a command line without comments, pipes and marks of what may be left out; [] if none is."""
    plain = re.sub(r"[\[\]]|\.\.\.", " ", re.sub(r"\s#.*", "", line.removeprefix("$ ")))
    plain = re.split(r" && | \| |;| >", plain)[0]
    return shlex.split(plain) if plain.split() and plain.split()[0] in COMMANDS else []


def command_lines(text):
    """Returns the command lines in the blocks of a page, as words."""
    shells = [block for block in blocks(text) if not block.language.startswith(("python", "text", "{include}"))]
    lines = [line for block in shells for line in block.text.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := _words(line))]


def mentioned_commands(text):
    """Returns the command lines within the text of a page, which may lack what a command needs."""
    return [words for span in spans(text) if " " in span and (words := _words(span))]


def links(text):
    """Returns the targets of the links and pictures of a page that are no addresses of other sites."""
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "code", prose(text)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(text):
    """Returns the anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
