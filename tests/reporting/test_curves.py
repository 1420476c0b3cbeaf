from itertools import combinations, pairwise

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from drawing import boxes_of, drawn, said_by, texts
from example_run import VARIANTS, make_raw, write_results
from matplotlib.colors import to_rgb

from vrm import config as configuration
from vrm.config import ConfigError
from vrm.records import RecordError
from vrm.reporting import style
from vrm.reporting.registry import FIGURES
from vrm.statistics.intervals import half_width

# those of the judged benchmarks and of the study have tests of their own
WITH_RESIDUAL = {"label": "VRM (residual)", "ours": True, "score_anchor_weight": 1.0, "residual": True}
OF_PARTS = ("calibration", "residual")
"""Figures of a run whose models have probabilities and a residual, as the small one's have."""
OF_REWARD_MODELS = [name for name in FIGURES if name not in ("figure6", "win_rate_length", "power")]


@pytest.fixture
def small(tmp_path):
    """A run of one seed, two variants and three other aspects."""
    variants = {name: VARIANTS[name] for name in ("rm", "vrm")} | {"vrm_residual": WITH_RESIDUAL}
    raw = make_raw(variants, seeds=[1], aspects=["coherence", "fluency", "relevance"], sets=("uf_c",))
    raw["report"] |= {"figure3": ["vrm"], "figure5": ["rm", "vrm"], "calibration": ["rm", "vrm", "vrm_residual"]}
    config = configuration.parse(raw)
    return config, write_results(config, tmp_path)


@pytest.mark.parametrize("name", OF_REWARD_MODELS)
def test_files_are_print_quality_and_deterministic(name, small, tmp_path):
    first, second = (FIGURES[name](*small, tmp_path / out) for out in "ab")
    assert [path.name for path in first] == [f"{name}.pdf", f"{name}.png", f"{name}.csv"]
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True)] == [True] * 3
    assert b"CreationDate" not in first[0].read_bytes()
    assert matplotlib.image.imread(first[1]).shape[1] >= 200 * style.COLUMN_WIDTH
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(path.name for path in first)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (name, size)
        for name in OF_REWARD_MODELS
        for size in ("grid", "small")
        if size == "small" or name not in OF_PARTS
    ],
)
def test_no_text_leaves_the_page_or_covers_another(name, size, config, results, small, tmp_path, monkeypatch):
    run = (config, results) if size == "grid" else small
    figure = drawn(monkeypatch, FIGURES[name], *run, tmp_path)
    boxes = boxes_of(figure)
    page = figure.bbox
    for text, box in boxes.items():
        assert page.x0 <= box.x0, text.get_text()
        assert box.x1 <= page.x1, text.get_text()
        assert page.y0 <= box.y0, text.get_text()
        assert box.y1 <= page.y1, text.get_text()
    for (a, box_a), (b, box_b) in combinations(boxes.items(), 2):
        assert not box_a.padded(-1.5).overlaps(box_b.padded(-1.5)), f"{a.get_text()!r} and {b.get_text()!r}"


def test_long_labels_in_many_columns_do_not_touch(tmp_path, monkeypatch):
    names = ["vrm", "vrm_mse", "vrm_mae", "vrm_rank", "vrm_anchored", "vrm_strict"]
    variants = {n: VARIANTS[n] | {"label": f"VRM with a rather long label {n}"} for n in names}
    raw = make_raw(variants, seeds=[1], sets=("uf_c",))
    raw["report"]["figure4"] = names
    config = configuration.parse(raw)
    figure = drawn(monkeypatch, FIGURES["figure4"], config, write_results(config, tmp_path), tmp_path)
    titles = [box for text, box in boxes_of(figure).items() if "rather" in text.get_text()]
    assert len(titles) == 6
    assert not any(a.overlaps(b) for a, b in combinations(titles, 2))
    legend = figure.legends[0].get_window_extent(figure.canvas.get_renderer())
    assert not any(legend.overlaps(title) for title in titles)


@pytest.mark.parametrize("name", ["figure3", "figure4", "figure5"])
def test_data_label_and_interval_stand_on_the_face(name, config, results, small, tmp_path, monkeypatch):
    words = said_by(drawn(monkeypatch, FIGURES[name], config, results, tmp_path))
    assert "Data: synthetic world" in words
    assert "Bands: 95\u00a0% Student's t interval over 3 seeds, cut at the axis." in words
    words = said_by(drawn(monkeypatch, FIGURES[name], *small, tmp_path))
    assert "One seed: no interval." in words


@pytest.mark.parametrize("name", ["figure3", "figure4", "figure5"])
def test_how_many_pairs_were_measured_stands_on_the_face(name, small, tmp_path, monkeypatch):
    """The configuration's number, or all that a split has where these are fewer: 240 of 400."""
    config, results = small
    words = said_by(drawn(monkeypatch, FIGURES[name], config, results, tmp_path))
    assert "Measured on the first 240 to 400 pairs of a split" in words
    assert f"±{100 * half_width(240, 0.5):.1f}\u00a0points" in words
    training = config.reward.training.model_copy(update={"evaluation_pairs": 100})
    config = config.model_copy(update={"reward": config.reward.model_copy(update={"training": training})})
    words = said_by(drawn(monkeypatch, FIGURES[name], config, results, tmp_path))
    assert "Measured on the first 100 pairs of a split" in words
    assert "±9.6\u00a0points at 50\u00a0% accuracy" in words


def test_counts_that_are_missing_are_named(small, tmp_path):
    config, results = small
    (results / "reward" / "vrm" / "seed1" / "counts.json").write_text("{}")
    with pytest.raises(RecordError, match=r"vrm/seed1/counts.json: no counts of pairs .KeyError.; train that reward"):
        FIGURES["figure3"](config, results, tmp_path)


def test_bands_end_where_values_end_and_are_absent_where_seeds_agree(config, tmp_path):
    results = write_results(config, tmp_path / "run")
    for seed, kl in ((1, 0.001), (2, 0.5), (3, 0.001)):
        path = results / "reward" / "vrm" / f"seed{seed}" / "training.csv"
        log = pd.read_csv(path)
        log.loc[(log["metric"] == "kl_total") & (log["step"] == 400), "value"] = kl
        log.loc[(log["metric"] == "accuracy") & (log["step"] == 400), "value"] = 0.8
        log.loc[(log["metric"] == "accuracy") & (log["step"] == 360), "value"] = [0.99, 0.8, 1.0][seed - 1]
        log.to_csv(path, index=False)
    FIGURES["figure5"](config, results, tmp_path)
    rows = pd.read_csv(tmp_path / "figure5.csv").set_index(["variant", "split", "metric", "step"]).loc["vrm"]
    assert rows.loc[("train", "kl_total", 400), "low"] == 0
    assert rows.loc[("train", "accuracy", 360), "high"] == 100
    alike = rows.loc[("train", "accuracy", 400)]
    assert (alike["mean"], alike["resampled"], alike["level"]) == (pytest.approx(80), "nothing (all alike)", 0.95)
    assert alike[["low", "high"]].isna().all()
    assert rows.loc[("train", "kl_total", 400), "resampled"] == "seeds (Student's t)"


@pytest.mark.parametrize("name", ["figure3", "figure4", "figure5"])
def test_legend_lies_outside_the_panels(name, config, results, tmp_path, monkeypatch):
    figure = drawn(monkeypatch, FIGURES[name], config, results, tmp_path)
    legend = figure.legends[0].get_window_extent(figure.canvas.get_renderer())
    assert not any(legend.overlaps(axes.bbox) for axes in figure.axes)


def test_curves_are_means_over_seeds(config, results, tmp_path):
    FIGURES["figure4"](config, results, tmp_path)
    data = pd.read_csv(tmp_path / "figure4.csv")
    logs = [pd.read_csv(results / "reward" / "rm" / f"seed{seed}" / "training.csv") for seed in (1, 2, 3)]
    last = [
        log[(log["split"] == "validation") & (log["metric"] == "accuracy") & (log["step"] == 400)]["value"].item()
        for log in logs
    ]
    row = data[(data["variant"] == "rm") & (data["split"] == "validation") & (data["step"] == 400)].iloc[0]
    assert row["mean"] == pytest.approx(100 * np.mean(last), rel=1e-5)
    assert row["high"] - row["mean"] == pytest.approx(100 * 4.30265 * np.std(last, ddof=1) / np.sqrt(3), rel=1e-3)
    assert row["n_seeds"] == 3


def test_figure5_shows_each_lambda_and_four_measures(config, results, tmp_path, monkeypatch):
    axes = drawn(monkeypatch, FIGURES["figure5"], config, results, tmp_path).axes
    assert [panel.get_title() for panel in axes[:5]] == [f"$\\lambda$ = {v}" for v in ("0", "0.1", "0.5", "1", "2")]
    rows = [panel.get_ylabel() for panel in axes[::5]]
    accuracies = ["(a) train accuracy (%)", "(b) eval accuracy (%)"]
    assert rows == [*accuracies, "(c) KL to target (nats)", "(d) KL to priors (nats)"]


def test_figure5_of_plain_pairs_has_no_target_to_show(small, tmp_path, monkeypatch):
    config, results = small
    path = results / "reward" / "vrm" / "seed1" / "training.csv"
    log = pd.read_csv(path)
    log[~log["metric"].str.startswith("supervision")].to_csv(path, index=False)
    FIGURES["figure5"](config, results, tmp_path)
    figure = drawn(monkeypatch, FIGURES["figure5"], config, results, tmp_path)
    panels = {panel.get_ylabel()[:3]: panel for panel in figure.axes[::2]}  # the first column is the scalar RM's
    assert not any(len(line.get_xdata()) for line in panels["(c)"].lines)
    assert any(len(line.get_xdata()) for line in panels["(d)"].lines)  # the VRM's, as context
    data = pd.read_csv(tmp_path / "figure5.csv")
    assert "kl_total" in set(data["metric"])
    assert "supervision_kl" not in set(data["metric"])


def test_figure5_of_a_log_without_the_target_kl_is_no_figure(small, tmp_path):
    """A log of an older version has the supervision's loss alone."""
    config, results = small
    path = results / "reward" / "vrm" / "seed1" / "training.csv"
    log = pd.read_csv(path)
    log[log["metric"] != "supervision_kl"].to_csv(path, index=False)
    with pytest.raises(RecordError, match="supervision_kl"):
        FIGURES["figure5"](config, results, tmp_path)


def test_figure2_prints_the_runs_settings(tmp_path, monkeypatch):
    variant = {
        "label": "VRM",
        "beta_w": 0.03,
        "beta_z": 0.007,
        "latent_dim": 24,
        "decoder": "mlp",
        "supervision": "mae",
    }
    config = configuration.parse(make_raw(variants={"vrm": variant}, aspects=[f"aspect_{i}" for i in range(9)]))
    words = [text.get_text() for text in texts(drawn(monkeypatch, FIGURES["figure2"], config, tmp_path, tmp_path))]
    for expected in ("0.03", "0.007", "$d$ = 24", "MLP on", "loss: MAE", "$K$ = 9", "more"):
        assert any(expected in word for word in words), expected


def test_figure1_edges_are_the_papers(config, results, tmp_path):
    FIGURES["figure1"](config, results, tmp_path)
    edges = pd.read_csv(tmp_path / "figure1.csv")
    assert set(zip(edges["from"], edges["to"], strict=True)) == {
        ("x", "w"),
        ("x", "z"),
        ("y", "z"),
        ("w", "s"),
        ("z", "s"),
    }


def test_empty_list_is_a_clear_error(config, results, tmp_path):
    empty = configuration.parse(make_raw(variants={"rm": VARIANTS["rm"]}))
    with pytest.raises(ConfigError, match=r"report\.figure3 names no variant"):
        FIGURES["figure3"](empty, results, tmp_path)
    with pytest.raises(ConfigError, match="no variational variant"):
        FIGURES["figure2"](empty, results, tmp_path)


def test_log_without_the_metric_is_refused(small, tmp_path):
    config, results = small
    path = results / "reward" / "vrm" / "seed1" / "training.csv"
    log = pd.read_csv(path)
    log[log["split"] != "validation"].to_csv(path, index=False)
    with pytest.raises(RecordError, match="vrm: no step at which every seed has accuracy of split validation"):
        FIGURES["figure3"](config, results, tmp_path)


def test_looks_differ_in_dash_and_marker_not_only_in_colour():
    looks = [style.look(index) for index in range(6)]
    assert len({look["marker"] for look in looks}) == 6
    assert len({str(look["linestyle"]) for look in looks}) == 6


def lightness(color):
    """CIE L* of sRGB."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = np.dot([0.2126, 0.7152, 0.0722], linear)
    return 116 * np.cbrt(luminance) - 16 if luminance > 0.008856 else 903.3 * luminance


def test_neighbouring_looks_differ_in_lightness():
    shades = [lightness(style.look(index)["color"]) for index in range(6)]
    assert min(abs(a - b) for a, b in pairwise(shades)) >= 12


def test_figures_of_three_and_five_keep_tick_labels_of_neighbours_apart(config, results, tmp_path, monkeypatch):
    for name in ("figure3", "figure5"):
        figure = drawn(monkeypatch, FIGURES[name], config, results, tmp_path)
        boxes = sorted((box.x0, box.x1) for text, box in boxes_of(figure).items() if text.get_text() in ("400", "0"))
        assert len(boxes) > len(figure.axes) // 2  # the shared axis below the panels
        gaps = [right[0] - left[1] for left, right in pairwise(boxes) if right[0] > left[1]]
        assert min(gaps) > 0.04 * figure.dpi, name  # half a digit


def test_the_footer_breaks_beside_the_label_and_a_legend_takes_the_columns_that_fit():
    lines = style.footer_lines("word " * 60, "a label", 4.0)
    assert " ".join(lines) == ("word " * 60).strip()
    assert max(map(len, lines)) * 0.05 < 4.0 - 0.06 * len("Data: a label")
    assert style.footer_lines("word " * 60, "a label", 40.0) == [("word " * 60).strip()]
    assert style.legend_columns(["abc"] * 9, 4.0) == 5
    assert style.legend_columns(["abc"], 40.0) == style.legend_columns(["a" * 99] * 3, 4.0) == 1
