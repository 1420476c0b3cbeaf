"""What is painted in a figure, for tests."""

import pytest
from matplotlib.text import Text

from vrm.reporting import style


def drawn(monkeypatch, make, config, results, out):
    """The matplotlib figure that a figure's function would save."""
    kept = []
    monkeypatch.setattr(style, "save", lambda figure, *_: kept.append(figure))
    with style.styled():
        make(config, results, out)
    return kept[0]


def texts(figure):
    """The texts that are painted; ticks beyond the limits exist but are not."""
    painted = []
    with pytest.MonkeyPatch.context() as patch:
        draw = Text.draw
        patch.setattr(Text, "draw", lambda text, renderer: (painted.append(text), draw(text, renderer))[1])
        figure.canvas.draw()
    return [text for text in dict.fromkeys(painted) if text.get_text() and text.get_visible()]


def said_by(figure):
    """Every word of a figure, lines joined."""
    return " ".join(text.get_text() for text in texts(figure)).replace("\n", " ")


def boxes_of(figure):
    renderer = figure.canvas.get_renderer()
    return {text: text.get_window_extent(renderer) for text in texts(figure)}
