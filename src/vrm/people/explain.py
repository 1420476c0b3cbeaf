"""`vrm explain`: one prompt and its responses: what is asked of them, what each is worth, which wins, why, how sure.

* A VRM's reward is a sum: the prompt's weight of each aspect times the response's score of it, and what a residual adds
  beside the aspects. What sets two responses apart is the sum of the differences of these parts, and that is why.
* How sure: the Bradley-Terry probability of the difference, at the temperature of the model's own held-out pairs where
  one was measured; and the posterior's, the share of draws of the latents in which the winner is ahead.
* `--html` writes the same as a page: the explorer's style, no script, everything escaped, and a content policy that
  loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from vrm.config import ConfigError, Source
from vrm.data.fields import Unusable
from vrm.data.sources import read_rows
from vrm.evaluation.calibration import preference_probability
from vrm.models.base import RewardModel, RewardOutput, as_prompt
from vrm.people.score import responses_of
from vrm.records import Prompt, RecordError, write_whole

DRAWS = 1000
"""Posterior draws behind a probability."""


@dataclass(frozen=True)
class Explanation:
    """What a model says of N responses to one prompt, K aspects.

    Args:
        prompt: the conversation.
        responses: N texts.
        aspects: names of the K; empty for a model without weights.
        output: rewards and their parts.
        order: places of the responses, the best first.
        temperature: that margins are divided by; None is as trained.
        ahead: share of posterior draws in which the best is ahead of each response, (N,); None without latents.
    """

    prompt: Prompt
    responses: list[str]
    aspects: list[str]
    output: RewardOutput
    order: list[int]
    temperature: float | None
    ahead: np.ndarray | None

    @property
    def contributions(self) -> np.ndarray | None:
        """Weight times score, (N, K); None where the reward is no such sum."""
        if self.output.weights is None or self.output.per_objective is None:
            return None
        return self.output.weights * self.output.per_objective

    def parts(self, place: int) -> dict[str, float]:
        """What the reward of a response is made of, by name; empty where it is one number."""
        if self.contributions is None:
            return {}
        found = dict(zip(self.aspects, map(float, self.contributions[place]), strict=True))
        if self.output.residual is not None:
            found["residual"] = float(self.output.residual[place])
        return found

    def reasons(self, other: int) -> list[tuple[str, float]]:
        """By how much the best is ahead of another response in each part, the largest first; they sum to the margin."""
        best, worse = self.parts(self.order[0]), self.parts(other)
        return sorted(((name, best[name] - worse[name]) for name in best), key=lambda pair: -abs(pair[1]))

    def margin(self, other: int) -> float:
        """Reward of the best less that of another response."""
        return float(self.output.mean[self.order[0]] - self.output.mean[other])

    def probability(self, other: int) -> float:
        """Bradley-Terry: that the best is better than another response."""
        return float(preference_probability(self.margin(other), self.temperature or 1.0))


def read_question(data: Path, row: int) -> tuple[Prompt, list[str]]:
    """Prompt and responses of a file's row, counted from 1.

    Raises:
        RecordError: there is no such row, or it has no prompt with responses.
    """
    found = next((r for n, r in read_rows(Source(path=str(data))) if n == row), None)
    if found is None:
        raise RecordError(f"{data}: there is no row {row}; rows are counted from 1")
    try:
        return responses_of(found)
    except Unusable as error:
        raise RecordError(f"{data}, row {row}: {error}; expected a prompt and its responses, or a pair") from None


def explain(model: RewardModel, prompt: Prompt | str, responses: Sequence[str], path: str | Path = "") -> Explanation:
    """Ask a model about one prompt.

    Args:
        model: what scores; its `draws`, if it has them, say how sure it is.
        prompt: the conversation up to the response.
        responses: at least one.
        path: the model's directory, whose results.json has a temperature.

    Raises:
        ConfigError: there is no response.
    """
    responses = list(responses)
    if not responses:
        raise ConfigError("there is no response to explain: give some after --responses")
    prompts = [as_prompt(prompt)] * len(responses)
    output = model.score(prompts, responses)
    order = np.argsort(-output.mean, kind="stable").tolist()
    draws = model.draws(prompts, responses, DRAWS) if hasattr(model, "draws") else None
    ahead = None if draws is None else (draws[:, [order[0]]] > draws).mean(axis=0)
    aspects = [str(name) for name in model.aspects] if output.weights is not None else []
    return Explanation(prompts[0], responses, aspects, output, order, _temperature(Path(path)), ahead)


def _temperature(directory: Path) -> float | None:
    path = directory / "results.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8")).get("held_out", {})
    return (found.get("probabilities") or {}).get("temperature")


# In the terminal

BAR = 24


def as_text(found: Explanation, width: int | None = None) -> str:
    """The explanation for a terminal."""
    width = width or min(shutil.get_terminal_size((100, 20)).columns, 120)
    blocks = [_shortened("prompt: " + found.prompt[-1]["content"], width)]
    if found.output.weights is not None:
        blocks.append("\n".join(["what counts for this prompt", *_weights(found)]))
    blocks += ["\n".join(_response(found, place, width)) for place in found.order]
    blocks.append("\n".join(_wrapped(line, width) for line in _verdict(found)))
    return "\n\n".join(blocks) + "\n"


def _weights(found: Explanation) -> Iterator[str]:
    weights = found.output.weights[found.order[0]]
    wide = max(map(len, found.aspects))
    for k in np.argsort(-weights, kind="stable"):
        yield f"  {found.aspects[k]:{wide}s}  {weights[k]:.2f}  {'#' * round(BAR * float(weights[k]))}"


def _response(found: Explanation, place: int, width: int) -> Iterator[str]:
    rank = found.order.index(place) + 1
    std = "" if found.output.std is None else f" (std {found.output.std[place]:.2f})"
    cut = "; cut, as it is too long" if found.output.truncated[place] else ""
    yield f"{rank}. response {place + 1}: reward {found.output.mean[place]:+.3f}{std}{cut}"
    yield _shortened("   " + found.responses[place], width)
    parts = found.parts(place)
    for name, value in parts.items():
        detail = ""
        if name in found.aspects:
            k = found.aspects.index(name)
            weight, score = (float(t[place, k]) for t in (found.output.weights, found.output.per_objective))
            detail = f" = {weight:.2f} x {score:+.2f}"
        yield f"   {name:{max(map(len, parts))}s}  {value:+.3f}{detail}"


def _verdict(found: Explanation) -> Iterator[str]:
    best = found.order[0]
    if len(found.order) == 1:
        yield "One response alone: its reward means something only beside another's."
        return
    for other in found.order[1:]:
        if found.margin(other) == 0:
            yield f"Response {best + 1} and response {other + 1} have the same reward: undecided."
            continue
        yield f"Response {best + 1} beats response {other + 1} by {found.margin(other):.3f}. {how_sure(found, other)}"
        if reasons := found.reasons(other):
            yield "  The margin is made of " + ", ".join(f"{name} {value:+.3f}" for name, value in reasons)


def how_sure(found: Explanation, other: int) -> str:
    """Both probabilities, in words."""
    scaled = "" if found.temperature is None else f" (margins / {found.temperature:.2f}, as its held-out pairs ask for)"
    text = f"It is the better one with probability {found.probability(other):.2f}{scaled}."
    if found.ahead is not None:
        text += f" It is ahead in {100 * found.ahead[other]:.0f} % of {DRAWS} posterior draws."
    return text


def _wrapped(line: str, width: int) -> str:
    indent = "  " if line.startswith("  ") else ""
    return textwrap.fill(line, width, subsequent_indent=indent + "  ", break_on_hyphens=False, break_long_words=False)


def _shortened(text: str, width: int) -> str:
    line = " ".join(text.split()) if not text.startswith("   ") else "   " + " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


# As a page


def as_page(found: Explanation, model: str) -> str:
    """The explanation as one HTML file, which loads nothing and runs nothing."""
    style = files("vrm.reporting").joinpath("explorer.css").read_text(encoding="utf-8") + STYLE
    allowed = "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    body = "\n".join([_page_prompt(found), _page_weights(found), *_page_responses(found), _page_verdict(found)])
    return PAGE.format(allowed=allowed, style=style, model=html.escape(model), body=body)


STYLE = """
meter, .share { width: 100%; }
.share { display: block; height: .8rem; }
.share rect.for { fill: var(--bar); }
.share rect.against { fill: var(--against); }
.share line { stroke: var(--muted); vector-effect: non-scaling-stroke; }
summary { cursor: pointer; padding: .4rem 0; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src '{allowed}'">
<title>What a reward model says of one prompt</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>What a reward model says of one prompt</h1>
<p class="run">Model <strong>{model}</strong></p>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _page_prompt(found: Explanation) -> str:
    turns = "".join(
        f'<div class="sub">{html.escape(turn["role"])}</div><p class="text">{html.escape(turn["content"])}</p>'
        for turn in found.prompt
    )
    return f'<section aria-labelledby="prompt"><h2 id="prompt">Prompt</h2>{turns}</section>'


def _page_weights(found: Explanation) -> str:
    if found.output.weights is None:
        return ""
    weights = found.output.weights[found.order[0]]
    rows = "".join(
        f'<tr><th scope="row">{html.escape(found.aspects[k])}</th>'
        f'<td class="number" data-label="w">{weights[k]:.3f}</td>'
        f'<td class="full">{_bar(float(weights[k]), 1.0, from_left=True)}</td></tr>'
        for k in np.argsort(-weights, kind="stable")
    )
    return (
        '<section aria-labelledby="weights"><h2 id="weights">What counts for this prompt</h2>'
        '<table class="objectives"><thead><tr><th scope="col">Aspect</th><th scope="col" class="number">w</th>'
        f'<th scope="col">0 to 1</th></tr></thead><tbody>{rows}</tbody></table></section>'
    )


def _page_responses(found: Explanation) -> Iterator[str]:
    most = max((abs(v) for place in found.order for v in found.parts(place).values()), default=1.0) or 1.0
    for rank, place in enumerate(found.order, 1):
        std = "" if found.output.std is None else f", standard deviation {found.output.std[place]:.3f}"
        cut = '<p class="note">Too long: it was cut before it was scored.</p>' if found.output.truncated[place] else ""
        rows = "".join(_page_part(found, place, name, value, most) for name, value in found.parts(place).items())
        table = (
            '<table class="objectives"><thead><tr><th scope="col">Part</th><th scope="col" class="number">w</th>'
            '<th scope="col" class="number">g</th><th scope="col" class="number">contribution</th>'
            f'<th scope="col" class="centre">against | for</th></tr></thead><tbody>{rows}</tbody></table>'
        )
        yield (
            f'<section aria-labelledby="r{place}"><h2 id="r{place}">{rank}. Response {place + 1}: reward '
            f"{found.output.mean[place]:+.3f}{std}</h2>{cut}<details{' open' if rank <= 2 else ''}>"
            f'<summary>Text</summary><p class="text">{html.escape(found.responses[place])}</p></details>'
            f"{table if rows else ''}</section>"
        )


def _page_part(found: Explanation, place: int, name: str, value: float, most: float) -> str:
    numbers = ["", ""]
    if name in found.aspects:
        k = found.aspects.index(name)
        numbers = [f"{found.output.weights[place, k]:.3f}", f"{found.output.per_objective[place, k]:+.3f}"]
    cells = "".join(
        f'<td class="number" data-label="{label}">{number}</td>'
        for label, number in zip(("w", "g", "contribution"), [*numbers, f"{value:+.3f}"], strict=True)
    )
    return f'<tr><th scope="row">{html.escape(name)}</th>{cells}<td class="full">{_bar(value, most)}</td></tr>'


def _page_verdict(found: Explanation) -> str:
    text = "\n".join(_verdict(found)).replace("\n  ", " ")  # what is indented belongs to the line before
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in text.split("\n"))
    title = '<h2 id="why">Which wins, and why</h2>'
    return f'<section aria-labelledby="why">{title}<ul class="verdicts">{lines}</ul></section>'


def _bar(value: float, most: float, from_left: bool = False) -> str:
    """A bar as an SVG, whose sizes are attributes: the content policy allows no style of an element."""
    share = 50 * abs(value) / most
    if from_left:
        x, width = 0.0, 2 * share
    else:
        x, width = (50.0 if value > 0 else 50.0 - share), share
    zero = "" if from_left else '<line x1="50" x2="50" y1="0" y2="10"/>'
    kind = "for" if value > 0 else "against"
    return (
        '<svg class="share" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="{kind}" x="{x:.2f}" y="1" width="{width:.2f}" height="8"/>{zero}</svg>'
    )


def write_page(found: Explanation, model: str, path: Path) -> None:
    """Write `as_page`."""
    write_whole(path, as_page(found, model))
