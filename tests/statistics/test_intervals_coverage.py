"""tools/coverage.py: what it simulates is the tables' formula, and the numbers in docs/decisions.md are its own."""

import re
from importlib.util import module_from_spec, spec_from_file_location

import numpy as np
import pytest
from paths import ROOT
from strata_layout import layout

from vrm.statistics.intervals import crossed_interval


@pytest.fixture(scope="module")
def tool():
    spec = spec_from_file_location("vrm_coverage", ROOT / "tools" / "coverage.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(first, column):
    """A row of one of its tables, as docs/decisions.md has it: the numbers of a column."""
    text = (ROOT / "docs" / "decisions.md").read_text()
    (row,) = re.findall(rf"^ *\| {re.escape(first)} \|(.*)\|$", text, flags=re.MULTILINE)
    return [float(number) for number in re.findall(r"[\d.]+", row.split("|")[column])]


def test_mixtures_are_all_tenths(tool):
    assert len(set(tool.mixtures())) == 66
    assert all(sum(mixture) == pytest.approx(1) for mixture in tool.mixtures())


@pytest.mark.parametrize("mixture", [(0.3, 0.2, 0.5), (0, 0, 1), (1, 0, 0)])
def test_half_widths_drawn_are_those_of_data(tool, monkeypatch, mixture):
    """In distribution: quartiles of the formula's on data, which takes its mean squares from them."""
    monkeypatch.setattr(tool, "DRAWS", 20_000)
    rng = np.random.default_rng(0)
    drawn = tool.half_widths(3, mixture, rng)["formula"]
    intervals = (crossed_interval(layout(rng, 3, tool.PROMPTS, *mixture), np.arange(tool.PROMPTS)) for _ in range(2000))
    made = [(interval.high - interval.low) / 2 for interval in intervals]
    quartiles = (0.25, 0.5, 0.75)
    np.testing.assert_allclose(np.quantile(made, quartiles), np.quantile(drawn, quartiles), rtol=0.06)


def test_the_bootstraps_variance_is_that_of_crossed_resamples(tool):
    rng = np.random.default_rng(1)
    values = layout(rng, 3, 40, 0.3, 0.3, 0.4)
    seeds, prompts = values.shape
    counts = [rng.multinomial(n, np.full(n, 1 / n), size=20_000) for n in values.shape]
    means = np.einsum("bs,sp,bp->b", counts[0], values, counts[1]) / values.size
    residual = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    rest = (residual**2).sum() / ((seeds - 1) * (prompts - 1)) / values.size
    between, common = values.mean(1).var(ddof=1) / seeds, values.mean(0).var(ddof=1) / prompts
    assert means.var() == pytest.approx(tool.bootstrap_variance(between, common, rest, seeds, prompts), rel=0.05)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_numbers_in_the_decisions_are_simulated(tool, monkeypatch, seeds):
    monkeypatch.setattr(tool, "DRAWS", 5000)
    for column, found in enumerate(tool.over_mixtures(seeds, np.random.default_rng(2)).values()):
        assert found == pytest.approx(
            printed(str(seeds), column), abs=1.2
        )  # four standard errors of the smaller simulation


def test_an_accuracy_near_one_is_too_narrow_by_the_formula(tool):
    assert tool.binomial(4, 0.5) * 16 == pytest.approx([1, 4, 6, 4, 1])
    assert tool.binomial(3, 1.0).tolist() == [0, 0, 0, 1]
    found = list(tool.of_accuracy(150, 0.98).values())
    assert [value for column in (2, 3) for value in printed("150 | 98 %", column - 1)] == pytest.approx(found, abs=0.05)
    assert found[0] < 85 < 93 < found[1]
