"""Shared fixtures: a micro backbone and toy pairs, made in a second, downloaded from nowhere."""

import fcntl
import os
import signal
import sys

# A run started in the background ignores Ctrl-C, and so would the processes that some tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")


from functools import wraps
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from paths import SHARED

from vrm.models import templates


def by_content(search):
    """`search` for a template's header, its results kept by all that they depend on."""
    known = {}

    @wraps(search)
    def found(tokenizer, kwargs=MappingProxyType({})):
        rules = tokenizer.backend_tokenizer.to_str(), repr(tokenizer.special_tokens_map), repr(tokenizer.chat_template)
        key = (*rules, repr(sorted(kwargs.items())))
        if key not in known:
            known[key] = search(tokenizer, kwargs)
        return known[key] and list(known[key])

    return found


# A search is 1,600 renderings, and hundreds of tests have the same tokenizer. Here, before a test file is imported:
# whoever has imported a search by name keeps that one.
templates.generation_prompt_ids = by_content(templates.generation_prompt_ids)
templates.user_turn_ids = by_content(templates.user_turn_ids)

ASPECTS = ["clarity", "accuracy", "candour"]
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


def toy_pair(number: int, rng: np.random.Generator):
    """A pair whose chosen response holds the word `good` and whose rejected one holds `bad`."""
    from vrm.records import PreferencePair, prompt_id

    prompt = [{"role": "user", "content": " ".join(rng.choice(WORDS, 8))}]
    scores = rng.standard_normal((2, len(ASPECTS)))
    target = np.exp(scores[0]) / np.exp(scores[0]).sum()
    return PreferencePair(
        pair_id=str(number),
        prompt_id=prompt_id(prompt),
        prompt=prompt,
        chosen=" ".join([*rng.choice(WORDS, int(rng.integers(4, 12))), "good"]),
        rejected=" ".join([*rng.choice(WORDS, int(rng.integers(4, 12))), "bad"]),
        chosen_normalised=scores[0].tolist(),
        rejected_normalised=scores[1].tolist(),
        target=target.tolist(),
    )


GROUPS = ("smoke", "second_run", "slurm", "processes")
"""Tests that one worker takes one after the other, in the order in which groups are begun: what takes longest first."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Tests of the smoke run go to one worker, or the other one would wait while the first one makes it."""
    places = {}
    for item in items:
        uses_smoke = "smoke" in getattr(item, "fixturenames", ())
        if uses_smoke:
            item.add_marker(pytest.mark.slow)
        if uses_smoke and item.get_closest_marker("long") is None:
            item.add_marker(pytest.mark.xdist_group("smoke"))
        group = item.get_closest_marker("xdist_group")
        places[item] = GROUPS.index(group.args[0]) if group else len(GROUPS)
    items.sort(key=places.get)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadgroup` a worker takes a group, or a file: what a module's fixtures make is made once."""
    from xdist.scheduler import LoadGroupScheduling

    if config.getvalue("dist") != "loadgroup":
        return None
    config.option.loadscopereorder = False  # what we have put first stays first

    class GroupOrFile(LoadGroupScheduling):
        def _split_scope(self, nodeid):
            scope = super()._split_scope(nodeid)  # the group, or the test itself
            return scope.split("::")[0]

    return GroupOrFile(config, log)


@pytest.fixture(autouse=True)
def one_precision():
    """What a training in bfloat16 leaves in accelerate's global state would be an error of the next one in float32."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None and state.AcceleratorState._shared_state.get("_mixed_precision", "no") != "no":
        state.AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def toy_pairs(tmp_path_factory):
    """Directory with train.jsonl (96 pairs) and validation.jsonl (24)."""
    from vrm.records import write_jsonl

    directory, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    write_jsonl(directory / "train.jsonl", [toy_pair(i, rng) for i in range(96)])
    write_jsonl(directory / "validation.jsonl", [toy_pair(i, rng) for i in range(24)])
    return directory


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory, toy_pairs):
    """Directory of a Qwen3 with 32 channels and one layer, and its tokenizer."""
    from vrm.config import CreatedBackbone
    from vrm.records import read_pairs
    from vrm.training.backbones import create_model, save_backbone, train_tokenizer

    texts = [text for pair in read_pairs(toy_pairs / "train.jsonl") for text in (pair.chosen, pair.rejected)]
    tokenizer = train_tokenizer(texts, 320)
    config = CreatedBackbone(hidden_size=32, layers=1, heads=2, key_value_heads=1, intermediate_size=64)
    directory = tmp_path_factory.mktemp("backbone")
    save_backbone(create_model(config, tokenizer, 128), tokenizer, directory)
    return directory


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """Directory of a finished run of the smoke preset; tests copy what they change.

    One run for all workers of a session, and for all sessions that are given the same directory as VRM_SMOKE_RUN.
    """
    from runs import DEFAULT, SMOKE, snakemake

    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # a worker's own directory lies in that of the session
        session = session.parent
    place = Path(os.environ.get("VRM_SMOKE_RUN") or session / "smoke")
    place.mkdir(exist_ok=True)
    directory, finished = place / "run", place / "finished"
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            snakemake("--rerun-incomplete", directory=directory, configs=(DEFAULT, SMOKE))
            finished.touch()
    return directory


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the repository; tests that need it skip where it is absent."""
    path = SHARED / "data"
    if not path.is_dir():
        pytest.skip(f"{path} is absent: no real data to read")
    return path
