"""Whatever comes in: it is used, counted, or refused in words of ours; nothing is dropped in silence.

`VRM_FUZZ=20 pytest tests/test_fuzz.py` looks deeper: 20 times as many examples of each kind, at random. Without it they
are few and always the same.
$VRM_FUZZ_COUNTS names a JSON file for how many there were.
"""

import bz2
import copy
import csv
import gzip
import http.client
import io
import json
import lzma
import math
import os
import shutil
import socket
import tempfile
import threading
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import ROOT
from pydantic import BaseModel

from vrm import config as vrm_config
from vrm.cli import explain
from vrm.config import ConfigError, DataConfig, EvaluationSet, Source
from vrm.data.pairs import make_pairs, normalise_pairs
from vrm.data.preference_sets import read_preference_set
from vrm.data.scored import read_scored_prompts
from vrm.data.sources import read_rows
from vrm.judged.arena_hard import parse_verdict
from vrm.judged.mt_bench import parse_rating
from vrm.judging import Reply, Request, Store
from vrm.judging.exchange import read_reply, unreadable, without_thoughts
from vrm.judging.refusals import error_in, meaning, read_error
from vrm.models.checks import checked_tokenizer
from vrm.records import Quarantine, RecordError, read_jsonl, read_pairs, read_scored
from vrm.world.judge_server import JudgeServer, WorldJudge

DEEP = int(os.environ.get("VRM_FUZZ", "0"))
"""How many times as many examples; 0: as few as CI has."""
COUNTS: Counter[str] = Counter()


def fuzz(examples):
    """How many examples a test has: so many and always the same, or $VRM_FUZZ times as many."""
    return settings(
        max_examples=max(1, DEEP) * examples,
        derandomize=not DEEP,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True, scope="module")
def counted():
    yield
    if path := os.environ.get("VRM_FUZZ_COUNTS"):
        Path(path).write_text(json.dumps(dict(sorted(COUNTS.items())), indent=2) + "\n")


@pytest.fixture(autouse=True)
def quiet(capfd):
    """What stages print is not looked at here."""


# --- what comes in ----------------------------------------------------------------------------------------------------

ODD = [
    *("", " ", "\x00", "a\x00b", "\ud800", "x\udfff", "\u202eright to left", "\ufeffmark", "e\u0301", "\u2028"),
    *(
        "\U0001f469\u200d\U0001f469\u200d\U0001f467",
        "NaN",
        "null",
        "[]",
        "{",
        '"',
        "\\",
        "\r\n",
        "<script>alert(1)</script>",
    ),
    *(
        "Human: hi\n\nAssistant:",
        "[{'role': 'user'",
        "<|im_start|>",
        "word " * 100_000,
        "-inf",
        "1e999",
        "\u0661\u0662",
    ),
]
texts = st.sampled_from(ODD) | st.text(max_size=20)
numbers = st.floats() | st.integers() | st.sampled_from([math.nan, math.inf, -math.inf, 10**400, True])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
"""Anything that JSON can say, and what Python's JSON says beyond it."""


def mostly(usual, odd=values):
    """Usual values, and sometimes an odd one."""
    return st.one_of(usual, usual, usual, usual, odd)


plain = st.text("abcdefgh ", min_size=1, max_size=8).map(lambda text: f"q{text}")
ratings = st.sampled_from(["1", "2", "3", "4", "5", 1, 3.5, 5])


@st.composite
def rated_rows(draw):
    """A file in UltraFeedback's shape with K aspects, whose rows are sometimes wrong."""
    aspects = [f"aspect{k}" for k in range(draw(st.sampled_from([1, 2, 4, 12])))]
    rating = st.just(draw(ratings)) if draw(st.booleans()) else mostly(ratings)  # all ratings equal
    completion = st.fixed_dictionaries(
        {
            "response": mostly(plain | texts),
            "annotations": mostly(
                st.fixed_dictionaries({a: mostly(st.fixed_dictionaries({"Rating": rating})) for a in aspects})
            ),
        },
        optional={"model": mostly(plain), "overall_score": mostly(st.integers(1, 10))},
    )
    row = st.fixed_dictionaries(
        {"instruction": mostly(plain), "completions": mostly(st.lists(completion, min_size=0, max_size=4))}
    )
    rows = draw(st.lists(mostly(row), min_size=1, max_size=8))
    return aspects, rows + rows[: draw(st.integers(0, 2))]  # duplicate prompts


pair_rows = st.lists(
    mostly(
        st.fixed_dictionaries(
            {"prompt": mostly(plain), "chosen": mostly(plain | texts), "rejected": mostly(plain | texts)},
            optional={
                "subset": mostly(plain),
                "id": mostly(st.integers()),
                "chosen_scores": values,
                "true_weights": values,
            },
        )
    ),
    min_size=1,
    max_size=6,
)


def written(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def refuses(action, *arguments):
    """What an action returns; None where it refuses in words of ours."""
    try:
        return action(*arguments)
    except (RecordError, ConfigError):
        return None


@contextmanager
def explained(**options):
    """Errors that the command line says in one line are fine; every other one is a fault of ours."""
    try:
        yield
    except Exception as error:
        if explain(error, options) is None:
            raise


def in_a_folder(test):
    with tempfile.TemporaryDirectory() as folder:
        test(Path(folder))


# --- records and pair files -------------------------------------------------------------------------------------------


@fuzz(40)
@given(rated_rows())
def test_rated_rows_are_used_or_counted(file):
    COUNTS["rated rows"] += 1
    aspects, rows = file

    def check(folder):
        (folder / "x.jsonl").write_text(written(rows))
        config = DataConfig(path=str(folder / "x.jsonl"), label="x", aspects=aspects)
        counts = refuses(read_scored_prompts, config, folder)
        if counts is None:
            return
        assert counts["rows"] == len(rows)
        prompts = read_scored(folder / "scored.jsonl")
        assert counts["prompts"] == len(prompts) > 0
        assert all(math.isfinite(s) for p in prompts for r in p.responses for s in r.scores)
        quarantined = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
        assert len(quarantined) == counts["rows_quarantined"] + counts["responses_set_aside"]
        assert all(entry["reason"] and 1 <= entry["row"] <= len(rows) for entry in quarantined)
        if refuses(make_pairs, config, folder):
            refuses(normalise_pairs, config, folder)
            for split in ("train", "validation", "test"):
                if (path := folder / "pairs" / f"{split}.jsonl").exists():
                    assert all(math.isfinite(sum(pair.target or [0])) for pair in read_pairs(path))

    in_a_folder(check)


@fuzz(40)
@given(pair_rows)
def test_pair_files_are_used_or_counted(rows):
    COUNTS["pair files"] += 1

    def check(folder):
        (folder / "x.jsonl").write_text(written(rows))
        counts = refuses(
            read_preference_set, "x", EvaluationSet(label="x", path=str(folder / "x.jsonl")), None, folder, ["a"]
        )
        if counts is not None:
            assert counts["rows"] == len(rows)
            assert counts["rows_quarantined"] == sum(counts["rows_quarantined_because"].values())
            assert len(read_pairs(folder / "x.jsonl")) == counts["pairs"]

    in_a_folder(check)


@fuzz(40)
@given(st.lists(values, max_size=4), st.binary(max_size=20))
def test_our_own_records_are_read_or_refused(rows, noise):
    COUNTS["own records"] += 1

    def check(folder):
        (folder / "x.jsonl").write_bytes(written(rows).encode() + noise)
        for read in (read_pairs, read_scored, lambda path: list(read_jsonl(path))):
            refuses(read, folder / "x.jsonl")

    in_a_folder(check)


# --- files as bytes ---------------------------------------------------------------------------------------------------

ROWS = [{"prompt": f"question {i} ü", "chosen": "yes", "rejected": "no"} for i in range(40)]


def as_csv():
    text = io.StringIO()
    writer = csv.DictWriter(text, ROWS[0])
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def as_parquet():
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), out)
    return out.getvalue()


FILES = {
    ".jsonl": written(ROWS).encode(),
    ".json": json.dumps(ROWS).encode(),
    ".csv": as_csv(),
    ".parquet": as_parquet(),
}
PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@st.composite
def damaged_files(draw):
    """A file under a name, cut, flipped, or with something in it that does not belong there."""
    ending, packing = draw(st.sampled_from(list(FILES))), draw(st.sampled_from(list(PACKED)))
    content = PACKED[packing](FILES[ending])
    place = draw(st.integers(0, len(content)))
    damage = draw(st.sampled_from(["cut", "flip", "insert", "none", "renamed"]))
    if damage == "cut":
        content = content[:place]
    elif damage == "flip":
        content = content[:place] + bytes(255 - byte for byte in content[place : place + 3]) + content[place + 3 :]
    elif damage == "insert":
        content = content[:place] + draw(st.binary(max_size=9)) + content[place:]
    name = (
        draw(st.sampled_from(list(FILES))) + draw(st.sampled_from(list(PACKED)))
        if damage == "renamed"
        else ending + packing
    )
    return f"x{name}", content, damage


@fuzz(80)
@given(damaged_files())
def test_damaged_files_are_read_or_refused(file):
    COUNTS["damaged files"] += 1
    name, content, damage = file

    def check(folder):
        (folder / name).write_bytes(content)
        quarantine = Quarantine("x")
        rows = refuses(lambda: list(read_rows(Source(path=str(folder / name)), quarantine)))
        if damage == "none":
            assert [row for _, row in rows] == ROWS
            assert not quarantine.rows

    in_a_folder(check)


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "cp1251", "shift-jis", "gb18030"]
)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
def test_a_wrong_encoding_is_never_read_as_another_text(tmp_path, encoding, ending):
    COUNTS["encodings"] += 1
    text = {"latin-1": "müde Öfen", "cp1252": "müde – Öfen", "cp1251": "вопрос", "shift-jis": "質問", "gb18030": "问题"}
    row = {"prompt": text.get(encoding, "müde"), "chosen": "yes", "rejected": "no"}
    lines = {
        ".jsonl": json.dumps(row, ensure_ascii=False) + "\n",
        ".json": json.dumps([row], ensure_ascii=False),
        ".csv": "prompt,chosen,rejected\n" + ",".join(row.values()) + "\n",
    }[ending]
    (tmp_path / f"x{ending}").write_bytes(lines.encode(encoding))
    rows = refuses(lambda: list(read_rows(Source(path=str(tmp_path / f"x{ending}")), Quarantine("x"))))
    assert rows is None or [found for _, found in rows] in ([row], [])


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("filling", [b" ", b"["], ids=["one line", "nested"])
def test_a_file_that_unpacks_without_end_is_refused_before_memory_is_full(tmp_path, packing, filling):
    COUNTS["bombs"] += 1
    path = tmp_path / f"bomb.jsonl{packing}"
    path.write_bytes(70 * PACKED[packing](filling * 2**20))  # packed parts, one after the other, are a packed file
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(RecordError, match="unpack"):
        list(read_rows(Source(path=str(path)), Quarantine("x")))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 200 * 2**20


# --- configurations ---------------------------------------------------------------------------------------------------

DEFAULTS = yaml.safe_load((ROOT / "config.yaml").read_text())


def keys(model, value, path=()):
    """Every key of a configuration that names a field, as a path."""
    if isinstance(model, BaseModel):
        for name in type(model).model_fields:
            if isinstance(value, dict) and name in value:
                yield (*path, name)
                yield from keys(getattr(model, name), value[name], (*path, name))
    elif isinstance(model, dict) and isinstance(value, dict):
        for name, part in model.items():
            yield from keys(part, value.get(name), (*path, name))


WHOLE = vrm_config.parse(DEFAULTS)
DUMPED = yaml.safe_load(vrm_config.dump(WHOLE))


def at(config, path):
    for name in path:
        config = config[name]
    return config


def test_a_typo_in_any_key_is_named_with_the_key_that_was_meant():
    seen = set()
    for path in keys(WHOLE, DUMPED):
        kind = (type(at_model(WHOLE, path[:-1])), path[-1])
        if kind in seen:
            continue
        seen.add(kind)
        COUNTS["typos"] += 1
        config, typo = copy.deepcopy(DUMPED), path[-1] + path[-1][-1]
        section = at(config, path[:-1])
        section[typo] = section.pop(path[-1])
        with pytest.raises(ConfigError) as error:
            vrm_config.parse(config)
        line = next(line for line in str(error.value).splitlines() if f"{typo}:" in line)
        assert line.endswith(f"did you mean {path[-1]}?"), line
    assert len(seen) > 150


def at_model(section, path):
    for name in path:
        section = section[name] if isinstance(section, dict) else getattr(section, name)
    return section


@fuzz(40)
@given(st.sampled_from(list(keys(WHOLE, DUMPED))), values)
def test_odd_values_of_a_configuration_are_taken_or_refused(path, value):
    COUNTS["configuration values"] += 1
    config = copy.deepcopy(DUMPED)
    at(config, path[:-1])[path[-1]] = value
    found = refuses(vrm_config.parse, config)
    if found is not None:
        text = vrm_config.dump(found)
        assert vrm_config.dump(vrm_config.parse(yaml.safe_load(text))) == text


@fuzz(40)
@given(
    st.binary(max_size=40)
    | texts.map(lambda text: text.encode(errors="replace"))
    | values.map(lambda v: repr(v).encode(errors="replace"))
)
def test_odd_configuration_files_are_refused(content):
    COUNTS["configuration files"] += 1

    def check(folder):
        (folder / "x.yaml").write_bytes(content)
        refuses(vrm_config.load, [ROOT / "config.yaml", folder / "x.yaml"])

    in_a_folder(check)


# --- what a judge says ------------------------------------------------------------------------------------------------

REQUEST = Request([{"role": "user", "content": "question"}], "arena_hard")
replies = mostly(
    st.fixed_dictionaries(
        {
            "choices": mostly(
                st.lists(
                    mostly(
                        st.fixed_dictionaries(
                            {"message": mostly(st.fixed_dictionaries({"content": mostly(texts)}))},
                            optional={"finish_reason": values, "logprobs": values},
                        )
                    ),
                    max_size=2,
                )
            )
        },
        optional={"usage": values, "model": values, "error": values},
    )
)


@fuzz(80)
@given(replies, st.booleans(), st.integers(200, 599))
def test_judges_may_say_anything(value, wants_logprobs, status):
    COUNTS["judge replies"] += 1
    entry = read_reply("0" * 64, REQUEST, value, wants_logprobs=wants_logprobs)
    body = json.dumps(value)
    error_in(value)
    assert meaning(status, read_error(body)).scope
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for each in (entry, unreadable("1" * 64, REQUEST, "malformed JSON", body)):
            store.append(each)
        assert [json.dumps(vars(e), default=vars) for e in Store(folder).entries()] == [
            json.dumps(vars(e), default=vars) for e in store.entries()
        ]
        assert len(store.entries()) == 2
        assert store.damaged == 0
    if isinstance(entry, Reply):
        for read in (parse_verdict, parse_rating, without_thoughts):
            read(entry.text)


@fuzz(100)
@given(st.text(max_size=40) | st.sampled_from(ODD) | st.from_regex(r"\[\[[^\]]{0,12}\]\]"))
def test_verdicts_and_ratings_are_read_or_not(text):
    COUNTS["verdicts"] += 1
    rating = parse_rating(text)
    assert rating is None or math.isfinite(rating)
    verdict = parse_verdict(text)
    assert verdict is None or verdict in {"A>>B", "A>B", "A=B", "B>A", "B>>A"}


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    found = JudgeServer(WorldJudge(), "world-judge")
    threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
    yield found
    found.stop()


@fuzz(40)
@given(body=values.map(json.dumps).map(str.encode) | st.binary(max_size=60))
def test_requests_of_any_kind_get_an_answer_in_the_right_shape(server, body):
    COUNTS["requests"] += 1
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("POST", "/v1/chat/completions", body)
    answer = connection.getresponse()
    assert 400 <= answer.status < 500
    assert json.loads(answer.read())["error"]["message"]
    connection.close()


@fuzz(40)
@given(
    raw=st.binary(min_size=1, max_size=80)
    | st.binary(max_size=40).map(lambda b: b"POST /v1/chat/completions HTTP/1.1\r\n" + b)
)
def test_bytes_that_are_no_request_leave_the_server_alive(server, raw):
    COUNTS["raw requests"] += 1
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(raw + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 200
    connection.close()


# --- saved models -----------------------------------------------------------------------------------------------------


@fuzz(25)
@given(data=st.data())
def test_damaged_models_are_refused_or_load(tiny_backbone, data):
    COUNTS["models"] += 1
    from transformers import AutoModelForCausalLM

    from vrm.models.weights import checked_weights

    name = data.draw(st.sampled_from(sorted(path.name for path in tiny_backbone.iterdir() if path.is_file())))
    content = (tiny_backbone / name).read_bytes()
    place = data.draw(st.integers(0, min(len(content), 400)))
    damage = data.draw(st.sampled_from(["cut", "flip", "json", "gone", "empty"]))
    content = {
        "cut": content[:place],
        "flip": content[:place] + bytes(255 - byte for byte in content[place : place + 2]) + content[place + 2 :],
        "json": json.dumps(data.draw(values)).encode(),
        "gone": None,
        "empty": b"",
    }[damage]

    def check(folder):
        shutil.copytree(tiny_backbone, folder / "model")
        (folder / "model" / name).unlink()
        if content is not None:
            (folder / "model" / name).write_bytes(content)
        with explained(model=folder / "model"):
            checked_tokenizer(str(folder / "model"), max_length=64)
            checked_weights(AutoModelForCausalLM, str(folder / "model"))

    in_a_folder(check)
