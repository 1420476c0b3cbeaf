"""Small sets of the three benchmarks, flat as `vrm benchmark-set` leaves them, and an engine that answers by rule."""

import json
from pathlib import Path

from vrm.config import BenchmarksConfig, Config, JudgedPolicy, PolicyBase, PolicyConfig
from vrm.records import write_json, write_jsonl

CATEGORIES = ("writing", "math", "stem", "coding")
TEMPERATURES = {"writing": 0.7, "math": 0.0, "stem": 0.1, "coding": 0.0}
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
JUDGED = JudgedPolicy("tiny", "dpo", 3)


def question(i):
    """Texts of different lengths, none like another."""
    return " ".join([f"q{i}", *(WORDS[(i + j) % len(WORDS)] for j in range(1 + (5 * i) % 7))])


def write_sets(directory):
    """Seven instructions, five prompts, and eight questions of two turns; directories by benchmark."""
    sets = {name: directory / name for name in ("alpaca_eval", "arena_hard", "mt_bench")}
    write_json(
        sets["alpaca_eval"] / "reference_outputs.json",
        [
            {"dataset": f"d{i % 2}", "instruction": question(i), "output": "beta", "generator": "reference"}
            for i in range(7)
        ],
    )
    arena = [
        {
            "question_id": f"a{i}",
            "category": "arena-hard-v0.1",
            "cluster": "c",
            "turns": [{"content": question(10 + i)}],
        }
        for i in range(5)
    ]
    write_jsonl(sets["arena_hard"] / "question.jsonl", arena)
    mt_bench = [
        {
            "question_id": 81 + i,
            "category": CATEGORIES[i % 4],
            "turns": [question(20 + i), f"and now {question(30 + i)}"],
        }
        for i in range(8)
    ]
    write_jsonl(sets["mt_bench"] / "question.jsonl", mt_bench)
    return sets


def configuration(answering=None, **benchmarks):
    """A configuration of which only the answers' part is used."""
    settings = {
        "run": ["alpaca_eval", "arena_hard", "mt_bench"],
        "answering": {"batch_size": 3, "save_every": 1, "max_prompt_length": 100} | (answering or {}),
        "alpaca_eval": {"max_new_tokens": 9, "temperature": 0.7},
        "arena_hard": {"max_new_tokens": 12, "token_counter": "words"},
        "mt_bench": {"max_new_tokens": 7},
    }
    for name, value in benchmarks.items():
        settings[name] = settings[name] | value if isinstance(value, dict) else value
    bases = {"tiny": PolicyBase(label="Tiny", path="none")}
    return Config.model_construct(
        benchmarks=BenchmarksConfig.model_validate(settings), policy=PolicyConfig.model_construct(bases=bases)
    )


class RuleEngine:
    """Answers `a<first number in the last turn>`, and remembers what it was asked; may die at a call."""

    def __init__(self, tokenizer, ends=(), die_at=None):
        self.tokenizer, self.ends, self.die_at = tokenizer, frozenset({tokenizer.eos_token_id, *ends}), die_at
        self.calls = []

    def sync(self):
        """Nothing to do."""

    def generate(self, prompts, seeds, sampling=None):
        """See `Engine.generate`."""
        if len(self.calls) == self.die_at:
            raise RuntimeError("killed")
        texts = [self.tokenizer.decode(prompt) for prompt in prompts]
        self.calls.append((texts, seeds, sampling))
        answers = [self.tokenizer(f"a{text.rsplit('q', 1)[1].split()[0]}")["input_ids"] for text in texts]
        return [[*answer, self.tokenizer.eos_token_id] for answer in answers]


def files(directory: Path):
    """The bytes of every file, by name."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def read(path: Path):
    """Rows of a file of answers."""
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
