import datetime
import json

import pytest

from vrm.config import ConfigError, Source
from vrm.data.sources import describe, format_counts, read_rows, write_quarantine
from vrm.records import Quarantine, RecordError, read_jsonl

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
    path.write_bytes(b'{"a": 1}\n\n{"a": \n[1, 2]\n{"a": "\xff"}\n{"a": 2}\n')
    quarantine = Quarantine("x")
    assert list(read_rows(Source(path=str(path)), quarantine)) == [(1, {"a": 1}), (6, {"a": 2})]
    assert [(entry["row"], entry["reason"]) for entry in quarantine.rows] == [
        (3, "not valid JSON"),
        (4, "expected a JSON object, found list"),
        (5, "not valid JSON"),
    ]
    with pytest.raises(RecordError, match=r"x\.jsonl, row 3: not valid JSON"):
        list(read_rows(Source(path=str(path))))


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("absent.jsonl", None, ConfigError, "no such file"),
        ("rows.csv", "a,b", ConfigError, r"must end in \.jsonl, \.json, \.parquet"),
        ("rows.json", '{"a": 1}\n{"a": 2}', RecordError, r"name it \.jsonl"),
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


def test_quarantine_holds_whatever_a_row_held(tmp_path):
    refused, set_aside = Quarantine("x"), Quarantine("x")
    refused.add(2, "late", {"when": datetime.date(2026, 1, 1), "text": "\ud800"})
    set_aside.add(1, "early", {})
    write_quarantine(tmp_path / "quarantine.jsonl", refused, set_aside)
    rows = [row for _, row in read_jsonl(tmp_path / "quarantine.jsonl")]
    assert [row["row"] for row in rows] == [1, 2]
    assert rows[1]["record"] == {"when": "2026-01-01", "text": "\ud800"}


def test_counts_are_aligned_and_empty_groups_left_out():
    text = format_counts("Title", {"rows_read": 10, "because": {}, "aspects": ["a", "b"], "split": {"pairs": 3}})
    assert text.splitlines() == ["Title", "  rows read  10", "  aspects    a, b", "  split", "    pairs    3"]
