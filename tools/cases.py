"""The table of docs/cases.md: what happens to each small input of a directory of cases.

    git worktree add ../before 33d33da
    PYTHONPATH=../before/src python tools/cases.py ../shared/cases --record > before.json
    python tools/cases.py ../shared/cases --before before.json > docs/cases.md

Files of `scored/` and `own/` are read as training data with the aspects that they rate and the default range, those of
`pairs/` as evaluation sets. The page that is committed needs none of them to be read.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vrm.config import ConfigError, DataConfig, EvaluationSet
from vrm.data.preference_sets import read_preference_set
from vrm.data.scored import read_scored_prompts
from vrm.records import RecordError, read_jsonl

ASPECTS = {"own/one_to_ten.jsonl": ["helpfulness"]}
TWO = ["helpfulness", "honesty"]
REWARD_BENCH = ("subset_unknown_for_rb.jsonl",)
HEAD = """# Files as people have them: what happens to each

Small made-up inputs in the shapes and with the faults that public complaints are about; `tools/cases.py` makes this
page from them. `scored` and `own` are read as training data (`vrm read-scored`; aspects helpfulness and honesty,
default range), `pairs` as evaluation sets (`vrm score`, `vrm evaluation-set`). *Before* is commit 33d33da.

| file | before | after |
|---|---|---|
"""


def outcome(path: Path, name: str) -> str:
    """What reading a case gives, in a few words."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        if name.startswith("pairs/"):
            form = "reward_bench" if path.name in REWARD_BENCH else "pairs"
            source = EvaluationSet(path=str(path), label="x", format=form)
            return _try(lambda: _set(source, Path(scratch)), path)
        config = DataConfig(path=str(path), label="x", aspects=ASPECTS.get(name, TWO))
        return _try(lambda: _scored(read_scored_prompts(config, Path(scratch))), path)


def _set(source: EvaluationSet, scratch: Path) -> str:
    counts = read_preference_set("s", source, None, scratch, TWO)
    _, first = next(read_jsonl(scratch / "s.jsonl"))
    roles = " + ".join(turn["role"] for turn in first["prompt"])
    shown = first["chosen"] if len(first["chosen"]) < 30 else first["chosen"][:30] + "..."
    return _read(
        counts, f"{counts['pairs']} pairs of {counts['rows']} rows; prompt: {roles}; chosen: {json.dumps(shown)}"
    )


def _scored(counts: Mapping[str, Any]) -> str:
    numbers = f"{counts['prompts']} prompts, {counts['responses']} responses of {counts['rows']} rows"
    if counts["responses_set_aside"]:
        numbers += f"; {counts['responses_set_aside']} responses set aside"
    return _read(counts, numbers)


def _read(counts: Mapping[str, Any], numbers: str) -> str:
    unread = ", ".join(counts.get("columns_not_read", []))
    parts = [f"read as {counts['read_as']}: " if "read_as" in counts else "read: ", numbers]
    return "".join(parts) + (f"; not read: {unread}" if unread else "")


def _try(read: Callable[[], str], path: Path) -> str:
    try:
        return read()
    except (ConfigError, RecordError) as error:
        words = str(error).replace(f"{path}: ", "").replace(str(path), path.name)
        words = " ".join(words.split())
        return f"stops: {words if len(words) < 420 else words[:420] + '...'}"
    except Exception as error:  # a traceback is a finding here, not a crash
        return f"**traceback** {type(error).__name__}: {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, help="directory with own/, scored/ and pairs/")
    parser.add_argument("--before", type=Path, help="what --record printed with an earlier commit's code")
    parser.add_argument("--record", action="store_true", help="print outcomes as JSON")
    options = parser.parse_args()
    names = sorted(str(path.relative_to(options.cases)) for path in options.cases.glob("*/*"))
    after = {name: outcome(options.cases / name, name) for name in names}
    if options.record:
        print(json.dumps(after, indent=2, ensure_ascii=False))
        return
    before = json.loads(options.before.read_text(encoding="utf-8")) if options.before else {}
    rows = [f"| `{name}` | {cell(before.get(name, ''))} | {cell(after[name])} |" for name in names]
    print(HEAD + "\n".join([*rows, "", *shapes()]))


def shapes() -> list[str]:
    """The shapes that are recognised, as a table."""
    from vrm.data.shapes import COMPARED, RATED  # an earlier commit has none

    rows = [
        f"| `{shape.name}` | {shape.title} | {kind} | {', '.join(f'`{column}`' for column in sorted(shape.columns))} |"
        for kind, shapes in (("rated responses", RATED), ("comparisons", COMPARED))
        for shape in shapes
    ]
    return [
        "## The shapes",
        "",
        "Values of `data.shape` and `evaluation.sets.<set>.shape`; without one, the shape of a file is that of its",
        "first row that fits one. The prompt stands under `prompt`, `instruction` (with `input`), `question`,",
        "`context`, `conversations` or `input`, a text or a list of messages; `system` and `history` are used where",
        "present.",
        "",
        "| shape | what | rows hold | columns that are read beside the prompt's and the aspects' |",
        "|---|---|---|---|",
        *rows,
    ]


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
