"""The plan of judging: equal to what is asked afterwards, at most what is paid, and nothing for what is stored."""

import pytest
import yaml
from judged_run import METHODS, configuration, counts, judge, judges, overlay, policies, write_run
from paths import SHARED
from server import Server

from vrm.config import ConfigError
from vrm.judging import Store, spending, total
from vrm.judging.plan import OFFICIAL, plan_judging, plan_text
from vrm.records import write_whole

BENCHMARKS = ("arena_hard", "mt_bench")


def sets_of(results):
    return {name: results / "judged" / "sets" / name for name in BENCHMARKS}


@pytest.fixture
def run(tmp_path):
    overlay(write_run(tmp_path), "http://127.0.0.1:9/v1")
    return tmp_path


def answered(run):
    return plan_judging(configuration(run), sets_of(run), run).set_index("benchmark")


def test_without_any_files_the_official_sizes_are_assumed_and_named(run):
    config = configuration(run)
    plan = plan_judging(config, None).set_index("benchmark")
    assert plan["requests"].to_dict() == {"arena_hard": 2 * 2 * 500, "mt_bench": 2 * 2 * 80}
    assert plan.loc["mt_bench", "basis"] == "official size of 80 questions assumed, answers of 128 tokens assumed"
    row = plan.loc["arena_hard"]
    assert row["completion_tokens"] == 2000 * 4096
    assert row["dollars"] == pytest.approx((row["prompt_tokens"] * 2.0 + row["completion_tokens"] * 10.0) / 1e6)
    text = plan_text(plan.reset_index())
    assert text.count("\n") == 2
    assert "2,000 requests" in text
    assert f"at most ${plan['dollars'].sum():,.2f}; retries not counted" in text


def test_without_answers_the_longest_are_assumed(run):
    plan = plan_judging(configuration(run), sets_of(run)).set_index("benchmark")
    assert plan["requests"].to_dict() == {"arena_hard": 2 * 20, "mt_bench": 2 * 16}
    assert plan.loc["arena_hard", "basis"] == "by the set's files, answers of 128 tokens assumed"
    shorter = answered(run)
    assert (plan["prompt_tokens"] > shorter["prompt_tokens"]).all()
    assert (plan["requests"] == shorter["requests"]).all()
    assert not (run / "replies").exists()


def test_with_answers_it_is_what_is_asked_and_then_nothing(run):
    with Server(judges=lambda body, earlier: "[[A>B]] [[5]]") as server:
        overlay(run, server.url)
        before = answered(run)
        for name in BENCHMARKS:
            judge(run, name, "dpo")
        half = answered(run)
        assert (half["stored"] * 2 == before["requests"]).all()
        assert (half["requests"] * 2 == before["requests"]).all()
        for name in BENCHMARKS:
            judge(run, name, "sft")
    assert before["requests"].sum() == server.billed_keys.total()
    spent = total(spending(Store(run / "replies"), configuration(run).judge.prices))
    assert before["dollars"].sum() > spent.cost  # of 4,096 tokens that a reply may have, it had some ten
    after = answered(run)
    assert after["requests"].tolist() == [0, 0]
    assert after["dollars"].tolist() == [0.0, 0.0]
    assert after["stored"].sum() == server.billed_keys.total()
    assert "0 requests" in plan_text(after.reset_index())
    assert "(40 more are in the store)" in plan_text(after.reset_index())


def test_what_would_be_asked_again_is_counted_once_its_first_reply_is_there(run):
    with Server(judges=judges) as server:
        overlay(run, server.url)
        for method in METHODS:
            for name in BENCHMARKS:
                judge(run, name, method)
    lines = (run / "replies" / "replies.jsonl").read_text().splitlines(keepends=True)
    (run / "replies" / "replies.jsonl").write_text("".join(lines[:-1]))  # the last one asked mt_bench again
    plan = answered(run)
    assert plan["requests"].to_dict() == {"arena_hard": 0, "mt_bench": 1}
    assert plan["stored"].sum() == sum(counts(run, name, m)["requests"] for name in BENCHMARKS for m in METHODS) - 1


def test_some_policies_may_have_answered(run):
    for name in BENCHMARKS:
        (run / policies()[1].folder / "answers" / f"{name}.jsonl").unlink()
    plan = answered(run)
    assert plan["answered"].tolist() == [1, 1]
    assert plan["requests"].to_dict() == {"arena_hard": 40, "mt_bench": 32}
    assert plan.loc["mt_bench", "basis"].startswith("1 have answered; the others: by the set's files")


def test_unknown_prices_and_no_judge(run):
    overlay(run, "http://127.0.0.1:9/v1", prices=None)
    plan = answered(run)
    assert plan["dollars"].isna().all()
    assert plan_text(plan.reset_index()).count("prices unknown") == 3
    config = configuration(run)
    with pytest.raises(ConfigError, match="no judge"):
        plan_judging(config.model_copy(update={"judge": None}), None)
    overlay(run, "http://127.0.0.1:9/v1", benchmarks=())
    assert plan_text(plan_judging(configuration(run), None)) == ""


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")
@pytest.mark.parametrize("name", ["alpaca_eval", "mt_bench"])
def test_the_official_sizes_are_those_of_the_official_files(run, name):
    """Arena-Hard's judge prompt is not among the files here."""
    overlay(run, "http://127.0.0.1:9/v1", benchmarks=[name])
    changed = yaml.safe_load((run / "overlay.yaml").read_text())
    changed["benchmarks"]["mt_bench"]["references"] = "gpt-4"
    write_whole(run / "overlay.yaml", yaml.safe_dump(changed))
    config = configuration(run)
    (assumed,) = plan_judging(config, None).to_dict("records")
    (known,) = plan_judging(config, {name: SHARED / "data" / "benchmarks" / name}).to_dict("records")
    assert known["requests"] == assumed["requests"] == 2 * OFFICIAL[name].questions * OFFICIAL[name].requests
    assert known["completion_tokens"] == assumed["completion_tokens"]
    assert known["prompt_tokens"] == pytest.approx(assumed["prompt_tokens"], rel=0.005)
