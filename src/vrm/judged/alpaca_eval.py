"""AlpacaEval 2: the package's prompts, parser and numbers; our judge.

* The package `alpaca-eval` makes the prompts, decides by its seed which output is shown first, reads a preference from
  the log-probabilities, and undoes the order. Only the asking is ours: an annotator's `fn_completions` may be any
  callable. So its client, its cache and their faults (whole chunks lost, failures stored as -1) have no part in this.
* An instruction without a preference has `preference` None and a `failure`. The package would drop it, or call it -1.
* Prompts are asked in the order of the instructions. The package shuffles them, which matters to batched prompts only.
* Equal outputs are a tie without a question, as the package has it.
* `win_rate`, `standard_error`: the package's `get_winrate`, over the instructions that have a preference.
  `lc_win_rate`, `lc_without_difficulty`: see `length_control`.
* Intervals come from a joint bootstrap over instructions: they cover the choice of instructions, not the training or
  the judge.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrm.config import Config, ConfigError, JudgedPolicy
from vrm.config.benchmarks import FILES
from vrm.data.benchmark_sets import AnswerSet, Conversation, read_alpaca_eval
from vrm.judged.base import (
    ANSWER_AGAIN,
    JUDGE_AGAIN,
    Judgments,
    Row,
    draws_table,
    identity,
    interval_record,
    require_model,
    terms_table,
)
from vrm.judged.length_control import DF_GAMED, FORMULA, L2, LC, OFFICIAL_DRAWS, official, without_difficulty
from vrm.judging.asking import Ask, ask_until, recording
from vrm.judging.exchange import Failed, Reply, Request, without_thoughts
from vrm.records import Message, RecordError
from vrm.runfiles import JUDGED_ITEMS, JUDGED_SCORES, JudgedTables, draw_column
from vrm.statistics.draws import percentiles, question_draws


def alpaca_eval_set(config: Config, judged: JudgedPolicy, directory: Path) -> AnswerSet:
    settings = config.benchmarks.alpaca_eval

    def record(origin: dict[str, Any], texts: list[str]) -> dict[str, Any]:
        return {**origin, "output": texts[0], "generator": judged.name}

    conversations = [
        Conversation(
            (row["instruction"],),
            settings.temperature,
            {"dataset": row["dataset"], "instruction": row["instruction"]},
        )
        for row in read_alpaca_eval(directory, judged.base, settings)
    ]
    return AnswerSet("alpaca_eval", conversations, settings.max_new_tokens, record)


def read_alpaca_policy(path: Path, references: Sequence[Mapping[str, Any]], model: str) -> list[str]:
    """A policy's outputs to AlpacaEval's instructions, one a row of the references and in their order.

    Raises:
        RecordError: the file is missing, or a row can't be used, is another model's, or of another instruction.
    """
    rows = read_alpaca_list(path, len(references), ANSWER_AGAIN)
    for number, (row, reference) in enumerate(zip(rows, references, strict=True), 1):
        where = f"{path}, row {number}"
        if row.get("instruction") != reference["instruction"]:
            raise RecordError(f"{where}: not the instruction of the reference's row; {ANSWER_AGAIN}")
        if not isinstance(row.get("output"), str):
            raise RecordError(f"{where}: `output` is no text; {ANSWER_AGAIN}")
        require_model(where, row.get("generator"), model)
    return [row["output"] for row in rows]


def read_alpaca_list(path: Path, number: int, remedy: str) -> list[dict[str, Any]]:
    """AlpacaEval's kind of file: one JSON list with a row for each of so many instructions.

    Raises:
        RecordError: it is missing, or something else.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file; {remedy}") from None
    except ValueError as error:
        raise RecordError(f"{path}: not valid JSON ({error}); {remedy}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RecordError(f"{path}: not a list of JSON objects; {remedy}")
    if len(rows) != number:
        raise RecordError(f"{path}: {len(rows)} rows for {number} instructions; {remedy}")
    return rows


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


def judge_alpaca_eval(config: Config, judged: JudgedPolicy, answers: Path, sets: Path, ask: Ask) -> Judgments:
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
    return Judgments(rows, questions.requests, failures)


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

        completion = _completion(reply)
        if self.annotator.completion_key != "completions_all":
            completion = completion["text"]
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
    """A reply as the package's client has it: the endpoint's choice, and its text without a reasoning judge's thoughts.

    Parsers of log-probabilities read the first token, which is the beginning of a thought then, and no preference.
    """
    text = without_thoughts(reply.text)
    return {
        "finish_reason": reply.finish_reason,
        "index": 0,
        "logprobs": {"content": reply.logprobs or []},
        "message": {"content": text, "role": "assistant"},
        "text": text,
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


Draws = dict[str, NDArray[np.float64]]
"""Values of the resamples, or of the instructions, by metric, in percent."""


class AlpacaMeasure(NamedTuple):
    """A number of the table; None where there is none, and `note` says why. Rates are in percent."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    note: str = ""


def alpaca_eval_scores(config: Config, results: Path) -> JudgedTables:
    """AlpacaEval 2 of every judged policy.

    Args:
        config: the policies, the annotator, the intervals' level, samples and seed.
        results: the run's directory.

    Returns:
        Scores (base, method, seed, metric, value, low, high, n, note), items (one row a judged instruction; value: our
        win, 0..1; item_id: its row from 1), draws of both LC, the official LC's terms, and the record of how they came
        about.

    Raises:
        RecordError: judgments are not of the set's rows.
        ConfigError: the package is not installed.
    """
    sets = results / "judged" / "sets" / BENCHMARK
    rows, items, policies, reference_length = [], [], {}, {}
    columns: Draws = {}
    terms: Draws = {}
    numbers: Sequence[int] = []
    with package():
        for judged in config.judged_policies:
            references = read_alpaca_eval(sets, judged.base, config.benchmarks.alpaca_eval)
            judgments = _read_judgments(config, results, judged, references)
            measures, draws, parts, details = _measure(config, judgments, sets / "df_gamed.csv")
            rows += [{**judged._asdict(), "metric": name, **measure._asdict()} for name, measure in measures.items()]
            items += [
                {**judged._asdict(), "item_id": number, "part": "", "value": preference - 1, "weight": 1.0}
                for number, preference in judgments["preference"].dropna().items()
            ]
            columns |= {draw_column(judged.name, metric): values for metric, values in draws.items()}
            terms |= {draw_column(judged.name, metric): values for metric, values in parts.items()}
            numbers = list(judgments.index)
            policies[judged.name] = details
            reference_length[judged.base] = float(judgments["output_1"].str.len().mean())
        record = {**_record(config), "reference_length": reference_length, "policies": policies}
    return JudgedTables(
        pd.DataFrame(rows, columns=list(JUDGED_SCORES.columns)),
        pd.DataFrame(items, columns=list(JUDGED_ITEMS.columns)),
        draws_table(columns),
        terms_table(numbers, terms),
        record,
    )


def _read_judgments(
    config: Config, results: Path, judged: JudgedPolicy, references: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """The annotations of a policy, one row an instruction, by row number from 1.

    Raises:
        RecordError: they are not of the reference's rows, or one can't be used; names the row.
    """
    path = results / judged.folder / "judgments" / FILES[BENCHMARK]
    rows = read_alpaca_list(path, len(references), JUDGE_AGAIN)
    for number, (row, reference) in enumerate(zip(rows, references, strict=True), 1):
        trouble = _trouble(row, reference, judged, config.benchmarks.alpaca_eval.annotator)
        if trouble:
            raise RecordError(f"{path}, row {number}: {trouble}; {JUDGE_AGAIN}")
    frame = pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1))
    frame["preference"] = frame["preference"].astype(float)
    return frame


def _trouble(row: Row, reference: Mapping[str, Any], judged: JudgedPolicy, annotator: str) -> str:
    """Why an annotation can't be used; "" if it can."""
    expected = {"instruction": "instruction", "output_1": "output", "generator_1": "generator"}
    if any(row.get(own) != reference[name] for own, name in expected.items()):
        return "not the set's instruction and reference"
    if row.get("generator_2") != judged.name:
        return f"judges {row.get('generator_2')}, not {judged.name}"
    if not isinstance(row.get("output_2"), str) or not {"preference", "failure"} <= row.keys():
        return "no `output_2`, `preference` or `failure`"
    if row.get("annotator") != annotator:
        return f"by {row.get('annotator')}, and benchmarks.alpaca_eval.annotator is {annotator}"
    preference = row["preference"]
    if preference is None:
        return "" if row["failure"] else "neither a preference nor a failure"
    if not isinstance(preference, int | float) or not 1 <= preference <= 2:
        return f"preference {preference} is not in 1..2"
    return ""


def _measure(
    config: Config, judgments: pd.DataFrame, gamed: Path
) -> tuple[dict[str, AlpacaMeasure], Draws, Draws, dict[str, Any]]:
    """The metrics of one policy, the draws of its fits and their terms, and what else the package counts."""
    from alpaca_eval.metrics import get_winrate

    there = judgments["preference"].notna().to_numpy()
    judged = judgments[there].reset_index(drop=True)
    failed = Counter(judgments["failure"].dropna())
    note = f"{failed.total()} of {len(judgments)} without a judgment" if failed else ""
    measures = dict.fromkeys(
        ("win_rate", "lc_win_rate", "lc_without_difficulty", "standard_error"), AlpacaMeasure(None, note=note)
    )
    draws: Draws = {}
    terms: Draws = {}
    details: dict[str, Any] = {
        "reference": sorted(set(judgments["generator_1"])),
        "failed": dict(sorted(failed.items())),
    }
    if len(judged):
        counts = get_winrate(judged)
        drawn = _question_draws(config, len(judgments))
        wins = (judged["preference"] - 1).to_numpy()
        n, ends = int(counts["n_total"]), _ends(config, _means(wins, drawn[:, there]))
        measures["win_rate"] = AlpacaMeasure(float(counts["win_rate"]), *ends, n, note)
        for metric, found in (
            ("lc_win_rate", official(judgments, gamed, drawn, note)),
            ("lc_without_difficulty", without_difficulty(judged, drawn[:, there], note)),
        ):
            measures[metric] = AlpacaMeasure(found.value, *_ends(config, found.draws), found.n, found.note)
            draws |= {} if found.draws is None else {metric: found.draws}
            terms |= {} if found.terms is None else {metric: found.terms}
        error = _or_none(counts["standard_error"])
        measures["standard_error"] = AlpacaMeasure(error, n=n, note=note if error is not None else "a single judgment")
        details |= {name: int(counts[name]) for name in ("n_total", "n_wins", "n_wins_base", "n_draws")}
        details["discrete_win_rate"] = float(counts["discrete_win_rate"])
    measures["length"] = AlpacaMeasure(float(judgments["output_2"].str.len().mean()), n=len(judgments))
    return measures, draws, terms, details


def _question_draws(config: Config, rows: int) -> NDArray[np.int64]:
    """The joint draws, shape (B, N): the same for all policies, whose instructions are those of one set."""
    return question_draws(rows, config.report.bootstrap_samples, np.random.default_rng(config.report.seed))


def _means(wins: NDArray[np.float64], drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """Win rate of each draw in percent, shape (B,); NaN for one without a judgment."""
    with np.errstate(invalid="ignore"):
        return 100 * (drawn @ wins) / drawn.sum(axis=1)


def _ends(config: Config, drawn: NDArray[np.float64] | None) -> tuple[float | None, float | None]:
    """Percentiles of resampled rates; None where there is none."""
    if drawn is None:
        return None, None
    low, high = percentiles(drawn, config.report.level)
    return float(low), float(high)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _record(config: Config) -> dict[str, Any]:
    """How the numbers came about."""
    from alpaca_eval.metrics import glm_winrate

    return {
        "benchmark": BENCHMARK,
        "package": f"alpaca-eval {version('alpaca-eval')}",
        "scikit_learn": version("scikit-learn"),
        "annotator": config.benchmarks.alpaca_eval.annotator,
        "judge": identity(config.judge) if config.judge else None,
        "lc_win_rate": {
            "glm": LC,
            **glm_winrate.GLM_INFO[LC],
            "df_gamed_sha256": DF_GAMED,
            "samples": min(OFFICIAL_DRAWS, config.report.bootstrap_samples),
        },
        "lc_without_difficulty": {"formula": FORMULA, "l2": L2},
        "intervals": interval_record(config, "instructions", config.report.bootstrap_samples),
    }
