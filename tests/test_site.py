"""The documentation's links lead somewhere, its command lines are those of the programs, its names exist.

`make site` builds the pages themselves: it runs the notebooks, and finds what Sphinx warns of.
"""

import importlib
import re
import tomllib

import pytest
import yaml
from torch.distributed.run import get_args_parser
from typer.main import get_command

import jkoflow
from documents import PAGES, ROOT, anchors, blocks, command_lines, links, mentioned_commands, spans
from jkoflow.cli.commands import app

DOCS = ROOT / "docs"
on_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@on_every_page
def test_links_lead_somewhere(page):
    for link in links(page.read_text()):
        path, _, anchor = link.partition("#")
        target = page if not path else DOCS / path[1:] if path.startswith("/") else page.parent / path
        assert target.exists(), f"{link} is not there"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text()), f"{link}: {target.name} has no such heading"


def test_every_page_is_in_the_contents_of_the_site():
    """Pages of docs itself are taken by a pattern; those of its folders are named."""
    contents = [block.text for block in blocks((DOCS / "index.md").read_text()) if block.language == "{toctree}"]
    named = {line for text in contents for line in text.splitlines()}
    assert {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.glob("*/*.md")} <= named
    assert "*" in named


def test_the_reference_has_all_public_names():
    text = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    documented = {name.rpartition(".")[2] for name in re.findall(r"auto(?:function|class|exception):: ([\w.]+)", text)}
    assert set(jkoflow.__all__) - {"__version__"} <= documented


def test_blocks_of_the_site_have_a_language():
    """What has none is neither run nor parsed by anything."""
    for page in DOCS.rglob("*.md"):
        for block in blocks(page.read_text()):
            assert block.language, f"{page.name}, line {block.line}: say sh, python or text"


PLACEHOLDERS = re.compile(r"[A-Z]")
COMMAND = get_command(app)


def refused_by_jkoflow(words):
    """Returns why the command line refuses some words, and whether it is only that an argument is missing."""
    words = ["1" if PLACEHOLDERS.fullmatch(word) else word for word in words]
    group = COMMAND.make_context("jkoflow", list(words), resilient_parsing=True)  # installs no completion
    group.resilient_parsing = False
    if not words or words[0].startswith("-"):
        return None, False
    name, command, arguments = COMMAND.resolve_command(group, words)
    try:
        command.make_context(name, arguments, parent=group)
    except Exception as error:
        if type(error).__name__ == "Exit":  # --help
            return None, False
        is_incomplete = type(error).__name__ == "MissingParameter" or str(error).endswith("requires an argument.")
        return str(error), is_incomplete
    return None, False


def refused_by_torchrun(words):
    if "-m" not in words:
        get_args_parser().parse_args([*words, "-m", "jkoflow"])
        return "it does not say which program", True
    parsed = get_args_parser().parse_args(words)
    assert (parsed.module, parsed.training_script) == (True, "jkoflow"), words
    return refused_by_jkoflow(parsed.training_script_args)


def refused_by_make(words):
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, _ = word.partition("=")
        if is_variable and not re.search(rf"\b{name}\b", makefile):
            return f"Makefile has no variable {name}", False
        if not is_variable and not re.search(rf"^{re.escape(name)}:", makefile, re.MULTILINE):
            return f"Makefile has no target {name}", False
    return None, False


def refused_by_python(words):
    if words[:2] == ["-m", "jkoflow"]:
        return refused_by_jkoflow(words[2:])
    script = ROOT / words[0]
    if not script.is_file():
        return f"{words[0]} is not there", False
    parsers = [script, ROOT / "benchmarks/fixed_budget/cli.py"] if script.name == "compare.py" else [script]
    text = "".join(path.read_text() for path in parsers)
    unknown = [word for word in words if re.match(r"--[\w-]+(=|$)", word) and f'"{word.partition("=")[0]}"' not in text]
    return (f"{words[0]} has no option {', '.join(unknown)}" if unknown else None), False


REFUSED_BY = {"jkoflow": refused_by_jkoflow, "torchrun": refused_by_torchrun, "make": refused_by_make}


def refused(words):
    return REFUSED_BY.get(words[0], refused_by_python)(words[1:])


@on_every_page
def test_command_lines_are_understood(page):
    for words in command_lines(page.read_text()):
        why, _ = refused(words)
        assert why is None, f"{' '.join(words)}: {why}"


@on_every_page
def test_commands_in_the_text_are_understood_but_for_what_they_leave_out(page):
    for words in mentioned_commands(page.read_text()):
        why, is_incomplete = refused(words)
        assert why is None or is_incomplete, f"{' '.join(words)}: {why}"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("jkoflow train DATA --out RUN --time-budgets 3", "No such option"),
        ("jkoflow trian DATA", "No such command"),
        ("jkoflow score RUN FILE", "Missing parameter"),
        ("jkoflow train DATA --blocks many", "valid integer"),
        ("torchrun --nproc-per-node 4 -m jkoflow train DATA --outt RUN", "No such option"),
        ("make demos", "Makefile has no target demos"),
        ("make test PYTEST_ARG=-x", "Makefile has no variable PYTEST_ARG"),
        ("python benchmarks/none.py", "benchmarks/none.py is not there"),
        ("python benchmarks/work_precision.py --fast", "has no option --fast"),
        ("python -m jkoflow doctor --jsn", "No such option"),
    ],
)
def test_the_check_of_command_lines_itself(line, says):
    (words,) = command_lines(f"Text:\n\n    {line}\n")
    assert words == line.split()
    try:
        why, _ = refused(words)
    except Exception as error:  # of an unknown command
        why = str(error)
    assert why is not None
    assert says in why


def test_the_reading_of_pages_itself():
    page = (
        "# One `two`\n\n[a](b.md#c), `[x](y)`, [d](https://e)\n\n"
        "```sh\n# no heading\njkoflow x  # y\n```\n\n    $ make a B=c | cat\n"
    )
    assert links(page) == ["b.md#c"]
    assert anchors(page) == {"one-two"}
    assert command_lines(page) == [["jkoflow", "x"], ["make", "a", "B=c"]]
    assert [(block.line, block.language) for block in blocks(page)] == [(5, "sh"), (10, "")]
    assert mentioned_commands("Call `make test`, `jkoflow` or `jkoflow a`.") == [["make", "test"], ["jkoflow", "a"]]


NO_NAMES = {"jkoflow.score", "jkoflow.json"}
"""What looks like a name of Python: a key in the metadata of a scored file, and one in those of an exported flow."""


def stands_for_something(name):
    module, attributes = name, []
    while module:
        try:
            thing = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            attributes.insert(0, last)
    else:
        return False
    for attribute in attributes:
        if not hasattr(thing, attribute):
            return False
        thing = getattr(thing, attribute)
    return True


@on_every_page
def test_names_of_the_package_exist(page):
    if page.name in ("CHANGELOG.md", "migrating.md"):
        pytest.skip("it names what there was")
    text = page.read_text()
    code = [*spans(text), *(block.text for block in blocks(text))]
    names = {name for piece in code for name in re.findall(r"(?<![\w./-])jkoflow(?:\.[A-Za-z_]\w*)+", piece)}
    unknown = {name for name in names - NO_NAMES if not stands_for_something(name)}
    assert not unknown


@on_every_page
def test_extras_exist(page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for names in re.findall(r"jkoflow\[([\w,]+)\]", page.read_text()):
        assert set(names.split(",")) <= set(extras)


PICTURES = sorted(path for path in DOCS.rglob("*") if path.suffix in (".png", ".svg", ".webp"))


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_pictures_are_made_by_scripts(picture):
    scripts = [*DOCS.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    assert any(picture.name in script.read_text() for script in scripts), "no script names it"
    assert picture.stat().st_size < 500_000


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == jkoflow.__version__
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
