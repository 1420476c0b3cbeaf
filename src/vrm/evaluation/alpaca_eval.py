"""AlpacaEval 2's numbers of every judged policy, by the package's own functions.

* `win_rate`, `standard_error`: the package's `get_winrate`, over the instructions that have a preference.
* `lc_win_rate`: the package's `get_length_controlled_winrate`, on the official 805 instructions and with the official
  `df_gamed.csv` only; without either it is missing, and the note says why. The GLM takes an instruction's difficulty by
  its row, so rows without a preference stay in their places: the package leaves them out of the fit.
* `lc_without_difficulty`: for any set, a logistic regression on the package's length feature (tanh of the standardised
  length difference) and an intercept, by maximum likelihood. It knows no difficulty and isn't drawn towards gamed
  baselines: not AlpacaEval's LC. The package's own `length_controlled_minimal` has an L1 penalty that, on some hundred
  instructions, shrinks most intercepts to 0, which is a win rate of 50 whatever was judged.
* Intervals resample instructions: what they cover is the choice of instructions, not the training or the judge.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config, JudgedPolicy
from vrm.config.benchmarks import FILES
from vrm.data.benchmark_sets import read_alpaca_eval
from vrm.data.benchmark_sources import source_of
from vrm.evaluation.judged_tables import ITEMS, MEND, SCORES, Row, Tables, interval_record, join_notes
from vrm.evaluation.logistic import fit_logistic, sigmoid
from vrm.judging.alpaca_eval import BENCHMARK, package
from vrm.judging.judgments import identity
from vrm.judging.policy_answers import read_alpaca_list
from vrm.records import RecordError

OFFICIAL_ROWS = 805
OFFICIAL_INSTRUCTIONS = "4f47f1c4d96c59940dd770082caf840988123cc6e62d0cdcc7bf104715dae8b0"
"""sha256 of AlpacaEval's instructions in their order, joined by U+001E."""

OFFICIAL_REFERENCE = "gpt4_1106_preview"
DF_GAMED = source_of("alpaca_eval/df_gamed.csv").sha256
"""Of the official file."""

LC = "length_controlled_v1"
FORMULA = "tanh(std_delta_len) + 1"
"""Of `lc_without_difficulty`."""

FEWEST = 5
"""Judged instructions below which the package's cross-validation, in five parts, can't be run."""

L2 = 1e-3
"""Penalty of `lc_without_difficulty`: of no weight, and enough that preferences which length separates have a fit."""


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
        win, 0..1; item_id: its row from 1), and the record of how they came about.

    Raises:
        RecordError: judgments are not of the set's rows.
        ConfigError: the package is not installed.
    """
    sets = results / "judged" / "sets" / BENCHMARK
    rows, items, policies, reference_length = [], [], {}, {}
    with package():
        for judged in config.judged_policies:
            references = read_alpaca_eval(sets, judged.base, config.benchmarks.alpaca_eval)
            judgments = _read_judgments(config, results, judged, references)
            measures, details = _measure(config, judgments, sets / "df_gamed.csv")
            rows += [{**judged._asdict(), "metric": name, **measure._asdict()} for name, measure in measures.items()]
            items += [
                {**judged._asdict(), "item_id": number, "part": "", "value": preference - 1, "weight": 1.0}
                for number, preference in judgments["preference"].dropna().items()
            ]
            policies[judged.name] = details
            reference_length[judged.base] = float(judgments["output_1"].str.len().mean())
        record = {**_record(config), "reference_length": reference_length, "policies": policies}
    return pd.DataFrame(rows, columns=SCORES), pd.DataFrame(items, columns=ITEMS), record


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


def _measure(config: Config, judgments: pd.DataFrame, gamed: Path) -> tuple[dict[str, Measure], dict[str, Any]]:
    """The metrics of one policy, and what else the package counts."""
    from alpaca_eval.metrics import get_winrate

    judged = judgments[judgments["preference"].notna()].reset_index(drop=True)
    failed = Counter(judgments["failure"].dropna())
    note = f"{failed.total()} of {len(judgments)} without a judgment" if failed else ""
    measures = dict.fromkeys(
        ("win_rate", "lc_win_rate", "lc_without_difficulty", "standard_error"), Measure(None, note=note)
    )
    details: dict[str, Any] = {
        "reference": sorted(set(judgments["generator_1"])),
        "failed": dict(sorted(failed.items())),
    }
    if len(judged):
        counts = get_winrate(judged)
        low, high = _interval(_resampled_means(judged["preference"] - 1, config), config)
        n = int(counts["n_total"])
        measures["win_rate"] = Measure(float(counts["win_rate"]), low, high, n, note)
        measures["lc_win_rate"] = _length_controlled(judgments, gamed, note)
        measures["lc_without_difficulty"] = _without_difficulty(judged, config, note)
        error = _or_none(counts["standard_error"])
        measures["standard_error"] = Measure(error, n=n, note=note if error is not None else "a single judgment")
        details |= {name: int(counts[name]) for name in ("n_total", "n_wins", "n_wins_base", "n_draws")}
        details["discrete_win_rate"] = float(counts["discrete_win_rate"])
    measures["length"] = Measure(float(judgments["output_2"].str.len().mean()), n=len(judgments))
    return measures, details


def _length_controlled(judgments: pd.DataFrame, gamed: Path, note: str) -> Measure:
    """The package's length-controlled win rate; `judgments` has all rows in their places, NaN where one failed."""
    import sklearn
    from alpaca_eval.metrics import glm_winrate

    why_not = _why_no_lc(judgments, gamed)
    if why_not:
        return Measure(None, note=why_not)
    reference = judgments["generator_1"].iloc[0]
    if reference != OFFICIAL_REFERENCE:
        note = join_notes(note, f"difficulty is that against {OFFICIAL_REFERENCE}, not {reference}")
    # the package fetches df_gamed.csv from the hub whenever it is called, and sets scikit-learn's routing for good
    with patch.object(glm_winrate, "hf_hub_download", lambda **_: str(gamed)), sklearn.config_context():
        counts = glm_winrate.get_length_controlled_winrate(
            judgments.reset_index(drop=True),
            glm_name=LC,
            save_weights_dir=None,
            is_add_glm_preference_inplace=False,
            is_warn_extreme_changes=False,
        )
    return Measure(float(counts["length_controlled_winrate"]), n=int(counts["n_total"]), note=note)


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


def _without_difficulty(judged: pd.DataFrame, config: Config, note: str) -> Measure:
    """The win rate at equal lengths, with a bootstrap interval."""
    why_not = _why_no_fit(judged)
    if why_not:
        return Measure(None, note=why_not)
    wins, difference = (judged["preference"] - 1).to_numpy(), _length_difference(judged).to_numpy()
    rows = _resamples(len(judged), config.report.bootstrap_samples, config)
    drawn = np.array([at_equal_length(wins[i], difference[i]) for i in rows])
    low, high = _interval(drawn, config)
    note = join_notes(note, "not the official LC: no instruction difficulty, no gamed baselines")
    return Measure(100 * at_equal_length(wins, difference), low, high, len(judged), note)


def at_equal_length(wins: NDArray[np.float64], difference: NDArray[np.float64]) -> float:
    """Our win rate (0..1) at equal lengths: the sigmoid of the intercept beside the length term.

    Args:
        wins: ours, 0..1, shape (N,).
        difference: characters of the reference's output less those of ours, shape (N,).

    Source: the features of `get_length_controlled_winrate`'s `length_controlled_minimal`; fitted by us.
    """
    spread = difference.std(ddof=1)
    length = np.tanh(difference / (spread if spread > 0 else 1.0))
    design = np.column_stack([length, np.ones_like(length)])
    return float(sigmoid(fit_logistic(design, wins, 1 - wins, l2=L2)[1]))


def _length_difference(judged: pd.DataFrame) -> pd.Series:
    return (judged["output_1"].str.len() - judged["output_2"].str.len()).astype(float)


def _resamples(n: int, samples: int, config: Config) -> Iterator[NDArray[np.int64]]:
    """Rows of each bootstrap sample; the same for all metrics, and for all policies with so many judgments."""
    rng = np.random.default_rng(config.report.seed)
    return (rng.integers(0, n, n) for _ in range(samples))


def _resampled_means(wins: pd.Series, config: Config) -> NDArray[np.float64]:
    values = wins.to_numpy()
    return np.array([values[rows].mean() for rows in _resamples(len(values), config.report.bootstrap_samples, config)])


def _interval(drawn: NDArray[np.float64], config: Config) -> tuple[float, float]:
    """Percentiles of resampled rates, in percent."""
    tail = (1 - config.report.level) / 2
    low, high = np.quantile(100 * drawn, [tail, 1 - tail])
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
        "lc_win_rate": {"glm": LC, **glm_winrate.GLM_INFO[LC], "df_gamed_sha256": DF_GAMED},
        "lc_without_difficulty": {"formula": FORMULA, "l2": L2},
        "intervals": interval_record(config, "instructions", config.report.bootstrap_samples),
    }
