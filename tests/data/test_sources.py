import bz2
import csv
import gzip
import io
import json
import lzma

import pytest

from vrm.config import ConfigError, Source
from vrm.data.sources import describe, read_rows
from vrm.records import Quarantine, RecordError

ROWS = [{"instruction": "a", "completions": [{"annotations": {"honesty": {"Rating": "4"}}}]}, {"instruction": "b"}]


def test_every_file_format_gives_the_same_rows(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [ROWS[0], {**ROWS[0], "instruction": "b"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "x.json").write_text(json.dumps(rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    for suffix in ("jsonl", "json", "parquet"):
        assert list(read_rows(Source(path=str(tmp_path / f"x.{suffix}")))) == [(1, rows[0]), (2, rows[1])], suffix


def test_faulty_lines_go_to_quarantine_with_their_line_number(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n[1, 2]\n{"a": "\xff"}\n{"a": "\xc3\xa9"}\n')
    quarantine = Quarantine("x")
    assert list(read_rows(Source(path=str(path)), quarantine)) == [(1, {"a": 1}), (6, {"a": "é"})]
    assert [(entry["row"], entry["reason"]) for entry in quarantine.rows] == [
        (3, "not valid JSON"),
        (4, "expected a JSON object, found list"),
        (5, "not valid UTF-8"),
    ]
    with pytest.raises(RecordError, match=r"x\.jsonl, row 3: not valid JSON"):
        list(read_rows(Source(path=str(path))))


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("absent.jsonl", None, ConfigError, "no such file"),
        ("rows.txt", "a,b", ConfigError, r"must end in \.jsonl, \.ndjson, \.json, \.csv, \.parquet"),
        ("rows.json", '[{"a": 1},', RecordError, "not valid JSON"),
        ("rows.json", '{"data": [{"a": 1}]}', RecordError, "its rows are under data"),
        ("rows.jsonl", '{\n  "a": 1\n}', RecordError, "an object over several lines"),
        ("rows.jsonl", "version https://git-lfs.github.com/spec/v1\n", RecordError, "Git LFS pointer"),
        ("rows.jsonl", "PK\x03\x04", RecordError, "zip archive"),
        ("rows.json", '{"a": 1}', RecordError, "expected a list"),
        ("rows.parquet", "not parquet", RecordError, "not a readable Parquet file"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message) as caught:
        list(read_rows(Source(path=str(tmp_path / name))))
    assert name in str(caught.value)


def test_hub_id_needs_a_revision():
    with pytest.raises(ConfigError, match=r"hub\.revision is missing for openbmb/UltraFeedback"):
        list(read_rows(Source(hub={"dataset": "openbmb/UltraFeedback"})))


def test_local_directory_in_the_hubs_layout(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    import pyarrow

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    shards = tmp_path / "hub" / "data"
    shards.mkdir(parents=True)
    rows = [{**ROWS[0], "instruction": str(i)} for i in range(4)]
    for shard in range(2):
        table = pyarrow.Table.from_pylist(rows[2 * shard : 2 * shard + 2])
        parquet.write_table(table, shards / f"train-0000{shard}-of-00002.parquet")
    source = Source(hub={"dataset": str(tmp_path / "hub")})
    assert list(read_rows(source)) == list(enumerate(rows, 1))
    assert describe(source).endswith("hub@local, split train")
    with pytest.raises(ConfigError, match=r"hub\.split"):
        list(read_rows(Source(hub={"dataset": str(tmp_path / "hub"), "split": "absent"})))


PLAIN = [{"prompt": f"Où, {i}?", "chosen": 'say "yes",\nplease', "rejected": "no"} for i in range(4)]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def comma_separated(rows, delimiter=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


FORMS = {
    "x.jsonl": lines(PLAIN).encode(),
    "x.ndjson": lines(PLAIN).encode(),
    "x.JSONL": lines(PLAIN).encode(),
    "marked.jsonl": b"\xef\xbb\xbf" + lines(PLAIN).encode(),
    "x.json": json.dumps(PLAIN, indent=2).encode(),
    "marked.json": b"\xef\xbb\xbf" + json.dumps(PLAIN).encode(),
    "list.jsonl": json.dumps(PLAIN, indent=2).encode(),
    "lines.json": lines(PLAIN).encode(),
    "x.csv": comma_separated(PLAIN).encode(),
    "x.CSV": comma_separated(PLAIN, ";").encode(),
    "marked.csv": b"\xef\xbb\xbf" + comma_separated(PLAIN, "\t").encode(),
    "x.jsonl.gz": gzip.compress(lines(PLAIN).encode()),
    "x.json.GZ": gzip.compress(json.dumps(PLAIN).encode()),
    "x.csv.gz": gzip.compress(comma_separated(PLAIN).encode()),
    "named_plain.jsonl": gzip.compress(lines(PLAIN).encode()),
    "x.jsonl.bz2": bz2.compress(lines(PLAIN).encode()),
    "x.jsonl.xz": lzma.compress(lines(PLAIN).encode()),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_file_gives_the_same_rows(name, tmp_path):
    (tmp_path / name).write_bytes(FORMS[name])
    assert [row for _, row in read_rows(Source(path=str(tmp_path / name)))] == PLAIN


def test_a_directory_of_shards_is_one_source(tmp_path):
    (tmp_path / "train-00001-of-00002.jsonl.gz").write_bytes(gzip.compress(lines(PLAIN[2:]).encode()))
    (tmp_path / "train-00000-of-00002.jsonl").write_text(lines(PLAIN[:2]))
    (tmp_path / "README.md").write_text("not data")
    assert list(read_rows(Source(path=str(tmp_path)))) == list(enumerate(PLAIN, 1))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no file in it ends in"),
        (["a.jsonl", "b.csv"], r"holds \.csv and \.jsonl files"),
        (["train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"], "holds the splits test, train"),
        (["train.jsonl", "validation.jsonl"], "hub.split"),
    ],
)
def test_a_directory_that_is_not_one_source_is_named(names, message, tmp_path):
    for name in names:
        (tmp_path / name).write_text("{}\n")
    with pytest.raises(ConfigError, match=message):
        list(read_rows(Source(path=str(tmp_path))))


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [
        ("x.jsonl", lines(PLAIN).encode("utf-16"), "UTF-16"),
        ("x.jsonl", lines(PLAIN).encode("utf-16-le"), "UTF-16LE"),
        ("x.jsonl", lines(PLAIN).encode("utf-16-be"), "UTF-16BE"),
        ("x.jsonl", lines(PLAIN).encode("utf-32"), "UTF-32"),
        ("x.json", json.dumps(PLAIN, ensure_ascii=False).encode("latin-1"), "Latin-1"),
        ("x.jsonl", lines(PLAIN).encode("latin-1"), "Latin-1"),
        ("x.jsonl", lines([{"prompt": "plain"}, *PLAIN]).encode("latin-1"), "row 2 is not UTF-8"),
        ("x.csv", comma_separated(PLAIN).encode("latin-1"), "Latin-1"),
        ("x.csv", comma_separated(PLAIN).encode("utf-16"), "UTF-16"),
        ("x.jsonl.gz", gzip.compress(lines(PLAIN).encode("utf-16")), "UTF-16"),
    ],
)
def test_another_encoding_is_one_error_that_names_it(name, content, encoding, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordError, match=encoding) as caught:
        list(read_rows(Source(path=str(tmp_path / name)), Quarantine("x")))
    assert "iconv -f" in str(caught.value)


def test_a_file_that_was_cut_off_is_named(tmp_path):
    for name, content in {
        "x.jsonl.gz": gzip.compress(lines(PLAIN * 50).encode())[:-20],
        "x.parquet": b"PAR1 cut",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RecordError, match=name):
            list(read_rows(Source(path=str(tmp_path / name))))


def test_a_csv_row_of_another_length_is_refused_by_number(tmp_path):
    (tmp_path / "x.csv").write_text('a,b\n1,2\n3\n4,5,6\n"[{""a"": 1}]",\n')
    quarantine = Quarantine("x")
    assert list(read_rows(Source(path=str(tmp_path / "x.csv")), quarantine)) == [
        (1, {"a": "1", "b": "2"}),
        (4, {"a": [{"a": 1}], "b": None}),
    ]
    assert [entry["row"] for entry in quarantine.rows] == [2, 3]


def test_a_parquet_column_whose_name_is_no_text_is_refused(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(PLAIN), path)
    path.write_bytes(path.read_bytes().replace(b"chosen", b"\x8dhosen"))
    with pytest.raises(RecordError, match="not a readable Parquet file"):
        list(read_rows(Source(path=str(path))))


def test_parquet_maps_are_objects(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    kind = pyarrow.map_(pyarrow.string(), pyarrow.struct([("Rating", pyarrow.int64())]))
    column = pyarrow.array([[("honesty", {"Rating": 4})]], type=kind)
    parquet.write_table(pyarrow.table({"annotations": column}), tmp_path / "x.parquet")
    assert list(read_rows(Source(path=str(tmp_path / "x.parquet")))) == [
        (1, {"annotations": {"honesty": {"Rating": 4}}})
    ]
