"""Arena-Hard v0.1: win rates against one baseline, plain (WR) and style-controlled (SC), with seeded intervals.

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
* A table is a grid of M models and Q questions, and how many battles the baseline won, tied and lost in each: counts of
  shape (M, Q, 3), zeros where nothing was judged. B resamples of it have shape (B, M, Q, 3).
* Upstream gives the baseline and every model a rating and penalises them all. Only differences of a model's rating to
  the baseline's matter: with r the ratings and u = r_model - r_baseline, the least |r|^2 for a given u is
  u' (I - 11' / (M + 1)) u. So one intercept a model and that penalty give upstream's minimum.

Source: lmarena/arena-hard-auto, the v0.1 code with style control: `utils_math.py` at commit 561534a (`compute_mle_elo`,
`fit_bt`, `construct_style_matrices`), and of that time `gen_judgment.py` (`get_score`), `show_result.py`
(`get_battles_from_row`) and `add_markdown_info.py`. Not v2.0's code, which is unseeded, reports 5-95 %, keeps the last
verdict and controls for markdown densities.

Where else we differ, all without effect on an estimate beyond its solver's tolerance: Newton's method instead of
L-BFGS; `numpy.random.Generator` instead of the global seed 42, and prompts and models in a canonical order, so that the
intervals don't depend on the order of files and rows; quantiles of win rates instead of ratings, which may be infinite,
and Weibull's (`draws.percentiles`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vrm.config import Config, JudgedPolicy
from vrm.config.benchmarks import FILES
from vrm.data.benchmark_sets import read_arena_baseline, read_arena_hard
from vrm.judged.arena_hard import REASONS, battles, read_arena_policy
from vrm.judged.base import (
    Row,
    base_record,
    count_failed,
    draws_table,
    interval_record,
    join_notes,
    read_judgments,
    score_row,
    terms_table,
)
from vrm.records import RecordError
from vrm.runfiles import JUDGED_ITEMS, JUDGED_SCORES, JudgedTables, draw_column
from vrm.statistics.draws import chunks, percentiles, question_draws
from vrm.statistics.logistic import fit_logistic, sigmoid

CODE_BLOCK = re.compile(r"```([^`]*)```")

HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)

LIST_ITEMS = (re.compile(r"^\s*\d+\.\s", re.MULTILINE), re.compile(r"^\s*[-*+]\s", re.MULTILINE))

BOLD = (re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__"))


class Style(NamedTuple):
    """What is controlled for, of one answer; the order is that of `Leaderboard.style_coefficients`."""

    token_len: int
    header_count: int
    list_count: int
    bold_count: int


def count_markdown(text: str) -> tuple[int, int, int]:
    """Numbers of headers, list items and bold spans of an answer, code blocks stripped.

    Upstream strips a block by deleting what stands between its fences from everywhere in the answer; the fences stay.

    Source: `add_markdown_info.py`, `remove_pattern` and `count_markdown_elements`, its sub-counts summed as in
    `construct_style_matrices`.
    """
    for block in CODE_BLOCK.findall(text):
        text = text.replace(block, "")
    lists, bold = (sum(len(pattern.findall(text)) for pattern in patterns) for patterns in (LIST_ITEMS, BOLD))
    return len(HEADER.findall(text)), lists, bold


def style(answer: Mapping[str, Any]) -> Style:
    """Style of one answer, in upstream's record shape; Arena-Hard has one turn.

    Args:
        answer: with `choices[0].turns[0].content`, and `token_len` in that turn or in `conv_metadata`: upstream's
            token count by tiktoken's encoding for gpt-3.5-turbo. It is read, never estimated.

    Raises:
        ValueError: no `token_len`, or no text; names the model and the question.
    """
    name = f"the answer of {answer['model_id']} to {answer['question_id']}"
    tokens = token_len(answer)
    if tokens is None:
        raise ValueError(f"{name} has no token_len, which style control needs")
    text = answer["choices"][0]["turns"][0].get("content")
    if not isinstance(text, str):
        raise ValueError(f"{name} has no text")
    return Style(tokens, *count_markdown(text))


def style_difference(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """(a - b) / (a + b + 1) of each style count, in -1..1; both and the result of shape (..., 4).

    Source: `construct_style_matrices` with `add_one` and a ratio for all four.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return (a - b) / (a + b + 1)


def token_len(answer: Mapping[str, Any]) -> int | None:
    """Upstream's token count of an answer; None where it has none."""
    tokens = answer["choices"][0]["turns"][0].get("token_len")
    return (answer.get("conv_metadata") or {}).get("token_len") if tokens is None else tokens


Array = NDArray[np.float64]

Resample = Literal["prompts", "battles"]

Rates = Callable[[Array], Array]
"""Win rates in percent, shape (B, M), of resamples of a table, shape (B, M, Q, 3)."""

L2 = 1.0
"""Penalty of the style-controlled fit: half of this times the squared norm of all coefficients (scikit-learn's C=1)."""

COPIES = 2
"""Upstream writes every battle twice (a tie once as a win and once as a loss), which halves the penalty's share."""

SCALE = math.log(10)
"""Entry of a model's column in upstream's design, for ratings on Elo's scale; it sets how hard L2 pulls on them."""


def resamples(counts: Array, number: int, rng: np.random.Generator, resample: Resample) -> Iterator[Array]:
    """Resamples of a table, a few at a time, each of shape (B, M, Q, 3).

    Args:
        counts: the table, shape (M, Q, 3).
        number: of resamples, in all.
        rng: source of the draws.
        resample: `prompts` draws questions with replacement, each with all its battles of all models; `battles` draws
            single battles, as upstream does.
    """
    total = int(counts.sum())
    for size in chunks(number, counts[..., 0].size):
        if resample == "prompts":
            yield question_draws(counts.shape[1], size, rng)[:, None, :, None] * counts
        else:
            drawn = rng.multinomial(total, counts.ravel() / total, size)
            yield drawn.reshape(size, *counts.shape).astype(np.float64)


def plain_rates(sample: Array) -> Array:
    """WR in percent, shape (B, M): the mean score of each model over its battles; NaN for a model without any."""
    won, tied, lost = np.moveaxis(sample.sum(axis=2), -1, 0)  # by the baseline
    total = won + tied + lost
    return 100 * np.divide(lost + tied / 2, total, out=np.full_like(total, np.nan), where=total > 0)


def controlled(differences: Array, counts: Array, again: bool) -> tuple[Rates, Array]:
    """What computes SC of resamples of a table, and the style's coefficients in the whole of it.

    Args:
        differences: of style, shape (M, Q, K).
        counts: the table, shape (M, Q, 3).
        again: a resample centres and scales the style by its own battles, and not by all.

    Returns:
        Win rates by resamples, and coefficients in log-odds of the baseline's win a standard deviation, shape (K,).
    """
    flat = differences.reshape(-1, differences.shape[-1])

    def standardised(sample: Array) -> Array:
        weights = sample.sum(axis=-1).reshape(len(sample), -1)
        return standardise(flat, weights).reshape(len(sample), *differences.shape)

    whole = standardised(counts[None])
    (fitted,) = controlled_fit(whole, counts[None])

    def rates(sample: Array) -> Array:
        return controlled_rates(controlled_fit(standardised(sample) if again else whole, sample, fitted), sample)

    return rates, fitted[len(counts) :]


def controlled_fit(standardised: Array, sample: Array, start: Array | None = None) -> Array:
    """Upstream's `fit_bt` of B resamples at once.

    Args:
        standardised: style differences, shape (B, M, Q, K) or (1, M, Q, K) if all share them.
        sample: shape (B, M, Q, 3).
        start: where Newton's method begins, shape (M + K,).

    Returns:
        Log-odds that the baseline wins, at a style difference of 0, by model; then the coefficients of the style, in
        log-odds a standard deviation; shape (B, M + K).
    """
    models, style = standardised.shape[1], standardised.shape[-1]
    penalty = L2 * np.eye(models + style)
    penalty[:models, :models] = L2 / SCALE**2 * (np.eye(models) - 1 / (models + 1))
    won, tied, lost = np.moveaxis(sample, -1, 0)
    return fit_logistic(standardised, COPIES * (won + tied / 2), COPIES * (lost + tied / 2), penalty, start)


def controlled_rates(fitted: Array, sample: Array) -> Array:
    """SC in percent, shape (B, M): win rates at the mean style difference; NaN for a model without a battle."""
    fought = sample.sum(axis=(2, 3)) > 0
    return np.where(fought, 100 * sigmoid(-fitted[:, : sample.shape[1]]), np.nan)


def standardise(values: ArrayLike, weights: ArrayLike) -> Array:
    """Columns with weighted mean 0 and standard deviation 1 (not Bessel's), by each of many weightings.

    A column that never varies becomes 0, so that its coefficient is 0; upstream divides by zero there.

    Args:
        values: shape (R, K).
        weights: shape (..., R), >= 0.

    Returns:
        Shape (..., R, K).
    """
    values, weights = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    share = weights / weights.sum(axis=-1, keepdims=True)
    centred = values - (share @ values)[..., None, :]
    deviation = np.sqrt(share[..., None, :] @ centred**2)  # (..., 1, K)
    varies = deviation > 1e-12
    return np.where(varies, centred / np.where(varies, deviation, 1.0), 0.0)


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
        resample: `prompts`, with everything that belongs to them; or `battles` one by one, as upstream does, which is
            too narrow wherever a prompt's battles are alike (the module says by how much).

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


UNSTATED = "the baseline's file does not say how its tokens were counted"


def arena_hard_scores(config: Config, results: Path) -> JudgedTables:
    """Arena-Hard of every judged policy: WR, SC, mean tokens of an answer.

    Raises:
        ConfigError, RecordError: answers' tokens were counted in several ways, or files don't belong together.
    """
    settings, sets = config.benchmarks.arena_hard, results / "judged" / "sets" / "arena_hard"
    questions, baseline = read_arena_hard(sets), read_arena_baseline(sets, settings)
    ids = [question.question_id for question in questions]
    answers: dict[str, list[Row]] = {}
    judgments: dict[str, list[Row]] = {}
    for judged in config.judged_policies:
        path = results / judged.folder / "answers" / FILES["arena_hard"]
        answers[judged.name] = list(read_arena_policy(path, questions, judged.name).values())
        _require_counter(path, answers[judged.name], settings.token_counter)
        judgments[judged.name] = read_judgments(config, results, judged, "arena_hard", [(key,) for key in ids])
    boards = _leaderboards(config, _all(judgments), [*baseline, *_all(answers)])
    unstated = any((row.get("conv_metadata") or {}).get("token_counter") is None for row in baseline)
    rows, items, policies = [], [], {}
    for judged in config.judged_policies:
        games = [game for row in judgments[judged.name] for game in row["games"]]
        failed, note = count_failed(games, "games")
        lengths = [token_len(answer) for answer in answers[judged.name]]
        for metric, board in boards.items():
            style = UNSTATED if metric == "sc_win_rate" and unstated else ""
            rows.append(score_row(judged, metric, *_rates(board, judged.name), join_notes(note, style)))
        rows.append(score_row(judged, "length", float(np.mean(lengths)), n=len(lengths)))
        items += _arena_items(judged, judgments[judged.name], settings.baseline)
        policies[judged.name] = {"failed": failed, "games": len(games)}
    record = {
        **base_record(config, "arena_hard", policies),
        **_fits(boards),
        "definition": "lmarena/arena-hard-auto v0.1 with style control, commit 561534a",
        "baseline": settings.baseline,
        "reference_length": float(np.mean([token_len(row) for row in baseline])),
        "token_counter": settings.token_counter,
        "baseline_token_counter": None if unstated else settings.token_counter,
        "intervals": interval_record(config, "prompts", settings.bootstrap_samples),
    }
    return JudgedTables(
        pd.DataFrame(rows, columns=list(JUDGED_SCORES.columns)),
        pd.DataFrame(items, columns=list(JUDGED_ITEMS.columns)),
        _draws(boards),
        terms_table([], {}),
        record,
    )


def _leaderboards(config: Config, judgments: Sequence[Row], answers: Sequence[Row]) -> dict[str, Leaderboard | None]:
    """WR and SC by metric; None where no game at all has a verdict."""
    settings = config.benchmarks.arena_hard
    played, _ = battles(judgments, settings.baseline)
    if played.empty:
        return {"win_rate": None, "sc_win_rate": None}
    return {
        metric: leaderboard(
            judgments,
            answers,
            settings.baseline,
            style_control,
            bootstrap=settings.bootstrap_samples,
            seed=config.report.seed,
            level=config.report.level,
        )
        for metric, style_control in (("win_rate", False), ("sc_win_rate", True))
    }


def _rates(board: Leaderboard | None, model: str) -> tuple[float, float, float, int]:
    """Value, low, high and number of prompts of a model; NaN and 0 without a battle."""
    if board is None:
        return math.nan, math.nan, math.nan, 0
    (row,) = board.rows[board.rows["model"] == model].itertuples()
    return row.win_rate, row.low, row.high, row.prompts


def _draws(boards: Mapping[str, Leaderboard | None]) -> pd.DataFrame:
    """SC of every resample; WR is a mean, of which the items say more."""
    board = boards["sc_win_rate"]
    if board is None:
        return draws_table({})
    return draws_table({draw_column(model, "sc_win_rate"): board.draws[:, i] for i, model in enumerate(board.models)})


def _fits(boards: Mapping[str, Leaderboard | None]) -> Row:
    """What SC depends on, and what was dropped."""
    board = boards["sc_win_rate"]
    if board is None:
        return {"models": [], "style_coefficients": {}}
    return {
        "models": list(board.models),
        "style_coefficients": board.style_coefficients,
        "dropped": board.dropped_by_reason,
    }


def _arena_items(judged: JudgedPolicy, judgments: Sequence[Row], baseline: str) -> list[Row]:
    """The model's mean score over its battles of each question that has any, in the questions' order."""
    played, _ = battles(judgments, baseline)
    won = played["weight"] * (1 - played["baseline_score"])
    totals = played.assign(won=won).groupby("question_id")[["won", "weight"]].sum()
    ids = [row["question_id"] for row in judgments if row["question_id"] in totals.index]
    return [
        {**judged._asdict(), "item_id": key, "part": "", "value": row.won / row.weight, "weight": row.weight}
        for key, row in zip(ids, totals.loc[ids].itertuples(), strict=True)
    ]


def _require_counter(path: Path, answers: Iterable[Row], counter: str) -> None:
    """Raises RecordError where an answer's tokens were counted in another way than the baseline's."""
    for row in answers:
        found = (row.get("conv_metadata") or {}).get("token_counter", counter)
        if found != counter:
            raise RecordError(
                f"{path}, question {row['question_id']}: its tokens were counted by {found!r}, and the others' by "
                f"{counter!r} (benchmarks.arena_hard.token_counter); answer the set again"
            )


def _all(parts: Mapping[str, Sequence[Row]]) -> list[Row]:
    return [row for part in parts.values() for row in part]
