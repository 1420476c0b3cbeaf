"""Finished batches outlive a kill, whole or not at all."""

import pytest

from vrm.data.benchmark_sets import Answer
from vrm.generation.answers import SavedAnswers

BATCHES = {
    "a/turn 1/batch 1": [Answer("one\nline\r\u2028 \ud800", 5, True), Answer("", 0, False)],
    "a/turn 1/batch 2": [Answer('say "é"', 3, True)],
    "a/turn 2/batch 1": [],
}


@pytest.fixture
def path(tmp_path):
    with SavedAnswers(tmp_path / "answers.jsonl", 1) as saved:
        for name, answers in BATCHES.items():
            saved.add(name, answers)
    return tmp_path / "answers.jsonl"


def found(path):
    saved = SavedAnswers(path, 1)
    batches = {name: saved.find(name) for name in BATCHES}
    assert len(saved) == sum(len(answers or []) for answers in batches.values())
    return batches


def test_what_was_saved_is_found_again(path):
    assert found(path) == BATCHES


def test_a_torn_line_costs_its_batch_and_no_other(path):
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        lines = sum(end <= size for end in ends)
        assert found(path) == {name: BATCHES[name] if i < lines else None for i, name in enumerate(BATCHES)}
        with SavedAnswers(path, 1) as saved:
            for name, answers in BATCHES.items():
                if saved.find(name) is None:
                    saved.add(name, answers)
        assert path.read_bytes() == whole


def test_answers_are_written_when_there_are_enough_or_at_an_error(tmp_path):
    path, answer = tmp_path / "answers.jsonl", Answer("text", 1, True)
    saved, written = SavedAnswers(path, 5), []
    for number in range(4):
        saved.add(f"batch {number}", [answer, answer])
        written.append(len(path.read_bytes().splitlines()))
    assert written == [0, 0, 3, 3]
    with pytest.raises(RuntimeError), saved:
        raise RuntimeError
    assert len(path.read_bytes().splitlines()) == 4
