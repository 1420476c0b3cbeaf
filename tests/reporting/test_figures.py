from itertools import combinations

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from example_run import VARIANTS, make_raw, write_results
from matplotlib.text import Text

from vrm import config as configuration
from vrm.config import ConfigError
from vrm.records import RecordError
from vrm.reporting import style
from vrm.reporting.figures import FIGURES

# those of the judged benchmarks have tests of their own
OF_REWARD_MODELS = [name for name in FIGURES if name not in ("figure6", "win_rate_length")]


@pytest.fixture
def small(tmp_path):
    """A run of one seed, two variants and three other aspects."""
    variants = {name: VARIANTS[name] for name in ("rm", "vrm")}
    raw = make_raw(variants, seeds=[1], aspects=["coherence", "fluency", "relevance"], sets=("uf_c",))
    raw["report"] |= {"figure3": ["vrm"], "figure5": ["rm", "vrm"]}
    config = configuration.parse(raw)
    return config, write_results(config, tmp_path)


def drawn(monkeypatch, make, config, results, out):
    """The matplotlib figure that a figure's function would save."""
    kept = []
    monkeypatch.setattr(style, "save", lambda figure, *_: kept.append(figure))
    with style.styled():
        make(config, results, out)
    return kept[0]


def texts(figure):
    """The texts that are painted; ticks beyond the limits exist but are not."""
    painted = []
    with pytest.MonkeyPatch.context() as patch:
        draw = Text.draw
        patch.setattr(Text, "draw", lambda text, renderer: (painted.append(text), draw(text, renderer))[1])
        figure.canvas.draw()
    return [text for text in dict.fromkeys(painted) if text.get_text() and text.get_visible()]


def boxes_of(figure):
    renderer = figure.canvas.get_renderer()
    return {text: text.get_window_extent(renderer) for text in texts(figure)}


@pytest.mark.parametrize("name", OF_REWARD_MODELS)
def test_files_are_print_quality_and_deterministic(name, small, tmp_path):
    first, second = (FIGURES[name](*small, tmp_path / out) for out in "ab")
    assert [path.name for path in first] == [f"{name}.pdf", f"{name}.png", f"{name}.csv"]
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True)] == [True] * 3
    assert b"CreationDate" not in first[0].read_bytes()
    assert matplotlib.image.imread(first[1]).shape[1] >= 200 * style.COLUMN_WIDTH
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(path.name for path in first)


@pytest.mark.parametrize("name", OF_REWARD_MODELS)
@pytest.mark.parametrize("size", ["grid", "small"])
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
    words = [text.get_text() for text in texts(drawn(monkeypatch, FIGURES[name], config, results, tmp_path))]
    assert "Data: synthetic world" in words
    assert "Bands: 95 % Student's t interval over 3 seeds" in words
    words = [text.get_text() for text in texts(drawn(monkeypatch, FIGURES[name], *small, tmp_path))]
    assert "One seed: no interval" in words


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


def test_figure5_shows_each_lambda_and_three_measures(config, results, tmp_path, monkeypatch):
    axes = drawn(monkeypatch, FIGURES["figure5"], config, results, tmp_path).axes
    assert [panel.get_title() for panel in axes[:5]] == [f"$\\lambda$ = {v}" for v in ("0", "0.1", "0.5", "1", "2")]
    rows = [panel.get_ylabel() for panel in axes[::5]]
    assert rows == ["(a) train accuracy (%)", "(b) eval accuracy (%)", "(c) KL (nats per pair)"]


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
