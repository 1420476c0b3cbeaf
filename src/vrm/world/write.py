"""Write the whole world: one UltraFeedback-shaped file, four evaluation sets, and the statistics.

Each part has its own random stream, so that the size of one file doesn't change the content of another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vrm.config import WorldConfig
from vrm.records import write_jsonl
from vrm.world import prompts
from vrm.world.preference_sets import PromptPool, probes, reward_bench, rows
from vrm.world.prompts import ASPECTS, Request
from vrm.world.responses import Annotated, AnnotatedPrompt, annotate_prompt, on_ten_scale
from vrm.world.statistics import HeldOutPair, statistics, to_table

SOURCE = "offline_world"


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
    from vrm.runfiles import WORLD_STATISTICS  # pandas, for this table alone

    WORLD_STATISTICS.write(out / Path(WORLD_STATISTICS.name).name, to_table(facts))


def training_requests(config: WorldConfig, rng: np.random.Generator) -> list[Request]:
    """The prompts of the training file, with distinct texts; `rng` is of the first stream."""
    requests: dict[str, Request] = {}
    while len(requests) < config.prompts:
        request = prompts.draw(rng)
        requests.setdefault(request.text, request)
    return list(requests.values())


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
