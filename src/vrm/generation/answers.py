"""A policy answers the judged benchmarks.

* Each answer has a seed of its own, which follows from the policy's seed, the benchmark, the turn and the question's
  place. All answers of one turn and temperature are generated in fixed batches, so that a job that was killed goes on
  at the next one, and its files are the same as if nothing had happened.
* What is finished lies in a directory that no rule declares (see `vrm.checkpoints`), and goes when the files
  of answers are there. They are written last, and whole.
* A conversation that is too long loses its beginning and is counted. A limit that the model's positions can't hold is
  an error before anything is generated: beyond them a model answers nonsense, silently.
* Several jobs may share the batches of all first turns: each answers every n-th batch, and the job that writes the
  files takes theirs for finished. Second turns are left to that job, for how they are batched depends on all first
  answers. Since the batches stay what they are, no file depends on the number of shares, not even by rounding.

Answers of a job that may be killed: an append-only file of finished batches.

One line a batch, `{"batch": <name>, "answers": [[text, tokens, ended], ...]}`, so that a batch is there as a whole or
not at all. A killed writer may leave a torn line at the end; it is cut off, and its batch is generated again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, Self

from transformers import AutoConfig, AutoTokenizer

from vrm.checkpoints import fingerprint, model_files, model_name, resumable
from vrm.config import Config, ConfigError, Generation, JudgedPolicy, dependencies
from vrm.data.benchmark_sets import Answer, AnswerSet, Conversation
from vrm.generation.engines import Engine, Sampling, decode, load_engine
from vrm.models.text import TextEncoder, prepare_tokenizer
from vrm.ours import remove_ours, require_ours
from vrm.records import Prompt, RecordError, write_json, write_whole
from vrm.watch import Watch, format_counts


class SavedAnswers:
    """Batches of answers by name; used as a context, so that an error loses nothing that is finished.

    Args:
        path: the file; its directory has to be there.
        save_every: answers after which they are written; those since are lost with a job that is killed.
    """

    def __init__(self, path: Path, save_every: int) -> None:
        self._path, self._save_every = path, save_every
        path.touch()
        self._batches, whole = _read(path)
        lost = path.stat().st_size - whole
        if lost:
            print(f"{path}: its last {lost} bytes are damaged and cut off; those answers are generated again")
            os.truncate(path, whole)
        self._unsaved: dict[str, list[Answer]] = {}

    def __len__(self) -> int:
        """Answers that are here."""
        return _count(self._batches)

    def take(self, path: Path) -> None:
        """Take another file's batches for finished.

        Raises:
            RecordError: the file holds something else.
        """
        batches, whole = _read(path)
        if whole != path.stat().st_size:
            raise RecordError(f"{path}: line {len(batches) + 1} is no batch of answers; remove the file and run again")
        self._batches |= batches

    def find(self, batch: str) -> list[Answer] | None:
        """A batch that is finished; None: it is not."""
        return self._batches.get(batch)

    def add(self, batch: str, answers: list[Answer]) -> None:
        """Keep a finished batch."""
        self._batches[batch] = self._unsaved[batch] = answers
        if _count(self._unsaved) >= self._save_every:
            self._save()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._save()

    def _save(self) -> None:
        lines = [_line(batch, answers) for batch, answers in self._unsaved.items()]
        with open(self._path, "ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self._unsaved = {}


def _line(batch: str, answers: list[Answer]) -> str:
    return json.dumps({"batch": batch, "answers": answers}) + "\n"


def _count(batches: dict[str, list[Answer]]) -> int:
    return sum(map(len, batches.values()))


def _read(path: Path) -> tuple[dict[str, list[Answer]], int]:
    """The batches of the file's whole lines, and the number of bytes that these take."""
    batches: dict[str, list[Answer]] = {}
    whole = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line)
            name, answers = row["batch"], [Answer(*answer) for answer in row["answers"]]
        except (ValueError, TypeError, KeyError):
            break
        if not line.endswith(b"\n"):
            break
        batches[name] = answers
        whole += len(line)
    return batches, whole


@dataclass(frozen=True)
class Questionnaire:
    """Who answers what.

    Args:
        config: the experiment's.
        judged: who answers; its seed seeds the sampling.
        policy: directory or hub id of the causal LM.
        revision: commit of the hub model.
        answer_sets: what every benchmark asks, in the order of `benchmarks.run`.
        sets: the directory that each was read from, by benchmark.
    """

    config: Config
    judged: JudgedPolicy
    policy: str
    revision: str | None
    answer_sets: Sequence[AnswerSet]
    sets: Mapping[str, Path]

    @property
    def total(self) -> int:
        """Answers to all benchmarks, whichever job gives them."""
        return sum(len(answer_set.conversations) * answer_set.turns for answer_set in self.answer_sets)

    def saved(self, checkpoints: Path) -> SavedAnswers:
        """Answers that a killed job has left in a directory, which is made where it is not there.

        Raises:
            ConfigError: a limit exceeds the model's positions.
        """
        require_ours(checkpoints)
        _require_room(self.config, self.policy, self.revision)
        resumable(checkpoints, _made_from(self))  # removes what was made from something else
        saved = SavedAnswers(checkpoints / "answers.jsonl", self.config.benchmarks.answering.save_every)
        if len(saved):
            print(f"{self.judged.name}: going on after {len(saved)} answers; {self.total} are asked of it")
        return saved


def answer_benchmarks(asked: Questionnaire, checkpoints: Path, out: Path, shares: Sequence[Path] = ()) -> None:
    """Answer every benchmark of `benchmarks.run`; write their files and `counts.json`, see docs/files.md.

    Args:
        asked: who answers what.
        checkpoints: where finished answers lie until all are.
        out: directory of the files.
        shares: files of `answer_share` with batches that are finished.

    Raises:
        ConfigError: a limit exceeds the model's positions, or what the configuration asks for is not installed.
        RecordError: a file of a share holds something else.
    """
    answered = {}
    with asked.saved(checkpoints) as saved:
        for path in shares:
            saved.take(path)
        answerer = _Answerer(asked, saved)
        with Watch("answering", "answers", asked.total) as progress:
            for answer_set in asked.answer_sets:
                answers, counts = answerer.answer(answer_set, progress)
                answered[answer_set.name] = answers, counts
                print(format_counts(f"Answers of {asked.judged.name} to {answer_set.name}", counts))
    for answer_set in asked.answer_sets:
        answer_set.write(answered[answer_set.name][0], out)
    write_json(out / "counts.json", {name: counts for name, (_, counts) in answered.items()})
    remove_ours(checkpoints)


def answer_share(asked: Questionnaire, checkpoints: Path, out: Path, share: int, shares: int) -> None:
    """Answer a share of the first turns' batches; write them into a file for `answer_benchmarks`.

    Args:
        asked: who answers what.
        checkpoints: where finished answers lie until all of the share are.
        out: the file, a line a batch.
        share: which share, from 0.
        shares: how many there are.

    Raises:
        ConfigError: a limit exceeds the model's positions, or what the configuration asks for is not installed.
    """
    with asked.saved(checkpoints) as saved:
        answerer = _Answerer(asked, saved)
        mine = list(islice(answerer.first_turns(), share, None, shares))
        with Watch("answering", "answers", sum(len(batch.rows) for batch in mine)) as progress:
            answers = {}
            for batch in mine:
                answers[batch.name] = answerer.answers_to(batch)
                progress.add(len(batch.rows))
    write_whole(out, "".join(map(_line, answers, answers.values())))
    remove_ours(checkpoints)


class _Batch(NamedTuple):
    """Questions that are answered in one call: their rows in the benchmark's turn, and what is asked."""

    turn: str
    number: int
    rows: list[int]
    prompts: list[list[int]]
    sampling: Sampling

    @property
    def name(self) -> str:
        """Unique among a policy's."""
        return f"{self.turn}/batch {self.number}"


class _Answerer:
    """One policy, loaded once, for all benchmarks; not at all where every answer is there already."""

    def __init__(self, asked: Questionnaire, saved: SavedAnswers) -> None:
        self.asked, self.saved, self.answering = asked, saved, asked.config.benchmarks.answering
        tokenizer = AutoTokenizer.from_pretrained(asked.policy, revision=asked.revision)
        self.tokenizer = prepare_tokenizer(tokenizer)

    def answer(self, answer_set: AnswerSet, progress: Watch) -> tuple[list[list[Answer]], dict[str, Any]]:
        """Answers, a row a conversation and a column a turn, and their counts."""
        encoder = self._encoder(answer_set)
        answers: list[list[Answer]] = [[] for _ in answer_set.conversations]
        for turn in range(answer_set.turns):
            for batch in self._turn(answer_set, turn, answers, encoder):
                for row, answer in zip(batch.rows, self.answers_to(batch), strict=True):
                    answers[row].append(answer)
                progress.add(len(batch.rows))
        return answers, _counts(answers, encoder.truncation.prompts_cut)

    def first_turns(self) -> Iterator[_Batch]:
        """The batches of every benchmark's first turn."""
        for answer_set in self.asked.answer_sets:
            nothing: list[list[Answer]] = [[] for _ in answer_set.conversations]
            yield from self._turn(answer_set, 0, nothing, self._encoder(answer_set))

    def answers_to(self, batch: _Batch) -> list[Answer]:
        """A batch's answers, generated unless they are there."""
        answers = self.saved.find(batch.name)
        if answers is None:
            seeds = [_seed(self.asked.judged.seed, f"{batch.turn}/{row + 1}") for row in batch.rows]
            generated = self.engine.generate(batch.prompts, seeds, batch.sampling)
            decoded = [decode(self.tokenizer, ids, self.engine.ends) for ids in generated]
            answers = [Answer(text, len(ids), end) for ids, (text, end) in zip(generated, decoded, strict=True)]
            self.saved.add(batch.name, answers)
        return answers

    def _turn(
        self, answer_set: AnswerSet, turn: int, answers: list[list[Answer]], encoder: TextEncoder
    ) -> list[_Batch]:
        """The batches of a turn, given the answers to those before."""
        conversations = answer_set.conversations
        ids = encoder.encode_prompts([_prompt(*pair) for pair in zip(conversations, answers, strict=True)])
        return [
            _Batch(
                f"{answer_set.name}/turn {turn + 1}",
                number,
                rows,
                [ids[i] for i in rows],
                Sampling(temperature, answer_set.max_new_tokens),
            )
            for number, (temperature, rows) in enumerate(_batches(conversations, ids, self.answering.batch_size), 1)
        ]

    def _encoder(self, answer_set: AnswerSet) -> TextEncoder:
        longest = self.answering.max_prompt_length
        kwargs = self.asked.config.policy.bases[self.asked.judged.base].chat_template_kwargs
        return TextEncoder(self.tokenizer, longest, longest + answer_set.max_new_tokens, chat_template_kwargs=kwargs)

    @cached_property
    def engine(self) -> Engine:
        """What generates."""
        settings = Generation(
            engine=self.answering.engine,
            batch_size=self.answering.batch_size,
            top_p=self.answering.top_p,
            vllm_memory=self.answering.vllm_memory,
            max_new_tokens=max(_limits(self.asked.config).values()),
        )
        return load_engine(
            settings,
            self.asked.policy,
            self.asked.revision,
            self.tokenizer,
            max_prompt_length=self.answering.max_prompt_length,
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
    """An answer's own seed, in 0..2^63."""
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
    model = AutoConfig.from_pretrained(policy, revision=revision).get_text_config(decoder=True)
    positions = getattr(model, "max_position_embeddings", None)
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


def _made_from(asked: Questionnaire) -> dict[str, Any]:
    """What the answers depend on."""
    benchmarks = asked.config.benchmarks
    settings = {
        "judged": asked.judged.name,
        "policy": model_name(asked.policy),
        "revision": asked.revision,
        "chat_template_kwargs": asked.config.policy.bases[asked.judged.base].chat_template_kwargs,
        "answering": dependencies.answering(benchmarks.answering),
        "max_new_tokens": _limits(asked.config),
        "temperatures": {
            each.name: [conversation.temperature for conversation in each.conversations] for each in asked.answer_sets
        },
    }
    read = [path for name in benchmarks.run for path in sorted(asked.sets[name].rglob("*")) if path.is_file()]
    files = [path for path in read if not path.name.endswith(".provenance.json")]
    return fingerprint(settings, [*model_files(asked.policy), *files])
