"""Selective DPO's difficulties: held-out by construction, averaged over halvings, ranked."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from policy_jobs import policy_job

from vrm.config import PreferenceMethod
from vrm.records import RecordError, read_pairs, write_jsonl
from vrm.training import preference, selective
from vrm.training.policies import PolicyJob
from vrm.training.preference import LossesAlong
from vrm.training.selective import select_pairs, split_in_half, train_difficulty_run


def pairs_of(prompts):
    return [SimpleNamespace(record=SimpleNamespace(prompt_id=prompt)) for prompt in prompts]


def test_halves_share_no_prompt_and_another_run_halves_differently():
    pairs = pairs_of([f"p{i // 2}" for i in range(40)])  # two pairs a prompt
    first, second = split_in_half(pairs, run=0)
    assert len(first) == len(second) == 20
    assert not {p.record.prompt_id for p in first} & {p.record.prompt_id for p in second}
    assert {p.record.prompt_id for p in split_in_half(pairs, run=1)[0]} != {p.record.prompt_id for p in first}


def test_one_prompt_cannot_be_halved():
    with pytest.raises(RecordError, match="only 1"):
        split_in_half(pairs_of(["a", "a"]), run=0)


def test_a_mislabelled_pair_is_among_the_hardest(tiny_backbone, toy_pairs, tmp_path):
    pairs = read_pairs(toy_pairs / "train.jsonl")
    wrong = {pair.pair_id for pair in pairs[::12]}
    flipped = [dataclasses.replace(p, chosen=p.rejected, rejected=p.chosen) if p.pair_id in wrong else p for p in pairs]
    directory = tmp_path / "pairs"
    write_jsonl(directory / "train.jsonl", flipped)
    write_jsonl(directory / "validation.jsonl", read_pairs(toy_pairs / "validation.jsonl"))
    method = PreferenceMethod(label="S", method="selective_dpo")
    files = []
    for half in (0, 1):
        job = policy_job(tiny_backbone, directory, tmp_path / str(half))
        job = dataclasses.replace(job, out=tmp_path / f"half{half}.csv")
        train_difficulty_run(job, method, run=0, half=half)
        files.append(job.out)
    scored = [set(pd.read_csv(path, dtype={"pair_id": str}).pair_id) for path in files]
    assert scored[0] | scored[1] == {pair.pair_id for pair in pairs}
    assert not scored[0] & scored[1]  # each pair is scored by the run that has not seen it
    select_pairs(files, keep=0.5, out=tmp_path / "difficulty.csv")
    table = pd.read_csv(tmp_path / "difficulty.csv", dtype={"pair_id": str})
    assert table.difficulty.is_monotonic_increasing
    assert table.kept.sum() == 48
    assert not wrong & set(table.pair_id[table.kept == 1])


def test_losses_are_averaged_along_the_training_and_survive_a_restart(tmp_path, monkeypatch):
    found = {2: [1.0, 2.0], 4: [0.5, 2.5], 7: [0.0, 6.0], 9: [0.5, 1.5], 11: [0.5, 3.0]}
    step = SimpleNamespace(global_step=0, is_world_process_zero=True)
    monkeypatch.setattr(
        preference, "measure_rows", lambda trainer, rows: pd.DataFrame({"loss": found[step.global_step]})
    )
    trainer = SimpleNamespace(args=SimpleNamespace(max_steps=11))
    for steps in (range(1, 8), range(5, 12)):  # killed after 7, resumed from 4
        along = LossesAlong(trainer, None, 5, tmp_path / "checkpoints")
        for step.global_step in steps:
            along.on_step_end(None, step, None)
    assert along.steps == sorted(found)
    np.testing.assert_allclose(along.mean(), np.mean(list(found.values()), axis=0))
    assert LossesAlong(SimpleNamespace(args=SimpleNamespace(max_steps=2)), None, 5, tmp_path).steps == [1, 2]


def test_runs_have_seeds_and_halves_of_their_own(tiny_backbone, toy_pairs, tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr("transformers.set_seed", lambda seed: seeds.append(seed))
    monkeypatch.setattr(PolicyJob, "tokenizer", lambda job: (_ for _ in ()).throw(KeyError(job.seed)))
    job = policy_job(tiny_backbone, toy_pairs, tmp_path)
    for run in (0, 1, 2):
        with pytest.raises(KeyError):
            train_difficulty_run(job, PreferenceMethod(label="S", method="selective_dpo"), run=run, half=0)
    assert seeds == [job.seed, job.seed + selective.SEEDS_APART, job.seed + 2 * selective.SEEDS_APART]


def test_difficulty_is_the_mean_over_runs(tmp_path):
    for run, losses in enumerate([[1.0, 5.0, 3.0], [3.0, 1.0, 3.5]]):
        pd.DataFrame({"pair_id": ["a", "b", "c"], "loss": losses}).to_csv(tmp_path / f"{run}.csv", index=False)
    select_pairs([tmp_path / "0.csv", tmp_path / "1.csv"], keep=0.34, out=tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.pair_id.tolist() == ["a", "b", "c"]
    assert table.difficulty.tolist() == [2.0, 3.0, 3.25]
    assert table.runs.tolist() == [2, 2, 2]
    assert table.kept.tolist() == [1, 0, 0]


def test_a_broken_file_is_named(tmp_path):
    pd.DataFrame({"pair_id": ["a"], "loss": [np.nan]}).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(RecordError, match=r"bad\.csv"):
        select_pairs([tmp_path / "bad.csv"], 0.5, tmp_path / "out.csv")
