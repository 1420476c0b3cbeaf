"""`vrm export`: the directory scores the same where this package can't be imported, and is pushed only when asked."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import yaml
from own_files import ultrafeedback, write
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from vrm.cli import main
from vrm.config.reward import PRESETS
from vrm.models.baseline_heads import BaselineForSequenceClassification
from vrm.models.scoring import load_reward_model
from vrm.models.templates import generation_prompt_ids, user_turn_ids
from vrm.models.text import prepare_tokenizer
from vrm.models.vrm import VrmForSequenceClassification
from vrm.people.export import without_places
from vrm.people.train import TrainOptions, train

PROMPTS, RESPONSES = ["alpha beta", "alpha beta", "mu\nnu"], ["good gamma", "bad", "eta theta"]
KINDS = ("vrm", "residual", "scalar", "multitask", "gated", "frozen")

SCORE = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "vrm":
            raise ImportError("vrm is not here")


sys.meta_path.insert(0, Blocker())
import json
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

found = {}
for kind, path in json.loads(sys.argv[1]).items():
    model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    found[kind] = []
    for prompt, response in json.loads(sys.argv[2]):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        inputs = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            found[kind].append(model(**inputs).logits.item())
assert not [name for name in sys.modules if name.split(".")[0] == "vrm"]
open(sys.argv[3], "w").write(json.dumps(found))
"""


def make(kind, backbone, directory):
    """A model of a kind, with weights that were drawn or trained."""
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(backbone))
    turns = {"generation_prompt_ids": generation_prompt_ids(tokenizer), "user_turn_ids": user_turn_ids(tokenizer)}
    torch.manual_seed(0)
    if kind == "frozen":
        data = write(directory.parent / "data.jsonl", ultrafeedback(40))
        limits = {"max_prompt_length": 48, "max_length": 96, "held_out": 0.2, "epochs": 1}
        return train(TrainOptions(data=data, backbone=str(backbone), out=directory, frozen=True, **limits))
    if kind == "scalar":
        model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
    elif kind in ("multitask", "gated"):
        settings = PRESETS[kind].baseline.model_dump(mode="json")
        model = BaselineForSequenceClassification.from_backbone(
            str(backbone), kind=kind, aspects=["a", "b"], settings=settings, **turns
        )
    else:
        more = {"prompt_pooling": "attention", "concentration": "scaled", "scale": True, "residual": True}
        chosen = more if kind == "residual" else {}
        model = VrmForSequenceClassification.from_backbone(str(backbone), aspects=["a", "b"], **chosen, **turns)
        for parameter in (model.head.query, model.head.residual):
            if parameter is not None:
                torch.nn.init.normal_(parameter)
    model.config.reward_limits = {"max_prompt_length": 48, "max_length": 96}
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return None


@pytest.fixture(scope="module")
def exported(tiny_backbone, tmp_path_factory):
    """By kind: the model's directory and the exported one."""
    root, found = tmp_path_factory.mktemp("export"), {}
    for kind in KINDS:
        place = root / kind
        place.mkdir()
        make(kind, tiny_backbone, place / "model")
        assert main(["export", "--model", str(place / "model"), "--out", str(place / "out")]) == 0
        found[kind] = (place / "model", place / "out")
    return found


def test_scores_are_the_same_where_the_package_can_not_be_imported(exported, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "score.py").write_text(SCORE)
    places = json.dumps({kind: str(out) for kind, (_, out) in exported.items()})
    texts = json.dumps(list(zip(PROMPTS, RESPONSES, strict=True)))
    done = subprocess.run(
        [sys.executable, tmp_path / "score.py", places, texts, "found.json"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    there = json.loads((tmp_path / "found.json").read_text())
    for kind, (model, _) in exported.items():
        here = load_reward_model(model, engine="padded", batch_size=1).score(PROMPTS, RESPONSES).mean
        np.testing.assert_allclose(there[kind], here, atol=1e-6, rtol=0, err_msg=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_that_goes_along_is_whole_and_no_more_than_that(kind, exported):
    _, out = exported[kind]
    code = out / "modeling_vrm.py"
    assert code.exists() == (kind != "scalar")
    if code.exists():
        assert not re.search(r"^\s*(from|import) vrm", code.read_text(), flags=re.MULTILINE)
        assert "def from_backbone" not in code.read_text()


def test_this_package_reads_an_exported_directory_too(exported):
    model, out = exported["vrm"]
    first, second = (load_reward_model(path).score(PROMPTS, RESPONSES).mean for path in (model, out))
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_the_card_has_the_scores_and_nothing_of_the_makers_files_goes_along(exported):
    model, out = exported["frozen"]
    results = json.loads((model / "results.json").read_text())
    text = (out / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == round(
        results["held_out"]["accuracy"]["estimate"], 4
    )
    assert "trust_remote_code=True" in text
    assert "look it up" in text  # the tiny backbone has no licence
    home = str(model.parent.parent)
    assert not [path for path in out.iterdir() if path.suffix in (".json", ".md") and home in path.read_text()]
    assert not {"quarantine.jsonl", "scores.csv"} & {path.name for path in out.iterdir()}
    assert without_places({"/a/b": ["/c/d", "e/f", 1]}) == {"b": ["d", "e/f", 1]}


def test_a_card_without_measurements_says_so(exported):
    text = (exported["vrm"][1] / "README.md").read_text()
    assert "None are known" in text


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's HTTP that a push needs; files arrive inside of the commit. It refuses me/refused."""

    def log_message(self, *_):
        """Nothing."""

    def _reply(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/next":  # what comes now belongs to the next command
            self.server.seen.append({"asked": [], "commit": []})
        else:
            self.server.seen[-1]["asked"].append(("GET", self.path))
        self._reply({"id": "me/mine", "sha": "0" * 40, "siblings": []})

    def do_POST(self):
        body, seen = self.rfile.read(int(self.headers.get("Content-Length", 0))), self.server.seen[-1]
        seen["asked"].append(("POST", self.path))
        if self.path == "/api/repos/create":
            seen["created"] = json.loads(body)
        if seen.get("created", {}).get("name") == "refused":
            return self._reply({"error": "no"}, 403)
        if self.path == "/api/repos/create":
            address = f"http://127.0.0.1:{self.server.server_port}/me/mine"
            return self._reply({"url": address, "id": "me/mine", "name": "me/mine"})
        if self.path == "/api/validate-yaml":
            return self._reply({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            names = [entry["path"] for entry in json.loads(body)["files"]]
            return self._reply(
                {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for n in names]}
            )
        if "/commit/" in self.path:
            seen["commit"] = [json.loads(line) for line in body.splitlines()]
            address = f"http://127.0.0.1:{self.server.server_port}/me/mine/commit/{'1' * 40}"
            return self._reply({"commitUrl": address, "commitOid": "1" * 40, "pullRequestUrl": None})
        return self._reply({}, 404)


PUSHES = """
import contextlib, io, json, os, sys, urllib.request
from vrm.cli import main

done = {}
for name, arguments in json.loads(sys.argv[1]).items():
    urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/next").read()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(arguments)
    done[name] = {"code": code, "said": said.getvalue()}
open(sys.argv[2], "w").write(json.dumps(done))
"""


@pytest.fixture(scope="module")
def pushes(exported, tmp_path_factory):
    """By command: its exit code, what it said, where it wrote, and what the hub saw.

    All in one process of its own, because the hub's address is read when its client is imported.
    """
    place, (model, _) = tmp_path_factory.mktemp("pushes"), exported["vrm"]
    commands = {
        "unasked": ["--model", exported["scalar"][0]],
        "refused": ["--model", model, "--push", "me/refused"],
        "whole": ["--model", model, "--push", "me/mine", "--private"],
    }
    commands = {name: ["export", *map(str, words), "--out", str(place / name)] for name, words in commands.items()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_standin",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PUSHES, json.dumps(commands), place / "done.json"],
        capture_output=True,
        text=True,
        env=environment,
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((place / "done.json").read_text())
    assert len(server.seen) == len(found)
    return {
        name: {**result, "out": place / name, **seen}
        for (name, result), seen in zip(found.items(), server.seen, strict=True)
    }


def test_a_push_is_asked_for_by_name_and_brings_every_file(pushes):
    push = pushes["whole"]
    assert push["code"] == 0, push["said"][-2000:]
    assert push["created"]["name"] == "mine"
    assert push["created"].get("private") or push["created"].get("visibility") == "private"
    files = {entry["value"]["path"]: entry["value"] for entry in push["commit"] if entry["key"] == "file"}
    here = {path.name for path in push["out"].iterdir() if not path.name.startswith(".")}
    assert files.keys() == here
    assert base64.b64decode(files["README.md"]["content"]) == (push["out"] / "README.md").read_bytes()
    assert "hf_standin" not in push["said"]


def test_a_hub_that_refuses_is_one_block_of_words(pushes):
    assert pushes["refused"]["code"] == 1
    assert "--push me/refused" in pushes["refused"]["said"]
    assert "Traceback" not in pushes["refused"]["said"]


def test_nothing_is_pushed_unless_asked(pushes):
    assert pushes["unasked"]["code"] == 0
    assert pushes["unasked"]["asked"] == []
