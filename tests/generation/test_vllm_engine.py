"""The thin engine on TRL's vLLM wrapper; vLLM itself is not installed here, a stub stands in for the wrapper."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import import_utils
from trl.generation import vllm_generation

from vrm.config import ConfigError, Generation
from vrm.generation import make_engine

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
    make_engine(SETTINGS, model, tokenizer)
    assert wrappers[1].max_model_length is None


def test_prompts_go_in_answers_come_out_and_weights_are_pushed(policy, wrappers):
    engine = make_engine(SETTINGS, *policy)
    engine.sync()
    assert wrappers[0].syncs == 1
    state = torch.get_rng_state()
    answers = engine.generate(((1, 2), [3]), seed=4)
    assert wrappers[0].asked == ([[1, 2], [3]], None, 1)
    assert [type(answer) for answer in answers] == [list, list]
    assert engine.generate([[1, 2], [3]], seed=4) == answers
    assert engine.generate([[1, 2], [3]], seed=5) != answers
    assert torch.equal(torch.get_rng_state(), state)
