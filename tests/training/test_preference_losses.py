"""The preference methods: values by hand, properties, and the losses of TRL's own trainers on the same texts."""

import math
import types

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from vrm.training.preference import dpo, ipo, kto, kto_kl, simpo, wpo_weight

BETA = 0.3
LENGTHS = [(5, 7, 3), (2, 4, 9), (8, 1, 6), (3, 12, 2)]
"""Tokens of prompt, chosen and rejected response of each pair."""


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def leaf(*values):
    return t(*values).requires_grad_()


def test_dpo_by_hand_and_log_2_where_nothing_is_preferred():
    assert dpo(t(3.0), t(1.0), 0.5).item() == pytest.approx(math.log1p(math.exp(-1)))
    torch.testing.assert_close(dpo(t(0, 2, -4), t(0, 2, -4), 0.1), torch.full((3,), math.log(2), dtype=torch.float64))


def test_ipo_by_hand_and_its_minimum():
    """Means 3/2 and -4/4: the difference 2.5 is 1.5 away from 1 / (2 * 0.5)."""
    assert ipo(t(3.0), t(-4.0), t(2), t(4), 0.5).item() == pytest.approx(2.25)
    chosen = leaf(5 / (2 * BETA))  # five tokens, each 1 / (2 beta) more likely than under the reference
    loss = ipo(chosen, t(0.0), t(5), t(3), BETA)
    loss.backward()
    assert (loss.item(), chosen.grad.item()) == pytest.approx((0, 0))
    assert all(ipo(chosen + step, t(0.0), t(5), t(3), BETA) > loss for step in (-0.1, 0.1))


def test_simpo_by_hand_and_its_indifference_to_length():
    """Means -1 and -2: beta (1 - 0.5) = 1."""
    loss = simpo(t(-4.0), t(-4.0), t(4), t(2), 2.0, 0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)))
    torch.testing.assert_close(simpo(t(-12.0), t(-20.0), t(12), t(10), 2.0, 0.5), loss)


def test_kto_by_hand():
    logratio, desirable = t(1.0, 1.0), torch.tensor([True, False])
    up = 1 / (1 + math.exp(-2 * (1 - 0.25)))
    assert kto(logratio, desirable, t(0.25), 2.0, 1.5, 0.5).tolist() == pytest.approx([1.5 * (1 - up), 0.5 * up])


def test_kto_kl_is_a_mean_of_at_least_0_without_gradient():
    assert kto_kl(t(2.0, -1.0)).item() == 0.5
    assert kto_kl(t(-2.0, 1.0)).item() == 0
    assert not kto_kl(leaf(2.0, -1.0)).requires_grad


def test_wpo_weight_is_at_most_1_and_has_no_gradient():
    weight = wpo_weight(leaf(-1.0, 2.0, -3.0), leaf(-0.5, -1.0, 3.0))
    assert weight.tolist() == pytest.approx([math.exp(-1.5), 1, 1])
    assert not weight.requires_grad


@pytest.mark.parametrize(
    "loss",
    [
        lambda c, r: dpo(c, r, BETA),
        lambda c, r: ipo(c, r, t(2, 3), t(4, 2), BETA),  # far below its target
        lambda c, r: simpo(c, r, t(2, 3), t(4, 2), BETA, 0.5),
        lambda c, r: kto(torch.cat([c, r]), torch.arange(4) < 2, t(0.1), BETA, 1.0, 1.0).reshape(2, 2).sum(0),
    ],
    ids=["dpo", "ipo", "simpo", "kto"],
)
def test_descent_makes_chosen_likelier_and_rejected_unlikelier(loss):
    chosen, rejected = leaf(-1.0, 0.5), leaf(-1.5, 1.0)
    rows = loss(chosen, rejected)
    assert rows.shape == (2,)
    rows.sum().backward()
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()


# TRL's trainers on the same texts. Ours reads each text alone and without padding, through a plain log_softmax.


@pytest.fixture(scope="module")
def tokenizer(tiny_backbone):
    return AutoTokenizer.from_pretrained(tiny_backbone)


@pytest.fixture(scope="module")
def pairs(tokenizer):
    generator = torch.Generator().manual_seed(0)

    def ids(length):
        return torch.randint(len(tokenizer), (length,), generator=generator).tolist()

    return [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), map(ids, row), strict=True)) for row in LENGTHS]


def load(directory, seed):
    """The micro backbone with noise, so that it is neither uniform nor equal to its reference."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def read(model, prompts, responses):
    """Total log-probability, length and WPO exponent of each response, all (B,)."""
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.log_softmax(-1)  # (T, V)
        token = log_probs.gather(1, torch.tensor(response)[:, None])[:, 0]
        exponent = token - log_probs.exp().square().sum(-1).log()
        rows.append(torch.stack([token.sum(), torch.tensor(float(len(response))), exponent.mean()]))
    return torch.stack(rows).unbind(1)


def column(rows, name):
    return [row[name] for row in rows]


def evidence(directory, pairs, policy=1, reference=2):
    """The policy, and what it and its reference say of both responses: log ratios, log-probabilities, lengths, ..."""
    model, sides = load(directory, policy), {}
    for side in ("chosen", "rejected"):
        texts = column(pairs, "prompt_ids"), column(pairs, f"{side}_ids")
        logp, length, exponent = read(model, *texts)
        with torch.no_grad():
            reference_logp = read(load(directory, reference), *texts)[0]
        sides[side] = types.SimpleNamespace(
            logp=logp, length=length, exponent=exponent.detach(), logratio=logp - reference_logp
        )
    return model, sides["chosen"], sides["rejected"]


def upstream(trainer_class, config, directory, tokenizer, batch, policy=1, reference=2):
    """TRL's own loss of a batch, and the gradients that it leaves."""
    text = {"prompt": "a", "chosen": "b", "rejected": "c", "completion": "b", "label": True}  # never trained on
    trainer = trainer_class(
        model=load(directory, policy),
        ref_model=load(directory, reference),
        args=config,
        train_dataset=Dataset.from_list([text] * 4),
        processing_class=tokenizer,
    )
    loss = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    loss.backward()
    return loss.item(), [parameter.grad for parameter in trainer.model.parameters()]


def likely(model, prompt):
    """A pair that the policy itself would write: its likeliest tokens."""
    ids = model.generate(torch.tensor([prompt]), min_new_tokens=4, max_new_tokens=4, do_sample=False)[0].tolist()
    return {"prompt_ids": prompt, "chosen_ids": ids[len(prompt) :], "rejected_ids": ids[len(prompt) : -2]}


def options(directory):
    return {"output_dir": str(directory), "beta": BETA, "use_cpu": True, "bf16": False, "report_to": "none"}


def assert_same(loss, model, expected):
    value, gradients = expected
    assert loss.item() == pytest.approx(value, rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_dpo_and_ipo_are_those_of_trl(loss_type, tiny_backbone, tokenizer, pairs, tmp_path):
    config = DPOConfig(**options(tmp_path), loss_type=[loss_type])
    batch = DataCollatorForPreference(tokenizer.pad_token_id)(pairs)
    model, chosen, rejected = evidence(tiny_backbone, pairs)
    ratios = chosen.logratio, rejected.logratio
    ours = dpo(*ratios, BETA) if loss_type == "sigmoid" else ipo(*ratios, chosen.length, rejected.length, BETA)
    assert_same(ours.mean(), model, upstream(DPOTrainer, config, tiny_backbone, tokenizer, batch))


def test_wpo_is_that_of_trl_but_for_the_clamp(tiny_backbone, tokenizer, pairs, tmp_path):
    """Each pair alone: equal where the weight is below 1; above, ours is plain DPO and TRL's weight goes on."""
    config = DPOConfig(**options(tmp_path), use_weighting=True)
    clamped = []
    for pair in [*pairs, likely(load(tiny_backbone, 1), pairs[0]["prompt_ids"])]:
        batch = DataCollatorForPreference(tokenizer.pad_token_id)([pair])
        model, chosen, rejected = evidence(tiny_backbone, [pair])
        raw = (chosen.exponent + rejected.exponent).exp()
        loss = dpo(chosen.logratio, rejected.logratio, BETA)
        expected = upstream(DPOTrainer, config, tiny_backbone, tokenizer, batch)
        clamped.append(raw.item() > 1)
        if not clamped[-1]:
            assert_same((wpo_weight(chosen.exponent, rejected.exponent) * loss).mean(), model, expected)
        else:
            assert_same((raw * loss).mean(), model, expected)
            assert wpo_weight(chosen.exponent, rejected.exponent).item() == 1
    assert clamped == [False] * len(pairs) + [True]


@pytest.mark.parametrize(("policy", "reference"), [(2, 1), (1, 2)], ids=["kl above 0", "kl clamped to 0"])
def test_kto_is_that_of_trl(policy, reference, tiny_backbone, tokenizer, pairs, tmp_path):
    """Policy and reference change places, so the estimate of the KL is once above and once below 0."""
    sides = [("chosen_ids", True), ("rejected_ids", False)] * 2
    rows = [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[key], "label": label}
        for pair, (key, label) in zip(pairs, sides, strict=True)
    ]
    for i, row in enumerate(rows):
        row["KL_completion_ids"] = rows[i - 1]["completion_ids"]
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    config = KTOConfig(**options(tmp_path), **weights, per_device_train_batch_size=4)
    batch = DataCollatorForUnpairedPreference(tokenizer.pad_token_id)(rows)

    models = load(tiny_backbone, policy), load(tiny_backbone, reference)
    prompts = column(rows, "prompt_ids")
    logratio, mismatched = (
        read(models[0], prompts, column(rows, key))[0] - read(models[1], prompts, column(rows, key))[0].detach()
        for key in ("completion_ids", "KL_completion_ids")
    )
    assert (mismatched.mean() > 0) == (policy == 2)
    ours = kto(logratio, torch.tensor(column(rows, "label")), kto_kl(mismatched), BETA, *weights.values())
    expected = upstream(KTOTrainer, config, tiny_backbone, tokenizer, batch, policy, reference)
    assert_same(ours.mean(), models[0], expected)


def test_simpo_is_that_of_trl(tiny_backbone, pairs, monkeypatch):
    """TRL's experimental CPO trainer, whose loss looks at nothing of the trainer but its settings."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOTrainer

    _, chosen, rejected = evidence(tiny_backbone, pairs)
    settings = types.SimpleNamespace(
        loss_type="simpo",
        beta=2.0,
        simpo_gamma=2.0 * 0.4,
        alpha=0.0,
        label_smoothing=0.0,
        accelerator=types.SimpleNamespace(device="cpu"),
    )
    means = chosen.logp / chosen.length, rejected.logp / rejected.length
    expected, _, _ = CPOTrainer.cpo_loss(settings, *means)
    ours = simpo(chosen.logp, rejected.logp, chosen.length, rejected.length, 2.0, 0.4)
    torch.testing.assert_close(ours, expected)
