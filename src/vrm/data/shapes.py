"""The shapes that public preference data have: how each is recognised, what it is called, what reads its rows.

A file's shape is that of its first row that fits one (`recognise`), unless the configuration names it. A row that does
not fit the file's shape is refused by its reader, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

from vrm.config.base import ShapeName
from vrm.config.data import SHAPE_ASPECTS
from vrm.data import readers
from vrm.data.fields import SYSTEM_COLUMNS, is_transcript, prompt_column
from vrm.data.readers import PAIR_PROMPT, RATED_PROMPT, SCORES, SIDES, ComparedRow, RatedRow, Ratings

Row = Mapping[str, Any]
LOOK_AT = 100  # rows among which one that fits a shape is looked for
PROMPTS = {*PAIR_PROMPT, *RATED_PROMPT}
ALWAYS_READ = {*SYSTEM_COLUMNS, "history"}
OWN_COLUMNS = {"prompt_id", "chosen_normalised", "rejected_normalised", "target"}
"""Columns of the project's own pairs that are of no use here; they are not worth a word."""


@dataclass(frozen=True)
class Shape:
    """A way to write rated or compared responses.

    Args:
        name: value of `shape` in the configuration.
        title: what it is called in messages.
        fits: whether a row looks like it.
        columns: names that are read, but for those of the prompt and the aspects.
        prompts: columns that may hold the prompt, in the order in which they count.
        rate: reads a row of rated responses; None where rows are comparisons.
        compare: reads a row of compared responses, given the names of the aspects; None where rows are ratings.
        aspects: the aspects that it has, where these are always the same.
        rating_range: the scale of its ratings, where that is always the same.
    """

    name: ShapeName
    title: str
    fits: Callable[[Row], bool]
    columns: frozenset[str]
    prompts: Sequence[str]
    rate: Callable[[Row, Ratings], RatedRow] | None = None
    compare: Callable[[Row, Sequence[str]], ComparedRow] | None = None
    aspects: tuple[str, ...] = ()
    rating_range: tuple[float, float] | None = None

    def unread(self, columns: Iterable[str], row: Row, aspects: Sequence[str]) -> list[str]:
        """Those of a file's columns that are not read; `row` shows which one holds the prompt."""
        asked = {prompt_column(row, self.prompts), *(aspects if self.rate is readers.read_table else ())}
        asked |= {"input"} if "instruction" in asked else set()
        own = OWN_COLUMNS if "prompt_id" in row and "pair_id" in row else set()
        return [column for column in columns if column not in self.columns | ALWAYS_READ | asked | own]


def _has(*columns: str) -> Callable[[Row], bool]:
    return lambda row: all(row.get(column) is not None for column in columns)


def _is_table(row: Row) -> bool:
    return isinstance(row.get("response"), str) and not any(
        row.get(side) is not None for pair in SIDES for side in pair
    )


def _is_distilabel(row: Row) -> bool:
    return isinstance(row.get("generations"), list) and any(isinstance(row.get(n), list) for n in ("ratings", "rating"))


def _are_lists_of_texts(row: Row) -> bool:
    sides = [row.get(name) for name in SIDES[0]]
    lists = [isinstance(side, list) and bool(side) and isinstance(side[0], str) for side in sides]
    return any(lists) and all(is_list or isinstance(side, str) for is_list, side in zip(lists, sides, strict=True))


def _is_rm_bench(row: Row) -> bool:
    counted = row.get("num_correct") is not None or row.get("total_completions") is not None
    return _are_lists_of_texts(row) and not counted and len(row["chosen"]) == len(row["rejected"]) == 3


def _is_pair(row: Row) -> bool:
    return any(all(row.get(name) is not None for name in names) for names in SIDES)


_PAIR_COLUMNS = frozenset({name for names in SIDES for name in names} | {*SCORES, "subset", "id", "pair_id"})
_PAIR = {"columns": _PAIR_COLUMNS, "prompts": PAIR_PROMPT}
_IDS = {"id", "pair_id"}

RATED = (
    Shape(
        "ultrafeedback",
        "UltraFeedback",
        lambda row: isinstance(row.get("completions"), list),
        frozenset({"completions", "true_weights"}),
        RATED_PROMPT,
        rate=readers.read_ultrafeedback,
    ),
    Shape(
        "distilabel",
        "distilabel's UltraFeedback",
        _is_distilabel,
        frozenset({"generations", "ratings", "rating", "generation_models", "model_names"}),
        RATED_PROMPT,
        rate=readers.read_distilabel,
    ),
    Shape(
        "helpsteer2",
        "HelpSteer2",
        lambda row: _is_table(row) and _has(*readers.HELPSTEER_ASPECTS)(row),
        frozenset({"response", "model", "overall_score", "helpfulness"}),
        ("prompt", *RATED_PROMPT),
        rate=readers.read_table,
        aspects=SHAPE_ASPECTS["helpsteer2"],
        rating_range=(0, 4),
    ),
    Shape(
        "pku_saferlhf",
        "PKU-SafeRLHF",
        _has("response_0", "response_1", "better_response_id", "safer_response_id"),
        frozenset(
            {f"response_{i}{end}" for i in (0, 1) for end in ("", "_source")}
            | {"better_response_id", "safer_response_id"}
        ),
        ("prompt", *RATED_PROMPT),
        rate=readers.read_pku,
        aspects=SHAPE_ASPECTS["pku_saferlhf"],
        rating_range=(0, 1),
    ),
    Shape(
        "nectar",
        "Nectar",
        lambda row: isinstance(row.get("answers"), list),
        frozenset({"answers"}),
        ("prompt", *RATED_PROMPT),
        rate=readers.read_nectar,
    ),
    Shape(
        "rated_responses",
        "one rated response a row",
        _is_table,
        frozenset({"response", "model", "overall_score", "helpfulness"}),
        ("prompt", *RATED_PROMPT),
        rate=readers.read_table,
    ),
)
COMPARED = (
    Shape(
        "helpsteer3",
        "HelpSteer3's preferences",
        _has("response1", "response2", "overall_preference"),
        frozenset({"response1", "response2", "overall_preference", "domain", *_IDS}),
        ("context", *PAIR_PROMPT),
        compare=readers.read_helpsteer3,
    ),
    Shape(
        "helpsteer2_preference",
        "HelpSteer2's preferences",
        _has("response_1", "response_2", "preference_strength"),
        frozenset({"response_1", "response_2", "preference_strength", *_IDS}),
        PAIR_PROMPT,
        compare=readers.read_helpsteer2_preference,
    ),
    Shape(
        "judgebench",
        "JudgeBench",
        _has("response_A", "response_B", "label"),
        frozenset({"response_A", "response_B", "label", "source", *_IDS}),
        ("question", *PAIR_PROMPT),
        compare=readers.read_judgebench,
    ),
    Shape("rm_bench", "RM-Bench", _is_rm_bench, _PAIR_COLUMNS | {"domain"}, PAIR_PROMPT, compare=readers.read_pair),
    Shape(
        "reward_bench_2",
        "RewardBench 2",
        _are_lists_of_texts,
        _PAIR_COLUMNS | {"num_correct", "num_incorrect", "total_completions"},
        PAIR_PROMPT,
        compare=readers.read_pair,
    ),
    Shape("pairs", "preference pairs", _is_pair, compare=readers.read_pair, **_PAIR),
    Shape(
        "pku_saferlhf_single",
        "PKU-SafeRLHF, one dimension",
        lambda row: (
            _has("response_0", "response_1", "better_response_id")(row) and row.get("safer_response_id") is None
        ),
        frozenset({"response_0", "response_1", "better_response_id", *_IDS}),
        PAIR_PROMPT,
        compare=readers.read_pku_single,
    ),
    Shape(
        "implicit_prompt",
        "preference pairs with an implicit prompt",
        lambda row: False,  # a common beginning may be an accident: it is taken only where the configuration says so
        compare=partial(readers.read_pair, implicit=True),
        **_PAIR,
    ),
)
SHAPES: dict[ShapeName, Shape] = {shape.name: shape for shape in (*RATED, *COMPARED)}
"""All of them, by name."""


def recognise(
    rows: Iterable[tuple[int, Row]], forced: ShapeName | None, order: Sequence[Shape], default: ShapeName
) -> tuple[Shape, Row, Iterator[tuple[int, Row]]]:
    """The shape of a source's rows.

    Args:
        rows: (number, row) of each row.
        forced: the shape's name where the configuration says it.
        order: shapes to try, in this order, on each of the first rows.
        default: the shape whose reader says what is missing, where no row fits any.

    Returns:
        The shape, the row that shows it (an empty one where none fits), and all the rows.
    """
    rows = iter(rows)
    first = list(islice(rows, LOOK_AT))
    tried = [SHAPES[forced]] if forced else order
    shape, example = next(((s, row) for _, row in first for s in tried if s.fits(row)), (SHAPES[forced or default], {}))
    return shape, example or (first[0][1] if first else {}), chain(first, rows)


def kind_of_pair(row: Row) -> str:
    """What people call a row of preference pairs, by what stands in its columns."""
    names = next((names for names in SIDES if row.get(names[0]) is not None), SIDES[0])
    side = row.get(names[0])
    if is_transcript(side):
        return "HH transcripts"
    if isinstance(side, (list, dict)):
        message = side if isinstance(side, dict) else next(iter(side), None)
        if isinstance(message, dict) and message.get("from") is not None:
            return "ShareGPT pairs"
        return "pairs of conversations" if names == SIDES[0] else "OpenAI's preference pairs"
    if "pair_id" in row and "prompt_id" in row:
        return "the project's own pairs"
    if names == SIDES[1]:
        return "Argilla's binarized pairs"
    if row.get("subset") is not None:
        return "RewardBench's columns"
    if row.get("prompt") is None and row.get("question") is not None:
        return "orca_dpo_pairs"
    return "prompt, chosen, rejected"


def read_as(shape: Shape, example: Row, aspects: Sequence[str], rating_range: tuple[float, float] | None) -> str:
    """What a source was read as, for people: "HelpSteer2: 5 aspects, 0-4"."""
    if shape.name == "pairs":
        return f"{shape.title}: {kind_of_pair(example)}"
    if shape.rate is None or shape.name == "nectar" or (shape.name == "distilabel" and len(aspects) > 1):
        return shape.title + {"nectar": ": ranks", "distilabel": ": an overall rating"}.get(shape.name, "")
    low, high = rating_range or (1, 5)
    return f"{shape.title}: {len(aspects)} aspect{'s' if len(aspects) > 1 else ''}, {low:g}-{high:g}"
