"""The study's own stages: a world of other annotators with its pairs and sets, and one reward model from first to last.

A model of the study is trained, scored and thrown away in one job: what remains are its scores. The same functions as
the grid's train and score it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from vrm.config import Config
from vrm.data.pairs import make_pairs, normalise_pairs
from vrm.data.preference_sets import read_preference_set
from vrm.data.scored import read_scored_prompts
from vrm.world.write import write_world


def make_study_world(config: Config, name: str, out: Path) -> None:
    """Write a world whose annotators differ from the run's, its pairs, and its evaluation sets.

    Args:
        config: `study.worlds` has it; files that the run's own world makes are looked for in this one instead.
        name: a key of `study.worlds`.
        out: gets `world/`, `data/` and `sets/`.
    """
    write_world(config.world.model_copy(update=config.study.worlds[name].changes()), out / "world")
    data = config.data.model_copy(update={"path": _inside(config, config.data.path, out)})
    for stage in (read_scored_prompts, make_pairs, normalise_pairs):
        stage(data, out / "data")
    for name_of_set in config.evaluation.run:
        source = config.evaluation.sets[name_of_set]
        source = source.model_copy(update={"path": _inside(config, source.path, out)})
        read_preference_set(name_of_set, source, out / "data/pairs/train.jsonl", out / "sets", config.data.aspects)


def _inside(config: Config, path: str | None, out: Path) -> str | None:
    """The same file of another world."""
    own = f"results/{config.run}/world/"
    return f"{out}/world/{path.removeprefix(own)}" if path and path.startswith(own) else path


def train_and_score(
    config: Config,
    variant: str,
    pairs: int,
    seed: int,
    backbone: str,
    data: Path,
    sets: list[Path],
    out: Path,
    tokens: Path | None = None,
) -> None:
    """Train one reward model of the study and write its scores.

    Args:
        config: the run's; its measurements along the training are left out.
        variant: a key of `reward.variants`.
        pairs: how many of the training pairs are used.
        seed: of the training.
        backbone: directory or hub id of a causal LM.
        data: directory with `train.jsonl` and `validation.jsonl`.
        sets: files of evaluation sets.
        out: the CSV, `runfiles.SCORES`.
        tokens: what `vrm tokenise` has made of `data`; None: pairs are tokenised here.
    """
    # here, because worlds need none of it
    from vrm.evaluation.score_sets import score_sets
    from vrm.models.scoring import load_reward_model
    from vrm.training.reward import RewardJob, train_reward_model

    chosen = config.reward.variants[variant]
    training = config.reward.training_of(variant).model_copy(
        update={"pairs": pairs, "evaluations": 1, "evaluation_pairs": 16, "checkpoints": 0}
    )
    with tempfile.TemporaryDirectory() as scratch:
        job = RewardJob(
            variant=chosen,
            training=training,
            aspects=config.data.aspects,
            seed=seed,
            backbone=backbone,
            revision=config.backbone.revision,
            chat_template=config.backbone.chat_template,
            pairs=data,
            checkpoints=Path(scratch) / "checkpoints",
            out=Path(scratch) / "model",
            tokens=tokens,
        )
        train_reward_model(job)
        model = load_reward_model(
            job.out / "model",
            max_prompt_length=training.max_prompt_length,
            max_length=training.max_length,
            batch_size=config.reward.scoring_batch_size,
        )
        score_sets(model, {path.stem: path for path in sets}, data / "train.jsonl", out)
