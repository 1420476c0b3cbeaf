"""Table and figure of preference probabilities, on a run whose models are known to be sure and wrong, or unsure."""

import numpy as np
import pandas as pd
import pytest
from example_run import VARIANTS, make_raw, write_results

from vrm import config as configuration
from vrm.evaluation.calibration import brier, expected_calibration_error, fit_temperature, negative_log_likelihood
from vrm.records import RecordError
from vrm.reporting.calibration import _wilson, calibration_columns, calibration_figure, calibration_table
from vrm.reporting.comparisons import comparisons_table, reward_questions
from vrm.reporting.latents import residual_figure, residual_table
from vrm.reporting.scores import RATED, pair_scores, read_scores, reward_model, rewards
from vrm.reporting.table2 import table2

RESIDUAL = {"label": "VRM (residual)", "ours": True, "score_anchor_weight": 1.0, "residual": True}
GRID = {"rm": VARIANTS["rm"], "vrm": VARIANTS["vrm"], "vrm_residual": RESIDUAL}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The configuration and the directory of a run with a residual."""
    raw = make_raw(GRID, policy={})
    raw["report"]["calibration"] = ["rm", "vrm_residual"]
    config = configuration.parse(raw)
    return config, write_results(config, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def cells(run, tmp_path_factory):
    config, results = run
    out = tmp_path_factory.mktemp("calibration")
    calibration_table(config, results, out)
    return pd.read_csv(out / "calibration.csv").set_index(["variant", "method", "column", "metric"])


def files_of(results, variant, name="scores.csv"):
    return [pd.read_csv(results / "reward" / variant / f"seed{seed}" / name) for seed in (1, 2, 3)]


def test_numbers_are_means_over_seeds_of_the_metrics_of_the_files(run, cells):
    _, results = run
    parts = [frame[frame.evaluation_set == "uf_c"].probability for frame in files_of(results, "rm")]
    for name, metric in (
        ("nll", negative_log_likelihood),
        ("brier", brier),
        ("ece", expected_calibration_error),
        ("accuracy", lambda q: (q > 0.5).mean()),
    ):
        row = cells.loc["rm", "as trained", "UF-C", name]
        assert row["estimate"] == pytest.approx(np.mean([metric(q) for q in parts]), rel=1e-4), name
        assert row["low"] < row["estimate"] < row["high"]
        assert (row["n_pairs"], row["n_prompts"], row["n_seeds"]) == (120, 60, 3)


def test_it_is_read_in_distribution_and_where_cues_mislead(run, cells):
    config, _ = run
    assert [column.title for column in calibration_columns(config)] == ["UF-C", "Chat Hard"]
    assert set(cells.index.get_level_values("column")) == {"Chat Hard", "UF-C"}


def test_every_model_and_rated_reward_has_a_row_and_those_asked_for_post_hoc_ones(cells):
    rows = cells.reset_index().groupby("method")["variant"].unique()
    assert set(rows["as trained"]) == {"rm", "vrm", "vrm_residual", "vrm_residual:rated"}
    for method in ("temperature", "mean of seeds", "worst of seeds"):
        assert set(rows[method]) == {"rm", "vrm_residual", "vrm_residual:rated"}


def test_a_temperature_is_that_of_the_validation_pairs_and_orders_nothing_anew(run, cells):
    _, results = run
    fitted = [fit_temperature(v.reward_chosen - v.reward_rejected) for v in files_of(results, "rm", "validation.csv")]
    row = cells.loc["rm", "temperature", "UF-C"]
    assert row["temperature"].iloc[0] == pytest.approx(np.mean(fitted), rel=1e-4)
    for name in ("accuracy", "aurc", "accuracy_at_50"):
        before = cells.loc["rm", "as trained", "UF-C", name]["estimate"]
        assert row.loc[name, "estimate"] == pytest.approx(before)


def test_an_ensemble_is_one_model_and_varies_over_prompts_alone(cells):
    rows = cells.xs("mean of seeds", level="method")
    assert (rows["n_seeds"] == 1).all()
    assert rows["resampled"].str.contains("one seed").all()


def test_temperatures_that_no_validation_pair_can_tell_are_left_out_and_named(run, tmp_path):
    config, _ = run
    results = write_results(config, tmp_path / "run")
    for path in (results / "reward" / "rm").glob("*/validation.csv"):
        frame = pd.read_csv(path)
        frame.assign(reward_chosen=frame.reward_rejected + 1).to_csv(path, index=False)
    calibration_table(config, results, tmp_path)
    methods = pd.read_csv(tmp_path / "calibration.csv").groupby("variant")["method"].unique()
    assert set(methods["rm"]) == {"as trained"}
    assert "No temperature could be fitted" in (tmp_path / "calibration.md").read_text()


def test_scores_without_probabilities_are_refused(run, tmp_path):
    config, _ = run
    results = write_results(config, tmp_path / "run")
    for path in (results / "reward" / "rm").glob("*/scores.csv"):
        pd.read_csv(path).drop(columns="probability").to_csv(path, index=False)
    with pytest.raises(RecordError, match="no column probability"):
        calibration_table(config, results, tmp_path)


def test_the_figure_has_its_points_and_its_three_files(run, tmp_path):
    config, results = run
    paths = calibration_figure(config, results, tmp_path)
    assert [path.suffix for path in paths] == [".pdf", ".png", ".csv"]
    points = pd.read_csv(paths[2])
    assert set(points["variant"]) == {"rm", "vrm_residual", "vrm_residual:rated"}
    coverage = points[points["panel"] == "coverage"]
    accuracy = np.mean([(f[f.evaluation_set == "uf_c"].probability > 0.5).mean() for f in files_of(results, "rm")])
    (last,) = coverage[(coverage.variant == "rm") & (coverage.column == "UF-C") & (coverage.x == 100)]["y"]
    assert last == pytest.approx(100 * accuracy, rel=1e-4)
    bins = points[(points.panel == "reliability") & (points.variant == "rm") & (points.column == "UF-C")]
    assert bins["n_pairs"].sum() == pytest.approx(120)
    assert (bins["x"] >= 50).all()


def test_wilsons_interval_is_the_published_one():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611."""
    assert _wilson(81 / 263, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert _wilson(0.0, 20, 0.95) == pytest.approx((0.0, 0.1611), abs=1e-4)


# ---- rated-aspect rewards and length as rows of the tables


def test_table_2_has_a_row_for_the_rated_reward_and_for_length_alone(run, tmp_path):
    config, results = run
    assert [model.name for model in rewards(config)] == ["rm", "vrm", "vrm_residual", "vrm_residual:rated"]
    table2(config, results, tmp_path)
    rows = pd.read_csv(tmp_path / "table2.csv").set_index(["variant", "column"])
    frames = [f[f.evaluation_set == "uf_c"] for f in files_of(results, "vrm_residual")]
    rated = np.mean([(f.rated_chosen > f.rated_rejected).mean() for f in frames])
    assert rows.loc[("vrm_residual:rated", "UF-C"), "estimate"] == pytest.approx(100 * rated, rel=1e-4)
    longer = (frames[0].length_chosen > frames[0].length_rejected).mean()
    shorter = (frames[0].length_chosen < frames[0].length_rejected).mean()
    assert rows.loc[("length alone", "UF-C"), "estimate"] in (
        pytest.approx(100 * longer, rel=1e-4),
        pytest.approx(100 * shorter, rel=1e-4),
    )
    assert rows.loc[("length alone", "UF-C"), "n_seeds"] == 0


def test_rated_rewards_are_compared_with_rm_and_multitask_and_their_own_whole(run, tmp_path):
    raw = make_raw(GRID | {"multitask": {"label": "RM (multi-task)", "kind": "multitask"}}, policy={})
    config = configuration.parse(raw)
    asked = reward_questions(config)
    rated = "vrm_residual" + RATED
    for pair in [(rated, "rm"), (rated, "multitask"), (rated, "vrm_residual"), ("vrm_residual", "multitask")]:
        assert pair in asked
    config, results = run
    comparisons_table(config, results, tmp_path)
    row = pd.read_csv(tmp_path / "comparisons.csv").set_index(["first", "second", "column"]).loc[rated, "rm", "UF-C"]
    sides = [pair_scores(read_scores(results, reward_model(config, name)), "uf_c", name) for name in (rated, "rm")]
    assert row["difference"] == pytest.approx(100 * (sides[0].wins - sides[1].wins).mean(), rel=1e-4)


def test_the_parts_of_a_reward_are_measured_alone(run, tmp_path):
    config, results = run
    residual_table(config, results, tmp_path)
    cells = pd.read_csv(tmp_path / "residual.csv").set_index(["part", "kind", "column"])["estimate"].sort_index()
    frames = [f[f.evaluation_set == "uf_c"] for f in files_of(results, "vrm_residual")]
    for part in ("reward", "rated", "residual"):
        share = np.mean([(f[f"{part}_chosen"] > f[f"{part}_rejected"]).mean() for f in frames])
        assert cells[part, "column", "UF-C"] == pytest.approx(100 * share, rel=1e-4)
    b = [f.residual_chosen - f.residual_rejected for f in frames]
    g = [f.chosen_honesty - f.rejected_honesty for f in frames]
    expected = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(b, g, strict=True)])
    assert cells["residual", "correlation", "honesty"] == pytest.approx(expected, rel=1e-3)
    assert {"rated", "length"} <= set(cells["residual", "correlation"].index)
    assert "spurious/padding" in cells["residual", "probe"].index


def test_the_figure_of_the_parts_draws_the_numbers_of_the_table(run, tmp_path):
    config, results = run
    residual_table(config, results, tmp_path)
    paths = residual_figure(config, results, tmp_path / "figures")
    assert [path.suffix for path in paths] == [".pdf", ".png", ".csv"]
    drawn = pd.read_csv(paths[2]).rename(columns={"name": "column"})
    table = pd.read_csv(tmp_path / "residual.csv")
    keys = ["part", "kind", "column"]
    both = drawn.merge(table[table.kind != "correlation"], on=keys, suffixes=("", "_table"))
    assert len(both) == len(drawn) == (table.kind != "correlation").sum()
    np.testing.assert_allclose(both["estimate"], both["estimate_table"], rtol=1e-4)


def test_a_run_without_a_residual_says_what_to_leave_out(config, results, tmp_path):
    with pytest.raises(RecordError, match="leave `residual` out of the report"):
        residual_table(config, results, tmp_path)
