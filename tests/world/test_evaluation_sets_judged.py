"""The judged benchmarks' files: layout, new prompts, second turns that stand by themselves, and decent opponents."""

import json
import string
import subprocess
import sys

import numpy as np
import pytest
import yaml
from paths import SHARED

from vrm.config import WorldConfig
from vrm.data.benchmark_sets import MT_REFERENCE_CATEGORIES
from vrm.judged.arena_hard import LABELS, VERDICT
from vrm.judged.arena_scores import style
from vrm.judged.mt_bench import TEMPERATURES
from vrm.records import count_words
from vrm.world import prompts
from vrm.world.evaluation_sets import AUTHORS_NAME, BASELINE_NAME, REFERENCE_NAME, write_benchmarks
from vrm.world.gold import gold_reward
from vrm.world.prompts import KINDS
from vrm.world.write import write_world

CONFIG = WorldConfig(
    prompts=60,
    evaluation_prompts=10,
    pairs_per_subset=1,
    pairs_per_probe=5,
    instructions=120,
    arena_prompts=120,
    mt_bench_questions=40,
)
REFERENCES = "alpaca_eval/reference_outputs.json"
QUESTIONS = "arena_hard_v0.1/question.jsonl"
BASELINE = f"arena_hard_v0.1/model_answer/{BASELINE_NAME}.jsonl"
JUDGE_CONFIG = "arena_hard_v0.1/judge_config.yaml"
MT_QUESTIONS = "mt_bench/question.jsonl"
MT_PROMPTS = "mt_bench/judge_prompts.jsonl"
MT_REFERENCES = f"mt_bench/reference_answer/{REFERENCE_NAME}.jsonl"
FILES = {REFERENCES, QUESTIONS, BASELINE, JUDGE_CONFIG, MT_QUESTIONS, MT_PROMPTS, MT_REFERENCES}


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(CONFIG, out)
    return out


def _files(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def _rows(out, name):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def _alpaca(out):
    return json.loads((out / REFERENCES).read_text())


def _asked(out):
    """All prompts, second turns included."""
    turns = [turn["content"] for row in _rows(out, QUESTIONS) for turn in row["turns"]]
    return (
        [row["instruction"] for row in _alpaca(out)] + turns + [t for q in _rows(out, MT_QUESTIONS) for t in q["turns"]]
    )


def test_the_files_lie_where_the_public_ones_do_and_a_seed_decides_their_bytes(benchmarks, tmp_path):
    write_benchmarks(CONFIG, tmp_path / "again")
    write_benchmarks(CONFIG.model_copy(update={"seed": 1}), tmp_path / "other")
    written, other = _files(benchmarks), _files(tmp_path / "other")
    assert set(written) == FILES
    assert written == _files(tmp_path / "again")
    same = {name for name in FILES if written[name] == other[name]}
    assert same == {JUDGE_CONFIG, MT_PROMPTS}


def test_the_size_of_one_set_changes_no_other(benchmarks, tmp_path):
    write_benchmarks(CONFIG.model_copy(update={"instructions": 7, "arena_prompts": 9}), tmp_path)
    written = _files(tmp_path)
    assert all(_files(benchmarks)[name] == written[name] for name in FILES if name.startswith("mt_bench"))
    assert _alpaca(benchmarks)[:7] == _alpaca(tmp_path)
    assert _rows(benchmarks, BASELINE)[:9] == _rows(tmp_path, BASELINE)


def test_no_prompt_occurs_in_training_even_where_evaluation_sets_may_leak(tmp_path):
    config = CONFIG.model_copy(update={"leaked_share": 0.9})
    write_world(config, tmp_path)
    known = {row["instruction"] for row in _rows(tmp_path, "ultrafeedback.jsonl")}
    write_benchmarks(config, tmp_path)
    assert len(known) == 60
    assert known.isdisjoint(_asked(tmp_path))


def test_a_prompt_that_training_has_is_drawn_anew(benchmarks, tmp_path, monkeypatch):
    planted = prompts.parse(_alpaca(benchmarks)[0]["instruction"])
    monkeypatch.setattr("vrm.world.evaluation_sets._training_requests", lambda _: [planted])
    write_benchmarks(CONFIG, tmp_path)
    assert planted.text not in _asked(tmp_path)


def test_the_prompts_known_to_these_sets_are_those_of_the_training_file(tmp_path):
    from vrm.world.evaluation_sets import _training_requests

    write_world(CONFIG, tmp_path)
    known = [row["instruction"] for row in _rows(tmp_path, "ultrafeedback.jsonl")]
    assert [request.text for request in _training_requests(CONFIG)] == known


def test_alpaca_eval_has_the_public_columns_and_distinct_prompts(benchmarks):
    rows = _alpaca(benchmarks)
    assert len({row["instruction"] for row in rows}) == len(rows) == 120
    assert {tuple(row) for row in rows} == {("dataset", "instruction", "output", "generator")}
    assert {row["generator"] for row in rows} == {AUTHORS_NAME}
    assert {row["dataset"] for row in rows} == {f"world/{kind}" for kind in KINDS}
    assert all(prompts.parse(row["instruction"]).kind == row["dataset"].removeprefix("world/") for row in rows)


def test_arena_hard_has_upstreams_records(benchmarks):
    questions, answers = _rows(benchmarks, QUESTIONS), _rows(benchmarks, BASELINE)
    assert len({q["question_id"] for q in questions}) == 120
    assert [q["question_id"] for q in questions] == [a["question_id"] for a in answers]
    assert {q["cluster"] for q in questions} == set(KINDS)
    for answer in answers:
        text = answer["choices"][0]["turns"][0]["content"]
        assert style(answer).token_len == answer["conv_metadata"]["token_len"] == count_words(text)
        assert answer["conv_metadata"]["token_counter"] == "words"


def test_mt_bench_has_both_turns_about_one_herb_and_each_can_be_read_alone(benchmarks):
    questions = _rows(benchmarks, MT_QUESTIONS)
    assert [q["question_id"] for q in questions] == list(range(1, 41))
    assert [q["category"] for q in questions[:8]] == list(TEMPERATURES)
    for question in questions:
        first, second = map(prompts.parse, question["turns"])
        assert first.kind == second.kind is not None
        assert first.herb == second.herb is not None
        assert None not in (first.form, second.form, first.item, second.item)
        assert first.form != second.form
        assert first.item != second.item
        assert (first.kind == "puzzle") == (question["category"] in MT_REFERENCE_CATEGORIES)


def test_reference_answers_are_the_best_there_are_where_the_benchmark_shows_them(benchmarks):
    questions = {q["question_id"]: q for q in _rows(benchmarks, MT_QUESTIONS)}
    references = _rows(benchmarks, MT_REFERENCES)
    wanted = [n for n, q in questions.items() if q["category"] in MT_REFERENCE_CATEGORIES]
    assert [r["question_id"] for r in references] == wanted
    for reference in references:
        turns = questions[reference["question_id"]]["turns"]
        answers = reference["choices"][0]["turns"]
        assert [gold_reward(*pair) for pair in zip(turns, answers, strict=True)] == pytest.approx([5, 5])


def test_opponents_are_decent_and_arena_hards_is_the_harder_one(benchmarks):
    easy = [gold_reward(row["instruction"], row["output"]) for row in _alpaca(benchmarks)]
    hard = [
        gold_reward(q["turns"][0]["content"], a["choices"][0]["turns"][0]["content"])
        for q, a in zip(_rows(benchmarks, QUESTIONS), _rows(benchmarks, BASELINE), strict=True)
    ]
    assert 2.5 < np.mean(easy) < np.mean(hard) < 3.6
    assert np.std(easy) > 0.7


def _placeholders(template):
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]


def test_judge_prompts_have_the_official_names_placeholders_and_formats(benchmarks):
    official = SHARED / "data/benchmarks/mt_bench/judge_prompts.jsonl"
    if not official.exists():
        pytest.skip("the official judge prompts are not here")
    public = {row["name"]: row for row in _rows(official.parent, official.name) if row["type"] == "single"}
    ours = {row["name"]: row for row in _rows(benchmarks, MT_PROMPTS)}
    assert set(ours) == set(public)
    for name, row in ours.items():
        assert set(row) == set(public[name])
        assert row["output_format"] == public[name]["output_format"]
        assert _placeholders(row["prompt_template"]) == _placeholders(public[name]["prompt_template"])
        assert row["system_prompt"] != public[name]["system_prompt"]


def test_the_judge_is_told_every_verdict(benchmarks):
    config = yaml.safe_load((benchmarks / JUDGE_CONFIG).read_text())
    (template,) = config["prompt_template"]
    assert _placeholders(template) == ["question_1", "answer_1", "answer_2"]
    assert set(VERDICT.findall(config["system_prompt"])) == set(LABELS)
    assert config["baseline_model"] == BASELINE_NAME
    for row in _rows(benchmarks, MT_PROMPTS):
        assert "[[rating]]" in row["system_prompt"] + row["prompt_template"]


def test_nothing_heavy_is_imported():
    heavy = "('torch', 'transformers', 'pandas', 'alpaca_eval')"
    code = f"import sys, vrm.world.evaluation_sets; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
