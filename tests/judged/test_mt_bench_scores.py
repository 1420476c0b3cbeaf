import json
import math
from collections import Counter

import pytest
from paths import SHARED

from vrm.data.benchmark_sets import MT_REFERENCE_CATEGORIES
from vrm.judged.mt_bench import QUESTION_CATEGORIES, TEMPERATURES, mean_ratings, parse_rating

MT_BENCH = SHARED / "data" / "benchmarks" / "mt_bench"
needs_mt_bench = pytest.mark.skipif(not MT_BENCH.exists(), reason="../shared, with MT-Bench's files, is not here")


def read(name):
    return [json.loads(line) for line in (MT_BENCH / name).read_text().splitlines()]


def judgment(question, turn, reply, model="m"):
    return {"question_id": question, "turn": turn, "judgment": reply, "model": model}


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Good. Rating: [[7]]", 7.0),
        ("Rating: [[10]]", 10.0),
        ("Rating: [[8.5]]", 8.5),
        ("Rating: [[8.]]", 8.0),
        ("[[3]], or rather [[9]]", 3.0),
        ("As [1] says. Rating: [[9]]", 9.0),
        ("Rating: [6]", 6.0),
        ("[[rating]] is [4], not [5]", 4.0),
        ("Rating: [[0]]", 0.0),
        ("Rating: 7", None),
        ("Rating: [[7/10]]", None),
        ("Rating: [[ 7 ]]", None),
        ("Rating: [[-1]]", None),
        ("$ERROR$", None),
        ("", None),
    ],
)
def test_the_rating_is_the_first_in_double_brackets_else_in_single(text, rating):
    assert parse_rating(text) == rating


@needs_mt_bench
def test_published_judgments_give_the_published_scores():
    published = read("model_judgment/gpt-4_single.mistral-orpo-trl.jsonl")
    assert [parse_rating(record["judgment"]) for record in published] == [record["score"] for record in published]
    got = mean_ratings([{**record, "score": -1} for record in published])  # the texts count, not the stored scores
    assert (got.turn_1, got.turn_2, got.overall) == (7.73125, 6.6, 7.165625)
    assert (got.rated, got.unparsed, got.missing, got.off_scale) == (160, {}, {}, {})
    assert math.fsum(got.by_category.values()) / 8 == pytest.approx(7.165625)  # 20 ratings each
    by_question = mean_ratings(
        published, {record["question_id"]: record["category"] for record in read("question.jsonl")}
    )
    assert by_question == got


@needs_mt_bench
def test_the_official_questions_have_the_categories_that_their_ids_say():
    questions = {record["question_id"]: record["category"] for record in read("question.jsonl")}
    assert questions == QUESTION_CATEGORIES
    assert list(dict.fromkeys(questions.values())) == list(TEMPERATURES)
    referenced = Counter(questions[record["question_id"]] for record in read("reference_answer/gpt-4.jsonl"))
    assert referenced == dict.fromkeys(MT_REFERENCE_CATEGORIES, 10)


def test_temperatures_by_category():
    assert TEMPERATURES == {
        "writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1,
        "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0,
    }  # fmt: skip


CATEGORIES = {"a": "writing", "b": "writing", "c": "math"}


def test_what_has_no_rating_is_named_and_in_no_mean():
    got = mean_ratings(
        [
            judgment("a", 1, "[[8]]"), judgment("a", 2, "I can't rate this."),
            judgment("b", 1, None), judgment("b", 2, ""), judgment("c", 1, "[[2]]"),
        ],
        CATEGORIES,
    )  # fmt: skip
    assert (got.turn_1, got.overall, got.rated) == (5.0, 5.0, 2)
    assert math.isnan(got.turn_2)
    assert got.by_category == {"writing": 8.0, "math": 2.0}
    assert got.unparsed == {"a": (2,), "b": (1, 2)}
    assert got.missing == {"c": (2,)}
    assert (got.n_unparsed, got.n_missing) == (3, 1)


def test_the_overall_score_is_the_mean_over_turns_not_of_means():
    got = mean_ratings([judgment("a", 1, "[[9]]"), judgment("b", 1, "[[9]]"), judgment("a", 2, "[[3]]")], CATEGORIES)
    assert (got.turn_1, got.turn_2, got.overall) == (9.0, 3.0, 7.0)


def test_ratings_off_the_scale_count_as_upstream_and_are_named():
    got = mean_ratings(
        [judgment("a", 1, "since [2023]"), judgment("b", 1, "[[0]]"), judgment("c", 1, "[[10]]")], CATEGORIES
    )
    assert got.turn_1 == pytest.approx(2033 / 3)
    assert got.off_scale == {"a": (1,), "b": (1,)}


def test_no_judgments_is_no_score():
    got = mean_ratings([])
    assert math.isnan(got.overall)
    assert (got.rated, got.n_missing) == (0, 160)


@pytest.mark.parametrize(
    ("judgments", "message"),
    [
        ([judgment("z", 1, "[[1]]")], "no question z with a turn 1"),
        ([judgment("a", 3, "[[1]]")], "no question a with a turn 3"),
        ([judgment("a", 1, "[[1]]"), judgment("a", 1, "no")], "question a, turn 1, is judged twice"),
        ([judgment("a", 1, "[[1]]"), judgment("a", 2, "[[1]]", model="n")], "these judgments are of m, n"),
    ],
)
def test_judgments_that_do_not_belong_together_are_an_error(judgments, message):
    with pytest.raises(ValueError, match=message):
        mean_ratings(judgments, CATEGORIES)
