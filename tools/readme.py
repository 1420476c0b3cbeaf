"""Fill the README's marked blocks from the files of a finished `make demo`: no number in it is typed by hand.

    python tools/readme.py

writes README.md and docs/images/. A block stands between `<!-- NAME: ... -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "results" / "demo"
IMAGES = ("figure4.png", "overoptimisation.png")


def table() -> str:
    """Table 2 as the run wrote it, without the leak-free companion."""
    return (RUN / "tables" / "table2.md").read_text(encoding="utf-8").split("\n**The same without")[0].strip()


def dag() -> str:
    """The rule graph as Mermaid, which GitHub draws."""
    command = [sys.executable, "-m", "snakemake", "--rulegraph", "mermaid-js", "--forceall"]
    drawn = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line for line in drawn[drawn.index("flowchart") :].splitlines() if not line.strip().startswith("style ")]
    return "\n".join(["```mermaid", *lines, "```"])


def numbers() -> str:
    """The main comparison in one paragraph, numbers only."""
    cells = pd.read_csv(RUN / "tables" / "table2.csv").set_index(["variant", "evaluation_set"])
    latents = pd.read_csv(RUN / "tables" / "latents.csv").set_index(["variant", "metric"]).estimate
    facts = pd.read_csv(RUN / "world" / "statistics.csv").set_index("metric")
    agreement, ceiling = (100 * facts.value[f"held_out/{name}"] for name in ("agreement", "ceiling_annotated"))
    lines = [
        f"On this world annotators and truth agree on {agreement:.0f} % of the held-out pairs; no scorer can be "
        f"expected to match more than {ceiling:.0f} % of the annotated labels."
    ]
    for variant in ("rm", "vrm", "vrm_anchored", "vrm_strict_elbo"):
        annotated, noise_free = cells.loc[(variant, "uf_c")], cells.loc[(variant, "noise_free")]
        line = (
            f"**{annotated.label}**: {_interval(annotated)} against the annotated preference, {_interval(noise_free)} "
            "against the true one"
        )
        if (variant, "weight_correlation/mean") in latents.index:
            line += f"; its weights correlate {latents[variant, 'weight_correlation/mean']:.2f} with the true ones"
        lines.append(line + ".")
    return "\n- ".join(lines).replace("- ", "\n- ", 1)


def policies() -> str:
    """How many trainings moved their objective, and what PPO did to proxy and gold reward, by base and reward model."""
    rows = pd.read_csv(RUN / "tables" / "training_summary.csv")
    labels = {name: base["label"] for name, base in _run_config()["policy"]["bases"].items()}
    judged = rows[rows.verdict.notna()]
    moved = int((judged.verdict == "yes").sum())
    lines = [
        f"{moved} of {len(judged)} trainings moved their own objective on held-out data as expected, beyond their 95 % "
        "interval.",
        "",
        "| Base | PPO against | proxy reward | gold reward | KL, nats | length, tokens |",
        "|:--|:--|--:|--:|--:|--:|",
    ]
    for (base, _), part in rows.groupby(["base", "method"], sort=False):
        values = part.set_index("metric")
        if "gold" in values.index:
            cells = [f"{values.start[m]:.2f} → {values.end[m]:.2f}" for m in ("reward", "gold")]
            cells += [f"{values.end['kl']:.1f}", f"{values.start['length']:.0f} → {values.end['length']:.0f}"]
            lines.append(f"| {labels[base]} | {values.label.iloc[0]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def provenance() -> str:
    """Which run the README shows."""
    record = json.loads((RUN / "tables" / "table2.provenance.json").read_text(encoding="utf-8"))
    commit = f"commit `{record['commit'][:10]}`" + (" with uncommitted changes" if record["dirty"] else "")
    return (
        f"*From a run of {commit} on {record['device']}, torch {record['packages']['torch']}, "
        f"transformers {record['packages']['transformers']}, trl {record['packages']['trl']}.*"
    )


def _run_config() -> dict:
    return yaml.safe_load((RUN / "config.yaml").read_text(encoding="utf-8"))


def _interval(cell: pd.Series) -> str:
    return f"{cell.estimate:.1f} [{cell.low:.1f}, {cell.high:.1f}]"


BLOCKS = {"TABLE": table, "DAG": dag, "NUMBERS": numbers, "POLICIES": policies, "PROVENANCE": provenance}


def main() -> int:
    """Fill every block."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name}:[^>]*-->\n).*?(<!-- end {name} -->)", flags=re.DOTALL)
        if not pattern.search(text):
            print(f"README.md has no block {name}", file=sys.stderr)
            return 1
        filled = make()
        text = pattern.sub(lambda found, filled=filled: f"{found[1]}{filled}\n{found[2]}", text)
    path.write_text(text, encoding="utf-8")
    images = ROOT / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name in IMAGES:
        shutil.copyfile(RUN / "figures" / name, images / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
