"""What a judge says, without what it has thought before: reasoning models write both into one text.

Only what is said holds a verdict: in its thoughts a judge weighs verdicts that it then takes back.
"""

from __future__ import annotations

import re

_TAG = r"(?:seed:)?(think|thinking|thought|thoughts|reasoning)"
PAIRS = [
    (re.compile(rf"<{_TAG}>", re.IGNORECASE), re.compile(rf"</{_TAG}>", re.IGNORECASE)),
    (re.compile(r"\[THINK\]"), re.compile(r"\[/THINK\]")),  # Magistral
    (re.compile("◁think▷"), re.compile("◁/think▷")),  # Kimi
    (re.compile(r"<\|channel\|>analysis"), re.compile(r"<\|channel\|>final(?:<\|message\|>)?")),  # gpt-oss
]
"""How thoughts begin and end, by family of models."""


def without_thoughts(text: str) -> str:
    """A reply without its thoughts; nothing where a thought does not end, for instance because the reply was cut.

    * Closed thoughts are taken out, wherever they stand, with those inside them.
    * Some chat templates begin the thought in the prompt: what stands before an end without a beginning is a thought.
    * Everything after a beginning without an end is a thought, and what stands before it is no last word either.
    """
    for beginning, end in PAIRS:
        marks = sorted([(m, 1) for m in beginning.finditer(text)] + [(m, -1) for m in end.finditer(text)], key=_place)
        said, depth, start = [], 0, 0
        for mark, step in marks:
            if step > 0 and depth == 0:
                said.append(text[start : mark.start()])
            if step < 0 and depth <= 1:  # the thought's end; without a beginning, all before it was thought
                said = said if depth else []
                start = mark.end()
            depth = max(0, depth + step)
        if depth:
            return ""
        text = "".join([*said, text[start:]])
    return text


def _place(mark: tuple[re.Match[str], int]) -> int:
    return mark[0].start()
