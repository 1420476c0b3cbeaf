"""Training of reward models: it learns, it resumes exactly, and it says what it dropped."""

import dataclasses
import json

import pandas as pd
import pytest
import torch
from policy_jobs import Killed
from reward_jobs import ASPECTS, SCALAR, TRAINING, VRM, quick, weights

from vrm.config import Lora, Variant
from vrm.models.scoring import load_reward_model
from vrm.records import read_pairs, write_jsonl
from vrm.training import reward
from vrm.training.reward import PairwiseRewardTrainer, RewardJob, train_reward_model
from vrm.training.reward_kinds import scheduled_weights
from vrm.training.symptoms import TrainingError

CONCEPT_RESIDUAL = Variant(
    label="concept-residual VRM",
    latent_dim=4,
    score_anchor_weight=0.1,
    prompt_pooling="attention",
    concentration="scaled",
    residual=True,
)


@pytest.fixture
def job(tiny_backbone, toy_pairs, tmp_path):
    return RewardJob(
        VRM, TRAINING, ASPECTS, 1, str(tiny_backbone), None, toy_pairs, tmp_path / "checkpoints", tmp_path / "out"
    )


@pytest.mark.parametrize("variant", [SCALAR, VRM, CONCEPT_RESIDUAL], ids=["scalar", "variational", "residual"])
def test_it_learns_separable_preferences_and_leaves_a_loadable_model(job, toy_pairs, variant):
    job = dataclasses.replace(job, variant=variant)
    train_reward_model(job)
    model = load_reward_model(job.out / "model")
    assert (model.encoder.max_prompt_length, model.encoder.max_length) == (64, 96)  # as trained
    pairs = read_pairs(toy_pairs / "validation.jsonl")
    prompts = [pair.prompt for pair in pairs]
    margin = (
        model.score(prompts, [p.chosen for p in pairs]).mean - model.score(prompts, [p.rejected for p in pairs]).mean
    )
    assert (margin > 0).mean() > 0.9
    assert not job.checkpoints.exists()
    assert {path.suffix for path in (job.out / "model").iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_the_log_has_every_term_and_its_last_accuracy_is_the_models_own(job, toy_pairs):
    train_reward_model(job)
    log = pd.read_csv(job.out / "training.csv")
    assert list(log.columns) == ["step", "epoch", "split", "metric", "value"]
    assert not log.duplicated(["step", "split", "metric"]).any()
    measured = log[log.split == "validation"].pivot(index="step", columns="metric", values="value")
    assert measured.index[0] == 0
    assert measured.index.tolist() == [0, 4, 8, 12, 16, 18]  # the last one is the saved model's
    dimensions = [f"kl_z_dim{i:02d}" for i in range(4)]
    # per dimension it is a mean over responses, in total a sum over the pair's two
    assert measured[dimensions].sum(axis=1).mul(2).to_numpy() == pytest.approx(measured.kl_z.to_numpy(), rel=1e-3)
    assert measured.kl_total.to_numpy() == pytest.approx((measured.kl_w + measured.kl_z).to_numpy(), rel=1e-4)
    assert {"supervision_loss", "anchor_loss", "active_units", "negative_elbo", "preference_loss"} <= set(measured)
    assert measured.supervision_kl.tolist() == measured.supervision_loss.tolist()  # this variant's loss is the KL
    assert "residual_loss" not in measured
    batch = log[log.split == "batch"]
    assert {"loss", "accuracy", "kl_w", "kl_z", "preference_loss"} <= set(batch.metric)
    assert sorted(set(batch.step)) == [4, 8, 12, 16, 18]  # the last window, a shorter one, included

    model = load_reward_model(job.out / "model", max_prompt_length=64, max_length=96)
    pairs = read_pairs(toy_pairs / "validation.jsonl")
    prompts = [pair.prompt for pair in pairs]
    margin = (
        model.score(prompts, [p.chosen for p in pairs]).mean - model.score(prompts, [p.rejected for p in pairs]).mean
    )
    assert measured.accuracy.iloc[-1] == pytest.approx((margin > 0).mean())
    of_prompts = model.score(prompts, [p.chosen for p in pairs]).weights
    assert measured.weights_sd.iloc[-1] == pytest.approx(of_prompts.std(axis=0).mean(), rel=1e-4)


def test_a_residual_starts_at_nothing_and_its_penalty_holds_it_back(job, tmp_path):
    held = []
    for number, penalty in enumerate([0.0, 100.0]):
        places = {"checkpoints": tmp_path / f"c{number}", "out": tmp_path / f"o{number}"}
        variant = CONCEPT_RESIDUAL.model_copy(update={"residual_penalty": penalty})
        train_reward_model(dataclasses.replace(job, variant=variant, **places))
        log = pd.read_csv(places["out"] / "training.csv")
        held.append(log[(log.split == "validation") & (log.metric == "residual_loss")].set_index("step").value)
    assert held[0].iloc[0] == held[1].iloc[0] == 0
    assert held[0].iloc[-1] > 0.1
    assert held[1].iloc[-1] < 0.05 * held[0].iloc[-1]


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["all weights", "adapters"])
def test_a_killed_training_resumes_to_the_same_result(job, tmp_path, monkeypatch, lora, capsys):
    job = dataclasses.replace(job, training=TRAINING.model_copy(update={"lora": lora}))
    train_reward_model(job)
    expected, log = weights(job), (job.out / "training.csv").read_text()

    again = dataclasses.replace(job, checkpoints=tmp_path / "checkpoints2", out=tmp_path / "out2")
    write = reward.LogWriter.on_evaluate

    def die_at_step_15(self, args, state, control, **rest):
        write(self, args, state, control, **rest)
        if state.global_step >= 15:
            raise Killed

    monkeypatch.setattr(reward.LogWriter, "on_evaluate", die_at_step_15)
    with pytest.raises(Killed):
        train_reward_model(again)
    assert not (again.out / "model").exists()
    weights_kept = "adapter_model.safetensors" if lora else "model.safetensors"
    kept = [path.name for path in again.checkpoints.glob("checkpoint-*/*.safetensors")]
    assert kept == [weights_kept] * 2  # the newest and the one before it
    monkeypatch.setattr(reward.LogWriter, "on_evaluate", write)
    capsys.readouterr()
    train_reward_model(again)
    assert "going on from checkpoint-" in capsys.readouterr().out  # from the beginning it would come to the same too
    for name, weight in weights(again).items():
        assert torch.equal(weight, expected[name]), name
    assert (again.out / "training.csv").read_text() == log


def test_a_loss_that_diverges_in_the_last_step_alone_leaves_no_model(job, monkeypatch):
    compute = PairwiseRewardTrainer.compute_loss

    def diverge(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        found = compute(self, model, inputs, return_outputs, num_items_in_batch)
        return found * torch.nan if model.training and self.state.global_step == 17 else found

    monkeypatch.setattr(PairwiseRewardTrainer, "compute_loss", diverge)
    with pytest.raises(TrainingError, match="step 18: the loss is nan"):
        train_reward_model(job)
    assert not (job.out / "model").exists()


def test_a_new_label_and_another_way_to_start_it_continue_a_training(job, toy_pairs):
    def made_from(**changes):
        return reward._made_from(dataclasses.replace(job, **changes))

    same = {
        "variant": VRM.model_copy(update={"label": "ours", "ours": True}),
        "training": TRAINING.model_copy(
            update={"processes": 2, "launch": "fsdp2", "checkpoints": 7, "gradient_checkpointing": True}
        ),
    }
    assert made_from(**same) == made_from()
    assert made_from(variant=VRM.model_copy(update={"beta_w": 0.5})) != made_from()
    assert made_from(training=TRAINING.model_copy(update={"batch_size": 4})) != made_from()


def test_another_seed_gives_another_model_and_the_same_seed_the_same(job, tmp_path):
    results = []
    for number, seed in enumerate([1, 1, 2]):
        place = {"checkpoints": tmp_path / f"c{number}", "out": tmp_path / f"o{number}"}
        train_reward_model(dataclasses.replace(job, seed=seed, training=quick(), **place))
        results.append(weights(dataclasses.replace(job, **place)))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert not torch.equal(results[0]["head.latent_encoder.weight"], results[2]["head.latent_encoder.weight"])


def test_pairs_identical_after_truncation_are_dropped_and_counted(job, toy_pairs, tmp_path):
    directory = tmp_path / "pairs"
    pairs = read_pairs(toy_pairs / "train.jsonl")[:20]
    long = " ".join(["alpha"] * 300)
    twins = dataclasses.replace(pairs[0], chosen=long + " good", rejected=long + " bad")
    write_jsonl(directory / "train.jsonl", [*pairs, twins])
    write_jsonl(directory / "validation.jsonl", pairs)
    train_reward_model(dataclasses.replace(job, pairs=directory, training=quick()))
    counts = json.loads((job.out / "counts.json").read_text())["train"]
    assert counts == {
        "pairs": 20, "identical_after_truncation": 1, "refused_by_template": 0,
        "texts": 42, "prompts_cut": 0, "responses_cut": 2,
    }  # fmt: skip


def test_supervision_without_scores_says_so(job, toy_pairs, tmp_path):
    bare = [dataclasses.replace(pair, target=None) for pair in read_pairs(toy_pairs / "train.jsonl")]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "pairs" / f"{split}.jsonl", bare)
    with pytest.raises(ValueError, match="need annotated scores"):
        train_reward_model(dataclasses.replace(job, pairs=tmp_path / "pairs"))


def test_betas_rise_linearly_during_the_warm_up():
    variant = Variant(label="x", beta_w=0.4, beta_z=0.2, beta_warmup=0.5, supervision_weight=0.3)
    assert scheduled_weights(variant, 0.0).beta_w == 0.0
    assert scheduled_weights(variant, 0.25).beta_w == pytest.approx(0.2)
    assert scheduled_weights(variant, 0.25).supervision == 0.3
    assert scheduled_weights(variant, 0.9).beta_z == pytest.approx(0.2)
    assert scheduled_weights(variant.model_copy(update={"beta_warmup": 0.0}), 0.0).beta_w == pytest.approx(0.4)
