"""What the judge will be asked: from the sets' sizes, without what is heavy to import."""

import json
import subprocess
import sys

import pytest
from paths import ROOT, SHARED

from vrm.config import Config, Prices, load, merge
from vrm.data.benchmark_files import FOLDERS
from vrm.planning.judge_cost import OFFICIAL, judge_costs, price, questions
from vrm.records import RecordError

PAPER = [ROOT / "config.yaml", ROOT / "workflow" / "presets" / "paper.yaml"]
BENCHMARKS = SHARED / "data" / "benchmarks"


@pytest.fixture(scope="module")
def paper():
    return load(PAPER)


def of(config, directory):
    return Config.model_validate(merge(config.model_dump(mode="json"), {"data": {"benchmarks_dir": str(directory)}}))


def test_requests_times_tokens_times_prices(paper):
    costs = {cost.benchmark: cost for cost in judge_costs(paper)}
    assert len(paper.judged_policies) == 18
    assert {name: cost.requests for name, cost in costs.items()} == {
        "alpaca_eval": 18 * 805,
        "arena_hard": 18 * 500 * 2,
        "mt_bench": 18 * 80 * 2,
    }
    for name, cost in costs.items():
        assert cost.prompt_tokens == cost.requests * OFFICIAL[name].prompt
        assert cost.completion_tokens == cost.requests * OFFICIAL[name].completion
        assert cost.dollars == pytest.approx((cost.prompt_tokens * 2.5 + cost.completion_tokens * 10) / 1e6)
    dearer = paper.judge.model_copy(update={"prices": Prices(prompt=5.0, completion=20.0)})
    twice = judge_costs(paper.model_copy(update={"judge": dearer}))
    assert [cost.dollars for cost in twice] == pytest.approx([2 * cost.dollars for cost in costs.values()])
    unknown = judge_costs(paper.model_copy(update={"judge": paper.judge.model_copy(update={"prices": None})}))
    assert [cost.dollars for cost in unknown] == [None] * 3


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no shared data here")
def test_the_official_sizes_are_those_of_the_official_files(paper):
    assert {name: questions(of(paper, BENCHMARKS), name) for name in OFFICIAL} == {
        name: official.questions for name, official in OFFICIAL.items()
    }


def test_ones_own_files_are_counted_and_those_that_are_not_here_are_taken_for_official(paper, tmp_path):
    config = of(paper, tmp_path)
    assert questions(config, "mt_bench") == 80
    for folder in FOLDERS.values():
        (tmp_path / folder).mkdir()
    # JSON may hold what Python takes for line ends
    rows = [json.dumps({"turns": [{"content": "a\u2028b\u0085c"}]}, ensure_ascii=False) for _ in range(3)]
    (tmp_path / "arena_hard_v0.1" / "question.jsonl").write_text("\n".join([*rows, "", ""]), encoding="utf-8")
    assert questions(config, "arena_hard") == 3
    path = tmp_path / "alpaca_eval" / "reference_outputs.json"
    path.write_text(json.dumps([{}] * 7))
    assert questions(config, "alpaca_eval") == 7
    assert {cost.benchmark: cost.requests for cost in judge_costs(config)} == {
        "alpaca_eval": 18 * 7,
        "arena_hard": 18 * 3 * 2,
        "mt_bench": 18 * 80 * 2,
    }
    for broken in ("[{", "7"):
        path.write_text(broken)
        with pytest.raises(RecordError, match=r"reference_outputs\.json: no JSON list of prompts .*docs/data\.md"):
            questions(config, "alpaca_eval")


def test_a_judge_that_is_served_here_is_free_unless_it_has_prices(paper):
    remote, prices = paper.judge.model_copy(update={"prices": None}), paper.judge.prices
    local = load([ROOT / "config.yaml"]).judge
    assert price(remote, None) == "price unknown"
    assert price(local, None) == "a local judge, free"
    assert price(paper.judge, 1234.5) == "$1,234.50"
    assert price(local.model_copy(update={"prices": prices}), 2.0, "at most ") == "at most $2.00"


def test_a_fresh_plan_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, vrm.cli\n"
        f"vrm.cli.main(['plan', '--config', *{list(map(str, PAPER))!r}])\n"
        "assert not {'pandas', 'torch', 'transformers', 'alpaca_eval', 'vrm.judged'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "18,000 requests" in done.stdout
    assert "Judged so far" not in done.stdout
    assert not list(tmp_path.iterdir())
