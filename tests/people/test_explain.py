"""`vrm explain`: the parts sum to the reward, the reasons to the margin, and nothing on the page is run."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from own_files import write
from transformers import AutoTokenizer

from vrm.cli import main
from vrm.models.base import RewardOutput
from vrm.models.scoring import load_reward_model
from vrm.models.templates import generation_prompt_ids
from vrm.models.vrm import VrmForSequenceClassification
from vrm.people.explain import as_page, as_text, explain

PROMPT, RESPONSES = "alpha <b>beta</b>", ["mu", "nu <script>alert(1)</script>", "beta gamma"]


@pytest.fixture(scope="module")
def vrm(tiny_backbone, tmp_path_factory):
    """Directory of an untrained VRM with a residual."""
    torch.manual_seed(0)
    directory, tokenizer = tmp_path_factory.mktemp("vrm"), AutoTokenizer.from_pretrained(tiny_backbone)
    model = VrmForSequenceClassification.from_backbone(
        str(tiny_backbone),
        aspects=["clarity", "candour"],
        residual=True,
        generation_prompt_ids=generation_prompt_ids(tokenizer),
    )
    torch.nn.init.normal_(model.head.residual)
    model.config.reward_limits = {"max_prompt_length": 48, "max_length": 96}
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def found(vrm):
    return explain(load_reward_model(vrm, posterior_samples=8), PROMPT, RESPONSES, vrm)


def test_parts_sum_to_the_reward_and_reasons_to_the_margin(found):
    for place in range(3):
        assert sum(found.parts(place).values()) == pytest.approx(found.output.mean[place], abs=1e-4)
    for other in found.order[1:]:
        assert sum(value for _, value in found.reasons(other)) == pytest.approx(found.margin(other), abs=1e-4)
        assert found.probability(other) >= 0.5
    assert found.parts(0).keys() == {"clarity", "candour", "residual"}


def test_how_sure_it_is_by_draws_is_near_what_the_standard_deviations_say(found):
    assert found.ahead[found.order[0]] == 0  # never ahead of itself
    assert all(0 < found.ahead[other] <= 1 for other in found.order[1:])


def test_a_scalar_model_has_a_winner_and_no_reasons():
    class Scalar:
        aspects = ()

        def score(self, prompts, responses):
            return RewardOutput(np.array([0.0, 2.0]), np.zeros(2, dtype=bool))

    found = explain(Scalar(), "p", ["a", "b"])
    assert found.order == [1, 0]
    assert found.reasons(0) == []
    assert "0.88" in as_text(found)


def test_a_tie_is_undecided():
    class Tie:
        aspects = ()

        def score(self, prompts, responses):
            return RewardOutput(np.zeros(2), np.zeros(2, dtype=bool))

    assert "undecided" in as_text(explain(Tie(), "p", ["a", "b"]))


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs


def test_the_page_runs_nothing_and_loads_nothing(found):
    page, tags = as_page(found, "<my model>"), Tags()
    tags.feed(page)
    assert not {"script", "b", "img", "link", "iframe"} & set(tags.names)
    assert not [name for name, _ in tags.attributes if name.startswith("on") or name in ("style", "src", "href")]
    assert re.search(r"default-src 'none'; style-src 'sha256-[A-Za-z0-9+/=]+'", page)
    assert "&lt;script&gt;" in page
    assert "&lt;my model&gt;" in page


def test_the_command(vrm, tmp_path, capsys):
    data = write(
        tmp_path / "rows.jsonl",
        [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": PROMPT, "responses": RESPONSES}],
    )
    assert main(["explain", "--model", str(vrm), "--prompt", PROMPT, "--responses", *RESPONSES]) == 0
    said = capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["explain", "--model", str(vrm), "--data", str(data), "--row", "2", "--html", str(page)]) == 0
    assert capsys.readouterr().out == said
    assert page.is_file()
    assert main(["explain", "--model", str(vrm), "--data", str(data), "--row", "9"]) == 1
    assert "row 9" in capsys.readouterr().err
    assert main(["explain", "--model", str(vrm)]) == 1
