"""What the policy that trainings start from says of the pairs, once: trainings with it are those without it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from policy_jobs import policy_job
from safetensors.torch import load_file

from vrm.config import Lora, PreferenceMethod
from vrm.models.policy_scoring import PolicyScorer, load_policy_scorer
from vrm.models.text import TextEncoder
from vrm.records import RecordError, read_pairs
from vrm.training.preference import REFERENCES, PreferenceTrainer, make_reference, read_tokenised, train_preference
from vrm.training.selective import train_difficulty_run

METHODS = {
    name: PreferenceMethod(label=name, method=name) for name in ("dpo", "ipo", "kto", "simpo", "wpo", "selective_dpo")
}


@pytest.fixture(scope="module")
def file(tiny_backbone, toy_pairs, tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "log_probs.parquet"
    make_reference(policy_job(tiny_backbone, toy_pairs, path.parent), path)
    assert [each.name for each in path.parent.iterdir()] == [path.name]  # nothing is left beside it
    return path


@pytest.fixture
def read_alone(monkeypatch):
    """What trainings ask of texts that are in the file: nothing is encoded, and no pass is made but KTO's."""
    asked = []
    observe = PreferenceTrainer.observe

    def spy(self, rows):
        asked.append(rows.column_names)
        return observe(self, rows)

    monkeypatch.setattr(PreferenceTrainer, "observe", spy)
    monkeypatch.setattr(TextEncoder, "try_encode", None)
    return asked


def difficulty(pairs, path):
    table = pd.DataFrame({"pair_id": [pair.pair_id for pair in pairs], "difficulty": np.arange(96.0), "runs": 1})
    table.assign(kept=(table.index < 40).astype(int)).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", METHODS)
def test_a_training_with_the_file_is_the_one_without(name, tiny_backbone, toy_pairs, file, tmp_path, request):
    selected = (
        difficulty(read_pairs(toy_pairs / "train.jsonl"), tmp_path / "d.csv") if name == "selective_dpo" else None
    )
    alone, together = (policy_job(tiny_backbone, toy_pairs, tmp_path / end, epochs=1) for end in ("alone", "together"))
    train_preference(alone, METHODS[name], selected)
    asked = request.getfixturevalue("read_alone")
    train_preference(together, METHODS[name], selected, file)
    # rows of the training and of both measurements, of which the responses themselves are known
    assert [[name for name in names if name in REFERENCES] for names in asked] == (
        [["first_reference"]] * 3 if name == "kto" else []
    )
    expected, found = (load_file(job.out / "model" / "model.safetensors") for job in (alone, together))
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=1e-3, atol=2e-4)
    expected, found = (pd.read_csv(job.out / "held_out.csv") for job in (alone, together))
    assert found.drop(columns=["start", "end"]).equals(expected.drop(columns=["start", "end"]))
    assert np.allclose(found[["start", "end"]], expected[["start", "end"]], atol=2e-3)
    expected, found = (json.loads((job.out / "counts.json").read_text()) for job in (alone, together))
    assert found == expected


def test_a_reference_run_with_the_file_is_the_one_without(tiny_backbone, toy_pairs, file, tmp_path, request):
    tables = []
    for reference in (None, file):
        job = policy_job(tiny_backbone, toy_pairs, tmp_path / str(len(tables)), epochs=1)
        asked = request.getfixturevalue("read_alone") if reference else []
        train_difficulty_run(job, METHODS["selective_dpo"], run=0, half=1, evaluations=1, reference=reference)
        tables.append(pd.read_csv(job.out))
    assert len(asked) == 1  # the other half, once trained
    assert tables[0].pair_id.equals(tables[1].pair_id)
    assert np.allclose(tables[0].loss, tables[1].loss, atol=1e-3)


def test_log_probabilities_are_those_of_the_policy_as_a_scorer(tiny_backbone, toy_pairs, file, tmp_path):
    """Summed over a response, its end token included, in the pairs' order."""
    job = policy_job(tiny_backbone, toy_pairs, tmp_path)
    reference = job.reference(file, job.tokenizer())
    pairs, _ = read_tokenised(job, "train", reference.encoder())
    scorer = load_policy_scorer(tiny_backbone, None, max_prompt_length=64, max_length=96)
    assert isinstance(scorer, PolicyScorer)
    some = pairs[5:0:-2]
    for column in ("chosen", "rejected"):
        records = [pair.record for pair in some]
        means = scorer.score([r.prompt for r in records], [getattr(r, column) for r in records]).mean
        texts = [getattr(pair, column) for pair in some]
        sums = means * [len(text.ids) - text.prompt_length for text in texts]
        assert reference.said((r.prompt, getattr(r, column)) for r in records) == pytest.approx(sums, abs=1e-3)


def test_validation_pairs_are_asked_for_as_far_as_they_are_measured(tiny_backbone, toy_pairs, tmp_path):
    path, some = tmp_path / "log_probs.parquet", policy_job(tiny_backbone, toy_pairs, tmp_path).training
    few, more = (some.model_copy(update={"pairs": 5, "evaluation_pairs": number}) for number in (3, 4))
    make_reference(replace(policy_job(tiny_backbone, toy_pairs, tmp_path), training=few), path)
    table = pq.read_table(path)
    size = len(read_pairs(toy_pairs / "validation.jsonl"))
    assert (len(table), table["log_prob"].null_count) == (2 * (5 + size), 2 * (size - 3))
    job = replace(policy_job(tiny_backbone, toy_pairs, tmp_path), training=more)
    with pytest.raises(RecordError, match=r"log_probs\.parquet: no log-probability of the .*vrm reference-log-probs"):
        train_preference(job, METHODS["dpo"], reference=path)


def test_a_file_of_something_else_is_refused_and_it_is_said_what_differs(tiny_backbone, toy_pairs, file, tmp_path):
    other = shutil.copytree(tiny_backbone, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    lora = Lora(rank=4, alpha=8)
    for named, job in {
        "config.json": policy_job(other, toy_pairs, tmp_path),
        "bf16 was False": policy_job(tiny_backbone, toy_pairs, tmp_path, bf16=True),
        "weights was .torch.float32., is .torch.bfloat16.": policy_job(
            tiny_backbone, toy_pairs, tmp_path, bf16=True, lora=lora
        ),
        "max_length was 96": policy_job(tiny_backbone, toy_pairs, tmp_path, max_length=90),
    }.items():
        with pytest.raises(RecordError, match=rf"log_probs\.parquet.*{named}.*vrm reference-log-probs"):
            train_preference(job, METHODS["dpo"], reference=file)
    with pytest.raises(RecordError, match=r"nowhere\.parquet.*vrm reference-log-probs"):
        train_preference(
            policy_job(tiny_backbone, toy_pairs, tmp_path), METHODS["dpo"], reference=tmp_path / "nowhere.parquet"
        )


def test_adapters_that_are_not_packed_start_from_the_same_policy(tiny_backbone, toy_pairs, file, tmp_path):
    job = policy_job(tiny_backbone, toy_pairs, tmp_path, epochs=1, lora=Lora(rank=4, alpha=8))
    train_preference(job, METHODS["dpo"], reference=file)
    table = pd.read_csv(job.out / "held_out.csv")
    assert np.allclose(table[table.metric == "margin"].start, 0, atol=1e-5)
