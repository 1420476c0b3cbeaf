"""The stage `vrm benchmark-set`: one judged benchmark's files, fetched or the user's, checked and copied whole.

* A file is official where its sha256 is the known one. Others are taken too, and `files.json` says so: a set of one's
  own is a use, not an error.
* Fetched is only what has a known hash. A download with another hash is thrown away.
* Downloads are kept in the user's cache by hash, since Snakemake deletes a rule's outputs before it runs again.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vrm.config import ConfigError
from vrm.config.benchmarks import BenchmarkName, BenchmarksConfig
from vrm.data import benchmark_sets
from vrm.data.benchmark_sources import source_of
from vrm.records import RecordError, write_json, write_whole

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
"""HTTP statuses that another try may mend."""


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
            (out / path).unlink(missing_ok=True)  # of an earlier run, when the optional file was still there
    records = []
    for path, origin in found.items():
        content = origin.read_bytes()
        write_whole(out / path, content)
        records.append(_record(name, path, content, None if benchmarks_dir is None else origin))
    questions = _check(name, settings, out)
    write_json(out / "files.json", {"benchmark": name, "questions": questions, "files": records})
    official = sum(record["official"] is True for record in records)
    print(f"{name}: {questions} questions; files known to be the official ones: {official} of {len(records)}")


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
        with tqdm(total=length or None, desc=url.rsplit("/", 1)[-1], unit="B", unit_scale=True) as progress:
            while part := reply.read(CHUNK):
                parts.append(part)
                progress.update(len(part))
    content = b"".join(parts)
    if len(content) < length:
        raise OSError(f"it ended after {len(content)} of {length} bytes")
    return content
