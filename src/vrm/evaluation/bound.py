"""Every term of Theorem 5.1 on a trained VRM: risks under sampled latents, both KLs, the bound.

* The sample is the training pairs as they were trained on: encoded and cut alike, without the pairs that cutting had
  made identical.
* A risk is the mean 0-1 loss over pairs and draws of the latents, w drawn once a pair and shared by both responses
  (Eq. 10), a tie being an error. Everywhere else posterior means are scored; the theorem does not speak of those.
* KL_total is the sum over the pairs of KL(w), KL(z chosen) and KL(z rejected).

The formula itself is `vrm.statistics.pac_bayes`; docs/theory.md says what it does and does not show.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vrm.models.latents import Posterior, dirichlet_kl, gaussian_kl, sample_dirichlet, sample_gaussian
from vrm.models.scoring import HuggingFaceRewardModel, load_reward_model
from vrm.models.text import TextEncoder, TokenisedText
from vrm.models.vrm import VrmForSequenceClassification, VrmHead
from vrm.records import RecordError, read_pairs
from vrm.runfiles import BOUND_TERMS, PAC_BAYES
from vrm.statistics.pac_bayes import largest_kl, mcallester_bound
from vrm.training.pairs import read_texts, tokenise_pairs
from vrm.watch import watched

SAMPLES = 64
"""Draws of the latents a pair: over 2,000 pairs a risk's standard error is then 0.14 points at most."""

DELTA = 0.05

_PAIRS_AT_ONCE = 256  # fixed, so that draws do not depend on the batch size

Pairs = tuple[Posterior, Posterior]
"""Posteriors of N chosen texts and of the N rejected ones, on the CPU; of q(w|x) the chosen text's is the pair's."""


@dataclass(frozen=True)
class BoundJob:
    """Whose bound, on which pairs, and where to.

    Args:
        model: directory of a trained VRM.
        pairs: directory with `train.jsonl`, whose pairs it was trained on, and the held-out split.
        seed: of the draws of the latents.
        out: the CSV, `runfiles.PAC_BAYES`.
        held_out: split that the model was not trained on.
        samples: draws of the latents a pair.
        delta: chance that the bound may fail with.
        max_prompt_length, max_length: limits in tokens; None takes those that the model was trained with.
        batch_size: texts a forward pass; changes nothing.
        trained_on: how many of the training pairs, the first ones; None: all.
        tokens: directory that `vrm tokenise` has filled from `pairs`; None: they are tokenised here.
    """

    model: Path
    pairs: Path
    seed: int
    out: Path
    held_out: str = "validation"
    samples: int = SAMPLES
    delta: float = DELTA
    max_prompt_length: int | None = None
    max_length: int | None = None
    batch_size: int = 64
    trained_on: int | None = None
    tokens: Path | None = None


def pac_bayes(job: BoundJob) -> pd.DataFrame:
    """Measure every term and write one tidy CSV.

    Returns:
        What was written: term, value. Terms: pairs, samples, delta, empirical_risk; kl_w, kl_z, kl_total (in nats,
        summed over the pairs); kl_w_per_pair, kl_z_per_pair, kl_per_pair; bound; vacuous (1: the bound is 1 or more);
        largest_kl_per_pair (below it the bound would not be; negative where no KL would do); held_out_pairs,
        held_out_risk.

    Raises:
        RecordError: the model is not variational, or a file of pairs is missing, broken or empty.
    """
    limits = {"max_prompt_length": job.max_prompt_length, "max_length": job.max_length}
    model = load_reward_model(job.model, **limits, batch_size=job.batch_size)
    if not isinstance(model.model, VrmForSequenceClassification):
        raise RecordError(f"{job.model}: a scalar reward model has no latents, and so no term of the bound")
    training = _encode(model, _texts(job, model.encoder, "train", job.trained_on))
    validation = _encode(model, _texts(job, model.encoder, job.held_out))
    kl_w, kl_z = _kl(training, model.model.prior().cpu())
    n, risk = len(training[0].alpha), _risk(model.model.head, training, job.samples, job.seed)
    bound = mcallester_bound(risk, kl_w + kl_z, n, job.delta)
    terms = {
        "pairs": n,
        "samples": job.samples,
        "delta": job.delta,
        "empirical_risk": risk,
        "kl_w": kl_w,
        "kl_z": kl_z,
        "kl_total": kl_w + kl_z,
        "kl_w_per_pair": kl_w / n,
        "kl_z_per_pair": kl_z / n,
        "kl_per_pair": (kl_w + kl_z) / n,
        "bound": bound,
        "vacuous": int(bound >= 1),
        "largest_kl_per_pair": largest_kl(risk, n, job.delta) / n,
        "held_out_pairs": len(validation[0].alpha),
        "held_out_risk": _risk(model.model.head, validation, job.samples, job.seed),
    }
    table = pd.DataFrame({"term": BOUND_TERMS, "value": [terms[term] for term in BOUND_TERMS]})
    PAC_BAYES.write(job.out, table)
    print(f"{job.out}: {_verdict(terms)}")
    return table


def _texts(
    job: BoundJob, encoder: TextEncoder, split: str, most: int | None = None
) -> list[tuple[TokenisedText, TokenisedText]]:
    """Chosen and rejected texts of a split's pairs, or of the first ones, in the order of the file."""
    path = job.pairs / f"{split}.jsonl"
    if job.tokens is not None:
        return read_texts(path, job.tokens, encoder, most)
    pairs, _ = tokenise_pairs(read_pairs(path)[:most], encoder, path, "reward.training.max_length")
    return [(pair.chosen, pair.rejected) for pair in pairs]


def _encode(model: HuggingFaceRewardModel, pairs: list[tuple[TokenisedText, TokenisedText]]) -> Pairs:
    """Posteriors of the pairs, in their order."""
    order = np.argsort([len(chosen.ids) + len(rejected.ids) for chosen, rejected in pairs], kind="stable")
    parts = []
    with torch.inference_mode():
        size = max(1, model.batch_size // 2)
        for start in watched(range(0, len(order), size), "posteriors", "batches"):
            parts.append(_encode_batch(model, [pairs[i] for i in order[start : start + size]]))
    inverse = torch.as_tensor(np.argsort(order, kind="stable"))
    chosen, rejected = (Posterior.concatenate(side).select(inverse) for side in zip(*parts, strict=True))
    return chosen, rejected


def _encode_batch(model: HuggingFaceRewardModel, pairs: list[tuple[TokenisedText, TokenisedText]]) -> Pairs:
    """Posteriors of B pairs; rows are B chosen texts, then B rejected ones, as in training."""
    texts = [pair[side] for side in range(2) for pair in pairs]
    return model.model(**model.inputs(texts)).posterior.cpu().halves()


def _kl(pairs: Pairs, prior: Tensor) -> tuple[float, float]:
    """KL of w, and of z of both responses, each summed over the pairs, in nats, computed in float64.

    In float32 the normalisers' differences err by hundredths of a nat a pair at concentrations of 1e4.
    """
    of_w = dirichlet_kl(pairs[0].alpha.double(), prior.double())
    of_z = sum(gaussian_kl(side.mu.double(), side.log_variance.double()) for side in pairs)
    return float(of_w.sum()), float(of_z.sum())


def _risk(head: VrmHead, pairs: Pairs, samples: int, seed: int) -> float:
    """Share of pairs and draws in which the chosen response does not score strictly higher."""
    device = next(head.parameters()).device
    lost, n = 0, len(pairs[0].alpha)
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in watched(range(0, n, _PAIRS_AT_ONCE), "risk", f"times {_PAIRS_AT_ONCE} pairs"):
            part = [side.select(slice(start, start + _PAIRS_AT_ONCE)) for side in pairs]
            for _ in range(samples):
                weights = sample_dirichlet(part[0].alpha).to(device)  # once a pair
                chosen, rejected = (
                    head.decode(weights, sample_gaussian(side.mu, side.log_variance).to(device)).reward for side in part
                )
                lost += int((chosen <= rejected).sum())
    return lost / (n * samples)


def _verdict(terms: dict[str, float]) -> str:
    """What the bound says, for people."""
    said = (
        f"risk {terms['empirical_risk']:.3f} on {terms['pairs']} training pairs, {terms['held_out_risk']:.3f} on "
        f"{terms['held_out_pairs']} held-out ones; {terms['kl_per_pair']:.3g} nats a pair; bound {terms['bound']:.3f}"
    )
    if not terms["vacuous"]:
        return said
    if terms["largest_kl_per_pair"] <= 0:
        return f"{said}: vacuous, and with {terms['pairs']} pairs it would be so without any KL"
    return f"{said}: vacuous; it would not be below {terms['largest_kl_per_pair']:.3g} nats a pair"
