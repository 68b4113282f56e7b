"""One HTML page that needs nothing else: elements as strings, pictures as data, the style sheet within."""

from __future__ import annotations

import base64
import html
import io
import mimetypes
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --page: #fdfdfc; --ink: #1c1c1a; --soft: #6a6a64; --rule: #e3e2dc; --track: #efeee9;
  --policy: #2463c9; --control: #bd5a1f; --random: #8b8b84; --blend: multiply; --invert: none; }
@media (prefers-color-scheme: dark) { :root { --page: #171716; --ink: #ececea; --soft: #a0a099; --rule: #343431;
  --track: #2a2a28; --policy: #79acff; --control: #f09a62; --random: #8f8f88; --blend: screen;
  --invert: invert(1) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
main { max-width: 60rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.1rem; margin: 0 0 .3rem; padding-top: 1.4rem; border-top: 1px solid var(--rule); }
section { margin-top: 2.6rem; } p { max-width: 46rem; margin: .4rem 0 1rem; } .soft, figcaption { color: var(--soft); }
code { font: .86em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .38rem 1.1rem .38rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 500; color: var(--soft); font-size: .87rem; } td.number, th.number { text-align: right;
  white-space: nowrap; } td:first-child { white-space: nowrap; } table.facts { width: auto; }
tr.total td { font-weight: 600; } td:last-child, th:last-child { padding-right: 0; } td.wide { width: 26%; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1px; margin: 1.6rem 0 0;
  background: var(--rule); border: 1px solid var(--rule); border-radius: 8px; overflow: hidden; }
.tile { background: var(--page); padding: 1rem 1.1rem; } .tile b { display: block; font-size: 1.9rem; line-height: 1.2;
  font-weight: 600; } .tile span { display: block; font-size: .87rem; color: var(--soft); }
.policy { color: var(--policy); } .control { color: var(--control); } .random { color: var(--random); }
.track { position: relative; height: .62rem; margin: .42rem 0; background: var(--track); border-radius: 3px; }
.track i { position: absolute; top: 0; bottom: 0; border-radius: 3px; background: currentColor; }
.track .interval { opacity: .3; } .track .rate { width: 3px; margin-left: -1.5px; top: -3px; bottom: -3px; }
figure { margin: 1rem 0 1.4rem; break-inside: avoid; } figure img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: .87rem; margin-top: .3rem; } .plot { mix-blend-mode: var(--blend); filter: var(--invert); }
.plot { width: 100%; }
.narrow { max-width: 32rem; } .strip { max-height: 7.1rem; border-radius: 4px; }
.films { display: flex; flex-wrap: wrap; gap: .8rem; }
.films figure { width: 9rem; margin: .6rem 0; } .films img { width: 100%; border-radius: 4px; }
.missing { border: 1px dashed var(--rule); border-radius: 8px; padding: .8rem 1rem; color: var(--soft); }
.missing code { color: var(--ink); } details { margin-top: 1rem; } summary { cursor: pointer; color: var(--soft); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: .8rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
@media print { body { font-size: 10pt; } main { max-width: none; padding: 0; } section { margin-top: 1.4rem; }
  .films { display: none; } tr, .tiles, .missing { break-inside: avoid; } h2 { break-after: avoid; } }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Returns the document; parts are HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Returns words of ours or of a file as HTML."""
    return html.escape(str(value))


def section(title: str, *parts: str) -> str:
    """Returns a section under a heading."""
    return f"<section>\n<h2>{text(title)}</h2>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def paragraph(words: str, style: str = "") -> str:
    """Returns a paragraph of plain words."""
    return f'<p class="{style}">{text(words)}</p>' if style else f"<p>{text(words)}</p>"


def missing(what: str, command: str) -> str:
    """Returns the box that stands where a file was not given: what it would show, and what makes it."""
    return f'<div class="missing">Missing: {text(what)}. This makes it:<br><code>{text(command)}</code></div>'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = (), total: bool = False
) -> str:
    """Returns a table.

    Args:
      head: words above the columns.
      rows: cells, HTML already.
      numbers: columns to align at the right.
      total: whether the last row sums up the others.
    """
    listed = [list(row) for row in rows]
    lines = [_row("th", [text(word) for word in head], numbers, "")]
    for i, row in enumerate(listed):
        lines.append(_row("td", row, numbers, "total" if total and i == len(listed) - 1 else ""))
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _row(tag: str, cells: Sequence[str], numbers: Sequence[int], style: str) -> str:
    made = []
    for i, cell in enumerate(cells):
        kind = "number" if i in numbers else "wide" if 'class="track' in cell else ""
        made.append(f'<{tag} class="{kind}">{cell}</{tag}>' if kind else f"<{tag}>{cell}</{tag}>")
    return (f'<tr class="{style}">' if style else "<tr>") + "".join(made) + "</tr>"


def track(rate: float, low: float, high: float, style: str) -> str:
    """Returns a line from 0 to 1 with a rate and its interval on it."""
    return (
        f'<div class="track {style}"><i class="interval" style="left:{low:.2%};width:{high - low:.2%}"></i>'
        f'<i class="rate" style="left:{rate:.2%}"></i></div>'
    )


def tile(value: str, label: str, note: str, style: str) -> str:
    """Returns a large number with words below it."""
    return f'<div class="tile"><b class="{style}">{text(value)}</b>{text(label)}<span>{text(note)}</span></div>'


def picture(path: pathlib.Path, caption: str, style: str) -> str:
    """Returns a picture of a file, as data, with its caption."""
    kind = mimetypes.guess_type(path.name)[0] or f"image/{path.suffix[1:]}"
    return _figure(_data(kind, path.read_bytes()), caption, style)


def drawing(figure: Figure, caption: str) -> str:
    """Returns a matplotlib figure as vectors."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return _figure(_data("image/svg+xml", stream.getvalue()), caption, "plot")


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _figure(source: str, caption: str, style: str) -> str:
    words = text(caption)
    return f'<figure><img class="{style}" src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def facts(values: Mapping[str, object]) -> str:
    """Returns names and values as a table without a head."""
    rows = "\n".join(f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in values.items())
    return f'<div class="scroll"><table class="facts">\n{rows}\n</table></div>'


def folded(label: str, content: str) -> str:
    """Returns text that a reader may unfold."""
    return f"<details><summary>{text(label)}</summary><pre>{text(content)}</pre></details>"
