"""The readers of the judged benchmarks: what they take, and that every fault names file, row and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vrm.config import ConfigError
from vrm.config.benchmarks import AlpacaEval, ArenaHard
from vrm.data import benchmark_sets as sets
from vrm.judged.arena_scores import token_len
from vrm.judged.mt_bench import QUESTION_CATEGORIES, TEMPERATURES
from vrm.records import RecordError, read_jsonl, write_json, write_jsonl

QUESTIONS = ["q1", "q2", "q3", "q4", "q5"]
BASELINE = ArenaHard(baseline="base", token_counter="words")


@pytest.fixture
def alpaca(tmp_path) -> Path:
    rows = [{"dataset": "d", "instruction": f"Do {i}.", "output": f"Done {i}.", "generator": "ref"} for i in range(4)]
    write_json(tmp_path / "reference_outputs.json", rows)
    return tmp_path


@pytest.fixture
def arena(tmp_path) -> Path:
    write_jsonl(
        tmp_path / "question.jsonl",
        [{"question_id": q, "cluster": "c", "turns": [{"content": f"Ask {q}?"}]} for q in QUESTIONS],
    )
    answers = [
        {
            "question_id": q,
            "model_id": "base",
            "choices": [{"index": 0, "turns": [{"content": f"Answer {q}.", "token_len": 3}]}],
            "conv_metadata": {"token_len": 3, "token_counter": "words"},
        }
        for q in reversed(QUESTIONS)
    ]
    write_jsonl(tmp_path / "model_answer/base.jsonl", answers)
    prompt = {"system_prompt": "Judge.", "prompt_template": ["{question_1} {answer_1} {answer_2}"]}
    (tmp_path / "judge_config.yaml").write_text(yaml.safe_dump(prompt))
    return tmp_path


@pytest.fixture
def mt_bench(tmp_path) -> Path:
    questions = [
        {"question_id": i, "category": c, "turns": [f"First {i}?", f"Then {i}?"]}
        for i, c in enumerate(["writing", "math", "coding"], 1)
    ]
    write_jsonl(tmp_path / "question.jsonl", questions)
    references = [{"question_id": i, "choices": [{"turns": [f"One {i}.", f"Two {i}."]}]} for i in (2, 3)]
    write_jsonl(tmp_path / "reference_answer/ref.jsonl", references)
    prompts = [
        {"name": name, "system_prompt": "Rate.", "prompt_template": " ".join(f"{{{field}}}" for field in fields)}
        for name, fields in sets.MT_FIELDS.items()
    ]
    write_jsonl(tmp_path / "judge_prompts.jsonl", [{"name": "pair-v2", "prompt_template": "{other}"}, *prompts])
    return tmp_path


def edit(path: Path, row: int, **fields: Any) -> None:
    """Set fields of one row (from 1) of a .json or .jsonl file; a field of None is taken out."""
    rows = json.loads(path.read_text()) if path.suffix == ".json" else [r for _, r in read_jsonl(path)]
    rows[row - 1] = {name: value for name, value in {**rows[row - 1], **fields}.items() if value is not None}
    write_json(path, rows) if path.suffix == ".json" else write_jsonl(path, rows)


def drop(path: Path, *rows: int) -> None:
    write_jsonl(path, [row for number, row in read_jsonl(path) if number not in rows])


def test_alpaca_eval_keeps_order_and_number(alpaca):
    rows = sets.read_alpaca_eval(alpaca, "qwen3", AlpacaEval())
    assert [row["instruction"] for row in rows] == [f"Do {i}." for i in range(4)]
    assert set(rows[0]) == {"dataset", "instruction", "output", "generator"}


def test_alpaca_eval_takes_a_bases_own_references(alpaca):
    others = [{"instruction": f"Do {i}.", "output": "", "generator": "other"} for i in range(4)]
    write_json(alpaca / "other/model_outputs.json", others)
    settings = AlpacaEval(references={"qwen3": "other", "qwen2": "ref"})
    assert {row["generator"] for row in sets.read_alpaca_eval(alpaca, "qwen3", settings)} == {"other"}
    assert sets.read_alpaca_eval(alpaca, "llama", settings)[0]["generator"] == "ref"
    # reference_outputs.json is by `ref` already, which needs no file of its own
    assert sets.stands_in(alpaca, "ref")
    assert sets.read_alpaca_eval(alpaca, "qwen2", settings)[0]["generator"] == "ref"

    write_json(alpaca / "other/model_outputs.json", [others[1], others[0], *others[2:]])
    with pytest.raises(RecordError, match=r"other/model_outputs\.json, row 1: another instruction"):
        sets.read_alpaca_eval(alpaca, "qwen3", settings)
    write_json(alpaca / "other/model_outputs.json", others[:3])
    with pytest.raises(RecordError, match=r"3 rows, reference_outputs\.json has 4"):
        sets.read_alpaca_eval(alpaca, "qwen3", settings)


def test_alpaca_eval_without_a_file_says_which(alpaca):
    with pytest.raises(RecordError, match=r"gpt/model_outputs\.json: no such file; .*docs/data\.md"):
        sets.read_alpaca_eval(alpaca, "b", AlpacaEval(references={"b": "gpt"}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"instruction": " "}, "row 2: instruction is empty; correct it, and leave the row in its place"),
        ({"output": None}, "row 2: output is no text; correct it, and leave the row in its place"),
        ({"generator": None}, "row 2: generator is missing"),
        ({"output": "\ud800"}, "row 2: output is not valid Unicode"),
    ],
)
def test_alpaca_eval_faults(alpaca, fields, message):
    rows = json.loads((alpaca / "reference_outputs.json").read_text())
    rows[1] = {name: value for name, value in {**rows[1], **fields}.items() if value is not None}
    (alpaca / "reference_outputs.json").write_text(json.dumps(rows))
    with pytest.raises(RecordError, match=f"reference_outputs.json, {message}"):
        sets.read_alpaca_eval(alpaca, "b", AlpacaEval())


def test_arena_hard(arena):
    assert sets.read_arena_hard(arena)[0] == sets.ArenaQuestion("q1", "Ask q1?", "c")
    baseline = sets.read_arena_baseline(arena, BASELINE)
    assert [row["question_id"] for row in baseline] == QUESTIONS
    assert baseline[0]["choices"][0]["turns"][0]["content"] == "Answer q1."
    assert sets.read_arena_judge_prompt(arena) == sets.JudgePrompt("Judge.", "{question_1} {answer_1} {answer_2}")


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        (3, {"question_id": "q1"}, r"row 3: question_id q1 is that of row 1 too; keep one"),
        (2, {"question_id": None}, r"row 2: question_id is missing"),
        (2, {"turns": [{"content": ""}]}, r"row 2, turns\[0\]: content is empty"),
        (2, {"turns": ["text"]}, r"row 2: turns\[0\] is no object"),
        (2, {"turns": []}, r"row 2: turns is not a list of 1 \(found 0 entries\)"),
    ],
)
def test_arena_question_faults(arena, row, fields, message):
    edit(arena / "question.jsonl", row, **fields)
    with pytest.raises(RecordError, match=rf"question\.jsonl, {message}"):
        sets.read_arena_hard(arena)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choices": []}, "row 2: choices is not a list of answers"),
        ({"choices": [{"turns": [{"token_len": 1}]}]}, r"row 2: choices\[0\]\.turns\[0\]\.content is no text"),
        (
            {"choices": [{"turns": [{"content": "a"}]}], "conv_metadata": None},
            "row 2: no token_len .*; count them",
        ),
        ({"choices": [{"turns": [{"content": "a", "token_len": "3"}]}]}, "row 2: no token_len"),
        ({"conv_metadata": ["words"]}, "row 2: conv_metadata is no object; leave it out"),
        ({"question_id": "q5"}, "row 2: question_id q5 is that of row 1 too"),
        ({"model_id": "other"}, "answers of base, other; one file holds one model's"),
    ],
)
def test_arena_answer_faults(arena, fields, message):
    edit(arena / "model_answer/base.jsonl", 2, **fields)
    with pytest.raises(RecordError, match=rf"base\.jsonl(, |: ){message}"):
        sets.read_arena_answers(arena / "model_answer/base.jsonl")


@pytest.mark.parametrize("turn", [{"content": "a"}, {"content": "a", "token_len": None}])
def test_token_len_may_stand_in_conv_metadata(arena, turn):
    edit(arena / "model_answer/base.jsonl", 1, choices=[{"index": 0, "turns": [turn]}])
    rows = sets.read_arena_baseline(arena, BASELINE)
    assert len(rows) == 5
    assert token_len(rows[0]) == 3  # as style control reads it


def test_baseline_answers_that_are_missing_are_counted_and_named(arena):
    drop(arena / "model_answer/base.jsonl", 1, 2, 3, 5)
    with pytest.raises(
        RecordError, match=r"base\.jsonl: no answer to 4 of 5 questions \(q1, q3, q4, \.\.\.\); add them"
    ):
        sets.read_arena_baseline(arena, BASELINE)


def test_baseline_is_who_it_says_and_counts_tokens_as_configured(arena):
    with pytest.raises(ConfigError, match=r"set benchmarks\.arena_hard\.token_counter to 'words'"):
        sets.read_arena_baseline(arena, ArenaHard(baseline="base"))
    (arena / "model_answer/base.jsonl").rename(arena / "model_answer/renamed.jsonl")
    with pytest.raises(RecordError, match=r"renamed\.jsonl: answers of base"):
        sets.read_arena_baseline(arena, ArenaHard(baseline="renamed", token_counter="words"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prompt_template": ["{question_1} {answer_1} {answer_2}"]}, "system_prompt is missing"),
        (
            {"system_prompt": "s", "prompt_template": "{question_1}"},
            r"prompt_template is not a list of 1 \(found str\)",
        ),
        ({"system_prompt": "s", "prompt_template": ["{question_1} {answer_1}"]}, r"prompt_template lacks \{answer_2\}"),
        (
            {"system_prompt": "s", "prompt_template": ["{QUESTION} {question_1} {answer_1} {answer_2}"]},
            r"has an unknown \{QUESTION\}",
        ),
        ({"system_prompt": "s", "prompt_template": ["{question_1"]}, "no format string"),
        ("text", "expected keys `system_prompt` and `prompt_template`"),
    ],
)
def test_arena_judge_prompt_faults(arena, config, message):
    (arena / "judge_config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(RecordError, match=rf"judge_config\.yaml: .*{message}"):
        sets.read_arena_judge_prompt(arena)


def test_mt_bench(mt_bench):
    assert sets.read_mt_bench(mt_bench)[1] == sets.MtQuestion(2, "math", ("First 2?", "Then 2?"))
    assert sets.read_mt_references(mt_bench, "ref") == {2: ("One 2.", "Two 2."), 3: ("One 3.", "Two 3.")}
    assert list(sets.read_mt_judge_prompts(mt_bench)) == list(sets.MT_FIELDS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"category": "cooking"}, "row 2: category 'cooking' has no temperature; known are: writing, "),
        ({"turns": ["one"]}, r"row 2: turns is not a list of 2 \(found 1 entries\)"),
        ({"turns": ["one", " "]}, r"row 2: turns\[1\] is empty"),
        ({"question_id": 1}, "row 2: question_id 1 is that of row 1 too"),
    ],
)
def test_mt_question_faults(mt_bench, fields, message):
    edit(mt_bench / "question.jsonl", 2, **fields)
    with pytest.raises(RecordError, match=rf"question\.jsonl, {message}"):
        sets.read_mt_bench(mt_bench)


def test_mt_references_are_there_where_they_are_needed(mt_bench):
    drop(mt_bench / "reference_answer/ref.jsonl", 1)
    with pytest.raises(RecordError, match=r"ref\.jsonl: no answer to 1 of 2 questions \(2\)"):
        sets.read_mt_references(mt_bench, "ref")
    edit(mt_bench / "reference_answer/ref.jsonl", 1, choices=[{"turns": ["one"]}])
    with pytest.raises(RecordError, match=r"ref\.jsonl, row 1, choices\[0\]: turns is not a list of 2"):
        sets.read_mt_references(mt_bench, "ref")


def test_mt_judge_prompt_faults(mt_bench):
    path = mt_bench / "judge_prompts.jsonl"
    edit(path, 3, prompt_template="{question} {answer}")
    with pytest.raises(RecordError, match=r"judge_prompts\.jsonl, row 3: prompt_template lacks \{ref_answer_1\}"):
        sets.read_mt_judge_prompts(mt_bench)
    drop(path, 3)
    with pytest.raises(RecordError, match=r"judge_prompts\.jsonl: no prompt single-math-v1; take FastChat's"):
        sets.read_mt_judge_prompts(mt_bench)


def test_an_empty_file_and_a_broken_row_are_errors(mt_bench):
    path = mt_bench / "question.jsonl"
    path.write_text('{"question_id": 1}\nversion https://git-lfs.github.com/spec/v1\n')
    with pytest.raises(RecordError, match=r"question\.jsonl, row 2: not valid JSON"):
        sets.read_mt_bench(mt_bench)
    path.write_text("\n")
    with pytest.raises(RecordError, match=r"question\.jsonl: holds no rows"):
        sets.read_mt_bench(mt_bench)


def test_categories_are_those_that_evaluation_knows():
    assert tuple(TEMPERATURES) == sets.MT_CATEGORIES
    assert set(sets.MT_REFERENCE_CATEGORIES) == {"math", "reasoning", "coding"}


def test_official_alpaca_eval(shared_data):
    directory = shared_data / "benchmarks/alpaca_eval"
    rows = sets.read_alpaca_eval(directory, "b", AlpacaEval(references={"b": "gpt4_1106_preview"}))
    assert len(rows) == 805
    assert {row["generator"] for row in rows} == {"gpt4_1106_preview"}
    # the package's answers of another model are in the same order
    alpaca_7b = sets.read_alpaca_eval(directory, "b", AlpacaEval(references={"b": "alpaca-7b"}))
    assert [row["instruction"] for row in alpaca_7b] == [row["instruction"] for row in rows]


def test_official_arena_hard(shared_data):
    directory = shared_data / "benchmarks/arena_hard_v0.1"
    questions = sets.read_arena_hard(directory)
    assert (len(questions), questions[0].cluster) == (500, "ABC Sequence Puzzles & Groups")
    baseline = sets.read_arena_baseline(directory, ArenaHard())
    assert [row["question_id"] for row in baseline] == [question.question_id for question in questions]
    for model in ("gpt-4-0613", "gpt-3.5-turbo-0125"):
        assert len(sets.read_arena_answers(directory / f"model_answer/{model}.jsonl")) == 500


def test_official_mt_bench(shared_data):
    directory = shared_data / "benchmarks/mt_bench"
    assert {q.question_id: q.category for q in sets.read_mt_bench(directory)} == QUESTION_CATEGORIES
    references = sets.read_mt_references(directory, "gpt-4")
    assert sorted(references) == [i for i, c in QUESTION_CATEGORIES.items() if c in sets.MT_REFERENCE_CATEGORIES]
    prompts = sets.read_mt_judge_prompts(directory)
    # the published GPT-4 judgments hold the prompts that were made of these templates
    published = directory / "model_judgment/gpt-4_single.mistral-orpo-trl.jsonl"
    answers = {
        r["question_id"]: r["choices"][0]["turns"]
        for _, r in read_jsonl(directory / "model_answer/mistral-orpo-trl.jsonl")
    }
    questions = {q.question_id: q.turns for q in sets.read_mt_bench(directory)}
    for _, record in read_jsonl(published):
        question, answer = questions[record["question_id"]], answers[record["question_id"]]
        fields = {"question": question[0], "answer": answer[0]}
        fields |= {f"question_{i}": text for i, text in enumerate(question, 1)}
        fields |= {f"answer_{i}": text for i, text in enumerate(answer, 1)}
        reference = references.get(record["question_id"], ())
        fields |= {f"ref_answer_{i}": text for i, text in enumerate(reference, 1)}
        assert prompts[record["judge"][1]].template.format(**fields) == record["user_prompt"]
