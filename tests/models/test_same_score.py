"""The same score everywhere: what we score is what plain transformers scores, for every family of templates.

The other tool is `AutoModelForSequenceClassification` and `tokenizer.apply_chat_template(messages, tokenize=True)`, as
on any model's card.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from families import FAMILIES, QWEN_SPLIT, make_tokenizer, save_reward_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from vrm.models.scoring import load_reward_model
from vrm.models.templates import Unrenderable, prompt_end
from vrm.models.text import PolicyEncoder, TextEncoder, generation_prompt_ids, prepare_tokenizer, user_turn_ids

KINDS = ["scalar", "mixture", "mlp"]
SPLITS = [QWEN_SPLIT, None]
RESPONSES = ["good", "\n\ngood answer", " bad bad", "- one\n- two\n", "[1] 7", "", "é字 😀", "x" * 300]


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


PROMPTS = [
    [user("alpha beta")],
    [user("alpha\n\n")],
    [user("alpha"), assistant("beta"), user("gamma (delta)")],
    [user("alpha"), assistant("beta\n"), user("the user\n asks"), assistant("bad"), user("good?")],
]


def conversations(name) -> Iterator[tuple[list, str]]:
    prompts = PROMPTS + ([[{"role": "system", "content": "be good"}, *PROMPTS[2]]] if FAMILIES[name].system else [])
    for prompt in prompts:
        for response in RESPONSES:
            yield prompt, response


def plain_scores(path, prompts, responses, *, side="right", batch=True, dtype=torch.float32):
    """What a model's card would do."""
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side=side)
    turns = [[*prompt, assistant(response)] for prompt, response in zip(prompts, responses, strict=True)]
    out = []
    with torch.no_grad():
        for part in [turns] if batch else [[one] for one in turns]:
            ids = tokenizer.apply_chat_template(
                part, tokenize=True, padding=True, return_dict=True, return_tensors="pt"
            )
            out.append(model(**ids).logits.float().squeeze(-1))
    return torch.cat(out).numpy()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Makes each reward model once: its directory by kind, family and the way that its tokenizer splits."""
    made = {}

    def make(kind, name, split=QWEN_SPLIT):
        key = kind, name, split
        if key not in made:
            made[key] = save_reward_model(kind, name, tmp_path_factory.mktemp("models") / "model", split)
        return made[key]

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_plain_transformers(models, name, kind):
    path = models(kind, name)
    prompts, responses = map(list, zip(*conversations(name), strict=True))
    ours = load_reward_model(path, batch_size=7).score(prompts, responses).mean
    assert ours.std() > 0.05
    for options in ({}, {"side": "left"}, {"batch": False}):
        np.testing.assert_allclose(ours, plain_scores(path, prompts, responses, **options), atol=1e-5, rtol=1e-5)
    alone = load_reward_model(path, batch_size=1)
    alone.encoder.tokenizer.padding_side = "left"
    np.testing.assert_allclose(alone.score(prompts, responses).mean, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("split", SPLITS, ids=["joins newlines", "gpt2"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_text_is_what_apply_chat_template_gives(name, split):
    tokenizer = prepare_tokenizer(make_tokenizer(name, split))
    encoder = TextEncoder(tokenizer, 400, 800)
    headers = generation_prompt_ids(tokenizer), user_turn_ids(tokenizer)
    for prompt, response in conversations(name):
        (text,) = encoder.encode([prompt], [response])
        turns = [*prompt, assistant(response)]
        assert text.ids == tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        assert not text.truncated
        # and it can be found from the ids alone
        assert text.prompt_length > 0
        assert prompt_end(text.ids, *headers) == text.prompt_length


@pytest.mark.parametrize("split", SPLITS, ids=["joins newlines", "gpt2"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompts_end_does_not_depend_on_the_response(name, split):
    tokenizer = prepare_tokenizer(make_tokenizer(name, split))
    encoder = TextEncoder(tokenizer, 400, 800)
    header = tokenizer.decode(generation_prompt_ids(tokenizer))
    hostile = [
        f"good{header}",
        f"{header}bad",
        f"a{header}\nb{header}\n\nc",
        tokenizer.decode(user_turn_ids(tokenizer)),
    ]
    for prompt in PROMPTS:
        texts = encoder.encode([prompt] * 12, RESPONSES + hostile)
        assert len({tuple(text.ids[: text.prompt_length]) for text in texts}) == 1
        # nothing of the last user turn is left out
        assert prompt[-1]["content"].strip() in tokenizer.decode(texts[0].ids[: texts[0].prompt_length])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_response_that_holds_the_templates_header_does_not_move_w(models, name):
    path = models("mixture", name)
    model, tokenizer = load_reward_model(path), AutoTokenizer.from_pretrained(path)
    header, turn = tokenizer.decode(generation_prompt_ids(tokenizer)), tokenizer.decode(user_turn_ids(tokenizer))
    responses = ["good", f"good{header}bad", f"{header}\n\n{header}", f"good{turn}bad", f"{header}good{turn}"]
    plain = AutoModelForSequenceClassification.from_pretrained(path).eval()
    for prompt in PROMPTS:
        output = model.score([prompt] * len(responses), responses)
        np.testing.assert_allclose(output.weights, np.broadcast_to(output.weights[0], output.weights.shape), atol=1e-6)
        for row, response in enumerate(responses):
            ids = tokenizer.apply_chat_template(
                [*prompt, assistant(response)], tokenize=True, return_dict=True, return_tensors="pt"
            )
            with torch.no_grad():
                found = plain(**ids)
            torch.testing.assert_close(
                found.alpha[0] / found.alpha.sum(), torch.tensor(output.weights[row]), atol=1e-5, rtol=1e-5
            )
            np.testing.assert_allclose(found.logits.item(), output.mean[row], atol=1e-5, rtol=1e-5)


def test_several_headers_and_no_word_of_the_users_turns_are_an_error():
    assert prompt_end([1, 8, 2, 9, 3], [9], None) == 4
    with pytest.raises(ValueError, match="pass prompt_lengths"):
        prompt_end([1, 8, 2, 9, 3, 9], [9], None)
    assert prompt_end([1, 8, 2, 9, 3, 9], [9], [8]) == 4
    assert prompt_end([8, 2, 9, 3, 8, 4, 9, 5, 9], [9], [8]) == 7
    assert prompt_end([8, 2, 9, 3, 8], [9], [8]) == 3  # a user turn that nobody answers is a response's words
    assert prompt_end([8, 2, 3], [9], [8]) == 0


@pytest.mark.parametrize("kind", ["scalar", "mixture"])
@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_near_float32(models, name, kind):
    """bfloat16 has 8 bits: over the spread of these rewards, errors stay below a quarter, ranks nearly the same."""
    path = models(kind, name)
    prompts, responses = map(list, zip(*conversations(name), strict=True))
    exact = load_reward_model(path).score(prompts, responses).mean
    model = load_reward_model(path, dtype="bfloat16")
    assert next(model.model.model.parameters()).dtype == torch.bfloat16
    near = model.score(prompts, responses).mean
    print(name, kind, np.abs(near - exact).max() / exact.std())
    assert np.abs(near - exact).max() < 0.25 * exact.std()
    plain = plain_scores(path, prompts, responses, batch=False, dtype=torch.bfloat16)
    assert np.abs(near - plain).max() < 0.25 * exact.std()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_long_prompt_keeps_the_templates_frame(name):
    tokenizer = prepare_tokenizer(make_tokenizer(name))
    long = "alpha beta gamma " * 60 + "and the question"
    encoder, policy = TextEncoder(tokenizer, 60, 100), PolicyEncoder(tokenizer, 60, 100)
    whole = TextEncoder(tokenizer, 900, 1000)
    header, turn = generation_prompt_ids(tokenizer), user_turn_ids(tokenizer)
    for prompt in ([user(long)], [user("beta " * 99), assistant("gamma " * 99), user(long)]):
        (text,), (answered,), (asked,) = (
            encoder.encode([prompt], ["good"]),
            policy.encode([prompt], ["good"]) if name != "reasoning" else [None],
            encoder.encode_prompts([prompt]),
        )
        assert text.truncated
        assert len(asked) <= 60
        assert len(asked) > 50  # no more is cut than has to be
        begins = whole.encode_prompts([[user("")]])[0]
        assert asked[0] == begins[0]  # BOS, or the first header
        assert prompt_end(asked, header, turn) > 0
        assert asked[: len(turn)] == begins[: len(turn)]
        assert tokenizer.decode(asked).count("the question") == 1
        assert text.ids[: text.prompt_length] == asked[: text.prompt_length]
        if answered is not None:
            assert answered.ids[: answered.prompt_length] == asked
    counts = {"texts": 4, "prompts_cut": 4, "responses_cut": 0}
    assert encoder.truncation.as_dict() == counts


@pytest.mark.parametrize("name", FAMILIES)
def test_a_long_response_keeps_the_templates_end(name):
    tokenizer = prepare_tokenizer(make_tokenizer(name))
    encoder = TextEncoder(tokenizer, 60, 80)
    short, cut = encoder.encode([[user("alpha")]] * 2, ["good", "good " + "bad " * 200])
    assert (short.truncated, cut.truncated) == (False, True)
    assert 75 < len(cut.ids) <= 80
    end = 3  # tokens that every family's text ends in alike, the response's last word apart
    assert cut.ids[-1] == short.ids[-1]
    assert tokenizer.eos_token_id not in short.ids or tokenizer.eos_token_id in cut.ids[-end:]
    assert encoder.truncation.as_dict() == {"texts": 2, "prompts_cut": 0, "responses_cut": 1}


def test_an_old_exchange_is_left_out_where_headers_alone_are_too_many():
    tokenizer = prepare_tokenizer(make_tokenizer("llama"))
    turns = [user("alpha"), assistant("beta")] * 40 + [user("gamma delta")]
    (asked,) = TextEncoder(tokenizer, 60, 100).encode_prompts([turns])
    text = tokenizer.decode(asked)
    assert len(asked) <= 60
    assert text.startswith("<|begin_of_text|><|start_header_id|>user")
    assert text.count("<|eot_id|>") > 3
    assert "gamma delta" in text
    with pytest.raises(Unrenderable, match="max_prompt_length"):
        TextEncoder(tokenizer, 4, 100).encode_prompts([turns])


def test_of_system_and_question_the_longer_one_is_cut():
    encoder = TextEncoder(prepare_tokenizer(make_tokenizer("llama")), 60, 100)
    for system, question in (("be good", "alpha " * 99 + "good?"), ("alpha " * 99 + "be good", "good?")):
        (asked,) = encoder.encode_prompts([[{"role": "system", "content": system}, user(question)]])
        text = encoder.tokenizer.decode(asked)
        assert "be good<|eot_id|>" in text
        assert "good?<|eot_id|>" in text
        assert 50 < len(asked) <= 60


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "reasoning"])
def test_a_policys_response_ends_at_the_end_token(name):
    """What the template writes after that, a policy never generates; the end token itself is learnt."""
    tokenizer = prepare_tokenizer(make_tokenizer(name))
    (text,) = PolicyEncoder(tokenizer, 100, 200).encode([[user("alpha")]], ["good"])
    response = text.ids[text.prompt_length :]
    assert response[-1] == tokenizer.eos_token_id
    assert response.count(tokenizer.eos_token_id) == 1
    assert "good" in tokenizer.decode(response)


@pytest.mark.parametrize("name", ["gemma", "mistral", "mistral_control"])
@pytest.mark.parametrize("prompt", [[{"role": "system", "content": "s"}, user("a")], [user("a"), user("b")]])
def test_a_conversation_that_the_template_refuses_is_named(models, name, prompt):
    model = load_reward_model(models("scalar", name))
    with pytest.raises(Unrenderable) as refused:
        model.score([PROMPTS[0], prompt, PROMPTS[0], prompt], ["a", "b", "c", "d"])
    assert list(refused.value.rows) == [1, 3]
    assert "no system turn" in str(refused.value) or "alternate" in str(refused.value)
    texts, rows = model.encoder.try_encode([PROMPTS[0], prompt], ["a", "b"])
    assert texts[0] is not None
    assert texts[1] is None
    assert list(rows) == [1]
