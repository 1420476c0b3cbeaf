import json
import random

import pytest

from vrm.data.pairs import FATES, SPLITS, make_pairs, pairs_of, split_of
from vrm.data.scored import read_scored_prompts
from vrm.records import RecordError, ScoredPrompt, ScoredResponse, read_pairs, read_scored


def prompt_of(*responses, weights=None):
    return ScoredPrompt("0123456789abcdef", [{"role": "user", "content": "Q"}], list(responses), weights)


def response(text, *scores, overall=None):
    return ScoredResponse("m", text, list(scores), overall)


def run(rows, write_rows, config, out, **more):
    settings = config(write_rows(rows), **more)
    read_scored_prompts(settings, out)
    counts = make_pairs(settings, out)
    return counts, {split: read_pairs(out / "raw_pairs" / f"{split}.jsonl") for split in SPLITS}


def test_best_against_worst_by_the_mean_of_aspects(config):
    prompt = prompt_of(response("mid", 3, 3), response("low", 1, 2), response("top", 5, 4), weights=[0.3, 0.7])
    (pair,), fates = pairs_of(prompt, config("x.jsonl", pairing="best_vs_worst"))
    assert (pair.chosen, pair.rejected) == ("top", "low")
    assert (pair.chosen_scores, pair.rejected_scores) == ([5, 4], [1, 2])
    assert pair.true_weights == [0.3, 0.7]
    assert fates["pairs"] == fates["candidate_pairs"] == 1


def test_preference_from_overall_score(config):
    prompt = prompt_of(response("a", 5, 5, overall=1.0), response("b", 1, 1, overall=9.0))
    settings = config("x.jsonl", preference_from="overall_score")
    (pair,), _ = pairs_of(prompt, settings)
    assert pair.chosen == "b"
    with pytest.raises(RecordError, match="overall_score"):
        pairs_of(prompt_of(response("a", 5, 5), response("b", 1, 1)), settings)


def test_all_pairs_less_ties_and_identical_texts(config):
    prompt = prompt_of(response("a", 5, 5), response("b", 3, 5), response("c", 5, 3), response("a ", 1, 1))
    pairs, fates = pairs_of(prompt, config("x.jsonl", pairing="all"))
    assert {(p.chosen, p.rejected) for p in pairs} == {("a", "b"), ("a", "c"), ("b", "a "), ("c", "a ")}
    assert len({p.pair_id for p in pairs}) == 4
    assert (fates["candidate_pairs"], fates["ties_dropped"], fates["identical_texts_dropped"]) == (6, 1, 1)
    few, fates = pairs_of(prompt, config("x.jsonl", pairing="all", max_pairs_per_prompt=3))
    assert len(few) == 3
    assert fates["not_drawn"] == 1


def test_equal_sums_in_another_order_are_a_tie(config):
    scores = (0.1 + 0.2, 4.667, 3.333), (0.3, 3.333, 4.667)
    pairs, fates = pairs_of(prompt_of(response("a", *scores[0]), response("b", *scores[1])), config("x.jsonl"))
    assert pairs == []
    assert fates["ties_dropped"] == 1


def test_best_against_random_draws_each_worse_response_and_no_tied_one(config):
    prompt = prompt_of(response("top", 5, 5), response("also top", 5, 5), response("b", 2, 2), response("c", 1, 1))
    drawn = [pairs_of(prompt, config("x.jsonl", seed=seed))[0][0] for seed in range(60)]
    assert {p.rejected for p in drawn} == {"b", "c"}
    assert {p.chosen for p in drawn} == {"top", "also top"}


@pytest.mark.parametrize("pairing", ["best_vs_random", "best_vs_worst", "all"])
def test_every_candidate_is_accounted_for(many_records, write_rows, config, tmp_path, pairing):
    counts, pairs = run(many_records, write_rows, config, tmp_path, pairing=pairing, max_pairs_per_prompt=3)
    assert counts == json.loads((tmp_path / "pair_counts.json").read_text())
    for split in SPLITS:
        candidates, *fates = (counts[split][fate] for fate in FATES)
        assert candidates == sum(fates)
        assert counts[split]["pairs"] == len(pairs[split])
        assert all(sum(p.chosen_scores) > sum(p.rejected_scores) for p in pairs[split])
    assert sum(counts[split]["prompts"] for split in SPLITS) == 200


def test_splits_share_no_prompt_and_have_about_their_fractions(many_records, write_rows, config, tmp_path):
    counts, pairs = run(many_records, write_rows, config, tmp_path, validation_fraction=0.2, test_fraction=0.3)
    prompts = {split: {p.prompt_id for p in pairs[split]} for split in SPLITS}
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["validation"] & prompts["test"]
    for split, fraction in (("train", 0.5), ("validation", 0.2), ("test", 0.3)):
        assert abs(counts[split]["prompts"] / 200 - fraction) < 0.11  # three standard deviations at most


def test_pairs_do_not_depend_on_the_order_of_rows_and_responses(many_records, write_rows, config, tmp_path):
    _, before = run(many_records, write_rows, config, tmp_path / "a")
    shuffled = random.Random(0).sample(many_records, len(many_records))
    for row in shuffled:
        row["completions"].reverse()
    _, after = run(shuffled, write_rows, config, tmp_path / "b")
    assert before == after


def test_a_prompts_split_depends_on_text_and_seed_alone(many_records, write_rows, config, tmp_path):
    _, before = run(many_records, write_rows, config, tmp_path / "a")
    _, after = run(many_records[::2], write_rows, config, tmp_path / "b")
    for split in SPLITS:
        assert set(map(repr, after[split])) <= set(map(repr, before[split]))
    settings = [config("x.jsonl", seed=seed) for seed in (0, 1)]
    ids = [s.prompt_id for s in read_scored(tmp_path / "a" / "scored.jsonl")]
    assert [split_of(i, settings[0]) for i in ids] != [split_of(i, settings[1]) for i in ids]


def test_split_is_the_same_on_every_machine(config):
    # by hand: `printf split:0:0000000000000000 | sha256sum` begins with 3da4, and 0x3da4 / 0x10000 = 0.24
    shares = [0x3DA4, 0x46DD, 0xDF6B, 0x78F6, 0x40EB, 0x33DF]
    expected = ["test" if s < 0.4 * 2**16 else "validation" if s < 0.5 * 2**16 else "train" for s in shares]
    assert [split_of(f"{i:016x}", config("x.jsonl", test_fraction=0.4)) for i in range(6)] == expected


def test_spellings_of_one_prompt_share_a_split(record, many_records, write_rows, config, tmp_path):
    respelt = [{**row, "instruction": f"  {row['instruction'].upper()} "} for row in many_records]
    _, one = run(many_records, write_rows, config, tmp_path / "a")
    _, other = run(respelt, write_rows, config, tmp_path / "b")
    assert [p.pair_id for p in one["test"]] == [p.pair_id for p in other["test"]]


def test_an_empty_split_that_is_asked_for_stops_with_the_numbers(record, write_rows, config, tmp_path):
    tied = [record(f"Q{i}", ("a", 3, 3), ("b", 3, 3)) for i in range(20)]
    with pytest.raises(RecordError, match=r"the train split has no pair: a share of 1 of 20 prompts .* 20 were ties"):
        run(tied, write_rows, config, tmp_path, validation_fraction=0, test_fraction=0)
    clear = [record("Q", ("a", 3, 3), ("b", 2, 2)), record("R", ("a", 3, 3), ("b", 2, 2))]
    with pytest.raises(RecordError, match=r"the validation split has no pair: .* of 2 prompts .*validation_fraction"):
        run(clear, write_rows, config, tmp_path, validation_fraction=0.0001, test_fraction=0)
    _, pairs = run(clear, write_rows, config, tmp_path, validation_fraction=0, test_fraction=0)
    assert (len(pairs["train"]), pairs["validation"], pairs["test"]) == (2, [], [])
