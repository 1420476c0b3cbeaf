"""Answers to the judged benchmarks: complete, in order, asked as the benchmark says, and the same after a kill."""

import json
import shutil
import sys

import pytest
from answer_sets import JUDGED, TEMPERATURES, RuleEngine, configuration, files, question, read, write_sets
from paths import SHARED
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from vrm.config import ConfigError
from vrm.generation import answers
from vrm.generation.engines import Sampling, load_engine
from vrm.judged import mt_bench
from vrm.judged.arena_scores import style
from vrm.judged.mt_bench import TEMPERATURES as OFFICIAL_TEMPERATURES
from vrm.judged.stages import read_answer_sets
from vrm.models.templates import TEMPLATES
from vrm.models.text import TextEncoder, prepare_tokenizer
from vrm.records import RecordError, count_words

NAMES = ["alpaca_eval.json", "arena_hard.jsonl", "counts.json", "mt_bench.jsonl"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def tokenizer(tiny_backbone):
    return prepare_tokenizer(AutoTokenizer.from_pretrained(tiny_backbone))


@pytest.fixture
def policy(tiny_backbone, tmp_path):
    """A copy of the tiny policy that may be changed: its directory, and its tokenizer."""
    directory = tmp_path / "policy"
    shutil.copytree(tiny_backbone, directory)
    return directory, AutoTokenizer.from_pretrained(directory)


@pytest.fixture
def ask(tiny_backbone, sets, tmp_path, monkeypatch):
    """Runs the stage on the tiny policy, or a share of it `(number, of how many)`; returns where the files are."""

    def run(config, name="out", policy=tiny_backbone, seed=JUDGED.seed, **changes):
        given = {"sets": sets, "temperatures": TEMPERATURES, "shares": (), "share": None} | changes
        out, judged, checkpoints = tmp_path / name, JUDGED._replace(seed=seed), tmp_path / f"{name}.checkpoints"
        monkeypatch.setattr(mt_bench, "TEMPERATURES", given["temperatures"])
        answer_sets = read_answer_sets(config, judged, given["sets"])
        asked = answers.Questionnaire(config, judged, str(policy), None, answer_sets, given["sets"])
        if given["share"]:
            answers.answer_share(asked, checkpoints, out, *given["share"])
        else:
            answers.answer_benchmarks(asked, checkpoints, out, given["shares"])
        return out

    return run


@pytest.fixture
def rule_engine(monkeypatch, tokenizer):
    """Every policy answers by rule; returns a function that sets when it dies, and the engines that were made."""
    made = []

    def install(die_at=None):
        def load(settings, policy, revision, own_tokenizer, **kwargs):
            made.append(RuleEngine(own_tokenizer, die_at=die_at))
            return made[-1]

        monkeypatch.setattr(answers, "load_engine", load)
        return made

    return install


def test_somebodys_directory_is_refused_and_stays(ask, rule_engine, tmp_path):
    made = rule_engine()
    theirs = tmp_path / "out.checkpoints" / "thesis.tex"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        ask(configuration())
    assert (theirs.read_text(), made) == ("mine", [])


def test_every_question_gets_its_own_answer_in_the_sets_order(ask, rule_engine):
    rule_engine()
    out = ask(configuration())
    assert [path.name for path in sorted(out.iterdir())] == NAMES
    assert read(out / "alpaca_eval.json") == [
        {"dataset": f"d{i % 2}", "instruction": question(i), "output": f"a{i}", "generator": "tiny.dpo.seed3"}
        for i in range(7)
    ]
    assert read(out / "arena_hard.jsonl") == [
        {
            "question_id": f"a{i}",
            "model_id": "tiny.dpo.seed3",
            "choices": [{"index": 0, "turns": [{"content": f"a{10 + i}", "token_len": 1}]}],
            "conv_metadata": {"token_len": 1, "token_counter": "words"},
        }
        for i in range(5)
    ]
    assert read(out / "mt_bench.jsonl") == [
        {
            "question_id": 81 + i,
            "model_id": "tiny.dpo.seed3",
            "choices": [{"index": 0, "turns": [f"a{20 + i}", f"a{30 + i}"]}],
        }
        for i in range(8)
    ]


def test_benchmarks_that_are_not_run_are_not_answered(ask, rule_engine):
    rule_engine()
    out = ask(configuration(run=["mt_bench"]))
    assert [path.name for path in sorted(out.iterdir())] == ["counts.json", "mt_bench.jsonl"]
    assert list(read(out / "counts.json")) == ["mt_bench"]


def test_the_second_turn_follows_the_first_answer(ask, rule_engine):
    made = rule_engine()
    ask(configuration(run=["mt_bench"]))
    asked = {text for texts, *_ in made[0].calls for text in texts}
    for i in range(8):
        first = f"<|im_start|>user\n{question(20 + i)}<|im_end|>\n<|im_start|>assistant\n"
        second = f"{first}a{20 + i}<|im_end|>\n<|im_start|>user\nand now {question(30 + i)}<|im_end|>\n"
        assert {first, f"{second}<|im_start|>assistant\n"} <= asked
    assert len(asked) == 16


def test_the_benchmarks_temperatures_and_limits_reach_the_engine(ask, rule_engine):
    made = rule_engine()
    ask(configuration({"batch_size": 3}))
    calls = made[0].calls
    assert [call[2] for call in calls[:5]] == [Sampling(0.7, 9)] * 3 + [Sampling(0.0, 12)] * 2
    by_question = {text.rsplit("q", 1)[1].split()[0]: sampling for texts, _, sampling in calls[5:] for text in texts}
    for i in range(8):
        expected = Sampling([0.7, 0.0, 0.1, 0.0][i % 4], 7)
        assert by_question[f"{20 + i}"] == by_question[f"{30 + i}"] == expected
    assert max(len(texts) for texts, *_ in calls) == 3
    seeds = [seed for _, seeds, _ in calls for seed in seeds]
    assert len(set(seeds)) == len(seeds)  # no two answers share their random numbers


def test_an_answers_seed_does_not_depend_on_the_batches(ask, rule_engine):
    made = rule_engine()
    for name, size in (("small", 3), ("large", 128)):
        ask(configuration({"batch_size": size}), name)
    small, large = (
        {text: seed for texts, seeds, _ in engine.calls for text, seed in zip(texts, seeds, strict=True)}
        for engine in made
    )
    assert small == large


def test_the_bases_template_arguments_are_used(ask, rule_engine, policy):
    made = rule_engine()
    directory, tokenizer = policy
    tokenizer.chat_template = TEMPLATES["qwen3"]
    tokenizer.save_pretrained(directory)
    config = configuration(run=["mt_bench"])
    config.policy.bases["tiny"].chat_template_kwargs["enable_thinking"] = False
    ask(config, policy=directory)
    texts = [text for texts, *_ in made[0].calls for text in texts]
    assert len(texts) == 16
    for text in texts:
        assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert text.count("<think>") == 1  # the history has none


def test_the_prompt_has_exactly_one_bos(ask, rule_engine, policy):
    made = rule_engine()
    directory, tokenizer = policy
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    tokenizer.save_pretrained(directory)
    reloaded = AutoTokenizer.from_pretrained(directory)
    assert reloaded("alpha")["input_ids"][0] == reloaded.bos_token_id  # it adds one by itself
    ask(configuration(run=["mt_bench"]), policy=directory)
    texts = [text for texts, *_ in made[0].calls for text in texts]
    assert len(texts) == 16
    for text in texts:
        assert text.startswith("<|endoftext|><|im_start|>user")
        assert text.count("<|endoftext|>") == 1


@pytest.mark.parametrize("answering", [{"batch_size": 1}, {"batch_size": 100}, {"save_every": 5}])
def test_greedy_answers_do_not_depend_on_the_batches(ask, answering):
    cold = dict.fromkeys(TEMPERATURES, 0.0)
    config = configuration(alpaca_eval={"temperature": 0})
    changed = configuration(answering, alpaca_eval={"temperature": 0})
    assert files(ask(config, temperatures=cold)) == files(ask(changed, "changed", temperatures=cold))


def test_sampled_answers_follow_the_seed_and_not_when_they_are_saved(ask):
    expected = files(ask(configuration()))
    assert files(ask(configuration({"save_every": 4}), "rarely")) == expected
    other = ask(configuration(), "other", seed=4)
    assert read(other / "mt_bench.jsonl")[0]["choices"] != read(other.parent / "out" / "mt_bench.jsonl")[0]["choices"]


class Killed(BaseException):
    """Stands for a SIGKILL: nothing tidies up."""


def dying(die_at):
    """A loader of the real engine whose policy dies at a call."""

    def load(*args, **kwargs):
        engine, calls = load_engine(*args, **kwargs), iter(range(1000))
        generate = engine.generate

        def count(*arguments):
            if next(calls) == die_at:
                raise Killed
            return generate(*arguments)

        engine.generate = count
        return engine

    return load


@pytest.mark.parametrize("die_at", [0, 2, 4, 8, 11])
def test_a_killed_job_goes_on_to_the_same_bytes(ask, monkeypatch, tmp_path, die_at):
    config = configuration()
    expected = files(ask(config, "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(answers, "load_engine", dying(die_at))
        with pytest.raises(Killed):
            ask(config)
    assert not (tmp_path / "out").exists()
    log = tmp_path / "out.checkpoints" / "answers.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == die_at
    if lines:  # a kill in the middle of writing the last of them
        log.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    calls = []
    monkeypatch.setattr(answers, "_seed", lambda *name, own=answers._seed: calls.append(name) or own(*name))
    assert files(ask(config)) == expected
    finished = sum(len(json.loads(line)["answers"]) for line in lines[:-1])
    assert len(calls) == 28 - finished  # what was finished is not generated again
    assert not log.parent.exists()


@pytest.fixture
def generated(monkeypatch):
    """Places of the questions whose answers have been generated, `benchmark/turn n/question`."""
    places = []
    monkeypatch.setattr(
        answers, "_seed", lambda seed, place, own=answers._seed: places.append(place) or own(seed, place)
    )
    return places


@pytest.mark.parametrize("shares", [2, 20])
def test_shares_are_joined_to_the_bytes_of_one_job(ask, generated, shares):
    """With 20 of them some are empty; the second turns of the third benchmark are left to the job that joins."""
    config = configuration()
    expected = files(ask(config, "whole"))
    second = [place for place in generated if "/turn 2/" in place]
    first = {*generated} - {*second}
    generated.clear()
    paths = [ask(config, f"{share}.jsonl", share=(share, shares)) for share in range(shares)]
    assert sorted(generated) == sorted(first)  # each once
    sizes = [len(read(path)) for path in paths]
    assert max(sizes) - min(sizes) <= 1
    generated.clear()
    assert files(ask(config, "joined", shares=paths)) == expected
    assert generated == second != []


def test_a_killed_share_goes_on_to_the_same_bytes(ask, generated, monkeypatch, tmp_path):
    expected = ask(configuration(), "whole.jsonl", share=(0, 2)).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(answers, "load_engine", dying(2))
        with pytest.raises(Killed):
            ask(configuration(), "0.jsonl", share=(0, 2))
    assert not (tmp_path / "0.jsonl").exists()
    log = tmp_path / "0.jsonl.checkpoints" / "answers.jsonl"
    finished = sum(len(batch["answers"]) for batch in read(log))
    whole = sum(len(json.loads(line)["answers"]) for line in expected.splitlines())
    generated.clear()
    assert ask(configuration(), "0.jsonl", share=(0, 2)).read_bytes() == expected
    assert len(generated) == whole - finished < whole
    assert not log.parent.exists()


def test_a_policy_is_not_loaded_where_shares_hold_every_answer(ask, rule_engine):
    made = rule_engine()
    config = configuration(run=["alpaca_eval", "arena_hard"])
    paths = [ask(config, f"{share}.jsonl", share=(share, 2)) for share in range(2)]
    assert len(made) == 2
    ask(config, shares=paths)
    assert len(made) == 2


def test_a_share_that_is_damaged_is_an_error(ask, rule_engine):
    rule_engine()
    path = ask(configuration(), "0.jsonl", share=(0, 1))
    path.write_text(path.read_text()[:-9])
    with pytest.raises(RecordError, match=r"0\.jsonl: line \d+"):
        ask(configuration(), shares=[path])


@pytest.mark.parametrize("change", ["setting", "set", "policy", "seed"])
def test_answers_of_something_else_are_not_taken(ask, monkeypatch, tmp_path, sets, policy, change):
    directory, own = policy[0], tmp_path / "sets"
    for name, files_of in sets.items():
        shutil.copytree(files_of, own / name)
    arguments = {"policy": directory, "sets": {name: own / name for name in sets}}
    with monkeypatch.context() as patch:
        patch.setattr(answers, "load_engine", dying(3))
        with pytest.raises(Killed):
            ask(configuration(), **arguments)
    config = configuration(mt_bench={"max_new_tokens": 6 if change == "setting" else 7})
    if change == "set":
        questions = own / "mt_bench" / "question.jsonl"
        questions.write_text(questions.read_text().replace("and now", "and then", 1))
    if change == "policy":
        model = AutoModelForCausalLM.from_pretrained(directory)
        model.lm_head.weight.data[5] += 1
        model.save_pretrained(directory)
    calls = []
    monkeypatch.setattr(answers, "_seed", lambda *name, own=answers._seed: calls.append(name) or own(*name))
    ask(config, seed=4 if change == "seed" else JUDGED.seed, **arguments)
    assert len(calls) == 28


def test_counts_tell_what_became_of_prompts_and_answers(ask, monkeypatch, tokenizer):
    class Sloppy(RuleEngine):
        def generate(self, prompts, seeds, sampling=None):
            """Nothing, a text that does not end, an end alone, a text with an end; in turn."""
            text = self.tokenizer("beta")["input_ids"]
            end = self.tokenizer.eos_token_id
            return [([], text * 2, [end], [*text, end])[i % 4] for i in range(len(prompts))]

    monkeypatch.setattr(answers, "load_engine", lambda *args, **kwargs: Sloppy(tokenizer))
    out = ask(configuration({"batch_size": 8, "max_prompt_length": 24}))
    lengths = {"alpaca_eval": 7, "arena_hard": 5, "mt_bench": 16}
    counts, beta = read(out / "counts.json"), len(tokenizer("beta")["input_ids"])
    for name, n in lengths.items():
        assert list(counts[name]) == ["questions", "answers", "prompts_cut", "unended", "empty", "mean_tokens"]
        assert counts[name]["answers"] == n
    assert counts["mt_bench"]["questions"] == 8
    # rows 0..6: two of each kind, but one with both text and end
    assert {k: counts["alpaca_eval"][k] for k in ("unended", "empty")} == {"unended": 4, "empty": 4}
    assert counts["alpaca_eval"]["mean_tokens"] == round((4 * beta + 2 + beta + 1) / 7, 3)
    assert sorted(row["output"] for row in read(out / "alpaca_eval.json")) == [""] * 4 + ["beta"] + ["betabeta"] * 2
    encoder = TextEncoder(tokenizer, 24, 36)
    encoder.encode_prompts([[{"role": "user", "content": question(i)}] for i in range(7)])
    assert counts["alpaca_eval"]["prompts_cut"] == encoder.truncation.prompts_cut
    assert 0 < encoder.truncation.prompts_cut < 7
    assert counts["mt_bench"]["prompts_cut"] > 8  # every second turn is longer than that


def test_an_end_token_of_the_model_is_an_end(ask, monkeypatch, tokenizer):
    beta = tokenizer("beta")["input_ids"][-1]
    engine = RuleEngine(tokenizer, ends=[beta])
    engine.generate = lambda prompts, seeds, sampling: [[5, beta] for _ in prompts]
    monkeypatch.setattr(answers, "load_engine", lambda *args, **kwargs: engine)
    assert read(ask(configuration(run=["arena_hard"])) / "counts.json")["arena_hard"]["unended"] == 0


def test_arena_answers_are_what_style_control_reads(ask):
    rows = read(ask(configuration(run=["arena_hard"])) / "arena_hard.jsonl")
    for row in rows:
        assert style(row).token_len == count_words(row["choices"][0]["turns"][0]["content"])
    assert len(rows) == 5


def test_limits_beyond_the_models_positions_are_refused_before_anything_is_generated(ask, rule_engine, tmp_path):
    made = rule_engine()
    with pytest.raises(ConfigError, match=r"has 256 positions") as error:
        ask(configuration({"max_prompt_length": 248}, mt_bench={"max_new_tokens": 8}))
    assert "answering.max_prompt_length (248) + benchmarks.alpaca_eval.max_new_tokens (9) is 257" in str(error.value)
    assert "benchmarks.arena_hard.max_new_tokens (12) is 260" in str(error.value)
    assert "mt_bench" not in str(error.value)  # 256 fit
    assert not made
    assert not (tmp_path / "out.checkpoints").exists()


def test_what_can_not_be_asked_or_counted_is_said_before_anything_is_generated(ask, rule_engine, sets, monkeypatch):
    made = rule_engine()
    with pytest.raises(RecordError, match=r"--sets names no directory called arena_hard"):
        ask(configuration(), sets={"alpaca_eval": sets["alpaca_eval"]})
    with pytest.raises(RecordError, match=r"question 81 has category 'writing', for which no temperature"):
        ask(configuration(), temperatures={"math": 0.0, "stem": 0.1, "coding": 0.0})
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ConfigError, match=r"tiktoken is not installed"):
        ask(configuration(arena_hard={"token_counter": "gpt-3.5-turbo"}))
    assert not made


@pytest.mark.skipif(not (SHARED / "data" / "benchmarks").exists(), reason="needs ../shared/data/benchmarks")
def test_the_official_sets_are_answered_in_full(ask, monkeypatch, tokenizer):
    class Brief(RuleEngine):
        def generate(self, prompts, seeds, sampling=None):
            """An end alone."""
            return [[self.tokenizer.eos_token_id] for _ in prompts]

    monkeypatch.setattr(answers, "load_engine", lambda *args, **kwargs: Brief(tokenizer))
    source = SHARED / "data" / "benchmarks"
    official = {
        "alpaca_eval": source / "alpaca_eval",
        "arena_hard": source / "arena_hard_v0.1",
        "mt_bench": source / "mt_bench",
    }
    out = ask(configuration({"batch_size": 128}), sets=official, temperatures=OFFICIAL_TEMPERATURES)
    counts = read(out / "counts.json")
    assert {name: (c["questions"], c["answers"]) for name, c in counts.items()} == {
        "alpaca_eval": (805, 805),
        "arena_hard": (500, 500),
        "mt_bench": (80, 160),
    }
    for name, file in (("alpaca_eval", "reference_outputs.json"), ("mt_bench", "question.jsonl")):
        rows = read(out / ("alpaca_eval.json" if name == "alpaca_eval" else "mt_bench.jsonl"))
        key = "instruction" if name == "alpaca_eval" else "question_id"
        assert [row[key] for row in rows] == [row[key] for row in read(official[name] / file)]
