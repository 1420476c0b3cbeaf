"""What style control looks at: markdown outside code blocks, token lengths as they are written down."""

import pytest
from arena_answers import answer

from vrm.judged.arena_scores import Style, count_markdown, style, style_difference


def test_markdown_is_counted_outside_code_blocks():
    text = "# One\n###### Six\n####### seven\n#none\n\n1. a\n2. b\n* c\n  - d\n+ e\n-f\n**x** and __y__ and **\n**\n"
    assert count_markdown(text) == (2, 5, 2)
    assert count_markdown("# One\n```python\n# two\n- three\n**four**\n```\n- five") == (1, 1, 0)
    assert count_markdown("```\n# open") == (1, 0, 0)  # a block that never closes is none
    assert count_markdown("") == (0, 0, 0)


def test_upstream_deletes_a_block_s_text_wherever_it_stands():
    assert count_markdown("```- a```\n- a\n- b") == (0, 1, 0)


def test_token_length_is_read_never_estimated():
    assert style(answer("m", "q", "**a**", tokens=7)) == Style(7, 0, 0, 1)
    later = answer("m", "q", "# a", tokens=None) | {"conv_metadata": {"token_len": 3, "header_count": {"h1": 1}}}
    assert style(later) == Style(3, 1, 0, 0)
    with pytest.raises(ValueError, match="the answer of m to q has no token_len"):
        style(answer("m", "q", tokens=None))
    with pytest.raises(ValueError, match="the answer of m to q has no text"):
        style(answer("m", "q", text=None))


def test_style_differences_are_antisymmetric_and_at_most_1():
    a, b = Style(99, 0, 3, 1), Style(0, 0, 3, 2)
    assert style_difference(a, b).tolist() == [0.99, 0.0, 0.0, -0.25]
    assert style_difference(b, a).tolist() == [-0.99, 0.0, 0.0, 0.25]
