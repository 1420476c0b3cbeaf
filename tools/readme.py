"""Fill the marked blocks of README and docs: no number is typed by hand.

    python tools/readme.py

writes what comes from docs/results/ into docs/findings.md and docs/real_text.md, what `vrm plan` says into
docs/scale.md and, where `make demo` has finished, what comes from it into README.md, pages of docs/ and docs/images/.
A block stands between `<!-- NAME: ... -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from pathlib import Path

import findings
import measured
import pandas as pd
import planned
import yaml

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "results" / "demo"
SHOWN = ("rm", "multitask", "gated", "vrm", "vrm_concept_residual")
IMAGES = (
    "calibration.png",
    "figure4.png",
    "figure6.png",
    "overoptimisation.png",
    "residual.png",
    "win_rate_length.png",
)


def table() -> str:
    """Table 2 as the run wrote it, without the leak-free companion."""
    return (RUN / "tables" / "table2.md").read_text(encoding="utf-8").split("\n**The same without")[0].strip()


def small() -> str:
    """Reward models of the demo, in what tells them apart."""
    cells = pd.read_csv(RUN / "tables" / "table2.csv")
    cells = cells[cells.variant.str.removesuffix(":rated").isin(SHOWN)]
    latents = pd.read_csv(RUN / "tables" / "latents.csv").set_index(["variant", "metric"])
    columns = {"Chat Hard": "Chat Hard", "UF-C-like": "annotators' labels", "noise-free preference": "true preference"}
    lines = ["| Reward model | " + " | ".join([*columns.values(), "r(w)"]) + " |", "|:--|" + "--:|" * 4]
    for variant, own in cells.groupby("variant", sort=False):
        values = own.set_index("column")
        found = [_interval(values.loc[name]) for name in columns]
        key = (variant, "weight_correlation/mean")
        found.append(_interval(latents.loc[key], 2) if key in latents.index else "")
        lines.append(f"| {own.label.iloc[0]} | " + " | ".join(found) + " |")
    note = (
        f"*`make demo`: means of {int(cells.n_seeds.max())} seeds, 95 % intervals over seeds and prompts; r(w): "
        "correlation of the inferred with the true weights, its interval over seeds alone.*"
    )
    return "\n".join([*lines, "", note, "", provenance()])


def numbers() -> str:
    """The main comparison in one paragraph, numbers only."""
    cells = pd.read_csv(RUN / "tables" / "table2.csv").set_index(["variant", "evaluation_set"])
    latents = pd.read_csv(RUN / "tables" / "latents.csv").set_index(["variant", "metric"]).estimate
    facts = pd.read_csv(RUN / "world" / "statistics.csv").set_index("metric")
    agreement, ceiling = (100 * facts.value[f"held_out/{name}"] for name in ("agreement", "ceiling_annotated"))
    lines = [
        f"On this world annotators and truth agree on {agreement:.0f} % of the held-out pairs; a scorer that "
        f"also knew the annotators' biases could match {ceiling:.0f} % of the annotated labels, and none more."
    ]
    for variant in ("rm", "multitask", "vrm", "vrm_concept_residual", "vrm_strict_elbo"):
        annotated, noise_free = cells.loc[(variant, "uf_c")], cells.loc[(variant, "noise_free")]
        line = (
            f"**{annotated.label}**: {_interval(annotated)} against the annotated preference, {_interval(noise_free)} "
            "against the true one"
        )
        if (variant, "weight_correlation/mean") in latents.index:
            line += f"; its weights correlate {latents[variant, 'weight_correlation/mean']:.2f} with the true ones"
        lines.append(line + ".")
    return "\n- ".join(lines).replace("- ", "\n- ", 1)


def probabilities() -> str:
    """How sure each reward model is and how right, and the figure of it."""
    cells = pd.read_csv(RUN / "tables" / "calibration.csv")
    shown = {
        "nll": "NLL",
        "ece": "ECE, points",
        "accuracy": "accuracy",
        "accuracy_at_50": "surest half",
        "aurc": "AURC",
    }
    lines = []
    for column, part in cells[cells.variant.str.removesuffix(":rated").isin(SHOWN)].groupby("column", sort=False):
        lines += [
            f"**{column}**",
            "",
            "| Reward model | " + " | ".join(shown.values()) + " |",
            "|:--" + "|--:" * 5 + "|",
        ]
        for (_, method), own in part.groupby(["variant", "method"], sort=False):
            values = own.set_index("metric")
            found = [
                _interval(_scaled(values.loc[name], 1 if name == "nll" else 100), 2 if name == "nll" else 1)
                for name in shown
            ]
            label = own.label.iloc[0] + ("" if method == "as trained" else f": {method}")
            lines.append(f"| {label} | " + " | ".join(found) + " |")
        lines.append("")
    return "\n".join(
        [*lines, "![How sure each reward model is, and how right, synthetic world](images/calibration.png)"]
    )


def residual() -> str:
    """What rated aspects and residual hold, as the run wrote it: accuracy and correlations; the probes stay there."""
    grids = (RUN / "tables" / "residual.md").read_text(encoding="utf-8").split("\n**The parts on pairs")
    return grids[0].strip() + "\n\n![What is substance and what is flattery, synthetic world](images/residual.png)"


def health() -> str:
    """How many trainings show a fault, and which."""
    rows = pd.read_csv(RUN / "tables" / "health.csv").fillna({"base": ""})
    keys, said = ["base", "variant", "label", "seed"], []
    for what, part in (("reward models", rows[rows.base == ""]), ("policies", rows[rows.base != ""])):
        trainings = part[keys].drop_duplicates().groupby("label").size()
        faults = part[part.fault.notna()][[*keys, "fault"]].drop_duplicates().groupby(["label", "fault"], sort=False)
        found = "; ".join(
            f"{label}: {fault} ({n} of {trainings[label]})" for (label, fault), n in faults.size().items()
        )
        said.append(f"Of {trainings.sum()} trainings of {what}, `tables/health.md` finds: {found or 'nothing wrong'}.")
    return "\n\n".join(said)


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


def elbo() -> str:
    """What unit KL weights did to the VRM, beside the reference weights."""
    latents = pd.read_csv(RUN / "tables" / "latents.csv").set_index(["variant", "metric"])
    accuracy = pd.read_csv(RUN / "tables" / "table2.csv").set_index(["variant", "evaluation_set"])
    variants = _run_config()["reward"]["variants"]
    lines = [
        "| | β_w, β_z | -ELBO at the end of training, nats | KL of w, nats | KL of z, nats | active units of z "
        "| accuracy, annotated | accuracy, true preference |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in ("vrm_strict_elbo", "vrm"):
        metrics = latents.loc[name]
        cells = [f"{variants[name]['beta_w']:g}, {variants[name]['beta_z']:g}"]
        cells += [_interval(metrics.loc["negative_elbo"], 3)]
        cells += [f"{metrics.estimate[metric]:.2g}" for metric in ("kl_w", "kl_z", "active_units")]
        cells += [_interval(accuracy.loc[(name, column)]) for column in ("uf_c", "noise_free")]
        lines.append(f"| {metrics.label.iloc[0]} | " + " | ".join(cells) + " |")
    seeds = int(latents.n_seeds.iloc[0])
    lines += ["", f"*`results/demo/tables/latents.csv` and `table2.csv`: means of {seeds} seeds, 95 % intervals.*"]
    return "\n".join(lines)


def bound() -> str:
    """The terms of Theorem 5.1, and what held-out pairs alone show."""
    table = pd.read_csv(RUN / "tables" / "bound.csv")
    terms = table.pivot(index="variant", columns="term", values="estimate")
    labels = table.drop_duplicates("variant").set_index("variant").label
    lines = [
        "| | empirical risk | KL, nats a pair | bound | vacuous | KL allowed | held-out risk | held-out certificate |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in ("vrm", "vrm_concept_residual", "vrm_strict_elbo"):
        row = terms.loc[name]
        certificate = row.held_out_risk + math.sqrt(math.log(1 / row.delta) / (2 * row.held_out_pairs))
        cells = [f"{row.empirical_risk:.3f}", f"{row.kl_per_pair:.2g}", f"{row.bound:.2f}"]
        cells += ["yes" if row.vacuous == 1 else "no" if row.vacuous == 0 else "in some seeds"]
        cells += [f"{row.largest_kl_per_pair:.2f}", f"{row.held_out_risk:.3f}", f"{certificate:.3f}"]
        lines.append(f"| {labels[name]} | " + " | ".join(cells) + " |")
    first, seeds = terms.iloc[0], int(table.n_seeds.iloc[0])
    lines += [
        "",
        f"*`results/demo/tables/bound.csv`: means of {seeds} seeds, {first.pairs:,.0f} training and "
        f"{first.held_out_pairs:,.0f} held-out pairs, δ = {first.delta:g}. KL allowed: nats a pair below which the "
        "bound would be under 1.*",
    ]
    return "\n".join(lines)


def provenance() -> str:
    """Which run the README shows: where its models come from, and where its tables do."""
    record = json.loads((RUN / "tables" / "table2.provenance.json").read_text(encoding="utf-8"))
    models = [json.loads(p.read_text(encoding="utf-8")) for p in RUN.glob("*/**/train-*.provenance.json")]
    trained, made = (" and ".join(sorted({_commit(r) for r in records})) for records in (models, [record]))
    commit = made if trained == made else f"{made}, whose models were trained at {trained},"
    return (
        f"*From a run of {commit} on {record['device']}, torch {record['packages']['torch']}, "
        f"transformers {record['packages']['transformers']}, trl {record['packages']['trl']}.*"
    )


def _commit(record: dict) -> str:
    return f"commit `{record['commit'][:10]}`" + (" with uncommitted changes" if record["dirty"] else "")


def jobs() -> str:
    """Processor time of the demo's jobs by command, from the warm interpreter's log."""
    table = measured.warm_log(RUN / "logs" / "warm.log")
    table = table.rename(columns={"seconds": "clock", "processor_seconds": "seconds", "max_rss_mib": "mib"})
    own = table.groupby("command").agg(
        jobs=("seconds", "size"), each=("seconds", "mean"), all=("seconds", "sum"), mib=("mib", "max")
    )
    lines = ["| command | jobs | processor seconds a job | in all | peak MiB |", "|:--|--:|--:|--:|--:|"]
    lines += [
        f"| `{name}` | {row.jobs:.0f} | {row.each:.1f} | {row['all']:.0f} | {row.mib:.0f} |"
        for name, row in own.sort_values("all", ascending=False).iterrows()
    ]
    note = f"*`results/demo/logs/warm.log`: {table.is_job.sum()} jobs, {table.seconds.sum():,.0f} processor seconds.*"
    return "\n".join([*lines, "", note])


def judged() -> str:
    """Table 1's own rows, and its notes on what the numbers are not."""
    cells = pd.read_csv(RUN / "tables" / "table1.csv")
    config = _run_config()
    titles = {"win_rate": "WR", "lc_win_rate": "LC", "lc_without_difficulty": "LC, no difficulty term*"}
    titles |= {"sc_win_rate": "SC", "score": "score"}
    columns = list(dict.fromkeys(zip(cells.benchmark, cells.metric, strict=True)))
    head = [f"{config['benchmarks'][name]['label']} {titles[metric]}" for name, metric in columns]
    lines = ["| Base | Method | " + " | ".join(head) + " |", "|:--|:--|" + "--:|" * len(head)]
    for (base, _), part in cells.groupby(["base", "method"], sort=False):
        own = part.set_index(["benchmark", "metric"])
        values = [_interval(own.loc[column], 2 if column[0] == "mt_bench" else 1) for column in columns]
        name = config["policy"]["bases"][base]["label"]
        lines.append(f"| {name} | {part.label.iloc[0]} | " + " | ".join(values) + " |")
    why = "\\* Not AlpacaEval's LC: that needs the official 805 instructions and their difficulties."
    return "\n".join([*lines, "", why])


def claims() -> str:
    """How the page of the paper's claims ends."""
    entries = pd.read_csv(RUN / "tables" / "paper.csv")
    said = ", ".join(f"{n} {verdict}" for verdict, n in entries.verdict.value_counts().sort_index().items())
    decided = entries[entries.verdict.isin(["agrees", "disagrees"])]
    shown = [f"- {row['what']}: {row.ours} ({row.verdict})" for _, row in decided.iterrows()]
    lines = [f"{len(entries)} entries: {said}. The decided ones:", "", *shown]
    return "\n".join(lines)


def _run_config() -> dict:
    return yaml.safe_load((RUN / "config.yaml").read_text(encoding="utf-8"))


def _scaled(cell: pd.Series, factor: float) -> pd.Series:
    ends = ["estimate", "low", "high"]
    return pd.Series({name: factor * cell[name] if name in ends else cell[name] for name in cell.index})


def _interval(cell: pd.Series, digits: int = 1, signed: bool = False) -> str:
    form = f"{'+' if signed else ''}.{digits}f"
    if math.isnan(cell.low):  # nothing varies
        return f"{cell.estimate:{form}}"
    return f"{cell.estimate:{form}} [{cell.low:{form}}, {cell.high:{form}}]"


MEASURED = {
    "docs/findings.md": {"STUDY": measured.against_rm, "WORLDS": measured.worlds, "ABLATION": measured.ablation},
    "docs/benchmarks.md": {
        "TRAINING_SPEED": measured.training_speed,
        "VRM_SPEED": measured.vrm_speed,
        "SCORING_SPEED": measured.scoring_speed,
    },
    "docs/scale.md": {"PLAN": planned.said, "HOURS": planned.hours},
    "docs/real_text.md": {
        "REAL": measured.real_text,
        "BESIDE": measured.beside_rm,
        "CARRIED": measured.carried_over,
    },
}
OF_THE_DEMO = {
    "README.md": {"SMALL": small},
    "docs/results.md": {
        "TABLE": table,
        "JUDGED": judged,
        "CLAIMS": claims,
        "NUMBERS": numbers,
        "PROBABILITIES": probabilities,
        "RESIDUAL": residual,
        "HEALTH": health,
        "POLICIES": policies,
        "PROVENANCE": provenance,
    },
    "docs/theory.md": {"ELBO": elbo, "BOUND": bound},
    "docs/benchmarks.md": {"JOBS": jobs},
    "docs/findings.md": {
        "PROVENANCE": provenance,
        "COMPARED": lambda: findings.compared(RUN),
        "LIMITS": lambda: findings.limits(RUN),
        "DIFFERENCES": lambda: findings.judged(RUN),
        "SELECTION": lambda: findings.selection(RUN),
        "LENGTH": lambda: findings.length(RUN),
    },
}


def main() -> int:
    """Fill every block that there are files for."""
    pages = [*MEASURED.items()]
    shutil.copyfile(measured.RESULTS / "power.png", ROOT / "docs" / "images" / "power.png")
    if (RUN / "tables" / "table1.csv").is_file():
        pages += OF_THE_DEMO.items()
        images = ROOT / "docs" / "images"
        images.mkdir(parents=True, exist_ok=True)
        for name in IMAGES:
            shutil.copyfile(RUN / "figures" / name, images / name)
    else:
        print(f"{RUN.relative_to(ROOT)} is not finished: blocks of docs/results/ alone are filled", file=sys.stderr)
    for page, blocks in pages:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        for name, make in blocks.items():
            pattern = re.compile(rf"(<!-- {name}:[^>]*-->\n).*?(<!-- end {name} -->)", flags=re.DOTALL)
            if not pattern.search(text):
                print(f"{page} has no block {name}", file=sys.stderr)
                return 1
            filled = make()
            text = pattern.sub(lambda found, filled=filled: f"{found[1]}{filled}\n{found[2]}", text)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
