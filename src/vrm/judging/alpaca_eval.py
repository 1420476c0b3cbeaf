"""AlpacaEval 2: the package's prompts and parser, our judge.

* The package `alpaca-eval` makes the prompts, decides by its seed which output is shown first, reads a preference from
  the log-probabilities, and undoes the order. Only the asking is ours: an annotator's `fn_completions` may be any
  callable. So its client, its cache and their faults (whole chunks lost, failures stored as -1) have no part in this.
* An instruction without a preference has `preference` None and a `failure`. The package would drop it, or call it -1.
* Prompts are asked in the order of the instructions. The package shuffles them, which matters to batched prompts only.
* Equal outputs are a tie without a question, as the package has it.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vrm.config import Config, ConfigError, JudgedPolicy
from vrm.data.benchmark_sets import read_alpaca_eval
from vrm.judging.asking import ask_until, recording
from vrm.judging.exchange import Failed, Reply, Request
from vrm.judging.judgments import Ask, Judged
from vrm.judging.policy_answers import read_alpaca_policy
from vrm.records import Message

BENCHMARK = "alpaca_eval"

NO_PREFERENCE = "no preference in the reply"
CHAT_MARKS = "chat marks in a text"
MARKS = ("<|im_start|>", "<|im_end|>")
CLIENT_SETTINGS = ("model_name", "price_per_token", "num_procs", "batch_size", "is_strip", "requires_chatml", "is_chat")
"""What an annotator's `completions_kwargs` say to the package's client; the others are the endpoint's parameters."""

UNREADABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What the package's parsers raise on replies of another shape."""

Pair = tuple[str, str, str]
"""Instruction, reference output, our output."""


def judge_alpaca_eval(config: Config, judged: JudgedPolicy, answers: Path, sets: Path, ask: Ask) -> Judged:
    """Compare a policy's answers with the reference's.

    Args:
        config: the judge, the annotator and the references.
        judged: whose answers they are.
        answers: directory with `alpaca_eval.json`.
        sets: the benchmark's files.
        ask: a reply or a named failure for each request.

    Returns:
        Rows: the package's annotation records, one an instruction in the reference's order; `preference` is 1 (the
        reference is better) to 2 (ours is), or None with a `failure`. The requests, and the failures by row (from 1).

    Raises:
        RecordError: an answer can't be used, is another model's, or is not of the reference's instruction.
        ConfigError: the package is not installed, or its annotator can't be asked through a chat endpoint.
    """
    annotator = config.benchmarks.alpaca_eval.annotator
    references = read_alpaca_eval(sets, judged.base, config.benchmarks.alpaca_eval)
    outputs = read_alpaca_policy(answers / f"{BENCHMARK}.json", references, judged.name)
    pairs = [(row["instruction"], row["output"], out) for row, out in zip(references, outputs, strict=True)]
    with package():
        preferences, questions = _compare(annotator, pairs, ask, config.benchmarks.alpaca_eval.attempts)
    rows = [
        {
            "instruction": pair[0],
            "output_1": pair[1],
            "generator_1": reference["generator"],
            "output_2": pair[2],
            "generator_2": judged.name,
            "annotator": annotator,
            "preference": preferences.get(pair),
            "failure": questions.failures.get(pair),
        }
        for pair, reference in zip(pairs, references, strict=True)
    ]
    failures = [
        {"id": number, "reason": row["failure"]} for number, row in enumerate(rows, 1) if row["preference"] is None
    ]
    return Judged(rows, questions.requests, failures)


@contextmanager
def package() -> Iterator[None]:
    """The package `alpaca_eval` can be imported while this lasts, and keeps quiet.

    What its import would do to a process is kept away or undone: it reads `.env` files into the environment, so that
    keys would appear, and it makes the root logger talkative. What it warns of is older than its last release.

    Raises:
        ConfigError: it is not installed.
    """
    root, level = logging.getLogger(), logging.root.level
    handlers = list(root.handlers)
    if not handlers and logging.lastResort:
        root.addHandler(logging.lastResort)  # else the package's first line would set up logging for all of us
    root.addFilter(_is_not_the_packages)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*penalty is deprecated|pkg_resources", category=UserWarning)
            _import_package()
            root.setLevel(level)
            bar = types.SimpleNamespace(tqdm=lambda iterable, **_: iterable)
            with patch("alpaca_eval.utils.tqdm", bar):
                yield
    finally:
        root.removeFilter(_is_not_the_packages)
        root.handlers[:] = handlers
        root.setLevel(level)


@dataclass
class _Questions:
    """Takes the place of the package's `openai_completions`.

    Args:
        pairs: what is compared, in the order in which the package will ask, which skips equal outputs.
        ask: a reply or a named failure for each request.
        attempts: how often a comparison is asked until its reply holds a preference; `judge.attempts` counts below.
        annotator: the package's; its prompt template and parser are used.
        requests: all that were asked, repetitions included.
        failures: why a pair has no preference.
    """

    pairs: Sequence[Pair]
    ask: Ask
    attempts: int
    annotator: Any = None
    requests: list[Request] = field(default_factory=list)
    failures: dict[Pair, str] = field(default_factory=dict)

    def __call__(self, prompts: Sequence[str], **settings: Any) -> dict[str, list[Any]]:
        """One completion a prompt, in the shape of the package's; one that failed has none that it could parse."""
        parameters = {name: value for name, value in settings.items() if name not in CLIENT_SETTINGS}
        asked, first = [], []
        for pair, prompt in zip(self.pairs, prompts, strict=True):
            messages = self._messages(prompt)
            if messages is None:
                self.failures[pair] = CHAT_MARKS
            else:
                asked.append(pair)
                first.append(Request(messages, BENCHMARK, parameters=parameters))
        tries = ask_until(recording(self.ask, self.requests), first, self._is_usable, self.attempts)
        last = {pair: outcomes[-1] for pair, outcomes in zip(asked, tries, strict=True)}
        for pair, outcome in last.items():
            if isinstance(outcome, Failed):
                self.failures[pair] = outcome.reason
            elif not self._is_usable(outcome):
                self.failures[pair] = NO_PREFERENCE
        completions = [_no_completion() if pair in self.failures else _completion(last[pair]) for pair in self.pairs]
        nothing = [0.0] * len(completions)  # the store knows what was paid
        return {
            "completions": [completion["text"] for completion in completions],
            "completions_all": completions,
            "price_per_example": nothing,
            "time_per_example": nothing,
        }

    def _messages(self, prompt: str) -> list[Message] | None:
        """The prompt's turns; None: a text in it has marks that the package would take for the end of a turn."""
        from alpaca_eval.utils import prompt_to_chatml

        template = self.annotator.prompt_template
        if any(prompt.count(mark) != template.count(mark) for mark in MARKS):
            return None
        return prompt_to_chatml(prompt.strip())

    def _is_usable(self, reply: Reply) -> bool:
        """Whether the package reads a preference from it."""
        from alpaca_eval.utils import validate_alpacaeval_preference

        completion = _completion(reply) if self.annotator.completion_key == "completions_all" else reply.text
        try:
            preferences = list(self.annotator.fn_completion_parser(completion))
            return len(preferences) == 1 and bool(validate_alpacaeval_preference(preferences[0], is_allow_nan=False))
        except UNREADABLE:
            return False


def _compare(name: str, pairs: Sequence[Pair], ask: Ask, attempts: int) -> tuple[dict[Pair, float], _Questions]:
    """Preference of each pair that has one, by the package."""
    unequal = [pair for pair in dict.fromkeys(pairs) if pair[1] != pair[2]]
    questions = _Questions(unequal, ask, attempts)
    annotator = _annotator(name, questions)
    frame = [{"instruction": pair[0], "output_1": pair[1], "output_2": pair[2]} for pair in pairs]
    rows = annotator.annotate_pairs(frame, chunksize=None)
    preferences = {
        (row["instruction"], row["output_1"], row["output_2"]): float(row["preference"])
        for row in rows
        if row["preference"] is not None and not math.isnan(row["preference"])
    }
    for pair in pairs:  # whatever the package may have dropped is a failure, and has a name
        if pair not in preferences:
            questions.failures.setdefault(pair, "dropped by the package")
    return preferences, questions


def _annotator(name: str, questions: _Questions) -> Any:
    """The package's annotator, which asks `questions`."""
    from alpaca_eval.annotators import PairwiseAnnotator, SinglePairwiseAnnotator
    from alpaca_eval.constants import EVALUATORS_CONFIG_DIR

    class Annotator(PairwiseAnnotator):
        @property
        def SingleAnnotator(self) -> Callable[..., Any]:
            return lambda **settings: SinglePairwiseAnnotator(
                **{**settings, "fn_completions": questions, "is_shuffle": False}
            )

    if not (EVALUATORS_CONFIG_DIR / name / "configs.yaml").is_file():
        raise ConfigError(f"benchmarks.alpaca_eval.annotator: the package has no annotator {name!r}")
    annotator = Annotator(annotators_config=name, caching_path=None)
    singles = list(annotator.annotators.values())
    _require_a_chat_annotator(name, singles)
    questions.annotator = singles[0]
    return annotator


def _require_a_chat_annotator(name: str, singles: Sequence[Any]) -> None:
    """Raises ConfigError for those that we can't ask as the package would."""
    trouble = None
    if len(singles) != 1 or singles[0].batch_size != 1:
        trouble = "shows several comparisons in a prompt, or is several annotators"
    elif {"tools", "tool_choice", "functions", "function_call"} & set(singles[0].completions_kwargs):
        trouble = "wants function calls"
    elif any(mark not in singles[0].prompt_template for mark in MARKS):
        trouble = "has no chat prompt"
    if trouble:
        raise ConfigError(
            f"benchmarks.alpaca_eval.annotator: {name} {trouble}; take weighted_alpaca_eval_gpt4_turbo, AlpacaEval 2's"
        )


def _completion(reply: Reply) -> dict[str, Any]:
    """A reply as the package's client has it: the endpoint's choice, and its text."""
    return {
        "finish_reason": reply.finish_reason,
        "index": 0,
        "logprobs": {"content": reply.logprobs or []},
        "message": {"content": reply.text, "role": "assistant"},
        "text": reply.text,
        "total_tokens": reply.usage.prompt_tokens + reply.usage.completion_tokens,
    }


def _no_completion() -> dict[str, Any]:
    """What the package's client has where there is no reply."""
    return {"text": "", "total_tokens": 0}


def _is_not_the_packages(record: logging.LogRecord) -> bool:
    return f"{os.sep}alpaca_eval{os.sep}" not in record.pathname


def _import_package() -> None:
    try:
        with patch.dict(os.environ, {"PYTHON_DOTENV_DISABLED": "1"}):
            importlib.import_module("alpaca_eval")
    except ImportError as error:
        raise ConfigError(
            f"AlpacaEval's package can't be imported ({error}); `pip install -c requirements.lock -e .` brings it"
        ) from None
