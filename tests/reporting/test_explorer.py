import base64
import gzip
import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from browser import needs_browser, open_page, text_of, use_page
from example_explorer import ASPECTS, HOSTILE, make_explorer_raw, make_sets, write_explorer_run

from vrm import config as configuration
from vrm.records import PreferencePair, RecordError, write_jsonl
from vrm.reporting import explorer as module
from vrm.reporting.explorer import compared_models, draw_pairs, explorer, pack
from vrm.runfiles import REFUSED_PAIRS

ALL = "set=&right="


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The example run, its explorer, and what both hold."""
    root = tmp_path_factory.mktemp("run")
    sets = make_sets()
    write_explorer_run(root, sets)
    config = configuration.parse(make_explorer_raw())
    page, table = explorer(config, root, root / "explorer")
    return SimpleNamespace(
        config=config,
        root=root,
        sets=sets,
        page=page,
        data=data_of(page),
        table=pd.read_csv(table, keep_default_na=False),
    )


def data_of(page):
    text = page.read_text(encoding="utf-8")
    return unpack(re.search(r'<script type="application/gzip" id="data">(.*?)</script>', text, re.DOTALL)[1])


def unpack(text):
    return json.loads(gzip.decompress(base64.b64decode(text)))


def scores_of(made, variant, seed=2):
    return pd.read_csv(made.root / "reward" / variant / f"seed{seed}" / "scores.csv")


def pair_names(document):
    return [row.get("data-pair") for row in document.iter("tr") if row.get("data-pair")]


def test_contributions_of_the_page_sum_to_the_margin_up_to_rounding(made):
    vrm = made.data["vrms"][0]
    w = np.array(vrm["w"]) * made.data["weightUnit"]
    parts = w * (np.array(vrm["chosen"]) - np.array(vrm["rejected"])) * vrm["unit"]
    np.testing.assert_allclose(parts.sum(axis=0), vrm["margin"], atol=2 * 10.0 ** -vrm["digits"])
    frame = scores_of(made, "vrm")
    np.testing.assert_allclose(vrm["margin"], frame["reward_chosen"] - frame["reward_rejected"], rtol=1e-3)


def test_rounding_makes_no_tie_of_a_win():
    margins = np.array([3.0, -2.0, 1e-7, -1e-9, 0.0])
    assert np.sign(module._margins(margins)["margin"]).tolist() == [1, -1, 1, -1, 0]
    tiny = module._margins(np.array([2e-5, -3e-5]))
    assert 2e-5 / tiny["unit"] == pytest.approx(2000)  # four digits of scores as small as these


def test_the_table_behind_has_a_row_a_model_and_pair(made):
    assert len(made.table) == 2 * 84
    vrm = made.table[made.table["variant"] == "vrm"]
    parts = vrm[[f"contribution_{aspect}" for aspect in ASPECTS]].astype(float).sum(axis=1)
    np.testing.assert_allclose(parts, vrm["margin_vrm"], atol=1e-5)
    known = vrm[vrm["evaluation_set"] == "uf_c"]["known_truth"].value_counts()
    assert known.to_dict() == {"chosen": 32, "rejected": 10}
    assert (made.table[made.table["variant"] == "vrm_mlp"]["contribution_clarity"] == "").all()


def test_every_text_is_in_the_page_once_and_in_the_right_place(made):
    pairs, texts = made.data["pairs"], made.data["texts"]
    assert len(texts) == len(set(texts))
    shown = [pair for name in ("uf_c", "noise_free") for pair in made.sets[name]]
    assert [texts[i] for i in pairs["chosen"]] == [pair.chosen for pair in shown]
    assert [texts[i] for i in pairs["rejected"]] == [pair.rejected for pair in shown]
    assert [made.data["prompts"][i] for i in pairs["prompt"]] == [pair.prompt for pair in shown]


def test_the_same_run_gives_the_same_bytes(made, tmp_path):
    again = explorer(made.config, made.root, tmp_path)
    assert [path.read_bytes() for path in again] == [
        made.page.read_bytes(),
        made.page.with_suffix(".csv").read_bytes(),
    ]


def test_large_sets_are_drawn_alike_and_counts_stay_whole(made, tmp_path):
    config = configuration.parse(make_explorer_raw(explorer_pairs=10))
    page, table = explorer(config, made.root, tmp_path)
    data, frame = data_of(page), pd.read_csv(table)
    assert [(entry["shown"], entry["total"]) for entry in data["sets"]] == [(10, 42), (10, 42)]
    by_set = frame[frame["variant"] == "vrm"].groupby("evaluation_set")["prompt_id"].agg(set)
    assert by_set["uf_c"] == by_set["noise_free"]
    assert [vrm["summary"] for vrm in data["vrms"]] == [vrm["summary"] for vrm in made.data["vrms"]]


def test_drawing_keeps_the_order_and_depends_on_the_seed():
    pairs = make_sets()["uf_c"]
    drawn = draw_pairs(pairs, 12, 0)
    assert len(drawn) == 12
    assert drawn == [pair for pair in pairs if pair in drawn]
    assert draw_pairs(pairs, 12, 1) != drawn
    assert set(map(id, draw_pairs(pairs, 11, 0))) < set(map(id, drawn))
    assert draw_pairs(pairs, 99, 0) == pairs


def test_a_page_that_the_report_cannot_hold_is_said(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "LARGE", 10_000)
    explorer(made.config, made.root, tmp_path)
    assert re.search(r"has \d+\.\d MB: .* lower report\.explorer_pairs", capsys.readouterr().out)


def test_scores_of_other_pairs_are_refused(made, tmp_path):
    sets = {name: list(pairs) for name, pairs in made.sets.items()}
    root = write_explorer_run(tmp_path, sets)
    path = root / "evaluation" / "sets" / "uf_c.jsonl"
    path.write_text(path.read_text().replace('"row7"', '"row700"'))
    with pytest.raises(RecordError, match="scores of vrm: pair row700 of uf_c is missing"):
        explorer(made.config, root, tmp_path / "out")


def test_pairs_that_no_text_can_be_made_of_are_not_shown(made, tmp_path):
    root = write_explorer_run(tmp_path, {name: list(pairs) for name, pairs in made.sets.items()})
    path = root / "evaluation" / "sets" / "uf_c.jsonl"
    path.write_text(path.read_text().replace('"row7"', '"row700"'))
    rm, _ = compared_models(made.config)
    refused = {"evaluation_set": "uf_c", "pair_id": "row700", "reason": "no system turn"}
    write_jsonl(rm.file(root, made.config.reward.seeds[0], REFUSED_PAIRS), [refused])
    explorer(made.config, root, tmp_path / "out")
    assert "row700" not in (tmp_path / "out" / "explorer.csv").read_text()


def test_packed_data_can_stand_in_a_script_block():
    value = {"a": "</script><!-- <script> ]]> & \" ' \u2028", "lone": "\ud800 and \U0001f600"}
    text = pack(value)
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", text)
    assert unpack(text) == value
    assert pack(value) == text
    with pytest.raises(ValueError):
        pack(float("nan"))


def test_nothing_is_loaded_from_elsewhere(made):
    text = made.page.read_text(encoding="utf-8")
    shell = re.sub(r'(<script type="application/gzip" id="data">).*?(</script>)', r"\1\2", text, flags=re.DOTALL)
    assert not re.search(
        r"https?:|//[a-z]|\burl\(|@import|<link|<iframe|\bsrc=|\bfetch\(|innerHTML|eval\(", shell.replace("// ", "")
    )
    assert "default-src 'none'" in shell
    assert text.count("</script>") == 2
    assert "synthetic world" in re.search(r"<title>(.*?)</title>", text)[1]


# ---- in a browser


@needs_browser
def test_the_page_opens_with_disagreements_largest_margin_first(made):
    document = open_page(made.page)
    frame = made.table[(made.table["variant"] == "vrm") & (made.table["evaluation_set"] == "uf_c")]
    apart = frame[frame["agreement"].isin(["only_vrm", "only_rm"])].sort_values("margin_vrm", ascending=False)
    assert pair_names(document) == [f"uf_c/{name}" for name in apart["pair_id"]][:25]
    assert text_of(document, "status") == f"1 to {min(25, len(apart))} of {len(apart)} pairs"
    assert "42 of 42 of UF-C" in text_of(document, "shown")
    assert "seed 2 of 2 (2, 1)" in text_of(document, "models")
    assert "synthetic world" in "".join(document.find("body/header").itertext())


@needs_browser
@pytest.mark.parametrize("right", ["both_right", "only_vrm", "only_rm", "both_wrong"])
def test_the_summary_counts_what_the_filter_shows(made, right):
    document = open_page(made.page, f"set=noise_free&right={right}&sort=prompt&order=up")
    (row,) = (row for row in document.iter("tr") if row.get("data-row") == "noise_free/")
    (summary,) = (
        s for s in made.data["vrms"][0]["summary"] if (s["evaluation_set"], s["subset"]) == ("noise_free", "")
    )
    assert [cell.text for cell in row.iter("a")] == [str(summary[kind]) for kind in made.data["agreements"]]
    assert text_of(document, "status").endswith(f"of {summary[right]} pairs")


@needs_browser
def test_search_filter_sort_and_paging_by_address(made):
    assert pair_names(open_page(made.page, f"{ALL}&q=QUESTION+7+12a")) == []
    found = pair_names(open_page(made.page, f"{ALL}&q=12a+tides+answer&sort=set&order=up"))
    assert set(found) == {"uf_c/row12", "noise_free/truth12"}
    leaked = open_page(made.page, f"{ALL}&leaked=1&kind=facts")
    assert set(pair_names(leaked)) == {"uf_c/row3", "noise_free/truth3"}
    wrong = open_page(made.page, "set=uf_c&right=&truth=rejected&sort=rm&order=up")
    frame = made.table[made.table["variant"] == "vrm"]
    frame = frame[(frame["evaluation_set"] == "uf_c") & (frame["known_truth"] == "rejected")].sort_values("margin_rm")
    assert pair_names(wrong) == [f"uf_c/{name}" for name in frame["pair_id"]]
    last = open_page(made.page, f"{ALL}&page=99")
    assert text_of(last, "status") == "76 to 84 of 84 pairs"
    assert "Page 4 of 4" in text_of(last, "paging")


@needs_browser
def test_a_linked_pair_is_opened_wherever_it_is(made):
    last = made.table[(made.table["variant"] == "vrm")].sort_values("margin_vrm")["pair_id"].iloc[0]
    name = f"{'uf_c' if last.startswith('row') else 'noise_free'}/{last}"
    document = open_page(made.page, f"{ALL}&open={name}")
    assert "Page 4 of 4" in text_of(document, "paging")
    (row,) = (row for row in document.iter("tr") if row.get("class") == "pair opened")
    assert row.get("data-pair") == name


@needs_browser
def test_an_opened_pair_shows_texts_objectives_and_the_truth(made):
    document = open_page(made.page, "set=uf_c&right=&open=uf_c/row3")
    (detail,) = (row for row in document.iter("tr") if row.get("class") == "detail")
    text = " ".join(detail.itertext())
    pair, row = made.sets["uf_c"][3], scores_of(made, "vrm").iloc[3]
    for part in (pair.prompt[0]["content"], pair.chosen, pair.rejected):
        assert part in text
    assert "By the known truth the rejected response is the better one" in text
    assert "occurs in training" in text
    shown = {}
    for line in (line for line in detail.iter("tr") if line.get("data-objective")):
        cells = {c.get("data-label"): "".join(c.itertext()).replace("−", "-") for c in line if c.get("data-label")}
        shown[line.get("data-objective")] = cells
    assert list(shown) == ["clarity", "truth told"]
    for aspect, cells in zip(ASPECTS, shown.values(), strict=True):
        w, chosen, rejected = row[f"weight_{aspect}"], row[f"chosen_{aspect}"], row[f"rejected_{aspect}"]
        numbers = [float(cells[name]) for name in ("w", "g chosen", "g rejected", "contribution")]
        assert numbers == pytest.approx([w, chosen, rejected, w * (chosen - rejected)], abs=2e-3)
    foot = "".join(detail.find(".//tfoot").itertext()).replace("−", "-")
    assert float(re.search(r"margin([-+][\d.]+)", foot)[1]) == pytest.approx(
        sum(float(cells["contribution"]) for cells in shown.values()), abs=3e-3
    )


@pytest.fixture(scope="module")
def with_residual(tmp_path_factory):
    """The example run, its VRM with a residual that is 0.75 for every chosen response and 0 for every other one."""
    root, raw = tmp_path_factory.mktemp("residual"), make_explorer_raw()
    raw["reward"]["variants"] = raw["reward"]["variants"] | {
        "vrm": {"label": "VRM (residual)", "ours": True, "score_anchor_weight": 1.0, "residual": True}
    }
    sets = make_sets()
    write_explorer_run(root, sets)
    for path in (root / "reward" / "vrm").glob("*/scores.csv"):
        scores = pd.read_csv(path)
        for side, b in (("chosen", 0.75), ("rejected", 0.0)):
            scores[f"rated_{side}"], scores[f"residual_{side}"] = scores[f"reward_{side}"], b
            scores[f"reward_{side}"] += b
        scores.to_csv(path, index=False)
    page, table = explorer(configuration.parse(raw), root, root / "explorer")
    return SimpleNamespace(page=page, table=pd.read_csv(table, keep_default_na=False))


def test_rated_aspects_and_residual_add_up_to_the_margin(with_residual):
    frame = with_residual.table[with_residual.table["variant"] == "vrm"]
    margin, rated, *b = (
        frame[name].astype(float) for name in ("margin_vrm", "margin_rated", "residual_chosen", "residual_rejected")
    )
    np.testing.assert_allclose(rated + b[0] - b[1], margin, atol=1e-4)
    parts = frame[[f"contribution_{aspect}" for aspect in ASPECTS]].astype(float).sum(axis=1)
    np.testing.assert_allclose(parts, rated, atol=1e-4)
    (vrm,) = (model for model in data_of(with_residual.page)["vrms"] if model["name"] == "vrm")
    unit = vrm["unit"]
    assert {round(value * unit, 3) for value in vrm["b"][0]} == {0.75}
    assert set(vrm["b"][1]) == {0}


@needs_browser
def test_the_residual_is_a_bar_of_its_own(with_residual):
    document = open_page(with_residual.page, "variant=vrm&set=uf_c&right=&open=uf_c/row3")
    (detail,) = (row for row in document.iter("tr") if row.get("class") == "detail")
    rows = {line.get("data-part"): line for line in detail.iter("tr") if line.get("data-part")}
    assert list(rows) == ["rated", "residual", "whole"]

    def number_of(row):
        return float([c for c in row if "number" in (c.get("class") or "") and c.text][-1].text.replace("−", "-"))

    rated, residual, whole = (number_of(rows[part]) for part in ("rated", "residual", "whole"))
    assert residual == pytest.approx(0.75, abs=1e-2)
    assert rated + residual == pytest.approx(whole, abs=1e-2)
    (bar,) = (part for part in rows["residual"].iter("span") if "residual" in part.get("class", ""))
    assert bar.get("class") == "for residual"
    verdicts = [line for line in detail.iter("li") if "rated aspects alone" in "".join(line.itertext())]
    assert len(verdicts) == 1


@needs_browser
def test_markup_in_texts_is_text(made):
    document = open_page(made.page, "set=uf_c&right=&open=uf_c/row0")
    (detail,) = (row for row in document.iter("tr") if row.get("class") == "detail")
    assert "".join(detail.itertext()).count(HOSTILE) == 2
    assert not list(document.iter("img"))
    assert document.find(".//b[@id='ran']") is None
    assert document.find("head/title").text == "Explorer: test (synthetic world)"
    assert "assistant" in [part.text for part in detail.iter("div")]


@needs_browser
def test_a_decoder_without_contributions_says_so(made):
    document = open_page(made.page, "variant=vrm_mlp&set=uf_c&right=&open=uf_c/row2")
    (detail,) = (row for row in document.iter("tr") if row.get("class") == "detail")
    assert "no contributions to show" in "".join(detail.itertext())
    assert detail.find(".//tfoot") is None
    assert [line.get("data-objective") for line in detail.iter("tr") if line.get("data-objective")]


@needs_browser
def test_weights_are_shown_by_kind_beside_the_true_ones(made):
    document = open_page(made.page, "weights=noise_free")
    cards = [part for part in document.find(".//*[@id='weights']") if part.get("class") == "card"]
    assert [card.find("h3").text for card in cards] == ["clarity", "truth told"]
    frame = scores_of(made, "vrm")
    frame = frame[frame["evaluation_set"] == "noise_free"].drop_duplicates("prompt_id")
    for card, aspect, truth in zip(cards, ASPECTS, [["0.25", "0.63"], ["0.75", "0.38"]], strict=True):
        rows = ["".join(part.itertext()) for part in card if part.get("class") == "weight"]
        means = frame.groupby("subset")[f"weight_{aspect}"].mean()
        for text, kind, true in zip(rows, ["facts", "how_to"], truth, strict=True):
            shown = re.fullmatch(rf"{kind.replace('_', ' ')} \(20\)([\d.]+) ([\d.]+)", text)
            assert float(shown[1]) == pytest.approx(means[kind], abs=6e-4)
            assert float(shown[2]) == pytest.approx(float(true), abs=0.011)


@needs_browser
def test_a_set_without_kinds_and_without_a_truth_is_shown_too(tmp_path):
    bare = {"subset": "", "true_weights": None, "chosen_scores": None, "rejected_scores": None}
    pairs = [PreferencePair(**{**vars(pair), **bare}) for pair in make_sets()["uf_c"]]
    config = configuration.parse(make_explorer_raw(sets=("held_out",)))
    page, _ = explorer(config, write_explorer_run(tmp_path, {"held_out": pairs}), tmp_path)
    document = open_page(page, "right=&open=held_out/row3")
    assert text_of(document, "status").endswith("of 42 pairs")
    assert "known truth" not in " ".join(document.find(".//tr[@class='detail']").itertext())
    assert [part.get("value") for part in document.find(".//select[@name='kind']")] == [""]
    assert document.find(".//select[@name='truth']/..").get("hidden") is not None
    assert "true" not in text_of(document, "legend")
    assert document.find(".//*[@id='weights']//*[@class='weight']/span").text.startswith("all")
    assert document.find(".//details") is None


@needs_browser
def test_clicks_and_typing_change_the_view_and_the_address(made):
    seen = use_page(
        made.page,
        """
        const rows = () => [...page.querySelectorAll("[data-pair]")].map((row) => row.dataset.pair);
        const put = (name, value) => {
          const control = page.querySelector(`[name=${name}]`);
          control.value = value;
          control.dispatchEvent(new view.Event("input"));
        };
        const seen = {};
        put("right", "");
        page.querySelector("[data-step='1']").click();
        seen.second = page.querySelector("#status").textContent;
        put("q", "answer 12a");
        seen.searched = [rows(), page.querySelector("#status").textContent];
        put("q", "");
        const header = page.querySelector("[data-sort=rm]");
        header.focus();
        header.click();
        seen.down = rows()[0];
        page.querySelector("[data-sort=rm]").click();
        seen.up = rows()[0];
        seen.sorted = page.querySelector("th[aria-sort=ascending]").textContent;
        seen.focus = page.activeElement.dataset.sort;
        page.querySelector(".open").focus();
        page.activeElement.click();
        seen.expanded = page.querySelectorAll(".detail").length;
        seen.focusedRow = page.activeElement.getAttribute("aria-expanded");
        seen.hash = view.location.hash;
        page.activeElement.click();
        seen.collapsed = page.querySelectorAll(".detail").length;
        put("variant", "vrm_mlp");
        seen.summary = page.querySelector("[data-row='uf_c/']").textContent;
        page.querySelector("[data-row='noise_free/'] a").click();
        seen.jumped = view.location.hash;
        page.querySelector("#reset").click();
        seen.reset = view.location.hash;
        return seen;
        """,
    )
    frame = made.table[(made.table["variant"] == "vrm") & (made.table["evaluation_set"] == "uf_c")]
    ordered = frame.sort_values("margin_rm")["pair_id"].tolist()
    assert seen["second"] == "26 to 42 of 42 pairs"
    assert seen["searched"] == [["uf_c/row12"], "1 to 1 of 1 pairs"]
    assert (seen["down"], seen["up"]) == (f"uf_c/{ordered[-1]}", f"uf_c/{ordered[0]}")
    assert (seen["sorted"], seen["focus"]) == ("RM margin\xa0▴", "rm")
    assert (seen["expanded"], seen["focusedRow"], seen["collapsed"]) == (1, "true", 0)
    assert f"open=uf_c%2F{ordered[0]}" in seen["hash"]
    assert "sort=rm&order=up" in seen["hash"]
    (mlp,) = (s for s in made.data["vrms"][1]["summary"] if (s["evaluation_set"], s["subset"]) == ("uf_c", ""))
    assert seen["summary"].startswith(f"UF-C42{mlp['both_right']}{mlp['only_vrm']}")
    assert "set=noise_free&right=both_right" in seen["jumped"]
    assert seen["reset"] == "#variant=vrm_mlp"


@needs_browser
@pytest.mark.parametrize("width", [1280, 970, 400])
def test_nothing_is_wider_than_the_window(made, width):
    overflow = use_page(
        made.page,
        f"""
        view.frameElement.width = {width};
        return [page.documentElement.scrollWidth - page.documentElement.clientWidth, view.innerWidth];
        """,
        "set=uf_c&right=&open=uf_c/row0",
    )
    assert overflow == [0, width]
