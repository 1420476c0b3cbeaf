"""Answers for best-of-n: so many a prompt, in order, scored by every reward model, the same for a seed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from vrm.config import BestOfN, Generation
from vrm.evaluation.overoptimisation import BestOfNJob, sample_best_of_n
from vrm.models.scoring import load_reward_model
from vrm.models.text import TextEncoder
from vrm.models.vrm import VrmForSequenceClassification
from vrm.records import read_jsonl, read_pairs


@pytest.fixture(scope="module")
def rewards(tiny_backbone, tmp_path_factory):
    directories = {}
    for seed, name in enumerate(("rm", "vrm")):
        torch.manual_seed(seed)
        directories[name] = tmp_path_factory.mktemp(name)
        model = AutoModelForSequenceClassification.from_pretrained(tiny_backbone, num_labels=1)
        model.save_pretrained(directories[name])
        AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(directories[name])
    return directories


@pytest.fixture
def job(tiny_backbone, toy_pairs, rewards, tmp_path):
    return BestOfNJob(
        policy=str(tiny_backbone),
        revision=None,
        chat_template_kwargs={},
        rewards=rewards,
        pairs=toy_pairs / "validation.jsonl",
        generation=Generation(engine="vllm", max_new_tokens=10),
        best_of_n=BestOfN(samples=4, prompts=3),
        max_prompt_length=64,
        max_length=96,
        scoring_batch_size=8,
        seed=1,
        out=tmp_path / "samples.jsonl",
    )


def sampled(job):
    sample_best_of_n(job)
    return [row for _, row in read_jsonl(job.out)]


def test_every_prompt_is_answered_equally_often_and_scored_by_each_model(job, rewards):
    rows = sampled(job)
    prompts = {pair.prompt_id: pair.prompt for pair in read_pairs(job.pairs)}
    assert [row["prompt_id"] for row in rows] == [key for key in sorted(prompts)[:3] for _ in range(4)]
    for row in rows:
        assert list(row) == ["prompt_id", "prompt", "response", "length", "ended", "rewards", "cut"]
        assert row["prompt"] == prompts[row["prompt_id"]]
        assert 1 <= row["length"] <= 10
        assert row["ended"] or row["length"] == 10
        assert list(row["rewards"]) == ["rm", "vrm"]
        assert row["cut"] == {"rm": False, "vrm": False}
    assert len({row["response"] for row in rows}) > 3
    for name, path in rewards.items():
        expected = load_reward_model(path).score([r["prompt"] for r in rows], [r["response"] for r in rows]).mean
        np.testing.assert_allclose([row["rewards"][name] for row in rows], expected, rtol=1e-5, atol=1e-6)


def test_reward_models_of_one_backbone_have_the_answers_encoded_once(job, monkeypatch):
    expected, encode, sizes = sampled(job), TextEncoder.try_encode, []

    def counted(self, prompts, responses):
        sizes.append(len(prompts))
        return encode(self, prompts, responses)

    monkeypatch.setattr(TextEncoder, "try_encode", counted)
    assert sampled(job) == expected
    assert sizes == [len(expected)]


def test_what_is_cut_is_said(job, rewards, tmp_path, capsys):
    """By the policy's limits in the log, by each reward model's own limits in the rows."""
    first = sampled(replace(job, rewards={"rm": rewards["rm"]}, max_prompt_length=20))
    encoder = load_reward_model(rewards["rm"]).encoder
    texts = encoder.encode([row["prompt"] for row in first], [row["response"] for row in first])
    lengths = sorted(len(text.ids) for text in texts)
    strict = tmp_path / "strict"
    shutil.copytree(rewards["rm"], strict)
    config = json.loads((strict / "config.json").read_text())
    limits = {"max_prompt_length": lengths[0] - 1, "max_length": lengths[len(lengths) // 2 - 1]}
    (strict / "config.json").write_text(json.dumps(config | {"reward_limits": limits}))
    rows = sampled(replace(job, rewards={"rm": rewards["rm"], "strict": strict}, max_prompt_length=20))
    expected = load_reward_model(strict).score([r["prompt"] for r in rows], [r["response"] for r in rows]).truncated
    assert [row["cut"] for row in rows] == [{"rm": False, "strict": cut} for cut in expected.tolist()]
    assert 0 < expected.sum() < len(rows)
    said = capsys.readouterr().out
    assert "12 answers to 3 prompts, 3 of which were cut" in said
    assert "rm had to cut 0 of the texts" in said
    assert f"strict had to cut {expected.sum()} of the texts" in said


def test_the_seed_decides(job, tmp_path):
    rows = sampled(job)
    assert sampled(replace(job, out=tmp_path / "again.jsonl")) == rows
    assert sampled(replace(job, out=tmp_path / "other.jsonl", scoring_batch_size=8, seed=2)) != rows


def test_the_rated_part_of_a_reward_is_a_reward_of_its_own(job, tiny_backbone, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    torch.manual_seed(0)
    model = VrmForSequenceClassification.from_backbone(str(tiny_backbone), aspects=["a", "b"], residual=True)
    torch.nn.init.normal_(model.head.residual)
    model.config.reward_limits = {"max_prompt_length": 64, "max_length": 96}
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "concept")
    rows = sampled(replace(job, rewards={"concept": tmp_path / "concept", "concept:rated": tmp_path / "concept"}))
    whole = load_reward_model(tmp_path / "concept").score([r["prompt"] for r in rows], [r["response"] for r in rows])
    for name, expected in (("concept", whole.mean), ("concept:rated", whole.rated)):
        np.testing.assert_allclose([row["rewards"][name] for row in rows], expected, rtol=1e-5, atol=1e-6)
    assert np.abs(whole.residual).max() > 0.1
