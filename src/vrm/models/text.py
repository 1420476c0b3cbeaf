"""From a conversation to token ids, the same way everywhere: training, scoring, pretraining.

* The chat template is applied once and tokenised without adding special tokens, so there is exactly one BOS if the
  template writes one, and none otherwise.
* Prompt and response are tokenised apart and joined: the prompt's ids are a prefix of the text's by construction.
* A text always ends in the end-of-sequence token, which is the token a reward model reads. Truncation never cuts it:
  a prompt loses its beginning, a response loses its end before that token. Both are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vrm.config import ConfigError
from vrm.records import Prompt

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


@dataclass(frozen=True)
class TokenisedText:
    """Token ids of prompt + response; `ids[:prompt_length]` is the prompt, `truncated` tells whether either was cut."""

    ids: list[int]
    prompt_length: int
    truncated: bool


@dataclass
class Truncation:
    """How many of the encoded texts were cut, and where."""

    texts: int = 0
    prompts_cut: int = 0
    responses_cut: int = 0

    def add(self, prompt_cut: bool, response_cut: bool) -> None:
        """Count one encoded text."""
        self.texts += 1
        self.prompts_cut += prompt_cut
        self.responses_cut += response_cut

    def as_dict(self) -> dict[str, int]:
        """For a JSON file."""
        return {"texts": self.texts, "prompts_cut": self.prompts_cut, "responses_cut": self.responses_cut}


@dataclass
class TextEncoder:
    """Encodes (prompt, response) and counts what it had to cut.

    Args:
        tokenizer: with a chat template and an end-of-sequence token; see `prepare_tokenizer`.
        max_prompt_length: tokens kept of a prompt.
        max_length: tokens kept of prompt + response.
        chat_template_kwargs: passed to the chat template, e.g. {"enable_thinking": False}.
        end_after_cut: whether a response that had to be cut still ends in the end token. A reward model reads that
            token; a policy must not learn to stop in the middle of a sentence.

    Raises:
        ConfigError: the limits leave no room for a response.
    """

    tokenizer: PreTrainedTokenizerBase
    max_prompt_length: int
    max_length: int
    truncation: Truncation = field(default_factory=Truncation)
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    end_after_cut: bool = True

    def __post_init__(self) -> None:
        if self.max_prompt_length >= self.max_length:
            raise ConfigError(
                f"max_prompt_length ({self.max_prompt_length}) must be below max_length ({self.max_length}): "
                "the response needs room"
            )

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[TokenisedText]:
        """Token ids of N texts, cut to the limits; a whole one ends in the end token, a cut one by default too."""
        if not prompts:
            return []
        kwargs = self.chat_template_kwargs
        pairs = zip(prompts, responses, strict=True)
        ids = self._tokenise([part for p, r in pairs for part in render(self.tokenizer, p, r, kwargs)])
        return [self._join(head, tail) for head, tail in zip(ids[::2], ids[1::2], strict=True)]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of N prompts to be answered: the very ones that `encode` puts before a response."""
        if not prompts:
            return []
        texts = self._tokenise([_head(self.tokenizer, prompt, self.chat_template_kwargs) for prompt in prompts])
        for ids in texts:
            self.truncation.add(len(ids) > self.max_prompt_length, False)
        return [ids[-self.max_prompt_length :] for ids in texts]

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        # one call for all: a fast tokenizer's cost is mostly per call; and a long prompt comes with each of its responses
        different = list(dict.fromkeys(texts))
        ids = self.tokenizer(different, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        known = dict(zip(different, ids, strict=True))
        return [known[text] for text in texts]

    def _join(self, prompt_ids: list[int], response_ids: list[int]) -> TokenisedText:
        end = self.tokenizer.eos_token_id
        if not response_ids or response_ids[-1] != end:
            response_ids = [*response_ids, end]
        prompt_cut = len(prompt_ids) > self.max_prompt_length
        prompt_ids = prompt_ids[-self.max_prompt_length :]
        room = self.max_length - len(prompt_ids)
        response_cut = len(response_ids) > room
        if response_cut:
            response_ids = [*response_ids[: room - 1], end] if self.end_after_cut else response_ids[:room]
        self.truncation.add(prompt_cut, response_cut)
        return TokenisedText(prompt_ids + response_ids, len(prompt_ids), prompt_cut or response_cut)


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    response: str,
    chat_template_kwargs: Mapping[str, Any] = NO_KWARGS,
) -> tuple[str, str]:
    """The prompt's and the response's part of the text that the chat template makes.

    Args:
        tokenizer: has the template.
        prompt: the conversation up to the response.
        response: the answer.
        chat_template_kwargs: passed to the template.

    Raises:
        ValueError: the template's text for prompt + response does not begin with its text for the prompt.
    """
    head = _head(tokenizer, prompt, chat_template_kwargs)
    turns = [*prompt, {"role": "assistant", "content": response}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False, **chat_template_kwargs)
    if not whole.startswith(head):
        raise ValueError(
            "the chat template's text of a conversation does not begin with its text of the prompt "
            "(add_generation_prompt=True); use a template where it does, or a tokenizer without one"
        )
    tail = whole[len(head) :]
    # what a template writes after the end of the turn (a newline in ChatML) is the same for every response
    return head, tail.rstrip() if tail.rstrip().endswith(tokenizer.eos_token) else tail


def generation_prompt_ids(
    tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: Mapping[str, Any] = NO_KWARGS
) -> list[int]:
    """The token ids that the template writes between the last user turn and the response."""
    turn = [{"role": "user", "content": "x"}]
    with_prompt = _head(tokenizer, turn, chat_template_kwargs)
    without = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=False, **chat_template_kwargs)
    return tokenizer(with_prompt[len(without) :], add_special_tokens=False)["input_ids"]


def _head(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, chat_template_kwargs: Mapping[str, Any]) -> str:
    """The prompt's text, up to where the response begins."""
    return tokenizer.apply_chat_template(
        list(prompt), tokenize=False, add_generation_prompt=True, **chat_template_kwargs
    )


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer what a reward model needs: a chat template, and a pad token that is not the end token.

    With pad == eos a stock sequence classifier pools the token before the end of the text. Padding is masked out, so
    any other token will do; an existing one is taken, and the vocabulary does not grow.

    Raises:
        ValueError: there is no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token; set eos_token")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML if "<|im_end|>" in tokenizer.get_vocab() else PLAIN
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _another_token(tokenizer)
    return tokenizer


def _another_token(tokenizer: PreTrainedTokenizerBase) -> str:
    candidates: Sequence[int | None] = [tokenizer.unk_token_id, *tokenizer.all_special_ids, *range(len(tokenizer))]
    chosen = next(i for i in candidates if i is not None and i != tokenizer.eos_token_id)
    return tokenizer.convert_ids_to_tokens(chosen)
