"""The stage `vrm judge`: its files, its account, and what it does not ask twice."""

import json

import pytest
from judged_run import METHODS, configuration, counts, judge, judges, judgments, overlay, policies, write_run
from judging_jobs import VARIABLE
from paths import ROOT
from server import Server

from vrm.cli import main
from vrm.config import ConfigError, Prices
from vrm.judged.stages import judge_benchmark
from vrm.judging import JudgeError, Reply, Store, Unusable, Usage, spending, spending_of, total

BENCHMARKS = ("arena_hard", "mt_bench")


def judge_all(results):
    for method in METHODS:
        for name in BENCHMARKS:
            judge(results, name, method)


def outputs(results):
    return {
        str(path.relative_to(results)): path.read_bytes()
        for policy in policies()
        for path in sorted((results / policy.folder / "judgments").iterdir())
    }


def test_judgments_and_counts_are_written_once_and_alike(tmp_path):
    with Server(judges=judges) as server:
        overlay(write_run(tmp_path), server.url, concurrency=8)
        judge_all(tmp_path)
        first, asked = outputs(tmp_path), server.tries.total()
        for path in (tmp_path / "replies").rglob("replies.jsonl"):
            path.unlink()
        judge_all(tmp_path)
        assert server.tries.total() == 2 * asked
    assert outputs(tmp_path) == first
    assert len(first) == 8


def test_counts_name_what_failed_and_sum_what_was_paid(tmp_path):
    with Server(judges=judges) as server:
        overlay(write_run(tmp_path), server.url)
        judge_all(tmp_path)
    parts = []
    for method in METHODS:
        for name in BENCHMARKS:
            account, rows = counts(tmp_path, name, method), judgments(tmp_path, name, method)
            parts.append(account)
            games = [game for row in rows for game in row.get("games", [row])]
            unusable = [game for game in games if game["failure"]]
            assert account["benchmark"] == name
            assert account["model"] == f"qwen3.{method}.seed1"
            assert account["judge"] == {"model": "judge-1", "endpoint": server.url, "serve": None}
            assert account["judged"] == len(games) - len(unusable)
            assert sum(account["failed"].values()) == len(account["failures"]) == len(unusable)
            assert account["requests"] == account["replies"] >= len(games)
    whole = total(spending(Store(tmp_path / "replies"), configuration(tmp_path).judge.prices))
    for field in ("replies", "prompt_tokens", "completion_tokens"):
        assert sum(part[field] for part in parts) == getattr(whole, field)
    assert sum(part["cost"] for part in parts) == pytest.approx(whole.cost)
    assert any(part["failures"] for part in parts)


def test_what_an_endpoint_refuses_is_in_the_account_with_its_words(tmp_path, capfd):
    with Server(always=400, says={"error": {"message": "Content Exists Risk"}}) as server:
        overlay(write_run(tmp_path, arena=2, mt=2), server.url)
        judge(tmp_path, "mt_bench", "dpo")
    account = counts(tmp_path, "mt_bench", "dpo")
    assert account["failed"] == {"refused": 4}
    assert [one["detail"] for one in account["refusals"]] == ["HTTP 400: Content Exists Risk"] * 4
    assert len({one["request"] for one in account["refusals"]}) == 4
    assert "4 requests have no reply: refused" in capfd.readouterr().out


def test_an_account_is_of_exactly_its_requests(tmp_path):
    store = Store(tmp_path)
    for entry in (
        Reply("mine", "arena_hard", "x", Usage(100, 10)),
        Unusable("mine", "arena_hard", "no text", Usage(50, 0)),
        Reply("theirs", "arena_hard", "x", Usage(1000, 1000)),
    ):
        store.append(entry)
    prices = Prices(prompt=2.0, completion=10.0)
    spent = spending_of(store, {"mine", "never asked"}, prices)
    assert (spent.replies, spent.unusable, spent.prompt_tokens, spent.completion_tokens) == (1, 1, 150, 10)
    assert spent.cost == pytest.approx((150 * 2 + 10 * 10) / 1e6)
    assert spending_of(store, {"mine"}, None).cost is None
    assert spending_of(store, set(), None).cost is None
    assert spending_of(store, set(), prices).cost == 0.0


def test_what_is_stored_needs_neither_key_nor_endpoint(tmp_path, monkeypatch):
    with Server(judges=judges) as server:
        overlay(write_run(tmp_path), server.url)
        judge_all(tmp_path)
    first = outputs(tmp_path)
    monkeypatch.delenv(VARIABLE)
    judge_all(tmp_path)
    assert outputs(tmp_path) == first
    (tmp_path / "replies" / "replies.jsonl").unlink()
    with pytest.raises(ConfigError, match=VARIABLE):
        judge_all(tmp_path)


def test_a_judge_that_refuses_all_ends_the_stage_without_files(tmp_path):
    with Server(always=401) as server:
        overlay(write_run(tmp_path), server.url)
        with pytest.raises(JudgeError, match="401"):
            judge(tmp_path, "mt_bench", "dpo")
    assert not (tmp_path / policies()[1].folder / "judgments").exists()


def test_a_judge_that_never_answers_gives_named_failures(tmp_path):
    with Server(always=500) as server:
        overlay(write_run(tmp_path, arena=3), server.url, attempts=2)
        judge(tmp_path, "arena_hard", "dpo")
    account = counts(tmp_path, "arena_hard", "dpo")
    assert (account["requests"], account["replies"], account["judged"]) == (6, 0, 0)
    assert account["failed"] == {"server error": 6}
    rows = judgments(tmp_path, "arena_hard", "dpo")
    assert [row["games"] for row in rows] == [[{"judgment": None, "score": None, "failure": "server error"}] * 2] * 3


def test_without_a_judge_the_mend_is_named(tmp_path):
    overlay(write_run(tmp_path), "http://127.0.0.1:9/v1")
    config = configuration(tmp_path).model_copy(update={"judge": None})
    with pytest.raises(ConfigError, match=r"no judge: set judge\.base_url"):
        judge_benchmark(config, policies()[0], "mt_bench", tmp_path, tmp_path, tmp_path)
    assert not (tmp_path / "replies").exists()


@pytest.mark.parametrize("stage", ["benchmark-set", "judge", "judged-scores"])
def test_an_unknown_benchmark_is_refused_by_every_stage_that_takes_one(tmp_path, capfd, stage):
    policy = ["--base", "qwen3", "--method", "dpo", "--answers", "answers", "--sets", "set"]
    extra = {"benchmark-set": [], "judge": policy, "judged-scores": ["--results", str(tmp_path)]}[stage]
    config = str(ROOT / "config.yaml")
    assert main([stage, "--config", config, "--name", "alpaca", *extra, "--out", str(tmp_path / "out")]) == 1
    said = f"vrm {stage}: there is no benchmark 'alpaca'; known are: alpaca_eval, arena_hard, mt_bench\n"
    assert capfd.readouterr().err == said
    assert not list(tmp_path.iterdir())


def test_a_served_judge_is_asked_and_named_by_its_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    command = "python -m vrm.world.judge_server --model world-judge"
    for noise in ("0", "3"):
        overlay(write_run(tmp_path), serve=f"{command} --noise {noise}", model="world-judge", timeout=9.0)
        for name in BENCHMARKS:
            judge(tmp_path, name, "dpo")
    account = counts(tmp_path, "mt_bench", "dpo")
    assert account["judge"] == {"model": "world-judge", "endpoint": None, "serve": f"{command} --noise 3"}
    assert account["judged"] == 16
    keys = [json.loads(line)["key"] for line in (tmp_path / "replies" / "replies.jsonl").read_text().splitlines()]
    assert len(set(keys)) == len(keys) == 2 * (20 + 16)  # another noise is another judge
