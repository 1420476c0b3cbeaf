"""Scored prompts from UltraFeedback's record shape.

    {"instruction": text or messages,
     "completions": [{"model", "response", "annotations": {aspect: {"Rating"}}, "overall_score"}],
     "true_weights": [K numbers]}                       # optional; only where the truth is known

* A response is set aside, and counted, when its text or one of its K ratings can't be used ("N/A", missing, out of
  range).
* A row is quarantined when its prompt can't be used or fewer than two of its responses can.
* Rows with the same prompt (equal `prompt_id`) are merged into one scored prompt, under the first row's spelling; a
  response that stands there already, with the same scores, is dropped. So a prompt is one record from here on.
* Every refused row and every response set aside stands in quarantine.jsonl with its row number and reason.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vrm.config import DataConfig
from vrm.data.sources import (
    Unusable,
    describe,
    format_counts,
    none_usable,
    parse_label,
    parse_number,
    parse_numbers,
    parse_prompt,
    parse_text,
    read_rows,
    write_quarantine,
)
from vrm.records import Quarantine, RecordError, ScoredPrompt, ScoredResponse, prompt_id, write_json, write_jsonl


@dataclass
class _Reading:
    """What one pass over the source has found so far."""

    refused: Quarantine
    set_aside: Quarantine
    prompts: dict[str, ScoredPrompt] = field(default_factory=dict)
    used_rows: int = 0
    repeated_responses: int = 0
    columns: dict[str, None] = field(default_factory=dict)
    aspects: dict[str, None] = field(default_factory=dict)

    def add(self, scored: ScoredPrompt) -> None:
        """Take a usable row, merging it into the prompt that it repeats, if any."""
        self.used_rows += 1
        known = self.prompts.setdefault(scored.prompt_id, scored)
        if known is not scored:
            new = [response for response in scored.responses if response not in known.responses]
            self.repeated_responses += len(scored.responses) - len(new)
            self.prompts[scored.prompt_id] = replace(known, responses=known.responses + new)

    def counts(self) -> dict[str, Any]:
        """The content of counts.json."""
        responses = [response for prompt in self.prompts.values() for response in prompt.responses]
        return {
            "rows": self.used_rows + len(self.refused.rows),
            "rows_quarantined": len(self.refused.rows),
            "rows_quarantined_because": self.refused.counts(),
            "rows_merged_into_an_equal_prompt": self.used_rows - len(self.prompts),
            "prompts": len(self.prompts),
            "prompts_with_true_weights": sum(prompt.true_weights is not None for prompt in self.prompts.values()),
            "responses": len(responses),
            "responses_without_overall_score": sum(response.overall is None for response in responses),
            "responses_repeated_and_dropped": self.repeated_responses,
            "responses_set_aside": len(self.set_aside.rows),
            "responses_set_aside_because": self.set_aside.counts(),
        }


def read_scored_prompts(config: DataConfig, out_dir: Path) -> dict[str, Any]:
    """Read scored prompts into `out_dir`: scored.jsonl, quarantine.jsonl, counts.json; print the counts.

    Args:
        config: the source, the names of the K aspects, the range of ratings, and what the preference comes from.
        out_dir: where the three files go.

    Returns:
        The content of counts.json.

    Raises:
        ConfigError: the source is missing or of an unsupported kind.
        RecordError: no row can be used; says why, and what to mend. Quarantine and counts are written all the same.
    """
    source = describe(config)
    reading = _Reading(Quarantine(source), Quarantine(source))
    for number, row in read_rows(config, reading.refused):
        reading.columns.update(dict.fromkeys(row))
        reading.aspects.update(dict.fromkeys(_annotated_aspects(row)))
        try:
            scored, faults = parse_scored_prompt(row, config)
        except Unusable as error:
            reading.refused.add(number, str(error), row)
            continue
        for completion, reason in faults:
            reading.set_aside.add(number, reason, completion)
        reading.add(scored)

    counts = {"source": source, "aspects": config.aspects, **reading.counts()}
    write_quarantine(out_dir / "quarantine.jsonl", reading.refused, reading.set_aside)
    write_json(out_dir / "counts.json", counts)
    if not reading.prompts:
        raise _no_prompt(reading, config)
    write_jsonl(out_dir / "scored.jsonl", reading.prompts.values())
    print(format_counts("Scored prompts", counts))
    return counts


def parse_scored_prompt(row: dict[str, Any], config: DataConfig) -> tuple[ScoredPrompt, list[tuple[Any, str]]]:
    """One record of UltraFeedback's shape.

    Returns:
        The scored prompt, and each completion that was set aside with the reason.

    Raises:
        Unusable: the prompt can't be used, or fewer than two responses can.
    """
    prompt = parse_prompt(row.get("instruction"), "instruction")
    completions = row.get("completions")
    if not isinstance(completions, list):
        raise Unusable("completions is not a list")
    responses, faults = [], []
    for completion in completions:
        try:
            responses.append(_parse_response(completion, config))
        except Unusable as error:
            faults.append((completion, str(error)))
    if len(responses) < 2:
        # the commonest reason alone: all of them together would make nearly every row a reason of its own
        common = Counter(reason for _, reason in faults).most_common(1)
        raise Unusable("fewer than 2 usable responses" + (f", mostly: {common[0][0]}" if common else ""))
    weights = parse_numbers(row.get("true_weights"), len(config.aspects), "true_weights")
    return ScoredPrompt(prompt_id(prompt), prompt, responses, weights), faults


def _parse_response(completion: Any, config: DataConfig) -> ScoredResponse:
    if not isinstance(completion, dict):
        raise Unusable("a completion is not an object")
    text = parse_text(completion.get("response"), "response")
    scores = [_parse_rating(completion.get("annotations"), aspect, config.rating_range) for aspect in config.aspects]
    try:
        overall = parse_number(completion.get("overall_score"), "overall_score")
    except Unusable:
        if config.preference_from == "overall_score":
            raise
        overall = None
    return ScoredResponse(parse_label(completion.get("model"), "model"), text, scores, overall)


def _parse_rating(annotations: Any, aspect: str, rating_range: tuple[float, float]) -> float:
    annotation = annotations.get(aspect) if isinstance(annotations, dict) else None
    rating = parse_number(annotation.get("Rating") if isinstance(annotation, dict) else None, f"rating of {aspect}")
    low, high = rating_range
    if not low <= rating <= high:
        raise Unusable(f"rating of {aspect} is outside {low:g}..{high:g}")
    return rating


def _annotated_aspects(row: dict[str, Any]) -> list[str]:
    """Names under `annotations` that have a value (Parquet gives every row the union of the names)."""
    completions = row.get("completions")
    if not isinstance(completions, list):
        return []
    annotations = [
        c["annotations"] for c in completions if isinstance(c, dict) and isinstance(c.get("annotations"), dict)
    ]
    return [name for annotation in annotations for name, value in annotation.items() if value is not None]


def _no_prompt(reading: _Reading, config: DataConfig) -> RecordError:
    if not reading.aspects:
        columns = ", ".join(reading.columns) or "none"
        mend = f"expected columns: instruction, completions (UltraFeedback's shape); found: {columns}"
    elif absent := [aspect for aspect in config.aspects if aspect not in reading.aspects]:
        mend = (
            f"aspects found in the file: {', '.join(reading.aspects)}; configured but absent: {', '.join(absent)}; "
            "set data.aspects"
        )
    else:
        mend = f"check data.rating_range ({config.rating_range}) and data.preference_from ({config.preference_from})"
    return none_usable(reading.refused, mend)
