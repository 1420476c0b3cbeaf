"""Both benchmarks from answers to scores, against a judge that misbehaves, and through kill -9.

What has to hold: every judgment is there exactly once, none is paid for twice, the scores are those of a quiet run, and
the key is nowhere (the last is `conftest.key_stays_hidden`, over every file and all output).
"""

import json
import time

import pytest
import yaml
from judged_run import METHODS, configuration, counts, judge, judges, judgments, overlay, start, write_run
from judging_jobs import KEY, TWENTY_PERCENT, wait_for
from paths import SHARED
from server import FAULTS, Server

from vrm.judged.arena_hard import GO_ON
from vrm.judged.stages import write_scores
from vrm.judging import Reply, Store, Unanswered
from vrm.records import read_jsonl, write_jsonl, write_whole
from vrm.world.evaluation_sets import ARENA_CONFIG

BENCHMARKS = ("arena_hard", "mt_bench")
SEED = 279
"""Of the faults: a fifth of the tries are ill-treated, in each of the ways, and only one waits for its time-out."""

SECOND_ROUND = 24
"""Bills after which some games of the policy are being asked again."""

OFFICIAL = SHARED / "data" / "benchmarks"


def scores(results, name):
    """The three files of `vrm judged-scores`, less the address of the judge, which has another port each time."""
    write_scores(configuration(results), name, results, results / "judged" / f"{name}.csv")
    record = json.loads((results / "judged" / f"{name}.json").read_text())
    record["judge"].pop("endpoint")
    return [(results / "judged" / f"{name}{end}").read_text() for end in (".csv", ".items.csv")], record


def every_judgment_once(results, server):
    """The store has one reply for each request that was billed, and none was billed twice."""
    replies = [entry.key for entry in Store(results / "replies").entries() if isinstance(entry, Reply)]
    billed = {key: times for key, times in server.billed_keys.items() if times}
    assert sorted(replies) == sorted(billed)
    assert set(billed.values()) == {1}
    asked = [counts(results, name, method) for method in METHODS for name in BENCHMARKS]
    assert sum(account["requests"] for account in asked) == len(billed)
    assert sum(account["unusable"] for account in asked) == server.in_vain.total()


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """Judgments and scores of a run that nothing disturbs."""
    results = write_run(tmp_path_factory.mktemp("quiet"))
    with Server(judges=judges) as server:
        overlay(results, server.url, api_key_env=None)
        for method in METHODS:
            for name in BENCHMARKS:
                judge(results, name, method)
    rows = {(name, method): judgments(results, name, method) for name in BENCHMARKS for method in METHODS}
    return rows, {name: scores(results, name) for name in BENCHMARKS}


def is_as(quiet, results):
    rows, expected = quiet
    for (name, method), own in rows.items():
        assert judgments(results, name, method) == own
    for name in BENCHMARKS:
        assert scores(results, name) == expected[name]


def test_a_fifth_of_all_replies_faulty_gives_the_judgments_and_scores_of_a_quiet_run(tmp_path, quiet):
    with Server(TWENTY_PERCENT, judges=judges, late=1.5, seed=SEED) as server:
        overlay(write_run(tmp_path), server.url)
        for method in METHODS:
            for name in BENCHMARKS:
                judge(tmp_path, name, method)
    is_as(quiet, tmp_path)
    every_judgment_once(tmp_path, server)
    assert set(server.met) == {None, *FAULTS}
    assert server.met.total() - server.met[None] > server.met.total() / 5
    assert server.in_vain.total() > 5


@pytest.mark.parametrize(("name", "held"), [("arena_hard", 6), ("arena_hard", SECOND_ROUND), ("mt_bench", 9)])
def test_a_stage_that_is_killed_goes_on_where_it_was(tmp_path, quiet, name, held):
    """Also in the second round of questions of arena_hard; what is under way is billed whoever takes it."""
    faults = {fault: share for fault, share in TWENTY_PERCENT.items() if fault != "late"}
    with Server(faults, judges=judges, hold_after=held, bills_the_gone=True) as server:
        overlay(write_run(tmp_path), server.url, timeout=10.0, concurrency=2)
        victim = start(tmp_path, name, "dpo")
        wait_for(lambda: server.parked == 2)
        victim.kill()
        output = victim.communicate(timeout=10)
        server.released.set()
        assert not (tmp_path / "policy/qwen3/dpo/seed1/judgments").exists()
        assert any(GO_ON in text for text in server.tries) == (held == SECOND_ROUND)
        again = start(tmp_path, name, "dpo")
        output += again.communicate(timeout=30)
        assert again.returncode == 0, output
        for method in METHODS:
            for other in BENCHMARKS:
                judge(tmp_path, other, method)
    assert KEY not in str(output)
    assert not [entry for entry in Store(tmp_path / "replies").entries() if _lost(entry)]
    is_as(quiet, tmp_path)
    every_judgment_once(tmp_path, server)


def _lost(entry):
    return isinstance(entry, Unanswered) and entry.reason == "lost with its process"


def test_what_failed_is_asked_again_by_a_rerun_and_nothing_else(tmp_path, quiet):
    """An outage of the endpoint leaves named failures; judging again mends them."""
    with Server(judges=judges) as server:
        server.draw = lambda text, number: "500" if hash_of(text) % 4 == 0 and not server.released.is_set() else None
        overlay(write_run(tmp_path), server.url, attempts=2)
        for method in METHODS:
            for name in BENCHMARKS:
                judge(tmp_path, name, method)
        failed = sum(
            counts(tmp_path, name, method)["failed"].get("server error", 0) for name in BENCHMARKS for method in METHODS
        )
        table = scores(tmp_path, "mt_bench")[0][0]
        assert failed > 10
        assert "without a judgment" in table
        server.released.set()
        for method in METHODS:
            for name in BENCHMARKS:
                judge(tmp_path, name, method)
    is_as(quiet, tmp_path)
    every_judgment_once(tmp_path, server)


def hash_of(text):
    return sum(map(ord, text))


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="no shared data here")
def test_official_set_ups_at_full_size(tmp_path):
    """500 prompts in two games and 80 questions in two turns, answered by a stub: all judged, scored, and in time."""
    arena, mt = (tmp_path / "judged" / "sets" / name for name in BENCHMARKS)
    for source, target, names in (
        (OFFICIAL / "arena_hard_v0.1", arena, ("question.jsonl", "model_answer/gpt-4-0314.jsonl")),
        (OFFICIAL / "mt_bench", mt, ("question.jsonl", "judge_prompts.jsonl", "reference_answer/gpt-4.jsonl")),
    ):
        for name in names:
            write_whole(target / name, (source / name).read_text())
    write_whole(arena / "judge_config.yaml", ARENA_CONFIG)
    model, answers = "qwen3.sft.seed1", tmp_path / "policy/qwen3/sft/seed1/answers"
    theirs = read_jsonl(OFFICIAL / "arena_hard_v0.1/model_answer/gpt-3.5-turbo-0125.jsonl")
    write_jsonl(answers / "arena_hard.jsonl", [{**row, "model_id": model} for _, row in theirs])
    questions = [row for _, row in read_jsonl(mt / "question.jsonl")]
    stub = [
        {"question_id": row["question_id"], "model_id": model, "choices": [{"index": 0, "turns": row["turns"]}]}
        for row in questions
    ]
    write_jsonl(answers / "mt_bench.jsonl", stub)
    begun = time.monotonic()
    with Server(judges=judges) as server:
        overlay(tmp_path, server.url, timeout=10.0, concurrency=16, top_logprobs=None)
        changed = yaml.safe_load((tmp_path / "overlay.yaml").read_text())
        changed["benchmarks"]["arena_hard"] |= {"baseline": "gpt-4-0314", "token_counter": "gpt-3.5-turbo"}
        changed["benchmarks"]["mt_bench"] |= {"references": "gpt-4"}
        changed["policy"] |= {"run": []}
        write_whole(tmp_path / "overlay.yaml", yaml.safe_dump(changed))
        for name in BENCHMARKS:
            judge(tmp_path, name, "sft")
    assert set(server.billed_keys.values()) == {1}
    for name, judgments_asked in (("arena_hard", 1000), ("mt_bench", 160)):
        account = counts(tmp_path, name, "sft")
        assert account["judged"] + sum(account["failed"].values()) == judgments_asked
        tables, record = scores(tmp_path, name)
        assert record["policies"][model]["failed"] == account["failed"]
        assert tables[0].count("\n") > 3
    assert "does not say how its tokens were counted" in scores(tmp_path, "arena_hard")[0][0]
    assert time.monotonic() - begun < 60  # about 5 s on two cores
