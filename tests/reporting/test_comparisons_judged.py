"""The table comparisons_judged: what is asked, and its numbers against Table 1 and Figure 6."""

import numpy as np
import pandas as pd
import pytest
from example_judged import make_judged, rewrite, write_judged
from example_policies import METHODS

from vrm.records import RecordError
from vrm.reporting.comparisons import comparisons_judged, policy_questions, ppo_pair
from vrm.reporting.figure6 import figure6
from vrm.reporting.table1 import table1
from vrm.statistics.intervals import holm

KEYS = ["base", "first", "second", "benchmark", "metric"]
ASKED = [("ppo_vrm", "ppo"), ("ppo_vrm", "ppo_vrm_lambda_0"), ("ppo_vrm_anchored", "ppo"), ("ppo_vrm", "dpo")]
COLUMNS = [
    ("alpaca_eval", "win_rate"),
    ("alpaca_eval", "lc_without_difficulty"),
    ("arena_hard", "win_rate"),
    ("arena_hard", "sc_win_rate"),
    ("mt_bench", "score"),
]
FITS = ["lc_without_difficulty", "sc_win_rate"]


@pytest.fixture(scope="module")
def out(judged_config, judged_results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    comparisons_judged(judged_config, judged_results, folder)
    table1(judged_config, judged_results, folder)
    return folder


@pytest.fixture(scope="module")
def rows(out):
    return pd.read_csv(out / "comparisons_judged.csv").set_index(KEYS)


def make(config, folder):
    """Rows and Markdown of a run whose files are there."""
    comparisons_judged(config, folder, folder)
    text = (folder / "comparisons_judged.md").read_text().replace("\\", "")
    return pd.read_csv(folder / "comparisons_judged.csv").set_index(KEYS), text


def without(*names):
    return {name: method for name, method in METHODS.items() if name not in names}


def test_every_question_is_asked_of_every_base_in_every_column(judged_config, rows):
    assert list(policy_questions(judged_config).pairs) == ASKED
    assert policy_questions(judged_config).absent == []
    expected = [(base, *pair, *column) for base in ("qwen2_5", "qwen3") for pair in ASKED for column in COLUMNS]
    assert rows.index.to_list() == expected


def test_equal_inputs_give_equal_bytes(judged_config, judged_results, out, tmp_path):
    paths = comparisons_judged(judged_config, judged_results, tmp_path)
    assert [path.name for path in paths] == [f"comparisons_judged.{kind}" for kind in ("csv", "md", "tex", "html")]
    assert [path.read_bytes() for path in paths] == [(out / path.name).read_bytes() for path in paths]


def test_differences_are_those_of_table_1(out, rows):
    cells = pd.read_csv(out / "table1.csv").set_index(["base", "method", "benchmark", "metric"])["estimate"]
    for (base, first, second, *column), row in rows.iterrows():
        assert row["difference"] == pytest.approx(
            cells[(base, first, *column)] - cells[(base, second, *column)], abs=1e-3
        )


def test_figure_6_has_the_same_differences_digit_for_digit(judged_config, judged_results, rows, tmp_path):
    columns = ["difference", "low", "high"]
    drawn = pd.read_csv(figure6(judged_config, judged_results, tmp_path)[2]).dropna(subset="difference")
    assert len(drawn) == 2 * 3
    for row in drawn.itertuples():
        own = rows.loc[(row.base, "ppo_vrm", row.method, row.benchmark, row.metric), columns]
        assert own.to_list() == [row.difference, row.difference_low, row.difference_high]


def test_p_values_are_adjusted_for_all_tests_and_too_few_draws_are_none(rows):
    metrics = rows.index.get_level_values("metric")
    few, lc = metrics == "sc_win_rate", metrics == "lc_without_difficulty"
    assert rows["p"].isna().tolist() == rows["p_holm"].isna().tolist() == few.tolist()
    assert (rows["tests"] == 2 * 4 * 4).all()
    np.testing.assert_allclose(rows["p_holm"][~few], holm(rows["p"][~few]), rtol=1e-4)
    assert (rows["test"][~few & ~lc] == "9,999 sign flips over prompts").all()
    assert (rows["test"][lc] == "1,999 joint draws of the prompts").all()
    assert (rows["resampled"][~few & ~lc] == "prompts (one seed, Student's t)").all()
    assert (rows["resampled"][few | lc] == "prompts (one seed, joint bootstrap)").all()
    assert (rows["low"] < rows["difference"]).all()
    assert (rows["difference"] < rows["high"]).all()


def test_pairing_makes_the_differences_of_fits_surer(judged_config, out, rows):
    """Drawn apart, two policies' half-widths would add in square; their draws here share most of their variance."""
    cells = pd.read_csv(out / "table1.csv").set_index(["base", "method", "metric"])
    halves = (cells["high"] - cells["low"]) / 2
    fits = rows[rows.index.get_level_values("metric").isin(FITS)]
    shares = [
        (row["high"] - row["low"]) / 2 / np.hypot(halves[base, first, metric], halves[base, second, metric])
        for (base, first, second, _, metric), row in fits.iterrows()
    ]
    assert 0.4 < np.mean(shares) < 0.8
    assert max(shares) < 0.95


def test_a_wide_set_tells_little_and_says_how_little(out, rows):
    """The second policy's own half-width, of one seed, which is that of Table 1 where there is one."""
    cells = pd.read_csv(out / "table1.csv").set_index(["base", "method", "benchmark", "metric"])
    row = rows.loc[("qwen3", "ppo_vrm", "dpo", "alpaca_eval", "win_rate")]
    cell = cells.loc[("qwen3", "dpo", "alpaca_eval", "win_rate")]
    assert row["half_width"] == pytest.approx((cell["high"] - cell["low"]) / 2, rel=0.01)
    assert rows.loc[("qwen3", "ppo_vrm", "dpo", "arena_hard", "sc_win_rate"), "half_width"] == pytest.approx(5.25)
    assert rows["half_width"].notna().all()


def test_prompts_are_those_judged_of_both(judged_results, rows):
    items = pd.read_csv(judged_results / "judged" / "mt_bench.items.csv")
    first, second = (set(items[(items.base == "qwen3") & (items.method == m)].item_id) for m in ("ppo_vrm", "dpo"))
    row = rows.loc[("qwen3", "ppo_vrm", "dpo", "mt_bench", "score")]
    assert (row["n_prompts"], row["n_prompts_of_one"]) == (len(first & second), len(first ^ second))


def test_notes_say_pairing_level_number_and_what_fits_have(out):
    text = (out / "comparisons_judged.md").read_text().replace("\\", "")
    for words in (
        "Data: synthetic world. Difference paired by prompt, a prompt's games or turns being one; one seed (1)",
        "95 % interval over prompts (Student's t). p: 9,999 sign flips over prompts",
        "a policy trained again can differ by more",
        "adjusted for all 32 together by Holm's step-down method. Below 0.05 remain: ",
        "a family of their own",
        "AlpacaEval-shaped LC, no difficulty term*, Arena-Hard-shaped SC: fits, in which no prompt has a value",
        "joint bootstrap: a draw takes prompts with replacement, the same for all policies, and fits all again. Ends",
        "- Arena-Hard-shaped SC: no p-value, for on fewer than 1,000 draws",
        "Half-width: ",
    ):
        assert words in text, words
    assert "Not compared" not in text
    assert (out / "comparisons_judged.tex").read_text().count("\\midrule") == 1 + 2 * 4 - 1


def test_several_seeds_are_crossed_and_p_is_more_careful_than_the_interval(tmp_path):
    config = make_judged(seeds=(1, 2, 3))
    rows, text = make(config, write_judged(config, tmp_path))
    tests = rows.dropna(subset="p")
    assert ((tests["low"] > 0) | (tests["high"] < 0) | (tests["p"] >= 0.05)).all()
    fits = tests.index.get_level_values("metric").isin(FITS)
    assert set(tests["resampled"][~fits]) == {"seeds x prompts (Student's t)"}
    assert set(tests["resampled"][fits]) == {"seeds x prompts (joint bootstrap, Student's t)"}
    assert len(tests) == len(rows)  # no seed's draws are needed one by one
    assert "A draw's value is the mean over seeds, which are not drawn themselves" in text
    assert "over 3 seeds (1, 2, 3), paired by prompt" in text


def test_a_real_difference_passes_and_is_named(judged_config, tmp_path):
    folder = write_judged(judged_config, tmp_path) / "judged"

    def better(frame):
        raised = (frame["method"] == "ppo_vrm") & (frame["base"] == "qwen3")
        of_ppo = frame[(frame["method"] == "ppo") & (frame["base"] == "qwen3")].set_index(["item_id", "part"])["value"]
        keys = pd.MultiIndex.from_frame(frame[["item_id", "part"]])
        noise = np.random.default_rng(0).normal(1.0, 1.0, len(frame))
        paired = of_ppo.reindex(keys).fillna(5.0).to_numpy() + noise
        return frame.assign(value=frame["value"].mask(raised, paired))

    rewrite(folder / "mt_bench.items.csv", better)
    rewrite(folder / "mt_bench.csv", lambda f: f[f["metric"] == "length"])
    rows, text = make(judged_config, tmp_path)
    row = rows.loc[("qwen3", "ppo_vrm", "ppo", "mt_bench", "score")]
    assert row["low"] < 1.0 < row["high"]
    assert row["p_holm"] < 0.05
    assert "Qwen3-shaped: VRM-PPO − PPO on MT-Bench-shaped score" in text.split("Below 0.05 remain: ")[1]


@pytest.mark.parametrize(
    ("options", "pairs", "named"),
    [
        ({"methods": without("ppo_vrm_anchored")}, [ASKED[0], ASKED[1], ASKED[3]], "PPO against a score-anchored"),
        ({"methods": without("dpo")}, ASKED[:3], "kind: DPO."),
        ({"methods": without("ppo")}, [ASKED[1], ASKED[3]], "PPO against the plain reward model of report.figure4"),
        ({"figure6": ["ppo_vrm"]}, [ASKED[0], *ASKED[2:]], "VRM-PPO without supervision"),
        ({"figure6": ["ppo_vrm", "gone"]}, [ASKED[0], *ASKED[2:]], "gone of report.figure6, which is not judged"),
        ({"figure6": ["ppo_vrm", "sft"]}, [ASKED[0], ("ppo_vrm", "sft"), *ASKED[2:]], "kind: sft of Qwen3-shaped."),
        ({"figure4": ["rm"]}, ASKED[1:3], "PPO against the variational reward model of report.figure4"),
    ],
)
def test_a_missing_policy_is_named(options, pairs, named, tmp_path):
    config = make_judged(run=("mt_bench",), **options)
    rows, text = make(config, write_judged(config, tmp_path))
    assert list(dict.fromkeys((first, second) for _, first, second, *_ in rows.index)) == pairs
    assert "Not compared, for this run has no policy of the kind: " in text
    assert named in text


def test_our_own_variant_of_dpo_is_not_dpo():
    methods = {"mine": METHODS["dpo_strong"]} | without("dpo_strong")
    assert policy_questions(make_judged(methods=methods)).pairs[-1] == ("ppo_vrm", "dpo")


def test_the_pair_is_found_by_the_reward_models_whatever_the_methods_are_called():
    renamed = {f"x_{name}": method for name, method in METHODS.items()}
    config = make_judged(methods=renamed, figure6=[])
    assert ppo_pair(config) == ("x_ppo_vrm", "x_ppo")


def test_a_policy_without_a_judgment_keeps_its_row_and_is_named(judged_config, tmp_path):
    folder = write_judged(judged_config, tmp_path) / "judged"

    def forget(frame):
        gone = (frame["method"] == "ppo") & (frame["base"] == "qwen3")
        return frame[~(gone & (frame["metric"] != "length"))] if "metric" in frame else frame[~gone]

    for name in ("arena_hard.csv", "arena_hard.items.csv"):
        rewrite(folder / name, forget)
    rows, text = make(judged_config, tmp_path)
    row = rows.loc[("qwen3", "ppo_vrm", "ppo", "arena_hard", "win_rate")]
    assert row[["difference", "low", "high", "p", "p_holm", "half_width"]].isna().all()
    assert row["n_prompts"] == 0
    assert (rows["tests"] == 32 - 2).all()
    named = "VRM-PPO − PPO on Arena-Hard-shaped WR (PPO: a seed has no usable judgment)"
    assert named in text.split("No difference, for want of a value: ")[1]


def test_table_1_points_here_where_this_table_is_made(judged_config, judged_results, tmp_path):
    sentence = "is asked in the table comparisons_judged, on the same prompts"
    config = make_judged(tables=["table1", "comparisons_judged"])
    for made, settings in ((True, config), (False, judged_config)):
        table1(settings, judged_results, tmp_path)
        assert (sentence in (tmp_path / "table1.md").read_text().replace("\\", "")) is made


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"methods": {"simpo": METHODS["simpo"]}, "figure6": []},
            "no two policies to compare; leave `comparisons_judged` out",
        ),
        ({"run": ()}, "comparisons_judged: no benchmark is run"),
    ],
)
def test_nothing_to_compare_is_said(options, says, tmp_path):
    config = make_judged(**options)
    write_judged(config, tmp_path)
    with pytest.raises(RecordError, match=says):
        comparisons_judged(config, tmp_path, tmp_path)


def test_official_lc_is_compared_by_its_terms(judged_config, tmp_path):
    """One seed, no draws: interval and p-value are those of the mean over prompts, and count for Holm."""
    root = write_judged(judged_config, tmp_path, official_lc=True)
    rows, text = make(judged_config, root)
    lc = rows.xs("lc_win_rate", level="metric")
    assert lc[["difference", "low", "high", "p", "p_holm"]].notna().all().all()
    assert lc["test"].str.contains("sign flips").all()
    terms = pd.read_csv(root / "judged" / "alpaca_eval.terms.csv")
    row = lc.reset_index().iloc[0]
    names = [f"{row['base']}.{row[side]}.seed1/lc_win_rate" for side in ("first", "second")]
    change = terms[names[0]] - terms[names[1]]
    assert row["difference"] == pytest.approx(change.mean(), abs=1e-3)
    assert (row["high"] - row["low"]) / 2 == pytest.approx(1.96 * change.sem(), rel=0.1)
    assert "infinitesimal jackknife" in text
    assert rows["tests"].iloc[0] == rows["p"].notna().sum()


def test_official_lc_that_was_not_taken_apart_has_no_p_value(judged_config, tmp_path):
    root = write_judged(judged_config, tmp_path, official_lc=True)
    rewrite(root / "judged" / "alpaca_eval.terms.csv", lambda f: f[["item_id"]])
    lc = make(judged_config, root)[0].xs("lc_win_rate", level="metric")
    assert lc["difference"].notna().all()
    assert lc[["low", "high", "p"]].isna().all().all()
