"""The tables of README.md and docs/ are those of the result files."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/demo.md"])
def test_no_table_was_typed_by_hand(page, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "analyses"))
    import fill_readme

    text = (ROOT / page).read_text(encoding="utf-8")
    assert fill_readme.filled(text) == text
    assert text.count("<!-- fill:") == len(re.findall(r"<!-- fill: [\w-]+ -->\n\|", text)) > 0
    typed = re.sub(r"(<!-- fill: [\w-]+ -->\n)", r"\1| typed by hand |\n", text)
    assert fill_readme.filled(typed) == text
    sys.modules.pop("fill_readme")


def test_the_main_job_keeps_its_allotment_of_tokens():
    page = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    allotted = {
        stage: int(n.replace(",", "")) for stage, n in re.findall(r"^\| (\w+) \| ([\d,]{5,}) \| .*[a-z]", page, re.M)
    }
    spent = {stage: n for stage, n in json.loads((ROOT / "figures" / "demo.json").read_text())["tokens"].items() if n}
    assert set(allotted) == set(spent)
    assert not {stage: n for stage, n in spent.items() if n > allotted[stage]}
