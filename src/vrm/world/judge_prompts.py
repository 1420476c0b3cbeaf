"""What the world's benchmarks tell their judge: our own words, in the public files' shapes.

Placeholders and delimiters are those of Arena-Hard v0.1 and of FastChat's MT-Bench, so that one reader serves official
and world files; `vrm.world.judge` finds the texts by the delimiters alone.
"""

from __future__ import annotations

ARENA_CONFIG = """\
name: world judge for Arena-Hard v0.1's format
baseline_model: world-baseline
pairwise: true
number_of_judgment_attempts: 2
system_prompt: |-
  Two assistants, A and B, have answered the same request. Compare their answers and say which one you would rather
  have received. What counts is whether an answer does what was asked, in the form and with the content that was asked
  for, whether its statements are true, whether it admits what it does not know, and whether one can act on it. Where a
  request would hurt somebody, an answer that declines it is the better one. Which answer stands first, how long it is
  and how it flatters must not count.

  Give your reasons in a few sentences. Then end with exactly one of these verdicts:

  [[A>>B]] - assistant A is clearly better
  [[A>B]] - assistant A is a little better
  [[A=B]] - both are about as good
  [[B>A]] - assistant B is a little better
  [[B>>A]] - assistant B is clearly better
prompt_template:
  - |-
    <|User Prompt|>
    {question_1}

    <|The Start of Assistant A's Answer|>
    {answer_1}
    <|The End of Assistant A's Answer|>

    <|The Start of Assistant B's Answer|>
    {answer_2}
    <|The End of Assistant B's Answer|>
"""
"""Text of judge_config.yaml, with upstream's keys."""

_WEIGH = (
    "Weigh whether the answer does what was asked, whether it is true, whether it admits what it does not know, and "
    "whether one can act on it. Neither its length nor its flattery counts."
)
_WEIGH_REFERENCE = (
    "You see a reference answer, which is right. Weigh first whether the assistant comes to the same result, and then "
    "whether its answer is of use; say what is wrong in it."
)
_LAST_TURN = "The conversation has two turns: rate the answer to the second request."
_FORMAT = (
    "Give your reasons in a few sentences. Then end with a number from 1 (useless) to 10 (could not be better) in "
    'exactly this format: "[[rating]]", for example: "Rating: [[4]]".'
)
_GRADER = "You grade answers of an assistant, fairly and in few words."

_QUESTION = "[Question]\n{question}\n\n"
_REFERENCE = "[The Start of Reference Answer]\n{ref_answer_1}\n[The End of Reference Answer]\n\n"
_ANSWER = "[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"
_CONVERSATION = (
    "<|The Start of Assistant A's Conversation with User|>\n\n### User:\n{question_1}\n\n### Assistant A:\n{answer_1}"
    "\n\n### User:\n{question_2}\n\n### Assistant A:\n{answer_2}\n\n"
    "<|The End of Assistant A's Conversation with User|>"
)
_REFERENCES = (
    "<|The Start of Reference Answer|>\n\n### User:\n{question_1}\n\n### Reference answer:\n{ref_answer_1}"
    "\n\n### User:\n{question_2}\n\n### Reference answer:\n{ref_answer_2}\n\n<|The End of Reference Answer|>\n\n\n"
)


def mt_bench_prompts() -> list[dict[str, str]]:
    """The four prompts of single-answer grading, as records of FastChat's judge_prompts.jsonl."""
    return [
        _record("single-v1", "general", _GRADER, f"[Instruction]\n{_WEIGH} {_FORMAT}\n\n{_QUESTION}{_ANSWER}"),
        _record(
            "single-math-v1",
            "math",
            _GRADER,
            f"[Instruction]\n{_WEIGH_REFERENCE} {_FORMAT}\n\n{_QUESTION}{_REFERENCE}{_ANSWER}",
        ),
        _record("single-v1-multi-turn", "general", f"{_GRADER} {_LAST_TURN} {_WEIGH} {_FORMAT}", _CONVERSATION),
        _record(
            "single-math-v1-multi-turn",
            "math",
            f"{_GRADER} {_LAST_TURN} {_WEIGH_REFERENCE} {_FORMAT}",
            _REFERENCES + _CONVERSATION,
        ),
    ]


def _record(name: str, category: str, system_prompt: str, prompt_template: str) -> dict[str, str]:
    turns = "two turns" if name.endswith("multi-turn") else "one turn"
    reference = ", with a reference answer" if category == "math" else ""
    return {
        "name": name,
        "type": "single",
        "system_prompt": system_prompt,
        "prompt_template": prompt_template,
        "description": f"Grading of {turns}{reference}",
        "category": category,
        "output_format": "[[rating]]",
    }
