"""Conversations become token ids the same way everywhere, and nothing is cut without being counted."""

from pathlib import Path

import pytest
import trl
from transformers import AutoTokenizer

from vrm.config import ConfigError
from vrm.models.backbones import train_tokenizer
from vrm.models.templates import TEMPLATES, Unrenderable, read_template
from vrm.models.text import PolicyEncoder, TextEncoder, generation_prompt_ids, prepare_tokenizer, render

PROMPT = [{"role": "user", "content": "alpha beta"}]
SYSTEM = [{"role": "system", "content": "kappa"}]
TURNS = [*PROMPT, {"role": "assistant", "content": "gamma"}, {"role": "user", "content": "delta?"}]


@pytest.fixture
def tokenizer(tiny_backbone):
    return prepare_tokenizer(AutoTokenizer.from_pretrained(tiny_backbone))


@pytest.mark.parametrize("prompt", [PROMPT, TURNS])
def test_a_policys_prompt_is_a_prefix_and_its_text_ends_in_eos(tokenizer, prompt):
    text = PolicyEncoder(tokenizer, 64, 128).encode([prompt], ["epsilon zeta"])[0]
    assert tokenizer.decode(text.ids[: text.prompt_length]).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(text.ids[text.prompt_length :]) == "epsilon zeta<|im_end|>"
    assert text.ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("prompt", [PROMPT, TURNS])
def test_a_reward_models_text_is_the_templates_whole_text(tokenizer, prompt):
    text = TextEncoder(tokenizer, 64, 128).encode([prompt], ["epsilon zeta"])[0]
    assert tokenizer.decode(text.ids).endswith("<|im_start|>assistant\nepsilon zeta<|im_end|>\n")
    header = generation_prompt_ids(tokenizer)
    assert text.ids[: text.prompt_length][-len(header) :] == header


def test_a_template_that_writes_bos_gives_exactly_one(tokenizer):
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>"})
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    ids = TextEncoder(tokenizer, 64, 128).encode([PROMPT], ["gamma"])[0].ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_what_is_cut_is_still_a_conversation_and_is_counted(tokenizer):
    encoder = TextEncoder(tokenizer, max_prompt_length=40, max_length=60)
    cut = encoder.encode([[{"role": "user", "content": "alpha " * 40}]], ["beta " * 40])[0]
    assert len(cut.ids) <= 60
    text = tokenizer.decode(cut.ids)
    assert text.startswith("<|im_start|>user\n")  # a prompt loses its beginning, but not its header
    assert "alpha <|im_end|>\n<|im_start|>assistant\nbeta " in text
    assert text.endswith("<|im_end|>\n")
    assert encoder.truncation.as_dict() == {"texts": 1, "prompts_cut": 1, "responses_cut": 1}


def test_limits_that_leave_no_room_for_a_response_are_refused(tokenizer):
    with pytest.raises(ValueError, match="must be below max_length"):
        TextEncoder(tokenizer, 20, 20)


def test_a_template_whose_prompt_is_no_prefix_is_refused_for_a_policy_alone(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    with pytest.raises(ConfigError, match="does not begin with"):
        render(tokenizer, PROMPT, "gamma")
    text = TextEncoder(tokenizer, 64, 128).encode([PROMPT], ["gamma"])[0]
    assert tokenizer.decode(text.ids) == "2alpha beta<|im_end|>gamma<|im_end|>"


def test_a_template_is_read_from_a_file_or_given_as_text(tmp_path):
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    assert read_template(str(tmp_path / "chat.jinja")) == read_template("{{ messages }}") == "{{ messages }}"
    with pytest.raises(ConfigError, match="no such file"):
        read_template(str(tmp_path / "none.jinja"))


def test_a_template_that_is_no_jinja_is_the_configurations_fault(tokenizer):
    prepare_tokenizer(tokenizer).chat_template = "{% for m in messages %}{{ m.content }}"
    with pytest.raises(ConfigError, match="not valid Jinja"):
        TextEncoder(tokenizer, 64, 128).encode([PROMPT], ["gamma"])


def test_what_a_template_can_not_read_is_the_rows_fault(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ '' + m.content }}{% endfor %}"
    nothing = [{"role": "user", "content": None}]
    _, refused = TextEncoder(tokenizer, 64, 128).try_encode([nothing, PROMPT, []], ["a", "b", "c"])
    assert list(refused) == [0, 2]
    with pytest.raises(Unrenderable, match="2 of 3 conversations, the first of them row 0"):
        TextEncoder(tokenizer, 64, 128).encode([nothing, PROMPT, []], ["a", "b", "c"])


@pytest.mark.parametrize("pad", [None, "<|im_end|>", "Ċ"], ids=["none", "the end token", "what a text ends in"])
def test_a_pad_token_that_is_missing_or_ends_a_text_is_replaced(tiny_backbone, pad):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    size = len(tokenizer)
    tokenizer.pad_token = pad
    prepare_tokenizer(tokenizer)
    last = TextEncoder(tokenizer, 64, 128).encode([PROMPT], ["gamma"])[0].ids[-1]
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id, last)
    assert len(tokenizer) == size


def test_a_tokenizer_without_template_gets_one_and_without_eos_is_refused(tiny_backbone):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    tokenizer.chat_template = None
    assert prepare_tokenizer(tokenizer).chat_template
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        prepare_tokenizer(tokenizer)


def with_template(name):
    return prepare_tokenizer(train_tokenizer(["alpha beta gamma delta epsilon zeta kappa"], 300, name))


@pytest.mark.parametrize("prompt", [PROMPT, TURNS, SYSTEM + TURNS])
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_every_template_keeps_the_prompt_a_prefix(name, prompt, kwargs):
    tokenizer = with_template(name)
    encoder = PolicyEncoder(tokenizer, 200, 300, chat_template_kwargs=kwargs)
    text = encoder.encode([prompt], ["epsilon zeta"])[0]
    head, tail = text.ids[: text.prompt_length], text.ids[text.prompt_length :]
    assert encoder.encode_prompts([prompt]) == [head]
    # up to a last newline, which a tokenizer may join with a response's own
    header = generation_prompt_ids(tokenizer, kwargs)
    assert tokenizer.decode(head).rstrip("\n").endswith(tokenizer.decode(header).rstrip("\n"))
    thinks = name == "qwen3" and kwargs.get("enable_thinking", True)
    answer = ("<think>\n\n</think>\n\n" if thinks else "") + "epsilon zeta<|im_end|>"
    assert tokenizer.decode(tail) == answer


@pytest.mark.parametrize(
    ("name", "genuine", "changed"),
    [
        ("qwen2.5", "qwen2_5", ("You are Qwen, created by Alibaba Cloud. ", "")),
        ("qwen3", "qwen3", ("", "")),
    ],
)
@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_templates_write_what_the_genuine_ones_write(name, genuine, changed, kwargs):
    ours = with_template(name)
    theirs = with_template(name)
    theirs.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{genuine}.jinja").read_text()
    answer = {"role": "assistant", "content": "zeta"}
    for turns in (
        PROMPT,
        TURNS,
        SYSTEM + TURNS,
        [*PROMPT, answer],
        [*SYSTEM, *TURNS, answer],
        [*TURNS, answer, answer],
    ):
        for generate in (False, True):
            texts = [
                tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate, **kwargs)
                for tokenizer in (ours, theirs)
            ]
            assert texts[0] == texts[1].replace(*changed)


def test_the_ends_of_a_thought_are_tokens_of_qwen3_alone():
    assert len(with_template("qwen3")("<think></think>")["input_ids"]) == 2
    assert len(with_template("qwen2.5")("<think></think>")["input_ids"]) > 2
    tokenizer = with_template("qwen3")
    assert (
        tokenizer.decode(tokenizer("<think>\n\n</think>\n\nzeta")["input_ids"], skip_special_tokens=True).strip()
        == "zeta"
    )


def test_template_arguments_are_passed_on(tokenizer):
    tokenizer.chat_template = "{{ mood }} " + tokenizer.chat_template
    kwargs = {"mood": "zeta"}
    assert render(tokenizer, PROMPT, "gamma", kwargs)[0].startswith("zeta ")
    encoder = TextEncoder(tokenizer, 64, 128, chat_template_kwargs=kwargs)
    assert tokenizer.decode(encoder.encode([PROMPT], ["gamma"])[0].ids).startswith("zeta ")
    assert tokenizer.decode(encoder.encode_prompts([PROMPT])[0]).startswith("zeta ")
    assert render(tokenizer, PROMPT, "gamma")[0].startswith(" ")


def test_prompts_to_be_answered_are_cut_as_prompts_and_counted(tokenizer):
    encoder = TextEncoder(tokenizer, max_prompt_length=40, max_length=60)
    long = [{"role": "user", "content": "alpha " * 40}]
    text = PolicyEncoder(tokenizer, 40, 60, encoder.truncation).encode([long], ["beta"])[0]
    assert encoder.encode_prompts([PROMPT, long])[1] == text.ids[: text.prompt_length]
    assert encoder.truncation.as_dict() == {"texts": 3, "prompts_cut": 2, "responses_cut": 0}
    assert encoder.encode_prompts([]) == []


def test_a_policys_cut_response_does_not_end_and_a_reward_models_does(tokenizer):
    long = "alpha " * 200
    for kind, ending in ((TextEncoder, [tokenizer.eos_token_id, *tokenizer("\n")["input_ids"]]), (PolicyEncoder, None)):
        encoder = kind(tokenizer, 40, 60)
        cut, whole = encoder.encode([[{"role": "user", "content": "beta"}]] * 2, [long, "mu"])
        assert 58 <= len(cut.ids) <= 60
        if ending:
            assert cut.ids[-2:] == whole.ids[-2:] == ending
        else:
            assert tokenizer.eos_token_id not in cut.ids[cut.prompt_length :]
            assert whole.ids[-1] == tokenizer.eos_token_id
        assert encoder.truncation.responses_cut == 1


def test_a_tokenizer_that_does_not_know_chatml_gets_turns_in_its_own_tokens():
    """As Llama-2's, Mistral's and Pythia's bases: ChatML's marks would be ordinary text, which a judge would read."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        ["alpha beta"], trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    tokenizer = prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>"))
    text = PolicyEncoder(tokenizer, 32, 64).encode([[{"role": "user", "content": "alpha"}]], ["beta"])[0]
    assert text.ids.count(tokenizer.bos_token_id) == 1
    assert text.ids[0] == tokenizer.bos_token_id
    assert text.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(text.ids[text.prompt_length :], skip_special_tokens=True) == "beta"
