"""`vrm train`: one file of preferences, one backbone, one directory out, without Snakemake and without YAML.

* The steps are those of the workflow, by the same functions: read, pair, split by prompt, normalise, train, score. What
  nobody types has the defaults of `vrm.config`, but for what a real backbone needs (`LEARNING_RATES`, `LONGEST`).
* What is on the way lies in `<out>.unfinished`: a training that was killed goes on from there with `resume`. `<out>` is
  made whole at the end: it is an ordinary Hugging Face model directory with a card, its scores and its provenance.
* The test split is used once, at the end: accuracy with an interval over prompts, how far its probabilities can be
  trusted, and what a rule without a model, "the longer response is better", gets on the same pairs.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import yaml

from vrm.config import ConfigError, DataConfig, Features, Lora, RewardTraining, Source, Variant
from vrm.config.base import ShapeName
from vrm.config.data import SHAPE_ASPECTS
from vrm.config.reward import PRESETS
from vrm.data.pairs import SPLITS, make_pairs, normalise_pairs
from vrm.data.readers import is_rating
from vrm.data.scored import read_scored_prompts
from vrm.data.shapes import COMPARED, LOOK_AT, RATED, Shape, recognise
from vrm.data.sources import read_rows
from vrm.evaluation.accuracy import wins
from vrm.evaluation.calibration import calibration_metrics, fit_temperature, preference_probability
from vrm.evaluation.score_sets import score_or_refuse
from vrm.models.checks import checked_config, positions_of
from vrm.models.scoring import load_reward_model, own_device
from vrm.ours import place, require_ours
from vrm.people.export import card
from vrm.people.options import require_above_zero, require_apart, require_at_least, require_different
from vrm.provenance import describe, provenance
from vrm.records import PreferencePair, Quarantine, RecordError, read_pairs, write_json, write_whole
from vrm.runfiles import SCORES
from vrm.statistics.intervals import Interval, crossed_interval
from vrm.training.reward import RewardJob, make_features, train_reward_model
from vrm.training.trainer import TRACKED

LEARNING_RATES = {"whole": 1e-5, "lora": 1e-4, "frozen": 2e-3}
"""Peak learning rates: of all weights, of adapters, of a head on a frozen backbone."""
LONGEST = 2048
"""Tokens kept of prompt + response, where the backbone has positions for them; half of them may be the prompt."""
UNRATED = 4
"""Objectives of a VRM whose data have no ratings; they have no names."""
NO_ASPECT = {"overall_score", "id", "pair_id", "prompt_id", "row", "index", "turn", "seed", "label"}
"""Numeric columns of a table of rated responses that are no ratings."""
MARK = "vrm_train.json"
"""In `<out>.unfinished`: what the training was begun with."""
LEVEL = 0.95


@dataclass(frozen=True)
class TrainOptions:
    """What a person may choose; None takes the default that stands with it.

    Args:
        data: file or directory of rated responses or of preference pairs.
        backbone: directory, hub id or GGUF file of a causal LM.
        out: directory to make.
        kind: a key of `vrm.config.reward.PRESETS`.
        frozen: train a head alone, on features of the backbone that are computed once.
        lora: train adapters and the head; merged at the end.
        load_in_4bit: with `lora`, the frozen layers below the adapters as 4-bit numbers.
        resume: go on with what lies in `<out>.unfinished`.
        aspects: names of the ratings; None takes those that the file has.
        shape: which public data's columns the rows have; None recognises it.
        rating_range: lowest and highest possible rating; None is the shape's own, else 1 to 5.
        pairing: which pairs of a prompt's rated responses are taken.
        held_out: share of the prompts that are kept for the score at the end.
        seed: of the split, the head, the order of the data and the samples.
        epochs, learning_rate, batch_size, max_prompt_length, max_length: of the training.
        revision: commit of a backbone on the hub.
        report_to: trackers.
    """

    data: Path
    backbone: str
    out: Path
    kind: str = "vrm"
    frozen: bool = False
    lora: bool = False
    load_in_4bit: bool = False
    resume: bool = False
    aspects: Sequence[str] | None = None
    shape: ShapeName | None = None
    rating_range: tuple[float, float] | None = None
    pairing: Literal["best_vs_random", "best_vs_worst", "all"] = "best_vs_random"
    held_out: float = 0.1
    seed: int = 0
    epochs: float | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    max_prompt_length: int | None = None
    max_length: int | None = None
    revision: str | None = None
    report_to: Sequence[str] = ()


@dataclass(frozen=True)
class Found:
    """What the first rows of a file say of it.

    Args:
        shape: how its rows are read.
        aspects: its ratings' names; where there are none, those of objectives without one.
        rated: whether responses have ratings.
        left_out: names that some responses lack a rating for, or that are no numbers.
    """

    shape: Shape
    aspects: list[str]
    rated: bool
    left_out: list[str]


def train(options: TrainOptions) -> dict[str, Any]:
    """Train a reward model on one file and leave one directory.

    Returns:
        The content of results.json: the accuracy on held-out pairs and what stands beside it.

    Raises:
        ConfigError: an option can't be used, something else is in the way, or a training of other options was begun.
        RecordError: the data or the backbone can't be used; names the file and the remedy.
    """
    _check(options)
    work = _working_directory(options)
    if work is None:
        print(f"{options.out}: finished already; nothing to do")
        return json.loads((options.out / "results.json").read_text(encoding="utf-8"))
    found = look_at(options)
    if found.left_out and not options.aspects:
        print(
            f"{options.data}: left out of the ratings: {', '.join(found.left_out)}, which over a tenth of the responses"
            " have not, or not as numbers; name the ratings by --aspects to leave out those responses instead",
            file=sys.stderr,
        )
    variant = variant_of(options.kind, found.rated)
    config = data_config(options, found)
    pairs = work / "data" / "pairs"
    if not (pairs / "test.jsonl").is_file():  # written last but for the normalisation, by one function
        _prepare(config, work / "data")
    backbone = _backbone(options, work)
    training = training_of(options, backbone)
    features = _features(options, backbone, training, pairs, work) if options.frozen else {}
    job = RewardJob(
        variant=variant,
        training=training,
        aspects=found.aspects,
        seed=options.seed,
        backbone=backbone,
        revision=options.revision,
        pairs=pairs,
        checkpoints=work / "checkpoints",
        out=work / "reward",
        features=tuple(features[split] for split in ("train", "validation")) if features else (),
        dropout=Features().dropout,
    )
    if not (job.out / "counts.json").is_file():  # the last thing that a training writes
        train_reward_model(job)
    results, scores = held_out(job, features, config)
    results |= {"kind": options.kind, "aspects": found.aspects if found.rated else [], "rated": found.rated}
    results |= {"trained": "head on a frozen backbone" if options.frozen else "adapters" if options.lora else "whole"}
    record = _provenance(options, config, training, variant, backbone)
    _leave(options.out, work, results, scores, record)
    shutil.rmtree(work)
    print(summary(options.out, results))
    return results


def _check(options: TrainOptions) -> None:
    if not options.out.name:
        raise ConfigError(f"--out {options.out}: name a directory to make, e.g. my_vrm")
    require_apart("out", options.out, data=options.data, backbone=options.backbone)
    require_above_zero(epochs=options.epochs, learning_rate=options.learning_rate)
    lengths = {"max_prompt_length": options.max_prompt_length, "max_length": options.max_length}
    require_at_least(1, batch_size=options.batch_size, **lengths)
    require_at_least(0, seed=options.seed)
    require_different("aspects", options.aspects or ())


def look_at(options: TrainOptions) -> Found:
    """Recognise a file's shape and find its ratings, by its first rows.

    Raises:
        ConfigError: the file is missing or of an unsupported kind.
        RecordError: none of its rows fits a shape.
    """
    source = Source(path=str(options.data), shape=options.shape)
    rows = read_rows(source, Quarantine(str(options.data)))
    shape, example, rows = recognise(rows, options.shape, (*RATED, *COMPARED), "pairs")
    first = [row for _, row in islice(rows, LOOK_AT)]
    if not first:
        raise RecordError(f"{options.data}: holds no rows")
    if not shape.fits(example) and options.shape is None:
        raise RecordError(
            f"{options.data}: its rows fit no known shape; columns found: {', '.join(example)}; expected are "
            "prompt, chosen and rejected, or prompt, response and ratings; docs/own_data.md shows all shapes"
        )
    names, left_out = _names(shape, first)
    if options.aspects:
        return Found(shape, list(options.aspects), True, [name for name in names if name not in options.aspects])
    if names:
        return Found(shape, names, True, left_out)
    return Found(shape, [f"objective_{k + 1}" for k in range(UNRATED)], False, left_out)


def _names(shape: Shape, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Names of the ratings that all responses of these rows have, and of those that only some have."""
    if shape.name in SHAPE_ASPECTS:
        return list(SHAPE_ASPECTS[shape.name]), []
    if shape.name == "distilabel":
        return ["rating"], []
    if shape.compare is not None:
        scores = next((row["chosen_scores"] for row in rows if isinstance(row.get("chosen_scores"), list)), [])
        whole = all(isinstance(row.get(f"{side}_scores"), list) for row in rows for side in ("chosen", "rejected"))
        return ([f"aspect_{k + 1}" for k in range(len(scores))] if whole else []), []
    if shape.name == "ultrafeedback":
        rated = [c["annotations"] for row in rows for c in row.get("completions") or [] if _is_annotated(c)]
    elif shape.name == "rated_responses":
        rated = [{name: value for name, value in row.items() if _may_be_rating(name, value)} for row in rows]
    else:
        return [], []
    counted = Counter(name for annotation in rated for name, value in annotation.items() if is_rating(value, name))
    names = [name for name, n in counted.items() if n >= 0.9 * len(rated)]  # a few gaps are set aside, and counted
    return names, [name for name in counted if name not in names]


def _is_annotated(completion: Any) -> bool:
    return isinstance(completion, dict) and isinstance(completion.get("annotations"), dict)


def _may_be_rating(name: str, value: Any) -> bool:
    return name.lower() not in NO_ASPECT and isinstance(value, (int, float, str)) and not isinstance(value, bool)


def variant_of(kind: str, rated: bool) -> Variant:
    """The settings of a kind; a VRM on data without ratings is trained without supervision (lambda 0).

    Raises:
        ConfigError: there is no such kind, or it needs ratings and the data have none.
    """
    if kind not in PRESETS:
        raise ConfigError(f"--kind {kind}: there is no such kind; known are: {', '.join(PRESETS)}")
    variant = PRESETS[kind]
    if rated or not variant.needs_scores:
        return variant
    if kind == "vrm":
        return variant.model_copy(update={"supervision_weight": 0.0})
    without = [name for name, other in PRESETS.items() if name == "vrm" or not other.needs_scores]
    raise ConfigError(
        f"--kind {kind} needs ratings, and the data have none: give data with ratings, or one of {', '.join(without)}"
    )


def data_config(options: TrainOptions, found: Found) -> DataConfig:
    """The options as the configuration's section; splits have the same shares for validation and for test."""
    if not 0 < options.held_out < 0.5:
        raise ConfigError(f"--held-out {options.held_out:g}: a share of the prompts, above 0 and below 0.5")
    return DataConfig(
        label=options.data.stem,
        path=str(options.data),
        shape=options.shape or found.shape.name,
        aspects=found.aspects,
        rating_range=options.rating_range,
        pairing=options.pairing,
        preference_from="overall_score" if found.shape.rate and not found.rated else "mean_of_aspects",
        test_fraction=options.held_out,
        seed=options.seed,
    )


def _prepare(config: DataConfig, out: Path) -> None:
    try:
        read_scored_prompts(config, out)
        make_pairs(config, out)
        normalise_pairs(config, out)
    except RecordError as error:
        text = str(error)
        if "data." in text:
            text += (
                "\n(of `vrm train`, data.rating_range is --rating-range LOW HIGH, data.aspects --aspects, data.shape "
                "--shape, data.test_fraction --held-out, data.seed --seed)"
            )
        raise RecordError(text) from None


def training_of(options: TrainOptions, backbone: str) -> RewardTraining:
    """Settings of the training: those given, and defaults that fit the backbone and what is trained of it."""
    if options.frozen and options.lora:
        raise ConfigError("--frozen and --lora exclude each other: a head alone, or adapters in the backbone")
    if options.load_in_4bit and not options.lora:
        raise ConfigError("--load-in-4bit: 4-bit weights can't be trained, adapters beside them can; add --lora")
    how = "frozen" if options.frozen else "lora" if options.lora else "whole"
    longest = min(LONGEST, positions_of(checked_config(backbone, revision=options.revision)) or LONGEST)
    max_length = options.max_length or longest
    on_gpu = torch.cuda.is_available()
    given = {"epochs": options.epochs, "batch_size": options.batch_size, "report_to": list(options.report_to) or None}
    return RewardTraining(
        learning_rate=options.learning_rate or LEARNING_RATES[how],
        max_length=max_length,
        max_prompt_length=options.max_prompt_length or max_length // 2,
        lora=Lora(load_in_4bit=options.load_in_4bit) if options.lora else None,
        bf16=on_gpu and not options.frozen,
        gradient_checkpointing=on_gpu and not options.frozen,
        **{name: value for name, value in given.items() if value is not None},
    )


def _backbone(options: TrainOptions, work: Path) -> str:
    """Directory or hub id of the backbone; a GGUF file is made into a directory first."""
    if Path(options.backbone).is_dir() and checked_config(options.backbone).model_type.startswith("vrm"):
        raise ConfigError(
            f"--backbone {options.backbone}: is a reward model already; name the language model that it came from"
        )
    if not options.backbone.lower().endswith(".gguf"):
        return options.backbone
    from vrm.training.backbones import dequantise

    made = work / "backbone"
    if not made.is_dir():
        dequantise(Path(options.backbone), made)
    return str(made)


def _features(
    options: TrainOptions, backbone: str, training: RewardTraining, pairs: Path, work: Path
) -> dict[str, Path]:
    """Directories with the frozen backbone's features of every split."""
    found = {split: work / "features" / split for split in SPLITS}
    for split, directory in found.items():
        store = work / "features" / "store"
        make_features(backbone, options.revision, Features(), training, 64, pairs / f"{split}.jsonl", store, directory)
    return found


def held_out(job: RewardJob, features: Mapping[str, Path], config: DataConfig) -> tuple[dict[str, Any], pd.DataFrame]:
    """What the trained model does on pairs of prompts that it was not trained on.

    Args:
        job: the finished training.
        features: of every split, where the backbone is frozen.
        config: where the data come from.

    Returns:
        results.json's content, and one row a held-out pair.
    """
    model = load_reward_model(
        job.out / "model",
        features=[features[split] for split in ("validation", "test")] if features else (),
        progress=True,
    )
    tables, records = {}, {}
    for split in ("validation", "test"):
        records[split] = read_pairs(job.pairs / f"{split}.jsonl")
        tables[split], _refused = score_or_refuse(model, records[split], set())
    test = [records["test"][place] for place in tables["test"].index]
    table = tables["test"].reset_index(drop=True)
    prompts = table["prompt_id"].to_numpy()
    won = wins(table["reward_chosen"], table["reward_rejected"])
    longer = np.array([len(pair.chosen) > len(pair.rejected) for pair in test])
    margins = {split: (found["reward_chosen"] - found["reward_rejected"]).to_numpy() for split, found in tables.items()}
    results = {
        "data": config.label,
        "pairs": {split: len(read_pairs(job.pairs / f"{split}.jsonl")) for split in SPLITS},
        "held_out": {
            "pairs": len(table),
            "prompts": len(set(prompts)),
            "cut": int(table["truncated"].sum()),
            "accuracy": _interval(crossed_interval(won, prompts, LEVEL)),
            "longer_is_better": _interval(crossed_interval(longer, prompts, LEVEL)),
            "difference": _interval(crossed_interval(won.astype(float) - longer, prompts, LEVEL), rate=False),
            "probabilities": _calibration(margins["validation"], margins["test"]),
            "by_aspect": _by_aspect(table, test, job.aspects),
        },
    }
    table.insert(0, "evaluation_set", "held_out")
    return results, table


def _calibration(validation: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """Metrics of the stated probabilities, as they are and at the temperature that validation pairs ask for."""
    found: dict[str, Any] = {"as_trained": calibration_metrics(preference_probability(test))}
    try:
        temperature = fit_temperature(validation)
    except ValueError:  # no validation pair is lost, and nothing says how large margins should be
        temperature = math.inf
    if not math.isfinite(temperature):
        return found | {"temperature": None, "at_temperature": None}
    return found | {
        "temperature": temperature,
        "at_temperature": calibration_metrics(preference_probability(test, temperature)),
    }


def _by_aspect(table: pd.DataFrame, pairs: Sequence[PreferencePair], aspects: Sequence[str]) -> dict[str, Any]:
    """Of pairs whose ratings of an aspect differ: the share in which the model's score of it differs the same way."""
    found = {}
    for k, aspect in enumerate(aspects):
        if f"chosen_{aspect}" not in table or any(pair.chosen_scores is None for pair in pairs):
            continue
        rated = np.array([pair.chosen_scores[k] - pair.rejected_scores[k] for pair in pairs])
        said = (table[f"chosen_{aspect}"] - table[f"rejected_{aspect}"]).to_numpy()
        differ = rated != 0
        if differ.any():
            agree = np.sign(said[differ]) == np.sign(rated[differ])
            interval = crossed_interval(agree, table["prompt_id"].to_numpy()[differ], LEVEL)
            found[aspect] = {"pairs": int(differ.sum()), **_interval(interval)}
    return found


def _interval(interval: Interval, rate: bool = True) -> dict[str, float | None]:
    """An interval for a JSON file, which knows no NaN."""
    interval = interval.within(0, 1) if rate else interval
    ends = {"estimate": interval.estimate, "low": interval.low, "high": interval.high, "level": interval.level}
    return {name: None if math.isnan(value) else round(float(value), 6) for name, value in ends.items()}


def _leave(out: Path, work: Path, results: Mapping[str, Any], scores: pd.DataFrame, record: Mapping[str, Any]) -> None:
    """Make the finished directory: the model, and what is to be known about it."""
    keep = {work / "reward": ("training.csv",), work / "data": ("quarantine.jsonl", "normalisation.json")}

    def write(directory: Path) -> None:
        for path in sorted((work / "reward" / "model").iterdir()):
            if path.is_file() and not path.name.startswith("."):
                shutil.copyfile(path, directory / path.name)
        for folder, names in keep.items():
            for name in names:
                if not (folder / name).stat().st_size:  # nothing was set aside; an empty file is no part of a model
                    continue
                shutil.copyfile(folder / name, directory / name)
        if (work / "reward" / TRACKED).is_dir():
            shutil.copytree(work / "reward" / TRACKED, directory / TRACKED)
        counts = {name: json.loads((work / "data" / f"{name}.json").read_text()) for name in ("counts", "pair_counts")}
        counts["texts"] = json.loads((work / "reward" / "counts.json").read_text())
        write_json(directory / "counts.json", counts)
        write_json(directory / "results.json", results)
        SCORES.write(directory / "scores.csv", scores)
        write_json(directory / "provenance.json", record)
        write_whole(directory / "README.md", card(directory))

    place(out, write)


def _provenance(
    options: TrainOptions, config: DataConfig, training: RewardTraining, variant: Variant, backbone: str
) -> dict[str, Any]:
    """Where the model comes from; the fields that cards read are `options`, `backbone` and `inputs`."""
    settings = {
        "data": config.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "variant": variant.model_dump(mode="json"),
    }
    given = {name: _plain(value) for name, value in asdict(options).items()}
    extra = {
        "stage": "train",
        "arguments": given,
        "seed": options.seed,
        "inputs": {str(options.data): describe(options.data)},
        "backbone": {"name": options.backbone, "revision": options.revision, **_backbone_facts(backbone)},
        "device": torch.cuda.get_device_name() if own_device().type == "cuda" else "cpu",
        "config": settings,
    }
    return provenance(yaml.safe_dump(settings, sort_keys=False), Path(__file__).parents[3], extra)


def _backbone_facts(backbone: str) -> dict[str, Any]:
    """A local backbone's architecture and its card's licence, as far as the directory says."""
    config = checked_config(backbone)
    facts: dict[str, Any] = {"architecture": config.model_type, "licence": None}
    readme = Path(backbone) / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8")
        if text.startswith("---\n"):
            try:
                head = yaml.safe_load(text[4:].split("\n---", 1)[0]) or {}
            except yaml.YAMLError:
                head = {}
            facts["licence"] = head.get("license") if isinstance(head, dict) else None
    return facts


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _working_directory(options: TrainOptions) -> Path | None:
    """`<out>.unfinished`, made or found; None where everything is done already.

    Raises:
        ConfigError: the directory is not ours, or a training with other options was begun there.
    """
    out, work = options.out, options.out.with_name(f"{options.out.name}.unfinished")
    if (out / "results.json").is_file() and not work.exists():
        if options.resume:
            return None
        raise ConfigError(f"--out {out}: holds a finished model; give another directory, or remove that one first")
    require_ours(out)
    wanted = {name: _plain(value) for name, value in asdict(replace(options, resume=False, out=Path())).items()}
    wanted["data_sha256"] = describe(options.data) if options.data.exists() else None
    wanted = json.loads(json.dumps(wanted))
    mark = work / MARK
    if work.is_dir() and any(work.iterdir()):
        if not mark.is_file():
            raise ConfigError(f"{work}: holds what vrm did not make; move it away, or give another --out")
        begun = json.loads(mark.read_text(encoding="utf-8"))
        changed = [name for name in sorted({*begun, *wanted}) if begun.get(name) != wanted.get(name)]
        if options.resume and changed:
            raise ConfigError(
                f"{work}: begun with other {', '.join(changed)}; give the same options again, or begin anew without "
                "--resume"
            )
        if not options.resume:
            shutil.rmtree(work)
    write_json(mark, wanted)
    return work


def summary(out: Path, results: Mapping[str, Any]) -> str:
    """What a person wants to know when it is done."""
    found = results["held_out"]
    accuracy, longer = (percent(found[name]) for name in ("accuracy", "longer_is_better"))
    return (
        f"\n{out}: trained on {results['pairs']['train']} pairs; on {found['pairs']} held-out pairs of "
        f"{found['prompts']} prompts:\n  accuracy                     {accuracy}\n"
        f"  the longer one, no model     {longer}\n"
        f"try: vrm explain --model {out} --prompt '...' --responses '...' '...'"
    )


def percent(interval: Mapping[str, float | None]) -> str:
    """An accuracy in percent with its interval."""
    text = f"{100 * interval['estimate']:.1f} %"
    if interval["low"] is None:
        return text
    return (
        f"{text} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}] ({100 * interval['level']:.0f} % interval)"
    )
