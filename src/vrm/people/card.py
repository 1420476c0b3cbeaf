"""The model card (README.md) of a trained reward model: nothing in it is typed, everything is read from its files.

What nobody measured is said to be unknown: a card without scores is better than one with a number from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

PIPELINE = "text-classification"

WITH_VRM = """```python
from vrm import RewardModel

model = RewardModel.from_pretrained("{name}")
output = model.score(["What is basil good for?"] * 2, ["It goes well with tomatoes.", "No idea."])
output.mean  # rewards: only differences between responses to one prompt mean something
```

`vrm score`, `vrm explain` and `vrm serve` take the directory as well."""

WITHOUT_VRM = """This directory needs torch and transformers, nothing else{code}.

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{name}"{trust}).eval()
tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
turns = [
    {{"role": "user", "content": "What is basil good for?"}},
    {{"role": "assistant", "content": "It goes well with tomatoes."}},
]
inputs = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
with torch.no_grad():
    reward = model(**inputs).logits  # shape (1, 1)
```"""


def card(directory: Path, exported: bool = False) -> str:
    """README.md of a model directory.

    Args:
        directory: has config.json; results.json and provenance.json where they are known.
        exported: whether it is to be loaded without this package.
    """
    config = read(directory / "config.json") or {}
    results, record = read(directory / "results.json") or {}, read(directory / "provenance.json") or {}
    name = directory.name if not directory.name.startswith(".") else "this_directory"
    parts = [
        _head(results, record),
        f"# A reward model ({_kind(results, config)})\n",
        "Given a prompt and a response it states a reward; of two responses to one prompt the one with the higher "
        "reward is the better one by the preferences that it was trained on, with probability sigmoid of the "
        "difference.\n",
        "## Use\n",
        _use(config, name, exported),
        "\n## Data\n",
        *_data(results, record),
        "\n## Scores\n",
        *_scores(results),
        "\n## Limits\n",
        *_limits(config, results),
        "\n## Where it comes from\n",
        *_origin(record),
    ]
    return "\n".join(parts) + "\n"


def read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _head(results: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """The block that the hub reads."""
    backbone = record.get("backbone") or {}
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": PIPELINE, "tags": ["reward-model"]}
    if backbone.get("licence"):
        head["license"] = backbone["licence"]
    if backbone.get("name") and not Path(backbone["name"]).exists():
        head["base_model"] = backbone["name"]
    accuracy = (results.get("held_out") or {}).get("accuracy")
    if accuracy:
        metric = {"type": "accuracy", "name": "held-out pairs", "value": round(accuracy["estimate"], 4)}
        dataset = {"name": results["data"], "type": "preference-pairs"}
        task = {"type": PIPELINE, "name": "preference"}
        head["model-index"] = [
            {"name": "reward model", "results": [{"task": task, "dataset": dataset, "metrics": [metric]}]}
        ]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"


def _kind(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    kind = results.get("kind")
    return str(kind) if kind else str(config.get("kind") or config.get("model_type") or "unknown kind")


def _use(config: Mapping[str, Any], name: str, exported: bool) -> str:
    if not exported:
        return WITH_VRM.format(name=name)
    own_code = "auto_map" in config
    limits = config.get("reward_limits") or {}
    text = WITHOUT_VRM.format(
        name=name,
        code=", and runs the code of `modeling_vrm.py`, which lies in it" if own_code else "",
        trust=", trust_remote_code=True" if own_code else "",
    )
    if own_code and config.get("model_type") == "vrm":
        text += (
            "\n\nBeside `logits` the output has `alpha` (concentrations of the prompt's weights; divided by their sum "
            "they are the mean weights), `per_objective`, `rated` and `residual`."
        )
    if limits:
        text += f"\n\nIt was trained on texts of at most {limits.get('max_length')} tokens; longer ones have to be cut."
    return text


def _data(results: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    if not results:
        yield "Not recorded beside the model."
        return
    pairs = results["pairs"]
    yield (
        f"{results['data']}: {pairs['train']} training pairs, {pairs['validation']} validation pairs and "
        f"{pairs['test']} held-out pairs, split by prompt."
    )
    for path, facts in (record.get("inputs") or {}).items():
        if facts.get("sha256"):
            rows = f", {facts['rows']} rows" if "rows" in facts else ""
            yield f"- `{Path(path).name}`: sha256 `{facts['sha256']}`{rows}"
    if results.get("aspects"):
        yield f"- rated aspects: {', '.join(results['aspects'])}"
    else:
        yield "- without ratings: what its objectives are about, if it has some, nobody has said"


def _scores(results: Mapping[str, Any]) -> Iterator[str]:
    found = results.get("held_out")
    if not found:
        yield "None are known: this model was made by other means than `vrm train`, which measures."
        return
    yield f"On {found['pairs']} pairs of {found['prompts']} prompts that training never saw, one seed:\n"
    yield "| what | estimate | interval |"
    yield "|:--|--:|:--|"
    rows = {"accuracy": found["accuracy"], "the longer response is better (no model)": found["longer_is_better"]}
    rows |= {f"agrees with the ratings of {name}": value for name, value in found["by_aspect"].items()}
    for name, value in rows.items():
        yield f"| {name} | {100 * value['estimate']:.1f} % | {_ends(value, 100)} |"
    gain = found["difference"]
    yield f"| accuracy less that of the longer response | {100 * gain['estimate']:+.1f} | {_ends(gain, 100)} |"
    yield "\nIntervals are over prompts. How far stated probabilities can be trusted (lower is better):\n"
    yield "| probabilities | ECE | Brier | log loss (nats) |"
    yield "|:--|--:|--:|--:|"
    stated = found["probabilities"]
    for name, label in (("as_trained", "as trained"), ("at_temperature", f"margins / {stated['temperature']}")):
        if stated.get(name):
            values = stated[name]
            yield f"| {label} | {values['ece']:.3f} | {values['brier']:.3f} | {values['nll']:.3f} |"


def _ends(value: Mapping[str, float | None], factor: float) -> str:
    if value["low"] is None:
        return "none: all pairs alike, or one prompt"
    return f"{factor * value['low']:.1f} to {factor * value['high']:.1f} ({100 * value['level']:.0f} %)"


def _limits(config: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
    found = results.get("held_out") or {}
    yield "- It says what the annotators of its data preferred, not what is true, safe or good."
    yield "- Rewards of responses to different prompts can't be compared."
    if found:
        low, high = found["accuracy"]["low"], found["difference"]["low"]
        if low is not None and low <= 0.5:
            yield "- **Its accuracy can't be told from chance on its held-out pairs.**"
        if high is None or high <= 0:
            yield "- **It can't be told from the rule that the longer response is better, on its held-out pairs.**"
        if found["cut"]:
            yield f"- {found['cut']} of the held-out pairs have a text that was cut before it was scored."
    if config.get("residual"):
        yield "- Its residual takes what decides preferences beside the rated aspects, length and style among them."
    yield "- A policy that is trained against it will find what it rewards by mistake."


def _origin(record: Mapping[str, Any]) -> Iterator[str]:
    if not record:
        yield "Not recorded beside the model."
        return
    backbone = record.get("backbone") or {}
    licence = backbone.get("licence") or "not stated in its directory; look it up before you pass this model on"
    yield f"- backbone: {backbone.get('name', 'not recorded')}"
    if backbone.get("revision"):
        yield f"- revision of the backbone: `{backbone['revision']}`"
    yield f"- licence of the backbone: {licence}"
    commit = f", commit `{record['commit']}`" if record.get("commit") else ""
    yield f"- made by vrm {record.get('version')}{commit}, {record.get('device', 'device not recorded')}"
    packages = {name: value for name, value in (record.get("packages") or {}).items() if value}
    yield "- packages: " + ", ".join(
        f"{name} {packages[name]}" for name in ("torch", "transformers", "trl") if name in packages
    )
    if record.get("seed") is not None:
        yield f"- seed: {record['seed']}"
    yield "- the rest is in `provenance.json`, `results.json` and `counts.json`, where they lie beside this file"
