"""What `vrm plan` says of a run that has begun: equal to what is asked afterwards, at most what is paid for it."""

import pytest
from hidden_key import key_stays_hidden  # noqa: F401
from judged_run import METHODS, configuration, counts, judge, judges, overlay, policies, write_run
from paths import ROOT
from server import Server

from vrm.cli import main
from vrm.judging import Store, spending, total
from vrm.judging.store import Replies
from vrm.planning.judge_cost import has_begun, judge_costs, progress, progress_text
from vrm.records import read_jsonl, write_jsonl

BENCHMARKS = ("arena_hard", "mt_bench")


@pytest.fixture
def run(tmp_path):
    overlay(write_run(tmp_path), "http://127.0.0.1:9/v1")
    return tmp_path


def so_far(run, name):
    config = configuration(run)
    return progress(config, name, run, Replies(config.judge.store))


def text(run):
    return progress_text(configuration(run), run)


def forget_answers(run, policy):
    for name in BENCHMARKS:
        (run / policy.folder / "answers" / f"{name}.jsonl").unlink()


def files(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_a_run_begins_with_its_first_answer_or_its_first_reply(run):
    assert has_begun(configuration(run), run)
    for policy in policies():
        forget_answers(run, policy)
    assert not has_begun(configuration(run), run)
    Store(run / "replies")
    assert has_begun(configuration(run), run)
    overlay(run, "http://127.0.0.1:9/v1", benchmarks=())
    assert not has_begun(configuration(run), run)


def test_what_is_left_is_what_is_asked_and_then_nothing(run):
    with Server(judges=lambda body, earlier: "[[A>B]] [[5]]") as server:
        overlay(run, server.url)
        before = [so_far(run, name) for name in BENCHMARKS]
        assert [(one.answered, one.stored, one.left.requests) for one in before] == [(2, 0, 40), (2, 0, 32)]
        for name in BENCHMARKS:
            judge(run, name, "dpo")
        half = [so_far(run, name) for name in BENCHMARKS]
        assert [(one.answered, one.stored, one.left.requests) for one in half] == [(2, 20, 20), (2, 16, 16)]
        for name in BENCHMARKS:
            judge(run, name, "sft")
    assert sum(one.left.requests for one in before) == server.billed_keys.total()
    spent = total(spending(Store(run / "replies"), configuration(run).judge.prices))
    assert sum(one.left.cost for one in before) > spent.cost  # of 4,096 tokens that a reply may have, it had some ten
    after = [so_far(run, name) for name in BENCHMARKS]
    assert [(one.stored, one.left.requests, one.left.cost) for one in after] == [(40, 0, 0.0), (32, 0, 0.0)]


def test_what_would_be_asked_again_is_counted_once_its_first_reply_is_there(run):
    with Server(judges=judges) as server:
        overlay(run, server.url)
        for method in METHODS:
            for name in BENCHMARKS:
                judge(run, name, method)
    lines = (run / "replies" / "replies.jsonl").read_text().splitlines(keepends=True)
    (run / "replies" / "replies.jsonl").write_text("".join(lines[:-1]))  # the last one asked mt_bench again
    found = [so_far(run, name) for name in BENCHMARKS]
    assert [one.left.requests for one in found] == [0, 1]
    asked = sum(counts(run, name, method)["requests"] for name in BENCHMARKS for method in METHODS)
    assert sum(one.stored for one in found) == asked - 1


def test_the_text_has_what_was_paid_what_is_left_and_what_is_to_come(run):
    with Server(judges=lambda body, earlier: "[[A>B]] [[5]]") as server:
        overlay(run, server.url, prices={"prompt": 2000.0, "completion": 10000.0})
        judge(run, "mt_bench", "dpo")
    (run / policies()[0].folder / "answers" / "mt_bench.jsonl").unlink()
    config = configuration(run)
    paid = total(spending(Store(run / "replies"), config.judge.prices)).cost
    arena, mt = (so_far(run, name) for name in BENCHMARKS)
    lines = text(run).splitlines()
    assert lines[0] == (
        f"Judged so far, of the sets in {run}/judged/sets, by the replies in {run}/replies (${paid:,.2f} paid); "
        "equal requests are asked once:"
    )
    assert lines[1].startswith("  arena_hard  2 of 2 policies have answered; 0 requests are stored, 40 are left: ")
    assert lines[1].endswith(f"at most ${arena.left.cost:,.2f}")
    assert lines[2] == "  mt_bench    1 of 2 policies have answered; 16 requests are stored, none is left"
    assert lines[3] == f"  left to pay for these answers: at most ${arena.left.cost:,.2f}, retries not counted"
    typical = judge_costs(config)[1].dollars / 2  # of MT-Bench, for one of two policies
    assert lines[4:] == [f"  answers that are not here yet: about ${typical:,.2f}, as estimated above"]
    assert mt.left.requests == 0


def test_policies_without_answers_have_nothing_to_be_asked_yet(run):
    for policy in policies():
        forget_answers(run, policy)
    lines = text(run).splitlines()
    assert lines[1:3] == ["  arena_hard  0 of 2 policies have answered", "  mt_bench    0 of 2 policies have answered"]
    assert lines[3] == "  left to pay for these answers: at most $0.00, retries not counted"
    typical = sum(cost.dollars for cost in judge_costs(configuration(run)))
    assert lines[4] == f"  answers that are not here yet: about ${typical:,.2f}, as estimated above"


def test_unknown_prices_are_said(run):
    overlay(run, "http://127.0.0.1:9/v1", prices=None)
    forget_answers(run, policies()[0])
    said = text(run)
    assert said.count("price unknown") == 2
    assert "$" not in said


def test_a_judge_that_is_served_here_is_free(run):
    overlay(run, serve="python -m judge", prices=None)
    said = text(run)
    assert said.count("M out, a local judge, free\n") == 2
    assert "price unknown" not in said


def test_equal_requests_are_asked_once(run):
    first, second = (policy.folder for policy in policies())
    before = so_far(run, "arena_hard").left.requests
    rows = read_jsonl(run / first / "answers" / "arena_hard.jsonl")
    alike = [{**row, "model_id": policies()[1].name} for _, row in rows]
    write_jsonl(run / second / "answers" / "arena_hard.jsonl", alike)
    one = so_far(run, "arena_hard")
    assert (one.answered, before, one.left.requests) == (2, 40, 20)
    assert "; equal requests are asked once:" in text(run).splitlines()[0]


def test_looking_changes_nothing(run):
    """The store of a run that is being judged is somebody else's to write."""
    before = files(run)
    assert "0 requests are stored" in text(run)
    assert files(run) == before
    assert not (run / "replies").exists()
    (run / "replies" / "held").mkdir(parents=True)
    (run / "replies" / "held" / "key").write_text('{"benchmark": "b", "most": {}, "entries": 0}')
    before = files(run)
    text(run)
    assert files(run) == before


def test_what_can_not_be_told_is_said_and_hides_nothing_else(run):
    path = run / policies()[0].folder / "answers" / "mt_bench.jsonl"
    path.write_text("{}\n")
    lines = text(run).splitlines()
    assert "40 are left" in lines[1]
    assert f"2 of 2 policies have answered; what is left can't be told: {path}, row 1: not FastChat's" in lines[2]
    assert lines[3].startswith("  left to pay for these answers, as far as it can be told: at most $")
    overlay(run, "http://127.0.0.1:9/v1", benchmarks=["alpaca_eval"])
    for policy in policies():
        (run / policy.folder / "answers" / "alpaca_eval.json").write_text("[]")
    assert "alpaca_eval 2 of 2 policies have answered; what is left can't be told: " in text(run)
    assert "reference_outputs.json: no such file" in text(run)


def test_the_command_adds_it_once_a_run_has_begun(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results" / "demo"
    overlay(write_run(results), "http://127.0.0.1:9/v1", store="results/{run}/replies")
    command = ["plan", "--config", str(ROOT / "config.yaml"), str(results / "overlay.yaml")]
    assert main(command) == 0
    begun = capfd.readouterr().out
    for policy in policies():
        forget_answers(results, policy)
    assert main(command) == 0
    fresh = capfd.readouterr().out
    assert "Judged so far" not in fresh
    assert begun.startswith(f"{fresh}\nJudged so far, of the sets in results/demo/judged/sets, by the replies in ")
    assert "40 are left" in begun
