"""A small run whose policies have answered Arena-Hard and MT-Bench; and, as a program, the stage `vrm judge` on it.

python judged_run.py RESULTS BENCHMARK METHOD: RESULTS holds overlay.yaml
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from judging_jobs import VARIABLE
from paths import ROOT

from vrm.config import JudgedPolicy, load
from vrm.judged.stages import judge_benchmark
from vrm.records import write_jsonl, write_whole
from vrm.world.evaluation_sets import ARENA_CONFIG, mt_bench_prompts

METHODS = ("sft", "dpo")
CATEGORIES = ("writing", "math", "stem", "coding")
MADE = {
    "benchmarks": {
        "arena_hard": {"baseline": "them", "token_counter": "words", "bootstrap_samples": 20},
        "mt_bench": {"references": "them"},
    },
    "policy": {"run_bases": ["qwen3"], "run": ["dpo"], "scorers_from": "qwen3"},
    "report": {"tables": [], "figures": []},
}
FAST = {"timeout": 1.0, "backoff": 0.005, "longest_wait": 1.0, "attempts": 8, "concurrency": 4, "top_logprobs": 2}


def overlay(results, url=None, benchmarks=("arena_hard", "mt_bench"), **judge):
    """Write overlay.yaml: a judge at `url`, or one that `serve` among the changes starts."""
    settings = {"serve": None, "base_url": url, "model": "judge-1", "api_key_env": VARIABLE, **FAST}
    settings |= {"store": str(results / "replies"), "prices": {"prompt": 2.0, "completion": 10.0}, **judge}
    made = {**MADE, "benchmarks": {**MADE["benchmarks"], "run": list(benchmarks)}, "judge": settings}
    write_whole(results / "overlay.yaml", yaml.safe_dump(made))


def configuration(results):
    """As the overlay has it."""
    return load([ROOT / "config.yaml", results / "overlay.yaml"])


def policies():
    """Whose answers there are."""
    return [JudgedPolicy("qwen3", method, 1) for method in METHODS]


def draw(text, number):
    """0 to number - 1, from a text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % number


def words(name, key):
    """A text of 3 to 12 words with braces and marks of format strings in it."""
    return " ".join([name, str(key), "{answer_1} {} %s", *["word"] * draw(f"{name} {key}", 10)])


def write_run(results, arena=10, mt=8):
    """Sets and answers of that many questions."""
    sets = results / "judged" / "sets"
    ids = [f"a{i}" for i in range(arena)]
    write_jsonl(
        sets / "arena_hard" / "question.jsonl",
        [{"question_id": key, "cluster": "c", "turns": [{"content": words("ask", key)}]} for key in ids],
    )
    write_jsonl(sets / "arena_hard" / "model_answer" / "them.jsonl", [arena_answer("them", key) for key in ids])
    write_whole(sets / "arena_hard" / "judge_config.yaml", ARENA_CONFIG)
    questions = [(81 + i, CATEGORIES[i % 4]) for i in range(mt)]
    write_jsonl(
        sets / "mt_bench" / "question.jsonl",
        [{"question_id": key, "category": c, "turns": mt_turns("ask", key)} for key, c in questions],
    )
    write_jsonl(sets / "mt_bench" / "judge_prompts.jsonl", mt_bench_prompts())
    references = [mt_answer("them", key) for key, category in questions if category in ("math", "coding")]
    write_jsonl(sets / "mt_bench" / "reference_answer" / "them.jsonl", references)
    for policy in policies():
        answers = results / policy.folder / "answers"
        write_jsonl(answers / "arena_hard.jsonl", [arena_answer(policy.name, key) for key in ids])
        write_jsonl(answers / "mt_bench.jsonl", [mt_answer(policy.name, key) for key, _ in questions])
    return results


def arena_answer(model, key):
    """Upstream's record."""
    text = words(model, key)
    turns = [{"content": text, "token_len": len(text.split())}]
    return {
        "question_id": key,
        "model_id": model,
        "choices": [{"index": 0, "turns": turns}],
        "conv_metadata": {"token_counter": "words"},
    }


def mt_turns(model, key):
    """Both turns' texts."""
    return [words(model, key), words(f"{model} again", key)]


def mt_answer(model, key):
    """FastChat's record."""
    return {"question_id": key, "model_id": model, "choices": [{"index": 0, "turns": mt_turns(model, key)}]}


def judges(body, earlier):
    """A judge that mostly says what it should: some games have no verdict at first, or two; some turns no rating."""
    text = body["messages"][1]["content"]
    if "Assistant B" in text:
        said = ["[[A>>B]]", "[[A>B]]", "[[A=B]]", "[[B>A]]", "[[B>>A]]"][draw(text, 5)]
        kind = draw(f"kind {text}", 12)
        first = len(body["messages"]) == 2
        if (kind == 0 and first) or kind == 1:
            return "I can't say yet."
        return f"[[A>B]] or [[B>A]]? {said}" if kind == 2 else f"My final verdict is: {said}"
    kind = draw(f"kind {text}", 10)
    if kind == 0 or (kind == 1 and not earlier):
        return "It is good."
    return f"Rating: [[{1 + draw(text, 10)}]]"


def judge(results, name, method):
    """The stage, with the paths of the workflow."""
    config, policy = configuration(results), JudgedPolicy("qwen3", method, 1)
    folder, sets = results / policy.folder, results / "judged" / "sets" / name
    judge_benchmark(config, policy, name, folder / "answers", sets, folder / "judgments")


def start(results, name, method):
    """This program, in a process of its own."""
    search = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests", ROOT / "tests" / "judging")))
    environment = {**os.environ, "PYTHONPATH": search}
    command = [sys.executable, __file__, str(results), name, method]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def judgments(results, name, method):
    """Rows of a file of judgments."""
    path = results / JudgedPolicy("qwen3", method, 1).folder / "judgments" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def counts(results, name, method):
    """The account."""
    folder = results / JudgedPolicy("qwen3", method, 1).folder / "judgments"
    return json.loads((folder / f"{name}.counts.json").read_text())


if __name__ == "__main__":
    judge(Path(sys.argv[1]), *sys.argv[2:])
