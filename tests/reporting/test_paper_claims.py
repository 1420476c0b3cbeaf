import dataclasses

import numpy as np
import pandas as pd
import pytest
from example_paper import curves, gold, make_paper, write_paper

from vrm.config import merge, parse
from vrm.records import RecordError
from vrm.reporting import paper_page as page
from vrm.reporting import published
from vrm.reporting.paper_claims import (
    AGREES,
    DISAGREES,
    METRICS,
    NOT_TESTABLE,
    PAGE,
    UNDECIDED,
    ClaimedDifference,
    JudgedOrders,
    PaperRun,
    Scored,
    answers,
    decide,
    ordered,
    orders,
)
from vrm.reporting.scores import table_columns
from vrm.statistics.intervals import holm

NAN = float("nan")


@pytest.fixture(scope="module")
def config():
    return make_paper()


@pytest.fixture(scope="module")
def results(config, tmp_path_factory):
    """To be read only."""
    return write_paper(config, tmp_path_factory.mktemp("paper"))


@pytest.fixture
def run(config, results):
    return PaperRun(config, results)


@pytest.fixture(scope="module")
def found(config, results):
    return page.claims(PaperRun(config, results))


def changed(config, results, **report):
    """The same run under another `report`."""
    return PaperRun(parse(merge(config.model_dump(mode="json"), {"report": report})), results)


def change(low, high, p_holm=None, few_seeds=""):
    return ClaimedDifference((low + high) / 2, low, high, "prompts", "made", few_seeds, p_holm, 30)


@pytest.mark.parametrize(
    ("difference", "claimed", "verdict"),
    [
        (change(1, 3), 1, AGREES),
        (change(1, 3), -1, DISAGREES),
        (change(-3, -1), -1, AGREES),
        (change(0, 3), 1, UNDECIDED),
        (change(1, 3, p_holm=0.04), 1, AGREES),
        (change(1, 3, p_holm=0.04), -1, DISAGREES),
        (change(1, 3, p_holm=0.06), 1, UNDECIDED),
        (change(1, 3, p_holm=NAN), 1, UNDECIDED),
        (change(-1, 3, p_holm=0.04), 1, UNDECIDED),
        (ClaimedDifference(2, NAN, NAN, "nothing", "made"), 1, NOT_TESTABLE),
        (ClaimedDifference(NAN, NAN, NAN, "nothing", "made", note="why"), 1, NOT_TESTABLE),
    ],
)
def test_an_order_needs_an_interval_on_one_side_and_what_holm_leaves_of_it(difference, claimed, verdict):
    assert ordered(difference, claimed, 0.95)[2] == verdict


def test_the_reason_names_the_correction_and_a_single_seed():
    *_, why = ordered(change(1, 3, p_holm=0.06), 1, 0.95)
    assert "excludes 0 alone, not after Holm's correction" in why
    assert "one seed" not in why
    for difference in (change(1, 3, few_seeds="one seed"), change(-1, 3, few_seeds="one seed")):
        assert "one seed" in ordered(difference, 1, 0.95)[3]


def test_the_level_of_the_test_is_that_of_the_intervals():
    assert ordered(change(1, 3, p_holm=0.06), 1, 0.9)[2] == AGREES
    assert ordered(change(1, 3, p_holm=0.04), 1, 0.99)[2] == UNDECIDED


def test_every_order_that_our_methods_stand_in_is_asked_and_none_vanishes(found):
    count = {where: sum(f.where == where for f in found) for where in page.PLACES}
    assert count["Table 1"] == 2 * 7 * 5
    assert count["Table 2"] == (1 + 6 + 6) * 5
    assert count["Figure 6"] == 2 * 3
    assert all(f.paper not in ("+0.0", "+0.00") for f in found)
    lc = [f for f in found if " LC: VRM-PPO" in f.what]
    assert len(lc) == 2 * 7
    below = [f.what for f in lc if "below" in f.what]
    assert below == ["Qwen3-shaped, AlpacaEval-shaped LC: VRM-PPO below PPO"], (
        "the one order against the paper's method"
    )
    there = [f for f in lc if f.what.endswith(" PPO")]
    assert {(f.verdict, f.why) for f in there} == {(NOT_TESTABLE, "LC is defined for the official 805 instructions")}


def test_what_a_run_lacks_is_the_reason(config, results, found):
    assert {f.why for f in found if f.what.endswith(" IPO")} == {"IPO is not in this run"}
    without = config.model_copy(update={"benchmarks": config.benchmarks.model_copy(update={"run": ["mt_bench"]})})
    asked = [order for order in orders(PaperRun(without, results)) if "LC: VRM-PPO below PPO" in order.what]
    assert [order.lacking for order in asked] == ["AlpacaEval-shaped is not run"]
    raw = config.model_dump(mode="json")
    raw["policy"]["bases"]["qwen3"]["paper"] = None
    lacking = {o.lacking for o in orders(PaperRun(parse(raw), results)) if o.what.startswith("Qwen3-8B, ")}
    assert lacking == {"no base of this run stands for Qwen3-8B"}


def test_the_difference_of_an_order_is_that_of_the_tables_values(run, found):
    cells = run.table("table1").set_index(["base", "paper_method", "benchmark", "metric"]).estimate
    expected = cells["qwen3", "VRM-PPO", "mt_bench", "score"] - cells["qwen3", "SimPO", "mt_bench", "score"]
    claim = next(f for f in found if f.what == "Qwen3-shaped, MT-Bench-shaped score: VRM-PPO above SimPO")
    assert (claim.made, float(claim.ours.split()[0])) == (PAGE, pytest.approx(expected, abs=0.006))
    cells = run.table("table2").set_index(["paper_method", "column"]).estimate
    for scorer in ("VRM", "RM"):
        claim = next(f for f in found if f.what == f"Chat Hard: {scorer} above DPO")
        expected = cells[scorer, "Chat Hard"] - cells["DPO", "Chat Hard"]
        assert float(claim.ours.split()[0]) == pytest.approx(expected, abs=0.06), "two seeds against one: of the means"
        assert claim.resampled == "prompts (means of 2 and 1 seeds, Student's t)"
        assert "means of 2 and 1 seeds" in claim.why


def test_a_difference_has_one_p_value_and_the_rest_is_one_family(run, found):
    stored = run.table("comparisons").set_index(["first", "second", "column"])
    claim = next(f for f in found if f.what == "Chat Hard: VRM above RM")
    row = stored.loc["vrm", "rm", "Chat Hard"]
    assert (claim.p_holm, claim.tests, claim.made) == (row.p_holm, row.tests, "tables/comparisons.md")
    asked = list(dict.fromkeys(order.question for order in orders(run) if order.question))
    mine = {question: test for question, test in answers(run, asked).items() if test.made == PAGE}
    finite = [test for test in mine.values() if np.isfinite(test.p_holm)]
    assert {test.tests for test in mine.values()} == {len(finite)}
    assert {(q.first, q.second) for q in mine if isinstance(q, JudgedOrders)} >= {("ppo_vrm", "simpo")}
    assert not {("ppo_vrm", "ppo"), ("ppo_vrm", "dpo")} & {
        (q.first, q.second) for q in mine if isinstance(q, JudgedOrders) and q.metric.name != "lc_win_rate"
    }
    # alone in its family a test has its plain p-value: with others it can only grow, as by Holm
    question = next(q for q in mine if np.isfinite(mine[q].p_holm))
    plain = [answers(run, [q])[q].p_holm for q in mine]
    assert [test.p_holm for test in mine.values()] == pytest.approx(holm(plain).tolist(), nan_ok=True)
    assert answers(run, [question])[question].tests == 1


def test_what_is_asked_twice_is_tested_once(run):
    question = JudgedOrders("qwen3", "ppo_vrm", "simpo", METRICS["mt_bench"])
    other = JudgedOrders("qwen2_5", "ppo_vrm", "simpo", METRICS["mt_bench"])
    assert answers(run, [question, other, question])[question].tests == 2


def test_a_stored_difference_is_found_either_way_round(run):
    column = next(c for c in table_columns(run.config) if c.title == "Chat Hard")
    forth, back = (answers(run, [q])[q] for q in (Scored("vrm", "rm", column), Scored("rm", "vrm", column)))
    assert (back.estimate, back.low, back.high) == (-forth.estimate, -forth.high, -forth.low)
    assert (back.p_holm, back.made) == (forth.p_holm, forth.made)


def test_without_the_tables_of_comparisons_the_page_tests_all_by_itself(config, results, found):
    bare = page.claims(changed(config, results, tables=["table1", "table2"]))
    claim, own = (
        next(f for f in some if f.what == "Qwen3-shaped, MT-Bench-shaped score: VRM-PPO above PPO")
        for some in (found, bare)
    )
    assert (claim.made, own.made, own.ours) == ("tables/comparisons_judged.md", PAGE, claim.ours)
    assert {f.made for f in bare if np.isfinite(f.p_holm)} == {PAGE}


def test_verdicts_of_the_tables_follow_holm_and_the_papers_order(config, results):
    run = PaperRun(config, results)
    rows = run.table("comparisons")
    asked = (rows["first"] == "vrm") & (rows["second"] == "rm") & (rows["column"] == "UF-C")
    for p_holm, sign, verdict in ((0.01, 1, AGREES), (0.01, -1, DISAGREES), (0.2, 1, UNDECIDED)):
        ends = sorted((sign * 1.0, sign * 5.0))
        rows.loc[asked, ["difference", "low", "high", "p_holm"]] = (sign * 3.0, *ends, p_holm)
        some = [o for o in orders(run) if o.what == "UF-C: VRM above RM" or "captures human preferences" in o.what]
        assert [f.verdict for f in decide(run, some)] == [verdict] * 2


def test_figure_6_has_the_p_values_of_the_judged_comparisons_in_any_order(config, results, found):
    def decided(run):
        return decide(run, [order for order in orders(run) if order.where == "Figure 6"])

    flipped = changed(config, results, figure6=["ppo_vrm_lambda_0", "ppo_vrm"])
    six = [f for f in found if f.where == "Figure 6"]
    assert {f.made for f in six} == {"tables/comparisons_judged.md"}
    assert decided(flipped) == six
    run = PaperRun(config, results)
    rows = run.table("comparisons_judged")
    asked = (rows["second"] == "ppo_vrm_lambda_0") & (rows["metric"] == "score")
    for p_holm, verdict in ((0.01, AGREES), (0.2, UNDECIDED)):
        rows.loc[asked, ["difference", "low", "high", "p_holm"]] = (0.5, 0.1, 0.9, p_holm)
        score = [f.verdict for f in decided(run) if "MT-Bench" in f.what]
        assert score == [verdict] * 2


def test_figure_6_without_its_policies_is_listed(config, results):
    claims = [o for o in orders(changed(config, results, figure6=["ppo_vrm"])) if o.where == "Figure 6"]
    assert [o.lacking for o in claims] == ["report.figure6 has not one policy with supervision and one without"]


@pytest.mark.parametrize("names", [["rm", "vrm"], ["vrm", "rm"]])
@pytest.mark.parametrize(("vrm", "verdict"), [(90.0, AGREES), (50.0, DISAGREES), (75.0, UNDECIDED)])
def test_figure_4_is_picked_by_kind(config, results, names, vrm, verdict):
    run = changed(config, results, figure4=names)
    run._read["figures/figure4"] = curves(names, {"vrm": vrm, "rm": 70.0}, half=4.0)
    claim = page._figure4(run)
    half = 4 * np.sqrt(2)
    assert claim.verdict == verdict
    assert claim.ours == f"{vrm - 70:+.1f} [{vrm - 70 - half:+.1f}, {vrm - 70 + half:+.1f}] points"


def test_the_end_of_a_curve_is_one_row_and_not_filled_from_an_earlier_step(run):
    frame = curves(["rm", "vrm"], {"vrm": 90.0, "rm": 70.0})
    frame.loc[frame.step == 10, ["low", "high"]] = NAN
    run._read["figures/figure4"] = frame
    claim = page._figure4(run)
    assert (claim.ours, claim.verdict) == ("+20.0 points", NOT_TESTABLE)


@pytest.mark.parametrize(("vrm", "verdict"), [(1.0, AGREES), (0.0, UNDECIDED), (-0.9, DISAGREES)])
def test_hacking_takes_bases_as_if_they_moved_together(run, vrm, verdict):
    run._read["figures/overoptimisation"] = gold({"ppo_vrm": (vrm, 0.3), "ppo": (0.1, 0.4)})
    claim = page._hacking(run)
    change = vrm - 0.1
    # sqrt(0.3^2 + 0.4^2), whatever number of bases there is
    assert claim.ours == f"{change:+.2f} [{change - 0.5:+.2f}, {change + 0.5:+.2f}] points of gold reward"
    assert claim.verdict == verdict
    assert "one seed" in claim.why
    assert claim.resampled.startswith("prompts")


def test_hacking_leaves_a_base_out_whose_last_step_has_no_gold(run):
    frame = gold({"ppo_vrm": (1.0, 0.3), "ppo": (0.1, 0.4)})
    ends = (frame.step == 10) & (frame.method == "ppo_vrm")
    frame.loc[ends & (frame.base == "qwen3"), ["gold", "gold_low", "gold_high"]] = NAN
    run._read["figures/overoptimisation"] = frame
    assert page._hacking(run).ours.startswith("+0.90 ["), "not the mean with a gain of 0 from the first step"
    frame.loc[ends, ["gold", "gold_low", "gold_high"]] = NAN
    assert page._hacking(run).verdict == NOT_TESTABLE


def test_the_bound_is_the_papers_vrms_and_no_run_settles_the_claim(run):
    terms = run.table("bound")
    own = terms[(terms.term == "bound") & (terms.variant == "vrm")].estimate.iloc[0]
    smallest = terms[terms.term == "bound"].estimate.min()
    assert smallest < 1 < own, "the example's collapsed ablation has the smallest"
    claim = page._bound(run)
    assert claim.ours == f"VRM: {own:.2f}, vacuous"
    assert claim.verdict == NOT_TESTABLE
    assert "no run can settle it" in claim.why
    terms.loc[terms.variant == "vrm", "estimate"] = 0.4
    assert page._bound(run).ours == "VRM: 0.40"


@pytest.mark.parametrize(
    ("low", "p_holm", "verdict"), [(1.0, 0.01, AGREES), (1.0, 0.2, UNDECIDED), (-1.0, 0.9, UNDECIDED)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_figure_3_is_what_holm_leaves_of_the_paired_tests(config, results, low, p_holm, verdict, sign):
    run = PaperRun(config, results)
    rows = run.table("comparisons")
    losses = rows["first"] == "vrm_mse"
    rows.loc[losses, "p_holm"] = 1.0
    one = losses & (rows["column"] == "Safety")
    ends = sorted((sign * low, sign * 5.0))
    rows.loc[one, ["difference", "low", "high", "p", "p_holm"]] = (sign * 3.0, *ends, 0.0, p_holm)
    rows.loc[(rows["first"] == "vrm") & (rows["second"] == "rm"), "p_holm"] = 1e-6
    claim = page._figure3(run)
    assert claim.verdict == verdict
    assert claim.ours.startswith("VRM, MSE − VRM on Safety: ")
    assert "of 5 differences" in claim.why


def test_figure_3_without_comparisons_is_not_judged_by_the_eye(config, results):
    claim = page._figure3(changed(config, results, tables=["table1", "table2"]))
    assert (claim.verdict, claim.why) == (NOT_TESTABLE, "not compared in this run")


def test_figure_5_is_reported_and_never_agrees(run):
    run._read["figures/figure5"] = curves(["vrm_lambda_0", "vrm"], {"vrm": 99.0, "vrm_lambda_0": 50.0}, half=0.1)
    claims = list(page._figure5(run))
    assert [claim.verdict for claim in claims] == [NOT_TESTABLE] * 3
    assert all("never be found false" in claim.why for claim in claims)
    assert claims[0].ours == "vrm_lambda_0 50.0; vrm 99.0"
    assert claims[2].what == "Figure 5(c): the weight of the supervision matters for KL to target"


def test_scorers_of_different_pairs_are_refused(config, run, monkeypatch):
    from vrm.reporting import paper_claims as paper_differences

    column = table_columns(config)[-1]
    read = paper_differences.read_scores

    def shorter(results, scorer, refused):
        frame = read(results, scorer, refused)
        return frame if scorer.name == "rm" else frame[frame.pair_id != frame.pair_id.iloc[-1]]

    monkeypatch.setattr(paper_differences, "read_scores", shorter)
    with pytest.raises(RecordError, match="rm and dpo scored different pairs"):
        answers(run, [Scored("rm", "dpo", column)])


def test_no_order_of_the_paper_is_a_tie():
    rows = published("table1")
    for row in rows:
        best = next(r for r in rows if (r["policy"], r["method"]) == (row["policy"], "VRM-PPO"))
        assert row is best or all(row[column] != best[column] for column in METRICS)


def test_findings_say_what_their_brackets_are_over(found):
    for finding in found:
        assert bool(finding.resampled) == ("[" in finding.ours), dataclasses.asdict(finding)
        assert isinstance(finding.resampled, str)
    assert pd.DataFrame([vars(f) for f in found])["why"].ne("").all()
