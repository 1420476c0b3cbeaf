"""Table 1: what stands where, the paper's values, and what the notes say."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from example_judged import PARTIAL, make_judged, rewrite, write_judged
from example_policies import METHODS

from vrm.config import ConfigError
from vrm.records import RecordError
from vrm.reporting.registry import TABLES


@pytest.fixture(scope="module")
def config():
    return make_judged()


@pytest.fixture(scope="module")
def out(config, tmp_path_factory):
    folder = write_judged(config, tmp_path_factory.mktemp("judged"))
    TABLES["table1"](config, folder, folder)
    return folder


@pytest.fixture(scope="module")
def cells(out):
    return pd.read_csv(out / "table1.csv").set_index(["base", "method", "metric", "benchmark"])


def make(config, folder, **options):
    """The Markdown of a run of its own."""
    write_judged(config, folder, **options)
    TABLES["table1"](config, folder, folder)
    return (folder / "table1.md").read_text()


def test_equal_inputs_give_equal_bytes(config, out, tmp_path):
    write_judged(config, tmp_path)
    paths = TABLES["table1"](config, tmp_path, tmp_path)
    assert [path.name for path in paths] == ["table1.csv", "table1.md", "table1.tex", "table1.html"]
    assert [path.read_bytes() for path in paths] == [(out / path.name).read_bytes() for path in paths]


def test_cells_are_the_scores_with_intervals_around_them(out, cells):
    scores = pd.read_csv(out / "judged" / "arena_hard.csv").set_index(["base", "method", "metric"])
    for metric in ("win_rate", "sc_win_rate"):
        row = cells.loc[("qwen3", "ppo_vrm", metric, "arena_hard")]
        assert row["estimate"] == pytest.approx(scores.loc[("qwen3", "ppo_vrm", metric), "value"], rel=1e-5)
    assert (cells["low"] < cells["estimate"]).all()
    assert (cells["estimate"] < cells["high"]).all()
    assert set(cells["level"]) == {0.95}
    assert set(cells["n_seeds"]) == {1}


def test_papers_values_land_in_their_rows(cells):
    paper = cells["paper"].dropna()
    assert paper.loc[("qwen2_5", "ppo_vrm", "win_rate", "alpaca_eval")] == 45.30
    assert paper.loc[("qwen2_5", "ppo_vrm", "win_rate", "arena_hard")] == 65.5
    assert paper.loc[("qwen2_5", "selective_dpo", "sc_win_rate", "arena_hard")] == 48.2
    assert paper.loc[("qwen3", "ppo", "win_rate", "alpaca_eval")] == 44.75
    assert paper.loc[("qwen3", "ppo_vrm", "score", "mt_bench")] == 8.58
    assert set(paper.index.get_level_values("method")) == {"dpo", "simpo", "selective_dpo", "ppo", "ppo_vrm"}
    names = cells.groupby("method")["paper_method"].first().dropna().to_dict()
    assert set(names) == {"dpo", "simpo", "selective_dpo", "ppo", "ppo_vrm"}
    assert (names["ppo_vrm"], names["selective_dpo"]) == ("VRM-PPO", "Selective DPO")


def test_a_base_that_stands_for_none_of_the_papers_has_no_values(tmp_path):
    config = make_judged(papers=(None, "Qwen3-8B"))
    text = make(config, tmp_path)
    cells = pd.read_csv(tmp_path / "table1.csv")
    assert set(cells.dropna(subset="paper")["base"]) == {"qwen3"}
    assert "Qwen2.5-7B" not in text
    assert "ANOTHER SCALE" in text
    assert "ANOTHER SCALE" not in make(make_judged(papers=(None, None)), tmp_path / "none")


def test_another_reward_model_under_the_papers_name_is_not_the_papers_row(tmp_path):
    swapped = {"ppo": METHODS["ppo"] | {"reward": "vrm"}, "ppo_vrm": METHODS["ppo_vrm"] | {"reward": "rm"}}
    make(make_judged(methods=METHODS | swapped), tmp_path)
    papers = set(pd.read_csv(tmp_path / "table1.csv").dropna(subset="paper")["method"])
    assert papers == {"dpo", "simpo", "selective_dpo"}


def test_an_unknown_policy_of_the_paper_is_refused(tmp_path):
    config = make_judged(papers=("Qwen2-7B", None))
    write_judged(config, tmp_path)
    with pytest.raises(ConfigError, match=r"qwen2_5\.paper: 'Qwen2-7B' is none of Qwen2\.5-7B, Qwen3-8B"):
        TABLES["table1"](config, tmp_path, tmp_path)


def test_bases_are_set_apart_and_the_papers_row_stands_below_ours(out):
    lines = (out / "table1.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split(" | ")] for line in lines if line.startswith("| Qwen")]
    names = [(row[0].removeprefix("| "), row[1]) for row in rows]
    assert names[0] == ("Qwen2.5-shaped", "SFT (start)")
    at = names.index(("Qwen2.5-shaped", "VRM-PPO"))
    assert names[at + 1] == ("Qwen2.5-7B", "VRM-PPO, in the paper†")
    assert rows[at + 1][2:] == ["45.3", "", "65.5", "57.2", "7.98 |"]
    assert "Qwen2.5-shaped" not in [base for base, _ in names[names.index(("Qwen3-shaped", "DPO")) :]]
    body = (out / "table1.tex").read_text().split("\\toprule")[1]
    assert body.count("\\midrule") == 2  # below the header, between the bases


def test_missing_lc_shows_its_substitute_under_its_own_name(out, cells):
    text = (out / "table1.md").read_text()
    (header,) = (line for line in text.splitlines() if line.startswith("| Base"))
    assert "LC, no difficulty term\\*, n = " in header
    assert "LC, n = " not in header
    assert f"is ({PARTIAL}). It is not the official LC" in text
    assert "lc_win_rate" not in cells.index.get_level_values("metric")
    assert cells.xs("lc_without_difficulty", level="metric")["paper"].isna().all()


def test_official_lc_stands_beside_the_papers_and_says_that_it_has_no_interval(tmp_path):
    text = make(make_judged(), tmp_path, official_lc=True)
    cells = pd.read_csv(tmp_path / "table1.csv").set_index(["base", "method", "metric"])
    assert cells.loc[("qwen2_5", "ppo_vrm", "lc_win_rate"), "paper"] == 50.38
    assert cells.loc[("qwen2_5", "ppo_vrm", "lc_win_rate"), "resampled"] == "nothing"
    assert "LC, n = " in text
    assert "no difficulty term" not in text
    assert "LC: fits that were not resampled, hence without an interval." in text


def test_notes_say_who_judged_what_was_left_out_and_how_sure_it_is(out):
    text = (out / "table1.md").read_text()
    for expected in (
        "Data: synthetic world. One seed (1) of each policy; in brackets the 95 % interval",
        "MT-Bench: over prompts (Student's t). It leaves out the variation between seeds",
        "Judge: world-judge, at http://127.0.0.1:1/v1.",
        "each answer against that of world-reference, 60 instructions",
        "comparisons without a judgment, which are in no mean: 9 (no reply 3, no verdict 6).",
        "games without a judgment, which are in no mean: 12 (no reply 4, no verdict 8).",
        "two games a prompt against world-baseline, 40 prompts",
        "SC: one fit over 17 policies, those of this table; another set of policies gives other values.",
        "length +0.31, headers -0.02, lists +0.05, bold +0.00",
        "20 questions of two turns",
        "LC, no difficulty term and SC: fits; in brackets the interval of the scorer's joint bootstrap over prompts",
        "SC: the benchmark's own code draws single battles instead.",
        "85 intervals stand here, each by itself: about 4 of them miss",
        "(ours): not in the paper.",
    ):
        assert expected in text.replace("\\", ""), expected
    widths = re.search(r"Half-widths of the intervals: AlpacaEval-shaped WR ([\d.]+) to ([\d.]+),", text)
    assert 3 < float(widths[1]) < float(widths[2]) < 15


def test_caption_and_every_column_say_what_they_are(out):
    text = (out / "table1.md").read_text()
    assert text.startswith("**Judged benchmarks: win rates (WR, LC, SC) in percent, MT-Bench's score in rating points")
    assert "Data: synthetic world" in text.splitlines()[0]
    (header,) = (line for line in text.splitlines() if line.startswith("| Base"))
    assert header.count("<br>") == 5
    assert "MT-Bench-shaped<br>score, n = 19 to 20" in header


def test_only_the_benchmarks_that_are_run_have_columns(tmp_path):
    config = make_judged(run=("mt_bench",))
    make(config, tmp_path)
    cells = pd.read_csv(tmp_path / "table1.csv")
    assert set(cells["benchmark"]) == {"mt_bench"}
    assert set(cells["metric"]) == {"score"}


def test_several_seeds_are_said_and_combined(tmp_path):
    text = make(make_judged(seeds=(1, 2, 3)), tmp_path)
    assert "Mean of 3 seeds (1, 2, 3)" in text
    assert "WR and MT-Bench: over seeds and prompts (variance components, Student's t)." in text
    assert "Fits of several seeds: a draw's value is the mean over seeds, which are not drawn themselves" in text
    cells = pd.read_csv(tmp_path / "table1.csv")
    over = {"seeds x prompts (Student's t)", "seeds x prompts (joint bootstrap, Student's t)"}
    assert set(cells["resampled"]) == over


def test_an_empty_cell_is_named_with_its_reason(tmp_path):
    config = make_judged(run=("arena_hard",))
    write_judged(config, tmp_path)
    path = tmp_path / "judged" / "arena_hard.csv"

    def forget(frame):
        gone = (frame["metric"] == "sc_win_rate") & (frame["method"] == "ppo")
        return frame.assign(value=frame["value"].mask(gone), note=frame["note"].mask(gone, "no battle"))

    rewrite(path, forget)
    TABLES["table1"](config, tmp_path, tmp_path)
    text = (tmp_path / "table1.md").read_text()
    assert "No value, Arena-Hard-shaped SC, Qwen2.5-shaped: PPO; Qwen3-shaped: PPO (no battle)." in text
    cells = pd.read_csv(tmp_path / "table1.csv").set_index(["base", "method", "metric"])
    assert np.isnan(cells.loc[("qwen3", "ppo", "sc_win_rate"), "estimate"])
    assert cells.loc[("qwen3", "ppo", "sc_win_rate"), "note"] == "no battle"


def test_a_fit_that_its_penalty_decides_has_no_interval(tmp_path):
    """As cross-validation on few comparisons has it: 50.0 [50.0, 50.0] would look like the most precise of all."""
    config = make_judged(run=("alpaca_eval",))
    write_judged(config, tmp_path)
    ends = ["value", "low", "high"]

    def shrink(frame):
        shrunk = (frame["metric"] == "lc_without_difficulty") & (frame["method"] == "ppo")
        return frame.assign(**{end: frame[end].mask(shrunk, 50.0) for end in ends})

    rewrite(tmp_path / "judged" / "alpaca_eval.csv", shrink)
    columns = [f"{base}.ppo.seed1/lc_without_difficulty" for base in ("qwen2_5", "qwen3")]
    rewrite(tmp_path / "judged" / "alpaca_eval.draws.csv", lambda f: f.assign(**dict.fromkeys(columns, 50.0)))
    TABLES["table1"](config, tmp_path, tmp_path)
    text = (tmp_path / "table1.md").read_text()
    assert "[50.0, 50.0]" not in text
    assert "term\\*, Qwen2.5-shaped: PPO; Qwen3-shaped: PPO. Here the fit's penalty" in text
    assert "32 intervals stand here" in text
    cells = pd.read_csv(tmp_path / "table1.csv").set_index(["base", "method", "metric"])
    row = cells.loc[("qwen3", "ppo", "lc_without_difficulty")]
    assert (row["estimate"], row["resampled"]) == (50.0, "nothing")
    assert np.isnan([row["low"], row["high"]]).all()


def test_a_judge_that_the_run_serves_is_named_by_its_command(tmp_path):
    config = make_judged(run=("mt_bench",))
    path = write_judged(config, tmp_path) / "judged" / "mt_bench.json"
    judge = {"model": "world-judge", "endpoint": None, "serve": "python -m judge --noise 0.5"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"judge": judge}))
    TABLES["table1"](config, tmp_path, tmp_path)
    expected = "Judge: world-judge, served by the run itself (python -m judge --noise 0.5)."
    assert expected in (tmp_path / "table1.md").read_text()


def test_a_missing_policy_is_refused_by_file(config, tmp_path):
    write_judged(config, tmp_path)
    rewrite(tmp_path / "judged" / "mt_bench.csv", lambda f: f[f["method"] != "ppo_vrm"])
    with pytest.raises(RecordError, match=r"judged/mt_bench\.csv: no row of base qwen2_5, method ppo_vrm, seed 1"):
        TABLES["table1"](config, tmp_path, tmp_path)
