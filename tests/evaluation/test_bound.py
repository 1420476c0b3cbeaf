"""The terms of Theorem 5.1: against the training's own KLs, against closed forms, and whatever the batch size."""

from dataclasses import replace
from math import erf, sqrt

import pandas as pd
import pytest
import torch
from torch.distributions import Dirichlet, kl_divergence
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from vrm.config import RewardTraining
from vrm.evaluation.bound import BoundJob, _kl, _risk, pac_bayes
from vrm.models.latents import Posterior, dirichlet_kl, gaussian_kl
from vrm.models.scoring import load_reward_model, pad_batch
from vrm.models.templates import generation_prompt_ids
from vrm.models.text import TextEncoder
from vrm.models.vrm import Decoded, VrmForSequenceClassification
from vrm.records import RecordError, read_pairs, write_jsonl
from vrm.statistics.pac_bayes import mcallester_bound
from vrm.training.pairs import write_tokens


@pytest.fixture(scope="module")
def model_dir(tiny_backbone, tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("vrm")
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    model = VrmForSequenceClassification.from_backbone(
        str(tiny_backbone),
        aspects=["a", "b", "c"],
        latent_dim=4,
        generation_prompt_ids=generation_prompt_ids(tokenizer),
    )
    model.config.reward_limits = {"max_prompt_length": 64, "max_length": 128}
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def terms(model_dir, toy_pairs, tmp_path_factory):
    return measure(model_dir, toy_pairs, tmp_path_factory.mktemp("terms"))


def measure(model_dir, pairs, folder, **options):
    settings = {"seed": 1, "samples": 32} | options
    table = pac_bayes(BoundJob(model_dir, pairs, out=folder / "pac_bayes.csv", **settings))
    written = pd.read_csv(folder / "pac_bayes.csv").set_index("term")["value"]
    assert written.to_dict() == pytest.approx(table.set_index("term")["value"].to_dict(), rel=1e-6)
    return written


def test_kls_are_sums_over_pairs_of_those_that_training_pays(model_dir, toy_pairs, terms):
    model = load_reward_model(model_dir)
    records = read_pairs(toy_pairs / "train.jsonl")
    kl_w = kl_z = 0.0
    for record in records:
        texts = model.encoder.encode([record.prompt] * 2, [record.chosen, record.rejected])
        ids, mask = pad_batch([text.ids for text in texts], model.encoder.tokenizer)
        with torch.no_grad():
            out = model.model(ids, mask, torch.tensor([text.prompt_length for text in texts]))
        kl_w += dirichlet_kl(out.alpha[:1], model.model.prior()).item()
        kl_z += gaussian_kl(out.mu, out.log_variance).sum().item()
    assert terms["kl_w"] == pytest.approx(kl_w, rel=1e-4)
    assert terms["kl_z"] == pytest.approx(kl_z, rel=1e-4)


def test_with_the_trainings_token_ids_it_is_the_same_and_nothing_is_tokenised(
    tiny_backbone, model_dir, toy_pairs, terms, tmp_path, monkeypatch
):
    limits = RewardTraining(max_prompt_length=64, max_length=128)
    write_tokens(str(tiny_backbone), None, None, limits, toy_pairs, tmp_path)
    monkeypatch.setattr(TextEncoder, "try_encode", None)
    again = measure(model_dir, toy_pairs, tmp_path, tokens=tmp_path)
    assert again.to_dict() == terms.to_dict()


def test_kls_of_large_concentrations_are_those_of_float64():
    """Sharp weights, as a VRM with a small beta_w has: 1,000 equal pairs err 1,000 times as much as one."""
    alpha = torch.tensor([[1e4, 2e4, 5e3, 1e4]]).expand(1000, 4)
    side = Posterior(alpha, torch.zeros(1000, 2), torch.zeros(1000, 2), torch.zeros(1000), torch.zeros(1000))
    kl_w, kl_z = _kl((side, side), torch.ones(4))
    exact = kl_divergence(Dirichlet(alpha[0].double()), Dirichlet(torch.ones(4).double())).item()
    assert kl_w == pytest.approx(1000 * exact, abs=1e-3)
    assert kl_z == 0


def test_terms_fit_together(terms):
    assert (terms["pairs"], terms["held_out_pairs"], terms["samples"], terms["delta"]) == (96, 24, 32, 0.05)
    assert terms["kl_total"] == pytest.approx(terms["kl_w"] + terms["kl_z"])
    assert terms["kl_per_pair"] == pytest.approx(terms["kl_total"] / 96)
    assert terms["bound"] == pytest.approx(mcallester_bound(terms["empirical_risk"], terms["kl_total"], 96, 0.05))
    assert terms["vacuous"] == (terms["bound"] >= 1)
    limit = mcallester_bound(terms["empirical_risk"], 96 * terms["largest_kl_per_pair"], 96, 0.05)
    assert limit == pytest.approx(1)
    assert 0 < terms["empirical_risk"] < 1
    assert 0 < terms["held_out_risk"] < 1


def test_batch_size_changes_nothing_and_the_seed_the_risk_alone(model_dir, toy_pairs, terms, tmp_path):
    again = measure(model_dir, toy_pairs, tmp_path, batch_size=7)
    assert again.to_dict() == pytest.approx(terms.to_dict(), rel=1e-3)
    other = measure(model_dir, toy_pairs, tmp_path, seed=2)
    assert other["empirical_risk"] != terms["empirical_risk"]
    assert other["kl_total"] == terms["kl_total"]
    assert abs(other["empirical_risk"] - terms["empirical_risk"]) < 0.05


def test_drawing_leaves_the_callers_random_numbers_alone(model_dir, toy_pairs, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    measure(model_dir, toy_pairs, tmp_path, samples=1)
    assert torch.equal(torch.rand(3), expected)


def test_pairs_that_cutting_makes_identical_do_not_count(model_dir, toy_pairs, tmp_path):
    records = read_pairs(toy_pairs / "train.jsonl")
    alike = replace(records[0], pair_id="alike", rejected=records[0].chosen)
    write_jsonl(tmp_path / "train.jsonl", [*records[:10], alike])
    write_jsonl(tmp_path / "test.jsonl", records[10:14])
    found = measure(model_dir, tmp_path, tmp_path, held_out="test")
    assert (found["pairs"], found["held_out_pairs"]) == (10, 4)


class Head(torch.nn.Linear):
    """r(w, z) = shared part of w + z: the shared part is 0 in a difference if w is drawn once a pair."""

    def __init__(self, of_weights):
        super().__init__(1, 1)
        self.of_weights = of_weights

    def decode(self, weights, latents):
        reward = self.of_weights * weights[:, 0] + latents[:, 0]
        return Decoded(reward, reward, None, None)


def posterior(mu, log_variance):
    """With a uniform w; the rewards at the means are not looked at."""
    unread = torch.full((len(mu),), torch.nan)
    return Posterior(torch.ones(len(mu), 2), mu, log_variance, unread, unread)


@pytest.mark.parametrize("of_weights", [0.0, 1000.0])
def test_risk_is_that_of_the_closed_form_and_w_is_drawn_once_a_pair(of_weights):
    m, pairs = 0.5, 600
    mean, zeros = torch.full((pairs, 1), m), torch.zeros(pairs, 1)
    posteriors = posterior(mean, zeros), posterior(-mean, zeros)
    expected = 0.5 * (1 + erf(-sqrt(2) * m / sqrt(2)))  # P(N(m, 1) < N(-m, 1))
    assert _risk(Head(of_weights), posteriors, 100, seed=0) == pytest.approx(expected, abs=0.01)


def test_a_tie_is_an_error():
    zeros, still = torch.zeros(3, 1), torch.full((3, 1), -torch.inf)  # no variance: every draw is the mean
    assert _risk(Head(0.0), (posterior(zeros, still), posterior(zeros, still)), 4, seed=0) == 1.0


def test_a_scalar_model_is_refused(tiny_backbone, toy_pairs, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(tiny_backbone, num_labels=1).save_pretrained(tmp_path / "rm")
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path / "rm")
    with pytest.raises(RecordError, match="has no latents"):
        pac_bayes(BoundJob(tmp_path / "rm", toy_pairs, seed=0, out=tmp_path / "x.csv"))


def test_what_is_printed_says_when_the_bound_is_vacuous(model_dir, toy_pairs, tmp_path, capsys):
    found = measure(model_dir, toy_pairs, tmp_path)
    said = capsys.readouterr().out
    assert ("vacuous" in said) == bool(found["vacuous"])
    assert "24 held-out" in said
