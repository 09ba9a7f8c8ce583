"""The tables of README.md and docs/ are those of the result files."""

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
    assert "<!-- fill:" in text
    sys.modules.pop("fill_readme")
