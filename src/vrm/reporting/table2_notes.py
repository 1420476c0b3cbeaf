"""The notes below Table 2: what the intervals cover, what a policy is scored by, what is missing, cut or tied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vrm.config import Config
from vrm.evaluation.reward_bench import missing_subsets

from .accuracies import Measurements
from .results import PROBES, Scorer

_PAPER_NOTE = (
    "† The paper's value, on ANOTHER SCALE: Qwen3-4B reward models{policies}, trained and measured on the real data. "
    "Printed for orientation, not comparable with ours."
)


def notes(config: Config, measured: Measurements, has_paper: bool) -> Iterator[str]:
    """All notes in order; `has_paper` says whether the table repeats values of the paper."""
    policies = [scorer for scorer in measured.scorers if scorer.group == "policy"]
    models = [scorer for scorer in measured.scorers if scorer.group != "policy"]
    yield from _interval_notes(config, policies, models)
    if policies:
        yield _reward_note(config, policies)
    if has_paper:
        yield _PAPER_NOTE.format(policies=" and the paper's own policies" if policies else "")
    if any(scorer.ours for scorer in measured.scorers):
        yield "(ours): not in the paper."
    if PROBES in config.evaluation.run:
        yield f"{config.evaluation.sets[PROBES].label}: read one by one in the world table."
    yield from _section_notes(config, measured)
    yield from _count_notes(config, measured)


def clean_notes(config: Config, measured: Measurements) -> Iterator[str]:
    """The notes below the table without leaked prompts: its intervals, and what may be missing from a section."""
    policies = [scorer for scorer in measured.scorers if scorer.group == "policy"]
    models = [scorer for scorer in measured.scorers if scorer.group != "policy"]
    yield from _interval_notes(config, policies, models)
    yield (
        "Of the sets that share a prompt with the training data; prompts are the same where they are equal in Unicode "
        "NFKC, whatever their case and white space. Sections are weighted as above, over the subsets that are left."
    )


def _interval_notes(config: Config, policies: Sequence[Scorer], models: Sequence[Scorer]) -> Iterator[str]:
    """Seeds and intervals; apart for policies where they have other seeds than the reward models."""
    same = not policies or list(policies[0].seeds) == list(models[0].seeds)
    whose = "" if same else "Reward models: "
    yield f"Data: {config.data.label}. {whose}{_interval(config, models[0].seeds, whose)}"
    if same:
        return
    several = len(policies[0].seeds) > 1 and len(models[0].seeds) > 1
    width = "" if several else " Compare the widths of both with that in mind."
    yield f"Policies: {_interval(config, policies[0].seeds, 'Policies: ')}{width}"


def _interval(config: Config, seeds: Sequence[int], inside_sentence: str) -> str:
    mean, one = ("mean", "one seed") if inside_sentence else ("Mean", "One seed")
    level = f"{100 * config.report.level:g} %"
    if len(seeds) > 1:
        return (
            f"{mean} of {len(seeds)} seeds ({', '.join(map(str, seeds))}); in brackets the {level} interval over seeds "
            "and prompts (variance components, Student's t)."
        )
    return (
        f"{one} ({seeds[0]}); in brackets the {level} interval over prompts (Student's t), which leaves out the "
        "variation between seeds."
    )


def _reward_note(config: Config, policies: Sequence[Scorer]) -> str:
    """What a policy is scored by, and from which base it was trained."""
    base = config.policy.bases[config.policy.scorers_from]
    methods = config.policy.methods
    free = [scorer.label for scorer in policies if not methods[scorer.name].needs_reference]
    note = f"Policies, trained from {base.label}: {'; '.join(scorer.label for scorer in policies)}."
    implicit = "the implicit reward, the sum over the response's tokens, end token included, of log π - log π_start"
    per_token = "the mean log-probability per token of the response, end token included"
    if not free:
        return f"{note} A policy scores by {implicit}."
    if len(free) == len(policies):
        return f"{note} A policy scores by {per_token}."
    verb = "score" if len(free) > 1 else "scores"
    return f"{note} A policy scores by {implicit}; {' and '.join(free)}, without a reference, {verb} by {per_token}."


def _section_notes(config: Config, measured: Measurements) -> Iterator[str]:
    """What RewardBench's sections are, and which subsets they lack."""
    first = measured.scorers[0].name
    for name in dict.fromkeys(column.evaluation_set for column in measured.columns):
        evaluation_set = config.evaluation.sets[name]
        if evaluation_set.format != "reward_bench":
            continue
        missing = missing_subsets(set(measured.sets[first, name].subsets.tolist()))
        yield (
            f"{evaluation_set.label}: a section is the mean of its subsets, weighted as RewardBench weighs them; "
            "in its interval prompts vary within subsets."
        )
        listed = "; ".join(f"{section}: {', '.join(subsets)}" for section, subsets in missing.items())
        if listed:
            yield (
                f"{evaluation_set.label} lacks these subsets, so that its sections are not RewardBench's own: {listed}."
            )


def _count_notes(config: Config, measured: Measurements) -> Iterator[str]:
    """Leaked prompts, truncated pairs and ties of each evaluation set."""
    for name in dict.fromkeys(column.evaluation_set for column in measured.columns):
        scores = measured.sets[measured.scorers[0].name, name]
        prompts = len(set(scores.prompts[scores.leaked].tolist()))
        ties = {scorer.label: int(measured.sets[scorer.name, name].ties.sum()) for scorer in measured.scorers}
        tied = ", ".join(f"{label} {count}" for label, count in ties.items() if count)
        pairs = len(scores.prompts)
        yield (
            f"{config.evaluation.sets[name].label}: {pairs} pairs of {len(set(scores.prompts.tolist()))} prompts; in "
            f"training too: {prompts} prompts ({int(scores.leaked.sum())} of the pairs); cut before scoring: "
            f"{_truncated(measured, name)}; ties, which count as losses: {tied or 'none'}."
        )


def _truncated(measured: Measurements, set_name: str) -> str:
    """Cut pairs; by group where tokenizers and limits make them differ."""
    groups: dict[str, set[int]] = {}
    for scorer in measured.scorers:
        group = "policies" if scorer.group == "policy" else "reward models"
        groups.setdefault(group, set()).add(int(measured.sets[scorer.name, set_name].truncated.sum()))
    if len(set().union(*groups.values())) == 1:
        return f"{groups.popitem()[1].pop()} of the pairs"
    return ", ".join(f"{_span(counts)} of the pairs ({group})" for group, counts in groups.items())


def _span(counts: set[int]) -> str:
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
