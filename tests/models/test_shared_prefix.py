"""Packed batches against padded ones: states, rewards and gradients of every family, and the packing itself."""

import copy

import numpy as np
import pytest
import torch
from small_models import FAMILIES, PAD, SIZES, WINDOW, draw_texts
from transformers import AutoModelForSequenceClassification, Gemma3TextConfig, GPT2Config, set_seed

from vrm.config.reward import BASELINES
from vrm.models import shared_prefix
from vrm.models.baseline_heads import HEADS, BaselineConfig, BaselineForSequenceClassification, Noise
from vrm.models.latents import sample_pairs
from vrm.models.shared_prefix import (
    PromptGroup,
    attend,
    by_prompt,
    compile_blocks,
    fill,
    pack,
    passes,
    share_prefixes,
    shares_prefixes,
    unsupported,
)
from vrm.models.vrm import VrmConfig, VrmForSequenceClassification

VRMS = {
    "last": {"prompt_pooling": "last"},
    "attention": {"prompt_pooling": "attention", "concentration": "scaled"},
}


def padded_inputs(texts, left=False):
    longest = max(len(ids) for ids, _ in texts)
    ids, mask = torch.full((len(texts), longest), PAD), torch.zeros(len(texts), longest, dtype=torch.long)
    for row, (text, _) in enumerate(texts):
        place = slice(longest - len(text), None) if left else slice(len(text))
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask, "prompt_lengths": torch.tensor([length for _, length in texts])}


def packed_inputs(texts, budget=None):
    groups, order = by_prompt(texts)
    return pack(groups, PAD, budget, order).inputs()


def build(name, variational, attention=None):
    set_seed(1)
    config = FAMILIES[name]
    if not variational:
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
    else:
        model = VrmForSequenceClassification(
            VrmConfig(text_config=config, aspects=["a", "b", "c"], latent_dim=4, **VRMS[variational])
        )
    for parameter in model.parameters():  # away from symmetric starts such as a query of zeros
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def results(model, inputs):
    """Rewards, and the gradients of a Bradley-Terry loss, with one draw of a VRM's latents."""
    model.zero_grad()
    set_seed(5)
    if isinstance(model, VrmForSequenceClassification):
        rewards = model(**inputs, sampler=sample_pairs).logits
    elif isinstance(model, BaselineForSequenceClassification):
        rewards = model(**inputs, noise=Noise(0, 1)).logits
    else:
        rewards = model(**{name: value for name, value in inputs.items() if name != "prompt_lengths"}).logits
    chosen, rejected = rewards.squeeze(-1).chunk(2)
    (-torch.nn.functional.logsigmoid(chosen - rejected).mean() + rewards.square().mean()).backward()
    return rewards.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(found, expected):
    assert (found[0] - expected[0]).abs().max() <= 1e-5
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("variational", [None, *VRMS])
@pytest.mark.parametrize("name", FAMILIES)
def test_rewards_and_gradients_are_those_of_padded_rows(name, variational):
    texts, model = draw_texts(), build(name, variational)
    expected = results(model, padded_inputs(texts))
    assert expected[0].std() > 1e-3
    assert unsupported(model) is None
    share_prefixes(model)
    for budget in (None, 64, 1):
        assert_same(results(model, packed_inputs(texts, budget)), expected)
    assert_same(results(model, padded_inputs(texts)), expected)  # the model takes those as before
    if variational:  # a stock classifier's own pooling reads the wrong token of some padded rows
        assert_same(results(model, padded_inputs(texts, left=True)), expected)


SETTINGS = {kind: {} for kind in HEADS} | {"cb_rm": {"joint": True, "sampled": True, "prompt_pooling": "attention"}}


@pytest.mark.parametrize("kind", SETTINGS)
def test_published_reward_models_share_too(kind):
    """Gates that read the prompt, heads that count a response's tokens, noise that is drawn in the rows' order."""
    set_seed(1)
    name, aspects = ("gated" if kind == "cb_rm" else kind), ["a", "b", "c"]
    settings = BASELINES[name](**SETTINGS[kind]).model_dump(mode="json")
    aspects = aspects if HEADS[name].rated else []
    model = BaselineForSequenceClassification(
        BaselineConfig(text_config=FAMILIES["qwen3"], kind=name, settings=settings, aspects=aspects)
    )
    texts = draw_texts()
    expected = results(model, padded_inputs(texts))
    share_prefixes(model)
    assert_same(results(model, packed_inputs(texts)), expected)


@pytest.mark.parametrize("name", ["qwen3", "mistral_sliding", "gemma2"])
def test_eager_attention_is_the_models_own(name):
    texts, model = draw_texts(), build(name, None, "eager")
    expected = results(model, padded_inputs(texts))
    share_prefixes(model)
    assert_same(results(model, padded_inputs(texts)), expected)
    assert_same(results(model, packed_inputs(texts)), expected)


def test_activation_checkpointing_changes_nothing():
    texts, model = draw_texts(), build("qwen3", "last")
    share_prefixes(model)
    expected = results(model.train(), packed_inputs(texts))
    model.gradient_checkpointing_enable()
    assert_same(results(model, packed_inputs(texts)), expected)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_rewards_and_gradients_at_every_length():
    """The compiler's front end and autograd, which is all that can go wrong beside the generated code itself."""
    model = build("qwen3", "last")
    share_prefixes(model)
    model.train().gradient_checkpointing_enable()
    batches = [packed_inputs(draw_texts(pairs, seed=pairs)) for pairs in (3, 5, 8)] + [padded_inputs(draw_texts())]
    expected = [results(model, batch) for batch in batches]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(model, backend="aot_eager")
    found = [results(model, batch) for batch in batches[:1]]
    compiled = torch._dynamo.utils.counters["frames"]["ok"]
    found += [results(model, batch) for batch in batches[1:3]]
    assert 0 < compiled == torch._dynamo.utils.counters["frames"]["ok"] < 10  # once for all blocks and lengths
    found += [results(model, batch) for batch in batches[3:]]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_texts_whose_prompts_differ_share_nothing():
    """As where one side's prompt was cut: the same prompt length, other tokens."""
    texts, model = draw_texts(pairs=3), build("llama", "attention")
    ids, length = texts[3]
    texts[3] = ([ids[0] % 96 + 1, *ids[1:]], length)
    expected = results(model, padded_inputs(texts))
    share_prefixes(model)
    inputs = packed_inputs(texts)
    assert len(inputs["layout"].places) == 4
    assert_same(results(model, inputs), expected)


def test_what_another_group_or_padding_holds_does_not_matter():
    texts, model = draw_texts(pairs=4), build("gemma3", None)
    share_prefixes(model)
    inputs = packed_inputs(texts, budget=70)
    with torch.no_grad():
        whole = model(**inputs).logits
        other = inputs["input_ids"].clone()
        first = inputs["layout"].tokens[0] == 0
        other[~first] = other[~first].flip(0) % 90 + 3
        changed = model(**{**inputs, "input_ids": other}).logits
    assert (changed - whole)[[0, 4]].abs().max() < 1e-6
    assert (changed - whole)[[1, 2, 3, 5, 6, 7]].abs().min() > 1e-6


def piece_by_piece(query, key, value, cuts, window, scaling):
    """What FlashAttention computes of `Cuts`, written out: the last query of a piece sees its last key."""
    out = []
    repeats = query.shape[1] // key.shape[1]
    for q, q_end, k, k_end in zip(
        cuts.queries_at[:-1], cuts.queries_at[1:], cuts.keys_at[:-1], cuts.keys_at[1:], strict=True
    ):
        distance = (torch.arange(q_end - q) + (k_end - k) - (q_end - q)).unsqueeze(-1) - torch.arange(k_end - k)
        mask = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        parts = (query[q:q_end], *(t[k:k_end].repeat_interleave(repeats, 1) for t in (key, value)))
        q_part, k_part, v_part = (part.transpose(0, 1) for part in parts)
        out.append(
            torch.nn.functional.scaled_dot_product_attention(q_part, k_part, v_part, mask, scale=scaling).transpose(
                0, 1
            )
        )
    return torch.cat(out)


@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral_sliding", "gemma3"])
def test_varlen_pieces_give_the_rewards_and_gradients_of_padded_rows(name, monkeypatch):
    """All but the kernel, which is CUDA's."""
    monkeypatch.setattr(shared_prefix, "flash_attention", piece_by_piece)
    monkeypatch.setattr(shared_prefix, "HALF", (torch.float32,))
    texts, model = draw_texts(), build(name, "last")
    texts[0] = (texts[0][0][: texts[0][1]], texts[0][1])  # a response without tokens
    expected = results(model, padded_inputs(texts))
    share_prefixes(model)
    groups, order = by_prompt(texts)
    for budget in (None, 64):
        assert_same(results(model, pack(groups, PAD, budget, order, "varlen").inputs()), expected)


def test_attention_takes_what_autocast_leaves(monkeypatch):
    """Qwen3's norms make float32 queries and keys beside bfloat16 values; FlashAttention takes one precision."""
    texts, model = draw_texts(), build("qwen3", None)
    share_prefixes(model)
    groups, order = by_prompt(texts)
    seen = set()

    def flash(query, key, value, *rest):
        seen.update(tensor.dtype for tensor in (query, key, value))
        return piece_by_piece(query, key, value, *rest)

    monkeypatch.setattr(shared_prefix, "flash_attention", flash)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rewards = [
            model.eval()(**pack(groups, PAD, None, order, kernel).inputs()).logits for kernel in ("groups", "varlen")
        ]
    assert seen == {torch.bfloat16}
    torch.testing.assert_close(rewards[1], rewards[0], rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_the_block_mask_compiles():
    """FlexAttention's compiler takes no mask that is changed in place; forward, on the CPU."""
    texts, model = draw_texts(), build("qwen3", None)
    share_prefixes(model)
    groups, order = by_prompt(texts)
    with torch.no_grad():
        expected, found = (
            model.eval()(**pack(groups, PAD, None, order, kernel).inputs()).logits for kernel in ("groups", "blocks")
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_three_forms_of_a_mask_agree():
    """Group by group, one product with a 4D mask, and FlexAttention (forward, on the CPU) with a block mask."""
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    texts = draw_texts(pairs=4, seed=3)
    inputs = packed_inputs(texts, budget=80)
    layout = inputs["layout"]
    torch.manual_seed(0)
    query, key, value = (torch.randn(layout.rows, 4, layout.width, 8) for _ in range(3))
    row, _, column, other = (torch.arange(n) for n in (layout.rows, 1, layout.width, layout.width))
    for window in (None, WINDOW):
        sees = layout.sees(window, query.device)
        mask = sees(row[:, None, None], None, column[:, None], other).unsqueeze(1)
        real = layout.tokens[0] >= 0
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)
        found, _ = attend(torch.nn.Module(), query, key, value, None, layout=layout, sliding_window=window)
        blocks = layout.block_mask(window, query.device)
        flexed = flex.flex_attention(query, key, value, block_mask=blocks).transpose(1, 2)
        torch.testing.assert_close(found[real], expected[real])
        torch.testing.assert_close(flexed[real], expected[real])


@pytest.mark.parametrize("seed", range(20))
def test_every_text_is_in_a_packed_batch_exactly_once(seed):
    rng = np.random.default_rng(seed)
    texts = draw_texts(pairs=int(rng.integers(1, 12)), seed=seed)
    budget = [None, 1, 40, 100][seed % 4]
    groups, order = by_prompt(texts)
    batch = pack(groups, PAD, budget, order)
    tokens, ids = batch.layout.tokens, batch.input_ids
    found = []
    for number, place in enumerate(batch.layout.places):
        for part in range(1, len(place.responses) + 1):
            mine = (tokens[0] == number) & ((tokens[1] == 0) | (tokens[1] == part))
            assert tokens[2][mine].tolist() == list(range(int(mine.sum())))  # in order, prompt first
            found.append(ids[mine].tolist())
    assert [found[i] for i in order] == [text for text, _ in texts]
    hidden = torch.arange(ids.numel()).view(*ids.shape, 1)
    assert ids.flatten()[batch.layout.text_ends(hidden).squeeze(-1)].tolist() == [text[-1] for text, _ in texts]
    assert ids.flatten()[batch.layout.prompt_ends(hidden).squeeze(-1)].tolist() == [t[n - 1] for t, n in texts]
    states, mask, last = batch.layout.prompt_tokens(hidden)
    for group, prompt in enumerate(groups):
        real = states[group][mask[group].bool()].squeeze(-1)
        assert ids.flatten()[real].tolist() == list(prompt.prompt)
        assert last[group] == len(real) - 1
    assert int((tokens[0] >= 0).sum()) == sum(map(len, groups))
    if budget is None:
        assert batch.layout.rows == 1
        assert (tokens >= 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_bins_and_passes_hold_everything_once_within_their_budget(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 60, 40).tolist()
    bins = fill(sizes, 50)
    assert sorted(i for members in bins for i in members) == list(range(40))
    assert all(len(members) == 1 or sum(sizes[i] for i in members) <= 50 for members in bins)
    prompts = [rng.integers(1, 97, rng.integers(3, 9)).tolist() for _ in range(5)]
    texts = []
    for number in rng.integers(0, 5, 40):
        texts.append((prompts[number] + rng.integers(1, 97, rng.integers(1, 60)).tolist(), len(prompts[number])))
    found = passes(texts, 50)
    assert sorted(i for members in found for i in members) == list(range(40))
    for members in found:
        tokens = sum(map(len, by_prompt([texts[i] for i in members])[0]))
        assert len(members) == 1 or tokens <= 50


def test_a_group_longer_than_the_budget_is_alone():
    groups = [PromptGroup([1] * 5, [[2] * 3]), PromptGroup([1] * 30, [[2] * 30]), PromptGroup([1] * 4, [[2] * 3])]
    layout = pack(groups, PAD, 20).layout
    assert layout.rows == 2
    assert layout.places[0].row == layout.places[2].row != layout.places[1].row


def test_an_empty_response_and_an_unknown_prompt_have_their_places():
    prompt = [5, 6, 7]
    texts = [([*prompt, 8], 3), (prompt, 3), ([5, 9, 9], 0), ([*prompt, 8, 9], 3), ([4], 1)]
    model = build("qwen3", "attention")
    share_prefixes(model)
    with torch.no_grad():
        found = model(**packed_inputs(texts)).logits
        expected = [model(**padded_inputs([(ids, length or 1)])).logits for ids, length in texts]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="text 1"):
        by_prompt([([1], 1), ([], 0)])


@pytest.mark.parametrize(("ids", "prompt", "read"), [([1, 2, 3, 9], 2, 2), ([1, 2, 9, 9], 2, 1), ([1, 2, 3], 2, 2)])
def test_a_text_is_read_before_a_token_that_is_not_read(ids, prompt, read):
    groups, order = by_prompt([([7, 7, 7], 1), (ids, prompt)])
    batch = pack(groups, PAD, order=order, unread=9)
    hidden = torch.arange(batch.input_ids.numel()).view(*batch.input_ids.shape, 1)
    assert batch.layout.text_ends(hidden)[1].item() == batch.layout.places[1].start + read


def test_a_model_that_cannot_share_says_why():
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 97, "num_labels": 1, "pad_token_id": PAD}
    gpt2 = AutoModelForSequenceClassification.from_config(GPT2Config(**small))
    assert "gpt2" in unsupported(gpt2)
    with pytest.raises(ValueError, match="gpt2"):
        share_prefixes(gpt2)
    assert not shares_prefixes(gpt2)
    both_ways = Gemma3TextConfig(**SIZES, use_bidirectional_attention=True)
    assert "bidirectional" in unsupported(AutoModelForSequenceClassification.from_config(both_ways))
    kernels = build("qwen3", None)
    kernels.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in unsupported(kernels)


def test_a_copy_computes_with_its_own_weights():
    texts, model = draw_texts(), build("llama", None)
    share_prefixes(model)
    with torch.no_grad():
        before = model(**packed_inputs(texts)).logits
        other = copy.deepcopy(model)
        other.score.weight.zero_()
        assert other(**packed_inputs(texts)).logits.abs().max() == 0
        torch.testing.assert_close(model(**packed_inputs(texts)).logits, before)


def test_a_saved_model_does_not_know_of_it(tmp_path):
    model = build("qwen3", "last")
    share_prefixes(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert not shares_prefixes(loaded)
    assert "shared_prefix" not in (tmp_path / "config.json").read_text()
