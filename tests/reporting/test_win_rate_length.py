"""The figure win_rate_length: its numbers against the files, and what stands on its face; see also test_figures."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from drawing import boxes_of, drawn, texts
from example_judged import make_judged, rewrite, write_judged

from vrm.records import RecordError
from vrm.reporting.registry import FIGURES

win_rate_length = FIGURES["win_rate_length"]


def test_files_are_deterministic_and_hold_every_policy(judged_config, judged_results, tmp_path):
    first, second = (win_rate_length(judged_config, judged_results, tmp_path / out) for out in "ab")
    assert [path.name for path in first] == [f"win_rate_length.{kind}" for kind in ("pdf", "png", "csv")]
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True)] == [True] * 3
    data = pd.read_csv(first[2])
    assert data.groupby("benchmark").size().to_dict() == {"alpaca_eval": 17, "arena_hard": 17}
    assert (data["low"] < data["estimate"]).all()
    assert (data["estimate"] < data["high"]).all()


def test_points_are_the_scores_and_lengths_of_the_files(judged_config, judged_results, tmp_path):
    data = pd.read_csv(win_rate_length(judged_config, judged_results, tmp_path)[2]).set_index(
        ["benchmark", "base", "method"]
    )
    for name, unit in (("alpaca_eval", "characters"), ("arena_hard", "words")):
        scores = pd.read_csv(judged_results / "judged" / f"{name}.csv").set_index(["base", "method", "metric"])["value"]
        row = data.loc[(name, "qwen3", "simpo")]
        assert row["length"] == pytest.approx(scores.loc[("qwen3", "simpo", "length")], rel=1e-5)
        assert row["estimate"] == pytest.approx(scores.loc[("qwen3", "simpo", "win_rate")], rel=1e-5)
        assert row["length_unit"] == unit
    assert data["kind"].groupby("method").first().loc[["sft", "dpo", "ppo_vrm"]].tolist() == [
        "start",
        "preference",
        "ppo",
    ]


def test_the_references_length_is_a_line_of_each_panel(judged_config, judged_results, tmp_path, monkeypatch):
    figure = drawn(monkeypatch, win_rate_length, judged_config, judged_results, tmp_path)
    dashed = [
        [
            line.get_xdata()[0]
            for line in panel.lines
            if not isinstance(line.get_linestyle(), tuple) and line.is_dashed()
        ]
        for panel in figure.axes
    ]
    assert dashed == [[310.0], [335.0], [71.5], [71.5]]


def test_every_policy_is_labelled_once_a_panel(judged_config, judged_results, tmp_path, monkeypatch):
    figure = drawn(monkeypatch, win_rate_length, judged_config, judged_results, tmp_path)
    words = [text.get_text().replace("\n", " ") for text in texts(figure)]
    assert (words.count("SFT (start)"), words.count("VRM-PPO"), words.count("VRM-PPO (anchored) (ours)")) == (2, 4, 4)
    for expected in ("Data: synthetic world", "Qwen2.5-shaped", "length of the reference", "hollow: ours"):
        assert expected in words
    assert "Bars: 95\u00a0% interval over prompts (one seed)." in words
    assert "AlpacaEval-shaped win rate (%), n = 58 to 60" in words
    assert words.count("mean length of an answer (characters)") == 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"run": ("arena_hard",), "bases": {"qwen3": {"label": "Qwen3-shaped", "path": "b"}}},
        {"seeds": (1, 2, 3), "run": ("alpaca_eval", "mt_bench")},
    ],
)
def test_no_text_leaves_the_page_or_covers_another(options, tmp_path, monkeypatch):
    config = make_judged(**options)
    figure = drawn(monkeypatch, win_rate_length, config, write_judged(config, tmp_path), tmp_path)
    boxes, page = boxes_of(figure), figure.bbox
    outside = [text.get_text() for text, box in boxes.items() if box.x0 < 0 or box.x1 > page.x1]
    outside += [text.get_text() for text, box in boxes.items() if box.y0 < 0 or box.y1 > page.y1]
    assert not outside
    for (a, box_a), (b, box_b) in combinations(boxes.items(), 2):
        assert not box_a.padded(-1.5).overlaps(box_b.padded(-1.5)), f"{a.get_text()!r} and {b.get_text()!r}"


def test_labels_stay_apart_where_policies_are_alike(judged_config, tmp_path, monkeypatch):
    folder = write_judged(judged_config, tmp_path) / "judged"
    alike = {"win_rate": 50.0, "length": 300.0}
    for name in ("alpaca_eval", "arena_hard"):
        rewrite(folder / f"{name}.csv", lambda f: f.assign(value=f["metric"].map(alike).fillna(f["value"])))
        rewrite(folder / f"{name}.items.csv", lambda f: f.assign(value=0.5))
    figure = drawn(monkeypatch, win_rate_length, judged_config, tmp_path, tmp_path)
    panel = figure.axes[0]
    labels = [box for text, box in boxes_of(figure).items() if text in panel.texts]
    assert len(labels) == 9
    assert not any(a.padded(-1.5).overlaps(b.padded(-1.5)) for a, b in combinations(labels, 2))


def test_a_policy_without_a_win_rate_and_a_record_without_length_leave_no_mark(judged_config, tmp_path, monkeypatch):
    folder = write_judged(judged_config, tmp_path) / "judged"
    rewrite(folder / "arena_hard.items.csv", lambda f: f[f["method"] != "ppo"])
    rewrite(
        folder / "arena_hard.csv",
        lambda f: f.assign(value=f["value"].mask((f["method"] == "ppo") & (f["metric"] != "length"))),
    )
    for name in ("alpaca_eval", "arena_hard"):
        (folder / f"{name}.json").write_text("{}")
    data = pd.read_csv(win_rate_length(judged_config, tmp_path, tmp_path / "out")[2]).set_index(["benchmark", "method"])
    assert np.isnan(data.loc[("arena_hard", "ppo"), "estimate"]).all()
    figure = drawn(monkeypatch, win_rate_length, judged_config, tmp_path, tmp_path)
    words = [text.get_text() for text in texts(figure)]
    assert words.count("PPO") == 2 + 1  # in AlpacaEval's panels, and in the legend
    assert "length of the reference" not in words


@pytest.mark.parametrize(
    ("run", "says"),
    [(("mt_bench",), "no benchmark with win rates is run; leave it out"), ((), "no benchmark is run; name some")],
)
def test_nothing_to_draw_is_a_clear_error(run, says, tmp_path):
    config = make_judged(run=run)
    write_judged(config, tmp_path)
    with pytest.raises(RecordError, match=f"win_rate_length: {says}"):
        win_rate_length(config, tmp_path, tmp_path)
