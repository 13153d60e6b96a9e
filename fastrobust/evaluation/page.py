"""The few pieces of HTML the report is made of: a shell with its style sheet, tables, figures, the gallery.

The page asks for nothing: the style sheet, the charts (SVG) and the pictures (data URIs) are all inside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from . import plots
from .examples import Example

CSS = """
:root { color-scheme: light dark;
  --ink: #1f2328; --soft: #59636e; --line: #d9dee3; --page: #ffffff; --card: #f6f8fa;
  --standard: #b8501d; --robust: #1f6fbf; --bad: #c62828; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e8eaed; --soft: #9aa4af; --line: #333a42; --page: #14171a; --card: #1c2025;
  --standard: #f0884e; --robust: #62a9f0; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.1rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
p { max-width: 44rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.standard { color: var(--standard); }
.robust { color: var(--robust); }
.wrong { color: var(--bad); font-weight: 600; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem;
  margin: 1.4rem 0 .8rem; }
.number { background: var(--card); border-radius: 10px; padding: .8rem 1rem; }
.number b { display: block; font-size: 1.75rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.number span { display: block; color: var(--soft); font-size: .85rem; line-height: 1.35; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 2rem; }
.pair > * { min-width: 0; }
figure { margin: 1rem 0; max-width: 34rem; }
figcaption { margin-top: .4rem; }
.chart { display: block; width: 100%; height: auto; }
.chart text { font-family: inherit !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; font-size: .95rem; }
th, td { text-align: right; padding: .32rem 0 .32rem .9rem; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
@media (max-width: 30rem) { table { font-size: .84rem; } th, td { padding-left: .6rem; } }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; vertical-align: bottom; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.facts td:first-child { color: var(--soft); vertical-align: top; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem;
  margin-top: 1rem; }
.card { background: var(--card); border-radius: 10px; padding: .8rem .9rem; }
.strip { display: grid; grid-template-columns: repeat(3, 1fr); gap: .6rem; font-size: .78rem;
  line-height: 1.35; }
.strip + .strip { margin-top: .7rem; padding-top: .7rem; border-top: 1px solid var(--line); }
.strip img { display: block; width: 100%; image-rendering: pixelated; border-radius: 4px;
  margin-bottom: .3rem; }
.strip p { grid-column: 1 / -1; margin: 0; font-weight: 600; }
.strip div { min-width: 0; }
pre { background: var(--card); border-radius: 10px; padding: .9rem 1rem; font-size: .85rem;
  line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document around ``body``."""
    head = (
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        '<link rel="icon" href="data:,">',
        f"<style>{CSS}</style>",
    )
    start = ("<!doctype html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", "<main>")
    return "\n".join((*start, *body, "</main>", "</body>", "</html>", ""))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of numbers; its cells are plain text."""
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = f"<thead><tr>{heads}</tr></thead><tbody>{_rows(rows)}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def facts(rows: Iterable[Sequence[str]]) -> str:
    """A two-column table of names and values; its cells are plain text."""
    return f'<table class="facts"><tbody>{_rows(rows)}</tbody></table>'


def number(value: str, what: str, kind: str) -> str:
    """A large figure with what it is below it, in the colour of the network ``kind``."""
    return f'<div class="number"><b class="{kind}">{escape(value)}</b><span>{escape(what)}</span></div>'


def figure(svg: str, caption: str) -> str:
    """A chart with its caption."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def gallery(examples: Sequence[Example]) -> str:
    """A card per example: for each attacked network the clean image, what was added, and the sum."""
    scale = plots.largest_change(examples)
    cards = ("".join(_strip(example, name, scale) for name in example.adversarial) for example in examples)
    return f'<div class="gallery">{"".join(f"<div class=card>{card}</div>" for card in cards)}</div>'


def _strip(example: Example, name: str, scale: float) -> str:
    point = example.adversarial[name]
    change = point - example.clean
    return (
        f'<div class="strip"><p>{example.label}, attack on the <span class="{name}">{name}</span> network</p>'
        + _picture(example.clean, "clean image", _said(example, "clean"))
        + _picture(plots.tint(change, scale), "perturbation", f"largest change {np.abs(change).max():.3f}")
        + _picture(point, "adversarial image", _said(example, name))
        + "</div>"
    )


def _picture(image: np.ndarray, what: str, below: str) -> str:
    return f'<div><img src="{plots.png(image)}" alt="{what}">{below}</div>'


def _said(example: Example, where: str) -> str:
    lines = []
    for name, said in example.predictions[where].items():
        verdict = f"{said}" if said == example.label else f'<span class="wrong">{said} &#10007;</span>'
        lines.append(f'<span class="{name}">{name}</span>: {verdict}')
    return "<br>".join(lines)


def _rows(rows: Iterable[Sequence[str]]) -> str:
    return "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
