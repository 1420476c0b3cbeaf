"""What a VRM says of its own preferences: weights by prompt kind, contributions, and where it parts from the plain RM.

* A pair is right for a model that scores the chosen response strictly higher; a tie is wrong, as everywhere.
* Single pairs are read with one seed; only the difference in accuracy is taken over all seeds.
* What "chosen" means is the evaluation set's business: annotators in one, the known truth in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vrm.config import Config, ConfigError
from vrm.evaluation.preference_accuracy import wins
from vrm.records import PreferencePair, RecordError

from .results import PROBES, PairScores, Scorer, pair_scores, reward_models
from .variance_components import crossed_interval

# The evaluation set whose chosen responses are better by the known truth. Where it is absent, the truth is unknown.
NOISE_FREE = "noise_free"

AGREEMENTS = ("both_right", "only_vrm", "only_rm", "both_wrong")

# The spread of a weight: the middle 80 % of prompts.
SPREAD = (0.1, 0.9)

_KEY = ["evaluation_set", "pair_id"]


def compared_models(config: Config) -> tuple[Scorer, list[Scorer]]:
    """The plain RM, the first of `reward.run`, and every VRM that it is compared with.

    Raises:
        ConfigError: `reward.run` lacks one or the other.
    """
    kinds = {name: config.reward.variants[name].kind for name in config.reward.run}
    models = reward_models(config)
    plain = [model for model in models if kinds[model.name] == "scalar"]
    variational = [model for model in models if kinds[model.name] == "variational"]
    if not plain or not variational:
        raise ConfigError("reward.run: RM and VRM are compared pair by pair; name one `scalar` and one `variational`")
    return plain[0], variational


def agreement(rm_won: ArrayLike, vrm_won: ArrayLike) -> NDArray[np.str_]:
    """Who is right: one of `AGREEMENTS` for each pair, shape (N,).

    Args:
        rm_won, vrm_won: whether each model scores the chosen response strictly higher, shape (N,).
    """
    rm_won, vrm_won = np.asarray(rm_won, dtype=bool), np.asarray(vrm_won, dtype=bool)
    return np.select([rm_won & vrm_won, vrm_won, rm_won], AGREEMENTS[:3], AGREEMENTS[3])


def contributions(scores: pd.DataFrame, aspects: Sequence[str], source: str) -> NDArray[np.float64] | None:
    """w_k (g_k(chosen) - g_k(rejected)): what each objective adds to the margin, shape (N, K).

    Of a model with a residual, to the margin of its rated-aspect reward.

    Args:
        scores: rows of a VRM's `scores.csv`.
        aspects: the K objectives.
        source: what to call the scores in an error.

    Returns:
        None for a decoder whose reward is no sum over objectives (MLP): it leaves no per-objective scores.

    Raises:
        RecordError: the contributions of a pair do not sum to its margin.

    Source: VRM's mixture decoder, r(x, y) = w(x) . g(z(x, y)).
    """
    columns = {part: [f"{part}_{aspect}" for aspect in aspects] for part in ("weight", "chosen", "rejected")}
    if any(column not in scores for column in (*columns["chosen"], *columns["rejected"])):
        return None
    weight, chosen, rejected = (scores[names].to_numpy(dtype=np.float64) for names in columns.values())  # (N, K)
    parts = weight * (chosen - rejected)
    of = "rated" if "rated_chosen" in scores else "reward"
    margin = (scores[f"{of}_chosen"] - scores[f"{of}_rejected"]).to_numpy(dtype=np.float64)
    size = (weight * (np.abs(chosen) + np.abs(rejected))).sum(axis=1)
    wrong = ~(
        np.abs(parts.sum(axis=1) - margin) <= 0.01 * size + 1e-6
    )  # bfloat16 keeps 2 to 3 digits; NaN is wrong too
    if wrong.any():
        row = scores.iloc[int(np.argmax(wrong))]
        raise RecordError(
            f"scores of {source}: the contributions of pair {row['pair_id']} of {row['evaluation_set']} do not sum to "
            f"its margin; score the variant again"
        )
    return parts


def pair_table(rm: pd.DataFrame, vrm: pd.DataFrame, aspects: Sequence[str], source: str) -> pd.DataFrame:
    """One row a pair, in the order of `vrm`: both margins, who is right, weights, per-objective scores, contributions.

    Args:
        rm, vrm: `scores.csv` of the plain RM and of a VRM, of one seed each.
        aspects: the K objectives.
        source: what to call the VRM in an error.

    Returns:
        Columns evaluation_set, pair_id, prompt_id, subset, leaked, truncated, margin_rm, margin_vrm, agreement,
        weight_<aspect>, then, with a mixture decoder, chosen_<aspect>, rejected_<aspect> and contribution_<aspect>.

    Raises:
        RecordError: the models scored different pairs, a weight is missing, or contributions do not sum up.
    """
    rm = rm.set_index(_KEY)
    index = pd.MultiIndex.from_frame(vrm[_KEY])
    if len(rm) != len(index) or not rm.index.is_unique or set(rm.index) != set(index):
        raise RecordError(f"scores of {source} and of the plain RM are of different pairs; score both again")
    weights = [f"weight_{aspect}" for aspect in aspects]
    if any(column not in vrm or vrm[column].isna().any() for column in weights):
        raise RecordError(f"scores of {source}: a weight is missing or has gaps; score the variant again")
    rm = rm.loc[index].reset_index()
    table = vrm[[*_KEY, "prompt_id", "subset", "leaked"]].reset_index(drop=True)
    table["truncated"] = np.maximum(rm["truncated"].to_numpy(), vrm["truncated"].to_numpy())
    for name, scores in (("rm", rm), ("vrm", vrm)):
        table[f"margin_{name}"] = (scores["reward_chosen"] - scores["reward_rejected"]).to_numpy()
    table["agreement"] = agreement(*(wins(scores["reward_chosen"], scores["reward_rejected"]) for scores in (rm, vrm)))
    table[weights] = vrm[weights].to_numpy()
    parts = contributions(vrm, aspects, source)
    if parts is not None:
        scored = [f"{side}_{aspect}" for side in ("chosen", "rejected") for aspect in aspects]
        table[scored] = vrm[scored].to_numpy()
        table[[f"contribution_{aspect}" for aspect in aspects]] = parts
    return table


def weights_by_kind(scores: pd.DataFrame, aspects: Sequence[str]) -> pd.DataFrame:
    """Learned and true weights by evaluation set and kind of prompt (the subset). A prompt counts once a kind.

    Args:
        scores: `scores.csv` of one VRM and seed.
        aspects: the K objectives.

    Returns:
        Columns evaluation_set, subset, aspect, prompts, mean, low, high (`SPREAD` over prompts) and true_mean, NaN
        where the truth is not known for every prompt.
    """
    rows = []
    prompts = scores.drop_duplicates(["evaluation_set", "subset", "prompt_id"])
    for (evaluation_set, subset), part in prompts.groupby(["evaluation_set", "subset"], sort=False):
        for aspect in aspects:
            learned = part[f"weight_{aspect}"].to_numpy(dtype=np.float64)
            low, high = np.quantile(learned, SPREAD)
            true = part.get(f"true_weight_{aspect}", pd.Series([np.nan])).to_numpy(dtype=np.float64)
            rows.append((evaluation_set, subset, aspect, len(part), learned.mean(), low, high, true.mean()))
    columns = ["evaluation_set", "subset", "aspect", "prompts", "mean", "low", "high", "true_mean"]
    return pd.DataFrame(rows, columns=columns)


def disagreements(config: Config, rm: pd.DataFrame, vrm: pd.DataFrame, source: str) -> list[dict[str, Any]]:
    """How often RM and VRM disagree and who is right, by evaluation set and by subset.

    Args:
        config: names sets, seeds and level.
        rm, vrm: what `read_scores` returned of the plain RM and of a VRM: all seeds.
        source: what to call the VRM in an error.

    Returns:
        A mapping for each set (subset ""; none for the probes, whose overall accuracy has no meaning) and each named
        subset: counts of `AGREEMENTS` with the first seed; `vrm_right`, the VRM's share of the disagreements, an
        interval over prompts; `difference`, accuracy of the VRM less that of the RM, an interval over seeds and
        prompts. An interval has no ends where all pairs are alike. Pairs count alike, also in RewardBench's sets.

    Raises:
        RecordError: as `pair_scores`, or the models scored different pairs.
    """
    rows = []
    for name in config.evaluation.run:
        both = pair_scores(rm, name, "the plain RM"), pair_scores(vrm, name, source)
        if not np.array_equal(both[0].prompts, both[1].prompts):
            raise RecordError(
                f"evaluation set {name}: {source} and the plain RM scored different pairs; score both again"
            )
        rows += _disagreements_of(config, name, *both)
    return rows


def _disagreements_of(config: Config, name: str, rm: PairScores, vrm: PairScores) -> Iterator[dict[str, Any]]:
    if name != PROBES:
        yield _counted(config, name, "", rm, vrm)
    for subset in sorted(set(rm.subsets.tolist()) - {""}):
        inside = rm.subsets == subset
        yield _counted(config, name, subset, rm.select(inside), vrm.select(inside))


def _counted(config: Config, name: str, subset: str, rm: PairScores, vrm: PairScores) -> dict[str, Any]:
    first = sorted(config.reward.seeds).index(config.reward.seeds[0])  # pair_scores sorts the seeds
    found = agreement(rm.wins[first], vrm.wins[first])
    apart = np.isin(found, ("only_vrm", "only_rm"))
    level, right = config.report.level, None
    if apart.any():
        right = crossed_interval(found[apart] == "only_vrm", rm.prompts[apart], level).within(0, 1)
    return {
        "evaluation_set": name,
        "subset": subset,
        "pairs": len(found),
        **{kind: int((found == kind).sum()) for kind in AGREEMENTS},
        "vrm_right": right,
        "difference": crossed_interval(vrm.wins - rm.wins, rm.prompts, level),
    }


def known_truth(sets: Mapping[str, Sequence[PreferencePair]]) -> dict[tuple[str, str], str]:
    """Which response is the better one by the known truth: `chosen` or `rejected`, by (evaluation set, pair id).

    A pair of another set is found in `NOISE_FREE` by its prompt and its two texts, whichever of them was chosen. What
    is not found there, or is there with both labels, has no entry.
    """
    better = {(pair.prompt_id, pair.chosen, pair.rejected) for pair in sets.get(NOISE_FREE, ())}
    truth = {}
    for name, pairs in sets.items():
        for pair in pairs:
            as_labelled = (pair.prompt_id, pair.chosen, pair.rejected) in better
            reversed_ = (pair.prompt_id, pair.rejected, pair.chosen) in better
            if as_labelled != reversed_:
                truth[name, pair.pair_id] = "chosen" if as_labelled else "rejected"
    return truth
