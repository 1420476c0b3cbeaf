r"""Arena-Hard v0.1: win rates against one baseline, plain (WR) and style-controlled (SC), with seeded intervals.

* Two games a prompt: in game 1 the baseline is A, in game 2 the model is A. A game is one battle, or three where its
  verdict is `>>`; a tie is half a win each way. A game without one clear verdict is dropped, counted and named.
* WR is the unpenalised Bradley-Terry win rate against the baseline. Every battle is against that one baseline, so its
  maximum-likelihood estimate has a closed form, which is used: the mean over the model's battles. It also holds for
  models that win or lose everything, where an iterative fit would never end.
* SC adds four style differences to the Bradley-Terry model and penalises all coefficients. The fit is joint and the
  style differences are centred over all battles, so that **SC depends on the set of models**: the set is recorded.
  Centring also means that SC is the win rate at the table's mean style difference to the baseline, not at none: it
  sets the table's models right against one another, but in a table of one model, what that model's style differs by
  everywhere alike is not controlled for.
* Bootstrap: over battles, as upstream (the three of a `>>` are drawn apart, and so are a prompt's two games).

Source: lmarena/arena-hard-auto, the v0.1 code with style control: `utils_math.py` at commit 561534a (`compute_mle_elo`,
`fit_bt`, `construct_style_matrices`), and of that time `gen_judgment.py` (`get_score`), `show_result.py`
(`get_battles_from_row`) and `add_markdown_info.py`. Not v2.0's code, which is unseeded, reports 5-95 %, keeps the last
verdict and controls for markdown densities.

Where we differ, all without effect on an estimate beyond its solver's tolerance: Newton's method instead of L-BFGS;
`numpy.random.Generator` instead of the global seed 42, and battles in a canonical order, so that the intervals don't
depend on the order of files and rows; quantiles of win rates instead of ratings, which may be infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vrm.evaluation.arena_battles import battles
from vrm.evaluation.arena_style import Style, style, style_difference, token_len
from vrm.evaluation.logistic import fit_logistic, sigmoid
from vrm.judging.verdicts import REASONS

Array = NDArray[np.float64]
Rates = Callable[[Array], Array]
"""Win rates in percent, shape (M,), from the battles that the baseline won, tied and lost in each match, (R, 3)."""

L2 = 1.0
"""Penalty of the style-controlled fit: half of this times the squared norm of all coefficients (scikit-learn's C=1)."""

COPIES = 2
"""Upstream writes every battle twice (a tie once as a win and once as a loss), which halves the penalty's share."""

SCALE = math.log(10)
"""Entry of a model's column in upstream's design, for ratings on Elo's scale; it sets how hard L2 pulls on them."""


@dataclass(frozen=True)
class Leaderboard:
    """Win rates against the baseline, and everything that they depend on.

    Args:
        rows: one row a judged model, best first: `model`; `win_rate`, `low`, `high` in percent (NaN where the model
            has no battle; `low` and `high` NaN without bootstraps); `prompts` and `games` counted; `battles`, their
            number with `>>` thrice; `dropped`, games; `tokens`, mean `token_len` of its answers (NaN if unknown).
        dropped: one row a dropped game: `model`, `question_id`, `game` (1 or 2), `reason` (of `REASONS`).
        baseline: the model that all are compared to; its win rate is 50 by definition, and it has no row.
        models: the models in the fit, sorted, without the baseline: SC's scores hold for this set only.
        style_control: whether the win rates are SC or WR.
        style_coefficients: effect of one standard deviation of each style difference on the log-odds of a win; empty
            for WR.
        level: of the intervals, in 0..1.
        bootstrap: number of resamples behind the intervals.
        seed: of the resamples.
    """

    rows: pd.DataFrame
    dropped: pd.DataFrame
    baseline: str
    models: tuple[str, ...]
    style_control: bool
    style_coefficients: dict[str, float]
    level: float
    bootstrap: int
    seed: int

    @property
    def dropped_by_reason(self) -> dict[str, int]:
        """Number of dropped games by reason; every reason is there."""
        counts = self.dropped["reason"].value_counts()
        return {reason: int(counts.get(reason, 0)) for reason in REASONS}


def leaderboard(
    judgments: Iterable[Mapping[str, Any]],
    answers: Iterable[Mapping[str, Any]],
    baseline: str,
    style_control: bool = False,
    *,
    bootstrap: int = 100,
    seed: int = 42,
    level: float = 0.95,
) -> Leaderboard:
    """Win rate of every judged model against the baseline, in percent, with intervals.

    Args:
        judgments: see `battles`.
        answers: of the judged models and the baseline, in upstream's record shape (`model_id`, `question_id`,
            `choices`). Without style control only their token counts are read, and they may be absent.
        baseline: the model that all are compared to.
        style_control: SC instead of WR.
        bootstrap: number of resamples of the battles; 0 for no intervals.
        seed: of the resamples. WR and SC of one seed see the same resamples.
        level: of the intervals; 0.95 goes from the 2.5 % to the 97.5 % quantile.

    Returns:
        The table with what it depends on. It does not depend on the order of judgments or answers.

    Raises:
        ValueError: no game has a verdict, judgments clash (see `battles`), a model answers a question twice, or, with
            style control, an answer or its `token_len` is missing.

    Source: upstream's `show_result.py`, `--style-control` or without.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1, not at {level}")
    judgments = list(judgments)
    played, dropped = battles(judgments, baseline)
    if played.empty:
        raise ValueError(f"none of {len(dropped)} games has a verdict")
    by_key = _by_key(answers)
    matches, counts = _matches(played)  # R matches of a model and a question; battles won, tied, lost: (R, 3)
    models, model_of = np.unique(matches["model"].to_numpy(dtype=str), return_inverse=True)  # (M,), (R,)
    rates, coefficients = _plain_rates(model_of, len(models)), {}
    if style_control:
        differences = standardise(_style_differences(matches, by_key, baseline), counts.sum(axis=1))
        rates, coefficients = _controlled_rates(model_of, len(models), differences, counts)
    low, high = _intervals(rates, counts, model_of, len(models), bootstrap, np.random.default_rng(seed), level)
    estimates = pd.DataFrame({"model": models, "win_rate": rates(counts), "low": low, "high": high})
    rows, names = _rows(estimates, judgments, played, dropped, by_key), tuple(models.tolist())
    return Leaderboard(rows, dropped, baseline, names, style_control, coefficients, level, bootstrap, seed)


def standardise(values: ArrayLike, weights: ArrayLike) -> Array:
    """Columns of shape (R, K) with weighted mean 0 and standard deviation 1 (not Bessel's), weights of shape (R,).

    A column that never varies becomes 0, so that its coefficient is 0; upstream divides by zero there.
    """
    values, weights = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    centred = values - np.average(values, axis=0, weights=weights)
    deviation = np.sqrt(np.average(centred**2, axis=0, weights=weights))
    varies = deviation > 1e-12
    return np.where(varies, centred / np.where(varies, deviation, 1.0), 0.0)


def _by_key(answers: Iterable[Mapping[str, Any]]) -> dict[tuple[str, Any], Mapping[str, Any]]:
    by_key: dict[tuple[str, Any], Mapping[str, Any]] = {}
    for answer in answers:
        key = answer["model_id"], answer["question_id"]
        if key in by_key:
            raise ValueError(f"{key[0]} answers {key[1]} twice")
        by_key[key] = answer
    return by_key


def _matches(played: pd.DataFrame) -> tuple[pd.DataFrame, Array]:
    """Each model and question that have a battle, and the battles that the baseline won, tied and lost, (R, 3)."""
    keys = ["model", "question_id"]
    outcome = played["baseline_score"].map({1.0: 0, 0.5: 1, 0.0: 2})
    row = played.groupby(keys, sort=False).ngroup().to_numpy()  # in order of appearance, which is canonical
    counts = np.zeros((row.max() + 1, 3))
    np.add.at(counts, (row, outcome.to_numpy()), played["weight"].to_numpy(dtype=float))
    return played[keys].drop_duplicates().reset_index(drop=True), counts


def _style_differences(
    matches: pd.DataFrame, by_key: Mapping[tuple[str, Any], Mapping[str, Any]], baseline: str
) -> Array:
    """Baseline against model, as A is the baseline in upstream's battles of both games; shape (R, 4)."""
    needed = [
        [(baseline, question), (model, question)]
        for model, question in zip(matches["model"], matches["question_id"], strict=True)
    ]
    absent = {key for pair in needed for key in pair} - by_key.keys()
    missing = sorted(f"{model} to {question}" for model, question in absent)
    if missing:
        raise ValueError(f"style control lacks {len(missing)} answers, the first of them that of {missing[0]}")
    styles = {key: style(by_key[key]) for pair in needed for key in pair}
    features = np.array([[styles[key] for key in pair] for pair in needed], dtype=np.float64)  # (R, 2, 4)
    return style_difference(features[:, 0], features[:, 1])


def _plain_rates(model_of: NDArray[np.int64], n_models: int) -> Rates:
    """WR: the mean score of each model over its battles; NaN for a model without battles."""

    def rates(counts: Array) -> Array:
        total = np.bincount(model_of, weights=counts.sum(axis=1), minlength=n_models)
        score = np.bincount(model_of, weights=counts[:, 2] + counts[:, 1] / 2, minlength=n_models)
        return 100 * np.divide(score, total, out=np.full(n_models, np.nan), where=total > 0)

    return rates


def _controlled_rates(
    model_of: NDArray[np.int64], n_models: int, differences: Array, counts: Array
) -> tuple[Rates, dict[str, float]]:
    """SC: win rates at the mean style difference, and the coefficients of the style, fitted to all battles."""
    design = np.hstack([_model_columns(model_of, n_models), differences])  # (R, 1 + M + 4)
    fitted = _fit(design, counts)

    def rates(sample: Array) -> Array:
        found = fitted if sample is counts else _fit(design, sample, start=fitted)
        return 100 * sigmoid(SCALE * (found[1 : 1 + n_models] - found[0]))

    return rates, dict(zip(Style._fields, fitted[-len(Style._fields) :].tolist(), strict=True))


def _model_columns(model_of: NDArray[np.int64], n_models: int) -> Array:
    """Upstream's Bradley-Terry design, shape (R, 1 + M): +log 10 for the baseline, -log 10 for the model."""
    columns = np.zeros((len(model_of), 1 + n_models))
    columns[:, 0] = SCALE
    columns[np.arange(len(model_of)), 1 + model_of] = -SCALE
    return columns


def _fit(design: Array, counts: Array, start: Array | None = None) -> Array:
    """Upstream's `fit_bt`: coefficients of the baseline, the models and the style, shape (1 + M + 4,)."""
    won, tied, lost = counts.T
    return fit_logistic(design, COPIES * (won + tied / 2), COPIES * (lost + tied / 2), l2=L2, start=start)


def _intervals(
    rates: Rates,
    counts: Array,
    model_of: NDArray[np.int64],
    n_models: int,
    bootstrap: int,
    generator: np.random.Generator,
    level: float,
) -> tuple[Array, Array]:
    """Quantiles of the win rates over resamples of all battles with replacement, each of shape (M,)."""
    if not bootstrap:
        return np.full(n_models, np.nan), np.full(n_models, np.nan)
    n = int(counts.sum())
    samples = np.empty((bootstrap, n_models))
    for i in range(bootstrap):
        sample = generator.multinomial(n, counts.ravel() / n).reshape(counts.shape).astype(np.float64)
        drawn = np.bincount(model_of, weights=sample.sum(axis=1), minlength=n_models) > 0
        samples[i] = np.where(drawn, rates(sample), np.nan)  # a model that was not drawn has no win rate
    low, high = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _rows(
    estimates: pd.DataFrame,
    judgments: list[Mapping[str, Any]],
    played: pd.DataFrame,
    dropped: pd.DataFrame,
    by_key: Mapping[tuple[str, Any], Mapping[str, Any]],
) -> pd.DataFrame:
    judged = pd.DataFrame({"model": sorted({record["model"] for record in judgments})})
    games = played.groupby("model").agg(
        prompts=("question_id", "nunique"), games=("game", "size"), battles=("weight", "sum")
    )
    rows = judged.merge(estimates, on="model", how="left").set_index("model").join(games)
    rows["dropped"] = dropped.groupby("model").size()
    numbers = ["prompts", "games", "battles", "dropped"]
    rows[numbers] = rows[numbers].fillna(0).astype(int)
    tokens: dict[str, list[float]] = {model: [] for model in rows.index}
    for (model, _), answer in by_key.items():
        if model in tokens:
            count = token_len(answer)
            tokens[model].append(np.nan if count is None else count)
    rows["tokens"] = [float(np.mean(counts)) if counts else np.nan for counts in tokens.values()]
    return rows.reset_index().sort_values(["win_rate", "model"], ascending=[False, True], ignore_index=True)
