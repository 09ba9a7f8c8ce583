"""The tables of README.md and docs/ are those of the result files."""

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
