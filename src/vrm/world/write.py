"""Write the whole world: one UltraFeedback-shaped file, four evaluation sets, and facts of it that need no model.

* Each part has its own random stream, so that the size of one file doesn't change the content of another.
* The facts: how far apart truth and annotation are, and what is possible at all. Shares of independent pairs have
  Wilson intervals; whatever has several values a prompt has a percentile bootstrap over prompts, with a generator that
  the caller passes. All intervals are at 95 %. A scorer that ties wins half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from vrm.config import WorldConfig
from vrm.records import write_jsonl
from vrm.world.evaluation_sets import Pair, PromptPool, probes, reward_bench, rows, training_requests
from vrm.world.gold import SPURIOUS
from vrm.world.prompts import ASPECTS, KINDS, Request, true_weights
from vrm.world.responses import TASTE, Annotated, AnnotatedPrompt, annotate, annotate_prompt, on_ten_scale

SOURCE = "offline_world"


@dataclass(frozen=True)
class HeldOutPair:
    """An annotated held-out prompt with the two responses that make its pair; the annotators chose `chosen`."""

    prompt: AnnotatedPrompt
    chosen: Annotated
    rejected: Annotated


def write_world(config: WorldConfig, out: Path) -> None:
    """Write the world's files into `out`: ultrafeedback and the four evaluation sets (.jsonl), and statistics.csv.

    The same configuration gives the same bytes.
    """
    streams = np.random.SeedSequence(config.seed).spawn(6)
    train_rng, held_out_rng, bench_rng, probe_rng, fault_rng, statistics_rng = map(np.random.default_rng, streams)
    training = [annotate_prompt(r, config, train_rng) for r in training_requests(config, train_rng)]
    known = [p.request for p in training]
    held_out = _held_out(known, config, held_out_rng)
    bench_pool = PromptPool(known, config.leaked_share, bench_rng)
    bench = reward_bench(bench_pool.draw, config.pairs_per_subset, bench_rng)
    probe_pool = PromptPool(known, config.leaked_share, probe_rng)
    probe = probes(probe_pool.draw, config.pairs_per_probe, probe_rng)

    write_jsonl(out / "ultrafeedback.jsonl", _with_faults([_record(p) for p in training], config, fault_rng))
    write_jsonl(out / "uf_c.jsonl", [_annotated_row(p) for p in held_out])
    write_jsonl(out / "noise_free.jsonl", [_noise_free_row(p) for p in held_out])
    write_jsonl(out / "reward_bench.jsonl", rows(bench))
    write_jsonl(out / "probes.jsonl", rows(probe))
    sets = {
        "uf_c": [p.prompt.request.text for p in held_out],
        "reward_bench": [p.request.text for p in bench],
        "probes": [p.request.text for p in probe],
    }
    facts = statistics(training, held_out, sets, probe, config, statistics_rng)
    import pandas as pd  # for this table alone: judges and sets of the world start without it

    from vrm.runfiles import WORLD_STATISTICS

    WORLD_STATISTICS.write(out / Path(WORLD_STATISTICS.name).name, pd.DataFrame([asdict(row) for row in facts]))


def _held_out(training: list[Request], config: WorldConfig, rng: np.random.Generator) -> list[HeldOutPair]:
    """One pair a prompt, as in UltraFeedback-cleaned: the best-annotated response and a random other one.

    A prompt whose pair ties in truth is drawn anew, since it has no noise-free label.
    """
    pool = PromptPool(training, config.leaked_share, rng)
    pairs: dict[str, HeldOutPair] = {}
    while len(pairs) < config.evaluation_prompts:
        prompt = annotate_prompt(pool.draw(), config, rng)
        best, *others = sorted(prompt.responses, key=lambda y: -y.overall)
        other = others[int(rng.integers(len(others)))]
        if best.reward != other.reward:
            pairs.setdefault(prompt.request.text, HeldOutPair(prompt, best, other))
    return list(pairs.values())


def _record(prompt: AnnotatedPrompt) -> dict[str, Any]:
    """A prompt with its responses in UltraFeedback's shape."""
    return {
        "source": SOURCE,
        "instruction": prompt.request.text,
        "completions": [
            {
                "model": y.author,
                "response": y.response.text,
                "annotations": {a: {"Rating": f"{r:g}"} for a, r in zip(ASPECTS, y.ratings, strict=True)},
                "overall_score": on_ten_scale(y.overall),
            }
            for y in prompt.responses
        ],
        "true_weights": np.round(prompt.weights, 6).tolist(),
    }


def _with_faults(records: list[dict[str, Any]], config: WorldConfig, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Plant the faults that upstream has: a rating "N/A", or an annotation that is missing, in turn."""
    count = round(config.faulty_share * len(records))
    for number, row in enumerate(sorted(rng.permutation(len(records))[:count].tolist())):
        completions = records[row]["completions"]
        annotations = completions[int(rng.integers(len(completions)))]["annotations"]
        aspect = ASPECTS[int(rng.integers(len(ASPECTS)))]
        if number % 2 == 0:
            annotations[aspect]["Rating"] = "N/A"
        else:
            del annotations[aspect]
    return records


def _annotated_row(pair: HeldOutPair) -> dict[str, Any]:
    return _row(pair, pair.chosen, pair.rejected) | {
        "chosen_scores": list(pair.chosen.ratings),
        "rejected_scores": list(pair.rejected.ratings),
    }


def _noise_free_row(pair: HeldOutPair) -> dict[str, Any]:
    chosen, rejected = sorted((pair.chosen, pair.rejected), key=lambda y: -y.reward)
    return _row(pair, chosen, rejected) | {
        "chosen_scores": list(chosen.response.scores),
        "rejected_scores": list(rejected.response.scores),
    }


def _row(pair: HeldOutPair, chosen: Annotated, rejected: Annotated) -> dict[str, Any]:
    """A held-out pair in the public columns; the subset is the kind of prompt."""
    return {
        "prompt": pair.prompt.request.text,
        "chosen": chosen.response.text,
        "rejected": rejected.response.text,
        "subset": pair.prompt.request.kind,
        "true_weights": np.round(pair.prompt.weights, 6).tolist(),
    }


# Facts of the written world.

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal."""
BOOTSTRAP_SAMPLES = 1000

Judgment = Callable[[Annotated], float]


@dataclass(frozen=True)
class Statistic:
    """One fact with its 95 % interval (None where it has none)."""

    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    explanation: str


def statistics(
    training: list[AnnotatedPrompt],
    held_out: list[HeldOutPair],
    sets: dict[str, list[str]],
    probes: list[Pair],
    config: WorldConfig,
    rng: np.random.Generator,
) -> list[Statistic]:
    """Everything that the world can say of itself.

    Args:
        training: the annotated training prompts.
        held_out: the pairs of the UF-C-like sets.
        sets: prompts of each evaluation set, by its name.
        probes: the probe pairs; the spurious ones are annotated here to measure the annotators' bias.
        config: the world's configuration.
        rng: for the bootstrap and for those annotations.
    """
    return [
        *_held_out_pairs(held_out),
        *_all_pairs(training, config, rng),
        *_spurious_effects(probes, config, rng),
        *_weights(training, rng),
        *_leaks(training, sets),
        *_ratings(training, rng),
        *_texts(training, rng),
    ]


def wilson(wins: float, n: int) -> tuple[float, float]:
    """95 % score interval of a share.

    Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209-212.
    """
    share = wins / n
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _held_out_pairs(pairs: list[HeldOutPair]) -> list[Statistic]:
    def share(metric: str, judgment: Judgment, truth: Judgment, explanation: str) -> Statistic:
        return _share(metric, [_agree(judgment, truth, p.chosen, p.rejected) for p in pairs], explanation)

    return [
        share("held_out/agreement", _overall, _reward, "annotated preference = sign of w*.(s_a - s_b), held-out pairs"),
        share(
            "held_out/ceiling_annotated",
            _utility,
            _overall,
            "annotated accuracy of the sign of w*.s + bias, which no scorer beats in expectation (only noise is left)",
        ),
        share(
            "held_out/biased_optimum_noise_free",
            _utility,
            _reward,
            "noise-free accuracy of that same scorer: what a perfect fit to the annotators costs in truth",
        ),
        share("held_out/equal_weights_noise_free", _mean_score, _reward, "noise-free accuracy of the mean true score"),
        share("held_out/equal_weights_annotated", _mean_score, _overall, "annotated accuracy of the mean true score"),
        share(
            "held_out/spurious_only_annotated", _spurious, _overall, "annotated accuracy of the spurious counts alone"
        ),
        share(
            "held_out/spurious_only_noise_free",
            _spurious,
            _reward,
            "noise-free accuracy of the spurious counts alone; above 0.5 as each pair has its prompt's biased best",
        ),
        share("held_out/length_only_annotated", _length, _overall, "annotated accuracy of the number of words alone"),
    ]


def _all_pairs(training: list[AnnotatedPrompt], config: WorldConfig, rng: np.random.Generator) -> list[Statistic]:
    def ceiling(a: Annotated, b: Annotated) -> float:
        if config.preference_noise == 0:
            return 1.0
        return 0.5 * (1 + math.erf(abs(a.utility - b.utility) / (2 * config.preference_noise)))

    def by_prompt(value: Callable[[Annotated, Annotated], float]) -> np.ndarray:
        return np.array([np.mean([value(a, b) for a, b in combinations(p.responses, 2)]) for p in training])

    return [
        _mean(
            "training/agreement",
            by_prompt(lambda a, b: _agree(_overall, _reward, a, b)),
            "annotated preference = sign of w*.(s_a - s_b), all pairs of a prompt's responses",
            rng,
        ),
        _mean(
            "training/ceiling_annotated",
            by_prompt(ceiling),
            "expected annotated accuracy of the sign of w*.s + bias: mean of Phi(|difference|/(sqrt(2) noise))",
            rng,
        ),
    ]


def _spurious_effects(probes: list[Pair], config: WorldConfig, rng: np.random.Generator) -> list[Statistic]:
    out = []
    for feature in SPURIOUS:
        wins = []
        for pair in (p for p in probes if p.subset == f"spurious/{feature}"):
            weights = true_weights(pair.request)
            without, having = (annotate("", y, weights, config, rng) for y in (pair.chosen, pair.rejected))
            wins.append(float(having.overall > without.overall))
        why = f"annotators prefer the response with {feature}, the two being equal in every objective"
        out.append(_share(f"spurious_effect/{feature}", wins, why))
    return out


def _weights(training: list[AnnotatedPrompt], rng: np.random.Generator) -> list[Statistic]:
    out = []
    for kind in KINDS:
        weights = np.array([p.weights for p in training if p.request.kind == kind])
        for k, aspect in enumerate(ASPECTS):
            if len(weights):
                why = f"mean true weight of {aspect} in prompts of kind {kind}"
                out.append(_mean(f"true_weight/{kind}/{aspect}", weights[:, k], why, rng))
    return out


def _leaks(training: list[AnnotatedPrompt], sets: dict[str, list[str]]) -> list[Statistic]:
    known = {p.request.text for p in training}
    return [
        _share(
            f"leaked/{name}", [float(t in known) for t in texts], f"rows of {name} whose prompt is in the training file"
        )
        for name, texts in sets.items()
    ]


def _ratings(training: list[AnnotatedPrompt], rng: np.random.Generator) -> list[Statistic]:
    out = []
    for k, aspect in enumerate(ASPECTS):
        rated = np.array([[y.ratings[k] for y in p.responses] for p in training])
        true = np.array([[y.response.scores[k] for y in p.responses] for p in training])
        draws = rng.integers(len(training), size=(BOOTSTRAP_SAMPLES, len(training)))
        low, high = np.quantile([_correlation(rated[d], true[d]) for d in draws], [0.025, 0.975])
        why = f"Pearson correlation of the ratings of {aspect} with the true scores"
        value = _correlation(rated, true)
        out.append(Statistic(f"rating_correlation/{aspect}", value, float(low), float(high), rated.size, why))
    return out


def _texts(training: list[AnnotatedPrompt], rng: np.random.Generator) -> list[Statistic]:
    prompts = [p.request.text for p in training]
    responses = [y.response.text for p in training for y in p.responses]
    distinct = len(set(responses)) / len(responses)
    vocabulary = {word.strip(".,;") for text in (*prompts, *responses) for word in text.split()}
    long, short = (float(np.quantile([len(t.split()) for t in responses], q)) for q in (0.95, 0.05))
    lengths = np.array([np.mean([len(y.response.text.split()) for y in p.responses]) for p in training])
    n = len(responses)
    return [
        Statistic(
            "distinct_responses", distinct, None, None, n, "share of distinct texts among the training responses"
        ),
        Statistic("vocabulary", float(len(vocabulary)), None, None, n, "distinct words of the training file"),
        _mean("prompt_words", np.array([len(t.split()) for t in prompts]), "mean words of a training prompt", rng),
        _mean("response_words", lengths, "mean words of a training response", rng),
        Statistic("response_words_5", short, None, None, n, "5 % of the training responses have at most so many words"),
        Statistic(
            "response_words_95", long, None, None, n, "95 % of the training responses have at most so many words"
        ),
    ]


def _overall(y: Annotated) -> float:
    return y.overall


def _reward(y: Annotated) -> float:
    return y.reward


def _utility(y: Annotated) -> float:
    return y.utility


def _mean_score(y: Annotated) -> float:
    return sum(y.response.scores) / len(ASPECTS)


def _spurious(y: Annotated) -> float:
    return float(TASTE @ np.array(y.response.spurious))


def _length(y: Annotated) -> float:
    return float(len(y.response.text.split()))


def _agree(judgment: Judgment, truth: Judgment, a: Annotated, b: Annotated) -> float:
    """1 if both order a and b alike, 0 if not, 0.5 if either ties."""
    return 0.5 + 0.5 * float(np.sign(judgment(a) - judgment(b)) * np.sign(truth(a) - truth(b)))


def _share(metric: str, wins: Sequence[float], explanation: str) -> Statistic:
    return Statistic(metric, float(np.mean(wins)), *wilson(sum(wins), len(wins)), len(wins), explanation)


def _mean(metric: str, values: np.ndarray, explanation: str, rng: np.random.Generator) -> Statistic:
    """A mean over prompts; `values` has shape (prompts,)."""
    draws = rng.integers(len(values), size=(BOOTSTRAP_SAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return Statistic(metric, float(values.mean()), float(low), float(high), len(values), explanation)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
