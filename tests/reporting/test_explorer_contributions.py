import numpy as np
import pandas as pd
import pytest
from example_explorer import ASPECTS, make_explorer_raw, make_sets, write_explorer_run

from vrm import config as configuration
from vrm.config import ConfigError
from vrm.records import RecordError
from vrm.reporting.explorer import (
    agreement,
    compared_models,
    contributions,
    disagreements,
    explained_pairs,
    known_truth,
    weights_by_kind,
)
from vrm.reporting.scores import read_scores


@pytest.fixture(scope="module")
def explored():
    return configuration.parse(make_explorer_raw())


@pytest.fixture(scope="module")
def scores(explored, tmp_path_factory):
    """Scores of each model, all seeds."""
    root = write_explorer_run(tmp_path_factory.mktemp("run"), make_sets())
    rm, vrms = compared_models(explored)
    return {model.name: read_scores(root, model) for model in [rm, *vrms]}


def of_seed(frame, seed):
    return frame[frame["seed"] == seed]


def test_one_plain_model_is_compared_with_every_variational_one(explored):
    rm, vrms = compared_models(explored)
    assert (rm.name, [model.name for model in vrms]) == ("rm", ["vrm", "vrm_mlp"])
    raw = make_explorer_raw()
    raw["reward"]["run"] = ["vrm"]
    raw["report"]["figures"] = ["figure1"]
    with pytest.raises(ConfigError, match=r"reward\.run"):
        compared_models(configuration.parse(raw))


def test_a_tie_is_never_right():
    rewards = {"rm": np.array([1.0, 1.0, 0.0, 0.0]), "vrm": np.array([1.0, 0.0, 1.0, 0.0])}
    found = agreement(rewards["rm"] > 0, rewards["vrm"] > 0)
    assert found.tolist() == ["both_right", "only_rm", "only_vrm", "both_wrong"]


def test_the_tie_of_the_example_counts_as_wrong(scores):
    table = explained_pairs(of_seed(scores["rm"], 2), of_seed(scores["vrm"], 2), ASPECTS, "vrm")
    tied = table[(table["evaluation_set"] == "uf_c") & (table["pair_id"] == "row1")].iloc[0]
    assert tied["margin_rm"] == 0
    assert tied["agreement"] in ("only_vrm", "both_wrong")


def test_contributions_sum_to_the_margin(scores):
    parts = contributions(scores["vrm"], ASPECTS, "vrm")
    margin = scores["vrm"]["reward_chosen"] - scores["vrm"]["reward_rejected"]
    assert parts.shape == (len(margin), len(ASPECTS))
    np.testing.assert_allclose(parts.sum(axis=1), margin, atol=1e-6)
    assert np.abs(parts).max() > 0.1


def test_contributions_change_sign_with_the_label(scores):
    frame = scores["vrm"]
    swapped = frame.rename(columns=lambda name: name.replace("chosen_", "rejected_") if "chosen_" in name else name)
    for aspect in ASPECTS:
        swapped[f"chosen_{aspect}"] = frame[f"rejected_{aspect}"]
        swapped[f"rejected_{aspect}"] = frame[f"chosen_{aspect}"]
    swapped[["reward_chosen", "reward_rejected"]] = frame[["reward_rejected", "reward_chosen"]].to_numpy()
    swapped = swapped.loc[:, ~swapped.columns.duplicated(keep="last")]
    np.testing.assert_allclose(contributions(swapped, ASPECTS, "vrm"), -contributions(frame, ASPECTS, "vrm"))


@pytest.mark.parametrize("broken", [0.3, np.nan])
def test_contributions_that_do_not_sum_up_are_refused(scores, broken):
    frame = scores["vrm"].copy()
    frame.loc[frame.index[7], "chosen_clarity"] += broken
    with pytest.raises(RecordError, match="pair row7 of uf_c do not sum"):
        contributions(frame, ASPECTS, "vrm")


def test_a_decoder_without_objectives_has_no_contributions(scores):
    assert contributions(scores["vrm_mlp"], ASPECTS, "vrm_mlp") is None
    table = explained_pairs(of_seed(scores["rm"], 1), of_seed(scores["vrm_mlp"], 1), ASPECTS, "vrm_mlp")
    assert not [column for column in table if column.startswith(("contribution_", "chosen_"))]
    assert table["weight_clarity"].between(0, 1).all()


def test_rows_are_matched_by_pair_whatever_their_order(scores):
    rm, vrm = of_seed(scores["rm"], 1), of_seed(scores["vrm"], 1)
    shuffled = rm.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(
        explained_pairs(rm, vrm, ASPECTS, "vrm"), explained_pairs(shuffled, vrm, ASPECTS, "vrm")
    )
    with pytest.raises(RecordError, match="different pairs"):
        explained_pairs(rm.iloc[1:], vrm, ASPECTS, "vrm")
    with pytest.raises(RecordError, match="weight is missing"):
        explained_pairs(rm, vrm.drop(columns="weight_clarity"), ASPECTS, "vrm")


def test_counts_are_those_of_the_files(explored, scores):
    """Counted pair by pair, without the code under test."""
    rows = {(r["evaluation_set"], r["subset"]): r for r in disagreements(explored, scores["rm"], scores["vrm"], "vrm")}
    assert set(rows) == {(name, kind) for name in ("uf_c", "noise_free") for kind in ("", "facts", "how_to")}
    won = {
        (name, r.seed, r.evaluation_set, r.pair_id): r.reward_chosen > r.reward_rejected
        for name in ("rm", "vrm")
        for r in scores[name].itertuples()
    }
    names = {(True, True): "both_right", (False, True): "only_vrm", (True, False): "only_rm"}
    for (name, kind), row in rows.items():
        frame = scores["rm"][
            (scores["rm"]["evaluation_set"] == name)
            & (scores["rm"]["subset"].isin([kind or "facts", kind or "how_to"]))
        ]
        counts = dict.fromkeys(("both_right", "only_vrm", "only_rm", "both_wrong"), 0)
        gaps = []
        for r in frame.itertuples():
            rm, vrm = (won[model, r.seed, name, r.pair_id] for model in ("rm", "vrm"))
            gaps.append(int(vrm) - int(rm))
            if r.seed == 2:  # the first of the configuration's seeds, not the smallest
                counts[names.get((rm, vrm), "both_wrong")] += 1
        assert {key: row[key] for key in counts} == counts
        assert row["pairs"] == sum(counts.values())
        assert row["difference"].estimate == pytest.approx(np.mean(gaps))
        apart = counts["only_vrm"] + counts["only_rm"]
        assert row["vrm_right"].estimate == pytest.approx(counts["only_vrm"] / apart)
        assert row["difference"].low <= row["difference"].estimate <= row["difference"].high
    assert rows["uf_c", ""]["only_vrm"] != rows["noise_free", ""]["only_vrm"]


def test_models_that_always_agree_have_no_share(explored, scores):
    (row, *_) = disagreements(explored, scores["rm"], scores["rm"], "rm")
    assert row["vrm_right"] is None
    assert row["difference"].estimate == 0
    assert np.isnan([row["difference"].low, row["difference"].high]).all()


def test_pairs_that_are_all_alike_get_no_interval(explored, scores):
    """An interval of no width would claim certainty."""
    lost = scores["vrm"].assign(reward_chosen=0.0, reward_rejected=1.0)
    (row, *_) = disagreements(explored, scores["rm"], lost, "vrm")
    assert row["vrm_right"].estimate == 0
    assert np.isnan([row["vrm_right"].low, row["vrm_right"].high]).all()
    assert row["difference"].low < row["difference"].estimate < row["difference"].high


def test_a_prompt_counts_once_in_the_weights(scores):
    frame = of_seed(scores["vrm"], 1)
    table = weights_by_kind(frame, ASPECTS).set_index(["evaluation_set", "subset", "aspect"])
    one = table.loc[("uf_c", "how_to", "clarity")]
    by_prompt = frame[(frame["evaluation_set"] == "uf_c") & (frame["subset"] == "how_to")].groupby("prompt_id")
    learned = by_prompt["weight_clarity"].first()
    assert one["prompts"] == len(learned) == 20  # 21 pairs
    assert one["mean"] == pytest.approx(learned.mean())
    assert (one["low"], one["high"]) == pytest.approx(tuple(np.quantile(learned, [0.1, 0.9])))
    assert one["true_mean"] == pytest.approx(0.625)
    assert table.groupby(["evaluation_set", "subset"])["mean"].sum().to_numpy() == pytest.approx(1, abs=1e-6)


def test_unknown_true_weights_stay_unknown(scores):
    frame = of_seed(scores["vrm"], 1).copy()
    frame.loc[frame.index[0], "true_weight_clarity"] = np.nan
    table = weights_by_kind(frame, ASPECTS).set_index(["evaluation_set", "subset", "aspect"])["true_mean"]
    assert np.isnan(table[("uf_c", "how_to", "clarity")])
    assert np.isnan(weights_by_kind(frame.drop(columns="true_weight_clarity"), ASPECTS)["true_mean"]).sum() == 4


def test_the_truth_is_found_by_texts_not_by_ids():
    sets = make_sets()
    truth = known_truth(sets, ["noise_free"])
    assert truth["uf_c", "row3"] == "rejected"
    assert truth["uf_c", "row4"] == "chosen"
    assert all(truth["noise_free", pair.pair_id] == "chosen" for pair in sets["noise_free"])
    assert known_truth(sets, []) == {}
    both_ways = {**sets, "noise_free": [*sets["noise_free"], sets["uf_c"][3]]}
    assert ("uf_c", "row3") not in known_truth(both_ways, ["noise_free"])
