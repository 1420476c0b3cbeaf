"""The store of replies: what is written is read, by whoever; what a dying writer leaves is set aside."""

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from paths import ROOT

from vrm.judging import Reply, Store, StoreError, Unanswered, Unusable, Usage
from vrm.judging.store import Replies

USAGE = Usage(3, 4)


def reply(key, text="yes"):
    return Reply(key, "arena_hard", text, USAGE)


def test_reads_back_exactly_what_was_written(tmp_path):
    odd = Reply(
        "k",
        "b",
        'quo"te\n\u2028\x00 \ud800 é',
        Usage(1, 2, True),
        "length",
        "m",
        [{"token": "\ud83d", "logprob": -0.1}],
    )
    entries = [odd, Unusable("k2", "b", "no text", USAGE, "{}"), Unanswered("k3", "b", "timed out", USAGE)]
    store = Store(tmp_path)
    for entry in entries:
        store.append(entry)
    assert store.entries() == Store(tmp_path).entries() == entries
    assert Store(tmp_path).find("k") == odd
    assert Store(tmp_path).find("k2") is None


def test_sees_what_another_store_writes_and_keeps_the_first_reply(tmp_path):
    one, other = Store(tmp_path), Store(tmp_path)
    one.append(reply("k", "first"))
    assert other.find("k").text == "first"
    other.append(reply("k", "second"))
    assert one.find("k").text == "first"


@pytest.mark.parametrize("cut", [1, 2, 20, 60])
def test_a_torn_line_is_set_aside_and_counted(tmp_path, cut):
    store = Store(tmp_path)
    store.append(reply("a"))
    store.append(reply("b"))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-cut])
    store = Store(tmp_path)
    assert (store.find("b"), store.damaged) == (None, 0)  # it may still be growing
    store.append(reply("c"))
    # a line that lacks nothing but its end is whole
    assert (store.find("b") is not None, store.damaged) == ((True, 0) if cut == 1 else (False, 1))
    assert [Store(tmp_path).find(key) is not None for key in "ac"] == [True, True]
    assert Store(tmp_path).damaged == store.damaged


@pytest.mark.parametrize(
    "line", [b"\x00\x00\x00", b"[]", b'{"kind": "reply"}', b'{"kind": "else", "usage": {}}', b"\xff"]
)
def test_a_line_that_is_no_entry_is_counted(tmp_path, line):
    Store(tmp_path).path.write_bytes(line + b"\n")
    assert (Store(tmp_path).damaged, Store(tmp_path).entries()) == (1, [])


def test_a_file_that_shrinks_is_an_error(tmp_path):
    store = Store(tmp_path)
    store.append(reply("a"))
    store.path.write_bytes(b"")
    with pytest.raises(StoreError, match="may only grow"):
        store.find("a")


def test_a_place_that_is_no_directory_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="not usable as a store"):
        Store(tmp_path / "file")


def test_whoever_only_looks_sees_all_that_comes_and_leaves_no_trace(tmp_path):
    directory = tmp_path / "store"
    looking = Replies(directory)
    assert (looking.find("k"), looking.entries(), looking.count("k")) == (None, [], 0)
    assert not directory.exists()
    Store(directory).append(reply("k"))
    assert looking.find("k").text == "yes"
    (directory / "held" / "gone").write_text('{"benchmark": "b", "most": {}, "entries": 0}')  # of a dead process
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert Replies(directory).entries() == [reply("k")]
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    looking.path.write_bytes(b"")
    with pytest.raises(StoreError, match="may only grow"):
        looking.find("k")
    looking.path.unlink()
    looking.path.mkdir()
    with pytest.raises(StoreError, match=r"replies\.jsonl: can't be read .*; correct judge\.store"):
        Replies(directory)


def test_one_holder_at_a_time_among_stores_and_threads(tmp_path):
    stores, holders, most = [Store(tmp_path), Store(tmp_path)], [0], [0]

    def hold(store):
        for _ in range(40):
            with store.reserve("k") as mine:
                if mine:
                    holders[0] += 1
                    most[0] = max(most[0], holders[0])
                    time.sleep(0.0005)
                    holders[0] -= 1

    threads = [threading.Thread(target=hold, args=[store]) for store in stores * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert not list((tmp_path / "held").iterdir())


def test_the_lock_of_a_file_that_was_removed_meanwhile_does_not_count(tmp_path, monkeypatch):
    store, flock = Store(tmp_path), fcntl.flock

    def lock_after_the_last_holder_left(descriptor, operation):
        flock(descriptor, operation)
        (tmp_path / "held" / "k").unlink()

    monkeypatch.setattr(fcntl, "flock", lock_after_the_last_holder_left)
    with store.reserve("k") as mine:
        assert mine is None


def _hold_and_wait(directory, sent, ready):
    store = Store(directory)
    with store.reserve("k") as mine:
        if sent:
            mine.sending("mt_bench", Usage(5, 100, True), store.count("k"))
        ready.set()
        time.sleep(60)


@pytest.mark.parametrize("sent", [True, False])
def test_a_dead_holder_blocks_nobody_and_its_request_is_accounted_for(tmp_path, sent):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold_and_wait, args=(tmp_path, sent, ready))
    holder.start()
    assert ready.wait(10)
    store = Store(tmp_path)
    with store.reserve("k") as mine:
        assert mine is None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with store.reserve("k") as mine:
        assert mine is not None
    lost = [Unanswered("k", "mt_bench", "lost with its process", Usage(5, 100, True))] if sent else []
    assert store.entries() == Store(tmp_path).entries() == lost


WRITER = """
import sys
from vrm.judging import Reply, Store, Usage
store = Store(sys.argv[1])
for i in range(100000):
    store.append(Reply(f"{sys.argv[2]}-{i}", "b", "x" * 3000, Usage(i, i)))
    print(i, flush=True)
"""


def test_nothing_that_was_confirmed_is_lost_when_writers_are_killed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True, env=environment) for i in range(3)
    ]
    for writer in writers:
        writer.stdout.readline()
    time.sleep(0.15)
    confirmed = {}
    for name, writer in enumerate(writers):
        writer.kill()
        confirmed[name] = [0, *(int(line) for line in writer.communicate()[0].split("\n")[:-1])]
    store = Store(tmp_path)
    store.append(reply("last"))
    for name, numbers in confirmed.items():
        assert all(store.find(f"{name}-{i}").usage == Usage(i, i) for i in numbers)
    entries = store.entries()
    assert len({entry.key for entry in entries}) == len(entries)
    assert all(entry.text == "x" * 3000 for entry in entries[:-1])
    assert len(entries) + store.damaged == len(store.path.read_bytes().splitlines())


def test_files_of_others_beside_reservations_stay(tmp_path):
    theirs = tmp_path / "held" / "thesis.tex"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    ours = tmp_path / "held" / ("0" * 64)
    ours.write_text("")
    Store(tmp_path)
    assert theirs.read_text() == "mine"
    assert not ours.exists()


def no_room(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("write", [no_room, lambda *_: 1])
def test_a_request_does_not_go_out_where_there_is_no_room_to_note_it(tmp_path, monkeypatch, write):
    store = Store(tmp_path)
    monkeypatch.setattr(os, "pwrite", write)
    with store.reserve("a" * 64) as held, pytest.raises(StoreError, match=r"can't be noted \(.*\); make room"):
        held.sending("arena_hard", Usage(1, 2), 0)
