"""Chat templates: those that created models are given, how one is read from a configuration, and how one is applied.

A template may refuse a conversation (no system turn, two user turns in a row). That is the fault of a row, not of a
run: `Unrenderable` says which row and why, and whoever reads rows counts it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError

from vrm.config import ConfigError
from vrm.records import Message, RecordError

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
    # what a template can do to a conversation: raise_exception, an undefined name, an operation on the wrong type
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        roles = ", ".join(str(turn.get("role")) for turn in turns)
        raise Unrenderable({0: f"the chat template refuses the turns {roles}: {error}"}) from None


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
