import time

import numpy as np
import pandas as pd
import pytest

from vrm.data.reward_bench import SECTIONS
from vrm.evaluation.accuracy import section_scores
from vrm.evaluation.reward_models import evaluate
from vrm.records import RecordError

FORMATS = {"bench": "reward_bench", "ufc": "pairs", "unused": "pairs"}
SUBSETS = [subset for weights in SECTIONS.values() for subset in weights]


def scores_table(seed, n=200, variational=True):
    """Scores of one model on two sets; `bench` has RewardBench's subsets, `ufc` true weights."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "evaluation_set": ["bench"] * n + ["ufc"] * n,
            "pair_id": [str(i) for i in range(2 * n)],
            "prompt_id": [f"p{i // 2}" for i in range(2 * n)],
            "subset": [SUBSETS[i % len(SUBSETS)] for i in range(n)] + [""] * n,
            "leaked": rng.integers(0, 2, size=2 * n),
            "truncated": rng.integers(0, 2, size=2 * n),
            "reward_chosen": rng.normal(0.5, size=2 * n),
            "reward_rejected": rng.normal(size=2 * n),
        }
    )
    if variational:
        learned, true = rng.dirichlet([1, 1], size=2 * n), rng.dirichlet([1, 1], size=2 * n)
        true[:n] = np.nan
        for k, aspect in enumerate("ab"):
            table[f"weight_{aspect}"], table[f"true_weight_{aspect}"] = learned[:, k], true[:, k]
    return table


@pytest.fixture
def write(tmp_path):
    """Writes a table as the scores.csv of a model; returns its path."""

    def write_scores(table, variant="vrm", seed=1):
        path = tmp_path / variant / f"seed{seed}" / "scores.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)
        return path

    return write_scores


def test_tidy_file_of_every_model_and_set(write, tmp_path):
    paths = {("rm", 1): write(scores_table(0, variational=False), "rm"), ("vrm", 2): write(scores_table(1), "vrm", 2)}
    evaluate(paths, FORMATS, tmp_path / "out.csv")
    out = pd.read_csv(tmp_path / "out.csv")
    assert list(out.columns) == ["variant", "seed", "evaluation_set", "metric", "value", "n"]
    assert not out.duplicated(["variant", "seed", "evaluation_set", "metric"]).any()
    rows = out.set_index(["variant", "seed", "evaluation_set", "metric"])
    table = scores_table(1)
    bench = table[table["evaluation_set"] == "bench"]
    won = bench["reward_chosen"] > bench["reward_rejected"]
    assert rows.loc[("vrm", 2, "bench", "accuracy"), "value"] == pytest.approx(won.mean())
    expected = section_scores(won.groupby(bench["subset"]).mean().to_dict())
    for section, score in expected.items():
        assert rows.loc[("vrm", 2, "bench", f"section/{section}"), "value"] == pytest.approx(score)
    sections = [f"section/{section}" for section in SECTIONS]
    assert rows.loc[[("vrm", 2, "bench", s) for s in sections], "n"].sum() == 200
    assert rows.loc[("vrm", 2, "ufc", "weight_correlation/mean"), "n"] == 100
    metrics = out.groupby(["variant", "evaluation_set"])["metric"].agg(set)
    assert not any(m.startswith("section/") for m in metrics["vrm", "ufc"])
    assert not any(m.startswith("weight_") for m in metrics["rm", "ufc"])
    assert not any(m.startswith("weight_corr") for m in metrics["vrm", "bench"])  # no true weights there
    assert "weight_mean/a" in metrics["vrm", "bench"]


def test_a_subset_may_be_called_na(write, tmp_path):
    table = scores_table(0).assign(evaluation_set="ufc", subset="NA")
    out = evaluate({("vrm", 1): write(table)}, FORMATS, tmp_path / "out.csv")
    assert "subset/NA" in set(out["metric"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.drop(columns="leaked"), "lacks the column leaked"),
        (lambda t: t.assign(reward_chosen=np.inf), "evaluation set bench: 200 of 200 pairs"),
        (lambda t: t.assign(subset="hep-cobol"), "not a subset of RewardBench: hep-cobol"),
        (lambda t: t[t["evaluation_set"] == "ufc"], "evaluation set bench is missing"),
    ],
)
def test_faulty_files_are_named(write, tmp_path, damage, message):
    paths = {("rm", 1): write(scores_table(0), "rm"), ("vrm", 1): write(damage(scores_table(1)), "vrm")}
    with pytest.raises(RecordError, match=message) as caught:
        evaluate(paths, FORMATS, tmp_path / "out.csv")
    assert str(paths["vrm", 1]) in str(caught.value)


def test_unknown_sets_and_absent_files_are_named(write, tmp_path):
    with pytest.raises(RecordError, match="evaluation set bench is unknown; known are: ufc"):
        evaluate({("vrm", 1): write(scores_table(0))}, {"ufc": "pairs"}, tmp_path / "out.csv")
    with pytest.raises(RecordError, match=r"absent\.csv: missing"):
        evaluate({("vrm", 1): tmp_path / "absent.csv"}, FORMATS, tmp_path / "out.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(RecordError, match=r"empty\.csv: empty"):
        evaluate({("vrm", 1): tmp_path / "empty.csv"}, FORMATS, tmp_path / "out.csv")


def test_the_whole_grid_takes_seconds(write, tmp_path):
    paths = {("vrm", seed): write(scores_table(seed, n=1500), seed=seed) for seed in range(33)}
    start = time.perf_counter()
    evaluate(paths, FORMATS, tmp_path / "out.csv")
    assert time.perf_counter() - start < 5
