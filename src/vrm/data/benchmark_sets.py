"""The judged benchmarks' files: questions, reference answers and judge prompts, in their own public formats.

* A directory is what `vrm benchmark-set` filled, or one benchmark's part of `data.benchmarks_dir`: both have the same
  names (docs/data.md).
* Nothing is skipped: a benchmark with a row left out is another benchmark. The first row that can't be used is an error
  that names file, row, field and remedy.
* AlpacaEval takes an instruction's difficulty by its position, so its rows keep their order and number.

Source: tatsu-lab/alpaca_eval; lmarena/arena-hard-auto v0.1, `gen_judgment.py`; lm-sys/FastChat, `fastchat/llm_judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from vrm.config import ConfigError, Source
from vrm.config.benchmarks import FILES, AlpacaEval, ArenaHard
from vrm.data.fields import Unusable, parse_label, parse_text
from vrm.data.sources import read_rows
from vrm.records import RecordError, write_json, write_jsonl

QuestionId = int | str

Row = dict[str, Any]


def first_choice(row: Row, where: str) -> Row:
    """The answer in a record of upstream's; there is one."""
    choices = row.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise RecordError(f'{where}: choices is not a list of answers; expected [{{"index": 0, "turns": [...]}}]')
    return choices[0]


def get_turns(turns: list[Any], what: str, where: str) -> tuple[str, str]:
    """Two turns as texts with something in them; `what` names the list."""
    named = {f"{what}[{i}]": turn for i, turn in enumerate(turns)}
    first, second = (get_text(named, name, where) for name in named)
    return first, second


def get_template(row: Row, expected: Sequence[str], where: str) -> str:
    """`row["prompt_template"]`, a format string with exactly the expected placeholders."""
    template = get_text(row, "prompt_template", where)
    try:
        found = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise RecordError(f"{where}: prompt_template is no format string ({error}); double its other braces") from None
    missing, unknown = sorted(set(expected) - found), sorted(found - set(expected))
    if missing or unknown:
        wrong = [f"lacks {{{name}}}" for name in missing] + [f"has an unknown {{{name}}}" for name in unknown]
        raise RecordError(f"{where}: prompt_template {', '.join(wrong)}; it must have {', '.join(expected)}")
    return template


def require_answers(path: Path, questions: Sequence[QuestionId], answers: Mapping[QuestionId, Any]) -> None:
    """Raise RecordError where questions have no answer: how many, and the first three."""
    missing = [str(question) for question in questions if question not in answers]
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise RecordError(f"{path}: no answer to {len(missing)} of {len(questions)} questions ({first}); add them")


def rows_by_question(path: Path) -> Iterator[tuple[str, Row]]:
    """(file and row, record) of each row, whose `question_id` occurs once."""
    seen: dict[QuestionId, int] = {}
    for number, row in rows_of(path):
        where, question = f"{path}, row {number}", row.get("question_id")
        if isinstance(question, bool) or not isinstance(question, int | str) or question == "":
            raise RecordError(f"{where}: question_id is missing, or neither number nor text; give each row its own")
        if question in seen:
            raise RecordError(f"{where}: question_id {question} is that of row {seen[question]} too; keep one")
        seen[question] = number
        yield where, row


def rows_of(path: Path) -> list[tuple[int, Row]]:
    """(row number from 1, record) of a .json or .jsonl file; at least one."""
    rows = list(read_rows(Source(path=str(existing_file(path)))))
    if not rows:
        raise RecordError(f"{path}: holds no rows; take the file again from where it comes from (docs/data.md)")
    return rows


def existing_file(path: Path) -> Path:
    """The path, where there is a file."""
    if not path.is_file():
        raise RecordError(f"{path}: no such file; `vrm benchmark-set` fills the directory, docs/data.md says with what")
    return path


def get_list(row: Mapping[str, Any], name: str, length: int, where: str) -> list[Any]:
    """A list of so many entries."""
    value = row.get(name)
    if not isinstance(value, list) or len(value) != length:
        found = f"{len(value)} entries" if isinstance(value, list) else type(value).__name__
        raise RecordError(f"{where}: {name} is not a list of {length} (found {found}); see docs/data.md for the format")
    return value


def get_text(row: Mapping[str, Any], name: str, where: str, remedy: str = "correct it") -> str:
    """A text with something in it."""
    return _parsed(parse_text, row, name, where, remedy)


def get_label(row: Mapping[str, Any], name: str, where: str) -> str:
    """A text that may be empty or missing."""
    return _parsed(parse_label, row, name, where, "correct it")


def _parsed(parse: Callable[[Any, str], str], row: Mapping[str, Any], name: str, where: str, remedy: str) -> str:
    try:
        return parse(row.get(name), name)
    except Unusable as error:
        raise RecordError(f"{where}: {error}; {remedy}") from None


MT_CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""MT-Bench's categories; the temperature of an answer goes by them."""

MT_REFERENCE_CATEGORIES = ("math", "reasoning", "coding")
"""Categories whose judge prompts show a reference answer (FastChat's `NEED_REF_CATS`)."""

ARENA_FIELDS = ("question_1", "answer_1", "answer_2")
"""Placeholders of Arena-Hard's judge prompt."""

_ONE_TURN, _TWO_TURNS = ("question", "answer"), ("question_1", "answer_1", "question_2", "answer_2")

MT_FIELDS: dict[str, tuple[str, ...]] = {
    "single-v1": _ONE_TURN,
    "single-math-v1": (*_ONE_TURN, "ref_answer_1"),
    "single-v1-multi-turn": _TWO_TURNS,
    "single-math-v1-multi-turn": (*_TWO_TURNS, "ref_answer_1", "ref_answer_2"),
}
"""Placeholders of MT-Bench's prompts of single-answer grading, by the prompt's name."""

IN_PLACE = "correct it, and leave the row in its place"


@dataclass(frozen=True)
class ArenaQuestion:
    """One of Arena-Hard's prompts; `cluster` is its topic ("" where there is none)."""

    question_id: QuestionId
    prompt: str
    cluster: str


@dataclass(frozen=True)
class MtQuestion:
    """One of MT-Bench's questions: two turns of the user."""

    question_id: QuestionId
    category: str
    turns: tuple[str, str]


@dataclass(frozen=True)
class JudgePrompt:
    """What a judge is told: the system prompt, and a template for `str.format`."""

    system: str
    template: str


def read_alpaca_eval(directory: Path, base: str, settings: AlpacaEval) -> list[Row]:
    """The reference answers for policies of one base, in the benchmark's order.

    Args:
        directory: the benchmark's files.
        base: of the policy.
        settings: `references` says whose answers are a base's references; else, reference_outputs.json has them.

    Returns:
        One row an instruction: `dataset`, `instruction`, `output`, `generator`.

    Raises:
        RecordError: a file is missing, a row can't be used, or another generator's file asks something else.
    """
    default = _alpaca_rows(directory / "reference_outputs.json")
    generator = settings.references.get(base)
    if generator is None or (_is_by(default, generator) and not _outputs_of(directory, generator).is_file()):
        return default
    path = _outputs_of(directory, generator)
    rows = _alpaca_rows(path)
    if len(rows) != len(default):
        raise RecordError(
            f"{path}: {len(rows)} rows, reference_outputs.json has {len(default)}; both must ask the same"
        )
    for number, (row, other) in enumerate(zip(rows, default, strict=True), 1):
        if row["instruction"] != other["instruction"]:
            raise RecordError(
                f"{path}, row {number}: another instruction than in reference_outputs.json; put its rows in that order"
            )
    return rows


def stands_in(directory: Path, generator: str) -> bool:
    """Whether reference_outputs.json holds the answers of `generator`, so that it needs no file of its own."""
    return _is_by(_alpaca_rows(directory / "reference_outputs.json"), generator)


def read_arena_hard(directory: Path) -> list[ArenaQuestion]:
    """Arena-Hard's prompts, in the file's order.

    Raises:
        RecordError: the file is missing, a row can't be used, or two have one id.
    """
    questions = []
    for where, row in rows_by_question(directory / "question.jsonl"):
        (turn,) = get_list(row, "turns", 1, where)
        if not isinstance(turn, dict):
            raise RecordError(f'{where}: turns[0] is no object; expected [{{"content": "the prompt"}}]')
        prompt = get_text(turn, "content", f"{where}, turns[0]")
        questions.append(ArenaQuestion(row["question_id"], prompt, get_label(row, "cluster", where)))
    return questions


def read_arena_answers(path: Path) -> list[Row]:
    """One model's answers to Arena-Hard in upstream's records, checked and otherwise as they are.

    Raises:
        RecordError: the file is missing, a row has no text or no `token_len`, two answer one question, or the answers
            are of several models.
    """
    answers = []
    for where, row in rows_by_question(path):
        _require_arena_answer(row, where)
        answers.append(row)
    models = sorted({row["model_id"] for row in answers})
    if len(models) > 1:
        raise RecordError(f"{path}: answers of {', '.join(models[:3])}; one file holds one model's")
    return answers


def read_arena_baseline(directory: Path, settings: ArenaHard) -> list[Row]:
    """The baseline's answers, one to every question and in the questions' order.

    Raises:
        ConfigError: their tokens were counted in another way than `settings.token_counter` says.
        RecordError: see `read_arena_answers`; or an answer is missing, or they are not the baseline's.
    """
    path = directory / "model_answer" / f"{settings.baseline}.jsonl"
    answers = {row["question_id"]: row for row in read_arena_answers(path)}
    questions = [question.question_id for question in read_arena_hard(directory)]
    require_answers(path, questions, answers)
    for row in answers.values():
        if row["model_id"] != settings.baseline:
            raise RecordError(f"{path}: answers of {row['model_id']}; name the file, or the baseline, after the model")
        counter = (row.get("conv_metadata") or {}).get("token_counter", settings.token_counter)
        if counter != settings.token_counter:
            raise ConfigError(
                f"{path}: its tokens were counted by {counter!r}, and answers would be by {settings.token_counter!r}: "
                f"set benchmarks.arena_hard.token_counter to {counter!r}"
            )
    return [answers[question] for question in questions]


def read_arena_judge_prompt(directory: Path) -> JudgePrompt:
    """Arena-Hard's judge prompt, from upstream's judge_config.yaml.

    Raises:
        RecordError: the file is missing, or lacks `system_prompt` or a `prompt_template` with its placeholders.
    """
    import yaml

    path = existing_file(directory / "judge_config.yaml")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(config, dict):
        raise RecordError(f"{path}: expected keys `system_prompt` and `prompt_template`; take v0.1's judge_config.yaml")
    (template,) = get_list(config, "prompt_template", 1, f"{path}")
    system = get_text(config, "system_prompt", f"{path}")
    return JudgePrompt(system, get_template({"prompt_template": template}, ARENA_FIELDS, f"{path}"))


def read_mt_bench(directory: Path) -> list[MtQuestion]:
    """MT-Bench's questions, in the file's order.

    Raises:
        RecordError: the file is missing, a row has not two turns, its category is unknown, or two rows have one id.
    """
    questions = []
    for where, row in rows_by_question(directory / "question.jsonl"):
        turns = get_turns(get_list(row, "turns", 2, where), "turns", where)
        if row.get("category") not in MT_CATEGORIES:
            raise RecordError(
                f"{where}: category {row.get('category')!r} has no temperature; known are: {', '.join(MT_CATEGORIES)}"
            )
        questions.append(MtQuestion(row["question_id"], row["category"], turns))
    return questions


def read_mt_references(directory: Path, references: str) -> dict[QuestionId, tuple[str, str]]:
    """Reference answers to both turns, by question; every math, reasoning and coding question has one.

    Args:
        directory: the benchmark's files.
        references: the model whose answers they are.

    Raises:
        RecordError: the file is missing, a row can't be used, or a question that needs a reference has none.
    """
    path = directory / "reference_answer" / f"{references}.jsonl"
    answers = {}
    for where, row in rows_by_question(path):
        turns = get_list(first_choice(row, where), "turns", 2, f"{where}, choices[0]")
        answers[row["question_id"]] = get_turns(turns, "choices[0].turns", where)
    needed = [q.question_id for q in read_mt_bench(directory) if q.category in MT_REFERENCE_CATEGORIES]
    require_answers(path, needed, answers)
    return answers


def read_mt_judge_prompts(directory: Path) -> dict[str, JudgePrompt]:
    """MT-Bench's four prompts of single-answer grading, by name; prompts that compare two answers are left aside.

    Raises:
        RecordError: the file or a prompt is missing, or a template has not exactly its placeholders.
    """
    path, prompts = directory / "judge_prompts.jsonl", {}
    for number, row in rows_of(path):
        where, name = f"{path}, row {number}", row.get("name")
        if name in prompts:
            raise RecordError(f"{where}: a second prompt {name}; keep one")
        if name in MT_FIELDS:
            system = get_text(row, "system_prompt", where)
            prompts[name] = JudgePrompt(system, get_template(row, MT_FIELDS[name], where))
    missing = [name for name in MT_FIELDS if name not in prompts]
    if missing:
        raise RecordError(f"{path}: no prompt {', '.join(missing)}; take FastChat's judge_prompts.jsonl")
    return prompts


def _alpaca_rows(path: Path) -> list[Row]:
    rows = []
    for number, row in rows_of(path):
        where = f"{path}, row {number}"
        if not isinstance(row.get("output"), str):
            raise RecordError(f"{where}: output is no text; {IN_PLACE}")
        rows.append(
            {
                "dataset": get_label(row, "dataset", where),
                "instruction": get_text(row, "instruction", where, IN_PLACE),
                "output": get_label(row, "output", where),
                "generator": get_text(row, "generator", where),
            }
        )
    return rows


def _outputs_of(directory: Path, generator: str) -> Path:
    return directory / generator / "model_outputs.json"


def _is_by(rows: Sequence[Row], generator: str) -> bool:
    return all(row["generator"] == generator for row in rows)


def _require_arena_answer(row: Row, where: str) -> None:
    """Raises RecordError where upstream's style control could not read the answer."""
    get_text(row, "model_id", where)
    (turn,) = get_list(first_choice(row, where), "turns", 1, f"{where}, choices[0]")
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
        raise RecordError(f"{where}: choices[0].turns[0].content is no text; answer that question again")
    get_label(turn, "content", where)
    metadata = row.get("conv_metadata") or {}
    if not isinstance(metadata, dict):
        raise RecordError(f"{where}: conv_metadata is no object; leave it out, or see docs/data.md for the format")
    tokens = metadata.get("token_len") if turn.get("token_len") is None else turn["token_len"]
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
        raise RecordError(
            f"{where}: no token_len in choices[0].turns[0] or conv_metadata, which style control needs; count them"
        )


# What a policy is asked, and how its answers are written: the records between a benchmark and who answers it.
#
# * Rows keep the order and the number of the set's: AlpacaEval takes an instruction's difficulty by its position.
# * No system prompt of ours: what the chat template adds by itself is the policy's own.
# * Random answer ids and time stamps, which upstream's records have, are left out: same seed, same bytes.


class Answer(NamedTuple):
    """One answer: its text, its length in the policy's tokens (the end token counts), and whether it came to an end."""

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Conversation:
    """What is asked of the policy in turn; each turn but the first follows its own answer to the one before.

    Args:
        turns: the user's.
        temperature: of sampling.
        origin: fields of the record that say what was asked.
    """

    turns: tuple[str, ...]
    temperature: float
    origin: dict[str, Any]


@dataclass(frozen=True)
class AnswerSet:
    """One benchmark's conversations, and how its file of answers is written.

    Args:
        name: the benchmark.
        conversations: in the set's order, all with the same number of turns.
        max_new_tokens: of one answer.
        record: a conversation's record, from its origin and the texts of its answers.
    """

    name: str
    conversations: list[Conversation]
    max_new_tokens: int
    record: Callable[[dict[str, Any], list[str]], dict[str, Any]]

    @property
    def turns(self) -> int:
        """Turns of every conversation."""
        return len(self.conversations[0].turns)

    def write(self, answers: Sequence[Sequence[Answer]], out: Path) -> None:
        """Write the file of answers; `answers` has a row a conversation, in its order."""
        rows = [
            self.record(conversation.origin, [answer.text for answer in own])
            for conversation, own in zip(self.conversations, answers, strict=True)
        ]
        path = out / FILES[self.name]
        write_json(path, rows) if path.suffix == ".json" else write_jsonl(path, rows)
