"""How long an answer is in the tokens that Arena-Hard's style control looks at.

Upstream counts with tiktoken's encoding for gpt-3.5-turbo, whichever model has answered; text that looks like a special
token is ordinary text there.

Source: lmarena/arena-hard-auto, `gen_answer.py`: `len(encoding.encode(output, disallowed_special=()))`.
"""

from __future__ import annotations

from collections.abc import Callable

from vrm.config import ConfigError
from vrm.records import count_words

WORDS = "words"
KEY = "benchmarks.arena_hard.token_counter"


def make_counter(name: str) -> Callable[[str], int]:
    """What counts the tokens of an answer.

    Args:
        name: a model's name that tiktoken knows, or `words`: words and punctuation marks, without any tokenizer.

    Raises:
        ConfigError: tiktoken is not installed, does not know the name, or can't get its encoding.
    """
    if name == WORDS:
        return count_words
    other = f"or set {KEY} to {WORDS} and have the baseline's answers counted likewise"
    try:
        import tiktoken
    except ImportError:
        raise ConfigError(
            f"{KEY} is {name}, but tiktoken is not installed: install it (`pip install tiktoken`), {other}"
        ) from None
    try:
        encoding = tiktoken.encoding_for_model(name)
    except KeyError:
        raise ConfigError(
            f"{KEY} is {name}, which tiktoken does not know: give a name that it knows, {other}"
        ) from None
    except (OSError, ValueError, ImportError) as error:  # no network, a wrong hash, no `requests`
        raise ConfigError(
            f"{KEY} is {name}, but tiktoken can't get its encoding ({error}): let TIKTOKEN_CACHE_DIR name a directory "
            f"that has it (tiktoken fills it where there is a network), {other}"
        ) from None
    return lambda text: len(encoding.encode(text, disallowed_special=()))
