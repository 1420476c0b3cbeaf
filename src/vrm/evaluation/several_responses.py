"""Benchmarks that ask for one right answer among several, scored as upstream scores them.

A row with several chosen or rejected responses is read as all its pairs, whose ids end in `/<chosen>-<rejected>`
(`vrm.data.preference_sets`). Here they are put together again:

* RewardBench 2, best of four: a prompt counts 1 where the right answer has the highest reward, and one over the number
  of those that share it where it shares the highest.
  Source: allenai/reward-bench, rewardbench/utils.py, `reroll_and_score_dataset`.
* RewardBench 2, Ties: several answers are right, and their rewards should lie closer together than right and wrong.
  Source: the same, `process_single_model`.
* RM-Bench: each answer in three styles, plain to formatted. Hard are the pairs whose right answer has the plainer
  style, easy those whose right answer has the richer one.
  Source: THU-KEG/RM-Bench, scripts/utils.py, `compute_accuracy`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_GROUPED = re.compile(r"(.*)/(\d+)-(\d+)", re.DOTALL)
TIES = "ties"
RM_BENCH_DOMAINS = ("chat", "math", "code", "safety")
STYLES = 3


@dataclass
class Item:
    """One row of such a benchmark.

    Args:
        row_id: the row's id.
        subset: a name to report by.
        chosen: reward of each right answer.
        rejected: reward of each wrong answer.
    """

    row_id: str
    subset: str
    chosen: dict[int, float] = field(default_factory=dict)
    rejected: dict[int, float] = field(default_factory=dict)

    @property
    def rewards(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rewards of the right and of the wrong answers, in the row's order."""
        return np.array([self.chosen[i] for i in sorted(self.chosen)]), np.array(
            [self.rejected[j] for j in sorted(self.rejected)]
        )


def group(
    pair_ids: Sequence[str], subsets: Sequence[str], chosen: Sequence[float], rejected: Sequence[float]
) -> list[Item]:
    """The rows that pairs were made of; empty where no row had several responses.

    Args:
        pair_ids: id of each pair, length N.
        subsets: subset of each pair, length N.
        chosen: rewards of the chosen responses, length N.
        rejected: rewards of the rejected responses, length N.
    """
    matches = [_GROUPED.fullmatch(pair_id) for pair_id in pair_ids]
    if not any(matches):
        return []
    items: dict[str, Item] = {}
    for match, pair_id, subset, better, worse in zip(matches, pair_ids, subsets, chosen, rejected, strict=True):
        row_id, i, j = (match[1], int(match[2]), int(match[3])) if match else (pair_id, 0, 0)
        item = items.setdefault(row_id, Item(row_id, subset))
        item.chosen[i], item.rejected[j] = float(better), float(worse)
    return list(items.values())


def metrics(items: Sequence[Item]) -> dict[str, tuple[float, int]]:
    """What upstream reports of such rows: (value, number of rows) by name.

    RM-Bench, if every row has three styles of both answers: `style/easy`, `style/normal`, `style/hard`,
    `domain/<domain>`, `rm_bench`. Else `best_of/<subset>` and their mean, `best_of`.
    """
    if not items:
        return {}
    if all(len(item.chosen) == len(item.rejected) == STYLES for item in items):
        return {name: (value, len(items)) for name, value in rm_bench(items).items()}
    by_subset: dict[str, list[Item]] = {}
    for item in items:
        by_subset.setdefault(item.subset, []).append(item)
    scores = {
        subset: ties_score(rows) if subset.lower() == TIES else best_of(rows) for subset, rows in by_subset.items()
    }
    named = {f"best_of/{subset}": (score, len(by_subset[subset])) for subset, score in scores.items() if subset}
    return {"best_of": (float(np.mean(list(scores.values()))), len(items)), **named}


def best_of(items: Iterable[Item]) -> float:
    """Share of rows whose first right answer has the highest reward, one that is shared counted in part."""

    def share(item: Item) -> float:
        rewards = np.concatenate(item.rewards)
        return float((rewards[0] == rewards.max()) / (rewards == rewards.max()).sum())

    return float(np.mean([share(item) for item in items]))


def ties_score(items: Iterable[Item]) -> float:
    """RewardBench 2's score of its Ties subset: 60 % accuracy, 40 % margins, and a small term that breaks ties.

    Rows are `ref:<n>` (one right answer) or `tied:<n>` (several). A row is accurate where each right answer has a
    higher reward than each wrong one. A prompt's margin is right where the right answers of its tied row lie closer
    together than the worst right and the best wrong answer, of that row and of both rows.

    Returns:
        The score, at most 1.01; NaN where ids are others, or no prompt has both rows.
    """
    gaps: dict[str, dict[str, float]] = {"ref": {}, "tied": {}}  # worst right less best wrong
    spread: dict[str, float] = {}  # best right less worst right
    for item in items:
        kind, _, prompt = item.row_id.partition(":")
        right, wrong = item.rewards
        if kind not in gaps or not prompt:
            return float("nan")
        gaps[kind][prompt] = right.min() - wrong.max()
        if kind == "tied":
            spread[prompt] = right.max() - right.min()
    both = sorted(gaps["ref"].keys() & gaps["tied"].keys())
    if not both:
        return float("nan")
    accuracy = [float(np.mean([gap > 0 for gap in gaps[kind].values()])) for kind in ("tied", "ref")]
    tied, ref = (np.array([gaps[kind][prompt] for prompt in both]) for kind in ("tied", "ref"))
    apart, least = np.array([spread[prompt] for prompt in both]), np.minimum(tied, ref)
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = np.nan_to_num(np.tanh(least / apart - 1), nan=0.0)
    return (
        0.3 * sum(accuracy) + 0.2 * float((tied > apart).mean() + (least > apart).mean()) + 0.01 * float(margin.mean())
    )


def rm_bench(items: Sequence[Item]) -> dict[str, float]:
    """RM-Bench's accuracies: by difficulty, by domain, and in all.

    Rows whose subsets name its domains (`safety-refuse` is safety) are averaged by domain first, as upstream does;
    others are one domain.
    """
    domains: dict[str, list[Item]] = {}
    for item in items:
        domain = next((name for name in RM_BENCH_DOMAINS if item.subset.startswith(name)), "")
        domains.setdefault(domain, []).append(item)
    if "" in domains:
        domains = {"": list(items)}
    by_domain = {domain: _by_style(rows) for domain, rows in domains.items()}
    out = {
        f"style/{style}": float(np.mean([s[style] for s in by_domain.values()])) for style in ("easy", "normal", "hard")
    }
    out |= {f"domain/{name}": float(np.mean(list(s.values()))) for name, s in by_domain.items() if name}
    return out | {"rm_bench": float(np.mean([list(s.values()) for s in by_domain.values()]))}


def _by_style(items: Sequence[Item]) -> Mapping[str, float]:
    """Accuracy of the pairs of each difficulty; the matrix has a row for each style of the right answer."""
    won = np.mean([np.greater.outer(*item.rewards) for item in items], axis=0)  # (3, 3)
    style = np.subtract.outer(range(STYLES), range(STYLES))
    return {"easy": won[style > 0].mean(), "normal": won[style == 0].mean(), "hard": won[style < 0].mean()}
