"""`vrm export`: a trained model as a directory that transformers loads without this package, and its way to the hub.

* `modeling_vrm.py` in it is made from our own sources: the classes that the model needs, and what these need, one after
  the other, nothing written twice by hand. A stock classifier needs none.
* Its README.md is a model card: nothing in it is typed, everything is read from the files beside it. What nobody
  measured is said to be unknown: a card without scores is better than one with a number from elsewhere.
* What was the maker's own stays at home: rows that were set aside, paths.
* Nothing is pushed unless that is asked for, by name.
"""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from vrm.config import ConfigError
from vrm.models.checks import checked_config
from vrm.ours import place
from vrm.people.options import require_apart
from vrm.records import RecordError, write_json, write_whole

WEIGHTS = (".safetensors", ".safetensors.index.json")
TOKENIZER = ("tokenizer", "special_tokens_map", "chat_template", "vocab", "merges", "added_tokens")
RECORDS = ("results.json", "provenance.json", "counts.json")


def export(model: Path, out: Path) -> Path:
    """Write a model as a directory of its own.

    Args:
        model: directory of a trained reward model.
        out: directory to make.

    Returns:
        `out`.

    Raises:
        ConfigError: something else is in the way.
        RecordError: there is no model, or it is not a reward model.
    """
    require_apart("out", out, model=model)
    config = checked_config(model)
    if config.num_labels != 1:
        raise RecordError(f"{model}: a reward model has one label, this one has {config.num_labels}")
    raw = json.loads((model / "config.json").read_text(encoding="utf-8"))
    source = modeling_source(raw)

    def write(directory: Path) -> None:
        for path in sorted(model.iterdir()):
            if path.name.endswith(WEIGHTS) or path.name.startswith(TOKENIZER) or path.suffix == ".model":
                shutil.copyfile(path, directory / path.name)
        if source:
            write_whole(directory / f"{MODELING}.py", source)
            _, own_config, own_model = CLASSES[raw["model_type"]]
            raw["auto_map"] = {
                "AutoConfig": f"{MODELING}.{own_config}",
                "AutoModelForSequenceClassification": f"{MODELING}.{own_model}",
            }
        write_json(directory / "config.json", raw)
        for name in RECORDS:
            if (model / name).is_file():
                record = json.loads((model / name).read_text(encoding="utf-8"))
                write_json(directory / name, without_places(record))
        write_whole(directory / "README.md", card(directory, exported=True).replace("this_directory", out.name))

    place(out, write)
    return out


def push(directory: Path, name: str, private: bool = False) -> str:
    """Put an exported directory on the hub, or on what HF_ENDPOINT names; the token is huggingface_hub's business.

    Args:
        directory: what `export` wrote.
        name: `owner/name` of the repository, made if need be.
        private: whether a new one is for its owner alone.

    Returns:
        Its address.

    Raises:
        ConfigError: the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=directory, ignore_patterns=[".*"], commit_message="Reward model, by vrm export"
        )
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(
            f"--push {name}: the hub refuses ({str(error).strip().splitlines()[0]}); log in (`hf auth login`, or "
            f"HF_TOKEN), and check that you may write there. {directory} is whole and can be pushed again"
        ) from None
    return str(address)


def without_places(value: Any) -> Any:
    """A record in which absolute paths are names: where somebody's files lie is nobody else's business."""
    if isinstance(value, Mapping):
        return {without_places(key): without_places(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_places(part) for part in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) and len(value) > 1 else value


# The card.

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
    config = _read(directory / "config.json") or {}
    results, record = _read(directory / "results.json") or {}, _read(directory / "provenance.json") or {}
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


def _read(path: Path) -> dict[str, Any] | None:
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


# The code: the classes that a model needs, as one module.

MODELING = "modeling_vrm"
CLASSES = {
    "vrm": ("vrm.models.vrm", "VrmConfig", "VrmForSequenceClassification"),
    "vrm_baseline": ("vrm.models.baseline_heads", "BaselineConfig", "BaselineForSequenceClassification"),
    "vrm_features": ("vrm.models.features", "FeatureConfig", "FeatureForSequenceClassification"),
}
"""By model type: where its classes are, and their names."""
INNER = ("vrm.models.features", "FeatureConfig", "FeatureModel")
"""What is inside of a model on a frozen backbone."""
TRAINING_ONLY = {"from_backbone", "on"}
"""Methods that begin a training."""


def modeling_source(config: Mapping[str, Any]) -> str | None:
    """The code that a model's configuration needs, self-contained; None for a class of transformers."""
    kind = config.get("model_type")
    if kind not in CLASSES:
        return None
    wanted = [CLASSES[kind]]
    inner = (config.get("text_config") or {}).get("model_type")
    if inner == "vrm_features" or kind == "vrm_features":
        wanted.append(INNER)
    return bundle([(module, name) for module, *names in wanted for name in names], inner == "vrm_features")


HEAD = '''"""Reward model of the package vrm, for transformers' trust_remote_code; `vrm export` makes it.

Licence: Apache-2.0. Needs torch and transformers.
"""

from __future__ import annotations

'''
REGISTER = """
# a model on frozen features has these inside, and transformers makes it by its model type
try:
    AutoConfig.register("vrm_features", FeatureConfig)
    AutoModel.register(FeatureConfig, FeatureModel)
except ValueError:  # the package itself is here, and has done so
    pass
"""


def bundle(roots: Iterable[tuple[str, str]], register: bool) -> str:
    """One module with the named definitions and all of ours that they need.

    Args:
        roots: (module, name) of each.
        register: whether the classes of frozen features are made known to transformers.

    Raises:
        AssertionError: two modules of ours use one name for different things.
    """
    found = Bundle()
    for module, name in roots:
        found.take(module, name)
    if register:
        found.outside |= dict.fromkeys(("AutoConfig", "AutoModel"), "from transformers import {name}")
    imports = sorted({line.format(name=name) for name, line in found.outside.items()})
    parts = [HEAD + "\n".join(imports), *found.definitions(), *([REGISTER.strip()] if register else [])]
    text = "\n\n\n".join(parts) + "\n"
    ast.parse(text)
    return text


@dataclass
class Bundle:
    """Definitions that were taken so far.

    Args:
        taken: module of each of our names.
        outside: the import of each other name, with `{name}` for it.
    """

    taken: dict[str, str] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)

    def take(self, module: str, name: str) -> None:
        """Take a definition, and what it needs."""
        known = read_module(module)
        if name not in known.definitions:
            origin = known.imports.get(name)
            if origin is None:
                return  # a builtin, or a name of its own
            if origin[0].split(".")[0] == "vrm":
                assert origin[1] == name, f"{module}: imports {origin[1]} as {name}"
                self.take(origin[0], name)
            else:
                self.outside[name] = origin[1]
            return
        if name in self.taken:
            assert self.taken[name] == module, f"{name} is another thing in {module} and in {self.taken[name]}"
            return
        self.taken[name] = module
        for needed in sorted(known.needs(name)):
            self.take(module, needed)

    def definitions(self) -> Iterator[str]:
        """Source of each, those that are imported before those that import them."""
        for module in self._ordered():
            known = read_module(module)
            for name in known.definitions:
                if self.taken.get(name) == module:
                    yield known.text(name)

    def _ordered(self) -> list[str]:
        order: list[str] = []

        def visit(module: str) -> None:
            if module in order:
                return
            for origin, _ in read_module(module).imports.values():
                if origin in set(self.taken.values()):
                    visit(origin)
            order.append(module)

        for module in dict.fromkeys(self.taken.values()):
            visit(module)
        return order


@dataclass(frozen=True)
class Module:
    """A module of ours, read.

    Args:
        lines: its source.
        definitions: nodes at its top level, by name.
        imports: of each imported name, the module it is from and, of ours, its name there, else the whole import.
    """

    lines: list[str]
    definitions: dict[str, ast.stmt]
    imports: dict[str, tuple[str, str]]

    def needs(self, name: str) -> set[str]:
        """Names that a definition uses when it is made and when it runs; annotations of functions are mere text."""
        node = self.definitions[name]
        found: set[str] = set()

        def visit(part: ast.AST) -> None:
            if isinstance(part, ast.FunctionDef):
                if part.name in TRAINING_ONLY:
                    return
                defaults = [d for d in (*part.args.defaults, *part.args.kw_defaults) if d is not None]
                for inner in (*part.decorator_list, *defaults, *part.body):
                    visit(inner)
                return
            if isinstance(part, ast.AnnAssign) and not isinstance(node, ast.ClassDef):
                visit(part.value) if part.value else None
                return
            if isinstance(part, ast.Name):
                found.add(part.id)
            for inner in ast.iter_child_nodes(part):
                visit(inner)

        visit(node)
        return found - {name}

    def text(self, name: str) -> str:
        """Source of a definition, without the methods that begin a training."""
        node = self.definitions[name]
        skipped: set[int] = set()
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name in TRAINING_ONLY:
                    skipped |= set(range(_first_line(part), part.end_lineno + 2))  # and the blank line behind it
        numbers = range(_first_line(node), node.end_lineno + 1)
        return "\n".join(self.lines[number - 1] for number in numbers if number not in skipped).rstrip()


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


@cache
def read_module(module: str) -> Module:
    """Parse a module of this package without importing it."""
    text = Path(find_spec(module).origin).read_text(encoding="utf-8")
    definitions: dict[str, ast.stmt] = {}
    imports: dict[str, tuple[str, str]] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)):
                definitions[name] = node
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = alias.asname or alias.name
                whole = f"from {node.module} import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
                imports[name] = (node.module, alias.name if node.module.split(".")[0] == "vrm" else whole)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                imports[name] = (alias.name, f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else ""))
    return Module(text.splitlines(), definitions, imports)
