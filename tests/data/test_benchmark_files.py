"""The stage `vrm benchmark-set`: from a directory, or from a server on loopback that stands for upstream."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from paths import ROOT

from vrm.config import ConfigError, WorldConfig
from vrm.config.benchmarks import AlpacaEval, ArenaHard, BenchmarksConfig, MtBench
from vrm.data import benchmark_files
from vrm.data.benchmark_files import FOLDERS, SOURCES, BenchmarkSource, fetch, prepare
from vrm.records import RecordError
from vrm.world.evaluation_sets import ARENA_CONFIG, write_benchmarks

WORLD = BenchmarksConfig(
    arena_hard=ArenaHard(baseline="world-baseline", token_counter="words"),
    mt_bench=MtBench(references="world-reference"),
)
TEXT = b"Do not go gentle into that good night.\n" * 4000  # several chunks


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The world's files, a few of each: not to be changed."""
    out = tmp_path_factory.mktemp("world")
    config = WorldConfig(prompts=20, evaluation_prompts=4, instructions=6, arena_prompts=5, mt_bench_questions=8)
    write_benchmarks(config, out)
    return out


@pytest.fixture
def given(world, tmp_path) -> Path:
    """A copy of them that may be changed."""
    return Path(shutil.copytree(world, tmp_path / "given"))


class Upstream:
    """A server on loopback: what it sends by path, and what it was asked."""

    def __init__(self) -> None:
        self.replies: dict[str, list[tuple[int, bytes, int]]] = {}
        self.asked: list[str] = []
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                upstream.asked.append(self.path)
                replies = upstream.replies.get(self.path, [(404, b"", 0)])
                status, body, short = replies.pop(0) if len(replies) > 1 else replies[0]
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) - short])

            def log_message(self, *_) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def serve(self, path: str, *replies: tuple[int, bytes, int]) -> str:
        """Send these replies in turn, the last one for good: status, body, and how many of its bytes to keep back."""
        self.replies[path] = list(replies)
        return self.url + path

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def upstream(tmp_path, monkeypatch) -> Iterator[Upstream]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(benchmark_files, "BACKOFF", 0.0)
    server = Upstream()
    yield server
    server.stop()


@pytest.fixture
def pin(world, upstream, monkeypatch) -> Callable[[str], None]:
    """Pins the world's file at a path below the directory, as if it were the official one."""

    def pin(path: str) -> None:
        content = (world / path).read_bytes()
        url = upstream.serve(f"/{path}", (200, content, 0))
        monkeypatch.setitem(SOURCES, path, BenchmarkSource("it", url, sha(content), "CC0"))

    return pin


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def files_below(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


@pytest.mark.parametrize(("name", "questions"), [("alpaca_eval", 6), ("arena_hard", 5), ("mt_bench", 8)])
def test_a_directory_is_checked_and_copied_whole(world, tmp_path, name, questions):
    out = tmp_path / "sets" / name
    prepare(name, WORLD, world, out)
    manifest = json.loads((out / "files.json").read_text())
    assert (manifest["benchmark"], manifest["questions"]) == (name, questions)
    assert files_below(out) == sorted(["files.json", *(record["name"] for record in manifest["files"])])
    for record in manifest["files"]:
        origin = world / FOLDERS[name] / record["name"]
        content = (out / record["name"]).read_bytes()
        assert content == origin.read_bytes()
        assert (record["sha256"], record["bytes"]) == (sha(content), len(content))
        # the world's files are nobody's official ones, so that nothing is said of a licence
        assert (record["source"], record["licence"]) == (str(origin), None)
        assert record["official"] is not True
    before = (out / "files.json").read_bytes()
    prepare(name, WORLD, world, out)
    assert (out / "files.json").read_bytes() == before


def test_missing_files_are_all_named_with_what_they_hold_and_their_address(given, tmp_path):
    (given / "arena_hard_v0.1/judge_config.yaml").unlink()
    (given / "arena_hard_v0.1/question.jsonl").unlink()
    with pytest.raises(ConfigError) as error:
        prepare("arena_hard", WORLD, given, tmp_path / "out")
    for path in ("arena_hard_v0.1/judge_config.yaml", "arena_hard_v0.1/question.jsonl"):
        assert f"{given / path}: {SOURCES[path].holds}; from {SOURCES[path].url}" in str(error.value)
    assert "data.benchmarks_dir" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_can_not_be_read_is_named_where_the_user_has_it(given, tmp_path):
    (given / "mt_bench/question.jsonl").write_text("{}\n")
    with pytest.raises(RecordError, match=re.escape(f"{given}/mt_bench/question.jsonl, row 1: question_id is missing")):
        prepare("mt_bench", WORLD, given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_official_or_not_or_not_known(given, tmp_path, pin):
    pin("mt_bench/question.jsonl")
    (given / "mt_bench/judge_prompts.jsonl").write_text((given / "mt_bench/judge_prompts.jsonl").read_text() + "\n")
    prepare("mt_bench", WORLD, given, tmp_path / "out")
    records = {r["name"]: r for r in json.loads((tmp_path / "out/files.json").read_text())["files"]}
    official = {name: record["official"] for name, record in records.items()}
    assert official == {
        "question.jsonl": True,
        "judge_prompts.jsonl": False,
        "reference_answer/world-reference.jsonl": None,
    }
    assert records["question.jsonl"]["licence"] == "CC0"
    assert records["question.jsonl"]["source"].startswith("http://127.0.0.1")


def test_the_file_of_difficulties_is_optional_and_does_not_outlive_its_origin(given, tmp_path):
    gamed = given / "alpaca_eval/df_gamed.csv"
    gamed.write_text("gamed\n")
    prepare("alpaca_eval", WORLD, given, tmp_path / "out")
    assert (tmp_path / "out/df_gamed.csv").read_text() == "gamed\n"
    gamed.unlink()
    prepare("alpaca_eval", WORLD, given, tmp_path / "out")
    assert files_below(tmp_path / "out") == ["files.json", "reference_outputs.json"]


def test_a_file_that_we_did_not_put_there_is_not_removed(given, tmp_path):
    theirs = tmp_path / "out/df_gamed.csv"
    theirs.parent.mkdir()
    theirs.write_text("mine\n")
    with pytest.raises(RecordError, match="vrm did not put it here"):
        prepare("alpaca_eval", WORLD, given, tmp_path / "out")
    assert theirs.read_text() == "mine\n"


def test_a_directory_may_be_filled_in_place(given):
    before = files_below(given)
    prepare("mt_bench", WORLD, given, given / "mt_bench")
    assert files_below(given) == sorted([*before, "mt_bench/files.json"])


def test_references_of_a_base_need_a_file_unless_the_default_is_by_them(given, tmp_path):
    own = WORLD.model_copy(update={"alpaca_eval": AlpacaEval(references={"a": "world-authors"})})
    prepare("alpaca_eval", own, given, tmp_path / "out")
    other = WORLD.model_copy(update={"alpaca_eval": AlpacaEval(references={"a": "gpt-4o-2024-05-13"})})
    with pytest.raises(ConfigError, match=r"alpaca_eval/gpt-4o-2024-05-13/model_outputs\.json: .*; from https://"):
        prepare("alpaca_eval", other, given, tmp_path / "out")


def test_fetched_files_are_kept_in_the_cache(world, tmp_path, upstream, pin):
    for name in ("question.jsonl", "judge_prompts.jsonl", "reference_answer/world-reference.jsonl"):
        pin(f"mt_bench/{name}")
    prepare("mt_bench", WORLD, None, tmp_path / "out")
    assert len(upstream.asked) == 3
    manifest = json.loads((tmp_path / "out/files.json").read_text())
    assert {r["official"] for r in manifest["files"]} == {True}
    assert {r["source"] for r in manifest["files"]} == {upstream.url + path for path in upstream.asked}
    # Snakemake deletes outputs; the cache does without the network
    shutil.rmtree(tmp_path / "out")
    upstream.stop()
    prepare("mt_bench", WORLD, None, tmp_path / "out")
    assert json.loads((tmp_path / "out/files.json").read_text()) == manifest
    assert len(upstream.asked) == 3


def test_what_has_no_known_hash_is_not_fetched_and_neither_is_the_rest(tmp_path, upstream, pin):
    pin("mt_bench/question.jsonl")
    pin("mt_bench/judge_prompts.jsonl")
    with pytest.raises(ConfigError, match="no pinned hash") as error:
        prepare("mt_bench", WORLD, None, tmp_path / "out")
    assert "mt_bench/reference_answer/world-reference.jsonl" in str(error.value)
    assert "data.benchmarks_dir" in str(error.value)
    assert upstream.asked == []


def test_a_wrong_hash_names_both_and_nothing_is_kept(tmp_path, upstream):
    url = upstream.serve("/file", (200, TEXT, 0))
    with pytest.raises(RecordError) as error:
        fetch(url, sha(b"another"))
    assert sha(TEXT) in str(error.value)
    assert sha(b"another") in str(error.value)
    assert len(upstream.asked) == 1
    assert files_below(tmp_path) == []


def test_a_passing_fault_and_a_cut_body_are_tried_again(upstream):
    url = upstream.serve("/file", (503, b"", 0), (200, TEXT, 100), (200, TEXT, 0))
    assert fetch(url, sha(TEXT)).read_bytes() == TEXT
    assert len(upstream.asked) == 3


def test_tries_come_to_an_end(upstream):
    url = upstream.serve("/file", (503, b"", 0))
    with pytest.raises(ConfigError, match=r"/file: can't be fetched \(.*503.*data\.benchmarks_dir"):
        fetch(url, sha(TEXT))
    assert len(upstream.asked) == benchmark_files.TRIES


def test_a_final_refusal_is_not_tried_again(upstream):
    with pytest.raises(ConfigError, match=r"/gone: can't be fetched \(.*404"):
        fetch(f"{upstream.url}/gone", sha(TEXT))
    assert len(upstream.asked) == 1


def test_offline_says_what_to_do(upstream):
    upstream.stop()
    with pytest.raises(ConfigError, match=r"can't be fetched .*without a network, .* data\.benchmarks_dir"):
        fetch(f"{upstream.url}/file", sha(TEXT))


def test_a_damaged_file_in_the_cache_is_fetched_anew(upstream):
    url = upstream.serve("/file", (200, TEXT, 0))
    path = fetch(url, sha(TEXT))
    path.write_bytes(TEXT[:100])
    assert fetch(url, sha(TEXT)).read_bytes() == TEXT
    assert len(upstream.asked) == 2


def test_every_address_is_pinned_and_the_default_set_can_be_fetched():
    for path, source in SOURCES.items():
        assert path.split("/")[0] in FOLDERS.values()
        assert not source.sha256 or re.fullmatch(r"[0-9a-f]{64}", source.sha256)
        assert source.url or not source.sha256
        # a commit, or a tag of a release
        assert not source.url or re.match(r"https://[^?]+/([0-9a-f]{40}|v0\.2\.36)/", source.url)
    for name, folder in FOLDERS.items():
        for path in benchmark_files._wanted(name, BenchmarksConfig()):
            assert SOURCES[f"{folder}/{path}"].sha256


def test_the_documentation_names_every_pin():
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    for path, source in SOURCES.items():
        if source is SOURCES["alpaca_eval/reference_outputs.json"]:
            path = "alpaca_eval/reference_outputs.json"
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{path}` |")]
        assert (f"`{source.sha256[:12]}`" if source.sha256 else "not known") in line
        revision = re.search(r"/([0-9a-f]{40}|v0\.2\.36)/(.+)", source.url)
        if revision:
            assert f"`{revision[2]}`" in line
            assert f"`{revision[1]}`" in page


def test_the_shared_copies_are_the_pinned_ones(shared_data, tmp_path):
    given = tmp_path / "given"
    for folder in FOLDERS.values():
        shutil.copytree(shared_data / "benchmarks" / folder, given / folder, copy_function=shutil.copyfile)
        given.joinpath(folder).chmod(0o755)
    # the only needed file that isn't there; the world's has upstream's shape
    (given / "arena_hard_v0.1/judge_config.yaml").write_text(ARENA_CONFIG)
    unofficial = set()
    for name, questions in (("alpaca_eval", 805), ("arena_hard", 500), ("mt_bench", 80)):
        prepare(name, BenchmarksConfig(), given, tmp_path / name)
        manifest = json.loads((tmp_path / name / "files.json").read_text())
        assert manifest["questions"] == questions
        unofficial |= {record["name"] for record in manifest["files"] if record["official"] is not True}
    assert unofficial == {"judge_config.yaml"}
