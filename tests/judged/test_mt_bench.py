"""MT-Bench's turns: which prompt, with which texts, when it is asked again, and what an unrated turn is called."""

import json

import pytest
import yaml
from judged_run import configuration, mt_turns, overlay, write_run
from paths import SHARED

from vrm.config import JudgedPolicy
from vrm.judged.mt_bench import judge_mt_bench, mean_ratings
from vrm.judging import Failed, Reply, Usage
from vrm.records import RecordError, read_jsonl, write_jsonl, write_whole
from vrm.world.evaluation_sets import mt_bench_prompts

POLICY = JudgedPolicy("qwen3", "dpo", 1)
OFFICIAL = SHARED / "data" / "benchmarks" / "mt_bench"


@pytest.fixture
def run(tmp_path):
    overlay(tmp_path, "http://127.0.0.1:9/v1")
    return write_run(tmp_path, mt=4)


def judge(run, says, sets=None):
    """`says` gives the text (or a failure) for a request."""
    asked = []

    def ask(requests):
        asked.extend(requests)
        replies = [says(request) for request in requests]
        return [r if isinstance(r, Failed) else Reply("k", "mt_bench", r, Usage(1, 1)) for r in replies]

    sets = sets or run / "judged" / "sets" / "mt_bench"
    judged = judge_mt_bench(configuration(run), POLICY, run / POLICY.folder / "answers", sets, ask)
    assert judged.requests == asked
    return judged


def test_each_turn_has_its_prompt_and_its_texts(run):
    judged = judge(run, lambda request: "Rating: [[7]]")
    templates = {prompt["name"]: prompt for prompt in mt_bench_prompts()}
    names = ["single-v1", "single-v1-multi-turn", "single-math-v1", "single-math-v1-multi-turn"] * 2
    assert [row["judge"] for row in judged.rows] == [["judge-1", name] for name in names]
    assert [(row["question_id"], row["turn"]) for row in judged.rows] == [(81 + i, t) for i in range(4) for t in (1, 2)]
    for name, row, request in zip(names, judged.rows, judged.requests, strict=True):
        asked, answer, reference = (mt_turns(who, row["question_id"]) for who in ("ask", POLICY.name, "them"))
        fields = {"question": asked[0], "answer": answer[0]}
        for i in (0, 1):
            fields |= {f"question_{i + 1}": asked[i], f"answer_{i + 1}": answer[i], f"ref_answer_{i + 1}": reference[i]}
        expected = templates[name]["prompt_template"].format(**fields)
        assert request.messages == [
            {"role": "system", "content": templates[name]["system_prompt"]},
            {"role": "user", "content": expected},
        ]
        assert request.parameters == {"temperature": 0.0, "max_tokens": 2048}
    row = {"question_id": 81, "model": POLICY.name, "judge": ["judge-1", "single-v1"], "turn": 1}
    assert judged.rows[0] == {**row, "judgment": "Rating: [[7]]", "score": 7.0, "failure": None}
    assert (judged.failures, judged.judgments) == ([], 8)


def test_an_unrated_turn_is_asked_again_and_the_last_reply_kept(run):
    judged = judge(run, lambda request: f"Rating: [[{request.attempt}]]" if request.attempt else "Good.")
    assert [request.attempt for request in judged.requests] == [0] * 8 + [1] * 8
    assert {(row["judgment"], row["score"]) for row in judged.rows} == {("Rating: [[1]]", 1.0)}


@pytest.mark.parametrize(
    ("said", "judgment", "failure"),
    [
        ("Good.", "Good.", "unparsed"),
        ("\ud83d", "?", "unparsed"),
        (Failed("too long", 1), None, "too long"),
    ],
)
def test_a_turn_without_a_rating_is_named_and_in_no_mean(run, said, judgment, failure):
    def says(request):
        return said if "[Question]" in request.messages[1]["content"] else "[[4]]"

    judged = judge(run, says)
    assert [row["failure"] for row in judged.rows] == [failure, None] * 4
    assert judged.rows[0]["judgment"] == judgment
    assert judged.rows[0]["score"] is None
    assert judged.failures == [{"id": 81 + i, "part": "turn_1", "reason": failure} for i in range(4)]
    assert judged.judgments == 4
    found = mean_ratings(judged.rows, {81 + i: "writing" for i in range(4)})
    assert (found.turn_2, found.overall, found.rated, found.n_unparsed) == (4.0, 4.0, 4, 4)
    write_jsonl(run / "judgments.jsonl", judged.rows)


def test_an_unparsed_reply_is_kept_when_the_second_request_fails(run):
    judged = judge(run, lambda request: Failed("timed out", 6) if request.attempt else "Good.")
    assert (judged.rows[0]["judgment"], judged.rows[0]["failure"]) == ("Good.", "timed out")


def test_answers_have_to_be_the_policys_and_complete(run):
    path = run / POLICY.folder / "answers" / "mt_bench.jsonl"
    rows = [row for _, row in read_jsonl(path)]
    for broken, said in (
        (rows[1:], "no answer to question 81"),
        ([*rows, rows[0]], "row 5: a second answer to question 81"),
        ([*rows, {**rows[0], "question_id": 99}], "an answer to 99, which is not asked"),
        ([{**row, "model_id": "else"} for row in rows], "answers of else"),
        ([{**row, "choices": [{"turns": ["one"]}]} for row in rows], "row 1: not FastChat's record"),
        ([{**row, "choices": [{"turns": ["one", None]}]} for row in rows], "row 1: a turn is no text"),
        ([{"question_id": 81}], "row 1: not FastChat's record"),
    ):
        write_jsonl(path, broken)
        with pytest.raises(RecordError, match=said):
            judge(run, lambda _: pytest.fail("nothing may be asked"))


def test_an_empty_answer_is_judged(run):
    path = run / POLICY.folder / "answers" / "mt_bench.jsonl"
    rows = [row for _, row in read_jsonl(path)]
    write_jsonl(path, [{**row, "choices": [{"index": 0, "turns": ["", ""]}]} for row in rows])
    assert judge(run, lambda request: "[[1]]").judgments == 8


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="no shared data here")
def test_requests_and_scores_are_those_of_fastchats_published_judgments(run):
    """All 160 turns of a published model: the prompts that FastChat recorded, letter by letter, and its scores."""
    (published,) = (OFFICIAL / "model_judgment").glob("*.jsonl")
    published = {(row["question_id"], row["turn"]): row for _, row in read_jsonl(published)}
    (theirs,) = (OFFICIAL / "model_answer").glob("*.jsonl")
    write_jsonl(
        run / POLICY.folder / "answers" / "mt_bench.jsonl",
        [{**row, "model_id": POLICY.name} for _, row in read_jsonl(theirs)],
    )
    changed = yaml.safe_load((run / "overlay.yaml").read_text())
    changed["benchmarks"]["mt_bench"]["references"] = "gpt-4"
    write_whole(run / "overlay.yaml", yaml.safe_dump(changed))
    said = {row["user_prompt"]: row["judgment"] for row in published.values()}
    judged = judge(run, lambda request: said[request.messages[1]["content"]], OFFICIAL)
    assert len(judged.rows) == 160
    for row, request in zip(judged.rows, judged.requests, strict=False):
        record = published[row["question_id"], row["turn"]]
        assert request.messages[1]["content"] == record["user_prompt"]
        assert row["judge"][1] == record["judge"][1]
        assert (row["score"] if row["score"] is not None else -1) == record["score"]
    assert json.dumps(judged.failures) == "[]"
