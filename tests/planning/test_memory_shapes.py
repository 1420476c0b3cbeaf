"""Sizes against what is published, and against the models themselves."""

import json

import pytest

from vrm.config import BackboneConfig, ConfigError, CreatedBackbone
from vrm.planning.memory import PUBLIC, created_shape, read_shape, shape_of

PUBLISHED = {  # billions, as the model cards print them
    "Qwen/Qwen3-0.6B": 0.60,
    "Qwen/Qwen3-1.7B": 1.72,
    "Qwen/Qwen3-4B": 4.02,
    "Qwen/Qwen3-8B": 8.19,
    "Qwen/Qwen2.5-7B": 7.62,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_public_models_have_their_published_size(name):
    assert round(PUBLIC[name].parameters / 1e9, 2) == PUBLISHED[name]


def test_4b_has_exactly_the_parameters_of_its_weight_files():
    # safetensors' total on the hub's model page
    assert PUBLIC["Qwen/Qwen3-4B-Instruct-2507"].parameters == 4_022_468_096


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_created_models_have_exactly_the_parameters_of_their_shape(architecture, tmp_path):
    pytest.importorskip("torch")
    from vrm.training.backbones import create_model, train_tokenizer

    create = CreatedBackbone(
        architecture=architecture, hidden_size=24, layers=3, heads=4, key_value_heads=2, intermediate_size=40
    )
    model = create_model(create, train_tokenizer(["some text"], 300), 32)
    shape = created_shape(create.model_copy(update={"vocabulary_size": model.config.vocab_size}))
    assert shape.parameters == model.num_parameters()
    model.config.save_pretrained(tmp_path)
    assert read_shape(tmp_path / "config.json") == shape
    assert shape_of(BackboneConfig(path=str(tmp_path))) == shape


def test_adapters_have_exactly_the_parameters_of_peft():
    peft = pytest.importorskip("peft")
    from vrm.training.backbones import create_model, train_tokenizer

    create = CreatedBackbone(hidden_size=24, layers=2, heads=2, intermediate_size=40)
    model = create_model(create, train_tokenizer(["some text"], 300), 32)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=5, target_modules=names))
    assert created_shape(create).adapter_parameters(5) == adapted.get_nb_trainable_parameters()[0]


def test_a_reward_models_config_is_read_through_to_its_backbone(tmp_path):
    inner = {"model_type": "qwen3", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1}
    inner |= {"num_attention_heads": 2, "intermediate_size": 16}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vrm", "text_config": inner}))
    shape = read_shape(tmp_path / "config.json")
    assert (shape.hidden, shape.key_value_heads, shape.head_dim, shape.head_norms) == (8, 2, 4, True)


def test_an_unknown_hub_model_says_what_to_do():
    with pytest.raises(ConfigError, match=r"download its config\.json"):
        shape_of(BackboneConfig(path="some/model"))
