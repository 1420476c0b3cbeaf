"""What is substance and what is flattery: accuracy of a reward's rated aspects, of its residual, and of their sum.

* (a) On every evaluation set, (b) on pairs that differ in one thing alone. Right of the line at 50 % a part prefers the
  better response; left of it, on a spurious feature, the part pays for that feature.
* Of the first concept-residual VRM of `reward.run`; the table of the same name has them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from vrm.config import Config
from vrm.reporting import style
from vrm.reporting.rendering import counted_seeds_and_prompts
from vrm.reporting.tables.latents import PARTS, measure_parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHIFTS = {"reward": 0.0, "rated": -0.22, "residual": 0.22}
"""Where a part's marker stands within its line, so that bars do not cover each other."""
LINE = 0.27
"""Inches of a line."""


def residual_figure(config: Config, results: Path, out: Path) -> list[Path]:
    """Draw residual.{pdf,png,csv}.

    Args:
        config: names variants, sets, seeds and the level.
        results: the run's directory.
        out: directory of the three files. The CSV has one row a point, in points.

    Raises:
        RecordError: no variant has a residual, or scores are missing, broken or without parts.
    """
    models, cells = measure_parts(config, results)
    model = models[0]
    data = pd.DataFrame(
        {
            "variant": model.name,
            "part": part,
            "kind": kind,
            "name": name,
            "estimate": 100 * interval.estimate,
            "low": 100 * interval.low,
            "high": 100 * interval.high,
            "level": interval.level,
            "n_seeds": len(model.seeds),
            "resampled": interval.resampled,
        }
        for (owner, part, kind, name), interval in cells.items()
        if owner == model.name and kind != "correlation"
    )
    kinds = {"column": "(a) evaluation sets", "probe": "(b) pairs that differ in one thing alone"}
    kinds = {kind: title for kind, title in kinds.items() if (data["kind"] == kind).any()}
    names = {kind: list(dict.fromkeys(data[data["kind"] == kind]["name"])) for kind in kinds}
    statement = (
        f"{model.label}. Bars: {100 * config.report.level:g}\u00a0% interval over "
        f"{counted_seeds_and_prompts(model.seeds)}."
    )
    bottom = 0.51 + style.FOOTER_LINE * len(style.footer_lines(statement, config.data.label, style.FULL_WIDTH))
    height = 0.62 + LINE * max(map(len, names.values())) + bottom
    with style.styled():
        figure = style.new_figure(style.FULL_WIDTH, height)
        margins = {"left": 0.17, "right": 0.985, "bottom": bottom / height, "top": 1 - 0.62 / height, "wspace": 0.75}
        panels = figure.subplots(1, len(kinds), squeeze=False, sharex=True, gridspec_kw=margins)[0]
        for panel, (kind, title) in zip(panels, kinds.items(), strict=True):
            _draw(panel, data[data["kind"] == kind], names[kind])
            panel.set_title(title, loc="left")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=len(labels))
        style.footer(figure, statement, config.data.label)
        return style.save(figure, out, "residual", data)


def _draw(panel: Axes, points: pd.DataFrame, names: Sequence[str]) -> None:
    """One line a set or probe, from top to bottom."""
    panel.axvline(50, color=style.MUTED, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
    for index, (part, label) in enumerate(PARTS.items()):
        own, look = points[points["part"] == part].set_index("name").reindex(names), style.look(index)
        places = [place + SHIFTS[part] for place in range(len(names))]
        panel.hlines(places, own["low"], own["high"], color=look["color"], alpha=0.4, linewidth=1.3, zorder=2)
        panel.plot(own["estimate"], places, zorder=3, label=label, **look | {"linestyle": "", "markeredgewidth": 0})
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_yticks(range(len(names)), [name.partition("/")[2].replace("_", " ") or name for name in names])
    for place in range(1, len(names)):
        if names[place].partition("/")[0] != names[place - 1].partition("/")[0] and "/" in names[place]:
            panel.axhline(place - 0.5, color=style.CONTEXT, linewidth=0.7, zorder=1)
    panel.set_xlim(0, 100)
    panel.set_xlabel("the better response preferred (%)")
