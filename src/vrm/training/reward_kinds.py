"""What each kind of reward model does in a training: how it is made, what it says of a pair, what it minimises.

`PairwiseRewardTrainer` knows nothing of kinds. It asks one of these for a fresh model, for the evidence of a batch, for
the loss of that evidence, and for what else is worth measuring over a whole set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, TrainerCallback
from transformers.modeling_layers import GenericForSequenceClassification

from vrm.config import Variant
from vrm.config.reward import BASELINES, GatedSettings, GaussianSettings
from vrm.models.baseline_heads import HEADS, BaselineForSequenceClassification, GatedHead, Noise
from vrm.models.baseline_losses import OBJECTIVES, anchor_thresholds, length_corrections, spearman
from vrm.models.features import FeatureForSequenceClassification, FeatureTable
from vrm.models.latents import (
    PairAnnotation,
    Posterior,
    Sampler,
    Weights,
    active_units,
    dirichlet_mean,
    gaussian_kl,
    objective,
    preference_loss,
    supervision_kl,
    weights_sd,
)
from vrm.models.vrm import VrmForSequenceClassification
from vrm.models.weights import checked_weights
from vrm.training.pairs import ANNOTATIONS

SIDES = ("chosen", "rejected")
Evidence = dict[str, dict[str, Tensor]]
"""What a model says of B pairs, by `chosen` and `rejected`; each has a `reward`, (B,), and what its kind adds.

Plain dictionaries of tensors with a row a pair, because that is what the trainer can gather and concatenate."""


class Draws(NamedTuple):
    """What latents are sampled with, the same however many processes share a batch."""

    sampler: Sampler
    noise: Noise


CORRECTION_PAIRS = 2000
"""Training pairs, the first ones, whose scores' correlation with length is measured between a gate's two phases."""


class RewardKind:
    """A kind of reward model in training.

    Args:
        variant: settings of the model.
        aspects: names of the K rated aspects.
    """

    head = "head"
    """Name of the module above the backbone, which adapters leave alone."""

    def __init__(self, variant: Variant, aspects: list[str]) -> None:
        self.variant, self.aspects = variant, aspects

    def new_model(
        self,
        path: str | PreTrainedModel,
        revision: str | None,
        dtype: torch.dtype,
        turns: dict[str, list[int]],
        train: Dataset | None,
    ) -> PreTrainedModel:
        """A fresh head on a backbone.

        Args:
            path, revision: the causal LM; a model of frozen features as it is.
            dtype: of its weights.
            turns: tokens that begin a response and a user turn, see `vrm.models.templates`.
            train: the training split, tokenised, for what a head takes from it; None where weights are loaded anyway.
        """
        raise NotImplementedError

    def evidence(self, model: torch.nn.Module, inputs: dict[str, Tensor], draws: Draws | None) -> Evidence:
        """One forward pass over B chosen rows and then B rejected ones; means where there are no draws."""
        raise NotImplementedError

    def loss(
        self, evidence: Evidence, annotation: PairAnnotation | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and its detached terms by name; `progress` is the share of finished steps."""
        raise NotImplementedError

    def measures(
        self, evidence: Evidence, annotation: PairAnnotation | None, terms: dict[str, Tensor]
    ) -> dict[str, float]:
        """What else a whole set's evidence tells."""
        return {}

    def callbacks(self, trainer: Any) -> list[TrainerCallback]:
        """What the kind does between steps."""
        return []


@contextmanager
def _new_score_is_expected() -> Iterator[None]:
    """Have transformers say nothing of a causal LM's missing `score` and unused head: `checked_weights` looks.

    Source: TRL's `suppress_seqcls_warning`.
    """
    ignored = {"missing": [r"^score\.weight$"], "unexpected": [r"^lm_head\."]}
    for kind, keys in ignored.items():
        setattr(GenericForSequenceClassification, f"_keys_to_ignore_on_load_{kind}", keys)
    try:
        yield
    finally:
        for kind in ignored:
            delattr(GenericForSequenceClassification, f"_keys_to_ignore_on_load_{kind}")


class Scalar(RewardKind):
    """The plain Bradley-Terry reward model, a stock sequence classifier."""

    head = "score"

    def new_model(
        self,
        path: str | PreTrainedModel,
        revision: str | None,
        dtype: torch.dtype,
        turns: dict[str, list[int]],
        train: Dataset | None,
    ) -> PreTrainedModel:
        """One label, no prompt to find."""
        if isinstance(path, PreTrainedModel):
            return FeatureForSequenceClassification.on(path)
        with _new_score_is_expected():
            return checked_weights(
                AutoModelForSequenceClassification, path, fresh=["score"], num_labels=1, revision=revision, dtype=dtype
            )

    def evidence(self, model: torch.nn.Module, inputs: dict[str, Tensor], draws: Draws | None) -> Evidence:
        """Rewards and nothing else."""
        inputs = {name: value for name, value in inputs.items() if name != "prompt_lengths"}
        rewards = model(**inputs, use_cache=False).logits.float().squeeze(-1).chunk(2)
        return {side: {"reward": reward} for side, reward in zip(SIDES, rewards, strict=True)}

    def loss(
        self, evidence: Evidence, annotation: PairAnnotation | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Bradley-Terry."""
        loss = preference_loss(*(evidence[side]["reward"] for side in SIDES))
        return loss, {"preference_loss": loss.detach()}


class Variational(RewardKind):
    """The VRM."""

    def new_model(
        self,
        path: str | PreTrainedModel,
        revision: str | None,
        dtype: torch.dtype,
        turns: dict[str, list[int]],
        train: Dataset | None,
    ) -> PreTrainedModel:
        """A head with the variant's latents."""
        return VrmForSequenceClassification.from_backbone(
            path,
            revision=revision,
            dtype=dtype,
            aspects=self.aspects,
            latent_dim=self.variant.latent_dim,
            reward_decoder=self.variant.decoder,
            prior_concentration=self.variant.prior_concentration,
            # frozen features have one vector a prompt, with the mean over its tokens in it
            prompt_pooling="last" if isinstance(path, PreTrainedModel) else self.variant.prompt_pooling,
            concentration=self.variant.concentration,
            scale=self.variant.has_scale,
            residual=self.variant.residual,
            scale_start=self.variant.scale_start,
            residual_gain=self.variant.residual_gain,
            residual_detached=self.variant.residual_detached,
            **turns,
        )

    def evidence(self, model: torch.nn.Module, inputs: dict[str, Tensor], draws: Draws | None) -> Evidence:
        """Rewards and posteriors; w is drawn once a pair."""
        return _halves(model(**inputs, sampler=draws and draws.sampler).posterior.filled())

    def loss(
        self, evidence: Evidence, annotation: PairAnnotation | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """VRM, Eq. 11 and 14."""
        chosen, rejected = (Posterior(**evidence[side]) for side in SIDES)
        prior = torch.full_like(chosen.alpha[0], self.variant.prior_concentration)
        weights = scheduled_weights(self.variant, progress)
        return objective(chosen, rejected, prior, weights, self.variant.supervision, annotation)

    def measures(
        self, evidence: Evidence, annotation: PairAnnotation | None, terms: dict[str, Tensor]
    ) -> dict[str, float]:
        """What the latents carry, and how far w is from its target, whichever loss supervises it."""
        both = Posterior.concatenate([Posterior(**evidence[side]) for side in SIDES])
        per_dimension = gaussian_kl(both.mu, both.log_variance).mean(0)
        of_target = {}
        if annotation is not None:
            weights = dirichlet_mean(evidence["chosen"]["alpha"])
            of_target["supervision_kl"] = supervision_kl(weights, annotation.target).mean().item()
        return {
            **of_target,
            "kl_total": (terms["kl_w"] + terms["kl_z"]).item(),
            "active_units": active_units(both.mu),
            "weights_sd": weights_sd(evidence["chosen"]["alpha"]),
            **{f"kl_z_dim{i:02d}": value.item() for i, value in enumerate(per_dimension)},
        }


class Baseline(RewardKind):
    """A published reward model: its head, its objective, its settings."""

    def new_model(
        self,
        path: str | PreTrainedModel,
        revision: str | None,
        dtype: torch.dtype,
        turns: dict[str, list[int]],
        train: Dataset | None,
    ) -> PreTrainedModel:
        """A head of the kind, with what it takes from the training split."""
        kind, settings = self.variant.kind, self.variant.baseline
        values = settings.model_dump(mode="json")
        if isinstance(path, PreTrainedModel) and "prompt_pooling" in values:
            values["prompt_pooling"] = "last"  # frozen features have one vector a prompt
        model = BaselineForSequenceClassification.from_backbone(
            path,
            revision=revision,
            dtype=dtype,
            kind=kind,
            settings=values,
            aspects=self.aspects if HEADS[kind].rated else [],
            **turns,
        )
        if train is not None and isinstance(settings, GatedSettings) and not settings.joint:
            model.head.set_lengths(_response_lengths(train, path))
        if train is not None and isinstance(settings, GaussianSettings) and settings.anchor_weight > 0:
            model.head.thresholds.copy_(torch.tensor(anchor_thresholds(_mean_ratings(train))))
        return model

    def evidence(self, model: torch.nn.Module, inputs: dict[str, Tensor], draws: Draws | None) -> Evidence:
        """The head's parts."""
        output = model(**inputs, noise=draws and draws.noise)
        return _halves({"reward": output.logits.squeeze(-1), **output.parts})

    def loss(
        self, evidence: Evidence, annotation: PairAnnotation | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `vrm.models.baseline_losses`."""
        sides = (evidence[side] for side in SIDES)
        return OBJECTIVES[self.variant.kind](*sides, annotation, self.variant.baseline, progress)

    def measures(
        self, evidence: Evidence, annotation: PairAnnotation | None, terms: dict[str, Tensor]
    ) -> dict[str, float]:
        """The accuracy of the aspects' plain mean, and a gate's corrections with the correlations they leave."""
        found = {}
        if "weights" in evidence["chosen"]:
            found["weights_sd"] = evidence["chosen"]["weights"].std(0, unbiased=False).mean().item()
        if HEADS[self.variant.kind].rated:
            name = "ratings" if self.variant.kind == "gated" else "per_objective"
            chosen, rejected = (evidence[side][name].mean(-1) for side in SIDES)
            found["accuracy_mean_rating"] = (chosen > rejected).float().mean().item()
        if _two_phases(self.variant):
            scores, verbosity = (_both(evidence, name) for name in ("per_objective", "verbosity"))
            for k, correction in enumerate(evidence["chosen"]["correction"][0]):
                found[f"length_correction{k:02d}"] = correction.item()
                found[f"length_correlation{k:02d}"] = spearman(scores[:, k], verbosity)
        return found

    def callbacks(self, trainer: Any) -> list[TrainerCallback]:
        """A gate's two phases."""
        return [TwoPhases(trainer, self.variant.baseline)] if _two_phases(self.variant) else []


class TwoPhases(TrainerCallback):
    """First ratings, then the gate alone: takes length out of the aspects between the two, and holds the rest still.

    Which phase it is follows from the step, and the corrections are in the head's buffers, so a resumed training
    stands where the killed one stood.
    """

    def __init__(self, trainer: Any, settings: GatedSettings) -> None:
        self.trainer, self.settings = trainer, settings

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Measure the corrections once, before the second phase's first step."""
        heads = [part for part in self.trainer.model.modules() if isinstance(part, GatedHead)]  # adapters keep a copy
        if self._second(state) and not any(head.corrected.item() for head in heads):
            scores, verbosity = self._scores()
            correction, _left = length_corrections(scores, verbosity, self.settings.length_limit)
            for head in heads:
                head.set_correction(torch.tensor(correction))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Hold still what is not of the phase: a gradient of zero would leave it to the optimiser's momentum."""
        for name, parameter in self.trainer.model.named_parameters():
            if GatedHead.of_gate(name) != self._second(state):
                parameter.grad = None

    def _second(self, state: Any) -> bool:
        return state.global_step / max(state.max_steps, 1) >= self.settings.first_phase

    def _scores(self) -> tuple[np.ndarray, np.ndarray]:
        """g, (N, K), and v, (N,), of both responses of the first training pairs; the same in every process."""
        trainer, found = self.trainer, []
        rows = trainer.train_dataset.select(range(min(CORRECTION_PAIRS, len(trainer.train_dataset))))
        size, was_training = trainer.args.per_device_eval_batch_size, trainer.model.training
        trainer.model.eval()
        with torch.no_grad():
            for start in range(0, len(rows), size):
                batch = trainer.data_collator([rows[i] for i in range(start, min(start + size, len(rows)))])
                inputs = trainer._prepare_inputs(batch)
                inputs = {name: value for name, value in inputs.items() if name not in ANNOTATIONS}
                found.append(trainer.model(**inputs).parts)
        trainer.model.train(was_training)
        return tuple(torch.cat([parts[name] for parts in found]).cpu().numpy() for name in ("ratings", "verbosity"))


KINDS: dict[str, Callable[[Variant, list[str]], RewardKind]] = {
    "scalar": Scalar,
    "variational": Variational,
    **dict.fromkeys(BASELINES, Baseline),
}
"""By the name that a kind has in the configuration."""


def scheduled_weights(variant: Variant, progress: float) -> Weights:
    """Weights of the objective's terms at `progress` (0 to 1): both betas rise linearly from 0 during the warm-up."""
    ramp = min(1.0, progress / variant.beta_warmup) if variant.beta_warmup > 0 else 1.0
    return Weights(
        beta_w=variant.beta_w * ramp,
        beta_z=variant.beta_z * ramp,
        supervision=variant.supervision_weight,
        score_anchor=variant.score_anchor_weight,
        free_bits=variant.free_bits,
        residual=variant.residual_penalty if variant.residual else 0.0,
    )


def _two_phases(variant: Variant) -> bool:
    return isinstance(variant.baseline, GatedSettings) and not variant.baseline.joint


def _halves(parts: dict[str, Tensor]) -> Evidence:
    """Tensors of 2B rows, B chosen and then B rejected, as evidence."""
    chunks = {name: value.chunk(2) for name, value in parts.items()}
    return {side: {name: chunk[i] for name, chunk in chunks.items()} for i, side in enumerate(SIDES)}


def _both(evidence: Evidence, name: str) -> np.ndarray:
    return np.concatenate([np.asarray(evidence[side][name]) for side in SIDES])


def _response_lengths(train: Dataset, backbone: str | PreTrainedModel) -> Tensor:
    """Tokens of every response; of stored features, whose ids are rows, by the table."""
    if isinstance(backbone, FeatureTable):
        return torch.cat([backbone.response_lengths(torch.tensor(train[f"{side}_ids"])) for side in SIDES])
    lengths = [
        len(ids) - prompt
        for side in SIDES
        for ids, prompt in zip(train[f"{side}_ids"], train["prompt_length"], strict=True)
    ]
    return torch.tensor(lengths)


def _mean_ratings(train: Dataset) -> np.ndarray:
    """Mean over the aspects of every response's normalised ratings."""
    return np.concatenate([np.array(train[f"{side}_normalised"]).mean(-1) for side in SIDES])
