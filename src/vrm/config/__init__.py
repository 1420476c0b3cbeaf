"""The experiment's configuration: typed, and the only place where a default is written.

* `load(paths)` merges YAML files left to right (later wins, lists are replaced), as Snakemake does with `--configfile`.
* Unknown keys are errors that name the key; nothing is silently ignored.
* `{run}` inside a path (`RunPath`) stands for the run's name, so that a path can point at what another rule makes.
* Every field carries its description; `json_schema()` exports them for editors (`workflow/schemas/config.schema.json`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from vrm.config.backbone import BackboneConfig, CreatedBackbone, Features, RewardBackbone
from vrm.config.base import ConfigError, HubDataset, Lora, Optimisation, PositiveInt, Section, Source, require_known
from vrm.config.benchmarks import AlpacaEval, Answering, ArenaHard, Benchmark, BenchmarksConfig, JudgedPolicy, MtBench
from vrm.config.data import DataConfig
from vrm.config.evaluation import EvaluationConfig, EvaluationSet
from vrm.config.judge import JudgeConfig, Prices
from vrm.config.policy import (
    BestOfN,
    Difficulty,
    Generation,
    Method,
    PolicyBase,
    PolicyConfig,
    PolicyTraining,
    PpoLimits,
    PpoMethod,
    PpoTraining,
    PreferenceMethod,
    SftTraining,
)
from vrm.config.report import ReportConfig
from vrm.config.reward import OutsideModel, RewardConfig, RewardTraining, Variant
from vrm.config.study import StudyConfig
from vrm.config.world import WorldConfig

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""libyaml's, where PyYAML has it: every job reads a run's configuration twice, which takes a tenth of the time then."""


class Config(Section):
    """The whole experiment."""

    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")] = Field(
        description="Results go to results/<run>/."
    )
    threads: PositiveInt = Field(1, description="CPU threads of one training or scoring job.")
    data: DataConfig
    world: WorldConfig = Field(default_factory=WorldConfig)
    backbone: RewardBackbone
    reward: RewardConfig
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    evaluation: EvaluationConfig
    benchmarks: BenchmarksConfig = Field(default_factory=BenchmarksConfig)
    judge: JudgeConfig | None = Field(None, description="Who judges the answers to the benchmarks.")
    report: ReportConfig = Field(default_factory=ReportConfig)
    study: StudyConfig = Field(default_factory=StudyConfig)

    @field_validator("run")
    @classmethod
    def _all_runs_share_these(cls, run: str) -> str:
        if run in ("backbones", "features"):
            raise ValueError(f"results/{run}/ is what all runs share; choose another name")
        return run

    @model_validator(mode="after")
    def _figures_use_trained_variants(self) -> Config:
        for figure in ("figure3", "figure4", "figure5"):
            if figure in self.report.figures:
                if not getattr(self.report, figure):
                    raise ValueError(
                        f"report.{figure} names no variant; name some, or take {figure} out of report.figures"
                    )
                require_known(f"report.{figure}", getattr(self.report, figure), self.reward.run)
        require_known("report.bound", self.report.bound, self.reward.variants)
        require_known("report.calibration", self.report.calibration, self.reward.variants)
        if "calibration" in self.report.figures and not set(self.report.calibration) & set(self.reward.run):
            raise ValueError(
                "report.calibration names no variant of reward.run; name some, or take it out of the figures"
            )
        return self

    @model_validator(mode="after")
    def _study_is_whole(self) -> Config:
        for key, made in (("variants", "power" in self.report.figures), ("ablation", "ablation" in self.report.tables)):
            names = getattr(self.study, key)
            if made and not names:
                raise ValueError(f"study.{key} names no variant; name some, or take what shows them out of report")
            require_known(f"study.{key}", names, self.reward.variants)
        if "power" in self.report.figures and not self.study.pairs:
            raise ValueError("study.pairs is empty; give numbers of pairs, or take power out of report.figures")
        return self

    @model_validator(mode="after")
    def _heads_train_alone(self) -> Config:
        if self.backbone.freeze and (self.reward.training.lora or self.reward.training.processes > 1):
            raise ValueError(
                "backbone.freeze trains heads alone, in seconds: reward.training.lora must be null and "
                "reward.training.processes 1"
            )
        return self

    @model_validator(mode="after")
    def _benchmarks_have_a_judge(self) -> Config:
        if self.benchmarks.run and self.judge is None:
            raise ValueError("benchmarks.run names some, but there is no judge: set judge.base_url and judge.model")
        if self.benchmarks.run and not self.policy.run_bases:
            raise ValueError("benchmarks.run names some, but no policy is trained: name some in policy.run_bases")
        require_known("benchmarks.alpaca_eval.references", self.benchmarks.alpaca_eval.references, self.policy.bases)
        return self

    @model_validator(mode="after")
    def _policies_fit_the_reward_models(self) -> Config:
        for section, models in (("variants", self.reward.variants), ("outside", self.reward.outside)):
            if both := sorted(set(self.policy.methods) & set(models)):
                raise ValueError(f"policy.methods and reward.{section} share the name {', '.join(both)}: rename one")
        if not self.policy.run_bases:
            for name in {"training_summary", "overoptimisation"} & {*self.report.tables, *self.report.figures}:
                raise ValueError(f"report names {name}, which needs policies; name some in policy.run_bases")
            return self
        if "overoptimisation" in self.report.figures and not self.policy.ppo_run:
            raise ValueError("report.figures names overoptimisation, but policy.run has no method that is ppo")
        rewards = {name: self.policy.methods[name].reward for name in self.policy.ppo_run}
        for name, reward in rewards.items():
            require_known(f"policy.methods.{name}.reward", [reward], [*self.reward.run, *self.reward.outside])
        lacking = [str(seed) for seed in self.policy.seeds if seed not in self.reward.seeds]
        if lacking and set(rewards.values()) & set(self.reward.run):
            raise ValueError(
                f"policy.seeds names {', '.join(lacking)}: PPO takes the reward model of the same seed, and "
                f"reward.seeds are {', '.join(map(str, self.reward.seeds))}"
            )
        return self

    @property
    def bounded_variants(self) -> list[str]:
        """Variants whose bound of Theorem 5.1 is measured, in the order of table rows."""
        shown = self.report.bound or self.reward.run
        return [name for name in self.reward.run if self.reward.variants[name].kind == "variational" and name in shown]

    @property
    def judged_policies(self) -> list[JudgedPolicy]:
        """Every policy whose answers are judged: of each base the SFT model, then the methods, each with every seed."""
        if not self.benchmarks.run:
            return []
        return [
            JudgedPolicy(base, method, seed)
            for base in self.policy.run_bases
            for method in [*(["sft"] if self.policy.bases[base].sft else []), *self.policy.run]
            for seed in self.policy.seeds
        ]


def parse(raw: dict[str, Any]) -> Config:
    """Validate a merged configuration mapping.

    Raises:
        ConfigError: one line per fault, each naming the key.
    """
    try:
        return Config.model_validate(raw, context={"run": raw.get("run")})
    except ValidationError as error:
        raise ConfigError("the configuration is not usable:\n" + "\n".join(map(_fault, error.errors()))) from None


def _fault(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors as a line that says what to do."""
    key = ".".join(map(str, error["loc"])) or "config"
    if error["type"] == "union_tag_not_found":  # the key that says what kind of section it is
        tag = error["ctx"]["discriminator"].strip("'")
        typos = get_close_matches(tag, [str(name) for name in error["input"] if name != tag], n=1)
        return f"  {key}.{typos[0]}: there is no such key; did you mean {tag}?" if typos else f"  {key}: lacks {tag}"
    if error["type"] != "extra_forbidden":
        return f"  {key}: {error['msg'].removeprefix('Value error, ')}"
    schema, name = Config.model_json_schema(), str(error["loc"][-1])
    # a key of that section, if one is like it; else the key may stand in the wrong section
    similar = get_close_matches(name, _keys_of(schema, error["loc"][:-1]), n=1) or get_close_matches(
        name, _keys(schema), n=1
    )
    return f"  {key}: there is no such key" + (f"; did you mean {similar[0]}?" if similar else "")


def _keys_of(schema: dict[str, Any], place: Iterable[Any]) -> set[str]:
    """The keys of the section at a place of the configuration; of every kind that it may be."""
    parts = [schema]
    for name in place:
        inner = [part for outer in parts for part in _inner(schema, outer, str(name))]
        parts = inner or parts  # a name in the place may be that of a kind, which is no key
    return {key for part in parts for kind in _kinds(schema, part) for key in kind.get("properties", {})}


def _inner(schema: dict[str, Any], part: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    for kind in _kinds(schema, part):
        found = kind.get("properties", {}).get(name, kind.get("additionalProperties"))
        if isinstance(found, dict):
            yield found


def _kinds(schema: dict[str, Any], part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a part of the schema stands for: itself, what it refers to, or one of several."""
    if "$ref" in part:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    yield part
    for kind in (*part.get("anyOf", ()), *part.get("oneOf", ()), *part.get("allOf", ())):
        yield from _kinds(schema, kind)


def _keys(schema: Any) -> Iterator[str]:
    """Every key that a configuration may have, at any depth."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _keys(part)


def load(paths: Iterable[str | Path]) -> Config:
    """Merge YAML files left to right and validate the result.

    Raises:
        ConfigError: a file is missing, is not a mapping, or the merged result is not usable.
    """
    merged: dict[str, Any] = {}
    for path in map(Path, paths):
        try:
            part = _from_yaml(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {error}") from None
        except (ValueError, RecursionError) as error:  # not UTF-8, a date that is none, nested without end
            raise ConfigError(f"{path}: can't be read as YAML ({error}); it has to be UTF-8 text") from None
        if not isinstance(part, dict):
            raise ConfigError(f"{path}: expected a mapping of keys at the top level")
        merged = merge(merged, part)
    return parse(merged)


def _from_yaml(text: str) -> Any:
    """What `yaml.safe_load` gives."""
    loader = LOADER(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def merge(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """Overlay one mapping on another: mappings merge, everything else is replaced."""
    out = dict(base)
    for key, value in overlay.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def dump(config: Config) -> str:
    """The resolved configuration as YAML; `load` of it gives an equal configuration."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=DUMPER, sort_keys=False, allow_unicode=True)


def json_schema() -> str:
    """JSON schema of config.yaml, for editors."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


__all__ = [
    "AlpacaEval",
    "Answering",
    "ArenaHard",
    "BackboneConfig",
    "Benchmark",
    "BenchmarksConfig",
    "BestOfN",
    "Config",
    "ConfigError",
    "CreatedBackbone",
    "DataConfig",
    "Difficulty",
    "EvaluationConfig",
    "EvaluationSet",
    "Features",
    "Generation",
    "HubDataset",
    "JudgeConfig",
    "JudgedPolicy",
    "Lora",
    "Method",
    "MtBench",
    "Optimisation",
    "OutsideModel",
    "PolicyBase",
    "PolicyConfig",
    "PolicyTraining",
    "PpoLimits",
    "PpoMethod",
    "PpoTraining",
    "PreferenceMethod",
    "Prices",
    "ReportConfig",
    "RewardBackbone",
    "RewardConfig",
    "RewardTraining",
    "Section",
    "SftTraining",
    "Source",
    "Variant",
    "WorldConfig",
    "dump",
    "json_schema",
    "load",
    "merge",
    "parse",
]
