"""AlpacaEval 2's numbers of every judged policy, by the package's own functions.

* `win_rate`, `standard_error`: the package's `get_winrate`, over the instructions that have a preference.
* `lc_win_rate`, `lc_without_difficulty`: `alpaca_lc`.
* Intervals are of the joint bootstrap (`judged_draws`) over instructions: what they cover is the choice of
  instructions, not the training or the judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config, JudgedPolicy
from vrm.config.benchmarks import FILES
from vrm.data.benchmark_sets import read_alpaca_eval
from vrm.evaluation import alpaca_lc
from vrm.evaluation.judged_draws import column, draws_table, percentiles, question_draws
from vrm.evaluation.judged_tables import ITEMS, MEND, SCORES, Row, Tables, interval_record
from vrm.judging.alpaca_eval import BENCHMARK, package
from vrm.judging.judgments import identity
from vrm.judging.policy_answers import read_alpaca_list
from vrm.records import RecordError

Draws = dict[str, NDArray[np.float64]]
"""Values of the resamples by metric, in percent."""


class Measure(NamedTuple):
    """A number of the table; None where there is none, and `note` says why. Rates are in percent."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    note: str = ""


def scores(config: Config, results: Path) -> Tables:
    """AlpacaEval 2 of every judged policy.

    Args:
        config: the policies, the annotator, the intervals' level, samples and seed.
        results: the run's directory.

    Returns:
        Scores (base, method, seed, metric, value, low, high, n, note), items (one row a judged instruction; value: our
        win, 0..1; item_id: its row from 1), draws of both LC, and the record of how they came about.

    Raises:
        RecordError: judgments are not of the set's rows.
        ConfigError: the package is not installed.
    """
    sets = results / "judged" / "sets" / BENCHMARK
    rows, items, policies, reference_length = [], [], {}, {}
    columns: Draws = {}
    with package():
        for judged in config.judged_policies:
            references = read_alpaca_eval(sets, judged.base, config.benchmarks.alpaca_eval)
            judgments = _read_judgments(config, results, judged, references)
            measures, draws, details = _measure(config, judgments, sets / "df_gamed.csv")
            rows += [{**judged._asdict(), "metric": name, **measure._asdict()} for name, measure in measures.items()]
            items += [
                {**judged._asdict(), "item_id": number, "part": "", "value": preference - 1, "weight": 1.0}
                for number, preference in judgments["preference"].dropna().items()
            ]
            columns |= {column(judged.name, metric): values for metric, values in draws.items()}
            policies[judged.name] = details
            reference_length[judged.base] = float(judgments["output_1"].str.len().mean())
        record = {**_record(config), "reference_length": reference_length, "policies": policies}
    return Tables(pd.DataFrame(rows, columns=SCORES), pd.DataFrame(items, columns=ITEMS), draws_table(columns), record)


def _read_judgments(
    config: Config, results: Path, judged: JudgedPolicy, references: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """The annotations of a policy, one row an instruction, by row number from 1.

    Raises:
        RecordError: they are not of the reference's rows, or one can't be used; names the row.
    """
    path = results / judged.folder / "judgments" / FILES[BENCHMARK]
    rows = read_alpaca_list(path, len(references), MEND)
    for number, (row, reference) in enumerate(zip(rows, references, strict=True), 1):
        trouble = _trouble(row, reference, judged, config.benchmarks.alpaca_eval.annotator)
        if trouble:
            raise RecordError(f"{path}, row {number}: {trouble}; {MEND}")
    frame = pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1))
    frame["preference"] = frame["preference"].astype(float)
    return frame


def _trouble(row: Row, reference: Mapping[str, Any], judged: JudgedPolicy, annotator: str) -> str:
    """Why an annotation can't be used; "" if it can."""
    expected = {"instruction": "instruction", "output_1": "output", "generator_1": "generator"}
    if any(row.get(own) != reference[name] for own, name in expected.items()):
        return "not the set's instruction and reference"
    if row.get("generator_2") != judged.name:
        return f"judges {row.get('generator_2')}, not {judged.name}"
    if not isinstance(row.get("output_2"), str) or not {"preference", "failure"} <= row.keys():
        return "no `output_2`, `preference` or `failure`"
    if row.get("annotator") != annotator:
        return f"by {row.get('annotator')}, and benchmarks.alpaca_eval.annotator is {annotator}"
    preference = row["preference"]
    if preference is None:
        return "" if row["failure"] else "neither a preference nor a failure"
    if not isinstance(preference, int | float) or not 1 <= preference <= 2:
        return f"preference {preference} is not in 1..2"
    return ""


def _measure(config: Config, judgments: pd.DataFrame, gamed: Path) -> tuple[dict[str, Measure], Draws, dict[str, Any]]:
    """The metrics of one policy, the draws of its fits, and what else the package counts."""
    from alpaca_eval.metrics import get_winrate

    there = judgments["preference"].notna().to_numpy()
    judged = judgments[there].reset_index(drop=True)
    failed = Counter(judgments["failure"].dropna())
    note = f"{failed.total()} of {len(judgments)} without a judgment" if failed else ""
    measures = dict.fromkeys(
        ("win_rate", "lc_win_rate", "lc_without_difficulty", "standard_error"), Measure(None, note=note)
    )
    draws: Draws = {}
    details: dict[str, Any] = {
        "reference": sorted(set(judgments["generator_1"])),
        "failed": dict(sorted(failed.items())),
    }
    if len(judged):
        counts = get_winrate(judged)
        drawn = _question_draws(config, len(judgments))
        wins = (judged["preference"] - 1).to_numpy()
        n, ends = int(counts["n_total"]), _ends(config, _means(wins, drawn[:, there]))
        measures["win_rate"] = Measure(float(counts["win_rate"]), *ends, n, note)
        for metric, found in (
            ("lc_win_rate", alpaca_lc.official(judgments, gamed, drawn, note)),
            ("lc_without_difficulty", alpaca_lc.without_difficulty(judged, drawn[:, there], note)),
        ):
            measures[metric] = Measure(found.value, *_ends(config, found.draws), found.n, found.note)
            draws |= {} if found.draws is None else {metric: found.draws}
        error = _or_none(counts["standard_error"])
        measures["standard_error"] = Measure(error, n=n, note=note if error is not None else "a single judgment")
        details |= {name: int(counts[name]) for name in ("n_total", "n_wins", "n_wins_base", "n_draws")}
        details["discrete_win_rate"] = float(counts["discrete_win_rate"])
    measures["length"] = Measure(float(judgments["output_2"].str.len().mean()), n=len(judgments))
    return measures, draws, details


def _question_draws(config: Config, rows: int) -> NDArray[np.int64]:
    """The joint draws, shape (B, N): the same for all policies, whose instructions are those of one set."""
    return question_draws(rows, config.report.bootstrap_samples, np.random.default_rng(config.report.seed))


def _means(wins: NDArray[np.float64], drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """Win rate of each draw in percent, shape (B,); NaN for one without a judgment."""
    with np.errstate(invalid="ignore"):
        return 100 * (drawn @ wins) / drawn.sum(axis=1)


def _ends(config: Config, drawn: NDArray[np.float64] | None) -> tuple[float | None, float | None]:
    """Percentiles of resampled rates; None where there is none."""
    if drawn is None:
        return None, None
    low, high = percentiles(drawn, config.report.level)
    return float(low), float(high)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _record(config: Config) -> dict[str, Any]:
    """How the numbers came about."""
    from alpaca_eval.metrics import glm_winrate

    return {
        "benchmark": BENCHMARK,
        "package": f"alpaca-eval {version('alpaca-eval')}",
        "scikit_learn": version("scikit-learn"),
        "annotator": config.benchmarks.alpaca_eval.annotator,
        "judge": identity(config.judge) if config.judge else None,
        "lc_win_rate": {
            "glm": alpaca_lc.LC,
            **glm_winrate.GLM_INFO[alpaca_lc.LC],
            "df_gamed_sha256": alpaca_lc.DF_GAMED,
            "samples": min(alpaca_lc.OFFICIAL_DRAWS, config.report.bootstrap_samples),
        },
        "lc_without_difficulty": {"formula": alpaca_lc.FORMULA, "l2": alpaca_lc.L2},
        "intervals": interval_record(config, "instructions", config.report.bootstrap_samples),
    }
