"""The pieces of the report's page: sections, tables, figures and numbers, as HTML that needs nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SCRIPT = Path(__file__).with_name("readings.js").read_text()
"""The page's only script; everything is there without it."""

HINT = (
    '<p class="hint" hidden>Figures tell their values where they are pointed at or touched. With the keyboard: Tab to '
    "a figure, ← → for its values, ↑ ↓ for its panels, Esc to close.</p>"
)


def whole(title: str, header: str, body: Iterable[str]) -> str:
    """Returns a page from its title, which is plain text, its header and its sections, as HTML.

    The page may load nothing, and run no script but its own.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{header}\n"
        + "\n".join(body)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def section(title: str, body: str) -> str:
    """Returns a titled section; ``body`` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def details(title: str, body: str) -> str:
    """Returns a part of the page that opens on a click; ``body`` is HTML."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def pair_table(rows: Iterable[tuple[str, str]]) -> str:
    """Returns a table of names and values, both plain text."""
    body = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f'<div class="scroll"><table class="plain">{body}</table></div>'


def grid_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table with a head; cells are plain text."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(drawing: Figure, alt: str, caption: str) -> str:
    """Returns a figure with its alternative text for those who cannot see it, and its caption, both plain text."""
    return f"<figure>{svg(drawing, alt)}<figcaption>{escape(caption)}</figcaption></figure>"


def picture(png: bytes, alt: str, caption: str) -> str:
    """Returns a picture of few pixels, shown with sharp edges, and its caption; alt and caption are plain text."""
    content = base64.b64encode(png).decode()
    return (
        f'<figure><img class="pixels" alt="{escape(alt)}" src="data:image/png;base64,{content}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def svg(drawing: Figure, alt: str) -> str:
    """Draws the figure as inline SVG in the page's colours; dense panels inside are PNG at twice the pixels.

    Arguments:
        drawing: A figure of `jkoflow.report.figures`.
        alt: Alternative text for readers who cannot see the figure.

    Returns:
        An ``<svg>`` element without outside references, and over it another one of the boxes that tell values.
    """
    import matplotlib

    from jkoflow.report import readings, style

    buffer = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # The page draws the text, with the reader's fonts: glyphs that matplotlib's own lacks are no concern.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "jkoflow"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        drawing.savefig(buffer, format="svg", dpi=200, metadata=metadata, facecolor="none")
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index(">") + 1 :], flags=re.DOTALL)
    for colour, name in (
        (style.INK, "ink"),
        (style.MUTED, "muted"),
        (style.FAINT, "faint"),
        (style.GUARD, "alarm"),
    ):
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r"(font(?:-family)?:[^;\"<>]*?)'[^;\"<>]*", r"\1var(--font)", body)
    # Several figures share one page: their ids must not meet.
    mark = f"{zlib.crc32(body.encode()):08x}-"
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{mark}", body)
    width, height = (72 * float(side) for side in drawing.get_size_inches())
    return (
        f'<div class="scroll"><div class="drawing" style="width:{width / 72 * 100:g}px">'
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {width:g} {height:g}">{body.strip()}'
        f"{readings.overlay(drawing)}</div></div>"
    )


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Returns nested tables as rows with dotted names."""
    rows: list[tuple[str, str]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            rows.append((prefix + name, ", ".join(map(str, value)) or "–"))
        else:
            known = {"True": "yes", "False": "no", "None": "–"}
            rows.append((prefix + name, known.get(str(value), str(value))))
    return rows


def number(value: object, digits: int | None = None) -> str:
    """Returns the text of a number with a true minus sign: ``digits`` decimals, or three significant digits if None."""
    if not isinstance(value, (int, float)):
        return "–"
    text = f"{value:,}" if isinstance(value, int) else _significant(value) if digits is None else f"{value:.{digits}f}"
    mantissa, _, exponent = text.partition("e")
    text = f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}" if exponent else mantissa
    return text.replace("-", "−")


def _significant(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:#.3g}".rstrip(".")


def significant(value: float) -> str:
    """Returns the text of a number with four significant digits, and none that say nothing."""
    if not 1e-3 <= abs(value) < 1e6:
        return number(float(value)) if value else "0"
    return f"{float(f'{value:.4g}'):,}".removesuffix(".0").replace("-", "−")


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def duration(value: float | None) -> str:
    """Returns the text of a time in the unit that suits its length."""
    if value is None:
        return "–"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def count(number: int, noun: str) -> str:
    """Returns the text of a number with its noun, singular or plural."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f5f7f9; --ink: #1f2329; --muted: #626c76; --faint: #d3d9df;
  --alarm: #d1242f; --font: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
@media (prefers-color-scheme: dark) { :root { --page: #12151a; --card: #1b2027; --ink: #e8ebef; --muted: #9aa4ae;
  --faint: #343c45; --alarm: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--font); }
main { max-width: 1228px; margin: 0 auto; padding: 48px 24px 72px; }
.eyebrow { margin: 0; color: var(--muted); font-size: 13px; letter-spacing: .08em; text-transform: uppercase; }
h1 { margin: 4px 0 6px; font-size: 40px; line-height: 1.15; letter-spacing: -.02em; font-weight: 650; }
header > p { margin: 0; color: var(--muted); }
header .eyebrow { margin-bottom: 4px; }
h2 { margin: 56px 0 14px; font-size: 21px; font-weight: 620; letter-spacing: -.01em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px; margin: 28px 0 0; }
.tile { background: var(--card); border-radius: 10px; padding: 14px 18px 15px; }
.tile dt { color: var(--muted); font-size: 13px; }
.tile dd { margin: 2px 0 0; font-size: 29px; line-height: 1.25; font-weight: 600; letter-spacing: -.015em;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile dd small { font-size: 17px; font-weight: 450; color: var(--muted); }
.tile dd.note { font-size: 13px; font-weight: 400; letter-spacing: 0; color: var(--muted); white-space: normal; }
figure { margin: 0 0 28px; }
.drawing { position: relative; max-width: 100%; min-width: 640px; }
.drawing svg { display: block; width: 100%; height: auto; }
.drawing .readings { position: absolute; inset: 0; height: 100%; overflow: visible; }
.readings rect { fill: var(--ink); fill-opacity: 0; }
.readings rect:hover, .readings rect.on { fill-opacity: .16; stroke: var(--ink); stroke-width: .6; }
.readings g:focus { outline: none; }
.tip { position: fixed; z-index: 1; width: max-content; max-width: min(340px, 94vw); padding: 6px 10px;
  border-radius: 6px;
  background: var(--ink); color: var(--page); font-size: 13px; line-height: 1.4; white-space: pre-line;
  pointer-events: none; font-variant-numeric: tabular-nums; }
.hint { margin: 20px 0 -28px; color: var(--muted); font-size: 14px; }
.pixels { display: block; width: 896px; max-width: 100%; image-rendering: pixelated; }
figcaption { margin-top: 10px; max-width: 110ch; color: var(--muted); font-size: 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 18px 7px 0; border-bottom: 1px solid var(--faint); text-align: left; vertical-align: top; }
thead th { color: var(--muted); font-weight: 500; white-space: nowrap; }
.plain th { width: 38%; font-weight: 450; color: var(--muted); }
.plain td { overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 360px), 1fr)); column-gap: 48px; }
details { border-top: 1px solid var(--faint); padding: 10px 0; }
summary { cursor: pointer; color: var(--muted); font-size: 14px; }
details[open] summary { margin-bottom: 8px; }
pre { margin: 0; padding: 18px 20px; border-radius: 10px; background: var(--card); overflow-x: auto; }
code { font: 14px/1.6 var(--mono); }
@media print { details { display: none; } section { break-inside: avoid; } }
"""
