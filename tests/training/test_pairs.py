"""Pairs that are tokenised once: whoever reads them trains as if it had tokenised them itself, or is told why not."""

import dataclasses
import json
import shutil

import pytest
from paths import ROOT
from reward_jobs import ASPECTS, SCALAR, TRAINING, VRM, quick

from vrm.cli import main
from vrm.models.checks import checked_tokenizer
from vrm.models.templates import CHATML, Unrenderable
from vrm.models.text import TextEncoder
from vrm.records import RecordError, read_pairs, write_jsonl
from vrm.training.pairs import read_split, tokenise_split, write_tokens
from vrm.training.reward import RewardJob, train_reward_model

STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% set name = 'reply' if messages[0].content.startswith('odd') else 'assistant' %}"
    "{% for m in messages %}<|im_start|>{{ name if m.role == 'assistant' else m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>{{ name }}\n{% endif %}"
)
"""Refuses a system turn; before the response to an odd prompt it writes another header, so that its end is unknown."""


@pytest.fixture(scope="module")
def pairs(toy_pairs, tmp_path_factory):
    """Directory of pairs, every kind that is left out among the first ten and among the others."""
    directory = tmp_path_factory.mktemp("mixed")
    for split in ("train", "validation"):
        rows, long = read_pairs(toy_pairs / f"{split}.jsonl"), " ".join(["alpha"] * 300)
        for first in (2, 14):
            refused, odd, twins, cut = range(first, first + 4)
            rows[refused] = with_prompt(
                rows[refused], [{"role": "system", "content": "be good"}, *rows[refused].prompt]
            )
            rows[odd] = with_prompt(rows[odd], [{"role": "user", "content": "odd " + rows[odd].prompt[0]["content"]}])
            rows[twins] = dataclasses.replace(rows[twins], chosen=long + " good", rejected=long + " bad")
            rows[cut] = with_prompt(rows[cut], [{"role": "user", "content": long}])
        write_jsonl(directory / f"{split}.jsonl", rows)
    return directory


def with_prompt(pair, prompt):
    return dataclasses.replace(pair, prompt=prompt)


@pytest.fixture(scope="module")
def tokens(tiny_backbone, pairs, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokens") / "batch_size=3"  # a name that looks like a column of Parquet's
    write_tokens(str(tiny_backbone), None, STRICT, TRAINING, pairs, directory)
    return directory


@pytest.fixture
def job(tiny_backbone, pairs, tmp_path):
    places = pairs, tmp_path / "checkpoints", tmp_path / "out"
    return RewardJob(VRM, quick(), ASPECTS, 1, str(tiny_backbone), None, *places, chat_template=STRICT)


def files(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("most", [None, 40], ids=["all", "first"])
@pytest.mark.parametrize("variant", [SCALAR, VRM], ids=["rm", "vrm"])
def test_a_training_comes_to_the_same_bytes_with_and_without_tokens(job, tokens, variant, most, monkeypatch, tmp_path):
    job = dataclasses.replace(job, variant=variant, training=quick().model_copy(update={"pairs": most}))
    train_reward_model(job)
    monkeypatch.setattr(TextEncoder, "try_encode", None)  # nothing is tokenised
    train_reward_model(dataclasses.replace(job, out=tmp_path / "again", tokens=tokens))
    once, again = files(job.out), files(tmp_path / "again")
    assert {"model/model.safetensors", "training.csv", "counts.json"} <= once.keys()
    assert [name for name in once if once[name] != again.get(name)] == []


@pytest.mark.parametrize("most", [None, 10, 5, 3])
@pytest.mark.parametrize(("variant", "unknown"), [(SCALAR, 0), (VRM, 1)], ids=["rm", "vrm"])
def test_rows_counts_and_what_is_said_are_those_of_the_pairs_that_are_used(
    tiny_backbone, pairs, tokens, variant, unknown, most, capsys
):
    path = pairs / "train.jsonl"
    encoder = TextEncoder(tokenizer(tiny_backbone), 64, 96)
    expected, counts = tokenise_split(path, encoder, variant, most)
    said = capsys.readouterr().err
    found, read = read_split(path, tokens, encoder, variant, most)
    assert found.to_list() == expected.to_list()
    assert (read, capsys.readouterr().err) == (counts, said)
    assert counts | encoder.truncation.as_dict() == counts
    whole = 2 if most is None else 1
    assert counts["refused_by_template"] == (whole * (1 + unknown) if most != 3 else 1)
    assert counts["identical_after_truncation"] == (whole if most in (None, 10, 5) else 0)
    assert counts["prompts_cut"] == (2 * whole if most in (None, 10) else 0)
    assert set(found.column_names) >= {"target"} if unknown else "target" not in found.column_names


def tokenizer(backbone, template=STRICT):
    return checked_tokenizer(backbone, chat_template=template)


def test_where_every_pair_is_refused_it_is_the_same_error(tiny_backbone, pairs, tmp_path):
    rows = read_pairs(pairs / "train.jsonl")[2:3]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    write_tokens(str(tiny_backbone), None, STRICT, TRAINING, tmp_path, tmp_path)
    encoder = TextEncoder(tokenizer(tiny_backbone), 64, 96)
    with pytest.raises(Unrenderable, match="no system turn"):
        read_split(tmp_path / "train.jsonl", tmp_path, encoder, SCALAR)


def test_tokens_of_something_else_are_refused_and_it_is_said_what_differs(tiny_backbone, pairs, tokens, tmp_path):
    other = shutil.copytree(pairs, tmp_path / "pairs")
    write_jsonl(other / "train.jsonl", read_pairs(pairs / "train.jsonl")[:-1])
    backbone = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    vocabulary = json.loads((backbone / "tokenizer.json").read_text())
    vocabulary["model"]["merges"] = vocabulary["model"]["merges"][:-1]
    (backbone / "tokenizer.json").write_text(json.dumps(vocabulary))

    def read(directory=pairs, template=STRICT, limits=(64, 96), model=tiny_backbone):
        encoder = TextEncoder(tokenizer(model, template), *limits)
        return read_split(directory / "train.jsonl", tokens, encoder, SCALAR)

    read()
    for named, changed in {
        "train.jsonl": {"directory": other},
        "chat_template": {"template": CHATML},
        "max_prompt_length": {"limits": (60, 96)},
        "max_length was 96, is 90": {"limits": (64, 90)},
        "tokenizer was": {"model": backbone},
    }.items():
        with pytest.raises(RecordError, match=f"train.parquet.*{named}.*vrm tokenise"):
            read(**changed)


def test_where_the_backbone_lies_and_how_many_processes_read_makes_no_difference(
    tiny_backbone, pairs, tokens, tmp_path, monkeypatch
):
    moved = shutil.copytree(tiny_backbone, tmp_path / "moved")
    monkeypatch.setenv("WORLD_SIZE", "2")
    encoder = TextEncoder(tokenizer(moved), 64, 96)
    read_split(pairs / "train.jsonl", tokens, encoder, SCALAR)


@pytest.mark.parametrize("content", [None, b"", b"no Parquet"], ids=["missing", "empty", "damaged"])
def test_a_file_that_holds_no_tokens_is_named(job, tokens, tmp_path, content):
    broken = shutil.copytree(tokens, tmp_path / "tokens")
    (broken / "validation.parquet").unlink()
    if content is not None:
        (broken / "validation.parquet").write_bytes(content)
    with pytest.raises(RecordError, match=r"tokens/validation\.parquet.*vrm tokenise"):
        train_reward_model(dataclasses.replace(job, tokens=broken))


def test_the_commands(tiny_backbone, toy_pairs, tmp_path, capsys, monkeypatch):
    training = {"epochs": 0.5, "evaluations": 1, "max_prompt_length": 64, "max_length": 96}
    settings = {"data": {"aspects": ASPECTS}, "reward": {"training": training}}
    (tmp_path / "small.yaml").write_text(json.dumps(settings))
    common = ["--config", ROOT / "config.yaml", tmp_path / "small.yaml"]
    common += ["--backbone", tiny_backbone, "--pairs", toy_pairs]

    def vrm(*words):
        return main(list(map(str, words)))

    assert vrm("tokenise", *common, "--out", tmp_path / "tokens") == 0
    assert (tmp_path / "tokens" / "tokenise.provenance.json").is_file()
    train = ["train-reward", *common, "--variant", "rm", "--checkpoints", tmp_path / "c", "--out", tmp_path / "o"]
    train += ["--tokens", tmp_path / "tokens"]
    monkeypatch.setattr(TextEncoder, "try_encode", None)
    assert vrm(*train) == 0
    assert json.loads((tmp_path / "o" / "counts.json").read_text())["train"]["pairs"] == 96
    capsys.readouterr()
    assert vrm(*train, "--features", tmp_path) == 1
    assert "--features" in capsys.readouterr().err
