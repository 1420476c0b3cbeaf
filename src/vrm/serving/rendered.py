"""A conversation read back from the text that a chat template made of it.

Trainers hand a reward model over HTTP one text, already in a chat template: verl in the reward model's own, OpenRLHF in
the policy's, with or without the end token. Here that text becomes a conversation and a response again, so that it is
scored, cut to the limits and marked as cut like any other.

* The marks between turns are found by having the template write a conversation of known words.
* The same rule as for tokens (`vrm.models.turns`): a prompt ends with the first response header after the last user
  turn. A turn between them that has another role (a tool's) stays inside the text of its neighbour, mark and all.
* A reading counts as exact if the template makes the very same text of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from vrm.models.templates import Unrenderable, apply_template
from vrm.records import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM, FIRST, ANSWER, SECOND, LAST = "vrm-system", "vrm-first", "vrm-answer", "vrm-second", "vrm-last"


@dataclass(frozen=True)
class Reading:
    """What a text says.

    Args:
        prompt: the conversation up to the response.
        response: without the end token and what the template writes after it.
        exact: whether the template makes the same text of the two.
    """

    prompt: Prompt
    response: str
    exact: bool


class RenderedTexts:
    """Reads what one tokenizer's chat template writes.

    Args:
        tokenizer: has the template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def read(self, text: str) -> Reading | None:
        """The conversation in a text; None where the text does not begin as the template begins a conversation."""
        readings = [
            Reading(prompt, response, self._writes([*prompt, _turn("assistant", response)], text))
            for prompt, response in self._candidates(text)
        ]
        return next((reading for reading in readings if reading.exact), readings[0] if readings else None)

    def without_end(self, text: str) -> str:
        """A response without the end token and what stands after it."""
        after = self._marks[-1] if self._marks else ""
        for end in filter(None, (after, after.rstrip(), self.tokenizer.eos_token)):
            if text.endswith(end):
                return text.removesuffix(end)
        return text

    @property
    def _bos(self) -> str:
        return self.tokenizer.bos_token or ""

    @cached_property
    def _marks(self) -> list[str] | None:
        """What stands before, between and after the turns user, assistant, user, assistant; None: can't be told."""
        words = (FIRST, ANSWER, SECOND, LAST)
        turns = [_turn(role, word) for role, word in zip(("user", "assistant") * 2, words, strict=True)]
        return self._between(turns, words)

    @cached_property
    def _system_marks(self) -> list[str] | None:
        """What stands before, between and after the turns system, user, assistant."""
        words = (SYSTEM, FIRST, LAST)
        turns = [_turn(role, word) for role, word in zip(("system", "user", "assistant"), words, strict=True)]
        return self._between(turns, words)

    @cached_property
    def _response_header(self) -> str | None:
        """What the template writes for a policy to go on from; may be less than what stands before a given response."""
        try:
            text = apply_template(self.tokenizer, [_turn("user", FIRST)], to_be_answered=True)
        except Unrenderable:
            return None
        return text.split(FIRST)[-1] if FIRST in text else None

    def _between(self, turns: list[Message], words: tuple[str, ...]) -> list[str] | None:
        try:
            text = apply_template(self.tokenizer, turns)
        except Unrenderable:
            return None
        marks = []
        for word in words:
            mark, found, text = text.partition(word)
            if not found:
                return None
            marks.append(mark)
        return [*marks, text]

    def _candidates(self, text: str) -> list[tuple[Prompt, str]]:
        """Ways to read a text, the fullest first."""
        found = []
        for beginning in dict.fromkeys([text, self._bos + text]):  # who tokenises with a BOS takes it off the text
            if self._system_marks and beginning.startswith(self._system_marks[0]):
                system, mark, rest = beginning[len(self._system_marks[0]) :].partition(self._system_marks[1])
                if mark and (read := self._exchanges(rest)):
                    # a template may write a system turn that nobody gave: then it is right to leave it out
                    found += [([_turn("system", system), *read[0]], read[1]), read]
            if self._marks and beginning.startswith(self._marks[0]):
                read = self._exchanges(beginning[len(self._marks[0]) :])
                found += [read] if read else []
        return found

    def _exchanges(self, text: str) -> tuple[Prompt, str] | None:
        """Turns of the user and the assistant, from the first word of the first user turn on."""
        if not self._marks:
            return None
        _, to_answer, to_user, to_last, _ = self._marks
        *earlier, last = text.split(to_user)
        prompt: Prompt = []
        for exchange in earlier:
            user, mark, answer = exchange.partition(to_answer)
            if not mark:
                return None
            prompt += [_turn("user", user), _turn("assistant", answer)]
        for header in filter(None, (to_last, self._response_header)):
            user, mark, response = last.partition(header)
            if mark:
                return [*prompt, _turn("user", user)], self.without_end(response)
        return None

    def _writes(self, turns: list[Message], text: str) -> bool:
        """Whether the template makes this text of these turns, BOS and what stands after the end token aside."""
        try:
            written = apply_template(self.tokenizer, turns)
        except Unrenderable:
            return False
        return self._core(written) == self._core(text)

    def _core(self, text: str) -> str:
        return self.without_end(text.removeprefix(self._bos))


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}
