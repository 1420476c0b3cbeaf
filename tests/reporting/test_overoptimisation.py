"""The over-optimisation figure: its numbers against the files, and what stands on its face; see also test_figures."""

import json

import numpy as np
import pandas as pd
import pytest
from drawing import boxes_of, drawn, texts
from example_policies import ANSWERS, BASES, METHODS, PROMPTS, STEPS, make_policies
from example_run import VARIANTS, make_raw, write_results

from vrm import config as configuration
from vrm.evaluation.overoptimisation import best_of_n_kl
from vrm.records import RecordError
from vrm.reporting.overoptimisation import COLUMNS, overoptimisation_curves
from vrm.reporting.registry import FIGURES


def make_small(tmp_path, **policy):
    variants = {name: VARIANTS[name] for name in ("rm", "vrm")}
    policies = make_policies(**{"variants": variants, "scorers_from": None} | policy)
    config = configuration.parse(make_raw(variants, seeds=policies["seeds"], sets=("uf_c",), policy=policies))
    return config, write_results(config, tmp_path)


@pytest.fixture(scope="module")
def data(config, results):
    return overoptimisation_curves(config, results)


def read_folder(results, base, method, seed=1):
    folder = results / "policy" / base / method / f"seed{seed}"
    return pd.read_json(folder / "samples.jsonl", lines=True).join(pd.read_csv(folder / "samples.gold.csv"))


def test_one_row_a_point_and_both_optimisers_start_at_zero(data):
    assert data.columns.tolist() == list(COLUMNS)
    assert len(data) == 2 * 4 * (len(STEPS) + 5)  # bases x reward models x (PPO's steps + n = 1, 2, 4, 8, 16)
    starts = data[(data["step"] == 0) | (data["n"] == 1)]
    assert len(starts) == 2 * 4 * 2
    assert starts[["kl", "proxy", "gold"]].to_numpy() == pytest.approx(0, abs=1e-12)
    assert starts[["proxy_low", "proxy_high", "gold_low", "gold_high"]].isna().all(axis=None)  # 0 by definition
    assert set(starts["resampled"]) == {"nothing (all alike)"}
    assert set(data.drop(starts.index)["resampled"]) == {"prompts (one seed, Student's t)"}
    assert set(data["level"]) == {0.95}


def test_ppo_points_are_gains_on_the_same_prompts(results, data):
    samples = read_folder(results, "qwen3", "ppo_vrm")
    answers = read_folder(results, "qwen3", "best_of_n")
    spread = np.std([rewards["vrm"] for rewards in answers["rewards"]])
    means = samples.groupby("step")[["reward", "kl", "gold", "length"]].mean()
    row = data[(data["base"] == "qwen3") & (data["method"] == "ppo_vrm") & (data["step"] == 32)].iloc[0]
    assert row["proxy"] == pytest.approx((means["reward"][32] - means["reward"][0]) / spread)
    assert row["gold"] == pytest.approx(means["gold"][32] - means["gold"][0])
    assert (row["proxy_mean"], row["gold_mean"]) == pytest.approx((means["reward"][32], means["gold"][32]))
    assert (row["kl"], row["length"]) == pytest.approx((means["kl"][32], means["length"][32]))
    assert row["proxy_low"] < row["proxy"] < row["proxy_high"]
    assert (row["label"], row["reward_model"], row["n_prompts"], row["n_seeds"]) == ("VRM-PPO", "vrm", PROMPTS, 1)


def test_best_of_n_ends_at_each_prompts_best_answer(results, data):
    answers = read_folder(results, "qwen2_5", "best_of_n").assign(rm=lambda f: [r["rm"] for r in f["rewards"]])
    best = answers.loc[answers.groupby("prompt_id")["rm"].idxmax()]
    row = data[(data["base"] == "qwen2_5") & (data["reward_model"] == "rm") & (data["n"] == ANSWERS)].iloc[0]
    assert row["proxy_mean"] == pytest.approx(best["rm"].mean())
    assert row["gold"] == pytest.approx(best["gold"].mean() - answers["gold"].mean())
    assert row["length"] == pytest.approx(best["length"].mean())
    assert row["kl"] == best_of_n_kl(ANSWERS)
    assert (row["method"], row["label"]) == ("best_of_n", "best-of-n, RM")


def test_seeds_are_standardised_apart_and_averaged(tmp_path):
    config, results = make_small(tmp_path, seeds=[1, 2])
    data = overoptimisation_curves(config, results)
    gains = []
    for seed in (1, 2):
        samples, answers = (read_folder(results, "qwen3", method, seed) for method in ("ppo", "best_of_n"))
        means = samples.groupby("step")["reward"].mean()
        gains.append((means[60] - means[0]) / np.std([rewards["rm"] for rewards in answers["rewards"]]))
    row = data[(data["base"] == "qwen3") & (data["method"] == "ppo") & (data["step"] == 60)].iloc[0]
    assert row["proxy"] == pytest.approx(np.mean(gains))
    assert row["n_seeds"] == 2


def test_methods_that_share_a_reward_model_share_best_of_n(tmp_path):
    methods = {"ppo": METHODS["ppo"], "ppo_again": METHODS["ppo"] | {"label": "PPO again"}}
    config, results = make_small(tmp_path, methods=methods, bases={"qwen3": BASES["qwen3"]})
    data = overoptimisation_curves(config, results)
    assert data.groupby("method").size().to_dict() == {"best_of_n": 5, "ppo": len(STEPS), "ppo_again": len(STEPS)}


def test_panels_share_the_kl_axis_and_say_what_they_show(config, results, tmp_path, monkeypatch):
    figure = drawn(monkeypatch, FIGURES["overoptimisation"], config, results, tmp_path)
    words = [text.get_text() for text in texts(figure)]
    for expected in ("Data: synthetic world", "Qwen2.5-shaped", "VRM-PPO (anchored) (ours)", "95 % interval"):
        assert expected in words
    assert any("best-of-n (thin, hollow; n ≤ 16)" in word for word in words)
    lines = [line for line in figure.legends[0].legend_handles if hasattr(line, "get_marker")][:4]
    assert len({(line.get_marker(), str(line._unscaled_dash_pattern)) for line in lines}) == 4  # PPO, also in grey
    assert any("interval over prompts (one seed)" in word for word in words)
    assert sum(word.startswith("gold reward at start: ") for word in words) == 2
    assert len(figure.axes) == 4
    for column in (0, 1):
        assert figure.axes[column].get_xlim() == figure.axes[column + 2].get_xlim()


def test_without_gold_the_proxy_stands_alone_and_says_so(tmp_path, monkeypatch):
    config, results = make_small(tmp_path, gold=None, seeds=[1, 2, 3], bases={"qwen3": BASES["qwen3"]})
    figure = drawn(monkeypatch, FIGURES["overoptimisation"], config, results, tmp_path)
    words = " ".join(text.get_text() for text in texts(figure)).replace("\n", " ")
    assert len(figure.axes) == 1
    assert "No gold judge" in words
    assert "over 3 seeds and prompts" in words
    page = figure.bbox
    outside = [text.get_text() for text, box in boxes_of(figure).items() if box.x0 < page.x0 or box.x1 > page.x1]
    assert not outside
    assert overoptimisation_curves(config, results)["gold"].isna().all()


def test_negative_kl_estimates_are_drawn_at_zero(tmp_path, monkeypatch):
    config, results = make_small(tmp_path, bases={"qwen3": BASES["qwen3"]})
    path = results / "policy" / "qwen3" / "ppo" / "seed1" / "samples.jsonl"
    rewrite(path, lambda rows: [row | {"kl": -0.1} if row["step"] == 8 else row for row in rows])
    figure = drawn(monkeypatch, FIGURES["overoptimisation"], config, results, tmp_path)
    drawn_kl = np.concatenate([line.get_xdata() for line in figure.axes[0].lines[1:]])
    assert np.isfinite(drawn_kl).all()
    assert drawn_kl.min() == 0
    assert overoptimisation_curves(config, results)["kl"].min() == pytest.approx(-0.1)


def rewrite(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


def without(name):
    return lambda rows: [{key: value for key, value in row.items() if key != name} for row in rows]


@pytest.mark.parametrize(
    ("method", "change", "says"),
    [
        ("ppo", without("kl"), r"ppo/seed1/samples.jsonl, row 1: lacks kl"),
        ("ppo", lambda rows: [], r"samples.jsonl: no answer"),
        ("ppo", lambda rows: rows[:1] + rows, r"samples.jsonl: a prompt is answered twice at one step"),
        ("ppo", lambda rows: [r | {"reward": None} for r in rows], r"reward of row 1 is not a finite number"),
        ("best_of_n", without("rewards"), r"best_of_n/seed1/samples.jsonl, row 1: lacks rewards"),
        ("best_of_n", lambda rows: [r | {"rewards": {"rm": 1.0}} for r in rows], "lacks the reward of vrm; sample"),
        (
            "best_of_n",
            lambda rows: [r | {"rewards": {"rm": 1, "vrm": 1}} for r in rows],
            "rewards every answer the same",
        ),
    ],
)
def test_broken_samples_are_refused_by_name(tmp_path, method, change, says):
    config, results = make_small(tmp_path, bases={"qwen3": BASES["qwen3"]})
    rewrite(results / "policy" / "qwen3" / method / "seed1" / "samples.jsonl", change)
    with pytest.raises(RecordError, match=says):
        overoptimisation_curves(config, results)


@pytest.mark.parametrize(("method", "says"), [("ppo", "answer different prompts"), ("best_of_n", "numbers of answers")])
def test_a_missing_answer_is_noticed(tmp_path, method, says):
    config, results = make_small(tmp_path, bases={"qwen3": BASES["qwen3"]}, gold=None)
    rewrite(results / "policy" / "qwen3" / method / "seed1" / "samples.jsonl", lambda rows: rows[:-1])
    with pytest.raises(RecordError, match=says):
        overoptimisation_curves(config, results)


def test_gold_rewards_of_other_samples_are_refused(tmp_path):
    config, results = make_small(tmp_path, bases={"qwen3": BASES["qwen3"]})
    path = results / "policy" / "qwen3" / "ppo" / "seed1" / "samples.gold.csv"
    pd.read_csv(path).iloc[1:].to_csv(path, index=False)
    with pytest.raises(
        RecordError, match=r"samples.gold.csv: 359 gold rewards for 360 answers of samples.jsonl; score"
    ):
        overoptimisation_curves(config, results)
    path.write_text("reward\n1\n")
    with pytest.raises(RecordError, match=r"samples.gold.csv: lacks the column gold"):
        overoptimisation_curves(config, results)
    path.unlink()
    with pytest.raises(RecordError, match=r"samples.gold.csv: missing"):
        overoptimisation_curves(config, results)


def test_nothing_trained_by_ppo_is_a_clear_error(tmp_path):
    raw = make_raw({"rm": VARIANTS["rm"]}, seeds=[1], sets=("uf_c",), policy={})
    with pytest.raises(RecordError, match=r"no policy is trained by PPO; leave it out of report\.figures"):
        FIGURES["overoptimisation"](configuration.parse(raw), tmp_path, tmp_path)
