"""Theorem 5.1 on trained VRMs: each term of the bound, the held-out risk beside it, and whether it says anything.

Numbers are those of `vrm.evaluation.bound`, one file a model; docs/theory.md says what the bound can show at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from vrm.config import Config
from vrm.records import RecordError
from vrm.reporting.rendering import Cell, Grid, Row, interval_cell, number, of_seeds, write_table
from vrm.reporting.scores import Scorer, reward_models, row_label, starts_group
from vrm.runfiles import BOUND_TERMS, PAC_BAYES, read_bound_terms
from vrm.statistics.intervals import Interval, half_width, student_interval

_POSSIBLE = {
    **dict.fromkeys(("empirical_risk", "held_out_risk", "vacuous"), (0.0, 1.0)),
    "largest_kl_per_pair": (-np.inf, np.inf),  # negative where no KL would do
}
"""Lowest and highest value of a term where it is not 0 and infinity; an interval ends there."""

_HEADER = ("Reward model", "Empirical risk", "KL of w", "KL of z", "Bound", "Vacuous", "Held-out risk", "KL allowed")


def bound_table(config: Config, results: Path, out: Path) -> list[Path]:
    """Write bound.{csv,md,tex,html}: one row a VRM of `report.bound`.

    Args:
        config: names variants, seeds and the level.
        results: the run's directory.
        out: directory of the four files. The CSV has one row a term.

    Raises:
        RecordError: nothing is variational, or terms are missing or broken.
    """
    models = bounded_models(config)
    measured = {model.name: read_terms(results, model) for model in models}
    rows = [
        Row([Cell(model.label), *_cells(config, measured[model.name])], rule=starts_group(previous, model))
        for model, previous in zip(models, [None, *models], strict=False)
    ]
    grid = Grid(
        name="bound",
        caption=f"Theorem 5.1 on each trained VRM. Data: {config.data.label}.",
        header=[Cell(title) for title in _HEADER],
        rows=rows,
        notes=list(_notes(config, measured)),
    )
    return write_table(out, [grid], _tidy(config, measured))


def bounded_models(config: Config) -> list[Scorer]:
    """The VRMs whose bound is measured, in the order of table rows.

    Raises:
        RecordError: there is none.
    """
    models = [model for model in reward_models(config) if model.name in config.bounded_variants]
    if not models:
        raise RecordError("bound: reward.run has no VRM that report.bound names; leave `bound` out of the report")
    return models


def read_terms(results: Path, model: Scorer) -> pd.DataFrame:
    """The terms of one model's bound, one row a seed, one column a term.

    Raises:
        RecordError: a file is missing, or lacks a term or has one that is not a finite number.
    """
    rows = {seed: read_bound_terms(model.file(results, seed, PAC_BAYES.name)) for seed in model.seeds}
    return pd.DataFrame(rows).T.rename_axis("seed")


def _cells(config: Config, terms: pd.DataFrame) -> Iterator[Cell]:
    """Risks and the bound with their intervals; KLs a pair above the sum over the pairs."""
    yield interval_cell(over_seeds(config, terms, "empirical_risk"), digits=3)
    for name in ("kl_w", "kl_z"):
        yield Cell(_nats(terms[f"{name}_per_pair"].mean()), f"sum {_nats(terms[name].mean())}")
    yield interval_cell(over_seeds(config, terms, "bound"), digits=3)
    yield Cell(_verdict(terms["vacuous"]))
    yield interval_cell(over_seeds(config, terms, "held_out_risk"), digits=3)
    allowed = terms["largest_kl_per_pair"].mean()
    yield Cell(number(allowed, 2) if allowed > 0 else "none")


def _nats(value: float) -> str:
    """Four digits; KLs of a trained and of a collapsed posterior differ by many orders of magnitude."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if value >= 0.001 else f"{value:.0e}".replace("e-0", "e-")


def _verdict(vacuous: pd.Series) -> str:
    if vacuous.nunique() == 1:
        return "yes" if vacuous.iloc[0] else "no"
    return f"{int(vacuous.sum())} of {len(vacuous)} seeds"


def over_seeds(config: Config, terms: pd.DataFrame, term: str) -> Interval:
    """Mean and interval over seeds of one of the terms that `read_terms` returned."""
    interval = student_interval(terms[term].to_numpy(dtype=float), config.report.level)
    return interval.within(*_POSSIBLE.get(term, (0.0, np.inf)))


def _notes(config: Config, measured: dict[str, pd.DataFrame]) -> Iterator[str]:
    terms = pd.concat(measured.values())
    level = f"{100 * config.report.level:g} %"
    seeds = config.reward.seeds
    over = (
        f"{of_seeds(seeds)}; in brackets the {level} interval over seeds (Student's t)."
        if len(seeds) > 1
        else f"{of_seeds(seeds)}: no interval."
    )
    yield f"Data: {config.data.label}. {over}"
    yield (
        "Bound: empirical risk + sqrt((KL + ln(1/delta) + ln n + 2) / (2n - 1)), with the KL summed over the pairs, "
        f"n = {_span(terms['pairs'])} training pairs and delta = {terms['delta'].iloc[0]:g}. Vacuous: 1 or more, which "
        "any risk meets."
    )
    yield (
        f"Risks: share of pairs in the wrong order under sampled latents ({_span(terms['samples'])} draws a pair; a "
        f"tie is an error), on the training pairs and on {_span(terms['held_out_pairs'])} held-out pairs."
    )
    width = half_width(terms["held_out_pairs"].min(), 0.5, config.report.level)
    yield (
        f"Both risks' intervals leave out the choice of the pairs: of the {_span(terms['held_out_pairs'])} held-out "
        f"ones alone it is worth ±{width:.3f} at a risk of 1/2 (Wilson)."
    )
    yield (
        "KLs: nats a pair, below them the sum over the pairs; that of z adds both responses. KL allowed: nats a pair "
        "below which the bound would not be vacuous at the same empirical risk."
    )
    yield (
        "Whatever the model, this bound is never below 1/2, the risk of guessing, and its KL grows with n; nor does it "
        "charge for what the encoder memorises (docs/theory.md)."
    )


def _span(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _tidy(config: Config, measured: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a term; `vacuous` is the share of the seeds."""
    rows = []
    for name, terms in measured.items():
        for term in BOUND_TERMS:
            interval = over_seeds(config, terms, term)
            rows.append(
                {
                    "variant": name,
                    "label": row_label(config.reward.variants[name]),
                    "term": term,
                    "estimate": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                    "level": interval.level,
                    "resampled": interval.resampled,
                    "n_seeds": len(terms),
                }
            )
    return pd.DataFrame(rows)
