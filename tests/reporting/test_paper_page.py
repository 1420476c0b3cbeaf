import json
import re

import numpy as np
import pandas as pd
import pytest
from example_judged import write_judged
from example_paper import make_paper, write_paper

from vrm.config import load, merge, parse
from vrm.records import RecordError
from vrm.reporting import paper_page as page
from vrm.reporting import published
from vrm.reporting.paper_claims import AGREES, DISAGREES, METRICS, NOT_TESTABLE, SCORES, UNDECIDED, PaperRun

NAN = float("nan")


@pytest.fixture(scope="module")
def config():
    return make_paper()


@pytest.fixture(scope="module")
def results(config, tmp_path_factory):
    """To be read only."""
    return write_paper(config, tmp_path_factory.mktemp("paper"))


@pytest.fixture(scope="module")
def paper():
    """The paper's own study: its models, data and judge, and no policy that its tables don't have."""
    preset = load(["config.yaml", "workflow/presets/paper.yaml"]).model_dump(mode="json")
    preset["policy"]["run"].remove("ppo_vrm_lambda0")
    preset["report"] |= {"tables": ["table1", "table2"], "figures": []}
    return parse(preset)


@pytest.fixture(scope="module")
def files(paper, tmp_path_factory):
    """Judgments of the paper's policies, and sets of which the answers that the paper compares with are unknown."""
    root = write_judged(paper, tmp_path_factory.mktemp("scale"), official_lc=True)
    for name in paper.benchmarks.run:
        folder = root / "judged" / "sets" / name
        folder.mkdir(parents=True)
        record = {"files": [{"name": "questions", "official": True}, {"name": "answers", "official": None}]}
        (folder / "files.json").write_text(json.dumps(record))
    return root


@pytest.fixture
def scale(paper, files):
    """A run at the paper's scale whose values are the paper's less one, give or take a half."""
    return _scale(paper, files)


def _scale(config, files):
    run = PaperRun(config, files)
    run._read |= {"tables/table1": _table1(config), "tables/table2": _table2()}
    return run


def _table1(config):
    bases = {base.paper: name for name, base in config.policy.bases.items()}
    methods = {entry.label: name for name, entry in config.policy.methods.items()}
    rows = [
        {"base": bases[row["policy"]], "method": methods[row["method"]], "paper_method": row["method"]}
        | {"benchmark": metric.benchmark, "metric": metric.name, **_value(row[column])}
        for row in published("table1")
        for column, metric in METRICS.items()
    ]
    return pd.DataFrame(rows)


def _table2():
    columns = dict(zip(SCORES, ("Chat", "Chat Hard", "Safety", "Reasoning", "UF-C"), strict=True))
    rows = [
        {"variant": row["method"].lower(), "paper_method": row["method"], "column": title, **_value(row[column])}
        | {"group": "reward model" if row["method"] in ("RM", "VRM") else "policy"}
        | {"evaluation_set": "uf_c" if column == "uf_c" else "reward_bench"}
        for row in published("table2")
        for column, title in columns.items()
    ]
    return pd.DataFrame(rows)


def _value(paper):
    own = float(paper) - 1
    return {"estimate": own, "low": own - 0.5, "high": own + 0.5, "paper": float(paper), "resampled": "prompts"}


@pytest.fixture(scope="module")
def written(config, results, tmp_path_factory):
    """The page's CSV as a table, and its Markdown and HTML as text."""
    csv, markdown, _, html = page.paper_page(config, results, tmp_path_factory.mktemp("page"))
    return pd.read_csv(csv), markdown.read_text(encoding="utf-8"), html.read_text(encoding="utf-8")


def _cell(findings, what):
    return next(finding for finding in findings if finding.what == what)


def test_every_cell_of_both_tables_is_there_and_another_scale_decides_none(config, results):
    run = PaperRun(config, results)
    first, second = list(page.table1_numbers(run)), list(page.table2_numbers(run))
    assert (len(first), len(second)) == (80, 40)
    assert {finding.verdict for finding in first + second} == {NOT_TESTABLE}
    ours = (
        run.table("table1").set_index(["base", "method", "benchmark", "metric"]).sort_index().loc["qwen2_5", "ppo_vrm"]
    )
    row = ours.loc["alpaca_eval", "win_rate"]
    found = _cell(first, "Qwen2.5-7B, VRM-PPO: AlpacaEval 2 WR")
    assert (found.paper, found.ours) == ("45.30", f"{row.estimate:.2f} [{row.low:.2f}, {row.high:.2f}]")
    assert found.resampled == row.resampled
    assert (
        found.why == "not the paper's base policy, training data, reward model's backbone, judge, questions, references"
    )
    row = run.table("table2").set_index(["variant", "column"]).loc["vrm", "UF-C"]
    found = _cell(second, "VRM: UF-C")
    assert (found.paper, found.ours) == ("92.36", f"{row.estimate:.1f} [{row.low:.1f}, {row.high:.1f}]")


def test_a_method_that_is_not_run_has_no_value_of_another_with_the_papers_number(config, results):
    run = PaperRun(config, results)
    found = list(page.table1_numbers(run))
    other = _cell(found, "Qwen2.5-7B, SimPO: Arena-Hard WR")
    lacking = _cell(found, "Qwen2.5-7B, IPO: Arena-Hard WR")
    assert other.paper == lacking.paper == "54.6", "the paper has the same number twice"
    assert other.ours != "—"
    assert (lacking.ours, lacking.why) == ("—", "IPO is not in this run")
    found = _cell(page.table2_numbers(run), "WPO: RewardBench Chat")
    assert (found.ours, found.why) == ("—", "WPO is not in this run")


def test_rows_are_told_by_the_papers_name_and_not_by_label_or_number(scale):
    table = scale.table("table1")
    table["label"], table["paper"] = "mine", 71.9
    scale.table("table2")["paper"] = 50.0
    for name in ("DPO", "PPO"):  # both have 71.9 in the paper
        own = (table.base == "qwen3") & (table.paper_method == name) & (table.metric == "sc_win_rate")
        table.loc[own, ["estimate", "low", "high"]] = (len(name), 0, 9)
        assert _cell(page.table1_numbers(scale), f"Qwen3-8B, {name}: Arena-Hard SC").ours.startswith(f"{len(name)}.0 ")
    assert _cell(page.table2_numbers(scale), "VRM: UF-C").ours == "91.4 [90.9, 91.9]"


def test_two_rows_of_one_name_are_none_of_the_papers(scale):
    table = scale.table("table1")
    table.loc[table.paper_method == "IPO", "paper_method"] = "DPO"
    found = _cell(page.table1_numbers(scale), "Qwen3-8B, DPO: MT-Bench score")
    assert (found.ours, found.why) == ("—", "dpo, ipo are all called DPO")


@pytest.mark.parametrize(("shift", "verdict"), [(0.4, AGREES), (1.0, DISAGREES)])
def test_the_papers_own_models_and_data_are_compared(scale, shift, verdict):
    for table in (scale.table("table1"), scale.table("table2")):
        table[["estimate", "low", "high"]] += 1 - shift
    found = [*page.table1_numbers(scale), *page.table2_numbers(scale)]
    assert [f.verdict for f in found] == [verdict] * 120


def test_a_value_without_an_interval_is_not_compared(scale):
    table = scale.table("table1")
    official = table.metric == "lc_win_rate"
    table.loc[official, ["low", "high"]] = NAN
    found = list(page.table1_numbers(scale))
    bare = [f for f in found if f.what.endswith("AlpacaEval 2 LC")]
    assert {(f.verdict, f.why) for f in bare} == {(NOT_TESTABLE, "no interval in this run")}
    assert {f.verdict for f in found if f not in bare} == {DISAGREES}
    assert "[" not in bare[0].ours + bare[0].resampled


@pytest.mark.parametrize(
    ("model", "same"),
    [
        ("gpt-4o", True),
        ("gpt-4o-2024-08-06", True),
        ("gpt-4o-mini", False),
        ("gpt-4o-mini-2024-07-18", False),
        ("gpt-4o-audio-preview", False),
        ("gpt-4", False),
    ],
)
def test_only_gpt_4o_is_the_papers_judge(paper, files, model, same):
    config = parse(merge(paper.model_dump(mode="json"), {"judge": {"model": model}}))
    found = list(page.table1_numbers(_scale(config, files)))
    assert {f.why == "not the paper's judge" for f in found} == {not same}


HUB = {"dataset": "somebody/else", "revision": "0" * 40}


@pytest.mark.parametrize(
    ("changes", "why", "columns"),
    [
        ({"data": {"hub": HUB}}, "training data", "AlpacaEval 2 WR|AlpacaEval 2 LC|Arena-Hard|MT-Bench"),
        (
            {"benchmarks": {"alpaca_eval": {"references": {"qwen3": "gpt-4o-2024-05-13"}}}},
            "references",
            "Qwen3.*Alpaca",
        ),
        (
            {"benchmarks": {"alpaca_eval": {"references": {"qwen2_5": "gpt4_1106_preview"}}}},
            "references",
            "2.5.*Alpaca",
        ),
        ({"benchmarks": {"arena_hard": {"baseline": "gpt-4-0314"}}}, "baseline", "Arena-Hard"),
        ({"backbone": {"path": "Qwen/Qwen3-0.6B"}}, "reward model's backbone", ", (VRM-)?PPO:"),
        ({"policy": {"bases": {"qwen3": {"path": "Qwen/Qwen3-4B"}}}}, "base policy", "Qwen3-8B"),
    ],
)
def test_whatever_a_number_of_table_1_depends_on_has_to_be_the_papers(paper, files, changes, why, columns):
    config = parse(merge(paper.model_dump(mode="json"), changes))
    found = list(page.table1_numbers(_scale(config, files)))
    unlike = {f.what for f in found if f.verdict == NOT_TESTABLE}
    assert unlike == {f.what for f in found if re.search(columns, f.what)}
    assert {f.why for f in found if f.what in unlike} == {f"not the paper's {why}"}


def test_style_control_over_another_set_of_policies_is_another_number(paper, files, tmp_path):
    preset = paper.model_dump(mode="json")
    preset["policy"]["run"].append("ppo_vrm_lambda0")
    more = parse(preset)
    root = write_judged(more, tmp_path, official_lc=True)
    (root / "judged" / "sets").symlink_to(files / "judged" / "sets")
    found = list(page.table1_numbers(_scale(more, root)))
    unlike = {f.what: f.why for f in found if f.verdict == NOT_TESTABLE}
    assert set(unlike) == {f.what for f in found if f.what.endswith("Arena-Hard SC")}
    assert set(unlike.values()) == {"not the paper's set of policies"}


@pytest.mark.parametrize("official", [[False, None], [None, None]])
def test_questions_that_are_not_the_official_ones_are_others(paper, files, tmp_path, official):
    for name in paper.benchmarks.run:
        folder = tmp_path / "judged" / "sets" / name
        folder.mkdir(parents=True)
        record = {"files": [{"official": value} for value in official]}
        (folder / "files.json").write_text(json.dumps(record))
    write_judged(paper, tmp_path, official_lc=True)
    found = list(page.table1_numbers(_scale(paper, tmp_path)))
    assert {f.why for f in found} == {"not the paper's questions"}


@pytest.mark.parametrize(
    ("changes", "why", "rows"),
    [
        ({"data": {"hub": HUB}}, "training data", ""),
        ({"backbone": {"path": "Qwen/Qwen3-0.6B"}}, "backbone", "V?RM: "),
        ({"policy": {"bases": {"qwen2_5": {"path": "Qwen/Qwen3-4B"}}}}, "base policy", "(?!V?RM: )"),
        ({"evaluation": {"sets": {"uf_c": {"hub": HUB}}}}, "evaluation set", ".*UF-C"),
        ({"evaluation": {"sets": {"reward_bench": {"hub": HUB}}}}, "evaluation set", ".*RewardBench"),
    ],
)
def test_whatever_a_number_of_table_2_depends_on_has_to_be_the_papers(paper, files, changes, why, rows):
    config = parse(merge(paper.model_dump(mode="json"), changes))
    found = list(page.table2_numbers(_scale(config, files)))
    assert {f.what for f in found if f.verdict == NOT_TESTABLE} == {f.what for f in found if re.match(rows, f.what)}
    assert {f.why for f in found if f.verdict == NOT_TESTABLE} == {f"not the paper's {why}"}


def test_an_lc_that_is_not_there_says_why(config, results):
    found = [f for f in page.table1_numbers(PaperRun(config, results)) if f.what.endswith(" LC")]
    asked = [f for f in found if "not in this run" not in f.why]
    assert len(found) == 16
    assert len(asked) == 2 * 5
    assert {f.why for f in asked} == {"LC is defined for the official 805 instructions"}


def test_the_page_is_written_whole_and_counts_its_verdicts(written):
    entries, text, html = written
    assert (entries["where"] == "Table 1").sum() == 80 + 70
    assert html.count("<figure>") == 3
    counts = entries.head(len(entries) - 120).verdict.value_counts()
    said = re.search(r"(\d+) entries: (\d+) agrees, (\d+) disagrees, (\d+) undecided, (\d+) not testable", text)
    verdicts = (AGREES, DISAGREES, UNDECIDED, NOT_TESTABLE)
    assert [int(n) for n in said.groups()] == [counts.sum(), *(counts.get(verdict, 0) for verdict in verdicts)]
    assert counts[UNDECIDED] > 0
    own = entries[(entries.made == "tables/paper.md") & entries.p_holm.notna()].tests
    assert f"the other tests ({own.iloc[0]})" in text
    assert "this verdict is ours" in text


def test_brackets_say_what_they_are_over(written):
    entries, text, _ = written
    assert (entries.resampled.notna() == entries.ours.str.contains(r"\[")).all()
    row = next(line for line in text.splitlines() if "VRM-PPO above SimPO" in line)
    assert "<br>over prompts (one seed, Student's t) |" in row


def test_one_number_in_two_entries_is_named(written):
    lines = written[1].splitlines()
    twice = next(line for line in lines if "One number in two entries" in line)
    claim = next(line for line in lines if "UF-C: VRM above RM" in line)
    assert claim.split(" | ")[3].split("<br>")[0] in twice


def test_no_raw_name_stands_in_a_sentence(written):
    entries, text, _ = written
    assert not re.search(r"win\\?_rate|kl\\?_total|kl total|seed\(s\)", text)
    assert entries.what.str.contains("_").sum() == 0


def test_a_table_that_is_not_there_is_named(config, results, tmp_path):
    (tmp_path / "judged").symlink_to(results / "judged")
    with pytest.raises(RecordError, match=r"table1\.csv is not there"):
        page.paper_page(config, tmp_path, tmp_path)


def test_a_table_of_an_older_version_is_named(config, results, tmp_path):
    (tmp_path / "tables").mkdir()
    table = pd.read_csv(results / "tables" / "table1.csv").drop(columns="paper_method")
    table.to_csv(tmp_path / "tables" / "table1.csv", index=False)
    with pytest.raises(RecordError, match=r"table1\.csv: lacks the column paper_method; make it again"):
        page.paper_page(config, tmp_path, tmp_path)


def test_a_run_without_any_of_the_tables_still_lists_every_number_and_claim(config, tmp_path):
    bare = config.model_copy(update={"report": config.report.model_copy(update={"tables": [], "figures": []})})
    csv, *_ = page.paper_page(bare, tmp_path, tmp_path / "out")
    entries = pd.read_csv(csv)
    assert len(entries) == 120 + 70 + 65 + 4 + 1 + 1 + 3 + 1
    assert set(entries.verdict) == {NOT_TESTABLE}
    assert entries.why.notna().all()
    assert np.isnan(entries.p_holm).all()
