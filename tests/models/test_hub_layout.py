"""Local models as the hub lays them out: several safetensors files with an index, and a tokenizer beside them."""

from __future__ import annotations

import pytest

from vrm.config import BackboneConfig, CreatedBackbone, PolicyTraining

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A small Qwen3 in bfloat16, as published models are, in several files."""
    from vrm.training.backbones import create_model, train_tokenizer

    path = tmp_path_factory.mktemp("hub") / "model"
    tokenizer = train_tokenizer(["some text to learn from"], 300, "qwen3")
    create = CreatedBackbone(hidden_size=32, layers=2, heads=2, intermediate_size=64)
    create_model(create, tokenizer, 64).to(torch.bfloat16).save_pretrained(path, max_shard_size="20KB")
    tokenizer.save_pretrained(path)
    return path


def test_it_has_the_hubs_files(directory):
    names = {path.name for path in directory.iterdir()}
    assert {"config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert sum(name.endswith(".safetensors") for name in names) > 1


def test_a_reward_model_starts_from_it_in_float32(directory):
    from vrm.models.vrm import VrmForSequenceClassification

    model = VrmForSequenceClassification.from_backbone(
        str(directory),
        dtype=torch.float32,
        aspects=["a", "b"],
        latent_dim=4,
        reward_decoder="mixture",
        prior_concentration=1.0,
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_policy_starts_from_it_and_its_template_takes_arguments(directory, tmp_path):
    from vrm.training.policies import PolicyJob, load_policy

    job = PolicyJob(
        str(directory),
        PolicyTraining(max_prompt_length=16, max_length=32),
        1,
        tmp_path,
        tmp_path,
        tmp_path,
        chat_template_kwargs={"enable_thinking": False},
    )
    tokenizer = job.tokenizer()
    assert load_policy(job, tokenizer).dtype == torch.float32
    messages = [{"role": "user", "content": "some text"}]
    prompt = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **job.chat_template_kwargs
    )
    assert prompt.endswith("<think>\n\n</think>\n\n")


def test_its_size_is_planned_exactly(directory):
    from transformers import AutoModelForCausalLM

    from vrm.planning.memory import shape_of

    model = AutoModelForCausalLM.from_pretrained(directory)
    assert shape_of(BackboneConfig(path=str(directory))).parameters == model.num_parameters()
