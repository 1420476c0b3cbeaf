"""AlpacaEval 2's win rates at equal lengths, the official one and a stand-in, with what they are on many resamples.

* `official`: the package's `get_length_controlled_winrate`, on the official 805 instructions and with the official
  `df_gamed.csv` only. The GLM takes an instruction's difficulty by its row, so rows without a preference stay in their
  places: the package leaves them out of the fit.
* Its resamples are refitted by the package at the penalty that cross-validation chose on the whole set, and the gamed
  baselines that it is drawn towards stay as they are: 18 ms a fit instead of 85 (one core), hence `OFFICIAL_DRAWS` of
  them: 4 s a policy. On a made-up set of 805 instructions cross-validating again gave the same spread, and no value
  that was 0.06 points off.
* Its resamples are too few for a p-value, so a fit is taken apart too (`terms`): what each instruction adds to it, to
  first order, at no cost. Their mean is LC, and two policies are compared as two means of prompts are.
* `without_difficulty`: for any set, a logistic regression on the package's length feature (tanh of the standardised
  length difference) and an intercept, by maximum likelihood. It knows no difficulty and isn't drawn towards gamed
  baselines: not AlpacaEval's LC. The package's own `length_controlled_minimal` has an L1 penalty that, on some hundred
  instructions, shrinks most intercepts to 0, which is a win rate of 50 whatever was judged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.data.benchmark_files import source_of
from vrm.judged.base import join_notes
from vrm.statistics.draws import chunks
from vrm.statistics.logistic import fit_logistic, sigmoid

Array = NDArray[np.float64]

OFFICIAL_ROWS = 805

OFFICIAL_INSTRUCTIONS = "4f47f1c4d96c59940dd770082caf840988123cc6e62d0cdcc7bf104715dae8b0"
"""sha256 of AlpacaEval's instructions in their order, joined by U+001E."""

OFFICIAL_REFERENCE = "gpt4_1106_preview"

DF_GAMED = source_of("alpaca_eval/df_gamed.csv").sha256
"""Of the official file."""

LC = "length_controlled_v1"

OFFICIAL_DRAWS = 200
"""Resamples that the official LC is refitted to, at most; the first ones."""

FORMULA = "tanh(std_delta_len) + 1"
"""Of `without_difficulty`."""

HOW_FAR = "it has been up to 18 points off (37.8 where LC was 19.3)"
"""What is known of `without_difficulty` beside the official LC."""

NOT_OFFICIAL = f"not the official LC: no instruction difficulty, no gamed baselines; {HOW_FAR}"
"""Note of `without_difficulty`."""

FEWEST = 5
"""Judged instructions below which the package's cross-validation, in five parts, can't be run."""

L2 = 1e-3
"""Penalty of `without_difficulty`: of no weight, and enough that preferences which length separates have a fit."""


class Controlled(NamedTuple):
    """A win rate at equal lengths.

    Args:
        value: in percent; None where there is none.
        draws: of the resamples, in percent, shape (B,); NaN where one has no value; None where there is no value.
        n: instructions that were judged.
        note: why there is no value, or what to know about it.
        terms: of the instructions, judged or not, in percent, shape (N,), with `value` as their mean; None where a fit
            is not taken apart.
    """

    value: float | None
    draws: Array | None = None
    n: int = 0
    note: str = ""
    terms: Array | None = None


class Fitted(NamedTuple):
    """A fit of the package's: M rows, among them the gamed baselines'.

    Args:
        features: tanh of the standardised length difference, difficulty, 1 for a row of ours, shape (M, 3).
        wins: shape (M,).
        weights: shape (M,).
        coefficients: shape (3,).
        penalty: C, the inverse weight of the L1 penalty.
    """

    features: Array
    wins: Array
    weights: Array
    coefficients: Array
    penalty: float


def official(judgments: pd.DataFrame, gamed: Path, draws: NDArray[np.int64], note: str) -> Controlled:
    """The package's length-controlled win rate.

    Args:
        judgments: all rows in their places, preference NaN where one failed.
        gamed: the set's df_gamed.csv.
        draws: how often each resample has each row, shape (B, N).
        note: what its note begins with.
    """
    why_not = _why_no_lc(judgments, gamed)
    if why_not:
        return Controlled(None, note=why_not)
    reference = judgments["generator_1"].iloc[0]
    if reference != OFFICIAL_REFERENCE:
        note = join_notes(note, f"difficulty is that against {OFFICIAL_REFERENCE}, not {reference}")
    judgments = judgments.reset_index(drop=True)  # a row's number is what the package finds its difficulty by
    with _package(gamed) as (fit, fits):
        counts = fit(judgments, None)
        drawn = np.full(len(draws), np.nan)
        for i, times in enumerate(draws[:OFFICIAL_DRAWS]):
            sample = judgments.loc[np.repeat(judgments.index, times)]
            if not _why_no_fit(sample[sample["preference"].notna()]):
                drawn[i] = fit(sample, fits[0].penalty)["length_controlled_winrate"]
    value, difficulty = float(counts["length_controlled_winrate"]), _difficulty(gamed)[: len(judgments)]
    judged = judgments["preference"].notna().to_numpy()
    parts = value + 100 * terms(fits[0], _length_difference(judgments).to_numpy(), difficulty, judged)
    return Controlled(value, drawn, int(counts["n_total"]), note, parts)


def terms(fitted: Fitted, difference: Array, difficulty: Array, judged: NDArray[np.bool_]) -> Array:
    """What each of N instructions adds to LC, as a share, by the derivative of the fit in its weight; mean 0.

    Three things change with an instruction's weight: the mean of the predicted rates, the coefficients, and the
    standard deviation that length differences are divided by. A coefficient that the L1 penalty holds at 0 counts as
    free: resamples set it free too, so that without it the terms would vary less than the fit does.

    Args:
        fitted: the fit to the judged ones of these instructions and to the gamed baselines.
        difference: characters of the reference's output less those of ours, shape (N,).
        difficulty: of each instruction, shape (N,).
        judged: which have a preference, shape (N,).

    Returns:
        Shape (N,).

    Source: the infinitesimal jackknife, Jaeckel 1972; Efron 1982, "The jackknife, the bootstrap and other resampling
    plans", chapter 6.
    """
    x, beta, number = fitted.features, fitted.coefficients, len(difference)
    at_equal = np.stack([np.zeros(number), difficulty, np.ones(number)], axis=1)
    rates, p = sigmoid(at_equal @ beta), sigmoid(x @ beta)
    own = x[:, 2] == 1
    curvature = fitted.weights * p * (1 - p)
    gradient = (rates * (1 - rates)) @ at_equal / number
    towards = np.linalg.solve((x * curvature[:, None]).T @ x, gradient)  # what a step of the score does to the rate
    scores = np.zeros((number, 3))
    scores[judged] = x[own] * (fitted.wins - p)[own, None]

    spread = difference.std(ddof=1)
    stretched = (1 - x[own, 0] ** 2) * -difference[judged] / spread**2  # d tanh / d spread
    by_spread = -(x[own].T @ (curvature[own] * beta[0] * stretched))
    by_spread[0] += ((fitted.wins - p)[own] * stretched).sum()
    of_spread = ((difference - difference.mean()) ** 2 - spread**2) / (2 * spread * number)
    found = rates + number * (scores @ towards + of_spread * (by_spread @ towards))
    return found - found.mean()


def _difficulty(gamed: Path) -> Array:
    """Of each instruction, as the package reads it."""
    table = pd.read_csv(gamed)
    return table.drop_duplicates("index").sort_values("index")["instruction_difficulty"].to_numpy(dtype=float)


@contextmanager
def _package(gamed: Path) -> Iterator[tuple[Callable[[pd.DataFrame, float | None], dict[str, Any]], list[Fitted]]]:
    """The package's fit, by cross-validation or with a given C, and each fit so far.

    It fetches df_gamed.csv from the hub whenever it is called, and sets scikit-learn's routing for good.
    """
    import sklearn
    from alpaca_eval.metrics import glm_winrate

    fits: list[Fitted] = []
    by_package = glm_winrate.fit_LogisticRegressionCV

    def noted(data: pd.DataFrame, preference: str, sample_weight: Any, **kwargs: Any) -> Any:
        model = by_package(data, preference, sample_weight=sample_weight, **kwargs)
        penalty = float(model.C_[0]) if kwargs["n_splits"] else kwargs["C"]
        features = data.drop(columns=preference).to_numpy(dtype=float)
        parts = features, data[preference].to_numpy(dtype=float), np.asarray(sample_weight, dtype=float)
        fits.append(Fitted(*parts, model.coef_[0].astype(float), penalty))
        return model

    def fit(judgments: pd.DataFrame, c: float | None) -> dict[str, Any]:
        return glm_winrate.get_length_controlled_winrate(
            judgments,
            glm_name=LC,
            glm_info=None if c is None else {**glm_winrate.GLM_INFO[LC], "kwargs": {"n_splits": 0, "C": c}},
            save_weights_dir=None,
            is_add_glm_preference_inplace=False,
            is_warn_extreme_changes=False,
        )

    with (
        patch.object(glm_winrate, "hf_hub_download", lambda **_: str(gamed)),
        patch.object(glm_winrate, "fit_LogisticRegressionCV", noted),
        sklearn.config_context(),
    ):
        yield fit, fits


def _why_no_lc(judgments: pd.DataFrame, gamed: Path) -> str:
    """Why there is no official length-controlled win rate; "" if there is one."""
    instructions = "\x1e".join(judgments["instruction"])
    if len(judgments) != OFFICIAL_ROWS or hashlib.sha256(instructions.encode()).hexdigest() != OFFICIAL_INSTRUCTIONS:
        return "LC is defined for the official 805 instructions"
    if not gamed.is_file():
        return "df_gamed.csv is not there"
    if hashlib.sha256(gamed.read_bytes()).hexdigest() != DF_GAMED:
        return "df_gamed.csv is not the official file"
    return _why_no_fit(judgments[judgments["preference"].notna()])


def _why_no_fit(judged: pd.DataFrame) -> str:
    if len(judged) < FEWEST:
        return f"fewer than {FEWEST} judgments"
    if not _length_difference(judged).std() > 0:
        return "all length differences are equal"
    return ""


def without_difficulty(judged: pd.DataFrame, draws: NDArray[np.int64], note: str) -> Controlled:
    """The win rate at equal lengths of any set.

    Args:
        judged: the rows that have a preference.
        draws: how often each resample has each of them, shape (B, N).
        note: what its note begins with.
    """
    why_not = _why_no_fit(judged)
    if why_not:
        return Controlled(None, note=why_not)
    wins, difference = (judged["preference"] - 1).to_numpy(), _length_difference(judged).to_numpy()
    note = join_notes(note, NOT_OFFICIAL)
    whole = at_equal_length(wins, difference, np.ones((1, len(judged))))
    edges = np.cumsum([0, *chunks(len(draws), len(judged))])
    parts = [at_equal_length(wins, difference, draws[a:b]) for a, b in pairwise(edges)]
    return Controlled(float(100 * whole[0]), 100 * np.concatenate([[], *parts]), len(judged), note)


def at_equal_length(wins: Array, difference: Array, weights: NDArray) -> Array:
    """Our win rates (0..1) at equal lengths: the sigmoids of the intercepts beside the length term.

    Args:
        wins: ours, 0..1, shape (N,).
        difference: characters of the reference's output less those of ours, shape (N,).
        weights: how often each of B samples has each row, shape (B, N).

    Returns:
        Shape (B,); NaN for a sample without a row.

    Source: the features of `get_length_controlled_winrate`'s `length_controlled_minimal`; fitted by us.
    """
    n = weights.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        mean = weights @ difference[:, None] / n
    squares = (weights * (difference - mean) ** 2).sum(axis=1, keepdims=True)
    spread = np.sqrt(squares / np.maximum(n - 1, 1))
    length = np.tanh(difference / np.where(spread > 1e-6, spread, 1.0))  # (B, N); whole characters differ by 1
    outcomes = weights * wins, weights * (1 - wins)
    fitted = fit_logistic(length[:, None, :, None], *(part[:, None] for part in outcomes), L2 * np.eye(2))
    return np.where(n[:, 0] > 0, sigmoid(fitted[:, 0]), np.nan)


def _length_difference(judged: pd.DataFrame) -> pd.Series:
    return (judged["output_1"].str.len() - judged["output_2"].str.len()).astype(float)
