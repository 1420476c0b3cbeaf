"""Arena-Hard's games: who is A, what is asked, when it is asked again, and what a game without a verdict is called."""

import pytest
import yaml
from judged_run import configuration, overlay, write_run
from paths import SHARED

from vrm.config import ConfigError, JudgedPolicy
from vrm.judged.arena_hard import GO_ON, battles, judge_arena_hard
from vrm.judging import Failed, Reply, Usage
from vrm.records import RecordError, read_jsonl, write_jsonl, write_whole
from vrm.world.evaluation_sets import ARENA_CONFIG

POLICY = JudgedPolicy("qwen3", "dpo", 1)


@pytest.fixture
def run(tmp_path):
    overlay(tmp_path, "http://127.0.0.1:9/v1")
    return write_run(tmp_path, arena=4)


def judge(run, says):
    """`says` gives the text (or a failure) for a request."""
    asked = []

    def ask(requests):
        asked.extend(requests)
        replies = [says(request) for request in requests]
        return [r if isinstance(r, Failed) else Reply("k", "arena_hard", r, Usage(1, 1)) for r in replies]

    sets = run / "judged" / "sets" / "arena_hard"
    judged = judge_arena_hard(configuration(run), POLICY, run / POLICY.folder / "answers", sets, ask)
    assert judged.requests == asked
    return judged


def text(request):
    return request.messages[1]["content"]


def sides(request):
    """What A and B say."""
    return [
        text(request).split(f"Start of Assistant {side}'s Answer|>\n")[1].split(f"\n<|The End of Assistant {side}")[0]
        for side in "AB"
    ]


def test_in_game_1_the_baseline_is_a_and_in_game_2_b(run):
    judged = judge(run, lambda request: "[[A>B]]")
    paths = run / "judged/sets/arena_hard/model_answer/them.jsonl", run / POLICY.folder / "answers/arena_hard.jsonl"
    rows = zip(*([row for _, row in read_jsonl(path)] for path in paths), strict=True)
    content = [[row["choices"][0]["turns"][0]["content"] for row in pair] for pair in rows]
    assert [sides(request) for request in judged.requests] == [game for pair in content for game in (pair, pair[::-1])]
    system = yaml.safe_load(ARENA_CONFIG)["system_prompt"]
    for request in judged.requests:
        assert request.messages[0] == {"role": "system", "content": system}
        assert request.parameters == {"temperature": 0.0, "max_tokens": 4096}
    assert "{answer_1} {} %s" in sides(judged.requests[0])[0]
    games = {"judgment": "[[A>B]]", "score": "A>B", "failure": None}
    assert judged.rows[0] == {"question_id": "a0", "model": POLICY.name, "judge": "judge-1", "games": [games, games]}
    assert (judged.failures, judged.judgments) == ([], 8)


def test_the_scorer_sees_the_better_model_whichever_side_it_is_on(run):
    judged = judge(run, lambda request: "[[A>>B]]" if POLICY.name in sides(request)[0] else "[[B>>A]]")
    played, dropped = battles(judged.rows, "them")
    assert played["baseline_score"].tolist() == [0.0] * 8
    assert dropped.empty


def test_without_a_verdict_the_judge_goes_on_in_the_same_conversation(run):
    judged = judge(run, lambda request: "Well." if len(request.messages) == 2 else "So: [[B>A]]")
    first, again = judged.requests[:8], judged.requests[8:]
    assert [tuple(r.messages) for r in again] == [
        (*r.messages, {"role": "assistant", "content": "Well."}, {"role": "user", "content": GO_ON}) for r in first
    ]
    assert {game["judgment"] for row in judged.rows for game in row["games"]} == {"Well.\nSo: [[B>A]]"}
    assert judged.judgments == 8


@pytest.mark.parametrize(
    ("said", "judgment", "failure", "asked"),
    [
        ("None.", "None.\nNone.", "no verdict", 2),
        (" ", " \n ", "no reply", 2),
        ("[[A>B]] and [[B>A]]", "[[A>B]] and [[B>A]]", "contradictory verdicts", 1),
        ("[[A<B]]", "[[A<B]]", "unknown label", 1),
        ("half a pair \ud83d [[A=B]]", "half a pair ? [[A=B]]", None, 1),
        (Failed("server error", 6), None, "server error", 1),
    ],
)
def test_a_game_without_one_verdict_is_named(run, said, judgment, failure, asked):
    judged = judge(run, lambda request: said)
    score = None if failure else "A=B"
    assert judged.rows[3]["games"][1] == {"judgment": judgment, "score": score, "failure": failure}
    assert len(judged.requests) == 8 * asked
    ids = [{"id": f"a{i}", "part": f"game {n}", "reason": failure} for i in range(4) for n in (1, 2)]
    assert judged.failures == (ids if failure else [])
    assert judged.judgments == (0 if failure else 8)
    dropped = battles(judged.rows, "them")[1]
    assert len(dropped) == (8 if failure else 0)
    write_jsonl(run / "judgments.jsonl", judged.rows)


def test_a_second_request_that_fails_keeps_the_first_reply(run):
    judged = judge(run, lambda request: "Well." if len(request.messages) == 2 else Failed("timed out", 6))
    assert judged.rows[0]["games"][0] == {"judgment": "Well.", "score": None, "failure": "timed out"}


def test_answers_have_to_be_the_policys_and_complete(run):
    path = run / POLICY.folder / "answers" / "arena_hard.jsonl"
    rows = [row for _, row in read_jsonl(path)]
    for broken, said in (
        (rows[1:], "no answer to question a0"),
        ([*rows, {**rows[0], "question_id": "a9"}], "an answer to a9, which is not asked"),
        ([{**row, "model_id": "else"} for row in rows], "answers of else, expected those of qwen3.dpo.seed1"),
    ):
        write_jsonl(path, broken)
        with pytest.raises(RecordError, match=said):
            judge(run, lambda _: pytest.fail("nothing may be asked"))


def test_tokens_have_to_be_counted_alike(run):
    path = run / "judged/sets/arena_hard/model_answer/them.jsonl"
    rows = [{**row, "conv_metadata": {"token_counter": "gpt-3.5-turbo"}} for _, row in read_jsonl(path)]
    write_jsonl(path, rows)
    with pytest.raises(ConfigError, match="token_counter"):
        judge(run, lambda _: pytest.fail("nothing may be asked"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")
def test_official_questions_and_answers_make_a_thousand_requests(run):
    official = SHARED / "data" / "benchmarks" / "arena_hard_v0.1"
    sets = run / "judged" / "sets" / "arena_hard"
    for name in ("question.jsonl", "model_answer/gpt-4-0314.jsonl"):
        write_whole(sets / name, (official / name).read_text())
    answers = [{**row, "model_id": POLICY.name} for _, row in read_jsonl(official / "model_answer/gpt-4-0613.jsonl")]
    write_jsonl(run / POLICY.folder / "answers" / "arena_hard.jsonl", answers)
    overlay(run, "http://127.0.0.1:9/v1")
    changed = yaml.safe_load((run / "overlay.yaml").read_text())
    changed["benchmarks"]["arena_hard"] |= {"baseline": "gpt-4-0314", "token_counter": "gpt-3.5-turbo"}
    write_whole(run / "overlay.yaml", yaml.safe_dump(changed))
    judged = judge(run, lambda request: "[[A=B]]")
    # the two models give one and the same answer to one question, whose games are one request then
    assert len({text(request) for request in judged.requests}) == 999
    assert (len(judged.requests), judged.judgments) == (1000, 1000)
