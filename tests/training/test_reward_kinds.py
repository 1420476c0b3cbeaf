"""Published reward models in training: each learns, resumes exactly, and minimises what it says."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from policy_jobs import Killed
from reward_jobs import ASPECTS, TRAINING, weights

from vrm.config import Lora, Variant
from vrm.config.reward import BASELINES
from vrm.models.baseline_losses import OBJECTIVES, spearman
from vrm.models.latents import PairAnnotation, preference_loss
from vrm.models.scoring import load_reward_model
from vrm.records import RecordError, read_pairs, write_jsonl
from vrm.training import reward
from vrm.training.reward import RewardJob, make_trainer, train_reward_model

VARIANTS = {
    "bottleneck": Variant(label="InfoRM", kind="bottleneck"),
    "bottleneck_released": Variant(label="InfoRM", kind="bottleneck", bottleneck={"kl": "averaged", "latent_dim": 64}),
    "multitask": Variant(label="multi-task", kind="multitask"),
    "gated": Variant(label="ArmoRM", kind="gated"),
    "gated_attention": Variant(label="gated, attention", kind="gated", gated={"prompt_pooling": "attention"}),
    "gated_joint": Variant(label="gated, joint", kind="gated", gated={"joint": True}),
    "cb_rm": Variant(label="CB-RM", kind="gated", gated={"joint": True, "sampled": True}),
    "length_heads": Variant(label="ODIN", kind="length_heads"),
    "thurstone": Variant(label="DPL", kind="gaussian"),
    "marginal": Variant(label="marginal", kind="gaussian", gaussian={"likelihood": "marginal"}),
    "expected": Variant(label="PURM", kind="gaussian", gaussian={"likelihood": "expected"}),
    "anchored": Variant(label="anchored", kind="gaussian", gaussian={"anchor_weight": 0.1}),
    "nonnegative": Variant(label="BNRM", kind="nonnegative"),
}
GATED = VARIANTS["gated"]


@pytest.fixture(scope="module")
def rated_pairs(tmp_path_factory, toy_pairs):
    """The toy pairs, with the chosen response rated a little higher in every aspect."""
    directory = tmp_path_factory.mktemp("rated")
    for split in ("train", "validation"):
        pairs = read_pairs(toy_pairs / f"{split}.jsonl")
        write_jsonl(
            directory / f"{split}.jsonl",
            [
                dataclasses.replace(
                    pair,
                    chosen_normalised=[0.3 * value + 1 for value in pair.chosen_normalised],
                    rejected_normalised=[0.3 * value - 1 for value in pair.rejected_normalised],
                )
                for pair in pairs
            ],
        )
    return directory


@pytest.fixture
def job(tiny_backbone, rated_pairs, tmp_path):
    return RewardJob(
        GATED, TRAINING, ASPECTS, 1, str(tiny_backbone), None, rated_pairs, tmp_path / "checkpoints", tmp_path / "out"
    )


def measured(job):
    log = pd.read_csv(job.out / "training.csv")
    return log[log.split == "validation"].pivot(index="step", columns="metric", values="value")


@pytest.mark.parametrize("name", VARIANTS)
def test_each_learns_and_leaves_a_loadable_model(job, name, rated_pairs):
    job = dataclasses.replace(job, variant=VARIANTS[name])
    train_reward_model(job)
    log = measured(job)
    assert log.preference_loss.iloc[-1] < 0.8 * log.preference_loss.iloc[0]
    model = load_reward_model(job.out / "model")
    pairs = read_pairs(rated_pairs / "validation.jsonl")
    prompts = [pair.prompt for pair in pairs]
    chosen, rejected = (model.score(prompts, [getattr(p, side) for p in pairs]) for side in ("chosen", "rejected"))
    assert (chosen.mean > rejected.mean).mean() > 0.9
    assert (chosen.mean > rejected.mean).mean() == pytest.approx(log.accuracy.iloc[-1])
    assert not job.checkpoints.exists()


@pytest.mark.parametrize("name", ["gated", "cb_rm", "nonnegative"])
@pytest.mark.parametrize("step", [5, 15], ids=["early", "late"])
def test_a_killed_training_resumes_to_the_same_result(job, tmp_path, monkeypatch, name, step):
    """The gate's second phase begins at step 9; a checkpoint of step 4 or 12 is continued."""
    training = TRAINING.model_copy(update={"checkpoints": 4})
    job = dataclasses.replace(job, variant=VARIANTS[name], training=training)
    train_reward_model(job)
    expected, log = weights(job), (job.out / "training.csv").read_text()
    again = dataclasses.replace(job, checkpoints=tmp_path / "checkpoints2", out=tmp_path / "out2")
    write = reward.LogWriter.on_evaluate

    def die(self, args, state, control, **rest):
        write(self, args, state, control, **rest)
        if state.global_step >= step:
            raise Killed

    monkeypatch.setattr(reward.LogWriter, "on_evaluate", die)
    with pytest.raises(Killed):
        train_reward_model(again)
    assert list(again.checkpoints.glob("checkpoint-*"))
    monkeypatch.setattr(reward.LogWriter, "on_evaluate", write)
    train_reward_model(again)
    found = weights(again)
    assert found.keys() == expected.keys()
    for key, weight in found.items():
        assert torch.equal(weight, expected[key]), key
    assert (again.out / "training.csv").read_text() == log


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["all weights", "adapters"])
def test_ratings_train_the_aspects_and_then_preferences_the_gate_alone(job, monkeypatch, lora):
    training = TRAINING.model_copy(update={"lora": lora, "weight_decay": 0.1})
    trainer, _ = make_trainer(dataclasses.replace(job, variant=VARIANTS["gated_attention"], training=training))
    seen = []

    def snapshot(self, args, state, control, **_):
        seen.append({name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad})

    monkeypatch.setattr(reward.LogWriter, "on_step_end", snapshot)
    trainer.add_callback(reward.LogWriter(job.out / "training.csv"))
    trainer.train()

    def moved(first, last):
        return {name for name in seen[0] if not torch.equal(seen[first][name], seen[last][name])}

    gate = {name for name in seen[0] if ".gate." in name or name.endswith((".tau", ".query"))}
    assert len(gate) == 6
    assert len(seen) == 18
    assert moved(0, 8) == set(seen[0]) - gate  # weight decay and momentum included
    assert moved(8, 17) == gate


def test_length_is_taken_out_of_the_aspects_between_the_phases(job, rated_pairs, tmp_path):
    """Ratings that follow length alone are scores that follow length, until they are corrected."""
    for split in ("train", "validation"):
        pairs = read_pairs(rated_pairs / f"{split}.jsonl")
        length = np.log([[len(text.split()) + 3 for text in (p.chosen, p.rejected)] for p in pairs])
        z = (length - length.mean()) / length.std()
        write_jsonl(
            tmp_path / "long" / f"{split}.jsonl",
            [
                dataclasses.replace(
                    p, chosen_normalised=[row[0], -row[0], 0.0], rejected_normalised=[row[1], -row[1], 0.0]
                )
                for p, row in zip(pairs, z.tolist(), strict=True)
            ],
        )
    train_reward_model(dataclasses.replace(job, pairs=tmp_path / "long"))
    log = measured(job)
    first, last = log.loc[8], log.iloc[-1]
    assert first.length_correction00 == 0
    assert first.length_correlation00 > 0.3
    assert last.length_correction00 > 0.2
    assert last.length_correlation00 < first.length_correlation00 - 0.2
    assert last.length_correction01 == 0  # longer is worse there: nothing to take out
    saved = weights(job)["head.correction"]
    assert saved.tolist() == pytest.approx([last[f"length_correction0{k}"] for k in range(3)])
    model = load_reward_model(job.out / "model")
    pairs = read_pairs(tmp_path / "long" / "train.jsonl")
    texts = [text for p in pairs for text in (p.chosen, p.rejected)]
    scores = model.score([p.prompt for p in pairs for _ in range(2)], texts).per_objective
    lengths = np.array([len(model.encoder.tokenizer(text)["input_ids"]) for text in texts])
    if saved[0] < 0.95:
        assert spearman(scores[:, 0], lengths) <= 0.03 + 1e-6


def test_thresholds_are_the_training_splits_quartiles(job):
    job = dataclasses.replace(job, variant=VARIANTS["anchored"])
    trainer, _ = make_trainer(job)
    pairs = read_pairs(job.pairs / "train.jsonl")
    means = [np.mean(ratings) for p in pairs for ratings in (p.chosen_normalised, p.rejected_normalised)]
    assert trainer.model.head.thresholds.tolist() == pytest.approx(np.quantile(means, [0.25, 0.75]).tolist())


@pytest.mark.parametrize(
    ("variant", "key"),
    [
        (VARIANTS["multitask"], "multitask.rating_weight"),
        (GATED, "kind: gated"),
        (VARIANTS["anchored"], "gaussian.anchor_weight"),
    ],
    ids=["multitask", "gated", "anchored"],
)
def test_what_needs_ratings_says_which_key_asks_for_them(job, tmp_path, variant, key):
    assert variant.needs_scores
    for split in ("train", "validation"):
        pairs = read_pairs(job.pairs / f"{split}.jsonl")
        write_jsonl(tmp_path / "bare" / f"{split}.jsonl", [dataclasses.replace(pair, target=None) for pair in pairs])
    with pytest.raises(RecordError, match=key):
        train_reward_model(dataclasses.replace(job, variant=variant, pairs=tmp_path / "bare"))


@pytest.mark.parametrize(
    "variant",
    [
        VARIANTS["bottleneck"],
        VARIANTS["length_heads"],
        VARIANTS["thurstone"],
        VARIANTS["nonnegative"],
        Variant(label="x", kind="multitask", multitask={"rating_weight": 0.0}),
    ],
    ids=lambda variant: variant.kind,
)
def test_the_others_train_without_ratings(job, tmp_path, variant):
    assert not variant.needs_scores
    for split in ("train", "validation"):
        pairs = read_pairs(job.pairs / f"{split}.jsonl")
        write_jsonl(tmp_path / "bare" / f"{split}.jsonl", [dataclasses.replace(pair, target=None) for pair in pairs])
    quick = TRAINING.model_copy(update={"epochs": 0.5, "evaluations": 1, "checkpoints": 0})
    train_reward_model(dataclasses.replace(job, variant=variant, pairs=tmp_path / "bare", training=quick))


# Objectives


def sides(**parts):
    """Evidence of two pairs from (chosen, rejected) rows."""
    return [{name: torch.tensor(value[i]) for name, value in parts.items()} for i in range(2)]


def objective(kind, evidence, annotation=None, progress=1.0, **settings):
    loss, terms = OBJECTIVES[kind](*evidence, annotation, BASELINES[kind](**settings), progress)
    return loss, terms


def test_every_pairs_rewards_are_compared_before_anything_is_summed():
    """A released ODIN sums rewards over the batch before the sigmoid, where a won and a lost pair cancel."""
    evidence = sides(
        reward=([2.0, -2.0], [0.0, 0.0]),
        length_reward=([0.0, 0.0], [0.0, 0.0]),
        lengths=([5.0, 5.0], [5.0, 5.0]),
        overlap=([0.0, 0.0], [0.0, 0.0]),
    )
    loss, _ = objective("length_heads", evidence, length_weight=0.0)
    expected = preference_loss(torch.tensor([2.0, -2.0]), torch.zeros(2))
    assert loss.item() == pytest.approx(expected.item())
    assert loss.item() > -torch.nn.functional.logsigmoid(torch.tensor(0.0)).item() + 0.1


def test_length_is_rewarded_in_training_and_dropped_at_evaluation():
    evidence = sides(
        reward=([1.0, 0.0], [0.0, 1.0]),
        length_reward=([0.5, 2.0], [0.0, 0.0]),
        lengths=([9.0, 9.0], [2.0, 4.0]),
        overlap=([0.3, 0.3], [0.3, 0.3]),
    )
    loss, terms = objective("length_heads", evidence)
    assert terms["preference_loss"].item() == pytest.approx(
        preference_loss(torch.tensor([1.5, 2.0]), torch.tensor([0.0, 1.0])).item()
    )
    assert loss.item() == pytest.approx(sum(terms[k].item() for k in ("preference_loss", "length_loss", "overlap")))


def test_beta_rises_from_zero_and_both_responses_are_charged():
    evidence = sides(reward=([0.0], [0.0]), mu=([[1.0, 1.0]], [[0.0, 2.0]]), log_variance=([[0.0, 0.0]], [[0.0, 0.0]]))
    half, terms = objective("bottleneck", evidence, progress=0.1, beta=2.0)
    whole, _ = objective("bottleneck", evidence, progress=0.5, beta=2.0)
    assert terms["kl_z"].item() == pytest.approx(1 + 2)
    assert (half - terms["preference_loss"]).item() == pytest.approx(3)
    assert (whole - terms["preference_loss"]).item() == pytest.approx(6)
    _, terms = objective("bottleneck", evidence, beta=2.0, kl="averaged")
    assert terms["kl_z"].item() == pytest.approx(0.5 + 0.5)


@pytest.mark.parametrize("progress", [0.0, 0.49, 0.5, 0.9])
def test_two_phases_never_mix(progress):
    annotation = PairAnnotation(*(torch.zeros(1, 2) for _ in range(3)))
    evidence = sides(reward=([1.0], [0.0]), ratings=([[1.0, 2.0]], [[0.0, 0.0]]))
    loss, terms = objective("gated", evidence, annotation, progress)
    assert loss.item() == pytest.approx(terms["rating_loss" if progress < 0.5 else "preference_loss"].item())
    both, terms = objective("gated", evidence, annotation, progress, joint=True, rating_weight=2.0)
    assert both.item() == pytest.approx(terms["preference_loss"].item() + 2 * terms["rating_loss"].item())
    assert terms["rating_loss"].item() == pytest.approx(0.5 * 2.5)
