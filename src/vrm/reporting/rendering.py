"""A table as Markdown and HTML for people and as LaTeX for print, from one description.

* Cells are plain text with an optional second line (an interval, a count); each format escapes and stacks them itself.
* The LaTeX needs booktabs, compiles when `\\input` into an article, and shrinks to the text width where graphicx is
  loaded too.
"""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from pathlib import Path

import pandas as pd

from vrm.records import write_whole
from vrm.statistics.intervals import Interval

EMPTY = "—"
_LONGEST_LINE = 32  # characters of a text column after the first that are not wrapped in print


@dataclass(frozen=True)
class Cell:
    """Plain text, with an optional second line in smaller type."""

    text: str
    below: str = ""


@dataclass(frozen=True)
class Row:
    """Cells from left to right; `rule` draws a line above, which sets a group apart."""

    cells: Sequence[Cell]
    rule: bool = False


@dataclass(frozen=True)
class Grid:
    """A table: caption, header cells, rows, notes below.

    Args:
        name: file stem and LaTeX label.
        caption: one sentence.
        header: one cell a column.
        rows: from top to bottom.
        notes: sentences below the table.
        text_columns: how many columns from the left hold text; the others hold numbers.
    """

    name: str
    caption: str
    header: Sequence[Cell]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    text_columns: int = 1


def number(value: float, digits: int = 1) -> str:
    """A number for people; an em dash where there is none."""
    return EMPTY if value is None or math.isnan(value) else f"{value:.{digits}f}"


def of_seeds(seeds: Sequence[int]) -> str:
    """What a number is a mean of: `Mean of 3 seeds (1, 2, 3)`, or `One seed (1)`."""
    named = ", ".join(map(str, seeds))
    return f"Mean of {len(seeds)} seeds ({named})" if len(seeds) > 1 else f"One seed ({named})"


def over_seeds_and_prompts(seeds: Sequence[int]) -> str:
    """What an interval is over, and how that is allowed for; with one seed, what it leaves out."""
    if len(seeds) > 1:
        return "seeds and prompts (variance components, Student's t)"
    return "prompts (Student's t), which leaves out the variation between seeds"


def counted_seeds_and_prompts(seeds: Sequence[int]) -> str:
    """The same in a figure's few words: `3 seeds and prompts`, or `prompts (one seed)`."""
    return f"{len(seeds)} seeds and prompts" if len(seeds) > 1 else "prompts (one seed)"


def interval_cell(interval: Interval, scale: float = 1.0, digits: int = 1) -> Cell:
    """An estimate above its interval; the estimate alone where there is no interval.

    With more digits where both ends would read the same, up to three: an interval without width claims certainty.
    """
    if math.isnan(interval.low):
        return Cell(number(scale * interval.estimate, digits))
    for shown in range(digits, digits + 4):
        low, high = number(scale * interval.low, shown), number(scale * interval.high, shown)
        if low != high:
            break
    return Cell(number(scale * interval.estimate, shown), f"[{low}, {high}]")


def write_table(out: Path, grids: Sequence[Grid], cells: pd.DataFrame) -> list[Path]:
    """Write `name`.csv, .md, .tex and .html into the directory `out`; the first grid names the files.

    Returns:
        The four paths, in that order.
    """
    name = grids[0].name
    csv, markdown, tex, html = (Path(out) / f"{name}.{kind}" for kind in ("csv", "md", "tex", "html"))
    write_whole(csv, cells.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    write_whole(markdown, "\n".join(to_markdown(grid) for grid in grids))
    write_whole(tex, "\n".join(to_latex(grid) for grid in grids))
    write_whole(html, to_html(grids))
    return [csv, markdown, tex, html]


def to_markdown(grid: Grid) -> str:
    """GitHub's Markdown; the second line of a cell follows a line break."""
    rows = [grid.header, *(row.cells for row in grid.rows)]
    lines = ["| " + " | ".join(_markdown_cell(cell) for cell in cells) + " |" for cells in rows]
    lines.insert(1, "|:--" * grid.text_columns + "|--:" * (len(grid.header) - grid.text_columns) + "|")
    notes = [f"- {_escape_markdown(note)}" for note in grid.notes]
    return "\n".join([f"**{_escape_markdown(grid.caption)}**", "", *lines, "", *notes, ""])


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; color: #1a1a1a; background: #fff }
figure { margin: 0 0 2.5rem; overflow-x: auto } figcaption { font-weight: 600; margin-bottom: .6rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
thead th { border-bottom: 1.5px solid; vertical-align: bottom } tr.rule > * { border-top: 1px solid #999 }
th, td { padding: .25rem .7rem; text-align: right; font-weight: 400; vertical-align: top }
th.text, td.text { text-align: left; max-width: 28rem } thead th { font-weight: 600 }
small { display: block; color: #555; white-space: nowrap } td.text small { white-space: normal }
tbody tr:hover { background: #f2f2f2 } ul { max-width: 60rem; padding-left: 1.2rem; color: #333 }
@media (prefers-color-scheme: dark) { body { color: #e8e8e8; background: #161616 } small, ul { color: #b5b5b5 }
  tbody tr:hover { background: #262626 } }
"""


_POLICY = f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'"
"""Nothing is loaded and nothing is run, whatever a cell holds."""


def to_html(grids: Sequence[Grid]) -> str:
    """One self-contained page with every grid, for a browser or a report."""
    figures = "\n".join(_html_figure(grid) for grid in grids)
    title = escape(grids[0].name)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    head += f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{figures}\n</body></html>\n'


def _html_figure(grid: Grid) -> str:
    head = "".join(_html_cell("th", cell, index < grid.text_columns) for index, cell in enumerate(grid.header))
    rows = "\n".join(
        f"<tr{' class=rule' if row.rule else ''}>"
        + "".join(_html_cell("td", cell, index < grid.text_columns) for index, cell in enumerate(row.cells))
        + "</tr>"
        for row in grid.rows
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in grid.notes)
    return (
        f"<figure><figcaption>{escape(grid.caption)}</figcaption><table><thead><tr>{head}</tr></thead>"
        f"<tbody>\n{rows}\n</tbody></table>{f'<ul>{notes}</ul>' if notes else ''}</figure>"
    )


def _html_cell(tag: str, cell: Cell, text: bool) -> str:
    below = f"<small>{escape(cell.below)}</small>" if cell.below else ""
    return f"<{tag}{' class=text' if text else ''}>{escape(cell.text)}{below}</{tag}>"


def to_latex(grid: Grid) -> str:
    """A `table*` with booktabs rules."""
    body = ["\\toprule", _latex_row(grid, grid.header), "\\midrule"]
    for index, row in enumerate(grid.rows):
        if row.rule and index > 0:
            body.append("\\midrule")
        body.append(_latex_row(grid, row.cells))
    columns = "".join(_latex_column(grid, index) for index in range(len(grid.header)))
    tabular = [f"\\begin{{tabular}}{{@{{}}{columns}@{{}}}}", *body, "\\bottomrule", "\\end{tabular}"]
    notes = " ".join(_escape_latex(note) for note in grid.notes)
    lines = [
        "% needs \\usepackage{booktabs}; shrinks to the text width where \\usepackage{graphicx} is loaded",
        "\\begin{table*}[t]",
        "\\centering\\footnotesize\\setlength{\\tabcolsep}{3.5pt}",
        f"\\caption{{{_escape_latex(grid.caption)}}}",
        f"\\label{{tab:{grid.name}}}",
        *_shrunk(tabular, len(grid.header)),
    ]
    if notes:
        lines += ["", "\\smallskip", f"\\parbox{{\\textwidth}}{{\\scriptsize\\raggedright {notes}}}"]
    return "\n".join([*lines, "\\end{table*}", ""])


def _shrunk(tabular: Sequence[str], columns: int) -> list[str]:
    """Wide tables are scaled, narrow ones are never blown up."""
    if columns <= 6:
        return list(tabular)
    return ["\\providecommand{\\resizebox}[3]{#3}%", "\\resizebox{\\textwidth}{!}{%", *tabular, "}"]


def _latex_column(grid: Grid, index: int) -> str:
    """Numbers to the right, text to the left; columns of long text are wrapped, and share the width."""
    if index >= grid.text_columns:
        return "r"
    if not _is_wrapped(grid, index):
        return "l"
    share = 0.8 / sum(_is_wrapped(grid, other) for other in range(grid.text_columns))
    return f"p{{{min(share, 0.45):.2f}\\textwidth}}"


def _is_wrapped(grid: Grid, index: int) -> bool:
    if not 0 < index < grid.text_columns:
        return False
    cells = (row.cells[index] for row in grid.rows)
    return max((max(len(cell.text), len(cell.below)) for cell in cells), default=0) > _LONGEST_LINE


def _latex_row(grid: Grid, cells: Sequence[Cell]) -> str:
    return " & ".join(_latex_cell(grid, index, cell) for index, cell in enumerate(cells)) + " \\\\"


def _latex_cell(grid: Grid, index: int, cell: Cell) -> str:
    text = _escape_latex(cell.text)
    if not cell.below:
        return text
    below = f"{{\\scriptsize {_escape_latex(cell.below)}}}"
    if _is_wrapped(grid, index):
        return f"{text}\\newline {below}"
    return f"\\shortstack[{'l' if index < grid.text_columns else 'r'}]{{{text}\\\\{below}}}"


def _markdown_cell(cell: Cell) -> str:
    text = _escape_markdown(cell.text)
    return f"{text}<br>{_escape_markdown(cell.below)}" if cell.below else text


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>])", r"\\\1", text).replace("\n", " ")


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "†": r"\textsuperscript{\textdagger}",
    "—": "---",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "π": r"$\pi$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "λ": r"$\lambda$",
    "β": r"$\beta$",
    "α": r"$\alpha$",
    "μ": r"$\mu$",
    "τ": r"$\tau$",
    "Δ": r"$\Delta$",
    "½": r"$\frac{1}{2}$",
    "[": "{[}",
    "]": "{]}",
    "\n": " ",
} | {character: "\\" + character for character in "&%$#_{}"}


def _escape_latex(text: str) -> str:
    # One pass over characters, so that the braces of one replacement are not escaped by the next.
    return "".join(_LATEX.get(character, character) for character in text)
