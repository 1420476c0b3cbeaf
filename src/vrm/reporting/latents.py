"""What is inside of a VRM: its latents as a table, and the parts of its reward as a table and as a figure.

* Latents: learned weights, their recovery of the truth, and the size of both KLs. A prompt counts once, however many
  pairs it has: w depends on the prompt alone. A collapsed posterior shows here: KLs near zero, no active unit, and a
  negative ELBO at its lower bound of log 2.
* Parts of every concept-residual VRM: what is substance and what is flattery. The table has the accuracy of r, w . g
  and b, each alone, and what b's differences go with. b is what the rated aspects do not explain, good or bad; a bias
  that raters share with annotators stays in g.
* The figure has the first concept-residual VRM of `reward.run`, (a) on every evaluation set, (b) on pairs that differ
  in one thing alone. Right of the line at 50 % a part prefers the better response; left of it, on a spurious feature,
  the part pays for that feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config
from vrm.evaluation.accuracy import SetMetric
from vrm.records import RecordError
from vrm.reporting import style
from vrm.reporting.rendering import (
    Cell,
    Grid,
    Row,
    counted_seeds_and_prompts,
    interval_cell,
    over_seeds_and_prompts,
    write_table,
)
from vrm.reporting.scores import (
    Column,
    PairScores,
    Scorer,
    evaluation_pairs,
    first_pairs,
    measure_pairs,
    members,
    pair_scores,
    read_scores,
    read_training,
    reward_models,
    row_label,
    starts_group,
    table_columns,
)
from vrm.runfiles import LEARNED_WEIGHT, TRUE_WEIGHT
from vrm.statistics.intervals import Interval, crossed_interval, student_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# The table of latents.


def weight_recovery(scores: pd.DataFrame) -> list[SetMetric]:
    """Learned against true weights over the prompts whose true weights are known.

    Args:
        scores: one row a pair with prompt_id, weight_<aspect> and true_weight_<aspect> (empty where unknown).

    Returns:
        Nothing where no true weights are known or the model has none; else
        weight_correlation/<aspect>: Pearson correlation over prompts, NaN where either side does not vary;
        weight_correlation/mean: their mean, NaN if one of them is;
        weight_mae: mean absolute error over prompts and objectives;
        weight_mae_constant: the same of the mean true weights, whatever the prompt: the baseline.
    """
    aspects = _aspects(scores)
    if not aspects or any(TRUE_WEIGHT + aspect not in scores for aspect in aspects):
        return []
    true_columns = [TRUE_WEIGHT + aspect for aspect in aspects]
    known = scores.dropna(subset=true_columns).drop_duplicates("prompt_id")
    if known.empty:
        return []
    learned = known[[LEARNED_WEIGHT + aspect for aspect in aspects]].to_numpy(dtype=float)  # (N, K)
    true = known[true_columns].to_numpy(dtype=float)  # (N, K)
    correlations = [_pearson(learned[:, k], true[:, k]) for k in range(len(aspects))]
    n = len(known)
    return [
        *(SetMetric(f"weight_correlation/{a}", r, n) for a, r in zip(aspects, correlations, strict=True)),
        SetMetric("weight_correlation/mean", float(np.mean(correlations)), n),
        SetMetric("weight_mae", float(np.abs(learned - true).mean()), n),
        SetMetric("weight_mae_constant", float(np.abs(true - true.mean(axis=0)).mean()), n),
    ]


def _aspects(scores: pd.DataFrame) -> list[str]:
    """Aspects with a learned weight, in the order of the columns; rows of other models leave none."""
    return [column.removeprefix(LEARNED_WEIGHT) for column in scores if column.startswith(LEARNED_WEIGHT)]


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def weights_spread(scores: pd.DataFrame) -> float | None:
    """Standard deviation of E[w] over prompts, mean over the objectives; None for a model without weights.

    Args:
        scores: as `weight_recovery` takes them.
    """
    columns = [LEARNED_WEIGHT + aspect for aspect in _aspects(scores)]
    if not columns or scores[columns].isna().any(axis=None):
        return None
    return float(scores.drop_duplicates("prompt_id")[columns].std(ddof=0).mean())


@dataclass(frozen=True)
class _Quantity:
    """A column of the table.

    Args:
        metric: its name in the files.
        title: what stands above it.
        digits: decimals for people.
        split: of the training log; "" for what is read from scores.
        possible: lowest and highest value; an interval ends there. The units of z end at their number, besides.
    """

    metric: str
    title: str
    digits: int
    split: str = ""
    possible: tuple[float, float] = (0.0, np.inf)


# The negative ELBO is read where latents are sampled: at posterior means the bound of log 2 does not hold.
_FROM_TRAINING = (
    _Quantity("kl_w", "KL of w (nats)", 3, "validation"),
    _Quantity("kl_z", "KL of z (nats)", 3, "validation"),
    _Quantity("active_units", "active units of z", 1, "validation"),
    _Quantity("negative_elbo", "negative ELBO (nats)", 3, "batch"),
)

_RECOVERY = (
    _Quantity("weight_correlation/mean", "correlation with true w", 2, possible=(-1.0, 1.0)),
    _Quantity("weight_mae", "absolute error of w", 3, possible=(0.0, 1.0)),
    _Quantity("weight_mae_constant", "the same, always the mean true w", 3, possible=(0.0, 1.0)),
)


def latents_table(config: Config, results: Path, out: Path) -> list[Path]:
    """Write latents.{csv,md,tex,html}: one row a VRM of `reward.run`.

    Args:
        config: names variants, aspects, seeds and the level; weights are read on the first set of `evaluation.run`.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a number.

    Raises:
        RecordError: scores or training logs are missing, or lack the weights or a metric.
    """
    models = [model for model in reward_models(config) if config.reward.variants[model.name].kind == "variational"]
    if not models:
        raise RecordError("latents: reward.run names no variational variant; leave `latents` out of report.tables")
    measured = {model.name: dict(_measure(config, results, model)) for model in models}
    quantities = list(dict.fromkeys(quantity for row in measured.values() for quantity in row))
    rows = [
        Row(
            [Cell(model.label), *_cells(measured[model.name], quantities)],
            rule=starts_group(previous, model),
        )
        for model, previous in zip(models, [None, *models], strict=False)
    ]
    grid = Grid(
        name="latents",
        caption=f"The latents of each VRM at the end of training. Data: {config.data.label}.",
        header=[Cell("Reward model"), *(Cell(quantity.title) for quantity in quantities)],
        rows=rows,
        notes=list(_notes(config, results, quantities, [model.name for model in models])),
    )
    return write_table(out, [grid], _tidy(config, measured))


def _measure(config: Config, results: Path, model: Scorer) -> Iterator[tuple[_Quantity, Interval]]:
    scores = read_scores(results, model)
    scores = scores[scores["evaluation_set"] == config.evaluation.run[0]]
    yield from _learned_weights(config, scores, model.name)
    yield from _recovery(config, scores)
    yield from _end_of_training(config, read_training(results, model), model.name)


def _learned_weights(config: Config, scores: pd.DataFrame, name: str) -> Iterator[tuple[_Quantity, Interval]]:
    """Mean weight of each aspect; a prompt counts once, however many pairs it has."""
    for aspect in config.data.aspects:
        column = f"weight_{aspect}"
        if column not in scores or scores[column].isna().any():
            raise RecordError(f"scores of {name}: column {column} is missing or has gaps; score the variant again")
        table = scores.pivot_table(index="prompt_id", columns="seed", values=column, aggfunc="first")  # (N, S)
        quantity = _Quantity(column, f"w: {aspect.replace('_', ' ')}", 3, possible=(0.0, 1.0))
        interval = crossed_interval(table.to_numpy().T, table.index.to_numpy(), config.report.level)
        yield quantity, interval.within(*quantity.possible)


def _recovery(config: Config, scores: pd.DataFrame) -> Iterator[tuple[_Quantity, Interval]]:
    """Learned against true weights, one number a seed; nothing where the truth is unknown."""
    by_seed = [{m.metric: m.value for m in weight_recovery(part)} for _, part in scores.groupby("seed")]
    for quantity in _RECOVERY:
        if all(quantity.metric in metrics for metrics in by_seed):
            values = [metrics[quantity.metric] for metrics in by_seed]
            yield quantity, student_interval(values, config.report.level).within(*quantity.possible)


def _end_of_training(config: Config, log: pd.DataFrame, name: str) -> Iterator[tuple[_Quantity, Interval]]:
    """Last value of each seed."""
    for quantity in _FROM_TRAINING:
        part = log[(log["split"] == quantity.split) & (log["metric"] == quantity.metric)]
        last = part.sort_values("step").groupby("seed")["value"].last()
        if len(last) < len(config.reward.seeds):
            raise RecordError(f"training log of {name}: a seed lacks {quantity.metric} of split {quantity.split}")
        units = config.reward.variants[name].latent_dim
        possible = (0.0, units) if quantity.metric == "active_units" else quantity.possible
        yield quantity, student_interval(last, config.report.level).within(*possible)


def _cells(row: dict[_Quantity, Interval], quantities: list[_Quantity]) -> Iterator[Cell]:
    for quantity in quantities:
        yield interval_cell(row[quantity], digits=quantity.digits) if quantity in row else Cell("")


def _notes(config: Config, results: Path, quantities: list[_Quantity], names: list[str]) -> Iterator[str]:
    label = config.evaluation.sets[config.evaluation.run[0]].label
    level = f"{100 * config.report.level:g} %"
    seeds = len(config.reward.seeds)
    yield f"w: posterior mean weight, mean over the prompts of {label}; a prompt counts once."
    pairs = first_pairs(evaluation_pairs(config, results, names, ["validation"]))
    yield f"KLs and active units: {pairs} of the validation split, end of training; KL of z sums both responses."
    yield (
        "Negative ELBO: the strict one (unit KL weights) under sampled latents, last logging window of training; its "
        "expectation is never below log 2 = 0.693."
    )
    if any(quantity in quantities for quantity in _RECOVERY):
        yield "Correlation with the true w: Pearson over prompts, mean of the objectives; a dash where w does not vary."
    if seeds > 1:
        yield (
            f"In brackets: {level} intervals; w: over {seeds} seeds and prompts (variance components, Student's t); "
            f"all others: Student's t over {seeds} seeds, which leaves out the choice of pairs and prompts. None where "
            "all seeds have the same value."
        )
    else:
        yield f"In brackets: {level} intervals of w over prompts (Student's t); one seed, so all others have none."


def _tidy(config: Config, measured: dict[str, dict[_Quantity, Interval]]) -> pd.DataFrame:
    rows = [
        {
            "variant": name,
            "label": row_label(config.reward.variants[name]),
            "metric": quantity.metric,
            "estimate": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "level": interval.level,
            "resampled": interval.resampled,
            "n_seeds": len(config.reward.seeds),
        }
        for name, row in measured.items()
        for quantity, interval in row.items()
    ]
    return pd.DataFrame(rows)


# The table of a reward's parts.

PARTS = {"reward": "r, whole", "rated": "w . g, rated aspects", "residual": "b, residual"}
"""Prefixes of a part's columns in `scores.csv`, and what its row is called."""
Cells = dict[tuple[str, str, str, str], Interval]


def residual_table(config: Config, results: Path, out: Path) -> list[Path]:
    """Write residual.{csv,md,tex,html}: accuracy of each part of every concept-residual VRM, and what b goes with.

    Args:
        config: names variants, sets, aspects, seeds and the level.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a number; accuracies in points.

    Raises:
        RecordError: no variant has a residual, or scores are missing, broken or without parts.
    """
    models, cells = measure_parts(config, results)
    grids = [_accuracy_grid(config, models, cells), _correlation_grid(config, models, cells)]
    if config.evaluation.probes:
        grids.append(_probe_grid(config, models, cells))
    return write_table(out, grids, _tidy_parts(config, cells))


def measure_parts(config: Config, results: Path) -> tuple[list[Scorer], Cells]:
    """The models with a residual, and every number of the table by model, part, kind and name.

    Kinds are `column` and `probe`, accuracies in 0..1, and `correlation`, of the residual's differences with others.

    Raises:
        RecordError: as `residual_table`.
    """
    models = [model for model in reward_models(config) if config.reward.variants[model.name].residual]
    if not models:
        raise RecordError("residual: no variant of reward.run has a residual; leave `residual` out of the report")
    cells: Cells = {}
    columns = table_columns(config)
    for model in models:
        scores = read_scores(results, model)
        for part in PARTS:
            cells |= {(model.name, part, *key): found for key, found in _accuracies(config, scores, part, columns)}
        cells |= {(model.name, "residual", *key): found for key, found in _goes_with(config, scores)}
    return models, cells


def _accuracies(
    config: Config, scores: pd.DataFrame, part: str, columns: Sequence[Column]
) -> Iterator[tuple[tuple[str, str], Interval]]:
    """Accuracy of one part in each column, and on each probe; by `column` or `probe` and its name."""
    sides = {f"reward_{side}": f"{part}_{side}" for side in ("chosen", "rejected")}
    if lacking := [name for name in sides.values() if name not in scores]:
        raise RecordError(f"scores of a variant with a residual lack {', '.join(lacking)}; score that model again")
    own = scores.assign(**{name: scores[column] for name, column in sides.items()})
    for column in columns:
        pairs = pair_scores(own, column.evaluation_set, part)
        pairs = pairs.select(members(column, pairs))
        if len(pairs.prompts):
            yield ("column", column.title), measure_pairs(config, column, pairs).interval
    if name := config.evaluation.probes:
        pairs = pair_scores(own, name, part)
        for probe in sorted(set(pairs.subsets.tolist())):
            yield ("probe", probe), _plain_accuracy(config, pairs.select(pairs.subsets == probe))


def _plain_accuracy(config: Config, pairs: PairScores) -> Interval:
    return crossed_interval(pairs.wins, pairs.prompts, config.report.level).within(0, 1)


def _goes_with(config: Config, scores: pd.DataFrame) -> Iterator[tuple[tuple[str, str], Interval]]:
    """Correlation over pairs of b's differences with those of other quantities, one a seed; see `_measured_on`."""
    inside = scores[scores["evaluation_set"] == _measured_on(config)]
    names = {name: f"{{side}}_{name}" for name in config.data.aspects}
    names |= {"rated": "rated_{side}", "length": "length_{side}"}
    for other in names:
        values = []
        for _, part in inside.groupby("seed"):
            b, x = (
                part[name.format(side="chosen")] - part[name.format(side="rejected")]
                for name in ("residual_{side}", names[other])
            )
            values.append(float(np.corrcoef(b, x)[0, 1]) if b.std() > 0 and x.std() > 0 else np.nan)
        yield ("correlation", other), student_interval(values, config.report.level).within(-1, 1)


def _measured_on(config: Config) -> str:
    """The first set that is labelled as training pairs are."""
    plain = [column.evaluation_set for column in table_columns(config) if not column.section]
    measured = [name for name in plain if config.evaluation.sets[name].role == "measured"]
    return (measured or plain or config.evaluation.run)[0]


def _columns_of(cells: Cells, kind: str) -> list[str]:
    return list(dict.fromkeys(name for _, _, found, name in cells if found == kind))


def _accuracy_grid(config: Config, models: Sequence[Scorer], cells: Cells) -> Grid:
    titles = _columns_of(cells, "column")
    rows = [
        Row(
            [
                Cell(f"{model.label}: {name}"),
                *(interval_cell(cells[model.name, part, "column", title], scale=100) for title in titles),
            ],
            rule=place == 0 and model is not models[0],
        )
        for model in models
        for place, (part, name) in enumerate(PARTS.items())
    ]
    level = f"{100 * config.report.level:g} %"
    return Grid(
        name="residual",
        caption=f"Accuracy of each part of a concept-residual reward, in points. Data: {config.data.label}.",
        header=[Cell("Part"), *map(Cell, titles)],
        rows=rows,
        notes=[
            "r = e^τ w . g(z) + b(z). Each part alone prefers the response that it gives more; 50 says nothing.",
            "b is only what the rated aspects do not explain. If ratings share the annotators' bias, it stays in g; "
            "what is good and not rated is in b too.",
            f"In brackets: {level} interval over {over_seeds_and_prompts(config.reward.seeds)}.",
        ],
    )


def _correlation_grid(config: Config, models: Sequence[Scorer], cells: Cells) -> Grid:
    names = _columns_of(cells, "correlation")
    titles = {"rated": "Δ(w . g)", "length": "Δ length"} | {
        a: f"Δg: {a.replace('_', ' ')}" for a in config.data.aspects
    }
    label = config.evaluation.sets[_measured_on(config)].label
    return Grid(
        name="residual-correlations",
        caption=f"Correlation of Δb, chosen less rejected, with other differences. Data: {config.data.label}.",
        header=[Cell("Reward model"), *(Cell(titles[name]) for name in names)],
        rows=[
            Row(
                [
                    Cell(model.label),
                    *(interval_cell(cells[model.name, "residual", "correlation", name], digits=2) for name in names),
                ]
            )
            for model in models
        ],
        notes=[f"Pearson over the pairs of {label}; in brackets Student's t over seeds. Length in characters."],
    )


def _probe_grid(config: Config, models: Sequence[Scorer], cells: Cells) -> Grid:
    header = [Cell("Probe"), *(Cell(model.label, name) for model in models for name in PARTS.values())]
    rows, kind = [], ""
    for probe in _columns_of(cells, "probe"):
        found = [cells[model.name, part, "probe", probe] for model in models for part in PARTS]
        started = probe.partition("/")[0]
        rows.append(
            Row([Cell(probe), *(interval_cell(i, scale=100) for i in found)], rule=bool(kind) and started != kind)
        )
        kind = started
    return Grid(
        name="residual-probes",
        caption=f"The parts on pairs that differ in one thing alone, accuracy in points. Data: {config.data.label}.",
        header=header,
        rows=rows,
        notes=[
            "objective: 50 is not learned. spurious: the response without the feature is right; below 50 it is paid."
        ],
    )


def _tidy_parts(config: Config, cells: Cells) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "variant": name,
            "label": row_label(config.reward.variants[name]),
            "part": part,
            "kind": kind,
            "column": column,
            "estimate": (1 if kind == "correlation" else 100) * interval.estimate,
            "low": (1 if kind == "correlation" else 100) * interval.low,
            "high": (1 if kind == "correlation" else 100) * interval.high,
            "level": interval.level,
            "n_seeds": len(config.reward.seeds),
            "resampled": interval.resampled,
        }
        for (name, part, kind, column), interval in cells.items()
    )


# The figure of a reward's parts.

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
