"""Every reward model through the shared contract, and through saving and loading."""

import pytest
import torch
from contract import CHECKS, PROMPTS, RESPONSES, assert_same
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from vrm.config.reward import BASELINES
from vrm.models.base import RewardModel
from vrm.models.baseline_heads import HEADS, BaselineForSequenceClassification
from vrm.models.scoring import HuggingFaceRewardModel, load_reward_model
from vrm.models.templates import generation_prompt_ids
from vrm.models.vrm import VrmForSequenceClassification
from vrm.records import RecordError

LIMITS = {"max_prompt_length": 64, "max_length": 96}
ASPECTS = ["clarity", "accuracy", "candour"]
BASELINE_KINDS = {kind: (kind, {}) for kind in HEADS} | {"cb_rm": ("gated", {"joint": True, "sampled": True})}
CONCEPT_RESIDUAL = {"prompt_pooling": "attention", "concentration": "scaled", "scale": True, "residual": True}
KINDS = {
    "scalar": None,
    "mixture": {},
    "mlp": {"reward_decoder": "mlp"},
    "attention": {"prompt_pooling": "attention"},
    "scaled": {"concentration": "scaled"},
    "attention, mlp": {"prompt_pooling": "attention", "concentration": "scaled", "reward_decoder": "mlp"},
    "concept-residual": CONCEPT_RESIDUAL,
    "concept-residual, detached": {"residual": True, "residual_detached": True},
}
"""Every VRM by its head's settings; None: a stock sequence classifier."""


def build(kind, backbone):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    samples = 0
    if kind in BASELINE_KINDS:
        model = baseline(*BASELINE_KINDS[kind], backbone, tokenizer)
    elif KINDS[kind] is None:
        model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1)
    else:
        samples = 8
        model = VrmForSequenceClassification.from_backbone(
            str(backbone),
            aspects=ASPECTS,
            latent_dim=5,
            generation_prompt_ids=generation_prompt_ids(tokenizer),
            **KINDS[kind],
        )
        away_from_the_start(model)
    return HuggingFaceRewardModel(model, tokenizer, posterior_samples=samples, **LIMITS)


def baseline(kind, changes, backbone, tokenizer):
    model = BaselineForSequenceClassification.from_backbone(
        str(backbone),
        kind=kind,
        settings=BASELINES[kind](**changes).model_dump(mode="json"),
        aspects=ASPECTS if HEADS[kind].rated else [],
        generation_prompt_ids=generation_prompt_ids(tokenizer),
    )
    if kind == "gated" and not changes:  # as after its first phase
        model.head.set_lengths(torch.tensor([2.0, 5.0, 9.0]))
        model.head.set_correction(torch.tensor([0.3, 0.0, 0.95]))
    return model


def away_from_the_start(model):
    """A head whose query, log c, tau and b are no longer the constants that they start from."""
    head = model.head
    with torch.no_grad():
        for parameter in (head.query, head.scalars, head.residual):
            if parameter is not None:
                parameter.add_(torch.randn_like(parameter))


@pytest.fixture(params=[*KINDS, *BASELINE_KINDS])
def model(request, tiny_backbone):
    return build(request.param, tiny_backbone)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(model, check):
    assert isinstance(model, RewardModel)
    check(model)


def test_saving_and_loading_changes_nothing(model, tmp_path):
    before = model.score(PROMPTS, RESPONSES)
    model.model.save_pretrained(tmp_path)
    model.encoder.tokenizer.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    loaded = load_reward_model(tmp_path, posterior_samples=model.posterior_samples, **LIMITS)
    assert_same(loaded.score(PROMPTS, RESPONSES), before, tolerance=1e-6)
    assert loaded.aspects == model.aspects


def test_a_classifier_with_two_labels_is_no_reward_model(tiny_backbone, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(tiny_backbone, num_labels=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="one label, this one has 2"):
        load_reward_model(tmp_path, **LIMITS)


def test_what_is_no_model_is_said_before_the_hub_is_asked(tmp_path):
    absent = "results/run/reward/vrm/seed9/model"
    with pytest.raises(RecordError, match=f"{absent}: there is no such directory"):
        load_reward_model(absent)
    with pytest.raises(RecordError, match="~/model: there is no such directory"):
        load_reward_model("~/model")
    (tmp_path / "model").mkdir()
    with pytest.raises(RecordError, match=r"no config\.json"):
        load_reward_model(tmp_path)
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(RecordError, match=r"did you mean .*/model"):
        load_reward_model(tmp_path)


def test_a_part_of_the_reward_that_no_model_has_is_refused(tiny_backbone):
    model = build("concept-residual", tiny_backbone)
    with pytest.raises(ValueError, match="'gold', and can be full or rated"):
        HuggingFaceRewardModel(model.model, model.encoder.tokenizer, reward="gold", **LIMITS)


def test_one_text_is_no_list_of_texts(model):
    """It would be scored letter by letter."""
    with pytest.raises(TypeError, match="prompts is one text"):
        model.score("abc", ["xyz"])
    with pytest.raises(TypeError, match="responses is one text"):
        model.score(["abc"], "x")
    with pytest.raises(TypeError, match=r"row 1: .* NoneType and str"):
        model.score(["a", None], ["b", "c"])


def test_prompts_and_responses_must_match(model):
    with pytest.raises(ValueError, match="2 prompts but 1 responses"):
        model.score(["a", "b"], ["c"])
    assert model.score([], []).mean.shape == (0,)


STATED = {
    "bottleneck": {"std"}, "multitask": {"per_objective"}, "gated": {"weights", "per_objective"}, "length_heads": set(),
    "gaussian": {"std"}, "nonnegative": {"std"}, "cb_rm": {"weights", "per_objective", "std"},
}  # fmt: skip


@pytest.mark.parametrize("kind", BASELINE_KINDS)
def test_a_published_model_says_all_that_it_knows(kind, tiny_backbone):
    output = build(kind, tiny_backbone).score(PROMPTS, RESPONSES)
    assert {name for name in ("std", "weights", "per_objective") if getattr(output, name) is not None} == STATED[kind]
    if output.std is not None:
        assert (output.std > 0).all()
