"""CONTRIBUTING.md's way to add a table, gone in a copy of the tree: its files, in its order, and no other."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
from paths import ROOT
from runs import contents

SUBJECT = "facts"
TABLE = '''"""How many facts are known of the world, and how many of them have an interval."""

from pathlib import Path

import pandas as pd

from vrm.config import Config
from vrm.reporting.rendering import Cell, Grid, Row, write_table
from vrm.runfiles import WORLD_STATISTICS


def facts_table(config: Config, results: Path, out: Path) -> list[Path]:
    """Write facts.{csv,md,tex,html}."""
    facts = WORLD_STATISTICS.read(Path(results) / WORLD_STATISTICS.name)
    counts = {"facts": len(facts), "with an interval": int(facts["low"].notna().sum())}
    rows = [Row([Cell(what), Cell(str(count))]) for what, count in counts.items()]
    grid = Grid("facts", f"Facts. Data: {config.data.label}.", [Cell("What"), Cell("Number")], rows)
    return write_table(out, [grid], pd.DataFrame({"what": counts.keys(), "number": counts.values()}))
'''
LINES = {
    "src/vrm/reporting/registry.py": {
        "\nMaker = ": "from vrm.reporting.facts import facts_table\n",
        "TABLES: dict[str, Maker] = {\n": '    "facts": facts_table,\n',
    },
    "src/vrm/config/report.py": {"    tables: list[\n        Literal[\n": '            "facts",\n'},
    "workflow/rules/report.smk": {
        "    needs = {\n": '        "facts": ["results/{run}/world/statistics.csv"],\n',
        "TITLES = {\n": '    "facts": "Facts of the world",\n',
    },
}
"""What is added to each file, by the text that it stands after (before, where it is an import)."""
SCHEMA = "workflow/schemas/config.schema.json"


def steps(what):
    """The files that CONTRIBUTING.md names for this, in its order."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paragraph = page.split(f"**{what}.**")[1].split("\n\n")[0]
    return [re.search(r"`([\w/<>.]+)`", step)[1] for step in re.split(r"\(\d\) ", paragraph)[1:]]


def files(directory):
    made = ("__pycache__", ".snakemake", "results/", ".egg-info")
    return {name: text for name, text in contents(directory).items() if not any(part in name for part in made)}


def python(directory, *arguments):
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": "src", "VRM_WARM": "off"}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_table_is_added_as_contributing_says(tmp_path):
    for name in ("src", "workflow", "envs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("Snakefile", "config.yaml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    before = files(tmp_path)

    (tmp_path / "src" / "vrm" / "reporting" / f"{SUBJECT}.py").write_text(TABLE)
    for name, lines in LINES.items():
        text = (tmp_path / name).read_text()
        for anchor, line in lines.items():
            assert text.count(anchor) == 1, (name, anchor)
            text = text.replace(anchor, line + anchor if line.startswith("from ") else anchor + line)
        (tmp_path / name).write_text(text)
    python(tmp_path, "vrm", "schema", "--out", SCHEMA)

    after = files(tmp_path)
    changed = {name for name in after if after[name] != before.get(name)}
    named = [name.replace("<subject>", SUBJECT) for name in steps("A table")]
    assert len(named) == 4
    assert {next(file for file in changed if file.endswith(name)) for name in named} | {SCHEMA} == changed

    statistics = tmp_path / "results" / "demo" / "world" / "statistics.csv"
    statistics.parent.mkdir(parents=True)
    statistics.write_text("metric,value,low,high,n,explanation\na,1,0.5,1.5,9,x\nb,2,,,9,y\n")
    config = ("--config", "report={tables: [facts], figures: []}")
    target = "results/demo/tables/facts.md"
    python(tmp_path, "snakemake", "--cores", "1", *config, "--allowed-rules", "table", "--", target)
    table = pd.read_csv((tmp_path / target).with_suffix(".csv"))
    assert dict(zip(table.what, table.number, strict=True)) == {"facts": 2, "with an interval": 1}
    assert "| with an interval | 1 |" in (tmp_path / target).read_text()
