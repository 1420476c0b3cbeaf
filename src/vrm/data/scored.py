"""Scored prompts from rated responses or preference pairs, in any of the shapes of `vrm.data.shapes`.

* A response is set aside, and counted, when its text or one of its K ratings can't be used ("N/A", missing).
* A rating outside `data.rating_range` stops the reading: who drops one end of a scale trains on a biased half.
* A row is quarantined when its prompt can't be used or fewer than two of its responses can.
* Rows are merged into one scored prompt where their prompts are equal, letter by letter; a response that stands there
  already, with the same scores, is dropped. Prompts that differ in case or white space alone share a split, no more.
* Preference pairs are kept as the source states them (`ScoredPrompt.preferences`).
* Every refused row and every response set aside stands in quarantine.jsonl with its row number and reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vrm.config import DataConfig
from vrm.data.fields import Unusable
from vrm.data.readers import ComparedRow, OutsideRange, RatedRow, Ratings, is_rating
from vrm.data.shapes import COMPARED, RATED, Shape, read_as, recognise
from vrm.data.sources import describe, read_rows
from vrm.records import (
    Prompt,
    Quarantine,
    RecordError,
    ScoredPrompt,
    ScoredResponse,
    prompt_id,
    write_json,
    write_jsonl,
    write_quarantine,
)
from vrm.watch import format_counts

SCALES = ((0, 1), (1, 5), (0, 4), (0, 5), (1, 7), (1, 10), (0, 10), (-1, 1), (0, 100))
"""Rating scales that people use, the first that holds all ratings of a file is proposed."""


@dataclass
class ScoredPrompts:
    """What one pass over a source has found: prompts, merged where they are equal, and what could not be used."""

    refused: Quarantine
    set_aside: Quarantine
    prompts: dict[tuple[tuple[str, str], ...], ScoredPrompt] = field(default_factory=dict)
    used_rows: int = 0
    repeated_responses: int = 0
    repeated_preferences: int = 0
    outside: list[OutsideRange] = field(default_factory=list)
    alone: dict[tuple[tuple[str, str], ...], list[tuple[int, Any]]] = field(default_factory=dict)

    def read(self, number: int, row: Mapping[str, Any], shape: Shape, ratings: Ratings) -> None:
        """Take a row, or note why it can't be used."""
        try:
            if shape.rate is not None:
                self._add_rated(number, row, shape.rate(row, ratings))
            else:
                self._add_compared(shape.compare(row, ratings.aspects))
        except Unusable as error:
            self.refused.add(number, str(error), row)

    def finish(self) -> None:
        """Refuse the rows of prompts that were left with one response."""
        for key, rows in self.alone.items():
            del self.prompts[key]
            self.used_rows -= len(rows)
            for number, row in rows:
                self.refused.add(number, "the only usable response of its prompt", row)
        self.alone = {}

    def counts(self) -> dict[str, Any]:
        """The content of counts.json."""
        responses = [response for prompt in self.prompts.values() for response in prompt.responses]
        stated = [prompt.preferences for prompt in self.prompts.values() if prompt.preferences is not None]
        return {
            "rows": self.used_rows + len(self.refused.rows),
            "rows_quarantined": len(self.refused.rows),
            "rows_quarantined_because": self.refused.counts(),
            "rows_merged_into_an_equal_prompt": self.used_rows - len(self.prompts),
            "prompts": len(self.prompts),
            "prompts_with_true_weights": sum(prompt.true_weights is not None for prompt in self.prompts.values()),
            "responses": len(responses),
            "responses_without_scores": sum(not response.scores for response in responses),
            "responses_without_overall_score": sum(response.overall is None for response in responses),
            "responses_repeated_and_dropped": self.repeated_responses,
            "responses_set_aside": len(self.set_aside.rows),
            "responses_set_aside_because": self.set_aside.counts(),
            "preferences_stated": sum(map(len, stated)),
            "preferences_repeated_and_dropped": self.repeated_preferences,
        }

    def _add_rated(self, number: int, row: Mapping[str, Any], rated: RatedRow) -> None:
        self.outside += [fault for _, fault in rated.faults if isinstance(fault, OutsideRange)]
        if rated.whole:
            rated.require_two()
        elif not rated.responses:
            raise rated.faults[0][1]
        for entry, fault in rated.faults:
            self.set_aside.add(number, str(fault), entry)
        key = _key(rated.prompt)
        known = self._prompt(key, rated.prompt, rated.true_weights)
        self._merge(key, known, rated.responses)
        if not rated.whole:
            self._note_if_alone(key, number, row)

    def _add_compared(self, compared: ComparedRow) -> None:
        key = _key(compared.prompt)
        known = self._prompt(key, compared.prompt, compared.true_weights)
        chosen = [ScoredResponse("", text, compared.chosen_scores or []) for text in compared.chosen]
        rejected = [ScoredResponse("", text, compared.rejected_scores or []) for text in compared.rejected]
        responses, places = list(known.responses), []
        for response in chosen + rejected:
            if response not in responses:
                responses.append(response)
            places.append(responses.index(response))
        self.repeated_responses += len(places) - (len(responses) - len(known.responses))
        stated = [[better, worse] for better in places[: len(chosen)] for worse in places[len(chosen) :]]
        before = known.preferences or []
        new = [preference for preference in stated if preference not in before]
        self.repeated_preferences += len(stated) - len(new)
        self.prompts[key] = replace(known, responses=responses, preferences=before + new)

    def _prompt(self, key: Any, prompt: Prompt, true_weights: list[float] | None) -> ScoredPrompt:
        self.used_rows += 1
        known = self.prompts.get(key)
        if known is None:
            known = self.prompts[key] = ScoredPrompt(prompt_id(prompt), prompt, [], true_weights)
        return known

    def _merge(self, key: Any, known: ScoredPrompt, responses: list[ScoredResponse]) -> None:
        if known.responses:
            new = [response for response in responses if response not in known.responses]
            self.repeated_responses += len(responses) - len(new)
            responses = known.responses + new
        self.prompts[key] = replace(known, responses=responses)

    def _note_if_alone(self, key: Any, number: int, row: Mapping[str, Any]) -> None:
        if len(self.prompts[key].responses) < 2:
            self.alone.setdefault(key, []).append((number, row))
        else:
            self.alone.pop(key, None)


def read_scored_prompts(config: DataConfig, out_dir: Path) -> dict[str, Any]:
    """Read scored prompts into `out_dir`: scored.jsonl, quarantine.jsonl, counts.json; print the counts.

    Args:
        config: the source, the names of the K aspects, the range of ratings, and what the preference comes from.
        out_dir: where the three files go.

    Returns:
        The content of counts.json.

    Raises:
        ConfigError: the source is missing or of an unsupported kind.
        RecordError: no row can be used, or a rating is outside the range; says why, and what to do about it. Quarantine
            and counts are written all the same.
    """
    source = describe(config)
    reading = ScoredPrompts(Quarantine(source), Quarantine(source))
    shape, example, rows = recognise(
        read_rows(config, reading.refused), config.shape, (*RATED, *COMPARED), "ultrafeedback"
    )
    _require_aspects(source, shape, example, config)
    ratings = _ratings(shape, config)
    columns: dict[str, None] = {}
    aspects: dict[str, None] = {}
    wanted = set(config.aspects)
    for number, row in rows:
        columns.update(dict.fromkeys(row))
        if shape.name == "ultrafeedback" and not aspects.keys() >= wanted:
            aspects.update(dict.fromkeys(annotated_aspects(row)))  # for the message where one is never found
        reading.read(number, row, shape, ratings)
    reading.finish()

    counts = {
        "source": source,
        "read_as": read_as(shape, example, config.aspects, ratings.range),
        "columns_not_read": shape.unread(columns, example, config.aspects),
        "aspects": config.aspects,
        **reading.counts(),
    }
    write_quarantine(out_dir / "quarantine.jsonl", reading.refused, reading.set_aside)
    write_json(out_dir / "counts.json", counts)
    if reading.outside:
        raise _outside_range(reading, config, shape, ratings)
    if not reading.prompts:
        raise _no_prompt(reading.refused, columns, aspects, shape, example, config)
    write_jsonl(out_dir / "scored.jsonl", reading.prompts.values())
    print(format_counts("Scored prompts", counts))
    return counts


def _ratings(shape: Shape, config: DataConfig) -> Ratings:
    rating_range = config.rating_range or shape.rating_range or (1, 5)
    return Ratings(config.aspects, rating_range, config.preference_from == "overall_score")


def _key(prompt: Prompt) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in prompt)


def annotated_aspects(row: Mapping[str, Any]) -> list[str]:
    """Names under `annotations` that have a value (Parquet gives every row the union of the names)."""
    completions = row.get("completions")
    if not isinstance(completions, list):
        return []
    annotations = [
        c["annotations"] for c in completions if isinstance(c, dict) and isinstance(c.get("annotations"), dict)
    ]
    return [name for annotation in annotations for name, value in annotation.items() if value is not None]


def _require_aspects(source: str, shape: Shape, example: Mapping[str, Any], config: DataConfig) -> None:
    """Stop where the ratings are columns of the file and the configured ones are not among them."""
    if shape.name == "rated_responses":
        # numbers may be texts, and a rating of the first row may be missing
        having: Iterable[str] = [name for name, value in example.items() if is_rating(value, name)]
        absent = [aspect for aspect in config.aspects if aspect not in example]
    else:
        having = shape.aspects
        absent = [aspect for aspect in config.aspects if aspect not in having]
    if (shape.aspects or shape.name == "rated_responses") and absent:
        title = read_as(shape, example, shape.aspects or config.aspects, shape.rating_range or config.rating_range)
        shape_key = f" (data.shape: {shape.name} does, with no aspects set)" if shape.aspects else ""
        raise RecordError(
            f"{source}: read as {title}; its ratings are: {', '.join(having)}; configured but absent: "
            f"{', '.join(absent)}; set data.aspects: [{', '.join(having)}]{shape_key}"
        )


def _outside_range(reading: ScoredPrompts, config: DataConfig, shape: Shape, ratings: Ratings) -> RecordError:
    """The error for ratings outside the range: how many, of which aspects, and the range that would hold them."""
    low, high = ratings.range
    lowest, highest = _extremes(reading.outside, config, shape, ratings)
    scales = (*((shape.rating_range,) if shape.rating_range else ()), *SCALES)
    whole = math.floor(lowest), math.ceil(highest)
    a, b = next(((a, b) for a, b in scales if a <= lowest and highest <= b), whole)
    by_aspect = ", ".join(f"{name} {n}" for name, n in Counter(fault.aspect for fault in reading.outside).items())
    usable = sum(len(prompt.responses) for prompt in reading.prompts.values())
    return RecordError(
        f"{reading.refused.source}: {len(reading.outside)} responses have a rating outside data.rating_range "
        f"[{low:g}, {high:g}] ({by_aspect}); {usable} others could be used. The file's ratings run from {lowest:g} to "
        f"{highest:g}.\nset data.rating_range: [{a:g}, {b:g}], or correct the ratings (quarantine.jsonl has their "
        "rows); to leave them out would lose one end of the scale, which is a bias and not noise"
    )


def _extremes(
    outside: Iterable[OutsideRange], config: DataConfig, shape: Shape, ratings: Ratings
) -> tuple[float, float]:
    """Lowest and highest rating of the file, read again without a range."""
    anything = ScoredPrompts(Quarantine(""), Quarantine(""))
    for number, row in read_rows(config, anything.refused):
        anything.read(number, row, shape, ratings._replace(range=None, overall=False))
    scores = [s for prompt in anything.prompts.values() for response in prompt.responses for s in response.scores]
    scores += [fault.value for fault in outside]
    return min(scores), max(scores)


def _no_prompt(
    refused: Quarantine,
    columns: Iterable[str],
    aspects: Iterable[str],
    shape: Shape,
    example: Mapping[str, Any],
    config: DataConfig,
) -> RecordError:
    found = ", ".join(columns) or "none"
    if shape.name != "ultrafeedback":
        remedy = f"they were read as {shape.title}; columns found: {found}; data.shape names another shape"
    elif not shape.fits(example):
        remedy = (
            "expected columns: instruction, completions (UltraFeedback's shape), or those of another shape of "
            f"docs/cases.md; found: {found}"
        )
    elif not aspects:
        keys = dict.fromkeys(key for c in example["completions"] if isinstance(c, dict) for key in c)
        remedy = (
            'no completion has ratings; expected "annotations": {aspect: {"Rating": number}} in each, '
            f"found: {', '.join(keys) or 'none'}"
        )
    elif absent := [aspect for aspect in config.aspects if aspect not in aspects]:
        remedy = (
            f"aspects found in the file: {', '.join(aspects)}; configured but absent: {', '.join(absent)}; "
            "set data.aspects"
        )
    else:
        remedy = f"check data.preference_from ({config.preference_from})"
    return refused.none_usable(remedy)
