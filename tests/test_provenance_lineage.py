import hashlib
import json

import pytest

from vrm import provenance as lineage
from vrm.config import load


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "reward" / "rm" / "seed1" / "model"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("tokens")
    (directory / "chat_template.jinja").write_text("template")
    return directory


def test_files_are_hashed_and_rows_counted(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert lineage.describe(pairs) == {"sha256": sha256(pairs.read_text()), "rows": 2}


def test_a_directory_of_splits_is_described_file_by_file(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("{}\n")
    assert lineage.describe(tmp_path) == {
        f"{s}.jsonl": {"sha256": sha256("{}\n"), "rows": 1} for s in ("test", "train")
    }


def test_a_model_is_described_by_tokenizer_and_template(model):
    hashes = {"tokenizer_sha256": sha256("tokens"), "chat_template_sha256": sha256("template")}
    assert lineage.describe(model) == hashes
    (model / "chat_template.jinja").unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": "template"}))
    assert lineage.describe(model) == hashes, "an older directory keeps its template elsewhere"


def test_inputs_are_what_arguments_name_and_what_exists(tmp_path, model):
    file = tmp_path / "x.csv"
    file.write_text("a\n")
    arguments = {
        "pairs": file,
        "models": [f"rm={model}"],
        "policy": "owner/name",
        "config": [str(file)],
        "out": tmp_path,
        "seed": 1,
    }
    assert set(lineage.inputs(arguments)) == {str(file), str(model)}


def test_a_run_names_its_rows_and_every_tokenizer_once(tmp_path, model):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "counts.json").write_text('{"rows": 7}')
    run = lineage.run(tmp_path)
    assert run["rows"] == {"counts": {"rows": 7}}
    assert [entry["models"] for entry in run["tokenizers"]] == [["reward/rm/seed1/model"]]


def test_data_and_judge_of_the_default_experiment():
    config = load(["config.yaml"])
    assert lineage.data(config)["scored"]["path"] == config.data.path
    assert lineage.judge(config) == {"model": "world-judge", "endpoint": config.judge.serve}


def leave_record(path, stage, **origin):
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"commit": "a", "dirty": False, "config_sha256": "c", "lock_sha256": "l", "stage": stage, "seconds": 1.5}
    path.write_text(json.dumps(record | origin))


def test_a_run_names_the_origins_of_its_parts_those_that_agree_once(tmp_path):
    for seed in (1, 2):
        leave_record(tmp_path / f"reward/vrm/seed{seed}/train-reward.provenance.json", "train-reward")
        leave_record(tmp_path / f"reward/vrm/seed{seed}/pac_bayes.provenance.json", "pac-bayes", commit="b", dirty=True)
    leave_record(tmp_path / "world/world.provenance.json", "world")
    leave_record(tmp_path / "tables/bound.provenance.json", "table", config_sha256="older")
    run = lineage.run(tmp_path)
    assert [(entry["commit"], entry["dirty"], entry["stages"]) for entry in run["made_from"]] == [
        ("a", False, {"train-reward": 2, "world": 1}),
        ("b", True, {"pac-bayes": 2}),
    ]
    assert [(entry["config_sha256"], entry["stages"]) for entry in run["report"]] == [("older", {"table": 1})]


def test_records_are_told_apart_by_their_hash_whatever_directory_the_run_lies_in(tmp_path):
    def digest(run, seconds=1.5):
        leave_record(tmp_path / run / "world.provenance.json", "world", seconds=seconds)
        (entry,) = lineage.run(tmp_path / run)["made_from"]
        return entry["records_sha256"]

    assert digest("a") == digest("b") != digest("c", seconds=2)
