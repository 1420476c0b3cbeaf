"""The committed table of cases is what the code does; skipped where the cases are absent."""

import sys

import pytest
from paths import ROOT, SHARED

sys.path.append(str(ROOT / "tools"))


def test_the_table_of_cases_is_current():
    directory = SHARED / "cases"
    if not directory.is_dir():
        pytest.skip(f"{directory} is absent")
    import cases

    page = (ROOT / "docs" / "cases.md").read_text(encoding="utf-8")
    for path in sorted(directory.glob("*/*")):
        name = str(path.relative_to(directory))
        if path.suffix == ".md":
            continue
        shown = cases.outcome(path, name)
        assert "traceback" not in shown, name
        assert f"| {cases.cell(shown)} |" in page, f"{name}: make docs/cases.md again with tools/cases.py"
    assert "\n".join(cases.shapes()) in page
