"""The judged benchmarks' official files: where each comes from, and the stage `vrm benchmark-set` that gets them.

* A file's source is an address at a pinned revision, a hash and a licence. A hash stands here only where we had the
  file's bytes in hand; docs/data.md says for each how far we could compare them with upstream's.
* Fetched is only what has a known hash. A download with another hash is thrown away.
* A file is official where its sha256 is the known one. Others are taken too, and `files.json` says so: a set of one's
  own is a use, not an error.
* Downloads are kept in the user's cache by hash, since Snakemake deletes a rule's outputs before it runs again.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrm.config import ConfigError
from vrm.config.benchmarks import BenchmarkName, BenchmarksConfig
from vrm.data import benchmark_sets
from vrm.records import RecordError, write_json, write_whole
from vrm.watch import Watch

ALPACA = "https://raw.githubusercontent.com/tatsu-lab/alpaca_eval/25be1b6c406f339fe1e362bbe2b3f2720b946511/results"

ALPACA_HUB = "https://huggingface.co/datasets/tatsu-lab/alpaca_eval/resolve/2edc6fad8be6b14ea7230aabfd08188da6b8b814"

ARENA = "https://raw.githubusercontent.com/lmarena/arena-hard-auto"

ARENA_DATA = f"{ARENA}/e0a8ea1df42c1df76451a6cd04b14e31ff992b87/data/arena-hard-v0.1"

FASTCHAT = "https://raw.githubusercontent.com/lm-sys/FastChat"

FASTCHAT_DATA = f"{FASTCHAT}/v0.2.36/fastchat/llm_judge/data"  # a tag can be moved; the hash would tell

FASTCHAT_QUESTIONS = f"{FASTCHAT}/589532dcfa83700f950b9aa3983416c543afabc0/fastchat/llm_judge/data"

ALPACA_LICENCE = "CC BY-NC 4.0 (the README's data licence; code Apache-2.0)"

ARENA_LICENCE = "Apache-2.0 (as recorded with our test copy; not verified)"

FASTCHAT_LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class BenchmarkSource:
    """One official file.

    Args:
        holds: what it should hold, for messages.
        url: its address; "" where there is no pinned one.
        sha256: of its bytes; "" where it isn't known.
        licence: as upstream states it.
    """

    holds: str
    url: str = ""
    sha256: str = ""
    licence: str = "not known"


GPT4_PREVIEW = BenchmarkSource(
    "AlpacaEval 2's 805 instructions with gpt4_1106_preview's answers",
    f"{ALPACA}/gpt4_1106_preview/model_outputs.json",
    "83db546b872ddebee8965fd05fa48461ee3c32bc695c62fb57f2d214ff741ec4",
    ALPACA_LICENCE,
)

SOURCES: dict[str, BenchmarkSource] = {
    "alpaca_eval/reference_outputs.json": GPT4_PREVIEW,
    "alpaca_eval/gpt4_1106_preview/model_outputs.json": GPT4_PREVIEW,
    "alpaca_eval/gpt-4o-2024-05-13/model_outputs.json": BenchmarkSource(
        "gpt-4o-2024-05-13's answers to the 805 instructions",
        f"{ALPACA}/gpt-4o-2024-05-13/model_outputs.json",
        licence=ALPACA_LICENCE,
    ),
    "alpaca_eval/df_gamed.csv": BenchmarkSource(
        "the instructions' difficulties, for the length-controlled win rate",
        f"{ALPACA_HUB}/df_gamed.csv",
        "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d",
        ALPACA_LICENCE,
    ),
    "arena_hard_v0.1/question.jsonl": BenchmarkSource(
        "Arena-Hard v0.1's 500 prompts",
        f"{ARENA_DATA}/question.jsonl",
        "4daad38811161c3ba5c248f26b90c3cef89634f4c772002ed9138c1e13f63e9f",
        ARENA_LICENCE,
    ),
    "arena_hard_v0.1/model_answer/gpt-4-0314.jsonl": BenchmarkSource(
        "gpt-4-0314's answers to Arena-Hard v0.1, the benchmark's own baseline",
        f"{ARENA_DATA}/model_answer/gpt-4-0314.jsonl",
        "245109b8fe7c3bef0304f1c559d29da377f97f61535ad1170b46a61a08eb9ac7",
        ARENA_LICENCE,
    ),
    "arena_hard_v0.1/model_answer/gpt-4-1106-preview.jsonl": BenchmarkSource(
        "gpt-4-1106-preview's answers to Arena-Hard v0.1 (hub dataset lmarena-ai/arena-hard-auto)",
        licence=ARENA_LICENCE,
    ),
    "arena_hard_v0.1/judge_config.yaml": BenchmarkSource(
        "Arena-Hard v0.1's judge prompt: system_prompt and prompt_template",
        f"{ARENA}/7f1b7f5dd6ce53e1f8530220ceb452b7019a8056/config/judge_config.yaml",
        "8f6e2a641676ae1453ae6be149b549d92b739564a23a8db27b86c50999fa607e",
        ARENA_LICENCE,
    ),
    "mt_bench/question.jsonl": BenchmarkSource(
        "MT-Bench's 80 questions of two turns",
        f"{FASTCHAT_QUESTIONS}/mt_bench/question.jsonl",
        "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
        FASTCHAT_LICENCE,
    ),
    "mt_bench/judge_prompts.jsonl": BenchmarkSource(
        "FastChat's judge prompts, the four of single-answer grading among them",
        f"{FASTCHAT_DATA}/judge_prompts.jsonl",
        "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
        FASTCHAT_LICENCE,
    ),
    "mt_bench/reference_answer/gpt-4.jsonl": BenchmarkSource(
        "gpt-4's answers to MT-Bench's math, reasoning and coding questions",
        f"{FASTCHAT_DATA}/mt_bench/reference_answer/gpt-4.jsonl",
        "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
        FASTCHAT_LICENCE,
    ),
}
"""By path below `data.benchmarks_dir`."""


def source_of(path: str) -> BenchmarkSource:
    """Where the file at `path` below `data.benchmarks_dir` comes from; for another model's answers, what it holds."""
    return SOURCES.get(path) or BenchmarkSource("the model's answers in the benchmark's own format (docs/data.md)")


FOLDERS: dict[BenchmarkName, str] = {
    "alpaca_eval": "alpaca_eval",
    "arena_hard": "arena_hard_v0.1",
    "mt_bench": "mt_bench",
}
"""Directory below `data.benchmarks_dir`, by benchmark."""

TRIES = 4

TIMEOUT = 60.0  # seconds without a byte

BACKOFF = 2.0  # seconds before the second try; doubles

CHUNK = 1 << 16  # bytes

TRANSIENT = (408, 429, 500, 502, 503, 504)
"""HTTP statuses after which another try may succeed."""


def prepare(name: BenchmarkName, settings: BenchmarksConfig, benchmarks_dir: Path | None, out: Path) -> None:
    """Fill `out` with one benchmark's files, named as below its directory, and with `files.json`.

    Args:
        name: `alpaca_eval`, `arena_hard` or `mt_bench`.
        settings: say whose answers are needed.
        benchmarks_dir: the user's directory, laid out as docs/data.md says; None: fetch the official files.
        out: directory.

    Raises:
        ConfigError: files are missing, have no known hash, or can't be fetched.
        RecordError: a file can't be used as the configuration says, or a download has the wrong hash.
    """
    wanted = _wanted(name, settings)
    found = _fetched(name, settings) if benchmarks_dir is None else _given(name, settings, wanted, benchmarks_dir)
    for path in wanted:
        if path not in found:
            _remove_earlier(out, path)
    records = []
    for path, origin in found.items():
        content = origin.read_bytes()
        write_whole(out / path, content)
        records.append(_record(name, path, content, None if benchmarks_dir is None else origin))
    questions = _check(name, settings, out)
    write_json(out / "files.json", {"benchmark": name, "questions": questions, "files": records})
    official = sum(record["official"] is True for record in records)
    print(f"{name}: {questions} questions; files known to be the official ones: {official} of {len(records)}")


def _remove_earlier(out: Path, name: str) -> None:
    """Remove an optional file that an earlier run has put here; it would be taken for a part of this set.

    Raises:
        RecordError: `files.json` does not say that we have put it here.
    """
    path = out / name
    if not path.is_file():
        return
    try:
        records = json.loads((out / "files.json").read_text(encoding="utf-8"))["files"]
        ours = hashlib.sha256(path.read_bytes()).hexdigest() in [r["sha256"] for r in records if r["name"] == name]
    except (OSError, ValueError, TypeError, KeyError):
        ours = False
    if not ours:
        raise RecordError(
            f"{path}: vrm did not put it here, and it would be taken for a part of this benchmark; move it away, or "
            "give another --out"
        )
    path.unlink()


def _wanted(name: str, settings: BenchmarksConfig) -> list[str]:
    """Names of the benchmark's files below its directory."""
    if name == "alpaca_eval":
        generators = sorted(set(settings.alpaca_eval.references.values()))
        return ["reference_outputs.json", *(_outputs(generator) for generator in generators), "df_gamed.csv"]
    if name == "arena_hard":
        return ["question.jsonl", f"model_answer/{settings.arena_hard.baseline}.jsonl", "judge_config.yaml"]
    references = settings.mt_bench.references
    return ["question.jsonl", "judge_prompts.jsonl", f"reference_answer/{references}.jsonl"]


def _outputs(generator: str) -> str:
    return f"{generator}/model_outputs.json"


def _check(name: str, settings: BenchmarksConfig, directory: Path) -> int:
    """Read everything as the later stages will; returns the number of questions."""
    if name == "alpaca_eval":
        for base in (*settings.alpaca_eval.references, ""):  # "": a base without an entry
            rows = benchmark_sets.read_alpaca_eval(directory, base, settings.alpaca_eval)
        return len(rows)
    if name == "arena_hard":
        benchmark_sets.read_arena_judge_prompt(directory)
        return len(benchmark_sets.read_arena_baseline(directory, settings.arena_hard))
    benchmark_sets.read_mt_judge_prompts(directory)
    benchmark_sets.read_mt_references(directory, settings.mt_bench.references)
    return len(benchmark_sets.read_mt_bench(directory))


def _given(name: str, settings: BenchmarksConfig, wanted: list[str], benchmarks_dir: Path) -> dict[str, Path]:
    """The user's files by name, checked in their own place so that errors name them."""
    directory = benchmarks_dir / FOLDERS[name]
    found = {path: directory / path for path in wanted if (directory / path).is_file()}
    missing = [path for path in wanted if path not in found and not _spared(path, directory)]
    if missing:
        lines = [_describe(directory / path, FOLDERS[name], path) for path in missing]
        raise ConfigError(
            "data.benchmarks_dir lacks files:" + "".join(lines) + "\nput them there; docs/data.md has the layout"
        )
    _check(name, settings, directory)
    return found


def _spared(path: str, directory: Path) -> bool:
    """Whether one can do without: LC's file, and answers that reference_outputs.json holds already."""
    if path == "df_gamed.csv":
        return True
    is_there = (directory / "reference_outputs.json").is_file()
    generator = path.removesuffix("/model_outputs.json")
    return generator != path and is_there and benchmark_sets.stands_in(directory, generator)


def not_fetchable(name: str, settings: BenchmarksConfig) -> list[str]:
    """The benchmark's files that have no pinned hash: they can only be given in `data.benchmarks_dir`."""
    return [path for path in _wanted(name, settings) if not source_of(f"{FOLDERS[name]}/{path}").sha256]


def _fetched(name: str, settings: BenchmarksConfig) -> dict[str, Path]:
    """The official files by name, in the cache; nothing is fetched where one of them can't be."""
    folder, wanted = FOLDERS[name], _wanted(name, settings)
    unknown = not_fetchable(name, settings)
    if unknown:
        lines = [_describe(Path(folder) / path, folder, path) for path in unknown]
        raise ConfigError(
            "no pinned hash, so that these can't be fetched:"
            + "".join(lines)
            + "\ndownload them yourself into a directory laid out as docs/data.md says, with the benchmark's other "
            "files, and name it in data.benchmarks_dir"
        )
    return {path: fetch(source_of(f"{folder}/{path}").url, source_of(f"{folder}/{path}").sha256) for path in wanted}


def _describe(path: Path, folder: str, name: str) -> str:
    source = source_of(f"{folder}/{name}")
    return f"\n  {path}: {source.holds}; from {source.url or 'no pinned address'}"


def _record(name: str, path: str, content: bytes, origin: Path | None) -> dict[str, Any]:
    """What `files.json` says of a file; `official` is None where the official file's hash isn't known.

    Where the bytes are not known to be the official ones, nothing is said of their licence.
    """
    source, sha256 = source_of(f"{FOLDERS[name]}/{path}"), hashlib.sha256(content).hexdigest()
    official = sha256 == source.sha256 if source.sha256 else None
    return {
        "name": path,
        "sha256": sha256,
        "bytes": len(content),
        "source": source.url if official else str(origin),
        "licence": source.licence if official else None,
        "official": official,
    }


def fetch(url: str, sha256: str) -> Path:
    """A file in the user's cache whose hash is `sha256`, downloaded where it isn't there yet.

    Args:
        url: its address.
        sha256: of its bytes.

    Raises:
        ConfigError: it can't be had.
        RecordError: what comes has another hash; nothing is kept.
    """
    path = cache() / sha256
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return path
    for number in range(1, TRIES + 1):
        try:
            content = _download(url)
            break
        except (OSError, http.client.HTTPException) as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code not in TRANSIENT
            if final or number == TRIES:
                raise ConfigError(
                    f"{url}: can't be fetched ({error}); without a network, put the benchmark's files into a directory "
                    "laid out as docs/data.md says, and name it in data.benchmarks_dir"
                ) from None
            time.sleep(BACKOFF * 2 ** (number - 1))
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise RecordError(
            f"{url}: its sha256 is {found}, expected was {sha256}; nothing was kept. If upstream's file has changed, "
            "give the one that you trust through data.benchmarks_dir"
        )
    write_whole(path, content)
    return path


def cache() -> Path:
    """Directory of downloads: `vrm/benchmarks` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vrm" / "benchmarks"


def _download(url: str) -> bytes:
    """The whole body; OSError where it ends early."""
    request = urllib.request.Request(url, headers={"User-Agent": "vrm"})
    parts: list[bytes] = []
    with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
        length = int(reply.headers.get("Content-Length") or 0)
        with Watch(url.rsplit("/", 1)[-1], "bytes", length or None) as watch:
            while part := reply.read(CHUNK):
                parts.append(part)
                watch.add(len(part))
    content = b"".join(parts)
    if len(content) < length:
        raise OSError(f"it ended after {len(content)} of {length} bytes")
    return content
