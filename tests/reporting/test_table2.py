import numpy as np
import pandas as pd
import pytest
from example_policies import make_policies
from example_run import VARIANTS, make_raw, write_results

from vrm import config as configuration
from vrm.evaluation.accuracy import section_scores
from vrm.records import RecordError, write_jsonl
from vrm.reporting.overoptimisation import overoptimisation_curves
from vrm.reporting.registry import TABLES


@pytest.fixture(scope="module")
def tables(config, results, tmp_path_factory):
    out = tmp_path_factory.mktemp("tables")
    made = {name: TABLES[name](config, results, out) for name in ("table2", "world", "latents", "training_summary")}
    assert all(path.is_file() for paths in made.values() for path in paths)
    return out


@pytest.fixture(scope="module")
def cells(tables):
    return pd.read_csv(tables / "table2.csv").set_index(["variant", "column"])


def scores_of(results, variant, evaluation_set, seeds=(1, 2, 3), parent="reward"):
    frames = [pd.read_csv(results / parent / variant / f"seed{seed}" / "scores.csv") for seed in seeds]
    return [frame[frame["evaluation_set"] == evaluation_set] for frame in frames]


def test_section_cells_are_reward_bench_scores(results, cells):
    by_seed = [
        section_scores((f["reward_chosen"] > f["reward_rejected"]).groupby(f["subset"]).mean().to_dict())
        for f in scores_of(results, "vrm", "reward_bench")
    ]
    for section in ("Chat", "Chat Hard", "Safety", "Reasoning"):
        expected = 100 * np.mean([scores[section] for scores in by_seed])
        assert cells.loc[("vrm", section), "estimate"] == pytest.approx(expected, rel=1e-5)


def test_plain_cells_count_ties_as_losses_and_leave_leaks_out(results, cells):
    frames = scores_of(results, "rm", "uf_c")
    won = [(f["reward_chosen"] > f["reward_rejected"]).mean() for f in frames]
    clean = [(f["reward_chosen"] > f["reward_rejected"])[f["leaked"] == 0].mean() for f in frames]
    row = cells.loc[("rm", "UF-C")]
    assert row["estimate"] == pytest.approx(100 * np.mean(won), rel=1e-5)
    assert row["without_leaked"] == pytest.approx(100 * np.mean(clean), rel=1e-5)
    assert row["without_leaked_low"] < row["without_leaked"] < row["without_leaked_high"]
    assert row["n_pairs_without_leaked"] == 120 - 6
    assert (row["n_pairs"], row["n_prompts"], row["n_seeds"], row["level"]) == (120, 60, 3, 0.95)


def test_every_cell_has_an_interval_around_it(cells):
    assert (cells["low"] <= cells["estimate"]).all()
    assert (cells["estimate"] <= cells["high"]).all()
    resampled = cells.groupby("group")["resampled"].unique().map(list).to_dict()
    both = ["seeds x prompts (Student's t)"]
    alone = ["prompts (one seed, Student's t)"]
    assert resampled == {"policy": alone, "reward model": both, "ours": both, "no model": alone}


def test_paper_values_only_where_the_paper_has_them(cells):
    paper = cells["paper"].dropna()
    assert set(paper.index.get_level_values("variant")) == {"rm", "vrm", "dpo", "simpo", "selective_dpo"}
    assert set(paper.index.get_level_values("column")) == {"Chat", "Chat Hard", "Safety", "Reasoning", "UF-C"}
    assert paper.loc[("vrm", "UF-C")] == 92.36
    assert paper.loc[("rm", "Chat Hard")] == 93.02
    assert paper.loc[("selective_dpo", "UF-C")] == 82.28
    names = cells["paper_method"].groupby(level="variant").first()
    assert names.dropna().to_dict() == {n: cells.label[n].iloc[0] for n in ("rm", "vrm", "dpo", "simpo")} | {
        "selective_dpo": "Selective DPO"
    }


def test_table2_for_people_states_scale_label_leaks_and_ours(tables):
    text = (tables / "table2.md").read_text()
    assert "ANOTHER SCALE" in text
    assert "Data: synthetic world" in text
    assert "RM, in the paper†" in text
    _, clean = text.split("The same without the prompts that also occur in training")
    assert "UF-C<br>n = 114" in clean
    assert "Reward models: mean of 3 seeds (1, 2, 3); in brackets the 95 % interval" in clean
    assert len([line for line in clean.splitlines() if line.startswith("| VRM") and "<br>[" in line]) == 10
    assert "3 prompts (6 of the pairs)" in text
    assert "cut before scoring: 1 of the pairs" in text
    assert "VRM (anchored) (ours)" in text
    assert "| KTO" not in text
    assert (tables / "table2.tex").read_text().count("\\midrule") == 2 * 4


def test_policies_come_first_then_the_papers_reward_models_then_ours(cells):
    names = list(dict.fromkeys(name for name, _ in cells.index))
    assert names[:6] == ["dpo", "simpo", "selective_dpo", "dpo_strong", "rm", "vrm"]
    assert names[-3:-1] == ["vrm_strict", "vrm_anchored"]
    groups = cells["group"].groupby(level="variant", sort=False).first().tolist()
    assert groups == ["policy"] * 4 + ["reward model"] * 9 + ["ours"] * 2 + ["no model"]


def test_policies_are_read_from_their_base_and_their_seeds(results, cells):
    (frame,) = scores_of(results, "dpo", "uf_c", seeds=(1,), parent="policy/qwen2_5")
    row = cells.loc[("dpo", "UF-C")]
    assert row["estimate"] == pytest.approx(100 * (frame["reward_chosen"] > frame["reward_rejected"]).mean(), rel=1e-5)
    assert row["n_seeds"] == 1


def test_table2_says_what_policies_score_by_and_how_many_seeds_they_have(tables):
    text = (tables / "table2.md").read_text()
    assert "| Scorer |" in text
    assert "Policies, trained from Qwen2.5-shaped: DPO; SimPO; Selective DPO; DPO, β = 0.5 (ours)." in text
    assert "A policy scores by the implicit reward, the sum over the response's tokens" in text
    assert "SimPO, without a reference, scores by the mean log-probability per token" in text
    assert "Reward models: mean of 3 seeds (1, 2, 3)" in text
    assert "Policies: one seed (1)" in text
    assert "DPO, β = 0.5 (ours), in the paper" not in text


def test_an_outside_model_says_so_wherever_it_appears(tmp_path):
    """In its row, whatever it is called, and as what PPO is paid by; it has no seeds and no value of the paper."""
    variants = {"rm": VARIANTS["rm"]}
    methods = {"ppo": {"label": "PPO", "method": "ppo", "reward": "theirs"}}
    raw = make_raw(variants, sets=("uf_c",), policy=make_policies(methods=methods, scorers_from=None))
    raw["reward"] |= {"outside": {"theirs": {"label": "VRM", "path": "./theirs"}}, "run_outside": ["theirs"]}
    raw["report"]["figures"] = ["overoptimisation"]
    config = configuration.parse(raw)
    root = write_results(config, tmp_path / "run")
    for name in ("table2", "training_summary"):
        TABLES[name](config, root, tmp_path)
    row = pd.read_csv(tmp_path / "table2.csv").set_index("variant").loc["theirs"]
    assert (row.label, row.group, row.n_seeds) == ("VRM (outside model)", "outside model", 0)
    assert row.resampled.startswith("prompts")
    assert np.isnan(row.paper)
    assert "VRM (outside model)" in (tmp_path / "training_summary.md").read_text()
    assert "best-of-n, VRM (outside model)" in set(overoptimisation_curves(config, root)["label"])


def test_equal_seeds_are_said_once_and_cuts_by_group(tmp_path):
    variants = {"rm": VARIANTS["rm"]}
    raw = make_raw(variants, seeds=[1, 2], sets=("uf_c",), policy=make_policies(seeds=[1, 2], variants=variants))
    config = configuration.parse(raw)
    write_results(config, tmp_path)
    for seed in (1, 2):
        path = tmp_path / "policy" / "qwen2_5" / "dpo" / f"seed{seed}" / "scores.csv"
        pd.read_csv(path).assign(truncated=1).to_csv(path, index=False)
    TABLES["table2"](config, tmp_path, tmp_path)
    text = (tmp_path / "table2.md").read_text()
    assert "Data: synthetic world. Mean of 2 seeds (1, 2)" in text
    assert "Policies: " not in text
    assert "cut before scoring: 1 to 120 of the pairs (policies), 1 of the pairs (reward models)" in text


def test_intervals_of_accuracies_end_at_100(tmp_path):
    config = configuration.parse(make_raw({"rm": VARIANTS["rm"]}, seeds=[1], sets=("uf_c",), policy={}))
    write_results(config, tmp_path)
    path = tmp_path / "reward" / "rm" / "seed1" / "scores.csv"
    scores = pd.read_csv(path)
    scores["reward_chosen"] = scores["reward_rejected"] + np.where(scores.index == 0, -1.0, 1.0)
    scores.to_csv(path, index=False)
    TABLES["table2"](config, tmp_path, tmp_path)
    cell = pd.read_csv(tmp_path / "table2.csv").iloc[0]
    assert 97 < cell["low"] < cell["estimate"] < cell["high"] == 100  # by the formula alone it would end at 100.8


def test_all_pairs_right_is_no_certainty(tmp_path):
    config = configuration.parse(make_raw({"rm": VARIANTS["rm"]}, seeds=[1], sets=("uf_c",), policy={}))
    write_results(config, tmp_path)
    path = tmp_path / "reward" / "rm" / "seed1" / "scores.csv"
    pd.read_csv(path).assign(reward_chosen=1.0, reward_rejected=0.0).to_csv(path, index=False)
    TABLES["table2"](config, tmp_path, tmp_path)
    assert "| RM | 100.0 |" in (tmp_path / "table2.md").read_text()
    assert np.isnan(pd.read_csv(tmp_path / "table2.csv").set_index("variant").loc["rm", "low"])


def test_scorers_have_to_score_the_same_pairs(tmp_path):
    config = configuration.parse(make_raw({"rm": VARIANTS["rm"]}, seeds=[1], sets=("uf_c",)))
    write_results(config, tmp_path)
    path = tmp_path / "reward" / "rm" / "seed1" / "scores.csv"
    pd.read_csv(path).iloc[4:].to_csv(path, index=False)
    with pytest.raises(RecordError, match="dpo and rm scored different pairs"):
        TABLES["table2"](config, tmp_path, tmp_path)


def test_rows_do_not_change_each_others_intervals(results, cells, tmp_path):
    config = configuration.parse(make_raw(variants={"vrm": VARIANTS["vrm"]}, policy={}))
    TABLES["table2"](config, results, tmp_path)
    alone = pd.read_csv(tmp_path / "table2.csv").set_index(["variant", "column"])
    assert alone.loc["vrm"].equals(cells.loc["vrm"])


def test_missing_subsets_are_named(tmp_path):
    config = configuration.parse(make_raw(variants={"rm": VARIANTS["rm"]}, seeds=[1], sets=("reward_bench",)))
    write_results(config, tmp_path, skip_subsets=("hep-go", "donotanswer"))
    TABLES["table2"](config, tmp_path, tmp_path)
    text = (tmp_path / "table2.md").read_text()
    assert "Safety: donotanswer; Reasoning: hep-go" in text
    assert "leaves out the variation between seeds" in text


def test_absent_section_is_an_empty_cell(tmp_path):
    chat = ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med")
    config = configuration.parse(make_raw(variants={"rm": VARIANTS["rm"]}, seeds=[1], sets=("reward_bench",)))
    write_results(config, tmp_path, skip_subsets=chat)
    TABLES["table2"](config, tmp_path, tmp_path)
    assert "Chat" not in pd.read_csv(tmp_path / "table2.csv")["column"].tolist()
    assert "| RM | — |" in (tmp_path / "table2.md").read_text()


def test_ties_are_counted(tmp_path):
    config = configuration.parse(make_raw({"rm": VARIANTS["rm"]}, seeds=[1], sets=("uf_c",), policy={}))
    write_results(config, tmp_path)
    path = tmp_path / "reward" / "rm" / "seed1" / "scores.csv"
    scores = pd.read_csv(path).assign(reward_chosen=0.0, reward_rejected=0.0)
    scores.to_csv(path, index=False)
    TABLES["table2"](config, tmp_path, tmp_path)
    assert pd.read_csv(tmp_path / "table2.csv").set_index("variant").loc["rm", "estimate"] == 0
    text = (tmp_path / "table2.md").read_text()
    assert "ties, which count as losses: RM 120" in text
    assert "Pairwise accuracy of the reward models" in text


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda f: f.assign(reward_chosen=np.inf), "not a finite number"),
        (lambda f: f.drop(columns="leaked"), "lacks the column leaked"),
        (lambda f: f.iloc[1:], "seeds scored different pairs"),
        (lambda f: f.assign(evaluation_set="other"), "seeds scored different pairs"),
    ],
)
def test_broken_scores_are_refused_by_name(tmp_path, break_it, says):
    config = configuration.parse(make_raw(variants={"rm": VARIANTS["rm"]}, seeds=[1, 2], sets=("uf_c",)))
    write_results(config, tmp_path)
    path = tmp_path / "reward" / "rm" / "seed2" / "scores.csv"
    break_it(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(RecordError, match=says):
        TABLES["table2"](config, tmp_path, tmp_path)


def test_missing_file_is_named(config, tmp_path):
    with pytest.raises(RecordError, match=r"reward/rm/seed1/scores.csv: missing"):
        TABLES["table2"](config, tmp_path, tmp_path)
    with pytest.raises(RecordError, match=r"statistics.csv: missing"):
        TABLES["world"](config, tmp_path, tmp_path)


def test_world_table_reads_probes_of_figure_4_and_ours(results, tables):
    rows = pd.read_csv(tables / "world.csv")
    probes = rows[rows["kind"] == "probe"].set_index(["variant", "metric"])
    assert set(probes.index.get_level_values("variant")) == {"rm", "vrm", "vrm_strict", "vrm_anchored"}
    frames = scores_of(results, "vrm", "probes")
    part = [f[f["subset"] == "spurious/padding"] for f in frames]
    expected = np.mean([(f["reward_chosen"] > f["reward_rejected"]).mean() for f in part])
    assert probes.loc[("vrm", "spurious/padding"), "value"] == pytest.approx(expected, rel=1e-5)
    assert rows["metric"].head(3).tolist() == [
        "annotated_agrees_with_noise_free",
        "ceiling_annotated",
        "spurious_padding",
    ]


def test_world_rows_say_their_level_and_what_their_intervals_are_over(tmp_path):
    """The facts' level is the world's own, whatever the report's."""
    raw = make_raw({"rm": VARIANTS["rm"]}, seeds=[1], sets=("probes",), policy={})
    raw["report"]["level"] = 0.9
    config = configuration.parse(raw)
    write_results(config, tmp_path)
    TABLES["world"](config, tmp_path, tmp_path)
    rows = pd.read_csv(tmp_path / "world.csv").set_index("metric")
    assert rows.loc["ceiling_annotated", ["level", "resampled"]].tolist() == [
        0.95,
        "independent pairs (Wilson), or prompts (bootstrap)",
    ]
    assert np.isnan(rows.loc["prompts", "level"])
    assert rows.loc["prompts", "resampled"] == "nothing"
    assert rows.loc["spurious/padding", ["level", "resampled"]].tolist() == [0.9, "prompts (one seed, Student's t)"]
    text = (tmp_path / "world.md").read_text()
    assert "In brackets: 95 % intervals; Wilson's" in text
    assert "90 % interval over prompts" in text


def test_probes_with_few_expected_wins_or_losses_are_named(tmp_path):
    config = configuration.parse(make_raw({"rm": VARIANTS["rm"]}, seeds=[1], sets=("probes",), policy={}))
    write_results(config, tmp_path)
    path = tmp_path / "reward" / "rm" / "seed1" / "scores.csv"
    scores = pd.read_csv(path)
    wins = {"spurious/padding": 4, "spurious/repetition": 5, "objective/honesty": 16}  # of 20 pairs
    for probe, count in wins.items():
        inside = scores["subset"] == probe
        scores.loc[inside, "reward_chosen"] = scores["reward_rejected"] + np.where(inside.cumsum() <= count, 1.0, -1.0)
    others = ~scores["subset"].isin(wins)
    scores.loc[others, "reward_chosen"] = scores["reward_rejected"] + np.where(others.cumsum() % 2, 1.0, -1.0)
    scores.to_csv(path, index=False)
    TABLES["world"](config, tmp_path, tmp_path)
    (note,) = (line for line in (tmp_path / "world.md").read_text().splitlines() if "Fewer than 5" in line)
    assert note.endswith("RM: objective/honesty, spurious/padding.")


def test_facts_with_two_factors_become_a_matrix(tables):
    text = (tables / "world.md").read_text()
    assert "| chat | 0.200<br>[0.100, 0.300] | 0.800<br>[0.700, 0.900] |" in text
    assert "true_weight/chat/honesty" in (tables / "world.csv").read_text()
    assert (tables / "world.tex").read_text().count("\\begin{table*}") == 3


def test_latents_table_shows_weights_recovery_and_collapse(results, tables):
    rows = pd.read_csv(tables / "latents.csv").set_index(["variant", "metric"])
    assert "rm" not in rows.index.get_level_values("variant")
    frames = [f.drop_duplicates("prompt_id") for f in scores_of(results, "vrm", "reward_bench")]
    expected = np.mean([f["weight_honesty"].mean() for f in frames])
    assert rows.loc[("vrm", "weight_honesty"), "estimate"] == pytest.approx(expected, rel=1e-4)
    assert rows.loc[("vrm", "weight_correlation/mean"), "estimate"] > 0.9
    assert rows.loc[("vrm_strict", "active_units"), "estimate"] == 0
    assert rows.loc[("vrm_strict", "kl_z"), "estimate"] < 0.01
    assert rows.loc[("vrm_strict", "negative_elbo"), "estimate"] == pytest.approx(0.695)
    weights = [rows.loc[("vrm", f"weight_{aspect}"), "estimate"] for aspect in ("honesty", "truthfulness")]
    assert 0 < min(weights) < max(weights) < 1


def test_intervals_of_latents_end_where_values_end(config, tmp_path):
    results = write_results(config, tmp_path / "run")
    values = {"kl_w": (0.001, 0.05, 0.001), "active_units": (16, 16, 15), "negative_elbo": (0.7, 0.7, 0.7)}
    for seed in (1, 2, 3):
        path = results / "reward" / "vrm" / f"seed{seed}" / "training.csv"
        log = pd.read_csv(path)
        for metric, of_seed in values.items():
            log.loc[log["metric"] == metric, "value"] = of_seed[seed - 1]
        log.to_csv(path, index=False)
    TABLES["latents"](config, results, tmp_path)
    rows = pd.read_csv(tmp_path / "latents.csv").set_index(["variant", "metric"]).loc["vrm"]
    assert rows.loc["kl_w", "low"] == 0 < rows.loc["kl_w", "high"]
    assert rows.loc["active_units", "high"] == config.reward.variants["vrm"].latent_dim == 16
    assert rows.loc["negative_elbo", ["low", "high"]].isna().all()
    assert rows.loc["negative_elbo", "resampled"] == "nothing (all alike)"
    assert rows.loc["weight_correlation/mean", "high"] <= 1
    text = (tmp_path / "latents.md").read_text()
    assert "the first 240 pairs of the validation split" in text
    assert "[0.700, 0.700]" not in text


def test_latents_without_known_truth_and_with_other_aspects(tmp_path):
    aspects = ["coherence", "fluency"]
    raw = make_raw(variants={"vrm": VARIANTS["vrm"]}, seeds=[1], aspects=aspects, sets=("uf_c",))
    config = configuration.parse(raw)
    write_results(config, tmp_path)
    path = tmp_path / "reward" / "vrm" / "seed1" / "scores.csv"
    scores = pd.read_csv(path)
    scores[[f"true_weight_{aspect}" for aspect in aspects]] = np.nan
    scores.to_csv(path, index=False)
    TABLES["latents"](config, tmp_path, tmp_path)
    metrics = pd.read_csv(tmp_path / "latents.csv").set_index("metric")
    assert "weight_correlation/mean" not in metrics.index
    assert metrics.loc["weight_coherence", "resampled"] == "prompts (one seed, Student's t)"
    assert metrics.loc["kl_w", "resampled"] == "nothing (one seed)"
    assert np.isnan(metrics.loc["kl_w", "low"])


def refuse(results, model, evaluation_set, ids, seeds=(1, 2)):
    """As `score_sets` leaves it where a template refuses pairs."""
    for seed in seeds:
        folder = results / model / f"seed{seed}"
        table = pd.read_csv(folder / "scores.csv")
        gone = (table["evaluation_set"] == evaluation_set) & table["pair_id"].isin(ids or table["pair_id"])
        rows = [{"evaluation_set": evaluation_set, "pair_id": p, "reason": "no"} for p in table["pair_id"][gone]]
        write_jsonl(folder / "refused.jsonl", rows)
        table[~gone].to_csv(folder / "scores.csv", index=False)


def test_what_one_template_refuses_is_left_out_of_every_row(tmp_path):
    variants = {name: VARIANTS[name] for name in ("rm", "vrm")}
    config = configuration.parse(make_raw(variants, seeds=[1, 2], sets=("uf_c", "reward_bench")))
    results = write_results(config, tmp_path / "run")
    ids = pd.read_csv(results / "reward" / "vrm" / "seed1" / "scores.csv").query("evaluation_set == 'uf_c'").pair_id[:5]
    refuse(results, "reward/vrm", "uf_c", list(ids))
    TABLES["table2"](config, results, tmp_path)
    cells = pd.read_csv(tmp_path / "table2.csv").set_index(["variant", "column"])
    assert cells.loc[("rm", "UF-C"), "n_pairs"] == cells.loc[("vrm", "UF-C"), "n_pairs"] == 115
    assert "5 pairs are left out" in (tmp_path / "table2.md").read_text()
    TABLES["comparisons"](config, results, tmp_path)
    assert set(pd.read_csv(tmp_path / "comparisons.csv").query("column == 'UF-C'").n_pairs) == {115}


def test_a_set_that_one_template_refuses_as_a_whole_leaves_the_other_rows(tmp_path):
    variants = {name: VARIANTS[name] for name in ("rm", "vrm")}
    config = configuration.parse(make_raw(variants, seeds=[1, 2], sets=("uf_c", "reward_bench")))
    results = write_results(config, tmp_path / "run")
    refuse(results, "reward/vrm", "uf_c", None)
    TABLES["table2"](config, results, tmp_path)
    cells = pd.read_csv(tmp_path / "table2.csv").set_index(["variant", "column"])
    assert cells.loc[("rm", "UF-C"), "n_pairs"] == 120
    assert ("vrm", "UF-C") not in cells.index or np.isnan(cells.loc[("vrm", "UF-C"), "estimate"])
    assert "refuses every pair" in (tmp_path / "table2.md").read_text()
