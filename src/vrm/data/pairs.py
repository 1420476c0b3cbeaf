"""Preference pairs from scored prompts: their splits, their normalised scores, and the supervision target of w.

* A prompt's split is a hash of its normalised text and the seed: it never straddles splits, and it does not depend on
  what else is in the file.
* Every candidate pair of the configured pairing is either kept or counted: as a tie, as two identical texts, or as not
  drawn. Where the source states which response is better, its pairs are the candidates, and neither the pairing nor
  the scores change them. Responses without ratings are compared by their overall score.
* Random choices come from a generator seeded by the prompt and the seed, over responses sorted by text: the pairs do
  not depend on the order of rows or responses. The files are in the order of `prompt_id`.
* Mean and standard deviation of each aspect come from the training split alone, over the chosen and the rejected
  response of every pair, and are reused for the other splits. The target is softmax of the chosen response's
  normalised scores (Eq. 13). Pairs without scores pass through as they are: a plain RM and a VRM with lambda 0 need
  none.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from vrm.config import DataConfig
from vrm.records import (
    PreferencePair,
    RecordError,
    ScoredPrompt,
    ScoredResponse,
    read_pairs,
    read_scored,
    write_json,
    write_jsonl,
)
from vrm.watch import format_counts

SPLITS = ("train", "validation", "test")

FATES = ("candidate_pairs", "ties_dropped", "identical_texts_dropped", "not_drawn", "pairs")


def make_pairs(config: DataConfig, out_dir: Path) -> dict[str, Any]:
    """Make `out_dir`/raw_pairs/{train,validation,test}.jsonl and pair_counts.json from scored.jsonl; print the counts.

    Args:
        config: pairing, what the preference comes from, fractions of the splits, seed.
        out_dir: holds scored.jsonl; the pairs go below it.

    Returns:
        The content of pair_counts.json.

    Raises:
        RecordError: a split that is asked for has no pair; names the numbers and what to do about it.
    """
    pairs: dict[str, list[PreferencePair]] = {split: [] for split in SPLITS}
    tallies = {split: Counter() for split in SPLITS}
    made_of: Counter[str] = Counter()  # prompts that differ in case or white space alone share an id
    for prompt in sorted(read_scored(out_dir / "scored.jsonl"), key=lambda p: (p.prompt_id, _texts(p))):
        split = split_of(prompt.prompt_id, config)
        made, fates = pairs_of(prompt, config, made_of[prompt.prompt_id])
        made_of[prompt.prompt_id] += len(made)
        pairs[split] += made
        tallies[split] += fates + Counter(prompts=1, prompts_without_a_pair=not made)

    names = ("prompts", "prompts_without_a_pair", *FATES)
    splits = {split: {name: int(tallies[split][name]) for name in names} for split in SPLITS}
    counts = {
        "pairing": config.pairing,
        "preference_from": config.preference_from,
        "seed": config.seed,
        **splits,
    }
    _require_pairs(splits, config)
    for split in SPLITS:
        write_jsonl(out_dir / "raw_pairs" / f"{split}.jsonl", pairs[split])
    write_json(out_dir / "pair_counts.json", counts)
    print(format_counts("Preference pairs", counts))
    return counts


def split_of(prompt_id: str, config: DataConfig) -> str:
    """The split of a prompt: a function of its id, the seed and the fractions alone."""
    share = _hash(f"split:{config.seed}:{prompt_id}") / 2**64
    if share < config.test_fraction:
        return "test"
    return "validation" if share < config.test_fraction + config.validation_fraction else "train"


def pairs_of(prompt: ScoredPrompt, config: DataConfig, first: int = 0) -> tuple[list[PreferencePair], Counter]:
    """The preference pairs of one prompt.

    `best_vs_random` draws the rejected response among those strictly worse than the best; `all` keeps at most
    `max_pairs_per_prompt`, drawn at random. Which of several equally good responses is the best is drawn, too.

    Args:
        prompt: the prompt and its responses.
        config: pairing, what the preference comes from, seed.
        first: number of the first pair, which is part of its id.

    Returns:
        The pairs, and how many candidates met which of `FATES`.
    """
    rng = np.random.default_rng(_hash(f"pairs:{config.seed}:{prompt.prompt_id}"))
    candidates = _candidates(prompt, config, rng)
    fates = Counter(candidate_pairs=len(candidates))
    kept: list[tuple[ScoredResponse, ScoredResponse]] = []
    stated = prompt.preferences is not None
    for better, worse in candidates:
        if not stated and _preference(better, config) == _preference(worse, config):
            fates["ties_dropped"] += 1
        elif better.text.strip() == worse.text.strip():
            fates["identical_texts_dropped"] += 1
        else:
            kept.append((better, worse))
    most = config.max_pairs_per_prompt or len(kept)
    limit = most if stated else {"best_vs_random": 1, "best_vs_worst": 1, "all": most}[config.pairing]
    drawn = sorted(rng.permutation(len(kept))[:limit])
    fates.update(not_drawn=len(kept) - len(drawn), pairs=len(drawn))
    return [_pair(prompt, number, *kept[index]) for number, index in enumerate(drawn, first)], fates


def _candidates(
    prompt: ScoredPrompt, config: DataConfig, rng: np.random.Generator
) -> list[tuple[ScoredResponse, ScoredResponse]]:
    """The pairs that the source states or the pairing considers, the better or equally good response first."""
    if prompt.preferences is not None:
        stated = [(prompt.responses[better], prompt.responses[worse]) for better, worse in prompt.preferences]
        return sorted(stated, key=lambda pair: [(response.text, response.scores) for response in pair])
    by_text = sorted(prompt.responses, key=lambda r: (r.text, r.model, r.scores))
    shuffled = [by_text[index] for index in rng.permutation(len(by_text))]  # draws the order of equally good ones
    ranked = sorted(shuffled, key=lambda response: -_preference(response, config))
    if config.pairing == "all":
        return list(combinations(ranked, 2))
    rivals = ranked[-1:] if config.pairing == "best_vs_worst" else ranked[1:]
    return [(ranked[0], rival) for rival in rivals]


def _preference(response: ScoredResponse, config: DataConfig) -> float:
    """The value that decides which response is better, in rating points or the source's overall unit."""
    if config.preference_from == "mean_of_aspects" and response.scores:
        # rounded, or the last bit would decide between ratings with the same sum in another order
        return round(fmean(response.scores), 9)
    if response.overall is None:
        raise RecordError("a scored response has no overall_score; read the data again with data.preference_from set")
    return response.overall


def _pair(prompt: ScoredPrompt, number: int, chosen: ScoredResponse, rejected: ScoredResponse) -> PreferencePair:
    return PreferencePair(
        pair_id=f"{prompt.prompt_id}-{number}",
        prompt_id=prompt.prompt_id,
        prompt=prompt.prompt,
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_scores=chosen.scores or None,
        rejected_scores=rejected.scores or None,
        true_weights=prompt.true_weights,
    )


def _texts(prompt: ScoredPrompt) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in prompt.prompt]


def _require_pairs(splits: dict[str, dict[str, int]], config: DataConfig) -> None:
    """Stop where a split that is asked for has no pair."""
    fractions = {"validation": config.validation_fraction, "test": config.test_fraction}
    fractions["train"] = 1 - sum(fractions.values())
    prompts = sum(split["prompts"] for split in splits.values())
    for name, split in splits.items():
        if fractions[name] > 0 and not split["pairs"]:
            remedy = "give more prompts or another data.seed"
            remedy += f", or a higher data.{name}_fraction" if name != "train" else ""
            raise RecordError(
                f"the {name} split has no pair: a share of {fractions[name]:g} of {prompts} prompts was asked for, "
                f"{split['prompts']} fell into it; of their {split['candidate_pairs']} candidate pairs "
                f"{split['ties_dropped']} were ties and {split['identical_texts_dropped']} of identical texts; {remedy}"
            )


def _hash(text: str) -> int:
    """64 bits of SHA-256: the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Normalisation:
    """What scores are normalised by.

    Args:
        aspects: names of the K aspects.
        mean: mean rating of each aspect, length K, in rating points.
        std: population standard deviation of each aspect, length K, in rating points; 1 where the aspect is constant,
            so that its normalised score is 0 and not a division by zero.
        n: number of responses behind both, two a pair.
    """

    aspects: list[str]
    mean: list[float]
    std: list[float]
    n: int


def fit(pairs: Sequence[PreferencePair], aspects: Sequence[str]) -> Normalisation:
    """Mean and population standard deviation over the chosen and rejected responses of `pairs`.

    Raises:
        RecordError: there is no pair, or a pair has no scores of the K aspects.
    """
    if not pairs:
        raise RecordError("no training pair to take the mean and standard deviation of the scores from")
    for pair in pairs:
        _require_scores(pair, len(aspects))
    scores = np.array([scores for pair in pairs for scores in (pair.chosen_scores, pair.rejected_scores)])  # (2N, K)
    constant = np.ptp(scores, axis=0) == 0  # not std == 0: the std of equal numbers need not be exactly 0
    return Normalisation(
        aspects=list(aspects),
        mean=np.where(constant, scores[0], scores.mean(axis=0)).tolist(),
        std=np.where(constant, 1.0, scores.std(axis=0)).tolist(),
        n=len(scores),
    )


def apply(normalisation: Normalisation, pair: PreferencePair) -> PreferencePair:
    """The pair with normalised scores and the supervision target.

    Raises:
        RecordError: the pair has no scores of the K aspects.
    """
    _require_scores(pair, len(normalisation.aspects))
    mean, std = np.array(normalisation.mean), np.array(normalisation.std)
    chosen = (np.array(pair.chosen_scores) - mean) / std
    rejected = (np.array(pair.rejected_scores) - mean) / std
    exponentials = np.exp(chosen - chosen.max())
    return replace(
        pair,
        chosen_normalised=chosen.tolist(),
        rejected_normalised=rejected.tolist(),
        target=(exponentials / exponentials.sum()).tolist(),
    )


def normalise_pairs(config: DataConfig, out_dir: Path) -> Normalisation | None:
    """Normalise `out_dir`/raw_pairs/ into pairs/ and write normalisation.json; print mean and standard deviation.

    Where no pair has scores there is no normalisation: normalisation.json then holds `null`.

    Args:
        config: the names of the K aspects.
        out_dir: holds raw_pairs/{train,validation,test}.jsonl.

    Returns:
        The normalisation; None where no pair has scores.

    Raises:
        RecordError: the training split has no pair with scores, or a pair has those of one response alone; names the
            file.
    """
    splits = {split: read_pairs(out_dir / "raw_pairs" / f"{split}.jsonl") for split in SPLITS}
    if not any(_has_scores(pair) for pairs in splits.values() for pair in pairs):
        return _pass_through(splits, out_dir)
    try:
        normalisation = fit(list(filter(_has_scores, splits["train"])), config.aspects)
        normalised = {
            split: [apply(normalisation, pair) if _has_scores(pair) else pair for pair in pairs]
            for split, pairs in splits.items()
        }
    except RecordError as error:
        raise RecordError(f"{out_dir / 'raw_pairs'}: {error}") from None
    for split, pairs in normalised.items():
        write_jsonl(out_dir / "pairs" / f"{split}.jsonl", pairs)
    write_json(out_dir / "normalisation.json", asdict(normalisation))
    print(f"Scores of {normalisation.n} training responses (mean, standard deviation)")
    for aspect, mean, std in zip(config.aspects, normalisation.mean, normalisation.std, strict=True):
        print(f"  {aspect}  {mean:.3f}  {std:.3f}")
    if without := sum(not _has_scores(pair) for pairs in splits.values() for pair in pairs):
        print(
            f"  {without} pairs have no scores and no target of w; a variant that needs these can't be trained on them"
        )
    return normalisation


def _pass_through(splits: dict[str, list[PreferencePair]], out_dir: Path) -> None:
    """Leave pairs without scores as they are."""
    if not splits["train"]:
        raise RecordError(f"{out_dir / 'raw_pairs'}: no training pair")
    for split, pairs in splits.items():
        write_jsonl(out_dir / "pairs" / f"{split}.jsonl", pairs)
    write_json(out_dir / "normalisation.json", None)
    print(f"No pair of {sum(map(len, splits.values()))} has scores: nothing to normalise, and no supervision of w")


def _has_scores(pair: PreferencePair) -> bool:
    return pair.chosen_scores is not None or pair.rejected_scores is not None


def _require_scores(pair: PreferencePair, aspects: int) -> None:
    for scores in (pair.chosen_scores, pair.rejected_scores):
        if scores is None or len(scores) != aspects:
            raise RecordError(f"pair {pair.pair_id}: expected {aspects} scores of both responses; make the pairs again")
