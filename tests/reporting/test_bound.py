"""The table and the figure of Theorem 5.1, from files as the stage leaves them."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from drawing import boxes_of, drawn, said_by
from example_bounds import PAIRS, write_bounds
from example_run import VARIANTS, make_raw

from vrm import config as configuration
from vrm.records import RecordError
from vrm.reporting import style
from vrm.reporting.bound import bound_figure, bound_table
from vrm.statistics.pac_bayes import mcallester_bound

BETAS = {
    "rm": VARIANTS["rm"],
    "vrm": VARIANTS["vrm"],
    "strict": VARIANTS["vrm_strict"],
    "none": {"label": "VRM, no KL", "beta_w": 0.0, "beta_z": 0.0},
    "near": {"label": "VRM, a little more", "beta_z": 0.0011},
}


def make(tmp_path, variants=BETAS, seeds=(1, 2, 3)):
    config = configuration.parse(make_raw(variants, seeds=seeds, sets=("uf_c",), policy={}))
    write_bounds(config, tmp_path)
    return config


@pytest.fixture(scope="module")
def out(config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("bound")
    write_bounds(config, directory)
    bound_figure(config, directory, directory)
    return directory


@pytest.fixture(scope="module")
def table(config, out):
    directory = out / "table"
    bound_table(config, out, directory)
    return directory


def test_every_term_of_every_vrm_is_a_mean_over_seeds(table, out):
    rows = pd.read_csv(table / "bound.csv").set_index(["variant", "term"])
    assert "rm" not in rows.index.get_level_values("variant")
    files = [pd.read_csv(out / "reward" / "vrm" / f"seed{s}" / "pac_bayes.csv").set_index("term") for s in (1, 2, 3)]
    for term in files[0].index:
        expected = np.mean([file.loc[term, "value"] for file in files])
        assert rows.loc[("vrm", term), "estimate"] == pytest.approx(expected, rel=1e-4), term
    assert rows.loc[("vrm", "vacuous"), "estimate"] == 1
    assert rows.loc[("vrm_strict", "vacuous"), "estimate"] == 0
    assert (rows.loc[("vrm", "bound"), ["low", "high"]] - rows.loc[("vrm", "bound"), "estimate"]).prod() < 0


def test_table_for_people_says_what_is_vacuous_and_what_no_bound_of_this_kind_shows(table):
    text = (table / "bound.md").read_text()
    lines = {
        line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines() if line.startswith("| VRM")
    }
    assert lines["VRM"][5] == "yes"
    assert lines["VRM, strict ELBO (ours)"][5] == "no"
    assert "sum 0.3" in lines["VRM, strict ELBO (ours)"][3]
    for words in (
        "Data: synthetic world",
        "95 % interval",
        "3 seeds (1, 2, 3)",
        "n = 400",
        "delta = 0.05",
        "below 1/2",
        "leave out the choice of the pairs: of the 60 held-out ones alone it is worth ±0.123 at a risk of 1/2",
    ):
        assert words in text, words
    assert "\\midrule" in (table / "bound.tex").read_text()


def test_seeds_that_disagree_are_counted_and_one_seed_has_no_interval(tmp_path):
    config = make(tmp_path)
    path = tmp_path / "reward" / "vrm" / "seed2" / "pac_bayes.csv"
    terms = pd.read_csv(path)
    terms.loc[terms["term"] == "vacuous", "value"] = 0
    terms.to_csv(path, index=False)
    bound_table(config, tmp_path, tmp_path)
    assert "2 of 3 seeds" in (tmp_path / "bound.md").read_text()
    single = make(tmp_path, seeds=[1])
    bound_table(single, tmp_path, tmp_path)
    assert "One seed (1): no interval." in (tmp_path / "bound.md").read_text()
    assert pd.read_csv(tmp_path / "bound.csv")["low"].isna().all()


def test_intervals_end_where_terms_do_and_are_absent_where_seeds_agree(tmp_path):
    config = make(tmp_path)
    for seed, risk in ((1, 0.9), (2, 0.99), (3, 1.0)):
        path = tmp_path / "reward" / "vrm" / f"seed{seed}" / "pac_bayes.csv"
        terms = pd.read_csv(path)
        terms.loc[terms["term"] == "held_out_risk", "value"] = risk
        terms.loc[terms["term"] == "kl_w", "value"] = 0.01 * seed**4
        terms.to_csv(path, index=False)
    bound_table(config, tmp_path, tmp_path)
    rows = pd.read_csv(tmp_path / "bound.csv").set_index(["variant", "term"]).loc["vrm"]
    assert rows.loc["held_out_risk", "high"] == 1
    assert rows.loc["kl_w", "low"] == 0
    assert rows.loc["pairs", ["low", "high"]].isna().all()
    assert rows.loc["pairs", "resampled"] == "nothing (all alike)"


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda path: path.unlink(), "missing; run `vrm pac-bayes`"),
        (lambda path: pd.read_csv(path).iloc[1:].to_csv(path, index=False), "lacks a term"),
        (lambda path: pd.read_csv(path).assign(value=np.inf).to_csv(path, index=False), "not a finite number"),
    ],
)
def test_broken_terms_are_refused_by_name(tmp_path, break_it, says):
    config = make(tmp_path)
    break_it(tmp_path / "reward" / "vrm" / "seed2" / "pac_bayes.csv")
    for show in (bound_table, bound_figure):
        with pytest.raises(RecordError, match=f"vrm/seed2/pac_bayes.csv: .*{says}"):
            show(config, tmp_path, tmp_path)


def test_without_a_vrm_there_is_no_bound(tmp_path):
    with pytest.raises(RecordError, match="leave `bound` out"):
        bound_table(make(tmp_path, {"rm": VARIANTS["rm"]}), tmp_path, tmp_path)


def test_curves_meet_the_measured_point_and_part_as_n_grows(out):
    data = pd.read_csv(out / "bound.csv")
    points, curves = data[data["panel"] == "beta"].set_index("variant"), data[data["panel"] == "n"]
    assert set(curves["variant"]) == {"vrm", "vrm_strict"}  # one for each pair of betas
    for (name, kl), curve in curves.groupby(["variant", "kl"]):
        risk, per_pair = points.loc[name, ["empirical_risk", "kl_per_pair"]].astype(float)
        at_measured = np.interp(np.log(PAIRS), np.log(curve["n"]), curve["bound"])
        assert at_measured == pytest.approx(mcallester_bound(risk, per_pair * PAIRS, PAIRS, 0.05), rel=0.01)
        if name == "vrm":
            end = risk + (np.sqrt(per_pair / 2) if kl == "KL per pair fixed" else np.sqrt(per_pair * PAIRS / 2e6))
            assert curve["bound"].iloc[-1] == pytest.approx(end, rel=0.01)


@pytest.mark.parametrize(("variants", "seeds"), [(VARIANTS, [1, 2, 3]), (BETAS, [1, 2, 3]), (BETAS, [1])])
def test_files_are_deterministic_and_no_text_covers_another(tmp_path, monkeypatch, variants, seeds):
    config = make(tmp_path, variants, seeds)
    kept, save = [], style.save
    monkeypatch.setattr(style, "save", lambda figure, *rest: (kept.append(figure), save(figure, *rest))[1])
    first, second = (bound_figure(config, tmp_path, tmp_path / name) for name in "ab")
    assert [path.name for path in first] == ["bound.pdf", "bound.png", "bound.csv"]
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True)] == [True] * 3
    figure = kept[0]
    with style.styled():
        boxes = boxes_of(figure).values()
    page = figure.bbox
    assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1 for b in boxes)
    assert not any(a.padded(-1.5).overlaps(b.padded(-1.5)) for a, b in combinations(boxes, 2))
    legend = figure.legends[0].get_window_extent(figure.canvas.get_renderer())
    assert not any(legend.overlaps(axes.bbox) for axes in figure.axes)


def test_equal_betas_stand_side_by_side_and_beta_0_has_its_place(tmp_path, monkeypatch):
    config = make(tmp_path)
    kept = []
    monkeypatch.setattr(style, "save", lambda figure, *_: kept.append(figure))
    bound_figure(config, tmp_path, tmp_path)
    panel = kept[0].axes[0]
    labels = [text.get_text() for text in panel.get_xticklabels()]
    assert labels[0] == "0"
    assert labels[-1] == "1"
    (drawn,) = (line for line in panel.lines if line.get_label() == "bound")
    assert len(set(drawn.get_xdata())) == 4


def test_only_the_model_that_is_far_from_its_beta_is_named(tmp_path, monkeypatch):
    variants = {f"vrm_{i}": {"label": f"VRM {i}"} for i in range(4)} | {"strict": VARIANTS["vrm_strict"]}
    config = make(tmp_path, variants)

    def names(*bounds):
        for index, value in enumerate(bounds):
            for seed in (1, 2, 3):
                path = tmp_path / "reward" / f"vrm_{index}" / f"seed{seed}" / "pac_bayes.csv"
                terms = pd.read_csv(path)
                terms.loc[terms["term"] == "bound", "value"] = value
                terms.to_csv(path, index=False)
        figure = drawn(monkeypatch, bound_figure, config, tmp_path, tmp_path)
        return [text.get_text() for text in figure.axes[0].texts], said_by(figure)

    labels, said = names(2.0, 2.1, 2.2, 2.3)
    assert labels == []
    assert "Models of one β stand side by side." in said
    labels, said = names(2.0, 2.1, 4.0, 2.3)
    assert labels == ["VRM 2"]
    assert "a name is of the one far from the others" in said


def test_curves_of_several_models_differ_by_more_than_colour(config, tmp_path, monkeypatch):
    write_bounds(config, tmp_path)
    figure = drawn(monkeypatch, bound_figure, config, tmp_path, tmp_path)
    assert figure.axes[1].get_title(loc="left") == "(b) one model of each $\\beta$, were there $n$ pairs"
    handles = [handle for handle, text in zip(*legend_of(figure), strict=True) if "fixed" in text]
    assert len(handles) == 4
    assert len({(handle.get_marker(), str(handle._unscaled_dash_pattern)) for handle in handles}) == 4
    assert all(handle.get_marker() not in ("None", "", None) for handle in handles)


def legend_of(figure):
    (legend,) = figure.legends
    return legend.legend_handles, [text.get_text() for text in legend.get_texts()]


def test_rows_of_the_figure_say_their_level_and_what_the_bars_are_over(out):
    data = pd.read_csv(out / "bound.csv")
    points, curves = data[data["panel"] == "beta"], data[data["panel"] == "n"]
    assert set(points["level"]) == {0.95}
    assert set(points["resampled"]) == {"seeds (Student's t)", "nothing (all alike)"}
    assert (points["low"].isna() == (points["resampled"] == "nothing (all alike)")).all()
    assert set(curves["resampled"]) == {"nothing"}
