"""Which checkpoint may be continued, and what is said of one that may not."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from vrm.checkpoints import fingerprint, keep_newest, model_files, model_name, of_no_effect, require_places, resumable
from vrm.config import ConfigError
from vrm.ours import MARKER


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("{}\n")
    return path


def save(directory, step):
    """A checkpoint with everything that the trainer writes."""
    checkpoint = directory / f"checkpoint-{step}"
    checkpoint.mkdir()
    save_file({"weight": torch.zeros(64)}, checkpoint / "model.safetensors")
    parameter = torch.nn.Parameter(torch.zeros(64))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(64)
    optimizer.step()
    torch.save(optimizer.state_dict(), checkpoint / "optimizer.pt")
    torch.save({"last_epoch": step}, checkpoint / "scheduler.pt")
    torch.save({"cpu": torch.get_rng_state()}, checkpoint / "rng_state.pth")
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return checkpoint


def test_the_newest_checkpoint_is_taken(tmp_path, data):
    made_from = fingerprint({"lr": 1}, [data])
    assert resumable(tmp_path / "c", made_from) is None
    for step in (5, 100, 20):
        save(tmp_path / "c", step)
    assert resumable(tmp_path / "c", made_from) == str(tmp_path / "c" / "checkpoint-100")
    keep_newest(tmp_path / "c", 2)
    assert {path.name for path in (tmp_path / "c").glob("checkpoint-*")} == {"checkpoint-100", "checkpoint-20"}


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(name, content):
    return lambda checkpoint: (checkpoint / name).write_bytes(content)


class Malicious:
    """Unpickled, it would write a file."""

    def __reduce__(self):
        return open, ("executed", "w")


DAMAGE = {
    "trainer_state.json": rewrite("trainer_state.json", b'{"global'),
    "state missing": lambda checkpoint: (checkpoint / "trainer_state.json").unlink(),
    "model.safetensors": lambda checkpoint: halve(checkpoint / "model.safetensors"),
    "weights without an end": rewrite("model.safetensors", b""),
    "weights are missing": lambda checkpoint: (checkpoint / "model.safetensors").unlink(),
    "optimizer.pt": lambda checkpoint: halve(checkpoint / "optimizer.pt"),
    "empty optimizer": rewrite("optimizer.pt", b""),
    "optimiser's state": lambda checkpoint: (checkpoint / "optimizer.pt").unlink(),
    "not only tensors": lambda checkpoint: torch.save(Malicious(), checkpoint / "optimizer.pt"),
    "random states that run": lambda checkpoint: torch.save(Malicious(), checkpoint / "rng_state.pth"),
    "a schedule that runs": lambda checkpoint: torch.save(Malicious(), checkpoint / "scheduler.pt"),
    "a pickle of accelerate's": lambda checkpoint: torch.save(Malicious(), checkpoint / "random_states_0.pkl"),
    "rng_state.pth": lambda checkpoint: halve(checkpoint / "rng_state.pth"),
    "scheduler.pt": rewrite("scheduler.pt", b"x" * 100),
    "shard": rewrite("model.safetensors.index.json", b'{"weight_map": {"a": "model-2-of-2.safetensors"}}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_then_to_the_start(tmp_path, data, damage, capsys):
    place, made_from = tmp_path / "c", fingerprint({}, [data])
    resumable(place, made_from)
    before = save(place, 9)
    DAMAGE[damage](save(place, 10))
    assert resumable(place, made_from) == str(before)
    said = capsys.readouterr().out
    assert "checkpoint-10: not used" in said
    assert "going on from checkpoint-9" in said
    assert (place / "damaged-checkpoint-10").is_dir()  # a trainer at step 10 would write into its remains
    DAMAGE[damage](before)
    assert resumable(place, made_from) is None
    assert "starting from the beginning" in capsys.readouterr().out
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("change", "said"), [("settings", "training.lr was 1, is 2"), ("data", "train.jsonl"), ("processes", "processes")]
)
def test_checkpoints_made_from_something_else_are_removed_and_the_log_says_why(
    tmp_path, data, change, said, monkeypatch, capsys
):
    resumable(tmp_path / "c", fingerprint({"training": {"lr": 1, "bf16": False}}, [data]))
    save(tmp_path / "c", 5)
    (tmp_path / "c" / "notes.txt").write_text("mine")
    if change == "data":
        data.write_text('{"other": 1}\n')
    if change == "processes":
        monkeypatch.setenv("WORLD_SIZE", "2")
    now = fingerprint({"training": {"lr": 2 if change == "settings" else 1, "bf16": False}}, [data])
    assert resumable(tmp_path / "c", now) is None
    text = capsys.readouterr().out
    assert said in text
    assert "bf16" not in text
    assert not list((tmp_path / "c").glob("checkpoint-*"))
    assert (tmp_path / "c" / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "c" / "made_from.json").read_text()) == now


def test_a_run_that_was_moved_goes_on(tmp_path, data):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")

    def wanted(root):
        settings = {"policy": model_name(root / "model")}
        return fingerprint(settings, [root / "train.jsonl", *model_files(root / "model")])

    moved = tmp_path / "moved"
    for name in ("train.jsonl", "model/config.json"):
        (moved / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / name, moved / name)
    resumable(moved / "c", wanted(tmp_path))
    checkpoint = save(moved / "c", 5)
    assert resumable(moved / "c", wanted(moved)) == str(checkpoint)


def test_checkpoints_of_earlier_versions_go_on(tmp_path, data):
    """They name files by path, and settings that decide nothing."""
    now = fingerprint({"training": {"lr": 1}, "policy": None}, [data])
    name, key = now["files"][0]
    old = {"settings": {"training": {"lr": 1, "checkpoints": 6}, "policy": "results/sft"}, "processes": 1}
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "made_from.json").write_text(json.dumps(old | {"files": {f"results/{name}": key}}))
    checkpoint = save(tmp_path / "c", 5)
    assert resumable(tmp_path / "c", now) == str(checkpoint)


def test_somebodys_directory_is_refused_and_stays(tmp_path, data):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").write_text("mine")
    save(tmp_path / "c", 5)
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        resumable(tmp_path / "c", fingerprint({}, [data]))
    assert (tmp_path / "c" / "checkpoint-5" / "optimizer.pt").is_file()


@pytest.mark.parametrize("checkpoints", ["out", "out/../out", "out/model", "out/model/c"])
def test_checkpoints_and_results_are_two_directories(tmp_path, checkpoints):
    with pytest.raises(ConfigError, match="two directories"):
        require_places(tmp_path / checkpoints, tmp_path / "out", tmp_path / "out" / "model")
    require_places(tmp_path / "out" / "c", tmp_path / "out", tmp_path / "out" / "model")


def test_what_decides_nothing_is_left_out(monkeypatch):
    assert of_no_effect() == {"processes", "nodes", "launch", "checkpoints", "gradient_checkpointing", "report_to"}
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert of_no_effect() == {"processes", "nodes", "checkpoints", "gradient_checkpointing", "report_to"}


def test_another_number_of_processes_is_another_training(data, monkeypatch):
    alone = fingerprint({}, [data])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert fingerprint({}, [data]) != alone


def test_a_model_is_its_weights_its_configuration_and_its_tokenizer(tmp_path):
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        (tmp_path / name).write_text(name)
    (tmp_path / "backbone.provenance.json").write_text("when and where")
    (tmp_path / MARKER).write_text("[]")
    names = [path.name for path in model_files(tmp_path)]
    assert len(names) == 5
    assert "backbone.provenance.json" not in names
    assert model_files("Qwen/Qwen3-0.6B") == []  # known by its revision
    assert (model_name("Qwen/Qwen3-0.6B"), model_name(tmp_path)) == ("Qwen/Qwen3-0.6B", None)
