"""What endpoints say where they don't answer, in their documented shapes: one request's own fault, or everybody's."""

import json
from dataclasses import replace

import pytest
from judging_jobs import config, requests, scores
from server import Handler, Server, question

from vrm.config.judge import JudgeConfig
from vrm.judging import Failed, Judge, JudgeError, Reply, Request, Store, Unusable, Usage
from vrm.judging.exchange import longest_usage, payload, request_key
from vrm.judging.refusals import FIRST, error_in, meaning, read_error
from vrm.judging.store import estimate


def openai(message, code=None, kind="invalid_request_error", **more):
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **more}}


def google(code, status, message, details=()):
    return [{"error": {"code": code, "message": message, "status": status, "details": list(details)}}]


TOO_LONG = {
    "OpenAI": (400, openai("This model's maximum context length is 8192 tokens.", "context_length_exceeded")),
    "OpenAI's characters": (400, openai("Invalid 'messages[1].content': string too long.", "string_above_max_length")),
    "vLLM, older": (400, {"object": "error", "message": "This model's maximum context length is 4096 tokens. However, "
                          "you requested 5000 tokens", "type": "BadRequestError", "param": None, "code": 400}),
    "vLLM": (400, openai("The decoder prompt (length 9000) is longer than the maximum model length of 8192. Make sure "
                         "that `max_model_len` is no smaller than the number of text tokens.", 400, "BadRequestError")),
    "vLLM's longest reply": (400, openai("'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's "
                                         "maximum context length is 8192 tokens and your request has 5000 input tokens",
                                         400, "BadRequestError")),
    "SGLang": (400, {"object": "error", "message": "The input (9000 tokens) is longer than the model's context length "
                     "(8192 tokens).", "type": "BadRequestError", "param": None, "code": 400}),
    "SGLang's other": (400, {"object": "error", "message": "Input length (9000 tokens) exceeds the maximum allowed "
                             "length (8185 tokens).", "type": "BadRequestError", "code": 400}),
    "llama.cpp": (400, {"error": {"code": 400, "message": "the request exceeds the available context size, try "
                                  "increasing it", "type": "exceed_context_size_error", "n_ctx": 4096}}),
    "TGI": (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 9000 "
                  "`inputs` tokens and 1024 `max_new_tokens`", "error_type": "validation"}),
    "TGI's prompt": (422, {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 1054",
                           "error_type": "validation"}),
    "Gemini": (400, google(400, "INVALID_ARGUMENT", "The input token count (1200000) exceeds the maximum number of "
                           "tokens allowed (1048576).")),
    "Anthropic": (400, {"type": "error", "error": {"type": "invalid_request_error",
                                                   "message": "prompt is too long: 210000 tokens > 200000 maximum"}}),
    "Anthropic's bytes": (413, {"type": "error", "error": {"type": "request_too_large", "message": "Request exceeds"}}),
    "DashScope": (400, openai("<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]",
                              "invalid_parameter_error")),
    "DeepSeek": (400, openai("This model's maximum context length is 65536 tokens. However, you requested 70000 tokens",
                             "invalid_request_error")),
    "Mistral": (400, {"object": "error", "message": "Prompt contains 40000 tokens, too large for model with 32768 "
                      "maximum context length", "type": "invalid_request_error", "code": "3051"}),
    "OpenRouter": (400, {"error": {"code": 400, "message": "This endpoint's maximum context length is 8192 tokens."}}),
    "a proxy": (413, "<html><h1>413 Request Entity Too Large</h1></html>"),
}  # fmt: skip
REFUSED = {
    "OpenAI": (400, openai("Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
                           "invalid_prompt")),
    "Azure": (400, openai("The response was filtered due to the prompt triggering Azure OpenAI's content management "
                          "policy.", "content_filter", innererror={"code": "ResponsibleAIPolicyViolation"})),
    "OpenAI's policy": (400, openai("Your request was rejected.", "content_policy_violation")),
    "Anthropic": (400, {"type": "error", "error": {"type": "invalid_request_error",
                                                   "message": "Output blocked by content filtering policy"}}),
    "DashScope": (400, openai("Input data may contain inappropriate content.", "data_inspection_failed",
                              "data_inspection_failed")),
    "DashScope's own": (400, {"code": "DataInspectionFailed",
                              "message": "Input data may contain inappropriate content.", "request_id": "x"}),
    "DeepSeek": (400, openai("Content Exists Risk", "invalid_request_error")),
    "OpenRouter": (403, {"error": {"code": 403, "message": "Your chosen model requires moderation and your input was "
                                   "flagged", "metadata": {"reasons": ["violence"], "provider_name": "OpenAI"}}}),
    "Gemini": (400, google(400, "INVALID_ARGUMENT", "The prompt was blocked: PROHIBITED_CONTENT")),
    "Moonshot": (400, openai("The request was rejected because it was considered high risk", None, "content_filter")),
    "Zhipu": (400, {"contentFilter": [{"level": 1, "role": "user"}],
                    "error": {"code": "1301", "message": "The input may contain sensitive content"}}),
}  # fmt: skip
EVERYBODYS = {
    "OpenAI's key": (401, openai("Incorrect API key provided: sk-x", "invalid_api_key")),
    "OpenAI's quota": (429, openai("You exceeded your current quota", "insufficient_quota", "insufficient_quota")),
    "OpenAI's limit": (400, openai("Billing hard limit has been reached", "billing_hard_limit_reached")),
    "Anthropic": (400, {"type": "error", "error": {"type": "invalid_request_error",
                                                   "message": "Your credit balance is too low to access the API."}}),
    "DeepSeek": (402, openai("Insufficient Balance", "invalid_request_error")),
    "DashScope": (400, openai("Access denied, please make sure your account is in good standing.", "Arrearage")),
    "Gemini": (400, google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.",
                           [{"reason": "API_KEY_INVALID"}])),
    "vLLM's model": (404, openai("The model `x` does not exist.", 404, "NotFoundError")),
    "a proxy": (407, ""),
}  # fmt: skip
AGAIN = {
    "OpenAI": (429, openai("Rate limit reached", "rate_limit_exceeded")),
    "Anthropic": (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    "DeepSeek": (503, openai("Server overloaded", None)),
    "a proxy": (502, "<html>Bad gateway</html>"),
}  # fmt: skip
ROWS = [
    (scope, reason, provider, *answer)
    for scope, reason, table in [
        ("request", "too long", TOO_LONG), ("request", "refused", REFUSED), ("all", None, EVERYBODYS),
        ("again", None, AGAIN),
    ]
    for provider, answer in table.items()
]  # fmt: skip


def understood(status, body):
    return meaning(status, read_error(body if isinstance(body, str) else json.dumps(body)))


@pytest.mark.parametrize(("scope", "reason", "provider", "status", "body"), ROWS)
def test_each_providers_words_are_understood(scope, reason, provider, status, body):
    why = understood(status, body)
    assert why.scope == scope
    assert reason in (None, why.reason)


def ask(server, directory, asked, **changes):
    return Judge(config(server.url, **changes), Store(directory)).ask(asked)


class Picky(Server):
    """Refuses the questions in `bad` at once, with a status and a body; answers the others as the server does."""

    def __init__(self, bad, status, body, slow=0.0):
        super().__init__({"slow": slow})
        self.bad, self.status, self.body = bad, status, body


@pytest.fixture
def picky(monkeypatch):
    answer = Handler.answer

    def choose(self, server, body, text, number):
        if text in getattr(server, "bad", ()):
            return self.send(server.status, server.body)
        return answer(self, server, body, text, number)

    monkeypatch.setattr(Handler, "answer", choose)
    return Picky


UNKNOWN = openai("Sorry, no answer to this one.", "no_such_code")


@pytest.mark.parametrize("status", [400, 403, 422, 451])
def test_unknown_words_are_the_requests_own_where_others_succeed(tmp_path, picky, status):
    bad = ["question 3", "question 17"]
    with picky(bad, status, UNKNOWN) as server:
        outcome = ask(server, tmp_path, requests(0, 30))
    failed = {i: one for i, one in enumerate(outcome) if isinstance(one, Failed)}
    assert sorted(failed) == [3, 17]
    for one in failed.values():
        assert (one.reason, one.attempts) == ("rejected", 1)
        assert one.detail == f"HTTP {status}: Sorry, no answer to this one."
    assert [one.text for i, one in enumerate(outcome) if i not in failed] == [
        text for i, text in enumerate(scores(0, 30)) if i not in failed
    ]


def test_refusals_that_come_faster_than_replies_do_not_stop_the_run(tmp_path, picky):
    """The first eight in the caller's order are refused at once, while those behind them take their time."""
    bad = [f"question {i}" for i in range(FIRST)]
    with picky(bad, 400, UNKNOWN, slow=1.0) as server:
        outcome = ask(server, tmp_path, requests(0, 40), concurrency=16)
    assert sum(isinstance(one, Failed) for one in outcome) == FIRST
    assert sum(isinstance(one, Reply) for one in outcome) == 40 - FIRST


@pytest.mark.parametrize(
    ("status", "says"),
    [(400, UNKNOWN), (403, UNKNOWN), (422, UNKNOWN), (413, ""), TOO_LONG["vLLM's longest reply"], REFUSED["DeepSeek"]],
)
def test_first_requests_that_all_fail_alike_stop_the_run(tmp_path, status, says):
    with (
        Server(always=status, says=says) as server,
        pytest.raises(JudgeError, match=f"HTTP {status}.*first {FIRST}") as caught,
    ):
        ask(server, tmp_path, requests(0, 200))
    assert "Check" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.tries.total() < 40  # the first ones, and what went out while they were under way
    assert Store(tmp_path).entries() == []


def test_a_short_run_with_unknown_words_alone_stops_and_with_known_ones_goes_on(tmp_path):
    with Server(always=400, says=UNKNOWN) as server, pytest.raises(JudgeError, match="no answer to this one"):
        ask(server, tmp_path, requests(0, 2))
    with Server(always=400, says=REFUSED["OpenAI"][1]) as server:
        assert [one.reason for one in ask(server, tmp_path, requests(0, 2))] == ["refused"] * 2


def test_a_rerun_that_lacks_nothing_but_refused_requests_does_not_stop(tmp_path, picky):
    bad = [f"question {i}" for i in range(10, 22)]
    with picky(bad, 400, UNKNOWN) as server:
        first, again = (ask(server, tmp_path, requests(0, 22)) for _ in range(2))
    assert first == again
    assert sum(isinstance(one, Failed) for one in again) == 12
    # rights that were taken away since are something else
    with Server(always=403, says=UNKNOWN) as server, pytest.raises(JudgeError, match="HTTP 403"):
        ask(server, tmp_path, requests(0, 60))


def test_failures_of_other_kinds_do_not_stop_the_run(tmp_path):
    with Server(always=500) as server:
        outcome = ask(server, tmp_path, requests(0, 12), attempts=1)
    assert {one.reason for one in outcome} == {"server error"}


ERRORS_AS_REPLIES = [
    ({"error": {"code": 502, "message": "Provider returned error"}}, "server error"),
    ({"error": {"message": "Rate limit exceeded", "type": "rate_limit_exceeded"}}, "rate limited"),
    ({"error": "model is loading"}, "server error"),
    ({"choices": [], "error": {"message": "no capacity"}}, "server error"),
    ({"choices": [{"finish_reason": "error", "message": {"content": ""}, "error": {"code": 503, "message": "x"}}]},
     "server error"),
    ({"choices": [{"finish_reason": "error", "message": {"content": "Rating: [["}}]}, "server error"),
    ([{"error": {"code": 500, "message": "Internal", "status": "INTERNAL"}}], "server error"),
    ({"detail": "upstream is down"}, "server error"),
]  # fmt: skip


@pytest.mark.parametrize(("says", "reason"), ERRORS_AS_REPLIES)
def test_an_error_with_status_200_is_not_paid_for_and_asked_again(tmp_path, says, reason):
    with Server(always=200, says=says) as server:
        for _ in range(2):
            failed = ask(server, tmp_path, requests(0, 1), attempts=3)[0]
            assert (failed.reason, failed.attempts) == (reason, 3)
            assert "HTTP 200" in failed.detail
        assert server.tries.total() == 6
        assert len({key for keys in server.keys_of.values() for key in keys}) == 1
        assert Store(tmp_path).entries() == []
        server.always = None  # it has recovered
        assert [one.text for one in ask(server, tmp_path, requests(0, 1))] == scores(0, 1)


def test_a_refusal_with_status_200_is_the_requests_own_and_a_spent_balance_stops(tmp_path):
    with Server(always=200, says=TOO_LONG["OpenRouter"][1]) as server:
        failed = ask(server, tmp_path, requests(0, 1))[0]
    assert (failed.reason, failed.attempts) == ("too long", 1)
    with Server(always=200, says=EVERYBODYS["DeepSeek"][1]) as server, pytest.raises(JudgeError, match="balance"):
        ask(server, tmp_path, requests(0, 1))


@pytest.mark.parametrize("says", [{"choices": []}, {"id": "x"}])
def test_nothing_in_a_reply_is_asked_again_in_the_next_run(tmp_path, says):
    with Server(always=200, says=says) as server:
        assert ask(server, tmp_path, requests(0, 1), attempts=2)[0].reason == "no choices"
        server.always = None
        assert [one.text for one in ask(server, tmp_path, requests(0, 1), attempts=2)] == scores(0, 1)


def test_a_reply_that_speaks_of_errors_is_a_reply():
    said = {"choices": [{"finish_reason": "stop", "message": {"content": '{"error": {"code": 400}}'}}], "error": None}
    assert error_in(said) is None


def test_a_validation_error_does_not_repeat_the_request():
    body = {"detail": [{"loc": ["body", "temperature"], "msg": "Input should be less than 2", "input": "the question"}]}
    assert read_error(json.dumps(body)).words == "Input should be less than 2"


def test_parts_of_a_reply_are_joined_without_thoughts(tmp_path):
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "[[2]]"}]}, {"type": "text", "text": "[[9]]"}]
    message = {"content": parts, "reasoning_content": "[[1]]"}
    with Server(always=200, says={"choices": [{"message": message, "finish_reason": "stop"}]}) as server:
        assert ask(server, tmp_path, requests(0, 1), top_logprobs=None)[0].text == "[[9]]"


REQUEST = Request([{"role": "user", "content": "a"}], "mt_bench", parameters={"temperature": 0.0, "max_tokens": 2048})


def judge(**changes):
    return JudgeConfig(base_url="http://h/v1", model="m", **changes)


def test_further_fields_are_over_all_others_and_null_leaves_one_out():
    plain = payload(REQUEST, judge())
    fields = {"max_completion_tokens": 4096, "temperature": None, "reasoning_effort": "low"}
    assert payload(REQUEST, judge(request=fields)) == {
        "max_completion_tokens": 4096, "reasoning_effort": "low", "model": "m", "messages": plain["messages"],
    }  # fmt: skip
    assert payload(REQUEST, judge(request={"max_tokens": 7}))["max_tokens"] == 7
    assert "max_tokens" not in payload(REQUEST, judge(request={"max_tokens": None}))
    assert payload(REQUEST, judge(request={})) == plain


def test_fields_are_a_part_of_the_key_and_none_leave_it_as_it_was():
    """The literal is the key that the project gave before there were such fields: stored replies stay paid for."""
    asked = Request(
        [{"role": "user", "content": "é"}], "arena_hard", 1, {"temperature": 0.0, "max_tokens": 4096, "top_p": None}
    )
    key = "fc8c891631bac76b7f84dae1b2a379e8c390459256a2d90fff7d2b25b4bd7dc9"
    assert request_key(asked, judge(top_logprobs=5)) == key
    assert request_key(asked, judge(top_logprobs=5, request={"seed": 1})) != key
    assert request_key(asked, judge(top_logprobs=5, request={"temperature": 0.0})) == key


def test_the_longest_reply_is_that_of_the_fields():
    fields = {"max_completion_tokens": 9000}
    assert longest_usage(REQUEST, 100, fields).completion_tokens == 9000
    assert longest_usage(REQUEST, 100).completion_tokens == 2048
    assert estimate([REQUEST], None, max_tokens=100, fields=fields).completion_tokens == 9000


@pytest.mark.parametrize("name", ["model", "messages", "stream", "n"])
def test_what_we_ask_and_read_cannot_be_set(name):
    with pytest.raises(ValueError, match=f"{name} can't be set here"):
        judge(request={name: 1})


def test_fields_are_sent(tmp_path):
    seen = []
    with Server(judges=lambda body, _: seen.append(body) or "x") as server:
        ask(
            server,
            tmp_path,
            requests(0, 1),
            request={"max_completion_tokens": 5, "top_logprobs": None, "logprobs": None},
        )
    assert seen[0]["max_completion_tokens"] == 5
    assert not {"max_tokens", "logprobs", "top_logprobs"} & seen[0].keys()


def test_stores_of_earlier_versions_are_read(tmp_path):
    request = replace(REQUEST, attempt=0)
    key = request_key(request, judge())
    usage = {"prompt_tokens": 1, "completion_tokens": 0, "estimated": True}
    line = {
        "kind": "unusable",
        "key": key,
        "benchmark": "mt_bench",
        "reason": "no choices",
        "usage": usage,
        "body": "{}",
    }
    (tmp_path / "replies.jsonl").write_text(f"{json.dumps(line)}\n" * 6)
    entry = Unusable(key, "mt_bench", "no choices", Usage(1, 0, True), "{}")
    assert Store(tmp_path).unusable(key) == [entry] * 6
    with Server() as server:  # those were errors: it is asked again
        changed = {"base_url": server.url, "api_key_env": None}
        assert isinstance(Judge(judge().model_copy(update=changed), Store(tmp_path)).ask([request])[0], Reply)
        assert server.tries[question(payload(request, judge()))] == 1
