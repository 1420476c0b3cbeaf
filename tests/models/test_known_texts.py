"""Texts that are encoded once: whoever reads them has what it would have encoded itself, or is told why not."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from vrm.models.checks import checked_tokenizer
from vrm.models.known_texts import KnownTexts, lists_of, made_with, read_texts, write_texts
from vrm.models.templates import CHATML, Unrenderable
from vrm.models.text import TextEncoder
from vrm.records import RecordError, read_pairs

STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML
LONG = " ".join(["alpha"] * 80)


def user(content):
    return [{"role": "user", "content": content}]


TEXTS = [
    (user("What?"), "That."),
    (user("What?"), "Something else, \n\nwith é and 字."),
    (user("Who?"), "That."),
    (user(LONG), "Its prompt is cut."),
    (user("Why?"), LONG),
    (user("What?"), "That."),
]
REFUSED = ([{"role": "system", "content": "be good"}, *user("What?")], "No.")


def encoder(backbone, template=STRICT, limits=(24, 48)):
    return TextEncoder(checked_tokenizer(backbone, chat_template=template), *limits)


@pytest.fixture
def file(tiny_backbone, tmp_path):
    write_texts(encoder(tiny_backbone), TEXTS, tmp_path / "texts.parquet")
    return tmp_path / "texts.parquet"


def encoded(some, texts):
    return some.encode(*map(list, zip(*texts, strict=True)))


def test_a_text_of_the_file_is_what_it_was_and_is_counted_every_time(tiny_backbone, file, monkeypatch):
    plain = encoder(tiny_backbone)
    expected = encoded(plain, TEXTS)
    assert (expected[3].prompt_cut, expected[4].response_cut) == (True, True)
    known = read_texts(file, encoder(tiny_backbone))
    monkeypatch.setattr(TextEncoder, "try_encode", None)  # nothing is encoded anew
    assert encoded(known, TEXTS) == expected
    assert known.truncation == plain.truncation


def test_any_other_text_is_encoded_and_remembered(tiny_backbone, file, monkeypatch):
    known, others = read_texts(file, encoder(tiny_backbone)), [(user("New?"), "Yes."), TEXTS[2], (user("New?"), "No.")]
    expected = encoded(encoder(tiny_backbone), others)
    assert encoded(known, others) == expected
    monkeypatch.setattr(TextEncoder, "try_encode", None)
    assert encoded(known, others[::-1]) == expected[::-1]


def test_what_the_template_refuses_is_refused_each_time_at_its_own_place(tiny_backbone, tmp_path):
    write_texts(encoder(tiny_backbone), [*TEXTS, REFUSED], tmp_path / "texts.parquet")
    known = read_texts(tmp_path / "texts.parquet", encoder(tiny_backbone))
    for _ in range(2):
        with pytest.raises(Unrenderable, match="no system turn") as error:
            encoded(known, [*TEXTS[:4], REFUSED, TEXTS[4]])
        assert error.value.rows.keys() == {4}


def test_a_file_of_no_texts_is_one(tiny_backbone, tmp_path):
    """Of sets whose every text the template refuses: scoring then says so itself."""
    for texts in ([], [REFUSED]):
        write_texts(encoder(tiny_backbone), texts, tmp_path / "texts.parquet")
        assert not read_texts(tmp_path / "texts.parquet", encoder(tiny_backbone)).known


def test_a_file_made_with_something_else_is_refused_and_it_is_said_what_differs(tiny_backbone, file, tmp_path):
    backbone = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    vocabulary = json.loads((backbone / "tokenizer.json").read_text())
    vocabulary["model"]["merges"] = vocabulary["model"]["merges"][:-1]
    (backbone / "tokenizer.json").write_text(json.dumps(vocabulary))
    for named, other in {
        "chat_template": encoder(tiny_backbone, CHATML),
        "max_prompt_length was 24, is 20": encoder(tiny_backbone, limits=(20, 48)),
        "max_length was 48, is 50": encoder(tiny_backbone, limits=(24, 50)),
        "tokenizer was": encoder(backbone),
    }.items():
        with pytest.raises(RecordError, match=rf"texts\.parquet.*{named}.*vrm tokenise-sets"):
            read_texts(file, other)


@pytest.mark.parametrize("content", [None, b"", b"no Parquet"], ids=["missing", "empty", "damaged"])
def test_a_file_that_holds_no_texts_is_named(tiny_backbone, file, content):
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecordError, match=r"texts\.parquet.*vrm tokenise-sets"):
        read_texts(file, encoder(tiny_backbone))


def test_where_a_tokenizer_lies_and_what_it_was_asked_before_makes_no_difference(tiny_backbone, tmp_path):
    other = AutoTokenizer.from_pretrained(shutil.copytree(tiny_backbone, tmp_path / "moved"))
    wanted = made_with(encoder(tiny_backbone, template=None))
    other(["a", "a long text"], padding=True, truncation=True, max_length=3)
    assert made_with(TextEncoder(other, 24, 48)) == wanted
    other.add_tokens(["<new>"])
    assert made_with(TextEncoder(other, 24, 48)) != wanted


def test_texts_of_real_pairs_score_alike(tiny_backbone, toy_pairs):
    """Prompts are equal, and not the same object, as in a file of pairs."""
    pairs = read_pairs(toy_pairs / "validation.jsonl")
    texts = [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    known = KnownTexts.of(encoder(tiny_backbone, CHATML))
    assert encoded(known, texts) == encoded(known, json.loads(json.dumps(texts))) == encoded(known, texts)
    assert len(known.known) == len({json.dumps(text) for text in texts})


def test_lists_are_those_of_arrow_whatever_was_sliced_or_taken():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 9, size).tolist() for size in (3, 0, 5, 1, 2, 0, 4)]
    column = pa.chunked_array([pa.array(rows[:3], pa.list_(pa.int32())), pa.array(rows[3:], pa.list_(pa.int32()))])
    table = pa.table({"ids": column})
    for some in (table, table.slice(2, 4), table.take([6, 0, 3]), table.slice(1).take([2, 2, 0]), table.slice(0, 0)):
        assert lists_of(some["ids"]) == some["ids"].to_pylist()
