"""What requests and answers look like: our own shape, and those in which other trainers ask.

* `Score`: ours. Conversations and responses in; rewards, standard deviations, weights and scores by aspect out.
* `RemoteReward`: what OpenRLHF sends to its remote reward model (`openrlhf/utils/agent.py`, read at 3c3be62): `query`,
  the whole text in the policy's template, `prompts` and `labels`. Back go `rewards`, `scores` and `extra_logs`.
* `Classify`: what vLLM's `/classify` takes and verl's reward loop sends there
  (`verl/experimental/reward_loop/reward_loop.py`, read at 1dda039): `input`, a text in the reward model's template.
* `Embeddings`: the same, as verl asks an SGLang server, at `/v1/embeddings`.

A field that is not named here is refused: leaving it out in silence could change what was asked for. So is a value of
another type.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from vrm.models.base import RewardOutput
from vrm.models.templates import RenderedTexts
from vrm.records import Prompt


class Refused(ValueError):
    """A request that can't be answered; the message says which entry, why, and what to send instead."""


def _whole(text: str) -> str:
    """A text that can be written: JSON may hold half of a surrogate pair, which no encoding knows."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair (\\ud800 to \\udfff) is no character") from None
    return text


def _json(values: list[Any]) -> list[Any]:
    """What JSON can hold: Python reads NaN as well."""
    json.dumps(values, allow_nan=False)
    return values


Text = Annotated[str, AfterValidator(_whole)]


class Asked(BaseModel):
    """A request: nothing but the fields it names, of the types it names."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Turn(Asked):
    """One turn of a conversation."""

    role: Annotated[Text, Field(min_length=1, description="system, user, assistant, or what the chat template knows")]
    content: Text


Conversation = Annotated[list[Turn], Field(min_length=1)]


class Score(Asked):
    """Responses to be scored, each with its prompt."""

    prompts: Annotated[
        list[Text | Conversation],
        Field(min_length=1, description="a text is one user turn; a conversation ends where the response begins"),
    ]
    responses: Annotated[list[Text], Field(min_length=1, description="one a prompt")]

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        return _of_one_length(self, "responses", "prompts")

    def texts(self) -> tuple[list[Prompt | str], list[str]]:
        """Prompts and responses, as a reward model takes them."""
        return [_prompt(prompt) for prompt in self.prompts], self.responses


class Scored(BaseModel):
    """Rewards of N responses; what the model has not is null."""

    model: str
    aspects: Annotated[list[str], Field(description="the K rated aspects; empty for a scalar reward model")]
    rewards: Annotated[
        list[float], Field(description="only differences between responses to one prompt mean something")
    ]
    std: Annotated[list[float] | None, Field(description="standard deviation of each reward under the posterior")]
    weights: Annotated[list[list[float]] | None, Field(description="of each aspect for this prompt, N x K")]
    per_objective: Annotated[list[list[float]] | None, Field(description="score by aspect in the reward's unit, N x K")]
    rated: Annotated[list[float] | None, Field(description="rated-aspect reward: weights . per_objective")]
    residual: Annotated[list[float] | None, Field(description="what is added to `rated` to make the whole reward")]
    truncated: Annotated[list[bool], Field(description="whether a text was too long and was cut before scoring")]

    @classmethod
    def of(cls, out: RewardOutput, model: str, aspects: Sequence[str]) -> Self:
        """A reward model's output."""
        parts = ("std", "weights", "per_objective", "rated", "residual", "truncated")
        found = {name: _listed(getattr(out, name)) for name in parts}
        return cls(model=model, aspects=list(aspects), rewards=out.mean.tolist(), **found)


class RemoteReward(Asked):
    """OpenRLHF's request. Its client sends an empty one to each server beyond the number of texts."""

    query: Annotated[list[Text], Field(description="prompt and response in one text, in the policy's chat template")]
    prompts: Annotated[list[Text] | None, Field(description="the beginning of each query")] = None
    labels: Annotated[
        Annotated[list[Any], AfterValidator(_json)] | None,
        Field(description="not used: a reward model needs no answer key"),
    ] = None

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        return _of_one_length(self, "query", "prompts", "labels")

    def texts(self, templates: Sequence[RenderedTexts]) -> tuple[list[Prompt | str], list[str]]:
        """Prompts and responses; `templates` are tried in their order.

        Raises:
            Refused: a text is in none of them, and is not its plain prompt with something after it either.
        """
        prompts = self.prompts or [None] * len(self.query)
        pairs = [
            _split(row, *both, templates=templates) for row, both in enumerate(zip(self.query, prompts, strict=True))
        ]
        return [prompt for prompt, _ in pairs], [response for _, response in pairs]


class RemoteRewards(BaseModel):
    """What OpenRLHF reads: rewards for training, scores for its filter, and values to log."""

    rewards: list[float]
    scores: list[float]
    extra_logs: Annotated[
        dict[str, list[float]], Field(description="std, weight of each aspect and share of cut texts, where there are")
    ]

    @classmethod
    def of(cls, out: RewardOutput, aspects: Sequence[str]) -> Self:
        """A reward model's output. Lists are as long as the query: OpenRLHF makes each one a tensor."""
        logs = {"vrm/truncated": out.truncated.astype(float).tolist()}
        if out.std is not None:
            logs["vrm/std"] = out.std.tolist()
        if out.weights is not None:
            logs |= {f"vrm/weight/{aspect}": out.weights[:, k].tolist() for k, aspect in enumerate(aspects)}
        return cls(rewards=out.mean.tolist(), scores=out.mean.tolist(), extra_logs=logs)


class Classify(Asked):
    """vLLM's request, as far as it makes sense for a reward model."""

    model: Annotated[str | None, Field(description="not looked at: there is one model, and the answer names it")] = None
    input: Annotated[
        Text | Annotated[list[Text], Field(min_length=1)] | None,
        Field(description="whole conversations in the reward model's chat template; a BOS may be missing"),
    ] = None
    messages: Annotated[Conversation | None, Field(description="instead of input: one conversation")] = None
    use_activation: Annotated[
        bool | None, Field(description="true: the reward's logistic function; otherwise the reward itself")
    ] = None
    user: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either input or messages")
        return self

    def texts(self, own: RenderedTexts | None) -> tuple[list[Prompt | str], list[str]]:
        """Prompts and responses.

        Raises:
            Refused: a conversation does not end with the assistant, or a text is not the template's of any.
        """
        if self.messages is not None:
            return _answered(self.messages)
        return _read_exactly(self.input, own)

    def answer(self, out: RewardOutput, model: str) -> dict[str, Any]:
        """vLLM's answer: the reward stands in `probs`, as that of any classifier with one label."""
        found = [_logistic(x) for x in out.mean.tolist()] if self.use_activation else out.mean.tolist()
        data = [{"index": i, "label": None, "probs": [value], "num_classes": 1} for i, value in enumerate(found)]
        return {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": model} | {
            "data": data
        }


class Embeddings(Asked):
    """The request that verl sends to an SGLang server that holds a reward model."""

    model: Annotated[str | None, Field(description="not looked at, as with /classify")] = None
    input: Text | Annotated[list[Text], Field(min_length=1)]
    encoding_format: Literal["float"] = "float"
    user: str | None = None

    def texts(self, own: RenderedTexts | None) -> tuple[list[Prompt | str], list[str]]:
        """As `Classify.texts`."""
        return _read_exactly(self.input, own)

    def answer(self, out: RewardOutput, model: str) -> dict[str, Any]:
        """An embedding with one entry, the reward."""
        data = [{"object": "embedding", "index": i, "embedding": [value]} for i, value in enumerate(out.mean.tolist())]
        return {"object": "list", "model": model, "data": data}


def _of_one_length(asked: Asked, first: str, *others: str) -> Any:
    length = len(getattr(asked, first))
    for name in others:
        values = getattr(asked, name)
        if values is not None and len(values) != length:
            raise ValueError(f"{first} has {length} entries and {name} has {len(values)}")
    return asked


def _prompt(prompt: str | list[Turn]) -> Prompt | str:
    return prompt if isinstance(prompt, str) else [turn.model_dump() for turn in prompt]


def _answered(turns: list[Turn]) -> tuple[list[Prompt | str], list[str]]:
    *prompt, last = turns
    if last.role != "assistant" or not prompt:
        raise Refused(
            "messages: the last turn is the assistant's response that is scored, and something goes before it"
        )
    return [_prompt(prompt)], [last.content]


def _read_exactly(given: str | list[str], own: RenderedTexts | None) -> tuple[list[Prompt | str], list[str]]:
    """Texts in the reward model's own template."""
    texts = [given] if isinstance(given, str) else given
    readings = [own.read(text) if own else None for text in texts]
    for row, reading in enumerate(readings):
        if reading is None or not reading.exact:
            raise Refused(
                f"input {row} is not a conversation in the reward model's own chat template, ended by a response; "
                "render it with the reward model's tokenizer, or ask /score, which takes conversations"
            )
    return [reading.prompt for reading in readings], [reading.response for reading in readings]


MARKS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "[INST]", "<|user|>", "<|User|>", "<｜User｜>")
"""How well-known templates begin a user's turn: none of them is a word of a prompt."""


def _split(row: int, query: str, prompt: str | None, templates: Sequence[RenderedTexts]) -> tuple[Prompt | str, str]:
    """A query's prompt and response."""
    for template in templates:
        reading = template.read(query)
        if reading is not None:
            return reading.prompt, reading.response
    if prompt is None:
        raise Refused(
            f"query {row} is in no chat template that is known here, and there is no prompt: send prompts, or name the "
            "policy's tokenizer (vrm serve --policy-tokenizer)"
        )
    if any(mark in prompt for mark in MARKS):
        raise Refused(
            f"prompt {row} is in a chat template that is not the reward model's; name the policy's tokenizer "
            "(vrm serve --policy-tokenizer)"
        )
    if not query.startswith(prompt):
        raise Refused(f"query {row} does not begin with its prompt, so where the response begins can't be told")
    response = query.removeprefix(prompt)
    for template in templates:
        response = template.without_end(response)
    return prompt, response


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def _listed(values: np.ndarray | None) -> list[Any] | None:
    return None if values is None else values.tolist()
