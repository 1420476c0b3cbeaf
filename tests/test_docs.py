"""What the documentation names is there: every command parses, the cheap ones run, every path exists."""

import csv
import re
import shlex

import pytest
from paths import ROOT

from vrm.cli import main, parser
from vrm.cli.commands import COMMANDS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
PLACES = ("src", "docs", "tests", "tools", "workflow", "benchmarks", "examples", "envs")
MADE = ("benchmarks/results.jsonl", "docs/results/power.csv")
"""What is not here before something has run."""


def typed():
    """(page, words after `vrm`) of every command in a block for a shell."""
    for page in PAGES:
        for block in SHELL.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                words = words[2:] if words[:2] == ["python", "-m"] else words
                if words[:1] == ["vrm"]:
                    yield page.relative_to(ROOT).as_posix(), words[1:]


def paths():
    """(page, path) of every file or directory of the repository that a page names, patterns aside."""
    for page in PAGES:
        for text in INLINE.findall(page.read_text(encoding="utf-8")):
            name = text.split(":")[0]
            if re.fullmatch(rf"(?:{'|'.join(PLACES)})/[\w./*-]+", name):
                yield page.relative_to(ROOT).as_posix(), name


COMMANDS_TYPED = list(typed())


def test_there_is_something_to_check():
    assert {words[0] for _, words in COMMANDS_TYPED} >= {"serve", "train", "plan", "doctor", "fetch-backbone"}
    assert len(list(paths())) > 50


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS_TYPED, ids=[f"{page}-{words[0]}" for page, words in COMMANDS_TYPED]
)
def test_a_command_is_understood(page, words):
    found = vars(parser().parse_args(words))
    known = {f"--{name.replace('_', '-')}" for name in found}
    assert {word for word in words if word.startswith("--")} <= known, "written out, not abbreviated"


def test_inline_commands_exist():
    """`vrm something` in a sentence."""
    for page in PAGES:
        for name in re.findall(r"`vrm ([a-z][a-z-]+)", page.read_text(encoding="utf-8")):
            assert name in COMMANDS, f"{page.name}: vrm {name}"


def test_a_path_is_there():
    lacking = []
    for page, name in paths():
        found = list(ROOT.glob(name.rstrip("/"))) if "*" in name else [ROOT / name]
        if name not in MADE and not any(path.exists() for path in found):
            lacking.append(f"{page}: {name}")
    assert not lacking


@pytest.mark.parametrize(
    "words",
    [words for _, words in COMMANDS_TYPED if words[0] in ("doctor", "schema", "plan") and "--gpus" not in words],
    ids=" ".join,
)
def test_what_is_cheap_runs(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(words) == 0


def test_no_page_is_forgotten():
    """Every page stands in the site's navigation."""
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    made = {"contributing.md", "changelog.md", "security.md", "reference/commands.md", "reference/configuration.md"}
    assert not (pages - {"results/README.md"} | made) ^ listed, "add it to nav in mkdocs.yml, or take it out there"


def test_numbers_of_serving_are_those_measured():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    with (ROOT / "docs" / "results" / "serve.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = ("answers", "wrong", "lost", "largest_difference", "per_second", "server_ms")
    shown += ("times_one_by_one", "by_processor_time")
    loaded = [row for row in rows if not row["asked"].startswith("soak")]
    for row in loaded:
        assert f"| {row['asked']} | {' | '.join(row[name] for name in shown)} |" in page
    soak = [row["resident_mb"] for row in rows if row["asked"].startswith("soak")]
    assert len(loaded) == 2
    assert f"eighth: {', '.join(soak)}." in page


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path, monkeypatch):
    mkdocs = pytest.importorskip("mkdocs.commands.build", reason="needs the extra `docs`")
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.chdir(ROOT)
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site"))
    mkdocs.build(config)  # strict: a warning is an error
    commands = (tmp_path / "site" / "reference" / "commands.html").read_text(encoding="utf-8")
    assert all(f"vrm {name}" in commands for name in COMMANDS)
    keys = (tmp_path / "site" / "reference" / "configuration.html").read_text(encoding="utf-8")
    assert all(key in keys for key in ("beta_w", "residual_penalty", "max_prompt_length", "report_to", "label"))
