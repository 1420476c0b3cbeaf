"""Conversations become token ids the same way everywhere, and nothing is cut without being counted."""

from pathlib import Path

import pytest
import trl
from transformers import AutoTokenizer

from vrm.models.templates import TEMPLATES, generation_prompt_ids
from vrm.models.text import PolicyEncoder, TextEncoder, prepare_tokenizer, render
from vrm.training.backbones import train_tokenizer

PROMPT = [{"role": "user", "content": "alpha beta"}]
SYSTEM = [{"role": "system", "content": "kappa"}]
TURNS = [*PROMPT, {"role": "assistant", "content": "gamma"}, {"role": "user", "content": "delta?"}]


@pytest.fixture
def tokenizer(tiny_backbone):
    return prepare_tokenizer(AutoTokenizer.from_pretrained(tiny_backbone))


@pytest.mark.parametrize("prompt", [PROMPT, TURNS])
def test_a_reward_models_text_ends_as_the_template_ends_it(tokenizer, prompt):
    """With ChatML's newline after the end token: plain transformers reads the reward at that token, and so do we.

    Its prompt ends with the header's tokens that are the same whatever follows, hence perhaps without its newline.
    """
    text = TextEncoder(tokenizer, 64, 128).encode([prompt], ["epsilon zeta"])[0]
    turns = [*prompt, {"role": "assistant", "content": "epsilon zeta"}]
    assert text.ids == tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert tokenizer.decode(text.ids).endswith("<|im_start|>assistant\nepsilon zeta<|im_end|>\n")
    header = generation_prompt_ids(tokenizer)
    assert text.ids[: text.prompt_length][-len(header) :] == header
    assert tokenizer.decode(text.ids[text.prompt_length :]).strip() == "epsilon zeta<|im_end|>"


@pytest.mark.parametrize("prompt", [PROMPT, TURNS])
def test_a_policys_text_is_its_prompt_and_a_response_that_ends_in_eos(tokenizer, prompt):
    """What a template writes after the end token, a policy never generates, so it isn't learnt either."""
    text = PolicyEncoder(tokenizer, 64, 128).encode([prompt], ["epsilon zeta"])[0]
    assert tokenizer.decode(text.ids[: text.prompt_length]).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(text.ids[text.prompt_length :]) == "epsilon zeta<|im_end|>"
    assert text.ids[-1] == tokenizer.eos_token_id


def test_a_turns_end_that_the_model_declares_ends_a_policys_response(tokenizer):
    """As Gemma's: `<end_of_turn>` and a line's end behind a response, and another token for the text's end."""
    turn_ends, tokenizer.eos_token = tokenizer.eos_token_id, "<|endoftext|>"
    declared = frozenset({turn_ends, tokenizer.eos_token_id})
    (known,) = PolicyEncoder(tokenizer, 64, 128, ends=declared).encode([PROMPT], ["epsilon zeta"])
    (unknown,) = PolicyEncoder(tokenizer, 64, 128).encode([PROMPT], ["epsilon zeta"])
    assert tokenizer.decode(known.ids[known.prompt_length :]) == "epsilon zeta<|im_end|>"
    assert unknown.ids[-1] == tokenizer.eos_token_id
    (blank,) = PolicyEncoder(tokenizer, 64, 128, ends=declared).encode([PROMPT], [""])
    assert blank.ids[blank.prompt_length :] == [turn_ends]


def test_a_template_that_writes_bos_gives_exactly_one(tokenizer):
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>"})
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    ids = TextEncoder(tokenizer, 64, 128).encode([PROMPT], ["gamma"])[0].ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_truncation_keeps_the_templates_frame_and_is_counted(tokenizer):
    """A cut text is a whole conversation too: both headers and the text's end stay, and only content goes."""
    prompt, response = [{"role": "user", "content": "alpha " * 40 + "kappa"}], "beta " * 40
    encoder = TextEncoder(tokenizer, max_prompt_length=40, max_length=60)
    whole, cut = (e.encode([prompt], [response])[0] for e in (TextEncoder(tokenizer, 500, 1000), encoder))
    assert (whole.truncated, cut.truncated) == (False, True)
    assert len(cut.ids) <= 60
    assert cut.prompt_length <= 40
    asked, answered = tokenizer.decode(cut.ids).split("<|im_end|>\n")[:2]
    assert asked.startswith("<|im_start|>user\n")
    assert asked.endswith("alpha kappa")  # a prompt loses its beginning
    assert answered.startswith("<|im_start|>assistant\nbeta")  # a response loses its end
    end = tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"]
    assert cut.ids[-len(end) :] == whole.ids[-len(end) :] == end
    assert encoder.truncation.as_dict() == {"texts": 1, "prompts_cut": 1, "responses_cut": 1}


def test_limits_that_the_template_alone_exceeds_are_a_rows_fault(tokenizer):
    """No content is left to cut: the row is named, and others are encoded."""
    long = "alpha " * 40
    texts, refused = TextEncoder(tokenizer, 2, 200).try_encode([PROMPT, [{"role": "user", "content": long}]], ["a"] * 2)
    assert texts == [None, None]
    assert list(refused) == [0, 1]
    room = len(tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=False))
    texts, refused = TextEncoder(tokenizer, room, room + 1).try_encode([PROMPT], ["beta"])
    assert texts == [None]
    assert "max_length" in refused[0]


def test_limits_that_leave_no_room_for_a_response_are_refused(tokenizer):
    with pytest.raises(ValueError, match="must be below max_length"):
        TextEncoder(tokenizer, 20, 20)


def test_a_template_whose_prompt_is_no_prefix_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="does not begin with"):
        render(tokenizer, PROMPT, "gamma")


@pytest.mark.parametrize("pad", [None, "<|im_end|>"])
def test_a_missing_pad_token_or_one_equal_to_eos_is_replaced(tiny_backbone, pad):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    size = len(tokenizer)
    tokenizer.pad_token = pad
    prepare_tokenizer(tokenizer)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
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
def test_every_template_keeps_a_policys_prompt_a_prefix(name, prompt, kwargs):
    """A policy's text begins with the very ids that it is asked with, and ends in the end token that it generates."""
    tokenizer = with_template(name)
    encoder = PolicyEncoder(tokenizer, 200, 300, chat_template_kwargs=kwargs)
    text = encoder.encode([prompt], ["epsilon zeta"])[0]
    head, tail = text.ids[: text.prompt_length], text.ids[text.prompt_length :]
    assert encoder.encode_prompts([prompt]) == [head]
    assert tokenizer.decode(head) == tokenizer.apply_chat_template(
        prompt, tokenize=False, add_generation_prompt=True, **kwargs
    )
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
    encoder = PolicyEncoder(tokenizer, max_prompt_length=40, max_length=60)
    long = [{"role": "user", "content": "alpha " * 40}]
    asked = encoder.encode_prompts([PROMPT, long])
    text = encoder.encode([long], ["beta"])[0]
    assert asked[1] == text.ids[: text.prompt_length]
    assert len(asked[1]) <= 40
    assert tokenizer.decode(asked[1]).startswith("<|im_start|>user\n")
    assert encoder.truncation.as_dict() == {"texts": 3, "prompts_cut": 2, "responses_cut": 0}
    assert encoder.encode_prompts([]) == []


@pytest.mark.parametrize("kind", [TextEncoder, PolicyEncoder])
def test_a_cut_response_ends_for_a_reward_model_and_not_for_a_policy(tokenizer, kind):
    """A reward is read at the text's end, which has to be there; a policy must not learn to stop mid-sentence."""
    encoder = kind(tokenizer, 40, 60)
    cut, whole = encoder.encode([[{"role": "user", "content": "beta"}]] * 2, ["alpha " * 200, "mu"])
    assert len(cut.ids) <= 60
    assert (tokenizer.eos_token_id in cut.ids[cut.prompt_length :]) == (kind is TextEncoder)
    assert tokenizer.eos_token_id in whole.ids[whole.prompt_length :]
    assert encoder.truncation.responses_cut == 1


def test_a_tokenizer_that_does_not_know_chatml_gets_turns_in_its_own_tokens():
    """As Llama-2's, Mistral's and Pythia's bases: ChatML's marks would be ordinary text, which a judge would read.

    The end token is followed by what the template writes there, a newline.
    """
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
    text = TextEncoder(tokenizer, 64, 128).encode([[{"role": "user", "content": "alpha"}]], ["beta"])[0]
    assert text.ids.count(tokenizer.bos_token_id) == 1
    assert text.ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(text.ids).endswith("assistant\nbeta</s>\n")
    assert tokenizer.eos_token_id in text.ids[text.prompt_length :]
    assert tokenizer.decode(text.ids[text.prompt_length :], skip_special_tokens=True).strip() == "beta"
