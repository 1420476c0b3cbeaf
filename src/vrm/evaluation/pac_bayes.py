"""Every term of Theorem 5.1 on a trained VRM: risks under sampled latents, both KLs, the bound.

* The sample is the training pairs as they were trained on: encoded and cut alike, pairs left out that cutting had made
  identical.
* A risk is the mean 0-1 loss over pairs and draws of the latents, w drawn once a pair and shared by both responses
  (Eq. 10), a tie being an error; posterior means, which score everywhere else, are not what the theorem speaks of.
* KL_total is the sum over the pairs of KL(w), KL(z chosen) and KL(z rejected).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vrm.models.latents import dirichlet_kl, gaussian_kl, sample_dirichlet, sample_gaussian
from vrm.models.scoring import HuggingFaceRewardModel, load_reward_model, pad_batch
from vrm.models.text import TokenisedText
from vrm.models.vrm import VrmForSequenceClassification, VrmHead
from vrm.records import RecordError, read_pairs, write_whole
from vrm.theory.pac_bayes import largest_kl, mcallester_bound
from vrm.training.pairs import TokenisedPair, tokenise_pairs

SAMPLES = 64
"""Draws of the latents a pair: over 2,000 pairs a risk's standard error is then 0.14 points at most."""
DELTA = 0.05
_PAIRS_AT_ONCE = 256  # fixed, so that draws do not depend on the batch size


@dataclass(frozen=True)
class _Posteriors:
    """q(w|x) and q(z|x,y) of N pairs, on the CPU: alpha (N, K); means and log-variances (N, d) of each response."""

    alpha: Tensor
    mu_chosen: Tensor
    mu_rejected: Tensor
    log_variance_chosen: Tensor
    log_variance_rejected: Tensor

    def select(self, rows: slice) -> _Posteriors:
        """Some of the pairs."""
        return _Posteriors(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def pac_bayes(
    model_dir: str | Path,
    pairs: Path,
    *,
    seed: int,
    out: Path,
    held_out: str = "validation",
    samples: int = SAMPLES,
    delta: float = DELTA,
    max_prompt_length: int | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Measure every term and write one tidy CSV.

    Args:
        model_dir: a trained VRM.
        pairs: directory with `train.jsonl`, the very pairs that it was trained on, and the held-out split.
        seed: of the draws of the latents.
        out: the CSV, with columns term, value. Terms: pairs, samples, delta, empirical_risk; kl_w, kl_z, kl_total (in
            nats, summed over the pairs); kl_w_per_pair, kl_z_per_pair, kl_per_pair; bound; vacuous (1: the bound is 1
            or more); largest_kl_per_pair (below it the bound would not be; negative where no KL would do);
            held_out_pairs, held_out_risk.
        held_out: split that the model was not trained on.
        samples: draws of the latents a pair.
        delta: chance that the bound may fail with.
        max_prompt_length, max_length: limits in tokens; None takes those that the model was trained with.
        batch_size: texts per forward pass; changes nothing.

    Returns:
        What was written.

    Raises:
        RecordError: the model is not variational, or a file of pairs is missing, broken or empty.
    """
    model = load_reward_model(
        model_dir, max_prompt_length=max_prompt_length, max_length=max_length, batch_size=batch_size
    )
    if not isinstance(model.model, VrmForSequenceClassification):
        raise RecordError(f"{model_dir}: a scalar reward model has no latents, and so no term of the bound")
    training = _encode(model, pairs / "train.jsonl")
    validation = _encode(model, pairs / f"{held_out}.jsonl")
    kl_w, kl_z = _kl(training, model.model.prior().cpu())
    n, risk = len(training.alpha), _risk(model.model.head, training, samples, seed)
    bound = mcallester_bound(risk, kl_w + kl_z, n, delta)
    terms = {
        "pairs": n,
        "samples": samples,
        "delta": delta,
        "empirical_risk": risk,
        "kl_w": kl_w,
        "kl_z": kl_z,
        "kl_total": kl_w + kl_z,
        "kl_w_per_pair": kl_w / n,
        "kl_z_per_pair": kl_z / n,
        "kl_per_pair": (kl_w + kl_z) / n,
        "bound": bound,
        "vacuous": int(bound >= 1),
        "largest_kl_per_pair": largest_kl(risk, n, delta) / n,
        "held_out_pairs": len(validation.alpha),
        "held_out_risk": _risk(model.model.head, validation, samples, seed),
    }
    table = pd.DataFrame({"term": list(terms), "value": list(terms.values())})
    write_whole(out, table.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
    print(f"{out}: {_verdict(terms)}")
    return table


def _encode(model: HuggingFaceRewardModel, path: Path) -> _Posteriors:
    """Posteriors of the pairs of a file, in its order."""
    pairs, _ = tokenise_pairs(read_pairs(path), model.encoder, path, "reward.training.max_length")
    order = np.argsort([len(pair.chosen.ids) + len(pair.rejected.ids) for pair in pairs], kind="stable")
    parts = []
    with torch.inference_mode():
        for start in range(0, len(order), max(1, model.batch_size // 2)):
            parts.append(_encode_batch(model, [pairs[i] for i in order[start : start + max(1, model.batch_size // 2)]]))
    inverse = torch.as_tensor(np.argsort(order, kind="stable"))
    return _Posteriors(*(torch.cat(columns)[inverse] for columns in zip(*parts, strict=True)))


def _encode_batch(model: HuggingFaceRewardModel, pairs: list[TokenisedPair]) -> tuple[Tensor, ...]:
    """The fields of `_Posteriors` of B pairs; rows are B chosen texts, then B rejected ones, as in training."""
    texts: list[TokenisedText] = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
    device = model.model.device
    ids, mask = (part.to(device) for part in pad_batch([text.ids for text in texts], model.encoder.tokenizer))
    lengths = torch.tensor([text.prompt_length for text in texts], device=device)
    found = model.model(input_ids=ids, attention_mask=mask, prompt_lengths=lengths)
    alpha, mu, log_variance = (value.float().cpu() for value in (found.alpha, found.mu, found.log_variance))
    return alpha[: len(pairs)], *mu.chunk(2), *log_variance.chunk(2)


def _kl(posteriors: _Posteriors, prior: Tensor) -> tuple[float, float]:
    """KL of w, and of z of both responses, each summed over the pairs, in nats."""
    of_z = gaussian_kl(posteriors.mu_chosen, posteriors.log_variance_chosen) + gaussian_kl(
        posteriors.mu_rejected, posteriors.log_variance_rejected
    )
    return float(dirichlet_kl(posteriors.alpha, prior).double().sum()), float(of_z.double().sum())


def _risk(head: VrmHead, posteriors: _Posteriors, samples: int, seed: int) -> float:
    """Share of pairs and draws in which the chosen response does not score strictly higher."""
    device = next(head.parameters()).device
    lost, pairs = 0, len(posteriors.alpha)
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, pairs, _PAIRS_AT_ONCE):
            part = posteriors.select(slice(start, start + _PAIRS_AT_ONCE))
            for _ in range(samples):
                weights = sample_dirichlet(part.alpha).to(device)  # once a pair
                chosen, _ = head.decode(weights, sample_gaussian(part.mu_chosen, part.log_variance_chosen).to(device))
                rejected, _ = head.decode(
                    weights, sample_gaussian(part.mu_rejected, part.log_variance_rejected).to(device)
                )
                lost += int((chosen <= rejected).sum())
    return lost / (pairs * samples)


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
