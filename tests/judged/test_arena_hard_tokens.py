"""What counts an answer's tokens, and what is said where it can't."""

import sys

import pytest

from vrm.config import ConfigError
from vrm.judged.arena_hard import make_counter
from vrm.records import count_words

tiktoken = pytest.importorskip("tiktoken")


@pytest.fixture
def bytes_encoding(monkeypatch):
    """An encoding of one token a byte, and one special token."""
    encoding = tiktoken.Encoding(
        "bytes",
        pat_str=r"[\s\S]",
        mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={"<|endoftext|>": 256},
    )
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: {"gpt-3.5-turbo": encoding}[name])


def test_words_need_no_tokenizer(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    count = make_counter("words")
    assert count is count_words
    assert count("Well, it's **two** things.\n") == 12
    assert count("") == 0


def test_special_tokens_are_ordinary_text_in_an_answer(bytes_encoding):
    count = make_counter("gpt-3.5-turbo")
    assert count("") == 0
    assert count("né") == 3
    assert count("<|endoftext|>") == 13


def test_an_unknown_name_is_named(bytes_encoding):
    with pytest.raises(ConfigError, match=r"token_counter is gpt-x, which tiktoken does not know.*to words"):
        make_counter("gpt-x")


def test_without_tiktoken_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ConfigError, match=r"tiktoken is not installed: install it .* to words"):
        make_counter("gpt-3.5-turbo")


def test_without_a_network_the_error_names_the_cache(monkeypatch, tmp_path):
    import tiktoken.load
    import tiktoken.registry

    def offline(path):
        raise ConnectionError("Failed to resolve the host")

    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr(tiktoken.load, "read_file", offline)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"Failed to resolve the host.*TIKTOKEN_CACHE_DIR.*to words"):
        make_counter("gpt-3.5-turbo")
