"""The figure `power` and the table `ablation`: every model of the study stands where it was trained, with its parts."""

import shutil
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from drawing import boxes_of, drawn
from example_run import make_raw, write_results

from vrm.config import ConfigError, parse
from vrm.records import RecordError
from vrm.reporting.scores import reward_model
from vrm.reporting.study import CORRELATION, RATED, ablation_table, measure, placed, power_figure

STUDY = {
    "variants": ["rm", "vrm"],
    "pairs": [500, 2000],
    "worlds": {
        "fair": {"label": "no bias", "spurious_bias": 0.0},
        "shared": {"label": "ratings too", "rating_bias": 0.5},
        "larger": {"label": "more prompts", "prompts": 9000, "pairs": 7000},
    },
    "worlds_pairs": 2000,
    "ablation": ["rm", "vrm", "vrm_anchored"],
    "ablation_pairs": 2000,
}


def raw(**study):
    variants = {
        "rm": {"label": "RM", "kind": "scalar"},
        "vrm": {"label": "VRM"},
        "vrm_anchored": {"label": "VRM (anchored)", "score_anchor_weight": 1.0, "ours": True},
    }
    found = make_raw(variants, sets=("reward_bench", "uf_c", "noise_free"), policy={})
    found["report"] |= {"figures": ["power"], "tables": ["ablation"]}
    return found | {"study": STUDY | study}


@pytest.fixture(scope="module")
def config():
    return parse(raw())


@pytest.fixture(scope="module")
def results(config, tmp_path_factory):
    """Scores as the study's jobs leave them; the anchored model has a residual that ruins what its rated part knows."""
    root = write_results(config, tmp_path_factory.mktemp("results"))
    for cell in {*config.study.power_cells(), *config.study.ablation_cells()}:
        scores = pd.read_csv(reward_model(config, cell.variant).file(root, cell.seed, "scores.csv"))
        if cell.variant == "vrm_anchored":
            for side in ("chosen", "rejected"):
                scores[f"rated_{side}"] = scores[f"reward_{side}"]
                scores[f"residual_{side}"] = -2 * scores[f"reward_{side}"]
                scores[f"reward_{side}"] *= -1
        path = root / cell.file
        path.parent.mkdir(parents=True, exist_ok=True)
        scores.to_csv(path, index=False)
    return root


def test_every_point_stands_on_its_axes(config, results):
    data = placed(config, measure(config, results, config.study.power_cells()))
    found = data[(data.metric == "uf_c") & (data.variant == "rm")].set_index(["world", "pairs"])
    own = config.world.spurious_bias
    columns = [f"at_{axis}" for axis in ("pairs", "spurious_bias", "rating_bias")]
    axes = {point: [None if pd.isna(x) else x for x in row] for point, row in found[columns].T.items()}
    assert axes == {
        ("base", 500): [500, None, None],
        ("base", 2000): [2000, own, 0],
        ("fair", 2000): [None, 0, None],
        ("shared", 2000): [None, None, 0.5],
        ("larger", 7000): [7000, None, None],
    }


def test_biases_are_compared_at_the_same_number_of_pairs():
    with pytest.raises(ConfigError, match=r"study\.worlds\.fair.*prompts alone"):
        parse(raw(worlds={"fair": {"label": "no bias", "spurious_bias": 0.0, "pairs": 100}}))


def test_the_rated_part_is_measured_by_itself(config, results):
    data = measure(config, results, config.study.ablation_cells())
    accuracy = data[data.metric == "uf_c"].set_index(["variant", "part"]).estimate
    assert accuracy["vrm_anchored", RATED] + accuracy["vrm_anchored", "full"] == pytest.approx(1)
    assert RATED not in data[data.variant == "vrm"].part.unique()


def test_differences_are_those_of_the_means(config, results):
    data = measure(config, results, config.study.ablation_cells())
    for _, part in data[data.difference.notna()].groupby(["variant", "part", "metric"]):
        reference = data[(data.variant == "rm") & (data.metric == part.metric.iloc[0])].estimate.iloc[0]
        assert part.difference.iloc[0] == pytest.approx(part.estimate.iloc[0] - reference)
        assert part.difference_low.iloc[0] < part.difference.iloc[0] < part.difference_high.iloc[0]
    assert data[data.variant == "rm"].difference.isna().all()


def test_models_that_scored_other_pairs_are_not_compared(config, results, tmp_path):
    shutil.copytree(results, tmp_path / "results")
    for seed in config.study.seeds:
        path = tmp_path / "results" / f"study/base/vrm/pairs500/seed{seed}/scores.csv"
        scores = pd.read_csv(path)
        scores["prompt_id"] = scores["prompt_id"].astype(str) + "x"  # as many pairs, of other prompts
        scores.to_csv(path, index=False)
    with pytest.raises(RecordError, match=r"vrm \(base, 500 pairs\): scored other pairs"):
        measure(config, tmp_path / "results", config.study.power_cells())


def test_weights_are_correlated_once_a_seed(config, results):
    data = measure(config, results, config.study.power_cells())
    correlations = data[data.metric == CORRELATION]
    assert set(correlations.variant) == {"vrm"}
    assert ((correlations.estimate > 0.8) & (correlations.low < correlations.estimate)).all()


def test_both_are_written(config, results, tmp_path):
    made = [*power_figure(config, results, tmp_path), *ablation_table(config, results, tmp_path)]
    assert all(path.stat().st_size > 0 for path in made)
    table = pd.read_csv(tmp_path / "ablation.csv")
    assert np.isfinite(table.estimate).all()
    assert set(table.variant) == set(STUDY["ablation"])


def test_one_seed_has_no_interval_of_its_weights(config, results, tmp_path):
    alone = config.model_copy(update={"study": config.study.model_copy(update={"seeds": [1]})})
    power_figure(alone, results, tmp_path)
    data = pd.read_csv(tmp_path / "power.csv")
    assert data[data.metric == CORRELATION].low.isna().all()
    assert data[data.metric == "uf_c"].low.notna().all()


def test_no_text_leaves_the_page_or_covers_another(config, results, tmp_path, monkeypatch):
    figure = drawn(monkeypatch, power_figure, config, results, tmp_path)
    boxes = list(boxes_of(figure).items())
    for text, box in boxes:
        inside = figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert inside, text.get_text()
    for (a, box_a), (b, box_b) in combinations(boxes, 2):
        assert not box_a.padded(-1.5).overlaps(box_b.padded(-1.5)), f"{a.get_text()!r} and {b.get_text()!r}"


@pytest.mark.parametrize("study", [{"variants": ["nobody"]}, {"variants": []}, {"pairs": []}, {"ablation": []}])
def test_a_study_of_nothing_is_refused(study):
    with pytest.raises(ConfigError, match="study"):
        parse(raw(**study))
