"""Conversations read back from rendered text, for every family of chat templates."""

import pytest
from families import FAMILIES, make_tokenizer

from vrm.models.templates import RenderedTexts, Unrenderable, apply_template, apply_templates

ONE = [{"role": "user", "content": "What is basil good for?"}]
SEVERAL = [
    *ONE,
    {"role": "assistant", "content": "Pesto,\n\nmostly."},
    {"role": "user", "content": "assistant\nsays what?"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *SEVERAL]
RESPONSE = "With tomatoes.\n\nuser\nAnd mint."


def conversations(family):
    return [ONE, SEVERAL, *([SYSTEM] if FAMILIES[family].system else [])]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param, make_tokenizer(request.param)


def test_a_text_in_the_template_is_read_exactly(family):
    name, tokenizer = family
    reader = RenderedTexts(tokenizer)
    for prompt in conversations(name):
        text = apply_template(tokenizer, [*prompt, {"role": "assistant", "content": RESPONSE}])
        reading = reader.read(text)
        assert reading.exact
        again = apply_template(tokenizer, [*reading.prompt, {"role": "assistant", "content": reading.response}])
        assert again == text
        assert (reading.prompt[-1]["content"], reading.response) == (prompt[-1]["content"], RESPONSE)


@pytest.mark.parametrize("to_be_answered", [False, True])
def test_many_conversations_at_once_are_written_as_each_alone_and_a_refusal_has_its_place(family, to_be_answered):
    _, tokenizer = family
    # two user turns in a row and a system turn are what some families refuse; nobody takes an empty conversation
    asked = [ONE, [*ONE, *ONE], SEVERAL, [], SYSTEM, ONE]

    def alone(turns):
        try:
            return apply_template(tokenizer, turns, to_be_answered=to_be_answered)
        except Unrenderable as error:
            return error.reason

    for some in (asked, [ONE, SEVERAL], []):
        together = apply_templates(tokenizer, some, to_be_answered=to_be_answered)
        assert [getattr(text, "reason", text) for text in together] == [alone(turns) for turns in some]


def test_the_bos_that_verl_takes_off_may_be_missing(family):
    _, tokenizer = family
    text = apply_template(tokenizer, [*ONE, {"role": "assistant", "content": RESPONSE}])
    if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        text = text.removeprefix(tokenizer.bos_token)
    assert RenderedTexts(tokenizer).read(text).response == RESPONSE


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "cut"])
def test_what_a_policy_generates_is_read(family, ended):
    name, tokenizer = family
    for prompt in conversations(name):
        head = apply_template(tokenizer, prompt, to_be_answered=True)
        reading = RenderedTexts(tokenizer).read(head + "With tomatoes." + (tokenizer.eos_token if ended else ""))
        assert reading.prompt[-1] == prompt[-1]
        # a template that opens a thought, or writes a blank, has it in front of the response
        assert reading.response.removeprefix("<think>\n").strip() == "With tomatoes."


def test_plain_text_and_another_template_are_not_read():
    chatml, llama = make_tokenizer("chatml"), make_tokenizer("llama")
    assert RenderedTexts(chatml).read("What is basil good for? Pesto.") is None
    assert RenderedTexts(chatml).read(apply_template(llama, [*ONE, {"role": "assistant", "content": "x"}])) is None
    assert RenderedTexts(chatml).read(apply_template(chatml, ONE)) is None
