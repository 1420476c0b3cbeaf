"""From a conversation to token ids, the same way everywhere: training, scoring, pretraining.

Two kinds of text, because two kinds of models read them:

* `TextEncoder`, for what is read whole (reward models, pretraining): **exactly what
  `tokenizer.apply_chat_template(messages, tokenize=True)` gives**, with all that the template writes after a response.
  So a model scores the same here and in plain transformers, be it ours or somebody else's.
* `PolicyEncoder`, for what is generated token by token: the prompt's ids, then the response's, tokenised apart as they
  are when a policy answers. The response ends at the end token, which is learnt; what a template writes after that (a
  newline in ChatML) no policy ever generates.

What is too long is shortened as text and written again, so that a cut text is a whole conversation too, with BOS, the
headers of all turns, and its end. A prompt loses its oldest exchanges but for what still fits of the last of them;
where the last question and the system's turn are too long by themselves, the longer one loses its beginning. A response
loses its end. Both are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from vrm.config import ConfigError
from vrm.models.templates import (
    CHATML,
    NO_KWARGS,
    PLAIN,
    QWEN3,
    QWEN25,
    TEMPLATES,
    THOUGHT,
    Unrenderable,
    apply_template,
    apply_templates,
    generation_prompt_ids,
    prompt_end,
    user_turn_ids,
    written,
)
from vrm.records import Message, Prompt
from vrm.watch import Watch

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

T = TypeVar("T")

NO_HEADER = "its text does not hold the header that the chat template writes before a response"
"""Why a prompt's end can't be told."""

MANY = 5000
"""Texts from which on it is said how far their tokenising is; a request or a batch has fewer."""

AT_ONCE = 512
"""Conversations that the template writes in one call."""

__all__ = [
    "CHATML",
    "NO_KWARGS",
    "PLAIN",
    "QWEN3",
    "QWEN25",
    "TEMPLATES",
    "THOUGHT",
    "PolicyEncoder",
    "TextEncoder",
    "TokenisedText",
    "Truncation",
    "Unrenderable",
    "end_ids",
    "generation_config",
    "generation_prompt_ids",
    "located",
    "prepare_tokenizer",
    "render",
    "user_turn_ids",
    "without_prompt",
]


@dataclass(frozen=True)
class TokenisedText:
    """Token ids of prompt + response.

    Args:
        ids: of the whole text.
        prompt_length: how many of them are the prompt; for a reward model's text 0 where that can't be told.
        prompt_cut: whether the prompt was cut, and
        response_cut: whether the response was.
    """

    ids: list[int]
    prompt_length: int
    prompt_cut: bool = False
    response_cut: bool = False

    @property
    def truncated(self) -> bool:
        """Whether prompt or response was cut."""
        return self.prompt_cut or self.response_cut


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
    """Encodes (prompt, response) as `apply_chat_template` does, and counts what it had to cut.

    Args:
        tokenizer: with a chat template and an end-of-sequence token; see `prepare_tokenizer`.
        max_prompt_length: tokens kept of a prompt.
        max_length: tokens kept of prompt + response.
        chat_template_kwargs: passed to the chat template, e.g. {"enable_thinking": False}.

    Raises:
        ConfigError: the limits leave no room for a response.
    """

    tokenizer: PreTrainedTokenizerBase
    max_prompt_length: int
    max_length: int
    truncation: Truncation = field(default_factory=Truncation)
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_prompt_length >= self.max_length:
            raise ConfigError(
                f"max_prompt_length ({self.max_prompt_length}) must be below max_length ({self.max_length}): "
                "the response needs room"
            )

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[TokenisedText]:
        """Token ids of N texts, cut to the limits.

        Raises:
            Unrenderable: some can't be encoded; names them all.
        """
        texts, refused = self.try_encode(prompts, responses)
        if refused:
            raise Unrenderable(refused, len(prompts))
        return texts

    def try_encode(
        self, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> tuple[list[TokenisedText | None], dict[int, str]]:
        """As `encode`, with None for what can't be encoded, and the reason by its 0-based place."""
        pairs = list(zip(prompts, responses, strict=True))
        refused: dict[int, str] = {}
        parts = self._rendered(pairs, refused)
        ids = iter(self._tokenise([text for both in parts.values() for text in both]))
        tokens = {row: (next(ids), next(ids)) for row in parts}
        found = _each(tokens, lambda row: self._fit(*pairs[row], *tokens[row]), refused)
        return [found.get(row) for row in range(len(pairs))], refused

    def rendered(self, texts: Sequence[str]) -> list[TokenisedText]:
        """Token ids of N texts that the chat template has written already; nothing is cut."""
        found = []
        for ids in self._tokenise(list(texts)):
            try:
                length = prompt_end(ids, *self._headers)
            except ValueError:
                length = 0
            found.append(TokenisedText(ids, length))
        return found

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of N prompts to be answered: the very ones that `PolicyEncoder.encode` puts before a response.

        Raises:
            Unrenderable: some can't be encoded; names them all.
        """
        found, refused = self.try_encode_prompts(prompts)
        if refused:
            raise Unrenderable(refused, len(prompts))
        return found

    def try_encode_prompts(self, prompts: Sequence[Prompt]) -> tuple[list[list[int] | None], dict[int, str]]:
        """As `encode_prompts`, with None for what can't be encoded, and the reason by its 0-based place."""
        refused: dict[int, str] = {}
        texts = self._applied(prompts, to_be_answered=True)
        heads = _each(range(len(prompts)), lambda row: written([texts[row]])[0], refused)
        tokens = dict(zip(heads, self._tokenise(list(heads.values())), strict=True))
        found = _each(tokens, lambda row: self._fit_prompt(prompts[row], tokens[row]), refused)
        for row, (_, ids) in found.items():
            self.truncation.add(ids != tokens[row], False)
        return [found[row][1] if row in found else None for row in range(len(prompts))], refused

    def _head(self, prompt: Prompt) -> str:
        """The prompt's text, up to where the response begins."""
        return apply_template(self.tokenizer, prompt, to_be_answered=True, kwargs=self.chat_template_kwargs)

    def _whole(self, prompt: Prompt, response: str) -> str:
        return apply_template(self.tokenizer, [*prompt, _answer(response)], kwargs=self.chat_template_kwargs)

    def _rendered(self, pairs: list[tuple[Prompt, str]], refused: dict[int, str]) -> dict[int, tuple[str, str]]:
        """Both texts of each row that the template takes; the others go to `refused`, with the reason."""
        found = {}
        with Watch("tokenising", "texts", len(pairs), quiet=len(pairs) < MANY) as watch:
            for start in range(0, len(pairs), AT_ONCE):
                some = pairs[start : start + AT_ONCE]
                # the very same prompt comes with each of its responses
                prompts = {id(prompt): prompt for prompt, _ in some}
                conversations = [[*prompt, _answer(response)] for prompt, response in some]
                heads = self._applied(list(prompts.values()), to_be_answered=True)
                by_prompt, wholes = dict(zip(prompts, heads, strict=True)), self._applied(conversations)
                texts = {start + i: (by_prompt[id(prompt)], wholes[i]) for i, (prompt, _) in enumerate(some)}
                found |= _each(texts, lambda row, texts=texts: self._parts(*written(texts[row])), refused)
                watch.add(len(some))
        return found

    def _applied(self, conversations: Sequence[Prompt], to_be_answered: bool = False) -> list[str | Unrenderable]:
        settings = {"to_be_answered": to_be_answered, "kwargs": self.chat_template_kwargs}
        return apply_templates(self.tokenizer, conversations, **settings)

    def _parts(self, head: str, whole: str) -> tuple[str, str]:
        """The two texts that are tokenised of each row: the prompt's, and the whole."""
        return head, whole

    @cached_property
    def _headers(self) -> tuple[list[int], list[int] | None]:
        """What the template writes before a response, nothing where it writes nothing, and before a user's turn."""
        try:
            return (
                generation_prompt_ids(self.tokenizer, self.chat_template_kwargs),
                user_turn_ids(self.tokenizer, self.chat_template_kwargs),
            )
        except (ConfigError, Unrenderable):  # a scalar reward model can do without
            return [], None

    def _fit(self, prompt: Prompt, response: str, head: list[int], whole: list[int]) -> TokenisedText:
        """A row's ids within the limits, from those of its `_parts`."""
        cut, kept = self._fit_prompt(prompt, head)
        if prompt_cut := cut is not prompt:
            head, whole = kept, self._tokenise([self._whole(cut, response)])[0]
        if response_cut := len(whole) > self.max_length:
            whole = self._shorten_response(cut, response)
        self.truncation.add(prompt_cut, response_cut)
        return TokenisedText(whole, self._prompt_length(head, whole), prompt_cut, response_cut)

    def _prompt_length(self, head: list[int], whole: list[int]) -> int:
        # found in the prompt alone, so that no response can move it
        try:
            length = prompt_end(head, *self._headers)
        except ValueError:
            return 0
        return length if whole[:length] == head[:length] else 0

    def _fit_prompt(self, prompt: Prompt, ids: list[int]) -> tuple[Prompt, list[int]]:
        """The prompt, the very same object if it fits, and its ids; otherwise a shorter one and its ids."""
        if len(ids) <= self.max_prompt_length:
            return prompt, ids

        def shortened(characters: int) -> tuple[Prompt, list[int]]:
            shorter = _without_beginning(prompt, characters, order)
            return shorter, self._tokenise([self._head(shorter)])[0]

        size, rest = _characters(prompt), _without_oldest_exchange(prompt)
        order = sorted(range(len(prompt)), key=lambda i: -len(prompt[i]["content"]))
        if rest is not None:
            kept = self._tokenise([self._head(rest)])[0]
            if len(kept) > self.max_prompt_length:
                return self._fit_prompt(rest, kept)
            # the oldest exchange can't stay whole, but a part of it may
            size -= _characters(rest)
            order = [place for place, turn in enumerate(prompt) if turn["role"] != "system"]
        found = _first_that_fits(shortened, size, lambda both: len(both[1]) <= self.max_prompt_length)
        if found is not None:
            return found
        if rest is not None:
            return rest, kept
        limit = f"max_prompt_length ({self.max_prompt_length})"
        raise Unrenderable({0: f"the template alone, without a word of the prompt, writes more than {limit} tokens"})

    def _shorten_response(self, prompt: Prompt, response: str) -> list[int]:
        def shortened(characters: int) -> list[int]:
            return self._tokenise([self._whole(prompt, response[: len(response) - characters])])[0]

        found = _first_that_fits(shortened, len(response), lambda ids: len(ids) <= self.max_length)
        if found is None:
            limit = f"max_length ({self.max_length})"
            raise Unrenderable({0: f"prompt and template alone, without the response, have more than {limit} tokens"})
        return found

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        # one call for all: a fast tokenizer's cost is mostly per call; a long prompt comes with each of its responses
        different = list(dict.fromkeys(texts))
        if not different:
            return []
        ids = self.tokenizer(different, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        known = dict(zip(different, ids, strict=True))
        return [known[text] for text in texts]


@dataclass
class PolicyEncoder(TextEncoder):
    """Encodes (prompt, response) as a policy reads and writes them; the arguments are `TextEncoder`'s.

    The prompt's ids are a prefix of the text's by construction. A whole response ends in an end token; one that had to
    be cut does not: a policy must not learn to stop in the middle of a sentence. Where a template ends a turn with
    another of the model's end tokens (Gemma's), the response ends there, as an answer that is generated does.

    Args:
        ends: `end_ids` of the policy; without them the tokenizer's end token alone.
    """

    ends: frozenset[int] = frozenset()

    def _parts(self, head: str, whole: str) -> tuple[str, str]:
        """The two texts that are tokenised of each row: the prompt's, and the response's."""
        return _apart(self.tokenizer, head, whole)

    def _fit(self, prompt: Prompt, response: str, head: list[int], tail: list[int]) -> TokenisedText:
        cut, head = self._fit_prompt(prompt, head)
        prompt_cut = cut is not prompt
        tail = self._ended(tail)
        room = self.max_length - len(head)
        response_cut = len(tail) > room
        self.truncation.add(prompt_cut, response_cut)
        return TokenisedText(head + tail[:room], len(head), prompt_cut, response_cut)

    def _ended(self, tail: list[int]) -> list[int]:
        """A whole response with the token that ends it as its last one."""
        end, size = self.tokenizer.eos_token_id, len(tail)
        if self.ends - {end}:  # behind the end of a turn templates write a line's end
            while size and tail[size - 1] not in self.ends and not self.tokenizer.decode(tail[size - 1]).strip():
                size -= 1
        ended = size and tail[size - 1] in {end, *self.ends}
        return tail[:size] if ended else [*tail, end]


def end_ids(declared_by: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokenizer's end token and those that the model declares, e.g. the end of a turn beside that of a text."""
    declared = declared_by.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    return frozenset(token for token in (tokenizer.eos_token_id, *declared) if token is not None)


def generation_config(policy: str, revision: str | None) -> GenerationConfig:
    """What a causal LM loaded from there would declare."""
    from transformers import AutoConfig, GenerationConfig

    try:
        return GenerationConfig.from_pretrained(policy, revision=revision)
    except OSError:
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(policy, revision=revision))


def without_prompt(texts: Sequence[TokenisedText | None]) -> dict[int, str]:
    """The reason, by 0-based place, of each text whose prompt's end can't be told: w would be read at any token."""
    return {row: NO_HEADER for row, text in enumerate(texts) if text is not None and not text.prompt_length}


def located(texts: Sequence[TokenisedText]) -> list[int]:
    """The prompt lengths of texts whose model reads the prompt.

    Raises:
        Unrenderable: as `without_prompt`.
    """
    if unknown := without_prompt(texts):
        raise Unrenderable(unknown, len(texts))
    return [text.prompt_length for text in texts]


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    response: str,
    chat_template_kwargs: Mapping[str, Any] = NO_KWARGS,
) -> tuple[str, str]:
    """A policy's text: what it is given, and what it is to write.

    Args:
        tokenizer: has the template.
        prompt: the conversation up to the response.
        response: the answer.
        chat_template_kwargs: passed to the template.

    Raises:
        ConfigError: the template's text for prompt + response does not begin with its text for the prompt.
        Unrenderable: the template refuses the conversation.
    """
    head = apply_template(tokenizer, prompt, to_be_answered=True, kwargs=chat_template_kwargs)
    whole = apply_template(tokenizer, [*prompt, _answer(response)], kwargs=chat_template_kwargs)
    return _apart(tokenizer, head, whole)


def _apart(tokenizer: PreTrainedTokenizerBase, head: str, whole: str) -> tuple[str, str]:
    """See `render`."""
    if not whole.startswith(head):
        raise ConfigError(
            f"{tokenizer.name_or_path}: the chat template's text of a conversation does not begin with its text of the "
            "prompt (add_generation_prompt=True); set chat_template to one where it does"
        )
    tail = whole[len(head) :]
    # what a template writes after the end token no policy generates
    return head, tail.rstrip() if tail.rstrip().endswith(tokenizer.eos_token) else tail


def _answer(response: str) -> Message:
    return {"role": "assistant", "content": response}


def _each(rows: Iterable[int], compute: Callable[[int], T], refused: dict[int, str]) -> dict[int, T]:
    """`compute` of every row that it takes; the others go to `refused`, with the reason."""
    found = {}
    for row in rows:
        try:
            found[row] = compute(row)
        except Unrenderable as error:
            refused[row] = error.reason
    return found


def _first_that_fits(shortened: Callable[[int], T], size: int, fits: Callable[[T], bool]) -> T | None:
    """`shortened(n)` of about the smallest n in 1..size that fits, by bisection; None if even `size` does not."""
    low, high, found = 0, size, shortened(size)
    if not fits(found):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        tried = shortened(middle)
        if fits(tried):
            high, found = middle, tried
        else:
            low = middle
    return found


def _characters(prompt: Prompt) -> int:
    return sum(len(turn["content"]) for turn in prompt)


def _without_beginning(prompt: Prompt, characters: int, order: Sequence[int]) -> Prompt:
    """The prompt without so many characters: those that the first turn of `order` begins with, then the next one's."""
    left = {}
    for place in order:
        content = prompt[place]["content"]
        left[place] = content[characters:]
        characters = max(0, characters - len(content))
    return [{**turn, "content": left.get(place, turn["content"])} for place, turn in enumerate(prompt)]


def _without_oldest_exchange(prompt: Prompt) -> Prompt | None:
    """The prompt without its first user turn and what follows up to the next; None where there is no next."""
    users = [place for place, turn in enumerate(prompt) if turn["role"] == "user"]
    return [*prompt[: users[0]], *prompt[users[1] :]] if len(users) > 1 else None


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """Give a tokenizer what a reward model needs: a chat template, and a pad token that ends no text.

    A stock sequence classifier reads the last token that is not `pad_token_id`: with a pad token that ends a text, the
    token before. Padding is masked out, so any other token will do; an existing one is taken, and the vocabulary does
    not grow.

    Args:
        tokenizer: is changed in place.
        chat_template: instead of its own; None keeps that, or gives one where there is none.

    Raises:
        ConfigError: there is no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token; set eos_token")
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML if "<|im_end|>" in tokenizer.get_vocab() else PLAIN
    ends = _last_tokens(tokenizer)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        tokenizer.pad_token = _another_token(tokenizer, ends)
    return tokenizer


def _last_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The end token, and the last token of what the template writes."""
    try:
        text = apply_template(tokenizer, [{"role": "user", "content": "x"}, _answer("x")])
    except Unrenderable:
        return {tokenizer.eos_token_id}
    return {tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"][-1:]}


def _another_token(tokenizer: PreTrainedTokenizerBase, taken: set[int]) -> str:
    candidates: Sequence[int | None] = [tokenizer.unk_token_id, *tokenizer.all_special_ids, *range(len(tokenizer))]
    return tokenizer.convert_ids_to_tokens(next(i for i in candidates if i is not None and i not in taken))
