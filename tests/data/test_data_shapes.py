"""Every public shape gives the same records; a row that can't be used never disappears.

`fixtures/` has one file a shape, all with the same two questions, each with a good and a bad answer.
"""

import json
from pathlib import Path

import pytest

from vrm.config import DataConfig, EvaluationSet
from vrm.config.data import SHAPE_ASPECTS
from vrm.data.pairs import make_pairs, normalise_pairs
from vrm.data.preference_sets import read_preference_set
from vrm.data.scored import read_scored_prompts
from vrm.data.shapes import COMPARED, RATED, SHAPES, recognise
from vrm.records import RecordError, read_jsonl, read_pairs, read_scored

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.jsonl"))
GOOD_AND_BAD = {
    ("Name a fruit that is red.", "A cherry is red.", "A banana is red."),
    ("How long do beans take?", "About sixty days.", "Beans, beans, beans."),
}
SHAPE_OF = {name: name for name in SHAPES} | {name: "pairs" for name in NAMES if name not in SHAPES}
ASPECTS = ["helpfulness", "honesty"]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def training(path, **more):
    """The configuration that trains on a file with all of its prompts."""
    aspects = {} if more.get("shape") in SHAPE_ASPECTS else {"aspects": ASPECTS}
    return DataConfig(
        **{"path": str(path), "label": "x", "validation_fraction": 0, "test_fraction": 0, **aspects, **more}
    )


def evaluate(path, out, aspects=ASPECTS, **more):
    counts = read_preference_set("s", EvaluationSet(path=str(path), label="x", **more), None, out, aspects)
    return counts, read_pairs(out / "s.jsonl"), [entry for _, entry in read_jsonl(out / "s.quarantine.jsonl")]


def asked(pairs):
    """What was asked, in one text a pair (Alpaca's two columns are two lines)."""
    assert all([turn["role"] for turn in pair.prompt] == ["user"] for pair in pairs)
    return {(pair.prompt[0]["content"].replace("\n", " "), pair.chosen, pair.rejected) for pair in pairs}


@pytest.mark.parametrize("name", NAMES)
def test_a_shape_is_recognised_in_both_uses(name):
    rows = list(read_jsonl(FIXTURES / f"{name}.jsonl"))
    for order in ((*RATED, *COMPARED), (*COMPARED, *RATED)):
        shape, example, again = recognise(iter(rows), None, order, "pairs")
        assert (shape.name, example, list(again)) == (SHAPE_OF[name], rows[0][1], rows)
    forced, *_ = recognise(iter(rows), SHAPE_OF[name], RATED, "ultrafeedback")
    assert forced.name == SHAPE_OF[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_shape_gives_the_same_evaluation_pairs(name, tmp_path):
    counts, pairs, refused = evaluate(FIXTURES / f"{name}.jsonl", tmp_path)
    assert asked(pairs) >= GOOD_AND_BAD
    assert name in ("reward_bench_2", "rm_bench") or asked(pairs) == GOOD_AND_BAD
    assert refused == []
    assert len({pair.pair_id for pair in pairs}) == len(pairs)
    assert counts["read_as"].startswith(SHAPES[SHAPE_OF[name]].title)


@pytest.mark.parametrize("name", NAMES)
def test_every_shape_gives_the_same_training_pairs(name, tmp_path):
    shape = {"shape": SHAPE_OF[name]} if SHAPE_OF[name] in SHAPE_ASPECTS else {}
    config = training(FIXTURES / f"{name}.jsonl", **shape)
    counts = read_scored_prompts(config, tmp_path)
    make_pairs(config, tmp_path)
    normalisation = normalise_pairs(config, tmp_path)
    pairs = read_pairs(tmp_path / "pairs" / "train.jsonl")
    assert asked(pairs) >= GOOD_AND_BAD
    assert name in ("reward_bench_2", "rm_bench") or asked(pairs) == GOOD_AND_BAD
    assert counts["rows_quarantined"] == 0
    rated = SHAPE_OF[name] in ("ultrafeedback", *SHAPE_ASPECTS)
    assert (normalisation is not None) == rated
    assert all((pair.target is not None) == (pair.chosen_scores is not None) == rated for pair in pairs)


def places_in(row, path=()):
    """The keys that lead to each value of a row, those that hold others among them."""
    for key, value in row.items() if isinstance(row, dict) else enumerate(row):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places_in(value, (*path, key))


def with_value(row, path, value):
    row = json.loads(json.dumps(row))
    place = row
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return row


@pytest.mark.parametrize("value", [None, "", "?", 3.5, [], [None], {"a": 1}], ids=repr)
@pytest.mark.parametrize("name", NAMES)
def test_no_row_disappears_whatever_is_in_it(name, value, tmp_path):
    """Each value of a row replaced in turn, after two good rows: read, or refused with its number and a reason."""
    good = [row for _, row in read_jsonl(FIXTURES / f"{name}.jsonl")]
    damaged = [with_value(good[0], path, value) for path in places_in(good[0])]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*good, *damaged]))
    counts, _, refused = evaluate(path, tmp_path)
    assert counts["rows"] == len(good) + len(damaged)
    whole = [entry for entry in refused if entry["record"] in damaged]
    assert counts["rows_quarantined"] == len(whole)
    assert all(entry["reason"] and entry["row"] > len(good) for entry in refused)
    shape = {"shape": SHAPE_OF[name]} if SHAPE_OF[name] in SHAPE_ASPECTS else {}
    counts = read_scored_prompts(training(path, **shape, rating_range=(0, 5)), tmp_path)
    assert counts["rows"] == len(good) + len(damaged)
    entries = [entry for _, entry in read_jsonl(tmp_path / "quarantine.jsonl")]
    assert len(entries) == counts["rows_quarantined"] + counts["responses_set_aside"]


def test_a_shape_without_the_configured_aspects_says_what_to_set(tmp_path):
    with pytest.raises(
        RecordError, match=r"read as HelpSteer2: 5 aspects, 0-4; .* absent: honesty; set data\.aspects: \["
    ):
        read_scored_prompts(training(FIXTURES / "helpsteer2.jsonl"), tmp_path)
    some = training(FIXTURES / "helpsteer2.jsonl", aspects=["coherence", "helpfulness"])
    counts = read_scored_prompts(some, tmp_path)
    assert counts["columns_not_read"] == ["correctness", "complexity", "verbosity"]
    good, bad = sorted((r for r in read_scored(tmp_path / "scored.jsonl")[0].responses), key=lambda r: -r.overall)
    assert (good.scores, bad.scores) == ([4, 4], [4, 0])


def test_a_table_of_ratings_needs_no_shape_of_its_own(tmp_path, write_rows):
    rows = [{"prompt": "Q", "response": text, "warmth": r} for text, r in (("a", 1), ("b", 3), ("c", "N/A"))]
    rows.append({"prompt": "R", "response": "alone", "warmth": 2})
    counts = read_scored_prompts(training(write_rows(rows), aspects=["warmth"]), tmp_path)
    assert (counts["rows"], counts["prompts"], counts["responses"]) == (4, 1, 2)
    assert counts["rows_quarantined_because"] == {
        "rating of warmth is not a number": 1,
        "the only usable response of its prompt": 1,
    }


def test_pku_has_two_aspects_and_a_conflict_is_a_tie_of_their_mean(tmp_path, write_rows):
    row = {"prompt": "Q", "response_0": "yes", "response_1": "no", "better_response_id": 0, "safer_response_id": 1}
    config = training(write_rows([row, {**row, "prompt": "R", "safer_response_id": 0}]), shape="pku_saferlhf")
    read_scored_prompts(config, tmp_path)
    assert config.aspects == ["helpfulness", "harmlessness"]
    assert [r.scores for r in read_scored(tmp_path / "scored.jsonl")[0].responses] == [[1, 0], [0, 1]]
    assert make_pairs(config, tmp_path)["train"]["ties_dropped"] == 1
    by_helpfulness = config.model_copy(update={"preference_from": "overall_score"})
    read_scored_prompts(by_helpfulness, tmp_path)
    assert make_pairs(by_helpfulness, tmp_path)["train"]["pairs"] == 2


def test_stated_preferences_are_kept_whatever_the_scores_say(tmp_path, write_rows):
    row = {"prompt": "Q", "chosen": "yes", "rejected": "no", "chosen_scores": [1, 2], "rejected_scores": [5, 5]}
    rows = [row, {**row, "rejected": "never"}, row, {**row, "chosen": "same", "rejected": "same"}]
    config = training(write_rows(rows))
    counts = read_scored_prompts(config, tmp_path)
    assert (counts["prompts"], counts["preferences_stated"], counts["preferences_repeated_and_dropped"]) == (1, 3, 1)
    made = make_pairs(config, tmp_path)["train"]
    assert (made["candidate_pairs"], made["identical_texts_dropped"], made["pairs"]) == (3, 1, 2)
    pairs = read_pairs(tmp_path / "raw_pairs" / "train.jsonl")
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {("yes", "no"), ("yes", "never")}
    assert all(pair.chosen_scores == [1, 2] for pair in pairs)


def test_pairs_are_split_by_prompt(tmp_path, write_rows):
    rows = [{"prompt": f"Q{i % 40}", "chosen": f"yes {i}", "rejected": "no"} for i in range(120)]
    config = training(write_rows(rows), validation_fraction=0.3, test_fraction=0.2)
    read_scored_prompts(config, tmp_path)
    counts = make_pairs(config, tmp_path)
    normalise_pairs(config, tmp_path)
    splits = [read_pairs(tmp_path / "pairs" / f"{split}.jsonl") for split in ("train", "validation", "test")]
    assert sum(map(len, splits)) == 120
    prompts = [{pair.prompt_id for pair in split} for split in splits]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 40
    assert all(counts[split]["pairs"] for split in ("train", "validation", "test"))
    assert json.loads((tmp_path / "normalisation.json").read_text()) is None


@pytest.mark.parametrize(
    ("annotation", "score"),
    [
        ({"Rating": "4"}, 4),
        ({"rating": 4.5}, 4.5),
        (4, 4),
        ("4", 4),
        ({"Rating": "4/5"}, 4),
        (" 4.5 / 5 ", 4.5),
        ([{"Rating": "4"}, {"Rating": "5"}], 4.5),
        ([4, 5, 3], 4),
        ({"Rating": None, "rating": 3}, None),
        ({"note": "good"}, None),
        ([], None),
        ([{"Rating": "N/A"}, {"Rating": "4"}], None),
    ],
)
def test_ratings_are_read_as_people_write_them(annotation, score, tmp_path, write_rows, completion):
    row = {"instruction": "Q", "completions": [completion("a", 1, 1), completion("b", 2, 2), completion("c", 3, 3)]}
    row["completions"][0]["annotations"]["honesty"] = annotation
    counts = read_scored_prompts(training(write_rows([row])), tmp_path)
    responses = {r.text: r.scores for r in read_scored(tmp_path / "scored.jsonl")[0].responses}
    assert responses.get("a") == (None if score is None else [1, score])
    assert counts["responses_set_aside"] == (score is None)


def test_a_rating_that_is_missing_names_what_stands_there(tmp_path, write_rows, record, completion):
    row = {"instruction": "Q", "completions": [completion("a", 1, 1), completion("b", 2, 2), completion("c", 3, 3)]}
    row["completions"][0]["annotations"]["honesty"] = {"grade": 3, "note": "good"}
    counts = read_scored_prompts(training(write_rows([row])), tmp_path)
    (reason,) = counts["responses_set_aside_because"]
    assert reason == "rating of honesty is missing: expected the key Rating, found grade, note"


@pytest.mark.parametrize(
    ("ratings", "configured", "proposed"),
    [
        ([10, 3, 7, 2], (1, 5), "[1, 10]"),
        ([0, 4, 2, 3], (1, 5), "[0, 4]"),
        ([0, 1, 1, 1], (1, 5), "[0, 1]"),
        ([55, 90, 0, 3], (1, 5), "[0, 100]"),
        ([-5, 200, 3, 3], (1, 5), "[-5, 200]"),
        (["8/10", "3/10", "2/10", "4/10"], (1, 5), "[1, 10]"),
        (["3/10", "3/10", "2/10", "4/10"], (1, 5), "[1, 10]"),
        ([5, 3, 3, 3], (0, 4), "[1, 5]"),
    ],
)
def test_ratings_outside_the_range_stop_with_the_range_that_would_fit(
    ratings, configured, proposed, tmp_path, write_rows, record
):
    path = write_rows([record("Q", *((f"r{i}", rating, rating) for i, rating in enumerate(ratings)))])
    with pytest.raises(RecordError) as caught:
        read_scored_prompts(training(path, rating_range=configured), tmp_path)
    assert f"set data.rating_range: {proposed}" in str(caught.value)
    assert "helpfulness" in str(caught.value)
    assert not (tmp_path / "scored.jsonl").exists()
    assert [entry["row"] for _, entry in read_jsonl(tmp_path / "quarantine.jsonl")]
    fits = tuple(json.loads(proposed))
    if not isinstance(ratings[0], str) or fits[1] == 10:
        assert read_scored_prompts(training(path, rating_range=fits), tmp_path)["responses"] == 4


SYSTEM = {"role": "system", "content": "Be brief."}
HISTORY = [user("Hello."), assistant("Hello, what is it?"), user("Why?")]
ENDS = {"chosen": [assistant("yes")], "rejected": [assistant("no")]}


def conversation(*before):
    return {"chosen": [*before, assistant("yes")], "rejected": [*before, assistant("no")]}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"system": "Be brief.", "prompt": "Why?", "chosen": "yes", "rejected": "no"}, [SYSTEM, user("Why?")]),
        ({"system": "Be brief.", **conversation(user("Why?"))}, [SYSTEM, user("Why?")]),
        ({"system": "Be brief.", **conversation(SYSTEM, user("Why?"))}, [SYSTEM, user("Why?")]),
        ({"system": None, "prompt": "Why?", "chosen": "yes", "rejected": "no"}, [user("Why?")]),
        ({"prompt": [SYSTEM, user("Why?")], **conversation(user("Why?"))}, [SYSTEM, user("Why?")]),
        ({"prompt": "Why?", **conversation(SYSTEM, user("Why?"))}, [SYSTEM, user("Why?")]),
        ({"prompt": HISTORY, **conversation(user("Why?"))}, HISTORY),
        ({"prompt": "Hello.", **conversation(*HISTORY)}, HISTORY),
        ({"prompt": "Why?", **conversation(*HISTORY)}, HISTORY),
        ({"prompt": HISTORY[:1], **conversation(*HISTORY[1:])}, HISTORY),
        ({"prompt": HISTORY, **ENDS}, HISTORY),
        ({"prompt": [{"role": "system", "content": None}, user("Why?")], **ENDS}, [user("Why?")]),
        ({"prompt": [{"role": "system", "content": " "}, user("Why?")], **ENDS}, [user("Why?")]),
        ({"prompt": "Why?", "history": [["Hello.", "Hello, what is it?"]], "chosen": "yes", "rejected": "no"}, HISTORY),
        (
            {
                "chosen": "\n\nHuman: Hello.\n\nAssistant: Hello, what is it?\n\nHuman: Why?\n\nAssistant: yes",
                "rejected": "\n\nHuman: Hello.\n\nAssistant: Hello, what is it?\n\nHuman: Why?\n\nAssistant: no",
            },
            HISTORY,
        ),
    ],
)
def test_all_of_the_prompt_is_used(row, prompt, tmp_path, write_rows):
    _, (pair,), _ = evaluate(write_rows([row]), tmp_path)
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, "yes", "no")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Another?", **conversation(user("Why?"))}, "disagree"),
        ({"prompt": HISTORY, **conversation(*HISTORY[:1])}, "disagree"),
        (
            {"prompt": [SYSTEM, user("Why?")], **conversation({**SYSTEM, "content": "Be long."}, user("Why?"))},
            "system turn",
        ),
        ({"system": "Be long.", **conversation(SYSTEM, user("Why?"))}, "the column system"),
        (
            {
                "prompt": "Another?",
                "chosen": "\n\nHuman: Q\n\nAssistant: a",
                "rejected": "\n\nHuman: Q\n\nAssistant: b",
            },
            "disagree",
        ),
        ({"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "b"}, "the other is not"),
        ({"chosen": "\n\nHuman: Q\n\nAssistant:", "rejected": "\n\nHuman: Q\n\nAssistant: b"}, "does not end with"),
        (
            {"prompt": [user([{"type": "image_url", "image_url": {"url": "x"}}])], **ENDS},
            "a part of type image_url: only text can be scored",
        ),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "prompt is missing"),
        ({"context": [user("Q")], "response1": "a", "response2": "b", "overall_preference": 0}, "chosen is missing"),
    ],
)
def test_what_cannot_be_told_is_refused_by_row(row, reason, tmp_path, write_rows):
    good = {"prompt": "Q", "chosen": "yes", "rejected": "no"}
    _, pairs, (refused,) = evaluate(write_rows([good, row]), tmp_path)
    assert len(pairs) == 1
    assert refused["row"] == 2
    assert reason in refused["reason"]


def test_a_tie_is_no_pair(tmp_path, write_rows):
    row = {"context": [user("Q")], "response1": "a", "response2": "b", "overall_preference": -1}
    _, pairs, (refused,) = evaluate(write_rows([row, {**row, "overall_preference": 0}]), tmp_path)
    assert (pairs[0].chosen, refused["reason"]) == ("a", "a tie: neither response is preferred")


def test_an_implicit_prompt_is_taken_where_the_configuration_says_so(tmp_path, write_rows):
    path = write_rows([{"chosen": "The sky is blue.", "rejected": "The sky is green."}])
    _, (pair,), _ = evaluate(path, tmp_path, shape="implicit_prompt")
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user("The sky is")], " blue.", " green.")


def test_text_parts_are_joined_line_by_line(tmp_path, write_rows):
    parts = [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]
    _, (pair,), _ = evaluate(write_rows([{"prompt": [user(parts)], **ENDS}]), tmp_path)
    assert pair.prompt == [user("One.\nTwo.")]


@pytest.mark.parametrize("write", [json.dumps, str], ids=["JSON", "Python"])
def test_messages_that_stand_in_a_text_are_read(write, tmp_path, write_rows):
    row = {name: write(value) for name, value in {"prompt": [SYSTEM, user('It\'s "why"?')], **ENDS}.items()}
    _, (pair,), (refused,) = evaluate(
        write_rows([row, {**row, "chosen": "[{'role': 'user'} {'role': 'assistant'}]"}]), tmp_path
    )
    assert (pair.prompt, pair.chosen) == ([SYSTEM, user('It\'s "why"?')], "yes")
    assert "neither JSON nor a Python list" in refused["reason"]


def test_several_chosen_and_rejected_are_all_compared(tmp_path):
    counts, pairs, _ = evaluate(FIXTURES / "reward_bench_2.jsonl", tmp_path)
    assert [pair.pair_id for pair in pairs][:3] == ["0/0-0", "0/0-1", "0/0-2"]
    assert [pair.pair_id for pair in pairs][-2:] == ["tied:1/2-0", "tied:1/2-1"]
    assert (counts["rows"], counts["pairs"]) == (4, 3 + 3 + 2 + 6)
    _, pairs, _ = evaluate(FIXTURES / "rm_bench.jsonl", tmp_path)
    assert len(pairs) == 18
    assert {pair.subset for pair in pairs} == {"chat", "safety-refuse"}


def test_judgebench_is_reported_by_upstreams_categories(tmp_path, write_rows):
    row = {"question": "Q", "response_A": "a", "response_B": "b", "label": "A>B"}
    sources = ["mmlu-pro-law", "livebench-reasoning", "livebench-math", "livecodebench", "other"]
    _, pairs, _ = evaluate(write_rows([{**row, "source": source} for source in sources]), tmp_path)
    assert [pair.subset for pair in pairs] == ["knowledge", "reasoning", "math", "coding", "other"]


def test_a_subset_that_reward_bench_does_not_have_fails_when_the_set_is_read(tmp_path, write_rows):
    rows = [{"prompt": "Q", "chosen": "a", "rejected": "b", "subset": s} for s in ("hep-go", "Factuality")]
    with pytest.raises(RecordError, match="not subsets of RewardBench: Factuality"):
        evaluate(write_rows(rows), tmp_path, format="reward_bench")
    assert len(evaluate(write_rows(rows), tmp_path)[1]) == 2


def test_columns_that_are_not_read_are_named_once(tmp_path, write_rows, capsys):
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "chosen_model": "m", "instruction": "other"}
    counts, _, _ = evaluate(write_rows([row, {**row, "note": 1}]), tmp_path)
    assert counts["columns_not_read"] == ["chosen_model", "instruction", "note"]
    assert capsys.readouterr().out.count("chosen_model") == 1
    own = {"pair_id": "1", "prompt_id": "x", "target": [1], **row}
    assert evaluate(write_rows([own]), tmp_path)[0]["columns_not_read"] == ["chosen_model", "instruction"]


def test_rated_responses_are_an_evaluation_set_by_their_overall_score(tmp_path):
    counts, pairs, _ = evaluate(FIXTURES / "ultrafeedback.jsonl", tmp_path)
    assert [(pair.chosen_scores, pair.rejected_scores) for pair in pairs] == [([5, 5], [2, 2])] * 2
    _, pairs, _ = evaluate(FIXTURES / "ultrafeedback.jsonl", tmp_path, aspects=["other"])
    assert (pairs[0].chosen_scores, pairs[0].chosen) == (None, "A cherry is red.")
    assert counts["ties_dropped"] == 0
