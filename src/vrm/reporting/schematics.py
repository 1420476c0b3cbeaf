"""Figures 1 and 2: the causal graph and the framework, drawn with matplotlib.

Coordinates are inches from the lower left corner of the page, so that boxes and type have known sizes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vrm.config import Config, ConfigError, Variant
from vrm.reporting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OBSERVED = "#dfe3e8"

_RADIUS = 0.27  # inches, of a node

_BLUE_FILL, _VERMILION_FILL, _LOSS_FILL, _PLAIN_FILL = "#d9e9f5", "#fbe3d3", "#f3f3f3", "#ffffff"

_LOSS_NAMES = {"kl": "KL", "mse": "MSE", "mae": "MAE", "rank": "rank"}

_NODES = {
    "x": (0.75, 1.95, "prompt", True),
    "y": (0.75, 0.75, "response", True),
    "w": (2.55, 1.95, "objective weights", False),
    "z": (2.55, 0.75, "semantic features", False),
    "s": (4.35, 1.35, "human preference", True),
}

_EDGES = {
    ("x", "w"): "the weights depend on the prompt only",
    ("x", "z"): "the features depend on the prompt",
    ("y", "z"): "the features depend on the response",
    ("w", "s"): "the preference depends on the weights",
    ("z", "s"): "the preference depends on the features",
}


def figure1(config: Config, results: Path, out: Path) -> list[Path]:
    """The causal graph of a human preference.

    Args:
        config: not read; the graph is the paper's, whatever the run.
        results: not read.
        out: directory of figure1.{pdf,png,csv}; the CSV lists the edges.

    Source: VRM, Figure 1 and Eq. 3.
    """
    with style.styled():
        figure, page = _page(5.2, 2.6)
        for source, target in _EDGES:
            _link(page, _NODES[source][:2], _NODES[target][:2], margin=_RADIUS)
        for name, (x, y, meaning, observed) in _NODES.items():
            _node(page, x, y, f"${name}$", observed)
            above = y > 1.5
            page.text(x, y + (0.38 if above else -0.38), meaning, ha="center", va="bottom" if above else "top")
        _node(page, 3.72, 0.17, "", True, radius=0.08)
        page.text(3.86, 0.17, "observed", ha="left", va="center", fontsize=7)
        _node(page, 4.52, 0.17, "", False, radius=0.08)
        page.text(4.66, 0.17, "latent", ha="left", va="center", fontsize=7)
        edges = [{"from": a, "to": b, "meaning": meaning} for (a, b), meaning in _EDGES.items()]
        return style.save(figure, out, "figure1", pd.DataFrame(edges))


@dataclass(frozen=True)
class _Box:
    """A rectangle, its heading and its lines; all lengths in inches."""

    x: float
    y: float
    width: float
    height: float
    heading: str
    lines: Sequence[str] = ()
    fill: str = _PLAIN_FILL

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def top(self) -> float:
        return self.y + self.height

    @property
    def centre(self) -> float:
        return self.x + self.width / 2


def figure2(config: Config, results: Path, out: Path) -> list[Path]:
    """The framework, with the settings of the run's VRM in its boxes.

    Args:
        config: aspects, and the settings of the variant named `vrm`, or of the first variational one.
        results: not read.
        out: directory of figure2.{pdf,png,csv}; the CSV lists the settings.

    Raises:
        ConfigError: `reward.run` has no variational variant.

    Source: VRM, Figure 2 and Eq. 4, 5, 11-14.
    """
    name, variant = _main_variant(config)
    boxes = _framework(variant, config.data.aspects)
    with style.styled():
        figure, page = _page(style.FULL_WIDTH, 3.76)
        for box in boxes.values():
            _draw_box(page, box)
        _draw_tokens(page, boxes, variant.prompt_pooling)
        _draw_flow(page, boxes)
        page.text(style.FULL_WIDTH / 2, 0.14, _loss_formula(variant), ha="center", va="center", fontsize=8)
        return style.save(figure, out, "figure2", _settings(name, variant, config.data.aspects))


def _main_variant(config: Config) -> tuple[str, Variant]:
    known = {n: config.reward.variants[n] for n in config.reward.run}
    variational = {n: v for n, v in known.items() if v.kind == "variational"}
    if not variational:
        raise ConfigError("figure2 draws a VRM, but reward.run names no variational variant")
    name = "vrm" if "vrm" in variational else next(iter(variational))
    return name, variational[name]


def _framework(variant: Variant, aspects: Sequence[str]) -> dict[str, _Box]:
    """Every box: the middle row is the model, above and below it are the terms of the loss."""
    pair = ["", "prompt $x$", "", "chosen $y_w$,", "scores $s_w$", "", "rejected $y_l$,", "scores $s_l$"]
    loss = [f"loss: {_LOSS_NAMES[variant.supervision]}", "target: softmax of $s_w$"]
    objectives = [f"$K$ = {len(aspects)} objectives:", *_wrap(aspects)]
    prior = f"{variant.prior_concentration:g}"
    shared = ["", "$w$ is shared by", "both responses"]
    return {
        "pair": _Box(0.08, 1.0, 1.2, 1.66, "Scored pair", pair),
        "model": _Box(1.62, 1.0, 1.52, 1.66, "Causal LM", ["one forward pass a text"]),
        "weights": _Box(3.5, 1.74, 1.52, 0.92, r"$q(w \mid x) = \mathrm{Dir}(\alpha(x))$", objectives, _BLUE_FILL),
        "features": _Box(
            3.5, 1.0, 1.52, 0.56, r"$q(z \mid x, y) = \mathcal{N}(\mu, \sigma^2)$", [f"$d$ = {variant.latent_dim}"],
            _VERMILION_FILL,
        ),
        "decoder": _Box(5.38, 1.0, 1.44, 1.66, "Reward decoder", _decoder_lines(variant, len(aspects)) + shared),
        "supervision": _Box(
            1.62, 3.02, 1.52, 0.66, rf"supervision, $\lambda$ = {variant.supervision_weight:g}",
            loss if variant.supervision_weight else ["off in this run"], _LOSS_FILL,
        ),
        "kl_weights": _Box(
            3.5, 3.02, 1.52, 0.66, rf"KL of $w$, $\beta_w$ = {variant.beta_w:g}",
            ["to the prior", rf"Dir({prior}, $\ldots$, {prior})"], _LOSS_FILL,
        ),
        "kl_features": _Box(
            3.5, 0.32, 1.52, 0.5, rf"KL of $z$, $\beta_z$ = {variant.beta_z:g}",
            [r"to $\mathcal{N}(0, I)$, both responses"], _LOSS_FILL,
        ),
        "preference": _Box(5.38, 0.32, 1.44, 0.5, "preference", [r"$-\log\sigma(r_w - r_l)$"], _LOSS_FILL),
    }  # fmt: skip


def _decoder_lines(variant: Variant, objectives: int) -> list[str]:
    if variant.decoder == "mlp":
        return ["MLP on $[w;\\, z]$:", r"$r = r_\theta(w, z)$"]
    return ["mixture:", r"$r = w \cdot g(z)$", "", f"$g$: {objectives} scores,", "one an objective"]


def _wrap(aspects: Sequence[str], width: int = 28, lines: int = 3) -> list[str]:
    """Aspect names in at most `lines` lines, the rest counted."""
    names = [aspect.replace("_", " ").replace("$", r"\$") for aspect in aspects]
    for shown in range(len(names), 0, -1):
        rest = [] if shown == len(names) else [f"and\u00a0{len(names) - shown}\u00a0more"]
        wrapped = textwrap.wrap(", ".join(names[:shown] + rest), width)
        if len(wrapped) <= lines:
            return wrapped
    return [textwrap.shorten(names[0], width, placeholder="...")]


def _draw_tokens(page: Axes, boxes: dict[str, _Box], pooling: str) -> None:
    """The token strip inside the model, and what is read from it."""
    from matplotlib.patches import Rectangle

    model, size, row = boxes["model"], 0.15, _row(boxes["features"])
    prompt = [model.x + 0.14 + 0.17 * i for i in range(4)]
    response = [model.x + 0.88 + 0.17 * i for i in range(3)]
    for x in (*prompt, *response):
        of_prompt = dict.fromkeys(prompt if pooling == "attention" else prompt[-1:], style.BLUE)
        fill = (of_prompt | {response[-1]: style.VERMILION}).get(x, OBSERVED)
        page.add_patch(Rectangle((x, row - size / 2), size, size, facecolor=fill, edgecolor=style.INK, linewidth=0.5))
    small = {"fontsize": 6.5, "ha": "center"}
    page.text(prompt[0] + 0.33, row - 0.12, "prompt $x$", va="top", **small)
    page.text(response[1] + size / 2, row - 0.12, "response $y$", va="top", **small)
    last = prompt[-1] + size / 2
    high = _row(boxes["weights"])
    _path(page, [(last, row + size / 2), (last, high), (boxes["weights"].x, high)], color=style.BLUE)
    _path(page, [(response[-1] + size, row), (boxes["features"].x, row)], color=style.VERMILION)
    read = "attention\nover the\nprompt" if pooling == "attention" else "last prompt\ntoken"
    page.text(last - 0.06, row + 0.46, read, va="center", ha="right", fontsize=6.5)
    page.text(last + 0.1, row + 0.3, "last response\ntoken", va="center", ha="left", fontsize=6.5)


def _draw_flow(page: Axes, boxes: dict[str, _Box]) -> None:
    """Every arrow between boxes."""
    pair, model, weights, features = boxes["pair"], boxes["model"], boxes["weights"], boxes["features"]
    decoder, supervision = boxes["decoder"], boxes["supervision"]
    middle = pair.y + pair.height / 2
    _path(page, [(pair.right, middle), (model.x, middle)])
    for box, symbol in ((weights, "$w$"), (features, "$z$")):
        row = _row(box)
        _path(page, [(box.right, row), (decoder.x, row)])
        page.text((box.right + decoder.x) / 2, row + 0.05, symbol, ha="center", va="bottom")
    side = supervision.y + supervision.height / 2
    _path(page, [(pair.centre, pair.top), (pair.centre, side), (supervision.x, side)], dashed=True)
    page.text(pair.centre + 0.06, side - 0.06, "$s_w$", ha="left", va="top")
    level = weights.top + 0.2
    branch = weights.x + 0.3
    _path(
        page,
        [(branch, weights.top), (branch, level), (supervision.centre, level), (supervision.centre, supervision.y)],
        dashed=True,
    )
    _path(page, [(weights.centre, weights.top), (weights.centre, boxes["kl_weights"].y)], dashed=True)
    _path(page, [(features.centre, features.y), (features.centre, boxes["kl_features"].top)], dashed=True)
    _path(page, [(decoder.centre, decoder.y), (decoder.centre, boxes["preference"].top)])
    page.text(decoder.centre + 0.06, (decoder.y + boxes["preference"].top) / 2, "$r$", ha="left", va="center")
    for height, dashed, meaning in ((0.62, False, "forward pass"), (0.44, True, "term of the loss")):
        _path(page, [(0.1, height), (0.46, height)], dashed=dashed)
        page.text(0.54, height, meaning, ha="left", va="center", fontsize=7)


def _row(box: _Box) -> float:
    """Height at which arrows enter and leave a box."""
    return box.y + box.height / 2


def _loss_formula(variant: Variant) -> str:
    terms = [
        r"$L = -\log\sigma(r_w - r_l)$",
        r"$\beta_w\, \mathrm{KL}_w$",
        r"$\beta_z\, (\mathrm{KL}_{z_w} + \mathrm{KL}_{z_l})$",
        r"$\lambda\, L_{sup}$",
    ]
    if variant.score_anchor_weight > 0:
        terms.append(rf"{variant.score_anchor_weight:g} $\mathrm{{mse}}(g(z), s)$ (ours)")
    return "  +  ".join(terms)


def _settings(name: str, variant: Variant, aspects: Sequence[str]) -> pd.DataFrame:
    values = {"variant": name, "K": len(aspects), "aspects": " ".join(aspects)} | variant.model_dump(mode="json")
    return pd.DataFrame({"setting": list(values), "value": [str(value) for value in values.values()]})


def _page(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose only axes measure inches."""
    figure = style.new_figure(width, height)
    page = figure.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, width), ylim=(0, height))
    page.axis("off")
    return figure, page


def _node(page: Axes, x: float, y: float, text: str, observed: bool, radius: float = _RADIUS) -> None:
    from matplotlib.patches import Circle

    fill = OBSERVED if observed else _PLAIN_FILL
    page.add_patch(Circle((x, y), radius, facecolor=fill, edgecolor=style.INK, linewidth=0.9, zorder=2))
    page.text(x, y, text, ha="center", va="center", fontsize=12, zorder=3)


def _link(page: Axes, start: tuple[float, float], end: tuple[float, float], margin: float) -> None:
    """A straight arrow between two nodes, from rim to rim."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = (dx**2 + dy**2) ** 0.5
    ux, uy = dx / length * (margin + 0.03), dy / length * (margin + 0.03)
    _path(page, [(start[0] + ux, start[1] + uy), (end[0] - ux, end[1] - uy)])


def _path(page: Axes, points: Sequence[tuple[float, float]], dashed: bool = False, color: str = style.INK) -> None:
    """A polyline that ends in an arrow head."""
    looks: dict[str, Any] = {"color": color, "linewidth": 0.9, "linestyle": (0, (3, 1.6)) if dashed else "-"}
    xs, ys = zip(*points[:-1], strict=True)
    page.plot([*xs], [*ys], solid_capstyle="butt", zorder=4, **looks)
    head = {"arrowstyle": "-|>,head_width=0.18,head_length=0.36", "shrinkA": 0, "shrinkB": 0, **looks}
    page.annotate("", xy=points[-1], xytext=points[-2], arrowprops=head, zorder=4)


def _draw_box(page: Axes, box: _Box) -> None:
    from matplotlib.patches import FancyBboxPatch

    pad = 0.04
    page.add_patch(
        FancyBboxPatch(
            (box.x + pad, box.y + pad),
            box.width - 2 * pad,
            box.height - 2 * pad,
            boxstyle=f"round,pad={pad},rounding_size=0.05",
            facecolor=box.fill,
            edgecolor=style.INK,
            linewidth=0.8,
        )
    )
    page.text(box.centre, box.top - 0.15, box.heading, ha="center", va="center", fontsize=7.5, weight="bold")
    for index, line in enumerate(box.lines):
        page.text(box.centre, box.top - 0.33 - 0.145 * index, line, ha="center", va="center", fontsize=6.8)
