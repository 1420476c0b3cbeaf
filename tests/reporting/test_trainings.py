"""What a training did to its objective: numbers against the files, verdicts, and what people read."""

import numpy as np
import pandas as pd
import pytest
from example_policies import BASES, METHODS, make_policies
from example_run import VARIANTS, make_raw, write_results

from vrm import config as configuration
from vrm.records import RecordError
from vrm.reporting.registry import TABLES


@pytest.fixture(scope="module")
def out(config, results, tmp_path_factory):
    out = tmp_path_factory.mktemp("tables")
    TABLES["training_summary"](config, results, out)
    return out


@pytest.fixture(scope="module")
def rows(out):
    return pd.read_csv(out / "training_summary.csv").set_index(["base", "method", "metric"])


def held_out(results, base, method, metric, seed=1):
    frame = pd.read_csv(results / "policy" / base / method / f"seed{seed}" / "held_out.csv")
    return frame[frame["metric"] == metric]


def make_small(tmp_path, **policy):
    variants = {name: VARIANTS[name] for name in ("rm", "vrm")}
    policies = make_policies(**{"variants": variants, "scorers_from": None} | policy)
    seeds = policies["seeds"]
    config = configuration.parse(make_raw(variants, seeds=seeds, sets=("uf_c",), policy=policies))
    return config, write_results(config, tmp_path)


def test_sft_stands_first_and_only_where_a_base_has_it(rows):
    order = [tuple(key) for key in rows.index.droplevel("metric").unique()]
    assert order == [("qwen2_5", "sft"), *(("qwen2_5", name) for name in METHODS), *(("qwen3", n) for n in METHODS)]
    assert rows.xs("sft", level="method").index.tolist() == [("qwen2_5", "loss")]


@pytest.mark.parametrize(("method", "metric"), [("dpo", "loss"), ("dpo", "chosen_logratio"), ("ppo_vrm", "reward")])
def test_numbers_are_means_of_the_file(results, rows, method, metric):
    frame, row = held_out(results, "qwen3", method, metric), rows.loc[("qwen3", method, metric)]
    assert row["start"] == pytest.approx(frame["start"].mean(), rel=1e-4)
    assert row["end"] == pytest.approx(frame["end"].mean(), rel=1e-4)
    assert row["change"] == pytest.approx((frame["end"] - frame["start"]).mean(), rel=1e-4)
    assert row["low"] < row["change"] < row["high"]
    assert row["end_low"] < row["end"] < row["end_high"]
    assert (row["n_items"], row["n_seeds"], row["level"]) == (len(frame), 1, 0.95)
    assert row["resampled"] == row["end_resampled"] == "prompts (one seed, Student's t)"


def test_a_kl_has_no_interval_below_zero(tmp_path):
    config, results = make_small(tmp_path, bases={"qwen3": BASES["qwen3"]})
    path = results / "policy" / "qwen3" / "ppo" / "seed1" / "held_out.csv"
    frame = pd.read_csv(path)
    inside = frame["metric"] == "kl"
    frame.loc[inside, "end"] = np.where(np.arange(inside.sum()) % 2, 1.0, -0.9)
    frame.to_csv(path, index=False)
    TABLES["training_summary"](config, results, tmp_path)
    row = pd.read_csv(tmp_path / "training_summary.csv").set_index(["method", "metric"]).loc[("ppo", "kl")]
    assert row["end_low"] == 0 < row["end"] < row["end_high"]


def test_accuracy_has_a_start_only_without_a_reference(results, rows):
    simpo, dpo = rows.loc[("qwen2_5", "simpo", "accuracy")], rows.loc[("qwen2_5", "dpo", "accuracy")]
    margins = held_out(results, "qwen2_5", "simpo", "margin")
    assert simpo["start"] == pytest.approx(100 * (margins["start"] > 0).mean(), rel=1e-5)
    assert simpo["end"] == pytest.approx(100 * (margins["end"] > 0).mean(), rel=1e-5)
    assert np.isnan(dpo[["start", "change", "low", "high"]].to_numpy(dtype=float)).all()
    assert dpo["end"] == pytest.approx(
        100 * (held_out(results, "qwen2_5", "dpo", "margin")["end"] > 0).mean(), rel=1e-5
    )


def test_gold_is_read_at_the_first_and_the_last_step(results, rows):
    folder = results / "policy" / "qwen2_5" / "ppo" / "seed1"
    samples = pd.read_json(folder / "samples.jsonl", lines=True).join(pd.read_csv(folder / "samples.gold.csv"))
    means = samples.groupby("step")["gold"].mean()
    row = rows.loc[("qwen2_5", "ppo", "gold")]
    assert (row["start"], row["end"]) == pytest.approx((means[0], means[60]), rel=1e-5)
    assert row["high"] < 0  # the over-optimised reward model of the example
    assert pd.isna(row["expected"])


def test_verdicts_follow_the_interval_of_the_own_objective(rows):
    judged = rows.dropna(subset="expected")
    assert set(judged.index.get_level_values("metric")) == {"loss", "reward"}
    assert judged.xs("reward", level="metric")["expected"].unique().tolist() == ["rises"]
    assert judged.loc[("qwen2_5", "dpo", "loss"), "verdict"] == "yes"
    assert judged.loc[("qwen2_5", "ppo", "reward"), "verdict"] == "yes"
    assert judged.loc[("qwen2_5", "selective_dpo", "loss"), "verdict"] == "not distinguishable"


def test_a_loss_that_rises_is_a_no(tmp_path):
    config, results = make_small(tmp_path, bases={"qwen3": BASES["qwen3"]})
    path = results / "policy" / "qwen3" / "dpo" / "seed1" / "held_out.csv"
    frame = pd.read_csv(path)
    frame.rename(columns={"start": "end", "end": "start"}).to_csv(path, index=False)
    TABLES["training_summary"](config, results, tmp_path)
    rows = pd.read_csv(tmp_path / "training_summary.csv").set_index(["method", "metric"])
    assert rows.loc[("dpo", "loss"), "verdict"] == "no"


def test_two_tables_for_people(out):
    text = (out / "training_summary.md").read_text()
    assert text.count("Data: synthetic world.**") == 2
    assert "| Qwen2.5-shaped | VRM-PPO (anchored) (ours) | VRM (anchored) (ours) |" in text
    assert "| Qwen2.5-shaped | SFT | nats a token |" in text
    assert "Gold reward: vrm.world.gold:gold\\_reward, which no training sees" in text
    assert "leaves out the variation between seeds" in text
    assert "60 validation pairs" in text
    tex = (out / "training_summary.tex").read_text()
    assert tex.count("\\begin{table*}") == 2
    assert "p{0.45" not in tex
    assert "$\\rightarrow$" in tex
    assert not {character for character in tex if ord(character) > 127}


def test_several_seeds_without_gold(tmp_path):
    config, results = make_small(tmp_path, seeds=[1, 2], gold=None)
    TABLES["training_summary"](config, results, tmp_path)
    rows = pd.read_csv(tmp_path / "training_summary.csv").set_index(["base", "method", "metric"])
    assert "gold" not in rows.index.get_level_values("metric")
    assert set(rows["n_seeds"]) == {2}
    both = [held_out(results, "qwen3", "ppo", "kl", seed)["end"].mean() for seed in (1, 2)]
    assert rows.loc[("qwen3", "ppo", "kl"), "end"] == pytest.approx(np.mean(both), rel=1e-4)
    text = (tmp_path / "training_summary.md").read_text()
    assert "95 % interval over seeds and prompts (variance components, Student's t)" in text
    assert "Gold" not in text


@pytest.mark.parametrize("kept", ["dpo", "ppo"])
def test_one_kind_of_training_is_one_table(tmp_path, kept):
    config, results = make_small(tmp_path, bases={"qwen3": BASES["qwen3"]}, methods={kept: METHODS[kept]})
    made = TABLES["training_summary"](config, results, tmp_path)
    assert [path.name for path in made] == [f"training_summary.{kind}" for kind in ("csv", "md", "tex", "html")]
    assert made[1].read_text().count("**") == 2


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda f: f.drop(columns="end"), r"seed2/held_out.csv: lacks the column end"),
        (lambda f: f.assign(end=np.inf), r"seed2/held_out.csv: end of row 1 is not a finite number"),
        (lambda f: f[f["metric"] != "margin"], r"seed2/held_out.csv: no row of metric margin; train it again"),
        (lambda f: pd.concat([f, f]), r"seed2/held_out.csv: metric loss has an item twice"),
        (lambda f: f.assign(item_id=f["item_id"] + "x"), r"seed2/held_out.csv: seeds measured different items of loss"),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path, break_it, says):
    config, results = make_small(tmp_path, seeds=[1, 2], bases={"qwen3": BASES["qwen3"]})
    path = results / "policy" / "qwen3" / "dpo" / "seed2" / "held_out.csv"
    break_it(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(RecordError, match=says):
        TABLES["training_summary"](config, results, tmp_path)


def test_absent_and_empty_files_are_named(tmp_path):
    config, results = make_small(tmp_path, bases={"qwen2_5": BASES["qwen2_5"]})
    path = results / "policy" / "qwen2_5" / "sft" / "seed1" / "held_out.csv"
    path.write_text("")
    with pytest.raises(RecordError, match=r"sft/seed1/held_out.csv: not a table"):
        TABLES["training_summary"](config, results, tmp_path)
    path.unlink()
    with pytest.raises(RecordError, match=r"sft/seed1/held_out.csv: missing"):
        TABLES["training_summary"](config, results, tmp_path)


def test_nothing_trained_is_a_clear_error(tmp_path):
    raw = make_raw({"rm": VARIANTS["rm"]}, seeds=[1], sets=("uf_c",), policy={})
    with pytest.raises(RecordError, match="no policy is trained; leave `training_summary` out"):
        TABLES["training_summary"](configuration.parse(raw), tmp_path, tmp_path)
