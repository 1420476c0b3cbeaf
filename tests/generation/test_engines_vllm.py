"""The two thin engines on vLLM, which is not installed here: stubs stand in for TRL's wrapper, and for vLLM itself."""

import json
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import import_utils
from trl.generation import vllm_generation

from vrm.config import ConfigError, Generation
from vrm.generation.engines import Sampling, load_engine, make_engine, seeds_of

SETTINGS = Generation(engine="vllm", max_new_tokens=7, temperature=0.5, top_p=0.9)


@pytest.fixture
def policy(tiny_backbone):
    return AutoModelForCausalLM.from_pretrained(tiny_backbone), AutoTokenizer.from_pretrained(tiny_backbone)


@pytest.fixture
def wrappers(monkeypatch):
    """Those that were made, each with what it was given; answers are random numbers, as tuples like vLLM's."""
    made = []

    class Stub(vllm_generation.VLLMGeneration):
        def _init_vllm(self):
            made.append(self)
            self.syncs = 0

        def sync_weights(self):
            self.syncs += 1

        def generate(self, prompts, images, num_generations, profiler=None):
            self.asked = prompts, images, num_generations
            return prompts, [tuple(torch.randint(9, (3,)).tolist()) for _ in prompts], None, None

    monkeypatch.setattr(import_utils, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "VLLMGeneration", Stub)
    return made


def test_without_vllm_the_error_says_what_to_do(policy):
    if import_utils.is_vllm_available():
        pytest.skip("vllm is installed")
    with pytest.raises(ConfigError, match=r"policy\.generation\.engine is vllm, but vllm is not installed"):
        make_engine(SETTINGS, *policy)


def test_settings_arrive(policy, wrappers):
    model, tokenizer = policy
    model.generation_config.eos_token_id = 5
    engine = make_engine(SETTINGS, model, tokenizer, max_prompt_length=40)
    wrapper = wrappers[0]
    assert (wrapper.model, wrapper.processing_class, wrapper.mode) == (model, tokenizer, "colocate")
    assert (wrapper.temperature, wrapper.top_p, wrapper.top_k, wrapper.repetition_penalty) == (0.5, 0.9, 0, 1.0)
    assert (wrapper.max_completion_length, wrapper.max_model_length) == (7, 47)
    assert wrapper.generation_kwargs == {"stop_token_ids": [tokenizer.eos_token_id, 5]}
    assert engine.ends == {tokenizer.eos_token_id, 5}
    for sampling, expected in ((Sampling(0.1, 3), (0.1, 3)), (None, (0.5, 7))):
        engine.generate([[1]], [0], sampling)
        assert (wrapper.temperature, wrapper.max_completion_length) == expected
    make_engine(SETTINGS, model, tokenizer)
    assert wrappers[1].max_model_length is None


def test_prompts_go_in_answers_come_out_and_weights_are_pushed(policy, wrappers):
    engine = make_engine(SETTINGS, *policy)
    engine.sync()
    assert wrappers[0].syncs == 1
    state = torch.get_rng_state()
    answers = engine.generate(((1, 2), [3]), [4, 5])
    assert wrappers[0].asked == ([[1, 2], [3]], None, 1)
    assert [type(answer) for answer in answers] == [list, list]
    assert engine.generate([[1, 2], [3]], [4, 5]) == answers
    assert engine.generate([[1, 2], [3]], [4, 6]) != answers
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def vllm(monkeypatch):
    """A module in vLLM's place: `made` has what its LLMs were given, `asked` their calls; a seed is the answer."""
    module = ModuleType("vllm")
    module.made, module.asked = [], []

    class LLM:
        def __init__(self, **arguments):
            module.made.append(arguments)

        def generate(self, prompts, sampling_params, use_tqdm):
            assert len(prompts) == len(sampling_params)
            module.asked.append((prompts, sampling_params, use_tqdm))
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(how.seed, 2))]) for how in sampling_params]

    module.LLM, module.SamplingParams = LLM, SimpleNamespace
    monkeypatch.setattr(import_utils, "is_vllm_available", lambda: True)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_a_finished_policy_needs_vllm_too(policy, tiny_backbone):
    if import_utils.is_vllm_available():
        pytest.skip("vllm is installed")
    with pytest.raises(ConfigError, match=r"^benchmarks\.answering\.engine is vllm, but vllm is not installed"):
        load_engine(SETTINGS, str(tiny_backbone), None, policy[1], key="benchmarks.answering.engine")


def test_a_finished_policy_is_read_by_vllm_itself(policy, vllm, tiny_backbone, tmp_path):
    directory, tokenizer = tmp_path / "policy", policy[1]
    shutil.copytree(tiny_backbone, directory)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_token_id, 5]}))
    engine = load_engine(SETTINGS, str(directory), "c0ffee", tokenizer, max_prompt_length=40)
    made = vllm.made[0]
    assert (made["model"], made["revision"], made["tokenizer_revision"]) == (str(directory), "c0ffee", "c0ffee")
    assert (made["dtype"], made["gpu_memory_utilization"], made["max_model_len"]) == ("bfloat16", 0.3, 47)
    assert engine.ends == {tokenizer.eos_token_id, 5}
    (directory / "generation_config.json").unlink()
    ends = load_engine(SETTINGS, str(directory), None, tokenizer).ends
    assert ends == {tokenizer.eos_token_id}  # from the model's configuration
    assert vllm.made[1]["max_model_len"] is None


def test_each_prompt_has_a_seed_of_its_own(policy, vllm, tiny_backbone):
    engine = load_engine(SETTINGS, str(tiny_backbone), None, policy[1])
    answers = engine.generate(((1, 2), [3], [3]), seeds_of(2**62, 3))
    prompts, how, use_tqdm = vllm.asked[0]
    assert prompts == [{"prompt_token_ids": [1, 2]}, {"prompt_token_ids": [3]}, {"prompt_token_ids": [3]}]
    assert answers == [[own.seed, 2] for own in how]
    assert len({own.seed for own in how}) == 3
    assert engine.generate([[1], [2], [3]], seeds_of(2**62, 3)) == answers
    assert engine.generate([[1], [2], [3]], seeds_of(1, 3)) != answers
    assert {(own.temperature, own.top_p, own.max_tokens) for own in how} == {(0.5, 0.9, 7)}
    assert all(own.stop_token_ids == sorted(engine.ends) and not own.detokenize for own in how)
    assert not use_tqdm
    engine.generate([[1]], [0], Sampling(0.0, 3))
    assert [(own.temperature, own.max_tokens) for own in vllm.asked[-1][1]] == [(0.0, 3)]
    assert engine.generate([], []) == []
