import numpy as np
import pandas as pd
import pytest
from example_run import VARIANTS, make_raw, write_results

from vrm import config as configuration
from vrm.records import RecordError
from vrm.reporting.comparisons import comparisons_table, reward_questions
from vrm.reporting.table2 import table2
from vrm.statistics.intervals import holm

COLUMNS = ["Chat", "Chat Hard", "Safety", "Reasoning", "UF-C", "Noise-free"]
TWO = {name: VARIANTS[name] for name in ("rm", "vrm")}


@pytest.fixture(scope="module")
def tables(config, results, tmp_path_factory):
    out = tmp_path_factory.mktemp("comparisons")
    comparisons_table(config, results, out)
    table2(config, results, out)
    return out


@pytest.fixture(scope="module")
def rows(tables):
    return pd.read_csv(tables / "comparisons.csv").set_index(["first", "second", "column"])


def run(tmp_path, variants=TWO, skip_subsets=(), **raw):
    config = configuration.parse(make_raw(variants, policy={}, **raw))
    write_results(config, tmp_path, skip_subsets=skip_subsets)
    return config


def test_every_question_is_asked_in_every_column(config, rows):
    asked = [("vrm", "rm"), ("vrm_anchored", "rm"), *((f"vrm_{loss}", "vrm") for loss in ("mse", "mae", "rank"))]
    assert reward_questions(config) == asked
    assert list(rows.index) == [(*names, column) for names in asked for column in COLUMNS]
    assert (rows["tests"] == 5 * 6).all()


def test_differences_are_those_of_table_2(tables, rows):
    cells = pd.read_csv(tables / "table2.csv").set_index(["variant", "column"])["estimate"]
    for (first, second, column), row in rows.iterrows():
        assert row["difference"] == pytest.approx(cells[first, column] - cells[second, column], abs=1e-3)
        assert row["low"] < row["difference"] < row["high"]


def test_p_values_are_adjusted_for_all_of_them(rows):
    np.testing.assert_allclose(rows["p_holm"], holm(rows["p"]), rtol=1e-4)
    assert (rows["p_holm"] >= rows["p"]).all()
    outside = (rows["low"] > 0) | (rows["high"] < 0)
    assert (outside | (rows["p"] >= 0.05)).all()  # p is the more careful of the two


def test_half_width_is_that_of_the_prompts_of_the_column(tables, rows):
    row = rows.loc[("vrm", "rm", "UF-C")]
    rate = pd.read_csv(tables / "table2.csv").set_index(["variant", "column"]).loc[("rm", "UF-C"), "estimate"] / 100
    assert (row["n_pairs"], row["n_prompts"]) == (120, 60)
    assert row["half_width"] == pytest.approx(196 * np.sqrt(rate * (1 - rate) / 60), rel=0.05)
    # weights that are unequal say less than as many pairs that count the same
    reasoning = rows.loc[("vrm", "rm", "Reasoning")]
    assert reasoning["half_width"] > 196 * np.sqrt(0.25 / reasoning["n_prompts"]) * 0.9


def test_notes_say_level_resampling_number_and_adjustment(tables):
    text = (tables / "comparisons.md").read_text()
    for words in (
        "Data: synthetic world",
        "95 % interval over seeds and prompts",
        "3 seeds (1, 2, 3)",
        "30 tests",
        "Holm's step-down method",
        "Below 0.05 remain: ",
        "Half-width",
    ):
        assert words in text, words
    assert (tables / "comparisons.tex").read_text().count("\\midrule") == 1 + 4


def test_one_seed_flips_signs_of_prompts_and_says_so(tmp_path):
    config = run(tmp_path, seeds=[1], sets=("uf_c",))
    first = comparisons_table(config, tmp_path, tmp_path / "a")
    second = comparisons_table(config, tmp_path, tmp_path / "b")
    assert [a.read_bytes() for a in first] == [b.read_bytes() for b in second]
    row = pd.read_csv(first[0]).iloc[0]
    assert row["test"] == "9,999 sign flips over prompts"
    assert row["resampled"] == "prompts (one seed, Student's t)"
    assert "the variation between seeds is left out" in first[1].read_text()


def test_a_real_difference_passes_and_is_named(tmp_path):
    config = run(tmp_path, sets=("uf_c", "noise_free"))
    for seed in (1, 2, 3):
        path = tmp_path / "reward" / "vrm" / f"seed{seed}" / "scores.csv"
        scores = pd.read_csv(path)
        better = (scores["evaluation_set"] == "uf_c") & (scores.index % 7 > 1)
        scores.loc[better, "reward_chosen"] = scores.loc[better, "reward_rejected"] + 1
        scores.to_csv(path, index=False)
    comparisons_table(config, tmp_path, tmp_path)
    rows = pd.read_csv(tmp_path / "comparisons.csv").set_index("column")
    assert rows.loc["UF-C", "p_holm"] < 0.05 < rows.loc["Noise-free", "p_holm"]
    assert "Below 0.05 remain: VRM − RM on UF-C." in (tmp_path / "comparisons.md").read_text()


def test_an_absent_section_has_no_row(tmp_path):
    chat = ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med")
    comparisons_table(run(tmp_path, sets=("reward_bench",), skip_subsets=chat), tmp_path, tmp_path)
    assert pd.read_csv(tmp_path / "comparisons.csv")["column"].tolist() == ["Chat Hard", "Safety", "Reasoning"]


def test_models_have_to_score_the_same_pairs(tmp_path):
    config = run(tmp_path, sets=("uf_c",))
    for seed in (1, 2, 3):
        path = tmp_path / "reward" / "rm" / f"seed{seed}" / "scores.csv"
        pd.read_csv(path).iloc[4:].to_csv(path, index=False)
    with pytest.raises(RecordError, match="vrm and rm scored different pairs"):
        comparisons_table(config, tmp_path, tmp_path)


def test_nothing_to_compare_is_said(tmp_path):
    with pytest.raises(RecordError, match="leave `comparisons` out"):
        comparisons_table(run(tmp_path, {"rm": VARIANTS["rm"]}, sets=("uf_c",)), tmp_path, tmp_path)
