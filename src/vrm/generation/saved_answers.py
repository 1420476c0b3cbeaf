"""Answers of a job that may be killed: an append-only file of finished batches.

One line a batch, `{"batch": <name>, "answers": [[text, tokens, ended], ...]}`, so that a batch is there as a whole or
not at all. A killed writer may leave a torn line at the end; it is cut off, and its batch is generated again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Self

from vrm.generation.answer_files import Answer


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
        os.truncate(path, whole)
        self._unsaved: dict[str, list[Answer]] = {}

    def __len__(self) -> int:
        """Answers that are here."""
        return _count(self._batches)

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
        lines = [json.dumps({"batch": batch, "answers": answers}) + "\n" for batch, answers in self._unsaved.items()]
        with open(self._path, "ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self._unsaved = {}


def _count(batches: dict[str, list[Answer]]) -> int:
    return sum(map(len, batches.values()))


def _read(path: Path) -> tuple[dict[str, list[Answer]], int]:
    """The batches of the file's whole lines, and the number of bytes that these take."""
    batches: dict[str, list[Answer]] = {}
    whole = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        batches[row["batch"]] = [Answer(*answer) for answer in row["answers"]]
        whole += len(line)
    return batches, whole
