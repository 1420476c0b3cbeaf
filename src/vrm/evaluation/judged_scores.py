"""The stage `vrm judged-scores`: every judged policy on one benchmark, from its judgments.

    <out>.csv         base,method,seed,metric,value,low,high,n,note: one row a policy and metric
    <out>.items.csv   base,method,seed,item_id,part,value,weight: what the means are means of, judged ones only
    <out>.draws.csv   draw,<policy>/<metric>,...: LC and SC, which are fits and no means, of each resample of the
                      questions; one resample is of all policies, so that their differences are paired
    <out>.json        what the numbers depend on: the judge, the set of models, what has no judgment

All policies are scored at once, because Arena-Hard's style control is fitted over the whole table. A judgment that is
missing is in no mean; the note of each number counts them, and the record names the reasons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vrm.config import Config, ConfigError, JudgedPolicy
from vrm.config.benchmarks import FILES, BenchmarkName
from vrm.data.benchmark_sets import QuestionId, read_arena_baseline, read_arena_hard, read_mt_bench
from vrm.evaluation import arena_hard, mt_bench
from vrm.evaluation.arena_battles import battles
from vrm.evaluation.arena_style import token_len
from vrm.evaluation.judged_draws import column, draws_table
from vrm.evaluation.judged_tables import (
    ITEMS,
    SCORES,
    Row,
    Tables,
    base_record,
    count_failed,
    interval_record,
    join_notes,
    read_judgments,
    score_row,
)
from vrm.evaluation.mt_bench import TURNS
from vrm.judging.policy_answers import read_arena_policy, read_mt_policy
from vrm.judging.verdicts import parse_rating
from vrm.records import RecordError, write_json, write_whole

UNSTATED = "the baseline's file does not say how its tokens were counted"


def write_scores(config: Config, name: BenchmarkName, results: Path, out: Path) -> None:
    """Score every judged policy on one benchmark.

    Args:
        config: the policies and the benchmark's settings.
        name: the benchmark.
        results: the run's directory.
        out: CSV of the scores; items, draws and record are written beside it.

    Raises:
        ConfigError: no policy is judged.
        RecordError: answers, judgments and set don't belong together.
    """
    if not config.judged_policies:
        raise ConfigError("no policy is judged: name benchmarks in benchmarks.run and bases in policy.run_bases")
    scores, items, draws, record = _scorer(name)(config, results)
    write_whole(out, scores.to_csv(index=False))
    write_whole(out.with_suffix(".items.csv"), items.to_csv(index=False))
    write_whole(out.with_suffix(".draws.csv"), draws.to_csv(index=False, float_format="%.6g"))
    write_json(out.with_suffix(".json"), record)


def _scorer(name: BenchmarkName) -> Callable[[Config, Path], Tables]:
    if name == "alpaca_eval":
        from vrm.evaluation.alpaca_eval import scores  # imports the package, which takes seconds

        return scores
    return {"arena_hard": arena_hard_scores, "mt_bench": mt_bench_scores}[name]


def arena_hard_scores(config: Config, results: Path) -> Tables:
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
    return Tables(pd.DataFrame(rows, columns=SCORES), pd.DataFrame(items, columns=ITEMS), _draws(boards), record)


def mt_bench_scores(config: Config, results: Path) -> Tables:
    """MT-Bench of every judged policy: both turns, all turns, each category, mean characters of an answer.

    Raises:
        RecordError: files don't belong together.
    """
    questions = read_mt_bench(results / "judged" / "sets" / "mt_bench")
    categories = {question.question_id: question.category for question in questions}
    keys = [(question.question_id, turn) for question in questions for turn in TURNS]
    rows, items, policies = [], [], {}
    for judged in config.judged_policies:
        path = results / judged.folder / "answers" / FILES["mt_bench"]
        lengths = [len(text) for answer in read_mt_policy(path, questions, judged.name).values() for text in answer]
        judgments = read_judgments(config, results, judged, "mt_bench", keys)
        rows += _mt_rows(judged, judgments, categories)
        rows.append(score_row(judged, "length", float(np.mean(lengths)), n=len(lengths)))
        items += [
            {**judged._asdict(), "item_id": row["question_id"], "part": f"turn_{row['turn']}", "value": rating}
            for row in judgments
            if (rating := _rating(row)) is not None
        ]
        policies[judged.name] = {"failed": count_failed(judgments, "turns")[0], "turns": len(judgments)}
    record = {
        **base_record(config, "mt_bench", policies),
        "references": config.benchmarks.mt_bench.references,
        "intervals": {"level": config.report.level, "resampled": "nothing"},
    }
    means = pd.DataFrame(items, columns=ITEMS).assign(weight=1.0)
    return Tables(pd.DataFrame(rows, columns=SCORES), means, draws_table({}), record)


def _mt_rows(judged: JudgedPolicy, judgments: Sequence[Row], categories: Mapping[QuestionId, str]) -> list[Row]:
    """The means of one policy's ratings."""
    found = mt_bench.scores(judgments, categories)
    parts: dict[str, tuple[float, list[Row]]] = {
        "turn_1": (found.turn_1, [row for row in judgments if row["turn"] == 1]),
        "turn_2": (found.turn_2, [row for row in judgments if row["turn"] == 2]),
        "score": (found.overall, list(judgments)),
    }
    for name, mean in found.by_category.items():
        parts[f"category/{name}"] = mean, [row for row in judgments if categories[row["question_id"]] == name]
    rows = []
    for metric, (mean, part) in parts.items():
        rated = sum(_rating(row) is not None for row in part)
        off_scale = sum(row["turn"] in found.off_scale.get(row["question_id"], ()) for row in part)
        odd = f"{off_scale} ratings off the scale of 1 to 10" if off_scale else ""
        rows.append(score_row(judged, metric, mean, n=rated, note=join_notes(count_failed(part, "turns")[1], odd)))
    return rows


def _rating(judgment: Row) -> float | None:
    return parse_rating(judgment["judgment"] or "")


def _leaderboards(
    config: Config, judgments: Sequence[Row], answers: Sequence[Row]
) -> dict[str, arena_hard.Leaderboard | None]:
    """WR and SC by metric; None where no game at all has a verdict."""
    settings = config.benchmarks.arena_hard
    played, _ = battles(judgments, settings.baseline)
    if played.empty:
        return {"win_rate": None, "sc_win_rate": None}
    return {
        metric: arena_hard.leaderboard(
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


def _rates(board: arena_hard.Leaderboard | None, model: str) -> tuple[float, float, float, int]:
    """Value, low, high and number of prompts of a model; NaN and 0 without a battle."""
    if board is None:
        return math.nan, math.nan, math.nan, 0
    (row,) = board.rows[board.rows["model"] == model].itertuples()
    return row.win_rate, row.low, row.high, row.prompts


def _draws(boards: Mapping[str, arena_hard.Leaderboard | None]) -> pd.DataFrame:
    """SC of every resample; WR is a mean, of which the items say more."""
    board = boards["sc_win_rate"]
    if board is None:
        return draws_table({})
    return draws_table({column(model, "sc_win_rate"): board.draws[:, i] for i, model in enumerate(board.models)})


def _fits(boards: Mapping[str, arena_hard.Leaderboard | None]) -> Row:
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
