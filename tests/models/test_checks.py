"""What is wrong with a model is said before anything is trained, scored or answered with it."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from families import make_tokenizer, save_backbone, save_reward_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from vrm.config import ConfigError
from vrm.models.checks import checked_tokenizer
from vrm.models.policy_scoring import load_policy_scorer
from vrm.models.scoring import load_reward_model
from vrm.models.vrm import VrmForSequenceClassification
from vrm.models.weights import checked_weights, save_model
from vrm.records import RecordError

SHORT = {"max_prompt_length": 32, "max_length": 64}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    place = tmp_path_factory.mktemp("originals")
    for kind in ("scalar", "mixture"):
        save_reward_model(kind, "chatml", place / kind)
    return place


@pytest.fixture
def copy(originals, tmp_path):
    """A copy of one of them that may be broken."""

    def make(name):
        shutil.copytree(originals / name, tmp_path / name)
        return tmp_path / name

    return make


def rewrite(path, change):
    weights = load_file(path / "model.safetensors")
    save_file(change(weights), path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("kind", "head"), [("scalar", "score.weight"), ("mixture", "head.decoder.0.bias")])
@pytest.mark.parametrize("other_name", [True, False])
def test_a_checkpoint_without_the_heads_weights_is_no_reward_model(copy, kind, head, other_name):
    path = copy(kind)
    assert np.isfinite(load_reward_model(path, **SHORT).score(["alpha"], ["beta"]).mean).all()
    rest = {} if other_name else {"value_head.bias": torch.ones(1)}
    rewrite(path, lambda weights: {("value_head.weight" if k == head else k): v for k, v in weights.items()} | rest)
    with pytest.raises(RecordError, match=f"lacks the weights {head}.* has .*value_head.weight.*random"):
        load_reward_model(path, **SHORT)


def test_a_backbone_may_lack_the_head_but_nothing_else(copy):
    backbone = copy("scalar.backbone")
    model = VrmForSequenceClassification.from_backbone(str(backbone), aspects=["a"])
    assert model.head is not None
    options = {"fresh": ["score"], "num_labels": 1}
    checked_weights(AutoModelForSequenceClassification, backbone, **options)
    rewrite(backbone, lambda weights: {k: v for k, v in weights.items() if k != "model.layers.1.mlp.up_proj.weight"})
    with pytest.raises(RecordError, match=r"lacks the weights model\.layers\.1\.mlp\.up_proj\.weight"):
        checked_weights(AutoModelForSequenceClassification, backbone, **options)
    with pytest.raises(RecordError, match=r"lacks the weights layers\.1\.mlp\.up_proj\.weight"):
        VrmForSequenceClassification.from_backbone(str(backbone), aspects=["a"])


@pytest.mark.parametrize("content", ["null", "[]", "7", '"x"'])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_json_of_another_form_is_refused(copy, name, content):
    path = copy("scalar")
    (path / name).write_text(content)
    with pytest.raises(RecordError, match="can't be read"):
        checked_tokenizer(path)


def test_a_reward_model_is_no_policy(copy):
    with pytest.raises(RecordError, match=r"lacks the weights lm_head\.weight"):
        load_policy_scorer(copy("scalar"), None, **SHORT)


def test_an_encoder_is_refused_whatever_head_it_has(tmp_path):
    tokenizer = make_tokenizer("chatml")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertConfig(vocab_size=len(tokenizer), num_labels=1, **sizes)
    t5 = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    for name, model in {
        "masked": BertForMaskedLM(bert),
        "classifier": BertForSequenceClassification(bert),
        "t5": T5ForConditionalGeneration(t5),
    }.items():
        save_model(model, tokenizer, tmp_path / name)
        with pytest.raises(ConfigError, match="not a causal language model"):
            checked_tokenizer(tmp_path / name, max_length=64)
    with pytest.raises(ConfigError, match="not a causal language model"):
        load_reward_model(tmp_path / "classifier")
    neox = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=len(tokenizer), **sizes))  # is_decoder is False there too
    save_model(neox, tokenizer, tmp_path / "neox")
    assert checked_tokenizer(tmp_path / "neox", max_length=64).chat_template


def test_fewer_positions_than_tokens_are_an_error(copy):
    path = copy("scalar")
    with pytest.raises(ConfigError, match=r"has 512 positions .* may have 513 tokens"):
        load_reward_model(path, max_prompt_length=64, max_length=513)
    with pytest.raises(ConfigError, match="512 positions"):
        checked_tokenizer(path, max_length=600)
    model = load_reward_model(path)  # says no limits of its own
    assert (model.encoder.max_prompt_length, model.encoder.max_length) == (256, 512)


def test_a_vocabulary_smaller_than_the_tokenizer_is_an_error(tmp_path):
    path = save_backbone("chatml", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    known = len(tokenizer)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(path)
    with pytest.raises(RecordError, match=rf"has token {known} \('<\|new\|>'\), and the model knows {known}"):
        checked_tokenizer(path)


def test_files_that_are_not_whole_are_named(copy):
    path = copy("mixture")
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    for content, message in {
        whole[: len(whole) // 2]: f"has {len(whole) // 2} of {len(whole)} bytes",
        whole[:100]: "cut off",
        whole[:5]: "cut off",
        b"": "empty",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n": "git lfs pull",
    }.items():
        weights.write_bytes(content)
        with pytest.raises(RecordError, match=message) as error:
            load_reward_model(path)
        assert str(weights) in str(error.value)
        assert "\n" not in str(error.value)
    weights.unlink()
    with pytest.raises(RecordError, match="no weights"):
        load_reward_model(path)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(RecordError, match=r"names model-2\.safetensors"):
        load_reward_model(path)
    (path / "config.json").write_text("{")
    (path / "model.safetensors.index.json").unlink()
    weights.write_bytes(whole)
    with pytest.raises(RecordError, match=r"config\.json: can't be read"):
        load_reward_model(path)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_what_is_neither_here_nor_on_the_hub_is_one_line(name, capsys):
    with pytest.raises(RecordError, match=f"{name}: neither a directory here nor a model") as error:
        load_reward_model(name)
    assert "\n" not in str(error.value)
    assert f"{name}: no directory here; asking the hub" in capsys.readouterr().err


def test_a_hub_ids_files_are_asked_for_at_the_revision(copy, monkeypatch):
    """The hub can't be reached in tests: what is asked of it can be seen."""
    path, asked = copy("scalar"), []
    for kind in (AutoConfig, AutoModelForSequenceClassification, AutoTokenizer):
        load = kind.from_pretrained.__func__

        def here(cls, name, *args, load=load, **options):
            if name == "owner/name":
                asked.append((cls.__name__, options.get("revision"), options.get("trust_remote_code")))
            return load(cls, str(path), *args, **options)

        monkeypatch.setattr(kind, "from_pretrained", classmethod(here))
    model = load_reward_model("owner/name", revision="abc")
    assert np.isfinite(model.score(["alpha"], ["beta"]).mean).all()
    assert {("AutoConfig", "abc", False), ("AutoTokenizer", "abc", False)} <= set(asked)
    assert ("AutoModelForSequenceClassification", "abc", False) in asked
    assert all((revision, code) == ("abc", False) for _, revision, code in asked)


def test_dtype_device_and_attention_are_the_callers_choice(copy):
    path = copy("mixture")
    model = load_reward_model(path, dtype=torch.bfloat16, device="cpu", attn_implementation="eager").model
    assert model.model.dtype == torch.bfloat16
    assert next(model.head.parameters()).dtype == torch.float32
    assert model.model.config._attn_implementation.endswith("eager")  # wrapped where prompts are shared


def test_a_published_classifier_is_read_where_its_own_class_reads_it(tmp_path):
    """Its pad token may end its texts: then it was trained, and is used by its card, one token earlier."""
    path = save_reward_model("scalar", "llama", tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(path)
    ours = load_reward_model(path).score(["alpha", "beta gamma"], ["beta", "good"]).mean
    (path / "config.json").write_text(json.dumps(config | {"pad_token_id": tokenizer.eos_token_id}))
    changed = load_reward_model(path, batch_size=1).score(["alpha", "beta gamma"], ["beta", "good"]).mean
    assert np.abs(changed - ours).min() > 1e-3
    card = AutoModelForSequenceClassification.from_pretrained(path).eval()
    for row, (prompt, response) in enumerate((("alpha", "beta"), ("beta gamma", "good"))):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            assert card(**ids).logits.item() == pytest.approx(changed[row], abs=1e-5)


def test_everything_that_is_saved_can_be_read_by_others(tmp_path):
    before = os.umask(0o022)
    try:
        path = save_backbone("chatml", tmp_path / "model")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {0o644}
    assert AutoModelForCausalLM.from_pretrained(path)
