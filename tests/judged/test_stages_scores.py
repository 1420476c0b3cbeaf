"""Scores of judged policies: by hand, from records as `vrm judge` writes them; and as the report reads them."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from paths import ROOT

from vrm.config import ConfigError, JudgedPolicy, load
from vrm.judged import stages
from vrm.judged.arena_scores import UNSTATED
from vrm.judged.base import draws_table, terms_table
from vrm.judged.stages import write_scores
from vrm.records import RecordError, read_jsonl, write_jsonl, write_whole
from vrm.reporting.judged import read_benchmark
from vrm.runfiles import JUDGED_ITEMS, JUDGED_SCORES, JudgedTables
from vrm.statistics.draws import percentiles

SFT, DPO = (JudgedPolicy("qwen3", method, 1) for method in ("sft", "dpo"))
QUESTIONS = ("b", "a", "c")
CATEGORIES = {81: "writing", 82: "math"}
OVERLAY = {
    "benchmarks": {
        "run": ["arena_hard", "mt_bench"],
        "arena_hard": {"baseline": "them", "token_counter": "words", "bootstrap_samples": 30},
    },
    "policy": {"run_bases": ["qwen3"], "run": ["dpo"], "scorers_from": "qwen3"},
    "judge": {"serve": None, "base_url": "http://127.0.0.1:9/v1", "model": "judge-1"},
    "report": {"tables": [], "figures": [], "level": 0.9},
}


def configuration(directory, **changes):
    merged = {**OVERLAY, **changes}
    write_whole(directory / "overlay.yaml", yaml.safe_dump(merged))
    return load([ROOT / "config.yaml", directory / "overlay.yaml"])


def arena_answer(model, question, tokens, counter="words"):
    text = " ".join(["**so**"] * (tokens % 3) + ["word"] * tokens)
    metadata = {"conv_metadata": {"token_counter": counter}} if counter else {}
    turns = [{"content": text, "token_len": tokens}]
    return {"question_id": question, "model_id": model, "choices": [{"index": 0, "turns": turns}], **metadata}


def game(label, failure=None):
    judgment = None if failure and label is None else f"[[{label}]]"
    return {"judgment": judgment, "score": None if failure else label, "failure": failure}


def write_arena(results, games, counter="words"):
    """`games`: by policy, for each question the labels of its two games; None: the judge did not answer."""
    sets = results / "judged" / "sets" / "arena_hard"
    write_jsonl(sets / "question.jsonl", [{"question_id": q, "turns": [{"content": f"ask {q}"}]} for q in QUESTIONS])
    baseline = [arena_answer("them", q, 5 + i, counter) for i, q in enumerate(QUESTIONS)]
    write_jsonl(sets / "model_answer" / "them.jsonl", baseline)
    for number, (policy, labels) in enumerate(games.items()):
        folder = results / policy.folder
        answers = [arena_answer(policy.name, q, 4 + 3 * i + number) for i, q in enumerate(QUESTIONS)]
        write_jsonl(folder / "answers" / "arena_hard.jsonl", answers)
        rows = [
            {
                "question_id": q,
                "model": policy.name,
                "judge": "judge-1",
                "games": [game(label, None if label else "server error") for label in own],
            }
            for q, own in zip(QUESTIONS, labels, strict=True)
        ]
        write_jsonl(folder / "judgments" / "arena_hard.jsonl", rows)


def write_mt(results, ratings):
    """`ratings`: by policy, for each question those of both turns; None: unparsed."""
    sets = results / "judged" / "sets" / "mt_bench"
    questions = [{"question_id": q, "category": c, "turns": ["one", "two"]} for q, c in CATEGORIES.items()]
    write_jsonl(sets / "question.jsonl", questions)
    for policy, own in ratings.items():
        folder = results / policy.folder
        answers = [
            {"question_id": q, "model_id": policy.name, "choices": [{"index": 0, "turns": ["x" * q, "y"]}]}
            for q in CATEGORIES
        ]
        write_jsonl(folder / "answers" / "mt_bench.jsonl", answers)
        rows = [
            {
                "question_id": question,
                "model": policy.name,
                "judge": ["judge-1", "single-v1"],
                "turn": turn,
                "judgment": "Good." if rating is None else f"Rating: [[{rating}]]",
                "score": rating,
                "failure": "unparsed" if rating is None else None,
            }
            for question, turns in zip(CATEGORIES, own, strict=True)
            for turn, rating in enumerate(turns, 1)
        ]
        write_jsonl(folder / "judgments" / "mt_bench.jsonl", rows)


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


GAMES = {
    SFT: [("A>B", "A>>B"), (None, "B>A"), ("A=B", "A=B")],  # the model is B in the first game and A in the second
    DPO: [("B>>A", "A>>B"), ("B>A", "A=B"), ("A>B", None)],
}
RATINGS = {SFT: [(7, 5), (None, 2)], DPO: [(10, 9), (8, 12)]}


@pytest.fixture
def results(tmp_path):
    write_arena(tmp_path, GAMES)
    write_mt(tmp_path, RATINGS)
    return tmp_path


def score(results, name, config=None):
    out = results / "judged" / f"{name}.csv"
    write_scores(config or configuration(results), name, results, out)
    scores = pd.read_csv(out, keep_default_na=False, na_values=[""], dtype={"note": str})
    items = pd.read_csv(out.with_suffix(".items.csv"), keep_default_na=False)
    assert list(scores) == list(JUDGED_SCORES.columns)
    assert list(items) == list(JUDGED_ITEMS.columns)
    return scores, items, json.loads(out.with_suffix(".json").read_text())


def row(scores, policy, metric):
    (found,) = scores[(scores["method"] == policy.method) & (scores["metric"] == metric)].to_dict("records")
    return found


def test_arena_hards_win_rate_by_hand(results):
    scores, items, _ = score(results, "arena_hard")
    # b: lost 1, won 3; a: lost 1 (its first game has no reply); c: two ties
    assert row(scores, SFT, "win_rate")["value"] == pytest.approx(100 * (3 + 2 * 0.5) / (4 + 1 + 2))
    assert row(scores, DPO, "win_rate")["value"] == pytest.approx(100 * (6 + 1 + 0.5) / (6 + 2 + 1))
    assert row(scores, SFT, "win_rate")["n"] == 3
    own = items[items["method"] == "sft"]
    assert own["item_id"].tolist() == list(QUESTIONS)
    assert own["value"].tolist() == pytest.approx([3 / 4, 0.0, 0.5])
    assert own["weight"].tolist() == [4, 1, 2]
    assert row(scores, SFT, "length")["value"] == pytest.approx((4 + 7 + 10) / 3)
    assert math.isnan(row(scores, SFT, "length")["low"])


def test_arena_hards_record_says_what_the_fit_depends_on(results):
    scores, _, record = score(results, "arena_hard")
    assert record["models"] == sorted([DPO.name, SFT.name])
    assert record["dropped"] == {
        "no reply": 2,
        "no verdict": 0,
        "contradictory verdicts": 0,
        "unknown label": 0,
    }
    assert record["policies"][SFT.name] == {"failed": {"server error": 1}, "games": 6}
    assert record["judge"] == {"model": "judge-1", "endpoint": "http://127.0.0.1:9/v1", "serve": None}
    assert record["reference_length"] == 6.0
    assert record["intervals"] == {"level": 0.9, "resampled": "prompts", "seed": 0, "samples": 30}
    assert set(record["style_coefficients"]) == {"token_len", "header_count", "list_count", "bold_count"}
    for metric in ("win_rate", "sc_win_rate"):
        found = row(scores, DPO, metric)
        assert found["note"] == "1 of 6 games without a judgment"
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 100
    assert row(scores, DPO, "sc_win_rate")["value"] != row(scores, DPO, "win_rate")["value"]


def test_draws_of_sc_are_joint_and_its_interval_is_theirs(results):
    scores, _, _ = score(results, "arena_hard")
    draws = pd.read_csv(results / "judged" / "arena_hard.draws.csv")
    assert draws.columns.to_list() == ["draw", f"{DPO.name}/sc_win_rate", f"{SFT.name}/sc_win_rate"]
    assert draws["draw"].to_list() == list(range(1, 31))
    for policy in (SFT, DPO):
        found = row(scores, policy, "sc_win_rate")
        ends = percentiles(draws[f"{policy.name}/sc_win_rate"], 0.9)
        np.testing.assert_allclose([found["low"], found["high"]], ends, rtol=1e-5)
    once = draws.round(3).drop_duplicates(draws.columns[1:].to_list())
    assert len(once) <= 10  # so many samples of three questions are different; drawn apart, most of 30 would be
    score(results, "mt_bench")
    assert (results / "judged" / "mt_bench.draws.csv").read_text() == "draw\n"
    assert (results / "judged" / "mt_bench.terms.csv").read_text() == "item_id\n"


def test_style_control_is_over_all_policies(results):
    alone = configuration(results, policy={**OVERLAY["policy"], "run": []})
    both, one = (score(results, "arena_hard", config)[0] for config in (None, alone))
    assert row(both, SFT, "win_rate")["value"] == row(one, SFT, "win_rate")["value"]
    assert row(both, SFT, "sc_win_rate")["value"] != pytest.approx(row(one, SFT, "sc_win_rate")["value"], abs=0.1)


def test_a_policy_without_any_verdict_has_no_rate_and_says_why(results):
    write_arena(results, {**GAMES, SFT: [(None, None)] * 3})
    scores, items, _ = score(results, "arena_hard")
    found = row(scores, SFT, "win_rate")
    assert math.isnan(found["value"])
    assert (found["n"], found["note"]) == (0, "6 of 6 games without a judgment")
    assert set(items["method"]) == {"dpo"}
    write_arena(results, {policy: [(None, None)] * 3 for policy in GAMES})
    scores, items, record = score(results, "arena_hard")
    assert scores[scores["metric"] != "length"]["value"].isna().all()
    assert items.empty
    assert record["models"] == []


@pytest.mark.parametrize(("counter", "note"), [("words", ""), (None, UNSTATED)])
def test_whether_tokens_are_counted_alike_is_checked_or_said(results, counter, note):
    write_arena(results, GAMES, counter)
    scores, _, record = score(results, "arena_hard")
    assert row(scores, SFT, "sc_win_rate")["note"].endswith(note)
    assert (UNSTATED in row(scores, SFT, "sc_win_rate")["note"]) == bool(note)
    assert UNSTATED not in row(scores, SFT, "win_rate")["note"]
    assert (record["token_counter"], record["baseline_token_counter"]) == ("words", counter)


def test_tokens_that_are_counted_in_several_ways_are_refused(results):
    path = results / DPO.folder / "answers" / "arena_hard.jsonl"
    rows = [row for _, row in read_jsonl(path)]
    write_jsonl(path, [*rows[:2], {**rows[2], "conv_metadata": {"token_counter": "gpt-4"}}])
    with pytest.raises(RecordError, match="question c: its tokens were counted by 'gpt-4'"):
        score(results, "arena_hard")
    write_arena(results, GAMES, "gpt-4")
    with pytest.raises(ConfigError, match="gpt-4"):
        score(results, "arena_hard")


def test_mt_benchs_means_by_hand(results):
    scores, items, record = score(results, "mt_bench")
    expected = {
        "turn_1": (7, 1, "1 of 2 turns without a judgment"),
        "turn_2": (3.5, 2, ""),
        "score": (14 / 3, 3, "1 of 4 turns without a judgment"),
        "category/writing": (6, 2, ""),
        "category/math": (2, 1, "1 of 2 turns without a judgment"),
        "length": ((81 + 82 + 2) / 4, 4, ""),
    }
    own = scores[scores["method"] == "sft"]
    assert own["metric"].tolist() == list(expected)
    for metric, (value, n, note) in expected.items():
        found = row(scores, SFT, metric)
        assert found["value"] == pytest.approx(value)
        assert (found["n"], found["note"] if isinstance(found["note"], str) else "") == (n, note)
    off = "1 ratings off the scale of 1 to 10"
    assert [row(scores, DPO, metric)["note"] == off for metric in expected] == [False, True, True, False, True, False]
    own = items[items["method"] == "sft"]
    assert own[["item_id", "part", "value", "weight"]].values.tolist() == [
        [81, "turn_1", 7.0, 1.0],
        [81, "turn_2", 5.0, 1.0],
        [82, "turn_2", 2.0, 1.0],
    ]
    assert record["policies"][SFT.name] == {"failed": {"unparsed": 1}, "turns": 4}
    assert record["references"] == "world-reference"


@pytest.mark.parametrize("name", ["arena_hard", "mt_bench"])
def test_the_report_reads_what_is_written_and_it_is_the_same_every_time(results, name):
    score(results, name)
    first = [path.read_bytes() for path in sorted((results / "judged").glob(f"{name}*"))]
    benchmark = read_benchmark(configuration(results), results, name)
    assert set(benchmark.by_policy) == {tuple(SFT), tuple(DPO)}
    assert sum(benchmark.failed.values()) == (2 if name == "arena_hard" else 1)
    score(results, name)
    assert [path.read_bytes() for path in sorted((results / "judged").glob(f"{name}*"))] == first


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("arena_hard", lambda rows: rows[1:], r"not of the set's questions \(first \('b',\)\)"),
        ("mt_bench", lambda rows: rows[:-1], r"not of the set's questions \(first \(82, 2\)\)"),
        ("mt_bench", lambda rows: [*rows, rows[0]], r"row 5: a second judgment of \(81, 1\)"),
        ("arena_hard", lambda rows: [{**rows[0], "model": "else"}, *rows[1:]], "row 1: judges else"),
        ("arena_hard", lambda rows: [{**row, "judge": "old"} for row in rows], "judged by old, and judge.model is"),
        ("mt_bench", lambda rows: [{**row, "judge": ["old", "p"]} for row in rows], "judged by old"),
        ("mt_bench", lambda rows: [{**row, "score": None, "failure": None} for row in rows], "neither a score nor"),
        ("mt_bench", lambda rows: [without(rows[0], "failure"), *rows[1:]], "row 1: no `judgment`, `score` or"),
        ("mt_bench", lambda rows: [without(rows[0], "judge"), *rows[1:]], "row 1: judged by None"),
        ("arena_hard", lambda rows: [*rows[:2], {**rows[2], "games": rows[2]["games"][:1]}], "row 3: not two games"),
        ("arena_hard", lambda rows: [{**rows[0], "games": [None, None]}, *rows[1:]], "row 1: no `judgment`"),
    ],
)
def test_judgments_that_do_not_belong_are_refused_with_file_row_and_mend(results, name, change, said):
    path = results / DPO.folder / "judgments" / f"{name}.jsonl"
    write_jsonl(path, change([row for _, row in read_jsonl(path)]))
    with pytest.raises(RecordError, match=rf"{name}\.jsonl.*{said}.*; judge again"):
        score(results, name)


def test_alpaca_eval_is_scored_by_its_own_module(results, monkeypatch):
    def stand_in(config, directory):
        return JudgedTables(
            pd.DataFrame([[*SFT, "win_rate", 50.0, np.nan, np.nan, 2, ""]], columns=list(JUDGED_SCORES.columns)),
            pd.DataFrame([[*SFT, 1, "", 0.5, 1.0]], columns=list(JUDGED_ITEMS.columns)),
            draws_table({"qwen3.sft.seed1/lc_win_rate": np.array([1 / 3, np.nan])}),
            terms_table([1, 2], {"qwen3.sft.seed1/lc_win_rate": np.array([20.0, 140 / 3])}),
            {"benchmark": "alpaca_eval"},
        )

    own = stages.BENCHMARKS["alpaca_eval"]._replace(scores=stand_in)
    monkeypatch.setitem(stages.BENCHMARKS, "alpaca_eval", own)
    scores, items, record = score(results, "alpaca_eval")
    assert row(scores, SFT, "win_rate")["value"] == 50.0
    assert len(items) == 1
    assert record == {"benchmark": "alpaca_eval"}
    text = (results / "judged" / "alpaca_eval.draws.csv").read_text()
    assert text == "draw,qwen3.sft.seed1/lc_win_rate\n1,0.333333\n2,\n"
    text = (results / "judged" / "alpaca_eval.terms.csv").read_text()
    assert text == "item_id,qwen3.sft.seed1/lc_win_rate\n1,20\n2,46.6667\n"


def test_a_run_that_judges_nothing_is_refused(results):
    nothing = configuration(results, benchmarks={"run": []})
    with pytest.raises(ConfigError, match="no policy is judged"):
        score(results, "mt_bench", nothing)
