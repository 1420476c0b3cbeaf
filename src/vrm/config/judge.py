"""The judge: any OpenAI-compatible endpoint, how hard it may be asked, and what it costs."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, JsonValue, field_validator, model_validator

from vrm.config.base import NonNegativeFloat, PositiveFloat, PositiveInt, RunPath, Section


class Prices(Section):
    """What the endpoint charges, in dollars per million tokens."""

    prompt: NonNegativeFloat = Field(description="Dollars per million prompt tokens.")
    completion: NonNegativeFloat = Field(description="Dollars per million completion tokens.")


class JudgeConfig(Section):
    """The model that judges, and the manners of asking it. Its key is only ever in the environment."""

    # somebody may paste the key itself into api_key_env or base_url: an error must not repeat it
    model_config = ConfigDict(hide_input_in_errors=True)

    base_url: str | None = Field(
        None, description="Up to and without /chat/completions, e.g. https://api.openai.com/v1."
    )
    serve: str | None = Field(
        None,
        description="Instead of base_url: a command that serves one on this machine. It prints its address as first "
        "line, and leaves when its standard input closes; each judging job starts one and stops it.",
    )
    model: str = Field(description="Model name at that endpoint; a dated one, so that the numbers can be had again.")
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = Field(
        "OPENAI_API_KEY", description="NAME of the environment variable that holds the key; null: no key is sent."
    )
    concurrency: PositiveInt = Field(8, description="Requests under way at once.")
    requests_per_minute: PositiveFloat | None = Field(None, description="At most so many, a process; null: no limit.")
    timeout: PositiveFloat = Field(120.0, description="Seconds until an unanswered request is given up.")
    attempts: PositiveInt = Field(
        6, description="Tries of one request; replies that were paid for and unusable count over all runs."
    )
    backoff: PositiveFloat = Field(
        1.0, description="Longest wait before the second try, in seconds; doubles with every further one."
    )
    longest_wait: PositiveFloat = Field(
        120.0, description="Seconds; no wait between tries is longer, and an endpoint that asks for more fails."
    )
    store: RunPath = Field(
        "results/{run}/replies",
        validate_default=True,
        description="Directory of all replies; jobs and runs that share it pay once. `{run}` is the run's name.",
    )
    prices: Prices | None = Field(None, description="What tokens cost; null: tokens are counted, cost is unknown.")
    temperature: NonNegativeFloat = Field(0.0, description="Sampling temperature, where a benchmark sets none.")
    max_tokens: PositiveInt = Field(2048, description="Longest reply in tokens, where a benchmark sets none.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="Ask for log-probabilities of so many likeliest tokens; null: don't ask for any."
    )

    request: dict[str, JsonValue] = Field(
        {},
        description="Further fields of each request, over all others; null leaves a field out. For reasoning models "
        "e.g. {max_completion_tokens: 4096, temperature: null}: the former takes the place of max_tokens.",
    )

    @field_validator("request")
    @classmethod
    def _leaves_the_question(cls, fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
        taken = sorted(set(fields) & {"model", "messages", "stream", "n"})
        if taken:
            raise ValueError(f"{', '.join(taken)} can't be set here: one reply to our own messages is read, as a whole")
        return fields

    @model_validator(mode="after")
    def _exactly_one(self) -> JudgeConfig:
        if (self.base_url is None) == (self.serve is None):
            raise ValueError(
                "give exactly one of `base_url` and `serve`; the default experiment has `serve`, so say `serve: null` "
                "beside your base_url"
            )
        return self

    @field_validator("base_url")
    @classmethod
    def _is_plain(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give an http:// or https:// address with a host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("give an address without user, password, query and fragment; keys go into the environment")
        return url.rstrip("/")
