"""Reading what judging left behind: judged/<benchmark>.csv (scores), .items.csv, .draws.csv, .terms.csv and .json.

The scores, the items that they are means of, and draws and terms of those that are fits have to say the same, and every
policy of the configuration has to be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config, JudgedPolicy
from vrm.records import RecordError
from vrm.reporting.scores import row_label
from vrm.runfiles import JUDGED_ITEMS, POLICY_KEYS, SFT, draw_column, judged_path, read_judged
from vrm.statistics.draws import percentiles

_KEYS = list(POLICY_KEYS)

# Unit of `length`, the mean over a policy's answers: as each benchmark counts.
LENGTH_UNITS = {"alpaca_eval": "characters", "arena_hard": "tokens", "mt_bench": "characters"}


@dataclass(frozen=True)
class JudgedModel:
    """All seeds of one judged policy.

    Args:
        base: key of `policy.bases`.
        method: key of `policy.methods`, or `sft`.
        seeds: the seeds it was trained with.
        base_label: what its base is called.
        label: what its row is called.
        ours: not in the paper.
    """

    base: str
    method: str
    seeds: Sequence[int]
    base_label: str
    label: str
    ours: bool

    @property
    def keys(self) -> list[tuple[str, str, int]]:
        """Base, method and seed of each policy."""
        return [(self.base, self.method, seed) for seed in self.seeds]


@dataclass(frozen=True)
class BenchmarkResults:
    """One benchmark's five files.

    Args:
        name: the benchmark.
        source: the scores' file, for errors.
        scores: value, low, high, n and note by base, method, seed and metric; in percent, rating points, or a length.
        items: base, method, seed, item_id, part, value (0..1, or rating points) and weight of all that was judged.
        draws: LC and SC of every policy on resamples of the questions, a row a draw and the same questions of all; by
            `runfiles.draw_column`; a fit that was not resampled has no column.
        terms: what each item adds to a fit, by item and `draw_column`; a fit that was not taken apart has no column.
        record: what the scores depend on: judge, set of models, failures.
    """

    name: str
    source: Path
    scores: pd.DataFrame
    items: pd.DataFrame
    draws: pd.DataFrame
    terms: pd.DataFrame
    record: dict[str, Any]

    @cached_property
    def grid(self) -> pd.MultiIndex:
        """Item and part of everything that was judged of any policy."""
        return pd.MultiIndex.from_frame(self.items[["item_id", "part"]].drop_duplicates()).sort_values()

    @cached_property
    def by_policy(self) -> dict[tuple[str, str, int], pd.DataFrame]:
        """Value and weight by item and part, of every policy that has any."""
        groups = self.items.set_index(["item_id", "part"]).groupby(_KEYS)
        return {key: part[["value", "weight"]] for key, part in groups}

    @cached_property
    def prompts(self) -> NDArray[np.str_]:
        """The prompt of each entry of the grid, shape (N,)."""
        return self.grid.get_level_values("item_id").to_numpy(dtype=str)

    def values(self, model: JudgedModel) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values and weights on the grid, each of shape (S, N); weight 0: not judged of this policy."""
        nothing = self.items.iloc[:0].set_index(["item_id", "part"])[["value", "weight"]]
        parts = [self.by_policy.get(key, nothing).reindex(self.grid).fillna(0.0) for key in model.keys]
        values, weights = (np.stack([part[name].to_numpy(dtype=float) for part in parts]) for name in nothing)
        return values, weights

    def judged(self, model: JudgedModel) -> set[str]:
        """Prompts with a judgment of any of its seeds."""
        parts = [self.by_policy[key] for key in model.keys if key in self.by_policy]
        return {item for part in parts for item in part.index.get_level_values("item_id")}

    def rows(self, model: JudgedModel, metric: str) -> pd.DataFrame:
        """The scores' rows of one metric, one a seed; a seed that has none is left out."""
        wanted = [(*key, metric) for key in model.keys if (*key, metric) in self.scores.index]
        return self.scores.loc[wanted]

    def drawn(self, model: JudgedModel, metric: str) -> NDArray[np.float64]:
        """Draws of a fit, shape (B, S); B = 0 where a seed has none."""
        names = [draw_column(JudgedPolicy(*key).name, metric) for key in model.keys]
        if not set(names) <= set(self.draws):
            return np.empty((0, len(names)))
        return self.draws[names].to_numpy(dtype=float)

    def taken_apart(self, model: JudgedModel, metric: str) -> NDArray[np.float64] | None:
        """Terms of a fit, shape (S, N); None where a seed has none."""
        names = [draw_column(JudgedPolicy(*key).name, metric) for key in model.keys]
        return self.terms[names].to_numpy(dtype=float).T if set(names) <= set(self.terms) else None

    def length(self, model: JudgedModel) -> float:
        """Mean length of a model's answers over its seeds, in `LENGTH_UNITS`.

        Raises:
            RecordError: a seed has none.
        """
        values = self.rows(model, "length")["value"]
        if len(values) < len(model.seeds) or values.isna().any():
            raise RecordError(
                f"{self.source}: lacks the length of {model.base}, {model.method}; run `vrm judged-scores --name "
                f"{self.name}` again"
            )
        return float(values.mean())

    @property
    def failed(self) -> dict[str, int] | None:
        """What was asked of the judge and has no judgment, over all policies, by reason; None: not recorded."""
        parts = [self.record, *(self.record.get("policies") or {}).values()]
        counts = [part["failed"] for part in parts if part.get("failed") is not None]
        reasons = sorted({reason for part in counts for reason in part})
        return {reason: sum(part.get(reason, 0) for part in counts) for reason in reasons} if counts else None

    def reference_length(self, base: str) -> float | None:
        """Mean length of the answers that a base's are compared with; None where the record has none."""
        found = self.record.get("reference_length")
        return found.get(base) if isinstance(found, dict) else found


def judged_models(config: Config) -> list[JudgedModel]:
    """Of each base: the start of training, where that was fine-tuned, then the methods of `policy.run`."""
    found = []
    for base, method in dict.fromkeys((policy.base, policy.method) for policy in config.judged_policies):
        entry = None if method == SFT else config.policy.methods[method]
        label = "SFT (start)" if entry is None else row_label(entry)
        ours = entry is not None and entry.ours
        found.append(JudgedModel(base, method, config.policy.seeds, config.policy.bases[base].label, label, ours))
    return found


def read_benchmarks(config: Config, results: Path, made: str) -> dict[str, BenchmarkResults]:
    """All benchmarks of `benchmarks.run`, for the table or figure `made`.

    Raises:
        RecordError: none is run, or as `read_benchmark`.
    """
    if not config.benchmarks.run:
        raise RecordError(f"{made}: no benchmark is run; name some in benchmarks.run, or leave {made} out of report")
    return {name: read_benchmark(config, results, name) for name in config.benchmarks.run}


def read_benchmark(config: Config, results: Path, name: str) -> BenchmarkResults:
    """Read and check what `vrm judged-scores` wrote of one benchmark.

    Raises:
        RecordError: a file is missing or broken, lacks a judged policy, its intervals have another level than the
            report's, or the scores are not what the items say.
    """
    source = judged_path(results, name)
    tables = read_judged(source)
    scores, items = tables.scores, tables.items
    _check_level(source.with_suffix(".json"), tables.record, config.report.level)
    _check_scores(source, scores)
    _check_items(source.with_suffix(JUDGED_ITEMS.name), items)
    scores_by = scores.set_index([*_KEYS, "metric"]).sort_index()
    benchmark = BenchmarkResults(name, source, scores_by, items, tables.draws, tables.terms, tables.record)
    known = set(scores[_KEYS].itertuples(index=False, name=None))
    for policy in config.judged_policies:
        if tuple(policy) not in known:
            raise RecordError(
                f"{source}: no row of base {policy.base}, method {policy.method}, seed {policy.seed}; judge its "
                f"answers, then run `vrm judged-scores --name {name}` again"
            )
    _check_agreement(benchmark)
    _check_draws(benchmark, config.report.level)
    _check_terms(benchmark)
    return benchmark


def _check_level(path: Path, record: dict[str, Any], level: float) -> None:
    written = (record.get("intervals") or {}).get("level", level)
    if written != level:
        raise RecordError(
            f"{path}: its intervals have level {written}, the report's {level}; run `vrm judged-scores "
            f"--name {path.stem}` again"
        )


def _check_scores(path: Path, scores: pd.DataFrame) -> None:
    infinite = np.isinf(scores[["value", "low", "high"]]).any(axis=1)
    _refuse(path, scores[infinite], "metric", "is not a finite number")
    _refuse(path, scores[scores.duplicated([*_KEYS, "metric"])], "metric", "stands there twice")


def _check_items(path: Path, items: pd.DataFrame) -> None:
    _refuse(path, items[~np.isfinite(items["value"])], "item_id", "has no finite value")
    _refuse(path, items[~(np.isfinite(items["weight"]) & (items["weight"] > 0))], "item_id", "has no positive weight")
    _refuse(path, items[items.duplicated([*_KEYS, "item_id", "part"])], "item_id", "stands there twice")


def _refuse(path: Path, faulty: pd.DataFrame, name: str, fault: str) -> None:
    if not faulty.empty:
        row = faulty.iloc[0]
        what = f"{name} {row[name]} of {row['base']}, {row['method']}, seed {row['seed']}"
        raise RecordError(f"{path}, row {faulty.index[0] + 2}: {what} {fault}; run judged-scores again")


def _check_agreement(benchmark: BenchmarkResults) -> None:
    """The means in the scores are those of the items: the win rate, or MT-Bench's score and its turns' means."""
    turns = benchmark.name == "mt_bench"
    parts = {"turn_1": ["turn_1"], "turn_2": ["turn_2"], "score": ["turn_1", "turn_2"]} if turns else {"win_rate": [""]}
    scale = 1.0 if turns else 100.0
    for (*key, metric), row in benchmark.scores.iterrows():
        if metric not in parts:
            continue
        items = benchmark.by_policy.get(tuple(key))
        inside = None if items is None else items[items.index.isin(parts[metric], level="part")]
        mean = np.nan
        if inside is not None and not inside.empty:
            mean = scale * np.average(inside["value"], weights=inside["weight"])
        same = np.isnan(mean) if np.isnan(row["value"]) else abs(row["value"] - mean) < 1e-3
        if not same:
            raise RecordError(
                f"{benchmark.source}: {metric} of {key[0]}, {key[1]}, seed {key[2]} is {row['value']:.4f}, and its "
                f"items say {mean:.4f}; run `vrm judged-scores --name {benchmark.name}` again"
            )


def _check_draws(benchmark: BenchmarkResults, level: float) -> None:
    """The ends of each fit's interval in the scores are those of its draws."""
    for (*key, metric), row in benchmark.scores.iterrows():
        name = draw_column(JudgedPolicy(*key).name, metric)
        if name not in benchmark.draws:
            continue
        ends = np.array(percentiles(benchmark.draws[name], level))
        if not np.allclose(row[["low", "high"]].to_numpy(dtype=float), ends, atol=1e-2, equal_nan=True):
            raise RecordError(
                f"{benchmark.source}: {metric} of {key[0]}, {key[1]}, seed {key[2]} has another interval than its "
                f"draws; run `vrm judged-scores --name {benchmark.name}` again"
            )


def _check_terms(benchmark: BenchmarkResults) -> None:
    """Each fit that was taken apart is the mean of its terms."""
    for (*key, metric), row in benchmark.scores.iterrows():
        name = draw_column(JudgedPolicy(*key).name, metric)
        if name not in benchmark.terms or np.isnan(
            row["value"]
        ):  # a fit that could not be made has no terms to compare
            continue
        if not abs(benchmark.terms[name].mean(skipna=False) - row["value"]) < 1e-2:
            raise RecordError(
                f"{benchmark.source}: {metric} of {key[0]}, {key[1]}, seed {key[2]} is not the mean of its terms; run "
                f"`vrm judged-scores --name {benchmark.name}` again"
            )
