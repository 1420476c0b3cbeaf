"""Figure 6: its numbers against the files, and what stands on its face; see also test_figures."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from drawing import boxes_of, drawn, texts
from example_judged import make_judged, rewrite, write_judged

from vrm.config import ConfigError
from vrm.records import RecordError
from vrm.reporting.registry import FIGURES

figure6 = FIGURES["figure6"]


def test_files_are_deterministic_and_hold_one_row_a_point(judged_config, judged_results, tmp_path):
    first, second = (figure6(judged_config, judged_results, tmp_path / out) for out in "ab")
    assert [path.name for path in first] == ["figure6.pdf", "figure6.png", "figure6.csv"]
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True)] == [True] * 3
    data = pd.read_csv(first[2])
    assert len(data) == 2 * 2 * 3
    assert (data["low"] < data["estimate"]).all()
    assert (data["estimate"] < data["high"]).all()


def test_values_are_the_scores_and_the_difference_is_theirs(judged_config, judged_results, tmp_path):
    data = pd.read_csv(figure6(judged_config, judged_results, tmp_path)[2]).set_index(["base", "method", "benchmark"])
    scores = pd.read_csv(judged_results / "judged" / "arena_hard.csv").set_index(["base", "method", "metric"])["value"]
    values = [scores.loc[("qwen3", method, "win_rate")] for method in ("ppo_vrm", "ppo_vrm_lambda_0")]
    found = [data.loc[("qwen3", method, "arena_hard")] for method in ("ppo_vrm", "ppo_vrm_lambda_0")]
    assert [row["estimate"] for row in found] == pytest.approx(values, rel=1e-5)
    assert found[1]["difference"] == pytest.approx(values[0] - values[1], rel=1e-4)
    assert found[1]["difference_low"] < found[1]["difference"] < found[1]["difference_high"]
    assert np.isnan(found[0]["difference"])


def test_every_base_has_the_same_two_axes(judged_config, judged_results, tmp_path, monkeypatch):
    figure = drawn(monkeypatch, figure6, judged_config, judged_results, tmp_path)
    assert [panel.get_ylabel() for panel in figure.axes] == ["win rate (%)", "score (1 to 10)"] * 2
    limits = [panel.get_ylim() for panel in figure.axes]
    assert limits[:2] == limits[2:]
    words = [text.get_text() for text in texts(figure)]
    for expected in ("Data: synthetic world", "Qwen2.5-shaped", "Qwen3-shaped", "VRM-PPO", "VRM-PPO (λ = 0)"):
        assert expected in words
    statement = "95\u00a0% interval over prompts (one seed). Δ: first less second, paired."
    assert any(statement in word.replace("\n", " ") for word in words)
    assert any("n = 38 to 40\nΔ " in word for word in words)


def test_methods_differ_by_marker(judged_config, judged_results, tmp_path, monkeypatch):
    figure = drawn(monkeypatch, figure6, judged_config, judged_results, tmp_path)
    assert [line.get_marker() for line in figure.axes[0].lines] == ["o", "s"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"run": ("mt_bench",)},
        {"run": ("arena_hard",), "bases": {"qwen3": {"label": "Qwen3-shaped", "path": "b"}}},
        {"seeds": (1, 2, 3)},
        {"figure6": ["ppo", "ppo_vrm", "ppo_vrm_lambda_0", "ppo_vrm_anchored"]},
        {"figure6": ["ppo_vrm"]},
    ],
)
def test_no_text_leaves_the_page_or_covers_another(options, tmp_path, monkeypatch):
    config = make_judged(**options)
    figure = drawn(monkeypatch, figure6, config, write_judged(config, tmp_path), tmp_path)
    boxes, page = boxes_of(figure), figure.bbox
    outside = [text.get_text() for text, box in boxes.items() if not page.padded(0.5).containsx(box.x0)]
    outside += [text.get_text() for text, box in boxes.items() if box.x1 > page.x1 or box.y0 < 0 or box.y1 > page.y1]
    assert not outside
    for (a, box_a), (b, box_b) in combinations(boxes.items(), 2):
        assert not box_a.padded(-1.5).overlaps(box_b.padded(-1.5)), f"{a.get_text()!r} and {b.get_text()!r}"


def test_a_policy_without_a_judgment_is_said_to_have_no_value(judged_config, tmp_path, monkeypatch):
    folder = write_judged(judged_config, tmp_path) / "judged"

    def forget(frame):
        gone = (frame["method"] == "ppo_vrm") & (frame["base"] == "qwen3")
        return frame[~(gone & (frame["metric"] != "length"))] if "metric" in frame else frame[~gone]

    for name in ("alpaca_eval.csv", "alpaca_eval.items.csv"):
        rewrite(folder / name, forget)
    figure = drawn(monkeypatch, figure6, judged_config, tmp_path, tmp_path)
    assert [text.get_text() for text in texts(figure)].count("no value") == 1


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"figure6": []}, ConfigError, r"report\.figure6 names no method"),
        ({"figure6": ["ppo_vrm", "x"]}, ConfigError, r"report\.figure6: x is not judged; judged are sft, dpo, "),
        ({"run": ()}, RecordError, "figure6: no benchmark is run"),
    ],
)
def test_what_can_not_be_drawn_is_a_clear_error(options, error, says, tmp_path):
    config = make_judged(**options)
    write_judged(config, tmp_path)
    with pytest.raises(error, match=says):
        figure6(config, tmp_path, tmp_path)
