"""A policy answers the judged benchmarks.

* All answers of one turn and temperature are generated in fixed batches, each with a seed of its own that follows from
  the policy's seed, the benchmark, the turn and the batch. So a job that was killed goes on at the next batch, and its
  files are the same as if nothing had happened.
* What is finished lies in a directory that no rule declares (see `vrm.training.checkpoints`), and goes when the files
  of answers are there. They are written last, and whole.
* A conversation that is too long loses its beginning and is counted. A limit that the model's positions can't hold is
  an error before anything is generated: beyond them a model answers nonsense, silently.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vrm.config import Config, ConfigError, Generation, JudgedPolicy
from vrm.data.accounting import format_counts
from vrm.generation import Engine, Sampling, decode, load_engine
from vrm.generation.answer_files import Answer, AnswerSet, Conversation, read_answer_sets
from vrm.generation.saved_answers import SavedAnswers
from vrm.models.checks import checked_config, checked_tokenizer, positions_of
from vrm.models.templates import Unrenderable, read_template
from vrm.models.text import PolicyEncoder
from vrm.records import Prompt, RecordError, write_json
from vrm.training.checkpoints import fingerprint, model_files, resumable


def answer_benchmarks(
    config: Config,
    judged: JudgedPolicy,
    policy: str,
    *,
    revision: str | None,
    sets: Mapping[str, Path],
    temperatures: Mapping[str, float],
    checkpoints: Path,
    out: Path,
) -> None:
    """Answer every benchmark of `benchmarks.run`; write their files and `counts.json`, see docs/files.md.

    Args:
        config: the experiment's.
        judged: who answers; its seed seeds the sampling.
        policy: directory or hub id of the causal LM.
        revision: commit of the hub model.
        sets: directory that `vrm benchmark-set` filled, by benchmark.
        temperatures: MT-Bench's sampling temperature, by category.
        checkpoints: where finished answers lie until all are.
        out: directory of the files.

    Raises:
        ConfigError: a limit exceeds the model's positions, or what the configuration asks for is not installed.
        RecordError: a set is missing or can't be used.
    """
    answer_sets = read_answer_sets(config, judged, sets, temperatures)
    _require_room(config, policy, revision)
    made_from = _made_from(config, judged, policy, revision, sets, temperatures)
    resumable(checkpoints, made_from)  # deletes what was made from something else
    total = sum(len(answer_set.conversations) * answer_set.turns for answer_set in answer_sets)
    answered = {}
    with SavedAnswers(checkpoints / "answers.jsonl", config.benchmarks.answering.save_every) as saved:
        if len(saved):
            print(f"{judged.name}: going on after {len(saved)} of {total} answers")
        answerer = _Answerer(config, judged, policy, revision, saved)
        with tqdm(total=total, desc="answering", unit="answer") as progress:
            for answer_set in answer_sets:
                answers, counts = answerer.answer(answer_set, progress)
                answered[answer_set.name] = answers, counts
                print(format_counts(f"Answers of {judged.name} to {answer_set.name}", counts))
    for answer_set in answer_sets:
        answer_set.write(answered[answer_set.name][0], out)
    write_json(out / "counts.json", {name: counts for name, (_, counts) in answered.items()})
    shutil.rmtree(checkpoints, ignore_errors=True)


class _Answerer:
    """One policy, loaded once, for all benchmarks."""

    def __init__(
        self, config: Config, judged: JudgedPolicy, policy: str, revision: str | None, saved: SavedAnswers
    ) -> None:
        self.config, self.judged, self.saved = config, judged, saved
        template = config.policy.bases[judged.base].chat_template
        self.tokenizer = checked_tokenizer(policy, revision=revision, chat_template=template)
        self.engine = self._engine(policy, revision)

    def answer(self, answer_set: AnswerSet, progress: tqdm) -> tuple[list[list[Answer]], dict[str, Any]]:
        """Answers, a row a conversation and a column a turn, and their counts."""
        answering = self.config.benchmarks.answering
        limits = answering.max_prompt_length, answering.max_prompt_length + answer_set.max_new_tokens
        kwargs = self.config.policy.bases[self.judged.base].chat_template_kwargs
        encoder = PolicyEncoder(self.tokenizer, *limits, chat_template_kwargs=kwargs)
        conversations = answer_set.conversations
        answers: list[list[Answer]] = [[] for _ in conversations]
        for turn in range(answer_set.turns):
            prompts = [_prompt(*pair) for pair in zip(conversations, answers, strict=True)]
            try:
                ids = encoder.encode_prompts(prompts)
            except Unrenderable as error:
                asked = prompts[next(iter(error.rows))][-1]["content"]
                where = f"{self.judged.name}, {answer_set.name}, turn {turn + 1}, {asked[:60]!r}"
                raise RecordError(f"{where}: {error}") from None
            for number, (temperature, rows) in enumerate(_batches(conversations, ids, answering.batch_size)):
                name = f"{answer_set.name}/turn {turn + 1}/batch {number + 1}"
                sampling = Sampling(temperature, answer_set.max_new_tokens)
                batch = self._batch(name, [ids[i] for i in rows], sampling)
                for row, answer in zip(rows, batch, strict=True):
                    answers[row].append(answer)
                progress.update(len(batch))
        return answers, _counts(answers, encoder.truncation.prompts_cut)

    def _batch(self, name: str, prompts: list[list[int]], sampling: Sampling) -> list[Answer]:
        answers = self.saved.find(name)
        if answers is None:
            generated = self.engine.generate(prompts, _seed(self.judged.seed, name), sampling)
            decoded = [decode(self.tokenizer, ids, self.engine.ends) for ids in generated]
            answers = [Answer(text, len(ids), end) for ids, (text, end) in zip(generated, decoded, strict=True)]
            self.saved.add(name, answers)
        return answers

    def _engine(self, policy: str, revision: str | None) -> Engine:
        answering = self.config.benchmarks.answering
        settings = Generation(
            engine=answering.engine,
            batch_size=answering.batch_size,
            top_p=answering.top_p,
            vllm_memory=answering.vllm_memory,
            max_new_tokens=max(_limits(self.config).values()),
        )
        return load_engine(
            settings,
            policy,
            revision,
            self.tokenizer,
            max_prompt_length=answering.max_prompt_length,
            key="benchmarks.answering.engine",
        )


def _prompt(conversation: Conversation, answers: Sequence[Answer]) -> Prompt:
    """The conversation up to the next answer."""
    said = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer.text}]
        for question, answer in zip(conversation.turns, answers, strict=False)
    ]
    return [*chain.from_iterable(said), {"role": "user", "content": conversation.turns[len(answers)]}]


def _batches(
    conversations: Sequence[Conversation], ids: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[float, list[int]]]:
    """Rows that are answered together: of one temperature, and of similar length."""
    for temperature in dict.fromkeys(conversation.temperature for conversation in conversations):
        rows = [i for i, conversation in enumerate(conversations) if conversation.temperature == temperature]
        rows.sort(key=lambda i: len(ids[i]))
        for start in range(0, len(rows), batch_size):
            yield temperature, rows[start : start + batch_size]


def _seed(seed: int, name: str) -> int:
    """A batch's own seed, in 0..2^63."""
    return int.from_bytes(hashlib.sha256(f"{seed}\x1f{name}".encode()).digest()[:8], "little") >> 1


def _counts(answers: Sequence[Sequence[Answer]], prompts_cut: int) -> dict[str, Any]:
    flat = list(chain.from_iterable(answers))
    return {
        "questions": len(answers),
        "answers": len(flat),
        "prompts_cut": prompts_cut,
        "unended": sum(not answer.ended for answer in flat),
        "empty": sum(not answer.text for answer in flat),
        "mean_tokens": round(sum(answer.tokens for answer in flat) / len(flat), 3),
    }


def _limits(config: Config) -> dict[str, int]:
    """Tokens of the longest answer, by benchmark."""
    return {name: getattr(config.benchmarks, name).max_new_tokens for name in config.benchmarks.run}


def _require_room(config: Config, policy: str, revision: str | None) -> None:
    positions = positions_of(checked_config(policy, revision=revision))
    prompt = config.benchmarks.answering.max_prompt_length
    too_long = {name: limit for name, limit in _limits(config).items() if positions and prompt + limit > positions}
    if too_long:
        sums = "; ".join(
            f"benchmarks.answering.max_prompt_length ({prompt}) + benchmarks.{name}.max_new_tokens ({limit}) is "
            f"{prompt + limit}"
            for name, limit in too_long.items()
        )
        raise ConfigError(
            f"{policy} has {positions} positions (max_position_embeddings), but {sums}: lower one of them"
        )


def _made_from(
    config: Config,
    judged: JudgedPolicy,
    policy: str,
    revision: str | None,
    sets: Mapping[str, Path],
    temperatures: Mapping[str, float],
) -> dict[str, Any]:
    """What the answers depend on."""
    benchmarks, base = config.benchmarks, config.policy.bases[judged.base]
    settings = {
        "judged": judged.name,
        "policy": policy,
        "revision": revision,
        "chat_template_kwargs": base.chat_template_kwargs,
        "chat_template": None if base.chat_template is None else read_template(base.chat_template),
        "answering": benchmarks.answering.model_dump(mode="json", exclude={"save_every", "vllm_memory"}),
        "max_new_tokens": _limits(config),
        "temperatures": {
            **temperatures,
            "alpaca_eval": benchmarks.alpaca_eval.temperature,
            "arena_hard": benchmarks.arena_hard.temperature,
        },
    }
    asked = [path for name in benchmarks.run for path in sorted(sets[name].rglob("*")) if path.is_file()]
    files = [path for path in asked if not path.name.endswith(".provenance.json")]
    return fingerprint(settings, [*model_files(policy), *files])
