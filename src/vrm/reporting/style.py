"""One style for every figure, and the one way in which a figure becomes files.

* Colours are Okabe and Ito's; lines also differ in dash and marker, so that a grey print stays legible.
* Sizes are in inches at print size: 8 pt text in a 6.9 inch figure is 8 pt on the page.
* No pyplot: figures are plain objects, drawn by Agg, and no global state is left behind.
* Files are deterministic: no date, no version, no random ids.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vrm.records import write_whole

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FULL_WIDTH = 6.9  # inches: both columns of a two-column page
COLUMN_WIDTH = 3.4  # inches: one column

INK = "#222222"
MUTED = "#6b6b6b"
CONTEXT = "#b8b8b8"
BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
ORANGE = "#E69F00"
SKY = "#56B4E9"

# Of the first six, neighbours differ in lightness too, by 12 or more (CIE L*, in comments), for prints in grey.
LOOKS = (
    (BLUE, "-", "o"),  # 46
    (ORANGE, (0, (4, 1.5)), "s"),  # 71
    ("#000000", (0, (1, 1.2)), "^"),  # 0
    (GREEN, (0, (5, 1.2, 1, 1.2)), "D"),  # 58
    (SKY, (0, (7, 2)), "v"),  # 70
    (VERMILION, (0, (2, 1, 1, 1, 1, 1)), "P"),  # 54
    (PURPLE, "-", "X"),  # 61
)

LETTER_WIDTH = 0.06
"""Inches of a letter in a legend or a data label, a little above the mean of the font."""
_FOOTER_LETTER_WIDTH = 0.05
FOOTER_LINE = 0.11
"""Inches of a line of the footer."""
_HANDLE_WIDTH = 0.6  # inches of a legend's line, with the space around it

_SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 8,
    "mathtext.fontset": "dejavusans",
    "text.color": INK,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.2,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "pdf.fonttype": 42,  # editable text; type 3 fonts are refused by some publishers
    "savefig.dpi": 300,
}


def look(index: int) -> dict[str, Any]:
    """Line keywords (color, linestyle, marker) of the index-th series of a figure."""
    color, linestyle, marker = LOOKS[index % len(LOOKS)]
    return {"color": color, "linestyle": linestyle, "marker": marker}


@contextmanager
def styled() -> Iterator[None]:
    """Draw, and save, inside this."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of the given size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def legend_columns(labels: Sequence[str], width: float) -> int:
    """In how many columns a legend fits a figure of that width in inches."""
    return max(1, min(len(labels), int((width - 0.1) / (_HANDLE_WIDTH + LETTER_WIDTH * max(map(len, labels))))))


def footer_lines(statement: str, label: str, width: float) -> list[str]:
    """The statement in lines that leave room for the data's label, in a figure of that width in inches."""
    room = width - 0.3 - LETTER_WIDTH * len(f"Data: {label}")
    return textwrap.wrap(statement, max(20, int(room / _FOOTER_LETTER_WIDTH)))


def footer(figure: Figure, statement: str, label: str) -> None:
    """Write what the bands are (left) and what the data are (right) along the lower edge; see `footer_lines`."""
    width, height = figure.get_size_inches()
    statement = "\n".join(footer_lines(statement, label, width))
    figure.text(0.008, 0.05 / height, statement, ha="left", va="bottom", fontsize=6.5, color=MUTED)
    figure.text(0.992, 0.05 / height, f"Data: {label}", ha="right", va="bottom", fontsize=7.5, color=INK, weight="bold")


def save(figure: Figure, out: Path, name: str, data: pd.DataFrame) -> list[Path]:
    """Write `name`.pdf, `name`.png and `name`.csv (the figure's data) into the directory `out`.

    Returns:
        The three paths, in that order.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    metadata = {"pdf": {"CreationDate": None, "Creator": "vrm", "Producer": None}, "png": {"Software": None}}
    paths = []
    for kind, entries in metadata.items():
        path = out / f"{name}.{kind}"
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        figure.savefig(aside, format=kind, metadata=entries)
        aside.replace(path)
        paths.append(path)
    paths.append(out / f"{name}.csv")
    write_whole(paths[-1], data.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return paths
