import re

import pytest

from vrm.reporting.rendering import Cell, Grid, Row, interval_cell, to_latex, to_markdown
from vrm.statistics.intervals import Interval


@pytest.fixture
def grid():
    return Grid(
        name="t",
        caption="50 % of a_b & c",
        header=[Cell("Model"), Cell("A|B", "n = 3")],
        rows=[Row([Cell("VRM (λ = 0.1)"), Cell("71.2", "[68.9, 73.4]")]), Row([Cell("x_y #1"), Cell("—")], rule=True)],
        notes=["† another scale", "{braces} ~ ^ \\"],
    )


def test_markdown_rows_have_equal_columns(grid):
    table = [line for line in to_markdown(grid).splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table] == [3] * 4
    assert "71.2<br>[68.9, 73.4]" in table[2]
    assert "A\\|B<br>n = 3" in table[0]


def test_latex_escapes_and_balances(grid):
    text = to_latex(grid)
    plain = text.replace("\\\\", "").replace("\\{", "").replace("\\}", "")  # row breaks first, then escaped braces
    assert plain.count("{") == plain.count("}")
    assert not re.search(r"(?<!\\)[#_~^λ†—]", text.split("\\caption")[1])
    assert re.findall(r"\\begin\{(\w+\*?)\}", text) == re.findall(r"\\end\{(\w+\*?)\}", text)[::-1]
    assert "50 \\% of a\\_b \\& c" in text
    assert "\\textbackslash{}" in text


def test_latex_rows_have_equal_columns_and_ours_are_set_apart(grid):
    body = to_latex(grid).split("\\toprule")[1].split("\\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(" \\\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [1, 1, 1]
    assert body.count("\\midrule") == 2


def test_wide_table_shrinks_only_where_graphicx_is_loaded(grid):
    assert "resizebox" not in to_latex(grid)
    wide = Grid("w", "c", [Cell("a")] * 9, [Row([Cell("1")] * 9)])
    assert "\\providecommand{\\resizebox}" in to_latex(wide)


def test_interval_cell():
    assert interval_cell(Interval(0.7123, 0.689, 0.7341, 0.95, "x"), scale=100) == Cell("71.2", "[68.9, 73.4]")
    nan = float("nan")
    assert interval_cell(Interval(0.5, nan, nan, 0.95, "nothing"), digits=2) == Cell("0.50")
    assert interval_cell(Interval(nan, nan, nan, 0.95, "nothing")) == Cell("—")
    narrow = Interval(0.00004, 0.0, 0.00009, 0.95, "x")
    assert interval_cell(narrow, digits=3) == Cell("0.0000", "[0.0000, 0.0001]")
    assert interval_cell(narrow, digits=2) == Cell("0.0000", "[0.0000, 0.0001]")


def test_latex_columns_of_long_text_share_the_width():
    long = "a sentence of more than thirty-two characters"
    rows = [Row([Cell("x"), Cell(long), Cell("y", long)])]
    latex = to_latex(Grid("t", "c", [Cell("what"), Cell("first"), Cell("second")], rows, text_columns=3))
    assert r"{@{}lp{0.40\textwidth}p{0.40\textwidth}@{}}" in latex
    assert rf"y\newline {{\scriptsize {long}}}" in latex  # a stack would not wrap
