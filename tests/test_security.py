"""What comes from outside is data: it runs nothing, goes nowhere it should not, and no key is ever written."""

import ast
import importlib.util
import json
import re
import shlex
from base64 import b64encode
from hashlib import sha256

import pytest
import torch
import yaml
from paths import ROOT
from runs import DEFAULT, SMOKE, contents, snakemake, vrm

from vrm.models.checks import require_model
from vrm.models.scoring import load_reward_model
from vrm.records import RecordError, write_json, write_jsonl
from vrm.reporting.rendering import Cell, Grid, Row, to_html

CODE = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])


def calls(path):
    """Every call of a file: dotted name, keywords."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            yield ast.unparse(node.func), keywords, f"{path.relative_to(ROOT)}:{node.lineno}"


FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput"),
    *("pickle.load", "pickle.loads", "joblib.load", "yaml.load", "yaml.unsafe_load", "marshal.loads"),
}


def test_nothing_that_runs_data_is_called():
    found = [(name, place) for path in CODE for name, _, place in calls(path) if name in FORBIDDEN]
    assert found == []


def test_no_call_asks_for_a_shell_for_remote_code_or_for_a_pickle():
    for path in CODE:
        for name, keywords, place in calls(path):
            for risk in ("shell", "trust_remote_code"):
                value = keywords.get(risk)
                assert not (isinstance(value, ast.Constant) and value.value), (name, place)
            if name == "torch.load":
                assert getattr(keywords.get("weights_only"), "value", None) is True, place
            if re.fullmatch(r"AutoModel\w*\.from_pretrained", name):
                assert "use_safetensors" in keywords or None in keywords or "gguf_file" in keywords, place


def evil_model(directory):
    """A model that brings code along, and says so in its configuration."""
    directory.mkdir()
    write_json(
        directory / "config.json",
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.E"}},
    )
    (directory / "evil.py").write_text(f"open({str(directory / 'executed')!r}, 'w')\nclass Evil: pass\nclass E: pass\n")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, directory / "model.safetensors")
    return directory


def test_a_models_own_code_is_not_run_unless_asked_for_by_name(tmp_path):
    model = evil_model(tmp_path / "evil")
    with pytest.raises(RecordError):
        load_reward_model(model)
    assert not (model / "executed").exists()


def test_pickled_weights_are_refused_and_not_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    torch.save({"weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(RecordError, match="pickled"):
        require_model(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_path_of_the_configuration_is_one_word_of_a_command(tmp_path):
    path = "models/my model; touch hacked; $(touch hacked)"
    (tmp_path / path).mkdir(parents=True)
    config = tmp_path / "odd.json"
    config.write_text(json.dumps({"backbone": {"create": None, "path": path}}))
    target = "results/smoke/reward/rm/seed1/model"
    said = snakemake("-n", "-p", "--", target, directory=tmp_path, configs=(DEFAULT, SMOKE, config))
    command = next(line for line in said.splitlines() if "vrm train-reward" in line)
    words = shlex.split(command)
    assert words[words.index("--backbone") + 1] == path


def test_names_inside_records_lead_nowhere(tmp_path):
    """Ids, models and subsets that are paths: what is made of them stays where it was asked for."""
    odd = ["../../escape", "/tmp/vrm_escape", "..\\escape", "a/b", "~", "\x2e\x2e/x", "$(touch hacked)"]
    rows = [
        {
            "instruction": f"question {number} about {name}",
            "source": name,
            "completions": [
                {
                    "model": name,
                    "response": f"answer {side} {name}",
                    "annotations": {aspect: {"Rating": str(side + 1)} for aspect in ASPECTS},
                }
                for side in range(2)
            ],
        }
        for number, name in enumerate(odd * 12)
    ]
    inside = tmp_path / "here" / "results"
    inside.mkdir(parents=True)
    write_jsonl(inside / "mine.jsonl", rows)
    overlay = tmp_path / "here" / "mine.json"
    overlay.write_text(json.dumps({"data": {"path": str(inside / "mine.jsonl"), "preference_from": "mean_of_aspects"}}))
    config = ("--config", DEFAULT, SMOKE, overlay)
    before = contents(tmp_path).keys()
    assert vrm("read-scored", *config, "--out", inside / "data").returncode == 0
    said = vrm("make-pairs", *config, "--out", inside / "data")
    assert said.returncode == 0, said.stderr
    new = contents(tmp_path).keys() - before
    assert new
    assert all(name.startswith("here/results/data/") for name in new)


ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def test_pages_escape_what_models_say_and_load_nothing():
    said = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    page = to_html([Grid(said, said, [Cell(said)], [Row([Cell(said, said)])], [said])])
    body = page.partition("<body>")[2]
    assert "<script" not in page
    assert "<img" not in page
    assert body.count("&lt;script&gt;") == 5
    style = re.search(r"<style>(.*)</style>", page, re.DOTALL)[1]
    digest = b64encode(sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in page


# --- known weaknesses of what is installed ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reliability():
    spec = importlib.util.spec_from_file_location("reliability", ROOT / "tools" / "reliability.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def advisory(folder, number, events, package="Some_Package", **more):
    path = folder / "vulns" / "some-package" / f"PYSEC-2026-{number}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    spans = [{"type": "GIT", "events": [{"introduced": "0"}]}, {"type": "ECOSYSTEM", "events": events}]
    affected = [{"package": {"name": package}, "ranges": spans, "versions": more.pop("versions", [])}]
    record = {"id": path.stem, "affected": affected, "modified": f"2026-0{number}-01T00:00:00Z", **more}
    path.write_text(yaml.safe_dump(record))


def test_a_copy_of_the_advisories_is_looked_up_by_version(reliability, tmp_path):
    since, until = {"introduced": "1.0"}, {"fixed": "1.10"}
    advisory(tmp_path, 1, [{"introduced": "0"}, {"fixed": "1.0"}])
    advisory(tmp_path, 2, [since, until])
    advisory(tmp_path, 3, [since, {"last_affected": "1.9"}])
    advisory(tmp_path, 4, [since], withdrawn="2026-01-01T00:00:00Z")
    advisory(tmp_path, 5, [{"introduced": "0"}, {"fixed": "1.0"}], versions=["1.9"])
    advisory(tmp_path, 6, [since], package="another")

    def found(version):
        return set(re.findall(r"PYSEC-2026-(\d)", reliability.from_copy(tmp_path, {"some-package": version, "x": "1"})))

    assert found("0.9") == {"1", "5"}
    assert found("1.9") == {"2", "3", "5"}
    assert found("1.10") == set()
    assert "2026-06-01" in reliability.from_copy(tmp_path, {"x": "1"})


def test_a_folder_without_advisories_is_not_taken_for_a_clean_bill(reliability, tmp_path):
    with pytest.raises(SystemExit, match="advisory-database"):
        reliability.from_copy(tmp_path, {"x": "1"})
