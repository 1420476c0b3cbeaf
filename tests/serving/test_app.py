"""The routes in this process: what clients of OpenRLHF and verl send and read, our own, and every bad request."""

import asyncio
import json

import numpy as np
import pytest
from families import make_tokenizer
from served import ASPECTS, client_of, load, save_vrm

from vrm.config import ConfigError
from vrm.models.base import RewardOutput
from vrm.models.templates import apply_template
from vrm.serving.app import Bounds, checked_token

PROMPTS = [
    "alpha beta?",
    [
        {"role": "user", "content": "gamma"},
        {"role": "assistant", "content": "delta"},
        {"role": "user", "content": "mu?"},
    ],
]
RESPONSES = ["good alpha", "bad beta gamma"]


@pytest.fixture(scope="module")
def directory(tiny_backbone, tmp_path_factory):
    return save_vrm(tiny_backbone, tmp_path_factory.mktemp("vrm"), residual=True)


@pytest.fixture(scope="module")
def model(directory):
    return load(directory)


def ask(model, path, content=None, method="POST", headers=None, **options):
    """One request; content that is no bytes is sent as JSON."""

    async def scene():
        body = content if isinstance(content, bytes | None) else json.dumps(content).encode()
        async with client_of(model, **options) as client:
            return await client.request(
                method, path, content=body, headers={"Content-Type": "application/json", **(headers or {})}
            )

    return asyncio.run(asyncio.wait_for(scene(), 60))


def rendered(model, prompt, response, tokenizer=None):
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    tokenizer = tokenizer or model.encoder.tokenizer
    return apply_template(tokenizer, [*turns, {"role": "assistant", "content": response}])


# --- our own shape


def test_score_says_all_that_the_model_says(model):
    found = ask(model, "/score", {"prompts": PROMPTS, "responses": RESPONSES}).json()
    direct = model.score(PROMPTS, RESPONSES)
    assert found["aspects"] == ASPECTS
    np.testing.assert_allclose(found["rewards"], direct.mean, atol=1e-6)
    for name in ("std", "weights", "per_objective", "rated", "residual"):
        np.testing.assert_allclose(found[name], getattr(direct, name), atol=1e-6, err_msg=name)
    assert found["truncated"] == [False, False]


def test_what_was_cut_is_marked(model):
    found = ask(model, "/score", {"prompts": ["a"] * 2, "responses": ["x " * 4000, "x"]})
    assert found.json()["truncated"] == [True, False]


def test_rated_alone(directory):
    rated = load(directory, reward="rated")
    found = ask(rated, "/score", {"prompts": PROMPTS, "responses": RESPONSES}).json()
    assert found["rewards"] == found["rated"]


def test_a_scalar_model_leaves_the_rest_empty():
    class Scalar:
        aspects = ()

        def score(self, prompts, responses):
            return RewardOutput(np.array([float(len(r)) for r in responses]), np.zeros(len(responses), dtype=bool))

    found = ask(Scalar(), "/score", {"prompts": ["p"], "responses": ["four"]}).json()
    assert (found["rewards"], found["std"], found["weights"], found["aspects"]) == ([4.0], None, None, [])
    remote = ask(Scalar(), "/get_reward", {"query": ["p and more"], "prompts": ["p"]}).json()
    assert set(remote["extra_logs"]) == {"vrm/truncated"}


# --- OpenRLHF (openrlhf/utils/agent.py at 3c3be62): one text a request, a list of each; every value becomes a tensor


def test_openrlhf_with_the_reward_models_template(model):
    prompt = apply_template(model.encoder.tokenizer, PROMPTS[1], to_be_answered=True)
    query = prompt + RESPONSES[1] + model.encoder.tokenizer.eos_token
    found = ask(model, "/get_reward", {"query": [query], "prompts": [prompt], "labels": ["42"]}).json()
    assert set(found) == {"rewards", "scores", "extra_logs"}
    direct = model.score(PROMPTS[1:], RESPONSES[1:])
    np.testing.assert_allclose(found["rewards"], direct.mean, atol=1e-6)
    assert found["scores"] == found["rewards"]
    assert all(len(values) == 1 for values in found["extra_logs"].values())
    weights = [found["extra_logs"][f"vrm/weight/{aspect}"][0] for aspect in ASPECTS]
    np.testing.assert_allclose(weights, direct.weights[0], atol=1e-6)
    np.testing.assert_allclose(found["extra_logs"]["vrm/std"], direct.std, atol=1e-6)


def test_openrlhf_without_a_template(model):
    query = PROMPTS[0] + RESPONSES[0] + model.encoder.tokenizer.eos_token
    found = ask(model, "/get_reward", {"query": [query], "prompts": [PROMPTS[0]], "labels": [None]}).json()
    np.testing.assert_allclose(found["rewards"], model.score(PROMPTS[:1], RESPONSES[:1]).mean, atol=1e-6)


def test_openrlhf_with_the_policys_template(model):
    policy = make_tokenizer("llama")
    prompt = apply_template(policy, PROMPTS[1], to_be_answered=True)
    body = {"query": [prompt + RESPONSES[1] + policy.eos_token], "prompts": [prompt], "labels": [""]}
    found = ask(model, "/get_reward", body, policy_tokenizer=policy).json()
    np.testing.assert_allclose(found["rewards"], model.score(PROMPTS[1:], RESPONSES[1:]).mean, atol=1e-6)
    refused = ask(model, "/get_reward", body)
    assert refused.status_code == 422
    assert "--policy-tokenizer" in refused.json()["error"]["message"]


def test_openrlhf_sends_nothing_to_a_second_server(model):
    found = ask(model, "/get_reward", {"query": [], "prompts": [], "labels": []})
    assert (found.status_code, found.json()["rewards"]) == (200, [])


# --- verl (verl/experimental/reward_loop/reward_loop.py at 1dda039): the whole conversation in our template, BOS off


def verl_text(model, prompt, response):
    text, bos = rendered(model, prompt, response), model.encoder.tokenizer.bos_token
    return text.removeprefix(bos) if bos else text


def test_verl_asking_vllm(model):
    text = verl_text(model, PROMPTS[1], RESPONSES[1])
    found = ask(model, "/classify", {"model": "some/path", "input": text, "use_activation": False}).json()
    direct = model.score(PROMPTS[1:], RESPONSES[1:]).mean[0]
    assert found["data"][-1]["probs"][-1] == pytest.approx(direct, abs=1e-6)
    assert found["data"][0]["num_classes"] == 1
    squashed = ask(model, "/classify", {"input": [text], "use_activation": True}).json()
    assert squashed["data"][-1]["probs"][-1] == pytest.approx(1 / (1 + np.exp(-direct)), abs=1e-6)


def test_verl_asking_sglang(model):
    text = verl_text(model, PROMPTS[0], RESPONSES[0])
    found = ask(model, "/v1/embeddings", {"model": "some/path", "input": text}).json()
    assert found["data"][-1]["embedding"][-1] == pytest.approx(
        model.score(PROMPTS[:1], RESPONSES[:1]).mean[0], abs=1e-6
    )


def test_a_conversation_to_classify(model):
    turns = [*PROMPTS[1], {"role": "assistant", "content": RESPONSES[1]}]
    found = ask(model, "/classify", {"messages": turns}).json()
    assert found["data"][0]["probs"][0] == pytest.approx(model.score(PROMPTS[1:], RESPONSES[1:]).mean[0], abs=1e-6)


# --- bad requests

GOOD = {"prompts": ["p"], "responses": ["r"]}
BAD = {
    "no JSON": ("/score", b"{", "JSON"),
    "no text": ("/score", b'{"prompts": ["\xff"]}', "body"),
    "no body": ("/score", b"", "body"),
    "a list": ("/score", [1], "body"),
    "nested without end": ("/score", b"[" * 100_000, "body"),
    "a number for a text": ("/score", {**GOOD, "responses": [1]}, "responses.0"),
    "null for a text": ("/score", {**GOOD, "responses": [None]}, "responses.0"),
    "NaN for a text": ("/score", b'{"prompts": ["p"], "responses": [NaN]}', "responses.0"),
    "NaN in what is not used": ("/get_reward", b'{"query": ["q"], "prompts": ["q"], "labels": [NaN]}', "labels"),
    "half a surrogate pair": ("/score", b'{"prompts": ["p"], "responses": ["\\ud800"]}', "responses.0"),
    "nothing": ("/score", {"prompts": [], "responses": []}, "prompts"),
    "more prompts than responses": ("/score", {"prompts": ["p", "p"], "responses": ["r"]}, "2"),
    "a conversation without turns": ("/score", {**GOOD, "prompts": [[]]}, "prompts.0"),
    "a turn without a role": ("/score", {**GOOD, "prompts": [[{"content": "x"}]]}, "role"),
    "an unknown field": ("/score", {**GOOD, "temperature": 1}, "temperature"),
    "an unknown field of a turn": ("/score", {**GOOD, "prompts": [[{"role": "user", "content": "x", "by": 1}]]}, "by"),
    "one text for a list": ("/get_reward", {"query": "q"}, "query"),
    "fewer labels": ("/get_reward", {"query": ["q"], "prompts": ["q"], "labels": []}, "labels"),
    "no prompt to take off": ("/get_reward", {"query": ["what is it? it is"]}, "query 0"),
    "another prompt": ("/get_reward", {"query": ["what is it? it is"], "prompts": ["who"]}, "query 0"),
    "not in the template": ("/classify", {"input": ["plain text"]}, "input 0"),
    "both": ("/classify", {"input": "x", "messages": [{"role": "user", "content": "x"}]}, "either"),
    "neither": ("/classify", {}, "either"),
    "no response": ("/classify", {"messages": [{"role": "user", "content": "x"}]}, "assistant"),
    "cutting asked for": ("/classify", {"input": "x", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    "base64": ("/v1/embeddings", {"input": "x", "encoding_format": "base64"}, "encoding_format"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "content", "named"), BAD.values(), ids=BAD)
def test_a_bad_request_gets_a_reason(model, path, content, named):
    found = ask(model, path, content)
    assert found.status_code in (400, 422)
    assert named in found.json()["error"]["message"]


def test_no_error_repeats_what_was_sent(model):
    found = ask(model, "/score", {"prompts": ["p"], "responses": [{"private": "words"}]})
    assert "private" not in found.text
    assert "words" not in found.text


@pytest.mark.parametrize(("path", "method", "status"), [("/nowhere", "POST", 404), ("/score", "GET", 405)])
def test_a_wrong_address_is_told_as_any_error(model, path, method, status):
    found = ask(model, path, GOOD, method)
    assert (found.status_code, found.json()["error"]["code"]) == (status, status)


def test_another_content_type_is_refused(model):
    """A page in somebody's browser can send text/plain to loopback without asking, and JSON it cannot."""
    assert ask(model, "/score", GOOD, headers={"Content-Type": "text/plain"}).status_code == 422


def test_the_template_refuses_one_conversation_and_names_it(tmp_path, tiny_backbone):
    model = load(save_vrm(tiny_backbone, tmp_path))
    model.encoder.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}"
        + model.encoder.tokenizer.chat_template
    )
    found = ask(model, "/score", {"prompts": ["p", [{"role": "tool", "content": "x"}]], "responses": ["r", "r"]})
    assert found.status_code == 422
    assert "text 1" in found.json()["error"]["message"]


# --- bounds


def test_bounds_of_a_request(model):
    bounds = Bounds(body=400, texts=2)
    assert ask(model, "/score", {**GOOD, "prompts": ["p" * 400]}, bounds=bounds).status_code == 413
    many = ask(model, "/score", {"prompts": ["p"] * 3, "responses": ["r"] * 3}, bounds=bounds)
    assert (many.status_code, "3" in many.json()["error"]["message"]) == (413, True)
    assert ask(model, "/score", GOOD, bounds=bounds).status_code == 200


def test_a_body_is_counted_whatever_its_header_says(model):
    """Sent in parts without a length."""

    async def parts():
        for _ in range(100):
            yield b" " * 100

    async def scene():
        async with client_of(model, bounds=Bounds(body=1000)) as client:
            return await client.post("/score", content=parts(), headers={"Content-Type": "application/json"})

    assert asyncio.run(scene()).status_code == 413


class Slow:
    aspects = ()

    def score(self, prompts, responses):
        import time

        time.sleep(0.3)
        if "break" in responses:
            raise MemoryError("secret")
        return RewardOutput(np.zeros(len(responses)), np.zeros(len(responses), dtype=bool))


def test_a_full_queue_says_when_to_come_back():
    async def scene():
        async with client_of(Slow(), bounds=Bounds(queue=2, texts=2, batch=1)) as client:
            return await asyncio.gather(*[client.post("/score", json=GOOD) for _ in range(6)])

    found = asyncio.run(scene())
    codes = [answer.status_code for answer in found]
    assert set(codes) == {200, 503}
    assert codes.count(200) == 2
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in found if answer.status_code == 503)


def test_what_takes_too_long_is_ended():
    found = ask(Slow(), "/score", GOOD, bounds=Bounds(seconds=0.05))
    assert (found.status_code, found.json()["error"]["code"]) == (504, 504)


def test_a_failure_inside_is_500_and_tells_no_secret():
    found = ask(Slow(), "/score", {"prompts": ["p"], "responses": ["break"]})
    assert found.status_code == 500
    assert "MemoryError" in found.json()["error"]["message"]
    assert "secret" not in found.text


@pytest.mark.parametrize("wrong", [{"texts": 10, "queue": 5}, {"seconds": 0}, {"body": 10**9, "bodies": 10}])
def test_bounds_that_make_no_sense(wrong):
    with pytest.raises(ConfigError):
        Bounds(**wrong)


# --- token


@pytest.mark.parametrize("header", ["Bearer s3cret", "bearer s3cret", "Basic dnJtOnMzY3JldA=="])
def test_the_token_opens(model, header):
    """Basic is what a client makes of http://vrm:s3cret@host: OpenRLHF's has no other way to bring one."""
    assert ask(model, "/score", GOOD, headers={"Authorization": header}, token="s3cret").status_code == 200


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer wrong", "s3cret", "Basic s3cret", "Basic dnJtOg==", "Bearer s3cret\u00e9"]
)
@pytest.mark.parametrize("path", ["/score", "/metrics", "/docs", "/openapi.json"])
def test_without_the_token_nothing_opens(model, header, path):
    headers = {"Authorization": header.encode("latin-1")} if header else {}
    found = ask(model, path, GOOD, "POST" if path == "/score" else "GET", headers=headers, token="s3cret")
    assert (found.status_code, "www-authenticate" in found.headers) == (401, True)


def test_health_needs_no_token(model):
    assert ask(model, "/health", method="GET", token="s3cret").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_others_can_reach_it_only_with_a_token(host, monkeypatch):
    monkeypatch.delenv("VRM_SERVE_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="VRM_SERVE_TOKEN"):
        checked_token(host)
    monkeypatch.setenv("VRM_SERVE_TOKEN", "s3cret")
    assert checked_token(host) == "s3cret"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_none(host, monkeypatch):
    monkeypatch.delenv("VRM_SERVE_TOKEN", raising=False)
    assert checked_token(host) is None


# --- what is measured, and the page


def test_metrics_count_what_happened(model):
    async def scene():
        async with client_of(model) as client:
            await client.post("/score", json={"prompts": ["p"] * 3, "responses": ["r", "s", "x " * 4000]})
            await client.post("/score", json={"prompts": []})
            for number in range(3):
                await client.post(f"/made-up-{number}")
            return (await client.get("/metrics")).text

    lines = dict(line.rsplit(" ", 1) for line in asyncio.run(scene()).splitlines() if not line.startswith("#"))
    assert float(lines['vrm_requests_total{path="/score",status="200"}']) == 1
    assert float(lines['vrm_requests_total{path="/score",status="422"}']) == 1
    assert float(lines['vrm_requests_total{path="other",status="404"}']) == 3
    assert float(lines["vrm_texts_total"]) == 3
    assert float(lines["vrm_truncated_texts_total"]) == 1
    assert float(lines["vrm_batch_texts_sum"]) == 3
    assert float(lines["vrm_waiting_texts"]) == 0
    assert not any("made-up" in line for line in lines)


def test_the_openapi_page_describes_every_route(model):
    described = ask(model, "/openapi.json", method="GET").json()
    assert {"/score", "/get_reward", "/classify", "/v1/embeddings", "/health", "/metrics"} == set(described["paths"])
    assert described["components"]["schemas"]["Score"]["additionalProperties"] is False
    assert "503" in described["paths"]["/score"]["post"]["responses"]
