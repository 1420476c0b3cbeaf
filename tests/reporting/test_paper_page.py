import pandas as pd
import pytest

from vrm.config import load, merge, parse
from vrm.records import RecordError
from vrm.reporting import paper_page as page
from vrm.reporting.paper_claims import AGREES, DISAGREES, NOT_TESTABLE, Run, claims, ordered

NAMES = {"RM": "rm", "VRM": "vrm"}


@pytest.fixture
def config():
    made = {"tables": ["table1", "table2", "comparisons"], "figures": ["figure6"]}
    return parse(
        load(["config.yaml"]).model_dump(mode="json")
        | {"report": {**made, "figure4": ["rm", "vrm"], "figure6": ["ppo_vrm"]}}
    )


@pytest.fixture
def results(tmp_path, config):
    """A run whose own values are the paper's less one, give or take a half."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "figures").mkdir()
    _table1(config).to_csv(tmp_path / "tables" / "table1.csv", index=False)
    _table2().to_csv(tmp_path / "tables" / "table2.csv", index=False)
    comparisons = [
        {"first": "vrm", "second": "rm", "evaluation_set": "uf_c", "column": "UF-C-like", "difference": 3.0}
        | {"low": 1.0, "high": 5.0},
        {"first": "vrm", "second": "rm", "evaluation_set": "reward_bench", "column": "Chat Hard", "difference": -3.0}
        | {"low": -5.0, "high": -1.0},
        {"first": "vrm", "second": "rm", "evaluation_set": "reward_bench", "column": "Chat", "difference": 0.5}
        | {"low": -1.0, "high": 2.0},
    ]
    pd.DataFrame(comparisons).to_csv(tmp_path / "tables" / "comparisons.csv", index=False)
    bars = [
        {"base": "qwen3", "benchmark": "mt_bench", "difference": 0.4, "difference_low": 0.1, "difference_high": 0.7}
    ]
    pd.DataFrame(bars).to_csv(tmp_path / "figures" / "figure6.csv", index=False)
    return tmp_path


def _table1(config):
    bases = {base.paper: name for name, base in config.policy.bases.items()}
    methods = {entry.label: name for name, entry in config.policy.methods.items()}
    rows = []
    for row in page._published("table1"):
        for column, (benchmark, metric, *_) in page.TABLE1.items():
            own = float(row[column]) - 1
            names = {"base": bases[row["policy"]], "method": methods[row["method"]], "label": row["method"]}
            values = {"estimate": own, "low": own - 0.5, "high": own + 0.5, "paper": float(row[column]), "note": ""}
            rows.append({**names, "benchmark": benchmark, "metric": metric, **values})
    return pd.DataFrame(rows)


def _table2():
    columns = dict(zip(page.TABLE2, ("Chat", "Chat Hard", "Safety", "Reasoning", "UF-C-like"), strict=True))
    rows = []
    for row in page._published("table2"):
        for column, title in columns.items():
            own, name = float(row[column]) - 1, NAMES.get(row["method"], row["method"].lower())
            where = {"evaluation_set": "uf_c" if column == "uf_c" else "reward_bench", "column": title}
            group = "reward model" if name in NAMES.values() else "policy"
            values = {"estimate": own, "low": own - 0.5, "high": own + 0.5, "paper": float(row[column])}
            rows.append({"variant": name, "label": row["method"], "group": group, **where, **values})
    return pd.DataFrame(rows)


def test_every_cell_of_both_tables_is_there_with_our_value(config, results):
    first, second = list(page._table1(Run(config, results))), list(page._table2(Run(config, results)))
    assert (len(first), len(second)) == (80, 40)
    assert {finding.verdict for finding in first + second} == {NOT_TESTABLE}, "another scale decides no number"
    found = next(f for f in first if f.what == "Qwen2.5-7B, VRM-PPO: AlpacaEval 2 WR")
    assert (found.paper, found.ours) == ("45.30", "44.30 [43.80, 44.80]")
    found = next(f for f in second if f.what == "VRM: UF-C")
    assert (found.paper, found.ours) == ("92.36", "91.4 [90.9, 91.9]")


@pytest.mark.parametrize(("shift", "verdict"), [(0.4, AGREES), (1.0, DISAGREES)])
def test_the_papers_own_models_and_data_are_compared(config, results, shift, verdict):
    hub = {"dataset": "allenai/reward-bench", "revision": "0" * 40}
    theirs = {
        "data": {"path": None, "hub": {"dataset": page.PAPER_DATA, "revision": "0" * 40}},
        "backbone": {"path": page.PAPER_BACKBONE, "create": None},
        "evaluation": {"sets": {"reward_bench": {"path": None, "hub": hub}}},
    }
    run = Run(parse(merge(config.model_dump(mode="json"), theirs)), results)
    table = run.table("table2")
    table[["estimate", "low", "high"]] = table[["estimate", "low", "high"]].add(1 - shift)
    found = [f for f in page._table2(run) if f.what.startswith(("RM", "VRM")) and "UF-C" not in f.what]
    assert [f.verdict for f in found] == [verdict] * 8


def test_a_claim_has_the_verdict_of_its_interval(config, results):
    verdicts = {(f.where, f.what): f.verdict for f in claims(Run(config, results))}
    assert verdicts["Table 2", "UF-C-like: VRM above the plain RM"] == AGREES
    assert verdicts["Table 2", "Chat Hard: VRM above the plain RM"] == DISAGREES
    assert verdicts["Table 2", "Chat: VRM above the plain RM"] == NOT_TESTABLE
    assert verdicts["Figure 6", "Figure 6: Qwen3-shaped, MT-Bench-shaped: supervision improves alignment"] == AGREES
    orders = {what: verdict for (where, what), verdict in verdicts.items() if where == "Table 1"}
    assert len(orders) == 10
    # the one order of the paper's Table 1 that is against its method
    assert orders["Qwen3-shaped, AlpacaEval-shaped, lc_win_rate: VRM-PPO below PPO"] == AGREES


@pytest.mark.parametrize(
    ("interval", "claimed", "verdict"),
    [
        ((2.0, 1.0, 3.0), 1, AGREES),
        ((2.0, 1.0, 3.0), -1, DISAGREES),
        ((2.0, 0.0, 3.0), 1, NOT_TESTABLE),
        ((2.0, float("nan"), float("nan")), 1, NOT_TESTABLE),
    ],
)
def test_an_order_needs_an_interval_on_one_side(interval, claimed, verdict):
    assert ordered(*interval, claimed, "points")[1] == verdict


def test_the_page_is_written_whole_and_counts_its_verdicts(config, results, tmp_path):
    csv, markdown, _, html = page.paper_page(config, results, tmp_path / "out")
    entries = pd.read_csv(csv)
    assert (entries["where"] == "Table 1").sum() == 80 + 10
    assert "entries:" in markdown.read_text(encoding="utf-8")
    assert html.read_text(encoding="utf-8").count("<figure>") == 3


def test_a_table_that_is_not_there_is_named(config, results, tmp_path):
    (results / "tables" / "table2.csv").unlink()
    with pytest.raises(RecordError, match=r"table2\.csv"):
        page.paper_page(config, results, tmp_path)


def test_a_run_without_any_of_the_tables_still_lists_every_number(config, tmp_path):
    bare = config.model_copy(update={"report": config.report.model_copy(update={"tables": [], "figures": []})})
    csv, *_ = page.paper_page(bare, tmp_path, tmp_path / "out")
    entries = pd.read_csv(csv)
    assert len(entries) >= 120
    assert set(entries.verdict) == {NOT_TESTABLE}
