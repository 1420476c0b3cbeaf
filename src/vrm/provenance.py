"""What a result was made from: commit, configuration, locked packages, machine, and the files that the stage read.

* Files stand with their hashes and row counts, tokenizers with their chat templates. Two results can be compared where
  these agree.
* Cheap to import, so that every command can afford it: no package of the stack is loaded, their versions are read from
  the installed metadata.
* Environment variables are never recorded; they hold secrets.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vrm import __version__

if TYPE_CHECKING:
    from vrm.config import Config, Source

OWN_FILE = "src/vrm/provenance.py"
"""This file, in the package's repository."""

PACKAGES = (
    "vrm",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "tokenizers",
    "numpy",
    "pandas",
    "snakemake",
)


def provenance(config_text: str, repository: Path, extra: dict[str, Any]) -> dict[str, Any]:
    """The record that stands beside a result as `provenance.json`.

    Args:
        config_text: the resolved configuration, as `config.dump` writes it.
        repository: where the package's repository would be; its `requirements.lock` is hashed.
        extra: what only the caller knows: seed, device, data revision, tokenizer and chat-template hash.

    Returns:
        A mapping ready for `records.write_json`. `commit` and `dirty` are None outside the package's own repository
        (an installed package may lie in somebody else's); `version` then says which code it was.
        `lock_sha256` is None without a lock file, and a package that is not installed has the version None.

    Raises:
        ValueError: `extra` would overwrite a field of the record.
    """
    lock = Path(repository) / "requirements.lock"
    record: dict[str, Any] = {
        "version": __version__,
        **_git_state(Path(repository)),
        "config_sha256": hashlib.sha256(config_text.encode()).hexdigest(),
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    taken = sorted(set(record) & set(extra))
    if taken:
        raise ValueError(f"provenance: extra may not overwrite {', '.join(taken)}")
    return record | extra


def _git_state(repository: Path) -> dict[str, Any]:
    commit = _git(repository, "rev-parse", "HEAD") if _is_own(repository) else None
    changes = _git(repository, "status", "--porcelain") if commit else None
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _is_own(repository: Path) -> bool:
    """Whether a git repository begins here that tracks this package's source."""
    root = _git(repository, "rev-parse", "--show-toplevel")
    if not root or Path(root).resolve() != repository.resolve():
        return False
    return _git(repository, "ls-files", "--error-unmatch", OWN_FILE) is not None


def _git(repository: Path, *arguments: str) -> str | None:
    """Output of a git command; None without git, outside a repository, or before the first commit."""
    command = ["git", "-C", str(repository), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


NOT_READ = ("config", "out", "checkpoints", "results")
"""Options that name something else than an input; what was read of `results` is told by `run`."""

ORIGIN = ("commit", "dirty", "config_sha256", "lock_sha256")
"""What two provenance records share if their results come from the same code, configuration and packages."""

REPORT = ("table", "figure", "explorer")
"""Stages that nothing is made from but the page of the paper's claims."""

CHUNK = 1 << 20


def inputs(arguments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the arguments of a command name and what lies there, by path: see `describe`.

    Args:
        arguments: options by name; a value may be a path, text that is one, or a list of them (also `name=path`).
    """
    found = {}
    for name, value in arguments.items():
        if name in NOT_READ:
            continue
        for entry in value if isinstance(value, list) else [value]:
            path = Path(entry.split("=", 1)[-1]) if isinstance(entry, str) else entry
            if isinstance(path, Path) and path.exists():
                found[str(path)] = describe(path)
    return found


def describe(path: Path) -> dict[str, Any]:
    """A file's `sha256`, and its `rows` if it is JSON lines; of a directory, its files so described, or its tokenizer.

    A model's weights are not hashed: they follow from the commit, the configuration and the inputs of the stage that
    made them, whose record stands beside them.
    """
    path = Path(path)
    if path.is_file():
        return _file(path)
    if (path / "config.json").is_file():
        return tokenizer(path)
    return {str(file.relative_to(path)): _file(file) for file in sorted(path.glob("*.json*")) if file.is_file()}


def tokenizer(directory: Path) -> dict[str, Any]:
    """`tokenizer_sha256` and `chat_template_sha256` of a model directory; None where it has none."""
    template = directory / "chat_template.jinja"
    if template.is_file():
        text = template.read_text(encoding="utf-8")
    else:
        settings = directory / "tokenizer_config.json"
        text = json.loads(settings.read_text(encoding="utf-8")).get("chat_template") if settings.is_file() else None
    text = json.dumps(text) if text is not None and not isinstance(text, str) else text  # several named templates
    vocabulary = directory / "tokenizer.json"
    return {
        "tokenizer_sha256": _sha256(vocabulary) if vocabulary.is_file() else None,
        "chat_template_sha256": None if text is None else hashlib.sha256(text.encode()).hexdigest(),
    }


def data(config: Config) -> dict[str, Any]:
    """Where scored prompts and evaluation sets come from, and in which revision."""
    sets = {name: _source(config.evaluation.sets[name]) for name in config.evaluation.run}
    return {"label": config.data.label, "scored": _source(config.data), "evaluation": sets}


def outside(config: Config, arguments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Outside reward models that a command reads, by name: what the configuration says, and what a directory holds.

    Args:
        config: names them.
        arguments: options of the command: `outside`, `models`, or a `method` that is paid by one.
    """
    known, method = config.reward.outside, config.policy.methods.get(arguments.get("method") or "")
    asked = [text.split(":")[0] for text in arguments.get("models") or []]
    named = [arguments.get("outside"), getattr(method, "reward", None), *asked]
    found = {name: known[name] for name in named if name in known}
    return {
        name: model.model_dump(mode="json")
        | {"files": {path.name: _sha256(path) for path in sorted(Path(model.path).glob("*.*")) if path.is_file()}}
        for name, model in found.items()
    }


def judge(config: Config) -> dict[str, Any] | None:
    """Who judges; never a key."""
    if config.judge is None:
        return None
    return {"model": config.judge.model, "endpoint": config.judge.base_url or config.judge.serve}


def run(results: Path) -> dict[str, Any]:
    """Of a whole run: where its parts come from, its rows from raw records to pairs, the tokenizers of its models.

    Args:
        results: the run's directory; what is not there is left out.

    Returns:
        `made_from` and `report`, the origins of the stages and of the tables, figures and pages that lie there (see
        `origins`; only the page of the paper's claims is made from the latter), `rows` and `tokenizers`.
    """
    rows = {name: _json(results / "data" / f"{name}.json") for name in ("counts", "pair_counts")}
    tokenizers: dict[tuple[str | None, ...], list[str]] = {}
    for model in sorted([*results.glob("reward/*/seed*/model"), *results.glob("policy/*/*/seed*/model")]):
        hashes = tokenizer(model)
        tokenizers.setdefault(tuple(hashes.values()), []).append(str(model.relative_to(results)))
    names = ("tokenizer_sha256", "chat_template_sha256")
    return {
        **origins(results),
        "rows": {name: value for name, value in rows.items() if value is not None},
        "tokenizers": [{**dict(zip(names, key, strict=True)), "models": found} for key, found in tokenizers.items()],
    }


def origins(results: Path) -> dict[str, list[dict[str, Any]]]:
    """The provenance records below a directory, those of one origin in one entry: several entries are a mixed run.

    Returns:
        `made_from`, of all stages but those of `REPORT`, and `report`, of these. Each has by origin, the most frequent
        one first: the fields of `ORIGIN`; `stages`, how many records of each stage; `records_sha256`, over the paths
        and bytes of those records, so that two runs can be compared.
    """
    found: dict[str, dict[tuple[Any, ...], tuple[Counter[str], Any]]] = {"made_from": {}, "report": {}}
    for path, content in _records(Path(results)):
        record = json.loads(content)
        stage, origin = record["stage"], tuple(record[name] for name in ORIGIN)
        group = found["report" if stage in REPORT else "made_from"]
        counts, digest = group.setdefault(origin, (Counter(), hashlib.sha256()))
        counts[stage] += 1
        digest.update(f"{path.relative_to(results)}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return {name: _entries(group) for name, group in found.items()}


def _entries(group: Mapping[tuple[Any, ...], tuple[Counter[str], Any]]) -> list[dict[str, Any]]:
    entries = [
        dict(zip(ORIGIN, origin, strict=True))
        | {"stages": dict(sorted(counts.items())), "records_sha256": digest.hexdigest()}
        for origin, (counts, digest) in group.items()
    ]
    return sorted(entries, key=lambda entry: -sum(entry["stages"].values()))  # equal counts stay in the order of paths


def _records(results: Path) -> Iterator[tuple[Path, bytes]]:
    """Paths and bytes of the provenance records, sorted; other jobs of the run may remove files meanwhile."""
    found = (Path(folder) / name for folder, _, names in os.walk(results) for name in names)
    for path in sorted(path for path in found if path.name.endswith(".provenance.json")):
        try:
            yield path, path.read_bytes()
        except FileNotFoundError:
            continue


def _source(source: Source) -> dict[str, Any]:
    if source.hub is not None:
        return source.hub.model_dump(mode="json")
    path = Path(source.path)
    return {"path": source.path, **(_file(path) if path.is_file() else {})}


def _file(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = {"sha256": _sha256(path)}
    if path.suffix == ".jsonl":
        with open(path, "rb") as handle:
            record["rows"] = sum(1 for line in handle if line.strip())
    return record


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
