"""`vrm score`: a trained model over a file or a pipe of any length, in bounded memory.

* Rows are pairs (which response is better is known, and accuracy is counted) or prompts with responses (what each of
  them is worth). Which of the two follows from the first row's columns; a score's columns are flat in every format.
* Input is read, scored and written piece by piece. What stays in memory is a few numbers a pair, for the summary.
* Output goes to `<out>.partial.jsonl` first, with a note of how far it is: a killed job goes on with `resume`. It gets
  its own name, and its format, when all of it is there.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO, TypeVar

import numpy as np

from vrm.checkpoints import fingerprint, model_files
from vrm.config import ConfigError, EvaluationSet, Source
from vrm.config.base import ShapeName
from vrm.data.fields import Unusable, parse_row_prompt, parse_text
from vrm.data.preference_sets import SUBSETS, compared_pairs, read_preference_set
from vrm.data.shapes import COMPARED, LOOK_AT, RATED, Shape, read_as, recognise
from vrm.data.sources import COMPRESSIONS, read_rows
from vrm.evaluation.accuracy import group_pairs, missing_subsets, section_scores, several_metrics
from vrm.evaluation.score_sets import score_or_refuse
from vrm.models.base import RewardModel
from vrm.models.scoring import load_reward_model
from vrm.models.templates import Unrenderable
from vrm.people.options import require_apart, require_at_least
from vrm.records import PreferencePair, Prompt, Quarantine, RecordError, read_jsonl, read_pairs, write_json, write_whole
from vrm.runfiles import TRUE_WEIGHT
from vrm.statistics.intervals import crossed_interval
from vrm.watch import Watch

PIECE, PIECE_CHARACTERS = 256, 16_384
"""Rows that are scored at a time, and characters of different texts that suffice: what is done is shown, and can be
continued, by the piece, and of long texts 256 rows take many minutes on a CPU."""
FORMATS = (".jsonl", ".csv", ".parquet")
RESPONSES = ("responses", "completions", "generations", "answers")
"""Columns that hold several responses; an entry is a text, or has it under one of `TEXT`."""
TEXT = ("response", "text", "content", "answer", "completion")
PROMPT = ("prompt", "instruction", "question", "input", "context", "conversations", "messages", "query")
NAMED = 5
"""Refused rows that are named one by one."""
Row = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class ScoreOptions:
    """What a person may choose.

    Args:
        model: directory or hub id.
        data: a file or directory; `-` is standard input.
        out: .jsonl, .csv or .parquet; `-` is standard output, as JSON lines; None writes the summary alone.
        rows: what the rows are; None follows from their columns.
        pick: write the best response of each prompt instead of all.
        shape: which public data's columns the rows have; None recognises it.
        reward: the whole reward, or its rated part alone.
        samples: posterior samples of the standard deviation and of a pair's probability; 0 leaves both out.
        seed: of those samples.
        max_prompt_length, max_length: limits in tokens; None takes those of the training.
        resume: go on where a killed job stood.
        trust_remote_code: run the code that the model brings along.
    """

    model: str
    data: str
    out: str | None = None
    rows: Literal["pairs", "responses"] | None = None
    pick: bool = False
    shape: ShapeName | None = None
    reward: Literal["full", "rated"] = "full"
    samples: int = 64
    seed: int = 0
    max_prompt_length: int | None = None
    max_length: int | None = None
    resume: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Several:
    """A row with a prompt and its responses."""

    row: int
    prompt: Prompt
    responses: list[str]


def score(options: ScoreOptions) -> None:
    """Score a file or a pipe, write one row a pair or response, and print a summary.

    Raises:
        ConfigError: an option can't be used, or an output of other options was begun.
        RecordError: the input or the model can't be used, or rewards are not finite.
    """
    _check(options)
    refused = Quarantine(options.data)
    with _input(options, refused) as (rows, total):
        shape, example, rows = recognise(rows, options.shape, (*COMPARED, *RATED), "pairs")
        first = list(islice(rows, LOOK_AT))
        if not first:
            raise RecordError(f"{options.data}: holds no rows that can be read")
        kind = _kind(options, shape, first)
        print(f"{options.data}: read as {_title(kind, shape, example)}", file=sys.stderr)
        model = load_reward_model(
            options.model,
            max_prompt_length=options.max_prompt_length,
            max_length=options.max_length,
            posterior_samples=options.samples,
            seed=options.seed,
            reward=options.reward,
            trust_remote_code=options.trust_remote_code,
        )
        with _output(options, refused) as out:
            if kind == "pairs" and shape.compare is None:  # every two responses of a prompt, which may stand anywhere
                pairs = _rated_pairs(model, options, refused)
                unit, total = "pairs", len(pairs)
                scored = _scored_pairs(model, pairs, refused, out.done)
            else:
                unit, rows = "rows", (pair for part in (first, rows) for pair in part if pair[0] > out.done)
                scored = _scored(model, rows, shape, kind, options.pick, refused)
            watch = Watch("scoring", unit, total, out.done)
            tally = Pairs() if kind == "pairs" else Responses()
            for row in out.written():
                tally.add(row)
            for number, found in scored:
                for row in found:
                    tally.add(row)
                    out.write(row)
                watch.add(number - out.done)
                out.mark(number)
            watch.close()
    _say_refused(refused)
    if not tally.n:
        raise RecordError(f"{options.data}: no row could be scored; the reasons stand above")
    print(tally.summary(), file=sys.stderr if options.out == "-" else sys.stdout)


def _check(options: ScoreOptions) -> None:
    require_apart("out", options.out, data=options.data, model=options.model)
    require_at_least(0, samples=options.samples, seed=options.seed)
    require_at_least(1, max_prompt_length=options.max_prompt_length, max_length=options.max_length)
    if options.out not in (None, "-") and Path(options.out).is_dir():
        raise ConfigError(f"--out {options.out}: is a directory; name a file in it")
    if options.out not in (None, "-") and Path(options.out).suffix.lower() not in FORMATS:
        raise ConfigError(f"--out {options.out}: must end in {', '.join(FORMATS)}, or be - for standard output")
    if options.resume and options.out in (None, "-"):
        raise ConfigError("--resume needs --out FILE: what went to a pipe can't be continued")
    if options.pick and options.rows == "pairs":
        raise ConfigError("--pick takes the best of a prompt's responses, and --rows pairs says that there are pairs")


def _kind(options: ScoreOptions, shape: Shape, first: Sequence[tuple[int, Row]]) -> str:
    """Whether the rows are pairs or prompts with responses."""
    if options.rows:
        return options.rows
    if options.pick or any(isinstance(row.get(RESPONSES[0]), list) for _, row in first):
        return "responses"
    return "pairs" if shape.compare is not None else "responses"


def _title(kind: str, shape: Shape, example: Row) -> str:
    if kind == "responses":
        return "prompts with responses"
    return read_as(shape, example, shape.aspects, shape.rating_range)


# Input


@contextmanager
def _input(options: ScoreOptions, refused: Quarantine) -> Iterator[tuple[Iterator[tuple[int, Row]], int | None]]:
    """Numbered rows, and how many there are where that is known without reading them."""
    if options.data != "-":
        source = Source(path=options.data)
        yield read_rows(source, refused), _count(Path(options.data))
        return
    pipe = sys.stdin.buffer
    head = pipe.peek(8)[:8] if hasattr(pipe, "peek") else b""
    if head.startswith(BOM_UTF8):
        pipe.read(len(BOM_UTF8))
        head = head[len(BOM_UTF8) :]
    if head.lstrip()[:1] in (b"{", b""):
        yield _lines(pipe, refused), None
        return
    known = (b"PAR1", *(magic for magic, _ in COMPRESSIONS.values()))
    # a file is read by what it holds, and by its name where that does not tell
    ending = ".jsonl" if head.startswith(known) or head.lstrip()[:1] == b"[" else ".csv"
    with tempfile.TemporaryDirectory() as scratch:  # these formats can't be read from a pipe
        path = Path(scratch) / f"stdin{ending}"
        with open(path, "wb") as file:
            while block := pipe.read(1 << 20):
                file.write(block)
        yield read_rows(Source(path=str(path)), refused), None


def _lines(pipe: BinaryIO, refused: Quarantine) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(pipe, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield number, row
        else:
            refused.add(number, "not a JSON object", None)


def _count(path: Path) -> int | None:
    if path.suffix == ".parquet" and path.is_file():
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_metadata(path).num_rows
        except (OSError, ValueError):
            return None  # whoever reads it says what is wrong
    if path.suffix not in (".jsonl", ".ndjson") or not path.is_file():
        return None
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def responses_of(row: Row) -> tuple[Prompt, list[str]]:
    """Prompt and responses of a row in any of the shapes that have them.

    Raises:
        Unusable: there is no prompt or no response that can be used.
    """
    prompt = parse_row_prompt(row, PROMPT)
    column = next((name for name in RESPONSES if isinstance(row.get(name), list)), None)
    if column is None:
        pku = [row[name] for name in ("response_0", "response_1") if row.get(name) is not None]
        both = pku or [row[name] for name in ("chosen", "rejected") if isinstance(row.get(name), str)]
        entries = both or [row.get("response", row.get("completion"))]
    else:
        entries = row[column]
    texts = [parse_text(_text(entry), "a response") for entry in entries]
    if not texts:
        raise Unusable(f"{column} is empty")
    return prompt, texts


def _text(entry: Any) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    return next((entry[name] for name in TEXT if entry.get(name) is not None), None)


# Scoring


def _scored(
    model: RewardModel, rows: Iterable[tuple[int, Row]], shape: Shape, kind: str, pick: bool, refused: Quarantine
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Output rows by piece, each with the number of the last input row in it."""
    ids: set[str] = set()
    for piece in _pieces(rows):
        last = piece[-1][0]
        if kind == "pairs":
            found = [pairs for _, pairs in compared_pairs(piece, shape, (), "pairs", refused, ids)]
            ids.clear()  # unique within a piece is enough for the summary, and all of them would be kept for ever
            yield last, _pairs(model, [pair for pairs in found for pair in pairs], refused)
        else:
            yield last, _responses(model, _several(piece, refused), pick, refused)


def _rated_pairs(model: RewardModel, options: ScoreOptions, refused: Quarantine) -> list[PreferencePair]:
    if options.data == "-":
        raise ConfigError("--rows pairs: rated responses are paired over the whole file, so name a file, not -")
    source = EvaluationSet(label=Path(options.data).stem, path=options.data, shape=options.shape)
    with tempfile.TemporaryDirectory() as scratch:
        read_preference_set("pairs", source, None, Path(scratch), model.aspects)
        return read_pairs(Path(scratch) / "pairs.jsonl")


def _scored_pairs(
    model: RewardModel, pairs: Sequence[PreferencePair], refused: Quarantine, done: int
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """As `_scored`, of pairs that are known already and counted from 1."""
    for piece in _pieces(enumerate(pairs[done:], done + 1)):
        yield piece[-1][0], _pairs(model, [pair for _, pair in piece], refused)


def _pieces(numbered: Iterable[tuple[int, T]]) -> Iterator[list[tuple[int, T]]]:
    """Rows, or pairs, that are scored together; what lies ahead is not read."""
    piece: list[tuple[int, T]] = []
    seen: set[str] = set()
    characters = 0
    for number, entry in numbered:
        piece.append((number, entry))
        characters += _new_characters(vars(entry) if isinstance(entry, PreferencePair) else entry, seen)
        if len(piece) >= PIECE or characters >= PIECE_CHARACTERS:
            yield piece
            piece, seen, characters = [], set(), 0
    if piece:
        yield piece


def _new_characters(value: Any, seen: set[str]) -> int:
    """Characters of the texts in a row that are not in `seen` yet: a prompt is computed once for its responses."""
    if isinstance(value, str):
        new = 0 if value in seen else len(value)
        seen.add(value)
        return new
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, Sequence) else ()
    return sum(_new_characters(entry, seen) for entry in inner)


def _pairs(model: RewardModel, pairs: list[PreferencePair], refused: Quarantine) -> list[dict[str, Any]]:
    if not pairs:
        return []
    try:
        table, _named = score_or_refuse(model, pairs, set())
    except Unrenderable as error:  # every one of them
        table = None
        refused.add(0, f"{len(pairs)} pairs: {error.reason}", None)
    rows = [] if table is None else table.drop(columns="leaked").to_dict("records")
    # the true weights are known of few data
    return [{k: v for k, v in row.items() if not (k.startswith(TRUE_WEIGHT) and v != v)} for row in rows]


def _several(piece: Sequence[tuple[int, Row]], refused: Quarantine) -> list[Several]:
    found = []
    for number, row in piece:
        try:
            found.append(Several(number, *responses_of(row)))
        except Unusable as error:
            refused.add(number, str(error), None)
    return found


def _responses(model: RewardModel, rows: Sequence[Several], pick: bool, refused: Quarantine) -> list[dict[str, Any]]:
    """Output rows of prompts with responses: one a response, or the best of each prompt."""
    flat = [(row, text) for row in rows for text in row.responses]
    if not flat:
        return []
    try:
        output = model.score([row.prompt for row, _ in flat], [text for _, text in flat])
    except Unrenderable as error:  # which says so before it scores anything
        bad = {flat[place][0].row: reason for place, reason in error.rows.items()}
        for number, reason in bad.items():
            refused.add(number, reason, None)
        return _responses(model, [row for row in rows if row.row not in bad], pick, refused)
    found, start = [], 0
    for row in rows:
        stop = start + len(row.responses)
        order = np.argsort(-output.mean[start:stop], kind="stable")
        ranks = np.empty(len(order), dtype=int)
        ranks[order] = np.arange(1, len(order) + 1)
        if pick:
            best = int(order[0])
            margin = float(output.mean[start + best] - output.mean[start + order[1]]) if len(order) > 1 else None
            chosen = {"prompt": row.prompt, "response": row.responses[best]}
            found.append({"row": row.row, **chosen, "picked": best, "of": len(order), "margin": margin})
            found[-1] |= _values(output, start + best, model.aspects)
        else:
            for k in range(len(order)):
                head = {"row": row.row, "response": k, "rank": int(ranks[k])}
                found.append(head | _values(output, start + k, model.aspects))
        start = stop
    return found


def _values(output: Any, i: int, aspects: Sequence[str]) -> dict[str, Any]:
    """What the model says of one text, flat."""
    values: dict[str, Any] = {"reward": float(output.mean[i])}
    values |= {n: float(getattr(output, n)[i]) for n in ("std", "rated", "residual") if getattr(output, n) is not None}
    for prefix, table in (("weight", output.weights), ("score", output.per_objective)):
        if table is not None:
            values |= {f"{prefix}_{aspect}": float(value) for aspect, value in zip(aspects, table[i], strict=True)}
    return values | {"truncated": int(output.truncated[i])}


# Output


class Output:
    """Where rows go: nowhere, standard output, or a file that is whole in the end.

    Args:
        options: name the file; what it is made from is noted beside its unfinished part.
        refused: rows that are left out; those of a job that this one continues are added.
    """

    def __init__(self, options: ScoreOptions, refused: Quarantine) -> None:
        self.options, self.done, self.file = options, 0, None
        self.refused, self.noted = refused, 0
        self.path = Path(options.out) if options.out not in (None, "-") else None
        if self.path is None:
            self.file: TextIO | None = sys.stdout if options.out == "-" else None
            return
        self.partial = self.path.with_name(f"{self.path.name}.partial.jsonl")
        self.note = self.path.with_name(f"{self.path.name}.partial.json")
        self.left_out = self.path.with_name(f"{self.path.name}.partial.left_out.jsonl")
        made_from = {k: v for k, v in asdict(options).items() if k not in ("resume", "out")}
        data = Path(options.data)
        files = [data] if data.is_file() else data.rglob("*") if data.is_dir() else []
        contents = {"data's content": filter(Path.is_file, files), "model's content": model_files(options.model)}
        self.made_from = made_from | {name: fingerprint({}, some)["files"] for name, some in contents.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if options.resume and self.note.is_file():
            note = json.loads(self.note.read_text(encoding="utf-8"))
            changed = [name for name, value in self.made_from.items() if note["made_from"].get(name) != value]
            if changed:
                raise ConfigError(f"{self.partial}: begun with other {', '.join(changed)}; begin anew without --resume")
            self.done = note["rows"]
            os.truncate(self.partial, note["bytes"])  # what a killed job wrote after its last note
            os.truncate(self.left_out, note["left_out_bytes"])
            for _, entry in read_jsonl(self.left_out):
                refused.add(entry["row"], entry["reason"], None)
            self.noted = len(refused.rows)  # what is read once more was noted by the job before
        else:
            write_whole(self.left_out, "")
        self.file = open(self.partial, "a" if self.done else "w", encoding="utf-8")  # noqa: SIM115
        self.mark(self.done)

    def written(self) -> Iterator[dict[str, Any]]:
        """Rows of the job that this one continues."""
        return (row for _, row in read_jsonl(self.partial)) if self.done else iter(())

    def write(self, row: Mapping[str, Any]) -> None:
        """One row more."""
        if self.file is not None:
            self.file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def mark(self, number: int) -> None:
        """All input up to that row is written."""
        self.done = number
        if self.file is not None:
            self.file.flush()
        if self.path is not None:
            with open(self.left_out, "a", encoding="utf-8") as file:
                for entry in self.refused.rows[self.noted :]:
                    file.write(json.dumps({name: entry[name] for name in ("row", "reason")}) + "\n")
            self.noted = len(self.refused.rows)
            sizes = {"bytes": self.partial.stat().st_size, "left_out_bytes": self.left_out.stat().st_size}
            write_json(self.note, {"made_from": self.made_from, "rows": number, **sizes})

    def finish(self) -> None:
        """Give the file its format and its name."""
        if self.path is None:
            return
        self.file.close()
        if self.path.suffix.lower() == ".jsonl":
            self.partial.replace(self.path)
        else:
            aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            (_to_csv if self.path.suffix.lower() == ".csv" else _to_parquet)(self.partial, aside)
            aside.replace(self.path)
            self.partial.unlink()
        self.note.unlink()
        self.left_out.unlink()


@contextmanager
def _output(options: ScoreOptions, refused: Quarantine) -> Iterator[Output]:
    out = Output(options, refused)
    try:
        yield out
    except BaseException:
        if out.path is not None:
            out.file.close()
            if out.done:
                print(f"{out.partial}: {out.done} rows are done; --resume goes on from there", file=sys.stderr)
            else:
                for path in (out.partial, out.note, out.left_out):
                    path.unlink(missing_ok=True)
        raise
    out.finish()


def _columns(path: Path) -> list[str]:
    """Columns of all rows, in the order in which they come first."""
    return list(dict.fromkeys(name for _, row in read_jsonl(path) for name in row))


def _to_csv(source: Path, target: Path) -> None:
    with open(target, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _columns(source), lineterminator="\n")
        writer.writeheader()
        for _, row in read_jsonl(source):
            writer.writerow(
                {k: json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for k, v in row.items()}
            )


def _to_parquet(source: Path, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _columns(source)
    rows = (row for _, row in read_jsonl(source))
    writer = None
    while piece := list(islice(rows, 1024)):
        table = pa.table({name: [row.get(name) for row in piece] for name in columns})
        if writer is None:
            kinds = [pa.float64() if pa.types.is_null(kind) else kind for kind in table.schema.types]
            schema = pa.schema(list(zip(columns, kinds, strict=True)))
            writer = pq.ParquetWriter(target, schema)
        writer.write_table(table.cast(writer.schema))
    if writer is None:
        pq.write_table(pa.table({}), target)
    else:
        writer.close()


# Summary


@dataclass
class Pairs:
    """Accuracy over pairs: what is kept of each is its prompt and whether it is won."""

    n: int = 0
    cut: int = 0
    won: list[bool] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    subsets: dict[str, list[int]] = field(default_factory=dict)
    grouped: list[tuple[str, str, float, float]] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Count a row; a tie is lost.

        Raises:
            RecordError: a reward is not finite.
        """
        chosen, rejected = row["reward_chosen"], row["reward_rejected"]
        if not (np.isfinite(chosen) and np.isfinite(rejected)):
            raise RecordError(f"pair {row['pair_id']}: a reward is not finite; the model's training diverged")
        won = chosen > rejected
        self.n += 1
        self.cut += row["truncated"]
        self.won.append(won)
        self.prompts.append(self.numbers.setdefault(row["prompt_id"], len(self.numbers)))
        both = self.subsets.setdefault(row["subset"], [0, 0])
        both[0] += won
        both[1] += 1
        if "/" in row["pair_id"]:
            self.grouped.append((row["pair_id"], row["subset"], chosen, rejected))

    def summary(self) -> str:
        """Accuracy with its interval over prompts, by subset, by section, by row with several responses."""
        interval = crossed_interval(np.array(self.won, dtype=float), np.array(self.prompts)).within(0, 1)
        ends = "" if np.isnan(interval.low) else f" [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
        lines = [f"\n{self.n} pairs, {self.cut} of them cut, accuracy {100 * interval.estimate:.2f}{ends}"]
        for subset, (won, n) in sorted(self.subsets.items()):
            lines.append(f"  {subset or '(no subset)':32s} {100 * won / n:6.2f}   n = {n}")
        items = group_pairs(*map(list, zip(*self.grouped, strict=True))) if self.grouped else []
        if several := several_metrics(items):
            lines.append("\nRows with several responses, as RewardBench 2 and RM-Bench count them")
            lines += [f"  {name:32s} {100 * value:6.2f}   n = {n}" for name, (value, n) in several.items()]
        present = {subset: won / n for subset, (won, n) in self.subsets.items() if subset in SUBSETS}
        if present:
            lines.append("\nRewardBench sections (weighted by the official subset sizes; math-prm counts 984)")
            lines += [f"  {name:12s} {100 * value:6.2f}" for name, value in section_scores(present).items()]
            lines += [f"  missing in {name}: {', '.join(gone)}" for name, gone in missing_subsets(present).items()]
        return "\n".join(lines)


@dataclass
class Responses:
    """How many responses of how many prompts."""

    n: int = 0
    cut: int = 0
    rows: int = 0
    last: int | None = None

    def add(self, row: Row) -> None:
        """Count a row.

        Raises:
            RecordError: a reward is not finite.
        """
        if not np.isfinite(row["reward"]):
            raise RecordError(f"row {row['row']}: a reward is not finite; the model's training diverged")
        self.n += 1
        self.cut += row["truncated"]
        self.rows += row["row"] != self.last
        self.last = row["row"]

    def summary(self) -> str:
        """One line."""
        return f"\n{self.n} responses of {self.rows} rows, {self.cut} of them cut"


def _say_refused(refused: Quarantine) -> None:
    # a job that goes on reads once more what the one before could not read
    rows = sorted({(e["row"], e["reason"], 0 if e["row"] else n) for n, e in enumerate(refused.rows)})
    for row, reason, _ in rows[:NAMED]:
        print(f"left out: {refused.source}, row {row}: {reason}", file=sys.stderr)
    if len(rows) > NAMED:
        print(f"left out: {len(rows)} rows in all", file=sys.stderr)
