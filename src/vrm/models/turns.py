"""Where a prompt ends within a text's token ids, when nothing but the ids is known.

* Every template writes a header of its own before a response (`<|im_start|>assistant`), and one before a user's turn.
* The rule: **a prompt ends with the first response header after the last user turn** that has such a header after it.
  A response that holds that header's text, which a tokenizer turns into the template's own tokens, moves nothing.
* The same rule is applied to the ids of the prompt alone where the prompt is known, so that both ways find one place.
* What it can't tell apart: a response that holds a whole further user turn *and* a response header has, token for
  token, the ids of a longer conversation. Whoever scores such responses passes `prompt_lengths`, as our scorers do.
* A header is cut to the tokens that stay the same whatever text is beside it: ChatML's `assistant\n` is one token less
  where a response begins with a newline, because a tokenizer may join both newlines into one token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vrm.config import ConfigError
from vrm.models.templates import NO_KWARGS, Unrenderable, apply_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        texts += [apply_template(tokenizer, [*prompt, _response(first)], kwargs=kwargs) for first in EDGES]
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
        headers = [
            _common_start(
                _tokens(
                    tokenizer,
                    [
                        apply_template(
                            tokenizer,
                            [*earlier, {"role": "user", "content": edge}],
                            to_be_answered=True,
                            kwargs=kwargs,
                        )
                        for edge in EDGES
                    ],
                )
            )
            for earlier in ([], before)
        ]
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
