"""Chat templates: which there are, how one is read from a configuration, applied, and read back from its text or ids.

* A template may refuse a conversation (no system turn, two user turns in a row). That is the fault of a row, not of a
  run: `Unrenderable` says which row and why, and whoever reads rows counts it.
* Where a prompt ends is found in token ids alone (`prompt_end`), and in a text alone (`RenderedTexts`), by one rule:
  **a prompt ends with the first response header after the last user turn** that has such a header after it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError

from vrm.config import ConfigError
from vrm.records import Message, Prompt, RecordError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NO_KWARGS: Mapping[str, Any] = MappingProxyType({})
"""Nothing for the chat template beside the conversation."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The same form as Qwen's; given to tokenizers that know its tokens and come without a template."""

PLAIN = (
    "{{ bos_token if bos_token is defined and bos_token else '' }}"
    "{% for message in messages %}{{ message.role }}\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
"""Given to tokenizers without a template to which ChatML's tokens would be ordinary text."""

QWEN25 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    + CHATML
)
"""Qwen2.5's form: a conversation without a system turn gets one."""

THOUGHT = "<think>\n\n</think>\n\n"
QWEN3 = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if loop.last and message.role == 'assistant' %}" + THOUGHT + "{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}" + THOUGHT + "{% endif %}{% endif %}"
)
"""Qwen3's form: the last answer begins with a thought, an empty one here; `enable_thinking=False` asks without one."""

TEMPLATES = {"chatml": CHATML, "qwen2.5": QWEN25, "qwen3": QWEN3}
"""What a created backbone can be given, by name."""


NAMED = 10
"""How many rows that are left out are named one by one."""


class Unrenderable(RecordError):
    """Conversations that can't be made into a text: the template refuses them, or no room is left for them.

    Args:
        rows: the reason, by 0-based place in what was to be encoded; at least one.
        total: how many conversations were to be encoded.
    """

    def __init__(self, rows: Mapping[int, str], total: int = 1) -> None:
        self.rows = dict(sorted(rows.items()))
        first = next(iter(self.rows))
        which = "" if total == 1 else f"{len(rows)} of {total} conversations, the first of them row {first}: "
        super().__init__(f"{which}{self.reason}; correct or leave out such rows, or set another limit or chat_template")

    @property
    def reason(self) -> str:
        """Why the first of them can't be rendered."""
        return next(iter(self.rows.values()))


def left_out(refused: Mapping[int, str], names: Sequence[str], what: str) -> None:
    """Say which rows are left out because no text can be made of them; none of them in silence, none if all are.

    Args:
        refused: the reason, by place, as `TextEncoder.try_encode` gives it.
        names: of every row.
        what: the rows, for people, e.g. "pairs of train.jsonl".

    Raises:
        Unrenderable: nothing is left.
    """
    if refused and len(refused) == len(names):
        raise Unrenderable(refused, len(names))
    for row in sorted(refused)[:NAMED]:
        print(f"left out: {names[row]}: {refused[row]}", file=sys.stderr)
    if refused:
        print(f"left out: {len(refused)} of {len(names)} {what}, which the chat template refuses", file=sys.stderr)


def apply_template(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Message],
    *,
    to_be_answered: bool = False,
    kwargs: Mapping[str, Any] = NO_KWARGS,
) -> str:
    """The text of a conversation; with `to_be_answered`, up to where the assistant's response begins.

    Args:
        tokenizer: has the template.
        turns: the conversation.
        to_be_answered: whether the text ends where a response begins (`add_generation_prompt`).
        kwargs: passed to the template.

    Raises:
        ConfigError: the template is not valid Jinja.
        Unrenderable: the template refuses this conversation.
    """
    if not turns:
        raise Unrenderable({0: "a conversation without turns"})
    try:
        return tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=to_be_answered, **kwargs
        )
    except TemplateSyntaxError as error:
        raise ConfigError(f"{tokenizer.name_or_path}: the chat template is not valid Jinja: {error}") from None
    except REFUSALS as error:
        roles = ", ".join(str(turn.get("role")) for turn in turns)
        raise Unrenderable({0: f"the chat template refuses the turns {roles}: {error}"}) from None


REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""What a template can do to a conversation: raise_exception, an undefined name, an operation on the wrong type."""


def apply_templates(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    to_be_answered: bool = False,
    kwargs: Mapping[str, Any] = NO_KWARGS,
) -> list[str | Unrenderable]:
    """`apply_template` of N conversations in one call, which takes a third less time; a refusal in its own place.

    Raises:
        ConfigError: the template is not valid Jinja.
    """
    if not conversations:
        return []
    if all(conversations):
        turns = [list(conversation) for conversation in conversations]
        with suppress(*REFUSALS):  # one of them is refused, and the call says not which
            return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=to_be_answered, **kwargs)
    found: list[str | Unrenderable] = []
    for conversation in conversations:
        try:
            found.append(apply_template(tokenizer, conversation, to_be_answered=to_be_answered, kwargs=kwargs))
        except Unrenderable as error:
            found.append(error)
    return found


def written(texts: Sequence[str | Unrenderable]) -> list[str]:
    """The texts, unless one of them is a refusal: then that is raised."""
    for text in texts:
        if isinstance(text, Unrenderable):
            raise text
    return list(texts)


def read_template(value: str) -> str:
    """The template that a configuration means: the text itself, or the file that holds it.

    Raises:
        ConfigError: it is neither.
    """
    if "{{" in value or "{%" in value:
        return value
    path = Path(value).expanduser()
    if not path.is_file():
        raise ConfigError(f"chat_template {value}: there is no such file, and it is no template ({{{{ or {{% in it)")
    return path.read_text(encoding="utf-8")


# Where a prompt ends within a text's token ids, when nothing but the ids is known.
#
# * Every template writes a header of its own before a response (`<|im_start|>assistant`), and one before a user's turn.
# * A response that holds that header's text, which a tokenizer turns into the template's own tokens, moves nothing.
# * The same rule is applied to the ids of the prompt alone where the prompt is known, so that both ways find one place.
# * What it can't tell apart: a response that holds a whole further user turn *and* a response header has, token for
#   token, the ids of a longer conversation. Whoever scores such responses passes `prompt_lengths`, as our scorers do.
# * A header is cut to the tokens that stay the same whatever text is beside it: ChatML's "assistant, newline" is one
#   token less where a response begins with a newline, because a tokenizer may join both newlines into one token.

EDGES = (
    *("x", "s", "E", "7", " x", "  x", "   7", "\tx", "\n", "\nx", "\n\nx", "\n\n\n\n x", " \nx", "\r\nx"),
    *(".", ",", ":", "!", "'s", '"', "(", ")", "[", "]", "{", "}", "<", ">", "/", "\\", "|", "#", "*", "-", "_", "`"),
    *("é", "字", "😀"),
)
"""What may stand beside a header, as far as tokenizers care: letters, digits, white space, marks, other scripts."""


def prompt_end(ids: Sequence[int], response_header: Sequence[int], user_header: Sequence[int] | None) -> int:
    """How many of a text's first tokens are its prompt, up to and including the response header; see above.

    Args:
        ids: token ids of one text, without padding.
        response_header: `generation_prompt_ids` of the template.
        user_header: `user_turn_ids` of the template; None or empty where a user's turn can't be told.

    Returns:
        0 where there is no response header.

    Raises:
        ValueError: there are several response headers, and no user header tells which of them is the prompt's.
    """
    starts = list(_occurrences(ids, response_header))
    if not starts:
        return 0
    if not user_header and len(starts) > 1:
        raise ValueError(
            f"the tokens {list(response_header)} that begin a response occur {len(starts)} times, and nothing says "
            "where the last user turn begins: pass prompt_lengths, or set config.user_turn_ids"
        )
    users = [start for start in _occurrences(ids, user_header or ()) if start < starts[-1]]
    after = users[-1] if users else -1
    return next(start for start in starts if start > after) + len(response_header)


def generation_prompt_ids(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any] = NO_KWARGS) -> list[int]:
    """The tokens that a template writes between a user's words and a response, whatever these are.

    Args:
        tokenizer: has the template.
        kwargs: passed to the template.

    Raises:
        ConfigError: it writes none, so that the end of a prompt can't be found.
    """
    # whatever the response is, a text begins so; whatever the user says, that beginning ends in the header
    beginnings = []
    for edge in EDGES:
        prompt = [{"role": "user", "content": f"x{edge}"}]
        texts = [apply_template(tokenizer, prompt, to_be_answered=True, kwargs=kwargs)]
        texts += written(apply_templates(tokenizer, [[*prompt, _response(first)] for first in EDGES], kwargs=kwargs))
        beginnings.append(_common_start(_tokens(tokenizer, texts)))
    header = _common_end(beginnings)
    if not header:
        raise ConfigError(
            f"{tokenizer.name_or_path}: the chat template writes nothing of its own between a user's turn and a "
            "response, so a VRM can't find where a prompt ends; set chat_template to one that does"
        )
    return header


def user_turn_ids(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any] = NO_KWARGS) -> list[int] | None:
    """The tokens that a template writes before a user's words, in every turn; None where they can't be told.

    Args:
        tokenizer: has the template.
        kwargs: passed to the template.
    """
    before = [{"role": "user", "content": "x"}, _response("x")]
    both = [*before, {"role": "user", "content": "x"}]
    try:
        headers = []
        for earlier in ([], before):
            asked = [[*earlier, {"role": "user", "content": edge}] for edge in EDGES]
            texts = written(apply_templates(tokenizer, asked, to_be_answered=True, kwargs=kwargs))
            headers.append(_common_start(_tokens(tokenizer, texts)))
        conversation = _tokens(tokenizer, [apply_template(tokenizer, both, to_be_answered=True, kwargs=kwargs)])[0]
    except Unrenderable:  # a template for a single turn
        return None
    header = _common_end(headers)
    # a mark that stands elsewhere too, such as a lone newline, would be found in responses
    return header if len(list(_occurrences(conversation, header))) == 2 else None


def _response(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]


def _occurrences(ids: Sequence[int], pattern: Sequence[int]) -> Iterable[int]:
    """Where `pattern` starts in `ids`, ascending; nowhere if it is empty."""
    wanted, size = list(pattern), len(pattern)
    if not wanted:
        return
    for start in range(len(ids) - size + 1):
        if ids[start] == wanted[0] and list(ids[start : start + size]) == wanted:
            yield start


def _common_start(lists: list[list[int]]) -> list[int]:
    """The longest list that all of them begin with."""
    out = []
    for column in zip(*lists, strict=False):
        if len(set(column)) > 1:
            break
        out.append(column[0])
    return out


def _common_end(lists: list[list[int]]) -> list[int]:
    """The longest list that all of them end with."""
    return _common_start([part[::-1] for part in lists])[::-1]


# A conversation read back from the text that a template made of it.
#
# Trainers hand a reward model over HTTP one text, already in a chat template: verl in the reward model's own, OpenRLHF
# in the policy's, with or without the end token. Here that text becomes a conversation and a response again, so that it
# is scored, cut to the limits and marked as cut like any other.
#
# * The marks between turns are found by having the template write a conversation of known words.
# * The rule is that of `prompt_end`. A turn between them that has another role (a tool's) stays inside the text of its
#   neighbour, mark and all.
# * A reading counts as exact if the template makes the very same text of it.

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
