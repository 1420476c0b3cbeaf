"""The engine on transformers' models: `model.generate`'s answers, reproducible, in order, without side effects."""

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from vrm import watch
from vrm.config import Generation
from vrm.generation import engines
from vrm.generation.engines import Sampling, _Choice, decode, load_engine, make_engine, seeded, seeds_of
from vrm.models.scoring import pad_batch
from vrm.models.text import end_ids

PROMPTS = ["alpha", "beta gamma delta epsilon zeta", "eta theta", "alpha", "iota kappa lambda mu alpha beta gamma"]


@pytest.fixture
def tokenizer(tiny_backbone):
    return AutoTokenizer.from_pretrained(tiny_backbone)


@pytest.fixture
def model(tiny_backbone):
    return AutoModelForCausalLM.from_pretrained(tiny_backbone)


@pytest.fixture
def prompts(tokenizer):
    return tokenizer(PROMPTS)["input_ids"]


def engine(model, tokenizer, **settings):
    return make_engine(Generation(**{"max_new_tokens": 12, **settings}), model, tokenizer)


def answers(engine, prompts, seed, *sampling):
    """Answers of a call that has one seed."""
    return engine.generate(prompts, seeds_of(seed, len(prompts)), *sampling)


def by_hand(model, prompt, ends, steps):
    """Greedy decoding without batches, padding and cache."""
    ids = list(prompt)
    while len(ids) < len(prompt) + steps and (len(ids) == len(prompt) or ids[-1] not in ends):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_seed_gives_the_same_answers_and_another_one_others(model, tokenizer, prompts):
    sampled = engine(model, tokenizer)
    first = answers(sampled, prompts, 1)
    assert answers(sampled, prompts, 1) == first
    assert answers(sampled, prompts, 2) != first
    assert first[0] != first[3]  # equal prompts, answers of their own


def test_an_answer_depends_on_its_own_seed_alone(model, tokenizer, prompts):
    seeds = seeds_of(4, len(prompts))
    together = engine(model, tokenizer).generate(prompts, seeds)
    assert engine(model, tokenizer, batch_size=2).generate(prompts, seeds) == together
    assert engine(model, tokenizer).generate(prompts[::-1], seeds[::-1]) == together[::-1]
    for prompt, seed, answer in zip(prompts, seeds, together, strict=True):
        assert engine(model, tokenizer).generate([prompt], [seed]) == [answer]
    changed = engine(model, tokenizer).generate(prompts, [seeds[0] + 1, *seeds[1:]])
    assert changed[0] != together[0]
    assert changed[1:] == together[1:]


def test_a_token_is_drawn_by_its_share_of_the_distribution():
    logits = torch.tensor([0.5, 0.0, 0.2, 0.3]).log().expand(5, -1)
    choose = _Choice([0] * 5, Sampling(1.0, 2), 1.0, torch.device("cpu"))
    choose.numbers[:, 1] = torch.tensor([0.0, 0.499, 0.501, 0.7, 1 - 2**-50])
    assert choose(logits, torch.arange(5), 1).tolist() == [0, 0, 2, 3, 3]  # never the one without probability
    assert choose(logits[:2], torch.tensor([4, 2]), 1).tolist() == [3, 2]  # rows keep their numbers
    assert choose.numbers[:, 0].max() < 1
    choose.check()


def test_a_policy_that_has_diverged_says_so(model, tokenizer, prompts):
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        answers(engine(model, tokenizer), prompts, 0)


@pytest.mark.parametrize("batch_size", [1, 2, 128])
def test_greedy_answers_follow_their_prompts_whatever_the_batches(model, tokenizer, prompts, batch_size):
    greedy = engine(model, tokenizer, temperature=0, batch_size=batch_size)
    expected = [by_hand(model, prompt, greedy.ends, 12) for prompt in prompts]
    assert answers(greedy, prompts, 0) == expected
    assert answers(greedy, prompts[::-1], 5) == expected[::-1]
    assert answers(greedy, [], 0) == []


def test_answers_are_those_of_generate(model, tokenizer, prompts):
    """Greedily, with answers that end at different times."""
    ends = engine(model, tokenizer, temperature=0, max_new_tokens=40)
    ends.ends = frozenset(range(0, len(tokenizer), 7))
    ids, mask = pad_batch(prompts, tokenizer, side="left")
    config = GenerationConfig(
        max_new_tokens=40, do_sample=False, eos_token_id=sorted(ends.ends), pad_token_id=tokenizer.pad_token_id
    )
    whole = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :].tolist()
    found = answers(ends, prompts, 0)
    assert found == [row[: len(answer)] for row, answer in zip(whole, found, strict=True)]
    assert all(answer[-1] in ends.ends or len(answer) == 40 for answer in found)


@pytest.mark.parametrize("looked", [1, 3, 100])
def test_answers_do_not_depend_on_when_ended_ones_are_dropped(model, tokenizer, prompts, monkeypatch, looked):
    sampled = engine(model, tokenizer, max_new_tokens=40)
    sampled.ends = frozenset(range(0, len(tokenizer), 9))
    expected = answers(sampled, prompts * 4, 3)
    assert len({len(answer) for answer in expected}) > 3
    monkeypatch.setattr(engines, "LOOK_EVERY", looked)
    monkeypatch.setattr(engines, "WORTH_IT", 1.0)
    assert answers(sampled, prompts * 4, 3) == expected


def test_a_prompt_is_read_once_for_all_of_its_answers(model, tokenizer, prompts):
    sampled = engine(model, tokenizer)
    read = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    asked = [(prompts[1], 1), (prompts[1], 2), (prompts[1], 3), (prompts[0], 1), (prompts[0], 2)]
    together = sampled.generate(*map(list, zip(*asked, strict=True)))
    hook.remove()
    assert read[0][0] == 2
    assert read[1] == (5, 1)
    assert together == [sampled.generate([prompt], [seed])[0] for prompt, seed in asked]


def test_answers_stop_at_an_end_token_or_at_the_limit(model, tokenizer, prompts):
    usual = answers(engine(model, tokenizer, max_new_tokens=5), prompts * 8, 0)
    assert max(map(len, usual)) == 5
    end = max(token for answer in usual for token in answer[1:-1])
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    stopping = engine(model, tokenizer, max_new_tokens=40)
    assert stopping.ends == {tokenizer.eos_token_id, end}
    found = answers(stopping, prompts * 8, 0)
    assert any(answer[-1] == end for answer in found)
    for answer in found:
        assert not stopping.ends & set(answer[:-1])
        assert answer[-1] in stopping.ends or len(answer) == 40


def test_it_samples_from_the_policy_and_not_from_its_generation_config(model, tokenizer, prompts):
    plain = answers(engine(model, tokenizer), prompts, 0)
    own = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, do_sample=True, top_k=1, top_p=0.1, repetition_penalty=9.0, min_p=0.9
    )
    model.generation_config = own
    assert answers(engine(model, tokenizer), prompts, 0) == plain
    assert model.generation_config is own


def test_frequencies_are_the_policys_at_that_temperature(model, tokenizer, prompts):
    n, temperature = 8000, 0.5
    settings = {"max_new_tokens": 1, "temperature": temperature, "batch_size": n}
    drawn = torch.tensor(answers(engine(model, tokenizer, **settings), [prompts[1]] * n, 0)).flatten()
    with torch.no_grad():
        expected = (model(torch.tensor([prompts[1]])).logits[0, -1] / temperature).softmax(-1)
    found = torch.bincount(drawn, minlength=len(tokenizer)) / n
    assert (found - expected).abs().max() < 0.02
    assert expected.max() > 0.05  # at temperature 1 it would be less
    # nothing is cut off: as much probability beyond the 50 likeliest tokens as there should be
    tail = expected.argsort(descending=True)[50:]
    assert found[tail].sum().item() == pytest.approx(expected[tail].sum().item(), rel=0.2)
    assert expected[tail].sum() > 0.02


def test_top_p_cuts_the_tail(model, tokenizer, prompts):
    drawn = answers(engine(model, tokenizer, max_new_tokens=1, temperature=0.25, top_p=0.5), [prompts[1]] * 200, 0)
    with torch.no_grad():
        probabilities = (model(torch.tensor([prompts[1]])).logits[0, -1] / 0.25).softmax(-1)
    best = probabilities.sort(descending=True)
    kept = set(best.indices[: int((best.values.cumsum(0) < 0.5).sum()) + 1].tolist())
    assert {token for answer in drawn for token in answer} <= kept


def test_a_call_may_sample_otherwise(model, tokenizer, prompts):
    usual = engine(model, tokenizer, temperature=0.7, top_p=0.9)
    before = answers(usual, prompts, 1)
    for temperature, limit in ((0, 5), (1.5, 9)):
        expected = engine(model, tokenizer, temperature=temperature, max_new_tokens=limit, top_p=0.9)
        assert answers(usual, prompts, 1, Sampling(temperature, limit)) == answers(expected, prompts, 1)
    assert answers(usual, prompts, 1) == before


def test_a_finished_policy_is_read_from_its_files(model, tokenizer, prompts, tiny_backbone):
    loaded = load_engine(Generation(max_new_tokens=12), str(tiny_backbone), None, tokenizer)
    assert answers(loaded, prompts, 1) == answers(engine(model, tokenizer), prompts, 1)


def test_progress_is_shown_where_it_is_asked_for(tokenizer, prompts, tiny_backbone, capsys, monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0.0)
    for progress in (False, True):
        answers(load_engine(Generation(), str(tiny_backbone), None, tokenizer, progress=progress), prompts, 1)
        assert ("generating" in capsys.readouterr().err) == progress


def test_random_state_mode_and_checkpointing_are_left_alone(model, tokenizer, prompts):
    expected = answers(engine(model, tokenizer), prompts, 3)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert answers(engine(model, tokenizer), prompts, 3) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.is_gradient_checkpointing
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_answer_too(model, tokenizer, prompts):
    from peft import LoraConfig, get_peft_model

    before = answers(engine(model, tokenizer, temperature=0), prompts, 0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    assert answers(engine(adapted, tokenizer, temperature=0), prompts, 0) != before


def test_a_fused_head_changes_nothing(model, tokenizer, prompts):
    from trl.trainer.utils import add_fused_lm_head

    before = answers(engine(model, tokenizer), prompts, 0)
    add_fused_lm_head(model, temperature=0.5)
    assert answers(engine(model, tokenizer), prompts, 0) == before


@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"top_p": 0.9}])
def test_it_says_nothing(model, tokenizer, prompts, settings, caplog, recwarn, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    answers(engine(model, tokenizer, **settings), prompts, 0)
    assert not caplog.records
    assert not recwarn.list


def test_decoding_tells_an_end_from_a_limit(tokenizer):
    ids = tokenizer(" alpha beta ")["input_ids"]
    assert decode(tokenizer, ids) == ("alpha beta", False)
    assert decode(tokenizer, [*ids, tokenizer.eos_token_id]) == ("alpha beta", True)
    assert decode(tokenizer, [*ids, tokenizer.pad_token_id]) == ("alpha beta", False)
    assert decode(tokenizer, [*ids, tokenizer.pad_token_id], {tokenizer.pad_token_id}) == ("alpha beta", True)
    assert decode(tokenizer, [tokenizer.eos_token_id]) == ("", True)
    assert decode(tokenizer, []) == ("", False)


def test_end_ids_are_the_tokenizers_and_the_models(model, tokenizer):
    for declared, more in ((None, set()), (5, {5}), ([5, 6], {5, 6})):
        model.generation_config.eos_token_id = declared
        assert end_ids(model.generation_config, tokenizer) == {tokenizer.eos_token_id} | more


def test_seeded_is_a_stream_of_its_own():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = torch.rand(1)
    with seeded(1, torch.device("cpu")):
        inside = torch.rand(1)
    with seeded(1, torch.device("cpu")):
        assert torch.rand(1) == inside
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)
