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
* Bootstrap: over prompts. A draw takes prompts with replacement, each with both games of all models, and does all of
  the above again, the style's centring included. **Upstream draws single battles**: the three of a `>>` apart, a
  prompt's two games apart, and centres the style once. That takes the judgments of a prompt for independent, which they
  are not: on the demo the half-width of SC is 3.5 points on average by battles, and about 8 by prompts.
  `resample="battles"` gives upstream's.

Source: lmarena/arena-hard-auto, the v0.1 code with style control: `utils_math.py` at commit 561534a (`compute_mle_elo`,
`fit_bt`, `construct_style_matrices`), and of that time `gen_judgment.py` (`get_score`), `show_result.py`
(`get_battles_from_row`) and `add_markdown_info.py`. Not v2.0's code, which is unseeded, reports 5-95 %, keeps the last
verdict and controls for markdown densities.

Where else we differ, all without effect on an estimate beyond its solver's tolerance: Newton's method instead of
L-BFGS; `numpy.random.Generator` instead of the global seed 42, and prompts and models in a canonical order, so that the
intervals don't depend on the order of files and rows; quantiles of win rates instead of ratings, which may be infinite,
and Weibull's (`judged_draws.percentiles`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd

from vrm.evaluation.arena_battles import battles
from vrm.evaluation.arena_fit import Array, Resample, controlled, plain_rates, resamples
from vrm.evaluation.arena_style import Style, style, style_difference, token_len
from vrm.evaluation.judged_draws import percentiles
from vrm.judging.verdicts import REASONS


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
        draws: win rates in percent of each resample of the whole table, shape (bootstrap, M), models as in `models`;
            NaN where a resample has no battle of a model. One resample is of all models: differences are paired.
        level: of the intervals, in 0..1.
        resample: what was drawn, prompts or battles.
        bootstrap: number of resamples behind the intervals.
        seed: of the resamples.
    """

    rows: pd.DataFrame
    dropped: pd.DataFrame
    baseline: str
    models: tuple[str, ...]
    style_control: bool
    style_coefficients: dict[str, float]
    draws: Array
    level: float
    resample: Resample
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
    resample: Resample = "prompts",
) -> Leaderboard:
    """Win rate of every judged model against the baseline, in percent, with intervals.

    Args:
        judgments: see `battles`.
        answers: of the judged models and the baseline, in upstream's record shape (`model_id`, `question_id`,
            `choices`). Without style control only their token counts are read, and they may be absent.
        baseline: the model that all are compared to.
        style_control: SC instead of WR.
        bootstrap: number of resamples; 0 for no intervals.
        seed: of the resamples. WR and SC of one seed see the same resamples.
        level: of the intervals; 0.95 goes from the 2.5 % to the 97.5 % quantile.
        resample: `prompts`, with all that hangs on them; or `battles` one by one, as upstream does, which is too narrow
            wherever a prompt's battles are alike (the module says by how much).

    Returns:
        The table with what it depends on. It does not depend on the order of judgments or answers.

    Raises:
        ValueError: no game has a verdict, judgments clash (see `battles`), a model answers a question twice, or, with
            style control, an answer or its `token_len` is missing.

    Source: upstream's `show_result.py`, `--style-control` or without, but for what is resampled.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1, not at {level}")
    if resample not in get_args(Resample):
        raise ValueError(f"resamples are of prompts or battles, not of {resample}")
    judgments = list(judgments)
    played, dropped = battles(judgments, baseline)
    if played.empty:
        raise ValueError(f"none of {len(dropped)} games has a verdict")
    by_key = _by_key(answers)
    models = sorted(set(played["model"]))
    questions = sorted({record["question_id"] for record in judgments}, key=str)
    counts = _counts(played, models, questions)
    rates, coefficients = plain_rates, {}
    if style_control:
        differences = _style_differences(counts, models, questions, by_key, baseline)
        rates, effects = controlled(differences, counts, again=resample == "prompts")
        coefficients = dict(zip(Style._fields, effects.tolist(), strict=True))
    rng = np.random.default_rng(seed)
    parts = [rates(sample) for sample in resamples(counts, bootstrap, rng, resample)]
    draws = np.concatenate([np.empty((0, len(models))), *parts])
    low, high = percentiles(draws, level)
    (estimate,) = rates(counts[None])
    estimates = pd.DataFrame({"model": models, "win_rate": estimate, "low": low, "high": high})
    rows, how = _rows(estimates, judgments, played, dropped, by_key), (level, resample, bootstrap, seed)
    return Leaderboard(rows, dropped, baseline, tuple(models), style_control, coefficients, draws, *how)


def _by_key(answers: Iterable[Mapping[str, Any]]) -> dict[tuple[str, Any], Mapping[str, Any]]:
    by_key: dict[tuple[str, Any], Mapping[str, Any]] = {}
    for answer in answers:
        key = answer["model_id"], answer["question_id"]
        if key in by_key:
            raise ValueError(f"{key[0]} answers {key[1]} twice")
        by_key[key] = answer
    return by_key


def _counts(played: pd.DataFrame, models: Sequence[str], questions: Sequence[Any]) -> Array:
    """Battles that the baseline won, tied and lost, shape (M, Q, 3)."""
    places = [{name: i for i, name in enumerate(names)} for names in (models, questions, (1.0, 0.5, 0.0))]
    columns = ("model", "question_id", "baseline_score")
    index = tuple(played[name].map(place).to_numpy() for name, place in zip(columns, places, strict=True))
    counts = np.zeros([len(place) for place in places])
    np.add.at(counts, index, played["weight"].to_numpy(dtype=float))
    return counts


def _style_differences(
    counts: Array,
    models: Sequence[str],
    questions: Sequence[Any],
    by_key: Mapping[tuple[str, Any], Mapping[str, Any]],
    baseline: str,
) -> Array:
    """Baseline against model, as A is the baseline in both games of upstream; 0 without a battle; shape (M, Q, 4)."""
    fought = np.argwhere(counts.sum(axis=-1))  # (R, 2)
    needed = [[(baseline, questions[q]), (models[m], questions[q])] for m, q in fought]
    absent = {key for pair in needed for key in pair} - by_key.keys()
    missing = sorted(f"{model} to {question}" for model, question in absent)
    if missing:
        raise ValueError(f"style control lacks {len(missing)} answers, the first of them that of {missing[0]}")
    styles = {key: style(by_key[key]) for pair in needed for key in pair}
    features = np.array([[styles[key] for key in pair] for pair in needed], dtype=np.float64)  # (R, 2, 4)
    differences = np.zeros((*counts.shape[:2], len(Style._fields)))
    differences[tuple(fought.T)] = style_difference(features[:, 0], features[:, 1])
    return differences


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
