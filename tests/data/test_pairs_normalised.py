import json
from dataclasses import replace

import numpy as np
import pytest

from vrm.data.pairs import SPLITS, apply, fit, make_pairs, normalise_pairs
from vrm.data.scored import read_scored_prompts
from vrm.records import PreferencePair, RecordError, read_pairs


def pair(chosen, rejected):
    return PreferencePair("p", "q", [{"role": "user", "content": "x"}], "a", "b", "", chosen, rejected)


def test_worked_by_hand():
    pairs = [pair([4.0, 2.0], [2.0, 2.0]), pair([4.0, 5.0], [2.0, 3.0])]
    normalisation = fit(pairs, ["a", "b"])
    assert (normalisation.mean, normalisation.n) == ([3.0, 3.0], 4)
    assert normalisation.std == pytest.approx([1.0, np.sqrt(1.5)])  # population
    out = apply(normalisation, pairs[0])
    assert out.chosen_normalised == pytest.approx([1.0, -1 / np.sqrt(1.5)])
    assert out.rejected_normalised == pytest.approx([-1.0, -1 / np.sqrt(1.5)])
    weights = np.exp(out.chosen_normalised)
    assert out.target == pytest.approx(list(weights / weights.sum()))


@pytest.mark.parametrize("constant", [3.0, 0.1, 4.667])
def test_a_constant_aspect_gives_zero(constant):
    pairs = [pair([constant, float(i)], [constant, 0.0]) for i in range(1, 4)]
    normalisation = fit(pairs, ["a", "b"])
    assert normalisation.std[0] == 1.0
    for p in pairs:
        out = apply(normalisation, p)
        assert out.chosen_normalised[0] == out.rejected_normalised[0] == 0.0
        assert np.isfinite(out.target).all()
        assert sum(out.target) == pytest.approx(1.0)


def test_target_of_extreme_scores_is_finite():
    normalisation = replace(fit([pair([1.0, 2.0], [1.5, 1.0])], ["a", "b"]), std=[1e-6, 1.0])
    target = apply(normalisation, pair([5.0, 1.0], [1.0, 1.0])).target
    assert target == pytest.approx([1.0, 0.0])


def test_every_split_is_normalised_by_the_training_split(many_records, write_rows, config, tmp_path, capsys):
    settings = config(write_rows(many_records))
    read_scored_prompts(settings, tmp_path)
    make_pairs(settings, tmp_path)
    normalise_pairs(settings, tmp_path)
    saved = json.loads((tmp_path / "normalisation.json").read_text())
    assert saved["aspects"] == settings.aspects
    before = {split: read_pairs(tmp_path / "raw_pairs" / f"{split}.jsonl") for split in SPLITS}
    after = {split: read_pairs(tmp_path / "pairs" / f"{split}.jsonl") for split in SPLITS}
    train = np.array([s for p in after["train"] for s in (p.chosen_normalised, p.rejected_normalised)])
    assert train.mean(axis=0) == pytest.approx(np.zeros(2), abs=1e-12)
    assert train.std(axis=0) == pytest.approx(np.ones(2))
    for split in SPLITS:
        assert len(before[split]) == len(after[split]) > 0
        for old, new in zip(before[split], after[split], strict=True):
            assert replace(new, chosen_normalised=None, rejected_normalised=None, target=None) == old
            assert np.array(new.chosen_normalised) * saved["std"] + saved["mean"] == pytest.approx(old.chosen_scores)
    assert "helpfulness" in capsys.readouterr().out


def test_missing_scores_are_named():
    with pytest.raises(RecordError, match="pair p: expected 2 scores"):
        fit([pair([1.0, 2.0], None)], ["a", "b"])
    with pytest.raises(RecordError, match="pair p: expected 2 scores"):
        apply(fit([pair([1.0, 2.0], [2.0, 2.0])], ["a", "b"]), pair([1.0], [1.0]))
    with pytest.raises(RecordError, match="no training pair"):
        fit([], ["a"])
