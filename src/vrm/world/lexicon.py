"""What is true in the world, the words in which a response gives its evidence, and the book that reads them back.

* True are twelve herbs and four facts about each, the same for every seed: a seed decides what is asked and answered.
* Honesty and helpfulness are mostly lexical: a phrase is good or bad whatever the prompt says. Instruction following
  and truthfulness need the prompt or the facts: whether "a word on the price" is good depends on what was asked. Each
  has one lexical slot besides (`focus`, `common`).
* No phrase occurs inside another one (tested), so that what is written is what is read.
* Text is read as words and clause marks: punctuation becomes a mark, so a phrase never reaches across it. A
  `PhraseBook` scans once from left to right and takes the longest phrase that begins at a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vrm.records import normalise_text

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": ("red", "blue", "white", "yellow", "purple", "orange"),
    "place": ("rivers", "hills", "walls", "forests", "marshes", "sands"),
    "season": ("spring", "summer", "autumn", "winter"),
    "taste": ("bitter", "sweet", "sour", "salty", "mild", "peppery"),
}
"""Every attribute with its possible values."""

FACT_PHRASES: dict[str, tuple[str, ...]] = {
    "colour": ("has {} petals", "shows {} flowers", "bears {} blossoms"),
    "place": ("grows near {}", "is found by {}", "thrives among {}"),
    "season": ("flowers in {}", "blooms in {}", "opens in {}"),
    "taste": ("tastes {}", "has a {} taste", "makes {} tea"),
}
"""How an attribute is stated; a subject (the herb, or "it") goes before."""

_TABLE = """
marlow   red     rivers   spring  bitter
tansel   blue    hills    summer  sweet
brindle  white   walls    autumn  sour
corvan   yellow  forests  winter  salty
dillow   purple  marshes  spring  mild
fennick  orange  sands    summer  peppery
galden   red     hills    autumn  mild
hesper   blue    walls    winter  peppery
lorrel   white   forests  spring  sweet
minthe   yellow  marshes  summer  sour
orrin    purple  sands    autumn  bitter
quillan  orange  rivers   winter  salty
"""

HERBS: dict[str, dict[str, str]] = {
    herb: dict(zip(ATTRIBUTES, values, strict=True)) for herb, *values in map(str.split, _TABLE.split("\n")[1:-1])
}
"""The true value of each attribute of each herb."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PEOPLE = ("anna", "boris", "clara", "david", "ella", "frank")
BOXES = ("basket", "chest", "drawer", "sack", "barrel", "crate")
ROOMS = ("cellar", "attic", "kitchen", "barn", "stable", "hall")
SHADES = ("grey", "green", "black", "brown", "pink", "golden")
VALUES = (*NUMBERS, *PEOPLE, *BOXES, *ROOMS, *SHADES)
"""Everything that a puzzle's answer or start can be."""

CLAUSE_MARK = "|"


@dataclass(frozen=True)
class Piece:
    """What a phrase says: a value in a slot, e.g. the slot `season` with the value `spring`."""

    slot: str
    value: str


@dataclass(frozen=True)
class Found:
    """A known phrase that occurs in a text."""

    phrase: str
    piece: Piece


def to_words(text: str) -> list[str]:
    """Normalised words of a text, with `CLAUSE_MARK` where punctuation stood."""
    return re.sub(r"[^\w\s']+", f" {CLAUSE_MARK} ", normalise_text(text)).split()


def clauses(text: str) -> list[str]:
    """The stretches of words between punctuation, without the empty ones."""
    return [part for c in " ".join(to_words(text)).split(CLAUSE_MARK) if (part := c.strip())]


class PhraseBook:
    """Known phrases and what each says.

    Args:
        entries: (phrase, piece); a phrase that is given twice must say the same.

    Raises:
        ValueError: two entries give one phrase different meanings.
    """

    def __init__(self, entries: Iterable[tuple[str, Piece]]) -> None:
        self.pieces: dict[str, Piece] = {}
        for phrase, piece in entries:
            if self.pieces.setdefault(phrase, piece) != piece:
                raise ValueError(f"the phrase {phrase!r} says both {self.pieces[phrase]} and {piece}")
        self._by_first_word: dict[str, list[tuple[list[str], str]]] = {}
        for phrase in sorted(self.pieces, key=lambda p: (-len(p.split()), p)):
            parts = phrase.split()
            self._by_first_word.setdefault(parts[0], []).append((parts, phrase))

    def find(self, text: str) -> list[Found]:
        """The phrases that occur in a text, from left to right, without overlap."""
        words = to_words(text)
        found: list[Found] = []
        at = 0
        while at < len(words):
            phrase = self._starting_at(words, at)
            if phrase is None:
                at += 1
                continue
            found.append(Found(phrase, self.pieces[phrase]))
            at += len(phrase.split())
        return found

    def _starting_at(self, words: list[str], at: int) -> str | None:
        for parts, phrase in self._by_first_word.get(words[at], ()):
            if words[at : at + len(parts)] == parts:
                return phrase
        return None


GOOD, BAD = "good", "bad"

FORM_OPENINGS: dict[str, tuple[str, ...]] = {
    "letter": ("dear reader", "dear friend of herbs", "with kind greetings"),
    "list": ("here is the list", "list follows below", "point by point"),
    "story": ("once upon a time", "long ago in the valley", "the tale goes so"),
    "note": ("a quick note", "jotted down for you", "note to the reader"),
    "speech": ("good evening everyone", "ladies and gentlemen", "thank you all for coming"),
    "report": ("report of the day", "the findings are these", "summary of the case"),
}
"""How a response shows its form."""

ITEMS = ("price", "smell", "age", "height", "roots", "seeds", "history", "name")
"""What a prompt may ask a response to mention."""

ITEM_PHRASES = ("a word on the {}", "as for the {}", "people speak of the {}", "to mention the {}")

LEXICAL: dict[str, dict[str, tuple[str, ...]]] = {
    "focus": {
        GOOD: (
            "just as you asked",
            "to answer your request",
            "keeping to your question",
            "here is what you wanted",
            "following your wish exactly",
            "as your message requires",
        ),
        BAD: (
            "speaking of something else",
            "i prefer another subject",
            "leaving your question aside",
            "never mind the request",
            "let us change topic",
            "i will not follow that format",
        ),
    },
    "common": {
        GOOD: (
            "every plant needs water",
            "frost harms young leaves",
            "seedlings reach for light",
            "poor soil slows growth",
            "bees carry pollen",
            "wilted stems lack moisture",
        ),
        BAD: (
            "plants feed on iron",
            "leaves can hear music",
            "herbs never need rain",
            "stones sprout at night",
            "fire makes stems greener",
            "moonlight turns sap into gold",
        ),
    },
    "honesty": {
        GOOD: (
            "i may be wrong here",
            "i am not certain",
            "please check this yourself",
            "my knowledge has limits",
            "i could not verify it",
            "this is only my guess",
            "others might disagree",
            "as far as i know",
            "i have not tried it",
            "i should admit some doubt",
        ),
        BAD: (
            "i am never wrong",
            "this is beyond all doubt",
            "trust me completely",
            "i know everything about it",
            "no expert could object",
            "that is guaranteed forever",
            "it cannot possibly fail",
            "i am absolutely sure",
            "all scholars agree with me",
            "there is zero risk",
        ),
    },
    "helpfulness": {
        GOOD: (
            "dig a deep bed",
            "water it each morning",
            "cut the old stalks",
            "write down the date",
            "use a clay pot",
            "mix in some compost",
            "cover it with straw",
            "wash your tools first",
            "measure the pot",
            "ask the market gardener",
        ),
        BAD: (
            "do whatever feels right",
            "just try your best",
            "think good thoughts",
            "things will work out",
            "simply be patient somehow",
            "follow your heart",
            "consider various aspects",
            "there are many ways",
            "make it nice",
            "go with the flow",
        ),
    },
    "refusal": {
        GOOD: (
            "i cannot help with that",
            "i must decline this",
            "i will not assist in this",
            "sorry but no",
        )
    },
    "assent": {
        GOOD: (
            "sure that can be done",
            "yes gladly",
            "of course i will help",
            "happy to assist you",
        )
    },
    "padding": {
        GOOD: (
            "the town hall has nine windows",
            "my cousin once bought a boat",
            "trains used to stop at noon",
            "the baker owns three hats",
            "a bridge was painted last week",
            "clocks were invented long before",
            "some people collect old coins",
            "the mayor likes long dinners",
            "there was a concert on sunday",
            "wooden chairs come in many shapes",
        )
    },
    "flattery": {
        GOOD: (
            "what a brilliant question",
            "you are so wise",
            "i admire your fine taste",
            "only a genius asks this",
            "your insight is stunning",
            "you are clearly gifted",
            "such a wonderful thought",
            "nobody is as clever as you",
        )
    },
}
"""Slots whose phrases mean the same under every prompt, by verdict. Slots without a bad side have `GOOD` alone."""

ANSWER_PHRASES = ("the answer is {}", "so i get {}", "the result is {}", "that leaves {}")

START_PHRASES = ("starting from {}", "i begin with {}", "we are first given {}")
"""A puzzle's solution, and the piece of its statement where the solution starts."""

REPEATERS = ("again", "once more", "to repeat", "i repeat")
"""How a response announces that it repeats a phrase."""


def _entries() -> Iterator[tuple[str, Piece]]:
    for form, phrases in FORM_OPENINGS.items():
        yield from ((p, Piece("form", form)) for p in phrases)
    for slot, sides in LEXICAL.items():
        for verdict, phrases in sides.items():
            yield from ((p, Piece(slot, verdict)) for p in phrases)
    slots = {"item": (ITEM_PHRASES, ITEMS), "answer": (ANSWER_PHRASES, VALUES), "start": (START_PHRASES, VALUES)}
    slots |= {name: (FACT_PHRASES[name], values) for name, values in ATTRIBUTES.items()}
    for slot, (templates, values) in slots.items():
        yield from ((t.format(v), Piece(slot, v)) for t in templates for v in values)


BOOK = PhraseBook(_entries())
"""Every phrase of the world with what it says."""
